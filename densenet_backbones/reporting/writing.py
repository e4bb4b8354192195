"""Writing files so that no half of one is ever seen."""

import os
from pathlib import Path


def save_bytes(path: str | Path, content: bytes) -> None:
    """Write a file in one step, so that nobody ever reads half of it; makes its folder.

    Args:
        path: Replaced if it exists; it stays as it was if writing fails.
        content: The whole file.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        partial.write_bytes(content)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
