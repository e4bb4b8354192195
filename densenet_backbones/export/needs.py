"""Packages that an export needs, the images that its files take, and the error of an export."""

import importlib.util
from collections.abc import Sequence

__all__ = ["LARGEST", "NEEDED", "SMALLEST", "ExportError", "check_installed"]

NEEDED = ("onnx", "onnxscript", "onnxruntime")

# Pixels on each side of the images that a file without fixed sizes takes.
SMALLEST, LARGEST = 32, 8192


class ExportError(RuntimeError):
    """A model could not be written as ONNX; the message says why and what helps."""


def check_installed(formats: Sequence[str] = ("onnx",), *, int8: bool = False) -> None:
    """Raise an `ExportError` unless all that an export to some formats needs is installed.

    Args:
        formats: Of "onnx", "openvino" (which is made of ONNX) and "pt2", which needs torch alone.
        int8: True if they are quantized.
    """
    extra_of = dict.fromkeys(NEEDED if {"onnx", "openvino"} & set(formats) else (), "export")
    if "openvino" in formats:
        extra_of["openvino"] = "openvino"
        extra_of |= {"nncf": "int8"} if int8 else {}
    missing = [name for name in extra_of if importlib.util.find_spec(name) is None]
    if missing:
        extras = ",".join(dict.fromkeys(extra_of[name] for name in missing))
        raise ExportError(
            f"the export needs {', '.join(missing)}: pip install 'densenet-backbones[{extras}]'"
        )
