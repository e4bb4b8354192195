"""From segmentation sets to batches: the options and the order that detection has, with masks."""

import numpy as np
import pytest
import torch
from attached_trainers import with_trainer
from lightning.pytorch.cli import LightningArgumentParser
from mask_sets import some_masks, write_camvid, write_coco, write_mask, write_voc

from densenet_backbones.data.augment.segmentation import SegmentationAugmentation
from densenet_backbones.data.detection import DetectionData
from densenet_backbones.data.faults import DataError
from densenet_backbones.data.image_sources import Scenes, Source
from densenet_backbones.data.images import read_image
from densenet_backbones.data.loaders import image_checks
from densenet_backbones.data.loaders.batches import ResumableLoader
from densenet_backbones.data.mask_samples import MaskClasses
from densenet_backbones.data.masks import statistics as mask_statistics
from densenet_backbones.data.readers.segmentation_sources import read_segmentation
from densenet_backbones.data.segmentation import SegmentationData, SegmentationImages


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def train_set(tiny_scenes):
    return read_segmentation(tiny_scenes, "train")


def content(sample):
    return sample.image_id, sample.image.numpy().tobytes(), sample.mask.numpy().tobytes()


def scenes_data(root, **options):
    return SegmentationData(
        str(root), **{"num_workers": 0, "batch_size": 4, "crop": (32, 48), **options}
    )


def trained_data(root, **options):
    """Data whose only split is for training: none of it is held out."""
    return scenes_data(root, **{"val_split": "train", **options})


def test_evaluation_gets_images_and_masks_as_they_are(train_set):
    images = SegmentationImages(train_set)
    assert len(images) == 12
    for index, record in enumerate(train_set.records):
        sample = images[index]
        assert np.array_equal(sample.image.permute(1, 2, 0), read_image(record.path))
        assert np.array_equal(sample.mask, record.read_mask())
        assert (sample.image.dtype, sample.mask.dtype) == (torch.uint8, torch.uint8)
        assert (sample.image_id, sample.index, sample.size) == (record.image_id, index, (64, 64))


def test_augmentation_depends_on_seed_epoch_and_index_alone(train_set):
    augmentation = SegmentationAugmentation("scale_crop", (40, 40))

    def sample(seed, key):
        return content(SegmentationImages(train_set, augmentation, seed)[key])

    first = sample(0, (3, 5))
    assert sample(0, (4, 5)) != first and sample(1, (3, 5)) != first
    assert sample(0, (3, 5)) == first


def test_training_batches_are_crops_and_evaluated_ones_whole(tiny_scenes):
    seen = []
    for rank in range(2):
        data = with_trainer(scenes_data(tiny_scenes, batch_size=2), 2, rank)
        batches = list(data.train_dataloader())
        assert [len(batch) for batch in batches] == [2, 2, 2]
        for sample in (s for batch in batches for s in batch):
            assert sample.image.shape == (3, 32, 48) and sample.mask.shape == (32, 48)
        seen += [s.image_id for batch in batches for s in batch]
        evaluated = [s for batch in data.val_dataloader() for s in batch]
        assert {s.image.shape[1:] for s in evaluated} == {s.mask.shape for s in evaluated}
        assert {s.mask.shape for s in evaluated} == {(64, 64)}
    assert sorted(seen) == list(range(1, 13))


def test_evaluated_images_go_to_one_process_each(tiny_scenes):
    shares = []
    for rank in range(2):
        data = with_trainer(scenes_data(tiny_scenes), 2, rank)
        shares.append([s.image_id for batch in data.val_dataloader() for s in batch])
    assert [len(share) for share in shares] == [4, 3]
    assert sorted(shares[0] + shares[1]) == list(range(1, 8))


def test_an_epoch_goes_on_after_the_batches_that_are_done(tiny_scenes):
    def batches(done):
        loader = with_trainer(scenes_data(tiny_scenes, seed=3), batches=done).train_dataloader()
        assert isinstance(loader, ResumableLoader)
        loader.sampler.set_epoch(2)
        return [[content(s) for s in batch] for batch in loader]

    whole = batches(0)
    assert len(whole) == 3
    for done in (1, 2, 3):
        assert batches(done) == whole[done:]


def test_going_on_in_another_order_is_refused(tiny_scenes):
    begun = with_trainer(scenes_data(tiny_scenes), batches=2).state_dict()
    with_trainer(scenes_data(tiny_scenes)).load_state_dict(begun)
    with pytest.raises(DataError, match="batch size was 4 when it began and is 3 now"):
        with_trainer(scenes_data(tiny_scenes, batch_size=3)).load_state_dict(begun)


def test_borders_have_the_models_mean(tmp_path):
    root = write_voc(tmp_path, some_masks(2))
    data = with_trainer(
        trained_data(root, augmentation="fcdensenet_crop", batch_size=2), world_size=1
    )
    (batch,) = data.train_dataloader()
    for sample in batch:
        beside = sample.mask == 255
        assert beside.sum() == 32 * 48 - 54 + 2
        assert sample.image[:, 0, 0].tolist() == [1, 2, 3]


def test_full_size_images_keep_their_sizes(tmp_path):
    found = {"a": np.zeros((6, 9), np.uint8), "b": np.ones((8, 5), np.uint8)}
    data = trained_data(write_voc(tmp_path, found), augmentation="full_size", batch_size=2)
    (batch,) = with_trainer(data).train_dataloader()
    assert {s.mask.shape for s in batch} == {(6, 9), (8, 5)} == {s.size for s in batch}


def test_classes_of_the_training_set_hold_for_the_evaluated_one(tiny_scenes):
    names = list(read_segmentation(tiny_scenes, "train").classes.names)
    data = scenes_data(tiny_scenes, classes=names[::-1])
    assert data.mask_classes.names == data.val_set.classes.names == tuple(names[::-1])
    data = scenes_data(tiny_scenes)
    known = MaskClasses.from_names([*names[::-1], "hexagon"])
    data.use_classes(known)
    assert data.val_set.classes.names == known.names


def test_several_sources_make_one_training_set(tiny_scenes):
    sources = [Source(str(tiny_scenes), "train"), Source(str(tiny_scenes), "val")]
    data = scenes_data(tiny_scenes, train=sources)
    assert (len(data.train_set), len(data.val_set)) == (19, 7)
    with pytest.raises(DataError, match=r"data\.root is needed: it holds the split"):
        _ = SegmentationData(train=sources).val_set


def test_evaluated_labels_follow_the_names_of_the_training_set(tmp_path):
    found = some_masks()
    write_voc(tmp_path / "a", found)
    write_voc(tmp_path / "b", found, split="val", names=("background", "dog", "cat"))
    data = scenes_data(tmp_path / "b", train=[Source(str(tmp_path / "a"), "train")])
    assert data.val_set.classes.names == data.mask_classes.names == ("background", "cat", "dog")
    mask = data.val_set.records[0].read_mask()
    np.testing.assert_array_equal(mask == 2, found["im0"] == 1)


def test_a_fraction_or_the_first_images_can_be_used(tiny_scenes):
    assert len(scenes_data(tiny_scenes, fraction=0.25).train_set) == 3
    data = scenes_data(tiny_scenes, overfit_images=2, batch_size=2, augmentation="scale_crop")
    assert [r.image_id for r in data.train_set.records] == [1, 2]
    assert data.val_set is data.train_set
    (batch,) = with_trainer(data).train_dataloader()
    for sample in batch:
        record = data.train_set.records[sample.index]
        assert np.array_equal(sample.image.permute(1, 2, 0), read_image(record.path))
    with pytest.raises(DataError, match="is 13, but the data has only 12 training images;"):
        _ = scenes_data(tiny_scenes, overfit_images=13).train_set


def test_without_a_root_scenes_are_drawn_once(tmp_path):
    scenes = Scenes(str(tmp_path / "deep/scenes"), train=2, val=1, size=64, seed=4)
    data = SegmentationData(scenes=scenes)
    assert (len(data.train_set), len(data.val_set), data.mask_classes.num_classes) == (2, 1, 7)


def test_masks_are_checked_before_training_unless_there_are_many(tmp_path, monkeypatch):
    root = write_camvid(tmp_path / "c", some_masks(3))
    write_mask(root / "trainannot/im1.png", np.full((6, 9), 99, np.uint8), "L")
    message = r"1 of 3 masks cannot be used: .*im1\.png: has 1 id that no class has: 99"
    with pytest.raises(DataError, match=message):
        _ = trained_data(root).train_set
    assert len(trained_data(root, check_masks=False).train_set) == 3
    monkeypatch.setattr(mask_statistics, "CHECKED_UP_TO", 2)
    monkeypatch.setattr(mask_statistics, "LOOKED_AT", 1)
    data = trained_data(root)
    assert len(data.train_set) == 3
    with pytest.raises(DataError, match=r"im1\.png: has 1 id"):
        list(with_trainer(data).train_dataloader())
    with pytest.raises(DataError, match=message):
        _ = trained_data(root, check_masks=True).train_set


def test_images_are_decoded_before_training_when_asked_for(tmp_path, monkeypatch):
    root = write_voc(tmp_path / "v", some_masks(2, size=(60, 60)))
    image = root / "JPEGImages/im1.jpg"
    image.write_bytes(image.read_bytes()[:-900])
    monkeypatch.setattr(image_checks, "looks_whole", lambda path: True)
    monkeypatch.setattr(image_checks, "DECODED", 1)  # the first
    assert len(trained_data(root).train_set) == 2
    with pytest.raises(DataError, match="1 of 2 images cannot be used"):
        _ = trained_data(root, check_images=True).train_set


def test_images_of_another_size_than_annotated_are_refused_when_read(tmp_path):
    root = write_coco(tmp_path, {"a": np.zeros((6, 9), np.uint8)})
    path = root / "annotations/instances_train2017.json"
    path.write_text(path.read_text().replace('"width": 9', '"width": 8'))
    images = SegmentationImages(read_segmentation(root, "train"))
    with pytest.raises(DataError, match=r"a\.jpg: is 9x6 pixels as shown, its annotations say 8x6"):
        _ = images[0]


def test_multilabel_masks_have_a_channel_a_class(tmp_path):
    root = write_coco(tmp_path, some_masks())
    data = trained_data(root, task="multilabel", train_split="train2017", batch_size=3)
    (batch,) = with_trainer(data).train_dataloader()
    assert {tuple(s.mask.shape) for s in batch} == {(2, 32, 48)}
    assert data.train_set.num_logits == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, r"data\.batch_size must be at least 1, got 0"),
        ({"crop": (31, 40)}, r"data\.crop must be \(H, W\), each at least 32, got \(31, 40\)"),
        ({"fraction": 1.5}, r"data\.fraction must lie in \(0, 1\], got 1.5"),
        ({"overfit_images": 0}, r"data\.overfit_images must be at least 1, got 0"),
    ],
)
def test_impossible_options_are_refused(options, message):
    with pytest.raises(DataError, match=message):
        SegmentationData("x", **options)


def test_real_data_makes_batches(shared_data):
    data = scenes_data(shared_data / "camvid", crop=(224, 224), augmentation="fcdensenet_crop")
    assert (len(data.train_set), len(data.val_set), data.train_set.num_logits) == (367, 101, 11)
    batch = next(iter(with_trainer(data).train_dataloader()))
    assert torch.stack([s.image for s in batch]).shape == (4, 3, 224, 224)
    values = torch.stack([s.mask for s in batch]).unique().tolist()
    assert set(values) <= {*range(11), 255} and len(values) > 4


SHARED = {"root", "train_split", "val_split", "train", "val", "layout", "classes", "batch_size"}
SHARED |= {"num_workers", "augmentation", "seed", "fraction", "overfit_images", "strict"}
SHARED |= {"val_fraction", "group_pattern", "allow_shared_images", "rename", "drop"}
SHARED |= {"check_images", "bad_images", "scenes", "annotation_file", "image_folder"}


@pytest.mark.parametrize(
    ("data_type", "own"),
    [
        (SegmentationData, {"task", "crop", "check_masks", "write_classes"}),
        (
            DetectionData,
            {"copy_paste", "jitter_size", "target_types", "group_by_shape"},
        ),
    ],
)
def test_every_option_has_a_sentence_in_the_help(data_type, own):
    parser = LightningArgumentParser()
    parser.add_lightning_class_args(data_type, "data")
    options = {a.dest: a.help for a in parser._actions if a.dest.startswith("data.")}
    assert {name.split(".")[1] for name in options} == SHARED | own
    assert [name for name, text in options.items() if not text or "." not in text] == []
