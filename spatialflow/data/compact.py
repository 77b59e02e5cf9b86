"""A long list of entries of a JSON, kept small."""

from __future__ import annotations

import marshal
import zlib
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

_CHUNK = 64


class CompactList(Sequence):
    """A list of what JSON can hold, in a small part of the memory that its objects take.

    The entries are kept compressed, in chunks, and each reading makes them anew, so that a change
    of one that was read changes nothing here. One after the other is the fast way to read them.
    """

    def __init__(self, entries: Iterable[Any]):
        """
        Args:
            entries: the dicts that ``json.loads`` makes.
        """
        remaining = iter(entries)
        self._chunks: list[bytes] = []
        self._length = 0
        while chunk := list(islice(remaining, _CHUNK)):
            self._length += len(chunk)
            # Much faster than JSON; the format may change with Python, but not within a process.
            self._chunks.append(zlib.compress(marshal.dumps(chunk), level=1))

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[Any]:
        for number in range(len(self._chunks)):
            yield from self._read(number)

    def __getitem__(self, index: Any) -> Any:
        """The entry of an index from 0 on; there are no slices."""
        if not 0 <= index < self._length:
            raise IndexError(f"index {index} of a list of {self._length}")
        return self._read(index // _CHUNK)[index % _CHUNK]

    def _read(self, number: int) -> list[Any]:
        return marshal.loads(zlib.decompress(self._chunks[number]))
