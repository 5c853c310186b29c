"""What is connected, and what must not be: addresses, restricted text, planned models."""

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from chat_server import ChatServer, Fault, Reply, answer_by_schema, error_fault

from psychocounsel.config.models import (
    ChatFormat,
    EndpointConfig,
    JudgeConfig,
    ResponderConfig,
    SamplingConfig,
)
from psychocounsel.connect import Respondents, plan_judge, plan_responder, respond
from psychocounsel.domain import Speech
from psychocounsel.endpoints import (
    JOURNAL_FILE,
    keep_restricted_text_here,
    planned_journal,
    planned_model,
    require_usable,
)
from psychocounsel.errors import ConfigError, DataQualityError, EndpointError, IncompleteError
from psychocounsel.llm.chat import ChatRequest, Message
from psychocounsel.llm.engine import never_stop
from psychocounsel.store.store import Store

REMOTE = EndpointConfig(model="judge", base_url="https://judge.invalid/v1")
LOCAL = EndpointConfig(model="judge", base_url="http://127.0.0.1:9/v1")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def test_restricted_text_and_a_remote_model_never_meet() -> None:
    keep_restricted_text_here([None, LOCAL], {"a.csv": "restricted"})
    keep_restricted_text_here([REMOTE], {"a.csv": "public", "b.csv": "deidentified"})
    with pytest.raises(ConfigError) as caught:
        keep_restricted_text_here([None, LOCAL, REMOTE], {"a.csv": "public", "b.csv": "restricted"})
    assert caught.value.where == "b.csv"
    assert "https://judge.invalid/v1" in caught.value.what


def test_address_of_the_environment_counts(monkeypatch: pytest.MonkeyPatch, store: Store) -> None:
    endpoint = EndpointConfig(model="judge")
    judge = JudgeConfig(backend="endpoint", endpoint=endpoint)
    settings = [plan_judge(judge, store).settings["endpoint"]]
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
    settings.append(plan_judge(judge, store).settings["endpoint"])
    assert [each["base_url"] for each in settings] == ["https://api.openai.com/v1", "http://127.0.0.1:9/v1"]
    keep_restricted_text_here([endpoint], {"a.csv": "restricted"})
    monkeypatch.delenv("OPENAI_BASE_URL")
    with pytest.raises(ConfigError):
        keep_restricted_text_here([endpoint], {"a.csv": "restricted"})


def test_offline_refuses_remote_endpoints_while_planning(tmp_path: Path) -> None:
    offline = Store(tmp_path, offline=True)
    with pytest.raises(ConfigError, match="drop --offline"):
        plan_judge(JudgeConfig(backend="endpoint", endpoint=REMOTE), offline)
    with pytest.raises(ConfigError, match="drop --offline"):
        plan_responder(ResponderConfig(author="a", endpoint=REMOTE), offline, "model")
    plan_judge(JudgeConfig(backend="endpoint", endpoint=LOCAL), offline)
    plan_judge(JudgeConfig(), offline)


def test_speed_knobs_of_an_endpoint_change_no_plan(store: Store) -> None:
    slow = REMOTE.model_copy(update={"concurrency": 1, "timeout_seconds": 5.0, "api_key_env": "OTHER"})
    plans = [plan_judge(JudgeConfig(backend="endpoint", endpoint=each), store) for each in (REMOTE, slow)]
    assert plans[0] == plans[1]


def test_only_the_offline_judge_brings_a_notice(store: Store) -> None:
    assert plan_judge(JudgeConfig(), store).notices
    assert plan_judge(JudgeConfig(backend="endpoint", endpoint=LOCAL), store).notices == ()


def test_every_missing_key_is_named_with_whose_it_is(monkeypatch: pytest.MonkeyPatch, store: Store) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("OTHER_KEY", raising=False)
    require_usable({"judge": None, "responder elm": LOCAL}, store)
    other = REMOTE.model_copy(update={"api_key_env": "OTHER_KEY"})
    with pytest.raises(ConfigError) as caught:
        require_usable({"responder elm": REMOTE, "responder oak": LOCAL, "judge": other}, store)
    lines = str(caught.value).splitlines()
    assert [line.partition(":")[0] for line in lines] == ["responder elm", "judge"]
    assert "OPENAI_API_KEY" in lines[0]
    assert "OTHER_KEY" in lines[1]


def test_how_a_file_is_sampled_is_no_part_of_what_it_is(tmp_path: Path, store: Store) -> None:
    path = tmp_path / "said.csv"
    path.write_text("speech,response\nI cannot sleep.,What keeps you up?\n", encoding="utf-8")
    plain = ResponderConfig(author="said", file=str(path))
    changed = plain.model_copy(
        update={"sampling": SamplingConfig(temperature=0.1), "chat": ChatFormat(system_prompt="Be brief.")}
    )
    assert plan_responder(plain, store, "model") == plan_responder(changed, store, "model")


def test_a_system_prompt_is_part_of_what_a_model_is(store: Store) -> None:
    plain = ResponderConfig(author="elm", endpoint=LOCAL)
    told = plain.model_copy(update={"chat": ChatFormat(system_prompt="Be brief.")})
    assert plan_responder(plain, store, "model") != plan_responder(told, store, "model")


def test_planned_journal_leaves_no_trace(store: Store) -> None:
    with planned_journal(store) as journal:
        assert journal.summary().replies == 0
    assert not store.root.exists()
    assert not (store.root / JOURNAL_FILE).exists()


def test_planned_model_answers_nobody() -> None:
    model = planned_model(LOCAL)
    assert model.identity == {"model": "judge", "base_url": "http://127.0.0.1:9/v1"}
    with pytest.raises(EndpointError):
        asyncio.run(model.ask(ChatRequest((Message("user", "hello"),), 0.0, 1.0, 5)))


def test_file_of_responses_answers_what_it_holds(tmp_path: Path, store: Store) -> None:
    path = tmp_path / "said.csv"
    path.write_text("speech,response\nI cannot sleep.,What keeps you up?\n", encoding="utf-8")
    responder = ResponderConfig(author="said", file=str(path), max_missing_share=0.5)
    asked = Respondents([Speech("I cannot sleep."), Speech("Nobody calls.")], 0)
    answered = respond(responder, asked, store, never_stop)
    assert [each.text for each in answered.candidates] == ["What keeps you up?"]
    assert answered.failed == {"not_in_file": 1}
    strict = responder.model_copy(update={"max_missing_share": 0.4})
    with pytest.raises(DataQualityError, match=r"1 of 2 speeches got no answer \(1 not_in_file\); add them"):
        respond(strict, asked, store, never_stop)
    path.write_text("speech,response\nI cannot sleep.,Other words.\n", encoding="utf-8")
    again = plan_responder(responder, store, "model").settings["file"]
    assert (
        again
        != plan_responder(responder.model_copy(update={"file": str(copy_of(path))}), store, "model").settings[
            "file"
        ]
    )


def copy_of(path: Path) -> Path:
    """Return a file beside `path` with other words."""
    other = path.with_name("other.csv")
    other.write_text("speech,response\nI cannot sleep.,What keeps you up?\n", encoding="utf-8")
    return other


SPEECHES = [Speech(f"I cannot sleep, for the {number}th night.") for number in range(4)]


def answered_by(server: ChatServer, store: Store, max_missing_share: float = 0.05) -> int:
    """Return how many of four speeches a scripted endpoint answered."""
    endpoint = EndpointConfig(model="elm", base_url=server.base_url, max_attempts=1)
    responder = ResponderConfig(author="elm", endpoint=endpoint, max_missing_share=max_missing_share)
    return len(respond(responder, Respondents(SPEECHES, 0), store, never_stop).candidates)


def test_a_responder_that_refuses_everything_is_not_believed_and_asked_again(store: Store) -> None:
    with ChatServer(lambda request, number: Reply(None, refusal="No.")) as server:
        with pytest.raises(DataQualityError, match=r"elm: 4 of 4 speeches got no answer \(4 refusal\)"):
            answered_by(server, store)
        server.script = answer_by_schema
        assert answered_by(server, store) == 4
        assert server.count == 8


def test_as_many_speeches_may_stay_unanswered_as_are_allowed(store: Store) -> None:
    def refuse_one(request: Mapping[str, Any], number: int) -> Reply:
        return Reply(None, refusal="No.") if number == 1 else answer_by_schema(request, number)

    with ChatServer(refuse_one) as server:
        assert answered_by(server, store, max_missing_share=0.25) == 3


def test_a_responder_whose_answers_got_lost_is_owed_them_whatever_share_is_allowed(store: Store) -> None:
    def lose_one(request: Mapping[str, Any], number: int) -> Reply | Fault:
        is_lost = SPEECHES[2].text in request["messages"][0]["content"]
        come_tomorrow = error_fault(500, "busy", headers={"Retry-After": "86400"})
        return come_tomorrow if is_lost else answer_by_schema(request, number)

    with ChatServer(lose_one) as server:
        with pytest.raises(IncompleteError, match=r"1 of 4 requests to elm were not answered: .* HTTP 500"):
            answered_by(server, store, max_missing_share=1.0)
        server.script = answer_by_schema
        asked = server.count
        assert answered_by(server, store) == 4
        assert server.count == asked + 1
