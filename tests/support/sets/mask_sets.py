"""Writes the same masks in every layout that the readers know, and the same image beside each."""

import json

import numpy as np
from hypothesis import strategies as st
from PIL import Image
from scipy.io import savemat

from densenet_backbones.data.scenes import annotations as forms

NAMES = ("background", "cat", "dog")
COLORS = ((0, 0, 0), (10, 200, 30), (255, 1, 2))
VOID = (7, 7, 7)


@st.composite
def masks(draw, labels=3, ignored=True, smallest=1):
    """(H, W) uint8 of 0 .. labels - 1, and 255 where that is allowed."""
    height, width = draw(st.integers(smallest, 9)), draw(st.integers(smallest, 9))
    values = [*range(labels), *([255] if ignored else [])]
    cells = draw(
        st.lists(st.sampled_from(values), min_size=height * width, max_size=height * width)
    )
    return np.array(cells, np.uint8).reshape(height, width)


def some_masks(count=3, size=(6, 9), labels=3, seed=0):
    """Names and random masks with every label and ignored pixels."""
    rng = np.random.default_rng(seed)
    found = {}
    for n in range(count):
        mask = rng.integers(0, labels, size, dtype=np.uint8)
        mask[0, :2] = 255
        found[f"im{n}"] = mask
    return found


def write_image(path, mask, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    Image.fromarray(rng.integers(0, 256, (*mask.shape, 3), np.uint8)).save(path)


def write_mask(path, values, mode="P"):
    """A palette picture, or one of the array's own type."""
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(values)
    if mode == "P":
        picture.putpalette(forms.make_voc_palette())
    picture.save(path)


def write_list(path, names):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{name}\n" for name in names))


def write_voc(root, found, split="train", mode="P", names=NAMES):
    for name, mask in found.items():
        write_image(root / "JPEGImages" / f"{name}.jpg", mask)
        write_mask(root / "SegmentationClass" / f"{name}.png", mask, mode)
    write_list(root / "ImageSets/Segmentation" / f"{split}.txt", found)
    if names is not None:
        lines = [f"{n}:{r},{g},{b}::" for n, (r, g, b) in zip(names, COLORS, strict=False)]
        lines.append("ignored:{},{},{}::".format(*VOID))
        (root / "labelmap.txt").write_text("# label:color_rgb:parts:actions\n" + "\n".join(lines))
    return root


def write_mat(path, values):
    path.parent.mkdir(parents=True, exist_ok=True)
    savemat(path, {"GTcls": {"Segmentation": values, "CategoriesPresent": np.unique(values)}})


def write_sbd(root, found, split="train"):
    for name, mask in found.items():
        write_image(root / "dataset/img" / f"{name}.jpg", mask)
        write_mat(root / "dataset/cls" / f"{name}.mat", mask)
    write_list(root / "dataset" / f"{split}.txt", found)
    return root


def write_camvid(root, found, split="train"):
    for name, mask in found.items():
        write_image(root / split / f"{name}.png", mask)
        write_mask(root / f"{split}annot" / f"{name}.png", mask, "L")
    return root


def colored(mask):
    table = np.zeros((256, 3), np.uint8)
    table[: len(COLORS)], table[255] = COLORS, VOID
    return table[mask]


def classes_yaml(values="colors", **more):
    entries = [
        {"name": n, "id": 300 + i, "color": list(c)}
        for i, (n, c) in enumerate(zip(NAMES, COLORS, strict=True))
    ]
    ignored = [list(VOID)] if values == "colors" else [65535]
    return json.dumps({"classes": entries, "values": values, "ignored": ignored, **more})


def write_folders(root, found, split="train", values="colors"):
    """Pictures of colors, or of ids of 16 bits: 300, 301, 302, and 65535 for what is ignored."""
    for name, mask in found.items():
        write_image(root / "images" / split / f"{name}.jpg", mask)
        wide = np.where(mask == 255, 65535, mask.astype(np.uint16) + 300).astype(np.uint16)
        picture = colored(mask) if values == "colors" else wide
        write_mask(root / "masks" / split / f"{name}.png", picture, values)
    (root / "classes.yaml").write_text(classes_yaml(values))
    return root


def coco_base(root, found, split):
    images = []
    for n, (name, mask) in enumerate(found.items()):
        write_image(root / split / f"{name}.jpg", mask)
        size = {"height": mask.shape[0], "width": mask.shape[1]}
        images.append({"id": n * 7, "file_name": f"{name}.jpg", **size})
    return images


def write_json(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def write_coco(root, found, split="train2017", names=NAMES[1:]):
    """One object a class and image; ignored pixels are a crowd. Category ids are 5, 10, ..."""
    images, annotations = coco_base(root, found, split), []
    for image, mask in zip(images, found.values(), strict=True):
        for label in sorted(set(np.unique(mask)) - {0}):
            one = mask == label
            crowd = label == 255
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image["id"],
                    "category_id": 5 if crowd else int(label) * 5,
                    "bbox": forms.compute_mask_box(one),
                    "area": int(one.sum()),
                    "iscrowd": int(crowd),
                    "segmentation": forms.encode_run_lengths(one)
                    if crowd
                    else forms.trace_outline(one),
                }
            )
    categories = [{"id": n * 5, "name": name} for n, name in enumerate(names, start=1)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    write_json(root / f"annotations/instances_{split}.json", content)
    return root


def write_panoptic(root, found, split="train2017", names=NAMES):
    """One segment a class and image, the ids 1000, 1001, ...; void is ignored."""
    images, annotations = coco_base(root, found, split), []
    for image, (name, mask) in zip(images, found.items(), strict=True):
        ids = np.where(mask == 255, 0, mask.astype(np.int64) * 70_000 + 1000)
        picture = np.stack([ids & 255, ids >> 8 & 255, ids >> 16], 2).astype(np.uint8)
        write_mask(root / f"annotations/panoptic_{split}/{name}.png", picture, "RGB")
        segments = [
            {"id": int(label) * 70_000 + 1000, "category_id": int(label) + 3, "iscrowd": 0}
            for label in sorted(set(np.unique(mask)) - {255})
        ]
        annotations.append(
            {"image_id": image["id"], "file_name": f"{name}.png", "segments_info": segments}
        )
    categories = [
        {"id": n + 3, "name": name, "isthing": n % 2, "color": list(COLORS[n])}
        for n, name in enumerate(names)
    ]
    content = {"images": images, "annotations": annotations, "categories": categories}
    write_json(root / f"annotations/panoptic_{split}.json", content)
    return root
