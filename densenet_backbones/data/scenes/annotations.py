"""Describes drawn scenes in the forms of COCO (instances, keypoints, panoptic) and Pascal VOC.

Formats: https://cocodataset.org/#format-data, and the VOC2012 development kit, section 2.5.

Masks are the visible pixels only, so that every form agrees with every other: a polygon is the
outline along the pixel edges and rasterizes to the mask itself, `area` counts the mask's pixels
and a box is tight around them.
"""

from typing import TypedDict
from xml.etree import ElementTree

import cv2
import numpy as np

from densenet_backbones.data.mask_samples import BACKGROUND, IGNORED, voc_color
from densenet_backbones.data.samples import Annotation, CategoryEntry, Outline, RunLengths
from densenet_backbones.data.scenes.drawing import (
    CLASSES,
    FIGURE,
    KEYPOINTS,
    SKELETON,
    Scene,
    SceneObject,
)
from densenet_backbones.data.scenes.painting import STUFF

STUFF_ID = 100  # the category id of STUFF[s] is STUFF_ID + s + 1
CROWDED = 100  # annotations an image can have: its annotation ids are image_id * CROWDED + k
DIFFICULT_SHOWN = 0.35  # VOC: less than this share of the object can be seen
VOC_BORDER = IGNORED


class Segment(TypedDict):
    """Segment of a panoptic picture in COCO's form."""

    id: int
    category_id: int
    area: int
    bbox: list[float]
    iscrowd: int


class PanopticAnnotation(TypedDict):
    """Annotation of an image in COCO's panoptic form."""

    image_id: int
    file_name: str
    segments_info: list[Segment]


def make_instance_categories() -> list[CategoryEntry]:
    """Make COCO's `categories` of the shape classes; ids are ``1 .. len(CLASSES)``."""
    return [{"id": k + 1, "name": c, "supercategory": "shape"} for k, c in enumerate(CLASSES)]


def make_keypoint_categories() -> list[CategoryEntry]:
    """Make COCO's `categories` of a keypoint file: figures only."""
    category = make_instance_categories()[FIGURE - 1]
    return [{**category, "keypoints": list(KEYPOINTS), "skeleton": [list(p) for p in SKELETON]}]


def make_panoptic_categories() -> list[CategoryEntry]:
    """Make COCO's panoptic `categories`: the shapes and the background regions."""
    things: list[CategoryEntry] = [{**c, "isthing": 1} for c in make_instance_categories()]
    return things + [
        {"id": STUFF_ID + s + 1, "name": name, "supercategory": "background", "isthing": 0}
        for s, name in enumerate(STUFF)
    ]


def make_instance_annotations(scene: Scene, image_id: int) -> list[Annotation]:
    """Make COCO's `annotations`, back to front; crowds are `iscrowd` 1 with run lengths."""
    return [
        {
            "id": image_id * CROWDED + k,
            "image_id": image_id,
            "category_id": thing.label,
            "bbox": compute_mask_box(thing.mask),
            "area": int(thing.mask.sum()),
            "iscrowd": int(thing.crowd),
            "segmentation": encode_run_lengths(thing.mask)
            if thing.crowd
            else trace_outline(thing.mask),
        }
        for k, thing in enumerate(scene.objects, start=1)
    ]


def make_keypoint_annotations(scene: Scene, annotations: list[Annotation]) -> list[Annotation]:
    """Select the figures among `annotations` (of the same scene), and add their keypoints.

    Coordinates are pixels rounded to 0.01; visibility is COCO's: 0 outside the image, 1 hidden
    behind something, 2 visible.
    """
    figures: list[Annotation] = []
    for thing, annotation in zip(scene.objects, annotations, strict=True):
        if thing.keypoints is not None:
            flat = [
                v
                for x, y, seen in thing.keypoints.tolist()
                for v in (_floor2(x), _floor2(y), int(seen))
            ]
            count = int((thing.keypoints[:, 2] > 0).sum())
            figures.append({**annotation, "keypoints": flat, "num_keypoints": count})
    return figures


def make_panoptic_annotation(
    scene: Scene, image_id: int, file_name: str
) -> tuple[PanopticAnnotation, np.ndarray]:
    """Make COCO's panoptic annotation of a scene and its (H, W, 3) uint8 RGB id picture.

    A segment's id is ``R + 256 G + 65536 B``; every pixel belongs to a segment.
    """
    segment_ids = np.zeros(scene.ids.shape, np.uint32)
    segments: list[Segment] = []
    masks = [(thing.label, thing.mask, int(thing.crowd)) for thing in scene.objects]
    for s in range(len(STUFF)):
        mask = (scene.stuff == s + 1) & (scene.ids == 0)
        if mask.any():
            masks.append((STUFF_ID + s + 1, mask, 0))
    for k, (category_id, mask, crowd) in enumerate(masks, start=1):
        # An odd factor is one-to-one modulo 2^24 and gives neighbors unlike colors.
        segment_id = k * 0x9E3779 % (1 << 24)
        segment_ids[mask] = segment_id
        segments.append(
            {
                "id": segment_id,
                "category_id": category_id,
                "area": int(mask.sum()),
                "bbox": compute_mask_box(mask),
                "iscrowd": crowd,
            }
        )
    picture = np.stack([(segment_ids >> shift) & 255 for shift in (0, 8, 16)], 2)
    annotation: PanopticAnnotation = {
        "image_id": image_id,
        "file_name": file_name,
        "segments_info": segments,
    }
    return annotation, picture.astype(np.uint8)


def make_voc_xml(scene: Scene, file_name: str) -> bytes:
    """Write VOC's annotation of a scene; boxes are 1-based with both ends included.

    A crowd becomes one difficult object, as VOC has no other form that evaluation ignores.
    """
    root = ElementTree.Element("annotation")
    _add_child(root, "folder", "VOC")
    _add_child(root, "filename", file_name)
    size = ElementTree.SubElement(root, "size")
    height, width, depth = scene.image.shape
    for name, value in (("width", width), ("height", height), ("depth", depth)):
        _add_child(size, name, value)
    _add_child(root, "segmented", 1)
    for thing in scene.objects:
        item = ElementTree.SubElement(root, "object")
        _add_child(item, "name", CLASSES[thing.label - 1])
        _add_child(item, "pose", "Unspecified")
        _add_child(item, "truncated", int(thing.truncated))
        _add_child(item, "occluded", int(thing.visible_share < 1))
        _add_child(item, "difficult", int(is_difficult(thing)))
        x, y, w, h = compute_mask_box(thing.mask)
        box = ElementTree.SubElement(item, "bndbox")
        corners = (("xmin", x + 1), ("ymin", y + 1), ("xmax", x + w), ("ymax", y + h))
        for name, value in corners:
            _add_child(box, name, value)
    ElementTree.indent(root, "\t")
    return ElementTree.tostring(root) + b"\n"


def is_difficult(thing: SceneObject) -> bool:
    """Return VOC's flag: True if an object is hardly to be recognized, or a crowd."""
    return thing.crowd or thing.visible_share < DIFFICULT_SHOWN


def make_class_mask(scene: Scene) -> np.ndarray:
    """Make the (H, W) uint8 classes: 0 background, `VOC_BORDER` around objects and on crowds."""
    labels = np.array([0] + [VOC_BORDER if o.crowd else o.label for o in scene.objects], np.uint8)
    # Ids grow from back to front: the border lies on whatever is behind an edge, so that thin
    # limbs keep their pixels.
    behind = cv2.dilate(scene.ids, np.ones((3, 3), np.uint8)) > scene.ids
    mask = labels[scene.ids]
    mask[behind] = VOC_BORDER
    return np.asarray(mask)


def make_voc_palette() -> list[int]:
    """Make the palette of VOC's color map, 256 x RGB."""
    return [channel for index in range(256) for channel in voc_color(index)]


def make_label_map() -> str:
    """Write the classes of `make_class_mask` as CVAT's `labelmap.txt`, where readers find names."""
    lines = ["# label:color_rgb:parts:actions"]
    for index, name in (*enumerate((BACKGROUND, *CLASSES)), (VOC_BORDER, "ignored")):
        lines.append("{}:{},{},{}::".format(name, *voc_color(index)))
    return "".join(f"{line}\n" for line in lines)


def compute_mask_box(mask: np.ndarray) -> list[float]:
    """Compute COCO's box [x, y, width, height], tight around the pixels of a non-empty mask."""
    return [int(v) for v in cv2.boundingRect(mask.view(np.uint8))]


def trace_outline(mask: np.ndarray) -> Outline:
    """Trace COCO's polygons along the pixel edges of a mask, or run lengths where it has holes."""
    # findContours walks through pixel centers: on the doubled mask these are the half pixels on
    # either side of each edge, and rounding moves them onto the edge.
    doubled = np.repeat(np.repeat(mask.view(np.uint8), 2, 0), 2, 1)
    curves, tree = cv2.findContours(doubled, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    if (tree[0, :, 3] >= 0).any():
        return encode_run_lengths(mask)
    return [((curve[:, 0] + 1) // 2).astype(int).ravel().tolist() for curve in curves]


def encode_run_lengths(mask: np.ndarray) -> RunLengths:
    """Encode COCO's uncompressed RLE: column by column, first the number of pixels outside.

    (pycocotools writes compressed codes only; crowds in COCO's files are uncompressed.)
    """
    flat = np.concatenate(([False], mask.ravel(order="F"), [False]))
    edges = np.flatnonzero(flat[1:] != flat[:-1])
    if edges.size and edges[-1] == mask.size:  # a run of pixels ends with the image
        edges = edges[:-1]
    counts = np.diff(np.concatenate(([0], edges, [mask.size])))
    return {"size": list(mask.shape), "counts": counts.tolist()}


def _add_child(parent: ElementTree.Element, name: str, value: object) -> None:
    ElementTree.SubElement(parent, name).text = str(value)


def _floor2(value: float) -> float:
    """Round down to two digits: never up to the image's own width."""
    return float(np.floor(value * 100) / 100)
