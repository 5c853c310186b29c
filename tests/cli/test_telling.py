"""What a command says of the calls that it would pay for."""

from dataclasses import replace
from decimal import Decimal

import pytest

from psychocounsel.cli.output import show_costs
from psychocounsel.llm.cost import Price, Tokens
from psychocounsel.stages.dry_run import PaidCalls


def price(dollars_per_million: str) -> Price:
    return Price(Decimal(dollars_per_million), Decimal(dollars_per_million), Decimal(0), "the config")


def rating(prompt_tokens: int) -> PaidCalls:
    return PaidCalls("judge-1", "http://here/v1", "rating", 3, Tokens(prompt_tokens, 0, 0), True, price("1"))


@pytest.mark.parametrize(
    ("prompt_tokens", "told"),
    [
        (2_000_000, "at most $2.00, as a batch $1.00 (by the config)"),
        (4_400, "at most $0.0044, as a batch $0.0022 (by the config)"),
        (10_000, "at most $0.01, as a batch $0.0050 (by the config)"),
        (0, "at most $0.00 (by the config)"),
    ],
)
def test_costs_under_a_cent_are_told_finer(prompt_tokens: int, told: str, capsys: pytest.CaptureFixture[str]) -> None:
    show_costs([replace(rating(prompt_tokens), has_batches=True)])
    said = capsys.readouterr().out
    assert said.startswith("paid: rating, judge-1 at http://here/v1: 3 calls, ")
    assert said.endswith(f"; without what the journal holds; {told}\n")


def test_what_cannot_be_asked_in_batches_has_no_price_for_them(capsys: pytest.CaptureFixture[str]) -> None:
    show_costs([rating(2_000_000)])
    assert capsys.readouterr().out.endswith("; at most $2.00 (by the config)\n")
