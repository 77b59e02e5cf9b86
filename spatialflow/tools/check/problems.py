"""What the checker can find: the kinds of problems and how much each matters."""

from __future__ import annotations

import reprlib
from dataclasses import dataclass
from enum import Enum


class Severity(Enum):
    """Whether a dataset with the problem can be trained on."""

    ERROR = "error"  # training or evaluation would fail, or be wrong
    WARNING = "warning"


_ERRORS = {
    "json_unreadable": "the JSON is missing, is no JSON, or no panoptic one",
    "bad_category": "a category that is malformed",
    "duplicate_category_id": "a category id given twice",
    "category_kind_differs": "thing in the JSON, stuff in the registration, or the reverse",
    "no_thing_class": "there is no thing class; detection needs one",
    "no_annotations": "the JSON has no annotations",
    "bad_entry": "an entry of the JSON with a missing or malformed field",
    "file_outside_folder": "a file name that is absolute or leads out of its folder",
    "duplicate_image_id": "an image id given twice",
    "duplicate_annotation": "an image annotated more than once",
    "image_without_annotation": "an image of the JSON that has no annotation",
    "annotation_without_image": "an annotation whose image_id is not in 'images'",
    "image_missing": "an image file that does not exist",
    "image_unreadable": "an image file that cannot be decoded",
    "image_kind": "an image of more than 8 bits a channel, which would become white or black",
    "image_size_differs": "image and JSON have different sizes",
    "png_missing": "a panoptic PNG that does not exist",
    "png_unreadable": "a panoptic PNG that cannot be decoded",
    "png_kind": "a panoptic PNG that is not 8-bit RGB, so that it has no ids",
    "png_size_differs": "panoptic PNG and image have different sizes",
    "bad_segment_id": "a segment id that is no integer from 1 to 2^24 - 1",
    "duplicate_segment_id": "a segment id given twice in an image",
    "unknown_category": "a segment whose category is not in 'categories'",
    "segment_kind_differs": "a thing's segment marked as stuff, or the reverse",
    "id_only_in_png": "an id in the PNG that no segment has",
    "id_only_in_json": "a segment that has an area, but no pixel in the PNG",
    "zero_area": "a segment of zero area",
    "not_loadable": "the registered name needs other annotations, which cannot be loaded",
    "check_failed": "the checker itself failed on a file",
}
_WARNINGS = {
    "wrong_area": "the JSON's area is not the number of pixels (panopticapi's PQ goes by it)",
    "wrong_box": "the JSON's bbox is not tight: x, y, width, height in pixels",
    "stuff_in_pieces": "a stuff class with several segments in an image; are they things?",
    "crowd_stuff": "iscrowd on stuff, which evaluation then ignores",
    "wholly_void": "an image without any annotated pixel",
    "duplicate_file_name": "a file that belongs to two entries",
    "unlisted_files": "files that the JSON does not name",
    "class_never_occurs": "a class without segments",
}
DESCRIPTIONS = {**_ERRORS, **_WARNINGS}
"""What each kind of problem is, the kinds that matter most first."""


_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = 80


@dataclass(frozen=True)
class Problem:
    """One problem: its kind (a key of ``DESCRIPTIONS``), where it is, and the particulars.

    ``file`` is a file name as the JSON has it, or a place in the JSON such as ``images[3]``;
    ``segment`` is a segment's id.
    """

    kind: str
    file: str
    message: str = ""
    segment: int | None = None

    @property
    def severity(self) -> Severity:
        """How much the kind matters."""
        return Severity.ERROR if self.kind in _ERRORS else Severity.WARNING

    def __str__(self) -> str:
        where = self.file if self.segment is None else f"{self.file}, segment {self.segment}"
        return f"{where}: {self.message}" if self.message else where


def shown(value: object) -> str:
    """A value of unknown kind, size and depth, for a message."""
    return _REPR.repr(value)
