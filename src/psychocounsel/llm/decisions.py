"""Questions with a scale or choices -> their answers with a distribution each: the decisions endpoint.

One call answers all questions about one input, and nothing is written out: `POST /decisions`, as the official
client describes it (`openai.types.decision_create_params`, `openai.types.decision`).
"""

import json
from typing import Any, cast

from psychocounsel.domain import ReplyStatus
from psychocounsel.llm.chat import ChatReply, ChatRequest
from psychocounsel.llm.completion import UnreadableBodyError, count_of, mapping_of, text_of

DECISIONS_PATH = "/decisions"


def decision_body(model: str, request: ChatRequest) -> dict[str, Any]:
    """Return what is sent; temperature, top_p and a limit of tokens have no place there."""
    turns = [{"role": turn.role, "content": turn.content} for turn in request.messages]
    return {"model": model, "input": turns, "questions": list(request.questions)}


def read_decision(body: bytes) -> ChatReply:
    """Return the reply that a body of `POST /decisions` holds; its text is the list of answers, as JSON.

    It is a refusal where every question was declined; one declined among others is the reader's business.

    Raises:
        UnreadableBodyError: it is no JSON, an error in disguise, or holds no list of answers.
    """
    try:
        payload = mapping_of(json.loads(body))
    except (ValueError, RecursionError):
        raise UnreadableBodyError("the body is no JSON") from None
    answers = payload.get("answers")
    if not isinstance(answers, list):
        raise UnreadableBodyError("the body holds an error" if "error" in payload else "no answers")
    usage = mapping_of(payload.get("usage"))
    status, reason = _status(cast("list[Any]", answers))
    return ChatReply(
        status=status,
        text=json.dumps(answers, separators=(",", ":")),
        model=text_of(payload.get("model")),
        prompt_tokens=count_of(usage.get("input_tokens")),
        completion_tokens=count_of(usage.get("output_tokens")),
        reason=reason,
        cached_tokens=count_of(mapping_of(usage.get("input_tokens_details")).get("cached_tokens")),
    )


def _status(answers: list[Any]) -> tuple[ReplyStatus, str]:
    if not answers:
        return ReplyStatus.EMPTY, "the reply has no answers"
    if all(mapping_of(answer).get("type") == "refusal" for answer in answers):
        return ReplyStatus.REFUSAL, "the model declined every question"
    return ReplyStatus.VALID, ""
