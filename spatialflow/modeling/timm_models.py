"""timm's models as backbones take them: any image size, any drop path, a stride that fits.

timm is imported when a model is built, so that everything else works without it.
"""

from __future__ import annotations

import difflib
import inspect
import textwrap
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

ANY_SIZE: dict[str, Any] = {
    "dynamic_img_size": True,
    "strict_img_size": False,
    "always_partition": True,  # Swin: shifted windows in every stage, whatever the image size
}
"""Arguments, of the models that have them, by which they take images of any size."""
PATCH_SIZE = 16
"""Stride of the patches of a plain ViT, from which a pyramid is made by powers of two."""


def import_timm() -> ModuleType:
    """timm; a ValueError that says how to install it where it is missing."""
    try:
        import timm
    except ModuleNotFoundError as e:
        raise ValueError(
            f"MODEL.BACKBONE.NAME asks for a backbone of timm, but {e.name} is not installed: "
            "pip install 'spatialflow[timm]'"
        ) from e
    return timm


def probe_model(name: str) -> Any:
    """timm's model of this name without memory for its weights, to read what it is like.

    Raises:
        ValueError: see :func:`create_model`.
    """
    with torch.device("meta"):
        return create_model(name)


def model_options(probe: Any, drop_path: float = 0.0, output_stride: int = 32) -> dict[str, Any]:
    """What a model of timm is created with to serve as a backbone.

    Its input may have any size. The patches of a plain ViT have 16 pixels: those of another size,
    such as the 14 of DINOv2, are resampled by timm when weights are loaded, and the grid of the
    positions stays as it is.

    Args:
        probe: see :func:`probe_model`.
        drop_path: rate of stochastic depth (Huang et al., ECCV 2016) of the last layer.
        output_stride: of the last feature; below 32 dilation takes the place of strides.

    Raises:
        ValueError: the model has no stochastic depth, or no dilation.
    """
    accepted = inspect.signature(type(probe).__init__).parameters
    options = {key: value for key, value in ANY_SIZE.items() if key in accepted}
    if drop_path:
        if "drop_path_rate" not in accepted:
            raise ValueError(
                f"MODEL.TIMM.DROP_PATH is {drop_path}, but timm's {type(probe).__name__} has no "
                "stochastic depth; set it to 0."
            )
        options["drop_path_rate"] = drop_path
    if output_stride != 32:
        if "output_stride" not in accepted:
            raise ValueError(
                f"MODEL.RESNETS.OUTPUT_STRIDE is {output_stride}, but timm's "
                f"{type(probe).__name__} has no dilation; set it to 32."
            )
        options["output_stride"] = output_stride
    if is_plain_vit(probe) and probe.feature_info[-1]["reduction"] != PATCH_SIZE:
        options["patch_size"] = PATCH_SIZE
        options["img_size"] = tuple(PATCH_SIZE * side for side in probe.patch_embed.grid_size)
    return options


def create_model(name: str, **options: Any) -> Any:
    """timm's model of this name with random weights.

    Args:
        name: timm's name of the model, with or without the tag of its weights.
        options: arguments of ``timm.create_model``.

    Raises:
        ValueError: timm is not installed, or has no such model or weights.
    """
    timm = import_timm()
    architecture, _ = timm.models.split_model_name_tag(name)
    if not timm.is_model(architecture):
        near = difflib.get_close_matches(architecture, timm.list_models(), n=3)
        hint = f"; close are {', '.join(near)}" if near else ""
        raise ValueError(f"MODEL.TIMM.NAME: timm {timm.__version__} has no {name!r}{hint}.")
    try:
        return timm.create_model(name, pretrained=False, **options)
    except RuntimeError as e:
        if "tag" not in str(e):
            raise
        tags = ", ".join(timm.list_pretrained(f"{architecture}.*"))
        raise ValueError(f"MODEL.TIMM.NAME: timm has no {name!r}; it has {tags}.") from e


def is_plain_vit(model: Any) -> bool:
    """Whether all features of a timm model have one stride."""
    return len({info["reduction"] for info in model.feature_info}) == 1


def pretrained_state(
    name: str, options: Mapping[str, Any], state: Mapping[str, Tensor] | None
) -> dict[str, Tensor]:
    """Pretrained weights as a model of timm takes them, converted by timm.

    Args:
        name: timm's name of the model, with or without the tag of its weights.
        options: what the model was created with.
        state: tensors by the names of timm or of the authors of the model, with or without a
            classifier; None: those that timm downloads, or finds in its cache.

    Raises:
        FileNotFoundError: the download fails.
        ValueError: the tensors do not fit the model; the message says which.
    """
    timm = import_timm()
    if state is None:
        try:
            return timm.create_model(name, pretrained=True, **options).state_dict()
        except Exception as e:  # whatever the hub's client and the network raise
            raise FileNotFoundError(_download_failed(name, e)) from e
    classifier = probe_model(name).pretrained_cfg.get("classifier") or ()
    heads = (classifier,) if isinstance(classifier, str) else tuple(classifier)
    kept = {k: v for k, v in state.items() if not k.startswith(tuple(f"{h}." for h in heads))}
    # Without a classifier to leave out, timm loads strictly.
    overlay = {"state_dict": kept, "classifier": None, "num_classes": 0, "custom_load": False}
    try:
        model = timm.create_model(
            name, pretrained=True, num_classes=0, pretrained_cfg_overlay=overlay, **options
        )
    except (RuntimeError, KeyError) as e:
        reason = textwrap.shorten(str(e), 500)
        raise ValueError(f"The weights do not fit timm's {name}: {reason}") from e
    return model.state_dict()


def _download_failed(name: str, error: Exception) -> str:
    cfg = probe_model(name).pretrained_cfg
    source = cfg.get("hf_hub_id") or cfg.get("url")
    if not source:
        return f"MODEL.TIMM.WEIGHTS is 'timm', but timm knows no weights of {name}."
    return (
        f"MODEL.TIMM.WEIGHTS is 'timm', but the weights of {name} cannot be fetched from {source} "
        f"({type(error).__name__}: {textwrap.shorten(str(error), 200)}). They need a network and "
        "`pip install 'spatialflow[timm]'`. Without a network, download the file of weights "
        "elsewhere and set MODEL.TIMM.WEIGHTS to its path; '' starts from random weights."
    )


class PixelConversion(nn.Module):
    """Images as a config normalises them, as a pretrained model wants them.

    Equal, but for rounding, to normalising the pixels by the model's own mean and deviation in the
    order RGB; the zeros that images are padded with are pixels of the config's mean.

    Args:
        pixel_mean, pixel_std: of the config's channels, pixels being 0 to 255.
        input_format: order of the config's channels, "BGR" or "RGB".
        mean, std: of the model's channels R, G and B, pixels being 0 to 1.

    Raises:
        ValueError: another order of channels.
    """

    scale: Tensor
    shift: Tensor

    def __init__(
        self,
        pixel_mean: list[float],
        pixel_std: list[float],
        input_format: str,
        mean: tuple[float, ...],
        std: tuple[float, ...],
    ):
        super().__init__()
        if input_format not in ("BGR", "RGB"):
            raise ValueError(f"INPUT.FORMAT is BGR or RGB for timm's models, not {input_format!r}.")
        self.swap = input_format == "BGR"
        own_mean, own_std = (
            torch.tensor(values, dtype=torch.float64) for values in (pixel_mean, pixel_std)
        )
        if self.swap:
            own_mean, own_std = own_mean.flip(0), own_std.flip(0)
        wanted_mean, wanted_std = (
            255 * torch.tensor(values, dtype=torch.float64) for values in (mean, std)
        )
        scale, shift = own_std / wanted_std, (own_mean - wanted_mean) / wanted_std
        self.register_buffer("scale", scale.float().view(-1, 1, 1), persistent=False)
        self.register_buffer("shift", shift.float().view(-1, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Convert images (N, 3, H, W)."""
        return (images.flip(1) if self.swap else images) * self.scale + self.shift
