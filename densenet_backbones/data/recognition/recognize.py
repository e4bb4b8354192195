"""Recognizes what lies at a path, and says how each of its splits is read.

Layouts that are published (COCO, VOC, CamVid, SBD) come first, as their readers always took them;
then the formats of labelling tools, by the content of their files. Two that both fit are an error
that shows the option for each.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from densenet_backbones.data.faults import DataError
from densenet_backbones.data.readers.masks.classes_file import CLASSES_FILE
from densenet_backbones.data.recognition.archives import unpack_archive
from densenet_backbones.data.recognition.coco_files import (
    CocoFiles,
    find_coco_files,
    is_ambiguous,
    list_mask_folders,
)
from densenet_backbones.data.recognition.formats import FINDERS
from densenet_backbones.data.recognition.known_layouts import (
    KnownLayout,
    find_only_folder,
    list_known_layouts,
)
from densenet_backbones.data.recognition.mask_pairs import find_mask_pairs
from densenet_backbones.data.recognition.splits import WHOLE, match_split, order_splits
from densenet_backbones.data.recognition.tree import ANNOTATION_SUFFIXES, Tree
from densenet_backbones.data.recognition.unknown import (
    ARCHIVES,
    describe_nothing,
    describe_outside,
)
from densenet_backbones.messages import nearest, pluralize, quote_word

_TEACHES = {"detection": {"boxes"}, "segmentation": {"masks", "semantic"}}


@dataclass(frozen=True)
class Split:
    """Part of a data set.

    Attributes:
        name: Name of the split as the data has it; "all" where it has no splits.
        images: Number of images.
        source: What the readers take: root, split and, where needed, layout and files.
    """

    name: str
    images: int
    source: Mapping[str, str]


@dataclass(frozen=True)
class Recognized:
    """Data that was recognized.

    Attributes:
        root: Its folder.
        layout: Name of its layout in options.
        serves: What it can teach: "boxes", "masks" (of objects), "keypoints", "semantic".
        splits: Its parts.
        lines: At most three sentences for people.
    """

    root: Path
    layout: str
    serves: frozenset[str]
    splits: tuple[Split, ...]
    lines: tuple[str, ...]

    def find(self, name: str) -> Split | None:
        """Return the split that a name means ("val" is "valid", too); None if there is none."""
        own = {split.name: split for split in self.splits}
        match = match_split(name, own)
        return None if match is None else own[match]

    def name_source(self, name: str) -> Mapping[str, str]:
        """Return what the readers take for a split.

        Raises:
            DataError: If the data has no splits, or not this one, and its layout's own reader does
                not know more names.
        """
        split = self.find(name)
        if split is not None:
            return split.source
        if any("layout" in own.source for own in self.splits):
            known = ", ".join(own.name for own in self.splits)
            raise DataError(
                f"{self.root}: has no split {name!r} (there are: {known}); choose one of them"
                f"{nearest(name, [own.name for own in self.splits])}"
            )
        # VOC's lists of classes, and years.
        return {**self.splits[0].source, "split": name}

    @property
    def whole(self) -> Split | None:
        """All of the data, where it is in one part that is not called val or test."""
        held_out = any(match_split(word, [s.name for s in self.splits]) for word in ("val", "test"))
        return self.splits[0] if len(self.splits) == 1 and not held_out else None


def recognize(
    path: str | Path,
    kind: str | None = None,
    *,
    layout: str = "auto",
    annotation_file: str | None = None,
    image_folder: str | None = None,
) -> Recognized:
    """Recognize the data at a path.

    Args:
        path: Folder, annotation file, YOLO's `data.yaml`, or zip archive, which is unpacked.
        kind: "detection" or "segmentation": what the data is wanted for; None for either.
        layout: Name of the layout; "auto" looks.
        annotation_file: COCO's file, where it is given; {split} in it stands for the split.
        image_folder: Folder of COCO's images, where it is given.

    Raises:
        DataError: If nothing is recognized (says what lies there), several layouts fit (shows the
            option for each), or a file that must be read to know is faulty.
    """
    path, notes, only = Path(path), [], None
    if path.suffix.lower() == ".zip" and path.is_file():
        path, note = unpack_archive(path)
        notes.append(note)
    if path.is_file():
        path, only = _find_root_of(path)
    files = {"annotation_file": annotation_file, "image_folder": image_folder}
    given = {key: value for key, value in files.items() if value is not None}
    if annotation_file is not None:
        return _take_given_file(path, given)
    kinds = [kind] if kind else ["detection", "segmentation"]
    while only is None:
        known = [k for each in kinds for k in list_known_layouts(path, each)]
        fitting = [k for k in known if layout in ("auto", k.layout)]
        if fitting:
            return _describe_known(path, fitting[0], known, notes, given)
        inner = find_only_folder(path)
        if inner is None:
            break
        path = inner
    tree = Tree(path, only)
    with _name_outside(tree):
        readings = list(_find_readings(tree, kinds, layout, given))
    wanted = set().union(*(_TEACHES[each] for each in kinds))
    fitting_readings = [reading for reading in readings if reading.serves & wanted]
    if not fitting_readings:
        if kind is not None and layout == "auto":
            _refuse_other_kind(tree, kind)
        raise DataError(describe_nothing(tree, layout))
    if len(fitting_readings) > 1:
        options = [_show_option(reading) for reading in fitting_readings]
        raise DataError(
            f"{tree.root}: may be read in {len(options)} ways; add one of these options:", *options
        )
    reading = fitting_readings[0]
    if tree.outside:
        notes.append(f"left out: {describe_outside(tree)}")
    if only is not None and len(reading.splits) == 1:
        reading = replace(reading, splits=(replace(reading.splits[0], name=WHOLE),))
    return replace(reading, lines=_make_lines(reading, notes))


@contextmanager
def _name_outside(tree: Tree) -> Iterator[None]:
    """Name the links that were not followed in an error about files that are not there."""
    try:
        yield
    except DataError as error:
        if not tree.outside:
            raise
        first, *more = error.args
        raise DataError(f"{first} ({describe_outside(tree)})", *more) from error


def _find_root_of(path: Path) -> tuple[Path, str | None]:
    """Return the folder of an annotation file that has images below it, and the file's name."""
    if path.suffix.lower() not in ANNOTATION_SUFFIXES:
        fix = "unpack it, and " if path.suffix.lower() in ARCHIVES else ""
        raise DataError(
            f"{path}: is neither a folder nor one of {', '.join(sorted(ANNOTATION_SUFFIXES))}, "
            f".zip; {fix}give the folder of the data set"
        )
    root = path.absolute().parent
    for folder in (root, *list(root.parents)[:2]):
        if folder != Path(folder.anchor) and Tree(folder).images:
            return folder, path.absolute().relative_to(folder).as_posix()
    return root, path.name


def _take_given_file(root: Path, given: Mapping[str, str]) -> Recognized:
    """Take the annotation file that an option names, without looking."""
    pattern = given["annotation_file"]
    known = {WHOLE: pattern}
    if "{split}" in pattern:
        before, _, after = pattern.partition("{split}")
        paths = (
            root.glob(pattern.replace("{split}", "*")) if not Path(pattern).is_absolute() else []
        )
        names = [path.relative_to(root).as_posix() for path in paths]
        known = {
            name[len(before) : len(name) - len(after)]: name
            for name in sorted(names)
            if len(name) > len(before) + len(after)
        }
    splits = [Split(name, 0, {"root": str(root), "split": name, **given}) for name in known]
    lines = (f"Data: COCO's annotations in {pattern}, below {root}", f"Found: {', '.join(known)}.")
    return Recognized(root, "coco", frozenset({"boxes", "masks"}), tuple(splits), lines)


def _describe_known(
    root: Path,
    layout: KnownLayout,
    others: Sequence[KnownLayout],
    notes: Sequence[str],
    given: Mapping[str, str],
) -> Recognized:
    splits = [
        Split(name, layout.splits[name], {"root": str(root), "split": name, **given})
        for name in order_splits(layout.splits)
    ]
    serves = layout.serves.union(*(other.serves for other in others))
    reading = Recognized(root, layout.layout, serves, tuple(splits), (layout.title, ""))
    return replace(reading, lines=_make_lines(reading, notes))


def _find_readings(
    tree: Tree, kinds: Sequence[str], layout: str, given: Mapping[str, str]
) -> Iterator[Recognized]:
    """Yield every way in which the files can be read; `lines` are title, evidence and remarks."""
    has_panoptic = False
    for name in ("coco", "coco_panoptic"):
        wanted = ("auto", name, "coco_instances") if name == "coco" else ("auto", name)
        found = find_coco_files(tree, name) if layout in wanted else None
        if found is not None:
            has_panoptic = name == "coco_panoptic"  # whose pictures are masks of their own kind
            yield from _read_coco_files(tree, found, kinds, given)
    if "segmentation" in kinds and layout in ("auto", "folders") and not has_panoptic:
        for pairs in find_mask_pairs(tree):
            source = {"root": str(tree.root), "layout": "folders"}
            source |= {"classes_yaml": pairs.classes_yaml}
            splits = [
                Split(name, pairs.splits[name], {**source, "split": name})
                for name in order_splits(pairs.splits)
            ]
            said = ["images and masks", pairs.evidence, _describe_classes(pairs.classes_yaml)]
            said += [f"warning: {remark}" for remark in (pairs.left_out, pairs.blur) if remark]
            yield Recognized(tree.root, "folders", frozenset({"semantic"}), tuple(splits), (*said,))
    for name, find in FINDERS.items():
        finding = find(tree) if layout in ("auto", name) else None
        if finding is not None:
            source = {"root": str(tree.root), "layout": name}
            source |= {"annotation_file": tree.only} if tree.only else {}
            splits = [
                Split(split, len(finding.parts[split]), {**source, "split": split})
                for split in order_splits(finding.parts)
            ]
            lines = (finding.title, finding.evidence, *finding.remarks)
            yield Recognized(tree.root, name, finding.serves, tuple(splits), lines)


def _describe_classes(classes_yaml: str) -> str:
    """Describe the classes that masks seem to have, and how they are given names."""
    classes = ", ".join(re.findall(r'"name": "([^"]*)"', classes_yaml)[:12])
    ignored = re.findall(r"^ignored: \[(\d+)\]$", classes_yaml, re.M)
    also = "".join(f" ({value} is ignored)" for value in ignored)
    return (
        f"classes by the values of the masks: {classes}{also}; --data.write_classes true writes "
        f"{CLASSES_FILE}, in which they can be named"
    )


def _read_coco_files(
    tree: Tree, found: CocoFiles, kinds: Sequence[str], given: Mapping[str, str]
) -> Iterator[Recognized]:
    """Yield one reading of all files, or where they name no splits one of each."""
    layout, serves = found.layout, {"semantic"}
    if layout == "coco":
        serves = {"boxes"}
        serves |= {"masks"} if found.has_masks else set()
        serves |= {"keypoints"} if found.has_keypoints else set()
        layout = "coco" if "detection" in kinds else "coco_instances"
    splits = []
    for name in order_splits(found.files):
        file = found.files[name]
        source: dict[str, str] = {"root": str(tree.root), "layout": layout, **given}
        source |= {"split": name, "annotation_file": file}
        folders = list_mask_folders(tree, file) if layout == "coco_panoptic" else []
        source |= {"mask_folder": folders[0]} if folders else {}
        splits.append(Split(name, found.counts[name], source))
    title = "COCO's panoptic pictures" if layout == "coco_panoptic" else "COCO's annotations"
    groups = [[split] for split in splits] if is_ambiguous(found) else [splits]
    for group in groups:
        evidence = ", ".join(split.source["annotation_file"] for split in group[:3])
        yield Recognized(tree.root, layout, frozenset(serves), tuple(group), (title, evidence))


def _show_option(reading: Recognized) -> str:
    """Return the option that chooses a reading, and what it is."""
    option = f"--layout {reading.layout}"
    if "classes_yaml" in reading.splits[0].source:
        own = reading.splits[0].source["classes_yaml"].splitlines()
        folders = ", ".join(line for line in own if line.startswith(("images:", "masks:")))
        option = f"{CLASSES_FILE} with {folders}"
    file = reading.splits[0].source.get("annotation_file")
    if file is not None and len(reading.splits) == 1:
        option = f"--annotation-file {quote_word(file)}"
    title, evidence, *_ = reading.lines
    images = sum(split.images for split in reading.splits)
    return f"{option:40} {title} ({evidence}), {pluralize(images, 'image')}"


def _make_lines(reading: Recognized, notes: Sequence[str]) -> tuple[str, ...]:
    title, evidence, *remarks = reading.lines
    teaches = " and ".join(sorted(reading.serves)).replace("semantic", "masks of classes")
    first = f"Data: {title} in {reading.root}" + f" ({evidence})" * bool(evidence)
    parts = [
        f"{s.name} {pluralize(s.images, 'image', grouped=True)}" if s.images else s.name
        for s in reading.splits
    ]
    second = f"Found: {', '.join(parts)}; {teaches}."
    third = "; ".join([*notes, *remarks])
    return (first, second, *([third] if third else []))


def _refuse_other_kind(tree: Tree, kind: str) -> None:
    """Raise a `DataError` if the data can teach the other kind of model."""
    other = "segmentation" if kind == "detection" else "detection"
    titles = [known.title for known in list_known_layouts(tree.root, other)]
    titles += [reading.lines[0] for reading in _find_readings(tree, [other], "auto", {})]
    if not titles:
        return
    lacks, tool = ("masks of classes, no boxes", "train_seg")
    if kind == "segmentation":
        lacks, tool = ("boxes only, no outlines", "train_det")
    raise DataError(
        f"{tree.root}: {' and '.join(dict.fromkeys(titles))}, with {lacks}; it can teach what "
        f"tools/{tool}.py trains"
    )
