"""Build what makes the feature maps of one DenseNet: its libraries and ours, on equal weights."""

import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

import timm
import torch
import torchvision
from torch import Tensor, nn
from torchvision.models._utils import IntermediateLayerGetter

from densenet_backbones.checkpoints import to_ours, to_torchvision
from densenet_backbones.deploy import deploy

__all__ = [
    "DEPLOYED",
    "Run",
    "add_if_installed",
    "build_feature_nets",
    "build_in_onnxruntime",
    "compile_nets",
]

DEPLOYED = "ours deployed"
_ON_GPU = ("timm", DEPLOYED)
_T = TypeVar("_T")

Run = Callable[[Tensor], Sequence[Tensor]]
"""Function from images to maps."""


def build_feature_nets(
    name: str, device: torch.device
) -> tuple[dict[str, nn.Module], dict[str, str]]:
    """Build nets by name, in evaluation mode on a device; also return why others are missing.

    Args:
        name: A DenseNet that timm and torchvision have.
        device: On a GPU the nets are timm's and the deployed one alone.
    """
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
    nets: dict[str, nn.Module] = {"timm": theirs, "torchvision": _build_torchvision(name, weights)}
    missing = add_if_installed("smp", partial(_build_smp, name, weights), nets)
    nets["ours"] = ours
    nets[DEPLOYED] = deploy(ours)
    if device.type == "cuda":
        nets, missing = {contender: nets[contender] for contender in _ON_GPU}, {}
    return {contender: net.eval().to(device) for contender, net in nets.items()}, missing


def add_if_installed(
    name: str, build: Callable[[], _T], contenders: dict[str, _T]
) -> dict[str, str]:
    """Add what another package makes; return why not if it is not installed."""
    try:
        contenders[name] = build()
    except ModuleNotFoundError as error:  # it is not among the package's own requirements
        package = (error.name or name).partition(".")[0]
        return {name: f"{package} is not installed"}
    return {}


def _build_torchvision(name: str, weights: dict[str, Tensor]) -> nn.Module:
    whole = torchvision.models.get_model(name, weights=None)
    whole.load_state_dict(weights, strict=False)  # but for the classifier
    taps = {"relu0": "0", **{f"denseblock{i}": str(i) for i in range(1, 5)}, "norm5": "5"}
    return _Listed(IntermediateLayerGetter(whole.features, taps))


class _Listed(nn.Module):
    """Wrapper that returns in a list the maps that a net returns by name."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> list[Tensor]:
        return list(self.net(x).values())


def _build_smp(name: str, weights: dict[str, Tensor]) -> nn.Module:
    from segmentation_models_pytorch.encoders import get_encoder

    encoder: nn.Module = get_encoder(name, weights=None)
    encoder.load_state_dict({**encoder.state_dict(), **weights})
    return encoder


def build_in_onnxruntime(net: nn.Module, image: Tensor) -> Run:
    """Export a net and run it in onnxruntime, for images of one size.

    Raises:
        ModuleNotFoundError: onnxruntime or onnxscript is not installed.
    """
    import onnxruntime
    import onnxscript  # noqa: F401 - what torch's exporter needs

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
    pixels = image.numpy()  # it knows one layout
    return lambda _: [torch.from_numpy(maps) for maps in session.run(None, {name: pixels})]


def compile_nets(
    nets: Mapping[str, nn.Module], device: torch.device, requested: bool
) -> dict[str, Run]:
    """Compile the nets of `compare_inference` that are to be compiled."""
    torch.compiler.reset()
    on_gpu = device.type == "cuda"
    modes = {"timm": "max-autotune" if on_gpu else "default"} if requested else {}
    if requested or on_gpu:
        # After its eager run: that chooses kernels by measurement, which no graph can.
        modes[DEPLOYED] = "reduce-overhead" if on_gpu else "default"
    return {
        f"{name}, compiled": torch.compile(nets[name], mode=mode, dynamic=False)
        for name, mode in modes.items()
    }
