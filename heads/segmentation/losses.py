"""The loss of a segmentation model: weighted terms, summed over its main and auxiliary logits.

Legend: N images, K classes, H and W pixels. Sources: of each term in `pixel_losses`; the weight of
auxiliary logits is that of PSPNet (Zhao et al., 1612.01105, section 4).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, get_args

import torch
from torch import Tensor, nn

from densenet_backbones.heads.segmentation.pixel_losses import (
    IGNORED,
    Mode,
    Pixels,
    cross_entropy,
    dice,
    focal,
    lovasz,
    ohem,
)
from densenet_backbones.messages import check_choice

__all__ = ["TERMS", "SegmentationLoss"]

TERMS = ("cross_entropy", "dice", "focal", "lovasz", "ohem")
_CLASSES = {"multiclass": "2 to 255", "binary": "1", "multilabel": "1 or more"}


class SegmentationLoss(nn.Module):
    """Weighted terms, of which ignored pixels (255) are no part.

    Computed in float32 whatever the precision of the logits. A batch in which every pixel is
    ignored gives 0 with a zero gradient, so that distributed training goes on.

    Args:
        mode: ``multiclass`` (softmax over K logits), ``binary`` (one logit) or ``multilabel`` (K
            logits, a sigmoid each).
        terms: Weight of each term, above 0, by its name in `TERMS`; cross-entropy alone when left
            out.
        class_weights: K numbers of 0 or more for ``cross_entropy``, as explained there.
        label_smoothing: Of ``cross_entropy``, in [0, 1).
        focal_gamma: Of ``focal``, 0 or more.
        focal_alpha: Of ``focal``, in (0, 1), or None; only with sigmoids.
        dice_smooth: Of ``dice``, 0 or more.
        ohem_threshold: Of ``ohem``, in (0, 1].
        ohem_share: Of ``ohem``, in (0, 1].
        aux_weight: Of the auxiliary logits' mean loss, 0 or more.

    Raises:
        ValueError: An argument is out of range.
    """

    class_weights: Tensor | None

    def __init__(
        self,
        mode: Mode = "multiclass",
        terms: Mapping[str, float] | None = None,
        *,
        class_weights: Sequence[float] | None = None,
        label_smoothing: float = 0.0,
        focal_gamma: float = 2.0,
        focal_alpha: float | None = None,
        dice_smooth: float = 0.0,
        ohem_threshold: float = 0.7,
        ohem_share: float = 1 / 16,
        aux_weight: float = 0.4,
    ) -> None:
        super().__init__()
        terms = {"cross_entropy": 1.0} if terms is None else dict(terms)
        check_choice("mode", mode, get_args(Mode))
        if not terms or not set(terms) <= set(TERMS):
            raise ValueError(f"terms must be one or more of {TERMS}, got {list(terms)}")
        # Checked here, since a number out of its range may train without an error, and badly.
        for name, weight in terms.items():
            _require(0 < weight < math.inf, f"the weight of {name}", "above 0", weight)
        _require(0 <= label_smoothing < 1, "label_smoothing", "in [0, 1)", label_smoothing)
        _require(0 <= focal_gamma < math.inf, "focal_gamma", "0 or more", focal_gamma)
        _require(0 <= dice_smooth < math.inf, "dice_smooth", "0 or more", dice_smooth)
        _require(0 < ohem_threshold <= 1, "ohem_threshold", "in (0, 1]", ohem_threshold)
        _require(0 < ohem_share <= 1, "ohem_share", "in (0, 1]", ohem_share)
        _require(0 <= aux_weight < math.inf, "aux_weight", "0 or more", aux_weight)
        if focal_alpha is not None:
            _require(0 < focal_alpha < 1, "focal_alpha", "in (0, 1), or None", focal_alpha)
            if mode == "multiclass":
                raise ValueError("focal_alpha weighs sigmoids; leave it out in multiclass mode")
        self.mode: Mode = mode
        self.terms = terms
        self.aux_weight = aux_weight
        self.label_smoothing = label_smoothing
        self.focal_gamma, self.focal_alpha = focal_gamma, focal_alpha
        self.dice_smooth = dice_smooth
        self.ohem_threshold, self.ohem_share = ohem_threshold, ohem_share
        weights = None if class_weights is None else _checked_weights(class_weights)
        # It follows the model to its device, and is no part of a checkpoint.
        self.register_buffer("class_weights", weights, persistent=False)

    def forward(self, output: Tensor | Mapping[str, Any], target: Tensor) -> dict[str, Tensor]:
        """Each term with its weight; their sum is the loss to minimise.

        Args:
            output: Logits (N, K, H, W), or a dictionary of ``logits`` and ``aux``, a list of more.
            target: Integers, 255 where ignored. ``multiclass``: (N, H, W) in 0..K-1. ``binary``:
                (N, H, W) or (N, 1, H, W) of 0 and 1. ``multilabel``: (N, K, H, W) of 0 and 1.

        Returns:
            A float32 scalar for each term, and ``aux`` for all terms of the auxiliary logits.

        Raises:
            ValueError: Shapes, types or, where it costs no waiting for a GPU, labels are not as
                said.
        """
        logits, aux = (output, []) if isinstance(output, Tensor) else _split_output(output)
        losses = self._compute_losses(logits, target)
        # Auxiliary logits by their mean, so that the weight does not depend on their number.
        if aux:
            total = sum(sum(self._compute_losses(a, target).values()) for a in aux)
            losses["aux"] = torch.as_tensor(total * self.aux_weight / len(aux))
        return losses

    def _compute_losses(self, logits: Tensor, target: Tensor) -> dict[str, Tensor]:
        self._check(logits, target)
        pixels = Pixels.of(logits, target, self.mode)  # float32, which autocast then leaves alone
        # Only the terms that have a weight are computed.
        compute: dict[str, Callable[[], Tensor]] = {
            "cross_entropy": lambda: cross_entropy(
                pixels, self.class_weights, self.label_smoothing
            ),
            "dice": lambda: dice(pixels, self.dice_smooth),
            "focal": lambda: focal(pixels, self.focal_gamma, self.focal_alpha),
            "lovasz": lambda: lovasz(pixels),
            "ohem": lambda: ohem(pixels, self.ohem_threshold, self.ohem_share),
        }
        return {name: weight * compute[name]() for name, weight in self.terms.items()}

    def _check(self, logits: Tensor, target: Tensor) -> None:
        # Logits by the mode's number of classes, then the target by the shape of the logits.
        classes = logits.shape[1] if logits.dim() == 4 else 0
        fits = {"multiclass": 2 <= classes <= IGNORED, "binary": classes == 1}
        if not fits.get(self.mode, classes >= 1):
            raise ValueError(
                f"{self.mode} logits must be (N, K, H, W), K {_CLASSES[self.mode]}, got "
                f"{tuple(logits.shape)}"
            )
        number, _, *size = logits.shape
        shape = (number, *size) if self.mode != "multilabel" else tuple(logits.shape)
        alike = target.shape == shape or (self.mode == "binary" and target.shape == logits.shape)
        if not alike or target.is_floating_point():
            raise ValueError(
                f"the target must hold integers of shape {shape}, as logits of "
                f"{tuple(logits.shape)} and mode {self.mode!r} ask, got {target.dtype} of "
                f"{tuple(target.shape)}"
            )
        if self.class_weights is not None and len(self.class_weights) != classes:
            raise ValueError(
                f"class_weights must be {classes} numbers, one a class of the logits, got "
                f"{len(self.class_weights)}"
            )
        # On a GPU, reading labels would wait for the device at every step.
        if target.device.type == "cpu" and not torch.compiler.is_compiling():
            _check_labels(target, classes if self.mode == "multiclass" else 2)


def _split_output(output: Mapping[str, Any]) -> tuple[Tensor, list[Tensor]]:
    return output["logits"], list(output.get("aux", []))


def _check_labels(target: Tensor, answers: int) -> None:
    wrong = (target != IGNORED) & ((target < 0) | (target >= answers))
    if wrong.any():
        first = wrong.nonzero()[0].tolist()
        raise ValueError(
            f"the target holds {int(target[tuple(first)])} at {first}: labels must lie in "
            f"0..{answers - 1}, or be {IGNORED} where a pixel is ignored"
        )


def _checked_weights(class_weights: Sequence[float]) -> Tensor:
    weights = torch.tensor([float(weight) for weight in class_weights])
    if len(weights) == 0 or not weights.isfinite().all() or weights.min() < 0:
        raise ValueError(f"class_weights must be numbers of 0 or more, got {list(class_weights)}")
    return weights


def _require(fits: bool, name: str, legal: str, value: float) -> None:
    if not fits:
        raise ValueError(f"{name} must be {legal}, got {value!r}")
