"""Run exported files: ONNX in onnxruntime, OpenVINO's IR in OpenVINO; both on the CPU.

Both are imported where they are used: they belong to the extras ``export`` and ``openvino``. Such a
file is a program: neither runtime bounds the time or the memory that its operations take, so it is
no form for models of strangers, as a file of weights is.
"""

import importlib
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import numpy as np
from torch import Tensor

from densenet_backbones.checkpoints import CheckpointError
from densenet_backbones.inference.exported.signal_stack import keeping_signal_stack
from densenet_backbones.messages import describe_missing
from densenet_backbones.untrusted.reading import parse_json

SUFFIXES = (".onnx", ".xml")
"""Endings of the files that `open_runtime` opens."""

_SECTION = "densenet_backbones"
"""Part of an IR's `rt_info` that holds the facts."""


class Runtime(Protocol):
    """An exported file that can be computed, by several threads at once.

    Attributes:
        facts: Metadata of the file, as the export wrote it: strings, JSON where they were lists.
        fixed_size: (H, W) of the images that it takes; None for any.
    """

    facts: Mapping[str, str]
    fixed_size: tuple[int, int] | None

    def __call__(self, image: Tensor) -> dict[str, np.ndarray]:
        """Compute the outputs of images (N, C, H, W), by name."""


class OnnxSession:
    """ONNX file in onnxruntime.

    Args:
        path: The file.
        threads: Threads to compute on; None leaves it to onnxruntime.

    Raises:
        CheckpointError: It is no model that onnxruntime can load, or that is not installed.
    """

    def __init__(self, path: str | Path, threads: int | None = None) -> None:
        onnxruntime = _import("onnxruntime", path, "export")
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # errors: its warnings are about what it could not fold
        options.intra_op_num_threads = threads or 0
        # Its threads would go on waiting for work while others compute.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        try:
            self.session = onnxruntime.InferenceSession(
                str(path), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # onnxruntime's own kinds have no common base
            raise _describe_failure(path, error) from error
        self.input = self.session.get_inputs()[0]
        self.facts: Mapping[str, str] = dict(self.session.get_modelmeta().custom_metadata_map)
        self.fixed_size = _read_fixed_size(self.input.shape)

    def __call__(self, image: Tensor) -> dict[str, np.ndarray]:
        """Compute the outputs of images, by name.

        Args:
            image: The input, of the shape that the file asks for.

        Raises:
            ValueError: The file cannot be computed on the image.
        """
        names = [output.name for output in self.session.get_outputs()]
        try:
            outputs = self.session.run(names, {self.input.name: image.numpy()})
        except Exception as error:
            raise _describe_image("onnxruntime", image, error) from error
        return dict(zip(names, outputs, strict=True))


class OpenvinoModel:
    """IR of OpenVINO: an ``.xml`` with the ``.bin`` of its weights beside it.

    Args:
        path: The ``.xml``.
        threads: Threads to compute on; None leaves it to OpenVINO.

    Raises:
        CheckpointError: It is no IR, its ``.bin`` is missing, or OpenVINO is not installed.
    """

    def __init__(self, path: str | Path, threads: int | None = None) -> None:
        openvino = _import("openvino", path, "openvino")
        if not Path(path).with_suffix(".bin").is_file():
            raise CheckpointError(
                f"{path}: its weights are missing, {Path(path).with_suffix('.bin').name} must lie "
                "beside it"
            )
        try:
            model = openvino.Core().read_model(str(path))
            # The precision of the file, not the processor's fastest.
            options: dict[str, Any] = {"INFERENCE_PRECISION_HINT": "f32"}
            options |= {"INFERENCE_NUM_THREADS": threads} if threads else {}
            with keeping_signal_stack():
                self.compiled = openvino.Core().compile_model(model, "CPU", options)
        except Exception as error:
            raise _describe_failure(path, error) from error
        self.facts: Mapping[str, str] = {}
        if model.has_rt_info([_SECTION]):
            entries = model.get_rt_info([_SECTION])
            self.facts = {key: str(value) for key, value in dict(entries.value).items()}
        shape = self.compiled.input(0).partial_shape
        self.fixed_size = _read_fixed_size([d.get_length() if d.is_static else None for d in shape])

    def __call__(self, image: Tensor) -> dict[str, np.ndarray]:
        """Compute the outputs of images, by name; see `OnnxSession`."""
        # One request a call: a compiled model's own is one for all threads.
        request = self.compiled.create_infer_request()
        try:
            outputs = request.infer({0: image.numpy()})
        except Exception as error:
            raise _describe_image("OpenVINO", image, error) from error
        return {port.any_name: np.array(values) for port, values in outputs.items()}


def open_runtime(path: str | Path) -> Runtime:
    """Open an exported file by its suffix.

    Raises:
        CheckpointError: See `OnnxSession` and `OpenvinoModel`.
    """
    if not Path(path).is_file():
        raise CheckpointError(describe_missing(Path(path)))
    return OnnxSession(path) if Path(path).suffix.lower() == ".onnx" else OpenvinoModel(path)


def convert_to_ir(onnx_file: Path, path: Path) -> None:
    """Write an ONNX file as OpenVINO's IR with the same facts, weights unchanged.

    Args:
        onnx_file: The file, as our export writes it.
        path: The ``.xml``, in a folder of drafts; its ``.bin`` is written beside it.

    Raises:
        CheckpointError: OpenVINO is not installed, or cannot read the file.
    """
    openvino = _import("openvino", path, "openvino")
    facts = OnnxSession(onnx_file).facts
    try:
        model = openvino.convert_model(str(onnx_file))
    except Exception as error:
        reason = " ".join(str(error).split())[-200:]  # its first lines name no cause
        raise CheckpointError(
            f"OpenVINO cannot convert this model (… {reason}); export it as ONNX instead"
        ) from error
    save_ir(model, path, facts)


def save_ir(model: Any, path: Path, facts: Mapping[str, str]) -> None:
    """Write a model of OpenVINO and its facts as an IR, in a folder of drafts."""
    import openvino

    for key, value in facts.items():
        model.set_rt_info(value, [_SECTION, key])
    openvino.serialize(model, str(path), str(path.with_suffix(".bin")))


def _import(package: str, path: str | Path, extra: str) -> ModuleType:
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        raise CheckpointError(
            f"{path}: such files need {package}: pip install 'densenet-backbones[{extra}]'"
        ) from error


def _read_fixed_size(shape: Any) -> tuple[int, int] | None:
    """Return the last two sides of an input's shape, if they are numbers."""
    sides = list(shape)[-2:]
    return (sides[0], sides[1]) if all(isinstance(side, int) for side in sides) else None


def read_json(facts: Mapping[str, str], key: str) -> Any:
    """Return a fact that was written as JSON; None where it is missing or none."""
    try:
        return parse_json(facts.get(key, "null"))
    except ValueError:
        return None


def _describe_failure(path: str | Path, error: Exception) -> CheckpointError:
    reason = " ".join(str(error).split())[:200]
    return CheckpointError(f"{path}: cannot be loaded ({reason}); export the model again")


def _describe_image(runtime: str, image: Tensor, error: Exception) -> ValueError:
    reason = " ".join(str(error).split())[:200]
    size = f"{image.shape[-2]} x {image.shape[-1]}"
    return ValueError(f"{runtime} cannot compute the file on an image of {size}: {reason}")
