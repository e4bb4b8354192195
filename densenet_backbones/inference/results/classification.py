"""Classes of one image: each with the probability that the model gives it.

Legend: K classes.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from densenet_backbones.inference.inputs.image_tensors import ReadImage
from densenet_backbones.inference.results import formats
from densenet_backbones.inference.results.base import ImageResult
from densenet_backbones.reporting.colors import RGB, get_class_color

SHOWN = 5
"""Classes of an image that pictures and files name."""


class ClassProbability(NamedTuple):
    """Class and its probability.

    Attributes:
        name: Name of the class.
        label: Its place in `Classification.names`.
        score: Probability in [0, 1].
    """

    name: str
    label: int
    score: float


@dataclass(frozen=True, eq=False, repr=False)
class Classification(ImageResult):
    """Classes of one image, the most probable first.

    Iterating yields a `ClassProbability` for each class, ``result[0]`` is the best one, and
    ``result["cat"]`` the probability of a class.

    Attributes:
        scores: (K,) float32, which sum up to 1.
        names: K class names.
        image: The image.
    """

    scores: np.ndarray
    names: tuple[str, ...]
    image: ReadImage | None = None

    def __len__(self) -> int:
        return len(self.names)

    def __iter__(self) -> Iterator[ClassProbability]:
        for label in np.argsort(-self.scores, kind="stable").tolist():
            yield ClassProbability(self.names[label], label, float(self.scores[label]))

    _rows = __iter__

    def __getitem__(self, key: int | str) -> Any:
        """Return the `ClassProbability` at a place, or the probability of a named class.

        Raises:
            KeyError: The model has no such class.
        """
        if isinstance(key, str):
            if key not in self.names:
                raise KeyError(f"the model has no class {key!r}, it has {', '.join(self.names)}")
            return float(self.scores[self.names.index(key)])
        return list(self)[key]

    @property
    def name(self) -> str:
        """Name of the most probable class."""
        return self.names[int(self.scores.argmax())]

    @property
    def score(self) -> float:
        """Probability of the most probable class."""
        return float(self.scores.max())

    def top(self, number: int = SHOWN) -> list[ClassProbability]:
        """Return the most probable classes, none of probability 0."""
        return [row for row in self if row.score > 0][:number]

    def count_classes(self) -> dict[str, str]:
        """Return the probability of the most probable classes, for legends."""
        return {row.name: f"{row.score:.1%}" for row in self.top()}

    def _colors(self) -> dict[str, RGB]:
        return {row.name: get_class_color(row.label + 1) for row in self.top()}

    def columns(self) -> tuple[str, ...]:
        """Return the names of the columns of `to_pandas`."""
        return ClassProbability._fields

    def _draw(self, image: ReadImage) -> np.ndarray:
        return image.pixels

    def _texts(self) -> dict[str, Any]:
        return {
            ".json": lambda: formats.dump(describe_classes(self)),
            ".csv": lambda: format_classes(self, with_header=True),
        }


def describe_classes(result: Classification) -> list[dict[str, Any]]:
    """Return the most probable classes of an image for JSON."""
    return [{**row._asdict(), "score": round(row.score, 6)} for row in result.top()]


def describe_classification(
    result: Classification, picture: str | None, frame: int | None = None
) -> dict[str, Any]:
    """Return the entry of an image in ``predictions.json``."""
    entry: dict[str, Any] = {"file": result.file}
    entry |= {} if frame is None else {"frame": frame}
    entry |= {"class": result.name, "score": round(result.score, 6)}
    return {**entry, "classes": describe_classes(result), "picture": picture}


def format_classes(
    result: Classification, frame: int | None = None, *, with_header: bool = False
) -> str:
    """Return a line of CSV: file, frame, the most probable class and its probability."""
    rows: list[tuple[object, ...]] = [("file", "frame", "class", "score")] * with_header
    number = "" if frame is None else frame
    rows.append((result.file, number, result.name, f"{result.score:.6f}"))
    return formats.format_rows(rows)
