"""Losses in bfloat16, as mixed precision computes them, are within noise of those in float32."""

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from tiny_runs import CONFIG, FPN_CONFIG, tiny_config

import spatialflow.modeling  # noqa: F401 registers the models
from spatialflow.data import build_train_loader

TOLERANCE = 0.03
"""Of the sum of the losses; bfloat16 has 8 bits, a relative step of 0.004."""

CASES = {
    "plain": (CONFIG, []),
    "deformable": (
        CONFIG,
        ["MODEL.RESNETS.DEPTH", 50, "MODEL.RESNETS.RES2_OUT_CHANNELS", 128]
        + ["MODEL.RESNETS.STEM_OUT_CHANNELS", 32, "MODEL.RESNETS.WIDTH_PER_GROUP", 64]
        + ["MODEL.RESNETS.DEFORM_ON_PER_STAGE", [False, False, True, True]]
        + ["MODEL.RESNETS.DEFORM_MODULATED", True],
    ),
    "panoptic_fpn": (FPN_CONFIG, []),
}


@pytest.mark.parametrize("case", CASES)
def test_losses_and_gradients_in_bfloat16(case, toy_datasets, tmp_path):
    config, overrides = CASES[case]
    cfg = tiny_config(toy_datasets, tmp_path, overrides=overrides, config=config)
    torch.manual_seed(0)
    model = build_model(cfg).train()
    batch = next(iter(build_train_loader(cfg, 0)))
    expected = losses_of(model, batch, enabled=False)
    found = losses_of(model, batch, enabled=True)
    assert found.keys() == expected.keys()
    total = sum(expected.values())
    assert all(loss.isfinite() for loss in found.values())
    assert abs(sum(found.values()) - total) <= TOLERANCE * total
    for name, loss in expected.items():
        assert abs(found[name] - loss) <= 2 * TOLERANCE * max(loss, total / 10), name


def losses_of(model, batch, enabled):
    """Also checks that every gradient is finite and, in mixed precision, in float32."""
    model.zero_grad()
    torch.manual_seed(1)  # Panoptic FPN samples proposals
    with EventStorage(), torch.autocast("cpu", torch.bfloat16, enabled=enabled):
        losses = model(batch)
    sum(losses.values()).backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert gradients
    assert all(g.dtype == torch.float32 and g.isfinite().all() for g in gradients)
    return {name: loss.detach().float() for name, loss in losses.items()}
