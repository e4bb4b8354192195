"""DSOD: deeply supervised object detectors, trained from scratch (arXiv:1708.01241).

Legend: N images, B boxes of an image, P priors, K classes including the background (class 0).
Boxes are xyxy in pixels; the frame is said at each place. Architecture and numbers follow
szq0214/DSOD (``model_libs.py``, ``DSOD300_pascal.py``, ``DSOD300_coco.py``).
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torchvision.models.detection.transform import resize_boxes

from densenet_backbones.features import feature_levels
from densenet_backbones.fpn import DensePrediction
from densenet_backbones.heads.backbones import (
    run_on_meta,
)
from densenet_backbones.heads.detection.transform import DetectionTransform, build_transform
from densenet_backbones.heads.freezing import FreezableModule
from densenet_backbones.heads.multibox.box_coding import decode
from densenet_backbones.heads.multibox.head import MultiBoxHead
from densenet_backbones.heads.multibox.losses import multibox_loss
from densenet_backbones.heads.multibox.matching import PriorTargets, assign_targets, out_of_reach
from densenet_backbones.heads.multibox.priors import PriorSpec
from densenet_backbones.heads.multibox.selection import Selection, select_detections
from densenet_backbones.heads.options import (
    Options,
)
from densenet_backbones.heads.validation import check_images, check_targets, refuse_tracing
from densenet_backbones.messages import check_interval

Target = dict[str, Tensor]


class DSOD(FreezableModule):
    """A one-stage detector: base network, dense prediction, multibox head.

    Called as torchvision's detectors are: ``model(images, targets)``. In training mode it returns
    the losses, in evaluation mode the detections.

    Args:
        backbone: Gives the maps of ``adapter.levels_in``, among others.
        adapter: From base maps to prediction maps.
        priors: Prior boxes of the prediction maps.
        transform: From images to the network's input, of one size.
        num_classes: K, with the background.
        selection: Which boxes become detections.
        head_norm: Batch norms in the head, as published; else biases (see `MultiBoxHead`).
        prior_probability: Of objects, before training (see `MultiBoxHead`).
        smooth_l1_beta: Of the boxes' loss (see `multibox_loss`).

    Attributes:
        grid_sizes: (rows, columns) of each prediction map.
        match_threshold: Lowest IoU between a prior and the object it learns.
        negatives_per_positive: Background priors in the loss for each matched prior.
    """

    match_threshold = 0.5
    weights_taken: tuple[str, ...] = ()
    weights_left: tuple[str, ...] = ()
    negatives_per_positive = 3.0

    def __init__(
        self,
        backbone: nn.Module,
        adapter: DensePrediction,
        priors: PriorSpec,
        transform: DetectionTransform,
        num_classes: int,
        selection: Selection | None = None,
        head_norm: bool = True,
        prior_probability: float | None = None,
        smooth_l1_beta: float = 1.0,
    ) -> None:
        super().__init__()
        if num_classes < 2:
            raise ValueError(f"num_classes counts the background: 2 or more, got {num_classes}")
        check_interval("smooth_l1_beta", smooth_l1_beta, "[0, inf)")
        self.smooth_l1_beta = smooth_l1_beta
        self.num_classes = num_classes
        self.prior_spec = priors
        self.selection = selection or Selection()
        self.transform = transform
        self.backbone = backbone
        self.adapter = adapter
        # The head predicts for each prior of a cell, so both are built from the same numbers.
        self.head = MultiBoxHead(
            adapter.levels,
            priors.priors_per_cell,
            num_classes,
            norm=head_norm,
            prior_probability=prior_probability,
        )
        # The backbone may have more maps than the two that the adapter reads.
        levels = feature_levels(backbone)
        self._base_positions = tuple(levels.index(level) for level in adapter.levels_in)
        self.grid_sizes = self._measure_grids()
        self._priors: dict[torch.device, Tensor] = {}

    @property
    def image_size(self) -> tuple[int, int]:
        """(H, W) of the network's input in pixels."""
        assert self.transform.image_size is not None
        return self.transform.image_size

    @property
    def feature_net(self) -> nn.Module:
        """Feature network whose stages are frozen: the backbone."""
        return self.backbone

    def set_transform(self, described: Options) -> None:
        """Take the transform that ``transform.to_dict()`` of a like detector describes.

        Raises:
            ValueError: It is of another image size, or not such a description.
        """
        transform = build_transform(described, 3, self.image_size)
        self.transform = transform.train(self.training)

    def forward(
        self, images: Sequence[Tensor], targets: Sequence[Target] | None = None
    ) -> dict[str, Tensor] | list[dict[str, Tensor]]:
        """Losses in training mode, detections in evaluation mode.

        Args:
            images: N tensors (3, H, W), RGB floats 0..1, of any sizes.
            targets: For training, N dicts with ``boxes`` (B, 4) float32 in the frame of the given
                image and ``labels`` (B,) int64 in 1..K-1; B may be 0.

        Returns:
            Training: ``classification`` and ``bbox_regression``, scalars. Evaluation: for each
            image ``boxes`` (D, 4) in its own frame, ``scores`` (D,) falling, ``labels`` (D,).

        Raises:
            ValueError: An image or target has another shape, type or range.
        """
        refuse_tracing(self)
        check_images(images)
        # Sizes are taken before resizing: detections go back to the frame of each image.
        if not self.training:
            sizes = [(image.shape[-2], image.shape[-1]) for image in images]
            batch, _ = self.transform(images)
            return self.detections(*self.predict(batch.tensors), sizes)
        check_targets(targets, len(images), self.num_classes)
        batch, targets = self.transform(images, targets)
        return self.losses(*self.predict(batch.tensors), targets)

    @property
    def smallest_batch(self) -> int:
        """Images of a training step: batch norm cannot train on a single value."""
        return 2 if (1, 1) in self.grid_sizes else 1

    def predict(self, batch: Tensor) -> tuple[Tensor, Tensor]:
        """Box codes (N, P, 4) and class logits (N, P, K) of pre-processed images (N, 3, H, W)."""
        if self.training and len(batch) < self.smallest_batch:
            raise ValueError(
                "batch norm cannot train on one image whose last map has a single cell: use a "
                f"batch of 2 or more, or an image size above {self.image_size}"
            )
        predictions: tuple[Tensor, Tensor] = self.head(self.adapter(self._select_base_maps(batch)))
        return predictions

    def losses(self, codes: Tensor, logits: Tensor, targets: Sequence[Target]) -> dict[str, Tensor]:
        """Match priors to objects, then the multibox loss; boxes in the network's frame."""
        assigned = self.assign(targets, codes.device)
        return multibox_loss(
            logits, codes, assigned, self.negatives_per_positive, self.smooth_l1_beta
        )

    def assign(self, targets: Sequence[Target], device: torch.device) -> PriorTargets:
        """Match priors to the targets, which are in the network's frame."""
        return assign_targets(targets, self.priors(device), self.match_threshold)

    def detections(
        self, codes: Tensor, logits: Tensor, sizes: Sequence[tuple[int, int]]
    ) -> list[dict[str, Tensor]]:
        """Decode, select, and map back to images of the given (H, W)."""
        # In float32, where scores near 1 and boxes of half a pixel can still be told apart.
        scores = logits.float().softmax(dim=-1)
        boxes = decode(codes, self.priors(codes.device))
        detections = [
            select_detections(*scored, self.image_size, self.selection)
            for scored in zip(scores, boxes, strict=True)
        ]
        # All images were seen at one size, whatever theirs is.
        seen = [self.image_size] * len(detections)
        return self.transform.postprocess(detections, seen, list(sizes))

    def priors(self, device: torch.device | str | None = None) -> Tensor:
        """(P, 4) prior boxes, xyxy in the network's frame, float32.

        Args:
            device: Where to; None for the model's own.
        """
        device = torch.device(device) if device else next(self.parameters()).device
        if device not in self._priors:
            # A tensor made in inference mode could not be used in training afterwards.
            with torch.inference_mode(False):
                self._priors[device] = self.prior_spec.boxes(self.grid_sizes).to(device)
        return self._priors[device]

    def find_unmatchable(
        self,
        boxes_per_image: Sequence[Tensor],
        sizes: Sequence[tuple[int, int]] | None = None,
    ) -> list[Tensor]:
        """Objects that no prior reaches: their best IoU is below ``match_threshold``.

        Args:
            boxes_per_image: (B, 4) tensors, xyxy in the frame of each image.
            sizes: (H, W) of each image; None where the boxes are in the network's frame already.

        Returns:
            (B,) bool for each image.
        """
        masks = []
        for index, boxes in enumerate(boxes_per_image):
            if sizes is not None:
                boxes = resize_boxes(boxes, sizes[index], self.image_size)
            priors = self.priors(boxes.device)
            masks.append(out_of_reach(boxes.float(), priors, self.match_threshold))
        return masks

    def no_weight_decay(self) -> set[str]:
        """Parameters that DSOD trains without weight decay (timm's name for the question)."""
        return {f"head.{name}" for name in self.head.list_undecayed()}

    def _select_base_maps(self, batch: Tensor) -> list[Tensor]:
        features = self.backbone(batch)
        return [features[position] for position in self._base_positions]

    def _measure_grids(self) -> tuple[tuple[int, int], ...]:
        """Sizes of the prediction maps, by running the network on shapes without data."""
        batch = torch.empty(2, 3, *self.image_size, device="meta")
        with torch.no_grad():
            features = run_on_meta(self.backbone, batch, self.image_size)
            # Both are run in turn: `functional_call` swaps the tensors of one module at a time.
            base = [features[position] for position in self._base_positions]
            maps = run_on_meta(self.adapter, base, self.image_size)
        return tuple((x.shape[-2], x.shape[-1]) for x in maps)
