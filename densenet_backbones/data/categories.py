"""Classes of detection data in label order: names, the data set's own ids, keypoints.

Legend: K classes including the background, Kp keypoints of an object.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NotRequired, TypedDict, TypeVar

import numpy as np
from torch import Tensor

from densenet_backbones.data.faults import DataError
from densenet_backbones.messages import pluralize
from densenet_backbones.untrusted.limits import MAX_CLASSES, MAX_KEYPOINTS, MAX_NAME

_WORDS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")  # of "left_eye", "LeftEye", "eye L"
_MIRROR = {"left": "right", "right": "left", "l": "r", "r": "l"}

Points = TypeVar("Points", np.ndarray, Tensor)


def check_class_names(names: Sequence[str], most: int) -> None:
    """Refuse no class, too many, or names that are none.

    Args:
        names: Names of classes.
        most: Number that there may be.

    Raises:
        DataError: Says what is wrong.
    """
    if not 1 <= len(names) <= most:
        raise DataError(f"classes must be 1 to {most}, got {len(names)}")
    for name in names:
        if not isinstance(name, str) or not name.strip() or len(name) > MAX_NAME:
            raise DataError(
                f"the name of a class must be a text of 1 to {MAX_NAME} characters, not blanks "
                f"alone, not {name!r:.60}"
            )


def refuse_repeated(what: str, values: Sequence[str] | Sequence[int]) -> None:
    """Raise a `DataError` where a name or an id of a class is there more than once."""
    twice = sorted(value for value, count in Counter[str | int](values).items() if count > 1)
    if twice:
        raise DataError(f"class {what}s must be unique; given twice: {twice[:5]}")


class CategoriesState(TypedDict):
    """Plain form of `Categories`."""

    names: list[str]
    ids: list[int]
    keypoints: NotRequired[list[str]]
    skeleton: NotRequired[list[list[int]]]


@dataclass(frozen=True)
class Categories:
    """Classes of a data set, in label order.

    Label 0 is the background; label ``l`` in ``1 .. len(names)`` is ``names[l - 1]``, known to
    the data set itself as ``ids[l - 1]`` (sparse for COCO, ``1 .. len(names)`` for VOC).

    Attributes:
        names: Names of the classes, unique.
        ids: The data set's own ids of the classes, unique.
        keypoints: Names of an object's keypoints, in the order of their coordinates; empty where
            the data has none, or where its classes have different ones.
        skeleton: Pairs of positions in `keypoints`, from 0, that pictures join by lines.
        keypoint_positions: Position of each keypoint in the data set's own lists, which name the
            same ones in another order; empty where the order is the same.
    """

    names: tuple[str, ...]
    ids: tuple[int, ...]
    keypoints: tuple[str, ...] = ()
    skeleton: tuple[tuple[int, int], ...] = ()
    keypoint_positions: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if len(self.names) != len(self.ids):
            raise DataError(
                f"{pluralize(len(self.names), 'class name')} but {len(self.ids)} class ids"
            )
        check_class_names(self.names, MAX_CLASSES)
        for what, values in (("name", self.names), ("id", self.ids)):
            refuse_repeated(what, values)
        count = len(self.keypoints)
        if count > MAX_KEYPOINTS:
            raise DataError(f"an object may have {MAX_KEYPOINTS} keypoints at most, got {count}")
        if any(not 0 <= end < count for pair in self.skeleton for end in pair):
            raise DataError(
                f"skeleton must join keypoints 0 .. {count - 1}, got {list(self.skeleton)}"
            )
        if self.keypoint_positions and sorted(self.keypoint_positions) != list(range(count)):
            raise DataError(
                f"keypoint_positions must be 0 .. {count - 1} in some order, got "
                f"{list(self.keypoint_positions)}"
            )

    @classmethod
    def from_names(cls, names: Sequence[str]) -> "Categories":
        """Make the classes of a data set that has names only; their ids are ``1 .. len(names)``."""
        if isinstance(names, str) or not all(isinstance(n, str) and n.strip() for n in names):
            raise DataError(f"classes must be a list of names, got {names!r}")
        return cls(tuple(names), tuple(range(1, len(names) + 1)))

    @classmethod
    def from_dict(cls, state: CategoriesState) -> "Categories":
        """Invert `to_dict`."""
        return cls(
            tuple(state["names"]),
            tuple(int(i) for i in state["ids"]),
            tuple(state.get("keypoints", ())),
            tuple((int(a), int(b)) for a, b in state.get("skeleton", ())),
        )

    def to_dict(self) -> CategoriesState:
        """Return plain lists, for checkpoints and JSON; keypoints only where there are some.

        The positions of keypoints are not among them: they tell of one file alone.
        """
        state: CategoriesState = {"names": list(self.names), "ids": list(self.ids)}
        if self.keypoints:
            state["keypoints"] = list(self.keypoints)
            state["skeleton"] = [list(pair) for pair in self.skeleton]
        return state

    @property
    def num_classes(self) -> int:
        """Number of classes including the background, as torchvision's detectors count them."""
        return len(self.names) + 1

    @property
    def mirrored_keypoints(self) -> tuple[int, ...]:
        """Position of the keypoint that each one becomes in a mirror, left and right swapped.

        Sides are read from the names: "left_eye" and "right_eye", "L Hip" and "R Hip", "wrist-l"
        and "wrist-r". A keypoint whose other side has no name stays itself.
        """
        # Names as words, and as words with the sides swapped.
        words = [tuple(_WORDS.findall(name)) for name in self.keypoints]
        sides = [tuple(_swap_side(word.lower()) for word in name) for name in words]
        plain = [tuple(word.lower() for word in name) for name in words]
        # Names that are alike but for case or signs have no clear other side: they stay.
        mirrored = [
            plain.index(side) if side != own and plain.count(side) == plain.count(own) == 1 else n
            for n, (own, side) in enumerate(zip(plain, sides, strict=True))
        ]
        return tuple(mirrored)

    @cached_property
    def _label_of_name(self) -> dict[str, int]:
        return {name: label for label, name in enumerate(self.names, start=1)}

    @cached_property
    def _label_of_id(self) -> dict[int, int]:
        return {category_id: label for label, category_id in enumerate(self.ids, start=1)}

    def label_of_name(self, name: str) -> int:
        """Return the label of a class name; ``KeyError`` where there is none."""
        return self._label_of_name[name]

    def label_of_id(self, category_id: int) -> int:
        """Return the label of the data set's own id; ``KeyError`` where there is none."""
        return self._label_of_id[category_id]

    def labels_of_ids(self, category_ids: np.ndarray) -> np.ndarray:
        """Return the (n,) labels of ids, all of which must be the data set's own."""
        known = np.array(self.ids, np.int64)
        order = np.argsort(known)
        return np.asarray(order[np.searchsorted(known, category_ids, sorter=order)] + 1)

    def id_of_label(self, label: int) -> int:
        """Return the data set's own id of a label in ``1 .. len(names)``, else ``KeyError``."""
        if not 1 <= label <= len(self.ids):
            raise KeyError(label)
        return self.ids[label - 1]

    def name_of_label(self, label: int) -> str:
        """Return the name of a label; label 0 is "background"."""
        return self.names[label - 1] if label else "background"

    def put_in_label_order(self, keypoints: Points) -> Points:
        """Return (..., Kp, 3) keypoints of the data set's own order in the order of the names."""
        positions = self.keypoint_positions
        return keypoints[..., list(positions), :] if positions else keypoints

    def put_in_file_order(self, keypoints: Points) -> Points:
        """Invert `put_in_label_order`."""
        positions = self.keypoint_positions
        return keypoints[..., np.argsort(positions).tolist(), :] if positions else keypoints


def _swap_side(word: str) -> str:
    return _MIRROR.get(word, word)
