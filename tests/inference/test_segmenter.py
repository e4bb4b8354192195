"""A trained segmenter as a file: what it predicts, which files are refused, smp's decoders."""

import json
import warnings

import numpy as np
import pytest
import safetensors.torch
import torch
from fresh_processes import run_fresh
from PIL import Image
from tiny_segmenters import UNET_ARGS

from densenet_backbones.checkpoints import CheckpointError
from densenet_backbones.data.faults import DataError
from densenet_backbones.data.images import read_image
from densenet_backbones.data.mask_samples import MaskClasses
from densenet_backbones.data.readers.segmentation_sources import read_segmentation
from densenet_backbones.heads.backbones import LOADED_LATER
from densenet_backbones.inference.loading import load
from densenet_backbones.inference.model_file import read_model_file, save_model
from densenet_backbones.inference.segmenter import (
    SegmentationModel,
    SegmenterSpec,
    pick_labels,
)
from densenet_backbones.inference.smp_segmenters import build_smp

CLASSES = MaskClasses(("road", "tree"), ((0, 0, 0), (10, 200, 30)), (4, 9))
SPEC = SegmenterSpec("unet", UNET_ARGS, CLASSES)


@pytest.fixture(scope="module")
def slim(tmp_path_factory):
    """An untrained segmenter of two classes, as a slim file."""
    torch.manual_seed(0)
    file = tmp_path_factory.mktemp("slim") / "model.safetensors"
    save_model(file, SPEC, SPEC.build())
    return file


@pytest.fixture(scope="module")
def image():
    return np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)


def test_both_files_predict_what_the_evaluation_found(tiny_segmentation, tiny_masks):
    both = [load(tiny_segmentation / f) for f in ("model.safetensors", "checkpoints/best.ckpt")]
    assert all(isinstance(model, SegmentationModel) for model in both)
    part = read_segmentation(tiny_masks, "val")
    matrix = np.zeros((7, 7), int)
    for record in part.records:
        first, second = (model.predict(record.path) for model in both)
        assert np.array_equal(first.labels, second.labels)
        assert np.array_equal(first.scores, second.scores)
        truth = record.read_mask()
        np.add.at(matrix, (truth[truth != 255], first.labels[truth != 255]), 1)
    found = json.loads((tiny_segmentation / "evaluation/metrics.json").read_text())
    assert matrix.tolist() == found["confusion_matrix"]


def test_a_prediction_has_labels_scores_names_and_colors(slim, image):
    found = load(slim).predict(image)
    assert found.labels.shape == found.scores.shape == (50, 70)
    assert found.labels.dtype == np.uint8 and found.scores.dtype == np.float32
    assert set(np.unique(found.labels)) <= {0, 1}
    assert (found.scores >= 0.5).all() and (found.scores <= 1).all()
    assert (found.names, found.colors) == (CLASSES.names, CLASSES.colors)
    assert found.count_pixels(0) + found.count_pixels(1) == 50 * 70
    assert found.measure_share(1) == pytest.approx((found.labels == 1).mean())
    assert found.mean_score(1) == pytest.approx(found.scores[found.labels == 1].mean())


@pytest.mark.parametrize("task", ["binary", "multilabel"])
def test_other_tasks(task, image, tmp_path):
    spec = SegmenterSpec("unet", UNET_ARGS, CLASSES, task)
    assert spec.num_logits == (1 if task == "binary" else 2)
    save_model(tmp_path / "m.safetensors", spec, spec.build())
    model = load(tmp_path / "m.safetensors")
    assert model.spec.task == task
    found = model.predict(image)
    assert found.labels.shape == ((50, 70) if task == "binary" else (2, 50, 70))
    logits = model.model(torch.from_numpy(image).permute(2, 0, 1)[None] / 255)[0].detach()
    expected = (logits > 0).numpy()
    assert np.array_equal(found.labels, expected[0] if task == "binary" else expected)
    assert (found.scores >= 0.5).all()
    with_tiles = model.predict(image, tile=32, overlap=0)
    assert with_tiles.labels.shape == found.labels.shape
    assert 0 <= found.measure_share(1) <= 1


def test_the_most_probable_label_and_its_probability():
    scores = torch.tensor([[[[0.2, 0.5]], [[0.8, 0.1]], [[0.0, 0.4]]]])
    labels, sure = pick_labels(scores, "multiclass")
    assert labels.tolist() == [[[1, 0]]] and sure.tolist() == [[[pytest.approx(0.8), 0.5]]]
    labels, sure = pick_labels(scores[:, :1], "binary")
    assert labels.tolist() == [[[0, 0]]]
    assert sure[0, 0].tolist() == pytest.approx([0.8, 0.5])


def test_tiles_equal_the_whole_image_away_from_seams(slim):
    """Tiles of 256 with a margin: inside, beyond the net's reach, there is no difference."""
    image = np.random.default_rng(1).integers(0, 256, (320, 448, 3), dtype=np.uint8)
    model = load(slim)
    whole, tiled = model.predict(image), model.predict(image, tile=256, overlap=128)
    difference = np.abs(whole.scores - tiled.scores)
    assert difference.max() < 0.05
    assert (whole.labels != tiled.labels).mean() < 0.01
    # The first tile's left half is in no other tile, and 128 pixels from the next one's end.
    assert difference[:96, :96].max() < 1e-5


def test_a_size_reduces_larger_images_and_masks_keep_theirs(slim, tmp_path):
    model = load(slim)
    noise = np.random.default_rng(0).integers(0, 256, (12, 17, 3), dtype=np.uint8)
    file = tmp_path / "photo.jpg"
    Image.fromarray(noise).resize((850, 603), Image.Resampling.BICUBIC).save(file)
    as_it_is = model.predict(file)
    model.size = 603
    assert np.array_equal(model.predict(file).scores, as_it_is.scores)
    model.size = 64
    assert model.read(file).factor == 8
    reduced = model.predict(file)
    assert reduced.labels.shape == reduced.scores.shape == (603, 850)
    assert reduced.plot().shape[:2] == (603, 850)
    small = Image.fromarray(model.read(file).pixels).resize((90, 64), Image.Resampling.BILINEAR)
    expected = model.predict(small)  # which is no larger than the size
    rows = np.arange(603) * 64 // 603
    columns = np.arange(850) * 90 // 850
    assert (reduced.labels == expected.labels[rows][:, columns]).mean() > 0.98  # but for edges
    assert np.array_equal(np.unique(reduced.scores), np.unique(expected.scores))
    with_tiles = model.predict(file, tile=64)
    assert with_tiles.labels.shape == (603, 850)


PEAK = """
import resource, sys, warnings
from densenet_backbones.inference.loading import load
model = load(sys.argv[1])
model.size = 128
model.predict(sys.argv[2], tile=256)
peaks = [resource.getrusage(resource.RUSAGE_SELF).ru_maxrss]
model.predict(sys.argv[3], tile=256)
peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
print((peaks[1] - peaks[0]) * 1024)
"""


def test_a_large_photo_takes_the_memory_of_its_mask(slim, tmp_path):
    files = [str(tmp_path / name) for name in ("small.jpg", "large.jpg")]
    for file, size in zip(files, ((160, 120), (6000, 4000)), strict=True):
        Image.new("RGB", size, (90, 120, 60)).save(file)
    program = f"import sys; sys.argv[1:] = {[str(slim), *files]}\n{PEAK}"
    # Five bytes a pixel are the labels and the scores; decoding at full size alone takes seven.
    assert int(run_fresh(program).split()[-1]) < 6.5 * 6000 * 4000


def test_tiles_with_statistics_of_their_own_get_a_warning(image):
    args = {"block_config": [1, 1], "growth_rate": 4, "batch_statistics_in_eval": True}
    spec = SegmenterSpec("fcdensenet56", args, CLASSES)
    model = SegmentationModel(spec, spec.build(), "cpu")
    with pytest.warns(UserWarning, match="norms each tile by the tile's own statistics"):
        model.predict(image, tile=32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.predict(image, tile=128)


def test_images_are_files_or_pixels(slim, tiny_masks, tmp_path):
    model = load(slim)
    file = read_segmentation(tiny_masks, "val").records[0].path
    assert np.array_equal(model.predict(file).labels, model.predict(read_image(file)).labels)
    small = model.predict(str(file), tile=512)
    assert np.array_equal(model.predict(file).scores, small.scores)  # one tile is the whole image
    with pytest.raises(DataError, match=r"nowhere\.jpg"):
        model.predict("nowhere.jpg")
    with pytest.raises(ValueError, match=r"must be \(H, W, 3\) uint8 RGB"):
        model.predict(np.zeros((8, 8, 4), np.uint8))
    with pytest.raises(ValueError, match=r"overlap must lie in \[0, 32\]"):
        model.predict(file, tile=64, overlap=33)


def test_preprocessing_comes_from_the_file(tmp_path):
    described = {
        "image_mean": [1, 2, 3],
        "image_std": [4, 5, 6],
        "channel_order": "bgr",
        "value_range": 255,
    }
    spec = SPEC.with_preprocessing(described)
    save_model(tmp_path / "m.safetensors", spec, spec.build())
    assert load(tmp_path / "m.safetensors").model.normalization.to_dict() == described


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": 3}, "segmenter format 3 is unknown here"),
        ({"name": "unett"}, "no segmenter is called 'unett'; did you mean 'unet'?"),
        ({"task": "instances"}, "the description of the segmenter is damaged"),
        ({"classes": {"names": ["a"]}}, "the description of the segmenter is damaged"),
        ({"args": {}}, "weights do not fit the segmenter"),
    ],
)
def test_wrong_descriptions_are_refused(changes, message, slim, tmp_path):
    weights = safetensors.torch.load_file(slim)
    described = json.dumps({**SPEC.to_dict(), **changes})
    file = tmp_path / "b.safetensors"
    safetensors.torch.save_file(weights, file, {SPEC.key: described})
    with pytest.raises(CheckpointError, match=message) as error:
        load(file)
    assert str(file) in str(error.value)


# -- smp -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "args", "stride"),
    [
        ("DeepLabV3Plus", {"encoder_name": "densenet121_features", "decoder_channels": 8}, 16),
        ("Unet", {"encoder_name": "resnet18", "decoder_channels": [8, 8, 8, 8, 8]}, 32),
        ("FPN", {"encoder_name": "tu-densenet121_features", "decoder_pyramid_channels": 8}, 32),
    ],
)
def test_models_of_smp_take_any_size_and_come_back_from_files(name, args, stride, tmp_path):
    spec = SegmenterSpec(f"smp:{name}", args, CLASSES)
    model = spec.build()
    assert model.stride == stride
    save_model(tmp_path / "m.safetensors", spec, model)
    loaded = load(tmp_path / "m.safetensors").model
    image = torch.rand(1, 3, 50, 70)
    with torch.no_grad():
        found = loaded(image)
        assert found.shape == (1, 2, 50, 70)
        assert torch.equal(found, model.eval()(image))


def test_the_weights_of_a_file_are_not_fetched_again():
    spec = SegmenterSpec("smp:Unet", {"encoder_weights": "imagenet"}, CLASSES)
    assert spec.without_downloads() == {"encoder_weights": None}
    pretrained = SegmenterSpec("unet", {**UNET_ARGS, "weights_backbone": "timm"}, CLASSES)
    assert pretrained.without_downloads() == {"weights_backbone": LOADED_LATER}


def test_layers_of_an_smp_model_are_ordered_for_layer_decay():
    from timm.optim import param_groups_layer_decay

    ours = build_smp("Unet", 2, {"encoder_name": "densenet121_features"})
    groups = param_groups_layer_decay(ours, 0.05, layer_decay=0.5)
    scale = {id(p): group["lr_scale"] for group in groups for p in group["params"]}
    of = {name: scale[id(p)] for name, p in ours.named_parameters()}
    assert len(set(of.values())) > 3
    assert of["net.encoder.model.conv0.weight"] == min(of.values()) < 0.1
    assert of["net.segmentation_head.0.weight"] == 1.0
    theirs = build_smp("Unet", 2, {"encoder_name": "resnet18"})
    groups = param_groups_layer_decay(theirs, 0.05, layer_decay=0.5)
    assert {group["lr_scale"] for group in groups} == {0.5, 1.0}


def test_a_file_without_a_description_is_refused(tmp_path):
    safetensors.torch.save_file({"a": torch.zeros(1)}, tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match="no description of a segmenter"):
        read_model_file(tmp_path / "a.safetensors", (SegmenterSpec,))
