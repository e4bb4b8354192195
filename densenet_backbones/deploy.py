"""The folded form of a network for inference: the same features from fewer operations.

What changes, for the DenseNets and dense blocks within a network; all else stays as it is:

- a dense block fills one buffer: no concatenation (see `dense_block.folded`);
- norms behind a convolution (``norm0`` of the stem, every ``norm2``) are part of its weights;
- norms of a concatenation (``norm1``, ``transition<i>.norm``, ``norm5``) are one scale and shift;
- an average pool stands before the transition's 1x1 convolution, which then reads a quarter of the
  cells. Both are linear, so their order is free; a tap between them keeps it.

Norms become a scale and a shift, or part of a convolution, by the formula of Ioffe and Szegedy
(1502.03167, section 3.1).

Shapes: N images, C channels, H and W pixels.
"""

import copy
import warnings
from collections import OrderedDict
from collections.abc import Iterator
from itertools import accumulate
from typing import cast

import torch
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

from densenet_backbones.dense_block import (
    FoldedConv2d,
    FoldedLayer,
    FoldedTransition,
    ScaleShift,
    has_hooks,
    is_recorded,
    run_folded,
    run_folded_compiled,
    run_plain,
)
from densenet_backbones.layers import DenseBlock, DenseLayer
from densenet_backbones.stages import DenseStages

__all__ = ["FoldedBlock", "deploy", "is_deployable"]


def deploy(model: nn.Module) -> nn.Module:
    """Return a copy of a model, in evaluation mode, whose DenseNets run from folded weights.

    The copy has the interface of the model: taps, levels, post-processing. Its parts are not to be
    trained, and their weights have names of their own: save the model, and deploy what was loaded.
    Feature maps come channels last. Under ``torch.compile`` a dense block is one operation, which
    keeps compiling short; ``torch.export``, tracing and gradients of the image take a form that
    concatenates, from the same folded weights. TorchScript's compiler is not supported.

    On a CPU in float32, and in bfloat16 where an x86 processor has AVX512_BF16 but no AMX, dense
    blocks and transitions run in C++ kernels, which the machine's own compiler (``c++``, ``g++``,
    ``clang++``, or what ``CXX`` names) makes in the first run, in seconds, and which are kept in
    ``$XDG_CACHE_HOME/densenet_backbones`` (``~/.cache``). Their 3x3 convolutions are Winograd's: a
    value that is not finite reaches the tile of 2x2 cells around each cell that it should reach.
    Without a compiler PyTorch's convolutions are used, which is said once;
    ``DENSENET_BACKBONES_NATIVE=0`` in the environment asks for that.

    On GPUs plain operators run, which is cuDNN from folded weights. ``DENSENET_BACKBONES_TRITON=1``
    in the environment (or `dense_block.backends.use_triton`) switches to Triton kernels, on NVIDIA
    GPUs of compute capability 8.0 or newer, in bfloat16, float16 or float32. These were never run
    on a card, so their first use checks them against plain operators on a small block, and where
    they differ they stay off, which is said once. They are compiled and chosen by measurement in
    the first run of each size: minutes for a large net.

    Starting many small kernels can take longer than they run, above all for few images. A CUDA
    graph starts them at once, for one size of image, and writes every result over the one before::

        deployed = deploy(model).to("cuda", torch.bfloat16)
        with torch.inference_mode():
            deployed(images)  # chooses and checks kernels, which cannot be done within a graph
            fast = torch.compile(deployed, mode="reduce-overhead")
            maps = fast(images)

    Args:
        model: A feature net, a classifier, or whatever holds one: a detector, a segmenter, an
            encoder of another library. It stays as it is.

    Returns:
        The deployed copy. What cannot be folded in it runs as before, and a warning names it:
        norms without fixed statistics (group norm, statistics of the batch in evaluation), and
        parts with hooks.

    Raises:
        ValueError: There is no DenseNet and no dense block in the model.
    """
    if not is_deployable(model):
        raise ValueError(
            f"{type(model).__name__} holds no DenseNet of this package, so there is nothing to "
            "deploy; run it as it is"
        )
    # Blocks first, as modules of their own; then what stands around them in each net.
    model = copy.deepcopy(model).eval()
    parts = list(model.named_modules())
    blocks = [(name, part) for name, part in parts if name and isinstance(part, DenseBlock)]
    nets = [(name, part) for name, part in parts if isinstance(part, DenseStages)]
    unfolded = [name for name, block in blocks if not _replace(model, name, _fold_block(block))]
    for prefix, net in nets:
        unfolded += [f"{prefix}.{name}".lstrip(".") for name in _fold_stages(net)]
    if unfolded:
        warnings.warn(
            f"deploy leaves {', '.join(unfolded)} unfolded: they have hooks, or norms without "
            "fixed statistics",
            stacklevel=2,
        )
    return model


def is_deployable(model: nn.Module) -> bool:
    """Return True if `deploy` finds a DenseNet or a dense block in a model."""
    own = any(isinstance(part, DenseStages) for part in model.modules())
    return own or any(isinstance(part, DenseBlock) for part in model.modules() if part is not model)


def _replace(model: nn.Module, name: str, module: nn.Module | None) -> bool:
    if module is not None:
        model.set_submodule(name, module)
    return module is not None


class FoldedBlock(nn.ModuleDict):
    """A dense block of `FoldedLayer`, under the names of the layers that they stand for.

    Args:
        layers: Layers by name, in order.
        in_channels: Number of channels of the block's input.
    """

    def __init__(self, layers: OrderedDict[str, nn.Module], in_channels: int) -> None:
        super().__init__(layers)
        self.in_channels = in_channels

    def _get_layers(self) -> list[FoldedLayer]:
        return cast("list[FoldedLayer]", list(self.values()))

    def widths(self) -> Iterator[tuple[str, int]]:
        """Return each layer's name, and the channels of the concatenation with its maps."""
        new = (layer.conv.out_channels for layer in self._get_layers())
        return zip(self, list(accumulate(new, initial=self.in_channels))[1:], strict=True)

    def forward(self, x: Tensor) -> Tensor:
        """Concatenate the input and all new maps, (N, C + layers * k, H, W)."""
        layers = self._get_layers()
        if is_recorded(x):
            return run_plain(x, layers)
        if torch.compiler.is_compiling():
            return run_folded_compiled(x, layers)
        return run_folded(x, layers)


def _fold_block(block: DenseBlock) -> FoldedBlock | None:
    layers = OrderedDict[str, nn.Module]()
    for name, layer in block.items():
        folded = _fold_layer(cast(DenseLayer, layer))
        if folded is None:
            return None
        layers[name] = folded
    if any(map(has_hooks, block.modules())):
        return None
    first = cast(DenseLayer, next(iter(block.values())))
    return FoldedBlock(layers, first.conv1.in_channels)


def _fold_layer(layer: DenseLayer) -> FoldedLayer | None:
    affine = _compute_affine(layer.norm1)
    if affine is None:
        return None
    squeeze, conv = None, layer.conv1
    if layer.bottleneck:
        fused, conv = _fuse(layer.conv1, layer.norm2), layer.conv2
        if fused is None:
            return None
        squeeze = fused[0].flatten(1).t().contiguous(), fused[1]
    scale, shift = (part.to(conv.weight.dtype) for part in affine)
    return FoldedLayer(scale, shift, squeeze, _fold_conv(conv), layer.relu1)


def _fold_stages(net: DenseStages) -> list[str]:
    """Fold all of a net but its blocks; return the names of what it cannot fold."""
    tapped = {str(level["module"]) for level in net.feature_info}
    tapped |= set(getattr(net, "return_layers", ()))
    folded: dict[str, bool] = {}
    for name, _ in list(net.named_children()):
        number = name.removeprefix("transition").removeprefix("norm")
        if name.startswith("transition"):
            folded[name] = _fold_transition(net, number, tapped)
        elif name == "norm5":
            folded[name] = _fold_last_norm(net, tapped)
        elif name.startswith("norm"):
            folded[name] = _fold_stem(net, number, tapped)
    return [name for name, done in folded.items() if not done]


def _fold_stem(net: DenseStages, number: str, tapped: set[str]) -> bool:
    """Fold ``norm<number>`` into the convolution before it; return True if that was done."""
    conv, norm = getattr(net, f"conv{number}"), getattr(net, f"norm{number}")
    fused = None if has_hooks(conv) or f"conv{number}" in tapped else _fuse(conv, norm)
    if fused is None:
        return False
    setattr(net, f"conv{number}", FoldedConv2d(conv, *fused))
    setattr(net, f"norm{number}", nn.Identity())
    if f"norm{number}" not in tapped:
        _work_in_place(getattr(net, f"relu{number}"))
    return True


def _fold_transition(net: DenseStages, number: str, tapped: set[str]) -> bool:
    """Fold a transition's norm; take in the pool behind it if nothing looks in between."""
    children = dict(net.named_children())
    name, pool = f"transition{number}", children.get(f"pool{number}")
    transition = children[name]
    norm, act, *conv = transition.children()
    scale_shift = _make_scale_shift(norm)
    if scale_shift is None or any(map(has_hooks, transition.modules())):
        return False
    parts = OrderedDict[str, nn.Module](norm=scale_shift, relu=act)
    if conv and name not in tapped and isinstance(pool, nn.AvgPool2d) and not has_hooks(pool):
        parts["pool"] = pool
        setattr(net, f"pool{number}", nn.Identity())
    if conv:  # cut off behind a last tap
        parts["conv"] = _fold_conv(cast(nn.Conv2d, conv[0]))
    setattr(net, name, FoldedTransition(parts))
    return True


def _fold_last_norm(net: DenseStages, tapped: set[str]) -> bool:
    children = dict(net.named_children())
    scale_shift = _make_scale_shift(children["norm5"])
    if scale_shift is None:
        return False
    net.norm5 = scale_shift
    if "norm5" not in tapped:
        _work_in_place(children["relu5"])
    return True


def _work_in_place(act: nn.Module) -> None:
    if isinstance(act, nn.ReLU):  # others may need their input twice
        act.inplace = True


def _fold_conv(conv: nn.Conv2d) -> FoldedConv2d:
    weight, bias = conv.weight.detach().clone(), conv.bias
    return FoldedConv2d(conv, weight, weight.new_zeros(len(weight)) if bias is None else bias.data)


def _fuse(conv: nn.Conv2d, norm: nn.Module) -> tuple[Tensor, Tensor] | None:
    """Fuse a convolution with the norm behind it: weight and bias; None if that is not fixed."""
    affine = _compute_affine(norm)
    if affine is None:
        return None
    scale, shift = affine
    weight = conv.weight.detach().double() * scale[:, None, None, None]
    if conv.bias is not None:
        shift = shift + conv.bias.detach().double() * scale
    return weight.to(conv.weight.dtype), shift.to(conv.weight.dtype)


def _make_scale_shift(norm: nn.Module) -> ScaleShift | None:
    affine = _compute_affine(norm)
    if affine is None:
        return None
    dtype = cast(Tensor, norm.running_mean).dtype
    return ScaleShift(affine[0].to(dtype), affine[1].to(dtype))


def _compute_affine(norm: nn.Module) -> tuple[Tensor, Tensor] | None:
    """Compute a norm's scale and shift in evaluation, (C,), float64; None if not fixed."""
    # Exact types: heirs may compute anything, and batch norm may have no running statistics.
    known = type(norm) in (nn.BatchNorm2d, nn.SyncBatchNorm) or isinstance(norm, FrozenBatchNorm2d)
    if not known or norm.running_var is None or has_hooks(norm):
        return None
    mean, variance = cast(Tensor, norm.running_mean).double(), cast(Tensor, norm.running_var)
    scale = (variance.double() + cast(float, norm.eps)).rsqrt()
    if norm.weight is not None:
        scale = scale * cast(Tensor, norm.weight).detach().double()
    shift = -mean * scale
    return scale, shift if norm.bias is None else shift + cast(Tensor, norm.bias).detach().double()
