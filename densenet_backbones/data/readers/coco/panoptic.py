"""Reads COCO's panoptic format for segmentation: a JSON file, and a picture of ids an image.

A pixel's id is ``R + 256 G + 65536 B`` (cocodataset.org, section "Panoptic Segmentation"); the JSON
file says which category each id of an image is. Things and stuff become classes in order of their
ids; the id 0 (void) and crowds are ignored.
"""

from collections.abc import Sequence
from pathlib import Path

from densenet_backbones.data.faults import DataError
from densenet_backbones.data.files import (
    check_relative_path,
    list_files,
    quote,
    refuse_faults,
    track_progress,
)
from densenet_backbones.data.images import read_image_size
from densenet_backbones.data.mask_samples import (
    IGNORED,
    Color,
    MaskClasses,
    MaskRecord,
    SegmentationSet,
    is_color,
    voc_color,
)
from densenet_backbones.data.masks.code import MaskCode, ValueMap
from densenet_backbones.data.readers.coco.boxes import (
    find_folder_with,
    find_split,
    list_image_folders,
)
from densenet_backbones.data.readers.coco.json_values import (
    CocoImage,
    JsonObject,
    abbreviate,
    load_json,
    read_categories,
    read_entries,
    read_images,
    read_integer,
)
from densenet_backbones.data.readers.masks.files import MaskFile, compare_sizes, reorder_classes
from densenet_backbones.messages import nearest, pluralize

_PREFIX = "panoptic_"
_VOID = 0


def read_coco_panoptic(
    root: str | Path,
    split: str,
    *,
    annotation_file: str | Path | None = None,
    image_folder: str | Path | None = None,
    mask_folder: str | Path | None = None,
    classes: Sequence[str] | None = None,
) -> SegmentationSet:
    """Read one split of a data set in COCO's panoptic format.

    Args:
        root: The folder with `annotations/panoptic_{split}.json`, the pictures of ids in
            `annotations/panoptic_{split}` (or `panoptic_{split}`) and the images in `{split}`,
            `images/{split}`, `images` or itself.
        split: Such as "val2017", or "val".
        annotation_file: The JSON file, where it has another name; absolute or relative to `root`.
        image_folder: The images' folder, where it has another name.
        mask_folder: The pictures' folder, where it has another name.
        classes: Names in label order, among them all of the file's that have segments. Default:
            the file's.

    Returns:
        The set, with the file's own image ids, in the file's order.

    Raises:
        DataError: If the layout, the file or a value in it is wrong, images or pictures are
            missing, or a picture has another size than its image; names it and the fix.
    """
    root = Path(root)
    if annotation_file is None:
        known = list_panoptic_files(root)
        full = find_split(split, known)
        if full is None:
            raise DataError(
                f"{root}: has no annotations/{_PREFIX}{split}.json (splits there: "
                f"{quote(sorted(known), 12) or 'none'}); choose one{nearest(split, known)}"
            )
        path, split = known[full], full
    else:
        path = root / annotation_file
    # The JSON file: classes, images, and the meaning of the ids in each picture.
    content = _load_panoptic(path)
    mask_classes = _read_classes(content, path)
    images = read_images(read_entries(content, "images", path), path)
    pictures, codes = _read_segments(content, mask_classes, {i.image_id for i in images}, path)
    unpaired = [i.file_name for i in images if i.image_id not in pictures]
    if unpaired:
        raise DataError(
            f"{path}: {pluralize(len(unpaired), 'image has', 'images have')} no annotation "
            f"({quote(unpaired)}); add them, or take the images out"
        )
    # Images and pictures on disk; every name of the file must be there.
    folders = [root / image_folder] if image_folder else list_image_folders(root, split, path)
    folder = find_folder_with(folders, [i.file_name for i in images], path)
    name = f"{_PREFIX}{split}"
    beside = [root / mask_folder] if mask_folder else [path.parent / name, root / name]
    names = [pictures[i.image_id] for i in images]
    masks = find_folder_with(beside, names, path, "picture", f"rename the folder to {name}")
    readers = {i: MaskFile(masks / pictures[i], code) for i, code in codes.items()}
    records = _make_records(images, folder, readers, path)
    data = SegmentationSet(f"{root.name}/{split}", records, mask_classes)
    if classes is None:
        return data
    used = {label for code in codes.values() if code.colors for label in code.colors.labels}
    return reorder_classes(data, classes, path, used=used)


def has_panoptic_layout(root: Path, split: str | None = None) -> bool:
    """Return True if a folder has panoptic files where COCO has them (of the split, if given)."""
    known = list_panoptic_files(root)
    return bool(known) if split is None else find_split(split, known) is not None


def list_panoptic_files(root: Path) -> dict[str, Path]:
    """Map split names to panoptic files where COCO has them."""
    folder = root / "annotations"
    names = [n for n in list_files(folder) if n.startswith(_PREFIX) and n.endswith(".json")]
    return {n[len(_PREFIX) : -len(".json")]: folder / n for n in names}


def _load_panoptic(path: Path) -> JsonObject:
    content, has_constants = load_json(path)
    if not isinstance(content, dict):
        raise DataError(f"{path}: not a panoptic file; it must be a JSON object")
    if has_constants:
        raise DataError(f"{path}: has NaN or Infinity, which JSON has not; write null instead")
    return content


def _read_classes(content: JsonObject, path: Path) -> MaskClasses:
    entries = read_entries(content, "categories", path)
    categories = read_categories(entries, path)
    listed = {entry["id"]: entry.get("color") for entry in entries}
    colors = [_read_color(listed.get(i), n) for n, i in enumerate(categories.ids)]
    return MaskClasses.from_names(categories.names, categories.ids, colors)


def _read_color(value: object, index: int) -> Color:
    """Read a category's color, which is for pictures only; VOC's where it has none."""
    if isinstance(value, list) and is_color(value):
        return value[0], value[1], value[2]
    return voc_color(index)


def _read_segments(
    content: JsonObject, classes: MaskClasses, image_ids: set[int], path: Path
) -> tuple[dict[int, str], dict[int, MaskCode]]:
    """Return, by image id, the name of the picture and the meaning of its ids."""
    # One code a picture: its ids are its own.
    label_of = {i: label for label, i in enumerate(classes.ids)}
    pictures: dict[int, str] = {}
    codes: dict[int, MaskCode] = {}
    fix = f"the image's segments_info in {path.name} does not list them"
    for position, entry in enumerate(read_entries(content, "annotations", path)):
        where = f"{path}: annotations[{position}]"
        image_id, name = read_integer(entry, "image_id", where), entry.get("file_name")
        if image_id not in image_ids:
            raise DataError(f"{where}: image_id {image_id} is not among the images")
        if image_id in pictures:
            raise DataError(f"{where}: image_id {image_id} has an annotation already; merge them")
        if not isinstance(name, str):
            raise DataError(f"{where}: 'file_name' must be a text, not {abbreviate(name)}")
        pictures[image_id] = str(check_relative_path(name, where))
        # The id 0 is void in every picture.
        values = {_VOID: IGNORED}
        segments = entry.get("segments_info")
        if not isinstance(segments, list) or not all(isinstance(s, dict) for s in segments):
            raise DataError(f"{where}: 'segments_info' must be a list of objects")
        for number, segment in enumerate(segments):
            item = f"{where}: segments_info[{number}]"
            value, label = _read_segment(segment, label_of, item)
            if value in values:
                raise DataError(f"{item}: id {value} is void or given twice; ids are unique")
            values[value] = label
        known = ValueMap(tuple(values), tuple(values.values()))
        codes[image_id] = MaskCode(None, known, fix)
    return pictures, codes


def _read_segment(segment: JsonObject, label_of: dict[int, int], where: str) -> tuple[int, int]:
    """Return id and label of a segment."""
    value, category = (
        read_integer(segment, "id", where),
        read_integer(segment, "category_id", where),
    )
    # Three channels of 8 bits hold an id.
    if not 0 <= value < 1 << 24:
        raise DataError(f"{where}: 'id' must be a number of 24 bits, not {value}")
    if category not in label_of:
        raise DataError(
            f"{where}: category_id {category} is not among the categories "
            f"({quote(sorted(label_of), 6)}); add it to them, or remove the segment"
        )
    crowd = segment.get("iscrowd", 0)
    if crowd not in (0, 1):
        raise DataError(f"{where}: 'iscrowd' must be 0 or 1, not {abbreviate(crowd)}")
    return value, IGNORED if crowd else label_of[category]


def _make_records(
    images: Sequence[CocoImage], folder: Path, readers: dict[int, MaskFile], path: Path
) -> tuple[MaskRecord, ...]:
    records, faults = [], []
    for image in track_progress(images, "Reading panoptic pictures"):
        file, reader = folder / image.file_name, readers[image.image_id]
        width, height = image.size or read_image_size(file)
        record = MaskRecord(image.image_id, file, width, height, reader, file.stem)
        faults += compare_sizes(record, reader.path)
        records.append(record)
    count = pluralize(len(faults), "picture has", "pictures have")
    refuse_faults(faults, f"{path}: {count} the wrong size")
    return tuple(records)
