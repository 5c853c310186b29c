"""gc: what of a store nothing needs any more, how much room that takes, and how it is removed."""

import shutil
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from graphlib import TopologicalSorter
from pathlib import Path
from typing import NamedTuple

from psychocounsel.errors import ConfigError
from psychocounsel.store.artifacts import KINDS, MANIFEST, SHORT_ID, Artifact, drop_superseded, superseded_files
from psychocounsel.store.files import TEMPORARY_SUFFIX
from psychocounsel.store.store import LOCKS, Store, is_held

_OF_PEOPLE = ("annotation-tasks", "annotations")
"""Kinds that hold the labels of people, or the key to those that are still with them: no command makes them again."""


PRIVATE = "private"
"""Folder of the store beside its artifacts, for what is never published."""


def page_of_corpus(artifact: Artifact) -> str:
    """Return the name of the private page about a corpus, of which this is the last artifact."""
    return f"corpus-{artifact.name}-{artifact.id[:SHORT_ID]}.html"


class Garbage(NamedTuple):
    """Files and folders of a store that nothing needs.

    `bytes` is the disk space that they free when all of a list are removed in order: a file with several names (hard
    links) counts where its last name goes, and not at all while one stays.
    """

    what: str
    why: str
    paths: tuple[Path, ...]
    remove: Callable[[], None]
    bytes: int = 0


@dataclass(frozen=True)
class Kept:
    """What stays besides the artifact that each name means and all that it was made from.

    `ids` are of artifacts that the user names; `dropped` are the resolved folders of those that go although a name
    means them (another name of the same artifact is another folder, and stays). `reports` says whether older reports
    stay, too; all come with their ancestors. With `rounds` the weights of all rounds of online runs stay, otherwise
    those of the best and the last. `unfinished` builds are those that the same command would resume.
    """

    ids: Collection[str] = ()
    dropped: Collection[Path] = ()
    reports: bool = True
    rounds: bool = True
    unfinished: bool = True


def find_garbage(store: Store, kept: Kept) -> list[Garbage]:
    """Return what may go, children before their parents, so that every artifact that a kill leaves has its ancestors.

    A build that a process is at work on is not among it.

    Raises:
        ConfigError: something that stays needs what is to be dropped, or it is to be kept as well.
    """
    artifacts = store.artifacts()
    dropped = {each.folder for each in artifacts if each.folder.resolve() in kept.dropped}
    needed = _needed([each for each in artifacts if each.folder not in dropped], artifacts, kept)
    stays = [each for each in artifacts if each.id in needed and each.folder not in dropped]
    _require_droppable([each for each in artifacts if each.folder in dropped], stays, kept)
    # Not by time, for the clocks of two machines differ.
    parents = {each.id: [parent.id for parent in each.parents] for each in artifacts}
    generation = {each: number for number, each in enumerate(TopologicalSorter(parents).static_order())}
    found = [
        _whole(f"{each.kind} {each.ref}", "dropped" if each.folder in dropped else "superseded", each.folder)
        for each in sorted(artifacts, key=lambda each: generation[each.id], reverse=True)
        if each.id not in needed or each.folder in dropped
    ]
    found += _leftovers(store, kept)
    pages = {page_of_corpus(each) for each in stays}
    found += [
        Garbage(f"{PRIVATE} {page.name}", "texts of a corpus that does not stay", (page,), partial(_remove, (page,)))
        for page in sorted((store.root / PRIVATE).glob("*.html"))
        if page.name not in pages
    ]
    if not kept.rounds:
        found += _superseded_rounds({each.id: each for each in stays}, kept.ids)
    return list(_measured(found))


def _require_droppable(dropped: Sequence[Artifact], stays: Sequence[Artifact], kept: Kept) -> None:
    ids = {each.id for each in stays}
    for each in dropped:
        if each.id in ids:
            continue  # another name of it stays
        if below := [f"{other.kind}/{other.ref}" for other in stays if each.id in _used_by(other)]:
            raise ConfigError(
                f"of what stays, this needs it: {', '.join(below)}",
                where=f"{each.kind} {each.ref}",
                remedy=f"give that up, too: {' '.join(f'--drop {other}' for other in below)}",
            )
        if each.id in kept.ids:
            raise ConfigError(
                "is to be kept and to be dropped",
                where=f"{each.kind} {each.ref}",
                remedy="leave out its --keep or its --drop",
            )


def _needed(wanted: Sequence[Artifact], artifacts: Sequence[Artifact], kept: Kept) -> set[str]:
    """Return the ids of what a name resolves to, of reports and people's labels, and of what led to these."""
    named = {(each.kind, each.name): each.id for each in wanted}
    kinds = (*_OF_PEOPLE, *(("reports",) if kept.reports else ()))
    pending = {*named.values(), *kept.ids, *(each.id for each in wanted if each.kind in kinds)}
    by_id = {each.id: each for each in artifacts}
    needed: set[str] = set()
    while pending:
        needed.add(current := pending.pop())
        if current in by_id:
            pending |= _used_by(by_id[current]) - needed
    return needed


def _used_by(artifact: Artifact) -> set[str]:
    """Return the ids of what an artifact cannot be without."""
    best = artifact.manifest["notes"].get("best", {}).get("id")
    # Without what it retried, a retry is not found again.
    retried = artifact.manifest["settings"].get("retried_from")
    return {*(each.id for each in artifact.parents), *filter(None, (best, retried))}


def _leftovers(store: Store, kept: Kept) -> Iterator[Garbage]:
    for folder in (each for kind in KINDS for each in sorted((store.root / kind).glob("*/"))):
        what = f"{folder.parent.name} {folder.name}"
        if folder.name.startswith("."):
            yield _whole(what, "set aside as damaged, or half removed", folder)
        elif not (folder / MANIFEST).exists():
            short_id = folder.name.rpartition("-")[2]
            locks = (store.root / LOCKS).glob(f"{folder.parent.name}-{short_id}*.lock")
            if not kept.unfinished and not any(map(is_held, locks)):
                yield _whole(what, "unfinished", folder)
        elif paths := (*folder.glob("work"), *folder.rglob(f"*{TEMPORARY_SUFFIX}")):
            yield Garbage(what, "left by a killed build", paths, partial(_remove, paths))


def _superseded_rounds(needed: dict[str, Artifact], kept_ids: Collection[str]) -> Iterator[Garbage]:
    """Yield the rounds of finished online runs of which the weights, or the optimizer state alone, may go."""
    chosen, rounds = set(kept_ids), dict[str, Artifact]()
    for outcome in needed.values():
        at = next((parent.id for parent in outcome.parents if parent.role == "last round"), None)
        if at is not None:
            chosen |= {at, outcome.manifest["notes"]["best"]["id"]}
        while at in needed and at not in rounds:
            rounds[at] = needed[at]
            is_first = needed[at].manifest["settings"]["round"] == 1
            at = None if is_first else needed[at].parent("previous policy").id
    for each in rounds.values():
        files = {"weights": each.id not in chosen, "optimizer": each.id not in kept_ids}
        if paths := tuple(path for path in map(each.file, superseded_files(each, **files)) if path.exists()):
            which = "weights of a round" if files["weights"] else "optimizer state of a round"
            yield Garbage(f"{each.kind} {each.ref}", which, paths, partial(drop_superseded, each, **files))


def _whole(what: str, why: str, folder: Path) -> Garbage:
    return Garbage(what, why, (folder,), partial(_remove, (folder,)))


def _remove(paths: Sequence[Path]) -> None:
    for path in paths:
        if path.is_dir():
            # What a kill leaves of it must not pass for an artifact or for a build to be resumed.
            path = path if path.name.startswith(".") else path.rename(path.with_name(f".removed-{path.name}"))
            shutil.rmtree(path)
        else:
            path.unlink()


def _measured(found: Sequence[Garbage]) -> Iterator[Garbage]:
    removed: Counter[tuple[int, int]] = Counter()
    for each in found:
        freed = 0
        for path in (file for top in each.paths for file in ((top, *top.rglob("*")) if top.is_dir() else (top,))):
            state = path.lstat()
            if not path.is_dir():
                removed[state.st_dev, state.st_ino] += 1
                freed += state.st_size * (removed[state.st_dev, state.st_ino] == state.st_nlink)
        yield each._replace(bytes=freed)
