"""Kill an online run at random instants of all its phases; compare what it ends with to an uninterrupted run.

    python scripts/bench/train_kills.py --kills 100
    python scripts/bench/train_kills.py --kills 10 --num-processes 2

A tiny model is aligned on a CPU by the command line in three rounds: it samples, scores, pairs, computes what the
reference gives, trains with a checkpoint after every step, and probes the new policy. A run is killed with SIGKILL at
random instants of the phases of its rounds, started again after each kill, and finally completed. Weights, optimizer
states, answers, scores and pairs of every round must then equal those of a run that was not killed in every byte, and
no artifact that was complete may have been made again. Further options go to `align`.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from shutil import copytree
from typing import NamedTuple

from psychocounsel.store.artifacts import MANIFEST, Artifact
from psychocounsel.store.store import Store
from psychocounsel.training.checkpoints import DIGESTS_NAME

TESTS = Path(__file__).parents[2] / "tests"
sys.path.insert(0, str(TESTS))

from miniature import write_recipe  # noqa: E402
from running import ENVIRONMENT, Warm, WarmRun, await_until  # noqa: E402

RUN = "mini-online"
ROUNDS = range(1, 4)
LONGER = (
    *("--set", f"online.rounds={ROUNDS[-1]}", "--set", "online.steps_per_round=4"),
    *("--set", "online.speeches_per_round=16"),
)
SAVING = ("--set", "optimisation.save_every_steps=1")
BY_KIND = {
    **{"candidates": "sample", "scores": "score", "preferences": "pair", "reference-logps": "reference"},
    **{"policies": "train", "probes": "probe"},
}
PHASES = ("sample", "score", "pair", "reference", "train", "save", "probe", "result")
"""`train` includes loading and writing the policy; `save` is the time until a checkpoint has its digests."""
ORDER = {"start": -1, **{phase: PHASES.index(phase) for phase in PHASES}, "save": PHASES.index("train")}


class Place(NamedTuple):
    """Where a run is: round and phase. Round 0 has the probe of the initial policy, the last one the result."""

    round: int
    phase: str

    def has_reached(self, other: "Place") -> bool:
        """Whether a run that is here is in that place, or past it."""
        return self == other or (self.round, ORDER[self.phase]) > (other.round, ORDER[other.phase])


def place_of(store: Path) -> Place:
    """Return where the run in a store is, or was when it was killed."""
    while True:
        with suppress(FileNotFoundError):  # a folder of work went while it was listed: its artifact is complete
            return seen_place(store)


def seen_place(store: Path) -> Place:
    """Look once; raise `FileNotFoundError` where the run removes what is looked at."""
    number = len(list(store.glob(f"probes/{RUN}-*/{MANIFEST}")))
    for kind, phase in BY_KIND.items():
        for folder in store.glob(f"{kind}/{RUN}-*"):
            if not (folder / MANIFEST).exists():
                if kind == "policies" and "-round-" not in folder.name:
                    return Place(number - 1, "result")
                checkpoints = folder.glob("work/checkpoint-*")
                is_saving = any(not (each / DIGESTS_NAME).exists() for each in checkpoints)
                return Place(number, "save" if is_saving else phase)
    return Place(number, "start")


class Killed(NamedTuple):
    """Where each kill met a run, and when each artifact was created that was complete at one of them."""

    places: list[Place]
    created: dict[str, str]


class Outcome(NamedTuple):
    """What is wrong with a completed run: artifacts that were complete and made again, files that differ."""

    made_again: list[str]
    different: list[str]


class OnlineRuns:
    """Online runs by the command line, in copies of a store that holds what they start from."""

    def __init__(self, warm: Warm, config: Path, base: Path, options: tuple[str, ...]) -> None:
        self.warm, self.config, self.base, self.options = warm, config, base, options

    def start(self, store: Path) -> WarmRun:
        """Start a run, or resume it."""
        return self.warm.start("align", self.config, "--store", store, *SAVING, *self.options)

    def finish(self, store: Path) -> list[Artifact]:
        """Run to the end; return the artifacts of the run."""
        ended = self.start(store).wait()
        if ended.code != 0:
            raise RuntimeError(ended.err)
        return artifacts_of(store)

    def timed(self, store: Path) -> dict[str, float]:
        """Run to the end in a copy of the base; return the mean seconds of each phase."""
        copytree(self.base, store)
        totals: Counter[str] = Counter()
        entered: Counter[str] = Counter()
        run, before = self.start(store), Place(0, "start")
        since = time.monotonic()
        while not is_ended(run.pid):
            place, now = place_of(store), time.monotonic()
            totals[before.phase] += now - since
            entered[place.phase] += place != before
            before, since = place, now
            time.sleep(0.001)
        if (ended := run.wait()).code != 0:
            raise RuntimeError(ended.err)
        return {phase: totals[phase] / max(1, entered[phase]) for phase in PHASES}

    def kill(self, store: Path, kills: list[tuple[Place, float]]) -> Killed:
        """Run in a copy of the base; kill it some seconds after it has reached each place, and start it again."""
        copytree(self.base, store)
        killed = Killed([], {})
        for place, seconds in kills:
            run = self.start(store)
            await_until(lambda place=place: place_of(store).has_reached(place), 600)
            time.sleep(seconds)
            with suppress(ProcessLookupError):  # it has already ended
                run.send(signal.SIGKILL)
            if run.wait().code != -signal.SIGKILL:
                break
            killed.places.append(place_of(store))
            killed.created.update(created_in(store))
        return killed

    def complete(self, store: Path, killed: Killed, whole: list[Artifact]) -> Outcome:
        """Run to the end, and compare with the artifacts of an uninterrupted run."""
        found = {each.id: files_of(each) for each in self.finish(store)}
        different = [
            f"{each.kind}/{each.name}/{name}"
            for each in whole
            for name, digest in files_of(each).items()
            if found.get(each.id, {}).get(name) != digest
        ]
        created = created_in(store)
        made_again = [name for name, when in killed.created.items() if created[name] != when]
        return Outcome(made_again, different)


def is_ended(pid: int) -> bool:
    """Whether a process has ended, also if nobody has collected it yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def artifacts_of(store: Path) -> list[Artifact]:
    """Return the complete artifacts of the run in a store."""
    return [each for each in Store(store).artifacts() if each.name.startswith(RUN)]


def created_in(store: Path) -> dict[str, str]:
    """Return when each of them was created."""
    return {f"{each.kind}/{each.ref}": each.manifest["created_at"] for each in artifacts_of(store)}


def files_of(artifact: Artifact) -> dict[str, str]:
    """Return the digests of an artifact's files, but for those that hold durations."""
    files = artifact.manifest["files"].items()
    return {name: entry["sha256"] for name, entry in files if name not in ("metrics.json", "README.md")}


@contextmanager
def warm_process(folder: Path) -> Iterator[Warm]:
    """Start the process that forks runs."""
    environment = {**os.environ, **ENVIRONMENT}
    command = [sys.executable, str(TESTS / "warm.py")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment) as server:
        yield Warm(server, folder)
        server.kill()


def main() -> None:
    """Print the kills by phase; exit with 1 if a run ends differently or repeats an artifact."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    options, more = parser.parse_known_args()
    generator = random.Random(options.seed)  # noqa: S311
    kills: Counter[Place] = Counter()
    ended: list[Outcome] = []
    with tempfile.TemporaryDirectory() as name, warm_process(Path(name)) as warm:
        folder = Path(name)
        recipe = write_recipe(folder / "recipe")
        for stage in ("make-base-model", "build-preferences", "train-reward"):
            if (done := warm.run(stage, recipe / f"{stage}.yaml", "--store", folder / "base")).code != 0:
                sys.exit(done.err)
        runs = OnlineRuns(warm, recipe / "align.yaml", folder / "base", (*LONGER, *more))
        seconds = runs.timed(folder / "whole")
        whole = runs.finish(folder / "whole")
        while sum(kills.values()) < options.kills:
            rounds = [Place(number, phase) for number in ROUNDS for phase in PHASES if phase != "result"]
            places = [Place(0, "probe"), *rounds, Place(ROUNDS[-1], "result")]
            plan = [
                (place, generator.uniform(0, seconds[place.phase]))
                for place in places
                for _ in range(generator.choice((0, 1, 1, 2)))
            ]
            left = options.kills - sum(kills.values())
            kept = sorted(generator.sample(range(len(plan)), min(left, len(plan))))
            store = folder / f"run-{len(ended)}"
            killed = runs.kill(store, [plan[each] for each in kept])
            ended.append(runs.complete(store, killed, whole))
            kills.update(killed.places)
            sys.stderr.write(f"{sum(kills.values())} kills; {ended[-1].different or 'equal'}\n")
    print_counts(kills, ended, seconds, sum(len(files_of(each)) for each in whole))


def print_counts(kills: Counter[Place], ended: list[Outcome], seconds: dict[str, float], files: int) -> None:
    """Print a table of kills by phase and round, and what differs; exit accordingly."""
    columns = ["before", *(f"round {each}" for each in ROUNDS)]
    sys.stdout.write(f"| phase | mean s | {' | '.join(columns)} | kills |\n")
    sys.stdout.write("| --- |" + " --- |" * (len(columns) + 2) + "\n")
    for phase in (*PHASES, "between"):
        counts = [kills[Place(each, phase.replace("between", "start"))] for each in (0, *ROUNDS)]
        cells = [phase, f"{seconds[phase]:.2f}" if phase in seconds else "", *map(str, counts), str(sum(counts))]
        sys.stdout.write(f"| {' | '.join(cells)} |\n")
    made_again = [name for each in ended for name in each.made_again]
    different = [each.different for each in ended if each.different]
    sys.stdout.write(
        f"{sum(kills.values())} kills in {len(ended)} runs; complete artifacts made again: {len(made_again)}; "
        f"runs of which any of {files} files differs: {len(different)}\n"
    )
    for names in different:
        sys.stdout.write(f"differs: {', '.join(names)}\n")
    sys.exit(1 if made_again or different else 0)


if __name__ == "__main__":
    main()
