"""Evaluations of a model with faults, whose raw outputs are written."""

import torch
from panoptic_scenes import evaluate, inputs_of, perfect_output, two_images
from stand_ins import Branches

from spatialflow.evaluation import PanopticGroundTruth, build_evaluator
from spatialflow.modeling.panoptic import HeuristicMerge

MERGE = HeuristicMerge(score_thresh=0.4, overlap_thresh=0.5, stuff_area_limit=20)
"""For pictures of a few hundred pixels."""


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


def evaluate_noisy(register, folder, copies=1, merge=MERGE):
    """Evaluate noisy outputs, raw outputs going into the folder; returns the panoptic metrics."""
    name = register(two_images() * copies)
    truth, inputs = PanopticGroundTruth(name), inputs_of(name)
    outputs = [noisy_output(truth, i["image_id"]) for i in inputs]
    for output in outputs:
        output["panoptic_seg"] = merge(output["instances"], output["sem_seg"])
    evaluator = build_evaluator(Branches(merge=merge), name, str(folder), raw_dir=str(folder))
    with torch.no_grad():
        return evaluate(evaluator, inputs, outputs)["panoptic_seg"]
