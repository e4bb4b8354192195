"""Files in 8 bits: what is quantized, that ranges of channels do not matter, and the command."""

import json
import shutil
from collections import Counter

import numpy as np
import onnx
import onnxruntime
import openvino
import pytest
from onnx import helper, numpy_helper

from densenet_backbones.data.faults import DataError
from densenet_backbones.export import export, needs
from densenet_backbones.export.int8.graphs import Node, find_inner
from densenet_backbones.export.int8.images import choose_images
from densenet_backbones.export.int8.ir_quantizer import quantize_ir
from densenet_backbones.export.int8.onnx_quantizer import equalize, quantize_onnx
from densenet_backbones.inference.exported.runtimes import open_runtime
from densenet_backbones.inference.loading import load
from densenet_backbones.training import evaluate

WIDTH = 16  # channels of each map of the little block


def little_block(path, factors):
    """A dense layer as an ONNX file: raw maps whose channels are `factors` times as large, normed.

    It computes the same whatever the factors are. The two raw convolutions share one weight.
    """
    rng = np.random.default_rng(0)

    def draw(*shape):
        return rng.normal(size=shape, scale=np.prod(shape[1:]) ** -0.5).astype(np.float32)

    weights = {
        "stem": draw(WIDTH, 3, 3, 3),
        "raw": draw(WIDTH, WIDTH, 3, 3) * factors[:, None, None, None],
        "raw_bias": draw(WIDTH, 1)[:, 0] * factors,
        "scale": (1 / np.concatenate([factors, factors]))[None, :, None, None],
        "shift": draw(1, 2 * WIDTH, 1, 1),
        "squeeze": draw(WIDTH, 2 * WIDTH, 1, 1),
        "last": draw(5, WIDTH, 3, 3),
    }
    nodes = [
        helper.make_node("Conv", ["image", "stem"], ["a"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Conv", ["b", "raw", "raw_bias"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["b"], ["b2"]),
        helper.make_node("Conv", ["b2", "raw", "raw_bias"], ["d"], pads=[1, 1, 1, 1]),
        helper.make_node("Concat", ["c", "d"], ["e"], axis=1),
        helper.make_node("Mul", ["e", "scale"], ["f"]),
        helper.make_node("Add", ["f", "shift"], ["g"]),
        helper.make_node("Relu", ["g"], ["h"]),
        helper.make_node("Conv", ["h", "squeeze"], ["i"]),
        helper.make_node("Relu", ["i"], ["j"]),
        helper.make_node("Conv", ["j", "last"], ["out"], pads=[1, 1, 1, 1]),
    ]
    kind = onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        nodes,
        "block",
        [helper.make_tensor_value_info("image", kind, [1, 3, "h", "w"])],
        [helper.make_tensor_value_info("out", kind, [1, 5, "h", "w"])],
        [numpy_helper.from_array(v.astype(np.float32), k) for k, v in weights.items()],
    )
    opsets = [helper.make_opsetid("", 20)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), path)


def compute(path, image):
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, {"image": image})[0]


def spread_factors():
    return (10 ** np.random.default_rng(1).uniform(-2, 2, WIDTH)).astype(np.float32)


def test_equalized_convolutions_compute_the_same(tmp_path):
    path = tmp_path / "block.onnx"
    little_block(path, spread_factors())
    image = np.random.default_rng(2).random((1, 3, 20, 28), np.float32)
    before = compute(path, image)
    model = onnx.load(path)
    model.graph.node[2].name, model.graph.node[4].name = "first", "second"
    ranges = np.random.default_rng(3).uniform(0.01, 9, WIDTH).astype(np.float32)
    ranges[3] = 0  # a channel that is never anything else
    equalize(model, ["first", "second"], {"first": ranges, "second": ranges[::-1]})
    onnx.save(model, path)
    np.testing.assert_allclose(compute(path, image), before, atol=1e-4 * np.abs(before).max())
    assert "raw" not in {tensor.name for tensor in model.graph.initializer}


def test_ranges_of_raw_channels_do_not_matter(tmp_path):
    """Without equalization the error with these factors is half of the values."""
    rng = np.random.default_rng(0)
    images = [rng.random((1, 3, 24, 24), np.float32) for _ in range(6)]
    errors = []
    for name, factors in (("even", np.ones(WIDTH, np.float32)), ("spread", spread_factors())):
        before, after = tmp_path / f"{name}.onnx", tmp_path / f"{name}-8.onnx"
        little_block(before, factors)
        quantize_onnx(before, after, images)
        expected, found = compute(before, images[0]), compute(after, images[0])
        errors.append(np.linalg.norm(found - expected) / np.linalg.norm(expected))
    assert 0 < errors[0] < 0.05 and errors[1] < 0.05
    kinds = Counter(node.op_type for node in onnx.load(after).graph.node)
    assert kinds["Conv"] == 5 and kinds["Concat"] == 1
    # Inputs and outputs of all convolutions but the last.
    assert 6 <= kinds["QuantizeLinear"] <= 8
    assert not list(tmp_path.glob("*prepared*"))


@pytest.mark.long
@pytest.mark.parametrize("factors", [np.ones(WIDTH, np.float32), spread_factors()])
def test_an_ir_has_ranges_at_the_inputs_of_convolutions_alone(factors, tmp_path):
    """NNCF by itself puts them before concatenations too: spread ones then give errors of 0.2."""
    little_block(tmp_path / "block.onnx", factors)
    openvino.save_model(openvino.convert_model(tmp_path / "block.onnx"), tmp_path / "block.xml")
    rng = np.random.default_rng(0)
    images = [rng.random((1, 3, 24, 24), np.float32) for _ in range(6)]
    quantize_ir(tmp_path / "block.xml", tmp_path / "eight.xml", images)
    core = openvino.Core()
    read = [
        (operation.get_node().get_type_name(), operation.get_index())
        for node in core.read_model(tmp_path / "eight.xml").get_ordered_ops()
        if node.get_type_name() == "FakeQuantize"
        for operation in node.output(0).get_target_inputs()
    ]
    assert set(read) == {("Convolution", 0)}
    expected, found = (
        core.compile_model(tmp_path / name, "CPU")(images[0])[0]
        for name in ("block.xml", "eight.xml")
    )
    assert 0 < np.linalg.norm(found - expected) / np.linalg.norm(expected) < 0.05


def test_first_and_last_convolutions_bound_what_is_quantized():
    nodes = [
        Node("resize", False, []),
        Node("stem", True, ["resize"]),
        Node("aside", False, ["resize"]),
        Node("relu", False, ["stem"]),
        Node("scores", True, ["relu", "aside"]),
        Node("boxes", True, ["relu"]),
        Node("nms", False, ["scores", "boxes"]),
    ]
    assert find_inner(nodes) == {"stem", "relu"}


# -- the command ---------------------------------------------------------------------------------


@pytest.fixture
def segmenter(tiny_segmentation, tmp_path):
    return shutil.copy(tiny_segmentation / "model.safetensors", tmp_path / "model.safetensors")


def words(model, data, *more):
    options = ("--int8", "--calibrate", data, "--calibration-images", 8, "--workers", 0)
    return [str(word) for word in (model, *options, *more)]


@pytest.mark.long
@pytest.mark.usefixtures("empty_figures")
def test_a_segmenter_in_8_bits(segmenter, tiny_masks, tmp_path, capsys):
    """Each format is measured; nothing is left of the file in float32 that both are made of."""
    export.main(words(segmenter, tiny_masks, "--format", "onnx", "openvino"))
    said = capsys.readouterr().out
    assert "Calibrated on 8 of 12 images" in said and said.count("Speed on this processor") == 2
    out, ir = tmp_path / "model-int8.onnx", tmp_path / "model-int8.xml"
    reports = ("model-int8-evaluation", "model-int8-evaluation-2")
    files = {"model.safetensors", *reports, out.name, ir.name, "model-int8.bin"}
    assert {file.name for file in tmp_path.iterdir()} == files
    picture = next(tiny_masks.rglob("*.jpg"))
    own = load(segmenter).predict(picture)
    for file, report in zip((out, ir), reports, strict=True):
        assert (tmp_path / report / "comparison.json").is_file()
        facts = open_runtime(file).facts
        measured = json.loads(facts["int8"])
        assert facts["kind"] == "segmenter"
        assert abs(measured["float32"]["mIoU"] - measured["int8"]["mIoU"]) < 0.05
        assert measured["speedup"] > 0
        eight = load(file).predict(picture)
        assert eight.names == own.names and (eight.labels == own.labels).mean() > 0.9
    kinds = Counter(node.op_type for node in onnx.load(out).graph.node)
    assert kinds["QuantizeLinear"] > 10
    assert "i8" in ir.read_text() or "u8" in ir.read_text()


@pytest.mark.long
@pytest.mark.usefixtures("empty_figures")
def test_a_detector_in_8_bits_is_evaluated_like_others(tiny_run, tiny_scenes, tmp_path):
    model = shutil.copy(tiny_run / "model.safetensors", tmp_path / "model.safetensors")
    export.main(words(model, tiny_scenes, "--out", tmp_path / "eight.onnx"))
    measured = json.loads(open_runtime(tmp_path / "eight.onnx").facts["int8"])
    rest = ("--batch-size", 4, "--workers", 0, "--accelerator", "cpu", "--devices", 1)
    where = (tmp_path / "eight.onnx", "--data", tiny_scenes, "--out", tmp_path / "again")
    evaluate.main([str(word) for word in (*where, *rest)])
    numbers = json.loads((tmp_path / "again" / "metrics.json").read_text())["coco"]["numbers"]
    assert measured["int8"]["AP"] == pytest.approx(numbers["AP"], abs=1e-4)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--int8"], "--int8 and --calibrate DATA go together"),
        (["--calibrate", "."], "--int8 and --calibrate DATA go together"),
        (["--int8", "--calibrate", "nowhere"], "nowhere: there is no such"),
        (["--int8", "--calibrate", ".", "--format", "pt2"], "--int8 is for onnx and openvino"),
        (["--int8", "--calibrate", ".", "--calibration-images", "0"], "must be at least 1, got 0"),
        (["--int8", "--calibrate", ".", "--seed", "-1"], "--seed must be at least 0, got -1"),
        (["--int8", "--calibrate", "."], "it has no files"),
        (["--int8", "--calibrate", ".", "--layout", "coco"], "--layout of a segmenter must be"),
    ],
)
def test_wrong_input_gets_one_sentence(
    options, said, segmenter, refused_command, tmp_path, monkeypatch
):
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    code, line = refused_command(export.main, segmenter, *options)
    assert code == 1 and said in line
    assert {file.name for file in tmp_path.iterdir()} == {"model.safetensors", "empty"}


def test_a_missing_library_is_named(monkeypatch):
    monkeypatch.setattr(needs.importlib.util, "find_spec", lambda name: name != "nncf" or None)
    needs.check_installed(["onnx"], int8=True)
    with pytest.raises(needs.ExportError, match=r"needs nncf: pip install '.*\[int8\]'"):
        needs.check_installed(["openvino"], int8=True)


def test_images_that_cannot_be_used_are_left_out(segmenter, tiny_masks, tmp_path, capsys):
    data = tmp_path / "data"
    shutil.copytree(tiny_masks, data)
    options = evaluate.parse([str(segmenter), "--data", str(data), "--split", "train"])
    model = load(segmenter)
    given = {"count": 5, "seed": 3, "size": (40, 48)}
    images = choose_images(model, options, [], **given)
    assert [image.shape for image in images] == [(1, 3, 40, 48)] * 5
    assert images.chosen == choose_images(model, options, [], **given).chosen
    for index in range(12):
        picture = images.samples.segmentation_set.records[index].path
        content = picture.read_bytes()
        if index in images.chosen[1:]:
            picture.write_bytes(content[: len(content) // 2])
    few = choose_images(model, options, [], **given)
    assert len(few) == 1 and "left out: " in capsys.readouterr().out
    for picture in data.rglob("*.jpg"):
        picture.write_bytes(picture.read_bytes()[:300])
    with pytest.raises(DataError):
        choose_images(model, options, [], **given)
