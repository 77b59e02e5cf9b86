"""One image and its panoptic PNG, compared with each other and with what the JSON says."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import numpy as np

from spatialflow.data.file_names import file_below
from spatialflow.data.mapper import ImageKindError, read_image
from spatialflow.data.targets import PngKindError, measure_segments, read_panoptic_png

from .entries import Pair, Segment
from .problems import Problem


@dataclass
class Outcome:
    """What was found in one pair of files; areas in pixels.

    ``segments`` and ``pixels`` count by category id; ``sides`` are width and height of the boxes of
    all segments that are no crowd, by category id; ``void`` and ``total`` are pixels of the PNG.
    """

    problems: list[Problem] = field(default_factory=list)
    segments: Counter[int | None] = field(default_factory=Counter)
    pixels: Counter[int | None] = field(default_factory=Counter)
    sides: dict[int | None, list[tuple[int, int]]] = field(default_factory=dict)
    void: int = 0
    total: int = 0


def check_pair(pair: Pair, image_root: str, panoptic_root: str) -> Outcome:
    """Decode both files of a pair and compare them; never raises, whatever the files are."""
    outcome = Outcome()
    try:
        _check_pair(pair, image_root, panoptic_root, outcome)
    except Exception as e:  # one file must not end the check of all the others
        name = pair.png or pair.image or "an entry without files"
        outcome.problems.append(Problem("check_failed", name, f"{type(e).__name__}: {e}"[:500]))
    return outcome


def _check_pair(pair: Pair, image_root: str, panoptic_root: str, outcome: Outcome) -> None:
    image_size = pair.size
    if pair.image:
        image = _decode("image", image_root, pair.image, outcome.problems)
        if image is not None:
            image_size = (image.shape[1], image.shape[0])
            if pair.size and image_size != pair.size:
                message = f"{_size(image_size)}, {_size(pair.size)} in the JSON"
                outcome.problems.append(Problem("image_size_differs", pair.image, message))
    if pair.png:
        ids = _decode("png", panoptic_root, pair.png, outcome.problems)
        if ids is not None:
            png_size = (ids.shape[1], ids.shape[0])
            if image_size and png_size != image_size:
                message = f"{_size(png_size)}, its image {_size(image_size)}"
                outcome.problems.append(Problem("png_size_differs", pair.png, message))
            _check_ids(ids, pair, outcome)


def _decode(kind: str, root: str, name: str, problems: list[Problem]) -> np.ndarray | None:
    """(H, W, 3) image or (H, W) segment ids, as training reads them; None for a problem."""
    try:
        path = file_below(root, name)
        return read_image(path, "BGR") if kind == "image" else read_panoptic_png(path)
    except FileNotFoundError:
        problems.append(Problem(f"{kind}_missing", name, f"not in {root}"))
    except (ImageKindError, PngKindError):
        problems.append(Problem(f"{kind}_kind", name))
    except Exception as e:  # decoders raise errors of many kinds on damaged files
        problems.append(Problem(f"{kind}_unreadable", name, str(e)[:300]))
    return None


def _check_ids(ids: np.ndarray, pair: Pair, outcome: Outcome) -> None:
    found, areas, boxes = (a.tolist() for a in measure_segments(ids))
    measured = {i: (area, box) for i, area, box in zip(found, areas, boxes, strict=True)}
    outcome.total = ids.size
    outcome.void = measured.pop(0, (0, None))[0]
    png = str(pair.png)
    if not measured:
        outcome.problems.append(Problem("wholly_void", png))
    for id_ in sorted(measured.keys() - pair.segments.keys()):
        message = f"{measured[id_][0]} pixels"
        outcome.problems.append(Problem("id_only_in_png", png, message, id_))
    for id_, segment in pair.segments.items():
        area, box = measured.get(id_, (0, None))
        if area:
            outcome.segments[segment.category_id] += 1
            outcome.pixels[segment.category_id] += area
        if box and not segment.iscrowd:
            outcome.sides.setdefault(segment.category_id, []).append((box[2], box[3]))
        outcome.problems += [
            Problem(kind, png, message, id_) for kind, message in _faults(segment, area, box)
        ]


def _faults(segment: Segment, area: int, box: list[int] | None) -> list[tuple[str, str]]:
    """Kinds and messages of what the JSON says wrongly about a segment's pixels."""
    if not area:
        kind = "id_only_in_json" if segment.area else "zero_area"
        return [(kind, f"area is {segment.area}" if segment.area else "")]
    faults = []
    if segment.area not in (None, area):
        faults.append(("wrong_area", f"{segment.area}, counted {area}"))
    if segment.bbox not in (None, box):
        faults.append(("wrong_box", f"{segment.bbox}, measured {box}"))
    return faults


def _size(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"
