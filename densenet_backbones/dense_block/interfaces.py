"""Contracts between layers, executions and kernels: a dense layer's parts, weights, memory layout.

A dense layer is that of Huang et al. (1608.06993, section 3).

Shapes: N images, C channels of the concatenation, B of the bottleneck, k new maps, H and W pixels.
"""

import warnings
import weakref
from collections.abc import Iterator, Sequence
from math import inf
from typing import Literal, NamedTuple, Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook
from torch.nn.utils.parametrize import is_parametrized
from torchvision.ops import FrozenBatchNorm2d

__all__ = [
    "DenseLayerLike",
    "LayerWeights",
    "Role",
    "TensorState",
    "allocate_channels_last",
    "calls_children_in_turn",
    "count_norm_channels",
    "find_change",
    "find_layer_change",
    "has_hooks",
    "has_own_methods",
    "is_in_rows",
    "list_children",
    "list_parts",
    "read_relu_ceiling",
    "read_weight",
    "warn_eagerly",
]


class DenseLayerLike(Protocol):
    """A dense layer as executions see it; ``layer(x)`` is ``expand(squeeze(x))``.

    The modules are norm-activation-convolution, once, or twice with a bottleneck.
    """

    @property
    def bottleneck(self) -> bool:
        """True if there is a bottleneck; without one, ``squeeze`` makes the new maps."""

    @property
    def norm1(self) -> nn.Module:
        """Norm of the concatenation."""

    @property
    def relu1(self) -> nn.Module:
        """Activation behind ``norm1``."""

    @property
    def conv1(self) -> nn.Conv2d:
        """The 1x1 to the bottleneck; without one the 3x3 to the new maps."""

    @property
    def norm2(self) -> nn.Module:
        """Norm of the bottleneck, if there is one."""

    @property
    def relu2(self) -> nn.Module:
        """Activation behind ``norm2``."""

    @property
    def conv2(self) -> nn.Conv2d:
        """The 3x3 from the bottleneck to the new maps."""

    @property
    def drop_rate(self) -> float:
        """Probability of a new value to be dropped in training."""

    @property
    def drop_path_rate(self) -> float:
        """Probability of a sample to go without the new maps in training."""

    @property
    def training(self) -> bool:
        """True in training mode."""

    def __call__(self, x: Tensor) -> Tensor:
        """Compute new maps, (N, k, H, W), from the concatenation, (N, C, H, W)."""

    def squeeze(self, x: Tensor) -> Tensor:
        """Run norm, activation and first convolution: the concatenation to bottleneck maps."""

    def expand(self, x: Tensor) -> Tensor:
        """Run the rest of the layer: bottleneck maps to new maps."""

    def modules(self) -> Iterator[nn.Module]:
        """Return the layer and everything in it."""


class LayerWeights(NamedTuple):
    """A folded layer with bottleneck as kernels take it: what `FoldedLayer.list_tensors` returns.

    Attributes:
        scale: Scale of the first norm, (C,), of the maps' type or of a longer one.
        shift: Shift of the first norm, (C,), likewise.
        weight1: Weight of the 1x1 convolution, (C, B), of the maps' type.
        bias1: Bias of the 1x1 convolution, (B,).
        weight2: Weight of the 3x3 convolution, (k, B, 3, 3), channels last.
        bias2: Bias of the 3x3 convolution, (k,).
    """

    scale: Tensor
    shift: Tensor
    weight1: Tensor
    bias1: Tensor
    weight2: Tensor
    bias2: Tensor


def has_hooks(module: nn.Module) -> bool:
    """Return True if hooks are registered on ``module`` itself; its parts may have their own.

    Hooks for all modules (`torch.nn.modules.module.register_module_forward_hook`) count too.
    """
    return bool(
        _has_any_global_hook()
        or module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
    )


class TensorState:
    """State of tensors at one time: which ones, where, and changed in place how often.

    Not seen are changes through ``.data`` or NumPy, which torch does not count. Of inference
    tensors it counts none, so that these never hold.

    Args:
        tensors: Tensors, which it does not keep alive.
    """

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self._refs = [weakref.ref(tensor) for tensor in tensors]
        self._marks = _list_marks(tensors)

    def holds(self, tensors: Sequence[Tensor]) -> bool:
        """Return True if these are the tensors, as they were then."""
        # Addresses alone come again once a tensor is gone.
        same = [ref() for ref in self._refs]
        return (
            len(same) == len(tensors)
            and all(a is b for a, b in zip(same, tensors, strict=True))
            and _list_marks(tensors) == self._marks
            and not any(tensor.is_inference() for tensor in tensors)
        )


def _list_marks(tensors: Sequence[Tensor]) -> list[tuple[int, int]]:
    return [(t.data_ptr(), 0 if t.is_inference() else t._version) for t in tensors]


def list_children(module: nn.Module) -> list[tuple[str, nn.Module]]:
    """Return names and children in order; one that is there twice, which runs twice, twice.

    `nn.Module.named_children` leaves out the second time.
    """
    return [(name, child) for name, child in module._modules.items() if child is not None]


def calls_children_in_turn(module: nn.Module) -> bool:
    """Return True if a module's ``forward`` calls its children in turn.

    So does what runs by `nn.Sequential`'s ``forward``, and classes (not their heirs) that say so
    by an attribute ``calls_children_in_turn``.
    """
    kind = type(module)
    known = kind.forward is nn.Sequential.forward or "calls_children_in_turn" in vars(kind)
    return known and not has_own_methods(module)


def has_own_methods(module: nn.Module) -> bool:
    """Return True if a method that computes was set on the instance, beside its class's."""
    return not _METHODS.isdisjoint(vars(module))


Role = Literal["norm", "relu", "act", "conv", "masked_conv", "pool", "layer", "halves", "block"]
"""Part a module plays for the code that reads it: ``relu`` is `nn.ReLU`, ``act`` any activation,
``block`` a dense block.

``masked_conv`` is a convolution whose weight is read by `read_weight`, so one with learned groups
is known too. ``halves`` is a layer that may read some of the maps: `expand(squeeze(x))`.
"""

# Exact types, as heirs may compute anything. Classes beside these name their role themselves, by an
# attribute that their heirs do not inherit: see `find_change`.
_KNOWN: dict[Role, tuple[type[nn.Module], ...]] = {
    "norm": (nn.BatchNorm2d, nn.SyncBatchNorm, FrozenBatchNorm2d),
    "relu": (nn.ReLU,),
    "act": (nn.ReLU, nn.ReLU6),
    "conv": (nn.Conv2d,),
    "masked_conv": (nn.Conv2d,),
    "pool": (nn.AvgPool2d, nn.MaxPool2d),
    "layer": (),
    "halves": (),
    "block": (),
}
_MARKS: dict[Role, tuple[str, ...]] = {
    "norm": ("evaluates_as_batch_norm", "batch_statistics_in_eval"),
    "masked_conv": ("convolves_masked_weight",),
    "layer": ("runs_squeeze_and_expand",),
    "halves": ("runs_squeeze_and_expand", "runs_in_halves"),
    "block": ("concatenates_layers",),
}
# What an instance may have of its own.
_METHODS = frozenset({"forward", "squeeze", "expand", "_conv_forward", "_run"})
_ACTIVATIONS = ("torch.nn.modules.activation", "timm.layers.activations")
_OVER_CHANNELS = (nn.Softmax, nn.Softmax2d, nn.Softmin, nn.LogSoftmax, nn.GLU)


def find_change(module: nn.Module, role: Role) -> str | None:
    """Return why a module may not be computed from its settings and weights; None if it may.

    This is the one question that memory modes and the deployed form ask before they compute by
    themselves what a module does. Known are exact types, and classes (not their heirs) with one of
    the attributes ``evaluates_as_batch_norm``, ``batch_statistics_in_eval`` for norms,
    ``convolves_masked_weight`` for convolutions, ``runs_squeeze_and_expand`` for dense layers,
    ``runs_in_halves`` for those that read some of the maps, and ``concatenates_layers`` for blocks.

    Args:
        module: Module to read.
        role: Role that the reader takes it for.

    Returns:
        The end of a sentence that begins with the module's name, such as "is a LoraConv2d".
    """
    if not _is_known(type(module), role):
        if is_parametrized(module):
            return "is parametrized"
        return f"is {_add_article(type(module).__name__)}"
    if has_own_methods(module):
        return "has a forward of its own"
    if has_hooks(module):
        return "carries hooks"
    if role in ("conv", "masked_conv"):
        assert isinstance(module, nn.Conv2d)
        if module.padding_mode != "zeros":
            return f"pads with padding_mode={module.padding_mode!r}"
        if isinstance(module.padding, str):
            return f"has padding={module.padding!r}"
    # Kernels take addresses: what is not as large as it says would be read beyond its end.
    if role in _SIZED and not _has_its_sizes(module):
        return "has tensors of other sizes than it says"
    return None


_SIZED: tuple[Role, ...] = ("norm", "conv", "masked_conv")


def _has_its_sizes(module: nn.Module) -> bool:
    """Return True if a norm's or a convolution's tensors are as large as its settings say."""
    if isinstance(module, nn.Conv2d):
        of_kernel = module.in_channels // module.groups, *module.kernel_size
        bias = module.bias is None or module.bias.shape == (module.out_channels,)
        return bias and module.weight.shape == (module.out_channels, *of_kernel)
    channels = (count_norm_channels(module),)
    vectors = (getattr(module, name, None) for name in _VECTORS)
    return all(vector is None or vector.shape == channels for vector in vectors)


_VECTORS = ("weight", "bias", "running_mean", "running_var")


def count_norm_channels(norm: nn.Module) -> int:
    """Return the number of channels that a norm takes."""
    # torchvision's frozen one does not say.
    channels = getattr(norm, "num_features", None)
    return len(cast(Tensor, norm.weight)) if channels is None else int(channels)


def _is_known(kind: type[nn.Module], role: Role) -> bool:
    if kind in _KNOWN[role] or any(mark in vars(kind) for mark in _MARKS.get(role, ())):
        return True
    # Activations of the libraries work value by value; those with weights are compared by readers.
    pointwise = kind.__module__.startswith(_ACTIVATIONS) and kind not in _OVER_CHANNELS
    return role == "act" and pointwise


def _add_article(name: str) -> str:
    return f"{'an' if name[0] in 'AEIOUaeiou' else 'a'} {name}"


def read_weight(conv: nn.Conv2d) -> Tensor:
    """Return the weight that a convolution uses: of learned groups the masked one."""
    masked = getattr(conv, "masked_weight", None)
    return conv.weight if masked is None else cast(Tensor, masked())


def list_parts(
    layer: DenseLayerLike, act: Role, conv: Role = "conv"
) -> list[tuple[str, nn.Module, Role]]:
    """List name, module and role of a dense layer's parts.

    Args:
        layer: Dense layer.
        act: Role of its activations.
        conv: Role of its convolutions.
    """
    parts: list[tuple[str, nn.Module, Role]] = [
        ("norm1", layer.norm1, "norm"),
        ("relu1", layer.relu1, act),
        ("conv1", layer.conv1, conv),
    ]
    if layer.bottleneck:
        parts += [
            ("norm2", layer.norm2, "norm"),
            ("relu2", layer.relu2, act),
            ("conv2", layer.conv2, conv),
        ]
    return parts


def find_layer_change(
    layer: nn.Module, name: str, act: Role = "relu", conv: Role = "conv", role: Role = "layer"
) -> str | None:
    """Return which part of a dense layer `find_change` objects to, and why; None if it has none.

    Args:
        layer: Dense layer, or what was put in its place.
        name: Name of the layer, with which the sentence begins.
        act: Role of its activations.
        conv: Role of its convolutions.
        role: Role of the layer, which has these parts.
    """
    change = find_change(layer, role)
    if change is not None:
        return f"{name} {change}"
    for part, module, kind in list_parts(layer, act, conv):  # type: ignore[arg-type] # known by now
        change = find_change(module, kind)
        if change is not None:
            return f"{name}.{part} {change}"
    return None


def read_relu_ceiling(act: nn.Module) -> float | None:
    """Return the value at which an activation cuts off, beside 0: infinity for ReLU, 6 for ReLU6.

    None for any other activation, heirs of these included.
    """
    if type(act) is nn.ReLU6:
        return 6.0
    return inf if type(act) is nn.ReLU else None


def warn_eagerly(text: str) -> None:
    """Warn as the caller of the function that calls this; not in compiled code, which cannot."""
    if not torch.compiler.is_compiling():
        warnings.warn(text, stacklevel=3)


def is_in_rows(x: Tensor, dense: bool = False) -> bool:
    """Return True if a map is channels last: all of a tensor, or the first channels of a wider one.

    Args:
        x: (N, C, H, W).
        dense: Accept only a map without gaps between pixels.
    """
    _, channels, height, width = x.shape
    stride = channels if dense else x.stride(3)
    return x.stride() == (height * width * stride, 1, width * stride, stride)


def allocate_channels_last(x: Tensor, channels: int) -> Tensor:
    """Allocate a channels-last map, (N, ``channels``, H, W), of the type and device of ``x``."""
    images, _, height, width = x.shape
    return x.new_empty((images, height, width, channels)).permute(0, 3, 1, 2)
