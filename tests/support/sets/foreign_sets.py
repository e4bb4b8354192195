"""Writes the same few labelled pictures in the layouts of many tools, as those lay them out."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
from labelled_pictures import (
    CLASSES,
    KEYPOINTS,
    PALETTE,
    PICTURES,
    of_split,
    save_image,
    write_text,
)
from PIL import Image
from via_sets import (
    write_via_3_csv,
    write_via_3_project,
    write_via_csv,
    write_via_export,
    write_via_project,
)

# ------------------------------------------------------------------------------ COCO


def coco_json(pictures, *, name=lambda picture: picture.name, ids=True, first_id=1, **more):
    images, annotations = [], []
    for n, picture in enumerate(pictures):
        width, height = picture.size
        images.append({"id": n, "file_name": name(picture), "width": width, "height": height})
        for thing in picture.things:
            x1, y1, x2, y2 = thing.box
            entry = {
                "image_id": n,
                "category_id": first_id + CLASSES.index(thing.name),
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "iscrowd": 0,
                "segmentation": [list(thing.outline)],
                "keypoints": [v for x, y in thing.keypoints for v in (x, y, 2)],
                "num_keypoints": 2,
            }
            annotations.append({"id": len(annotations) + 1, **entry} if ids else entry)
    categories = [
        {"id": first_id + n, "name": c, "keypoints": list(KEYPOINTS)} for n, c in enumerate(CLASSES)
    ]
    content = {"images": images, "annotations": annotations, "categories": categories}
    return json.dumps({**content, **more})


def write_coco(root):
    """The published layout, with which all others are compared."""
    for split in ("train", "val"):
        for picture in of_split(split):
            save_image(picture, root / split)
        write_text(root / f"annotations/instances_{split}.json", coco_json(of_split(split)))


def write_coco_beside(root):
    for picture in PICTURES:
        save_image(picture, root)
    write_text(root / "annotations.json", coco_json(PICTURES, ids=False))


def write_label_studio(root):
    for n, picture in enumerate(PICTURES):
        save_image(picture, root / "images", f"{n:08x}-{picture.name}")

    def name(picture):
        n = PICTURES.index(picture)
        folder = "../../label-studio/data/media/upload/3" if n % 2 else "images"
        return f"{folder}/{n:08x}-{picture.name}"

    write_text(
        root / "result.json", coco_json(PICTURES, name=name, first_id=0, info={"year": 2026})
    )


def write_cvat_coco(root):
    for picture in PICTURES:
        save_image(picture, root / "images" / "default")
    write_text(root / "annotations/instances_default.json", coco_json(PICTURES))


def write_roboflow_coco(root):
    for split, folder in (("train", "train"), ("val", "valid")):
        content = json.loads(coco_json(of_split(split)))
        for category in content["categories"]:
            category["supercategory"] = "animals"
        content["categories"].insert(0, {"id": 0, "name": "animals", "supercategory": "none"})
        for picture in of_split(split):
            save_image(picture, root / folder)
        write_text(root / folder / "_annotations.coco.json", json.dumps(content))


def write_coco_names(root):
    for picture in PICTURES:
        save_image(picture, root / "photos")
    for split, word in (("train", "training"), ("val", "validation")):
        write_text(root / f"labels_{word}.json", coco_json(of_split(split)))


# ------------------------------------------------------------------------------ VOC


def voc_xml(picture, folder="images"):
    """As labelImg writes it: the first pixel is 1."""
    root = ElementTree.Element("annotation")

    def add(parent, name, value=""):
        child = ElementTree.SubElement(parent, name)
        child.text = str(value)
        return child

    add(root, "folder", folder)
    add(root, "filename", picture.name)
    add(root, "path", f"C:\\Users\\me\\{picture.name}")
    size = add(root, "size")
    for key, value in zip(("width", "height", "depth"), (*picture.size, 3), strict=True):
        add(size, key, value)
    for thing in picture.things:
        item = add(root, "object")
        add(item, "name", thing.name)
        add(item, "pose", "Unspecified")
        add(item, "difficult", 0)
        x1, y1, x2, y2 = thing.box
        box = add(item, "bndbox")
        for key, value in zip(
            ("xmin", "ymin", "xmax", "ymax"), (x1 + 1, y1 + 1, x2, y2), strict=True
        ):
            add(box, key, value)
    return ElementTree.tostring(root, encoding="unicode")


def write_voc(root):
    for picture in PICTURES:
        save_image(picture, root / "JPEGImages")
        write_text(root / "Annotations" / f"{picture.stem}.xml", voc_xml(picture))
    for split in ("train", "val"):
        lines = "".join(f"{picture.stem}\n" for picture in of_split(split))
        write_text(root / "ImageSets/Main" / f"{split}.txt", lines)


def write_labelimg(root):
    for picture in PICTURES:
        save_image(picture, root)
        write_text(root / f"{picture.stem}.xml", voc_xml(picture))
    write_text(root / "predefined_classes.txt", "cat\ndog\n")
    write_text(root / "__MACOSX" / "._photo 0.xml", "junk")


def write_annots_and_images(root):
    for picture in PICTURES:
        save_image(picture, root / "images")
        write_text(root / "annots" / f"{picture.stem}.xml", voc_xml(picture))


def write_roboflow_voc(root):
    for picture in PICTURES:
        folder = root / {"train": "train", "val": "valid"}[picture.split]
        save_image(picture, folder)
        write_text(folder / f"{picture.stem}.xml", voc_xml(picture, ""))


# ------------------------------------------------------------------------------ YOLO


def yolo_lines(picture, kind="detect"):
    width, height = picture.size
    lines = []
    for thing in picture.things:
        x1, y1, x2, y2 = thing.box
        values = [(x1 + x2) / 2 / width, (y1 + y2) / 2 / height]
        values += [(x2 - x1) / width, (y2 - y1) / height]
        if kind == "segment":
            values = [v / (width, height)[n % 2] for n, v in enumerate(thing.outline)]
        if kind == "pose":
            values += [v for x, y in thing.keypoints for v in (x / width, y / height, 2)]
        lines.append(" ".join(map(repr, (CLASSES.index(thing.name), *values))))
    return "".join(f"{line}\n" for line in lines)


def write_ultralytics(root, kind="detect", **more):
    for picture in PICTURES:
        save_image(picture, root / "images" / picture.split)
        labels = root / "labels" / picture.split / f"{picture.stem}.txt"
        write_text(labels, yolo_lines(picture, kind))
    content = {"path": "../datasets/pets", "train": "images/train", "val": "images/val"}
    write_text(root / "pets.yaml", json.dumps({**content, "names": list(CLASSES), **more}))


def write_yolo_segment(root):
    write_ultralytics(root, "segment")


def write_yolo_pose(root):
    write_ultralytics(root, "pose", kpt_shape=[2, 3], flip_idx=[0, 1], kpt_names={0: KEYPOINTS})


def write_roboflow_yolo(root):
    for picture in PICTURES:
        folder = root / {"train": "train", "val": "valid"}[picture.split]
        save_image(picture, folder / "images")
        write_text(folder / "labels" / f"{picture.stem}.txt", yolo_lines(picture))
    lines = "train: ../train/images\nval: ../valid/images\nnc: 2\nnames:\n  0: cat\n  1: dog\n"
    write_text(root / "data.yaml", lines)
    write_text(root / "README.roboflow.txt", "pets - v1\n")


def write_yolo_lists(root):
    for picture in PICTURES:
        save_image(picture, root / "images")
        write_text(root / "labels" / f"{picture.stem}.txt", yolo_lines(picture))
    for split in ("train", "val"):
        names = "".join(f"./images/{picture.name}\n" for picture in of_split(split))
        write_text(root / f"{split}.txt", names)
    write_text(root / "data.yaml", "train: train.txt\nval: val.txt\nnames: [cat, dog]\n")


def write_darknet(root):
    for picture in PICTURES:
        save_image(picture, root / "obj_train_data")
        write_text(root / "obj_train_data" / f"{picture.stem}.txt", yolo_lines(picture))
    write_text(root / "obj.names", "cat\ndog\n")
    write_text(root / "obj.data", "classes = 2\nnames = data/obj.names\n")


def write_zipped_yolo(root):
    write_roboflow_yolo(root / "inner" / "pets")
    shutil.make_archive(str(root / "pets"), "zip", root / "inner")
    shutil.rmtree(root / "inner")


# ------------------------------------------------------------------------------ other tools


def labelme_json(picture, kind="polygon", folder=""):
    shapes = []
    for n, thing in enumerate(picture.things):
        x1, y1, x2, y2 = thing.box
        points = list(zip(thing.outline[::2], thing.outline[1::2], strict=True))
        if kind == "rectangle":
            points = [(x2, y1), (x1, y2)]
        shape = {"label": thing.name, "points": points, "group_id": n, "shape_type": kind}
        shapes.append({**shape, "flags": {}})
        for name, place in zip(KEYPOINTS, thing.keypoints, strict=True):
            point = {"label": name, "points": [place], "group_id": n, "shape_type": "point"}
            shapes.append({**point, "flags": {}})
    width, height = picture.size
    content = {"version": "5.5.0", "flags": {}, "shapes": shapes}
    content |= {"imagePath": f"{folder}{picture.name}", "imageData": None}
    return json.dumps({**content, "imageHeight": height, "imageWidth": width})


def write_labelme(root):
    for picture in PICTURES:
        save_image(picture, root)
        write_text(root / f"{picture.stem}.json", labelme_json(picture))


def write_labelme_boxes(root):
    for picture in PICTURES:
        save_image(picture, root / picture.split / "images")
        path = root / picture.split / "json" / f"{picture.stem}.json"
        write_text(path, labelme_json(picture, "rectangle", "..\\images\\"))


def write_cvat(root):
    document = ElementTree.Element("annotations")
    ElementTree.SubElement(document, "version").text = "1.1"
    ElementTree.SubElement(ElementTree.SubElement(document, "meta"), "task")
    for n, picture in enumerate(PICTURES):
        save_image(picture, root / "images")
        size = dict(zip(("width", "height"), map(str, picture.size), strict=True))
        subset = {"train": "Train", "val": "Validation"}[picture.split]
        names = {"id": str(n), "name": picture.name, "subset": subset}
        image = ElementTree.SubElement(document, "image", {**names, **size})
        for thing in picture.things:
            pairs = zip(thing.outline[::2], thing.outline[1::2], strict=True)
            points = ";".join(f"{x:.2f},{y:.2f}" for x, y in pairs)
            attributes = {"label": thing.name, "points": points, "occluded": "0", "z_order": "0"}
            ElementTree.SubElement(image, "polygon", attributes)
    write_text(root / "annotations.xml", ElementTree.tostring(document, encoding="unicode"))


def write_tensorflow_csv(root):
    for split, word in (("train", "train"), ("val", "test")):
        rows = ["filename,width,height,class,xmin,ymin,xmax,ymax"]
        for picture in of_split(split):
            save_image(picture, root / "images" / word)
            for thing in picture.things:
                cells = (picture.name, *picture.size, thing.name, *thing.box)
                rows.append(",".join(map(str, cells)))
        write_text(root / f"{word}_labels.csv", "\n".join(rows) + "\n")


def write_keras_csv(root):
    rows = []
    for picture in PICTURES:
        save_image(picture, root / "pics")
        for thing in picture.things:
            rows.append(
                ",".join(map(str, (f"/home/me/pics/{picture.name}", *thing.box, thing.name)))
            )
    write_text(root / "annotations.csv", "\n".join(rows) + "\n")


# ------------------------------------------------------------------------------ masks


def save_mask(values, path, palette=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    mask = Image.fromarray(values)
    if palette:
        mask.putpalette(palette)
    mask.save(path)


def write_binary_masks(root):
    for picture in PICTURES:
        save_image(picture, root / "imgs")
        save_mask(picture.draw_labels((0, 255, 255)), root / "masks" / f"{picture.stem}.png")


def write_masks_beside(root):
    for picture in PICTURES:
        save_image(picture, root)
        save_mask(picture.draw_labels(), root / f"{picture.stem}_mask.png")


def write_palette_masks(root):
    for picture in PICTURES:
        save_image(picture, root / picture.split / "image")
        path = root / picture.split / "label" / f"{picture.stem}.png"
        save_mask(picture.draw_labels(), path, PALETTE)


def write_panoptic(root):
    for split in ("train", "val"):
        images, annotations = [], []
        for n, picture in enumerate(of_split(split)):
            save_image(picture, root / split)
            values = picture.draw_labels()
            width, height = picture.size
            images.append({"id": n, "file_name": picture.name, "width": width, "height": height})
            pixels = np.stack((values + 1, *[np.zeros_like(values)] * 2), 2)
            save_mask(pixels, root / f"panoptic_{split}" / f"{picture.stem}.png")
            segments = [
                {"id": int(v) + 1, "category_id": int(v), "iscrowd": 0} for v in np.unique(values)
            ]
            annotations.append(
                {"image_id": n, "file_name": f"{picture.stem}.png", "segments_info": segments}
            )
        names = ("background", *CLASSES)
        categories = [
            {"id": n, "name": name, "isthing": int(n > 0)} for n, name in enumerate(names)
        ]
        content = {"images": images, "annotations": annotations, "categories": categories}
        write_text(root / f"panoptic_{split}.json", json.dumps(content))


@dataclass(frozen=True)
class Layout:
    """Writer of a layout, and what it can say.

    Attributes:
        write: Writes the pictures below a folder.
        name: Name of the layout in options; None where the published layouts' readers take it.
        split: True where it says which pictures are for evaluation.
        holds: What it can say: "boxes", "masks", "keypoints", "semantic".
        path: What is given as data, below the folder.
    """

    write: object
    name: str | None
    split: bool
    holds: tuple[str, ...]
    path: str = "."


BOXES, OUTLINES, ALL = ("boxes",), ("boxes", "masks"), ("boxes", "masks", "keypoints")
LAYOUTS = {
    "coco": Layout(write_coco, None, True, ALL),
    "coco beside images": Layout(write_coco_beside, "coco", False, ALL),
    "label studio": Layout(write_label_studio, "coco", False, ALL),
    "cvat as coco": Layout(write_cvat_coco, None, False, ALL),
    "roboflow coco": Layout(write_roboflow_coco, None, True, ALL),
    "coco of other names": Layout(write_coco_names, "coco", True, ALL),
    "coco file": Layout(write_coco_beside, "coco", False, ALL, "annotations.json"),
    "voc": Layout(write_voc, None, True, BOXES),
    "labelimg": Layout(write_labelimg, "voc", False, BOXES),
    "annots and images": Layout(write_annots_and_images, "voc", False, BOXES),
    "roboflow voc": Layout(write_roboflow_voc, "voc", True, BOXES),
    "ultralytics": Layout(write_ultralytics, "yolo", True, BOXES),
    "ultralytics yaml": Layout(write_ultralytics, "yolo", True, BOXES, "pets.yaml"),
    "yolo segment": Layout(write_yolo_segment, "yolo", True, OUTLINES),
    "yolo pose": Layout(write_yolo_pose, "yolo", True, ("boxes", "keypoints")),
    "roboflow yolo": Layout(write_roboflow_yolo, "yolo", True, BOXES),
    "yolo lists": Layout(write_yolo_lists, "yolo", True, BOXES),
    "darknet": Layout(write_darknet, "yolo", False, BOXES),
    "zip": Layout(write_zipped_yolo, "yolo", True, BOXES, "pets.zip"),
    "labelme": Layout(write_labelme, "labelme", False, ALL),
    "labelme boxes": Layout(write_labelme_boxes, "labelme", True, ("boxes", "keypoints")),
    "cvat": Layout(write_cvat, "cvat", True, OUTLINES),
    "via project": Layout(write_via_project, "via", False, OUTLINES),
    "via export": Layout(write_via_export, "via", True, OUTLINES),
    "via csv": Layout(write_via_csv, "via", False, BOXES),
    "via 3 project": Layout(write_via_3_project, "via", False, OUTLINES),
    "via 3 csv": Layout(write_via_3_csv, "via", False, BOXES),
    "tensorflow csv": Layout(write_tensorflow_csv, "csv", True, BOXES),
    "keras csv": Layout(write_keras_csv, "csv", False, BOXES),
    "binary masks": Layout(write_binary_masks, "folders", False, ("semantic",)),
    "masks beside images": Layout(write_masks_beside, "folders", False, ("semantic",)),
    "palette masks": Layout(write_palette_masks, "folders", True, ("semantic",)),
    "panoptic": Layout(write_panoptic, "coco_panoptic", True, ("semantic",)),
}
"""All layouts by name."""


def write_layout(name, root):
    """Write a layout below a folder; returns the path that is given as data."""
    LAYOUTS[name].write(root)
    return Path(root, LAYOUTS[name].path)
