"""The plan of a run: written once; what comes later under another plan is refused."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice, zip_longest
from pathlib import Path
from typing import Any, NamedTuple

from spatialflow.errors import UserError
from spatialflow.utils.files import atomic_write, digest_of, read_json, write_json

from .inputs import ImageIds, Source, names_in

MANIFEST, INPUTS = "manifest.json", "inputs.jsonl"
UNREADABLE = ""
"""In place of the digest of a picture that could not be read."""


class Picture(NamedTuple):
    """A picture of the plan.

    Attributes:
        name: path relative to the root of the input.
        image_id: its id in the results.
        sha256: of its bytes, or :data:`UNREADABLE`.
        size, changed: bytes, and the time of the last change in nanoseconds; with these unchanged
            a file is not read again when the plan is compared.
    """

    name: str
    image_id: int | str
    sha256: str
    size: int
    changed: int

    @property
    def identity(self) -> tuple[str, int | str, str]:
        """What the results depend on."""
        return self.name, self.image_id, self.sha256


@dataclass(frozen=True)
class Manifest:
    """A plan that is on disk.

    Attributes:
        folder: the output.
        digest: of the plan, which every shard carries.
        pictures, shards: how many there are.
    """

    folder: Path
    digest: str
    pictures: int
    shards: int

    def __iter__(self) -> Iterator[list[Picture]]:
        """The pictures of each shard; they are read from the disk one shard after the other."""
        with (self.folder / INPUTS).open() as f:
            for line in f:
                yield [Picture(*entry) for entry in json.loads(line)]


def plan(
    folder: Path, source: Source, image_ids: ImageIds, settings: dict[str, Any], threads: int
) -> Manifest:
    """Make the plan of a folder, or compare with the one that is there.

    Args:
        folder: the output, which is there.
        source: where the pictures are.
        image_ids: their ids.
        settings: what else the results depend on, ``shard_size`` among it, as JSON has it.
        threads: that read pictures for their digests.

    Raises:
        UserError: the folder has results of another plan; or there is no picture.
        FileNotFoundError, ValueError: an input or a file of the plan is missing or damaged.
    """
    if (folder / MANIFEST).exists():
        _compare(folder, source, image_ids, settings, threads)
    else:
        _write(folder, source, image_ids, settings, threads)
    content = read_json(folder / MANIFEST, "Manifest")
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    return Manifest(folder, digest, content["pictures"], content["shards"])


def _write(
    folder: Path, source: Source, image_ids: ImageIds, settings: dict[str, Any], threads: int
) -> None:
    digest, pictures, shards = hashlib.sha256(), 0, 0
    with atomic_write(str(folder / INPUTS), "w") as f:
        for shard in _shards(source, image_ids, settings["shard_size"], threads):
            f.write(json.dumps(shard) + "\n")
            digest.update(json.dumps([p.identity for p in shard]).encode())
            pictures, shards = pictures + len(shard), shards + 1
        if not pictures:
            raise UserError(f"--input {source.path} has no picture.")
    found = {"pictures": pictures, "shards": shards, "inputs": digest.hexdigest()}
    write_json(str(folder / MANIFEST), {**settings, **found}, indent=1)


def _compare(
    folder: Path, source: Source, image_ids: ImageIds, settings: dict[str, Any], threads: int
) -> None:
    before = read_json(folder / MANIFEST, "Manifest")
    for key, value in settings.items():
        if before.get(key) != value:
            raise UserError(
                f"{folder} holds results of another {key}: {before.get(key)!r}, now {value!r}. "
                "Give another --output, or what it was begun with."
            )
    known = Manifest(folder, "", before["pictures"], before["shards"])
    now = _shards(source, image_ids, settings["shard_size"], threads, known)
    for old, new in zip_longest(known, now):
        for a, b in zip_longest(old or (), new or ()):
            if a is None or b is None or a.identity != b.identity:
                raise UserError(
                    f"{folder} holds results of other inputs: {_difference(a, b)}. Give another "
                    "--output, or the pictures that it was begun with."
                )


def _difference(old: Picture | None, new: Picture | None) -> str:
    if old is None:
        return f"{new.name if new else ''} is new"
    if new is None or old.name != new.name:
        return f"{old.name} was there in the place of {new.name if new else 'nothing'}"
    what = "has another id" if old.sha256 == new.sha256 else "has changed"
    return f"{old.name} {what}"


def _shards(
    source: Source,
    image_ids: ImageIds,
    size: int,
    threads: int,
    known: Iterable[list[Picture]] = (),
) -> Iterator[list[Picture]]:
    """The pictures of each shard.

    Args:
        known: an earlier plan, whose digests hold for files of the same size and time.
    """
    names, earlier = names_in(source), iter(known)
    with ThreadPoolExecutor(threads) as pool:
        while batch := list(islice(names, size)):
            before = {picture.name: picture for picture in next(earlier, ())}
            ids = [image_ids.of(name) for name in batch]
            old = [before.get(name) for name in batch]
            yield list(pool.map(_picture, [source.root] * len(batch), batch, ids, old))


def _picture(root: Path, name: str, image_id: int | str, before: Picture | None) -> Picture:
    path = os.path.join(root, name)
    try:
        status = os.stat(path)
        size, changed = status.st_size, status.st_mtime_ns
        if before is not None and (before.size, before.changed) == (size, changed):
            return before._replace(image_id=image_id)
        return Picture(name, image_id, digest_of(path), size, changed)
    except OSError:  # an error row of its shard
        return Picture(name, image_id, UNREADABLE, 0, 0)
