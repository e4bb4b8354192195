"""Quantize an ONNX file to 8 bits with onnxruntime's static quantization (QDQ).

By itself that fails on DenseNets. The maps of a dense block are concatenated raw, and each layer's
norm brings their channels to one scale only afterwards; one 8-bit range for all leaves nothing of
channels that are small and that a norm enlarges. Two things are done about it:

- concatenations, norms and what is behind them stay in float32: convolutions alone are quantized,
  with the ReLU behind them; their inputs are what norms have brought to one scale;
- a convolution without a ReLU gives raw maps. Each of its channels is scaled to the range of the
  largest, in its weights, and scaled back in float32 behind it. This changes nothing in float32.
  It is cross-layer equalization (Nagel et al., 1906.04721, section 4.1) for one layer.

Weights are quantized by output channel, to 7 bits: processors without VNNI add pairs of products
in 16 bits, which 8 could exceed.

Legend: O output channels.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from densenet_backbones.data.files import track_progress
from densenet_backbones.export.int8.graphs import Node, find_inner
from densenet_backbones.export.int8.images import CalibrationImages
from densenet_backbones.reporting.console import quiet_logs

if TYPE_CHECKING:
    import onnx

_LEARNED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_ACTIVATIONS = ("Relu", "Clip")
_SMALLEST = 1e-6  # of the largest channel's range: smaller channels are as good as none


def quantize_onnx(path: Path, out: Path, images: CalibrationImages) -> None:
    """Write an ONNX file with the convolutions of another in 8 bits, without its facts.

    Args:
        path: The file, as our export writes it.
        out: The file to write, in a folder of drafts.
        images: Inputs to take the ranges from.
    """
    import onnx
    from onnxruntime.quantization import QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    prepared = out.with_suffix(".prepared.onnx")
    with quiet_logs():  # onnxruntime writes to the root logger
        quant_pre_process(str(path), str(prepared), skip_symbolic_shape=True)
        model = onnx.load(prepared)
        _name_domain_once(model)
        convolutions, activations = _choose_nodes(model.graph)
        raw = [name for name in convolutions if name not in activations]
        equalize(model, raw, _measure_channels(model, raw, images))
        onnx.save(model, prepared)
        quantize_static(
            prepared,
            out,
            _Inputs(model.graph.input[0].name, images),
            op_types_to_quantize=["Conv", *_ACTIVATIONS],
            nodes_to_quantize=[*convolutions, *activations.values()],
            per_channel=True,
            reduce_range=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
    prepared.unlink()


def _name_domain_once(model: "onnx.ModelProto") -> None:
    """Name ONNX's own operators once: joined stages name them twice, which quantizing refuses."""
    versions = {
        "" if used.domain == "ai.onnx" else used.domain: used.version for used in model.opset_import
    }
    del model.opset_import[:]
    for domain, version in versions.items():
        model.opset_import.add(domain=domain, version=version)


def _choose_nodes(graph: "onnx.GraphProto") -> tuple[list[str], dict[str, str]]:
    """Return the convolutions to quantize, and the activation behind each that has one alone."""
    makers: dict[str, str] = {}
    readers: dict[str, list[onnx.NodeProto]] = {}
    nodes = []
    for number, node in enumerate(graph.node):
        node.name = f"{number}/{node.op_type}"  # some have none
        sources = {makers[name] for name in node.input if name in makers}
        nodes.append(Node(node.name, node.op_type in _LEARNED, sources))
        makers |= dict.fromkeys(node.output, node.name)
        for name in node.input:
            readers.setdefault(name, []).append(node)
    inner = find_inner(nodes)
    weights = {tensor.name for tensor in graph.initializer}
    convolutions = [
        node
        for node in graph.node
        if node.op_type == "Conv" and node.name in inner and weights.issuperset(node.input[1:])
    ]
    activations = {}
    for node in convolutions:
        behind = readers.get(node.output[0], [])
        if len(behind) == 1 and behind[0].op_type in _ACTIVATIONS:
            activations[node.name] = behind[0].name
    return [node.name for node in convolutions], activations


def _measure_channels(
    model: "onnx.ModelProto", names: list[str], images: CalibrationImages
) -> dict[str, np.ndarray]:
    """Return the largest absolute value of each output channel of some convolutions, (O,) each."""
    import onnx
    import onnxruntime

    helper = onnx.helper
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    axes = onnx.numpy_helper.from_array(np.array([0, 2, 3]), "int8/axes")
    watched.graph.initializer.append(axes)
    outputs = {node.name: node.output[0] for node in model.graph.node if node.name in names}
    for name, output in outputs.items():
        watched.graph.node.append(helper.make_node("Abs", [output], [f"{name}/abs"]))
        watched.graph.node.append(
            helper.make_node("ReduceMax", [f"{name}/abs", axes.name], [f"{name}/max"], keepdims=0)
        )
        kind = onnx.TensorProto.FLOAT
        watched.graph.output.append(helper.make_tensor_value_info(f"{name}/max", kind, None))
    if not outputs:
        return {}
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        watched.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    wanted = [f"{name}/max" for name in outputs]
    largest: list[np.ndarray] = []
    for place in track_progress(range(len(images)), "Measuring channels", from_count=2):
        found = session.run(wanted, {model.graph.input[0].name: images[place]})
        largest = [np.maximum(*pair) for pair in zip(largest or found, found, strict=True)]
    return dict(zip(outputs, largest, strict=True))


def equalize(model: "onnx.ModelProto", names: list[str], largest: Mapping[str, np.ndarray]) -> None:
    """Bring all output channels of convolutions to one range, and scale them back behind these.

    Args:
        model: Changed in place; it computes what it did.
        names: The convolutions.
        largest: Largest absolute value of each output channel, (O,) each.
    """
    import onnx

    from_array, to_array = onnx.numpy_helper.from_array, onnx.numpy_helper.to_array
    graph = model.graph
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    nodes = list(graph.node)
    del graph.node[:]
    for node in nodes:
        graph.node.append(node)
        if node.name not in names:
            continue
        ranges = largest[node.name].astype(np.float64)
        top = ranges.max()
        back = np.where(ranges > _SMALLEST * top, ranges / (top or 1.0), 1.0)
        for place in range(1, len(node.input)):  # weight (O, ...) and bias (O,)
            values = to_array(tensors[node.input[place]])
            scaled = values / back.reshape(-1, *[1] * (values.ndim - 1))
            # A name of its own: convolutions may share their weights.
            name = f"{node.name}/{place}"
            graph.initializer.append(from_array(scaled.astype(values.dtype), name))
            graph.node[-1].input[place] = name
        output = node.output[0]
        graph.node[-1].output[0] = f"{node.name}/equalized"
        scale = from_array(back.astype(np.float32).reshape(1, -1, 1, 1), f"{node.name}/back")
        graph.initializer.append(scale)
        inputs = [f"{node.name}/equalized", scale.name]
        graph.node.append(onnx.helper.make_node("Mul", inputs, [output], f"{node.name}/mul"))
    used = {name for node in graph.node for name in node.input}
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)


class _Inputs:
    """Images as onnxruntime's `CalibrationDataReader` gives them: one by one, then None."""

    def __init__(self, name: str, images: CalibrationImages) -> None:
        places = track_progress(range(len(images)), "Calibrating", from_count=2)
        self._inputs = iter({name: images[place]} for place in places)

    def get_next(self) -> dict[str, np.ndarray] | None:
        """Return the next image under the input's name."""
        return next(self._inputs, None)
