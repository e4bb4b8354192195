"""The launcher against plain Python, and for the scripts it was made for."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from locations import PROJECT
from PIL import Image

from densenet_backbones.run import main

LAUNCHER = ("-m", "densenet_backbones.run")
TIMM_TRAINING = PROJECT / "tests" / "support" / "trainings" / "timm_training.py"


def run_python(folder: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Runs an interpreter in a folder."""
    path = os.pathsep.join([str(PROJECT), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )


PROBE = """\
import __main__, os, sys
def function(): pass
print(sys.argv, sys.path, __name__, os.path.abspath(__file__), __main__.function is function)
sys.stdout.flush()
sys.exit(3)
"""


@pytest.mark.parametrize("place", ["sub/probe.py", "link.py", "-m package.probe"])
def test_a_script_sees_and_returns_what_it_does_under_plain_python(tmp_path, place):
    for name in ("sub/probe.py", "package/probe.py"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text(PROBE)
    (tmp_path / "link.py").symlink_to("sub/probe.py")
    command = (*place.split(), "--model", "x", "-m", "-h", "--", "a b")
    plain, ours = run_python(tmp_path, *command), run_python(tmp_path, *LAUNCHER, *command)
    assert "'--model', 'x', '-m', '-h', '--', 'a b']" in plain.stdout
    assert (ours.stdout, ours.stderr, ours.returncode) == (plain.stdout, "", 3)


def test_an_error_of_the_script_ends_in_its_own_traceback(tmp_path):
    (tmp_path / "fails.py").write_text("def f():\n    raise ValueError('bad')\nf()")
    done = run_python(tmp_path, *LAUNCHER, "fails.py")
    assert done.returncode == 1
    assert 'fails.py", line 2, in f' in done.stderr
    assert done.stderr.endswith("ValueError: bad\n")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "the following arguments are required: SCRIPT"),
        (["-u", "a.py"], "unrecognized arguments: -u"),
        (["missing.py", "-h"], "there is no file 'missing.py'"),
    ],
)
def test_wrong_usage_is_one_sentence(capsys, arguments, sentence):
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 2
    assert sentence in capsys.readouterr().err.splitlines()[-1]


# -- timm's training script ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    """Eight generated images of two classes, in timm's and torchvision's folders."""
    folder = tmp_path_factory.mktemp("images")
    for index in range(8):
        path = folder / "train" / f"class{index % 2}" / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.effect_noise((40, 40), 50 + index).convert("RGB").save(path)
    return folder


def training(images: Path) -> tuple[object, ...]:
    """The command of the module's docstring, on a net that trains in seconds."""
    tiny = ("growth_rate=4", "block_config=(1,1)", "num_init_features=8")
    model = ("--model", "densenet121_features", "--num-classes", "2")
    return (TIMM_TRAINING, images, *model, "--model-kwargs", "features_only=False", *tiny)


@pytest.mark.long
def test_timms_training_script_trains_our_classifier(tmp_path, images):
    plain = run_python(tmp_path, *training(images))
    assert "Unknown model (densenet121_features)" in plain.stderr
    ours = run_python(tmp_path, *LAUNCHER, *training(images))
    assert ours.returncode == 0, ours.stderr
    assert len(ours.stdout.splitlines()) == 4


@pytest.mark.long
def test_it_trains_under_torchrun(tmp_path, images):
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    done = run_python(tmp_path, *torchrun, *LAUNCHER, *training(images))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("loss ") == 4  # two steps on each of two ranks
