"""Policy + Speech -> Candidate: draw answers from a model on this machine."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from psychocounsel.config.models import ChatFormat, SamplingConfig
from psychocounsel.domain import Candidate, Speech
from psychocounsel.llm.local_model import AnswerGenerator, encode_prompt


class SampleRequest(NamedTuple):
    """Who answers, how many times each speech is answered, and how the answers are drawn."""

    author: str
    per_speech: int
    sampling: SamplingConfig
    chat: ChatFormat
    seed: int


def sample_candidates(
    generator: AnswerGenerator,
    tokenizer: PreTrainedTokenizerBase,
    speeches: Sequence[Speech],
    request: SampleRequest,
    progress: Callable[[int, int], None],
) -> list[Candidate]:
    """Return `per_speech` candidates for each speech, those of one speech side by side.

    A text may be empty, and an answer that met its token limit is marked as unfinished: the caller decides.

    Args:
        generator: the policy.
        tokenizer: the policy's own.
        speeches: whom to answer.
        request: see `SampleRequest`.
        progress: told the number of answers so far, and of all.
    """
    prompts = [encode_prompt(tokenizer, speech.text, request.chat) for speech in speeches]
    asked = [place for place in range(len(speeches)) for _ in range(request.per_speech)]
    answers = generator.generate([prompts[i] for i in asked], request.sampling, request.seed, progress)
    return [
        Candidate(speeches[i].id, request.author, answer.text, answer.finished)
        for i, answer in zip(asked, answers, strict=True)
    ]
