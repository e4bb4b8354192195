"""Draws sheets of samples: images with boxes, masks and keypoints, and objects of each class."""

from collections.abc import Sequence

import numpy as np

from densenet_backbones.data.checks.contents import AnySet
from densenet_backbones.data.faults import DataError
from densenet_backbones.data.images import read_reduced_image
from densenet_backbones.data.instances import TargetType, read_instances
from densenet_backbones.data.mask_samples import SegmentationSet
from densenet_backbones.data.samples import DetectionSet, ImageRecord
from densenet_backbones.data.sets.grouping import list_labels
from densenet_backbones.inspection.looking import Place
from densenet_backbones.reporting.instance_pictures import collect_annotations, draw_instances
from densenet_backbones.reporting.mask_pictures import draw_mask
from densenet_backbones.reporting.pictures import make_sheet, scale_image

SAMPLES = 12
_LONGEST = 480  # pixels of a sample's longer side
_CROP = 112  # pixels of an object's crop
_CROPS = 10  # objects of a class
CLASSES_CROPPED = 40


def choose_samples(data: AnySet, number: int = SAMPLES) -> list[int]:
    """Choose images that show all classes as far as they can, spread over the set."""
    chosen: list[int] = []
    if isinstance(data, DetectionSet):
        labels = [set(own.tolist()) for own in list_labels(data)]
        seen: set[int] = set()
        # Rare classes first: each chosen image is the one that adds most.
        counts = np.bincount(data.packed.columns.labels)
        for label in np.argsort(counts, kind="stable").tolist():
            having = [n for n, own in enumerate(labels) if label in own]
            if having and label not in seen and len(chosen) < number // 2:
                best = max(having, key=lambda n: len(labels[n] - seen))
                chosen.append(best)
                seen |= labels[best]
    evenly = np.linspace(0, len(data) - 1, min(number, len(data))).round().astype(int).tolist()
    chosen += [n for n in evenly if n not in chosen]
    return sorted(dict.fromkeys(chosen[:number]))


def draw_samples(data: AnySet, positions: Sequence[int]) -> np.ndarray | None:
    """Draw images with their annotations on a sheet; those that cannot be read are left out."""
    drawn, titles = [], []
    for position in positions:
        try:
            drawn.append(draw_sample(data, position))
            titles.append(data.records[position].path.name)
        except DataError:
            continue
    return make_sheet(drawn, titles=titles) if drawn else None


def draw_sample(data: AnySet, position: int) -> np.ndarray:
    """Draw one image with its annotations, at most `_LONGEST` pixels a side."""
    record = data.records[position]
    if isinstance(data, SegmentationSet):
        image, _ = read_reduced_image(record.path, promised=(record.width, record.height))
        mask = data.records[position].read_mask()
        factor = min(1.0, _LONGEST / max(image.shape[:2]))
        rows, columns = (
            (np.arange(max(1, round(side * factor))) / factor).astype(int).clip(0, side - 1)
            for side in image.shape[:2]
        )
        small = scale_image(image, factor)
        return draw_mask(small, mask[..., rows[:, None], columns], data.classes.colors)
    assert isinstance(record, ImageRecord)
    image, factor = _read_small(record, _LONGEST)
    kinds: list[TargetType] = ["boxes"]
    keypoints = data.categories.keypoints
    if record.annotation_of is not None and len(record.boxes):
        own = [record.annotations[int(n)] for n in record.annotation_of]
        kinds += ["masks"] if all(a.get("segmentation") for a in own) else []
        kinds += ["keypoints"] if keypoints else []
    positions = data.categories.keypoint_positions
    objects = read_instances(record, kinds, len(keypoints), positions)
    instances = collect_annotations(objects).scale(factor)
    return draw_instances(image, instances, data.categories.names, data.categories.skeleton)


def _read_small(record: ImageRecord, longest: int) -> tuple[np.ndarray, float]:
    """Read an image of at most so many pixels a side, and the factor of its sides."""
    scale = min(1.0, longest / max(record.width, record.height))
    wanted = max(1, round(record.height * scale)), max(1, round(record.width * scale))
    image, _ = read_reduced_image(record.path, wanted, (record.width, record.height))
    image = scale_image(image, min(wanted[0] / image.shape[0], wanted[1] / image.shape[1]))
    return image, image.shape[1] / record.width


def draw_crops(data: DetectionSet, label: int) -> np.ndarray | None:
    """Draw objects of a class, spread over the set, each cut out with some of what is around."""
    columns = data.packed.columns
    rows = np.flatnonzero(columns.labels == label)
    if not len(rows):
        return None
    picked = rows[np.linspace(0, len(rows) - 1, min(_CROPS, len(rows))).round().astype(int)]
    owners = np.searchsorted(columns.box_ends, picked, side="right")
    crops = []
    for row, owner in zip(picked.tolist(), owners.tolist(), strict=True):
        record = data.records[owner]
        try:
            crops.append(_cut_out(record, columns.boxes[row]))
        except DataError:
            continue
    return np.concatenate(crops, axis=1) if crops else None


def _cut_out(record: ImageRecord, box: np.ndarray) -> np.ndarray:
    """Return a square picture around a box."""
    side = 1.25 * float(max(box[2] - box[0], box[3] - box[1], 8))
    longest = max(record.width, record.height) * min(1.0, 2 * _CROP / side)
    image, factor = _read_small(record, max(1, round(longest)))
    x, y = (box[:2] + box[2:]) / 2 * factor
    half = max(2, round(side * factor / 2))
    padded = np.pad(image, ((half, half), (half, half), (0, 0)), constant_values=255)
    top, left = round(float(y)), round(float(x))
    crop = padded[top : top + 2 * half, left : left + 2 * half]
    fitted = scale_image(np.ascontiguousarray(crop), _CROP / max(crop.shape[:2]))
    square = np.full((_CROP, _CROP + 4, 3), 255, np.uint8)
    square[: fitted.shape[0], : fitted.shape[1]] = fitted[:_CROP, :_CROP]
    return square


def draw_pair(parts: dict[str, AnySet], one: Place, other: Place) -> np.ndarray | None:
    """Draw two images side by side, with their splits and names."""
    drawn, titles = [], []
    for split, position in (one, other):
        record = parts[split].records[position]
        try:
            image, _ = read_reduced_image(record.path, (200, 200))
        except DataError:
            return None
        drawn.append(scale_image(image, 240 / max(image.shape[:2])))
        titles.append(f"{split}: {record.path.name}")
    return make_sheet(drawn, 2, titles)
