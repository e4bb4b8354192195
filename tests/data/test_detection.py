"""From a detection set to batches: order, augmentation, resuming, shares of processes."""

import shutil
from functools import partial

import numpy as np
import pytest
import torch
from attached_trainers import with_trainer
from PIL import Image
from tiny_runs import DETECTOR_ARGS
from torchvision.ops import box_iou

from densenet_backbones.data import loading
from densenet_backbones.data.augment.detection import Augmentation
from densenet_backbones.data.categories import Categories
from densenet_backbones.data.detection import DetectionData, DetectionImages
from densenet_backbones.data.faults import DataError
from densenet_backbones.data.image_sources import Scenes, Source
from densenet_backbones.data.images import read_image, read_reduced_image
from densenet_backbones.data.loaders.batches import ResumableLoader
from densenet_backbones.data.loaders.samplers import EpochSampler
from densenet_backbones.data.loading import choose_workers
from densenet_backbones.data.readers.detection_sources import read_detection
from densenet_backbones.data.samples import DetectionSet, ImageRecord
from densenet_backbones.data.segmentation import SegmentationData
from densenet_backbones.inference.model_file import build_registered
from densenet_backbones.training.tasks.detection import has_all_matched


@pytest.fixture(scope="module")
def train_set(tiny_scenes):
    return read_detection(tiny_scenes, "train")


def content(sample):
    return sample.image_id, sample.image.numpy().tobytes(), sample.boxes.tolist()


def test_evaluation_gets_images_as_they_are(train_set):
    images = DetectionImages(train_set)
    assert len(images) == 12
    for index, record in enumerate(train_set.records):
        sample = images[index]
        assert np.array_equal(sample.image.permute(1, 2, 0), read_image(record.path))
        assert (sample.image_id, sample.index) == (record.image_id, index)
        assert (sample.boxes.dtype, sample.labels.dtype) == (torch.float32, torch.int64)
        assert np.array_equal(sample.boxes, record.boxes)
        sample.boxes += 1  # a copy
        sample.labels += 1
    assert np.array_equal(images[0].boxes, train_set.records[0].boxes)
    assert np.array_equal(images[0].labels, train_set.records[0].labels)


def test_augmentation_depends_on_seed_epoch_and_index_alone(train_set):
    def sample(seed, key):
        return content(DetectionImages(train_set, Augmentation("ssd", (64, 64)), seed)[key])

    first = sample(0, (3, 5))
    used = DetectionImages(train_set, Augmentation("ssd", (64, 64)), 0)
    _ = used[0, 1], used[2, 5]
    assert content(used[3, 5]) == first
    assert sample(0, (4, 5)) != first
    assert sample(1, (3, 5)) != first
    assert sample(0, (3, 5)) == first


def loader(train_set, done=0, **options):
    sampler = EpochSampler(train_set, seed=3)
    sampler.set_epoch(2)
    return ResumableLoader(
        DetectionImages(train_set, Augmentation("light", (32, 32)), 3),
        batches_done=lambda: done,
        sampler=sampler,
        batch_size=5,
        collate_fn=list,
        **{"between_batches": lambda: None, **options},
    )


def test_an_epoch_goes_on_after_the_batches_that_are_done(train_set):
    whole = [[content(s) for s in batch] for batch in loader(train_set)]
    assert [len(batch) for batch in whole] == [5, 5, 2]
    for done in (1, 2, 3):
        rest = [[content(s) for s in batch] for batch in loader(train_set, done)]
        assert rest == whole[done:]


def test_the_next_epoch_is_whole_again(train_set):
    done = [2]
    resumed = loader(train_set)
    resumed.batches_done = done.pop
    assert len(list(resumed)) == 1
    resumed.batches_done = lambda: 0
    resumed.sampler.set_epoch(3)
    fresh = loader(train_set)
    fresh.sampler.set_epoch(3)
    assert [content(s) for b in resumed for s in b] == [content(s) for b in fresh for s in b]


def test_a_stop_between_batches_loses_none(train_set):
    calls = []

    def stop_at_the_second():
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt

    stopped = loader(train_set, between_batches=stop_at_the_second)
    taken = []
    with pytest.raises(KeyboardInterrupt):
        for batch in stopped:
            taken.append([content(s) for s in batch])
    rest = [[content(s) for s in batch] for batch in loader(train_set, len(taken))]
    whole = [[content(s) for s in batch] for batch in loader(train_set)]
    assert taken + rest == whole and len(taken) == 1


def test_training_batches_have_the_models_size_and_processes_share_the_images(tiny_scenes):
    seen = []
    for rank in range(2):
        data = DetectionData(str(tiny_scenes), batch_size=2, num_workers=0, seed=5)
        batches = list(with_trainer(data, 2, rank).train_dataloader())
        assert [len(batch) for batch in batches] == [2, 2, 2]
        assert {tuple(s.image.shape) for batch in batches for s in batch} == {(3, 48, 32)}
        seen += [s.image_id for batch in batches for s in batch]
    assert sorted(seen) == list(range(1, 13))


def test_a_last_batch_that_is_not_full_is_left_out_but_not_the_only_one(tiny_scenes):
    for size, expected in ((5, [5, 5]), (12, [12]), (16, [12])):
        data = DetectionData(str(tiny_scenes), batch_size=size, num_workers=0)
        assert [len(b) for b in with_trainer(data).train_dataloader()] == expected


def test_training_decodes_a_large_photograph_at_a_reduced_size(tmp_path):
    y, x = np.mgrid[:1200, :1600]
    waves = np.stack([np.sin(x / 90 + k) + np.cos(y / 70 - k) for k in range(3)], 2)
    picture = Image.fromarray((waves * 50 + 128).astype(np.uint8))
    boxes, labels = np.array([[401.0, 300.0, 1003.0, 900.0]], np.float32), np.ones(1, np.int64)
    augmentation = Augmentation("none", (75, 100))
    samples = []
    for name in ("a.jpg", "a.png"):  # which has no reduced sizes
        picture.save(tmp_path / name)
        record = ImageRecord(1, tmp_path / name, 1600, 1200, boxes, labels, np.zeros(1, bool))
        data = DetectionSet("one", (record,), Categories.from_names(["thing"]))
        samples.append(DetectionImages(data, augmentation)[0])
        whole = DetectionImages(data)[0]
        assert whole.image.shape == (3, 1200, 1600), "evaluation sees images as they are"
        assert whole.boxes.tolist() == boxes.tolist()
    assert read_reduced_image(tmp_path / "a.jpg", augmentation.source_size)[0].shape == (
        150,
        200,
        3,
    )
    reduced, full = samples
    assert (reduced.boxes - full.boxes).abs().max() <= 1e-4
    assert (reduced.image.int() - full.image.int()).abs().max() <= 3
    assert not torch.equal(reduced.image, full.image)


def test_batches_are_pinned_for_a_gpu_alone(tiny_scenes):
    data = with_trainer(DetectionData(str(tiny_scenes), batch_size=3, num_workers=0))
    for device, pinned in (("cpu", False), ("cuda", True)):
        data.trainer.strategy.root_device = torch.device(device)
        assert data.train_dataloader().pin_memory is pinned
        assert data.val_dataloader().pin_memory is pinned


def test_evaluated_images_go_to_one_process_each(tiny_scenes):
    seen = []
    for rank in range(2):
        data = DetectionData(str(tiny_scenes), batch_size=3, num_workers=0)
        batches = list(with_trainer(data, 2, rank).val_dataloader())
        assert all(s.image.shape == (3, 64, 64) for batch in batches for s in batch)
        seen.append([s.image_id for batch in batches for s in batch])
    assert [len(share) for share in seen] == [4, 3]
    assert sorted(seen[0] + seen[1]) == [
        r.image_id for r in read_detection(tiny_scenes, "val").records
    ]


def test_classes_of_the_training_set_hold_for_the_evaluated_one(tiny_scenes):
    names = list(read_detection(tiny_scenes, "train").categories.names)
    data = DetectionData(str(tiny_scenes), classes=names[::-1])
    assert data.categories.names == data.val_set.categories.names == tuple(names[::-1])
    data = DetectionData(str(tiny_scenes))
    assert data.categories.names == data.val_set.categories.names == tuple(names)


def test_several_sources_make_one_training_set(tiny_scenes):
    sources = [Source(str(tiny_scenes), "train"), Source(str(tiny_scenes), "val")]
    data = DetectionData(str(tiny_scenes), train=sources)
    assert (len(data.train_set), len(data.val_set)) == (19, 7)
    assert data.train_set.name.count("+") == 1
    with pytest.raises(DataError, match=r"data\.root is needed: it holds the split"):
        _ = DetectionData(train=sources).val_set


def test_files_of_other_names(tiny_scenes, tmp_path):
    """Those that the errors advise to give: {split} in them is the split's name."""
    for split in ("train", "val"):
        shutil.copytree(tiny_scenes / split, tmp_path / f"pictures of {split}")
        file = tiny_scenes / "annotations" / f"instances_{split}.json"
        shutil.copy(file, tmp_path / f"{split} labels.json")
    for options in ({}, {"annotation_file": "{split} labels.json"}):  # looked for
        data = DetectionData(str(tmp_path), **options)
        assert (len(data.train_set), len(data.val_set)) == (12, 7)
    lost = tmp_path / "pictures of train" / data.train_set.records[3].path.name
    lost.rename(tmp_path / "lost")
    with pytest.raises(DataError, match=r"lacks 1 of its 12 images .*give image_folder"):
        _ = DetectionData(str(tmp_path), annotation_file="{split} labels.json").train_set
    (tmp_path / "lost").rename(lost)
    wrong = {"annotation_file": "{split} labels.json", "image_folder": "pictures"}
    with pytest.raises(DataError, match=r"pictures lacks 12 of its 12 images "):
        _ = DetectionData(str(tmp_path), **wrong).train_set
    files = {"annotation_file": "{split} labels.json", "image_folder": "pictures of {split}"}
    data = DetectionData(str(tmp_path), **files)
    assert (len(data.train_set), len(data.val_set)) == (12, 7)
    sources = [Source(str(tmp_path), split, *files.values()) for split in ("train", "val")]
    assert len(DetectionData(str(tmp_path), train=sources).train_set) == 19
    masks = SegmentationData(str(tmp_path), **files)
    assert (len(masks.train_set), len(masks.val_set)) == (12, 7)


def test_a_fraction_of_the_training_images_is_used(tiny_scenes):
    data = DetectionData(str(tiny_scenes), fraction=0.25, seed=1)
    assert (len(data.train_set), len(data.val_set)) == (3, 7)
    again = DetectionData(str(tiny_scenes), fraction=0.25, seed=1)
    assert [r.image_id for r in again.train_set.records] == [
        r.image_id for r in data.train_set.records
    ]


def test_overfitting_keeps_the_first_images_of_which_every_object_is_matched(tiny_scenes):
    model = build_registered("detector", "dsod_tiny", 7, DETECTOR_ARGS)
    data = DetectionData(str(tiny_scenes), overfit_images=2, batch_size=2, num_workers=0)
    expected = []
    for record in sorted(data.train_set.records, key=lambda r: r.image_id):
        boxes = torch.from_numpy(record.boxes) * (64 / record.width)
        if len(boxes) and (box_iou(boxes, model.priors()).amax(1) >= model.match_threshold).all():
            expected.append(record.image_id)
    assert len(expected) >= 2 and expected[:2] != [1, 2]  # the rule chooses
    data.keep_for_overfitting(partial(has_all_matched, model))
    assert [r.image_id for r in data.train_set.records] == expected[:2]
    assert data.val_set is data.train_set
    batches = [list(with_trainer(data).train_dataloader()) for _ in range(2)]
    images = {s.image_id: s.image for batch in batches[0] for s in batch}
    again = {s.image_id: s.image for batch in batches[1] for s in batch}
    assert images.keys() == set(expected[:2])
    assert all(torch.equal(images[i], again[i]) for i in images)  # not augmented


def test_a_detector_without_priors_can_overfit_on_any_image(tiny_scenes):
    data = DetectionData(str(tiny_scenes), overfit_images=3)
    data.keep_for_overfitting(None)
    assert [r.image_id for r in data.train_set.records] == [1, 2, 3]


def test_too_few_images_to_overfit_on_is_an_error(tiny_scenes):
    data = DetectionData(str(tiny_scenes), overfit_images=2)
    with pytest.raises(DataError, match="is 2, but the data has only 0 training images with obj"):
        data.keep_for_overfitting(lambda record: False)


def test_without_a_root_scenes_are_drawn_once(tmp_path):
    scenes = Scenes(str(tmp_path / "deep/scenes"), train=2, val=1, size=64, seed=4)
    data = DetectionData(scenes=scenes)
    assert (len(data.train_set), len(data.val_set)) == (2, 1)
    file = data.train_set.records[0].path
    written = file.stat().st_mtime_ns
    assert len(DetectionData(scenes=scenes).train_set) == 2
    assert file.stat().st_mtime_ns == written


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "data.batch_size must be at least 1, got 0"),
        ({"fraction": 0.0}, r"data.fraction must lie in \(0, 1\], got 0"),
        ({"fraction": 1.5}, r"data.fraction must lie in \(0, 1\], got 1.5"),
        ({"overfit_images": 0}, "data.overfit_images must be at least 1, got 0"),
        ({"num_workers": -1}, "data.num_workers must be at least 0, got -1"),
        ({"seed": -1}, "data.seed must be at least 0, got -1"),
    ],
)
def test_impossible_options_are_refused(options, message):
    with pytest.raises(DataError, match=message):
        DetectionData("x", **options)


def test_going_on_in_another_order_is_refused_in_the_middle_of_an_epoch_only(tiny_scenes):
    def data(batches=0, **options):
        made = DetectionData(str(tiny_scenes), **{"batch_size": 4, "num_workers": 0, **options})
        return with_trainer(made, batches=batches)

    begun, fresh = data(batches=2).state_dict(), data().state_dict()
    data().load_state_dict(begun)
    for options, message in (
        ({"batch_size": 3}, "batch size was 4 when it began and is 3 now; give 4 again"),
        ({"seed": 1}, "seed was 0 when it began and is 1 now"),
        ({"fraction": 0.5}, "images was 12 when it began and is 6 now"),
    ):
        with pytest.raises(DataError, match=message):
            data(**options).load_state_dict(begun)
        data(**options).load_state_dict(fresh)
    with pytest.raises(DataError, match="processes was 1 when it began and is 2 now"):
        with_trainer(data(), world_size=2).load_state_dict(begun)


def test_the_loader_leaves_cores_to_the_model(monkeypatch):
    for cores, workers in ((1, 1), (2, 1), (4, 2), (8, 4), (16, 8), (64, 8)):
        monkeypatch.setattr(loading, "count_cores", lambda cores=cores: cores)
        assert choose_workers() == workers
