"""Lists the faults of a data set by kind, with their number and first examples."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from densenet_backbones.data.checks.contents import AnySet
from densenet_backbones.data.checks.remarks import remark_on_data
from densenet_backbones.data.faults import DataError, Problem
from densenet_backbones.data.files import spread
from densenet_backbones.data.mask_samples import SegmentationSet
from densenet_backbones.data.samples import DetectionSet
from densenet_backbones.inspection.looking import Looks, Place
from densenet_backbones.inspection.measuring import MASKS_READ, TINY, list_doubled, list_tiny
from densenet_backbones.inspection.reading import InspectedData

EXAMPLES = 5
_ITEMS = re.compile(r"[\w./\\-]*[/\\][\w./\\-]+|-?\d[\d.x]*(e[+-]?\d+)?|'[^']*'|\"[^\"]*\"")
_IN_BRACKETS = re.compile(r"\([^()]*\)")


@dataclass
class Defect:
    """Fault of one kind.

    Attributes:
        kind: What is wrong.
        count: How many times it is there.
        examples: The first of them.
        is_error: True if it makes training worse; others are worth knowing.
    """

    kind: str
    count: int = 0
    examples: list[str] = field(default_factory=list)
    is_error: bool = True

    def add(self, example: str) -> None:
        """Count one more."""
        self.count += 1
        if len(self.examples) < EXAMPLES:
            self.examples.append(example)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON."""
        return dict(vars(self))


def list_defects(data: InspectedData, looks: Looks) -> list[Defect]:
    """List all kinds of faults, errors first, then the most frequent."""
    kinds: dict[str, Defect] = {}

    def add(kind: str, example: str, is_error: bool = True) -> None:
        kinds.setdefault(kind, Defect(kind, is_error=is_error)).add(example)

    for split, reason in data.refused.items():
        add("a split that cannot be read", f"{split}: {reason}")
    for part in data.parts.values():
        for problem in part.problems:
            add(name_kind(problem), str(problem))
    for image in looks.images:
        if image.fault:
            resized = "images of another size than annotated"
            kind = resized if image.is_resized else "images that cannot be read"
            add(kind, f"{image.path}: {image.fault}")
        elif image.is_turned:
            add("images turned by a camera's tag (EXIF)", str(image.path), False)
    for split, part in data.parts.items():
        for kind, example, is_error in _look_at_annotations(split, part):
            add(kind, example, is_error)
    for kind, example in _list_duplicates(data.parts, looks):
        add(kind, example)
    for line in _remark(data.parts):
        add("what training would warn of", line)
    return sorted(kinds.values(), key=lambda d: (not d.is_error, -d.count))


def name_kind(problem: Problem) -> str:
    """Return the kind of a problem: its first clause without the numbers and names in it."""
    text = _ITEMS.sub("…", problem.what.partition(";")[0].partition(":")[0])
    text = re.sub(r"…([\s,]*…)+", "…", _IN_BRACKETS.sub("", text))
    text = re.sub(r"\s+", " ", re.sub(r" of … pixels", "", text))
    return text.strip(" ,;")[:100] or "other"


def _look_at_annotations(split: str, part: AnySet) -> Iterator[tuple[str, str, bool]]:
    """Yield kind, example and severity of faults that numbers and masks show."""
    if isinstance(part, SegmentationSet):
        for masked in spread(part.records, MASKS_READ):
            try:
                masked.read_mask()
            except DataError as error:
                yield "masks that cannot be used", str(error), True
        return
    bare = [n for n, record in enumerate(part.records) if not len(record.annotations)]
    for n in bare:
        yield "images without objects", f"{split}: {part.records[n].path}", False
    for n, _ in list_tiny(part):
        example = f"{split}: {part.records[n].path}"
        yield f"boxes with a side of less than {TINY} pixels", example, False
    for n, first, second in list_doubled(part):
        record = part.records[n]
        name = part.categories.names[record.labels[first] - 1]
        example = f"{split}: {record.path}: objects {first + 1} and {second + 1} ({name!r})"
        yield "objects that are annotated twice (overlap of 95 % or more)", example, True


def _list_duplicates(parts: Mapping[str, AnySet], looks: Looks) -> Iterator[tuple[str, str]]:
    """Yield kind and example of equal and similar images."""

    def show(place: Place) -> str:
        path: Path = parts[place[0]].records[place[1]].path
        return f"{place[0]}: {path}"

    for places in looks.copies:
        across = len({split for split, _ in places}) > 1
        kind = "images that are in two splits" if across else "copies of an image in one split"
        yield kind, " = ".join(map(show, places[:4]))
    for one, other in looks.alike:
        where = " in two splits" * (one[0] != other[0])
        yield f"near duplicates{where}", f"{show(one)} ~ {show(other)}"


def _remark(parts: Mapping[str, AnySet]) -> Iterator[str]:
    """Yield what a training would say of the data as a whole, but for what is listed already."""
    names = list(parts)
    train = next((n for n in names if n.startswith("train")), names[0])
    val = next((n for n in names if n.startswith("val")), train)
    if isinstance(parts[train], DetectionSet) or val == train or len(parts[train]) <= 500:
        try:
            for line in dict.fromkeys(remark_on_data(parts[train], parts[val])):
                if "training images too" not in line and "several entries" not in line:
                    yield line
        except DataError:  # a fault of a mask, which is listed
            return
