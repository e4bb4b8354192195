"""Peers' tests, asked about our names: ``python tests/peers/run.py [timm] [smp] [torchvision]``.

- **timm**: its ``tests/test_models.py``, from the source distribution of the installed version,
  which pip fetches; see `timm_plugin`.
- **smp**: `smp_contract`, **torchvision**: `torchvision_contract`, since neither publishes those
  tests.

What stands behind ``--`` goes to pytest, such as ``-k densenet121``.
"""

import os
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

HERE = Path(__file__).resolve().parent
PROJECT = HERE.parents[1]

SUITES = ("timm", "smp", "torchvision")

# Tests that are left out, with the reason: at most five.
SKIPPED = {
    "test_models.py::test_feature_getter_stage_ends_torchscript": "timm types ten nets there, no "
    "densenet, and leaves its densenets out of TorchScript; ours script as feature nets",
    "test_models.py::test_model_forward_torchscript_with_features_fx": "timm types one net there; "
    "its own densenets take feature_cls='fx' and no feature_cfg either",
    "smp_contract.py::test_what_torch_does_with_a_model[script-unetplusplus]": "TorchScript "
    "refuses smp's decoder, with smp's own encoders too: it finds its blocks by f-strings",
    "smp_contract.py::test_what_torch_does_with_a_model[script-dpt]": "TorchScript refuses smp's "
    "encoder of DPT, with timm's own nets too",
}


def fetch_timm(folder: Path) -> Path:
    """Fetch timm's source distribution and return its test file."""
    name = f"timm-{version('timm')}"
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary=:all:"]
    subprocess.run([*pip, name.replace("-", "=="), "--dest", str(folder)], check=True)
    with tarfile.open(folder / f"{name}.tar.gz") as archive:
        archive.extractall(folder, filter="data")
    return folder / name / "tests" / "test_models.py"


def run_pytest(file: Path, arguments: Sequence[str]) -> int:
    """Run pytest on a file, apart from the project's own options, and return its exit code."""
    paths = [PROJECT, HERE, *(PROJECT / "tests" / "support").glob("**/")]
    skips = [word for test in SKIPPED for word in ("--deselect", test)]
    command = [sys.executable, "-m", "pytest", str(file), "-c", os.devnull, "--rootdir"]
    command += [str(file.parent), "-p", "no:cacheprovider", "-p", "no:warnings", "-q", *skips]
    if file.name == "test_models.py":
        command += ["-p", "timm_plugin"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths))}
    return subprocess.run([*command, *arguments], env=environment, check=False).returncode


def main(arguments: Sequence[str]) -> int:
    """Run the suites that are named, or all; return 1 if one fails."""
    end = arguments.index("--") if "--" in arguments else len(arguments)
    names, for_pytest = arguments[:end], arguments[end + 1 :]
    unknown = [name for name in names if name not in SUITES]
    if unknown:
        print(f"there is no suite {unknown[0]}; choose of {', '.join(SUITES)}", file=sys.stderr)
        return 2
    codes = []
    with tempfile.TemporaryDirectory() as folder:
        for name in names or SUITES:
            file = fetch_timm(Path(folder)) if name == "timm" else HERE / f"{name}_contract.py"
            codes.append(run_pytest(file, for_pytest))
    return int(any(codes))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
