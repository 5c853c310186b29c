"""Responders: what is sent, which replies become candidates, files of responses, and who answers which speech."""

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from chat_server import MODEL, ChatServer, Fault, Reply, answer_by_schema, error_fault
from hypothesis import given
from hypothesis import strategies as st

from psychocounsel.config.components import ChatFormat, EndpointConfig, PoolConfig, ResponderConfig, SamplingConfig
from psychocounsel.corpus.formats import SourceRow
from psychocounsel.errors import DataQualityError, IncompleteError, InputError
from psychocounsel.llm.session import Session, open_session
from psychocounsel.stages.respond import (
    Answers,
    Responder,
    chat_request,
    choose_responders,
    ids_by_key,
    ready_responses,
)
from psychocounsel.store.artifacts import ArtifactSpec
from psychocounsel.store.schemas import RowProvenance, write_records
from psychocounsel.store.store import Store
from psychocounsel.types import Candidate, Speech, Turn

SPEECHES = [Speech(f"I cannot sleep, for the {number}th night.") for number in range(4)]


@pytest.fixture
def session(tmp_path: Path) -> Iterator[Session]:
    with open_session(Store(tmp_path / "store")) as opened:
        yield opened


def elm(server: ChatServer, **changes: Any) -> ResponderConfig:
    endpoint = EndpointConfig(model=MODEL, base_url=server.base_url, max_attempts=changes.pop("max_attempts", 1))
    return ResponderConfig(author="elm", endpoint=endpoint, **changes)


def answers(responder: ResponderConfig, session: Session, seed: int = 0) -> Answers:
    return Responder(responder, session, "model").answer(SPEECHES, seed, session.store.root)


def place(request: Mapping[str, Any]) -> int:
    texts = [speech.text for speech in SPEECHES]
    return texts.index(request["messages"][-1]["content"])


LATER = Speech("Not since May.", history=(Turn("user", "Hi."), Turn("assistant", "Hello.")))


class TestEndpoint:
    def test_a_request_holds_the_client_and_the_sampling_and_nothing_more(self) -> None:
        endpoint = EndpointConfig(model="m")
        sampling = SamplingConfig(temperature=0.5, top_p=0.9, max_new_tokens=77)
        plain = ResponderConfig(author="elm", endpoint=endpoint, sampling=sampling)
        request = chat_request(SPEECHES[0], plain, 0)
        assert [(each.role, each.content) for each in request.messages] == [("user", SPEECHES[0].text)]
        assert (request.temperature, request.top_p, request.max_tokens) == (0.5, 0.9, 77)
        prompted = plain.model_copy(update={"chat": ChatFormat(system_prompt="Be brief.")})
        first = chat_request(SPEECHES[0], prompted, 0).messages[0]
        assert (first.role, first.content) == ("system", "Be brief.")

    def test_earlier_turns_are_messages_between_system_prompt_and_speech(self) -> None:
        responder = ResponderConfig(
            author="elm", endpoint=EndpointConfig(model="m"), chat=ChatFormat(system_prompt="B.")
        )
        request = chat_request(LATER, responder, 0)
        assert [(each.role, each.content) for each in request.messages] == [("system", "B."), *LATER.turns]

    def test_another_author_or_seed_is_another_sample_of_one_model(self, session: Session) -> None:
        with ChatServer(lambda request, number: Reply(f"answer {number // len(SPEECHES)}")) as server:
            oak = elm(server).model_copy(update={"author": "oak"})
            runs = ((elm(server), 0), (oak, 0), (elm(server), 1), (elm(server), 0), (oak, 0))
            texts = [answers(responder, session, seed).candidates[0].text for responder, seed in runs]
            assert texts == ["answer 0", "answer 1", "answer 2", "answer 0", "answer 1"]
            assert server.count == 3 * len(SPEECHES)

    def test_each_speech_is_answered_once_in_its_order(self, session: Session) -> None:
        with ChatServer(lambda request, number: Reply(f" On {place(request)}. \n")) as server:
            first = answers(elm(server), session)
            assert first.candidates == [Candidate(each.id, "elm", f"On {at}.") for at, each in enumerate(SPEECHES)]
            assert first.failed == {}
            assert answers(elm(server), session).candidates == first.candidates
            assert server.count == len(SPEECHES)

    def test_other_replies_are_counted_by_status_and_give_no_candidate(self, session: Session) -> None:
        replies = [
            Reply(None, refusal="I cannot help with that."),
            Reply(""),
            Reply("Oh.", finish_reason="content_filter"),
            Reply("  ", finish_reason="length"),
        ]
        with ChatServer(lambda request, number: replies[place(request)]) as server:
            found = answers(elm(server, max_missing_share=1.0), session)
        assert found.candidates == []
        assert found.failed == {"content_filter": 1, "cut": 1, "empty": 1, "refusal": 1}

    def test_a_cut_answer_is_an_unfinished_candidate_and_is_paid_for_once(self, session: Session) -> None:
        with ChatServer(lambda request, number: Reply("It sounds as if", finish_reason="length")) as server:
            found = answers(elm(server, max_attempts=2), session)
            assert [(each.text, each.finished) for each in found.candidates] == [("It sounds as if", False)] * 4
            assert server.count == len(SPEECHES)

    def test_thoughts_are_no_part_of_an_answer(self, session: Session) -> None:
        replies = [
            Reply("<think>\nShe is sad.\n</think>\n\nTell me."),
            Reply("She is sad.</think> Tell me.", finish_reason="length"),
            Reply("<think>She is", finish_reason="length"),
            Reply("<think>She is sad.</think>"),
        ]
        with ChatServer(lambda request, number: replies[place(request)]) as server:
            found = answers(elm(server, max_missing_share=1.0), session)
        assert [(each.text, each.finished) for each in found.candidates] == [("Tell me.", True), ("Tell me.", False)]
        assert found.failed == {"cut": 1, "empty": 1}
        with ChatServer(lambda request, number: replies[2]) as server, pytest.raises(DataQualityError) as failed:
            answers(elm(server), session)
        assert "max_new_tokens" in failed.value.remedy

    def test_a_responder_that_refuses_everything_is_refused_and_asked_again(self, session: Session) -> None:
        with ChatServer(lambda request, number: Reply(None, refusal="No.")) as server:
            with pytest.raises(DataQualityError, match=r"4 of 4 answers are missing \(4 refusal\)"):
                answers(elm(server), session)
            server.script = answer_by_schema
            assert len(answers(elm(server), session).candidates) == 4
            assert server.count == 8

    def test_a_lost_answer_is_pending_whatever_share_may_be_missing(self, session: Session) -> None:
        def lose_one(request: Mapping[str, Any], number: int) -> Reply | Fault:
            come_tomorrow = error_fault(500, "busy", headers={"Retry-After": "86400"})
            return come_tomorrow if place(request) == 2 else answer_by_schema(request, number)

        with ChatServer(lose_one) as server:
            with pytest.raises(IncompleteError, match=r"1 of 4 requests to elm .* HTTP 500"):
                answers(elm(server, max_missing_share=1.0), session)
            server.script, asked = answer_by_schema, server.count
            assert len(answers(elm(server), session).candidates) == 4
            assert server.count == asked + 1


class TestFile:
    def test_it_answers_what_it_holds(self, tmp_path: Path, session: Session) -> None:
        path = tmp_path / "said.csv"
        path.write_text(f'speech,response\n"{SPEECHES[0].text}",What keeps you up?\n', encoding="utf-8")
        responder = ResponderConfig(
            author="said", file=str(path), licence="mit", data_class="public", max_missing_share=0.75
        )
        found = answers(responder, session)
        assert [each.text for each in found.candidates] == ["What keeps you up?"]
        assert found.failed == {"not_in_file": 3}
        with pytest.raises(
            DataQualityError, match=r"3 of 4 answers are missing \(3 not_in_file\); add them.*speeches.parquet"
        ):
            answers(responder.model_copy(update={"max_missing_share": 0.7}), session)

    def test_several_answers_are_draws_and_those_that_lack_are_missing(self, tmp_path: Path, session: Session) -> None:
        path = tmp_path / "said.csv"
        said = [(SPEECHES[0].text, "One."), (SPEECHES[1].text, "Alone."), (SPEECHES[0].text, "One.")]
        path.write_text("speech,response\n" + "".join(f'"{one}",{other}\n' for one, other in said), encoding="utf-8")
        terms = {"licence": "mit", "data_class": "public", "max_missing_share": 0.75}
        responder = ResponderConfig(author="said", file=str(path), several_answers=True, **terms)
        found = Responder(responder, session, "model").answer(SPEECHES, 0, tmp_path, draws=2)
        drawn = [(each.speech_id, each.draw, each.text) for each in found.candidates]
        assert drawn == [(SPEECHES[0].id, 0, "One."), (SPEECHES[0].id, 1, "One."), (SPEECHES[1].id, 0, "Alone.")]
        assert found.failed == {"not_in_file": 2 * len(SPEECHES) - 3}
        assert not found.warnings
        with pytest.raises(ValueError, match="several_answers"):
            ResponderConfig(author="said", model="mini", several_answers=True)

    def test_its_content_is_its_fingerprint_and_sampling_is_not(self, tmp_path: Path, session: Session) -> None:
        path = tmp_path / "said.csv"
        path.write_text("speech,response\nI cannot sleep.,What keeps you up?\n", encoding="utf-8")
        plain = ResponderConfig(author="said", file=str(path), licence="mit", data_class="public")
        changes = {"sampling": SamplingConfig(temperature=0.1), "chat": ChatFormat(system_prompt="Be brief.")}
        before = Responder(plain, session, "model").fingerprint
        assert Responder(plain.model_copy(update=changes), session, "model").fingerprint == before
        path.write_text("speech,response\nI cannot sleep.,Other words.\n", encoding="utf-8")
        assert Responder(plain, session, "model").fingerprint != before

    def test_responses_come_in_the_order_of_the_speeches_and_are_cleaned_like_them(self) -> None:
        speeches = [Speech("I lie awake at four."), Speech("Caf\u00e9s are too loud now.")]
        found = ready(
            speeches,
            {"speech": "Cafe\u0301s  are too loud now. ", "response": " Too loud? "},
            {"speech": "I lie awake at four.\r\n", "response": "Oh."},
            {"speech": "I lie awake at four.", "response": "A second one."},
            {"speech": "Somebody else's.", "response": "Oh."},
        )
        assert [(each.speech_id, each.text) for each in found] == [
            (speeches[0].id, "Oh."),
            (speeches[1].id, "Too loud?"),
        ]
        history = [{"role": "client", "content": "Hi."}, {"role": "counsellor", "content": "Hello."}]
        found = ready(
            [LATER, speeches[0]],
            *({"speech": LATER.text, "response": f"{each}", "history": each} for each in ([], history)),
        )
        assert [(each.speech_id, each.text) for each in found] == [(LATER.id, f"{history}")]
        found = ready(speeches, {"speech": speeches[0].text, "response": "Oh."}, {"speech": "x", "response": None})
        assert [each.speech_id for each in found] == [speeches[0].id]

    def test_thoughts_in_a_file_are_no_part_of_an_answer_either(self) -> None:
        said = {"speech": SPEECHES[0].text, "response": "<think>\nShe is sad.\n</think>\n\nTell me."}
        found = ready(SPEECHES, said, {"speech": SPEECHES[1].text, "response": "<think>She is"})
        assert [(each.speech_id, each.text) for each in found] == [(SPEECHES[0].id, "Tell me.")]

    def test_a_key_stands_in_the_place_of_a_speech(self) -> None:
        rows = [{"key": 17.0, "response": "Oh."}, {"key": "18", "response": "Ah."}, {"key": 19, "response": "No."}]
        rows += [{"speech": SPEECHES[1].text, "key": 17, "response": "The text counts."}]
        sources = [SourceRow(f"a.csv line {number}", cells) for number, cells in enumerate(rows, start=2)]
        found = ready_responses(sources, "elm", SPEECHES, {"17": {SPEECHES[0].id}, "18": {"one of another split"}})
        assert [(each.speech_id, each.text) for each in found.candidates] == [
            (SPEECHES[0].id, "Oh."),
            (SPEECHES[1].id, "The text counts."),
        ]

    def test_a_key_of_several_speeches_names_none(self, session: Session) -> None:
        rows = [RowProvenance("a.csv", "", "7", "", each.id) for each in (SPEECHES[0], SPEECHES[0], SPEECHES[1])]
        rows += [RowProvenance("a.csv", "", "8", "", id_of) for id_of in (SPEECHES[2].id, SPEECHES[2].id, "")]
        spec = ArtifactSpec("speeches", "corpus", "made-up", 1, {})
        corpus = session.store.make(spec, lambda writer: write_records(writer, RowProvenance, rows))
        ids = ids_by_key(corpus)
        assert ids["8"] == {SPEECHES[2].id}
        sources = [SourceRow(f"said.csv line {at}", {"key": at + 5, "response": "Oh."}) for at in (3, 2)]
        with pytest.raises(InputError, match="several speeches") as caught:
            ready_responses(sources, "elm", SPEECHES[1:], ids)
        assert caught.value.where == "said.csv line 2"
        found = ready_responses(sources, "elm", SPEECHES[2:], ids)  # those that the key names are of another split
        assert [each.speech_id for each in found.candidates] == [SPEECHES[2].id]

    @pytest.mark.parametrize(
        ("cell", "message"),
        [
            (
                {"question": "x", "response": "y"},
                "a.csv line 2: .* no column 'speech'; .* 'question', 'response'",
            ),
            ({"speech": "x", "answer": "y"}, "there is no column 'response'"),
            ({"speech": "x", "response": 3}, "'response' is int"),
            ({"speech": "x", "response": "\ud800"}, "'response' holds"),
            ({"speech": "x\x00", "response": "y"}, "'speech' holds"),
        ],
    )
    def test_a_wrong_row_is_named(self, cell: dict[str, object], message: str) -> None:
        with pytest.raises(InputError, match=message):
            ready(SPEECHES, cell)

    def test_a_file_that_answers_no_speech_is_refused(self) -> None:
        with pytest.raises(DataQualityError, match="no row"):
            ready(SPEECHES, {"speech": "Somebody else's.", "response": "Oh."})


def ready(speeches: list[Speech], *cells: dict[str, object]) -> list[Candidate]:
    rows = [SourceRow(f"a.csv line {number}", cell) for number, cell in enumerate(cells, start=2)]
    return ready_responses(rows, "elm", speeches).candidates


class TestPool:
    RESPONDERS = tuple(ResponderConfig(author=f"author-{number}", model="tiny") for number in range(8))
    POOL = PoolConfig(responders=RESPONDERS, per_speech=4)
    MANY = tuple(Speech(f"speech {number}") for number in range(200))

    @given(st.text(min_size=1).filter(lambda text: bool(text.strip())), st.permutations(RESPONDERS), st.integers(1, 8))
    def test_the_choice_depends_on_the_speech_alone(
        self, text: str, order: list[ResponderConfig], per_speech: int
    ) -> None:
        chosen = choose_responders(Speech(text), PoolConfig(responders=self.RESPONDERS, per_speech=per_speech))
        reordered = PoolConfig(responders=tuple(order), per_speech=per_speech)
        assert choose_responders(Speech(text, "topic", True), reordered) == chosen
        assert len({each.author for each in chosen}) == per_speech

    def test_every_responder_gets_about_its_share(self) -> None:
        counts = Counter(each.author for speech in self.MANY for each in choose_responders(speech, self.POOL))
        assert sum(counts.values()) == 800
        assert all(70 <= counts[each.author] <= 130 for each in self.RESPONDERS)  # 100 expected, deviation 7

    def test_another_seed_chooses_otherwise(self) -> None:
        other = self.POOL.model_copy(update={"seed": 1})
        assert any(choose_responders(each, self.POOL) != choose_responders(each, other) for each in self.MANY[:9])
