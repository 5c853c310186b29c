"""YAML -> Rubric: what it holds, what its digest covers, and what is refused."""

from fractions import Fraction
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
SECOND = """
  - id: care
    name: Care
    description: Takes care.
    anchors: {0: careless, 1: some, 2: full}
"""
OFFLINE = """
offline:
  faults: {salad: -3}
  principles:
    presence: {base: 0.5, features: {warmth: 1.5}}
"""


def written(folder: Path, text: str) -> str:
    path = folder / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def with_key(key: str) -> str:
    """Return the small rubric with one more key on its principle."""
    return SMALL.replace("    name: Presence", f"    name: Presence\n    {key}")


def fault_of(folder: Path, text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_rubric(written(folder, text))
    return str(caught.value)


class TestWhatItHolds:
    def test_the_bundled_rubric_has_the_seven_principles_with_five_anchors_each(self) -> None:
        rubric = load_rubric("seven-principles")
        assert rubric.principle_ids == SEVEN
        assert rubric.scale == (1, 2, 3, 4, 5)
        assert all(tuple(principle.anchors) == rubric.scale for principle in rubric.principles)
        texts = [text for principle in rubric.principles for text in principle.anchors.values()]
        assert len(set(texts)) == 35

    def test_the_bundled_rubric_pairs_as_the_paper_does(self) -> None:
        rubric = load_rubric("seven-principles")
        assert rubric.weights == dict.fromkeys(SEVEN, Fraction(1))
        assert rubric.vetoes == {}
        assert rubric.safety == "safety"

    def test_scale_and_principles_follow_the_file(self, tmp_path: Path) -> None:
        rubric = load_rubric(written(tmp_path, SMALL))
        assert rubric.principle_ids == ("presence",)
        assert rubric.scale == (0, 1, 2)
        assert rubric.principles[0].anchors == {0: "away", 1: "half", 2: "there"}

    def test_what_is_left_out_weighs_one_and_forbids_nothing(self, tmp_path: Path) -> None:
        rubric = load_rubric(written(tmp_path, SMALL))
        assert rubric.weights == {"presence": Fraction(1)}
        assert (rubric.vetoes, rubric.safety, rubric.offline) == ({}, None, None)

    @pytest.mark.parametrize(
        ("text", "weight"),
        [
            ("0.1", Fraction(1, 10)),
            ("2", Fraction(2)),
            ("1e-3", Fraction(1, 1000)),
            ("1.15", Fraction(23, 20)),
        ],
    )
    def test_a_weight_is_the_decimal_that_is_written(self, tmp_path: Path, text: str, weight: Fraction) -> None:
        assert load_rubric(written(tmp_path, with_key(f"weight: {text}"))).weights["presence"] == weight

    def test_one_weight_may_be_zero(self, tmp_path: Path) -> None:
        rubric = load_rubric(written(tmp_path, with_key("weight: 0") + SECOND))
        assert rubric.weights == {"presence": 0, "care": 1}

    def test_veto_and_safety_are_read(self, tmp_path: Path) -> None:
        rubric = load_rubric(written(tmp_path, with_key("veto: 2") + "safety: presence\n"))
        assert rubric.vetoes == {"presence": 2}
        assert rubric.safety == "presence"

    def test_the_offline_block_is_read(self, tmp_path: Path) -> None:
        offline = load_rubric(written(tmp_path, SMALL + OFFLINE)).offline
        assert offline is not None
        assert offline.principles["presence"].base == 0.5
        assert offline.of("presence") == {"salad": -3.0, "warmth": 1.5}


class TestDigest:
    def test_it_follows_the_words_and_not_the_place(self, tmp_path: Path) -> None:
        first = load_rubric(written(tmp_path, SMALL)).digest
        (tmp_path / "other").mkdir()
        assert load_rubric(written(tmp_path / "other", SMALL)).digest == first

    @pytest.mark.parametrize(
        ("old", "new"),
        [
            ("Is there.", "Is here."),
            ("half", "partly"),
            ("name: Presence", "name: Being there"),
            ("id: presence", "id: attendance"),
            ('"3"', '"4"'),
            ("language: en", "language: de"),
            ("{min: 0, max: 2}", "{min: 0, max: 1}"),
        ],
    )
    def test_it_changes_with_every_word_that_a_judge_is_shown(self, tmp_path: Path, old: str, new: str) -> None:
        first = load_rubric(written(tmp_path, SMALL)).digest
        changed = SMALL.replace(old, new)
        assert changed != SMALL
        if "max: 1" in new:
            changed = changed.replace(", 2: there", "")
        assert load_rubric(written(tmp_path, changed)).digest != first

    @pytest.mark.parametrize(
        "text",
        [
            with_key("weight: 7"),
            with_key("veto: 1"),
            SMALL + "safety: presence\n",
            SMALL + OFFLINE,
            "# a remark\n" + SMALL,
        ],
    )
    def test_it_does_not_change_with_what_no_judge_is_shown(self, tmp_path: Path, text: str) -> None:
        first = load_rubric(written(tmp_path, SMALL)).digest
        assert load_rubric(written(tmp_path, text)).digest == first

    def test_the_bundled_rubrics_digest_stands_in_the_ids_of_paid_judgements(self) -> None:
        digest = "4ab859ddda61b71acac140bbd3a5cb984ae4554c38414204fe120ae9c3de390a"
        assert load_rubric("seven-principles").digest == digest

    def test_the_offline_block_has_a_digest_of_its_own(self, tmp_path: Path) -> None:
        digests: set[str] = set()
        for old, new in [("", ""), ("-3", "-2"), ("1.5", "1.6"), ("0.5", "0.4"), ("warmth", "choice")]:
            offline = load_rubric(written(tmp_path, SMALL + OFFLINE.replace(old, new, 1))).offline
            assert offline is not None
            digests.add(offline.digest)
        assert len(digests) == 5


class TestFaults:
    @pytest.mark.parametrize(
        ("old", "new", "expected"),
        [
            ("language: en\n", "", "line 2: language: is missing; add it"),
            ("    name: Presence\n", "", "line 6: principles.0.name: is missing; add it"),
            ("name: Presence", 'name: " "', "line 7: principles.0.name: is empty; write it out"),
            ("1: half, ", "", "line 9: principles.0.anchors: not exactly the points 0 to 2; describe each"),
            ("1: half", "one: half", "principles.0.anchors: not exactly the points 0 to 2"),
            ("max: 2", "max: 2000000000", "principles.0.anchors: not exactly the points 0 to 2000000000"),
            ("1: half", "1: ''", "principles.0.anchors.1: is empty"),
            (
                "1: half",
                "1: 7",
                "principles.0.anchors.1: Input should be a valid string (got 7); write it in",
            ),
            ('"3"', "3", "line 2: version: Input should be a valid string (got 3); write it in quotes"),
            ("min: 0", "min: 2", "line 4: scale: min is not below max; write {min: 1, max: 5}"),
            ("min: 0", "min: true", "scale.min: Input should be a valid integer"),
            ("id: presence", "id: my principle", "is no column name; use letters, digits and underscores"),
            ("id: presence", "id: overall", "principles.0.id: means the comparison as a whole"),
            ("language: en", "language: en\ncolour: red", "colour: unknown key"),
            ("language: en", "language: en\nsafty: presence", "safty: unknown key; did you mean 'safety'?"),
            ("language: en", "language: en\nlanguage: de", "duplicate key 'language'"),
            ("principles:", "principles: []\nothers:", "holds no principle; list at least one"),
            ("version:", "\tversion:", "not valid YAML"),
        ],
    )
    def test_a_faulty_rubric_is_refused_with_file_line_and_remedy(
        self, tmp_path: Path, old: str, new: str, expected: str
    ) -> None:
        assert old in SMALL
        message = fault_of(tmp_path, SMALL.replace(old, new, 1))
        assert expected in message
        assert message.startswith(f"{tmp_path}/mine.yaml line ")

    @pytest.mark.parametrize(
        ("key", "expected"),
        [
            ("weight: -1", "weight: Input should be greater than or equal to 0 (got -1)"),
            ("weight: '1'", "weight: Input should be a valid number (got '1'); write it without quotes"),
            ("weight: .nan", "weight: Input should be a valid number"),
            ("weight: 0", "principles: every weight is 0; let at least one principle count"),
            ("wieght: 2", "wieght: unknown key; did you mean 'weight'?"),
            ("veto: 3", "veto: 3 is no veto on the scale 0 to 2; choose 1 to 2, or leave it out"),
            ("veto: -1", "veto: -1 is no veto on the scale 0 to 2"),
            ("veto: 0", "veto: 0 is no veto on the scale 0 to 2"),
            ("veto: 1.5", "veto: Input should be a valid integer"),
        ],
    )
    def test_faulty_weights_and_vetoes(self, tmp_path: Path, key: str, expected: str) -> None:
        message = fault_of(tmp_path, with_key(key))
        assert expected in message
        assert message.startswith(f"{tmp_path}/mine.yaml line ")
        assert message.count("\n") == 0

    @pytest.mark.parametrize(
        ("name", "hint"), [("presense", "did you mean 'presence'?"), ("humour", "known: presence")]
    )
    def test_an_unknown_safety_principle(self, tmp_path: Path, name: str, hint: str) -> None:
        message = fault_of(tmp_path, f"{SMALL}safety: {name}\n")
        assert f"line 10: safety: {name!r} is no principle; {hint}" in message

    @pytest.mark.parametrize(
        ("old", "new", "expected"),
        [
            ("warmth", "warmht", "warmht: there is no feature 'warmht'; did you mean 'warmth'?"),
            ("salad", "salat", "offline.faults.salat: there is no feature 'salat'; did you mean 'salad'?"),
            ("presence", "presense", "'presense' is no principle; did you mean 'presence'?"),
            ("features", "weights", "presence.weights: unknown key; known keys: base, features"),
            ("base: 0.5, ", "", "presence.base: is missing; add it"),
            ("1.5", "lots", "features.warmth: Input should be a valid number (got 'lots')"),
        ],
    )
    def test_faulty_offline_blocks(self, tmp_path: Path, old: str, new: str, expected: str) -> None:
        message = fault_of(tmp_path, SMALL + OFFLINE.replace(old, new, 1))
        assert expected in message
        assert message.startswith(f"{tmp_path}/mine.yaml line 1")

    def test_faults_are_told_all_at_once(self, tmp_path: Path) -> None:
        text = with_key("veto: 9") + "safety: nobody\n" + OFFLINE.replace("warmth", "warmht")
        lines = fault_of(tmp_path, text).split("\n")
        assert len(lines) == 3
        assert ["line 8" in lines[0], "line 11" in lines[1], "line 16" in lines[2]] == [True] * 3

    def test_a_repeated_principle_is_refused(self, tmp_path: Path) -> None:
        twice = SMALL + SMALL[SMALL.index("  - id") :]
        assert "the id 'presence' is used twice; give each principle its own" in fault_of(tmp_path, twice)

    @pytest.mark.parametrize("name", ["no-such-rubric", "", "a\0b"])
    def test_a_missing_rubric_names_the_bundled_ones(self, name: str) -> None:
        with pytest.raises(ConfigError, match="seven-principles"):
            load_rubric(name)
