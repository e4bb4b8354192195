"""Names and shapes of the weights of any `DenseNetSpec`, without building the network."""

from collections.abc import Iterator, Mapping

from densenet_backbones.densenet_spec import DenseNetSpec

__all__ = ["Shapes", "layout", "norm_shapes", "stage_of"]

Shapes = Mapping[str, tuple[int, ...]]

_STEM = frozenset(f"{kind}{i}" for kind in ("conv", "norm") for i in range(3))
_STATISTICS = ("running_mean", "running_var")


def stage_of(name: str) -> str:
    """``stem``, ``denseblock1``, ``transition1``, ..., ``norm5`` or ``classifier``."""
    first = name.partition(".")[0]
    return "stem" if first in _STEM else first


def norm_shapes(name: str, channels: int, norm: str) -> dict[str, tuple[int, ...]]:
    """Entries of one norm; ``norm`` as in `DenseNetSpec`."""
    entries = ("weight", "bias") if norm == "group" else ("weight", "bias", *_STATISTICS)
    shapes: dict[str, tuple[int, ...]] = {f"{name}.{entry}": (channels,) for entry in entries}
    if norm in ("bn", "sync"):
        shapes[f"{name}.num_batches_tracked"] = ()
    return shapes


def layout(spec: DenseNetSpec, in_chans: int = 3) -> dict[str, tuple[int, ...]]:
    """All entries of a network but its classifier's, in the order of the network.

    Args:
        spec: Architecture.
        in_chans: Channels of the image.

    Returns:
        Our names to shapes; convolutions are (out, in, height, width).
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for name, shape in _convs_and_norms(spec, in_chans):
        if len(shape) == 1:
            shapes.update(norm_shapes(name, shape[0], spec.norm))
        else:
            shapes[f"{name}.weight"] = shape
    return shapes


def _convs_and_norms(spec: DenseNetSpec, in_chans: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield from _stem(spec, in_chans)
    for i, plan in enumerate(spec.blocks, start=1):
        for layer in range(plan.layers):
            name = f"denseblock{i}.denselayer{layer + 1}"
            channels, growth = plan.in_channels + layer * plan.growth_rate, plan.growth_rate
            yield f"{name}.norm1", (channels,)
            if spec.bn_size is None:
                yield f"{name}.conv1", (growth, channels, 3, 3)
                continue
            width = growth * spec.bn_size
            yield f"{name}.conv1", (width, channels, 1, 1)
            yield f"{name}.norm2", (width,)
            yield f"{name}.conv2", (growth, width, 3, 3)
        if plan.transition_channels is not None:
            yield f"transition{i}.norm", (plan.channels,)
            yield f"transition{i}.conv", (plan.transition_channels, plan.channels, 1, 1)
    if spec.final_norm:
        yield "norm5", (spec.blocks[-1].channels,)


def _stem(spec: DenseNetSpec, in_chans: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    width = spec.num_init_features
    if spec.stem == "cifar":
        yield "conv0", (width, in_chans, 3, 3)
    elif spec.stem == "imagenet":
        yield "conv0", (width, in_chans, 7, 7)
        yield "norm0", (width,)
    else:
        channels = (in_chans, width // 2, width // 2, width)
        for i in range(3):
            yield f"conv{i}", (channels[i + 1], channels[i], 3, 3)
            yield f"norm{i}", (channels[i + 1],)
