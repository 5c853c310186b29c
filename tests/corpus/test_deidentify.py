"""Placeholders, Presidio on a local pipeline with every socket blocked, and the PII evaluation set."""

import re
import socket
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from psychocounsel.config.corpus import ENTITIES, DeidentificationConfig, Entity
from psychocounsel.corpus.deidentify import (
    Counts,
    Placeholders,
    Span,
    deidentify,
    evaluate,
    open_deidentifier,
    parse_marks,
    read_pii_set,
    resolve,
)
from psychocounsel.corpus.deidentify.planted import plant, planted_language
from psychocounsel.errors import ConfigError

PLACEHOLDER = re.compile(rf"\[(?:{'|'.join(ENTITIES)})_\d+\]")


class WordFinder:
    """Finds given words wherever they stand, within placeholders too."""

    def __init__(self, words: dict[str, Entity]) -> None:
        self.words = words

    def find(self, text: str) -> Sequence[Span]:
        return [
            Span(*match.span(), entity, 0.5)
            for word, entity in self.words.items()
            for match in re.finditer(re.escape(word), text)
        ]


def people(*names: str) -> WordFinder:
    return WordFinder(dict.fromkeys(names, "PERSON"))


def test_one_person_and_one_phone_keep_their_placeholders_and_numbers_follow_the_text():
    finder = WordFinder({"Bo": "PERSON", "Anna": "PERSON", "a@b.org": "EMAIL"})
    text = "Anna saw Bo. Bo wrote to a@b.org, and Anna read it."
    expected = "[PERSON_1] saw [PERSON_2]. [PERSON_2] wrote to [EMAIL_1], and [PERSON_1] read it."
    assert deidentify(text, finder) == expected
    written = {"(503) 555-0142": "PHONE", "1-503-555-0142": "PHONE", "www.a.org/b": "URL", "https://a.org/b": "URL"}
    finder = WordFinder(written)
    assert deidentify("(503) 555-0142 or 1-503-555-0142", finder) == "[PHONE_1] or [PHONE_1]"
    assert deidentify("www.a.org/b or https://a.org/b", finder) == "[URL_1] or [URL_1]"


@pytest.mark.parametrize(
    ("text", "names", "expected"),
    [
        ("Anna Smith left. Anna's bag.", ["Anna Smith", "Anna's"], "[PERSON_1] left. [PERSON_1]'s bag."),
        ("Anna came, Anna Smith that is.", ["Anna", "Anna Smith"], "[PERSON_1] came, [PERSON_1] that is."),
        ("ANNA and anna", ["ANNA", "anna"], "[PERSON_1] and [PERSON_1]"),
        ("Anna Smith or Dr. Smith", ["Anna Smith", "Smith"], "[PERSON_1] or Dr. [PERSON_1]"),
        ("Anna Smith, Anna Jones", ["Anna Smith", "Anna Jones"], "[PERSON_1], [PERSON_2]"),
        ("Anna Smith, Bo Jones; Jones", ["Anna Smith", "Bo Jones", "Jones"], "[PERSON_1], [PERSON_2]; [PERSON_2]"),
        ("Anna M. Smith is Anna Smith", ["Anna M. Smith", "Anna Smith"], "[PERSON_1] is [PERSON_1]"),
        ("James\u2019 and James", ["James\u2019", "James"], "[PERSON_1]\u2019 and [PERSON_1]"),
        ("Anna 's", ["'s"], "Anna 's"),
        ("[PERSON_3] met Bo", ["Bo"], "[PERSON_3] met [PERSON_4]"),
    ],
)
def test_parts_of_a_name_are_one_person(text, names, expected):
    assert deidentify(text, people(*names)) == expected


def test_texts_that_belong_together_share_their_placeholders():
    placeholders, finder = Placeholders(), people("Anna", "Bo")
    assert deidentify("Bo left", finder, placeholders) == "[PERSON_1] left"
    assert deidentify("[PERSON_7] stays", finder, placeholders) == "[PERSON_7] stays"
    assert deidentify("Anna misses Bo", finder, placeholders) == "[PERSON_8] misses [PERSON_1]"


def test_a_name_of_one_text_is_found_in_those_that_belong_to_it() -> None:
    shared, finder = Placeholders(), open_deidentifier(DeidentificationConfig(engine="patterns"))
    assert deidentify("My sister Xyla and my uncle Will left.", finder, shared) == (
        "My sister [PERSON_1] and my uncle [PERSON_2] left."
    )
    assert deidentify("Xyla may miss you. Will you write? Dr. Ode may.", finder, shared) == (
        "[PERSON_1] may miss you. Will you write? Dr. [PERSON_3] may."
    )


def test_of_two_spans_that_overlap_the_longer_stays_then_the_surer():
    short, long = Span(2, 6, "PERSON", 0.9), Span(0, 8, "EMAIL", 0.1)
    sure, unsure = Span(10, 14, "PHONE", 0.8), Span(10, 14, "ID_NUMBER", 0.7)
    assert resolve([short, unsure, long, sure]) == [long, sure]


places = st.tuples(st.integers(0, 30), st.integers(1, 9), st.sampled_from(ENTITIES), st.floats(0, 1))
spans = places.map(lambda each: Span(each[0], each[0] + each[1], *each[2:]))


@given(st.lists(spans, max_size=12), st.randoms())
def test_resolved_spans_lie_apart_in_order_and_cover_a_longest_one(found, random):
    kept = resolve(found)
    assert all(left.end <= right.start for left, right in pairwise(kept))
    assert set(kept) <= set(found)
    assert all(any(each.start < span.end and span.start < each.end for each in kept) for span in found)
    shuffled = list(found)
    random.shuffle(shuffled)
    assert {(span.start, span.end) for span in resolve(shuffled)} == {(span.start, span.end) for span in kept}


pieces = ("Anna", "Bo", " ", ", ", "and", "PERSON", "_", "1", "[", "]", "[PERSON_1]", "[PHONE_22]", "'s")
texts = st.lists(st.sampled_from(pieces), max_size=14).map("".join)
finders = st.dictionaries(
    st.sampled_from(["Anna", "Bo", "PERSON", "1", "2", "and", "[", "N_", "Bo and", "'s"]),
    st.sampled_from(ENTITIES),
    min_size=1,
).map(WordFinder)


@given(texts, finders)
def test_a_second_time_changes_nothing(text, finder):
    once = deidentify(text, finder)
    assert deidentify(once, finder) == once


@given(texts, finders)
def test_all_that_is_not_found_stays_and_so_do_placeholders(text, finder):
    out = deidentify(text, finder)
    stays = [re.escape(piece) for piece in PLACEHOLDER.findall(text)]
    assert re.search(".*".join(stays), out)
    assert set(PLACEHOLDER.sub("", out)) <= set(PLACEHOLDER.sub("", text))


def test_a_span_is_found_when_it_is_covered_and_a_find_is_false_when_it_touches_nothing():
    texts = [parse_marks("<PERSON>Anna Bo</PERSON> <PERSON>Cy</PERSON> x"), parse_marks("<PHONE>12</PHONE> z")]
    assert [item.text for item in texts] == ["Anna Bo Cy x", "12 z"]
    # "Anna" and "Bo" together cover a mark; "C", half of a mark, is neither found nor false.
    finder = WordFinder({**dict.fromkeys(("Anna", "Bo", "C", "x"), "PERSON"), "12": "ID_NUMBER"})
    overall, by_entity = evaluate(finder, texts)
    assert by_entity["PERSON"] == Counts(marked=2, found=1, finds=4, false=1)
    assert by_entity["PHONE"] == Counts(marked=1, found=0, finds=0, false=0)
    assert by_entity["ID_NUMBER"] == Counts(marked=0, found=0, finds=1, false=1)
    assert overall == Counts(marked=3, found=1, finds=5, false=2)


def test_the_set_is_large_and_holds_every_entity_and_many_hard_negatives():
    for half in ("tuned", "held_out"):
        items = read_pii_set(half)
        assert len(items) >= 100
        assert {span.entity for item in items for span in item.spans} == set(ENTITIES)
        assert sum(not item.spans for item in items) >= 35
    texts = [item.text for item in read_pii_set()]
    assert len(set(texts)) == len(texts)
    assert not any("<" in text or ">" in text for text in texts)


@pytest.mark.parametrize(("half", "recall", "precision"), [("tuned", 0.95, 0.95), ("held_out", 0.85, 0.95)])
def test_the_pattern_engine_is_as_good_as_it_was(half, recall, precision):
    engine = open_deidentifier(DeidentificationConfig(engine="patterns"))
    overall, _ = evaluate(engine, read_pii_set(half))
    assert overall.found >= recall * overall.marked
    assert overall.finds - overall.false >= precision * overall.finds


@pytest.mark.parametrize("language", ["en", "es", "de", "zh"])
def test_identities_are_planted_into_the_texts_and_only_finds_around_them_count(language):
    texts = ["I met Bob. He left me. I cry.", "I am tired"]
    planted = plant(texts, planted_language(["xx", language]), ENTITIES)
    assert planted == plant(texts, language, ENTITIES)
    assert all("{}" not in item.text and item.begin <= span.start < item.end for item in planted for span in item.spans)
    around = {"".join((item.text[: item.begin] + item.text[item.end :]).split()) for item in planted}
    assert around == {"".join(text.split()) for text in texts}
    names = {item.text[span.start : span.end] for item in planted for span in item.spans}
    finder = WordFinder({"Bob. He left": "PERSON", **dict.fromkeys(names, "PERSON")})
    overall, by_entity = evaluate(finder, planted)
    assert by_entity["PERSON"].found == by_entity["PERSON"].marked == 100
    assert by_entity["PERSON"].false == overall.marked - 100
    assert {span.entity for item in plant(texts, language, ["EMAIL"]) for span in item.spans} == {"EMAIL"}


REASON = "the extra psychocounsel[deid] is not installed"


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A blank pipeline that knows one person, one town and one label of its own."""
    spacy = pytest.importorskip("spacy", reason=REASON)
    pytest.importorskip("presidio_analyzer", reason=REASON)
    folder = tmp_path_factory.mktemp("spacy") / "blank"
    blank = spacy.blank("en")
    ruler = blank.add_pipe("entity_ruler")
    known = (("PERSON", "Zyx Qwf"), ("GPE", "Springfield"), ("MOOD", "sadness"))
    ruler.add_patterns([{"label": label, "pattern": pattern} for label, pattern in known])
    blank.to_disk(folder)
    return folder


@pytest.fixture
def no_sockets(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a socket was opened")

    for name in ("socket", "create_connection", "getaddrinfo"):
        monkeypatch.setattr(socket, name, refuse)


def open_on(pipeline: Path, **settings: object):
    config = {"engine": "presidio", "spacy_model": str(pipeline), **settings}
    return open_deidentifier(DeidentificationConfig.model_validate(config))


@pytest.mark.usefixtures("no_sockets")
def test_presidio_finds_names_and_numbers_and_opens_no_socket(pipeline):
    text = (
        "Zyx Qwf of Springfield, in sadness, wrote to m.g84@gmail.com, https://a.example.com/x, from 203.0.113.47. "
        "Card 4539 1488 0343 6467, SSN 219-09-4817, or 212-555-0142."
    )
    assert deidentify(text, open_on(pipeline)) == (
        "[PERSON_1] of Springfield, in sadness, wrote to [EMAIL_1], [URL_1], from [IP_1]. "
        "Card [ID_NUMBER_1], SSN [ID_NUMBER_2], or [PHONE_1]."
    )


def test_presidio_and_patterns_find_together_the_entities_that_were_asked_for(pipeline):
    text = "My sister Anna and Zyx Qwf live at 12 Oak Street, I am @zoe_88, born on May 5, not 1-800-273-8255."
    assert deidentify(text, open_on(pipeline)) == (
        "My sister [PERSON_1] and [PERSON_2] live at [ADDRESS_1], I am [HANDLE_1], born on [DATE_OF_BIRTH_1], "
        "not 1-800-273-8255."
    )
    text = "Zyx Qwf, a@b.org, 12 Oak Street"
    assert deidentify(text, open_on(pipeline, entities=["EMAIL"])) == "Zyx Qwf, [EMAIL_1], 12 Oak Street"
    assert deidentify(text, open_on(pipeline, entities=["ADDRESS"])) == "Zyx Qwf, a@b.org, [ADDRESS_1]"


@pytest.mark.parametrize(
    ("language", "label", "text", "expected"),
    [
        ("zh", "PERSON", "我叫王小明。", "我叫[PERSON_1]。"),
        ("ko", "PS", "제 이름은 김민수 입니다.", "제 이름은 [PERSON_1] 입니다."),
        ("ar", "PER", "اسمي محمود درويش وأنا متعب.", "اسمي [PERSON_1] وأنا متعب."),
        ("ru", "PER", "Меня зовут Анна Петрова.", "Меня зовут [PERSON_1]."),
    ],
)
@pytest.mark.usefixtures("no_sockets")
def test_names_of_any_script_are_found_where_the_pipeline_has_them(tmp_path, language, label, text, expected):
    spacy = pytest.importorskip("spacy", reason=REASON)
    pytest.importorskip("presidio_analyzer", reason=REASON)
    names = {"zh": "王小明", "ko": "김민수", "ar": "محمود درويش", "ru": "Анна Петрова"}
    blank = spacy.blank(
        language,
        **({"config": {"nlp": {"tokenizer": {"@tokenizers": "spacy.Tokenizer.v1"}}}} if language == "ko" else {}),
    )
    blank.add_pipe("entity_ruler").add_patterns([{"label": label, "pattern": names[language]}])
    blank.to_disk(tmp_path)
    assert deidentify(text, open_on(tmp_path)) == expected


def test_what_the_keep_list_names_and_well_known_authors_stay():
    text = "I read Nora Quill, Viktor Frankl and Dr. Gottman. My sister Anna works at Acme Corp, 12 Oak Street."
    engine = open_deidentifier(DeidentificationConfig(engine="patterns", keep=("Nora Quill", "Acme")))
    kept = "I read Nora Quill, Viktor Frankl and Dr. Gottman. My sister [PERSON_1] works at Acme Corp, [ADDRESS_1]."
    assert deidentify(text, engine) == kept
    plain = open_deidentifier(DeidentificationConfig(engine="patterns"))
    assert "Viktor Frankl and Dr. Gottman. My sister [PERSON_2] works at [EMPLOYER_1]," in deidentify(text, plain)
    assert engine.fingerprint != plain.fingerprint


def test_identity_names_packages_and_pipeline(pipeline, tmp_path):
    fingerprint = open_on(pipeline).fingerprint
    assert fingerprint["engine"] == "presidio"
    assert {"presidio-analyzer", "spacy", "phonenumbers"} <= set(fingerprint)
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.cfg").write_text("[nlp]\n")
    assert open_on(other).fingerprint["pipeline"] != fingerprint["pipeline"]
    assert open_on(pipeline, min_score=0.5).fingerprint != fingerprint


@pytest.mark.usefixtures("no_sockets")
@pytest.mark.parametrize("name", ["en_core_web_none", "no/such/folder", ""])
def test_a_pipeline_that_is_not_there_is_not_fetched(pipeline, name):
    with pytest.raises(ConfigError, match=r"deidentification\.spacy_model.*spacy download"):
        open_on(Path(name))


def test_without_the_extra_the_remedy_is_named(pipeline, monkeypatch):
    def missing(package: str) -> str:
        raise PackageNotFoundError(package)

    monkeypatch.setattr("importlib.metadata.version", missing)
    with pytest.raises(ConfigError, match=r"pip install 'psychocounsel\[deid\]'"):
        open_on(pipeline)
