"""The same refusal is read alike on every transport."""

from dataclasses import dataclass

import aiohttp
import pytest
from aiohttp.client_reqrep import ConnectionKey

from psychocounsel.llm.client import broken_connection, codes_of, key_refusal, quoted
from psychocounsel.llm.rate_limit import RETRIED, on_status, quota_is_used_up

KEY = "sk-secret"


@dataclass
class Refused:
    status_code: int
    code: str | None = None
    type: str | None = None
    body: object | None = None
    message: str = "the client's own words"


@pytest.mark.parametrize(
    ("error", "passes", "is_quota"),
    [
        (Refused(429), True, False),
        (Refused(503), True, False),
        (Refused(429, code="insufficient_quota"), False, True),
        (Refused(429, type="insufficient_quota"), False, True),
        (Refused(402), False, True),
        (Refused(401), False, False),
        (Refused(400), False, False),
    ],
)
def test_what_may_pass_and_what_no_wait_mends(error: Refused, passes: bool, is_quota: bool) -> None:
    status, codes = error.status_code, codes_of(error)
    assert (on_status(status, codes) in RETRIED, quota_is_used_up(status, codes)) == (passes, is_quota)


def test_whose_fault_it_is_if_the_keys() -> None:
    quota, wrong = key_refusal(Refused(402), "MY_KEY"), key_refusal(Refused(401), "MY_KEY")
    assert quota is not None
    assert "quota" in quota.what
    assert wrong is not None
    assert "MY_KEY" in wrong.remedy
    assert key_refusal(Refused(403), "MY_KEY") is None


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"message": f"no\n such   key {KEY}"}, "no such key [key]"),
        ({"detail": "not here"}, "not here"),
        ("bare", "bare"),
        ({"message": 3}, "the client's own words"),
        (None, "the client's own words"),
        ("x" * 500, "x" * 200),
    ],
)
def test_the_servers_words_without_the_key(body: object, words: str) -> None:
    assert quoted(Refused(400, body=body), KEY) == words


def test_a_line_that_never_came_about_and_one_that_broke() -> None:
    where = ConnectionKey("127.0.0.1", 9, False, True, None, None, None)
    cause = aiohttp.ClientConnectorError(where, ConnectionRefusedError(111, "refused"))
    nobody = RuntimeError("wrapped")
    nobody.__cause__ = cause
    assert broken_connection(nobody).is_unreachable
    assert not broken_connection(aiohttp.ServerDisconnectedError()).is_unreachable
