"""Rewrite one-stage detectors as one graph, from an image to a fixed number of detections.

torchvision's post-processing, and DSOD's, keeps as many boxes as there are above a threshold and
asks how many that are: `torch.export` stops there. The forms of this module compute the same with
shapes that depend on the image's size alone, see `padded_detections`.

A graph takes one image (1, C, H, W), RGB floats 0..1, as it is: normalization, resizing and padding
are inside, and the boxes that come out are in the frame of the image that went in. H and W may be
dynamic. They are resized to the network's fixed size (DSOD, SSD), or by ``min_size`` and
``max_size`` (RetinaNet, FCOS), which takes an operator of its own, see `resize_to_limits`.

Legend: D detections that an image can have at most, P anchors, K classes including the background
(class 0), L levels, C channels, H and W pixels. Boxes are xyxy in pixels.
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.fcos import FCOS
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.retinanet import RetinaNet
from torchvision.models.detection.ssd import SSD
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from densenet_backbones.export.operators import resize_to_limits
from densenet_backbones.export.padded_detections import (
    Candidates,
    PaddedDetections,
    keep_marked,
    run_padded_nms,
    select_by_class,
)
from densenet_backbones.heads.detection.base import TorchvisionDetector
from densenet_backbones.heads.detection.dsod import DSOD
from densenet_backbones.heads.detection.transform import DetectionTransform
from densenet_backbones.heads.multibox.box_coding import decode
from densenet_backbones.heads.multibox.selection import Selection

__all__ = ["DetectorForm", "TorchvisionForm", "make_export_form"]


class DetectorForm(nn.Module):
    """Detector from one image to padded detections, without a branch on data.

    ``form(image)`` is ``form.detect(*form.prepare(image))``. With ``min_size`` and ``max_size`` the
    sizes of all maps would be functions of H and W too long for `torch.export`, so that an exporter
    takes the two one by one, the second with sizes that are multiples of ``size_divisible``.

    Args:
        model: The detector in evaluation mode; it is used, not copied.
        transform: Its pre-processing.
        selection: Limits of scored boxes that become detections.

    Attributes:
        channels: Number of channels of an image, C.
    """

    def __init__(
        self, model: nn.Module, transform: GeneralizedRCNNTransform, selection: Selection
    ) -> None:
        super().__init__()
        self.model = model
        self.transform = transform
        self.selection = selection
        self.channels = len(transform.image_mean)
        self.eval()

    @property
    def fixed_size(self) -> tuple[int, int] | None:
        """(H, W) that every image is resized to; None if ``min_size`` and ``max_size`` hold."""
        fixed = self.transform.fixed_size
        return (fixed[1], fixed[0]) if fixed is not None else None

    def forward(self, image: Tensor) -> PaddedDetections:
        """Turn an image (1, C, H, W), RGB floats 0..1, into detections in its own frame."""
        return self.detect(*self.prepare(image))

    def prepare(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Normalize, resize and pad an image for the network.

        Args:
            image: (1, C, H, W), RGB floats 0..1.

        Returns:
            (1, C, H', W'), normalized, resized and padded; (2,) float32 height and width before the
            padding; and those of the image.
        """
        x = self.transform.normalize(image)
        if self.fixed_size is not None:
            x = F.interpolate(x, size=self.fixed_size, mode="bilinear", align_corners=False)
        else:
            x = resize_to_limits(x, self.transform.min_size[-1], self.transform.max_size)
        return _pad(x, self.transform.size_divisible), _measure(x), _measure(image)

    def detect(self, x: Tensor, seen: Tensor, original: Tensor) -> PaddedDetections:
        """Return detections in the frame of the image, from what `prepare` returns."""
        detections = run_padded_nms(self.find_candidates(x, seen), self.selection)
        boxes = detections.boxes * (original / seen).flip(0).repeat(2)
        if not isinstance(self.transform, DetectionTransform):  # torchvision's own
            return detections._replace(boxes=boxes)
        # As `DetectionTransform.postprocess` treats boxes at the borders.
        boxes = _clip(boxes, original)
        has_area = (boxes[:, 2:] > boxes[:, :2]).all(dim=1)
        return keep_marked(detections._replace(boxes=boxes), has_area)

    def find_candidates(self, x: Tensor, size: Tensor) -> Candidates:
        """Return the scored boxes of a pre-processed image.

        Args:
            x: (1, C, H', W'), normalized, resized and padded.
            size: (2,) height and width before the padding.
        """
        raise NotImplementedError


class DSODForm(DetectorForm):
    """`DetectorForm` of `DSOD`."""

    def __init__(self, model: DSOD) -> None:
        super().__init__(model, model.transform, model.selection)
        self.register_buffer("priors", model.priors(), persistent=False)

    def find_candidates(self, x: Tensor, size: Tensor) -> Candidates:
        """Return them as `select_detections` takes them: boxes without area have score 0."""
        codes, logits = self.model.predict(x)  # type: ignore[operator]
        boxes = _clip(decode(codes[0], self.get_buffer("priors")), size)
        has_area = (boxes[:, 2:] > boxes[:, :2]).all(dim=1)
        scores = logits[0].float().softmax(dim=-1).where(has_area[:, None], 0.0)
        return select_by_class(scores, boxes, self.selection.topk_candidates)


class _OneStage(Protocol):
    """Parts that torchvision's one-stage detectors share."""

    score_thresh: float
    nms_thresh: float
    topk_candidates: int
    detections_per_img: int
    transform: GeneralizedRCNNTransform
    backbone: Callable[[Tensor], Tensor | dict[str, Tensor]]
    head: Callable[[list[Tensor]], dict[str, Tensor]]
    anchor_generator: AnchorGenerator
    box_coder: Any  # BoxCoder, or FCOS's of other methods


class TorchvisionForm(DetectorForm):
    """`DetectorForm` of a one-stage detector of torchvision."""

    def __init__(self, model: _OneStage) -> None:
        selection = Selection(
            model.score_thresh, model.nms_thresh, model.topk_candidates, model.detections_per_img
        )
        super().__init__(cast(nn.Module, model), model.transform, selection)

    @torch.no_grad()
    def measure_coarsest_stride(self) -> int:
        """Return the pixels of the network's input a cell of its coarsest map."""
        side = 256
        maps = self.compute_maps(torch.zeros(1, self.channels, side, side))
        return max(side // min(x.shape[-2:]) for x in maps)

    def compute_maps(self, x: Tensor) -> list[Tensor]:
        """Return the L maps of (1, C, H', W') that the head reads."""
        maps = cast(_OneStage, self.model).backbone(x)
        return [maps] if isinstance(maps, Tensor) else list(maps.values())

    def compute_outputs(self, x: Tensor) -> tuple[list[Tensor], dict[str, Tensor], Tensor]:
        """Return L maps, the head's outputs by name, and (P, 4) anchors."""
        model = cast(_OneStage, self.model)
        maps = self.compute_maps(x)
        height, width = x.shape[-2:]
        anchors = model.anchor_generator(ImageList(x, [(height, width)]), maps)[0]
        return maps, model.head(maps), anchors


class SSDForm(TorchvisionForm):
    """`DetectorForm` of `torchvision.models.detection.ssd.SSD`."""

    def find_candidates(self, x: Tensor, size: Tensor) -> Candidates:
        """Return the best boxes of each class."""
        model = cast(SSD, self.model)
        _, head, anchors = self.compute_outputs(x)
        boxes = model.box_coder.decode_single(head["bbox_regression"][0], anchors)
        boxes = _clip(boxes, size)
        scores = head["cls_logits"][0].softmax(dim=-1)
        return select_by_class(scores, boxes, self.selection.topk_candidates)


class PyramidForm(TorchvisionForm):
    """`DetectorForm` of torchvision's `RetinaNet` and `FCOS`.

    Those of ours never predict the background, class 0; torchvision's own may.
    """

    def __init__(self, model: RetinaNet | FCOS) -> None:
        super().__init__(model)
        self.first_label = 1 if isinstance(model, TorchvisionDetector) else 0

    def find_candidates(self, x: Tensor, size: Tensor) -> Candidates:
        """Return the best pairs of box and class of each level."""
        model = cast(_OneStage, self.model)
        maps, head, anchors = self.compute_outputs(x)
        scores = head["cls_logits"][0, :, self.first_label :].sigmoid()  # (P, classes)
        if "bbox_ctrness" in head:
            scores = (scores * head["bbox_ctrness"][0].sigmoid()).sqrt()
        per_cell = model.anchor_generator.num_anchors_per_location()
        cells = [level.shape[-2] * level.shape[-1] for level in maps]
        sizes = [number * each for number, each in zip(cells, per_cell, strict=True)]
        parts = (head["bbox_regression"][0], anchors, scores)
        levels = zip(*(torch.split(part, sizes) for part in parts), strict=True)
        return _join([self._select_best(*level, size=size) for level in levels])

    def _select_best(
        self, codes: Tensor, anchors: Tensor, scores: Tensor, *, size: Tensor
    ) -> Candidates:
        classes = scores.shape[-1]
        number = self.selection.topk_candidates
        # Filled up, so that there are so many on a small level too.
        best, index = F.pad(scores.flatten(), (0, number), value=-1.0).topk(number)
        index = index.clamp(max=scores.shape[0] * classes - 1)
        anchor = index.div(classes, rounding_mode="floor")
        coder = cast(_OneStage, self.model).box_coder
        decode_codes = coder.decode if isinstance(self.model, FCOS) else coder.decode_single
        boxes = _clip(decode_codes(codes[anchor], anchors[anchor]), size)
        return Candidates(boxes, best, index % classes + self.first_label)


def make_export_form(model: nn.Module) -> DetectorForm:
    """Make the form of a detector that `torch.export` can follow.

    Its detections are those of ``model([image])``, in the same order, save for candidates of equal
    scores, whose order torch leaves open.

    Args:
        model: `DSOD`, or torchvision's `SSD`, `RetinaNet` or `FCOS`, or a class that derives from
            one of these; in evaluation mode.

    Raises:
        ValueError: The model is none of these, is in training mode, or has thresholds outside 0..1.
    """
    if model.training:
        raise ValueError("the model is in training mode: call model.eval() before its export")
    if isinstance(model, DSOD):
        return DSODForm(model)
    if isinstance(model, SSD):
        return SSDForm(model)
    if isinstance(model, RetinaNet | FCOS):
        return PyramidForm(model)
    two_stages = isinstance(model, GeneralizedRCNN)
    why = ", as how many boxes a second stage sees depends on the image" if two_stages else ""
    raise ValueError(
        f"{type(model).__name__} has no form for export{why}: DSOD, SSD, RetinaNet and FCOS have, "
        "and classes that derive from them"
    )


def _pad(x: Tensor, divisor: int) -> Tensor:
    """Add zeros at the right and the bottom, up to multiples of a number."""
    if divisor == 1:
        return x
    height, width = x.shape[-2:]
    # Not -width % divisor, of which symbolic shapes make expressions that take far longer.
    more = [(side + divisor - 1) // divisor * divisor - side for side in (width, height)]
    return F.pad(x, (0, more[0], 0, more[1]))


def _measure(image: Tensor) -> Tensor:
    """Return (2,) float32 height and width of (1, C, H, W)."""
    sides = [torch.scalar_tensor(side, device=image.device) for side in image.shape[-2:]]
    return torch.stack(sides)


def _clip(boxes: Tensor, size: Tensor) -> Tensor:
    """Clip (..., 4) boxes to an image whose (2,) height and width are a tensor."""
    return boxes.clamp(min=0).minimum(size.flip(0).repeat(2))


def _join(levels: Sequence[Candidates]) -> Candidates:
    """Concatenate the candidates of all levels."""
    return Candidates(*(torch.cat(part) for part in zip(*levels, strict=True)))
