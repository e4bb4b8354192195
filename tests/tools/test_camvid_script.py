"""tools/camvid.sh, which makes the README's rows for CamVid, on a tiny folder of that layout."""

import numpy as np
import pytest
from locations import PROJECT
from mask_sets import write_image, write_mask
from row_scripts import rows_of, run_script

from densenet_backbones.training.cli import train_seg


def camvid(*arguments, folder, flags=""):
    return run_script("camvid.sh", *arguments, folder=folder, flags=flags)


@pytest.fixture(scope="module")
def tiny_camvid(tmp_path_factory):
    """Sixteen training and two validation images of 48x64 with masks of 11 classes and void."""
    root = tmp_path_factory.mktemp("CamVid")
    rng = np.random.default_rng(0)
    for part, count in (("train", 16), ("val", 2)):
        for number in range(count):
            mask = rng.integers(0, 12, (48, 64), dtype=np.uint8)
            write_image(root / part / f"{number}.jpg", mask)
            write_mask(root / f"{part}annot" / f"{number}.png", mask, mode="L")
    return root


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """Arguments of each row's training."""
    folder = tmp_path_factory.mktemp("shown")
    return rows_of("camvid.sh", "CamVid", folder=folder, tool="train_seg.py", flags="--epochs 3")


def test_every_row_is_a_training_that_resolves(rows, capsys):
    assert {f"runs/camvid/{name}" for name in ("overfit_unet", "smp_unet", "fcdensenet103")} <= {
        *rows
    }
    for arguments in rows.values():
        with pytest.raises(SystemExit) as stop:
            train_seg([*arguments, "--print_config"])
        shown = capsys.readouterr()
        assert stop.value.code in (0, None), shown.err
        assert "segmenter: " in shown.out
        assert "max_epochs: 3" in shown.out  # FLAGS come last


def test_compared_networks_differ_in_nothing_else(rows):
    texts = [
        (PROJECT / "configs" / "seg" / f"{name}_camvid.yaml").read_text().splitlines()
        for name in ("unet_densenet121", "smp_unet_resnet34")
    ]
    ours, theirs = (
        [line for line in text if not line.startswith(("#", "  segmenter:", "  args:"))]
        for text in texts
    )
    assert ours == theirs


@pytest.mark.long
def test_a_row_makes_its_images_and_trains(tiny_camvid, tmp_path):
    done = camvid(tiny_camvid, "overfit_unet", folder=tmp_path, flags="--dry-run")
    assert done.returncode == 0, done.stderr
    assert "8 images" in done.stdout
    eight = tmp_path / "runs" / "camvid" / "eight"
    assert len(list((eight / "train").iterdir())) == 8
    assert sorted(p.name for p in (eight / "valannot").iterdir()) == sorted(
        p.name for p in (eight / "train").iterdir()
    )


def test_finished_rows_are_left_alone(tiny_camvid, tmp_path):
    finished = tmp_path / "runs" / "camvid" / "unet" / "evaluation" / "metrics.json"
    finished.parent.mkdir(parents=True)
    finished.write_text("{}")
    done = camvid(tiny_camvid, "unet", folder=tmp_path)
    assert (done.returncode, done.stdout) == (0, "runs/camvid/unet is finished\n")


def test_usage(tmp_path):
    wrong = camvid("CamVid", "unett", folder=tmp_path)
    assert wrong.returncode == 2
    assert "there is no row unett; known: overfit_unet" in wrong.stderr
    assert camvid(folder=tmp_path).returncode != 0
