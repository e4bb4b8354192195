"""Exported files in 8 bits: quantized by onnxruntime or NNCF, and measured beside float32."""
