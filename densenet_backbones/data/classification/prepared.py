"""Folders of small pictures that are made once of other data: whole or not at all.

A folder is named for the data and its content, so that changed data gets a folder of its own.
"""

import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path

import cv2
import numpy as np
from filelock import FileLock

from densenet_backbones.data.files import track_unknown
from densenet_backbones.data.recognition.archives import choose_folder

_NOT_IN_NAMES = '<>:"/\\|?*'  # of folders, on one system or another
LONGEST_NAME = 100


def name_class_folder(name: str) -> str:
    """Return a class's name as that of a folder on any system."""
    plain = "".join("_" if c in _NOT_IN_NAMES or not c.isprintable() else c for c in name)
    return plain.strip(". ")[:LONGEST_NAME] or "_"


def prepare_folder(
    source: Path, name: str, pictures: Iterable[tuple[str, np.ndarray]], text: str
) -> Path:
    """Write pictures as PNG files below one folder, unless that was done before.

    Args:
        source: Data that they are made of; the folder lies beside it, or in the cache where that
            cannot be written.
        name: Name of the folder, which tells its content.
        pictures: Relative name without ending, and (H, W, 3) uint8 RGB, of each.
        text: Text of the spinner.

    Returns:
        The folder.
    """
    folder = choose_folder(source, name)
    with FileLock(folder.with_name(f".{folder.name}.lock")):  # several processes may ask
        if folder.is_dir():
            return folder
        draft = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        try:
            for stem, image in track_unknown(pictures, text):
                target = draft / f"{stem}.png"
                target.parent.mkdir(parents=True, exist_ok=True)
                done, data = cv2.imencode(".png", image[..., ::-1])
                if not done:
                    raise OSError(f"{target}: OpenCV could not encode the picture")
                target.write_bytes(data.tobytes())
            draft.chmod(0o755)
            draft.rename(folder)
        except BaseException:
            shutil.rmtree(draft, ignore_errors=True)
            raise
    return folder
