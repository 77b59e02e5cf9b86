"""What the results of a shard are on disk."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from spatialflow.data.categories import Categories
from spatialflow.data.run_lengths import encode_masks
from spatialflow.data.segments import segments_as_json
from spatialflow.errors import UserError
from spatialflow.saved.predictions import write_prediction, write_predictions_json

from ..image_files import output_names
from .manifest import Picture

JSONL, PARQUET = "predictions.jsonl", "predictions.parquet"


class Writer(Protocol):
    """Writes the results of a shard's pictures into a folder."""

    def __init__(
        self, folder: str, categories: Categories, pictures: Sequence[Picture]
    ) -> None: ...

    def add(self, picture: Picture, ids: np.ndarray, segments: list[dict[str, Any]]) -> None:
        """Add a picture.

        Args:
            picture: one of the shard's.
            ids: (H, W) ids of segments.
            segments: in Detectron2's terms.
        """

    def close(self) -> None:
        """Write what is for all pictures together."""


class CocoWriter:
    """COCO's results: a PNG a picture, and one JSON."""

    def __init__(self, folder: str, categories: Categories, pictures: Sequence[Picture]) -> None:
        self._folder, self._categories = folder, categories
        names = [picture.name for picture in pictures]
        self._pngs = dict(zip(names, output_names([Path(n) for n in names]), strict=True))
        self._annotations: list[dict[str, Any]] = []

    def add(self, picture: Picture, ids: np.ndarray, segments: list[dict[str, Any]]) -> None:
        """See :class:`Writer`."""
        described = segments_as_json(ids, segments, self._categories)
        png = f"{self._pngs[picture.name]}.png"
        self._annotations.append(
            write_prediction(self._folder, picture.image_id, png, ids, described)
        )

    def close(self) -> None:
        """See :class:`Writer`."""
        write_predictions_json(self._folder, self._categories.as_json(), self._annotations)


class _RowsWriter:
    """A row a picture, with the segments' run-length masks."""

    def __init__(self, folder: str, categories: Categories, pictures: Sequence[Picture]) -> None:
        self._folder, self._categories = folder, categories
        self._rows: list[dict[str, Any]] = []

    def add(self, picture: Picture, ids: np.ndarray, segments: list[dict[str, Any]]) -> None:
        """See :class:`Writer`."""
        masks = encode_masks(ids)
        described = segments_as_json(ids, segments, self._categories)
        height, width = ids.shape
        row: dict[str, Any] = {"image_id": picture.image_id, "file_name": picture.name}
        row |= {"height": height, "width": width}
        row["segments"] = [{**s, "segmentation": masks[s["id"]]} for s in described]
        self._rows.append(row)


class LinesWriter(_RowsWriter):
    """A line of JSON a picture."""

    def close(self) -> None:
        """See :class:`Writer`."""
        with open(os.path.join(self._folder, JSONL), "w") as f:
            f.writelines(json.dumps(row, separators=(",", ":")) + "\n" for row in self._rows)


class ParquetWriter(_RowsWriter):
    """A parquet file with the columns that the lines of JSON have; ids are text."""

    def close(self) -> None:
        """See :class:`Writer`."""
        pa, parquet = _pyarrow()
        mask = pa.struct([("size", pa.list_(pa.int32())), ("counts", pa.string())])
        segment = pa.struct(
            [
                ("id", pa.int32()),
                ("category_id", pa.int64()),
                ("category", pa.string()),
                ("isthing", pa.bool_()),
                ("score", pa.float64()),
                ("area", pa.int64()),
                ("bbox", pa.list_(pa.int32())),
                ("segmentation", mask),
            ]
        )
        columns = [("image_id", pa.string()), ("file_name", pa.string())]
        columns += [("height", pa.int32()), ("width", pa.int32()), ("segments", pa.list_(segment))]
        rows = [{**row, "image_id": str(row["image_id"])} for row in self._rows]
        path = os.path.join(self._folder, PARQUET)
        parquet.write_table(pa.Table.from_pylist(rows, pa.schema(columns)), path)


FORMATS: dict[str, type[Writer]] = {
    "coco": CocoWriter,
    "jsonl": LinesWriter,
    "parquet": ParquetWriter,
}
"""By the value of ``--format``."""


def check_format(name: str) -> None:
    """Raises a UserError where a format needs a package that is not installed."""
    if name == "parquet":
        _pyarrow()


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ModuleNotFoundError as e:
        raise UserError("--format parquet needs pyarrow: pip install 'spatialflow[scale]'") from e
    return pyarrow, parquet
