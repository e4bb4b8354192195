"""DSOD: deeply supervised object detectors, trained from scratch (arXiv:1708.01241).

Legend: N images, B boxes of an image, P priors, K classes including the background (class 0).
Boxes are xyxy in pixels; the frame is said at each place. Architecture and numbers follow
szq0214/DSOD (``model_libs.py``, ``DSOD300_pascal.py``, ``DSOD300_coco.py``).
"""

from collections.abc import Sequence
from typing import Unpack

import torch
from torch import Tensor, nn
from torchvision.models.detection.transform import resize_boxes

from densenet_backbones.features import feature_levels
from densenet_backbones.fpn import DensePrediction
from densenet_backbones.heads.backbones import (
    collect_network,
    create_base_network,
    find_base_positions,
    read_normalization,
    run_on_meta,
)
from densenet_backbones.heads.detection.transform import DetectionTransform, build_transform
from densenet_backbones.heads.freezing import FreezableModule, freeze_layers
from densenet_backbones.heads.multibox.box_coding import decode
from densenet_backbones.heads.multibox.head import MultiBoxHead
from densenet_backbones.heads.multibox.losses import multibox_loss
from densenet_backbones.heads.multibox.matching import PriorTargets, assign_targets, out_of_reach
from densenet_backbones.heads.multibox.priors import PriorSpec, dsod_priors
from densenet_backbones.heads.multibox.selection import Selection, select_detections
from densenet_backbones.heads.options import (
    BackboneWeights,
    ImageOptions,
    NetworkOptions,
    Options,
    SelectionOptions,
    check_options,
    drop_none,
    split_options,
)
from densenet_backbones.heads.validation import check_images, check_targets, refuse_tracing
from densenet_backbones.heads.weights import load_weights
from densenet_backbones.messages import to_plain

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
    ) -> None:
        super().__init__()
        if num_classes < 2:
            raise ValueError(f"num_classes counts the background: 2 or more, got {num_classes}")
        self.num_classes = num_classes
        self.prior_spec = priors
        self.selection = selection or Selection()
        self.transform = transform
        self.backbone = backbone
        self.adapter = adapter
        # The head predicts for each prior of a cell, so both are built from the same numbers.
        self.head = MultiBoxHead(adapter.levels, priors.priors_per_cell, num_classes)
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
        return multibox_loss(logits, codes, assigned, self.negatives_per_positive)

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


class _SharedOptions(ImageOptions, SelectionOptions, BackboneWeights, total=False):
    _skip_resize: bool


class DSODOptions(_SharedOptions, total=False):
    """Keyword arguments of `dsod300`, explained there."""

    num_classes: int
    image_size: int | Sequence[int]
    backbone: str | nn.Module | None
    adapter_channels: Sequence[int]
    prior_sizes: str | Sequence[float]
    faithful_priors: bool
    bn_momentum: float
    weights: str | None


def dsod300(
    *,
    num_classes: int = 21,
    image_size: int | Sequence[int] = 300,
    backbone: str | nn.Module | None = None,
    adapter_channels: Sequence[int] = (256, 256, 128, 128, 128),
    prior_sizes: str | Sequence[float] = "voc",
    faithful_priors: bool = False,
    bn_momentum: float = 0.1,
    weights: str | None = None,
    **options: Unpack[_SharedOptions],
) -> DSOD:
    """DSOD300, DS/64-192-48-1: 14.72 M parameters and 15.08 GMAC for the 20 classes of VOC.

    Published with 77.7 mAP on VOC07 test (78.9 with 12 images a GPU) and 29.3 AP on COCO test-dev,
    trained from scratch. All arguments but a module as backbone are JSON types.

    Args:
        num_classes: K, with the background.
        image_size: Size of the network's input in pixels, one number or (H, W).
        backbone: timm name of a feature network with strides 8 and 16, or such a module; None for
            ``dsod_features``.
        adapter_channels: Half the channels of each prediction map but the first; their number makes
            the number of maps.
        prior_sizes: ``"voc"`` or ``"coco"`` (SSD's rule), or with ``512`` at the end SSD512's, or
            one size in pixels for each map and the upper end.
        faithful_priors: Keep the published step of 300 on the last map (see `dsod_priors`).
        bn_momentum: Momentum of every batch norm. Caffe's moving average of 0.001 corrects its bias
            and torch's does not: at 0.001 torch needs thousands of steps until evaluation is right.
        weights: File of a detector's weights, of which is taken what fits.
        **options: With a named backbone those of `BackboneWeights`, of whose layers all are trained
            unless ``trainable_backbone_layers`` says otherwise; ``image_mean``, ``image_std``,
            ``channel_order`` and ``value_range`` (left out, DSOD's for its own backbones and the
            pretrained configuration's for others); ``score_thresh``, ``nms_thresh``,
            ``topk_candidates`` and ``detections_per_img`` as of `Selection`.

    Raises:
        TypeError: An option is unknown.
        ValueError: An argument is out of range, or the backbone lacks one of the two strides.
    """
    check_options(num_classes, options, _SharedOptions.__optional_keys__)
    images, limits, weighted, _ = split_options(
        options, (ImageOptions, SelectionOptions, BackboneWeights)
    )
    # The feature network: built by name with its weights, or a module that comes with its own.
    name = "dsod_features" if backbone is None else backbone
    layers = weighted.pop("trainable_backbone_layers", None)
    kwargs = collect_network(name, weighted)
    if isinstance(name, str):
        net = create_base_network(name, **weighted, **kwargs)
    elif kwargs or weighted.get("weights_backbone") or layers is not None:
        raise ValueError(
            "backbone_kwargs (and growth_rate and the like), weights_backbone and "
            "trainable_backbone_layers need a backbone given by name"
        )
    else:
        net = name
    # Adapter and priors follow the network's levels: any with strides 8 and 16 will do.
    size = _parse_size(image_size)
    levels = feature_levels(net)
    adapter = DensePrediction([levels[i] for i in find_base_positions(levels)], adapter_channels)
    strides = [level.stride for level in adapter.levels]
    # What the caller says about images goes before what the weights expect.
    facts = read_normalization(net, name if isinstance(name, str) else None)
    model = DSOD(
        net,
        adapter,
        dsod_priors(size, strides, prior_sizes, faithful=faithful_priors),
        DetectionTransform(**{**facts, **drop_none(images), "image_size": size}),
        num_classes,
        Selection(**limits),
    )
    # Norms of the backbone, the adapter and the head alike, so only the whole model will do.
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.momentum = bn_momentum
    if isinstance(name, str):
        freeze_layers(model, name, kwargs, layers)
    return load_weights(model, weights)


def dsod300_smallest(**options: Unpack[DSODOptions]) -> DSOD:
    """DSOD300_smallest, DS/64-64-16-1: 5.83 M parameters, 5.29 GMAC, published with 73.6 mAP.

    Args:
        **options: As of `dsod300`; the backbone is ``dsod_smallest_features``.
    """
    options.setdefault("backbone", "dsod_smallest_features")
    return dsod300(**options)


def dsod512(**options: Unpack[DSODOptions]) -> DSOD:
    """DSOD512: DSOD300 with one more stage, for seven maps of 64 to 1 cells.

    The body is that of szq0214/DSOD, ``model_libs.py``, ``DSOD512_V3_Body``, published without
    numbers; the prior sizes are SSD512's.

    Args:
        **options: As of `dsod300`; other defaults are ``image_size=512``, six ``adapter_channels``
            and ``prior_sizes="voc512"`` (``"coco512"`` for COCO).
    """
    options.setdefault("image_size", 512)
    options.setdefault("adapter_channels", (256, 256, 128, 128, 128, 128))
    options.setdefault("prior_sizes", "voc512")
    return dsod300(**options)


def dsod_tiny(**options: Unpack[DSODOptions]) -> DSOD:
    """A DSOD of 160 pixels that trains in minutes on a CPU, for first steps and tests.

    Not a published variant: DSOD's structure with growth 16 to 48, two or three layers a block and
    five maps; about 0.25 GMAC.

    Args:
        **options: As of `dsod300`; other defaults are ``image_size=160``, small
            ``adapter_channels`` and a small base by ``growth_rate``, ``block_config`` and
            ``num_init_features``.
    """
    options.setdefault("image_size", 160)
    options.setdefault("adapter_channels", (64, 64, 64, 64))
    if options.get("backbone") is None:
        options["backbone"] = "dsod_smallest_features"
        # Narrow where maps are large and memory-bound, wide where they are small: that is where a
        # CPU gets most learning for its time.
        tiny: NetworkOptions = {
            "growth_rate": [16, 32, 48, 48],
            "block_config": [2, 3, 3, 3],
            "num_init_features": 16,
        }
        given = options.keys() | (options.get("backbone_kwargs") or {}).keys()
        options |= {k: v for k, v in tiny.items() if k not in given}  # type: ignore[typeddict-item]
    return dsod300(**options)


def _parse_size(image_size: int | Sequence[int]) -> tuple[int, int]:
    image_size = to_plain(image_size)
    if isinstance(image_size, int):
        return image_size, image_size
    if len(image_size) != 2:
        raise ValueError(f"image_size must be one number or (H, W), got {image_size!r}")
    return int(image_size[0]), int(image_size[1])
