"""Export of trained models to ONNX: graphs, plans and checks against the model."""
