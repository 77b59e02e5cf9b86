"""The evaluation on disk, in one place: each file has one writer and one reader, which checks it.

``predictions``: panoptic predictions, and their pairs with the ground truth. ``dataset``: which
dataset they are of. ``raw_outputs``: what the merge starts from.
"""
