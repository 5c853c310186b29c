"""Presidio on a local pipeline, with every socket blocked."""

import socket
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest

from psychocounsel.config.schema import ENTITIES, DeidentificationConfig
from psychocounsel.corpus.contacts import crisis_lines
from psychocounsel.corpus.deidentify import Fingerprint, PresidioDeidentifier, Span, deidentify, open_deidentifier
from psychocounsel.errors import ConfigError

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


@pytest.fixture(autouse=True)
def no_sockets(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


class FindsNothing:
    """Stands for the patterns, so that only the finds of Presidio are left."""

    def __init__(self) -> None:
        self.fingerprint: Fingerprint = {}

    def find(self, text: str) -> list[Span]:
        return []


def open_on(pipeline: Path, **settings: object):
    config = {"engine": "presidio", "spacy_model": str(pipeline), **settings}
    engine = open_deidentifier(DeidentificationConfig.model_validate(config))
    assert engine is not None
    return engine


def test_presidio_finds_names_and_numbers_and_opens_no_socket(pipeline):
    text = (
        "Zyx Qwf of Springfield, in sadness, wrote to m.g84@gmail.com, https://a.example.com/x, "
        "from 203.0.113.47. "
        "Card 4539 1488 0343 6467, SSN 219-09-4817, or 212-555-0142, not 1-800-273-8255."
    )
    engine = PresidioDeidentifier(FindsNothing(), str(pipeline), ENTITIES, 0.4, crisis_lines())
    assert deidentify(text, engine) == (
        "[PERSON_1] of Springfield, in sadness, wrote to [EMAIL_1], [URL_1], from [IP_1]. "
        "Card [ID_NUMBER_1], SSN [ID_NUMBER_2], or [PHONE_1], not 1-800-273-8255."
    )


def test_the_patterns_find_beside_it_what_presidio_has_no_name_for(pipeline):
    text = "My sister Anna and Zyx Qwf live at 12 Oak Street, I am @zoe_88, born on May 5."
    assert deidentify(text, open_on(pipeline)) == (
        "My sister [PERSON_1] and [PERSON_2] live at [ADDRESS_1], I am [HANDLE_1], born on [DATE_OF_BIRTH_1]."
    )


def test_only_the_entities_that_were_asked_for_are_hidden(pipeline):
    text = "Zyx Qwf, a@b.org, 12 Oak Street"
    assert deidentify(text, open_on(pipeline, entities=["EMAIL"])) == "Zyx Qwf, [EMAIL_1], 12 Oak Street"
    assert deidentify(text, open_on(pipeline, entities=["ADDRESS"])) == "Zyx Qwf, a@b.org, [ADDRESS_1]"


def test_identity_names_packages_and_pipeline(pipeline, tmp_path):
    fingerprint = open_on(pipeline).fingerprint
    assert fingerprint["engine"] == "presidio"
    assert {"presidio-analyzer", "spacy", "phonenumbers", "tldextract"} <= set(fingerprint)
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.cfg").write_text("[nlp]\n")
    assert open_on(other).fingerprint["pipeline"] != fingerprint["pipeline"]
    assert open_on(pipeline, min_score=0.5).fingerprint != fingerprint


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
