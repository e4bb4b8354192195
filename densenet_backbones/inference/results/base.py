"""Parts that all results share: their image, their pictures, and files by suffix."""

import importlib
import io
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import numpy as np
from PIL import Image

from densenet_backbones.file_writing import replace_file, save_text
from densenet_backbones.inference.inputs.image_tensors import ReadImage
from densenet_backbones.messages import check_choice
from densenet_backbones.reporting.legends import draw_legend

LARGEST_PICTURE = 4096
"""Most pixels of the longer side of a picture; masks have the image's own size."""

_LARGEST_IN_NOTEBOOK = 1024
_PICTURES = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}


class Row(Protocol):
    """Object or class of a result, a named tuple."""

    _fields: tuple[str, ...]


class ImageResult:
    """Result of one image; `Detections` and `Segmentation` are its kinds.

    Attributes:
        image: The image that it is of, or None where it was made without one.
    """

    image: ReadImage | None

    def __len__(self) -> int:
        raise NotImplementedError

    def _rows(self) -> Iterator[Any]:
        """Yield a named tuple for each row of `to_pandas`."""
        raise NotImplementedError

    def _draw(self, image: ReadImage) -> np.ndarray:
        """Return the image with the result on it."""
        raise NotImplementedError

    def _texts(self) -> dict[str, Any]:
        """Return the functions that make a text file of the result, by suffix."""
        raise NotImplementedError

    def count_classes(self) -> dict[str, str]:
        """Return a short text about each class that was found, for legends."""
        raise NotImplementedError

    def _colors(self) -> dict[str, tuple[int, int, int]]:
        """Return the color of each class in pictures."""
        raise NotImplementedError

    @property
    def file(self) -> str:
        """File or address of the image; empty for pixels of a program."""
        return self.image.name if self.image else ""

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) of the image in pixels."""
        return self._require_image().size

    def _require_image(self) -> ReadImage:
        if self.image is None:
            raise ValueError("this result was made without an image, so there is nothing to draw")
        return self.image

    def plot(self, legend: bool = True, largest: int = LARGEST_PICTURE) -> np.ndarray:
        """Draw the result on its image.

        Args:
            legend: List the classes and their numbers in a corner.
            largest: Most pixels of the picture's longer side; larger images are halved.

        Returns:
            (h, w, 3) uint8 RGB; ``PIL.Image.fromarray`` makes a picture of it.
        """
        picture = self._draw(self._require_image().read_for_picture(largest))
        return draw_legend(picture, self.count_classes(), self._colors()) if legend else picture

    def save(self, path: str | Path) -> Path:
        """Write the result as a file of the kind that its name ends with.

        Args:
            path: A picture (``.png``, ``.jpg``, ``.webp``), ``.json``, ``.csv``, or, of detections,
                VOC's ``.xml`` and YOLO's ``.txt``. Written whole or not at all.

        Returns:
            The path.

        Raises:
            ValueError: Another suffix.
        """
        path = Path(path)
        suffix, texts = path.suffix.lower(), self._texts()
        check_choice(f"the suffix of {path}", suffix, [*_PICTURES, *texts])
        if suffix in texts:
            save_text(path, texts[suffix]())
            return path
        with replace_file(path) as draft, draft.open("wb") as file:
            Image.fromarray(self.plot()).save(file, format=_PICTURES[suffix])
        return path

    def to_pandas(self) -> Any:
        """Return a ``pandas.DataFrame`` with a row for each object or class of a segmentation.

        Raises:
            ModuleNotFoundError: pandas is not installed.
        """
        rows = [row._asdict() for row in self._rows()]
        pandas = import_extra("pandas", "to_pandas()")
        return pandas.DataFrame(rows, columns=list(self.columns()))

    def columns(self) -> Iterable[str]:
        """Return the names of the columns of `to_pandas`."""
        raise NotImplementedError

    def __repr__(self) -> str:
        classes = ", ".join(f"{count} {name}" for name, count in self.count_classes().items())
        of = f" of {self.file}" if self.file else ""
        return f"{type(self).__name__}{of}: {classes or 'nothing'}"

    def _repr_png_(self) -> bytes | None:
        """Return the picture that a notebook shows."""
        if self.image is None:
            return None
        buffer = io.BytesIO()
        Image.fromarray(self.plot(largest=_LARGEST_IN_NOTEBOOK)).save(buffer, format="PNG")
        return buffer.getvalue()


def import_extra(package: str, what: str) -> ModuleType:
    """Import a package that no extra of ours brings.

    Raises:
        ModuleNotFoundError: It is not installed; says the command that does it.
    """
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"{what} needs {package}: pip install {package}") from error
