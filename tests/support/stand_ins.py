"""Stand-ins for timm and this package that import in no time, and interpreters to run them."""

import os
import subprocess
import sys
from pathlib import Path

TIMM = {
    "timm/__init__.py": "from .models import NAMES\nfrom .models import create_model\n",
    "timm/models.py": "NAMES = []\n"
    "def create_model(name):\n"
    "    if name not in NAMES:\n"
    "        raise RuntimeError(f'Unknown model ({name})')\n"
    "    return name\n",
}
# It takes timm as a whole, and would be seen to register a name twice.
PACKAGE = {"densenet_backbones/__init__.py": "import timm\ntimm.NAMES.append('ours')\n"}

UNWANTED = ("PYTHONPATH", "PYTHONSAFEPATH", "PYTHONWARNINGS", "DENSENET_BACKBONES_HOOK")


def environment(**variables: str) -> dict[str, str]:
    """That of the tests without what steers Python's imports and warnings."""
    return {key: value for key, value in os.environ.items() if key not in UNWANTED} | variables


def write(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def make_venv(home: Path, files: dict[str, str]) -> tuple[Path, Path]:
    """Interpreter and site directory of a new virtual environment that holds nothing but files."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", home], check=True)
    (folder,) = [*home.glob("lib/python*/site-packages"), *home.glob("Lib/site-packages")]
    (interpreter,) = [*home.glob("bin/python"), *home.glob("Scripts/python.exe")]
    return interpreter, write(folder, files)


def python(
    executable: Path, *arguments: str, path: Path | None = None, **variables: str
) -> subprocess.CompletedProcess:
    """Run an interpreter, with a folder on its path, where it finds nothing else of ours."""
    if path is not None:
        variables["PYTHONPATH"] = str(path)
    return subprocess.run(
        [str(executable), *arguments],
        cwd=executable.parent,
        env=environment(**variables),
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
