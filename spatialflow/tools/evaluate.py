"""``spatialflow eval``: ``spatialflow train --eval-only``."""

from spatialflow.engine.main import run
from spatialflow.engine.setup import argument_parser

__all__ = ["parser", "run"]

EXAMPLES = """
%(prog)s --config-file configs/toy/spatialflow_toy.yaml MODEL.WEIGHTS output/toy/model_final.pth
# the last checkpoint of a run, by 8 GPUs
%(prog)s --config-file configs/COCO/spatialflow_R_50_20e.yaml --num-gpus 8 --resume
# predictions and what they were merged from are kept, for the other commands
%(prog)s --config-file C MODEL.WEIGHTS W TEST.SAVE_PREDICTIONS True TEST.SAVE_RAW_OUTPUTS True
"""


def parser():
    """Detectron2's arguments, with ``--eval-only`` set."""
    parser = argument_parser("spatialflow eval", EXAMPLES)
    parser.set_defaults(eval_only=True)
    return parser
