"""Time and memory of a comparison and its report at the paper's size, without the judge's calls.

    python scripts/bench/report.py
    python scripts/bench/report.py --speeches 2324 --policies 3 --page /tmp/report.html

Runs eval-winrate and report on synthetic answers from files, with a judge that answers at once: 2,324 speeches in both
orders on seven principles, with reasons. Each step is timed; the memory is the largest resident set of the process.
"""

import argparse
import json
import random
import resource
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from psychocounsel.config.schema import EvalWinrateConfig, ReportConfig
from psychocounsel.judging.judge import ComparisonTask
from psychocounsel.judging.offline import OfflineJudge
from psychocounsel.judging.rubric import load_rubric
from psychocounsel.reporting.compare_tables import compare_tables
from psychocounsel.stages import eval_winrate
from psychocounsel.stages.report import make_report
from psychocounsel.store.artifacts import ArtifactSpec, ArtifactWriter
from psychocounsel.store.schemas import SplitSpeech, write_speeches
from psychocounsel.store.store import Store
from psychocounsel.types import OVERALL, Comparison, ReplyStatus, Speech, Winner

TOPICS = ("anxiety", "grief", "relationships", "work", "sleep", "family", "self-esteem", "trauma")
SAMPLES = Path(__file__).parents[2] / "data" / "samples" / "candidates.jsonl"
T = TypeVar("T")


class InstantJudge(OfflineJudge):
    """Prefers one answer at random, the same in both orders most of the time."""

    def compare(self, items: Sequence[ComparisonTask], progress: Callable[[int], None]) -> list[Comparison]:
        """Return random winners with reasons."""
        compared: list[Comparison] = []
        for speech, first, second in items:
            chance = random.Random(min(first.id, second.id))  # noqa: S311
            better = first.id if (chance.random() < 0.6) == (first.id < second.id) else second.id
            winners = {
                name: Winner.FIRST if (better == first.id) != (chance.random() < 0.1) else Winner.SECOND
                for name in (OVERALL, *self.principles)
            }
            reasons = f"A names what the client feels; B moves on quickly. ({first.id[:6]})" * 3
            compared.append(Comparison(speech.id, first.id, second.id, ReplyStatus.VALID, winners, reasons=reasons))
            progress(1)
        return compared


def timed(step: str, work: Callable[[], T]) -> T:
    """Do some work and print a row of the table."""
    started, cpu = time.perf_counter(), time.process_time()
    done = work()
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"| {step} | {time.perf_counter() - started:.1f} | {time.process_time() - cpu:.1f} | {memory:,.0f} |")
    return done


def main() -> None:
    """Run every step."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--speeches", type=int, default=2324)
    parser.add_argument("--policies", type=int, default=2, help="compared with one reference")
    parser.add_argument("--page", type=Path, help="where to keep the report")
    options = parser.parse_args()
    eval_winrate.open_judge = lambda *_, **__: InstantJudge(load_rubric("seven-principles"))  # ty: ignore
    with tempfile.TemporaryDirectory() as folder:
        run(Path(folder), options)


def run(folder: Path, options: argparse.Namespace) -> None:
    """Make the artifacts in a folder and time them."""
    texts = [json.loads(line)["text"] for line in SAMPLES.read_text("utf-8").splitlines()]
    sentences = [part for text in texts for part in text.split(". ")]
    chance = random.Random(0)  # noqa: S311

    def words(count: int) -> str:
        return ". ".join(chance.sample(sentences, count))

    speeches = [
        Speech(f"{number}: {words(6)}", chance.choice(TOPICS), chance.random() < 0.1)
        for number in range(options.speeches)
    ]
    store = Store(folder / "store")

    def write(writer: ArtifactWriter) -> None:
        write_speeches(writer, [SplitSpeech(each, "test", each.id) for each in speeches])
        funnel = {"rows_in": len(speeches), "kept": len(speeches), "dropped": dict[str, int]()}
        counts = {"clusters": len(speeches), "near_duplicates": 0, "crisis": 0, "sources": list[str]()}
        writer.write_metrics({"funnel": funnel, "splits": {"test": len(speeches)}, **counts})

    store.make(ArtifactSpec("speeches", "bench", "bench", 1, {"speeches": []}, ()), write)
    names = [f"policy-{number}" for number in range(options.policies)]
    for name in (*names, "reference"):
        rows = [{"speech": each.text, "author": name, "response": words(12)} for each in speeches]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    print("| step | seconds | of the processor | peak memory, MiB |\n|---|---|---|---|")
    for name in names:
        sides = {
            side: {"author": author, "file": str(folder / f"{author}.jsonl"), "licence": "none", "data_class": "public"}
            for side, author in (("policy", name), ("reference", "reference"))
        }
        config = EvalWinrateConfig.model_validate(
            {"name": name, "speeches": "bench", "split": "test", "judge": {"backend": "offline"}, **sides}
        )
        timed(f"eval-winrate {name}", lambda config=config: eval_winrate.eval_winrate(config, store))
    timed("compare", lambda: compare_tables(store.artifacts("comparisons"), store))
    shown = ReportConfig(name="bench", artifacts=tuple(f"comparisons/{name}" for name in names))
    report = timed("report", lambda: make_report(shown, store))
    page = report.file("report.html").read_bytes()
    print(f"\nreport.html: {len(page) / 1e6:.1f} MB")
    if options.page:
        options.page.write_bytes(page)


if __name__ == "__main__":
    main()
