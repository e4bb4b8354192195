"""What hooks and extracted features see, at every module of every registered network.

Explainers (Grad-CAM of torch-cam and pytorch-grad-cam, captum, MONAI) read a module's output and
the gradient of it: both must be the module's own, whatever runs behind it, and however a block is
run.
"""

import copy
import warnings
from typing import get_args

import pytest
import torch
import torchvision
from tiny_nets import KINDS, tiny
from torch import fx
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

from densenet_backbones import torchvision_models
from densenet_backbones.dense_block import Memory
from densenet_backbones.deploy import deploy
from densenet_backbones.stages import DenseStages

FORMS = {
    "raw": {},
    "norm": {"tap": "norm", "layer_taps": ("denseblock2.denselayer1",)},
    "classifier": {"features_only": False, "num_classes": 3},
}
# One name for each kind of model: other backbones and sizes add no modules of another kind.
KINDS_OF_MODELS = {name.rstrip("0123456789"): name for name in torchvision_models.MODELS}
MODELS = [name for name in KINDS_OF_MODELS.values() if "_densenet" not in name]


def images():
    return torch.randn(2, 3, 40, 40, generator=torch.Generator().manual_seed(1)).double()


def score(net):
    maps = net(images())
    return sum(m.square().mean() for m in (maps if isinstance(maps, list) else [maps]))


def list_modules(net):
    return [name for name, _ in net.named_modules() if name]


def read_from_tensors(net):
    """Each module's output, and the gradient of it, as autograd knows them of the tensors."""
    outputs = {}
    for name in list_modules(net):
        net.get_submodule(name).register_forward_hook(
            lambda module, args, out, name=name: outputs.update({name: out})
        )
    gradients = torch.autograd.grad(score(net), list(outputs.values()))
    return {
        name: (outputs[name], gradient) for name, gradient in zip(outputs, gradients, strict=True)
    }


def read_by_hooks(net, names):
    """The same of some modules, from hooks on them; the output once kept and once cloned."""
    outputs, clones, gradients = {}, {}, {}

    def hook(name):
        def forward(module, args, out):
            outputs[name], clones[name] = out, out.clone()

        def backward(module, of_input, of_output):
            gradients[name] = of_output[0]

        net.get_submodule(name).register_forward_hook(forward)
        net.get_submodule(name).register_full_backward_hook(backward)

    for name in names:
        hook(name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # blocks with hooks run plain, and say so
        score(net).backward()
    assert all(torch.equal(outputs[name], clones[name]) for name in names)
    return {name: (clones[name], gradients[name]) for name in names}


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_hooks_on_all_modules_see_what_passes(name, form, mode):
    net = tiny(name, **FORMS[form]).double().train(mode == "train")
    expected = read_from_tensors(copy.deepcopy(net))
    found = read_by_hooks(net, list_modules(net))
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("memory", get_args(Memory)[1:])
def test_hooks_see_the_same_in_every_memory_mode(name, memory):
    plain = tiny(name, **FORMS["norm"]).double().train()
    expected = read_from_tensors(copy.deepcopy(plain))
    stages = [stage for stage, _ in plain.named_children()]
    # Every other stage has hooks: those beside it run as the mode says.
    for hooked in (stages[::2], stages[1::2]):
        names = [part for part in list_modules(plain) if part.split(".")[0] in hooked]
        net = copy.deepcopy(plain)
        net.set_memory(memory)
        found = read_by_hooks(net, names)
        part = {name: expected[name] for name in names}
        torch.testing.assert_close(found, part, rtol=1e-8, atol=1e-11)


class Recorder(fx.Interpreter):
    """Keeps what each node of a graph returns, as it is then."""

    def run_node(self, n):
        out = super().run_node(n)
        if isinstance(out, torch.Tensor):
            self.made.append((out, out.clone()))
        return out


@pytest.mark.parametrize("name", KINDS)
def test_features_are_extracted_at_every_node(name):
    net = tiny(name, **FORMS["norm"]).double().eval()
    nodes = get_graph_node_names(net)[1][1:]  # all but the image
    extractor = create_feature_extractor(net, nodes)
    maps = extractor(images())
    assert list(maps) == nodes
    recorder = Recorder(extractor)
    recorder.made = []
    recorder.run(images())
    assert all(torch.equal(out, clone) for out, clone in recorder.made)
    for module, (out, _) in read_from_tensors(net).items():
        if module in maps:
            assert torch.equal(maps[module], out), module


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("form", FORMS)
def test_hooks_on_a_deployed_net_see_what_passes(name, form):
    deployed = deploy(tiny(name, **FORMS[form])).double()
    seen = []
    for module in deployed.modules():
        if not isinstance(module, DenseStages):  # whose maps may be a list
            module.register_forward_hook(lambda module, args, out: seen.append((out, out.clone())))
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")  # blocks with hooks run layer by layer, and say so
        deployed(images())
    assert len(seen) > len(deployed.feature_names)
    assert all(torch.equal(out, clone) for out, clone in seen)


@pytest.mark.parametrize("name", MODELS)
def test_no_module_of_ours_works_in_place(name):
    with torch.device("meta"):
        model = torchvision.models.get_model(
            name, num_classes=3, weights=None, weights_backbone=None
        )
    for path, module in model.named_modules():
        if getattr(module, "inplace", False):
            # torchvision's own blocks hold what they hold.
            owners = [type(model.get_submodule(path.rsplit(".", n)[0])) for n in (1, 2)]
            assert any(owner.__module__.startswith("torchvision.") for owner in owners), path
