"""Trained models that come with the project: weights in half precision, each with a card.

``checkpoints/NAME.pth`` are the weights of the config ``NAME.yaml``, ``checkpoints/NAME.json`` is
the card: what they are, what was measured, and what licences they have.
``tools/ship_checkpoint.py`` writes both.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from detectron2.config import CfgNode

from spatialflow.data import Categories
from spatialflow.data.class_counts import set_class_counts
from spatialflow.utils.files import digest_of, read_json, write_json

CHECKPOINTS = Path(__file__).parent / "checkpoints"
"""Folder of the weights and cards."""


@dataclass(frozen=True)
class Card:
    """What is known of weights that come with the project.

    Attributes:
        config: name of the config in the model zoo.
        command: the command that trained it.
        seed: SEED of the training.
        date: day of the evaluation, YYYY-MM-DD.
        dataset: name of the dataset that it was evaluated on.
        results: PQ, PQ_th and PQ_st in percent, of these weights in half precision.
        licences: of code, weights and data.
        sha256: SHA-256 of the weights file, in hexadecimal.
        categories: classes, as entries of ``categories`` in a panoptic JSON.
    """

    config: str
    command: str
    seed: int
    date: str
    dataset: str
    results: dict[str, float]
    licences: dict[str, str]
    sha256: str
    categories: list[dict[str, Any]]


def shipped_configs() -> list[str]:
    """Names of the configs whose trained weights come with the project."""
    cards = CHECKPOINTS.rglob("*.json")
    return sorted(c.relative_to(CHECKPOINTS).with_suffix(".yaml").as_posix() for c in cards)


def shipped_weights(config: str) -> Path:
    """The path of the weights of a config; they need not be there."""
    return CHECKPOINTS / PurePosixPath(config).with_suffix(".pth")


def read_card(weights: Path) -> Card:
    """The card of weights, which are compared with it.

    Args:
        weights: see :func:`shipped_weights`.

    Raises:
        FileNotFoundError: weights or card are missing.
        ValueError: the card is malformed, or the weights are not those it describes.
    """
    path = weights.with_suffix(".json")
    try:
        card = Card(**read_json(path, "Card"))
    except TypeError as e:
        raise ValueError(f"{path} is no card of weights: {e}. Install the project again.") from e
    if not weights.is_file():
        raise FileNotFoundError(f"Weights file {weights} not found. Install the project again.")
    if digest_of(weights) != card.sha256:
        raise ValueError(
            f"{weights} is damaged or is not the file that {path.name} describes: its SHA-256 "
            "differs. Install the project again."
        )
    return card


def write_card(card: Card) -> None:
    """Write the card beside the weights of its config."""
    path = shipped_weights(card.config).with_suffix(".json")
    write_json(str(path), asdict(card), indent=1)


def set_shipped_classes(cfg: CfgNode) -> Categories | None:
    """The classes of a config whose MODEL.WEIGHTS come with the project, or None.

    No dataset is needed. Class counts that are unset are set.

    Args:
        cfg: not frozen; changed in place.

    Raises:
        FileNotFoundError, ValueError: see :func:`read_card`; the class counts of the config are
            others.
    """
    weights = Path(cfg.MODEL.WEIGHTS)
    if not weights.resolve().is_relative_to(CHECKPOINTS.resolve()):
        return None
    card = read_card(weights)
    categories = Categories.from_json(card.categories)
    set_class_counts(cfg, card.dataset, categories)
    return categories
