"""Evaluations of a model with faults, whose raw outputs are written."""

import torch
from panoptic_scenes import evaluate, inputs_of, perfect_output, two_images

from spatialflow.evaluation import PanopticGroundTruth, build_evaluator
from spatialflow.modeling.panoptic import MergeSettings, merge_panoptic


def set_thresholds(cfg):
    """The merge's thresholds, for pictures of a few hundred pixels."""
    combine = cfg.MODEL.PANOPTIC_FPN.COMBINE
    combine.STUFF_AREA_LIMIT, combine.OVERLAP_THRESH = 20, 0.5
    combine.INSTANCES_CONFIDENCE_THRESH = 0.4


def noisy_output(truth, image_id):
    """Shifted masks, one doubled with a higher score and a wrong class, and a strip of label 1."""
    output = perfect_output(truth, image_id)
    instances = output["instances"]
    instances.pred_masks = instances.pred_masks.roll(1, dims=2)
    if len(instances):
        double = instances[:1]
        double.pred_classes = 1 - double.pred_classes
        double.scores = double.scores + 0.05
        output["instances"] = type(instances).cat([instances, double])
    output["sem_seg"][:, -3:] = 0
    output["sem_seg"][1, -3:] = 1
    return output


def merged(output, settings):
    instances, scores = output["instances"], output["sem_seg"]
    return merge_panoptic(
        instances.pred_masks,
        instances.pred_boxes.tensor,
        instances.scores,
        instances.pred_classes,
        scores.argmax(dim=0),
        num_stuff_labels=len(scores),
        **vars(settings),
    )


def evaluate_noisy(register, cfg, folder, copies=1):
    """Evaluate noisy outputs, raw outputs going into the folder; returns the panoptic metrics."""
    set_thresholds(cfg)
    name = register(two_images() * copies)
    truth, inputs = PanopticGroundTruth(name), inputs_of(name)
    outputs = [noisy_output(truth, i["image_id"]) for i in inputs]
    for output in outputs:
        output["panoptic_seg"] = merged(output, MergeSettings.from_config(cfg))
    evaluator = build_evaluator(cfg, name, str(folder), raw_dir=str(folder))
    with torch.no_grad():
        return evaluate(evaluator, inputs, outputs)["panoptic_seg"]
