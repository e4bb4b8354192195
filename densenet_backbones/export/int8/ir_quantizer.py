"""Quantize OpenVINO's IR to 8 bits with NNCF, Intel's Neural Network Compression Framework.

It is told to put ranges at the inputs of convolutions alone: it otherwise puts them at raw maps
that are concatenated, pooled or brought to one length, too, whose channels one range does not fit.
nncf belongs to the extra ``int8``.
"""

import logging
import os
from pathlib import Path
from typing import Any

from densenet_backbones.export.int8.graphs import Node, find_inner
from densenet_backbones.export.int8.images import CalibrationImages
from densenet_backbones.inference.exported.runtimes import save_ir
from densenet_backbones.inference.exported.signal_stack import keeping_signal_stack

_LEARNED = ("Convolution", "GroupConvolution", "ConvolutionBackpropData", "MatMul")


def quantize_ir(path: Path, out: Path, images: CalibrationImages) -> None:
    """Write an IR with the convolutions of another in 8 bits, without its facts.

    Args:
        path: The ``.xml``.
        out: The ``.xml`` to write, in a folder of drafts; its ``.bin`` comes beside it.
        images: Inputs to take the ranges from.
    """
    os.environ.setdefault("NNCF_CI", "1")  # else it reports its use to Intel
    import nncf
    import openvino
    from nncf.quantization.advanced_parameters import (
        AdvancedQuantizationParameters,
        OverflowFix,
    )

    nncf.set_log_level(logging.ERROR)
    model = openvino.Core().read_model(str(path))
    with keeping_signal_stack():
        quantized = nncf.quantize(
            model,
            nncf.Dataset(images),
            # Activations that are negative have their own zero.
            preset=nncf.QuantizationPreset.MIXED,
            subset_size=len(images),
            ignored_scope=nncf.IgnoredScope(names=_list_kept(model), validate=False),
            advanced_parameters=AdvancedQuantizationParameters(
                # Weights of 7 bits: see `onnx_quantizer`.
                overflow_fix=OverflowFix.ENABLE,
            ),
        )
    save_ir(quantized, out, {})


def _list_kept(model: Any) -> list[str]:
    """Return the names of the operations that stay in float32."""
    operations = model.get_ordered_ops()
    nodes = [
        Node(
            operation.get_friendly_name(),
            operation.get_type_name() in _LEARNED,
            {value.get_node().get_friendly_name() for value in operation.input_values()},
        )
        for operation in operations
    ]
    inner = find_inner(nodes)
    return [node.name for node in nodes if not (node.is_learned and node.name in inner)]
