"""The command of classifiers: what it writes and says, its weights in other models, its configs."""

import csv
import json
import os

import numpy as np
import pytest
import torch
import yaml
from locations import PROJECT
from long_cases import first_now
from PIL import Image
from tiny_classifiers import COLORS, classification_arguments, write_folders
from tiny_runs import files_below, signals_as_before, training_arguments
from tiny_segmenters import UNET_ARGS, segmentation_arguments
from torchvision.transforms.functional import to_tensor

from densenet_backbones import load
from densenet_backbones.checkpoints import read_state_dict
from densenet_backbones.command.training import choose_task, make_parser
from densenet_backbones.data.classification.fitting import fit_image
from densenet_backbones.data.images import read_image
from densenet_backbones.export import export
from densenet_backbones.heads.classification.classifier import create_classifier
from densenet_backbones.inference import predict
from densenet_backbones.inference.inputs.image_tensors import to_float
from densenet_backbones.training import evaluate
from densenet_backbones.training.arguments import CLASSIFICATION_FORM, list_configs
from densenet_backbones.training.cli import train_cls, train_det, train_seg
from densenet_backbones.training.resuming.weights import MOST_LINES, match_trunks

CONFIGS = list_configs(CLASSIFICATION_FORM)
PROMISED = [
    *("config.yaml", "environment.json", "log.txt", "metrics.csv", "model.safetensors"),
    *("summary.json", "checkpoints/best.ckpt", "checkpoints/last.ckpt"),
    *("pictures/train_batch_0.png", "pictures/training_curves.png"),
    *("evaluation/table.txt", "evaluation/metrics.json", "evaluation/classes.csv"),
    *("evaluation/confusion_matrix.csv", "evaluation/confusion_matrix.png"),
    *("evaluation/predictions.csv", "evaluation/calibration.png"),
]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Folder with the data and the finished run "run"; not to be written to."""
    folder = tmp_path_factory.mktemp("classified")
    data = write_folders(folder / "data")
    with pytest.MonkeyPatch.context() as patch, signals_as_before():
        patch.chdir(folder)
        train_cls(classification_arguments(data, "--run-dir", str(folder / "run"), epochs=4))
    return folder


def test_a_training_writes_all_that_it_promises(run):
    assert set(PROMISED) <= set(files_below(run / "run"))
    log = (run / "run/log.txt").read_text()
    assert "Trained classifier:" in log and "densenet40_k12: " in log
    summary = json.loads((run / "run/summary.json").read_text())
    assert summary["monitor"] == "accuracy" and summary["experiment"]["kind"] == "classifier"
    # Three colors are no riddle: chance has 0.33.
    assert summary["best"] is not None
    numbers = json.loads((run / "run/evaluation/metrics.json").read_text())["numbers"]
    assert numbers["accuracy"] >= 0.8 and numbers["top5"] == 1


def test_predictions_are_those_of_the_evaluation(run):
    """`load`, `predict` and the training's own evaluation see an image in the same way."""
    model = load(run / "run")
    with open(run / "run/evaluation/predictions.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 24
    for row in rows[::5]:
        result = model.predict(row["file"])
        assert result.name == row["predicted"]
        assert result.score == pytest.approx(float(row["score"]), abs=1e-5)
        assert result[row["class"]] == pytest.approx(float(row["score_of_class"]), abs=1e-5)
    assert sum(row.score for row in result) == pytest.approx(1, abs=1e-5)
    batch = model.predict([row["file"] for row in rows[:2]])
    assert [one.name for one in batch] == [row["predicted"] for row in rows[:2]]


def test_evaluate_and_predict_take_classifiers(run, tmp_path, capsys):
    weights = str(run / "run/model.safetensors")
    evaluate.main([weights, "--data", str(run / "data"), "--out", str(tmp_path / "ev")])
    first = json.loads((run / "run/evaluation/metrics.json").read_text())["numbers"]
    again = json.loads((tmp_path / "ev/metrics.json").read_text())["numbers"]
    assert again == pytest.approx(first, abs=1e-6)
    folder = run / "data/val/red"
    predict.main([weights, str(folder), "--out", str(tmp_path / "p"), "--save", "json", "csv"])
    entries = json.loads((tmp_path / "p/predictions.json").read_text())
    assert len(entries) == 8 and {"file", "class", "score", "classes"} <= entries[0].keys()
    with Image.open(tmp_path / "p/0.png") as picture:
        assert picture.size[0] >= 20
    with pytest.raises(SystemExit):
        predict.main([weights, str(folder), "--out", str(tmp_path / "q"), "--save", "coco"])
    assert "a classifier has json, csv" in capsys.readouterr().err


@pytest.mark.long
def test_exported_files_classify_alike(run, tmp_path):
    file = tmp_path / "m.onnx"
    export.main([str(run / "run/model.safetensors"), "--out", str(file), "--format", "onnx", "pt2"])
    model, exported = load(run / "run"), load(file)
    for name in COLORS:
        image = run / f"data/val/{name}/1.png"
        own, other = model.predict(image), exported.predict(image)
        np.testing.assert_allclose(own.scores, other.scores, atol=1e-5)
        assert own.names == other.names


# -- models ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "size", "parameters"),
    [
        ("densenet40_k12", 32, 1_019_722),  # CIFAR-10's ten classes, as published
        ("densenet121_features", 224, 7_978_856 - 990 * 1025),
        ("densenet121", 224, 7_978_856 - 990 * 1025),
        ("torchvision:densenet121", 224, 7_978_856 - 990 * 1025),
    ],
)
def test_networks_of_three_registries_are_classifiers(name, size, parameters):
    net = create_classifier(name, 10)
    assert net.image_size == size
    assert sum(p.numel() for p in net.parameters()) == parameters


def test_gray_networks_see_the_luminance_of_a_picture():
    gray = create_classifier("densenet40_k12", 3, in_chans=1, block_config=[1, 1, 1])
    assert gray.net.conv0.weight.shape[1] == 1
    image = torch.rand(1, 3, 16, 16)
    luma = (image * torch.tensor([0.299, 0.587, 0.114])[:, None, None]).sum(1, keepdim=True)
    gray.eval()
    torch.testing.assert_close(gray(image), gray(luma.expand(-1, 3, -1, -1)))
    mean, std = gray.normalization.image_mean[0], gray.normalization.image_std[0]
    torch.testing.assert_close(gray.normalize(image), (luma - mean) / std)


@pytest.mark.usefixtures("empty_figures")
def test_a_gray_classifier_is_one_flag(run, tmp_path):
    more = ("--model.args.in_chans", "1", "--run-dir", str(tmp_path / "r"))
    train_cls(classification_arguments(run / "data", *more, epochs=1))
    model = load(tmp_path / "r")
    assert model.model.in_chans == 1
    assert model.predict(run / "data/val/red/0.png").scores.sum() == pytest.approx(1, abs=1e-5)


def test_evaluation_fits_an_image_as_torchvision_does():
    """Resize of the shorter side, middle crop: (224, 256) for ImageNet."""
    from torchvision.transforms import CenterCrop

    image = np.random.default_rng(0).integers(0, 256, (40, 64, 3), np.uint8)
    ours = fit_image(image, 32, 0.8)  # 40 pixels: nothing to resize
    theirs = CenterCrop(32)(Image.fromarray(image))
    np.testing.assert_array_equal(ours, np.asarray(theirs))
    assert fit_image(image, 56, 0.875).shape == (56, 56, 3)


def test_images_are_read_as_they_are(run):
    path = run / "data/val/red/0.png"
    with Image.open(path) as picture:
        expected = to_tensor(picture.convert("RGB"))
    pixels = torch.from_numpy(read_image(path).transpose(2, 0, 1).copy())
    torch.testing.assert_close(to_float(pixels), expected)


# -- weights of other models -----------------------------------------------------------------------


SMALL_NET = {"growth_rate": 4, "block_config": [1, 1, 1, 1], "num_init_features": 8}
STILL = ("--model.optimizer", '{"name": "momentum", "lr": 0.0, "base_batch": 0}')


def trunk_of(weights):
    """What a rate of zero leaves alone of the first block: its weights, without running means."""
    return {
        name.partition("denseblock1.")[2]: w
        for name, w in weights.items()
        if "block1." in name and "running" not in name and "num_batches" not in name
    }


@pytest.fixture(scope="module")
def small_classifier(run, tmp_path_factory):
    """A trained classifier on a small DenseNet-121: arguments of its kind, and its file."""
    folder = tmp_path_factory.mktemp("trunk") / "c"
    args = json.dumps({**SMALL_NET, "image_size": 32})
    kind = ("--model.classifier", "densenet121_features", "--model.args", args)
    train_cls(classification_arguments(run / "data", *kind, "--run-dir", str(folder), epochs=1))
    return kind, folder / "model.safetensors"


def start_detector(request):
    net = {"backbone": "densenet121_features", "backbone_kwargs": SMALL_NET, "min_size": 64}
    args = ("--model.detector", "retinanet_densenet121_fpn", "--model.args", json.dumps(net))
    scenes = request.getfixturevalue("tiny_scenes")
    flip = ("--data.augmentation", "flip")  # images of any size
    return train_det, training_arguments(scenes, *args, *flip, epochs=1)


def start_segmenter(request):
    masks = request.getfixturevalue("tiny_masks")
    args = ("--model.args", json.dumps({**UNET_ARGS, "backbone_kwargs": SMALL_NET}))
    return train_seg, segmentation_arguments(masks, *args, epochs=1)


@pytest.mark.usefixtures("empty_figures")
def test_weights_of_another_network_are_said_to_fit_little(run, small_classifier, capsys):
    (flag, name, *_), file = small_classifier
    net = {"growth_rate": 6, "block_config": [2, 2, 2, 2], "num_init_features": 12}
    kind = (flag, name, "--model.args", json.dumps({**net, "image_size": 32}))
    words = ("--init-from", str(file.parent), "--dry-run")
    train_cls(classification_arguments(run / "data", *kind, *words, epochs=1))
    said = capsys.readouterr().out
    assert "Little of " in said and "are built otherwise" in said
    assert said.count("left out: ") == MOST_LINES + 1 and " more tensors\n" in said


@pytest.mark.parametrize("other", [start_detector, start_segmenter])
@pytest.mark.usefixtures("empty_figures")
def test_a_trunk_starts_other_models_and_the_other_way(
    other, run, small_classifier, tmp_path, capsys, request
):
    kind, file = small_classifier
    trained = trunk_of(read_state_dict(file))
    assert len(trained) > 5
    there, back = tmp_path / "there", tmp_path / "back"
    train, arguments = other(request)
    capsys.readouterr()
    train([*arguments, *STILL, "--init-from", str(file), "--run-dir", str(there)])
    said = capsys.readouterr().out
    assert "Started from" in said and "of the file is" in said
    again = ("--init-from", str(there / "model.safetensors"), "--run-dir", str(back))
    train_cls(classification_arguments(run / "data", *kind, *STILL, *again, epochs=1))
    for folder in (there, back):
        taken = trunk_of(read_state_dict(folder / "checkpoints/last.ckpt"))
        for name, value in trained.items():
            assert torch.equal(taken[name], value), (folder.name, name)


def test_trunks_are_matched_by_names_and_shapes():
    def tensors(prefix, *sizes):
        return {f"{prefix}block.{n}.weight": torch.zeros(size) for n, size in enumerate(sizes)}

    file = {**tensors("net.", 1, 2, 3), "net.classifier.weight": torch.zeros(9)}
    own = {**tensors("backbone.features.", 1, 2, 3), "head.weight": torch.zeros(4)}
    theirs, ours = match_trunks(file, own)
    assert theirs.startswith("net.") and ours.startswith("backbone.features.")
    assert theirs.removeprefix("net.") == ours.removeprefix("backbone.features.")
    assert match_trunks(file, tensors("x.", 7, 8)) is None


# -- the command -----------------------------------------------------------------------------------


def test_the_task_follows_from_the_data(run):
    def choose(*words):
        return choose_task(*make_parser().parse_known_args(words))

    assert choose("--data", str(run / "data")) == "classification"
    assert choose("--model.classifier", "densenet40_k12") == "classification"
    assert choose("--config", "cls/quickstart") == "classification"
    assert choose("--config", "densenet40_k12_cifar10") == "classification"
    assert choose("--task", "classification") == "classification"


def test_size_sets_the_squares(run, capsys):
    with pytest.raises(SystemExit):
        train_cls(["--data", str(run / "data"), "--size", "48", "--print_config"])
    assert yaml.safe_load(capsys.readouterr().out)["model"]["args"]["image_size"] == 48


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--model.classifier", "densenet41_k12"), r"no classifier is called 'densenet41_k12'"),
        (("--model.args.in_chans", "2"), "in_chans"),
        (("--model.regularization.mixup", "-1"), "model.regularization.mixup"),
        (("--model.args.growth_rat", "4"), "growth_rat"),
        (("--data.augmentation", '[{"name": "Mosaic"}]'), "images are mixed by"),
    ],
)
def test_wrong_options_are_one_sentence(words, sentence, run, refused_command, tmp_path):
    import re

    arguments = classification_arguments(run / "data", *words, "--run-dir", str(tmp_path / "r"))
    code, line = refused_command(train_cls, *arguments)
    assert code in (1, 2) and re.search(sentence, line), line


def test_every_config_file_is_shipped():
    files = {n.removesuffix(".yaml") for n in os.listdir(PROJECT / "configs/cls") if "yaml" in n}
    assert set(CONFIGS) == files and "quickstart" in files


@pytest.mark.parametrize("name", first_now(dict.fromkeys(["quickstart", *CONFIGS]), now=2))
def test_every_shipped_config_runs(name, run, tmp_path, monkeypatch, capsys):
    """One batch of each on three colors, small."""
    monkeypatch.chdir(tmp_path)
    written = yaml.safe_load(CONFIGS[name].read_text())
    layers = 4 if "121" in written["model"]["classifier"] else 3
    small = {"growth_rate": 4, "block_config": [1] * layers, "num_init_features": 8}
    words = [f"--model.args.{key}={json.dumps(value)}" for key, value in small.items()]
    train_cls(
        [
            *("--config", name, "--data", str(run / "data"), *words, "--size", "32", "--dry-run"),
            *("--batch-size", "4", "--data.num_workers", "0", "--trainer.accelerator", "cpu"),
        ]
    )
    said = capsys.readouterr().out
    assert "Dry run done" in said and f"{written['model']['classifier']}: " in said
    assert not (tmp_path / "runs").exists()
