"""The one licence of a work from those of its sources."""

from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from psychocounsel.reporting.licences import (
    HUB_LICENCES,
    OTHER,
    Condition,
    combine,
    conditions_of,
    hub_licence,
    strictest_first,
)


@pytest.mark.parametrize(
    ("licences", "whole"),
    [
        (["cc0-1.0", "mit"], "mit"),
        (["mit", "apache-2.0"], "apache-2.0"),
        (["apache-2.0", "cc-by-4.0"], "cc-by-4.0"),
        (["mit", "cc-by-nc-4.0"], "cc-by-nc-4.0"),
        (["cc-by-3.0", "cc-by-4.0"], "cc-by-4.0"),
        (["cc-by-nc-4.0", "cc-by-nc-sa-4.0"], "cc-by-nc-sa-4.0"),
        (["cc-by-nc-4.0", "cc-by-sa-4.0"], "cc-by-nc-sa-4.0"),
        (["cc-by-nd-4.0", "cc-by-nc-3.0"], "cc-by-nc-nd-4.0"),
        (["mit", "gpl-3.0"], "gpl-3.0"),
    ],
)
def test_the_whole_carries_the_conditions_of_all(licences: list[str], whole: str) -> None:
    combined, reason = combine(licences)
    assert combined == whole
    assert whole in reason


@pytest.mark.parametrize(
    "licences",
    [
        ["cc-by-sa-4.0", "cc-by-nd-4.0"],  # to share changed versions alike, and not at all
        ["gpl-3.0", "gpl-2.0"],
        ["odbl", "cc-by-sa-4.0"],
        ["gpl-3.0", "cc-by-nc-4.0"],
        ["mit", "llama3.1"],
        ["mit", "unknown"],
        ["mit", "ask the author"],
    ],
)
def test_what_no_licence_can_carry_is_other_and_every_source_is_named(licences: list[str]) -> None:
    combined, reason = combine(licences)
    assert combined == OTHER
    assert any(licence in reason for licence in licences)
    assert "every source keeps its own terms" in reason


def test_licences_are_known_however_they_are_written() -> None:
    names = {"unknown": "unknown", "CC BY-NC 4.0": "cc-by-nc-4.0", "MIT": "mit", " Apache 2.0 ": "apache-2.0"}
    assert {name: hub_licence(name) for name in (*names, "mine")} == {**names, "mine": OTHER}


def test_the_strictest_stands_first() -> None:
    ordered = ["ask me", "cc-by-nc-nd-4.0", "cc-by-nd-4.0", "cc-by-nc-sa-4.0", "cc-by-nc-4.0"]
    ordered += ["cc-by-sa-4.0", "mit", "cc0-1.0"]
    for shuffled in (ordered[::-1], sorted(ordered)):
        assert strictest_first(shuffled) == ordered
    assert conditions_of("cc-by-nc-sa-4.0") == (Condition.BY, Condition.NC, Condition.SA)
    assert conditions_of("pddl") == ()
    assert conditions_of("openrail") is None


@given(st.lists(st.sampled_from(sorted(HUB_LICENCES)), max_size=4))
def test_no_condition_is_lost_and_the_order_does_not_matter(licences: list[str]) -> None:
    combined = combine(licences)[0]
    assert combined in HUB_LICENCES
    assert {combine(order)[0] for order in permutations(licences)} == {combined}
    carried = conditions_of(combined)
    for each in licences if carried is not None else []:
        asked = conditions_of(each)
        assert set(asked) <= set(carried or ())
