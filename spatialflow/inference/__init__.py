"""From a config to a model that answers: loading, test-time augmentation, ensembles, the fast path.

A *view* is a transform of the image that a model is shown. Test-time augmentation and ensembles
are the same: the candidates of all views of all models go through one NMS, every view predicts
masks for the boxes that are left, and masks and stuff scores are averaged.

    load.py       the model of a config
    predictor.py  from one picture to its segmentation
    views.py      the transforms and how to undo them
    member.py     a model with its views, its weight and its class numbers
    ensemble.py   members put together
    optimized.py  the fast path
"""

from .ensemble import EnsembleWithTTA
from .load import load_model, with_views

__all__ = ["EnsembleWithTTA", "load_model", "with_views"]
