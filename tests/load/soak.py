"""A long training whose memory, open files and threads are looked at after every 100 steps.

    python tests/load/soak.py FOLDER detection --steps 2000

prints a line each time, and the growth since the warm-up (the first quarter) at the end.
"""

import argparse
import gc
import os
import statistics
import sys
from pathlib import Path

sys.path.extend(map(str, (Path(__file__).parents[1] / "support").glob("**/")))

import lightning.pytorch as pl
from tiny_runs import training_arguments
from tiny_segmenters import segmentation_arguments

EVERY = 100  # steps, an epoch: validation, checkpoint and pictures come after it


def look_at(pid: int | str) -> tuple[int, int, int]:
    """Resident memory (kB), open files and threads of a process."""
    status = Path(f"/proc/{pid}/status").read_text().splitlines()
    memory = next(int(line.split()[1]) for line in status if line.startswith("VmRSS"))
    return memory, len(os.listdir(f"/proc/{pid}/fd")), len(os.listdir(f"/proc/{pid}/task"))


def list_children() -> list[str]:
    """Ids of the loader's workers."""
    own = f"/proc/{os.getpid()}/task"
    return sorted(
        pid for task in os.listdir(own) for pid in Path(own, task, "children").read_text().split()
    )


class Probe(pl.Callback):
    """Takes the place of the lines of each epoch."""

    def __init__(self) -> None:
        self.looks: list[list[tuple[int, int, int]]] = []

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Look at this process and its workers."""
        gc.collect()
        self.looks.append([look_at("self"), *map(look_at, list_children())])
        print(trainer.global_step, *self.looks[-1], flush=True)


def measure_growth(looks: list[list[tuple[int, int, int]]]) -> dict[str, float]:
    """Compare the end with the end of the warm-up: memory as a share, the others as numbers."""
    quarter = max(1, len(looks) // 4)
    names = ("main", *(f"worker {n}" for n in range(1, len(looks[-1]))))
    growth: dict[str, float] = {}
    for n, name in enumerate(names):
        early, late = (
            [look[n] for look in part] for part in (looks[quarter : 2 * quarter], looks[-quarter:])
        )
        growth[f"{name} memory"] = (
            statistics.median(a for a, *_ in late) / statistics.median(a for a, *_ in early) - 1
        )
        growth[f"{name} files"] = max(b for _, b, _ in late) - max(b for _, b, _ in early)
        growth[f"{name} threads"] = max(c for *_, c in late) - max(c for *_, c in early)
    return growth


def run(folder: Path, task: str, steps: int) -> dict[str, float]:
    """Train a tiny model with two workers; return the growth."""
    from densenet_backbones.data.scenes.generation import generate_scenes
    from densenet_backbones.training import cli, engine

    scenes = generate_scenes(folder / "scenes", train=4 * EVERY, val=20, size=64, seed=0)
    more = ("--data.num_workers", "2", "--run-dir", str(folder / f"run_{task}"))
    probe = Probe()
    engine.EpochLines = lambda *args, **kwargs: probe
    if task == "detection":
        cli.train_det(training_arguments(scenes, *more, epochs=steps // EVERY))
    else:
        cli.train_seg(segmentation_arguments(scenes / "VOC", *more, epochs=steps // EVERY))
    return measure_growth(probe.looks)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("task", choices=("detection", "segmentation"))
    parser.add_argument("--steps", type=int, default=2000)
    options = parser.parse_args()
    for name, value in run(options.folder, options.task, options.steps).items():
        print(f"{name}: {value:+.2%}" if name.endswith("memory") else f"{name}: {value:+.0f}")
