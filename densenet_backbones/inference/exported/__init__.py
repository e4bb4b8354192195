"""Exported models, ONNX and OpenVINO IR, behind the interface of trained ones."""
