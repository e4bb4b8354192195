"""Objects as labelling tools draw them, and the data set that they make; readers share them."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from densenet_backbones.data.faults import DataError
from densenet_backbones.data.readers.foreign.content import CocoContent
from densenet_backbones.data.samples import Outline, RunLengths
from densenet_backbones.messages import pluralize
from densenet_backbones.untrusted.limits import MAX_CLASSES, MAX_KEYPOINTS, MAX_PIXELS

_CIRCLE_POINTS = 32


@dataclass
class DrawnObject:
    """Object of an image.

    Attributes:
        label: Name of its class.
        corners: Box x1, y1, x2, y2 in pixels; None takes the outline's.
        outline: Polygons or run lengths.
        keypoints: x, y and visibility of its keypoints by name.
    """

    label: str
    corners: tuple[float, float, float, float] | None = None
    outline: Outline | None = None
    keypoints: dict[str, tuple[float, float, int]] = field(default_factory=dict)

    def join(self, part: "DrawnObject") -> bool:
        """Take another part of the object in; return False where the two are not of one kind."""
        own, other = self.outline, part.outline
        if isinstance(own, list) and isinstance(other, list):
            own += other
            return True
        if isinstance(own, dict) and isinstance(other, dict) and own["size"] == other["size"]:
            self.corners, self.outline = _describe_mask(coco_mask.merge([own, other]))
            return True
        return False


@dataclass(frozen=True)
class DrawnImage:
    """Image with its objects.

    Attributes:
        image: Name of the image relative to the root.
        file: File of its annotations.
        size: (W, H) as the annotations say.
        objects: Its objects.
        left_out: Shapes that are no objects: item and reason.
    """

    image: str
    file: Path
    size: tuple[int, int] | None
    objects: Sequence[DrawnObject]
    left_out: Sequence[tuple[str, str]] = ()


def list_kinds(objects: Iterable[DrawnObject]) -> set[str]:
    """List what objects can teach: "boxes", and "masks" and "keypoints" where there are some."""
    kinds = {"boxes"}
    for thing in objects:
        kinds |= {"masks"} if thing.outline else set()
        kinds |= {"keypoints"} if thing.keypoints else set()
    return kinds


def make_content(root: Path, tool: str, images: Iterable[tuple[DrawnImage, bool]]) -> CocoContent:
    """Make COCO's structure of the images that are wanted; the classes are those of all images.

    Args:
        root: Folder of the data, for messages.
        tool: Name of the tool, for messages.
        images: Images of all splits, each with True if it is wanted.

    Raises:
        DataError: If there is no object, or there are too many classes or keypoints.
    """
    names: set[str] = set()
    points: set[str] = set()
    having: set[str] = set()
    wanted: list[DrawnImage] = []
    left_out = ""
    for image, is_wanted in images:
        names |= {thing.label for thing in image.objects}
        points |= {name for thing in image.objects for name in thing.keypoints}
        having |= {thing.label for thing in image.objects if thing.keypoints}
        wanted += [image] * is_wanted
        if image.left_out and not left_out:
            left_out = f" (such as {image.file}: {': '.join(image.left_out[0])})"
    if not names:
        raise DataError(
            f"{root}: the files of {tool} have no box and no polygon{left_out}; draw some"
        )
    if len(names) > MAX_CLASSES or len(points) > MAX_KEYPOINTS:
        raise DataError(
            f"{root}: the files of {tool} name {pluralize(len(names), 'class')} (1 to "
            f"{MAX_CLASSES}) and {pluralize(len(points), 'keypoint')} ({MAX_KEYPOINTS} at most); "
            "correct their labels"
        )
    content, keypoints = CocoContent(), sorted(points)
    ids = content.name_classes(sorted(names), keypoints, having)
    for image in wanted:
        image_id = content.add_image(image.image, image.size, image.file)
        for thing in image.objects:
            flat = None
            if thing.keypoints:
                flat = [v for name in keypoints for v in thing.keypoints.get(name, (0, 0, 0))]
            content.add_object(image_id, ids[thing.label], thing.corners, thing.outline, flat)
        for item, what in image.left_out:
            content.leave_out(image.file, item, what)
    return content


def check_mask_box(
    corner: tuple[int, int], sides: tuple[int, int], size: tuple[int, int], where: str
) -> None:
    """Refuse a mask whose box is not inside its image, before its pixels are read.

    Args:
        corner: x and y of the mask's first pixel in the image.
        sides: (w, h) of the mask.
        size: (W, H) of the image.
        where: File and item, for the message.

    Raises:
        DataError: Names the item.
    """
    (left, top), (width, height) = corner, sides
    inside = left >= 0 and top >= 0 and left + width <= size[0] and top + height <= size[1]
    if size[0] * size[1] > MAX_PIXELS or not inside or min(sides) < 1:
        raise DataError(
            f"{where}: its box is outside of the image of {size[0]}x{size[1]} pixels, or that has "
            f"more than the {MAX_PIXELS} that are allowed; correct it"
        )


def place_mask(
    label: str, mask: np.ndarray, corner: tuple[int, int], size: tuple[int, int]
) -> DrawnObject:
    """Make the object of a mask of a part of its image; its box is around its pixels.

    Args:
        label: Name of the object's class.
        mask: (h, w), not 0 where the object is; inside the image.
        corner: x and y of its first pixel in the image.
        size: (W, H) of the image.
    """
    (left, top), (height, width) = corner, mask.shape
    canvas = np.zeros((size[1], size[0]), np.uint8, order="F")
    canvas[top : top + height, left : left + width] = mask != 0
    return DrawnObject(label, *_describe_mask(coco_mask.encode(canvas)))


def _describe_mask(code: Any) -> tuple[tuple[float, float, float, float], RunLengths]:
    """Return the corners of the box around a mask's pixels, and its run lengths as text."""
    x, y, w, h = coco_mask.toBbox(code).tolist()
    sides = [int(side) for side in code["size"]]
    return (x, y, x + w, y + h), {"size": sides, "counts": code["counts"].decode()}


def draw_ellipse(
    center: tuple[float, float], radii: tuple[float, float], turn: float = 0.0
) -> list[float]:
    """Draw a polygon with the ellipse's extreme points among its own.

    Args:
        center: x and y in pixels.
        radii: Half of its width and of its height, before it is turned.
        turn: Angle in radians, clockwise as seen.
    """
    (x, y), (a, b) = center, radii
    points = []
    for step in range(_CIRCLE_POINTS):
        angle = 2 * math.pi * step / _CIRCLE_POINTS
        points.append((x + a * math.cos(angle), y + b * math.sin(angle)))
    return turn_points(points, center, turn)


def turn_points(
    points: Iterable[tuple[float, float]], center: tuple[float, float], turn: float
) -> list[float]:
    """Return points as x, y, x, y, ..., turned around a center by an angle in radians."""
    (x, y), sine, cosine = center, math.sin(turn), math.cos(turn)
    flat: list[float] = []
    for px, py in points:
        flat += [
            x + (px - x) * cosine - (py - y) * sine,
            y + (px - x) * sine + (py - y) * cosine,
        ]
    return flat
