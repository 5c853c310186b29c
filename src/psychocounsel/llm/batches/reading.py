"""Files of a batch -> journalled replies, and what is told of the requests that got none."""

from collections.abc import Iterable, Set
from dataclasses import dataclass, field
from itertools import islice

from psychocounsel.llm.batches.files import Outcome, read_output
from psychocounsel.llm.batches.items import Items
from psychocounsel.llm.batches.ledger import BatchLedger, Shard
from psychocounsel.llm.batches.provider import AwayError, Batch, Provider
from psychocounsel.llm.chat import RefusedRequestError
from psychocounsel.llm.journal import Entry

_LINES_PER_COMMIT = 1_000


@dataclass
class Reading:
    """What a batch's files say.

    Attributes:
        lines: that could be read.
        unreadable: lines that could not.
        replies: lines with a reply, whether it was new or not.
        unanswered: by digest, what is told of a request that got no reply.
        files: those of which every line could be read.
    """

    lines: int = 0
    unreadable: int = 0
    replies: int = 0
    unanswered: dict[str, Outcome] = field(default_factory=dict[str, Outcome])
    files: list[str] = field(default_factory=list[str])

    def is_strange(self, batch: Batch) -> bool:
        """Whether something else was answered in the place of the batch's files."""
        return bool(batch.files) and not self.lines and bool(self.unreadable or batch.answered)


class BatchReader:
    """Reads batches into the journal; a file may be read again, and each of its replies is kept once."""

    def __init__(self, provider: Provider, ledger: BatchLedger, items: Items) -> None:
        self._provider, self._ledger, self._items = provider, ledger, items

    async def read(self, shard: Shard, batch: Batch) -> Reading:
        """Journal the replies in a batch's files; errors as those of the provider and the journal."""
        reading = Reading()
        for file_id in batch.files:
            lines = read_output(await self._provider.content(file_id), self._items.model)
            unreadable_before = reading.unreadable
            while some := list(islice(lines, _LINES_PER_COMMIT)):
                self._keep(shard, some, reading)
            if reading.unreadable == unreadable_before:
                reading.files.append(file_id)
        return reading

    def _keep(self, shard: Shard, some: list[Outcome | None], reading: Reading) -> None:
        outcomes = [each for each in some if each is not None]
        entries = [Entry(each.digest, each.reply) for each in outcomes if each.reply is not None]
        self._items.replied(self._ledger.keep(shard.id, entries))
        reading.lines += len(outcomes)
        reading.unreadable += len(some) - len(outcomes)
        reading.replies += len(entries)
        reading.unanswered |= {each.digest: each for each in outcomes if each.reply is None}


def require_readable(reading: Reading, batch: Batch, where: str) -> None:
    """Raise if something else was answered in the place of a batch's files.

    Raises:
        AwayError: it was; the files may come the next time.
    """
    if reading.is_strange(batch):
        raise AwayError(
            f"the files of the batch {batch.id} hold no line that can be read",
            where=where,
            remedy="run the same command again later; if it stays so, set judge.batch.forget_lost: true to "
            "submit its requests again",
        )


def require_taken(reading: Reading, has_answers: bool, singled_out: Set[str], where: str) -> None:
    """Raise what would befall every other request as well; a batch with a reply shows that it would not.

    Args:
        reading: of one batch.
        has_answers: whether any request of this run was ever answered.
        singled_out: digests that got no reply in a batch where others did; what is told of them is no news.
        where: the provider's address.

    Raises:
        RefusedRequestError: the requests are refused.
    """
    told: Iterable[Outcome] = () if reading.replies else reading.unanswered.values()
    for each in told:
        if each.digest in singled_out:
            continue
        if each.refuses_all or (each.is_refused and not has_answers):
            raise RefusedRequestError(
                f"the requests of a batch are refused ({each.reason})",
                where=where,
                remedy="check endpoint.model, and that it takes these parameters and a JSON schema",
            )
