"""The artifacts of a corpus: read once, split once, counted to the last row."""

import json
import re
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import pytest
from counsel_chat import PATH, counsel_chat

from psychocounsel.config.corpus import CorpusConfig
from psychocounsel.config.loading import load_config
from psychocounsel.config.schema import BuildPreferencesConfig
from psychocounsel.corpus.build import CorpusArtifacts, CorpusSpecs, corpus_specs, make_corpus
from psychocounsel.corpus.cleaning import prepare, speech_steps
from psychocounsel.corpus.crisis import crisis_services
from psychocounsel.errors import DataQualityError
from psychocounsel.store.schemas import read_candidates, read_row_provenance, read_speeches
from psychocounsel.store.store import Store
from psychocounsel.types import Speech, content_id

WORDS = [
    "harbour", "lantern", "orchard", "pebble", "quarry", "ribbon", "saddle", "timber", "umbrella", "velvet",
    "walnut", "yellow",
]  # fmt: skip


def speech_text(number: int) -> str:
    return " ".join(WORDS[(number * step + step) % len(WORDS)] + str(number) for step in range(1, 12))


def corpus_files(folder: Path, speeches: int = 20) -> dict[str, Any]:
    """Write a small corpus with one repeated, one short and one unanswered row, and return its config."""
    rows = [{"key": f"k{at}", "text": speech_text(at), "topic": "t"} for at in range(speeches)]
    rows += [{**rows[0], "key": "again"}, {"key": "short", "text": "no", "topic": "t"}]
    known = [(f"k{at}", who, f"{who} {at}") for at in range(speeches) for who in ("elm", "oak")]
    answers = [*known, ("short", "elm", "lost"), ("nobody", "elm", "lost")]
    replies = [{"key": key, "who": who, "reply": reply} for key, who, reply in answers]
    for name, lines in (("speeches.jsonl", rows), ("replies.jsonl", replies)):
        (folder / name).write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    source = {"path": str(folder / "speeches.jsonl"), "columns": {"text": "text", "topic": "topic", "key": "key"}}
    ready = {"path": str(folder / "replies.jsonl"), "columns": {"text": "reply", "author": "who", "speech_key": "key"}}
    terms = {"licence": "cc0-1.0", "data_class": "public"}
    cleaning = {"min_chars": 20}
    return {"name": "talk", "speeches": [source | terms], "candidates": [ready | terms], "cleaning": cleaning}


def counts(funnel: dict[str, Any]) -> tuple[int, int, dict[str, int]]:
    return funnel["rows_in"], funnel["kept"], funnel["dropped"]


def opened(settings: dict[str, Any], store: Store) -> CorpusArtifacts:
    return make_corpus(CorpusConfig.model_validate(settings), store)


def planned(settings: dict[str, Any]) -> CorpusSpecs:
    return corpus_specs(CorpusConfig.model_validate(settings), None)


def test_a_corpus_is_read_split_and_counted(tmp_path: Path) -> None:
    corpus = opened(corpus_files(tmp_path), Store(tmp_path / "store"))
    rows = read_speeches(corpus.speeches)
    assert [row.speech.text for row in rows] == [speech_text(at) for at in range(20)]
    assert {row.speech.source for row in rows} == {"speeches.jsonl"}
    metrics = corpus.speeches.metrics
    assert counts(metrics["funnel"]) == (22, 20, {"repeated_speech": 1, "too_short": 1})
    assert metrics["splits"] == {"train": 16, "dev": 2, "test": 2}
    assert (metrics["clusters"], metrics["near_duplicates"], metrics["crisis"]) == (20, 0, 0)
    assert metrics["topics_by_split"] == {"train": {"t": 16}, "dev": {"t": 2}, "test": {"t": 2}}
    source = {"name": "speeches.jsonl", "licence": "cc0-1.0", "data_class": "public", "speeches": 20}
    assert metrics["sources"] == [source]
    assert len(read_candidates(corpus.candidates)) == 40
    funnel = corpus.candidates.metrics["funnel"]
    assert counts(funnel) == (42, 40, {"its_speech_was_dropped": 1, "no_such_speech": 1})
    assert corpus.candidates.parents == (corpus.speeches.as_parent("speeches"),)


@pytest.mark.parametrize("is_reversed", [False, True])
def test_the_limit_chooses_by_text_and_drops_what_is_beyond(tmp_path: Path, is_reversed: bool) -> None:
    settings = corpus_files(tmp_path)
    settings["cleaning"]["max_speeches"] = 10
    path = Path(settings["speeches"][0]["path"])
    if is_reversed:
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        path.write_text("".join(reversed(lines)), encoding="utf-8")
    corpus = opened(settings, Store(tmp_path / "store"))
    kept = {row.speech.id for row in read_speeches(corpus.speeches)}
    ids = (Speech(speech_text(at)).id for at in range(20))
    assert kept == set(sorted(ids, key=lambda each: content_id("limit", each))[:10])
    dropped = {"beyond_max_speeches": 10, "repeated_speech": 1, "too_short": 1}
    assert counts(corpus.speeches.metrics["funnel"]) == (22, 10, dropped)
    rows = list(read_row_provenance(corpus.speeches))
    assert Counter(row.reason for row in rows) == {"": 10, **dropped}
    assert {row.text_id for row in rows if not row.reason} == kept
    assert {each.speech_id for each in read_candidates(corpus.candidates)} == kept
    assert corpus.candidates.metrics["funnel"]["dropped"] == {"its_speech_was_dropped": 21, "no_such_speech": 1}


@pytest.mark.parametrize(
    "rows",
    [
        [{"q": [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": speech_text(3)}]}],
        [{"q": f"\n\nHuman: Hi.\n\nAssistant: {speech_text(3)}"}],
        [{"q": json.dumps([{"role": "user", "content": "Hi."}, {"role": "assistant", "content": speech_text(3)}])}],
        [{"q": speech_text(3), "n": 3}, {"q": "five words that nobody says"}],
    ],
)
def test_a_benchmark_is_compared_with_all_that_can_be_read_of_it(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    settings = corpus_files(tmp_path)
    path = tmp_path / "exam.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    columns = ["q", "n"] if len(rows) > 1 else ["q"]
    settings["exclude"] = [{"path": str(path), "columns": columns, "on_bad_row": "drop"}]
    corpus = opened(settings, Store(tmp_path / "store"))
    assert corpus.speeches.metrics["funnel"]["dropped"]["shares_span_with_benchmark"] == 1
    counted = [warning for warning in corpus.speeches.warnings if "exam.jsonl" in warning and ": 2;" in warning]
    assert len(counted) == len(corpus.speeches.warnings) == len(columns) - 1


def test_a_corpus_is_read_once_and_known_by_content(tmp_path: Path) -> None:
    settings = corpus_files(tmp_path)
    store = Store(tmp_path / "store")
    first = opened(settings, store)
    assert [each.is_new for each in opened(settings, store) if each] == [False] * 2
    (tmp_path / "elsewhere").mkdir()
    moved = tmp_path / "elsewhere" / "speeches.jsonl"
    (tmp_path / "speeches.jsonl").rename(moved)
    settings["speeches"][0]["path"] = str(moved)
    assert planned(settings).speeches.id == first.speeches.id
    moved.write_text(moved.read_text(encoding="utf-8") + "\n", encoding="utf-8")
    changed = planned(settings)
    assert changed.speeches.id != first.speeches.id
    assert changed.candidates.id != first.candidates.id


def test_how_it_is_cleaned_and_split_is_in_its_id(tmp_path: Path) -> None:
    settings = corpus_files(tmp_path)
    splits = ({"seed": 1}, {"test_share": 0.2}, {"near_duplicate_similarity": 0.8})
    changes = [{}, {"cleaning": {"min_chars": 21}}, *({"split": split} for split in splits)]
    assert len({planned({**settings, **change}).speeches.id for change in changes}) == len(changes)
    assert planned({**settings, "candidates": []}).candidates is None


def test_texts_from_one_template_are_told_as_that(tmp_path: Path) -> None:
    settings = corpus_files(tmp_path, speeches=40)
    path = Path(settings["speeches"][0]["path"])
    assert opened(settings, Store(tmp_path / "store")).speeches.warnings == ()
    with path.open("a", encoding="utf-8") as stream:
        for at in range(30):
            text = f"Every night for {at} weeks I lie awake and think about the work that I did not do today at all."
            stream.write(json.dumps({"key": f"t{at}", "text": text, "topic": "t"}) + "\n")
    (warning,) = opened(settings, Store(tmp_path / "store")).speeches.warnings
    assert "30 of 70 speeches are near-duplicates" in warning


def test_a_join_without_matches_ends_with_data_quality(tmp_path: Path) -> None:
    settings = corpus_files(tmp_path)
    settings["candidates"][0]["columns"]["speech_key"] = "who"
    with pytest.raises(
        DataQualityError, match=r"no response is left: 1 repeated_text, 41 no_such_speech; check that speech_key"
    ):
        opened(settings, Store(tmp_path / "store"))


def with_authors(folder: Path, *labels: str, text: str = "{author} says: rest {at}.") -> dict[str, Any]:
    settings = corpus_files(folder)
    lines = [
        {"key": f"k{at}", "who": author, "reply": text.format(author=author, at=at)}
        for at in range(20) for author in labels
    ]  # fmt: skip
    path = Path(settings["candidates"][0]["path"])
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return settings


def test_author_labels_rewrite_no_text_unless_they_are_names(tmp_path: Path) -> None:
    phrases = ("Mental Health Professional", "Rose Garden", "Jane Roe")
    text = "Mental health first, in the Rose Garden, as Jane Roe knows: {at} {author}."
    corpus = opened(with_authors(tmp_path, *phrases, text=text), Store(tmp_path / "store"))
    written = {each.text for each in read_candidates(corpus.candidates)}
    assert all(each.startswith("Mental health first, in the Rose Garden") for each in written)
    (warning, other) = corpus.candidates.warnings
    assert "'Jane Roe'" in warning
    assert "'Rose Garden'" in other


def test_a_name_becomes_a_placeholder_and_its_author_a_number_unless_the_source_has_models(tmp_path: Path) -> None:
    settings = with_authors(
        tmp_path, "Jane Roe", *(f"model-{number}" for number in range(60)), text="Rest {at}, {author}."
    )
    store = Store(tmp_path / "store")
    texts = [(each.author, each.text) for each in read_candidates(opened(settings, store).candidates)]
    assert "Jane Roe" not in str(texts)
    settings["candidates"][0]["author_is"] = "model"
    assert ("Jane Roe", "Rest 0, Jane Roe.") in [
        (each.author, each.text) for each in read_candidates(opened(settings, store).candidates)
    ]


@pytest.mark.parametrize("join", ["key", "text"])
def test_one_placeholder_is_one_person_in_a_speech_and_all_its_responses(tmp_path: Path, join: str) -> None:
    settings = corpus_files(tmp_path)
    speech = {"key": "k", "text": "My sister Anna fell out with my brother Peter over it.", "topic": "t"}
    said = {"elm": "Did Peter ask Anna? As Jane Roe says, ask my friend Maria.", "oak": "Call Peter, or my aunt Petra."}
    replies = [{"key": "k", "who": who, "reply": text, "speech": speech["text"]} for who, text in said.items()]
    replies.append({"key": "k", "who": "Jane Roe", "reply": "Rest.", "speech": speech["text"]})
    replies += [{"key": f"k{at}", "who": "elm", "reply": "Rest.", "speech": speech_text(at)} for at in range(20)]
    with Path(settings["speeches"][0]["path"]).open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(speech) + "\n")
    lines = "".join(json.dumps(line) + "\n" for line in replies)
    Path(settings["candidates"][0]["path"]).write_text(lines, encoding="utf-8")
    if join == "text":
        columns = settings["candidates"][0]["columns"]
        settings["candidates"] = [{**settings["candidates"][0], "columns": {**columns, "speech_text": "speech"}}]
        del settings["candidates"][0]["columns"]["speech_key"]
    corpus = opened({**settings, "deidentification": {"engine": "patterns"}}, Store(tmp_path / "store"))
    (hidden,) = (row.speech for row in read_speeches(corpus.speeches) if "sister" in row.speech.text)
    assert hidden.text == "My sister [PERSON_1] fell out with my brother [PERSON_2] over it."
    answers = {each.author: each.text for each in read_candidates(corpus.candidates) if each.speech_id == hidden.id}
    assert answers["elm"] == "Did [PERSON_2] ask [PERSON_1]? As [PERSON_3] says, ask my friend [PERSON_4]."
    assert answers["oak"] == "Call [PERSON_2], or my aunt [PERSON_5]."


def test_as_many_authors_as_rows_are_an_error(tmp_path: Path) -> None:
    settings = with_authors(tmp_path, "elm", "oak", "ash")
    settings["candidates"][0]["columns"]["author"] = "reply"
    with pytest.raises(DataQualityError, match="60 authors in 60 rows"):
        opened(settings, Store(tmp_path / "store"))


CONFIG = Path(__file__).parents[2] / "configs" / "counsel-chat" / "build-preferences.yaml"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> CorpusArtifacts:
    counsel_chat()
    sources = [f"corpus.{kind}.0.path={PATH}" for kind in ("speeches", "candidates")]
    config = load_config(BuildPreferencesConfig, CONFIG, sources)
    return make_corpus(config.corpus, Store(tmp_path_factory.mktemp("store")))


@pytest.mark.integration
def test_the_funnel_goes_from_2129_rows_over_824_questions_to_710_speeches(corpus: CorpusArtifacts) -> None:
    funnel = corpus.speeches.metrics["funnel"]
    assert (funnel["rows_in"], funnel["kept"]) == (2129, 710)
    assert funnel["dropped"] == {"repeated_speech": 1305, "too_long": 27, "too_short": 87}
    assert {step["step"]: step["rows_out"] for step in funnel["steps"]}["repetition"] == 824
    splits = {(each.cluster, each.split) for each in read_speeches(corpus.speeches)}
    assert len(splits) == corpus.speeches.metrics["clusters"]  # none crosses two

    funnel = corpus.candidates.metrics["funnel"]
    assert (funnel["rows_in"], funnel["kept"]) == (2129, 1657)
    after = {step["step"]: step["rows_out"] for step in funnel["steps"]}
    for artifact in (corpus.speeches, corpus.candidates):
        planted = artifact.metrics["deidentification"]["planted"]
        assert planted["PERSON"]["found"] >= 80
        assert planted["PERSON"]["false"] <= 5
    assert after["remainder"] == 2129  # none was only an address
    assert after["repetition"] == 2009  # distinct answers
    assert all(re.fullmatch(r"person-[0-9a-f]{8}", each.author) for each in read_candidates(corpus.candidates))


@pytest.mark.integration
def test_every_dropped_row_has_one_reason_and_the_rows_give_the_funnel_again(corpus: CorpusArtifacts) -> None:
    for artifact in (corpus.speeches, corpus.candidates):
        rows = list(read_row_provenance(artifact))
        assert len(rows) == 2129
        assert all(bool(row.reason) == bool(row.dropped_by) for row in rows)
        reasons = Counter(row.reason for row in rows if row.reason)
        assert dict(reasons) == artifact.metrics["funnel"]["dropped"]
        changes = Counter(step for row in rows for step in row.changed_by)
        assert changes == Counter({step["step"]: step["changed"] for step in artifact.metrics["funnel"]["steps"]})


@pytest.mark.integration
def test_the_answers_on_two_sides_of_the_files_own_split_are_on_one_of_ours(corpus: CorpusArtifacts) -> None:
    theirs: dict[str, set[str]] = defaultdict(set)
    questions: dict[str, set[str]] = defaultdict(set)
    for row in counsel_chat():
        theirs[row.text].add(row.split)
        questions[row.text].add(Speech(prepare(row.question, speech_steps(crisis_services())).text).id)
    split_of = {each.speech.id: each.split for each in read_speeches(corpus.speeches)}
    leaked = [answer for answer, splits in theirs.items() if len(splits) > 1]
    assert len(leaked) == 40
    ours = [{split_of[each] for each in questions[answer] if each in split_of} for answer in leaked]
    assert all(len(splits) <= 1 for splits in ours)
    assert sum(len(splits) for splits in ours) > 30
