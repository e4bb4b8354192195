"""Write modules as ONNX files, and run such files in onnxruntime.

onnx, onnxscript and onnxruntime are imported where they are used: they belong to the extra
``export``.
"""

import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from densenet_backbones.export.needs import ExportError, check_installed
from densenet_backbones.export.operators import CROP, RESIZE
from densenet_backbones.inference.exported.runtimes import OnnxSession

if TYPE_CHECKING:
    import onnx

__all__ = ["OnnxSession", "Side", "Stage", "write_onnx"]


@dataclass(frozen=True)
class Side:
    """Dimension that may vary: ``factor * least`` to ``factor * most`` in steps of ``factor``."""

    name: str
    least: int
    most: int
    factor: int = 1


@dataclass(frozen=True)
class Stage:
    """Computation to write.

    Attributes:
        compute: Computes the outputs from the inputs.
        inputs: Example of each input by its name; sizes that do not vary are fixed to its own.
        outputs: Names of the outputs.
        varying: Dimensions of the first input that vary.
        weights: Module with the parameters that it reads, if any.
    """

    compute: Callable[..., tuple[Tensor, ...] | dict[str, Tensor]]
    inputs: Mapping[str, Tensor]
    outputs: Sequence[str]
    varying: Mapping[int, Side] = field(default_factory=dict)
    weights: nn.Module | None = None


def write_onnx(
    stages: Sequence[Stage],
    path: Path,
    facts: Mapping[str, object],
    *,
    opset: int | None = None,
    optimize: bool = True,
) -> int:
    """Write a computation as an ONNX file by `torch.export`.

    Args:
        stages: One, or more whose outputs are the inputs of the next, by name.
        path: The file, replaced if there is one.
        facts: Metadata of the file: strings, and other JSON types, which are written as JSON;
            `OnnxSession.facts` reads it.
        opset: Version of ONNX's operators; None for torch's default.
        optimize: Fold constants and fuse nodes in the file, which onnxruntime does anyhow.

    Returns:
        Version of the operators.

    Raises:
        ExportError: torch could not follow a stage or translate it.
    """
    check_installed()
    import onnx

    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # onnxscript warns of what torch deprecates within
        try:
            models = [_translate(stage, opset, optimize) for stage in stages]
        except Exception as error:  # torch raises many kinds, of private classes
            raise ExportError(find_cause(error)) from error
    model, *others = models
    # Stages are joined by the names of what passes between them; prefixes keep inner names apart.
    for number, (other, stage) in enumerate(zip(others, stages[1:], strict=True)):
        joints = [(name, name) for name in stage.inputs]
        own = onnx.compose.add_prefix(
            model, f"{number}/", rename_inputs=False, rename_outputs=False
        )
        model = onnx.compose.merge_models(own, other, io_map=joints)
    onnx.helper.set_model_props(model, describe_facts(facts))
    onnx.save(model, path)
    return next(int(used.version) for used in model.opset_import if not used.domain)


def describe_facts(facts: Mapping[str, object]) -> dict[str, str]:
    """Return metadata as texts: strings as they are, other JSON types as JSON."""
    return {k: v if isinstance(v, str) else json.dumps(v) for k, v in facts.items()}


class _Computation(nn.Module):
    """Stage as a module, which `torch.export` asks for."""

    def __init__(self, stage: Stage) -> None:
        super().__init__()
        self.compute = stage.compute
        self.weights = stage.weights
        self.eval()

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...] | dict[str, Tensor]:
        return self.compute(*inputs)


def _translate(stage: Stage, opset: int | None, optimize: bool) -> "onnx.ModelProto":
    """Translate a stage to ONNX."""
    exported = trace_stage(stage)
    program = torch.onnx.export(
        exported,
        dynamo=True,
        verbose=False,
        input_names=list(stage.inputs),
        output_names=list(stage.outputs),
        opset_version=opset,
        optimize=optimize,
        custom_translation_table={
            RESIZE: _translate_resizing(),
            CROP: _translate_crop(),
        },
    )
    assert program is not None
    return program.model_proto


def trace_stage(stage: Stage) -> torch.export.ExportedProgram:
    """Follow a stage with `torch.export`."""
    shapes: list[dict[int, object] | None] = [None] * len(stage.inputs)
    shapes[0] = {axis: _make_dimension(side) for axis, side in stage.varying.items()}
    return torch.export.export(
        _Computation(stage),
        tuple(stage.inputs.values()),
        dynamic_shapes=(tuple(shapes),),
        # Such as that a map brought to twice its size is no smaller than the one it is cropped to.
        prefer_deferred_runtime_asserts_over_guards=True,
    )


def _make_dimension(side: Side) -> object:
    dimension = torch.export.Dim(side.name, min=side.least, max=side.most)
    return dimension if side.factor == 1 else side.factor * dimension


def find_cause(error: BaseException) -> str:
    """Return the first cause in one line: torch wraps it in pages of advice."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _translate_resizing() -> Callable[..., object]:
    """Return ONNX for `resize_to_limits`, sizes in float64 as torchvision computes them."""
    from onnxscript import FLOAT, opset18

    op: Any = opset18

    def resize(image: FLOAT, min_size: int, max_size: int) -> FLOAT:
        double, whole = 11, 7  # TensorProto's DOUBLE and INT64
        size = op.Cast(op.Shape(image, start=2), to=double)
        limits = op.Constant(value_floats=[float(min_size), float(max_size)])
        limits = op.Cast(limits, to=double)
        shorter, longer = op.ReduceMin(size), op.ReduceMax(size)
        sides = op.Concat(shorter, longer, axis=0)
        scale = op.ReduceMin(op.Div(limits, sides))
        size = op.Cast(op.Mul(size, scale), to=whole)
        size = op.Concat(op.Shape(image, start=0, end=2), size, axis=0)
        resized: FLOAT = op.Resize(
            image, None, None, size, mode="linear", coordinate_transformation_mode="half_pixel"
        )
        return resized

    return resize


def _translate_crop() -> Callable[..., object]:
    """Return ONNX for `crop_to`."""
    from onnxscript import FLOAT, INT64, opset18

    op: Any = opset18

    def crop(x: FLOAT, size: INT64) -> FLOAT:
        start, axes = op.Constant(value_ints=[0, 0]), op.Constant(value_ints=[-2, -1])
        cropped: FLOAT = op.Slice(x, start, size, axes)
        return cropped

    return crop
