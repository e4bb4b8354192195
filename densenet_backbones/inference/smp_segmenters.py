"""Build decoders of segmentation_models.pytorch (smp) as segmenters: ``smp:DeepLabV3Plus``."""

import inspect
from contextlib import nullcontext
from typing import Any

import segmentation_models_pytorch as smp
from torch import nn

import densenet_backbones.smp_encoders  # noqa: F401 - registers our encoders with smp
from densenet_backbones.checkpoints.reach import OfflineError, download_or_fail_soon
from densenet_backbones.heads.backbones import collect_network
from densenet_backbones.heads.normalization import ImageNormalization
from densenet_backbones.heads.options import NetworkOptions
from densenet_backbones.heads.parameter_groups import prefix_groups
from densenet_backbones.heads.segmentation.segmenter import Segmenter
from densenet_backbones.inference.model_file import JsonDict
from densenet_backbones.messages import nearest

_OURS = {"self", "classes", "in_channels", "activation", "aux_params", "kwargs"}


class SmpSegmenter(Segmenter):
    """Model of smp behind the interface of our segmenters; parameters keep smp's names."""

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Return timm's layer groups of the encoder, else one of all of it; the decoder is last."""
        encoder: nn.Module = self.net.get_submodule("encoder")
        inner = getattr(encoder, "model", None)
        if isinstance(inner, nn.Module) and hasattr(inner, "group_matcher"):
            return prefix_groups(inner, "net.encoder.model.", coarse)
        return {"stem": r"^net\.encoder\."}


def build_smp(name: str, num_classes: int, args: JsonDict) -> SmpSegmenter:
    """Build a model of smp.

    Args:
        name: Name of its class, e.g. ``DeepLabV3Plus``.
        num_classes: Number of channels of the logits.
        args: Keyword arguments of the class; `encoder_name` may be one of smp's, ours
            (``densenet121_features``) or ``tu-`` and a timm name. `encoder_weights` is None if it
            is left out: weights are only downloaded when asked for.

    Raises:
        ValueError: Unknown name or argument, or a value that smp refuses.
    """
    known = {cls.__name__: cls for cls in smp.MODEL_ARCHITECTURES_MAPPING.values()}
    if name not in known:
        raise ValueError(
            f"segmentation_models.pytorch has no {name!r}{nearest(name, known)} "
            f"(known: {', '.join(known)})"
        )
    allowed = set(inspect.signature(known[name].__init__).parameters) - _OURS
    network = args.keys() & NetworkOptions.__optional_keys__ - allowed
    encoder = args.get("encoder_name", "")
    for key in args.keys() - allowed - network:
        raise ValueError(
            f"smp:{name} has no argument {key!r}{nearest(key, allowed)} (known: "
            f"{', '.join(sorted(allowed))})"
        )
    # smp drops what it does not know of its encoders without a word; timm's refuse it.
    if network and not encoder.startswith("tu-"):
        raise ValueError(
            f"smp:{name}: {', '.join(sorted(network))} can be given for timm's encoders alone: "
            f"write encoder_name tu-{encoder or 'densenet121_features'}"
        )
    args = {**args, **collect_network(encoder.removeprefix("tu-"), {k: args[k] for k in network})}
    options = {"encoder_weights": None, **args}
    try:
        with nullcontext() if options["encoder_weights"] is None else download_or_fail_soon():
            net = known[name](classes=num_classes, **options)
            normalization = _find_normalization(net, options)
    except OfflineError as error:
        raise ValueError(
            f"smp:{name}: the weights {options['encoder_weights']!r} of encoder "
            f"{encoder or 'resnet34'!r} are neither on this machine nor within its reach; leave "
            "out encoder_weights, or start from a file with --init-from"
        ) from error
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ValueError(f"smp:{name}: {reason}") from error
    return SmpSegmenter(net, stride=net.encoder.output_stride, normalization=normalization)


def _find_normalization(net: nn.Module, args: JsonDict) -> ImageNormalization:
    """Return the one that the encoder's weights were trained with; ImageNet's if it has none."""
    if args["encoder_weights"] is None:
        return ImageNormalization()
    default = inspect.signature(type(net)).parameters["encoder_name"].default
    name = args.get("encoder_name", default)
    known = smp.encoders.get_preprocessing_params(name, args["encoder_weights"])
    order = known["input_space"].lower()
    return ImageNormalization(known["mean"], known["std"], order, known["input_range"][-1])
