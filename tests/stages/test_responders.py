"""One answer to each speech: from a file, from an endpoint that refuses some, that loses some."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from chat_server import ChatServer, Fault, Reply, answer_by_schema, error_fault

from psychocounsel.config.components import (
    EndpointConfig,
    ResponderConfig,
)
from psychocounsel.errors import DataQualityError, IncompleteError
from psychocounsel.llm.cancel import CancelToken
from psychocounsel.stages.respond import ResponseRequest, plan_responder, respond
from psychocounsel.store.store import Store
from psychocounsel.types import Speech


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def test_file_of_responses_answers_what_it_holds(tmp_path: Path, store: Store) -> None:
    path = tmp_path / "said.csv"
    path.write_text("speech,response\nI cannot sleep.,What keeps you up?\n", encoding="utf-8")
    responder = ResponderConfig(author="said", file=str(path), max_missing_share=0.5)
    asked = ResponseRequest([Speech("I cannot sleep."), Speech("Nobody calls.")], 0)
    answered = respond(responder, asked, store, CancelToken())
    assert [each.text for each in answered.candidates] == ["What keeps you up?"]
    assert answered.failed == {"not_in_file": 1}
    strict = responder.model_copy(update={"max_missing_share": 0.4})
    with pytest.raises(DataQualityError, match=r"1 of 2 speeches got no answer \(1 not_in_file\); add them"):
        respond(strict, asked, store, CancelToken())
    path.write_text("speech,response\nI cannot sleep.,Other words.\n", encoding="utf-8")
    again = plan_responder(responder, store, "model").settings["file"]
    assert (
        again
        != plan_responder(responder.model_copy(update={"file": str(copy_of(path))}), store, "model").settings["file"]
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
    return len(respond(responder, ResponseRequest(SPEECHES, 0), store, CancelToken()).candidates)


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
