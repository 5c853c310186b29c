"""`psychocounsel corpus`: what each rule did to the texts, on a page that stays private."""

import json
import re
from html import unescape
from pathlib import Path

import pytest
import yaml

from psychocounsel.config.corpus import CorpusConfig
from psychocounsel.config.loading import load_config
from psychocounsel.corpus.build import make_corpus, raw_texts
from psychocounsel.corpus.changes import effects
from psychocounsel.store.schemas import read_candidates
from psychocounsel.store.store import Store
from running import Cli

COUNSEL_CHAT = Path(__file__).parents[3] / "shared" / "data" / "counsel-chat.csv"
SPEECH = (
    "I have lain awake since the winter, and every {word} in the {word} yard reminds me of what I said to my sister."
)
WORDS = ("harbour", "lantern", "orchard", "pebble", "quarry", "ribbon", "saddle", "timber", "velvet", "walnut")
PLAIN = "It sounds lonely to lie awake with that. What would you want her to hear from the {word} yard?"
LINK = "Read it on www.myclinic-of-hope.com/<script>."
ONLY_A_LINK = "See www.myclinic-of-hope.com."


def write_corpus(folder: Path) -> Path:
    """Write ten speeches with two answers each and one that is too short.

    One answer has a link in its last sentence, one is a link alone.
    """
    speeches = [{"key": word, "text": SPEECH.format(word=word)} for word in WORDS]
    speeches[0]["text"] += " Tell Peter Miller that his answer helped."
    speeches.append({"key": "short", "text": "I am so tired."})
    answers = [
        {"key": word, "who": who, "reply": f"{who} hears you. {PLAIN.format(word=word)}"}
        for word in WORDS
        for who in ("elm", "oak")
    ]
    answers[3]["reply"] += f" {LINK}"
    answers[4]["reply"] = ONLY_A_LINK
    for name, rows in (("speeches.jsonl", speeches), ("answers.jsonl", answers)):
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    terms = {"licence": "cc0-1.0", "data_class": "deidentified"}
    source = {"path": "speeches.jsonl", "columns": {"text": "text", "key": "key"}}
    columns = {"text": "reply", "author": "who", "speech_key": "key"}
    config = {
        "name": "small",
        "speeches": [source | terms],
        "candidates": [{"path": "answers.jsonl", "columns": columns, **terms}],
        "deidentification": {"engine": "patterns"},
        "split": {"near_duplicate_similarity": 1.0},
    }
    (folder / "corpus.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    return folder / "corpus.yaml"


def test_the_corpus_is_built_and_a_private_page_shows_what_each_rule_did(cli: Cli, tmp_path: Path) -> None:
    config, store = write_corpus(tmp_path), tmp_path / "store"
    ended = cli("corpus", config, "--store", store)
    assert ended.code == 0, ended.err
    assert {each.kind for each in Store(store).artifacts()} == {"speeches", "candidates"}
    assert re.search(r"contacts +2 +10\.0", ended.err)
    assert "! candidates: contacts takes 100%" in ended.err
    (path,) = (store / "private").iterdir()
    assert (path.stat().st_mode & 0o777, path.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    page = path.read_text(encoding="utf-8")
    body = page.partition("<main>")[2]
    assert body.strip().startswith('<p class="warning" role="note"><strong>Private.')
    assert "default-src 'none'" in unescape(page)
    assert "<script" not in page
    before, after = (
        re.sub(f"<{gone}>.*?</{gone}>|</?{kept}>", "", body) for gone, kept in (("ins", "del"), ("del", "ins"))
    )
    for text in (LINK, ONLY_A_LINK, "Tell Peter Miller that"):
        assert text in unescape(before)
    assert "Tell [PERSON_1] that" in unescape(after)
    assert "<del>Peter Miller </del><ins>[PERSON_1] </ins>" in body
    assert re.search(
        r"speeches.jsonl line 11, key short</th>\s*<td[^>]*>too short</td>\s*<td[^>]*>I am so tired\.</td>", body
    )
    # What is private stays outside every artifact.
    for artifact in Store(store).artifacts():
        assert all(b"Peter Miller" not in file.read_bytes() for file in artifact.folder.rglob("*") if file.is_file())
    assert cli("corpus", config, "--store", store).out.startswith("up to date")
    assert path.read_text(encoding="utf-8") == page


def test_labels_that_look_like_names_and_languages_without_patterns_are_said(cli: Cli, tmp_path: Path) -> None:
    config, store = write_corpus(tmp_path), tmp_path / "store"
    answers = tmp_path / "answers.jsonl"
    answers.write_text(answers.read_text(encoding="utf-8").replace('"elm"', '"our-elm"'), encoding="utf-8")
    ended = cli("corpus", config, "--store", store)
    assert "called person-NUMBER: our-elm;" in ended.err
    assert "names in English only" not in ended.out
    sets = ["--set", "candidates.0.author_is=model", "--set", "cleaning.languages=[de, en]"]
    ended = cli("corpus", config, "--store", store, *sets)
    assert "person-NUMBER" not in ended.err
    assert {each.author for each in read_candidates(Store(store).artifacts("candidates")[-1])} == {"our-elm", "oak"}
    warnings = "\n".join(Store(store).artifacts("speeches")[-1].warnings)
    assert "names in English only" in warnings
    assert "words in English only" in warnings  # of a crisis


def test_strict_refuses_a_corpus_that_a_rule_damages(cli: Cli, tmp_path: Path) -> None:
    config, store = write_corpus(tmp_path), tmp_path / "store"
    cli("corpus", config, "--store", store, "--set", "cleaning.strict=true").says(4, "contacts touches", "strict")
    assert [*(store / "private").iterdir()]
    kept = ["--set", "cleaning.contacts=keep", "--set", "deidentification.engine=none"]
    ended = cli("corpus", config, "--store", store, "--set", "cleaning.strict=true", *kept)
    assert ended.code == 0, ended.err


def test_the_corpus_of_build_preferences_is_the_same(cli: Cli, tmp_path: Path) -> None:
    write_corpus(tmp_path)
    build = tmp_path / "build-preferences.yaml"
    build.write_text("name: whole\ncorpus: corpus.yaml\njudge: {backend: offline}\n", encoding="utf-8")
    preview = cli("corpus", build, "--store", tmp_path / "store", "--dry-run")
    assert preview.code == 0, preview.err
    assert re.findall(r"^(speeches|candidates) +small@\w+ +pending$", preview.out, re.M) == ["speeches", "candidates"]
    assert not (tmp_path / "store").exists()
    created = cli("corpus", build, "--store", tmp_path / "store", "--set", "corpus.name=other")
    assert created.code == 0, created.err
    assert f"next: psychocounsel build-preferences {build}" in created.out
    assert cli("corpus", tmp_path / "corpus.yaml", "--store", tmp_path / "store").out.startswith("up to date")


def test_effects_on_counsel_chat_add_up(tmp_path: Path) -> None:
    if not COUNSEL_CHAT.is_file():
        pytest.skip(f"counsel-chat is not at {COUNSEL_CHAT}")
    changes = [f"{each}.0.path={COUNSEL_CHAT}" for each in ("speeches", "candidates")]
    config = load_config(CorpusConfig, Path("configs/counsel-chat/corpus.yaml"), changes)
    corpus = make_corpus(config, Store(tmp_path))
    assert corpus.candidates is not None
    published = {each.id: each.text for each in read_candidates(corpus.candidates)}
    *_, responses = raw_texts(config, corpus)
    found = effects(responses, published)
    rules = {rule.name: rule for rule in found.rules}
    steps = {each["step"]: each for each in corpus.candidates.metrics["funnel"]["steps"]}
    assert found.texts == steps["none_empty"]["rows_out"]
    assert rules["contacts"].touched <= steps["contacts"]["changed"]
    assert rules["contacts"].lost >= sum(change.lost for change in rules["contacts"].largest)
    assert len(rules["contacts"].largest) == 50
    assert found.shortened == len(found.most_shortened)
    shares = [change.share for change in found.most_shortened]
    assert shares == sorted(shares, reverse=True)
    assert shares[-1] > 0.1
