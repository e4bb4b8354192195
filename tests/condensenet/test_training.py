"""Condensation in trainings: by the tools, resumed in its middle, deployed, on two processes."""

import json
import math
import re

import numpy as np
import pytest
import torch
from forked_processes import start_beside
from recorded_runs import Recorder, assert_goes_on, interrupt, metrics, recorded
from tiny_nets import tiny
from tiny_runs import PYRAMID_ARGS, training_arguments
from torch import nn

from densenet_backbones.checkpoints import read_state_dict
from densenet_backbones.condensenet import (
    condense,
    convert,
    find_learned_groups,
    group_lasso,
)
from densenet_backbones.deploy import deploy
from densenet_backbones.inference.loading import load
from densenet_backbones.training import cli
from densenet_backbones.training.condensation import Condensation

pytestmark = pytest.mark.usefixtures("empty_figures")

ARGS = {**PYRAMID_ARGS, "backbone": "condensenet74_features"}
EPOCHS, STEPS = 3, 3
DETECTOR = ("--model.detector", "retinanet_fpn", "--model.args", json.dumps(ARGS))
FLIP = ("--data.augmentation", "flip")  # the detector takes images of any size


@pytest.fixture(scope="module")
def train(tiny_scenes):
    """Runs `train_det` without its report: returns (exit code or None, what was trained on)."""

    def run(folder, *more, stop=None, epochs=EPOCHS):
        arguments = training_arguments(tiny_scenes, *DETECTOR, *FLIP, *more, epochs=epochs)
        return recorded(cli.train_det, [*arguments, "--run-dir", str(folder)], Recorder(stop))

    return run


@pytest.fixture(scope="module")
def whole(train, tmp_path_factory):
    folder = tmp_path_factory.mktemp("condensed") / "whole"
    code, seen = train(folder)
    assert code is None
    return folder, seen


def stages(weights):
    return {int(value) for key, value in weights.items() if key.endswith("conv1.stage")}


def test_tools_condense_over_half_of_the_training_and_log_the_lasso(whole):
    folder, _ = whole
    log = (folder / "log.txt").read_text()
    steps = [int(step) for step in re.findall(r"dropped inputs at step (\d+)\.", log)]
    total = EPOCHS * STEPS
    assert steps == [math.ceil(total * part / 6) for part in (1, 2, 3)]
    logged = [row["train/group_lasso"] for row in metrics(folder) if "train/group_lasso" in row]
    lasso = list(map(float, logged))
    assert lasso[0] > 0 and lasso[-1] == 0  # nothing is left to drop
    assert stages(read_state_dict(folder / "checkpoints" / "last.ckpt")) == {3}


def test_a_run_stopped_in_mid_condensation_goes_on_bit_for_bit(train, whole, tmp_path):
    assert_goes_on(train, whole, tmp_path / "run", "train_batch_start", 4, interrupt, 130, 4)


def test_a_loaded_model_holds_the_state_and_detects_the_same_when_deployed(whole):
    folder, _ = whole
    model = load(folder / "checkpoints" / "last.ckpt").model.eval()
    assert {int(layer.stage) for layer in find_learned_groups(model)} == {3}
    model.score_thresh = 0.0
    image = [torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(0))]
    for form in (convert(model), deploy(model)):
        assert not any(find_learned_groups(form))
        with torch.no_grad():
            found, expected = form.eval()(image)[0], model(image)[0]
        assert found.keys() == expected.keys() and len(expected["boxes"])
        for key in found:
            torch.testing.assert_close(found[key], expected[key], rtol=1e-4, atol=1e-4)


def test_other_settings_are_the_callbacks(train, tmp_path):
    own = {"class_path": "densenet_backbones.training.condensation.Condensation"}
    own["init_args"] = {"until": 1.0, "lasso": 0.0}
    code, _ = train(tmp_path, "--trainer.callbacks", json.dumps([own]), epochs=1)
    assert code is None
    assert stages(read_state_dict(tmp_path / "checkpoints" / "last.ckpt")) == {2}
    assert not any("train/group_lasso" in row for row in metrics(tmp_path))
    with pytest.raises(ValueError, match=r"until must lie in \(0, 1\], got 0"):
        Condensation(until=0)


# ------------------------------------------------------------------------------ other libraries


def test_an_onnx_file_of_the_converted_net_gives_its_outputs(tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    net = tiny("condensenet50_cifar_features", layers=1).eval()
    condense(net, 1.0)
    x = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    path = tmp_path / "net.onnx"
    torch.onnx.export(convert(net), (x,), path, dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    found = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    for a, b in zip(found, net(x), strict=True):
        np.testing.assert_allclose(a, b.detach(), rtol=1e-5, atol=1e-5)


def train_in_a_process(rank, folder):
    import densenet_backbones  # noqa: F401 # registers the names

    meeting = f"file://{folder}/meeting"
    torch.distributed.init_process_group("gloo", meeting, rank=rank, world_size=2)
    net = tiny("condensenet50_cifar_features", layers=1).train()
    parallel = nn.parallel.DistributedDataParallel(net)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    generator = torch.Generator().manual_seed(rank)  # other images in each process
    for step in range(8):
        condense(parallel, step / 8)
        loss = sum(
            m.square().mean() for m in parallel(torch.rand(2, 3, 32, 32, generator=generator))
        )
        loss = loss + 1e-3 * group_lasso(parallel)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    state = {key: value for key, value in net.state_dict().items() if "conv1." in key}
    torch.save(state, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.long
def test_two_processes_drop_the_same_inputs(tmp_path):
    """One of them is this one."""
    other = start_beside(train_in_a_process, str(tmp_path))
    train_in_a_process(1, str(tmp_path))
    assert other.join()
    states = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    torch.testing.assert_close(*states, rtol=0, atol=0)
    assert {int(value) for key, value in states[0].items() if key.endswith("stage")} == {3}
