"""Images that turn out unusable in an epoch: one line, or a substitute; and killed loaders."""

import json
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from attached_trainers import with_trainer
from instance_sets import write_instances
from locations import PROJECT
from mask_sets import some_masks, write_folders
from tiny_runs import training_arguments
from torch.utils.data import Dataset

from densenet_backbones.data.detection import DetectionData
from densenet_backbones.data.faults import DataError
from densenet_backbones.data.images import ImageSizeError
from densenet_backbones.data.loaders.batches import read_batches
from densenet_backbones.data.loaders.guarded import (
    MOST_IN_A_ROW,
    FaultyImage,
    GuardedImages,
    describe_dead_worker,
    notice_dead_workers,
)
from densenet_backbones.data.segmentation import SegmentationData

pytestmark = pytest.mark.usefixtures("empty_figures")


class Numbers(Dataset):
    """Samples of which some cannot be made."""

    def __init__(self, faults, count=10):
        self.faults, self.count = faults, count

    def __len__(self):
        return self.count

    def __getitem__(self, key):
        index = key if isinstance(key, int) else key[1]
        if index in self.faults:
            raise self.faults[index]
        return key


def faulty(*indices):
    return {index: DataError(f"{index}.png: is torn") for index in indices}


def test_training_takes_the_next_usable_image():
    guarded = GuardedImages(Numbers(faulty(3, 9, 0)), "skip")
    assert guarded[2, 1] == (2, 1)
    assert guarded[2, 3].substitute == (2, 4) and str(guarded[2, 3].error) == "3.png: is torn"
    assert guarded[2, 9].substitute == (2, 1)
    assert guarded[9].substitute is None and not guarded[9].is_fatal


@pytest.mark.parametrize(
    "error", [ImageSizeError("a.png: is 3x4"), MemoryError("a.png: no memory")]
)
@pytest.mark.parametrize("key", [(0, 1), (0, 0), 1])
def test_other_faults_than_of_the_file_are_never_passed_over(error, key):
    """Met at once, or in the place of another."""
    guarded = GuardedImages(Numbers({**faulty(0), 1: error}), "skip")
    assert guarded[key].is_fatal and guarded[key].error is error


def test_a_long_row_of_faults_ends_the_run():
    guarded = GuardedImages(Numbers(faulty(*range(5)), count=5), "skip")
    assert guarded[0, 2].is_fatal
    assert (
        str(guarded[0, 2].error)
        == "5 images in a row cannot be used, the first of them: 2.png: is torn"
    )
    guarded = GuardedImages(Numbers(faulty(*range(300)), count=1000), "skip")
    assert f"{MOST_IN_A_ROW} images in a row" in str(guarded[0, 0].error)


# -- the data modules ------------------------------------------------------------------------------


def detection(root, **options):
    write_instances(root, ((24, 36), (40, 20)) * 4, "train")
    write_instances(root, ((24, 36), (40, 20)) * 4, "val")
    return DetectionData(str(root), augmentation="light", batch_size=3, **options)


def segmentation(root, **options):
    for split in ("train", "val"):
        write_folders(root, some_masks(8, (36, 40)), split)
    return SegmentationData(str(root), augmentation="light", crop=(32, 32), batch_size=3, **options)


@pytest.fixture(params=["detection", "segmentation"])
def make(request, tmp_path):
    """Makes data modules whose second image of each split was damaged after the set was read."""

    def build(**options):
        data = globals()[request.param](tmp_path, **options)
        for part in (data.train_set, data.val_set):
            part.records[1].path.write_bytes(b"torn")
        return with_trainer(data)

    return build


def contents(batches):
    return [[(s.index, s.image.sum().item()) for s in batch] for batch in batches]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_fault_is_one_line_whatever_reads_the_image(make, workers):
    data = make(num_workers=workers)
    for loader in (data.train_dataloader(), data.val_dataloader()):
        with pytest.raises(
            DataError, match=r": cannot be read .*; data\.bad_images skip goes on"
        ) as caught:
            list(loader)
        assert "\n" not in str(caught.value) and "Traceback" not in str(caught.value)
        assert not multiprocessing.active_children(), "workers end with the fault"
    assert data.replaced.fatal is not None and data.left_out.fatal is not None


def test_substitutes_depend_on_neither_workers_nor_resuming(make):
    data = make(num_workers=0, bad_images="skip")
    loader = data.train_dataloader()
    loader.epoch_sampler.set_epoch(1)
    whole = contents(loader)
    assert sum(data.replaced.counts.values()) == 1
    (reason,) = data.replaced.counts
    assert str(data.train_set.records[1].path) in reason
    indices = sorted(index for batch in whole for index, _ in batch)
    assert 1 not in indices and indices.count(2) == 2
    again = make(num_workers=2, bad_images="skip")
    loader = again.train_dataloader()
    loader.epoch_sampler.set_epoch(1)
    assert contents(loader) == whole
    for done in (1, 2):
        loader = with_trainer(data, batches=done).train_dataloader()
        loader.epoch_sampler.set_epoch(1)
        assert contents(loader) == whole[done:]


def test_evaluation_leaves_out_what_it_cannot_use(make):
    data = make(num_workers=0, bad_images="skip")
    indices = [index for batch in contents(data.val_dataloader()) for index, _ in batch]
    assert indices == [0, *range(2, 8)]
    assert len(data.left_out.counts) == 1 and not data.replaced.counts


# -- killed loaders --------------------------------------------------------------------------------


KILLED = """
import os, signal, sys
from torch.utils.data import get_worker_info
from densenet_backbones.data import detection_images

# The system kills the process that reads an image, as it does when memory runs out.
read = detection_images.read_reduced_image
def kill(path, *args, **options):
    if get_worker_info() is not None and path.stem.endswith(sys.argv[1]):
        os.kill(os.getpid(), signal.SIGKILL)
    return read(path, *args, **options)
detection_images.read_reduced_image = kill
"""
LOADED = """
from attached_trainers import with_trainer
from densenet_backbones.data.detection import DetectionData
from densenet_backbones.data.loaders.guarded import describe_dead_worker
try:
    data = DetectionData(sys.argv[2], augmentation="light", batch_size=2, num_workers=1)
    list(with_trainer(data).train_dataloader())
except RuntimeError as error:
    print(describe_dead_worker(error, "--data.num_workers", "--batch-size"))
"""


def run(program, *argv, timeout=None):
    """In a process of its own: torch raises the error wherever the main process is."""
    path = os.pathsep.join([str(PROJECT), str(PROJECT / "tests/support/trainings")])
    return subprocess.run(
        [sys.executable, "-c", program, *map(str, argv)],
        env={**os.environ, "PYTHONPATH": path + os.pathsep + os.environ.get("PYTHONPATH", "")},
        capture_output=True,
        text=True,
        check=False,
        timeout=timeout,
    )


def test_a_killed_loader_process_says_what_to_do(tmp_path):
    write_instances(tmp_path, ((24, 36),) * 8)
    done = run(KILLED + LOADED, "3", tmp_path)
    lines = done.stdout.splitlines()
    assert len(lines) == 1 and "as memory ran out" in lines[0], done
    assert "give fewer with --data.num_workers, where 0 loads in the main process" in lines[0]


def test_a_lost_socket_waits_for_the_signal_of_the_death():
    """The signal came while the first error was handled, and ended the run in a traceback."""

    def handle(*args):
        raise RuntimeError("DataLoader worker (pid 1) is killed by signal: Killed.")

    before = signal.signal(signal.SIGALRM, handle)
    try:
        with pytest.raises(RuntimeError, match="is killed by signal"), notice_dead_workers():
            signal.setitimer(signal.ITIMER_REAL, 0.2)
            raise ConnectionResetError(104, "Connection reset by peer")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


ORPHANED = """
import multiprocessing, os, signal
from torch.utils.data import DataLoader
from densenet_backbones.data.loaders.batches import quiet_worker
options = {"num_workers": 1, "multiprocessing_context": "forkserver"}
batches = iter(DataLoader([1, 2, 3, 4], worker_init_fn=quiet_worker, **options))
next(batches)
print(*(process.pid for process in multiprocessing.active_children()), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.long
def test_loader_processes_of_a_server_end_with_a_killed_run():
    """They held the standard output, too, so that whoever reads it waited forever."""
    (pid,) = map(int, run(ORPHANED, timeout=90).stdout.split())
    end = time.monotonic() + 20
    while Path(f"/proc/{pid}").exists() and time.monotonic() < end:
        time.sleep(0.05)
    assert not Path(f"/proc/{pid}").exists()


@pytest.mark.long
def test_training_and_evaluation_end_in_one_line_when_a_loader_is_killed(
    tiny_scenes, tiny_run, tmp_path
):
    options = ("--data.num_workers", "1", "--run-dir", str(tmp_path / "run"))
    train = "from densenet_backbones.training.cli import train_det; train_det(sys.argv[2:])"
    ended = run(KILLED + train, "7", *training_arguments(tiny_scenes, *options))
    errors = [line for line in ended.stderr.splitlines() if line.startswith("error: ")]
    assert ended.returncode == 1 and "Traceback" not in ended.stderr
    assert len(errors) == 1 and "--data.num_workers" in errors[0]
    assert "Stopped at step " in ended.stdout
    evaluate = "from densenet_backbones.training.evaluate import main; main(sys.argv[2:])"
    out = tmp_path / "out"
    model = tiny_run / "model.safetensors"
    argv = (model, "--data", tiny_scenes, "--workers", "1", "--batch-size", "2", "--out", out)
    ended = run(KILLED + evaluate, "7", *argv, "--accelerator", "cpu")
    errors = [line for line in ended.stderr.splitlines() if line.startswith("error: ")]
    assert ended.returncode == 1 and "Traceback" not in ended.stderr
    assert len(errors) == 1 and "--workers" in errors[0]
    json.loads((out / "results.json").read_text())


def test_a_batch_that_died_with_its_process_is_told_alike():
    def batches():
        yield [1]
        raise ConnectionResetError(104, "Connection reset by peer")

    with pytest.raises(RuntimeError) as caught:
        list(read_batches(batches()))
    assert describe_dead_worker(caught.value, "a", "b")


@pytest.mark.parametrize("error", [RuntimeError("boom"), DataError("DataLoader worker (pid 3) a")])
def test_other_errors_are_no_dead_workers(error):
    assert describe_dead_worker(error, "a", "b") is None


def test_faults_can_be_sent_between_processes():
    sent = pickle.loads(pickle.dumps(FaultyImage(ImageSizeError("a.png: is 3x4"), is_fatal=True)))
    assert isinstance(sent.error, ImageSizeError) and str(sent.error) == "a.png: is 3x4"
