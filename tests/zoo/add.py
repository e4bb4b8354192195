"""Adds tiny trainings of the present version to the zoo: ``python tests/zoo/add.py 0.2.0``.

To be run once a release; `test_zoo.py` holds from then on that later versions load, evaluate and
resume them. An entry is a folder named by its version with ``det.tar.xz`` and ``seg.tar.xz``: of a
run of one epoch what is needed to go on with it, and its results on `scenes.tar.xz`.
"""

import argparse
import json
import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

ZOO = Path(__file__).resolve().parent
PROJECT = ZOO.parents[1]

# Few tensors: each takes more room in a checkpoint than the few numbers in it.
BODY = {"growth_rate": 2, "block_config": [1, 1, 1, 1], "num_init_features": 2}
MODELS = {
    "det": (
        ("--model.detector", "dsod_tiny"),
        {"image_size": 64, "backbone_kwargs": BODY, "adapter_channels": [1, 1, 1, 1]},
    ),
    "seg": (
        ("--model.segmenter", "fcdensenet56", "--model.loss", '{"terms": {"cross_entropy": 1.0}}'),
        {"growth_rate": 2, "block_config": [1, 1, 1], "num_init_features": 4},
    ),
}
DATA = {"det": "scenes", "seg": "scenes/VOC"}
IMAGE = "scenes/val/val_000002.jpg"
OPTIMIZERS = {
    "det": ("--model.optimizer", '{"name": "momentum", "lr": 0.01}', "--ema_decay", "null"),
    "seg": ("--model.optimizer", '{"name": "adamw", "lr": 0.01}', "--ema_decay", "0.9"),
}
# Of a run: where it goes on, what predicts, and what it reached.
KEPT = (
    "config.yaml",
    "checkpoints/last.ckpt",
    "model.safetensors",
    "evaluation/metrics.json",
    "scores.json",
)


def list_arguments(kind: str) -> list[str]:
    """List the training's arguments: no default of a later version shall change it."""
    model, args = MODELS[kind]
    crop = ("--data.crop", "[64, 64]") if kind == "seg" else ()
    return [
        *("--config", "quickstart", "--data", DATA[kind]),
        *("--epochs", "1", "--batch-size", "2", "--run-dir", kind),
        *(*model, "--model.args", json.dumps(args), *crop),
        *(*OPTIMIZERS[kind], "--model.schedule", '{"name": "cosine", "warmup": 0.1}'),
        *("--data.augmentation", "light", "--data.num_workers", "0"),
        *("--trainer.accelerator", "cpu", "--trainer.devices", "1"),
        *("--trainer.check_val_every_n_epoch", "1", "--trainer.log_every_n_steps", "1"),
        *("--trainer.num_sanity_val_steps", "0", "--trainer.enable_progress_bar", "false"),
        *("--trainer.precision", "32-true", "--trainer.accumulate_grad_batches", "1"),
    ]


def unpack(archive: Path, folder: Path) -> None:
    """Unpack an archive of the zoo into a folder."""
    with tarfile.open(archive) as file:
        file.extractall(folder, filter="data")


def pack(archive: Path, folder: Path, names: list[str]) -> None:
    """Pack files below a folder, without times and owners."""
    with tarfile.open(archive, "w:xz") as file:
        for name in names:
            entry = file.gettarinfo(folder / name, name)
            entry.uid = entry.gid = entry.mtime = 0
            entry.uname = entry.gname = ""
            with (folder / name).open("rb") as content:
                file.addfile(entry, content)


def compute_scores(folder: Path, kind: str) -> list[float]:
    """Compute some scores of a run's model file on an image: the best boxes', or some pixels'."""
    from densenet_backbones import load

    model = load(folder / kind / "model.safetensors")
    if kind == "det":
        return [float(score) for score in model.predict(folder / IMAGE, 0.0).scores[:20]]
    return [float(score) for score in model.predict(folder / IMAGE).scores[::9, ::9].ravel()]


def add(version: str, project: Path) -> None:
    """Train a detector and a segmenter by a checkout's tools, and pack their runs."""
    (ZOO / version).mkdir()
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(project), str(ZOO)])}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        unpack(ZOO / "scenes.tar.xz", folder)
        for kind in MODELS:
            tool = [sys.executable, str(project / "tools" / f"train_{kind}.py")]
            training = [*tool, *list_arguments(kind)]
            subprocess.run(training, cwd=folder, env=environment, check=True)
            scores = [sys.executable, "-c", SCORES, name, kind]
            subprocess.run(scores, env=environment, check=True)
            names = [f"{kind}/{file}" for file in KEPT]
            pack(ZOO / version / f"{kind}.tar.xz", folder, names)


# By the version's own code, in a process of its own.
SCORES = """
import json, pathlib, sys
import add
folder = pathlib.Path(sys.argv[1])
scores = add.compute_scores(folder, sys.argv[2])
(folder / sys.argv[2] / "scores.json").write_text(json.dumps(scores))
"""


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("version", help="name of the entry")
    parser.add_argument(
        "--project", type=Path, default=PROJECT, help="checkout of the version, when not this one"
    )
    options = parser.parse_args()
    add(options.version, options.project)
