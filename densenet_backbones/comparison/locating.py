"""Find the folder of a run, before anything is imported that could read it."""

from pathlib import Path


def find_run(place: str | Path) -> Path:
    """Return the folder of a run.

    Args:
        place: The folder, or a file in it, such as its model.

    Raises:
        ValueError: There is no run; names the place.
    """
    path = Path(place)
    path = path.parent if path.is_file() else path
    path = path.parent if path.name == "checkpoints" else path
    if not path.is_dir() or not any((path / n).is_file() for n in ("summary.json", "config.yaml")):
        raise ValueError(
            f"{place}: is no run (it has neither summary.json nor config.yaml); give the folder "
            "that a training wrote, such as runs/quickstart"
        )
    return path
