"""Checks of what a caller asks of a model: one clear error instead of a loss that is NaN later.

What is legal is said by torchvision's detectors (``models/detection/generalized_rcnn.py``), which
check less of it.
"""

from collections.abc import Mapping, Sequence
from typing import TypeGuard

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.jit import is_tracing  # type: ignore[attr-defined]

from densenet_backbones.layers import is_traced
from densenet_backbones.messages import pluralize


class PythonModule(nn.Module):
    """Base of detectors and segmenters, which TorchScript's compiler cannot read."""

    def __prepare_scriptable__(self) -> nn.Module:
        """Refuse ``torch.jit.script``, which asks every module for what to compile.

        Raises:
            RuntimeError: Always; it says what to do instead.
        """
        raise RuntimeError(_describe_alternatives(self, "torch.jit.script"))


def refuse_tracing(model: nn.Module) -> None:
    """Refuse ``torch.jit.trace``, for models whose operations depend on what is in the images.

    Raises:
        RuntimeError: If this is called while it traces.
    """
    if is_tracing():
        raise RuntimeError(_describe_alternatives(model, "torch.jit.trace"))


def _describe_alternatives(model: nn.Module, what: str) -> str:
    return (
        f"{type(model).__name__} does not support {what}, as TorchScript is deprecated: write an "
        "ONNX file with densenet-export (tools/export.py), or use torch.export"
    )


def has_values(images: Tensor) -> bool:
    """Return True if images have values: not while a graph is recorded, nor as fake tensors."""
    recorded = torch.compiler.is_compiling() or is_traced(images)
    return not recorded and not isinstance(images, FakeTensor)


def check_images(images: Sequence[Tensor], channels: int = 3) -> None:
    """Raises a ``ValueError`` unless every image is a (3, H, W) float tensor of values 0..1.

    The range is looked at on the CPU only: on a GPU it would wait for the device at every step.

    Args:
        images: What to check.
        channels: How many each must have.
    """
    shape = f"({channels}, H, W)"
    if isinstance(images, Tensor) and images.dim() != 4:
        raise ValueError(f"images must be a list of {shape} tensors, got {tuple(images.shape)}")
    if len(images) == 0:
        raise ValueError(f"images is empty: give at least one {shape} tensor")
    for index, image in enumerate(images):
        if not isinstance(image, Tensor) or image.dim() != 3:
            raise ValueError(f"image {index} must be a {shape} tensor, got {_describe(image)}")
        if image.shape[0] != channels or 0 in image.shape:
            raise ValueError(f"image {index} must be {shape}, got {tuple(image.shape)}")
        if not image.is_floating_point():
            raise ValueError(
                f"image {index} must hold floats 0..1, got {image.dtype}: divide uint8 by 255"
            )
        if image.device.type == "cpu" and not torch.compiler.is_compiling() and image.amax() > 2:
            raise ValueError(
                f"image {index} must hold values 0..1, got {image.amax():.4g}: divide by 255"
            )


def check_targets(
    targets: Sequence[dict[str, Tensor]] | None, num_images: int, num_classes: int
) -> None:
    """Raises a ``ValueError`` that names the image and the box at fault.

    Args:
        targets: One dict an image, ``boxes`` (B, 4) float xyxy in pixels with positive width and
            height, ``labels`` (B,) int64 in 1..num_classes-1; B may be 0.
        num_images: Number of images they belong to.
        num_classes: K, with the background.
    """
    if targets is None:
        raise ValueError("targets must be given in training mode; call model.eval() to predict")
    if len(targets) != num_images:
        raise ValueError(
            f"targets must be one an image: {pluralize(num_images, 'image')}, {len(targets)} "
            "given; give one without boxes for an image without objects"
        )
    # Shapes and types cost no waiting for a device; values are looked at once for all images.
    for index, target in enumerate(targets):
        if not isinstance(target, Mapping):
            raise ValueError(f"target {index} must be a dict, got {_describe(target)}")
        missing = {"boxes", "labels"} - target.keys()
        if missing:
            raise ValueError(
                f"target {index} has no {sorted(missing)}; give boxes (B, 4) and labels (B,)"
            )
        boxes, labels = target["boxes"], target["labels"]
        if not _is_floats(boxes, dims=2) or boxes.shape[-1] != 4:
            raise ValueError(
                f"boxes of target {index} must be (B, 4) floats, got {_describe(boxes)}; use "
                "torch.zeros(0, 4) for an image without objects"
            )
        if not (
            isinstance(labels, Tensor)
            and labels.shape == boxes.shape[:1]
            and labels.dtype == torch.int64
        ):
            raise ValueError(
                f"labels of target {index} must be ({len(boxes)},) int64, got {_describe(labels)}"
            )
    if not torch.compiler.is_compiling():
        _check_values(targets, num_classes)


def check_masks(targets: Sequence[dict[str, Tensor]], images: Sequence[Tensor]) -> None:
    """Raises a ``ValueError`` unless every target has ``masks`` (B, H, W) of its image's size."""
    for index, (target, image) in enumerate(zip(targets, images, strict=True)):
        legal = (len(target["boxes"]), image.shape[-2], image.shape[-1])
        masks = target.get("masks")
        if not isinstance(masks, Tensor) or tuple(masks.shape) != legal:
            raise ValueError(
                f"target {index} must have masks {legal}, one of the image's size for each box; "
                f"got {_describe(masks)}"
            )


def check_keypoints(targets: Sequence[dict[str, Tensor]], number: int) -> None:
    """Raises a ``ValueError`` unless every target has ``keypoints`` (B, number, 3) floats."""
    for index, target in enumerate(targets):
        legal = (len(target["boxes"]), number, 3)
        points = target.get("keypoints")
        if not _is_floats(points, dims=3) or tuple(points.shape) != legal:
            raise ValueError(
                f"target {index} must have keypoints {legal} floats, x, y and visibility of each; "
                f"got {_describe(points)}"
            )


def _is_floats(value: object, dims: int) -> TypeGuard[Tensor]:
    return isinstance(value, Tensor) and value.dim() == dims and value.is_floating_point()


def _describe(value: object) -> str:
    """Describe what was given in place of a tensor, or the tensor."""
    if isinstance(value, Tensor):
        return f"{tuple(value.shape)} {value.dtype}"
    return "none" if value is None else type(value).__name__


def _check_values(targets: Sequence[dict[str, Tensor]], num_classes: int) -> None:
    boxes = torch.cat([target["boxes"] for target in targets])  # (B of all images, 4)
    labels = torch.cat([target["labels"] for target in targets])
    good_box = (boxes[:, 2:] > boxes[:, :2]).all(dim=1) & boxes.isfinite().all(dim=1)
    good = good_box & (labels >= 1) & (labels < num_classes)
    if good.all():  # the only wait for the device
        return
    # Something is wrong: find the image that the first faulty box belongs to.
    image_index = torch.repeat_interleave(
        torch.arange(len(targets)), torch.tensor([len(target["boxes"]) for target in targets])
    )
    first = int((~good).nonzero()[0])
    where = f"target {int(image_index[first])}"
    if not good_box[first]:
        raise ValueError(
            f"{where} has the box {boxes[first].tolist()}: boxes must be finite xyxy pixels with "
            "x1 < x2 and y1 < y2; drop boxes without area"
        )
    raise ValueError(
        f"{where} has the label {int(labels[first])}: labels must lie in 1..{num_classes - 1} "
        f"for num_classes={num_classes} (0 is the background)"
    )
