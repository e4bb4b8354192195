"""The data module with masks and keypoints, and with detectors that keep images' shapes."""

from dataclasses import replace
from types import SimpleNamespace

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from attached_trainers import with_trainer
from instance_sets import OTHER_SIDE, SIZES, change, write_instances

from densenet_backbones.data.augment.detection import Augmentation
from densenet_backbones.data.augment.instances import InstanceAugmentation
from densenet_backbones.data.augment.model_input import ModelInput
from densenet_backbones.data.augment.presets import choose_augmentation
from densenet_backbones.data.boxes import masks_to_boxes
from densenet_backbones.data.detection import DetectionData, DetectionImages
from densenet_backbones.data.faults import DataError
from densenet_backbones.data.readers.detection_sources import read_detection
from densenet_backbones.heads.detection.transform import DetectionTransform
from densenet_backbones.training.tasks.detection import (
    read_model_input,
    switch_training_resize_off,
)

MASKS, POINTS = ["boxes", "masks"], ["boxes", "keypoints"]


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """16 pictures, 6 of them portraits, and 4 to evaluate."""
    root = write_instances(tmp_path_factory.mktemp("instances"), SIZES * 2)
    return write_instances(root, SIZES[:4], split="val", seed=1)


def detector(target_types=("boxes",), **more):
    """As the data sees a detector that keeps images' shapes."""
    known = {"min_size": (40, 50), "max_size": 70, "fill_color": (1, 2, 3)}
    return SimpleNamespace(target_types=target_types, transform=SimpleNamespace(**known, **more))


def of_one_size(**more):
    """As the data sees a detector that brings all images to one size."""
    transform = SimpleNamespace(
        fixed_size=(32, 48), min_size=(32,), max_size=48, fill_color=(1, 2, 3)
    )
    return SimpleNamespace(transform=transform, **more)


def data_for(root, model, batches=0, world=(1, 0), **options):
    made = DetectionData(str(root), **{"batch_size": 4, "num_workers": 0, **options})
    return with_trainer(made, *world, batches=batches, model_input=read_model_input(model))


def content(sample):
    """All of a sample, to compare."""
    parts = sample.image, sample.boxes, sample.labels, sample.masks, sample.keypoints
    return sample.image_id, *(None if p is None else p.numpy().tobytes() for p in parts)


def batches_of(data, epoch=0):
    loader = data.train_dataloader()
    loader.sampler.set_epoch(epoch)
    return [list(batch) for batch in loader]


@pytest.mark.parametrize("augmentation", ["none", "flip", "multiscale", "lsj"])
def test_samples_have_what_the_detector_learns(drawn, augmentation):
    options = {"augmentation": augmentation, "target_types": ["boxes", "masks", "keypoints"]}
    for target_types in (("boxes",), ("boxes", "masks"), ("boxes", "keypoints")):
        for sample in batches_of(data_for(drawn, detector(target_types), **options))[0]:
            count, size = len(sample.boxes), sample.image.shape[1:]
            assert (sample.masks is None) == ("masks" not in target_types)
            assert (sample.keypoints is None) == ("keypoints" not in target_types)
            if sample.masks is not None:
                assert sample.masks.shape == (count, *size) and sample.masks.dtype == torch.uint8
            if sample.keypoints is not None:
                assert sample.keypoints.shape == (count, 5, 3)
                assert sample.keypoints.dtype == torch.float32


def test_only_what_is_learnt_is_kept_while_reading(drawn):
    def first(**options):
        return DetectionData(str(drawn), **options).train_set.records[0].annotations[0]

    assert "segmentation" not in first() and "segmentation" not in first(target_types=["boxes"])
    assert "segmentation" in first(target_types=MASKS)
    assert "segmentation" not in first(target_types=POINTS)


def test_evaluated_images_show_what_is_learnt(drawn):
    data = data_for(drawn, detector(), target_types=MASKS)
    samples = [sample for batch in data.val_dataloader() for sample in batch]
    for sample, size in zip(samples, SIZES, strict=False):
        assert sample.image.shape[1:] == size and sample.masks.shape == (3, *size)
        np.testing.assert_array_equal(sample.boxes, masks_to_boxes(sample.masks.numpy()))
    assert len(samples) == 4


def test_images_without_labelled_keypoints_are_left_out_of_their_training(tmp_path):
    def hide(content):
        content["annotations"][0]["keypoints"] = [0, 0, 0] * 5
        del content["annotations"][4]["keypoints"]

    root = change(write_instances(tmp_path, SIZES[:4]), hide)
    change(write_instances(root, SIZES[:4], split="val"), hide, "instances_val")

    def ids(**options):
        data = DetectionData(str(root), **options)
        return [[r.image_id for r in part.records] for part in (data.train_set, data.val_set)]

    assert ids(target_types=POINTS) == [[3, 4], [1, 2, 3, 4]]
    assert ids(target_types=MASKS) == ids() == [[1, 2, 3, 4]] * 2

    def hide_all(content):
        for annotation in content["annotations"]:
            annotation["keypoints"] = [0, 0, 0] * 5

    change(root, hide_all)
    with pytest.raises(DataError, match="no keypoint of its 4 images is labeled"):
        ids(target_types=POINTS)


def test_a_detector_that_says_nothing_learns_what_the_data_was_told(drawn):
    model = SimpleNamespace(transform=detector().transform)  # as torchvision's own
    data = data_for(drawn, model, target_types=MASKS, augmentation="flip")
    assert all(s.masks is not None for s in batches_of(data)[0])


# Which augmentation fits which detector.


def test_images_keep_their_size_are_scaled_or_lie_on_one_canvas(drawn):
    def shapes(model, **options):
        made = batches_of(data_for(drawn, model, **options))
        return {tuple(s.image.shape[1:]) for batch in made for s in batch}

    model = detector()
    assert shapes(model, augmentation="flip") <= set(SIZES)
    assert shapes(model, augmentation="none") <= set(SIZES)
    assert not data_for(drawn, model, augmentation="flip").scales_training_images
    scaled = shapes(model, augmentation="multiscale")
    assert all(39 <= min(s) <= 50 and max(s) <= 70 for s in scaled if max(s) < 70)
    assert data_for(drawn, model, augmentation="multiscale").scales_training_images
    assert shapes(detector(), augmentation="lsj") == {(64, 64)}  # 1024 / 800 * 50
    assert shapes(detector(), augmentation="lsj", jitter_size=48) == {(48, 48)}


@pytest.mark.parametrize("augmentation", ["multiscale", "lsj", "flip"])
def test_a_detector_does_not_undo_the_scales(drawn, augmentation):
    transform = DetectionTransform(min_size=30, max_size=90, size_divisible=1)
    model = SimpleNamespace(target_types=("boxes", "masks"), transform=transform)
    data = data_for(drawn, model, target_types=MASKS, augmentation=augmentation)
    batch = batches_of(data)[0]
    if data.scales_training_images:
        switch_training_resize_off(model)
    images = [sample.image / 255 for sample in batch]
    given = [tuple(image.shape[1:]) for image in images]

    def seen():
        targets = [{"boxes": s.boxes, "labels": s.labels, "masks": s.masks} for s in batch]
        made, targets = transform(images, targets)
        assert [tuple(t["masks"].shape[1:]) for t in targets] == made.image_sizes
        return made.image_sizes

    transform.train()
    sizes = seen()
    assert (sizes == given) == (augmentation != "flip")
    transform.eval()
    assert {min(size) for size in seen()} <= {29, 30}  # torchvision rounds down


def test_detectors_of_one_size_are_given_it_or_resize_themselves():
    fixed = read_model_input(of_one_size())
    assert fixed == ModelInput((48, 32), 32, 48, (1, 2, 3))
    for preset in ("ssd", "light", "none"):
        found = choose_augmentation(fixed, preset, ("boxes",))
        assert isinstance(found, Augmentation) and found.size == (48, 32)
    assert choose_augmentation(fixed, "lsj", ("boxes",)).size == (48, 32)
    assert choose_augmentation(fixed, "flip", ("boxes",)).preset == "flip"
    assert choose_augmentation(fixed, "none", ("boxes", "masks")) is None
    model = SimpleNamespace(transform=SimpleNamespace(fixed_size=(32, 48), min_size=(32,)))
    assert read_model_input(model).size == (48, 32)
    assert read_model_input(detector()) == ModelInput(None, 50, 70, (1, 2, 3), ("boxes",))
    assert choose_augmentation(read_model_input(model), "ssd", ("boxes",)).size == (48, 32)


def test_the_border_has_the_colour_of_the_models_mean(drawn):
    data = data_for(drawn, detector(), augmentation="lsj", jitter_size=200)
    images = [sample.image for batch in batches_of(data) for sample in batch]
    color = torch.tensor([1, 2, 3]).view(3, 1, 1)
    shares = [(image == color).all(0).float().mean() for image in images]
    assert max(shares) > 0.5 > min(shares)


def test_keypoints_change_sides_in_mirrored_images(drawn):
    found = choose_augmentation(read_model_input(detector()), "flip", POINTS, other_side=OTHER_SIDE)
    assert found.other_side == OTHER_SIDE
    data = data_for(drawn, detector(POINTS), target_types=POINTS, augmentation="flip")
    assert data.make_training_images().augmentation.other_side == OTHER_SIDE


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        (detector(), {}, "'ssd' makes images of one size, but this detector takes them of any"),
        (detector(), {"augmentation": "light"}, "choose flip, multiscale, lsj or none"),
        (
            of_one_size(),
            {"augmentation": "multiscale"},
            r"takes them of 48x32 \(H x W\) only; choose ssd, light, flip, lsj or none",
        ),
        (
            of_one_size(target_types=MASKS),
            {"augmentation": "ssd", "target_types": MASKS},
            "'ssd' knows boxes only, but the detector learns boxes and masks; choose flip",
        ),
        (
            detector(("boxes", "masks")),
            {"augmentation": "flip"},
            r"learns boxes and masks, but data.target_types is \['boxes'\]; add masks",
        ),
        (
            detector(),
            {"augmentation": "lsj", "copy_paste": True},
            "copy_paste needs a detector that learns masks and data.augmentation 'lsj'",
        ),
        (
            detector(("boxes", "masks")),
            {"augmentation": "flip", "copy_paste": True, "target_types": MASKS},
            "copy_paste needs a detector that learns masks and data.augmentation 'lsj'",
        ),
    ],
)
def test_what_does_not_fit_is_refused(drawn, model, options, message):
    data = data_for(drawn, model, **options)
    with pytest.raises(DataError, match=message):
        data.train_dataloader()


def test_a_canvas_without_pixels_is_refused():
    with pytest.raises(DataError, match=r"data\.jitter_size must be at least 1 pixel, got 0"):
        DetectionData("x", jitter_size=0)


def test_images_to_overfit_on_are_not_augmented(drawn):
    options = {
        "augmentation": "lsj",
        "copy_paste": True,
        "target_types": MASKS,
        "overfit_images": 2,
    }
    data = data_for(drawn, detector(("boxes", "masks")), batch_size=2, **options)
    data.keep_for_overfitting(lambda record: True)
    first, second = ({content(s) for s in batches_of(data, epoch)[0]} for epoch in (0, 1))
    plain = {content(s) for batch in data.val_dataloader() for s in batch}
    assert first == second == plain and len(first) == 2


# Copy-paste.


def test_pasted_objects_depend_on_seed_epoch_and_index_alone(drawn):
    data = read_detection(drawn, "train")
    jitter = InstanceAugmentation("lsj", size=(64, 64))

    def sample(key, seed=0, copy_paste=True):
        return DetectionImages(data, jitter, seed, MASKS, copy_paste)[key]

    first = content(sample((3, 5)))
    used = DetectionImages(data, jitter, 0, MASKS, True)
    _ = used[0, 1], used[2, 5]
    assert content(used[3, 5]) == first
    assert len({first, content(sample((4, 5))), content(sample((3, 5), seed=1))}) == 3
    counts = []
    for index in range(16):
        plain, pasted = sample((0, index), copy_paste=False), sample((0, index))
        np.testing.assert_array_equal(pasted.boxes, masks_to_boxes(pasted.masks.numpy()))
        counts.append(len(pasted.boxes) - len(plain.boxes))
        assert pasted.image_id == plain.image_id
    assert max(counts) > 0


def test_one_image_is_its_own_partner(drawn):
    data = read_detection(drawn, "train")
    data = replace(data, records=data.records[:1])
    jitter = InstanceAugmentation("lsj", size=(64, 64))
    found = [DetectionImages(data, jitter, 0, MASKS, True)[n, 0] for n in range(8)]
    assert max(len(sample.boxes) for sample in found) > 3


# Batches of one orientation, and going on in the middle of an epoch.


def portraits(batch):
    return {int(s.image.shape[1] > s.image.shape[2]) for s in batch}


def test_batches_are_of_one_orientation_where_images_keep_their_shapes(drawn):
    options = {"augmentation": "flip", "batch_size": 2}
    for epoch in range(4):
        made = batches_of(data_for(drawn, detector(), **options), epoch)
        assert [len(batch) for batch in made] == [2] * 8
        assert all(len(portraits(batch)) == 1 for batch in made)
        assert sorted(s.image_id for batch in made for s in batch) == list(range(1, 17))
    mixed = data_for(drawn, detector(), group_by_shape=False, **options)
    assert any(len(portraits(b)) == 2 for epoch in range(4) for b in batches_of(mixed, epoch))


def test_images_of_one_size_need_no_groups(drawn):
    assert data_for(drawn, detector(), augmentation="lsj").group_images() is None
    assert data_for(drawn, of_one_size()).group_images() is None
    groups = data_for(drawn, detector(), augmentation="multiscale").group_images()
    assert groups == [int(height > width) for height, width in SIZES * 2]
    assert (
        data_for(drawn, detector(), augmentation="lsj", group_by_shape=True).group_images()
        == groups
    )


@pytest.mark.parametrize("world", [2, 3])
def test_processes_have_equally_many_batches_of_one_orientation(drawn, world):
    options = {"augmentation": "flip", "batch_size": 2}
    made = [
        batches_of(data_for(drawn, detector(), world=(world, rank), **options), 1)
        for rank in range(world)
    ]
    assert len({len(batches) for batches in made}) == 1
    mixed = [b for batches in made for b in batches if len(portraits(b)) > 1]
    assert len(mixed) <= 1


def test_a_grouped_epoch_goes_on_after_the_batches_that_are_done(drawn):
    options = {"augmentation": "flip", "batch_size": 3, "target_types": MASKS}
    model = detector(("boxes", "masks"))
    whole = [[content(s) for s in b] for b in batches_of(data_for(drawn, model, **options), 2)]
    assert [len(batch) for batch in whole] == [3] * 5
    for done in range(6):
        data = data_for(drawn, model, batches=done, **options)
        rest = [[content(s) for s in batch] for batch in batches_of(data, 2)]
        assert rest == whole[done:]


def test_another_grouping_is_refused_in_the_middle_of_an_epoch(drawn):
    options = {"augmentation": "flip"}
    begun = data_for(drawn, detector(), batches=2, **options).state_dict()
    data_for(drawn, detector(), **options).load_state_dict(begun)
    changed = data_for(drawn, detector(), group_by_shape=False, **options)
    with pytest.raises(DataError, match="grouping was 1 when it began and is 0 now; give 1 again"):
        changed.load_state_dict(begun)
    del begun["grouping"]  # a checkpoint from before there was grouping
    data_for(drawn, of_one_size()).load_state_dict(begun)


class Recorder(pl.LightningModule):
    """Trains one number; notes the batches, and keeps a checkpoint in the middle of an epoch."""

    def __init__(self, file, at):
        super().__init__()
        self.model = torch.nn.Linear(1, 1)
        self.file, self.at, self.seen = file, at, {}

    def training_step(self, batch, batch_idx):
        self.seen[self.current_epoch, batch_idx] = [content(s) for s in batch]
        return self.model(torch.ones(1, 1)).sum()

    def on_train_batch_end(self, *args):
        if len(self.seen) == self.at:
            self.trainer.save_checkpoint(self.file)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


@pytest.mark.parametrize("preset", ["flip", "multiscale", "lsj"])
def test_a_training_goes_on_in_a_grouped_epoch_where_it_was(drawn, tmp_path, preset):
    def train(at=None, **options):
        module = Recorder(tmp_path / "middle.ckpt", at)
        data = DetectionData(
            str(drawn),
            batch_size=3,
            num_workers=0,
            augmentation=preset,
            target_types=MASKS,
            copy_paste=preset == "lsj",
        )
        data.model_input = read_model_input(detector(("boxes", "masks")))
        trainer = pl.Trainer(
            max_epochs=3,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            limit_val_batches=0,
        )
        trainer.fit(module, data, weights_only=True, **options)
        return module.seen

    whole = train(at=7)
    assert sorted(whole) == [(epoch, batch) for epoch in range(3) for batch in range(5)]
    rest = train(ckpt_path=tmp_path / "middle.ckpt")
    assert min(rest) == (1, 2)
    assert rest == {key: value for key, value in whole.items() if key >= (1, 2)}
