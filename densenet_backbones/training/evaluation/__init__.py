"""Parts of an evaluation: time of the model, detections made elsewhere, two models compared."""
