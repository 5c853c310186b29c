"""Speech -> a row of a sequence whose texts lie on the disk: a million of them need little memory."""

from array import array
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import overload

import numpy as np
from numpy.typing import NDArray

from psychocounsel.domain import Speech
from psychocounsel.store.tables.spool import TextSpool


class KeptSpeeches(Sequence[Speech]):
    """Speeches in the order in which they came; all but their texts is held in memory."""

    def __init__(self, scratch: Path) -> None:
        """Begin an empty sequence whose texts lie in the file `scratch` until it is closed."""
        self.texts = TextSpool(scratch)
        self._ids = array("Q")
        self._topics: list[tuple[str, str]] = []
        self._crisis = bytearray()
        self._sources: list[str] = []
        self._known_topics: dict[tuple[str, str], tuple[str, str]] = {}

    def append(self, speech: Speech) -> None:
        """Add a speech at the end."""
        self.texts.append(speech.text)
        self._ids.append(int(speech.id, 16))
        self._topics.append(self._known(speech.topic, speech.fine_topic))
        self._crisis.append(speech.crisis)
        self._sources.append(speech.source)

    def _known(self, *topic: str) -> tuple[str, str]:
        """Return the topic as it is held for all its speeches: once."""
        pair = (topic[0], topic[1])
        return self._known_topics.setdefault(pair, pair)

    def name_topic(self, at: int, coarse: str, fine: str) -> None:
        """Give a speech its topic, in place of the one that it came with."""
        self._topics[at] = self._known(coarse, fine)

    def chosen(self, places: Iterable[int], scratch: Path) -> "KeptSpeeches":
        """Return the speeches at some places as a sequence of their own."""
        chosen = KeptSpeeches(scratch)
        for at in places:
            chosen.append(self[at])
        return chosen

    @property
    def ids(self) -> NDArray[np.uint64]:
        """[speeches]; the ids as numbers."""
        return np.array(self._ids, dtype=np.uint64)

    @property
    def topics(self) -> list[str]:
        """[speeches]; the coarse topics."""
        return [coarse for coarse, _ in self._topics]

    @property
    def fine_topics(self) -> list[str]:
        """[speeches]; empty where the topics have no finer ones."""
        return [fine for _, fine in self._topics]

    @property
    def sources(self) -> Sequence[str]:
        """[speeches]; names of their sources."""
        return self._sources

    @property
    def crisis_count(self) -> int:
        """How many speak of a crisis."""
        return sum(self._crisis)

    def __len__(self) -> int:
        return len(self._ids)

    @overload
    def __getitem__(self, at: int) -> Speech: ...
    @overload
    def __getitem__(self, at: slice) -> Sequence[Speech]: ...
    def __getitem__(self, at: int | slice) -> Speech | Sequence[Speech]:
        if isinstance(at, slice):
            return [self[each] for each in range(*at.indices(len(self)))]
        return self._speech(at, self.texts[at])

    def __iter__(self) -> Iterator[Speech]:
        return (self._speech(at, text) for at, text in enumerate(self.texts))

    def _speech(self, at: int, text: str) -> Speech:
        coarse, fine = self._topics[at]
        return Speech(text, coarse, bool(self._crisis[at]), self._sources[at], fine)

    def close(self) -> None:
        """Remove the scratch file."""
        self.texts.close()
