"""score: rewards for the rows of a file, written beside them in a new file.

Every row is checked before the model is loaded. Rewards are spooled while they are computed, so that a killed run
resumes, and the result is in place only once it is complete.
"""

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from psychocounsel.config.components import ChatFormat
from psychocounsel.corpus.formats import SourceRow
from psychocounsel.corpus.sources import (
    cell,
    history_cell,
    read_rows,
    source_fingerprint,
    text_cell,
)
from psychocounsel.errors import ConfigError, InputError
from psychocounsel.llm.cancel import cancelled_by_signals
from psychocounsel.reporting.console import step_progress
from psychocounsel.store.files import FULL_DISK, digest_of, partial_path, put_in_place, write_faults
from psychocounsel.store.references import resolve_model, trained_chat
from psychocounsel.store.store import LOCKS, Store, hold_lock
from psychocounsel.types import Policy, Reward, Turn

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from psychocounsel.training.reward import Exchange

BATCHES_AT_ONCE = 64
"""Batches between two writes to the spool; their rows are sorted by length, so that a batch holds little padding."""
PARQUET_ROWS = 1024
NAMED_FAULTS = 5
ENDINGS = (".jsonl", ".csv", ".parquet")
T = TypeVar("T")


@dataclass(frozen=True)
class ScoreJob:
    """A reward model, the file to score, the columns with speech, response and earlier turns, and the file to write."""

    model: str
    source: str
    target: Path
    speech: str = "speech"
    response: str = "response"
    batch_size: int = 8
    history: str | None = None

    def texts(self, row: SourceRow) -> tuple[str, str, tuple[Turn, ...]]:
        """Return what the client says, what is answered and the turns before; raises InputError for a wrong cell."""
        for option, column in (("--speech", self.speech), ("--response", self.response), ("--history", self.history)):
            if column:
                cell(row, column, f"name one with {option}")
        history = () if self.history is None else history_cell(row, self.history)
        return text_cell(row, self.speech), text_cell(row, self.response), history


def score_file(job: ScoreJob, store: Store) -> int:
    """Write the rows of `job.source` with their rewards to `job.target`, and return their number.

    `raw_reward` is the overall reward as the model gives it, `reward` the normalised one; a model with heads by
    principle adds `PRINCIPLE_raw_reward` and `PRINCIPLE_reward` for each.

    Raises:
        ConfigError: the target's ending is not known, or a reference matches nothing.
        InputError: rows that cannot be scored; the message names the first of them.
        Preempted: SIGINT or SIGTERM came; the same command resumes.
    """
    if job.target.suffix.lower() not in ENDINGS:
        raise ConfigError("the ending is not known", where=str(job.target), remedy=f"give {', '.join(ENDINGS)}")
    lock = store.root / LOCKS / f"score-{digest_of(str(job.target.resolve()))[:16]}.lock"
    with hold_lock(lock, str(job.target)), cancelled_by_signals() as cancel, write_faults(job.target, FULL_DISK):
        model = resolve_model(store, job.model, ("reward-models",))
        policy, chat = model.policy(store), trained_chat(store, model)
        total = _check_rows(job, policy, chat)
        known_by = model.parent.id if model.parent else model.fingerprint
        columns = [job.speech, job.response, *([job.history] if job.history else [])]
        head = digest_of([known_by, source_fingerprint(job.source, "train"), columns])
        spool = job.target.with_name(f"{job.target.name}.rewards")
        size = BATCHES_AT_ONCE * job.batch_size
        with write_faults(job.target):
            job.target.parent.mkdir(parents=True, exist_ok=True)
            done = _resume(spool, head, size)
        if done < total:
            from psychocounsel.training.reward import Exchange, RewardScorer  # imports torch

            scorer = RewardScorer.load(policy, chat)
            with step_progress("scoring rows") as report, spool.open("a", encoding="utf-8") as stream:
                report(done, total)
                for rows in _in_batches(islice(read_rows(job.source), done, None), size):
                    rewards = scorer.rewards([Exchange(*job.texts(row)) for row in rows], job.batch_size)
                    stream.writelines(json.dumps(_columns(reward)) + "\n" for reward in rewards)
                    stream.flush()
                    done += len(rows)
                    report(done, total)
                    if done < total:
                        cancel.raise_if_cancelled(str(job.target))
        _write(job, spool)
        spool.unlink()
    return total


def _check_rows(job: ScoreJob, policy: Policy, chat: ChatFormat) -> int:
    """Return the number of rows; raises InputError if some cannot be scored, or have a column that will be added."""
    from psychocounsel.training.reward import Exchange  # imports torch
    from psychocounsel.training.tokenize import load_tokenizer

    tokenizer = load_tokenizer(policy)
    faults: list[str] = []
    total = 0
    for row in read_rows(job.source):
        total += 1
        taken = [name for name in row.values if name == "reward" or name.endswith("_reward")]
        if taken:
            raise InputError(f"there is a column {taken[0]!r} already", where=row.where, remedy="rename it in the file")
        if fault := why_not_scored(tokenizer, chat, Exchange(*job.texts(row))):
            faults.append(f"{row.where}: {fault}")
    if faults or not total:
        shown = [*faults[:NAMED_FAULTS], *([f"and {len(faults) - NAMED_FAULTS} more"] if faults[NAMED_FAULTS:] else [])]
        what = f"{len(faults)} of {total} rows cannot be scored: {'; '.join(shown)}" if faults else "has no rows"
        raise InputError(what, where=job.source, remedy="correct or drop these rows" if faults else "give some")
    return total


def why_not_scored(tokenizer: "PreTrainedTokenizerBase", chat: ChatFormat, exchange: "Exchange") -> str:
    """Return why a reward model cannot score an exchange; empty if it can."""
    from psychocounsel.training.tokenize import TemplateError, encode_exchange  # imports torch

    if not (exchange.speech_text and exchange.response_text):
        return "the speech or the response is empty"
    try:
        tokens = sum(map(len, encode_exchange(tokenizer, *exchange[:2], chat, exchange.history)))
    except TemplateError as fault:
        return fault.what
    most = tokenizer.model_max_length
    return f"has {tokens} tokens, the model takes {most}" if tokens > most else ""


def _resume(spool: Path, head: str, size: int) -> int:
    """Return how many rows of this job are spooled, in whole pieces of `size`; the rest is discarded.

    Batches are then those of a run that nothing interrupts. A spool of another job is discarded as a whole.
    """
    lines = spool.read_bytes().splitlines(keepends=True) if spool.exists() else []
    if not lines or lines[0].decode("utf-8", "replace") != f"{head}\n":
        lines = [f"{head}\n".encode()]
    whole = sum(line.endswith(b"\n") for line in lines) - 1
    done = whole - whole % size
    spool.write_bytes(b"".join(lines[: 1 + done]))
    return done


def _columns(reward: Reward) -> dict[str, float]:
    heads = {
        name: value
        for principle, raw in reward.raw_principles.items()
        for name, value in ((f"{principle}_raw_reward", raw), (f"{principle}_reward", reward.principles[principle]))
    }
    return {"raw_reward": reward.raw, "reward": reward.reward, **heads}


def _in_batches(rows: Iterator[T], size: int) -> Iterator[list[T]]:
    return iter(lambda: list(islice(rows, size)), [])


def _write(job: ScoreJob, spool: Path) -> None:
    """Write the rows of the source, each with its spooled rewards, in the format that the target's ending names."""
    partial = partial_path(job.target)
    if job.target.suffix.lower() == ".jsonl":
        with partial.open("w", encoding="utf-8") as stream:
            stream.writelines(json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in _scored(job, spool))
    elif job.target.suffix.lower() == ".csv":
        names = list(dict.fromkeys(chain.from_iterable(_scored(job, spool))))
        with partial.open("w", encoding="utf-8", newline="") as stream:
            writer = csv.DictWriter(stream, names)
            writer.writeheader()
            writer.writerows({name: _as_cell(value) for name, value in row.items()} for row in _scored(job, spool))
    else:
        tables = (pa.Table.from_pylist(rows) for rows in _in_batches(_scored(job, spool), PARQUET_ROWS))
        schema = pa.unify_schemas([table.schema for table in tables], promote_options="permissive")
        with pq.ParquetWriter(partial, schema) as parquet:
            for rows in _in_batches(_scored(job, spool), PARQUET_ROWS):
                parquet.write_table(pa.Table.from_pylist(rows, schema=schema))
    put_in_place(partial, job.target)


def _scored(job: ScoreJob, spool: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows of the source with their rewards."""
    with spool.open(encoding="utf-8") as stream:
        next(stream)
        for row, line in zip(read_rows(job.source), stream, strict=True):
            yield {**row.values, **json.loads(line)}


def _as_cell(value: object) -> object:
    is_plain = value is None or isinstance(value, str | int | float)
    return value if is_plain else json.dumps(value, ensure_ascii=False, default=str)
