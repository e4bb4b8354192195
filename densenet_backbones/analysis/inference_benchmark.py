"""Feature maps of one DenseNet, side by side: its libraries, onnxruntime, ours, ours deployed."""

import tempfile
import time
import warnings
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
import torchvision
from torch import Tensor, nn
from torchvision.models._utils import IntermediateLayerGetter

from densenet_backbones.analysis.timing import Timing, interleave, ratios_of
from densenet_backbones.checkpoints import to_ours, to_torchvision
from densenet_backbones.deploy import deploy
from densenet_backbones.variants import VARIANTS

__all__ = [
    "INFERENCE_NOTE",
    "InferenceRow",
    "compare_inference",
    "inference_table",
    "parse_input",
]

INFERENCE_NOTE = (
    "difference: largest of the last map, as a share of that map's largest value, from timm's in "
    "float32; first call: seconds of it, in which compilers compile"
)
# The last map's share that a difference from float32 may be; bfloat16 keeps 8 bits and there are
# over a hundred layers.
_BOUNDS = {torch.float32: 1e-4, torch.bfloat16: 0.15}

Run = Callable[[Tensor], Any]


@dataclass(frozen=True)
class InferenceRow:
    """One way to make the maps.

    Attributes:
        timing: Its name, and seconds of the turns.
        difference: Largest of the last map from timm's in float32, as a share of its largest value.
        first: Seconds of the first call.
    """

    timing: Timing
    difference: float
    first: float


def parse_input(text: str) -> tuple[int, int, int, int]:
    """Batch, channels, height and width of what is typed as ``NxSIZE``.

    Raises:
        ValueError: It is not typed so, or the images are too small.
    """
    batch, _, side = text.partition("x")
    if not (batch.isdecimal() and side.isdecimal() and int(batch) >= 1 and int(side) >= 32):
        raise ValueError(f"--inputs must be like 1x224, of 32 pixels or more, not {text!r}")
    return int(batch), 3, int(side), int(side)


def compare_inference(
    net: str,
    size: tuple[int, int, int, int],
    *,
    turns: int,
    device: torch.device,
    dtype: torch.dtype,
    compiled: bool = False,
) -> tuple[InferenceRow, ...]:
    """Times all that make the feature maps of ``net``, on the same weights and images.

    Args:
        net: A DenseNet that timm and torchvision have: ``densenet121``, ...
        size: (N, 3, H, W).
        turns: Counted rounds; see `interleave`.
        device: Where.
        dtype: float32 or bfloat16, of weights and images.
        compiled: Also compile timm's net and the deployed one.

    Raises:
        ValueError: A library has no such net.
        RuntimeError: Two contenders do not compute the same.
    """
    if net not in VARIANTS or not hasattr(torchvision.models, net):
        known = [name for name in VARIANTS if hasattr(torchvision.models, name)]
        raise ValueError(f"--net must be one of {known}, not {net!r}")
    image = torch.randn(size, generator=torch.Generator().manual_seed(0))
    rows = image.to(device, dtype, memory_format=torch.channels_last)
    nets = _nets(net)
    with torch.inference_mode():
        truth = nets["timm"](image)[-1]
    contenders: dict[str, Run] = {}
    if device.type == "cpu" and dtype == torch.float32:
        contenders |= _onnxruntime(nets["timm"], image)
    for name, model in nets.items():
        model.to(device, dtype).to(memory_format=torch.channels_last)
        contenders[name] = model
    if compiled:
        contenders["timm compiled"] = _compiled(nets["timm"])
        contenders["ours deployed, compiled"] = _compiled(nets["ours deployed"])
    found: dict[str, tuple[float, float]] = {}
    with torch.inference_mode():
        for name, run in contenders.items():
            start = time.perf_counter()
            last = run(rows)[-1]
            found[name] = (
                _difference(name, last, truth, _BOUNDS[dtype]),
                (time.perf_counter() - start),
            )
        timings = interleave(
            {name: partial(run, rows) for name, run in contenders.items()},
            turns,
            synchronize=torch.cuda.synchronize if device.type == "cuda" else lambda: None,
        )
    return tuple(InferenceRow(timing, *found[timing.name]) for timing in timings)


def _difference(name: str, last: Tensor, truth: Tensor, bound: float) -> float:
    last = last.float().cpu().relu()  # torchvision and smp leave the last ReLU out
    difference = float((last - truth).abs().max() / truth.abs().max())
    if not difference <= bound:
        raise RuntimeError(f"{name} differs by {difference:.1e}; times cannot be compared")
    return difference


def _nets(name: str) -> OrderedDict[str, nn.Module]:
    theirs = timm.create_model(name, features_only=True)
    for key, buffer in theirs.named_buffers():
        # Fresh statistics (0 and 1) would hide a norm that reads the wrong ones.
        if key.endswith("running_mean"):
            buffer.normal_(std=0.1)
        elif key.endswith("running_var"):
            buffer.uniform_(0.5, 1.5)
    ours = timm.create_model(f"{name}_features")
    ours.load_state_dict(to_ours(theirs.state_dict()))
    weights = to_torchvision(ours.state_dict())
    build: Any = getattr(torchvision.models, name)
    whole = build(weights=None)
    whole.load_state_dict(weights, strict=False)  # but for the classifier
    taps = {"relu0": "0", **{f"denseblock{i}": str(i) for i in range(1, 5)}, "norm5": "5"}
    getter = IntermediateLayerGetter(whole.features, taps)
    nets = OrderedDict[str, nn.Module](timm=theirs, torchvision=_Listed(getter))
    try:
        from segmentation_models_pytorch.encoders import get_encoder
    except ModuleNotFoundError:
        pass  # it is not among the package's own requirements
    else:
        encoder = get_encoder(name, weights=None)
        encoder.load_state_dict({**encoder.state_dict(), **weights})
        nets["smp"] = encoder
    nets["ours"] = ours
    for net in nets.values():
        net.eval()
    nets["ours deployed"] = deploy(ours)
    return nets


class _Listed(nn.Module):
    """A net that returns its maps by name, as one that returns them in a list."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> list[Tensor]:
        return list(self.net(x).values())


def _compiled(net: nn.Module) -> Run:
    torch.compiler.reset()
    compiled: Run = torch.compile(net)
    return compiled


def _onnxruntime(net: nn.Module, image: Tensor) -> dict[str, Run]:
    """Timm's net, exported; nothing where the packages for it are not installed."""
    try:
        import onnxruntime
        import onnxscript  # noqa: F401 - what torch's exporter needs
    except ModuleNotFoundError:
        return {}
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter's own
        file = Path(folder) / "net.onnx"
        torch.onnx.export(net, (image,), file, dynamo=True, verbose=False)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        # Its threads would go on waiting for work in the next contender's turn.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    given = image.numpy()  # it knows one layout
    return {
        "timm in onnxruntime": lambda _: [
            torch.from_numpy(found) for found in session.run(None, {name: given})
        ]
    }


def inference_table(rows: Sequence[InferenceRow]) -> str:
    """One line a contender: milliseconds, times slower or faster than the deployed net."""
    deployed = next(row.timing for row in rows if row.timing.name == "ours deployed")
    width = max(len(row.timing.name) for row in rows)
    head = f"{'':{width}}  median ms  time / ours deployed (min .. max)  difference  first call s"
    lines = [head]
    for row in rows:
        ratio = ratios_of(row.timing, deployed)
        lines.append(
            f"{row.timing.name:{width}}  {row.timing.median * 1e3:9.2f}  {ratio:32}  "
            f"{row.difference:10.1e}  {row.first:12.2f}"
        )
    return "\n".join(lines)
