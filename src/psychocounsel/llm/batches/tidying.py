"""Ended shards -> nothing left at the provider: files of requests and replies hold what clients said.

All of this is done as well as it can be: whatever cannot be deleted is told, stays noted, and is tried again
by the next run. Replies are in the journal before anything is deleted, so no file is needed again.
"""

from collections.abc import Callable

from psychocounsel.errors import EndpointError, IncompleteError, PsychoCounselError
from psychocounsel.llm.batches.ledger import BatchLedger, Shard, ShardState
from psychocounsel.llm.batches.provider import BatchRoad, Provider, UnknownBatchError

_FAULTS = (EndpointError, IncompleteError, UnknownBatchError)


class Tidying:
    """Deletes what the shards of a ledger left; after the first fault it leaves the rest to the next run."""

    def __init__(self, ledger: BatchLedger, tell: Callable[[str], None]) -> None:
        self._ledger, self._tell = ledger, tell
        self._has_failed = False

    async def tidy(self, provider: Provider) -> None:
        """Delete the files of every shard that is over; faults are told, never raised."""
        if self._has_failed:
            return
        try:
            for shard in self._ledger.read_out():
                await self._close(shard, provider)
            for left in self._ledger.left_files():
                await provider.delete(left.id)
                self._ledger.forget_file(left)
        except _FAULTS as fault:
            self.gives_up(str(fault) or "files are not deleted there")

    def gives_up(self, reason: str) -> None:
        """Say what is left, and leave it."""
        self._has_failed = True
        left = len(self._ledger.left_files())
        self._tell(
            f"{left} files of batches that are over could not be deleted at the provider ({reason}); "
            "the next run tries again"
        )

    async def uploads_of(self, shard: Shard, provider: Provider) -> list[str]:
        """Return what was uploaded for a shard of which no batch was made."""
        try:
            return await provider.uploads(shard.file_name)
        except _FAULTS:
            return []

    async def _close(self, shard: Shard, provider: Provider) -> None:
        """Close a shard of which every reply is kept: whoever read it was killed before it could."""
        try:
            batch = await provider.state(shard.batch)
        except UnknownBatchError:
            self._ledger.close(shard.id, ShardState.ENDED)
            return
        if batch.is_over:
            self._ledger.close(shard.id, ShardState.ENDED, (batch.input_file, *batch.files))


async def tidy_alone(road: BatchRoad, ledger: BatchLedger) -> None:
    """Tidy up for a run that asks nothing."""
    tidying = Tidying(ledger, road.tell)
    try:
        provider = road.connect()
    except PsychoCounselError as fault:
        tidying.gives_up(str(fault))
        return
    try:
        await tidying.tidy(provider)
    finally:
        await provider.aclose()
