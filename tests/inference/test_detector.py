"""A trained detector as a file: what it finds, and which files are refused."""

import dataclasses
import json

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image
from tiny_runs import DETECTOR_ARGS, PYRAMID_ARGS
from torch import nn

from densenet_backbones.checkpoints import CheckpointError, read_checkpoint
from densenet_backbones.data.categories import Categories
from densenet_backbones.data.faults import DataError
from densenet_backbones.data.images import read_image
from densenet_backbones.data.readers.detection_sources import read_detection
from densenet_backbones.inference.detector import DetectorSpec
from densenet_backbones.inference.loading import load
from densenet_backbones.inference.model_file import (
    build_registered,
    compare_names,
    read_model_file,
    read_spec,
    save_model,
    select_fitting_weights,
)

SPEC = DetectorSpec("dsod_tiny", DETECTOR_ARGS, Categories(("dog", "cat"), (7, 3)))


@pytest.fixture(scope="module")
def slim(tmp_path_factory):
    """An untrained detector of two classes, as a slim file."""
    torch.manual_seed(0)
    file = tmp_path_factory.mktemp("slim") / "model.safetensors"
    save_model(file, SPEC, SPEC.build())
    assert [f.name for f in file.parent.iterdir()] == ["model.safetensors"]
    return file


@pytest.fixture(scope="module")
def val_files(tiny_scenes):
    return [(r.image_id, r.path) for r in read_detection(tiny_scenes, "val").records]


def same(first, second):
    return all(
        torch.equal(a.boxes, b.boxes)
        and torch.equal(a.scores, b.scores)
        and a.names == b.names
        and torch.equal(a.labels, b.labels)
        for a, b in zip(first, second, strict=True)
    )


def test_both_files_find_what_the_evaluation_found(tiny_run, val_files):
    files = [file for _, file in val_files]
    slim, full = (load(tiny_run / name) for name in ("model.safetensors", "checkpoints/best.ckpt"))
    found = slim.predict_batch(files, 0)
    assert same(found, full.predict_batch(files, 0))
    results = json.loads((tiny_run / "evaluation/results.json").read_text())
    for (image_id, _), detections in zip(val_files, found, strict=True):
        rows = [r for r in results if r["image_id"] == image_id]
        rows.sort(key=lambda r: -r["score"])
        assert len(rows) == len(detections) > 0
        boxes = np.array([r["bbox"] for r in rows])
        boxes[:, 2:] += boxes[:, :2]
        # batches differ, and with them the order in which sums are taken
        np.testing.assert_allclose(detections.scores, [r["score"] for r in rows], atol=1e-5)
        np.testing.assert_allclose(detections.boxes.sum(0), boxes.sum(0), rtol=1e-4)
        ids = [full.categories.id_of_label(int(label)) for label in detections.labels]
        assert sorted(ids) == sorted(r["category_id"] for r in rows)


def test_a_prediction_is_sorted_named_and_inside_the_image(slim, val_files):
    detector = load(slim)
    _, file = val_files[0]
    found = detector.predict(file, 0)
    assert (found.scores[:-1] >= found.scores[1:]).all()
    assert found.names == [("background", "dog", "cat")[label] for label in found.labels]
    assert found.boxes.dtype == torch.float32 and found.labels.dtype == torch.int64
    assert (found.boxes >= 0).all() and (found.boxes <= 64).all()
    assert len(found) == len(found.names) == len(found.boxes) > 0


def test_an_image_is_a_path_a_string_or_pixels(slim, val_files):
    detector = load(slim)
    _, file = val_files[0]
    pixels = read_image(file)
    expected = detector.predict(file, 0)
    assert same([expected, expected], [detector.predict(str(file), 0), detector.predict(pixels, 0)])
    assert same([expected], [detector.predict(np.asfortranarray(pixels), 0)])


def test_low_scores_are_left_out(slim, val_files):
    detector = load(slim)
    everything = detector.predict(val_files[0][1], 0)
    threshold = float(everything.scores[len(everything) // 2])
    found = detector.predict(val_files[0][1], threshold)
    assert len(found) == int((everything.scores >= threshold).sum()) < len(everything)
    for wrong in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match=r"score_thresh must lie in \[0, 1\]"):
            detector.predict(val_files[0][1], wrong)


@pytest.mark.parametrize("device", ["cuda:99", "xpu", "nothing"])
def test_a_device_that_is_not_there_gets_a_sentence(device, slim):
    with pytest.raises(ValueError, match=rf"device {device}: .*'cpu' is always there"):
        load(slim, device)


@pytest.mark.parametrize(
    "image",
    [np.zeros((8, 8), bool), np.zeros((8, 8, 4), np.uint8), np.zeros((8, 8, 3), np.float32)],
)
def test_other_arrays_are_refused(image, slim):
    with pytest.raises(ValueError, match=r"must be \(H, W, 3\) uint8 RGB, got \(8, 8"):
        load(slim).predict(image)


def test_a_missing_image_is_named(slim):
    with pytest.raises(DataError, match=r"nowhere\.jpg"):
        load(slim).predict("nowhere.jpg")


def test_evaluation_mode_and_classes_come_from_the_file(slim):
    detector = load(slim)
    assert not detector.model.training
    assert detector.categories == SPEC.categories
    assert detector.model.num_classes == 3


def test_preprocessing_comes_from_the_file(tmp_path):
    model = SPEC.build()
    described = {**model.transform.to_dict(), "image_mean": [1.0, 2.0, 3.0], "channel_order": "bgr"}
    spec = DetectorSpec(SPEC.name, SPEC.args, SPEC.categories, described)
    save_model(tmp_path / "m.safetensors", spec, model)
    assert load(tmp_path / "m.safetensors").model.transform.to_dict() == described


def test_a_pretrained_base_is_not_fetched_again(tmp_path):
    spec = DetectorSpec(SPEC.name, {**SPEC.args, "weights_backbone": "timm"}, SPEC.categories)
    save_model(tmp_path / "m.safetensors", spec, SPEC.build())
    assert load(tmp_path / "m.safetensors").spec.args["weights_backbone"] == "timm"


def pyramid(**args):
    return DetectorSpec("retinanet_fpn", {**PYRAMID_ARGS, **args}, SPEC.categories)


def test_preprocessing_of_detectors_of_any_image_size_comes_from_the_file(tmp_path):
    spec = pyramid()
    model = spec.build()
    described = {**model.transform.to_dict(), "min_size": 48, "image_mean": [0.1, 0.2, 0.3]}
    save_model(tmp_path / "m.safetensors", spec.with_preprocessing(described), model)
    restored = load(tmp_path / "m.safetensors").model
    assert restored.transform.to_dict() == described
    assert restored.transform.min_size == (48,)


@pytest.mark.parametrize("name", ["retinanet_fpn", "retinanet_fpn_v2"])
def test_weights_to_start_from_are_not_needed_again(name, tmp_path):
    """What follows from them stays: the kind of batch norm, and which layers are trained."""
    whole = dataclasses.replace(pyramid(out_channels=64), name=name)
    file = tmp_path / "backbone.safetensors"
    body = whole.build().backbone.body
    safetensors.torch.save_file({k: v.contiguous() for k, v in body.state_dict().items()}, file)
    spec = dataclasses.replace(whole, args={**whole.args, "weights_backbone": str(file)})
    model = spec.build()
    save_model(tmp_path / "m.safetensors", spec, model)
    file.unlink()
    restored = load(tmp_path / "m.safetensors")
    assert restored.spec == spec
    assert [type(m) for m in restored.model.modules()] == [type(m) for m in model.modules()]
    trained = [
        [n for n, p in m.named_parameters() if p.requires_grad] for m in (model, restored.model)
    ]
    assert trained[0] == trained[1] and len(trained[0]) < len(list(model.parameters()))


# -- files that are refused ------------------------------------------------------------------------


def refusal(file):
    with pytest.raises(CheckpointError) as error:
        load(file)
    assert str(file) in str(error.value)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_weights_alone_are_refused(tmp_path):
    weights = SPEC.build().state_dict()
    torch.save(weights, tmp_path / "a.pth")
    safetensors.torch.save_file(weights, tmp_path / "a.safetensors")
    for name in ("a.pth", "a.safetensors"):
        assert "no description of a detector" in refusal(tmp_path / name)
        assert "--init-from" in refusal(tmp_path / name)


def test_pickled_code_is_refused(tmp_path):
    torch.save(nn.Linear(1, 1), tmp_path / "a.ckpt")
    assert "unpickling it can run any program" in refusal(tmp_path / "a.ckpt")


@pytest.mark.parametrize("name", ["a.ckpt", "a.safetensors"])
def test_files_that_are_no_checkpoints_are_refused(name, tmp_path):
    assert "there is no such file" in refusal(tmp_path / name)
    (tmp_path / name).write_text("no checkpoint")
    assert refusal(tmp_path / name)
    torch.save([torch.zeros(1)], tmp_path / "list.ckpt")
    assert "list" in refusal(tmp_path / "list.ckpt")


def described_as(slim, tmp_path, **changes):
    """The slim file with a changed description, in both kinds of file."""
    weights = read_checkpoint(slim)
    described = {**SPEC.to_dict(), **changes}
    safetensors.torch.save_file(
        weights, tmp_path / "b.safetensors", {DetectorSpec.key: json.dumps(described)}
    )
    torch.save({DetectorSpec.key: described, "state_dict": weights}, tmp_path / "b.ckpt")
    return tmp_path / "b.safetensors", tmp_path / "b.ckpt"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": 3}, "format 3 is unknown here (this release reads up to 2); install the"),
        ({"name": "dsod30"}, "no detector is called 'dsod30'; did you mean 'dsod300'?"),
        ({"args": {"image_sise": 64}}, "no argument 'image_sise'"),
        ({"args": 3}, "the description of the detector is damaged"),
        ({"categories": {"names": ["dog"]}}, "the description of the detector is damaged"),
        ({"categories": {"names": ["a", "a"], "ids": [1, 2]}}, "class names must be unique"),
        ({"categories": {"names": ["dog"], "ids": [1]}}, "weights do not fit the detector"),
        ({"args": {"image_size": 64}}, "weights do not fit the detector"),
        ({"preprocessing": {"sise": 3}}, "do not fit the detector the file describes"),
    ],
)
def test_wrong_descriptions_are_refused(changes, message, slim, tmp_path):
    for file in described_as(slim, tmp_path, **changes):
        assert message in refusal(file)


def test_a_description_that_is_no_json_is_refused(slim, tmp_path):
    safetensors.torch.save_file(
        read_checkpoint(slim), tmp_path / "c.safetensors", {DetectorSpec.key: "{"}
    )
    assert "no description of a detector" in refusal(tmp_path / "c.safetensors")


def test_the_description_survives_both_kinds_of_file(slim, tmp_path):
    for file in described_as(slim, tmp_path):
        assert read_model_file(file, (DetectorSpec,))[0] == SPEC


# -- parts -----------------------------------------------------------------------------------------


def test_arguments_of_a_detector_are_checked():
    for args, message in (
        ({"image_sise": 64}, "dsod_tiny has no argument 'image_sise'; did you mean 'image_size'"),
        ({"image_size": "big"}, "dsod_tiny: image_size must be int or Sequence, got big"),
        ({"weights_backbone": 3}, "dsod_tiny: weights_backbone must be str"),
    ):
        with pytest.raises(ValueError, match=message):
            build_registered("detector", "dsod_tiny", 3, args)
    with pytest.raises(ValueError, match="no detector is called 'dsod_tinny'; did you mean"):
        build_registered("detector", "dsod_tinny", 3, {})


def test_torchvisions_own_detectors_can_be_built():
    model = build_registered(
        "detector", "ssdlite320_mobilenet_v3_large", 3, {"weights_backbone": None}
    )
    assert type(model).__name__ == "SSD"


def test_weights_are_split_into_those_that_fit_and_the_others():
    model = nn.Linear(2, 3)
    kept, left = select_fitting_weights(
        model, {"weight": torch.ones(3, 2), "bias": torch.ones(4), "more": torch.ones(1)}
    )
    assert list(kept) == ["weight"] and kept["weight"].sum() == 6
    assert left == ["bias: (4,), the model's is (3,)", "more: the model has none"]
    _, left = select_fitting_weights(model, {"weight": torch.ones(3, 2)})
    assert left == ["bias: not in the file"]


def test_an_upright_image_is_what_is_looked_at(slim, tmp_path, val_files):
    """A picture stored on its side, with the note that says so, gives the boxes of the upright."""
    pixels = read_image(val_files[0][1])[:48]
    Image.fromarray(pixels).save(tmp_path / "upright.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter clockwise
    Image.fromarray(np.rot90(pixels)).save(tmp_path / "lying.png", exif=exif)
    detector = load(slim)
    found = detector.predict_batch([tmp_path / "upright.png", tmp_path / "lying.png"], 0)
    assert same(found[:1], found[1:])


def test_names_to_start_from_are_compared(slim, tmp_path):
    def spec(names, keypoints=()):
        categories = Categories(names, tuple(range(len(names))), keypoints)
        return dataclasses.replace(SPEC, categories=categories)

    assert read_spec(slim, DetectorSpec).categories == SPEC.categories
    torch.save({"state_dict": SPEC.build().state_dict()}, tmp_path / "bare.pt")
    assert read_spec(tmp_path / "bare.pt", DetectorSpec) is None
    # Ids are no matter, nor is another number of classes, whose outputs do not fit.
    assert compare_names("f", SPEC, spec(("dog", "cat"))) == []
    assert compare_names("f", SPEC, spec(("cat", "dog", "fox"))) == []
    with pytest.raises(
        CheckpointError, match=r"f: has .* 'dog', 'cat', .*classes '\[\"dog\", \"cat"
    ):
        compare_names("f", SPEC, spec(("cat", "dog")))
    (line,) = compare_names("f", SPEC, spec(("cat", "fox")))
    assert "its classes are 'dog', 'cat': outputs of other classes start from theirs" in line
    old, new = spec(("dog",), ("nose", "tail")), spec(("dog",), ("tail", "nose"))
    assert "its keypoints are 'nose', 'tail': " in compare_names("f", old, new)[0]
