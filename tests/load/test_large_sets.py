"""Large data sets are read in seconds and little memory, and loader workers share what was read."""

import gc
import json
import multiprocessing
import os
import resource
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from large_sets import write_coco, write_voc

from densenet_backbones.data.readers.detection_sources import read_detection
from densenet_backbones.data.readers.segmentation_sources import read_segmentation

linux = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")


def run_in_fork(function):
    """Call a function in a process of its own; return what it returns, as JSON."""
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.write(write_end, json.dumps(function()).encode())
        finally:
            os._exit(0)
    os.close(write_end)
    with os.fdopen(read_end, "rb") as file:
        answer = file.read()
    os.waitpid(pid, 0)
    return json.loads(answer)


def run_afresh(function, *arguments):
    """Call a function in a new Python, whose heap no other test has scattered."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def own_memory():
    """Bytes that belong to this process alone: what it would free by ending."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return 1024 * sum(int(line.split()[1]) for line in lines if line.startswith("Private_Dirty"))


def read_peak():
    """Bytes of this process's largest resident size since `clear_refs` was last written."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * sum(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def look_at_all(records):
    """Go through every record, as the workers do in an epoch."""
    for record in records:
        objects = record.boxes if hasattr(record, "boxes") else list(record.mask.reader.objects)
        assert len(objects) + len(str(record.path))


def read_boxes(root):
    return read_detection(root, "train", masks=False)


def read_masks(root):
    """Matched to a model's classes, in another order than the file's."""
    names = ["background", *(f"class {n}" for n in range(80, 0, -1))]
    return read_segmentation(root, "train", "coco_instances", classes=names)


def read_and_measure(root, read=read_boxes):
    """CPU seconds and bytes of reading, and bytes that a worker comes to own by looking."""
    # 5: the peak begins anew, which getrusage's never does, not even in a new program.
    Path("/proc/self/clear_refs").write_text("5")
    before, size = resource.getrusage(resource.RUSAGE_SELF), read_peak()
    data = read(root)
    after, grown = resource.getrusage(resource.RUSAGE_SELF), read_peak() - size
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    # A collection in the worker would touch, and so copy, whatever earlier tests left behind.
    gc.collect()
    gc.freeze()

    def work():
        first = own_memory()
        look_at_all(data.records)
        return own_memory() - first

    return len(data), seconds, grown, run_in_fork(work)


@linux
def test_workers_share_what_was_read(tmp_path):
    root = write_coco(tmp_path / "coco", 5_000, 35_000)
    images, _, memory, of_worker = run_afresh(read_and_measure, root)
    assert images == 5_000 and memory > 0
    # As dicts the annotations took 35 MB, and a worker 30 MB.
    assert memory < 60e6 and of_worker < 5e6


@linux
def test_workers_share_outlines(tmp_path):
    root = write_coco(tmp_path / "coco", 6_000, 40_000, outlines=True)
    images, _, memory, of_worker = run_afresh(read_and_measure, root, read_masks)
    assert images == 6_000 and memory > 0
    # As Python objects they took 110 MB, and a worker 14 MB. Some 2 to 5 MB of a worker are not the
    # data's: it fills holes that imports left, here and there in pages that it shares no longer.
    assert memory < 90e6 and of_worker < 6e6


@linux
@pytest.mark.long
def test_a_hundred_thousand_images(tmp_path):
    root = write_coco(tmp_path / "coco", 100_000, 700_000)
    images, seconds, memory, of_worker = run_afresh(read_and_measure, root)
    print(f"{seconds:.1f} CPU s, {memory / 1e6:.0f} MB, {of_worker / 1e6:.1f} MB a worker")
    assert images == 100_000 and memory > 0 and seconds < 16 and memory < 500e6 and of_worker < 10e6


@pytest.mark.long
def test_twenty_thousand_xml_files(tmp_path):
    root = write_voc(tmp_path / "voc", 20_000, 3)
    before = resource.getrusage(resource.RUSAGE_SELF)
    data = read_detection(root, "train")
    after = resource.getrusage(resource.RUSAGE_SELF)
    print(f"{after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime:.1f} CPU s")
    assert len(data) == 20_000 and len(data.packed.columns.boxes) == 60_000


@pytest.mark.long
def test_five_thousand_images_are_evaluated_in_seconds_and_a_tenth_of_them_alike():
    """A hundred detections an image, COCO's limit; pycocotools would take minutes for all."""
    from densenet_backbones.metrics.coco_evaluation import evaluate_coco

    rng = np.random.default_rng(0)
    owners, classes = rng.integers(0, 5_000, 35_000), rng.integers(1, 81, 35_000)
    boxes = np.concatenate((rng.uniform(0, 400, (35_000, 2)), rng.uniform(4, 200, (35_000, 2))), 1)
    truth = {
        "images": [{"id": n, "file_name": "", "width": 640, "height": 640} for n in range(5_000)],
        "annotations": [
            {"id": n, "image_id": i, "category_id": c, "bbox": b, "area": b[2] * b[3], "iscrowd": 0}
            for n, (i, c, b) in enumerate(
                zip(owners.tolist(), classes.tolist(), boxes.tolist(), strict=True), 1
            )
        ],
        "categories": [{"id": n, "name": str(n)} for n in range(1, 81)],
    }
    # Most detections lie near an object of their image's, many have its class.
    near = rng.integers(0, 35_000, 500_000)
    found = boxes[near] + rng.normal(0, 8, (500_000, 4))
    found[:, 2:] = np.maximum(found[:, 2:], 1)
    same = rng.random(500_000) < 0.6
    names = np.where(same, classes[near], rng.integers(1, 81, 500_000))
    order = np.argsort(owners[near], kind="stable")
    results = [
        {"image_id": i, "category_id": c, "bbox": b, "score": s}
        for i, c, b, s in zip(
            owners[near][order].tolist(),
            names[order].tolist(),
            found[order].tolist(),
            rng.random(500_000).tolist(),
            strict=True,
        )
    ]
    before = os.times().user
    everything = evaluate_coco(truth, results, backend="faster_coco_eval")
    seconds = os.times().user - before
    print(f"{seconds:.1f} CPU s")
    assert len(everything.classes) == 80 and seconds < 60

    truth["images"] = truth["images"][:500]
    truth["annotations"] = [one for one in truth["annotations"] if one["image_id"] < 500]
    results = [one for one in results if one["image_id"] < 500]
    fast, slow = (
        evaluate_coco(truth, results, backend=backend)
        for backend in ("faster_coco_eval", "pycocotools")
    )
    # Means are summed in another order: the last of 16 digits may differ.
    assert fast.numbers == pytest.approx(slow.numbers, rel=1e-12)
    for one, other in zip(fast.classes, slow.classes, strict=True):
        assert one.name == other.name and one.ap == pytest.approx(other.ap, rel=1e-12)
    np.testing.assert_allclose(fast.precision, slow.precision, rtol=1e-12)
