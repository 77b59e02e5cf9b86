"""The pictures of a run: a folder, a list of paths, or a parquet file with a column of them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from spatialflow.data.coco_panoptic import read_images_json
from spatialflow.errors import UserError

from ..image_files import IMAGE_ENDINGS

COLUMNS = ("path", "file_name")
"""Columns of a parquet file that may have the paths."""


class Source(NamedTuple):
    """Where names of pictures are from, and the folder that they are relative to."""

    path: Path
    root: Path


def open_source(path: Path, output: Path) -> Source:
    """What ``--input`` names.

    Raises:
        FileNotFoundError: there is no such file or folder.
        UserError: results would be among the pictures of the folder.
    """
    if path.is_dir():
        if output.resolve().is_relative_to(path.resolve()):
            raise UserError(
                f"--output {output} is in the folder --input {path}: results of a run would be "
                "pictures of the next one. Give another --output."
            )
        return Source(path, path.resolve())
    if not path.is_file():
        raise FileNotFoundError(f"--input {path}: no such file or folder.")
    return Source(path, path.resolve().parent)


def names_in(source: Source) -> Iterator[str]:
    """Names of the pictures, in an order that is the same each time, without keeping them.

    Raises:
        UserError: a parquet file has no column of paths, or pyarrow is missing.
    """
    if source.path.is_dir():
        return _in_folder(source.root)
    return _in_parquet(source.path) if source.path.suffix == ".parquet" else _in_list(source.path)


class ImageIds:
    """The ids of pictures: those of a dataset's JSON by file name, else the names themselves.

    Args:
        path: a panoptic JSON or another with ``images``; None: there is none.
        source: of the pictures; the names in a folder are not compared with each other.

    Raises:
        FileNotFoundError, ValueError: it is not found, or is no such JSON.
    """

    def __init__(self, path: str | None, source: Source) -> None:
        self._path = path
        images = [] if path is None else read_images_json(path)["images"]
        self._ids = {image["file_name"]: image["id"] for image in images}
        self._compare = path is not None or not source.path.is_dir()
        self._seen: set[int] = set()

    def of(self, name: str) -> int | str:
        """The id of a picture.

        Raises:
            UserError: the JSON does not have it, or two pictures have one id.
        """
        found: int | str | None = name
        if self._path is not None:
            found = self._ids.get(name, self._ids.get(os.path.basename(name)))
        if found is None:
            raise UserError(f"{self._path} has no image {name}: take it out of --input.")
        if self._compare:
            if hash(found) in self._seen:
                raise UserError(f"--input has {name} twice, or two pictures of id {found!r}.")
            self._seen.add(hash(found))
        return found


def _in_folder(root: Path) -> Iterator[str]:
    for folder, folders, files in os.walk(root):
        folders.sort()
        for file in sorted(files):
            if os.path.splitext(file)[1].lower() in IMAGE_ENDINGS:
                yield os.path.relpath(os.path.join(folder, file), root)


def _in_list(path: Path) -> Iterator[str]:
    with path.open(encoding="utf-8") as f:
        yield from filter(None, map(str.strip, f))


def _in_parquet(path: Path) -> Iterator[str]:
    try:
        from pyarrow import parquet
    except ModuleNotFoundError as e:
        raise UserError(f"{path} needs pyarrow: pip install 'spatialflow[scale]'") from e
    with parquet.ParquetFile(path) as file:
        column = next((c for c in COLUMNS if c in file.schema_arrow.names), None)
        if column is None:
            known = ", ".join(file.schema_arrow.names)
            raise UserError(f"{path} has no column {' or '.join(COLUMNS)}; it has {known}.")
        for batch in file.iter_batches(columns=[column]):
            yield from batch.column(0).to_pylist()
