"""Models in files that run without PyTorch: ONNX, OpenVINO IR, and torch's own ``.pt2``.

    load_model -> prepare -> ExportedModel (graph) -> torch.export -> write (onnx, openvino, pt2)

The graph holds everything from a resized picture to the panoptic map: NMS, RoIAlign, the pasting of
masks, the merge and the box fill. It is written in tensors alone (:mod:`.detections`,
:mod:`.regions`, :mod:`.merge`), since what the models run has a loop over what they found, whose
length a traced graph would keep. The package ``spatialflow_runtime`` runs the files.
"""
