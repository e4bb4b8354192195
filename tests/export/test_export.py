"""ONNX files: what onnxruntime computes from them is what the model computes."""

import dataclasses
import json
import shutil
from unittest import mock

import numpy as np
import pytest
import segmentation_models_pytorch as smp
import torch
from exported_detectors import KINDS, lively, noise_images, plain_image
from fresh_processes import run_fresh
from hypothesis import given
from hypothesis import strategies as st
from long_cases import first_now
from tiny_nets import randomise_norms
from tiny_segmenters import UNET_ARGS

from densenet_backbones.checkpoints import CheckpointError
from densenet_backbones.export import export, exporting, needs, onnx_file
from densenet_backbones.export.checks import Agreement, compare_detections
from densenet_backbones.export.detector_form import make_export_form
from densenet_backbones.export.needs import ExportError
from densenet_backbones.export.onnx_file import OnnxSession, write_onnx
from densenet_backbones.export.plan import make_plan, split_detector, split_segmenter
from densenet_backbones.export.program_file import ProgramFile, write_programs
from densenet_backbones.export.segmenter_form import SegmenterForm
from densenet_backbones.heads import fcdensenet56
from densenet_backbones.heads.segmentation.unet import unet
from densenet_backbones.inference.exported.runtimes import OpenvinoModel
from densenet_backbones.inference.loading import load
from densenet_backbones.inference.smp_segmenters import build_smp
from densenet_backbones.smp_encoders import register_encoder
from densenet_backbones.training import evaluate

pytestmark = pytest.mark.filterwarnings("ignore")  # torch.export warns of what torch deprecates

OUTPUTS = ("boxes", "scores", "labels", "num_detections")


@pytest.mark.long  # a trained one is exported below
@pytest.mark.parametrize("kind", KINDS)
def test_detectors_give_the_same_on_images_of_several_sizes(kind, tmp_path):
    model = lively(kind)
    path = tmp_path / "model.onnx"
    write_onnx(split_detector(make_export_form(model), OUTPUTS, None), path, {}, optimize=False)
    session = OnnxSession(path)
    numbers = []
    images = noise_images([(150, 170), (64, 64), (301, 111)])
    if "retinanet" in kind:
        images.append(plain_image())  # in which the others find boxes of equal scores
    for image in images:
        with torch.no_grad():
            (expected,) = model([image])
        found = session(image[None])
        number = int(found["num_detections"])
        assert number == len(expected["boxes"])
        # Eager scores are off by 1e-5 from float64's with these weights.
        np.testing.assert_allclose(found["boxes"][:number], expected["boxes"], atol=1e-2, rtol=0)
        np.testing.assert_allclose(found["scores"][:number], expected["scores"], atol=1e-4, rtol=0)
        assert (found["labels"][:number] == expected["labels"].numpy()).all()
        assert not any(found[name][number:].any() for name in OUTPUTS[:3])
        numbers.append(number)
    assert max(numbers) > 1
    assert "retinanet" not in kind or min(numbers) == 0


def fcdensenet(**options):
    return fcdensenet56(
        num_classes=3, growth_rate=4, block_config=(1, 2, 1), num_init_features=8, **options
    )


def deeplabv3plus():
    with mock.patch.dict(smp.encoders.encoders):
        register_encoder("tiny", growth_rate=4, block_config=(1, 1, 1, 1), num_init_features=8)
        options = {"encoder_name": "tiny", "encoder_output_stride": 16, "decoder_channels": 16}
        return build_smp("DeepLabV3Plus", 3, options)


SEGMENTERS = {  # a trained U-Net without attention is exported below
    "unet, attention": lambda: unet(num_classes=3, attention=True, **UNET_ARGS),
    "fcdensenet": fcdensenet,
    "fcdensenet, batch statistics": lambda: fcdensenet(batch_statistics_in_eval=True),
    "deeplabv3plus": deeplabv3plus,
}


@pytest.mark.long
@pytest.mark.parametrize("name", SEGMENTERS)
def test_segmenters_give_the_same_on_images_of_several_sizes(name, tmp_path):
    torch.manual_seed(0)
    model = randomise_norms(SEGMENTERS[name]()).eval()
    path = tmp_path / "model.onnx"
    form = SegmenterForm(model, lambda logits: (logits,))
    write_onnx(split_segmenter(form, ("logits",), None), path, {}, optimize=False)
    session = OnnxSession(path)
    for shape in ((1, 3, 96, 150), (2, 3, 71, 97), (1, 3, 64, 64)):
        images = torch.rand(*shape)
        with torch.no_grad():
            logits = model(images)
            exact = model.double()(images.double())
            model.float()
        rounding = (logits - exact).abs().max().item()
        np.testing.assert_allclose(
            session(images)["logits"], exact, atol=10 * rounding + 1e-6, rtol=0
        )
        assert logits.std() > 100 * rounding


# -- the command ---------------------------------------------------------------------------------


@pytest.fixture
def detector(tiny_run, tmp_path):
    """A copy of a trained detector: its export is written beside it."""
    return shutil.copy(tiny_run / "model.safetensors", tmp_path / "model.safetensors")


@pytest.fixture
def segmenter(tiny_segmentation, tmp_path):
    return shutil.copy(tiny_segmentation / "model.safetensors", tmp_path / "model.safetensors")


def test_a_trained_detector(detector, tiny_scenes, tmp_path, capsys):
    pictures = sorted((tiny_scenes / "VOC").rglob("*.jpg"))[:2]
    assert len(pictures) == 2
    export.main([str(detector), "--check-image", *map(str, pictures)])
    said = capsys.readouterr().out
    assert all(picture.name in said for picture in pictures)
    assert "detections agree" in said and "written to" in said
    facts = OnnxSession(tmp_path / "model.onnx").facts
    names = load(detector).categories.names
    assert json.loads(facts["names"]) == ["background", *names]
    assert facts["kind"] == "detector"
    assert set(json.loads(facts["outputs"])) == set(OUTPUTS)
    assert not list(tmp_path.glob(".model.onnx*"))
    # The file is a model like the trained one, with its classes and its best score.
    trained, exported = load(detector), load(tmp_path / "model.onnx")
    assert exported.spec == trained.spec and exported.score_thresh == trained.score_thresh
    for picture in pictures:
        found, expected = (one.predict(picture, 0.05) for one in (exported, trained))
        assert found.names == expected.names and len(found) > 0
        np.testing.assert_allclose(found.boxes, expected.boxes, atol=1e-2, rtol=0)
        np.testing.assert_allclose(found.scores, expected.scores, atol=1e-4, rtol=0)


ALONE = """
import sys, torch, torchvision
outputs = torch.export.load("{file}").module()(torch.rand(1, 3, 70, 90))
print("densenet_backbones" in sys.modules, *sorted(outputs))
"""


@pytest.mark.long
def test_a_program_of_a_trained_detector(detector, tiny_scenes, tmp_path, capsys):
    picture = next((tiny_scenes / "VOC").rglob("*.jpg"))
    export.main([str(detector), "--format", "pt2", "--check-image", str(picture)])
    assert "agree; largest" in capsys.readouterr().out
    assert ProgramFile(tmp_path / "model.pt2").facts["kind"] == "detector"
    said = run_fresh(ALONE.format(file=tmp_path / "model.pt2"))
    assert said.split() == ["False", *sorted(OUTPUTS)]
    assert {file.name for file in tmp_path.iterdir()} == {"model.safetensors", "model.pt2"}


SIGNAL = """
import os, signal
import openvino
from densenet_backbones.inference.exported.runtimes import OpenvinoModel
x = openvino.opset13.parameter([1, 3, 8, 8])
openvino.serialize(openvino.Model([openvino.opset13.relu(x)], [x]), {file!r})
signal.signal(signal.SIGTERM, lambda *_: print("heard"))
models = [OpenvinoModel({file!r}) for _ in range(2)]
while models:
    del models[0]
os.kill(os.getpid(), signal.SIGTERM)
"""


def test_signals_are_heard_after_models_of_openvino_are_gone(tmp_path):
    assert run_fresh(SIGNAL.format(file=str(tmp_path / "model.xml"))) == "heard\n"


def test_programs_return_outputs_by_name(tmp_path):
    def halve(x):
        return (x / 2, x.sum(dim=(1, 2, 3)))

    varying = {0: onnx_file.Side("batch", 1, 9)}
    stage = onnx_file.Stage(halve, {"x": torch.rand(2, 3, 4, 5)}, ["half", "sum"], varying)
    write_programs([stage], tmp_path / "x.pt2", {"names": ["a", "b"], "kind": "x"})
    program = ProgramFile(tmp_path / "x.pt2")
    assert program.facts == {"names": '["a", "b"]', "kind": "x"}
    images = torch.rand(7, 3, 4, 5)
    found = program(images)
    assert set(found) == {"half", "sum"} and (found["half"] == images.numpy() / 2).all()
    with pytest.raises(ExportError, match="cannot compute the file on an image of 4 x 6"):
        program(torch.rand(7, 3, 4, 6))


@pytest.mark.long
def test_one_size_alone(detector, tmp_path, capsys):
    out = tmp_path / "deep" / "fixed.onnx"
    export.main([str(detector), "--out", str(out), "--image-size", "48", "80", "--opset", "20"])
    session = OnnxSession(out)
    assert session.input.shape == [1, 3, 48, 80]
    wide = (np.random.default_rng(0).random((96, 160, 3)) * 255).astype(np.uint8)
    boxes = load(out).predict(wide, 0).boxes  # in pixels of the image that was given
    assert boxes[:, 2].max() > 80 and boxes[:, 3].max() > 48
    assert "a random image of 48 x 80" in capsys.readouterr().out


READ_BY = {"onnx": OnnxSession, "xml": OpenvinoModel, "pt2": ProgramFile}


@pytest.mark.parametrize(
    ("output", "formats"),
    first_now([("labels", ("onnx", "openvino")), ("logits", ("onnx", "openvino", "pt2"))]),
    ids=str,
)
def test_a_trained_segmenter(output, formats, segmenter, tmp_path, capsys):
    """Each file is compared with the model on the way; all tell the same facts."""
    export.main([str(segmenter), "--output", output, "--format", *formats])
    said = capsys.readouterr().out
    agree = "logits agree" if output == "logits" else "pixels agree"
    assert said.count(agree) == 2 * len(formats)
    files = {file.suffix[1:]: file for file in tmp_path.iterdir()}
    assert files.keys() == {"safetensors", "onnx", "xml", "bin", *(set(formats) - {"openvino"})}
    session, *others = (READ_BY[end](files[end]) for end in READ_BY if end in files)
    assert session.facts["kind"] == "segmenter"
    assert [other.facts for other in others] == [session.facts] * len(others)
    model = load(segmenter)
    pixels = np.random.default_rng(0).integers(0, 256, (70, 90, 3), dtype=np.uint8)
    expected = model.predict(pixels)
    for end in ("onnx", "xml"):
        exported = load(files[end])
        result = exported.predict(pixels)
        assert exported.spec == model.spec and result.names == expected.names
        assert (result.labels == expected.labels).mean() > 0.99
        np.testing.assert_allclose(result.scores, expected.scores, atol=1e-3)
    images = torch.rand(3, 3, 70, 90)
    found = session(images)
    with torch.no_grad():
        logits = model.model(images)
    if output == "logits":
        np.testing.assert_allclose(found["logits"], logits, atol=1e-4, rtol=1e-4)
        return
    scores, labels = logits.softmax(dim=1).max(dim=1)
    np.testing.assert_allclose(found["scores"], scores, atol=1e-4, rtol=0)
    sure = (logits.topk(2, dim=1).values.diff(dim=1).abs() > 1e-3).squeeze(1).numpy()
    assert (found["labels"] == labels.numpy())[sure].all() and sure.mean() > 0.9


@pytest.mark.long
def test_a_file_that_computes_something_else_is_not_kept(detector, tmp_path, monkeypatch, capsys):
    (tmp_path / "model.onnx").write_text("the former one")

    def wrong(model, output):
        return dataclasses.replace(
            make_plan(model, output), compare=lambda *_: Agreement("detections", 9, 7)
        )

    monkeypatch.setattr(exporting, "make_plan", wrong)
    with pytest.raises(SystemExit) as end:
        export.main([str(detector)])
    assert end.value.code == 1
    assert "7 of 9 detections agree" in capsys.readouterr().err
    assert (tmp_path / "model.onnx").read_text() == "the former one"
    assert not list(tmp_path.glob(".model.onnx*"))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--out", "model.pt"], "--out must end in .onnx, .pt2 or .xml (OpenVINO), got model.pt"),
        (["--out", "m.xml", "--format", "pt2", "onnx"], "m.xml is a file of openvino, --format"),
        (["--image-size", "8", "64"], "--image-size must be H W in 32..8192, got 8 64"),
        (["--opset", "11"], "--opset must be 18 or more, got 11"),
        (["--output", "logits"], "--output logits is for segmenters; this file holds a detector"),
        (["--check-image", "nothing.jpg"], "nothing.jpg"),
    ],
)
def test_wrong_input_gets_one_sentence(options, said, detector, refused_command, tmp_path):
    code, line = refused_command(export.main, detector, *options)
    assert code == 1 and said in line
    assert not list(tmp_path.glob("*.onnx")) and not list(tmp_path.glob(".model.onnx*"))


@pytest.mark.long
@pytest.mark.usefixtures("empty_figures")
def test_exported_files_are_evaluated_like_the_model(detector, tiny_scenes, tmp_path, capsys):
    """OpenVINO pools no map of a single cell, which this detector has of images of 64 pixels."""
    with pytest.raises(SystemExit):
        export.main([str(detector), "--format", "onnx", "openvino"])
    assert "OpenVINO cannot convert this model" in capsys.readouterr().err
    assert {file.name for file in tmp_path.iterdir()} == {"model.safetensors", "model.onnx"}
    numbers = []
    for name in ("model.safetensors", "model.onnx"):
        options = ("--batch-size", "4", "--workers", "0", "--accelerator", "cpu", "--devices", "1")
        words = (tmp_path / name, "--data", tiny_scenes, "--out", tmp_path / name[6:], *options)
        evaluate.main([str(word) for word in words])
        numbers.append(json.loads((tmp_path / name[6:] / "metrics.json").read_text())["coco"])
    assert numbers[0]["numbers"] == pytest.approx(numbers[1]["numbers"], abs=1e-3, nan_ok=True)


@pytest.mark.parametrize("suffix", [".onnx", ".xml"])
def test_other_files_with_such_names_are_refused(suffix, tmp_path):
    file = tmp_path / f"a{suffix}"
    for message in ("there is no such file", "cannot be loaded"):
        with pytest.raises(CheckpointError, match=message):
            load(file)
        file.write_bytes(b"no model")
        file.with_suffix(".bin").write_bytes(b"")
    if suffix == ".onnx":
        stage = onnx_file.Stage(lambda x: (x + 1,), {"x": torch.rand(1, 3, 8, 8)}, ["y"])
        write_onnx([stage], file, {"names": ["a"]})
        with pytest.raises(CheckpointError, match="says nothing of its classes"):
            load(file)
    else:
        file.with_suffix(".bin").unlink()
        with pytest.raises(CheckpointError, match=r"its weights are missing, a\.bin must lie"):
            load(file)


def test_what_is_missing_is_named(detector, refused_command, monkeypatch):
    monkeypatch.setattr(needs, "NEEDED", ("onnx", "onnx_that_is_not_there"))
    code, line = refused_command(export.main, detector)
    assert code == 1
    assert "the export needs onnx_that_is_not_there: pip install" in line
    code, line = refused_command(export.main, detector, "--format", "pt2", "openvino")
    assert code == 1 and "densenet-backbones[export]" in line
    monkeypatch.setattr(needs, "NEEDED", ("onnx",))
    monkeypatch.setattr(needs.importlib.util, "find_spec", lambda name: name == "onnx" or None)
    code, line = refused_command(export.main, detector, "--format", "openvino")
    assert code == 1 and "needs openvino: pip install 'densenet-backbones[openvino]'" in line


def test_what_torch_cannot_follow_gets_its_first_cause(tmp_path):
    def branching(x):
        return x if x.sum() > 0 else -x

    stage = onnx_file.Stage(branching, {"x": torch.rand(2)}, ["y"])
    with pytest.raises(ExportError, match="data-dependent"):
        write_onnx([stage], tmp_path / "x.onnx", {})
    assert not list(tmp_path.iterdir())


# -- the comparison ------------------------------------------------------------------------------


def detections(number, seed):
    generator = np.random.default_rng(seed)
    corners = np.sort(generator.uniform(0, 500, (number, 2, 2)), axis=1)
    return {
        "boxes": corners.reshape(number, 4).astype(np.float32),
        "scores": -np.sort(-generator.uniform(0, 1, number)).astype(np.float32),
        "labels": generator.integers(1, 4, number),
    }


def padded(found, more=3):
    number = len(found["scores"])
    filled = {
        name: np.concatenate([part, np.zeros((more, *part.shape[1:]), part.dtype)])
        for name, part in found.items()
    }
    return {**filled, "num_detections": np.int64(number)}


@given(st.integers(0, 30), st.integers(0, 2**32 - 1))
def test_the_same_agree_in_any_order(number, seed):
    expected = detections(number, seed)
    order = np.random.default_rng(seed).permutation(number)
    found = padded({name: part[order] for name, part in expected.items()})
    agreement = compare_detections(found, expected)
    assert agreement.total == agreement.agreed == number and agreement.holds
    assert set(agreement.largest.values()) == {0.0}


@given(
    st.integers(3, 30), st.integers(0, 2**32 - 1), st.sampled_from(["boxes", "scores", "labels"])
)
def test_what_differs_is_counted(number, seed, name):
    expected = detections(number, seed)
    found = padded(detections(number, seed))
    found[name] = found[name] + 1000
    agreement = compare_detections(found, expected)
    assert agreement.agreed == 0 and agreement.total == number and not agreement.holds


def test_one_more_or_less_is_counted():
    expected = detections(10, 0)
    more = compare_detections(padded(expected), {k: v[:7] for k, v in expected.items()})
    assert more.agreed == 7
    fewer = compare_detections(padded({k: v[:7] for k, v in expected.items()}), expected)
    assert (fewer.agreed, fewer.total, fewer.holds) == (7, 10, False)
    assert not Agreement("detections", 1, 0).holds
    nothing = compare_detections(padded(detections(0, 0)), detections(0, 0))
    assert str(nothing) == "there were no detections to compare"
