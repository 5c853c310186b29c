"""Against foreign servers that hold even a model that learned nothing to a schema: llama.cpp's, and vLLM where it is.

vLLM takes a minute to start, hence `-m slow`; it is not among the requirements, for its wheels are made for one kind
of machine each. It is started as docs/how-to/local-judge.md says.
"""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from shutil import which

import llama_cpp_server
import pytest
from llama_cpp_server import write_gguf
from transformers_server import WIDE_SHAPE, make_untrained_llama

from psychocounsel.config.components import EndpointConfig, ResponderConfig, SamplingConfig
from psychocounsel.errors import EndpointError
from psychocounsel.judging.parsing import ParsedRatings, parse_ratings, point_masses, rating_places
from psychocounsel.judging.rubric import load_rubric
from psychocounsel.llm.cancel import CancelToken
from psychocounsel.llm.endpoints import CAPABILITIES_FILE, open_endpoint, open_journal
from psychocounsel.llm.runner import RunPolicy, run_requests
from psychocounsel.llm.serving import free_port, serving
from psychocounsel.llm.session import open_session
from psychocounsel.llm.structured_output import MOST_ALTERNATIVES, fits, read_choices
from psychocounsel.llm.types import JSON, ChatReply, ChatRequest, Message
from psychocounsel.stages.respond import Responder
from psychocounsel.store.store import Store
from psychocounsel.types import ReplyStatus, Speech

NAME = "tiny-llama"
CONTEXT_TOKENS = 8192
SPEECHES = (
    Speech("Since the move I lie awake, and nobody here knows my name."),
    Speech("My brother rang after two years. I let it ring."),
)
SEVEN = load_rubric(str(Path(__file__).parents[1] / "judging" / "seven-attributes.yaml"))
RUBRIC = replace(SEVEN, reply=SEVEN.reply.model_copy(update={"extra_keys": {}}))
POINT: JSON = {"type": "integer", "enum": list(RUBRIC.scale)}
FLAT: dict[str, JSON] = {
    "type": "object",
    "properties": dict.fromkeys(RUBRIC.principle_ids, POINT),
    "required": list(RUBRIC.principle_ids),
    "additionalProperties": False,
}


COMPACT = ("--structured-outputs-config", '{"backend": "xgrammar", "disable_any_whitespace": true}')


@pytest.fixture(scope="module", params=["llama.cpp", pytest.param("vllm", marks=pytest.mark.slow)])
def foreign(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("foreign")
    if request.param == "vllm" and which("vllm") is None:
        pytest.skip("vLLM is not installed")
    if request.param == "llama.cpp":
        pytest.importorskip("xllamacpp", reason="xllamacpp is not installed: no llama.cpp server to talk to")
        pytest.importorskip("gguf", reason="gguf is not installed: no file for llama.cpp's server")
    make_untrained_llama([speech.text for speech in SPEECHES], folder / "model", WIDE_SHAPE)
    if request.param == "llama.cpp":
        write_gguf(folder / "model", folder / "model.gguf")
        with llama_cpp_server.serving(folder / "model.gguf", NAME, folder / "log") as base_url:
            yield base_url
    else:
        port = free_port()
        model = ("vllm", "serve", str(folder / "model"), "--served-model-name", NAME, "--port", str(port))
        command = (*model, "--max-model-len", str(CONTEXT_TOKENS), *COMPACT)
        with pytest.MonkeyPatch.context() as patched:
            patched.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
            with serving(command, NAME, port, folder / "log", CancelToken(), 600) as base_url:
                yield base_url


def endpoint_of(server: str, model: str = NAME) -> EndpointConfig:
    return EndpointConfig(model=model, base_url=server, max_attempts=1, concurrency=2)


def asked(server: str, store: Store, requests: list[ChatRequest]) -> list[ChatReply]:
    with open_journal(store) as journal:
        return run_requests(open_endpoint(endpoint_of(server), store), requests, journal, RunPolicy(max_attempts=1))


def test_ratings_under_an_enforced_schema_are_read_with_their_numbers(foreign: str, store: Store) -> None:
    requests = [ChatRequest((Message("user", speech.text),), 1.0, 1.0, 400, FLAT, "rate") for speech in SPEECHES]
    replies = asked(foreign, store, requests)
    for reply in replies:
        assert reply.status is ReplyStatus.VALID
        assert reply.model == NAME
        assert reply.completion_tokens > len(RUBRIC.principle_ids)
        assert fits(reply.text, FLAT)
        parsed = parse_ratings(reply.text, RUBRIC, "")
        assert isinstance(parsed, ParsedRatings)
        assert parsed.ratings == json.loads(reply.text)
    known = json.loads((store.root / CAPABILITIES_FILE).read_bytes())
    assert known == {f"{NAME} at {foreign}": "json_schema"}
    assert asked(foreign, store, requests) == replies, "what is journalled is paid once"


def test_its_log_probabilities_give_an_expected_rating(foreign: str, store: Store) -> None:
    message = (Message("user", SPEECHES[0].text),)
    request = ChatRequest(message, 1.0, 1.0, 400, FLAT, "rate", top_logprobs=MOST_ALTERNATIVES)
    (reply,) = asked(foreign, store, [request])
    choices = read_choices(reply.choices)
    assert [each.token.strip(' :,"}') for each in choices] == [str(n) for n in json.loads(reply.text).values()]
    # llama.cpp's are those of the model itself, vLLM's of what the schema leaves of it.
    for choice, (name, rating) in zip(choices, json.loads(reply.text).items(), strict=True):
        start = rating_places(reply.text, RUBRIC)[name].start
        masses = point_masses(choice, reply.text[choice.start : start], RUBRIC.scale)
        assert rating in masses
        assert 0 < sum(masses.values()) <= 1 + 1e-6


def test_it_answers_speeches(foreign: str, store: Store) -> None:
    sampling = SamplingConfig(temperature=1.0, top_p=0.9, max_new_tokens=12)
    responder = ResponderConfig(author="elm", endpoint=endpoint_of(foreign), sampling=sampling)
    with open_session(store) as session:
        answered = Responder(responder, session, "model").answer(SPEECHES, 0, session.store.root)
    assert len(answered.candidates) + sum(answered.failed.values()) == len(SPEECHES)
    assert answered.candidates


def test_a_model_that_it_does_not_list_is_refused_unasked(foreign: str, store: Store) -> None:
    model = open_endpoint(endpoint_of(foreign, "gpt-4o-2024-08-06"), store)
    request = ChatRequest((Message("user", "Hello."),), None, None, 4)
    with open_journal(store) as journal, pytest.raises(EndpointError, match="unknown, or retired") as refused:
        run_requests(model, [request], journal, RunPolicy())
    assert NAME in refused.value.remedy


def test_what_exceeds_the_context_is_the_fault_of_one_item(foreign: str, store: Store) -> None:
    texts = [SPEECHES[0].text, "word " * 20_000]
    first, second = asked(foreign, store, [ChatRequest((Message("user", text),), 0.0, 1.0, 4) for text in texts])
    assert first.status in (ReplyStatus.VALID, ReplyStatus.CUT)
    assert second.status is ReplyStatus.INVALID
    assert "context" in second.reason
