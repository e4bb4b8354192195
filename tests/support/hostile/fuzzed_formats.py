"""Readers of other tools' files as functions of bytes, for `READERS` of `fuzzed_readers.py`."""

import io
import json
import zipfile
from pathlib import Path

from PIL import Image

from densenet_backbones.data.readers.coco.boxes import read_coco
from densenet_backbones.data.recognition.archives import unpack_archive
from densenet_backbones.data.recognition.formats import FOREIGN, read_foreign

FILES = {"yolo": "a.txt", "labelme": "a.json", "cvat": "a.xml", "via": "a.json", "csv": "a.csv"}
SEEDS = {
    "yolo": (b"0 0.5 0.5 0.25 0.5\n1 0.1 0.1 0.9 0.1 0.9 0.9\n",),
    "labelme": (
        json.dumps(
            {
                "shapes": [
                    {"label": "cat", "points": [[1, 2], [5, 2], [4, 5]], "group_id": 1},
                    {"label": "nose", "points": [[2, 3]], "group_id": 1, "shape_type": "point"},
                    {"label": "dog", "points": [[4, 1], [2, 5]], "shape_type": "rectangle"},
                    {"label": "dog", "points": [[4, 3], [5, 3]], "shape_type": "circle"},
                ],
                "imagePath": "a.png",
                "imageWidth": 8,
                "imageHeight": 6,
            }
        ).encode(),
    ),
    "cvat": (
        b'<?xml version="1.0"?><annotations><meta/><image id="0" name="a.png" width="8" height="6">'
        b'<box label="cat" xtl="1" ytl="2" xbr="4.5" ybr="5" rotation="30"/>'
        b'<polygon label="dog" points="1,1;5,1;5,4" group_id="1"/>'
        b'<mask label="dog" left="1" top="1" width="3" height="2" rle="1, 2, 1, 2"/>'
        b'<skeleton label="cat"><points label="nose" points="2,2"/></skeleton>'
        b"</image></annotations>",
    ),
    "via": (
        json.dumps(
            {
                "a.png9": {
                    "filename": "a.png",
                    "regions": [
                        {"shape_attributes": shape, "region_attributes": {"class": name}}
                        for name, shape in (
                            ("cat", {"name": "rect", "x": 1, "y": 1, "width": 4, "height": 3}),
                            ("dog", {"name": "ellipse", "cx": 4, "cy": 3, "rx": 2, "ry": 1}),
                            (
                                "dog",
                                {
                                    "name": "polygon",
                                    "all_points_x": [1, 5, 4],
                                    "all_points_y": [1, 1, 4],
                                },
                            ),
                        )
                    ],
                }
            }
        ).encode(),
        json.dumps(
            {
                "project": {"vid_list": ["1"]},
                "attribute": {"1": {"aname": "class", "options": {"0": "cat"}}},
                "file": {"1": {"fname": "a.png"}},
                "metadata": {"m": {"vid": "1", "z": [], "xy": [2, 1, 1, 4, 3], "av": {"1": "0"}}},
                "view": {"1": {"fid_list": ["1"]}},
            }
        ).encode(),
    ),
    "csv": (
        b"filename,width,height,class,xmin,ymin,xmax,ymax\na.png,8,6,cat,1,1,4,5\n",
        b"a.png,1,1,4,5,cat\na.png,,,,,\n",
    ),
}
assert SEEDS.keys() == FILES.keys() == FOREIGN.keys(), "a format without an input to start from"


def read_labels(layout, data, folder):
    """Read a file of labels beside its image."""
    folder = folder / layout
    image = folder / "a.png"
    if not image.exists():
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 6)).save(image)
        (folder / "classes.txt").write_text("cat\ndog\n")
    (folder / FILES[layout]).write_bytes(data)
    split, content = read_foreign(folder, layout, "all")
    read_coco(folder, split, content=content, keypoints=True).ground_truth()


def read_yolo_file(name, data, folder):
    """Read a file that describes YOLO's data, and the labels of its images."""
    folder = folder / name.replace(".", "_")
    if not folder.exists():
        folder.mkdir(parents=True)
        Image.new("RGB", (8, 6)).save(folder / "a.png")
        keypoint = " 0.4 0.4 2" * (name == "data.yaml")
        (folder / "a.txt").write_text(f"0 0.5 0.5 0.2 0.2{keypoint}\n")
        (folder / "list.txt").write_text("a.png\n")
    (folder / name).write_bytes(data)
    split, content = read_foreign(folder, "yolo", "all")
    read_coco(folder, split, content=content, keypoints=True).ground_truth()


YAML_SEED = b"path: ../x\ntrain: .\nnames: {0: cat}\nkpt_shape: [1, 3]\nflip_idx: [0]\n"
YOLO_FILES = {
    "data.yaml": (YAML_SEED, b"train: list.txt\nnames: [cat]\nkpt_shape: [1, 3]\n"),
    "obj.data": (b"classes = 1\ntrain = data/list.txt\nnames = data/obj.names\n",),
}


def read_archive(data: bytes, folder: Path) -> None:
    """Unpack an archive into a folder of its content's name."""
    (folder / "a.zip").write_bytes(data)
    unpack_archive(folder / "a.zip")


def archive_seeds() -> list[bytes]:
    seeds = []
    for packed in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        with zipfile.ZipFile(buffer := io.BytesIO(), "w", packed) as archive:
            archive.writestr("a/b.txt", "hello " * 9)
            archive.writestr("c.txt", "")
        seeds.append(buffer.getvalue())
    return seeds
