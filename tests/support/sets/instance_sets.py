"""Small COCO data sets with masks and keypoints, and random images with objects."""

import json

import numpy as np
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as coco_mask

from densenet_backbones.data.boxes import masks_to_boxes
from densenet_backbones.data.instances import Instances
from densenet_backbones.data.scenes import annotations as forms

KEYPOINTS = ("nose", "left_hand", "right_hand", "left_foot", "right_foot")
OTHER_SIDE = (0, 2, 1, 4, 3)
CATEGORIES = [
    {"id": 3, "name": "person", "keypoints": list(KEYPOINTS), "skeleton": [[1, 2], [1, 3]]},
    {"id": 7, "name": "box"},
]
SIZES = ((24, 36), (40, 20), (30, 30), (20, 44), (50, 25), (28, 32), (36, 24), (22, 30))  # (H, W)


def compressed(mask):
    found = coco_mask.encode(np.asfortranarray(mask))
    return {"size": list(mask.shape), "counts": found["counts"].decode()}


def rectangle(height, width, rng):
    """(H, W) uint8 with one rectangle of at least 4 pixels a side."""
    top, left = rng.integers(0, height // 2), rng.integers(0, width // 2)
    mask = np.zeros((height, width), np.uint8)
    mask[top : top + rng.integers(4, height // 2), left : left + rng.integers(4, width // 2)] = 1
    return mask


def write_instances(root, sizes=SIZES, split="train", seed=0, file="instances", exif=None):
    """A COCO data set of random pictures.

    Each has three objects: a person with keypoints as polygons, a box as compressed run lengths,
    a person without keypoints as run lengths; and a crowd of persons. Pixels of the n-th object
    are drawn in (50 n, 0, 255), those of later objects on top; keypoints are whole pixels' centers.
    """
    rng = np.random.default_rng(seed)
    images, annotations = [], []
    for n, (height, width) in enumerate(sizes):
        masks = [rectangle(height, width, rng) for _ in range(4)]
        outlines = [
            forms.trace_outline,
            compressed,
            forms.encode_run_lengths,
            forms.encode_run_lengths,
        ]
        pixels = rng.integers(0, 200, (height, width, 3), np.uint8)
        for k, (mask, outline) in enumerate(zip(masks, outlines, strict=True)):
            x, y, w, h = forms.compute_mask_box(mask)
            entry = {
                "id": 10 * n + k + 1,
                "image_id": n + 1,
                "category_id": 7 if k == 1 else 3,
                "bbox": [x, y, w, h],
                "area": int(mask.sum()),
                "iscrowd": int(k == 3),
                "segmentation": outline(mask),
            }
            if k == 0:
                spots = rng.integers((x, y), (x + w, y + h), (len(KEYPOINTS), 2)) + 0.5
                rows = [[*spot, 2] for spot in spots.tolist()]
                rows[1] = [0, 0, 0]
                entry |= {"keypoints": [v for row in rows for v in row], "num_keypoints": 4}
            annotations.append(entry)
            pixels[mask > 0] = (50 * k, 0, 255)
        name = f"{n}.png"
        images.append({"id": n + 1, "file_name": name, "width": width, "height": height})
        (root / split).mkdir(parents=True, exist_ok=True)
        stored, tags = pixels, Image.Exif()
        if exif == 6:  # to be turned by a quarter clockwise
            stored, tags[0x0112] = np.rot90(pixels), 6
        Image.fromarray(np.ascontiguousarray(stored)).save(root / split / name, exif=tags)
    (root / "annotations").mkdir(exist_ok=True)
    content = {"images": images, "annotations": annotations, "categories": CATEGORIES}
    (root / "annotations" / f"{file}_{split}.json").write_text(json.dumps(content))
    return root


def change(root, edit, file="instances_train"):
    """Edit an annotation file's content in place."""
    path = root / "annotations" / f"{file}.json"
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))
    return root


def numbered(height, width):
    """(H, W, 3) uint8 in which every pixel has a color of its own (up to 65536 pixels)."""
    number = np.arange(height * width).reshape(height, width)
    return np.stack((number % 256, number // 256, np.full_like(number, 9)), 2).astype(np.uint8)


@st.composite
def images_with_objects(draw, largest=24, count=4):
    """A `numbered` image and its objects: tight boxes, masks with holes and parts, keypoints."""
    height, width = draw(st.integers(2, largest)), draw(st.integers(2, largest))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    masks = np.zeros((draw(st.integers(0, count)), height, width), np.uint8)
    for mask in masks:
        y, x = rng.integers(0, height), rng.integers(0, width)
        part = mask[y : y + rng.integers(1, height + 1), x : x + rng.integers(1, width + 1)]
        part[:] = rng.random(part.shape) < 0.7
        part.flat[0] = 1  # none is empty
    # Quarters of pixels: mirroring them is exact in float32.
    places = rng.integers(0, (4 * width, 4 * height), (len(masks), len(KEYPOINTS), 2)) / 4
    seen = rng.integers(0, 3, places.shape[:2])[..., None]
    keypoints = np.concatenate((places, seen), 2) * (seen > 0)
    labels = np.arange(1, len(masks) + 1)
    objects = Instances(masks_to_boxes(masks), labels, masks, keypoints.astype(np.float32))
    return numbered(height, width), objects
