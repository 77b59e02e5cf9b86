"""Speed of SpatialFlow beside Detectron2's Panoptic FPN."""
