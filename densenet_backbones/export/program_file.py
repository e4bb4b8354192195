"""Write modules as files of `torch.export` (``.pt2``), and run them.

Such a file needs torch and torchvision, nothing of this package. With one program in it,
``torch.export.load(file).module()(images)`` computes the outputs by name. A network whose maps may
have any size is two programs, ``prepare`` and ``model``, which `ProgramFile` runs one after the
other (see `detector_form.DetectorForm`).
"""

import dataclasses
import io
import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor
from torch.export.pt2_archive._package import load_pt2, package_pt2

from densenet_backbones.export.needs import ExportError
from densenet_backbones.export.onnx_file import (
    Stage,
    describe_facts,
    find_cause,
    trace_stage,
)
from densenet_backbones.export.operators import use_plain_operators

__all__ = ["ProgramFile", "write_programs"]

_FACTS = "densenet_backbones.json"


def write_programs(stages: Sequence[Stage], path: Path, facts: Mapping[str, object]) -> None:
    """Write a computation as a file of `torch.export`.

    Args:
        stages: One, or two of which the second computes from what the first returns.
        path: The file, replaced if there is one.
        facts: Metadata of the file, as `write_onnx` takes them; `ProgramFile.facts` reads them.

    Raises:
        ExportError: torch could not follow a stage.
    """
    named = dict(zip(_name_stages(stages), stages, strict=True))
    named["model"] = _name_outputs(named["model"])
    with warnings.catch_warnings(), torch.no_grad(), use_plain_operators():
        warnings.simplefilter("ignore")
        try:
            programs = {name: trace_stage(stage) for name, stage in named.items()}
            content = io.BytesIO()  # by a path torch asks for an ending, which drafts have not
            texts = json.dumps(describe_facts(facts))
            package_pt2(content, exported_programs=programs, extra_files={_FACTS: texts})
        except Exception as error:  # torch raises many kinds, of private classes
            raise ExportError(find_cause(error)) from error
    path.write_bytes(content.getbuffer())


def _name_stages(stages: Sequence[Stage]) -> tuple[str, ...]:
    return ("prepare", "model")[-len(stages) :]


def _name_outputs(stage: Stage) -> Stage:
    """Return a stage that returns its outputs in a dictionary."""

    def compute(*inputs: Tensor) -> dict[str, Tensor]:
        outputs = cast(tuple[Tensor, ...], stage.compute(*inputs))
        return dict(zip(stage.outputs, outputs, strict=True))

    return dataclasses.replace(stage, compute=compute)


class ProgramFile:
    """File of `torch.export` on the CPU.

    Args:
        path: A file that `write_programs` wrote; one of another origin may run what it likes.

    Attributes:
        facts: Metadata that `write_programs` put into the file.
    """

    def __init__(self, path: str | Path) -> None:
        with Path(path).open("rb") as file:
            content = load_pt2(file)
        self.facts: dict[str, str] = json.loads(content.extra_files[_FACTS])
        self.modules = [
            content.exported_programs[name].module()
            for name in ("prepare", "model")
            if name in content.exported_programs
        ]

    @torch.no_grad()
    def __call__(self, image: Tensor) -> dict[str, np.ndarray]:
        """Compute the outputs of images, by name.

        Args:
            image: The input, of the shape that the file asks for.

        Raises:
            ExportError: The file cannot be computed on the image.
        """
        try:
            outputs: object = (image,)
            for module in self.modules:
                outputs = module(*outputs)  # type: ignore[misc]
        except Exception as error:
            raise ExportError(
                f"torch cannot compute the file on an image of {image.shape[-2]} x "
                f"{image.shape[-1]}: {find_cause(error)}"
            ) from error
        assert isinstance(outputs, dict)
        return {name: values.numpy() for name, values in outputs.items()}
