"""mmdetection's weights of Hybrid Task Cascade under this project's names.

They are those of its version 2 and later (configs/htc there); nothing but names differs. Anchors,
class numbers (the background last) and box deltas are Detectron2's, and what else differs is in
configs/HTC/Base-COCO-HTC.yaml.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from .mmdetection import Rules, plus, rename_by, renamed

_HINT = (
    " Weights of mmdetection 1 (2019) have other names and class numbers: its "
    "tools/model_converters/upgrade_model_version.py makes weights of version 2 of them."
)

_SEMANTIC = r"roi_head\.semantic_head\."

# Theirs, ours.
_RULES: Rules = [
    (r"neck\.lateral_convs\.(\d)\.conv\.", plus(2, "backbone.fpn_lateral#.")),
    (r"neck\.fpn_convs\.(\d)\.conv\.", plus(2, "backbone.fpn_output#.")),
    (r"rpn_head\.rpn_conv\.", "proposal_generator.rpn_head.conv."),
    (r"rpn_head\.rpn_cls\.", "proposal_generator.rpn_head.objectness_logits."),
    (r"rpn_head\.rpn_reg\.", "proposal_generator.rpn_head.anchor_deltas."),
    (r"roi_head\.bbox_head\.(\d)\.shared_fcs\.0\.", r"roi_heads.box_head.\1.fc1."),
    (r"roi_head\.bbox_head\.(\d)\.shared_fcs\.1\.", r"roi_heads.box_head.\1.fc2."),
    (r"roi_head\.bbox_head\.(\d)\.fc_cls\.", r"roi_heads.box_predictor.\1.cls_score."),
    (r"roi_head\.bbox_head\.(\d)\.fc_reg\.", r"roi_heads.box_predictor.\1.bbox_pred."),
    (r"roi_head\.mask_head\.(\d)\.conv_res\.conv\.", r"roi_heads.mask_head.\1.flow."),
    (r"roi_head\.mask_head\.(\d)\.upsample\.", r"roi_heads.mask_head.\1.deconv."),
    (r"roi_head\.mask_head\.(\d)\.conv_logits\.", r"roi_heads.mask_head.\1.predictor."),
    (rf"{_SEMANTIC}lateral_convs\.(\d)\.conv\.", plus(2, "semantic_head.lateral_convs.p#.")),
    (rf"{_SEMANTIC}convs\.(\d)\.conv\.", r"semantic_head.convs.\1."),
    (rf"{_SEMANTIC}conv_embedding\.conv\.", "semantic_head.embedding."),
    (rf"{_SEMANTIC}conv_logits\.", "semantic_head.predictor."),
    (
        r"roi_head\.mask_head\.(\d)\.convs\.(\d)\.conv\.",
        lambda match: f"roi_heads.mask_head.{match[1]}.mask_fcn{int(match[2]) + 1}.",
    ),
]


def rename(key: str) -> str | None:
    """This project's name of one of their tensors; None for a name that they do not have."""
    return rename_by(_RULES, key)


def convert_state_dict(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename their state dict; tensors of half precision become float32.

    Args:
        state: their tensors by their names.

    Returns:
        Tensors by :func:`rename`'s names, without counters of batch norm.

    Raises:
        ValueError: names that they do not have.
    """
    names = renamed(state, rename, "mmdetection's HTC", _HINT)
    return {name: state[key].float() for key, name in names.items()}
