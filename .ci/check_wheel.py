"""Compare a wheel's files with the repository's: ``python .ci/check_wheel.py dist/*.whl``."""

import re
import sys
import zipfile
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[1]
PACKAGE = "densenet_backbones"
# Folder of the repository -> where its files lie in the wheel.
FOLDERS = {PACKAGE: PACKAGE, "heads": f"{PACKAGE}/heads", "configs": f"{PACKAGE}/configs"}
SUFFIXES = {".py", ".cpp", ".h", ".json", ".yaml", ".typed"}
INFO = {"METADATA", "RECORD", "WHEEL", "entry_points.txt", "top_level.txt", "licenses/LICENSE"}


def expected() -> set[str]:
    """Names that the wheel must hold besides its dist-info."""
    link = PROJECT / PACKAGE / "heads"  # its files come by their own folder
    return {
        f"{target}/{path.relative_to(PROJECT / folder).as_posix()}"
        for folder, target in FOLDERS.items()
        for path in (PROJECT / folder).rglob("*")
        if path.suffix in SUFFIXES and link not in path.parents
    }


def differences(wheel: Path) -> list[str]:
    """A line for each file that is missing from the wheel or should not be in it."""
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    inside = {name for name in names if not re.match(rf"{PACKAGE}-[^/]+\.dist-info/", name)}
    info = {name.split("/", 1)[1] for name in names - inside}
    return [
        *(f"missing: {name}" for name in sorted(expected() - inside)),
        *(f"should not be there: {name}" for name in sorted(inside - expected())),
        *(f"dist-info differs: {name}" for name in sorted(info ^ INFO)),
    ]


if __name__ == "__main__":
    problems = differences(Path(sys.argv[1]))
    print("\n".join(problems) or f"{sys.argv[1]}: {len(expected())} files, as in the repository")
    sys.exit(bool(problems))
