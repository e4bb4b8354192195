"""A deployed network computes what the network does: every net, tap, size and precision."""

import copy
import pickle
from functools import partial

import pytest
import timm
import torch
from deployed_nets import difference, folded_parts, image
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_nets import KINDS, randomise_norms, tiny
from torch import nn

from densenet_backbones.condensenet import find_learned_groups
from densenet_backbones.densenet import DenseNet, DenseNetSpec
from densenet_backbones.deploy import deploy

TAPS = ("raw", "norm", "compressed", "pooled")


@pytest.mark.parametrize("name", KINDS)
def test_every_registered_net(name):
    net = tiny(name).eval()
    deployed = deploy(net)
    assert difference(net, deployed, image()) <= 1e-5
    assert deployed.levels == net.levels
    if net.spec.is_condensed:  # its groups are converted, its blocks not folded
        assert not any(find_learned_groups(deployed))
        return
    assert len(folded_parts(deployed)) == len(net.spec.block_config)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in deployed.modules())


@pytest.mark.parametrize("tap", TAPS)
@pytest.mark.parametrize("name", KINDS)
def test_every_tap_and_size_in_float64(name, tap):
    net = tiny(name, tap=tap).double().eval()
    deployed = deploy(net)
    for size in [(1, 3, 64, 64), (3, 3, 45, 102)]:
        assert difference(net, deployed, image(*size, dtype=torch.float64)) <= 1e-12


@pytest.mark.parametrize("pool", ["avg", "max", "blur"])
@pytest.mark.parametrize("output_stride", [8, 16])
def test_output_strides_and_pools(output_stride, pool):
    net = tiny("densenet121_features", output_stride=output_stride, pool=pool).double().eval()
    assert difference(net, deploy(net), image(dtype=torch.float64)) <= 1e-12


@settings(max_examples=25)
@given(
    growth_rate=st.integers(1, 9),
    blocks=st.lists(st.integers(1, 3), min_size=1, max_size=4),
    bn_size=st.integers(0, 3),
    stem=st.sampled_from(["imagenet", "cifar", "deep", "dsod"]),
    act=st.sampled_from(["relu", "relu6", "leaky_relu", "silu", "gelu"]),
    ceil_mode=st.booleans(),
    norm=st.sampled_from(["bn", "frozen", "sync"]),
    final_norm=st.booleans(),
)
def test_any_architecture(growth_rate, blocks, bn_size, stem, act, ceil_mode, norm, final_norm):
    spec = DenseNetSpec(
        growth_rate=growth_rate,
        block_config=tuple(blocks),
        num_init_features=6,
        bn_size=bn_size,
        stem=stem,
        act_layer=act,
        ceil_mode=ceil_mode,
        norm=norm,
        final_norm=final_norm,
    )
    net = randomise_norms(DenseNet(spec, num_classes=3)).double().eval()
    x = image(2, 3, 71, 64, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(deploy(net)(x), net(x), rtol=1e-10, atol=1e-12)


def test_layer_taps_and_taps_chosen_later():
    net = tiny("densenet121_features", layer_taps=("denseblock2.denselayer1",)).eval()
    deployed = deploy(net)
    assert difference(net, deployed, image()) <= 1e-5
    classifier = DenseNet(DenseNetSpec(growth_rate=4, block_config=(2, 2), num_init_features=8))
    classifier = randomise_norms(classifier).eval()
    taps = partial(DenseNet.forward_intermediates, intermediates_only=True)
    with torch.no_grad():
        for a, b in zip(taps(classifier, image()), taps(deploy(classifier), image()), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_a_tap_on_a_convolution_or_norm_keeps_its_values():
    net = tiny("densenet121_features").eval()
    net.return_layers = {"conv0": "0", "norm0": "1", "relu0": "2", "norm5": "3", "relu5": "4"}
    with pytest.warns(UserWarning, match="leaves norm0 unfolded"):
        deployed = deploy(net)
    assert difference(net, deployed, image()) <= 1e-5


def test_the_net_itself_stays_as_it_is():
    net = tiny("densenet121_features").train()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    deployed = deploy(net)
    deployed(image())
    assert net.training and not deployed.training
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    own = {p.data_ptr() for p in net.parameters()}
    assert not own & {p.data_ptr() for p in deployed.parameters()}
    assert not any(p.requires_grad for p in deployed.parameters())


def test_maps_come_channels_last_and_are_nobody_elses():
    net = tiny("densenet121_features").eval()
    deployed = deploy(net)
    first = deployed(image())
    kept = [m.clone() for m in first]
    deployed(image() * 2)
    assert all(m.is_contiguous(memory_format=torch.channels_last) for m in first)
    assert all(torch.equal(a, b) for a, b in zip(first, kept, strict=True))
    last = image().contiguous(memory_format=torch.channels_last)
    assert all(torch.equal(a, b) for a, b in zip(first, deployed(last), strict=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("name", KINDS)
def test_half_precision(name, autocast, dtype):
    """About as near to float64 as the network itself is in half precision.

    A layer rounds as often as it did, but where 3x3 convolutions run in C++ kernels, Winograd's
    transforms of maps and weights are what is rounded, and sums of them more than once.
    """
    net = tiny(name, growth_rate=8).eval()
    exact = copy.deepcopy(net).double()
    x = image()
    with torch.no_grad():
        truth = exact(x.double())
        if autocast:
            deployed = deploy(net)
            with torch.autocast("cpu", dtype):
                plain, folded = net(x), deployed(x)
        else:
            deployed = deploy(net).to(dtype)
            plain, folded = net.to(dtype)(x.to(dtype)), deployed(x.to(dtype))
    for a, b, t in zip(plain, folded, truth, strict=True):
        assert b.dtype == a.dtype == dtype
        assert (b - t).norm() <= 2 * (a - t).norm() + torch.finfo(dtype).eps / 4 * t.norm()


def test_copies_files_and_types_after_a_run():
    """What was laid out for the processor is made again where the weights have changed."""
    net = tiny("densenet121_features").eval()
    deployed = deploy(net)
    x = image()
    with torch.inference_mode():
        expected = deployed(x)
    for other in (copy.deepcopy(deployed), pickle.loads(pickle.dumps(deployed))):
        assert all(torch.equal(a, b) for a, b in zip(other(x), expected, strict=True))
    other = deploy(tiny("densenet121_features", growth_rate=4, block_config=(2, 2, 2, 2)).eval())
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
        other(x)
        other.load_state_dict(deployed.state_dict())
        assert all(torch.equal(a, b) for a, b in zip(other(x), expected, strict=True))
    exact = net.double()
    assert difference(exact, deployed.double(), x.double()) <= 1e-6, "weights folded in float32"


def test_gradients_of_the_image():
    net = tiny("densenet121_features").double().eval()
    gradients = []
    for model in (net, deploy(net)):
        x = image(1, 3, 64, 64, dtype=torch.float64).requires_grad_()
        sum(m.square().mean() for m in model(x)).backward()
        gradients.append(x.grad)
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("model", [nn.Linear(1, 1), timm.create_model("test_resnet")])
def test_other_models_are_refused(model):
    with pytest.raises(ValueError, match="holds no DenseNet of this package"):
        deploy(model)


def test_a_hundred_layers_keep_their_precision():
    """densenet121 at full width and depth, random statistics: float32 against float64."""
    torch.manual_seed(0)
    net = randomise_norms(timm.create_model("densenet121_features")).eval()
    assert difference(net, deploy(net), image(1, 3, 96, 96)) <= 1e-5
