"""Samplers beside transformers: vLLM in processes of its own, and a server that is started for the answers."""

import json
import os
import shutil
import signal
import sys
import threading
import time
from pathlib import Path
from shutil import which
from types import ModuleType
from typing import Any, cast

import pytest
from transformers_server import WIDE_SHAPE, make_untrained_llama

from psychocounsel.config.components import ChatFormat, ResponderConfig, SamplerConfig, SamplingConfig
from psychocounsel.config.schema import LaunchConfig
from psychocounsel.errors import ConfigError, DataQualityError, IncompleteError, Preempted
from psychocounsel.llm.session import Session, open_session
from psychocounsel.stages.respond import Responder, sample_answers
from psychocounsel.store.store import Store
from psychocounsel.training.generate import Answer
from psychocounsel.training.samplers import SamplingTask, sample
from psychocounsel.training.tokenize import encode_prompt, load_tokenizer
from psychocounsel.types import Policy, SampledAnswer, Speech

SPEECHES = [Speech(f"Since the {word} I lie awake, and it is {word}") for word in ("move", "long", "quarrel", "rain")]
CHAT = ChatFormat(system_prompt="Listen.")
VLLM = SamplerConfig(backend="vllm", gpu_memory_utilization=0.5)

FAKE_VLLM = """
import json, os, time
from types import SimpleNamespace

LOG = os.environ["FAKE_VLLM_LOG"]

class SamplingParams:
    def __init__(self, **given):
        self.given = given

class LLM:
    def __init__(self, **given):
        self.log(engine=given, multiprocessing=os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"],
                 device=os.environ["CUDA_VISIBLE_DEVICES"])
        while os.path.exists(LOG + ".load"):
            time.sleep(0.01)

    def log(self, **entry):
        with open(LOG, "a") as stream:
            stream.write(json.dumps({"process": os.getpid(), **entry}) + chr(10))

    def reset_prefix_cache(self):
        self.llm_engine, self.queue = self, []

    def enqueue(self, prompts, parameters, use_tqdm):
        self.log(prompts=prompts, parameters=[each.given for each in parameters])
        for number, (prompt, each) in enumerate(zip(prompts, parameters)):
            ids = prompt["prompt_token_ids"][-4 - number % 3 : -1]
            reason = "length" if number % 3 == 1 else "stop"
            ids = ids if reason == "length" else [*ids, each.given["stop_token_ids"][0]]
            answer = SimpleNamespace(token_ids=ids, finish_reason=reason)
            self.queue.append(SimpleNamespace(request_id=str(number), finished=True, outputs=[answer]))

    def step(self):
        if os.path.exists(LOG + ".fail"):
            raise RuntimeError("no memory")
        print("INFO a line of the engine", flush=True)
        time.sleep(0.01)
        return [] if os.path.exists(LOG + ".hang") else [self.queue.pop()]
"""


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("weights") / "model"
    make_untrained_llama([speech.text for speech in SPEECHES], folder, WIDE_SHAPE)
    return folder


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put a stand-in for vLLM on the path of child processes; it writes how it was called into this file."""
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "vllm.py").write_text(FAKE_VLLM, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path / "package"), *sys.path]))
    monkeypatch.setenv("FAKE_VLLM_LOG", str(tmp_path / "log"))
    return tmp_path / "log"


def answers(weights: Path, work: Path, sampler: SamplerConfig, session: Session, **changes: Any) -> list[SampledAnswer]:
    work.mkdir(exist_ok=True)
    sampling = changes.pop("sampling", SamplingConfig(temperature=0.7, top_p=0.9, max_new_tokens=5))
    responder = ResponderConfig(author="elm", model="elm", sampling=sampling, sampler=sampler, chat=CHAT)
    settings: dict[str, Any] = {"speeches": SPEECHES, "draws": 3, "seed": 9, "launch": LaunchConfig()}
    return sample_answers(Policy(str(weights)), responder, work=work, session=session, **(settings | changes))


def session_in(folder: Path) -> Session:
    return Session(Store(folder / "store", offline=True))


def calls(log: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.read_text().splitlines()]


def test_vllm_gets_ids_in_one_process_per_device(
    weights: Path, log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    launch = LaunchConfig(num_processes=2)
    monkeypatch.setattr("psychocounsel.training.samplers.SHARD_ANSWERS", 6)  # in this process, which divides the work
    found = answers(weights, tmp_path / "work", VLLM, session_in(tmp_path), launch=launch)
    assert "of the engine" not in capfd.readouterr().err
    assert (tmp_path / "work" / "vllm.log").read_text().count("of the engine") == 12
    engines, generated = ([each for each in calls(log) if key in each] for key in ("engine", "prompts"))
    assert len({each["process"] for each in engines} - {os.getpid()}) == 2
    assert {each["device"] for each in engines} == {"0", "1"}
    assert {each["multiprocessing"] for each in engines} == {"0"}
    tokenizer = load_tokenizer(Policy(str(weights)))
    prompts = [encode_prompt(tokenizer, speech.text, CHAT) for speech in SPEECHES]
    by_process = {each["process"]: each for each in generated}
    given = {tuple(one["prompt_token_ids"]) for each in generated for one in each["prompts"]}
    assert given == set(map(tuple, prompts))
    for engine in engines:
        own = by_process[engine["process"]]["prompts"]
        longest = max(len(each["prompt_token_ids"]) for each in own)
        assert engine["engine"] == {
            **{"model": str(weights), "revision": None, "tokenizer_revision": None, "dtype": "float32"},
            **{"gpu_memory_utilization": 0.5, "enable_prefix_caching": True, "max_model_len": longest + 5},
            "enable_chunked_prefill": False,
        }
    parameters = [one for each in generated for one in each["parameters"]]
    assert len({each["seed"] for each in parameters}) == 3 * len(SPEECHES)
    ends = {tuple(each["stop_token_ids"]) for each in parameters}
    assert len(ends) == 1
    shared = {(each["temperature"], each["top_p"], each["max_tokens"]) for each in parameters}
    assert shared == {(0.7, 0.9, 5)}
    assert [(each.speech_id, each.draw, each.finished) for each, _ in found] == [
        (speech.id, draw, draw != 1) for speech in SPEECHES for draw in range(3)
    ]
    texts = [
        tokenizer.decode(ids[-4 - draw : -1], skip_special_tokens=True).strip() for ids in prompts for draw in range(3)
    ]
    assert [each.text for each, _ in found] == texts
    assert {(each.token_ids or ())[-1] for each in found if each.candidate.finished} <= set(*ends)
    assert [
        tokenizer.decode(each.token_ids, skip_special_tokens=True).strip() for each in found if each.token_ids
    ] == texts


@pytest.mark.parametrize(("hangs", "logged"), [("log.load", "engine"), ("log.hang", "prompts")])
def test_a_run_is_cancelled_while_vllm_loads_or_answers(
    weights: Path, log: Path, tmp_path: Path, hangs: str, logged: str
) -> None:
    log.with_name(hangs).touch()
    session = session_in(tmp_path)

    def cancel() -> None:
        while not log.exists() or logged not in log.read_text():
            time.sleep(0.02)
        session.cancel.cancel()

    threading.Thread(target=cancel, daemon=True).start()
    with pytest.raises(Preempted):
        answers(weights, tmp_path / "work", VLLM, session)
    for process in {entry["process"] for entry in calls(log)}:
        with pytest.raises(ProcessLookupError):
            os.kill(process, signal.SIGKILL)


def test_vllm_in_this_process(weights: Path, log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    monkeypatch.syspath_prepend(tmp_path / "package")
    monkeypatch.setitem(sys.modules, "vllm", None)  # is undone in the end; what is imported here as well
    del sys.modules["vllm"]
    task = SamplingTask(tuple(SPEECHES), 3, SamplingConfig(temperature=0.0, max_new_tokens=5), CHAT, 9)

    def run() -> list[list[Answer]]:
        return sample(Policy(str(weights)), task, VLLM, tmp_path, lambda done, total: None)

    log.with_name("log.fail").touch()
    with pytest.raises(IncompleteError, match="no memory"):
        run()
    log.with_name("log.fail").unlink()
    found = run()
    assert len(calls(log)[-1]["prompts"]) == len(SPEECHES)  # equal answers are computed once
    assert [len(set(each)) for each in found] == [1] * len(SPEECHES)
    assert [len(each) for each in found] == [3] * len(SPEECHES)
    for path in tmp_path.glob("shard-*"):
        path.unlink()
    for missing in (None, ModuleType("vllm")):  # not installed, and what an uninstallation leaves
        sys.modules["vllm"] = cast(Any, missing)
        with pytest.raises(ConfigError, match=r"psychocounsel\[vllm\]"):
            run()


SERVE = (sys.executable, str(Path(__file__).parents[1] / "servers" / "policy_server.py"), "{port}", "{name}", "{model}")


def test_a_server_is_started_for_the_answers_which_the_journal_keeps(weights: Path, tmp_path: Path) -> None:
    sampler = SamplerConfig(backend="endpoint", serve=(*SERVE, "{date}"))
    printed = tmp_path / "work" / "server.log"
    with open_session(Store(tmp_path / "store", offline=True)) as session:
        found = answers(weights, tmp_path / "work", sampler, session)
        said = [speech.text.split()[-1] for speech in SPEECHES]
        assert [(each.speech_id, each.draw, each.text, each.finished) for each, _ in found] == [
            (speech.id, draw, "" if word == "rain" else f"You said {word}", word != "long")
            for speech, word in zip(SPEECHES, said, strict=True)
            for draw in range(3)
        ]
        assert {each.token_ids for each in found} == {None}  # a server sends texts
        assert printed.read_text().count("answered ") == 12  # an empty answer is one of the policy's, and stays
        assert answers(weights, tmp_path / "work", sampler, session, draws=4)[0] == found[0]
        assert printed.read_text().count("answered ") == 4  # the fourth draws, at whatever port the server listens now
        printed.unlink()
        assert answers(weights, tmp_path / "work", sampler, session) == found
        assert not printed.exists()  # the journal has every answer, so that no server is started
        # Another command may serve the same weights otherwise, in 4 bits say.
        other = SamplerConfig(backend="endpoint", serve=(*SERVE, "{date}", "4-bit"))
        answers(weights, tmp_path / "work", other, session)
        assert printed.read_text().count("answered ") == 12


def test_answers_stay_those_of_a_policy_whose_optimizer_is_dropped(weights: Path, tmp_path: Path) -> None:
    policy, sampler = tmp_path / "policy", SamplerConfig(backend="endpoint", serve=SERVE)
    shutil.copytree(weights, policy)
    (policy / "optimizer").mkdir()
    (policy / "optimizer" / "optimizer.pt").write_bytes(b"moments")
    (policy / "manifest.json").write_text('{"dropped": []}')
    with open_session(Store(tmp_path / "store", offline=True)) as session:
        found = answers(policy, tmp_path / "work", sampler, session)
        (tmp_path / "work" / "server.log").unlink()
        shutil.rmtree(policy / "optimizer")
        (policy / "manifest.json").write_text('{"dropped": ["optimizer/optimizer.pt"]}')
        assert answers(policy, tmp_path / "work", sampler, session) == found
        assert not (tmp_path / "work" / "server.log").exists()


def test_what_a_server_does_not_answer_has_no_text_and_may_not_be_much(weights: Path, tmp_path: Path) -> None:
    sampler = SamplerConfig(backend="endpoint", serve=SERVE)
    few = [*SPEECHES * 10, Speech("It is too much"), Speech("I was filtered")]  # 2 of 42
    with open_session(Store(tmp_path / "store", offline=True)) as session:
        found = answers(weights, tmp_path / "work", sampler, session, speeches=few, draws=1)
        assert [each.text for each, _ in found[-2:]] == ["", ""]
        (tmp_path / "again").mkdir()
        elm = ResponderConfig(author="elm", model=str(weights), sampler=sampler)
        counted = Responder(elm, session, "model").answer(few, 9, tmp_path / "again")
        assert len(counted.candidates) == len(few) - 2  # among them empty ones, which the policy wrote
        assert counted.failed == {"content_filter": 1, "invalid": 1}
        with pytest.raises(DataQualityError, match="2 of 6 answers are missing"):
            answers(weights, tmp_path / "work", sampler, session, speeches=few[-6:], draws=1)


def test_a_server_that_is_not_told_the_revision_does_not_answer_for_it(tmp_path: Path) -> None:
    sampler, pinned = SamplerConfig(backend="endpoint", serve=SERVE), Policy("owner/elm", "0123abc")
    responder = ResponderConfig(author="elm", model="hub:owner/elm@0123abc", sampler=sampler)
    with (
        open_session(Store(tmp_path / "store", offline=True)) as session,
        pytest.raises(ConfigError, match="revision"),
    ):
        sample_answers(pinned, responder, SPEECHES, 1, 9, tmp_path, session, LaunchConfig())


@pytest.mark.slow
@pytest.mark.skipif(which("vllm") is None, reason="vLLM is not installed")
def test_greedy_answers_of_a_vllm_server_are_those_of_the_weights(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
    serve = tuple("float32" if word == "bfloat16" else word for word in SamplerConfig().serve)
    greedy = SamplingConfig(temperature=0.0, max_new_tokens=24)
    with open_session(Store(tmp_path / "store", offline=True)) as session:
        served, local = (
            [each.candidate for each in answers(weights, tmp_path / "work", sampler, session, sampling=greedy, draws=1)]
            for sampler in (SamplerConfig(backend="endpoint", serve=serve), SamplerConfig())
        )
    assert served == local
    assert {each.finished for each in served} == {False}, "chance ended an answer; the limit is not seen"


@pytest.mark.parametrize(
    "given",
    [
        {"backend": "local", "start_seconds": 60},
        {"backend": "vllm", "serve": ["vllm"]},
        {"backend": "endpoint", "gpu_memory_utilization": 0.5},
    ],
)
def test_a_sampler_takes_the_settings_of_its_backend_only(given: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="takes no"):
        SamplerConfig.model_validate(given)
    with pytest.raises(ValueError, match="needs a model"):
        ResponderConfig.model_validate({"author": "elm", "file": "x.jsonl", "sampler": {"backend": "local"}})
    with pytest.raises(ValueError, match=r"where {name}, {port} stands"):
        SamplerConfig.model_validate({"backend": "endpoint", "serve": ["serve", "{model}"]})


def test_the_command_of_a_server_is_part_of_an_id_and_how_long_it_may_start_is_not() -> None:
    prints = [
        SamplerConfig.model_validate(each).fingerprint()
        for each in (
            {},
            {"backend": "vllm", "gpu_memory_utilization": 0.4},
            {"backend": "endpoint", "start_seconds": 60},
            {"backend": "endpoint", "serve": SERVE},
        )
    ]
    assert prints[:2] == [{"backend": "local"}, {"backend": "vllm"}]
    assert prints[2] == SamplerConfig(backend="endpoint").fingerprint() != prints[3]
