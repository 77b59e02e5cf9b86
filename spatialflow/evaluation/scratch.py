"""A dataset name for the constructors of Detectron2's evaluators, which want one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog


@contextmanager
def scratch_dataset(name: str, **metadata: Any) -> Iterator[str]:
    """Register a dataset without images for as long as the context lasts.

    Detectron2's evaluators take everything they need to know from the catalogs when they are
    constructed, in the form of a dataset of their own kind; ours come with panoptic ground truth
    image by image.

    Args:
        name: name of the evaluated dataset, for messages.
        metadata: metadata that the evaluator looks up in Detectron2's catalog.

    Yields:
        The name that is registered.
    """
    scratch = f"{name} (ground truth from panoptic PNGs)"
    DatasetCatalog.register(scratch, list)
    MetadataCatalog.get(scratch).set(**metadata)
    try:
        yield scratch
    finally:
        DatasetCatalog.remove(scratch)
        MetadataCatalog.remove(scratch)
