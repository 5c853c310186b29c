"""Waits grow, stay bounded, and honour what the server asks for."""

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from psychocounsel.llm.rate_limit import RetryPolicy, retry_after_seconds

NOW = datetime(2025, 3, 1, 12, 0, 0, tzinfo=UTC)


@given(st.integers(1, 12), st.text(st.characters(codec="utf-8")))
def test_a_wait_lies_between_half_and_the_whole_of_the_back_off(tries, key):
    policy = RetryPolicy(first_wait_seconds=0.5, longest_wait_seconds=30.0)
    whole = min(0.5 * 2 ** (tries - 1), 30.0)
    assert whole / 2 <= policy.wait_seconds(tries, key) <= whole
    assert 0 <= policy.spread_seconds(key) <= 0.5
    assert policy.wait_seconds(tries, key) == policy.wait_seconds(tries, key)


def test_different_requests_spread_out():
    waits = {RetryPolicy().wait_seconds(3, f"request {number}") for number in range(50)}
    assert len(waits) > 25
    assert max(waits) - min(waits) > 0.5


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "7"}, 7.0),
        ({"retry-after": "0.25"}, 0.25),
        ({"retry-after": "9", "retry-after-ms": "250"}, 0.25),
        ({"retry-after": "Sat, 01 Mar 2025 12:00:30 GMT"}, 30.0),
        ({"retry-after": "Sat, 01 Mar 2025 12:00:30 -0000"}, 30.0),
        ({"retry-after": "Sat, 01 Mar 2025 11:00:00 GMT"}, 0.0),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "-3"}, None),
        ({"retry-after": "inf"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "Sat, 01 Mar 99999999999999999999 12:00:30 GMT"}, None),
        ({"retry-after": "Sat, 01 Mar 2025 12:00:30 +99999999999999999999"}, None),
    ],
)
def test_what_the_server_asks_for(headers, seconds):
    assert retry_after_seconds(headers, NOW) == seconds
