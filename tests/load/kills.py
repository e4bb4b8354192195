"""Trainings that are killed at random and at chosen instants, and resumed.

    python tests/load/kills.py FOLDER --kills 50

Detection and segmentation, with and without loader workers, in turn: half of the kills come while
a file is written, flushed or renamed, the others at any time. TMPDIR is on another file system than
FOLDER where /dev/shm is one. Each run that goes on must end bit by bit as one that was not killed.
"""

import argparse
import itertools
import os
import random
import sys
import tempfile
from pathlib import Path

sys.path.extend(map(str, (Path(__file__).parents[1] / "support").glob("**/")))

from killed_runs import FILES, KINDS, KilledRuns

CASES = [(command, workers) for command in ("train_det", "train_seg") for workers in (0, 2)]


def kill(folder: Path, temporary: Path, kills: int, seed: int) -> tuple[int, int]:
    """Kill and resume runs until so many were killed; return that number, and of those resumed."""
    from densenet_backbones.data.scenes.generation import generate_scenes

    scenes = generate_scenes(folder / "scenes", train=12, val=7, size=64, seed=0, progress=False)
    chance, runs = random.Random(seed), {}
    for command, workers in CASES:
        own = folder / f"{command}_{workers}"
        own.mkdir()
        runs[command, workers] = KilledRuns(command, workers, scenes, own, temporary)
    killed = resumed = 0
    cases = enumerate(itertools.cycle(CASES))
    while killed < kills:
        number, case = next(cases)
        stop = {"seconds": chance.uniform(0, runs[case].seconds)}
        if number // len(CASES) % 2:
            stop = {"instant": (chance.choice(KINDS), chance.randint(1, FILES))}
        was_killed, was_resumed = runs[case].kill_and_resume(stop)
        killed, resumed = killed + was_killed, resumed + (was_killed and was_resumed)
        end = ("resumed" if was_resumed else "no checkpoint yet") if was_killed else "not killed"
        print(*case, "workers", stop, end, flush=True)
    return killed, resumed


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path, help="a new folder")
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    options.folder.mkdir(parents=True)
    shared = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=shared if shared.is_dir() else None) as name:
        is_other = os.stat(name).st_dev != os.stat(options.folder).st_dev
        print("TMPDIR is on", "another" if is_other else "the same", "file system")
        killed, resumed = kill(options.folder, Path(name), options.kills, options.seed)
    print(f"{killed} killed, {resumed} of them resumed from a checkpoint, all ended the same")
