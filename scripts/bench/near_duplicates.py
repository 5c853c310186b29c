"""Time, memory and near copies found in synthetic speeches, by our code and by a plain datasketch loop.

    python -m pip install datasketch==2.0.0
    python scripts/bench/near_duplicates.py --speeches 100000
    python scripts/bench/near_duplicates.py --speeches 1000000 --ours-only

Speeches of about 400 characters lie in a scratch file, which both ways read. Words are chosen
as often as they occur in the samples, and each has one sentence of the samples, so that strangers share some.
One speech in twenty is a near copy of another: other case or punctuation, typos in 5 % of its words, or a
sentence added or moved. Both ways get the same shingles and as many permutations. The memory is what the
largest resident set of the process grows by. "Joined besides" counts joins that no near copy explains.
"""

import argparse
import json
import random
import re
import resource
import string
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from psychocounsel.config.corpus import SplitConfig
from psychocounsel.corpus.deduplicate import SKETCH_BYTES, cluster_ids, runs
from psychocounsel.corpus.reading import TextSpool
from psychocounsel.types import Speech

SAMPLES = Path(__file__).parents[2] / "data" / "samples" / "speeches.jsonl"
SIMILARITY = SplitConfig().near_duplicate_similarity
COPY_EVERY = 20
HEADER = "| way | seconds | memory | near copies found | joined besides |\n|---|---|---|---|---|"


class Copy(NamedTuple):
    """A copy and its original, by their places."""

    copy: int
    original: int


class Generator:
    """Writes speech number n, the same one whenever it is asked."""

    def __init__(self, seed: int) -> None:
        lines = SAMPLES.read_text(encoding="utf-8").splitlines()
        texts = [json.loads(line)["text"] for line in lines]
        self._seed = seed
        self._sentences = [sentence for text in texts for sentence in sentences(text)]
        counts = Counter(word for text in texts for word in re.findall(r"[\w'-]+", text.lower()))
        self._words, self._up_to = list(counts), list(accumulate(counts.values()))

    def speech(self, number: int) -> str:
        """Return an original speech of some 300 to 500 characters."""
        rng = random.Random(self._seed * 1_000_003 + number)  # noqa: S311
        words = rng.choices(self._words, cum_weights=self._up_to, k=rng.randrange(45, 80))
        own = [rng.choice(self._sentences)]
        while words:
            length = rng.randrange(6, 18)
            own.append(" ".join(words[:length]).capitalize() + rng.choice([".", ".", "!", "?", "..."]))
            del words[:length]
        rng.shuffle(own)
        return " ".join(own)

    def near_copy(self, number: int, original: int) -> str:
        """Return the original speech changed in one of five ways."""
        rng = random.Random(f"{self._seed} {number}")  # noqa: S311
        text = self.speech(original)
        own = sentences(text)
        match number // COPY_EVERY % 5:
            case 0:
                return rng.choice([str.upper, str.lower, str.title])(text)
            case 1:
                return re.sub(r"[.!?]+", lambda _: rng.choice(["", ";", " -", "!!"]), text)
            case 2:
                return typos(text, rng)
            case 3:
                own.insert(rng.randrange(len(own) + 1), rng.choice(self._sentences))
            case _:
                own.insert(rng.randrange(len(own)), own.pop(rng.randrange(len(own))))
        return " ".join(own)


def sentences(text: str) -> list[str]:
    """Return the sentences of a text."""
    return re.split(r"(?<=[.!?])\s+", text)


def typos(text: str, rng: random.Random) -> str:
    """Put a wrong letter into 5 % of the words."""
    words = text.split()
    for at in rng.sample(range(len(words)), round(0.05 * len(words))):
        place = rng.randrange(len(words[at]))
        words[at] = words[at][:place] + rng.choice(string.ascii_lowercase) + words[at][place + 1 :]
    return " ".join(words)


def write(texts: TextSpool, count: int, seed: int) -> tuple[NDArray[np.uint64], list[Copy]]:
    """Write the speeches; return their ids and where the copies are."""
    generator, rng = Generator(seed), random.Random(seed)  # noqa: S311
    ids = np.empty(count, dtype=np.uint64)
    copies: list[Copy] = []
    for number in range(count):
        if number % COPY_EVERY == COPY_EVERY - 1:
            original = rng.randrange(number // COPY_EVERY + 1) * COPY_EVERY
            copies.append(Copy(number, original))
            text = generator.near_copy(number, original)
        else:
            text = generator.speech(number)
        texts.append(text)
        ids[number] = int(Speech(text).id, 16)
    return ids, copies


def plain_datasketch(texts: Sequence[str]) -> Iterator[tuple[int, int]]:
    """Yield the pairs that a loop over one MinHash after another, and one index in memory, finds."""
    from datasketch import MinHash, MinHashLSH

    index = MinHashLSH(threshold=SIMILARITY, num_perm=SKETCH_BYTES)
    for number, text in enumerate(texts):
        signature = MinHash(num_perm=SKETCH_BYTES)
        signature.update_batch([run.encode() for run in runs(text)])
        yield from ((int(other), number) for other in index.query(signature))
        index.insert(str(number), signature)


def joined(pairs: Iterator[tuple[int, int]], count: int) -> NDArray[np.intp]:
    """Return for each text the root of those that pairs join with it."""
    roots = list(range(count))

    def root(at: int) -> int:
        while roots[at] != at:
            roots[at] = at = roots[roots[at]]
        return at

    for left, right in pairs:
        roots[root(left)] = root(right)
    return np.array([root(at) for at in range(count)])


def measured(name: str, find: Callable[[], NDArray[np.generic]], copies: list[Copy]) -> float:
    """Run one way, print its row of the table, and return its seconds."""
    before, started = peak_mib(), time.monotonic()
    found = find()
    seconds, memory = time.monotonic() - started, peak_mib() - before
    hits = sum(bool(found[pair.copy] == found[pair.original]) for pair in copies)
    besides = len(found) - len(np.unique(found)) - hits
    print(f"| {name} | {seconds:.1f} | {memory:.0f} MiB | {hits} of {len(copies)} | {besides} |", flush=True)
    return seconds


def peak_mib() -> float:
    """Return the largest resident set of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def require_datasketch() -> None:
    """End with the command that installs what is missing."""
    try:
        import datasketch  # noqa: F401
    except ImportError:
        sys.exit("datasketch is missing: python -m pip install datasketch==2.0.0, or take --ours-only")


def main() -> None:
    """Write the speeches, run both ways over them, print the table and the ratio."""
    parser = argparse.ArgumentParser(description="near-duplicates, by our code and by a plain datasketch loop")
    parser.add_argument("--speeches", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--ours-only", action="store_true")
    arguments = parser.parse_args()
    if not arguments.ours_only:
        require_datasketch()
    with tempfile.TemporaryDirectory() as folder:
        texts = TextSpool(Path(folder))
        ids, copies = write(texts, arguments.speeches, arguments.seed)
        print(HEADER, flush=True)
        ours = measured("ours", lambda: cluster_ids(ids, texts, SIMILARITY), copies)
        if not arguments.ours_only:
            plain = measured("datasketch", lambda: joined(plain_datasketch(texts), len(texts)), copies)
            print(f"\nours is {plain / ours:.1f} times as fast")


if __name__ == "__main__":
    main()
