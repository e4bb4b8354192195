"""An image classifier: squares of one size in, logits out.

Legend: N images, K classes, S pixels of a side.
"""

from typing import Any

import timm
import torchvision
from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled
from torch import Tensor, nn

from densenet_backbones.checkpoints.reach import OfflineError, download_or_fail_soon
from densenet_backbones.heads.backbones import is_ours
from densenet_backbones.heads.normalization import ImageNormalization
from densenet_backbones.heads.parameter_groups import LayerGroups, prefix_groups, prefix_names
from densenet_backbones.heads.validation import PythonModule, check_images, has_values
from densenet_backbones.messages import check_choice, check_interval, check_whole, nearest, to_plain
from densenet_backbones.timm_models import SUFFIX
from densenet_backbones.variants import VARIANTS

__all__ = ["TORCHVISION", "Classifier", "create_classifier"]

TORCHVISION = "torchvision:"
"""Names of torchvision's own classifiers begin so."""

# Rec. 601: the gray that Pillow's mode "L" and albumentations' ToGray make of RGB.
_LUMA = (0.299, 0.587, 0.114)


class Classifier(PythonModule):
    """Normalization and a network that maps images to logits.

    Args:
        net: Maps normalized images (N, ``in_chans``, S, S) to logits (N, K).
        image_size: S that the network is trained on; it may take others.
        crop_pct: S as a share of the shorter side to which evaluation resizes an image, in (0, 1].
        normalization: What the network's weights were made for; ImageNet's when left out.
        in_chans: 3, or 1 for a network that sees gray: RGB is brought to it inside.

    Raises:
        ValueError: An argument is out of range.
    """

    def __init__(
        self,
        net: nn.Module,
        *,
        image_size: int,
        crop_pct: float = 1.0,
        normalization: ImageNormalization | None = None,
        in_chans: int = 3,
    ) -> None:
        super().__init__()
        check_whole("image_size", image_size)
        check_interval("crop_pct", crop_pct, "(0, 1]")
        check_choice("in_chans", in_chans, (1, 3))
        self.net = net
        self.image_size, self.crop_pct, self.in_chans = image_size, crop_pct, in_chans
        self.normalization = normalization or ImageNormalization()

    def forward(self, images: Tensor) -> Tensor:
        """Logits of images.

        Args:
            images: (N, 3, H, W), RGB floats 0..1, as `fit_image` brings them to size.

        Returns:
            (N, K).

        Raises:
            ValueError: The images have another shape or range.
        """
        # Checks read values, which a graph would hold as constants.
        if has_values(images):
            if images.dim() != 4:
                raise ValueError(f"images must be a (N, 3, H, W) tensor, got {tuple(images.shape)}")
            check_images(images.unbind())
        logits: Tensor = self.net(self.normalize(images))
        return logits

    def normalize(self, images: Tensor) -> Tensor:
        """Turn RGB (N, 3, H, W) 0..1 into what the network reads, (N, ``in_chans``, H, W)."""
        if self.in_chans == 1:
            weights = images.new_tensor(_LUMA)[:, None, None]
            images = (images * weights).sum(dim=1, keepdim=True)
        normalized: Tensor = self.normalization(images)
        return normalized

    def no_weight_decay(self) -> set[str]:
        """Parameters to train without weight decay, where the network names some."""
        return prefix_names(self.net, "net.")

    def group_matcher(self, coarse: bool = False) -> LayerGroups:
        """Patterns by which timm's optimizers give layers their own learning rate."""
        return prefix_groups(self.net, "net.", coarse)


def create_classifier(
    name: str,
    num_classes: int,
    *,
    image_size: int | None = None,
    crop_pct: float | None = None,
    in_chans: int = 3,
    weights: str | None = None,
    **kwargs: Any,
) -> Classifier:
    """Build a classifier of any network.

    Args:
        name: One of ours, with or without ``_features`` where timm has none of that name
            (``densenet40_k12``); any other of timm (``densenet121`` is timm's own,
            ``densenet121_features`` ours); or ``torchvision:`` and a name of torchvision's.
        num_classes: K.
        image_size: S; None for what the network was made for, 224 or CIFAR's 32.
        crop_pct: As of `Classifier`; None for the network's own.
        in_chans: 3, or 1 for gray images; weights are adapted.
        weights: None for random ones; ``timm`` for those that timm publishes; else a file, whose
            classifier may have other classes.
        **kwargs: For the network: ``growth_rate``, ``memory``, ``drop_rate``, ``proj_drop_rate``...

    Raises:
        ValueError: An unknown name, or an argument that the network does not take.
        OfflineError: Published weights are out of reach.
    """
    check_choice("in_chans", in_chans, (1, 3))
    if name.startswith(TORCHVISION):
        net, cfg = _create_of_torchvision(name, num_classes, in_chans, weights, kwargs)
    else:
        net, cfg = _create_of_timm(name, num_classes, in_chans, weights, kwargs)
    mean, std = (list(cfg.get(key, ())) for key in ("mean", "std"))
    if in_chans == 1 and len(mean) != 1:  # the gray of the mean, as of an image
        mean, std = ([sum(values) / len(values)] for values in (mean, std))
    return Classifier(
        net,
        image_size=image_size or cfg["input_size"][-1],
        crop_pct=crop_pct or cfg.get("crop_pct", 0.875),
        normalization=ImageNormalization(mean, std, channels=in_chans),
        in_chans=in_chans,
    )


def _create_of_timm(
    name: str, num_classes: int, in_chans: int, weights: str | None, kwargs: dict[str, Any]
) -> tuple[nn.Module, dict[str, Any]]:
    full = f"{name}{SUFFIX}" if name in VARIANTS and not timm.is_model(name) else name
    base = full.partition(".")[0]
    if not timm.is_model(base):
        known = [*timm.list_models(), *VARIANTS]
        raise ValueError(f"no classifier is called {name!r}{nearest(name, known)}")
    options = {**to_plain(kwargs), "num_classes": num_classes, "in_chans": in_chans}
    if is_ours(full):
        options["features_only"] = False
    if weights:
        options["pretrained"] = True
        if weights != "timm":
            options["pretrained_cfg_overlay"] = {"file": weights}
    try:
        with download_or_fail_soon():
            net: Any = timm.create_model(full, **options)
    except (ConnectionError, LocalEntryNotFoundError, OfflineModeIsEnabled, OfflineError) as error:
        # First: an OfflineError is a RuntimeError, which is asked for below.
        raise OfflineError(
            f"the weights that timm publishes of {name!r} are neither on this machine nor within "
            "its reach (huggingface.co); give a file as weights, or leave it out"
        ) from error
    except (TypeError, AssertionError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:300] or "an assertion of timm failed"
        raise ValueError(f"classifier {name!r} cannot be built with {kwargs}: {reason}") from error
    return net, dict(net.pretrained_cfg)


def _create_of_torchvision(
    name: str, num_classes: int, in_chans: int, weights: str | None, kwargs: dict[str, Any]
) -> tuple[nn.Module, dict[str, Any]]:
    own = name.removeprefix(TORCHVISION)
    known = torchvision.models.list_models(module=torchvision.models)
    if own not in known:
        raise ValueError(f"torchvision has no classifier {own!r}{nearest(own, known)}")
    if weights is not None or in_chans != 3:
        raise ValueError(
            f"{name}: torchvision's own are built for three channels and without weights here; "
            "leave in_chans and weights out, or take timm's network"
        )
    try:
        net: nn.Module = torchvision.models.get_model(own, num_classes=num_classes, **kwargs)
    except TypeError as error:
        raise ValueError(f"classifier {name!r} cannot be built with {kwargs}: {error}") from error
    return net, {
        "input_size": (3, 224, 224),
        "crop_pct": 0.875,
        "mean": timm.data.IMAGENET_DEFAULT_MEAN,
        "std": timm.data.IMAGENET_DEFAULT_STD,
    }
