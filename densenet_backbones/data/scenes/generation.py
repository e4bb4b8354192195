"""Writes the images and annotations of the drawn data set; its layout is in the package's words."""

import json
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image
from rich.progress import track

from densenet_backbones.data.faults import DataError
from densenet_backbones.data.samples import Annotation, ImageEntry
from densenet_backbones.data.scenes import annotations as forms
from densenet_backbones.data.scenes.drawing import MIN_SIDE, Scene, draw_scene
from densenet_backbones.file_writing import save_json
from densenet_backbones.messages import print_lines
from densenet_backbones.untrusted.limits import MAX_YAML_FILE
from densenet_backbones.untrusted.reading import parse_json, read_text

SPLITS = ("train", "val")
MARKER = "scenes.json"
LABEL_MAP = "VOC/labelmap.txt"
MADE_BY = "densenet_backbones.data.scenes"
VERSION = 1  # to be raised when the same parameters draw other scenes
JPEG_QUALITY = 95
# The first image id of a split minus 1: ids stay unique when splits are merged.
_ID_OFFSET = {"train": 0, "val": 1_000_000}


Marker = dict[str, Any]
"""State of a folder: `made_by`, `version`, `parameters` and `complete`."""


def generate_scenes(
    root: str | Path,
    *,
    train: int = 400,
    val: int = 100,
    size: int | tuple[int, int] = 160,
    seed: int = 0,
    progress: bool = True,
) -> Path:
    """Write the drawn data set, or find it written already.

    A folder that holds a complete set of these parameters is left as it is; where an earlier
    version made it, `VOC/labelmap.txt` is added. One that this function made with other
    parameters, or did not finish, or that has lost files (masks, for example), has its images and
    annotations replaced (other files in it stay). Both are said on standard error.

    Args:
        root: Folder to write; made where missing, together with its parents.
        train: Number of training images, at least 1.
        val: Number of validation images, at least 1.
        size: Pixels: (H, W), or one number for both; each at least 64.
        seed: At least 0.
        progress: Show a progress bar.

    Returns:
        `root` as a path.

    Raises:
        DataError: An argument is out of its range, or `root` is a file or a folder with
            something in it that was not made here.
    """
    root = Path(root)
    height, width = (size, size) if isinstance(size, int) else size
    lowest = {"train": 1, "val": 1, "height": MIN_SIDE, "width": MIN_SIDE, "seed": 0}
    parameters = {"train": train, "val": val, "height": height, "width": width, "seed": seed}
    for name, value in parameters.items():
        if value < lowest[name]:
            raise DataError(f"{root}: {name} must be at least {lowest[name]}, got {value}")
    marker = {"made_by": MADE_BY, "version": VERSION, "parameters": parameters}
    # The marker says what a folder holds: the same scenes are not drawn twice.
    state = _read_marker(root)
    if state == {**marker, "complete": True} and _is_whole(root, parameters):
        if not (root / LABEL_MAP).is_file():
            _say(f"{root}: adding {LABEL_MAP}, the names of the masks' classes")
            (root / LABEL_MAP).write_text(forms.make_label_map())
        return root
    if state is not None:
        _say(f"{root}: drawing the scenes again: {_explain_redrawing(state, marker)}")
    # Incomplete until the last file is written, so that an interruption is noticed.
    _clear(root)
    _write_marker(root, {**marker, "complete": False})
    for split in SPLITS:
        _write_split(root, split, parameters, progress)
    (root / LABEL_MAP).write_text(forms.make_label_map())
    _write_marker(root, {**marker, "complete": True})
    return root


def draw_numbered_scene(seed: int, split: str, index: int, size: tuple[int, int]) -> Scene:
    """Draw the scene of one image: `index` counts from 0 in `split`; `size` is (H, W) pixels."""
    rng = np.random.Generator(np.random.PCG64([seed, SPLITS.index(split), index]))
    return draw_scene(rng, size)


def _read_marker(root: Path) -> Marker | None:
    """Read the marker; None where there is no marker of ours."""
    try:
        state = parse_json(read_text(root / MARKER, MAX_YAML_FILE, ValueError))
    except ValueError:
        return None
    return state if isinstance(state, dict) and state.get("made_by") == MADE_BY else None


def _explain_redrawing(state: Marker, marker: Marker) -> str:
    """Say what keeps a folder of ours from being taken as it is."""
    if not state.get("complete"):
        return "they were not finished"
    are_equal = all(state.get(key) == value for key, value in marker.items())
    return (
        "images, masks or annotations are missing"
        if are_equal
        else "other parameters were asked for"
    )


def _say(line: str) -> None:
    print_lines(line, file=sys.stderr)  # standard output is for results


def _is_whole(root: Path, parameters: dict[str, int]) -> bool:
    """Return True if nothing was deleted since; counts files, reads none."""
    counted = (
        "{split}/*.jpg",
        "annotations/panoptic_{split}/*.png",
        "VOC/SegmentationClass/{split}_*.png",
    )
    return all(
        sum(1 for _ in root.glob(pattern.format(split=split))) == parameters[split]
        for split in SPLITS
        for pattern in counted
    ) and all(path.is_file() for path in _list_index_files(root))


def _list_index_files(root: Path) -> Iterator[Path]:
    for split in SPLITS:
        for form in ("instances", "keypoints", "panoptic"):
            yield root / "annotations" / f"{form}_{split}.json"
        for task in ("Main", "Segmentation"):
            yield root / "VOC" / "ImageSets" / task / f"{split}.txt"


def _clear(root: Path) -> None:
    """Make an empty folder, or empty one of ours; refuse any other."""
    if root.is_dir() and any(root.iterdir()) and _read_marker(root) is None:
        raise DataError(
            f"{root}: is not empty and holds no {MARKER} of this generator; give a new folder, "
            "nothing was changed"
        )
    if root.exists() and not root.is_dir():
        raise DataError(f"{root}: is a file; give a folder, nothing was changed")
    root.mkdir(parents=True, exist_ok=True)
    if _read_marker(root) is not None:  # incomplete from here on, also when deleting is interrupted
        _write_marker(root, {"made_by": MADE_BY, "complete": False})
    for name in (*SPLITS, "annotations", "VOC"):
        path = root / name
        if path.is_symlink():
            path.unlink()
        elif path.is_dir():
            shutil.rmtree(path)


def _write_marker(root: Path, state: Marker) -> None:
    """Replace the marker in one step: an interruption leaves the old one or the new one."""
    save_json(root / MARKER, state)


def _write_split(root: Path, split: str, parameters: dict[str, int], progress: bool) -> None:
    voc = root / "VOC"
    pictures = root / "annotations" / f"panoptic_{split}"
    for folder in (root / split, pictures):
        folder.mkdir(parents=True)
    for name in ("Annotations", "JPEGImages", "SegmentationClass"):
        (voc / name).mkdir(parents=True, exist_ok=True)
    images: list[ImageEntry] = []
    instances: list[Annotation] = []
    keypoints: list[Annotation] = []
    panoptic: list[forms.PanopticAnnotation] = []
    size = parameters["height"], parameters["width"]
    palette = forms.make_voc_palette()
    for index in track(range(parameters[split]), "Drawing scenes", disable=not progress):
        scene = draw_numbered_scene(parameters["seed"], split, index, size)
        image_id = _ID_OFFSET[split] + index + 1
        stem = f"{split}_{index + 1:06d}"
        jpeg = root / split / f"{stem}.jpg"
        _write_image(jpeg, scene.image)
        _link(jpeg, voc / "JPEGImages" / jpeg.name)
        images.append({"id": image_id, "file_name": jpeg.name, "height": size[0], "width": size[1]})
        # COCO's annotations.
        annotations = forms.make_instance_annotations(scene, image_id)
        instances += annotations
        keypoints += forms.make_keypoint_annotations(scene, annotations)
        segments, picture = forms.make_panoptic_annotation(scene, image_id, f"{stem}.png")
        panoptic.append(segments)
        _write_image(pictures / f"{stem}.png", picture)
        # VOC's annotation and mask.
        (voc / "Annotations" / f"{stem}.xml").write_bytes(forms.make_voc_xml(scene, jpeg.name))
        mask = Image.fromarray(forms.make_class_mask(scene))
        mask.putpalette(palette)
        mask.save(voc / "SegmentationClass" / f"{stem}.png")
    stems = "".join(f"{Path(image['file_name']).stem}\n" for image in images)
    _write_indices(root, split, stems, images, (instances, keypoints, panoptic))


def _write_indices(
    root: Path,
    split: str,
    stems: str,
    images: list[ImageEntry],
    annotations: tuple[list[Annotation] | list[forms.PanopticAnnotation], ...],
) -> None:
    categories = (
        forms.make_instance_categories(),
        forms.make_keypoint_categories(),
        forms.make_panoptic_categories(),
    )
    info = {"description": f"drawn scenes, {split}", "version": str(VERSION)}
    for form, kinds, items in zip(
        ("instances", "keypoints", "panoptic"), categories, annotations, strict=True
    ):
        content = {"info": info, "images": images, "annotations": items, "categories": kinds}
        path = root / "annotations" / f"{form}_{split}.json"
        path.write_text(json.dumps(content, separators=(",", ":")))
    for task in ("Main", "Segmentation"):
        folder = root / "VOC" / "ImageSets" / task
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{split}.txt").write_text(stems)


def _write_image(path: Path, image: np.ndarray) -> None:
    """Write (H, W, 3) uint8 RGB, as JPEG or PNG by the name's ending."""
    options = [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY] if path.suffix == ".jpg" else []
    done, data = cv2.imencode(path.suffix, image[..., ::-1], options)
    if not done:
        raise OSError(f"{path}: OpenCV could not encode the image")
    path.write_bytes(data.tobytes())


def _link(source: Path, target: Path) -> None:
    """Give a file a second name, or a copy where the file system knows no hard links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
