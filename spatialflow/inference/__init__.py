"""Many views, one answer: test-time augmentation and ensembles.

A *view* is a model and a transform of the image. Both techniques are the same: the candidates of
all views go through one NMS, every view predicts masks for the boxes that are left, and masks and
stuff scores are averaged.

    views.py              transforms and how to undo them
    stages.py             what a model must offer to take part
    detectron2_models.py  Detectron2's Mask R-CNN, Cascade and Panoptic FPN as such a model
    member.py             a model with its views, its weight and its class numbers
    model.py              the views put together
    build.py              all of it from a config
"""

from .ensemble import MultiViewModel
from .load import load_model, with_views

__all__ = ["MultiViewModel", "load_model", "with_views"]
