"""Finds folders of images and of masks whose files share their names, and proposes their classes.

Partners lie in two folders whose paths differ (`imgs` and `masks`, `train/image` and
`train/label`), or in one folder where masks have a suffix (`a.jpg` and `a_mask.png`). A folder
holds masks if its pictures have few values: a channel of numbers, a palette, or few colors.
"""

import itertools
import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np

from densenet_backbones.data.faults import DataError
from densenet_backbones.data.files import spread
from densenet_backbones.data.images import open_image
from densenet_backbones.data.masks.code import pack_colors, unpack_color
from densenet_backbones.data.readers.masks.files import MASK_SUFFIXES
from densenet_backbones.data.recognition.splits import WHOLE, find_split_word
from densenet_backbones.data.recognition.tree import Tree

_MASK_WORD = re.compile(r"mask|label|annot|seg|gt|truth|target", re.I)
_MOST_PATTERNS = 40  # of folders, each pair of which is compared
_SHARE = 0.5  # of the masks' names that images must have
_MOST_VALUES = 100  # of masks: photographs have thousands of colors
_LOOKED_AT = 300  # masks whose values are read: a thirtieth of a second each, when large


@dataclass(frozen=True)
class MaskPairs:
    """Images and masks that share their names.

    Attributes:
        classes_yaml: Content of a `classes.yaml` that says how they are read.
        splits: Number of images of each split.
        evidence: The folders, for people.
    """

    classes_yaml: str
    splits: Mapping[str, int]
    evidence: str


@dataclass(frozen=True)
class _Pair:
    """Patterns of the two folders, the suffix of masks, and the masks of each split by name."""

    images: str
    masks: str
    suffix: str
    files: Mapping[str, Sequence[str]]


def find_mask_pairs(tree: Tree) -> list[MaskPairs]:
    """Look for images with masks; several where more than one folder may be that of the masks."""
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
    named = [p for p in pairs if _MASK_WORD.search(p.suffix or _name_masks(p))]
    both = {(p.images, p.masks) for p in pairs}
    pairs = [p for p in pairs if p in named or (p.masks, p.images) not in both]
    found = []
    for pair in pairs:
        values = _read_values(tree, [name for names in pair.files.values() for name in names])
        if values is not None:
            splits = {split: len(names) for split, names in pair.files.items()}
            where = f"{pair.images} and {pair.masks}" if pair.images != pair.masks else pair.images
            evidence = f"{where}, masks end in {pair.suffix}" if pair.suffix else where
            found.append(MaskPairs(_write_yaml(pair, values), splits, evidence))
    return found


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
                ends = [n for n, sign in enumerate(stem) if n and sign in "_-. "]
                suffixes.update(stem[n:] for n in ends if stem[:n] in names)
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
    if set(own) != set(other):
        return
    files: dict[str, list[str]] = {}
    for suffix in ("", *_list_suffixes(own, other)):
        files = {
            split: [
                other[split][stem + suffix]
                for stem in own[split]
                if other[split].get(stem + suffix, "").lower().endswith(MASK_SUFFIXES)
            ]
            for split in own
        }
        total = sum(len(names) for names in other.values())
        if sum(map(len, files.values())) > _SHARE * total:
            yield _Pair(images, masks, suffix, files)
            return


def _list_suffixes(
    own: Mapping[str, Mapping[str, str]], other: Mapping[str, Mapping[str, str]]
) -> list[str]:
    """Return the suffix that some of the masks' names have behind images' names."""
    suffixes: Counter[str] = Counter()
    for split, names in other.items():
        for stem in list(names)[:100]:
            ends = [n for n, sign in enumerate(stem) if n and sign in "_-. "]
            suffixes.update(stem[n:] for n in ends if stem[:n] in own[split])
    return [suffix for suffix, _ in suffixes.most_common(1)]


def _read_values(tree: Tree, masks: Sequence[str]) -> dict[int, tuple[int, int, int] | None] | None:
    """Return the values of masks, with their colors where they have some; None if they are none.

    Values are ids, or colors packed into one number.
    """
    values: dict[int, tuple[int, int, int] | None] = {}
    kinds: set[bool] = set()  # True for pictures of colors
    for name in spread(masks, _LOOKED_AT):
        try:
            with open_image(tree.root / name) as picture:
                picture.load()
                kinds.add(picture.mode in ("RGB", "RGBA"))
                palette = picture.getpalette("RGB") if picture.mode == "P" else None
                if picture.mode in ("RGB", "RGBA"):
                    raw = pack_colors(np.asarray(picture.convert("RGB")))
                elif picture.mode in ("P", "L", "1") or picture.mode.startswith("I"):
                    raw = np.asarray(picture)
                else:
                    return None
        except DataError:
            continue  # the reader says what is wrong with it
        for value in np.unique(raw).tolist():
            color = None
            if palette is not None and 3 * value + 2 < len(palette):
                red, green, blue = palette[3 * value : 3 * value + 3]
                color = red, green, blue
            values.setdefault(int(value), unpack_color(value) if True in kinds else color)
        if len(values) > _MOST_VALUES or len(kinds) > 1:
            return None
    return values or None


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
