"""The folded form of a network for inference: the same features from fewer operations.

What changes within a network; all else stays as it is:

- a dense block fills one buffer: no concatenation (see `dense_block.folded`);
- norms behind a convolution (``norm0`` of the stem, every ``norm2``) are part of its weights, and a
  ReLU behind those is part of the convolution where a kernel writes its result;
- layers and connections that were pruned away cost nothing or read zeros: see `FoldedBlock`;
- norms of a concatenation (``norm1``, ``transition<i>.norm``, ``norm5``) are one scale and shift;
- an average pool stands before the transition's 1x1 convolution, which then reads a quarter of the
  cells. Both are linear, so their order is free; a tap between them keeps it;
- convolutions around them (necks, decoders, heads) take in a norm and a ReLU that follow in a row,
  and their weights are laid out once;
- learned groups of a CondenseNet become indices and group convolutions (`condensenet.convert`).
  Its blocks are folded no further: the buffer's kernels have no groups.

Shapes: N images, C channels, H and W pixels.
"""

import copy
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn

from densenet_backbones.condensenet import (
    CondensedConv2d,
    LearnedGroupConv2d,
    convert,
    find_learned_groups,
)
from densenet_backbones.dense_block import (
    FoldedConv2d,
    FoldedLayer,
    FoldedMaxPool2d,
    FoldedTransition,
    Role,
    calls_children_in_turn,
    find_change,
    find_layer_change,
    has_hooks,
    list_children,
)
from densenet_backbones.deploy.block import FoldedBlock
from densenet_backbones.deploy.convolutions import (
    UnfoldableError,
    compute_affine,
    fold_activation,
    fold_conv,
    fuse,
    make_scale_shift,
)
from densenet_backbones.layers import AbsentLayer, DenseBlock, DenseLayer, SelectiveLayer
from densenet_backbones.stages import DenseStages

__all__ = ["deploy", "is_deployable"]


# Of inference tensors changes in place are not counted: weights laid out of them could be stale.
@torch.inference_mode(False)
@torch.no_grad()
def deploy(model: nn.Module, *, for_export: bool = False) -> nn.Module:
    """Return a copy of a model, in evaluation mode, whose DenseNets run from folded weights.

    The copy has the interface of the model: taps, levels, post-processing. Its parts are not to be
    trained, and their weights have names of their own: save the model, and deploy what was loaded.
    What lies between the levels has other values behind the same names, as norms and pools are
    folded into their neighbors; and a `Sequential` of convolutions, norms and activations beside
    the nets is folded as one that runs as a whole, so read nothing in the middle of it. Weights may
    change in place, but for changes through ``.data`` or NumPy, which torch does not count.
    Feature maps come channels last. Under ``torch.compile`` a dense block is one operation, which
    keeps compiling short; ``torch.export``, tracing and gradients of the image take a form that
    concatenates, from the same folded weights (export with sizes that vary by
    ``prefer_deferred_runtime_asserts_over_guards=True``). TorchScript's compiler is not supported.

    On a CPU in float32, and in bfloat16 where an x86 processor has AVX512_BF16 (in whole tiles
    where it has AMX), dense blocks and transitions run in C++ kernels, which the machine's own
    compiler (``c++``, ``g++``, ``clang++``, or what ``CXX`` names) makes in the first run, in
    seconds, and which are kept in ``$XDG_CACHE_HOME/densenet_backbones`` (``~/.cache``). Their 3x3
    convolutions are Winograd's, in float32 with errors of about twice a plain one's: a value that
    is not finite reaches the tile of 4x4 cells around each cell that it should reach. Without a
    compiler PyTorch's convolutions are used, which is said once; ``DENSENET_BACKBONES_NATIVE=0`` in
    the environment asks for that.

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
        for_export: Leave pruned blocks as they are. An exported graph then holds and multiplies the
            weights that are left, where the kernels read zeros in the place of others.

    Returns:
        The deployed copy. What cannot be folded in it runs as before, and one warning names it and
        says why: norms without fixed statistics (group norm, statistics of the batch in
        evaluation), parts with hooks, parametrizations or a ``forward`` of their own, and what was
        put in the place of a layer: a subclass, another geometry, two activations in one layer.
        Hooks registered on parts of the copy are called, and a block whose layers carry some runs
        layer by layer, which a warning says.

    Raises:
        ValueError: There is no DenseNet and no dense block in the model.
    """
    if not is_deployable(model):
        raise ValueError(
            f"{type(model).__name__} holds no DenseNet of this package, so there is nothing to "
            "deploy; run it as it is"
        )
    # Blocks first, as modules of their own; then what stands around them in each net.
    condensed = {name for name, part in model.named_modules() if _is_condensed(part)}
    learned = any(find_learned_groups(model))
    model = (convert(model) if learned else _copy(model)).eval()
    parts = list(model.named_modules())
    blocks = [(name, part) for name, part in parts if name and isinstance(part, DenseBlock)]
    blocks = [(name, block) for name, block in blocks if name not in condensed]
    if for_export:
        blocks = [(name, block) for name, block in blocks if not _is_pruned(block)]
    nets = [(name, part) for name, part in parts if isinstance(part, DenseStages)]
    reasons: list[str] = []
    unfolded: list[str] = []

    def fold(name: str, run: Callable[[], None]) -> None:
        try:
            run()
        except UnfoldableError as error:
            unfolded.append(name)
            reasons.append(str(error))

    for name, block in blocks:
        fold(name, partial(_fold_block, model, name, block))
    for prefix, net in nets:
        for name, run in _list_stages(net, f"{prefix}.".lstrip(".")):
            fold(name, run)
        for name, pool in list_children(net):
            if isinstance(pool, nn.MaxPool2d) and not (
                pool.return_indices or find_change(pool, "pool")
            ):
                setattr(net, name, FoldedMaxPool2d(pool))
    _fold_around(model)
    if unfolded:
        warnings.warn(
            f"deploy leaves {', '.join(unfolded)} unfolded: {', '.join(dict.fromkeys(reasons))}",
            stacklevel=2,
        )
    return model


def _copy(model: nn.Module) -> nn.Module:
    """Copy a model with the weights that hooks compute (pruning), which `copy.deepcopy` refuses."""
    computed = {
        id(value): value.detach().clone()
        for module in model.modules()
        for value in vars(module).values()
        if isinstance(value, Tensor) and not value.is_leaf
    }
    return copy.deepcopy(model, computed)


def _fold_around(model: nn.Module) -> None:
    """Fold the convolutions of necks, decoders and heads, with the norms behind them in a row.

    Their weights are laid out once, too. What is not known by its exact type stays as it is.
    """
    kept = (DenseStages, DenseBlock, FoldedBlock)
    inside = {part for net in model.modules() if isinstance(net, kept) for part in net.modules()}
    for part in [module for module in model.modules() if module not in inside]:
        in_a_row = calls_children_in_turn(part) and not has_hooks(part)
        children = list_children(part)
        for place, (name, conv) in enumerate(children):
            if not isinstance(conv, nn.Conv2d) or find_change(conv, "conv") or conv.groups != 1:
                continue
            behind = children[place + 1 :] if in_a_row else []
            folded = fold_conv(conv)
            if behind and isinstance(behind[0][1], nn.BatchNorm2d):
                with suppress(UnfoldableError):
                    folded = FoldedConv2d(conv, *fuse(conv, behind[0][1], behind[0][0]))
                    part.register_module(behind.pop(0)[0], nn.Identity())
            if behind and find_change(behind[0][1], "act") is None:
                fold_activation(folded, part, behind[0][0])
            part.register_module(name, folded)


def is_deployable(model: nn.Module) -> bool:
    """Return True if `deploy` finds a DenseNet or a dense block in a model."""
    own = any(isinstance(part, DenseStages) for part in model.modules())
    return own or any(isinstance(part, DenseBlock) for part in model.modules() if part is not model)


def _is_condensed(part: nn.Module) -> bool:
    kinds = (LearnedGroupConv2d, CondensedConv2d)
    return isinstance(part, DenseBlock) and any(isinstance(m, kinds) for m in part.modules())


def _is_pruned(block: DenseBlock) -> bool:
    return any(isinstance(layer, SelectiveLayer | AbsentLayer) for layer in block.values())


def _fold_block(model: nn.Module, name: str, block: DenseBlock) -> None:
    """Put a folded block in the place of ``block``, the part of ``model`` by that name."""
    change = find_change(block, "block")
    if change is not None:
        raise UnfoldableError(f"{name} {change}")
    _check_hooks(block, name)
    for child, layer in block.items():
        change = _find_layer_change(layer, f"{name}.{child}")
        if change is not None:
            raise UnfoldableError(change)
    first = next(iter(block.values()))
    reader = first if isinstance(first, AbsentLayer) else cast(DenseLayer, first).conv1
    in_channels = reader.in_channels
    made = list(range(in_channels))  # those of the concatenation that are computed
    layers, widths, end = OrderedDict[str, nn.Module](), list[tuple[str, int]](), in_channels
    for child, layer in block.items():
        start = end
        if isinstance(layer, AbsentLayer):
            end += layer.growth_rate
        else:
            folded = _fold_layer(cast(DenseLayer, layer), f"{name}.{child}", made)
            layers[child] = folded
            end += folded.conv.out_channels
            made += range(start, end)
        widths.append((child, end))
    model.set_submodule(name, FoldedBlock(layers, in_channels, name, widths))


def _find_layer_change(layer: nn.Module, name: str) -> str | None:
    if type(layer) is AbsentLayer:
        change = find_change(layer, "halves")
        return None if change is None else f"{name} {change}"
    # Other layers that read some of the maps do not say which.
    role: Role = "halves" if type(layer) is SelectiveLayer else "layer"
    return find_layer_change(layer, name, act="act", role=role)


def _check_hooks(module: nn.Module, name: str) -> None:
    """Refuse a container with hooks on one of its parts."""
    hooked = next((part for part, m in module.named_modules(prefix=name) if has_hooks(m)), None)
    if hooked is not None:
        raise UnfoldableError(f"{hooked} carries hooks")


def _fold_layer(layer: DenseLayer, name: str, made: Sequence[int]) -> FoldedLayer:
    """Fold a layer of that name, which is called with these channels of the concatenation."""
    affine = compute_affine(layer.norm1, f"{name}.norm1")
    squeeze, conv, inner = None, layer.conv1, "conv1"
    if layer.bottleneck:
        fused, conv, inner = fuse(layer.conv1, layer.norm2, f"{name}.norm2"), layer.conv2, "conv2"
        _check_geometry(layer.conv1, f"{name}.conv1", size=1)
        squeeze = fused[0].flatten(1).t().contiguous(), fused[1]
        # A folded layer has one activation for both places.
        if not _are_same(layer.relu1, layer.relu2):
            raise UnfoldableError(f"{name}.relu2 is another activation than relu1")
    _check_geometry(conv, f"{name}.{inner}", size=3)
    scale, shift = (part.to(conv.weight.dtype) for part in affine)
    last = fold_conv(conv)
    if isinstance(layer, SelectiveLayer):
        # Kernels read all of a buffer's first channels, which is faster than to gather some.
        read = {c for start, end in layer.runs for c in range(start, end)}
        places = torch.tensor([n for n, channel in enumerate(made) if channel in read])
        scale, shift = (_spread(part, places, len(made)) for part in (scale, shift))
        if squeeze is None:
            weight, bias = last.list_tensors()
            last = FoldedConv2d(conv, _spread(weight, places, len(made), dim=1), bias)
        else:
            squeeze = _spread(squeeze[0], places, len(made)), squeeze[1]
    return FoldedLayer(scale, shift, squeeze, last, layer.relu1)


def _spread(values: Tensor, places: Tensor, channels: int, dim: int = 0) -> Tensor:
    """Put the values of channels in their places among more, whose values are zeros."""
    shape = *values.shape[:dim], channels, *values.shape[dim + 1 :]
    return values.new_zeros(shape).index_copy(dim, places.to(values.device), values)


def _check_geometry(conv: nn.Conv2d, name: str, size: int) -> None:
    """Refuse other convolutions than dense ones of this size that keep the size of the map."""
    border = tuple(size // 2 * step for step in conv.dilation)
    same = conv.stride == (1, 1) and conv.padding == border and len(set(conv.dilation)) == 1
    if conv.kernel_size != (size, size) or not same or conv.groups != 1:
        raise UnfoldableError(f"{name} is no dense {size}x{size} convolution of stride 1")


def _are_same(act: nn.Module, other: nn.Module) -> bool:
    if type(act) is not type(other):
        return False
    if type(act) in (nn.ReLU, nn.ReLU6):  # working in place or not is all that they can differ in
        return True
    weights = zip(act.parameters(), other.parameters(), strict=True)
    return repr(act) == repr(other) and all(torch.equal(a, b) for a, b in weights)


def _list_stages(net: DenseStages, prefix: str) -> Iterator[tuple[str, Callable[[], None]]]:
    """Yield the name of each stage with a norm but the blocks, and what folds the stage."""
    tapped = {str(level["module"]) for level in net.feature_info}
    tapped |= set(getattr(net, "return_layers", ()))
    for name, _ in list_children(net):
        number = name.removeprefix("transition").removeprefix("norm")
        if name.startswith("transition"):
            yield prefix + name, partial(_fold_transition, net, number, tapped, prefix)
            pool = getattr(net, f"pool{number}", None)
            if isinstance(pool, nn.AvgPool2d):  # a known one, or one that may compute anything
                yield f"{prefix}pool{number}", partial(_check_pool, pool, f"{prefix}pool{number}")
        elif name == "norm5":
            yield prefix + name, partial(_fold_last_norm, net, tapped, prefix)
        elif name.startswith("norm"):
            yield prefix + name, partial(_fold_stem, net, number, tapped, prefix)


def _fold_stem(net: DenseStages, number: str, tapped: set[str], prefix: str) -> None:
    """Fold ``norm<number>`` into the convolution before it."""
    conv, norm = getattr(net, f"conv{number}"), getattr(net, f"norm{number}")
    name = f"{prefix}conv{number}"
    change = find_change(conv, "conv")
    if change is not None:
        raise UnfoldableError(f"{name} {change}")
    if f"conv{number}" in tapped:
        raise UnfoldableError(f"{name} is tapped")
    if conv.groups != 1:
        raise UnfoldableError(f"{name} has groups")
    fused = fuse(conv, norm, f"{prefix}norm{number}")
    folded = FoldedConv2d(conv, *fused)
    setattr(net, f"conv{number}", folded)
    setattr(net, f"norm{number}", nn.Identity())
    if f"norm{number}" not in tapped and find_change(getattr(net, f"relu{number}"), "act") is None:
        fold_activation(folded, net, f"relu{number}")


def _fold_transition(net: DenseStages, number: str, tapped: set[str], prefix: str) -> None:
    """Fold a transition's norm; take in the pool behind it if nothing looks in between."""
    children = dict(list_children(net))
    name, pool = f"transition{number}", children.get(f"pool{number}")
    transition = children[name]
    if not calls_children_in_turn(transition):
        raise UnfoldableError(f"{prefix}{name} has a forward of its own")
    _check_hooks(transition, prefix + name)
    parts = dict(list_children(transition))
    if list(parts) not in (["norm", "relu"], ["norm", "relu", "conv"]):
        raise UnfoldableError(f"{prefix}{name} has other parts than norm, relu and conv")
    folded = OrderedDict[str, nn.Module](
        norm=make_scale_shift(parts["norm"], f"{prefix}{name}.norm"), relu=parts["relu"]
    )
    if "conv" in parts:  # else cut off behind a last tap
        conv = parts["conv"]
        change = find_change(conv, "conv")
        if change is not None:
            raise UnfoldableError(f"{prefix}{name}.conv {change}")
        assert isinstance(conv, nn.Conv2d)
        _check_geometry(conv, f"{prefix}{name}.conv", size=1)
        # A bias goes through an average, unless that counts a border of zeros.
        if name not in tapped and _is_average(pool) and conv.bias is None:
            assert pool is not None
            folded["pool"] = pool
            setattr(net, f"pool{number}", nn.Identity())
        folded["conv"] = fold_conv(conv)
    setattr(net, name, FoldedTransition(folded, prefix + name))


def _is_average(pool: nn.Module | None) -> bool:
    return isinstance(pool, nn.AvgPool2d) and find_change(pool, "pool") is None


def _check_pool(pool: nn.Module, name: str) -> None:
    change = find_change(pool, "pool")
    if change is not None:
        raise UnfoldableError(f"{name} {change}")


def _fold_last_norm(net: DenseStages, tapped: set[str], prefix: str) -> None:
    net.norm5 = norm = make_scale_shift(net.get_submodule("norm5"), f"{prefix}norm5")
    relu = getattr(net, "relu5", None)
    if "norm5" not in tapped and relu is not None and find_change(relu, "act") is None:
        fold_activation(norm, net, "relu5")
