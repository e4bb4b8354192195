"""Readers of lists and tables as functions of bytes, for `READERS` of `fuzzed_readers.py`."""

import json
from pathlib import Path

from fuzzed_formats import SEEDS, YAML_SEED
from PIL import Image

from densenet_backbones.data.classification.tables import find_label_tables, read_label_table
from densenet_backbones.data.faults import DataError
from densenet_backbones.data.readers.coco.boxes import read_coco
from densenet_backbones.data.readers.coco.results import match_results, read_results
from densenet_backbones.data.recognition.recognize import recognize
from densenet_backbones.data.recognition.tree import Tree
from densenet_backbones.data.sets.split_file import SPLIT_FILE, read_split
from densenet_backbones.inference.inputs.sources import list_sources

TRUTH = {
    "images": [{"id": 7, "file_name": "a.png", "width": 8, "height": 6}],
    "annotations": [
        {"id": 1, "image_id": 7, "category_id": 2, "bbox": [1, 2, 3, 3], "area": 9, "iscrowd": 0}
    ],
    "categories": [{"id": 2, "name": "cat", "keypoints": ["left", "right"]}],
}


def prepare_image(folder: Path) -> Path:
    """Return a folder with one image in it."""
    if not (folder / "a.png").exists():
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 6)).save(folder / "a.png")
    return folder


def read_detections(data: bytes, folder: Path) -> None:
    """Read detections of other tools, and match them with a set of one image."""
    prepare_image(folder / "truth")
    (folder / "truth/truth.json").write_text(json.dumps(TRUTH))
    (folder / "results.json").write_bytes(data)
    part = read_coco(
        *(folder / "truth", "all"),
        annotation_file="truth.json",
        image_folder=".",
        keypoints=True,
    )
    match_results(read_results(folder / "results.json"), part)


def detection_seeds() -> list[bytes]:
    found = {"image_id": 7, "category_id": 2, "score": 0.5, "bbox": [1, 2, 3, 3]}
    mask = {"size": [6, 8], "counts": ":d0b0"}
    contents = (
        [found],
        [{**found, "segmentation": mask}, {**found, "segmentation": [[1, 1, 4, 1, 4, 4]]}],
        [{**found, "keypoints": [1, 2, 2, 3, 4, 1], "bbox": None}],
        {"annotations": [{**found, "category_id": 1}], "categories": [{"id": 1, "name": "cat"}]},
        [{"file_name": "a.png", "class_name": "cat", "score": 1, "bbox": [0, 0, 1, 1]}],
    )
    return [json.dumps(content).encode() for content in contents]


def read_split_file(data: bytes, folder: Path) -> None:
    """Read a stored split."""
    (folder / SPLIT_FILE).write_bytes(data)
    read_split(folder / SPLIT_FILE)


SPLIT_SEED = (
    b'{"seed": 0, "fraction": 0.2, "group_pattern": "(.+)_", "train": ["a.png"], "val": ["b.png"]}'
)


def read_labelled(data: bytes, folder: Path) -> None:
    """Read a table of images and their classes."""
    folder = prepare_image(folder / "labelled")
    (folder / "labels.csv").write_bytes(data)
    tree = Tree(folder)
    if not find_label_tables(tree):
        raise DataError(f"{folder}: no table of labels")
    list(read_label_table(tree, "labels.csv"))


LABELLED_SEEDS = [b"image,class,split\na.png,cat,train\na,dog,val\n", b"id;label\n./a.png;cat\n"]


def read_source_list(data: bytes, folder: Path) -> None:
    """Read a list of images to predict; its lines name no other folder, which might be large."""
    folder = prepare_image(folder / "listed")
    (folder / "list.txt").write_bytes(data.replace(b"/", b"").replace(b"..", b""))
    list_sources([str(folder / "list.txt")])


def sniff(data: bytes, folder: Path) -> None:
    """Find out what a folder with one file of each ending holds; the first byte chooses one."""
    ending = (".json", ".xml", ".csv", ".txt", ".yaml")[data[0] % 5 if data else 0]
    folder = prepare_image(folder / f"sniffed_{ending[1:]}")
    (folder / f"a{ending}").write_bytes(data[1:])
    if ending == ".yaml":
        (folder / "a.txt").write_text("0 0.5 0.5 0.2 0.2\n")
    recognize(folder)


def sniffed_seeds() -> list[bytes]:
    """The tiny files of every tool, each behind the byte that chooses its ending."""
    kinds = {"labelme": b"\0", "via": b"\0", "cvat": b"\1", "csv": b"\2", "yolo": b"\3"}
    truth = b"\0" + json.dumps(TRUTH).encode()
    return [truth, b"\4" + YAML_SEED] + [
        kinds[layout] + seed for layout, seeds in SEEDS.items() for seed in seeds
    ]
