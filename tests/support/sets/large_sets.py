"""Large generated data sets, for what must stay small and quick; images are empty files."""

import json
import sys
from pathlib import Path

import numpy as np

COMMON = {"license": 4, "height": 480, "width": 640, "date_captured": "2013-11-14 11:18:45"}


def write_coco(
    root: Path, images: int, objects: int, seed: int = 0, *, outlines: bool = False
) -> Path:
    """Boxes of 80 classes in COCO's layout, split "train"; with COCO's own fields and order.

    Outlines have 40 numbers, as half of COCO's have or more.
    """
    rng = np.random.default_rng(seed)
    owners, classes = rng.integers(0, images, objects), rng.integers(1, 81, objects)
    boxes = np.round(rng.uniform(4, 40, (objects, 4)), 2)
    polygons = np.round(boxes[:, None, :2].repeat(20, 1) + rng.uniform(0, 9, (objects, 20, 2)), 2)
    drawn = polygons.reshape(objects, 1, 40).tolist() if outlines else []
    names = [f"{n:012d}.jpg" for n in range(images)]
    content = {
        "info": {"description": "generated"},
        "images": [{**COMMON, "id": n, "file_name": name} for n, name in enumerate(names)],
        "annotations": [
            {"id": n, "image_id": i, "category_id": c, "bbox": b, "area": b[2] * b[3], "iscrowd": 0}
            for n, (i, c, b) in enumerate(
                zip(owners.tolist(), classes.tolist(), boxes.tolist(), strict=True)
            )
        ],
        "categories": [{"id": n, "name": f"class {n}"} for n in range(1, 81)],
    }
    for annotation, outline in zip(content["annotations"], drawn, strict=False):
        annotation["segmentation"] = outline
    (root / "annotations").mkdir(parents=True)
    (root / "train").mkdir()
    # `json.dump` writes a value at a time, which takes several times as long.
    (root / "annotations/train.json").write_text(json.dumps(content))
    for name in names:
        (root / "train" / name).touch()
    return root


VOC_OBJECT = (
    "<object><name>{}</name><pose>Left</pose><truncated>0</truncated><difficult>0</difficult>"
    "<bndbox><xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax></bndbox></object>"
)


def write_voc(root: Path, images: int, objects: int, seed: int = 0) -> Path:
    """VOC's layout, split "train"; every image is a link to one real picture of 500x375 pixels."""
    from PIL import Image

    rng = np.random.default_rng(seed)
    for folder in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (root / folder).mkdir(parents=True)
    Image.new("RGB", (500, 375)).save(root / "picture.jpg")
    names = [f"{n:06d}" for n in range(images)]
    boxes = rng.integers(1, 180, (images, objects, 4)).tolist()
    for name, own in zip(names, boxes, strict=True):
        corners = [(x, y, x + w, y + h) for x, y, w, h in own]
        things = "".join(VOC_OBJECT.format("dog", *corner) for corner in corners)
        (root / f"Annotations/{name}.xml").write_text(
            f"<annotation><filename>{name}.jpg</filename><size><width>500</width>"
            f"<height>375</height><depth>3</depth></size>{things}</annotation>"
        )
        (root / f"JPEGImages/{name}.jpg").symlink_to(root / "picture.jpg")
    (root / "ImageSets/Main/train.txt").write_text("\n".join(names))
    return root


if __name__ == "__main__":  # python tests/support/sets/large_sets.py FOLDER
    write_coco(Path(sys.argv[1]), 100_000, 700_000)
