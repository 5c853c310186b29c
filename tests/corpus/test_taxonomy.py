"""YAML -> Taxonomy: the bundled one is whole, and a faulty one says where and how to mend it."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from psychocounsel.config.components import locate
from psychocounsel.corpus.topics import Taxonomy, load_taxonomy
from psychocounsel.errors import ConfigError

SMALL = """\
version: "1"
language: en
topics:
  - id: body
    name: Body
    fine:
      - id: sleep
        name: Sleep
        description: Nights without rest.
        cues: [insomnia, can't sleep, sleepless*]
        hints: [night]
      - id: pain
        name: Pain
        description: It hurts.
        cues: [back pain]
  - id: others
    name: Others
    fine:
      - id: friends
        name: Friends
        description: Having them or not.
        cues: [friend*]
"""


def written(folder: Path, text: str) -> str:
    path = folder / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_the_bundled_taxonomy_has_8_coarse_and_42_fine_topics() -> None:
    taxonomy = load_taxonomy("counselling")
    assert len(taxonomy.topics) == 8
    assert len(taxonomy.fine_topics) == 42
    assert len({fine.name for fine in taxonomy.fine_topics}) == 42
    assert len({fine.description for fine in taxonomy.fine_topics}) == 42
    for fine in taxonomy.fine_topics:
        assert fine.description.endswith(".")
        assert ". " not in fine.description
        assert len(fine.cues) >= 5


def test_the_bundled_coarse_topics_are_those_of_the_samples() -> None:
    lines = locate("bundled:speeches.jsonl").read_text(encoding="utf-8").splitlines()
    given = {json.loads(line)["topic"] for line in lines}
    assert {coarse.id for coarse in load_taxonomy("counselling").topics} == given


def test_a_taxonomy_follows_its_file(tmp_path: Path) -> None:
    taxonomy = load_taxonomy(written(tmp_path, SMALL))
    assert [fine.id for fine in taxonomy.fine_topics] == ["sleep", "pain", "friends"]
    assert taxonomy.coarse_of == {"sleep": "body", "pain": "body", "friends": "others"}
    assert taxonomy.fine_topics[0].cues == ("insomnia", "cant sleep", "sleepless*")


def digests(folder: Path, text: str) -> tuple[str, str]:
    taxonomy = load_taxonomy(written(folder, text))
    return taxonomy.digest_of_words, taxonomy.digest_of_cues


@pytest.mark.parametrize(
    ("old", "new", "changed"),
    [
        ("Nights without", "Days without", [True, False]),
        ("name: Body", "name: The body", [True, False]),
        ("name: Sleep", "name: Rest", [True, False]),
        ("language: en", "language: de", [True, False]),
        ("[night]", "[nights]", [False, True]),
        ("friend*", "friends", [False, True]),
        ("id: pain", "id: aches", [True, True]),
        ("id: others", "id: people", [True, True]),
        ('version: "1"', 'version: "2"', [True, True]),
        ("[insomnia, can't sleep,", "[can't sleep, insomnia,", [False, False]),
        ("can't sleep", "cant sleep", [False, False]),
        ("topics:", "# a note\ntopics:", [False, False]),
    ],
)
def test_each_digest_follows_what_decides_its_result(
    tmp_path: Path, old: str, new: str, changed: Sequence[bool]
) -> None:
    assert old in SMALL
    before, after = digests(tmp_path, SMALL), digests(tmp_path, SMALL.replace(old, new))
    assert [left != right for left, right in zip(before, after, strict=True)] == changed


def test_the_order_of_topics_is_in_both_digests(tmp_path: Path) -> None:
    taxonomy = load_taxonomy(written(tmp_path, SMALL))
    body, others = taxonomy.topics
    fine_turned = body.model_copy(update={"fine": body.fine[::-1]})
    for topics in ((others, body), (fine_turned, others)):
        turned = Taxonomy(version="1", language="en", topics=topics)
        assert turned.digest_of_words != taxonomy.digest_of_words
        assert turned.digest_of_cues != taxonomy.digest_of_cues


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("language: en\n", "", "line 1: language: is missing; add it"),
        ("name: Body\n", "colour: red\n    name: Body\n", "line 5: topics.0.colour: unknown key"),
        ("name: Body\n", "nme: Body\n", "did you mean 'name'?"),
        ("name: Body\n", "name: Body\n    name: Limbs\n", "line 6: the key 'name' stands twice"),
        ("description: It hurts.\n", "description: ''\n", "line 14: topics.0.fine.1.description: "),
        ("        description: It hurts.\n", "", "topics.0.fine.1.description: is missing; add it"),
        ("cues: [back pain]", "cues: []", "topics.0.fine.1.cues: "),
        ("cues: [back pain]", "cues: back pain", "topics.0.fine.1.cues: "),
        ("[back pain]", "[back pain, 911]", "line 15: topics.0.fine.1.cues.1: "),
        ("[back pain]", "['...']", "the cue '...' is not words; a star may only end a word"),
        ("[back pain]", "[ba*ck]", "the cue 'ba*ck' is not words; a star may only end a word"),
        ("[back pain]", "[in*]", "the stem in 'in*' is too short; give at least 3 letters"),
        ("[back pain]", "['  ']", "a cue is empty; write a word or take it out"),
        ("id: pain", "id: My Pain", "topics.0.fine.1.id: "),
        ("id: pain", "id: sleep", "topic id used twice: sleep; give each topic its own id"),
        ("id: pain", "id: body", "topic id used twice: body; give each topic its own id"),
        ("back pain", "FRIEND*", "cue used twice: friend*; leave each to the one topic"),
        ("back pain", "night", "cue used twice: night; leave each to the one topic"),
        ("topics:", "topics: []\nothers:", "topics: "),
        ("version:", "\tversion:", "line 1: not valid YAML"),
    ],
)
def test_a_faulty_taxonomy_is_refused_with_file_and_remedy(tmp_path: Path, old: str, new: str, expected: str) -> None:
    assert old in SMALL
    path = written(tmp_path, SMALL.replace(old, new, 1))
    with pytest.raises(ConfigError) as caught:
        load_taxonomy(path)
    assert expected in str(caught.value)
    assert str(caught.value).startswith(f"{path} line ")


def test_all_faults_are_told_at_once(tmp_path: Path) -> None:
    text = SMALL.replace("language: en\n", "").replace("[back pain]", "[back pain, in*]")
    with pytest.raises(ConfigError) as caught:
        load_taxonomy(written(tmp_path, text))
    assert len(str(caught.value).splitlines()) == 2


@pytest.mark.parametrize("name", ["no-such-taxonomy", "", "a\0b"])
def test_a_missing_taxonomy_names_the_bundled_ones(name: str) -> None:
    with pytest.raises(ConfigError, match=r"name a bundled taxonomy \(counselling\) or the path"):
        load_taxonomy(name)
