from pathlib import Path

import pytest

from psychocounsel.errors import ConfigError
from psychocounsel.judging.rubric import load_rubric

SEVEN = ("empathy", "relevance", "clarity", "safety", "exploration", "autonomy", "staging")
SMALL = """
version: "3"
language: en
scale: {min: 0, max: 2}
principles:
  - id: presence
    name: Presence
    description: Is there.
    anchors: {0: away, 1: half, 2: there}
"""


def written(folder: Path, text: str) -> str:
    path = folder / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_the_bundled_rubric_has_the_seven_principles_with_five_anchors_each() -> None:
    rubric = load_rubric("seven-principles")
    assert rubric.principle_ids == SEVEN
    assert rubric.scale == (1, 2, 3, 4, 5)
    assert all(tuple(principle.anchors) == rubric.scale for principle in rubric.principles)
    texts = [text for principle in rubric.principles for text in principle.anchors.values()]
    assert len(set(texts)) == 35


def test_scale_and_principles_follow_the_file(tmp_path: Path) -> None:
    rubric = load_rubric(written(tmp_path, SMALL))
    assert rubric.principle_ids == ("presence",)
    assert rubric.scale == (0, 1, 2)


def test_the_digest_follows_the_words_and_not_the_place(tmp_path: Path) -> None:
    first = load_rubric(written(tmp_path, SMALL)).digest
    (tmp_path / "other").mkdir()
    assert load_rubric(written(tmp_path / "other", SMALL)).digest == first
    for old, new in [
        ("Is there.", "Is here."),
        ("half", "partly"),
        ('"3"', '"4"'),
        ("language: en", "language: de"),
    ]:
        assert load_rubric(written(tmp_path, SMALL.replace(old, new))).digest != first


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("language: en\n", "", "the rubric lacks the key(s) language; add them"),
        ("    name: Presence\n", "", "principle 1 lacks the key(s) name"),
        ("name: Presence", 'name: " "', "principle 1 (presence): name is empty; write it out"),
        ("{0: away, 1: half, 2: there}", "{0: away, 2: there}", "anchors are not exactly the points 0 to 2"),
        ("1: half", "1: ''", "principle 1 (presence): anchor 1 is empty"),
        ("1: half", "1: 7", "anchor 1 is not text"),
        ("min: 0", "min: 2", "scale: min and max are not whole numbers with min below max"),
        ("min: 0", "min: true", "scale: min and max are not whole numbers"),
        ("id: presence", "id: my principle", "id 'my principle' is no column name"),
        ("id: presence", "id: overall", "a principle is called 'overall'"),
        ("language: en", "language: en\ncolour: red", "unknown key(s) colour"),
        ("language: en", "language: en\nlanguage: de", "duplicate key 'language'"),
        ("principles:", "principles: []\nothers:", "the rubric has the unknown key(s) others"),
        ("version:", "\tversion:", "cannot start any token"),
    ],
)
def test_a_faulty_rubric_is_refused_with_file_and_remedy(
    tmp_path: Path, old: str, new: str, expected: str
) -> None:
    assert old in SMALL
    path = written(tmp_path, SMALL.replace(old, new, 1))
    with pytest.raises(ConfigError) as caught:
        load_rubric(path)
    assert expected in str(caught.value)
    assert str(caught.value).startswith(f"{path}: ")
    assert caught.value.remedy


def test_a_repeated_principle_is_refused(tmp_path: Path) -> None:
    twice = SMALL + SMALL[SMALL.index("  - id") :]
    with pytest.raises(ConfigError, match=r"used twice: presence; give each its own id"):
        load_rubric(written(tmp_path, twice))


@pytest.mark.parametrize("name", ["no-such-rubric", "", "a\0b"])
def test_a_missing_rubric_names_the_bundled_ones(name: str) -> None:
    with pytest.raises(ConfigError, match="seven-principles"):
        load_rubric(name)
