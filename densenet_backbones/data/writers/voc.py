"""Writes sets in Pascal VOC's layout: boxes as XML, masks as palette pictures.

The layout: "The PASCAL Visual Object Classes Challenge 2012 (VOC2012) Development Kit", sections
2.5 and 2.6. Coordinates count from 1 and include the last pixel: see ``readers/voc/boxes.py``.
"""

import io
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
from PIL import Image

from densenet_backbones.data.faults import DataError
from densenet_backbones.data.files import IMAGE_SUFFIXES, quote
from densenet_backbones.data.mask_samples import (
    IGNORED,
    MaskClasses,
    MaskRecord,
    SegmentationSet,
    voc_color,
)
from densenet_backbones.data.samples import DetectionSet, ImageRecord
from densenet_backbones.data.writers.objects import (
    WritableObject,
    list_visible_keypoints,
    list_writable,
)
from densenet_backbones.data.writers.output import ImagePlacer, make_unique_names
from densenet_backbones.file_writing import save_bytes, save_text

XML_CODES = dict.fromkeys((*range(9), 11, 12, *range(14, 32), 0xFFFE, 0xFFFF), "_")
"""Code points that XML does not know (XML 1.0, section 2.2) -> what is written for them."""


def write_voc(
    parts: Mapping[str, DetectionSet | SegmentationSet],
    out: Path,
    placer: ImagePlacer,
    left_out: Counter[str],
) -> None:
    """Write the splits of a data set; arguments are those of `write_coco`.

    Raises:
        DataError: A class has a name that the layout cannot hold.
    """
    # One folder holds the images of all splits.
    records: list[ImageRecord | MaskRecord] = [r for data in parts.values() for r in data.records]
    names = make_unique_names({n: r.path for n, r in enumerate(records)}, IMAGE_SUFFIXES)
    are_masks = any(isinstance(data, SegmentationSet) for data in parts.values())
    if are_masks:
        _write_label_map(next(iter(parts.values())), out)
    lists = out / "ImageSets" / ("Segmentation" if are_masks else "Main")
    first = 0
    for split, data in parts.items():
        stems = []
        for n, record in enumerate(records[first : first + len(data)], start=first):
            stem = Path(names[n]).stem
            placer.place(record.path, out / "JPEGImages" / names[n])
            if isinstance(data, DetectionSet):
                assert isinstance(record, ImageRecord)
                xml = _make_xml(data, record, names[n], left_out)
                save_bytes(out / "Annotations" / f"{stem}.xml", xml)
            else:
                assert isinstance(record, MaskRecord)
                png = _encode_mask(record.read_mask(), _choose_colors(data.classes))
                save_bytes(out / "SegmentationClass" / f"{stem}.png", png)
            stems.append(stem)
        first += len(data)
        save_text(lists / f"{split}.txt", "".join(f"{stem}\n" for stem in stems))


def _make_xml(data: DetectionSet, record: ImageRecord, name: str, left_out: Counter[str]) -> bytes:
    root = ElementTree.Element("annotation")
    _add_child(root, "folder", "JPEGImages")
    _add_child(root, "filename", name)
    size = ElementTree.SubElement(root, "size")
    for tag, value in (("width", record.width), ("height", record.height), ("depth", 3)):
        _add_child(size, tag, value)
    _add_child(root, "segmented", 0)
    for item in list_writable(data, record, left_out):
        x1, y1, x2, y2 = item.box
        if item.is_crowd:
            left_out["crowd regions"] += 1
        elif x2 - x1 <= 1 or y2 - y1 <= 1:
            left_out["objects of at most one pixel's width or height"] += 1
        else:
            _add_object(root, data.categories.names[item.label - 1], item)
            left_out["outlines (the objects are written as boxes)"] += bool(item.outline)
            left_out["objects' keypoints"] += list_visible_keypoints(item.annotation)
    ElementTree.indent(root, "\t")
    content: bytes = ElementTree.tostring(root, encoding="utf-8")
    return content + b"\n"


def _add_object(root: ElementTree.Element, name: str, item: WritableObject) -> None:
    if name != name.strip() or name.translate(XML_CODES) != name:
        raise DataError(
            f"the class {name!r} has blanks at its ends or control codes, which VOC's XML cannot "
            "hold; give it another name with --rename"
        )
    element = ElementTree.SubElement(root, "object")
    _add_child(element, "name", name)
    _add_child(element, "pose", "Unspecified")
    _add_child(element, "truncated", int(bool(item.annotation.get("truncated"))))
    _add_child(element, "difficult", int(bool(item.annotation.get("difficult"))))
    box = ElementTree.SubElement(element, "bndbox")
    x1, y1, x2, y2 = item.box
    corners = {"xmin": x1 + 1, "ymin": y1 + 1, "xmax": x2, "ymax": y2}
    for tag, number in corners.items():
        _add_child(box, tag, f"{number:.17g}")


def _add_child(parent: ElementTree.Element, name: str, value: object) -> None:
    ElementTree.SubElement(parent, name).text = str(value)


def _write_label_map(data: DetectionSet | SegmentationSet, out: Path) -> None:
    """Write the names and colors of the classes, in the order of the values in masks."""
    assert isinstance(data, SegmentationSet)
    if data.task == "multilabel":
        raise DataError(
            f"{data.name}: pixels of several classes have no place in VOC's masks; write COCO's "
            "layout with --to coco"
        )
    names = data.classes.names
    wrong = [n for n in names if n != n.strip() or set(n) & set(":\n\r#") or n == "ignored"]
    if wrong:
        raise DataError(
            f"{data.name}: the classes {quote(wrong)} have names that labelmap.txt cannot hold; "
            "give them others with --rename"
        )
    rows = [*zip(names, _choose_colors(data.classes), strict=True), ("ignored", voc_color(IGNORED))]
    lines = ["# label:color_rgb:parts:actions", *("{}:{},{},{}::".format(n, *c) for n, c in rows)]
    save_text(out / "labelmap.txt", "".join(f"{line}\n" for line in lines))


def _choose_colors(classes: MaskClasses) -> Sequence[tuple[int, int, int]]:
    """Return the colors of the classes where they are distinct, else VOC's."""
    distinct = {*classes.colors, voc_color(IGNORED)}
    if len(distinct) == len(classes.colors) + 1:
        return classes.colors
    return [voc_color(n) for n in range(len(classes.names))]


def _encode_mask(mask: np.ndarray, colors: Sequence[tuple[int, int, int]]) -> bytes:
    palette = np.zeros((256, 3), np.uint8)
    palette[: len(colors)], palette[IGNORED] = colors, voc_color(IGNORED)
    picture = Image.fromarray(mask)
    picture.putpalette(palette.tobytes())
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    return buffer.getvalue()
