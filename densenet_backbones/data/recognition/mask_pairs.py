"""Finds folders of images and of masks whose files share their names, and proposes their classes.

Partners lie in two folders whose paths differ (`imgs` and `masks`, `train/image` and
`train/label`), or in one folder where masks have a suffix (`a.jpg` and `a_mask.png`). A folder
holds masks if its pictures have few values: a channel of numbers, a palette, or few colors.
"""

import itertools
import json
import re
from collections import Counter, defaultdict
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np

from densenet_backbones.data.faults import DataError
from densenet_backbones.data.files import quote, spread
from densenet_backbones.data.images import open_image
from densenet_backbones.data.masks.code import (
    WITHOUT_ALPHA,
    pack_color,
    pack_colors,
    unpack_color,
)
from densenet_backbones.data.readers.masks.classes_file import CLASSES_FILE
from densenet_backbones.data.readers.masks.files import MASK_SUFFIXES
from densenet_backbones.data.recognition.splits import WHOLE, find_split_word
from densenet_backbones.data.recognition.tree import Tree
from densenet_backbones.messages import pluralize

_MASK_WORD = re.compile(r"mask|label|annot|seg|gt|truth|target", re.I)
_MOST_PATTERNS = 40  # of folders, each pair of which is compared
_SHARE = 0.5  # of the masks' names that images must have
_MOST_VALUES = 100  # of masks: photographs have thousands of colors
_LEVEL = 64  # smallest value of a mask that is a level of gray rather than the id of a class
_LOOKED_AT = 300  # masks whose values are read: a thirtieth of a second each, when large


@dataclass(frozen=True)
class MaskPairs:
    """Images and masks that share their names.

    Attributes:
        classes_yaml: Content of a `classes.yaml` that says how they are read.
        splits: Number of images of each split.
        evidence: The folders, for people.
        blur: Clause that says how masks that look black and white with blurred edges are mended;
            empty where they do not.
        left_out: Clause that names the images' masks that are passed over; empty without any.
    """

    classes_yaml: str
    splits: Mapping[str, int]
    evidence: str
    blur: str = ""
    left_out: str = ""


@dataclass(frozen=True)
class _Pair:
    """Patterns of the two folders, the suffix of masks, and the masks of each split by name.

    The `others` are further pictures of the masks' folder that begin as an image is named, and the
    images of splits that are `bare` have no masks.
    """

    images: str
    masks: str
    suffix: str
    files: Mapping[str, Sequence[str]]
    others: Sequence[str] = ()
    bare: Sequence[str] = ()


@dataclass(frozen=True)
class _Values:
    """Values of masks with their colors where they have some, and their numbers of pixels."""

    colors: Mapping[int, tuple[int, int, int] | None]
    counts: Mapping[int, int]


def find_mask_pairs(tree: Tree) -> list[MaskPairs]:
    """Look for images with masks; several where more than one folder may be that of the masks."""
    found = []
    for pair in _list_pairs(tree):
        values = _read_values(tree, pair)
        if not isinstance(values, str):
            splits = {split: len(names) for split, names in pair.files.items()}
            where = f"{pair.images} and {pair.masks}" if pair.images != pair.masks else pair.images
            evidence = f"{where}, masks end in {pair.suffix}" if pair.suffix else where
            evidence += f", no masks of {' and '.join(pair.bare)}" if pair.bare else ""
            text = _write_yaml(pair, values.colors)
            blur, left_out = _remark_on_blur(values.counts), _remark_on_others(pair)
            found.append(MaskPairs(text, splits, evidence, blur, left_out))
    return found


def explain_refused_masks(tree: Tree) -> Iterator[str]:
    """Yield why pictures that are named as masks are taken for none."""
    for pair in _list_pairs(tree):
        why = _read_values(tree, pair)
        if isinstance(why, str) and _is_named(pair):
            yield f"the pictures in {pair.masks} {why}"


def _list_pairs(tree: Tree) -> list[_Pair]:
    """List the pairs of folders that files' names make, whatever the pictures hold."""
    folders: dict[str, dict[str, dict[str, str]]] = defaultdict(dict)
    for name in sorted({*tree.images, *tree.list_with(*MASK_SUFFIXES)}):
        path = PurePosixPath(name)
        pattern, split = _make_pattern(str(path.parent))
        folders[pattern].setdefault(split, {})[path.stem] = name
    if len(folders) > _MOST_PATTERNS:
        return []
    pairs = [
        *itertools.chain(*(_pair_within(p, splits) for p, splits in folders.items())),
        *itertools.chain(
            *(_pair_between(a, b, folders) for a, b in itertools.permutations(folders, 2))
        ),
    ]
    # Drawn pictures have few colors, too: then names say which of the two are masks.
    both = {(p.images, p.masks) for p in pairs}
    return [p for p in pairs if _is_named(p) or (p.masks, p.images) not in both]


def _is_named(pair: _Pair) -> bool:
    return bool(_MASK_WORD.search(pair.suffix or _name_masks(pair)))


def _name_masks(pair: _Pair) -> str:
    """Return what the path of the masks has and that of the images has not."""
    shared = set(PurePosixPath(pair.images).parts)
    return "/".join(part for part in PurePosixPath(pair.masks).parts if part not in shared)


def find_lossy_masks(tree: Tree) -> str | None:
    """Return a folder of JPEG pictures that seem to be masks, by its name and theirs."""
    stems: dict[str, set[str]] = defaultdict(set)
    for name in tree.list_with(".jpg", ".jpeg"):
        stems[str(PurePosixPath(name).parent)].add(PurePosixPath(name).stem)
    for masks, images in itertools.permutations(list(stems)[:_MOST_PATTERNS], 2):
        shared = len(stems[masks] & stems[images])
        if _MASK_WORD.search(masks.rpartition("/")[2]) and shared > _SHARE * len(stems[masks]):
            return masks
    return None


def _make_pattern(folder: str) -> tuple[str, str]:
    """Return a folder with {split} where it names the split, and the split."""
    parts = folder.split("/")
    for n in reversed(range(len(parts))):
        word = find_split_word(f"{parts[n]}/_")
        if word is not None:
            parts[n] = re.sub(rf"(?<![^\W_]){re.escape(word)}(?![^\W_])", "{split}", parts[n])
            return "/".join(parts), word
    return folder, WHOLE


def _pair_within(pattern: str, splits: Mapping[str, Mapping[str, str]]) -> Iterator[_Pair]:
    """Yield the pair of a folder whose masks have a suffix."""
    suffixes: Counter[str] = Counter()
    for names in splits.values():
        for stem, name in names.items():
            if name.lower().endswith(MASK_SUFFIXES):
                suffixes.update(_list_ends(stem, names))
    for suffix, _ in suffixes.most_common(1):
        files = {
            split: [names[s] for s in names if s.endswith(suffix) and s[: -len(suffix)] in names]
            for split, names in splits.items()
        }
        images = sum(not s.endswith(suffix) for names in splits.values() for s in names)
        if sum(map(len, files.values())) >= _SHARE * images:
            yield _Pair(pattern, pattern, suffix, files)


def _pair_between(
    images: str, masks: str, folders: Mapping[str, Mapping[str, Mapping[str, str]]]
) -> Iterator[_Pair]:
    """Yield the pair of two folders, the second of which may hold the masks of the first."""
    own, other = folders[images], folders[masks]
    if not set(other) <= set(own):
        return
    bare = [split for split in own if split not in other]
    files: dict[str, list[str]] = {}
    for suffix in ("", *_list_suffixes(own, other)):
        files = {
            split: [
                other[split][stem + suffix]
                for stem in own[split]
                if other[split].get(stem + suffix, "").lower().endswith(MASK_SUFFIXES)
            ]
            for split in other
        }
        total = sum(len(names) for names in other.values())
        if sum(map(len, files.values())) > _SHARE * total:
            others = _list_others(own, other, files) if suffix else ()
            yield _Pair(images, masks, suffix, files, others, bare)
            return


def _list_suffixes(
    own: Mapping[str, Mapping[str, str]], other: Mapping[str, Mapping[str, str]]
) -> list[str]:
    """Return the suffix that some of the masks' names have behind images' names."""
    suffixes: Counter[str] = Counter()
    for split, names in other.items():
        for stem in list(names)[:100]:
            suffixes.update(_list_ends(stem, own[split]))
    return [suffix for suffix, _ in suffixes.most_common(1)]


def _list_ends(stem: str, images: Container[str]) -> list[str]:
    """Return what a mask's name has behind the name of an image, one for each that it begins as."""
    ends = [n for n, sign in enumerate(stem) if n and sign in "_-. "]
    return [stem[n:] for n in ends if stem[:n] in images]


def _list_others(
    own: Mapping[str, Mapping[str, str]],
    other: Mapping[str, Mapping[str, str]],
    files: Mapping[str, Sequence[str]],
) -> list[str]:
    """List the pictures among masks with a suffix that are of an image, and end otherwise."""
    taken = set().union(*files.values())
    return [
        name
        for split, names in other.items()
        for stem, name in names.items()
        if name not in taken
        and name.lower().endswith(MASK_SUFFIXES)
        and _list_ends(stem, own[split])
    ]


def _remark_on_others(pair: _Pair) -> str:
    """Say which masks of images are passed over; nothing where there are none."""
    if not pair.others:
        return ""
    return (
        f"{pluralize(len(pair.others), 'picture')} left out in {pair.masks}, without the ending "
        f"{pair.suffix}: {quote(pair.others)}; where these are masks as well, make one picture of "
        "all masks of an image"
    )


def _read_values(tree: Tree, pair: _Pair) -> _Values | str:
    """Return the values of masks; a clause that says why where they are none.

    Values are ids, or colors packed into one number.
    """
    masks = [name for names in pair.files.values() for name in names]
    values: dict[int, tuple[int, int, int] | None] = {}
    counts: Counter[int] = Counter()
    kinds: set[bool] = set()  # True for pictures of colors
    for name in spread(masks, _LOOKED_AT):
        try:
            with open_image(tree.root / name) as picture:
                picture.load()
                # Who reads the masks refuses those that are transparent somewhere.
                mode = WITHOUT_ALPHA.get(picture.mode, picture.mode)
                kinds.add(mode == "RGB")
                palette = picture.getpalette("RGB") if mode == "P" else None
                if mode == "RGB":
                    raw = pack_colors(np.asarray(picture.convert("RGB")))
                elif mode in ("P", "L", "1") or mode.startswith("I"):
                    raw = np.asarray(picture if mode == picture.mode else picture.convert(mode))
                else:
                    return f"are of Pillow's mode {mode!r}: save masks as gray or RGB"
        except DataError:
            continue  # the reader says what is wrong with it
        for value, count in zip(*np.unique(raw, return_counts=True), strict=True):
            value, color = int(value), None
            if palette is not None and 3 * value + 2 < len(palette):
                red, green, blue = palette[3 * value : 3 * value + 3]
                color = red, green, blue
            values.setdefault(value, unpack_color(value) if True in kinds else color)
            counts[value] += int(count)
        if len(kinds) > 1:
            return "are gray in part and in part of colors: save all masks in one of the two"
        if len(values) > _MOST_VALUES:
            blur = _remark_on_blur(counts)
            return f"have more than {_MOST_VALUES} values" + f", {blur}" * bool(blur)
    return _Values(values, counts) if values else "cannot be read"


def _remark_on_blur(counts: Mapping[int, int]) -> str:
    """Say how masks of black and white with other values at edges are mended; nothing of others."""
    white = 255 if max(counts) <= 255 else pack_color((255, 255, 255))
    others = sorted((n for n in counts if n not in (0, white)), key=lambda n: (-counts[n], n))
    drawn = sum(counts.values()) - counts.get(0, 0)
    is_gray = white == 255 or all(len({*unpack_color(n)}) == 1 for n in others)
    # Ids begin at 1; what begins higher, beside 255, are levels of gray.
    is_level = white == 255 and bool(others) and min(others) >= _LEVEL
    is_white = counts.get(white, 0) > (0 if is_level else drawn / 2)
    if not others or not is_gray or 0 not in counts or not is_white:
        return ""
    shares = ", ".join(f"{n & 255}: {counts[n] / drawn:.1%}" for n in (white, *others)[:5])
    return (
        f"of the pixels above 0 the masks have {shares}{' and so on' * (len(others) > 4)}, as if "
        "255 were a class and other values its blurred edges: if so, save masks anew with 255 for "
        f"128 and more and 0 for less, or give one class the value 255 in {CLASSES_FILE} and list "
        "the others as ignored"
    )


def _write_yaml(pair: _Pair, values: Mapping[int, tuple[int, int, int] | None]) -> str:
    """Write the `classes.yaml` that says what was found; JSON is YAML, too."""
    colored = all(color is not None for color in values.values()) and max(values) > 255
    ignored = [255] if 255 in values and len(values) > 2 and not colored else []
    classes: list[dict[str, object]] = []
    two = len(values) == 2 and 0 in values
    for value in sorted(values):
        if value in ignored:
            continue
        color, name = values[value], f"class {value}"
        if colored and color is not None:
            name = "class #{:02x}{:02x}{:02x}".format(*color)
        if value == 0 or two:
            name = "foreground" if value else "background"
        entry: dict[str, object] = {"name": name, "id": len(classes) if colored else value}
        classes.append({**entry, "color": list(color)} if color is not None else entry)
    lines = [f"  - {json.dumps(entry)}" for entry in classes]
    ending = {"ignored": ignored, "values": "colors" if colored else "ids"}
    ending |= {"images": pair.images, "masks": pair.masks}
    ending |= {"mask_suffix": pair.suffix} if pair.suffix else {}
    return "\n".join(
        ["classes:", *lines, *(f"{key}: {json.dumps(value)}" for key, value in ending.items()), ""]
    )
