"""``spatialflow convert``: make a dataset ready for training and evaluation."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from spatialflow.data.register import datasets_root
from spatialflow.utils.command_parser import CommandParser

from . import ade20k, camvid, cityscapes, mapillary
from .compose import UNCOVERED
from .pairs import Pairs, convert_pairs
from .writer import Dataset


def run(args: argparse.Namespace) -> None:
    """Run one of the converters."""
    args.convert(args)


EXAMPLES = """
%(prog)s cityscapes
%(prog)s mapillary --version v2.0 --max-size 2048
%(prog)s ade20k
%(prog)s camvid --root CamVid
%(prog)s pairs --images train --categories categories.json --semantic labels \\
  --instances instances.json --output panoptic_train
"""


def parser() -> CommandParser:
    """A converter and its arguments."""
    parser = CommandParser(
        prog="spatialflow convert",
        examples=EXAMPLES,
        description="Make a dataset ready for training and evaluation. A run that was killed goes "
        "on where it ended when the command is given again. datasets/README.md shows the folder "
        "layouts.",
    )
    converters = parser.add_subparsers(required=True, metavar="CONVERTER")
    _add_cityscapes(converters)
    _add_mapillary(converters)
    _add_ade20k(converters)
    _add_camvid(converters)
    _add_pairs(converters)
    for converter in converters.choices.values():
        converter.add_argument("--workers", type=int, default=os.cpu_count(), help="processes")
    return parser


def _add_cityscapes(converters: argparse._SubParsersAction) -> None:
    parser = converters.add_parser(
        "cityscapes", help="from leftImg8bit and gtFine", examples="%(prog)s"
    )
    _add_root(parser, "cityscapes")
    _add_splits(parser, cityscapes.SPLITS)
    parser.set_defaults(convert=_convert_cityscapes)


def _convert_cityscapes(args: argparse.Namespace) -> None:
    for dataset in cityscapes.convert_cityscapes(args.root, args.splits, args.workers):
        print(f"{dataset.name} is ready.")
    if os.path.realpath(args.root) != os.path.realpath(_default_root("cityscapes")):
        print(
            "Detectron2 looks for these names in $DETECTRON2_DATASETS/cityscapes, which is "
            f"{_default_root('cityscapes')} now; set the variable to the folder above {args.root}."
        )


def _add_mapillary(converters: argparse._SubParsersAction) -> None:
    parser = converters.add_parser(
        "mapillary",
        help="Mapillary Vistas, panoptic, v1.2 or v2.0",
        examples="%(prog)s --version v2.0 --max-size 2048",
    )
    _add_root(parser, "mapillary_vistas")
    parser.add_argument("--version", choices=mapillary.JSON_NAMES, required=True)
    _add_splits(parser, mapillary.SPLITS)
    parser.add_argument(
        "--max-size",
        type=_positive,
        metavar="N",
        help="also write smaller images, with at most N pixels on the longer side; the originals "
        "have up to 22 megapixels, most of which training decodes for nothing",
    )
    parser.set_defaults(
        convert=lambda args: _print_register(
            mapillary.convert_mapillary(
                args.root, args.version, args.splits, args.max_size, args.workers
            )
        )
    )


def _add_ade20k(converters: argparse._SubParsersAction) -> None:
    parser = converters.add_parser(
        "ade20k", help="ADEChallengeData2016 with annotations_instance", examples="%(prog)s"
    )
    _add_root(parser, "ADEChallengeData2016")
    _add_splits(parser, ade20k.SPLITS)
    parser.set_defaults(
        convert=lambda args: _print_register(
            ade20k.convert_ade20k(args.root, args.splits, args.workers)
        )
    )


def _add_camvid(converters: argparse._SubParsersAction) -> None:
    parser = converters.add_parser(
        "camvid",
        help="CamVid's labels of 32 colours, or the SegNet tutorial's of 12 values",
        examples="%(prog)s --root CamVid",
        description="Instances of cars, pedestrians and bicyclists are the connected regions of "
        f"their class; those below {camvid.MIN_AREA} pixels become void.",
    )
    _add_root(parser, "camvid")
    parser.add_argument(
        "--output",
        default=_default_root("camvid_panoptic"),
        metavar="DIR",
        help="folder to write to; configs/camvid look for %(default)s",
    )
    _add_splits(parser, camvid.SPLITS)
    parser.add_argument(
        "--max-size",
        type=_positive,
        default=camvid.MAX_SIZE,
        metavar="N",
        help="most pixels of the longer side; larger images and labels are made smaller "
        "(%(default)s, what configs/camvid are for)",
    )
    parser.set_defaults(
        convert=lambda args: _print_register(
            camvid.convert_camvid(args.root, args.output, args.splits, args.max_size, args.workers)
        )
    )


_PAIRS_EXAMPLES = """
%(prog)s --images train --categories categories.json --semantic labels \\
  --instances instances.json --output panoptic_train
# polygons alone, with the categories of the same JSON
%(prog)s --images FOLDER --categories coco.json --instances coco.json --things car person \\
  --output panoptic
"""


def _add_pairs(converters: argparse._SubParsersAction) -> None:
    parser = converters.add_parser(
        "pairs",
        help="semantic PNGs and instances, or an instances JSON alone",
        examples=_PAIRS_EXAMPLES,
        description="Values of semantic PNGs and category_ids of the instances are ids of the "
        "categories. Things come from the instances and lie above all stuff. Where instances "
        "overlap, the smaller one is on top; crowd regions are below the others.",
    )
    parser.add_argument("--images", required=True, metavar="DIR", help="NAME.jpg or another ending")
    parser.add_argument(
        "--categories",
        required=True,
        metavar="JSON",
        help="list of {id, name, isthing} and, if wanted, color, or a JSON with such 'categories'",
    )
    parser.add_argument(
        "--things",
        nargs="+",
        metavar="NAME",
        help="names of the things, where the categories have no isthing; all others are stuff",
    )
    parser.add_argument("--semantic", metavar="DIR", help="PNGs of category ids, NAME.png")
    instances = parser.add_mutually_exclusive_group(required=True)
    instances.add_argument(
        "--instances",
        metavar="JSON",
        help="COCO instances JSON, polygons or RLE; its stuff is painted over the semantic PNGs",
    )
    instances.add_argument(
        "--instance-pngs",
        metavar="DIR",
        help="PNGs of instance numbers, 0 for none, NAME.png; most pixels decide on the class",
    )
    parser.add_argument(
        "--no-crowds",
        dest="crowds",
        action="store_false",
        help="take iscrowd 1 in the JSON for 0; CVAT and Datumaro set it on every mask",
    )
    parser.add_argument(
        "--void", type=int, nargs="*", default=[255], metavar="V", help="values that are no class"
    )
    parser.add_argument(
        "--uncovered",
        choices=UNCOVERED,
        default=UNCOVERED[0],
        help="what pixels become that the semantic PNG labels as a thing without an instance: one "
        "crowd region a class (default), or void",
    )
    parser.add_argument(
        "--output", required=True, metavar="DIR", help="folder of PNGs; the JSON is DIR.json"
    )
    parser.set_defaults(convert=_convert_pairs)


def _convert_pairs(args: argparse.Namespace) -> None:
    values: dict[str, Any] = {f.name: getattr(args, f.name) for f in fields(Pairs)}
    values["void"] = tuple(args.void)
    values["things"] = tuple(args.things) if args.things else None
    pairs = Pairs(**values)
    _print_register([convert_pairs(pairs, args.output, args.workers)])


def _add_root(parser: argparse.ArgumentParser, folder: str) -> None:
    parser.add_argument(
        "--root", default=_default_root(folder), metavar="DIR", help="the dataset (%(default)s)"
    )


def _add_splits(parser: argparse.ArgumentParser, splits: Sequence[str]) -> None:
    parser.add_argument("--splits", nargs="+", default=splits, help=f"default: {' '.join(splits)}")


def _default_root(folder: str) -> str:
    return os.path.join(datasets_root(), folder)


def _print_register(datasets: Sequence[Dataset]) -> None:
    """Print what to paste into a config."""
    print("Done. To use it, in a config:\n\nDATASETS:\n  REGISTER:")
    for d in datasets:
        paths = (_below_root(p) for p in (d.image_root, d.panoptic_root, d.panoptic_json))
        print("    - [" + ", ".join(f'"{part}"' for part in (d.name, *paths)) + "]")


def _below_root(path: str) -> str:
    """Path as DATASETS.REGISTER has it: relative to the datasets folder, or absolute."""
    relative = os.path.relpath(path, datasets_root())
    return os.path.abspath(path) if relative.startswith(os.pardir) else relative


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return value
