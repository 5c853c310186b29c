"""Parts of a long computation: which ones a resumed run computes again."""

import hashlib
import math
from collections.abc import Sequence
from pathlib import Path

import pytest
from pydantic import TypeAdapter

from psychocounsel.training.shards import Progress, in_shards


@pytest.mark.parametrize("result", [math.nan, math.inf, -math.inf])
def test_a_result_that_is_not_finite_is_computed_again(tmp_path: Path, result: float) -> None:
    computed: list[str] = []

    def compute(items: Sequence[str], progress: Progress) -> list[float]:
        computed.extend(items)
        progress(len(items), len(items))
        return [result if each == "bad" else 1.0 for each in items]

    for _ in range(2):
        plain = TypeAdapter(list[float])
        found = in_shards(["good", "bad"], 1, compute, plain=plain, work=tmp_path, progress=lambda *_: None)
        assert [found[0], str(found[1])] == [1.0, str(result)]
    assert computed == ["good", "bad", "bad"]


def test_results_of_another_form_are_computed_again(tmp_path: Path) -> None:
    def run() -> list[int]:
        plain = TypeAdapter(list[int])
        return in_shards([3], 1, lambda items, _: list(items), plain=plain, work=tmp_path, progress=lambda *_: None)

    assert run() == [3]
    (shard,) = tmp_path.iterdir()
    body = b'[["three"]]'
    shard.write_bytes(hashlib.sha256(body).hexdigest().encode() + b"\n" + body)
    assert run() == [3]
