"""Readers of untrusted files as functions of bytes, with tiny valid inputs to start from.

`READERS` names them. Each writes its bytes where a file of its kind belongs and reads it; what it
may raise are the project's own errors, which `check_reading` holds to their form.
"""

import io
import itertools
import json
import struct
import zipfile
from argparse import ArgumentError
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from cifar_files import make_rows, pickle_as_python_2
from fuzzed_formats import (
    SEEDS,
    YOLO_FILES,
    archive_seeds,
    read_archive,
    read_labels,
    read_yolo_file,
)
from fuzzed_pictures import (
    clip_seeds,
    picture_seeds,
    read_clip,
    read_picture,
    read_windows,
    window_seeds,
)
from fuzzed_tables import (
    LABELLED_SEEDS,
    SPLIT_SEED,
    detection_seeds,
    read_detections,
    read_labelled,
    read_source_list,
    read_split_file,
    sniff,
    sniffed_seeds,
)
from PIL import Image
from scipy.io import savemat

from densenet_backbones.checkpoints import CheckpointError
from densenet_backbones.checkpoints.inspection import inspect_file
from densenet_backbones.checkpoints.reading import read_state_dict
from densenet_backbones.data.classification.cifar import read_plain_pickle
from densenet_backbones.data.faults import DataError
from densenet_backbones.data.instances import keep_learnable_objects, read_instances
from densenet_backbones.data.mask_samples import MaskClasses
from densenet_backbones.data.masks.code import MaskCode
from densenet_backbones.data.readers.coco.boxes import read_coco
from densenet_backbones.data.readers.coco.masks import read_coco_masks
from densenet_backbones.data.readers.coco.panoptic import read_coco_panoptic
from densenet_backbones.data.readers.masks.classes_file import read_classes_file
from densenet_backbones.data.readers.voc.boxes import read_split, read_voc
from densenet_backbones.data.readers.voc.masks import read_label_map
from densenet_backbones.data.readers.voc.sbd import read_mat_mask
from densenet_backbones.inference.detector import DetectorSpec
from densenet_backbones.inference.model_file import read_model_file
from densenet_backbones.inference.segmenter import SegmenterSpec

LONGEST = 4_000  # characters of an error: a sentence, or a list of 50 lines
CLASSES = MaskClasses.from_names(("background", "cat", "dog"))
TINY_DETECTOR = {
    "format": 2,
    "name": "dsod_tiny",
    "args": {
        "image_size": 64,
        "backbone_kwargs": {
            "growth_rate": 4,
            "block_config": [1, 1, 1, 1],
            "num_init_features": 8,
        },
        "adapter_channels": [8, 8, 8, 8],
    },
    "categories": {"names": ["cat", "dog"], "ids": [1, 2]},
    "preprocessing": None,
}


@dataclass(frozen=True)
class Reader:
    """A reader, what it may raise, and inputs that it reads."""

    read: Callable[[bytes, Path], object]
    seeds: Callable[[], list[bytes]]
    errors: tuple[type[Exception], ...] = (DataError,)


def check_reading(reader: Reader, data: bytes, folder: Path) -> None:
    """Read bytes; an error must be one of the reader's, short, and text.

    Args:
        reader: One of `READERS`.
        data: Content of the file.
        folder: Folder of this reader, which keeps its other files.
    """
    try:
        reader.read(data, folder)
    except reader.errors as error:
        text = str(error)
        assert 0 < len(text) <= LONGEST, f"an error of {len(text)} characters: {text[:200]}"
        assert str(folder) in text or folder.name in text, (
            f"an error that names no file: {text[:200]}"
        )


# --- data sets -----------------------------------------------------------------------------------


def _prepare_images(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 6)).save(path)


def _write(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def _read_coco(data: bytes, folder: Path) -> None:
    _prepare_images(folder, "train/a.png", "train/b.png")
    _write(folder / "annotations/instances_train.json", data)
    masks = None
    try:
        masks = read_coco_masks(folder, "train")
    finally:
        found = read_coco(folder, "train", keypoints=True)
        found.ground_truth()
    for record in masks.records[:3]:
        record.mask.read()
    count = len(found.categories.keypoints)
    for what in (("boxes", "masks"), ("boxes", "keypoints")):
        kept = keep_learnable_objects(found, what, strict=False)
        for record in kept.records[:3]:
            read_instances(record, what, count)


def _coco_seeds() -> list[bytes]:
    images = [{"id": 7, "file_name": "a.png", "width": 8, "height": 6}]
    entry = {"id": 1, "image_id": 7, "category_id": 2, "bbox": [1, 2, 3, 3], "area": 9.5}
    points = {"keypoints": [1, 2, 2, 3, 4, 1], "num_keypoints": 2}
    outlines = (
        [[1, 2, 4, 2, 4.5, 5, 1, 5]],
        {"size": [6, 8], "counts": [10, 20, 18]},
        {"size": [6, 8], "counts": ":d0b0"},
    )
    category = {"id": 2, "name": "cat", "keypoints": ["left", "right"], "skeleton": [[1, 2]]}
    return [
        json.dumps(
            {
                "images": images,
                "annotations": [{**entry, **points, "segmentation": outline, "iscrowd": crowd}],
                "categories": [category],
            }
        ).encode()
        for outline, crowd in zip(outlines, (0, 1, 1), strict=True)
    ]


def _read_panoptic(data: bytes, folder: Path) -> None:
    _prepare_images(folder, "train/a.png", "annotations/panoptic_train/a.png")
    _write(folder / "annotations/panoptic_train.json", data)
    read_coco_panoptic(folder, "train").records[0].mask.read()


def _panoptic_seeds() -> list[bytes]:
    segment = {"id": 3, "category_id": 2, "iscrowd": 0}
    content = {
        "images": [{"id": 7, "file_name": "a.png", "width": 8, "height": 6}],
        "annotations": [{"image_id": 7, "file_name": "a.png", "segments_info": [segment]}],
        "categories": [{"id": 2, "name": "cat", "color": [1, 2, 3], "isthing": 1}],
    }
    return [json.dumps(content).encode()]


def _read_voc(data: bytes, folder: Path) -> None:
    _prepare_images(folder, "JPEGImages/a.jpg")
    _write(folder / "ImageSets/Main/train.txt", b"a\n")
    _write(folder / "Annotations/a.xml", data)
    read_voc(folder, "train").ground_truth()


def _voc_seeds() -> list[bytes]:
    return [
        b"<annotation><filename>a.jpg</filename><size><width>8</width><height>6</height>"
        b"<depth>3</depth></size><object><name>cat</name><difficult>0</difficult>"
        b"<truncated>1</truncated><bndbox><xmin>1</xmin><ymin>2</ymin><xmax>5.5</xmax>"
        b"<ymax>6</ymax></bndbox></object></annotation>"
    ]


def _read_cifar(data: bytes, folder: Path) -> None:
    read_plain_pickle(data, _write(folder / "data_batch_1", data))


def _cifar_seeds() -> list[bytes]:
    pixels, labels = make_rows(2, 0)
    return [pickle_as_python_2({"data": pixels, "labels": labels})]


def _read_list(data: bytes, folder: Path) -> None:
    _write(folder / "train.txt", data)
    read_split(folder, "train", ["a", "b", "a b"])


def _read_mask(data: bytes, folder: Path) -> None:
    path = _write(folder / "mask.png", data)
    ids = MaskCode.from_classes(CLASSES)
    colors = MaskCode.from_classes(CLASSES, ids=False, colors=True)
    faults = []
    for code in (ids, colors):
        try:
            code.read(path)
        except DataError as error:  # its frames would keep the first picture in memory
            faults.append(DataError(*error.args))
    if faults:
        raise faults[-1]


def _mask_seeds() -> list[bytes]:
    mask = np.arange(12, dtype=np.uint8).reshape(3, 4) % 3
    palette = Image.fromarray(mask)
    palette.putpalette([value for color in CLASSES.colors for value in color])
    pictures = {
        "PNG": (Image.fromarray(mask), palette, palette.convert("RGB"), palette.convert("1")),
        "BMP": (palette,),
        "TIFF": (Image.fromarray(mask.astype(np.uint16)), palette),
        "JPEG": (Image.fromarray(mask),),
        "GIF": (palette,),
    }
    seeds = []
    for kind, picture in ((k, p) for k, several in pictures.items() for p in several):
        picture.save(buffer := io.BytesIO(), kind)
        seeds.append(buffer.getvalue())
    return seeds


def _read_classes(data: bytes, folder: Path) -> None:
    read_classes_file(_write(folder / "classes.yaml", data))


_CLASSES_SEED = b"""\
classes:
  - {name: road, id: 7, color: [128, 64, 128]}
  - sky
ignored: [0, 255]
values: ids
images: images/{split}
masks: "masks/{split}"
mask_suffix: _mask
lists: lists/{split}.txt
"""


def _read_labels(data: bytes, folder: Path) -> None:
    read_label_map(_write(folder / "labelmap.txt", data))


def _read_mat(data: bytes, folder: Path) -> None:
    read_mat_mask(_write(folder / "a.mat", data))


def _mat_seeds() -> list[bytes]:
    seeds = []
    for packed in (False, True):
        content = {"GTcls": {"Segmentation": np.eye(3, dtype=np.uint8)}}
        savemat(buffer := io.BytesIO(), content, do_compression=packed)
        seeds.append(buffer.getvalue())
    return seeds


# --- configs and weights -------------------------------------------------------------------------


@cache
def make_config_parser() -> object:
    """Return the parser of a config, which takes seconds to import and is made once."""
    import lightning.pytorch as pl
    from lightning.pytorch.cli import LightningArgumentParser

    from densenet_backbones.training.tasks.detection import DetectionTask

    parser = LightningArgumentParser(exit_on_error=False)
    parser.add_lightning_class_args(pl.Trainer, "trainer")
    parser.add_lightning_class_args(DetectionTask, "model")
    parser.add_lightning_class_args(DetectionTask.data_type, "data")
    return parser


def _read_config(data: bytes, folder: Path) -> None:
    from densenet_backbones.messages import one_sentence
    from densenet_backbones.training.arguments import find_config

    path = _write(folder / "config.yaml", data)
    try:
        make_config_parser().parse_path(find_config(str(path)))
    except (ArgumentError, TypeError) as error:  # as `train` reports them
        raise ValueError(f"{path}: {one_sentence(str(error))[: LONGEST // 2]}") from error


_CONFIG_SEED = b"""\
data: &data {root: scenes, batch_size: 4, target_types: [boxes]}
trainer: {max_epochs: 3, precision: 32-true}
model:
  detector: dsod_tiny
  args: {image_size: 64, backbone_kwargs: {growth_rate: 4}}
  optimizer: {name: adamw, lr: 1.0e-2}
"""


def _read_weights(data: bytes, folder: Path) -> None:
    """The first byte says what the rest is: a pickle in an archive, or a whole file."""
    kind, content = data[:1], data[1:]
    if kind == b"p":
        with zipfile.ZipFile(buffer := io.BytesIO(), "w") as archive:
            archive.writestr("archive/data.pkl", content)
            archive.writestr("archive/byteorder", "little")
            archive.writestr("archive/data/0", bytes(64))
            archive.writestr("archive/version", "3\n")
        content = buffer.getvalue()
    path = _write(folder / ("a.safetensors" if kind == b"s" else "a.pth"), content)
    try:
        inspect_file(path).lines()
    finally:
        read_state_dict(path)


def _weights() -> dict[str, torch.Tensor]:
    return {"denseblock1.denselayer1.conv1.weight": torch.ones(1, 2, 1, 1)}


def _weights_seeds() -> list[bytes]:
    content = {"state_dict": _weights(), "epoch": 3, "name": "a"}
    torch.save(content, whole := io.BytesIO())
    torch.save(content, legacy := io.BytesIO(), _use_new_zipfile_serialization=False)
    torch.save({"a.weight": torch.ones(2).to_sparse()}, sparse := io.BytesIO())
    pickles = [zipfile.ZipFile(file).read("archive/data.pkl") for file in (whole, sparse)]
    return [
        *(b"p" + pickled for pickled in pickles),
        b"z" + whole.getvalue(),
        b"z" + legacy.getvalue(),
        b"s" + safetensors.torch.save(_weights(), {"a": "b"}),
    ]


@cache
def _model_weights() -> bytes:
    """A file of the tiny detector's weights without metadata: its header ends in a brace."""
    model = DetectorSpec.from_dict(TINY_DETECTOR).build()
    return safetensors.torch.save({k: v.contiguous() for k, v in model.state_dict().items()})


def _read_model(data: bytes, folder: Path) -> None:
    """The bytes are the description in a file whose weights are right."""
    whole = _model_weights()
    (length,) = struct.unpack_from("<Q", whole)
    header = json.loads(whole[8 : 8 + length])
    header["__metadata__"] = {DetectorSpec.key: data.decode("utf-8", "replace")}
    text = json.dumps(header).encode()
    path = folder / "a.safetensors"
    _write(path, struct.pack("<Q", len(text)) + text + whole[8 + length :])
    spec, weights = read_model_file(path, (DetectorSpec, SegmenterSpec))
    spec.restore(weights, path)


READERS = {
    **{
        layout: Reader(partial(read_labels, layout), partial(list, seeds))
        for layout, seeds in SEEDS.items()
    },
    **{
        name: Reader(partial(read_yolo_file, name), partial(list, seeds))
        for name, seeds in YOLO_FILES.items()
    },
    "archives": Reader(read_archive, archive_seeds),
    "pictures": Reader(read_picture, picture_seeds),
    "windows": Reader(read_windows, window_seeds),
    "clips": Reader(read_clip, clip_seeds),
    "detections": Reader(read_detections, detection_seeds),
    "splits": Reader(read_split_file, lambda: [SPLIT_SEED]),
    "labelled": Reader(read_labelled, lambda: LABELLED_SEEDS),
    "sources": Reader(read_source_list, lambda: [b"# mine\na.png\n*.png\n"]),
    "sniffing": Reader(sniff, sniffed_seeds),
    "coco": Reader(_read_coco, _coco_seeds),
    "panoptic": Reader(_read_panoptic, _panoptic_seeds),
    "voc": Reader(_read_voc, _voc_seeds),
    "cifar": Reader(_read_cifar, _cifar_seeds),
    "lists": Reader(_read_list, lambda: [b"a\nb\n", b"a 1\nb -1\n"]),
    "masks": Reader(_read_mask, _mask_seeds),
    "classes": Reader(_read_classes, lambda: [_CLASSES_SEED, b"classes: [a, b]\n"]),
    "labels": Reader(_read_labels, lambda: [b"# label:color\nroad:1,2,3::\nignored:7,7,7::\n"]),
    "matlab": Reader(_read_mat, _mat_seeds),
    "configs": Reader(_read_config, lambda: [_CONFIG_SEED], (ValueError,)),
    "weights": Reader(_read_weights, _weights_seeds, (CheckpointError,)),
    "models": Reader(_read_model, lambda: [json.dumps(TINY_DETECTOR).encode()], (CheckpointError,)),
}


def damage(seed: bytes, count: int, rng: np.random.Generator) -> list[bytes]:
    """Return versions of an input with bytes changed, cut off, repeated or put in."""
    versions = []
    for kind in itertools.islice(itertools.cycle(("change", "cut", "repeat", "insert")), count):
        at, end = sorted(rng.integers(0, len(seed) + 1, 2).tolist())
        new = rng.bytes(int(rng.integers(1, 5)))
        versions.append(
            {
                "change": seed[:at] + new + seed[at + len(new) :],
                "cut": seed[:at] + seed[end:],
                "repeat": seed[:end] + seed[at:],
                "insert": seed[:at] + new + seed[at:],
            }[kind]
        )
    return versions
