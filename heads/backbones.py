"""Feature networks below every detector and segmenter, built by name with their weights.

``weights_backbone`` means the same in all builders, see `create_features`. Networks come from
timm's registry, where ours are (``densenet121_features``) besides timm's own (``resnet50``).
"""

import re
import socket
import textwrap
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import timm
import torch
import torchvision
from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled
from torch import Tensor, nn
from torch.func import functional_call
from torchvision.models import WeightsEnum

from densenet_backbones.checkpoints import CheckpointError, read_state_dict
from densenet_backbones.checkpoints.reach import OfflineError, download_or_fail_soon
from densenet_backbones.features import FeatureLevel, feature_levels
from densenet_backbones.heads.options import Keywords, NetworkOptions
from densenet_backbones.messages import nearest, to_plain
from densenet_backbones.timm_models import SUFFIX
from densenet_backbones.variants import VARIANTS

BASE_STRIDES = (8, 16)

LOADED_LATER = "later"
"""Value of ``weights_backbone``: build as with weights (frozen norms, frozen stages), load none.

For models whose weights come from a checkpoint right after."""

_SECONDS = 10.0  # that a host of weights has for each answer
_MEMBER = re.compile(r"(?:(\w+_Weights)\.)?([A-Z][A-Z0-9_]*)")

# szq0214/DSOD subtracts these means, in Caffe's channel order, and scales nothing.
DSOD_NORMALIZATION = {
    "image_mean": [104.0, 117.0, 123.0],
    "image_std": [1.0, 1.0, 1.0],
    "channel_order": "bgr",
    "value_range": 255,
}


def is_ours(name: str) -> bool:
    """True if a timm name, with or without a tag of weights, is one of ours."""
    base = name.partition(".")[0]
    return base.endswith(SUFFIX) and base.removesuffix(SUFFIX) in VARIANTS


def collect_network(name: object, options: Keywords) -> Keywords:
    """Take what a builder's options say of the network out of them.

    Args:
        name: timm name of the network; anything else for a module that is built already.
        options: Keyword arguments of the builder; `NetworkOptions` and ``backbone_kwargs`` are
            removed.

    Returns:
        Keyword arguments for `create_features`.

    Raises:
        ValueError: An argument is given in both places.
    """
    kwargs: Keywords = dict(options.pop("backbone_kwargs", None) or {})
    for option in NetworkOptions.__optional_keys__ & options.keys():
        # timm's networks have a drop_rate too; ours have it for the classifier alone.
        target = "proj_drop_rate" if option == "drop_rate" and _is_dense(name) else option
        if target in kwargs:
            raise ValueError(
                f"{option} is given, and {target} in backbone_kwargs: leave one of them out"
            )
        kwargs[target] = options.pop(option)
    return kwargs


def _is_dense(name: object) -> bool:
    return isinstance(name, str) and is_ours(name)


def create_features(
    name: str,
    weights_backbone: str | WeightsEnum | None = None,
    *,
    progress: bool = True,
    **kwargs: Any,
) -> nn.Module:
    """Build a feature network of timm's registry.

    Args:
        name: Ours or any other that has ``features_only``: ``rdnet_tiny``, ``resnet50``.
        weights_backbone: None for random weights; ``timm`` for those that timm publishes;
            torchvision's, by name (``IMAGENET1K_V1``, ``DenseNet121_Weights.IMAGENET1K_V1``) or as
            a member of the enum, where torchvision has the same network; else a file of weights in
            torchvision's, timm's or our naming. See `LOADED_LATER` for one value more.
        progress: Show a bar while torchvision's weights are fetched.
        **kwargs: For ``timm.create_model``.

    Raises:
        CheckpointError: The file cannot be read, or its weights do not fit.
        ValueError: The weights belong to another network, or timm refuses an argument.
    """
    kwargs = {**to_plain(kwargs), "features_only": True}
    if weights_backbone in (None, "", LOADED_LATER):
        return _create(name, kwargs)
    if weights_backbone == "timm":
        return _create(name, {**kwargs, "pretrained": True})
    # torchvision's weights are a state like a file's: both go through one loader.
    if (published := _find_published_weights(name, weights_backbone)) is not None:
        origin, state = repr(published), _fetch(published, progress)
    else:
        origin, state = str(weights_backbone), read_state_dict(str(weights_backbone))
    if is_ours(name):
        return _create_from(name, kwargs, state, origin)
    return _create_checked(name, kwargs, state, origin)


def _find_published_weights(name: str, weights: str | WeightsEnum) -> WeightsEnum | None:
    """Torchvision's weights that are meant; None where they are a file's name."""
    # A file goes before a member of the same name, and what looks like neither is a file's name.
    member = _MEMBER.fullmatch(weights) if isinstance(weights, str) else None
    if isinstance(weights, str) and (member is None or Path(weights).is_file()):
        return None
    network = name.partition(".")[0].removesuffix(SUFFIX)
    try:
        known = list(torchvision.models.get_model_weights(network))
    except ValueError:  # torchvision has no such network
        known = []
    # By member, by its name with or without the enum's, or as the enum's DEFAULT.
    for published in known:
        names = (published.name, "DEFAULT" if published is type(published)["DEFAULT"] else "")
        if weights is published:
            return published
        if member and member[1] in (None, type(published).__name__) and member[2] in names:
            return published
    raise ValueError(
        f"weights_backbone {weights!r} are no weights of backbone {name!r}; torchvision has "
        f"{', '.join(map(repr, known)) or 'none'} of it; or give timm, or a file"
    )


def _fetch(published: WeightsEnum, progress: bool) -> dict[str, Tensor]:
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(before or _SECONDS)  # torch.hub itself waits without an end
    try:
        state: dict[str, Tensor] = published.get_state_dict(progress=progress, check_hash=True)
    except OSError as error:
        raise OfflineError(
            f"{published!r} are neither on this machine nor within its reach ({published.url}); "
            "give a file as weights_backbone, or leave it out"
        ) from error
    finally:
        socket.setdefaulttimeout(before)
    return state


def _create(name: str, arguments: Keywords) -> nn.Module:
    is_published = arguments.get("pretrained") and not arguments.get("pretrained_cfg_overlay")
    try:
        with download_or_fail_soon() if is_published else nullcontext():
            net = timm.create_model(name, **arguments)
    except (ConnectionError, LocalEntryNotFoundError, OfflineModeIsEnabled, OfflineError) as error:
        # First: an OfflineError is a RuntimeError, which is asked for below.
        raise OfflineError(
            f"the weights that timm publishes of {name!r} are neither on this machine nor within "
            "its reach (huggingface.co); give a file as weights_backbone, or leave it out"
        ) from error
    except RuntimeError as error:
        if not str(error).startswith("Unknown model"):  # timm's words, of no type of its own
            raise
        hint = nearest(name, timm.list_models()) or "; timm.list_models() names all"
        raise ValueError(f"no backbone is called {name!r}{hint}") from error
    except (TypeError, AssertionError, NotImplementedError) as error:
        described = {
            key: value for key, value in arguments.items() if not key.startswith("pretrained")
        }
        raise ValueError(
            f"backbone {name!r} cannot be built with {described}: "
            f"{type(error).__name__}: {str(error) or 'an assertion of timm failed'}"
            f"{'; leave out output_stride' if 'output_stride' in arguments else ''}"
        ) from error
    # Copies of the model and its checkpoints must not carry a file's weights along.
    for config in (getattr(net, "pretrained_cfg", None), getattr(net, "default_cfg", None)):
        if isinstance(config, dict):
            config.pop("state_dict", None)
    return net


def _create_from(
    name: str, arguments: Keywords, state: dict[str, Tensor], origin: str
) -> nn.Module:
    """A network with given weights, as far as timm's loader or our own checks them."""
    loading = {"pretrained": True, "pretrained_cfg_overlay": {"state_dict": state}}
    try:
        return _create(name, {**arguments, **loading})
    except (RuntimeError, CheckpointError) as error:
        reason = textwrap.shorten(str(error), 600)
        raise CheckpointError(
            f"{origin}: the weights do not fit backbone {name!r} ({reason}); give the "
            "backbone_kwargs they were trained with, or another file"
        ) from error


def _create_checked(
    name: str, arguments: Keywords, state: dict[str, Tensor], origin: str
) -> nn.Module:
    """A network of timm's with given weights, all of them.

    timm leaves random what it cannot match as soon as it drops the classifier, as for features. So
    the network is made twice from one seed, and what is equal in both did not come from ``state``.

    Raises:
        CheckpointError: The weights lack a layer.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        fresh = _create(name, arguments).state_dict()
        torch.default_generator.manual_seed(0)
        net = _create_from(name, arguments, state, origin)
    loaded = net.state_dict()
    random = [k for k, w in loaded.items() if w.dim() > 1 and torch.equal(w, fresh[k])]
    if random:
        raise CheckpointError(
            f"{origin}: it has no weights for {len(random)} of the layers of backbone {name!r}, "
            f"{random[0]} the first; give a file of that network"
        )
    return net


def create_base_network(
    name: str, weights_backbone: str | WeightsEnum | None = None, **kwargs: Any
) -> nn.Module:
    """A timm feature network, ending after its last map of stride 16.

    Args:
        name: Any timm name; DSOD's own bases are tapped behind the transition's 1x1 unless ``tap``
            says otherwise, so that the map of stride 8 is DSOD's "First".
        weights_backbone: As of `create_features`.
        **kwargs: As of `create_features`.

    Returns:
        A network whose `feature_levels` include strides 8 and 16.
    """
    if is_dsod_name(name):
        kwargs.setdefault("tap", "compressed")
    # Built once for its levels, then again without what lies behind the last base map.
    if kwargs.get("out_indices") is None:
        whole = create_features(name, **kwargs)
        info: Any = whole.feature_info
        taken = sorted(index % len(info) for index in info.out_indices)
        kwargs["out_indices"] = tuple(taken[i] for i in find_base_positions(feature_levels(whole)))
    return create_features(name, weights_backbone, **kwargs)


def find_base_positions(levels: Sequence[FeatureLevel]) -> tuple[int, ...]:
    """Positions of the two base maps among ``levels``: the last one of each base stride."""
    by_stride = {level.stride: position for position, level in enumerate(levels)}
    if not set(BASE_STRIDES) <= by_stride.keys():
        raise ValueError(
            f"the backbone must have maps of strides {BASE_STRIDES}, got "
            f"{[level.stride for level in levels]}; choose other out_indices"
        )
    return tuple(by_stride[stride] for stride in BASE_STRIDES)


def read_normalization(backbone: nn.Module, name: str | None) -> Keywords:
    """Return what `ImageNormalization` takes, as a backbone's weights expect it.

    DSOD's own for its own bases and for modules that say nothing; else that of timm's
    ``pretrained_cfg``, RGB 0..1.
    """
    cfg = getattr(backbone, "pretrained_cfg", None)
    if not cfg or (name is not None and is_dsod_name(name)):
        return dict(DSOD_NORMALIZATION)
    return {
        "image_mean": cfg["mean"],
        "image_std": cfg["std"],
        "channel_order": "rgb",
        "value_range": 1,
    }


def is_dsod_name(name: str) -> bool:
    """True if a timm name is one of DSOD's bases."""
    return name.startswith("dsod_")


def run_on_meta(module: nn.Module, x: Tensor | list[Tensor], image_size: tuple[int, int]) -> Any:
    """Run a network on shapes without data, on the meta device.

    Args:
        module: Backbone, or what reads its maps.
        x: What it takes, on the meta device.
        image_size: (H, W) of the images, for the error.

    Raises:
        ValueError: It cannot run on such images.
    """
    state = dict(module.named_parameters()) | dict(module.named_buffers())
    state = {name: torch.empty_like(tensor, device="meta") for name, tensor in state.items()}
    try:
        return functional_call(module, state, (x,))
    except (AssertionError, RuntimeError) as error:
        reason = textwrap.shorten(str(error), 200) or "an assertion of timm failed"
        raise ValueError(
            f"the backbone cannot run on images of {image_size[0]}x{image_size[1]} pixels "
            f"({reason}); choose another image_size, or a backbone that takes any"
        ) from error
