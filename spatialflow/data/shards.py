"""Images and PNGs in tar files, such as WebDataset's shards, read as if they lay in a folder.

A *sharded folder* is a pattern that ends in ``.tar``, as in ``streets/train-*.tar``; the member
``a/b.jpg`` of one of its files is the file ``a/b.jpg`` of the folder. :func:`file_in_shards` makes
a path of it that says where its bytes are, ``tar://OFFSET+SIZE/streets/train-0003.tar!/a/b.jpg``.
So whoever reads it needs no index, in whatever process, and in any order: a shuffled epoch is that
of a folder. Tar files are read by fsspec, on this machine or by any URL that it knows.
"""

from __future__ import annotations

import json
import os
import re
import socket
import tarfile
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from fsspec import AbstractFileSystem
from fsspec.core import url_to_fs

from spatialflow.utils.files import write_json
from spatialflow.utils.text import name_some

PREFIX = "tar://"
INDEX_SUFFIX = ".index.json"
"""Behind a tar file's name: its index, ``{member: [offset, size]}``, in bytes."""

_PATH = re.compile(rf"{PREFIX}(\d+)\+(\d+)/(.+\.tar)!/(.+)")


class _Place(NamedTuple):
    shard: str
    offset: int
    size: int


def is_sharded(folder: str) -> bool:
    """Whether a folder of a dataset is a pattern of tar files."""
    return folder.endswith(".tar")


def is_url(path: str) -> bool:
    """Whether a path is no path of this machine, but for fsspec: ``s3://bucket/train-*.tar``."""
    return "://" in path


def shards_of(folder: str) -> list[str]:
    """The tar files of a sharded folder, by name."""
    fs, pattern = url_to_fs(folder)
    found = sorted(fs.glob(pattern))
    return [fs.unstrip_protocol(path) for path in found] if is_url(folder) else found


def file_in_shards(folder: str, name: str) -> str:
    """Path of a file of a sharded folder, for :func:`read_file`.

    Raises:
        FileNotFoundError: no member has this name.
        ValueError: several shards have one, see :func:`names_in_shards`.
    """
    name = os.path.normpath(name)
    place = _places(folder).get(name)
    if place is None:
        raise FileNotFoundError(f"{name} is in no shard of {folder}.")
    return f"{PREFIX}{place.offset}+{place.size}/{place.shard}!/{name}"


def names_in_shards(folder: str) -> list[str]:
    """Names of all files of a sharded folder.

    Raises:
        ValueError: a file is no tar file, or two of them have a member of the same name.
    """
    return list(_places(folder))


def read_file(path: str) -> bytes:
    """Content of a file, in a shard where :func:`file_in_shards` made the path.

    Raises:
        FileNotFoundError: there is none.
        ValueError: at its place in the shard is something else.
    """
    return _read_member(path) if path.startswith(PREFIX) else Path(path).read_bytes()


@lru_cache(maxsize=2)  # a reader that looks at an image's header first reads it twice
def _read_member(path: str) -> bytes:
    found = _PATH.fullmatch(path)
    if found is None:
        raise FileNotFoundError(f"{path} is no path of a file in a shard.")
    offset, size, shard = int(found[1]), int(found[2]), found[3]
    fs, file = url_to_fs(shard)
    data = fs.cat_file(file, start=offset - tarfile.BLOCKSIZE, end=offset + size)
    try:
        header = tarfile.TarInfo.frombuf(data[: tarfile.BLOCKSIZE], "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        header = None
    if header is None or header.size != size or not _may_be(header.name, found[4]):
        raise ValueError(
            f"{shard} has changed since its index was made: {found[4]} is not at byte {offset}. "
            f"Remove {shard}{INDEX_SUFFIX}, if there is one, and start again."
        )
    return data[tarfile.BLOCKSIZE :]


def _may_be(header: str, name: str) -> bool:
    """Whether a member's header may be that of a name, of which it holds the short and plain."""
    return len(name) > 90 or not name.isascii() or os.path.normpath(header) == name


@lru_cache(maxsize=8)
def _places(folder: str) -> dict[str, _Place]:
    """Where each file of a sharded folder is, by its name."""
    places: dict[str, _Place] = {}
    twice: list[str] = []
    for shard in shards_of(folder):
        for name, (offset, size) in _index(shard).items():
            if name in places:
                twice.append(name)
            places[name] = _Place(shard, offset, size)
    if twice:
        raise ValueError(
            f"{folder}: {name_some(twice)} in more than one shard. Is there an older file among "
            "them? Names must be unique."
        )
    return places


def _index(shard: str) -> dict[str, list[int]]:
    """Offset and size of each member; read from beside the shard, or made and kept there."""
    fs, path = url_to_fs(shard)
    index, local = path + INDEX_SUFFIX, not is_url(shard)
    if fs.exists(index) and not (local and os.path.getmtime(index) < os.path.getmtime(path)):
        return json.loads(fs.cat_file(index))
    members = dict(_members(fs, path))
    if local and os.access(os.path.dirname(path), os.W_OK):
        # Other processes may make the same one at the same time.
        own = f"{index}.{socket.gethostname()}.{os.getpid()}"
        write_json(own, members)
        os.replace(own, index)
    return members


def _members(fs: AbstractFileSystem, path: str) -> Iterator[tuple[str, list[int]]]:
    try:
        with fs.open(path, "rb") as f, tarfile.open(fileobj=f, mode="r:") as tar:
            for member in tar:
                if member.isreg() and not member.issparse():
                    yield os.path.normpath(member.name), [member.offset_data, member.size]
    except tarfile.TarError as e:
        raise ValueError(f"{path} is no tar file, or a compressed or damaged one: {e}.") from e
