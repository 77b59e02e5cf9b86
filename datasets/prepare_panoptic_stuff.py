"""Write the semantic PNGs that Detectron2's ``*_panoptic_separated`` datasets read.

    python datasets/prepare_panoptic_stuff.py coco_2017_val_panoptic_separated

makes ``coco/panoptic_stuff_val2017`` from the panoptic annotation: 0 things, 1 to 53 stuff, 255
void. All other datasets are read from the panoptic annotation directly and need no such folder.
"""

from __future__ import annotations

import argparse
import os
from typing import Any

import cv2
from detectron2.data import MetadataCatalog
from tqdm import tqdm

from spatialflow.data import dataset_categories, load_coco_panoptic
from spatialflow.data.targets import index_map, read_panoptic_png, stuff_labels
from spatialflow.errors import exit_on_user_error
from spatialflow.utils.parallel import in_parallel

NAMES = ("coco_2017_train_panoptic_separated", "coco_2017_val_panoptic_separated")


def prepare(name: str, workers: int) -> None:
    """Write the PNGs of one dataset.

    Args:
        name: a dataset that is registered with a ``sem_seg_root``.
        workers: number of processes.

    Raises:
        FileNotFoundError, ValueError: see ``load_coco_panoptic`` and ``read_panoptic_png``.
    """
    categories = dataset_categories(name)
    metadata = MetadataCatalog.get(name)
    if not metadata.get("sem_seg_root"):
        raise ValueError(f"Dataset {name} needs no semantic PNGs; it can be used as it is.")
    dicts = load_coco_panoptic(
        metadata.image_root, metadata.panoptic_root, metadata.panoptic_json, categories
    )
    os.makedirs(metadata.sem_seg_root, exist_ok=True)
    jobs = [(d["pan_seg_file_name"], d["segments_info"], metadata.sem_seg_root) for d in dicts]
    done = in_parallel(_write_labels, jobs, workers)
    for _ in tqdm(done, desc=name, total=len(jobs), unit="image"):
        pass


def _write_labels(job: tuple[str, list[dict[str, Any]], str]) -> None:
    png, segments, folder = job
    labels = stuff_labels(index_map(read_panoptic_png(png), segments, png), segments)
    path = os.path.join(folder, os.path.basename(png))
    if not cv2.imwrite(path, labels):
        raise OSError(f"Cannot write {path}.")


def main() -> None:
    """Command line: names of datasets."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", default=NAMES, help="default: COCO 2017 train and val")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes")
    args = parser.parse_args()
    with exit_on_user_error():
        for name in args.names:
            prepare(name, args.workers)


if __name__ == "__main__":
    main()
