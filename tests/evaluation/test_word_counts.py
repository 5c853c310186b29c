"""What counts as a word."""

import pytest

from psychocounsel.evaluation.text_quality import words


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("(Nods) I hear you, Friend!", ["nods", "i", "hear", "you", "friend"]),
        ("It's she\u2019ll 'quoted'", ["it's", "she\u2019ll", "quoted"]),
        ("one\u2028two\tthree", ["one", "two", "three"]),
        ("... ...", ["...", "..."]),
        ("", []),
    ],
)
def test_words(text: str, expected: list[str]) -> None:
    assert words(text) == expected
