"""How often intervals hold the truth, by simulation: win rates over speeches, and win rates at equal length.

    python scripts/bench/coverage.py [--repetitions 4000]

prints tables in Markdown: the coverage of 95 % intervals, and for length control the mean error of the estimate too.
"""

import argparse
import math
from collections.abc import Sequence
from statistics import NormalDist, fmean

import numpy as np
from numpy.typing import NDArray

from psychocounsel.evaluation.length_control import LengthComparison, length_controlled_rate
from psychocounsel.evaluation.statistics import clustered_rate

RATES = (0.5, 0.7, 0.9, 0.95)
CASES = (
    *((f"{n} x 1", (1,) * n, 0.0) for n in (48, 200, 1000)),
    *(("19 x 12", (12,) * 19, icc) for icc in (0.2, 0.8)),
    *(("6 x 16", (16,) * 6, icc) for icc in (0.2, 0.8)),
    *(("47 x 4, 1 x 50", (*(4,) * 47, 50), icc) for icc in (0.2, 0.8)),
    *(("19 x 2, 1 x 100", (*(2,) * 19, 100), icc) for icc in (0.2, 0.8)),
)
"""Speeches and answers to each, and how far the answers to one speech resemble each other."""
LENGTH_CASES = (
    *((0.0, 0.0, 0.0, "tanh"), (0.0, 1.5, 60.0, "tanh"), (1.0, -0.8, 30.0, "tanh"), (1.0, 1.0, -20.0, "tanh")),
    *((2.0, 0.5, 0.0, "tanh"), (0.0, 1.5, 60.0, "sign"), (1.0, 1.5, 20.0, "sign")),
)
"""Log-odds at equal length, effect of length, mean difference in words at a standard deviation of 40, and its form.

`tanh` is the form that length control fits; `sign` is a judge who goes by which answer is longer, not by how much.
"""


def outcomes(rng: np.random.Generator, rate: float, ties: float, shape: tuple[int, int], icc: float) -> NDArray:
    """Return points of shape `[speeches, answers]` with a mean of `rate`; `icc` correlates those of one speech."""
    shared, own = rng.normal(size=(shape[0], 1)), rng.normal(size=shape)
    score = math.sqrt(icc) * shared + math.sqrt(1 - icc) * own
    lost, tied = (NormalDist().inv_cdf(min(max(1 - rate + part, 1e-12), 1 - 1e-12)) for part in (-ties / 2, ties / 2))
    return np.where(score < lost, 0.0, np.where(score < tied, 0.5, 1.0))


def coverage(rate: float, ties: float, sizes: Sequence[int], icc: float, repetitions: int) -> str:
    """Return the share of intervals that hold the true rate, in percent; `sizes` are the answers to each speech."""
    rng = np.random.default_rng(0)
    most = max(sizes)
    speeches = np.repeat([f"s{at}" for at in range(len(sizes))], sizes).tolist()
    is_answer = np.arange(most) < np.array(sizes)[:, None]
    found = [
        clustered_rate(outcomes(rng, rate, ties, (len(sizes), most), icc)[is_answer].tolist(), speeches)
        for _ in range(repetitions)
    ]
    return f"{100 * fmean(each.low <= rate <= each.high for each in found):.1f}"


def length_coverage(theta: float, beta: float, mean: float, form: str, n: int, repetitions: int) -> tuple[str, str]:
    """Return coverage and mean error of the length-controlled win rate, in percent, of the samples that give one."""
    rng, truth = np.random.default_rng(0), 1 / (1 + math.exp(-theta))
    held: list[bool] = []
    errors: list[float] = []
    while len(held) < repetitions:
        differences = rng.normal(mean, 40, n)
        by_length = np.tanh(differences / 40) if form == "tanh" else np.sign(differences)
        won = rng.random(n) < 1 / (1 + np.exp(-(theta + beta * by_length)))
        rows = [
            LengthComparison(str(at), float(win), 500 + longer, 500)
            for at, (win, longer) in enumerate(zip(won, differences, strict=True))
        ]
        rate = length_controlled_rate(rows).rate
        if rate is not None:
            held.append(rate.low <= truth <= rate.high)
            errors.append(rate.estimate - truth)
    return f"{100 * fmean(held):.1f}", f"{100 * fmean(errors):+.2f}"


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=4000)
    repetitions = parser.parse_args().repetitions
    print("| speeches x answers | correlation within a speech | ties | " + " | ".join(map(str, RATES)) + " |")
    print("|---|---|---|" + "---|" * len(RATES))
    for name, sizes, icc in CASES:
        for ties in (0.0, 0.1, 0.2, 0.4) if len(set(sizes)) == 1 else (0.1,):
            cells = [
                coverage(rate, ties, sizes, icc, repetitions) if rate + ties / 2 <= 1 else "impossible"
                for rate in RATES
            ]
            print(f"| {name} | {icc} | {100 * ties:.0f} % | " + " | ".join(cells) + " |", flush=True)
    header = ("log-odds at equal length", "effect of length", "mean difference", "form")
    print(f"\n| {' | '.join(header)} | n = 200 | error | n = 1000 | error |")
    print("|---|---|---|---|---|---|---|---|")
    for case in LENGTH_CASES:
        cells = [cell for n in (200, 1000) for cell in length_coverage(*case, n, repetitions // 2)]
        print(f"| {' | '.join(map(str, (*case, *cells)))} |", flush=True)


if __name__ == "__main__":
    main()
