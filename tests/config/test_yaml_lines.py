"""YAML text -> data with lines: strict where PyYAML guesses."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from psychocounsel.config.loading import MAX_DEPTH, read_yaml
from psychocounsel.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("9e-6", 9e-6),
        ("1E3", 1000.0),
        (".5", 0.5),
        ("-3", -3),
        ("007", 7),
        ("true", True),
        ("false", False),
        ("null", None),
        ("~", None),
        ("", None),
        ("no", "no"),
        ("off", "off"),
        ("True", "True"),
        ("2024-07-26", "2024-07-26"),
        ("26 Jul 2024", "26 Jul 2024"),
        ("'5'", "5"),
        ('"true"', "true"),
        ("1_000", "1_000"),
        ("0x10", "0x10"),
        (".inf", ".inf"),
        ("1:30", "1:30"),
    ],
)
def test_a_scalar_means_what_it_says(text: str, value: object) -> None:
    read = read_yaml(f"key: {text}", "c.yaml").data["key"]
    assert (read, type(read)) == (value, type(value))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**12), 10**12) | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text("abcxyz", min_size=1), inner, max_size=4),
    max_leaves=12,
)


@given(st.dictionaries(st.text("abcxyz", min_size=1), json_values, max_size=5))
def test_json_is_read_as_the_yaml_that_it_is(data: dict[str, Any]) -> None:
    assert read_yaml(json.dumps(data), "c.yaml").data == data


def test_every_value_knows_its_line() -> None:
    document = read_yaml("a: 1\nblock:\n  inner:\n    - x\n    - y: 2\n", "c.yaml")
    assert document.lines[("a",)] == "c.yaml line 1"
    assert document.lines[("block", "inner")] == "c.yaml line 3"
    assert document.lines[("block", "inner", 1, "y")] == "c.yaml line 5"


@pytest.mark.parametrize(
    ("text", "fragment"),
    [
        ("a: 1\nb: 2\na: 3\n", "line 3: duplicate key 'a'"),
        ("a:\n  b: 1\n  b: 2\n", "line 3: duplicate key 'b'"),
        ("a: b\n c: d\n", "line 2: not valid YAML"),
        ("a: [1, 2\n", "not valid YAML"),
        ("a: !!python/name:os.system\n", "line 1: the tag 'tag:yaml.org,2002:python/name:os.system'"),
        ("a: !!python/object/apply:os.system [ls]\n", "python/object/apply:os.system' is not allowed"),
        ("a: !!python/dict {b: 1}\n", "python/dict' is not allowed"),
        ("a: !custom x\n", "'!custom' is not allowed"),
        ("? [a, b]\n: 1\n", "line 1: a key is a list or a block"),
        ("a: 1\n---\nb: 2\n", "not valid YAML"),
        ("a: 1\nb: " + "9" * 5000, "line 2: the number is too long"),
        ("a: \x07", "not valid YAML: unacceptable character #x0007"),
        ("a: " + "[" * 5000, "nested too deeply"),
        ("a: " + "[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1), "line 1: nested too deeply"),
        ("a: &again [*again]\n", "line 1: nested too deeply"),
    ],
)
def test_what_is_refused_is_told_with_its_line(text: str, fragment: str) -> None:
    with pytest.raises(ConfigError) as fault:
        read_yaml(text, "c.yaml")
    assert fragment in str(fault.value)
    assert str(fault.value).startswith("c.yaml")
    assert fault.value.remedy


def test_aliases_that_multiply_stop_before_they_fill_the_memory() -> None:
    levels = [f"l{at}: &l{at} [{', '.join([f'*l{at - 1}'] * 9)}]" for at in range(1, 12)]
    with pytest.raises(ConfigError, match="far too many values"):
        read_yaml("\n".join(["l0: &l0 [x, x]", *levels]), "c.yaml")


def test_an_alias_repeats_a_block() -> None:
    data = read_yaml("a: &a {x: 1}\nb: *a\n", "c.yaml").data
    assert data == {"a": {"x": 1}, "b": {"x": 1}}
