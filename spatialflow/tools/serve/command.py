"""``spatialflow serve``: a page to drop a picture on, and an API."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import numpy as np

from spatialflow.errors import UsageError, UserError
from spatialflow.utils.command_parser import CommandParser, add_import_argument

from ..predictors import EXPORTED, ConfigPredictor, ExportedPredictor, PanopticPredictor

TOKEN = "SPATIALFLOW_TOKEN"
"""Environment variable with the token."""

EXAMPLES = """
# the street model that comes with the project, at http://127.0.0.1:8000
%(prog)s
%(prog)s --config-file configs/toy/spatialflow_toy.yaml --weights output/toy/model_final.pth
# an exported file, without PyTorch
%(prog)s --model model.onnx --port 9000
# a picture from the command line: curl --data-binary @street.jpg http://127.0.0.1:8000/predict
"""


def parser() -> CommandParser:
    """What to serve, and where."""
    parser = CommandParser(
        prog="spatialflow serve",
        examples=EXAMPLES,
        description="Serve a page to drop a picture on, and POST /predict behind it.",
    )
    add_import_argument(parser)
    parser.add_argument(
        "--config-file", help="config of the weights (default: a model that comes with the project)"
    )
    parser.add_argument("--weights", help="weights of the config")
    parser.add_argument("--model", metavar="FILE", help="an exported file in place of a config")
    parser.add_argument("--host", default="127.0.0.1", help="address (%(default)s: this machine)")
    parser.add_argument("--port", type=int, default=8000, help="%(default)s; 0: any free one")
    parser.add_argument("--queue", type=int, default=8, help="requests that may wait (%(default)s)")
    parser.add_argument(
        "--deadline", type=float, default=60, help="seconds to an answer (%(default)s)"
    )
    parser.add_argument(
        "--token-file",
        type=Path,
        help=f"file with a token that every request must have (or ${TOKEN})",
    )
    parser.add_argument("--opts", nargs=argparse.REMAINDER, default=[], help="KEY VALUE pairs")
    return parser


def load_predictor(args: argparse.Namespace) -> PanopticPredictor:
    """The model that the arguments name, after it has answered a picture.

    Raises:
        UsageError: arguments that do not fit together.
    """
    predictor: PanopticPredictor
    if args.model is not None:
        if args.config_file or args.weights or args.opts:
            raise UsageError(
                "--model is served alone, without --config-file, --weights and --opts."
            )
        if not args.model.endswith(EXPORTED):
            raise UsageError(
                f"--model {args.model}: an exported file ends in {' or '.join(EXPORTED)}; weights "
                "of a config are --weights."
            )
        predictor = ExportedPredictor(args.model)
    else:
        weights = ["MODEL.WEIGHTS", args.weights] if args.weights else []
        predictor = ConfigPredictor(args.config_file, [*args.opts, *weights])
    predictor(np.zeros((64, 64, 3), np.uint8))
    return predictor


def read_token(file: Path | None) -> str | None:
    """The token of a file, or of the environment variable; None: there is none.

    Raises:
        UserError: it is empty or has other characters than ASCII.
        FileNotFoundError: the file is not found.
    """
    token = os.environ.get(TOKEN) if file is None else file.read_text().strip()
    if token is None:
        return None
    if not (token.isascii() and token.isprintable() and token):
        source = f"${TOKEN}" if file is None else f"--token-file {file}"
        raise UserError(f"{source}: a token is one line of ASCII characters.")
    return token


def run(args: argparse.Namespace) -> None:
    """Serve until SIGINT or SIGTERM; what was accepted by then is finished."""
    try:
        import uvicorn

        from .app import LOOPBACK, Settings, build_app, server_config
    except ModuleNotFoundError as e:
        if e.name is None or e.name.split(".")[0] == "spatialflow":
            raise
        raise UserError(
            f"spatialflow serve needs {e.name}, which is not installed: "
            "pip install 'spatialflow[serve]'"
        ) from e
    token = read_token(args.token_file)
    settings = Settings(
        queue_size=args.queue,
        deadline=args.deadline,
        token=token,
        hosts=LOOPBACK if args.host in LOOPBACK else None,
    )
    app = build_app(load_predictor(args), settings)
    uvicorn.Server(server_config(app, args.host, args.port)).run()
