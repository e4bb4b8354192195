"""A deployed network computes what the network does, in whatever form it runs."""

import copy
import pickle
import types
import warnings
from functools import partial

import onnxruntime
import pytest
import segmentation_models_pytorch as smp
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from long_cases import first_now
from tiny_nets import KINDS, randomise_norms, tiny
from torch import nn
from torch._inductor import metrics
from torch.export import Dim
from torch.nn.utils import prune
from torch.nn.utils.parametrize import register_parametrization

from densenet_backbones.condensenet import find_learned_groups
from densenet_backbones.dense_block import FoldedConv2d
from densenet_backbones.dense_block.folded import layers as folded
from densenet_backbones.dense_block.folded import transition as folded_transition
from densenet_backbones.densenet import DenseNet, DenseNetSpec
from densenet_backbones.deploy import FoldedBlock, deploy
from densenet_backbones.heads import dsod300, fcdensenet56
from densenet_backbones.heads.detection.one_stage import retinanet_fpn
from densenet_backbones.heads.segmentation.unet import DecoderStage, unet
from densenet_backbones.layers import DenseBlock, DenseLayer

TAPS = ("raw", "norm", "compressed", "pooled")
BODY = {"growth_rate": 4, "block_config": [1, 2, 1, 1], "num_init_features": 8}


def image(*size, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(*(size or (2, 3, 75, 90)), generator=generator, dtype=dtype)


@torch.no_grad()
def difference(net, deployed, x):
    """Largest difference of any map, as a share of the map's largest value."""
    maps, folded = net(x), deployed(x)
    assert [m.shape for m in maps] == [m.shape for m in folded]
    return max(
        float((a - b).abs().max() / a.abs().max()) for a, b in zip(maps, folded, strict=True)
    )


def folded_parts(net):
    return [name for name, module in net.named_modules() if isinstance(module, FoldedBlock)]


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


def test_what_cannot_be_folded_is_named_and_runs_as_before():
    group = tiny("densenet121_features", norm="group").eval()
    with pytest.warns(UserWarning, match="leaves denseblock1, denseblock2.* norm0, transition1"):
        deployed = deploy(group)
    assert difference(group, deployed, image()) == 0.0
    hooked = tiny("densenet121_features").eval()
    seen = []
    hooked.denseblock2.denselayer1.norm1.register_forward_hook(lambda *_: seen.append(1))
    with pytest.warns(UserWarning, match="leaves denseblock2 unfolded"):
        deployed = deploy(hooked)
    assert difference(hooked, deployed, image()) <= 1e-5
    assert len(seen) == 2 and len(folded_parts(deployed)) == 3


class _Lora(nn.Conv2d):
    def forward(self, x):
        return super().forward(x) + 1


class _Pool(nn.AvgPool2d):
    def forward(self, x):
        return super().forward(x) + 1


class _Layer(DenseLayer):
    def forward(self, x):
        return super().forward(x) + 1


class _Wrapper(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x) + 1


def _like(conv, kind=_Lora, **options):
    arguments = conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride, conv.padding
    return kind(*arguments, bias=False, **options)


def _set(name, build):
    return lambda net: net.set_submodule(name, build(net.get_submodule(name)))


def _set_forward(name):
    def change(net):
        module = net.get_submodule(name)
        module.forward = types.MethodType(lambda m, x: type(m).forward(m, x) + 1, module)

    return change


def _convolve_otherwise(name):
    def change(net):
        conv, inner = net.get_submodule(name), nn.Conv2d._conv_forward
        conv._conv_forward = types.MethodType(lambda m, *args: inner(m, *args) + 1, conv)

    return change


class _Block(DenseBlock):
    def _run(self, x):
        return super()._run(x) + 1


def _be_other_block(net):
    net.denseblock2.__class__ = _Block


def _prune(net):
    prune.l1_unstructured(net.get_submodule(f"{_LAYER}.conv2"), "weight", amount=0.5)


def _be_heir(net):
    net.denseblock2.denselayer1.__class__ = _Layer


_LAYER = "denseblock2.denselayer1"


@pytest.mark.parametrize(
    ("part", "change"),
    [
        ("conv0", _set("conv0", _like)),
        (f"{_LAYER}.conv1", _set(f"{_LAYER}.conv1", _like)),
        (f"{_LAYER}.conv2", _set(f"{_LAYER}.conv2", _like)),
        (f"{_LAYER}.conv2", _set_forward(f"{_LAYER}.conv2")),
        (
            f"{_LAYER}.conv2",
            _set(f"{_LAYER}.conv2", lambda c: _like(c, nn.Conv2d, padding_mode="reflect")),
        ),
        (f"{_LAYER}.conv2", _set(f"{_LAYER}.conv2", lambda c: _like(c, nn.Conv2d, groups=2))),
        (
            f"{_LAYER}.conv2",
            _set(f"{_LAYER}.conv2", lambda c: nn.Conv2d(c.in_channels, 4, 5, padding=2)),
        ),
        (f"{_LAYER}.conv1", _convolve_otherwise(f"{_LAYER}.conv1")),
        ("conv0", _convolve_otherwise("conv0")),
        (f"{_LAYER}.conv2", _prune),
        ("denseblock2", _be_other_block),
        (f"{_LAYER}.relu2", _set(f"{_LAYER}.relu2", lambda _: nn.SiLU())),
        (f"{_LAYER}.relu1", _set_forward(f"{_LAYER}.relu1")),
        (_LAYER, _be_heir),
        (_LAYER, _set_forward(_LAYER)),
        (_LAYER, _set(_LAYER, _Wrapper)),
        ("denseblock2", _set_forward("denseblock2")),
        ("transition1.conv", _set("transition1.conv", _like)),
        ("transition1", _set_forward("transition1")),
        ("pool1", _set("pool1", lambda _: _Pool(2, 2))),
        ("norm5", _set_forward("norm5")),
    ],
)
def test_replaced_parts_run_as_before_and_are_named(part, change):
    net = tiny("densenet121_features")
    change(net)
    net = net.double().eval()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        deployed = deploy(net)
    told = [str(w.message) for w in caught]
    assert len(told) == 1 and f": {part} " in told[0]
    assert difference(net, deployed, image(dtype=torch.float64)) <= 1e-10


@pytest.mark.parametrize("change", ["relu6", "silu", "transition's relu"])
def test_other_activations_in_one_place_are_kept(change):
    net = tiny("densenet121_features").eval()
    layer = net.denseblock2.denselayer2
    if change == "transition's relu":
        net.transition1.relu.forward = lambda x: x.relu() + 1
    else:
        layer.relu1 = layer.relu2 = nn.SiLU() if change == "silu" else nn.ReLU6()
        nn.init.constant_(layer.norm1.bias, 7)
    assert difference(net, deploy(net), image()) <= 1e-5


@pytest.mark.parametrize(
    "part", ["denselayer1", "denselayer2.act", "denselayer1.conv", "transition1.relu"]
)
def test_hooks_on_parts_of_a_deployed_net_are_called(part):
    net = tiny("densenet121_features").eval()
    deployed = deploy(net)
    module = (deployed if part.startswith("transition") else deployed.denseblock2).get_submodule(
        part
    )
    seen = []
    handle = module.register_forward_hook(lambda *_: seen.append(1))
    hooked = "transition1 runs in parts, as relu"
    if "layer" in part:
        hooked = f"denseblock2 runs layer by layer in plain operators, as {part}"
    with pytest.warns(UserWarning, match=f"{hooked} carries hooks"):
        assert difference(net, deployed, image()) <= 1e-5
    assert seen
    handle.remove()
    count = len(seen)
    assert difference(net, deployed, image()) <= 1e-5 and len(seen) == count


@pytest.mark.parametrize("part", ["denselayer1", "denselayer1.conv"])
def test_parts_replaced_in_a_deployed_net_are_called(part):
    class Wrapper(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, x):
            return 2 * self.inner(x)

    deployed = deploy(tiny("densenet121_features").eval())
    block = deployed.denseblock2
    expected = block(torch.ones(1, block.in_channels, 8, 8))
    block.set_submodule(part, Wrapper(block.get_submodule(part)))
    with pytest.warns(UserWarning, match=f"as {part} is a Wrapper"):
        found = block(torch.ones(1, block.in_channels, 8, 8))
    new = slice(block.in_channels, block.in_channels + 4)
    torch.testing.assert_close(found[:, new], 2 * expected[:, new])


def _double_in_place(module):
    with torch.no_grad():
        module.weight.mul_(2)


def _replace_weight(module):
    module.weight = nn.Parameter(2 * module.weight.detach())


class _Double(nn.Module):
    def forward(self, weight):
        return 2 * weight


@pytest.mark.parametrize("kernels", [True, False])
@pytest.mark.parametrize(
    "change",
    [_double_in_place, _replace_weight, lambda m: register_parametrization(m, "weight", _Double())],
)
@pytest.mark.parametrize("part", ["conv0", "transition1.conv", f"{_LAYER}", f"{_LAYER}.conv"])
def test_weights_changed_after_a_run_are_used(part, change, kernels, monkeypatch):
    if not kernels:
        monkeypatch.setattr(folded, "fill_in_kernels", lambda *_: False)
        monkeypatch.setattr(folded_transition, "has_kernels", lambda _: False)
    deployed = deploy(tiny("densenet121_features").eval())
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        deployed(image())
        change(deployed.get_submodule(part))
        found = deployed(image())
        # After `float`, all is laid out anew.
        for level, expected in zip(found, deployed.float()(image()), strict=True):
            torch.testing.assert_close(level, expected)


class _Doubled(_Wrapper):
    def forward(self, x):
        return 2 * self.inner(x)


@pytest.mark.parametrize(
    ("part", "change"),
    [
        ("conv", lambda t: t.set_submodule("conv", _Doubled(t.conv))),
        ("conv", lambda t: setattr(t.conv, "forward", lambda x: 2 * nn.Conv2d.forward(t.conv, x))),
        ("norm", lambda t: t.set_submodule("norm", _Doubled(t.norm))),
        ("relu", lambda t: t.set_submodule("relu", nn.SiLU())),
        ("pool", lambda t: t.set_submodule("pool", nn.MaxPool2d(2))),
        ("its parts are norm, relu, pool, conv, 4", lambda t: t.append(nn.Tanh())),
    ],
)
def test_parts_replaced_in_a_deployed_transition_are_called(part, change):
    transition = deploy(tiny("densenet121_features").eval()).transition1
    expected = x = torch.randn(1, transition.conv.in_channels, 8, 8)
    change(transition)
    for child in transition:
        expected = child(expected)
    with pytest.warns(UserWarning, match=f"transition1 runs in parts, as {part}"), torch.no_grad():
        torch.testing.assert_close(transition(x), expected)


@pytest.mark.parametrize("model", [nn.Linear(1, 1), timm.create_model("test_resnet")])
def test_other_models_are_refused(model):
    with pytest.raises(ValueError, match="holds no DenseNet of this package"):
        deploy(model)


def test_a_hundred_layers_keep_their_precision():
    """densenet121 at full width and depth, random statistics: float32 against float64."""
    torch.manual_seed(0)
    net = randomise_norms(timm.create_model("densenet121_features")).eval()
    assert difference(net, deploy(net), image(1, 3, 96, 96)) <= 1e-5


# ---------------------------------------------------------------------- compilers and exporters


@pytest.mark.parametrize(
    "options", first_now([{"tap": "norm"}, {"bn_size": 0}, {"act_layer": "relu6"}])
)
def test_compiled_without_breaks_for_any_size(options):
    net = tiny("densenet121_features", layers=1, **options).eval()
    deployed = deploy(net)
    torch.compiler.reset()  # which counts how often one function is compiled
    graphs = []

    def count(graph, inputs):
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(deployed, backend=count, fullgraph=True, dynamic=True)
    for size in [(2, 3, 64, 64), (1, 3, 75, 90), (3, 3, 96, 64)]:
        with torch.inference_mode():
            assert difference(deployed, compiled, image(*size)) <= 1e-6
    calls = [str(node.target) for graph in graphs for node in graph.graph.nodes]
    blocks = [call for call in calls if "folded_block" in call]
    assert len(blocks) == 4 * len(graphs)
    assert not any("cat" in call.split(".") for call in calls)


@pytest.mark.long
def test_compiled_ahead_of_time_and_under_autocast():
    deployed = deploy(tiny("densenet121_features").eval())
    torch.compiler.reset()
    compiled = torch.compile(deployed, backend="aot_eager", fullgraph=True)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert difference(deployed, compiled, image()) <= 2**-7


@pytest.mark.long
@pytest.mark.parametrize("name", ["densenet121_features", "dsod_smallest_features"])
def test_the_compiler_of_c_has_nothing_to_do(name):
    """On a CPU Inductor writes no loop, so that the first call takes no compiler's time."""
    net = tiny(name).eval()
    deployed = deploy(net)
    torch.compiler.reset()
    metrics.reset()
    with torch.inference_mode():
        assert difference(net, torch.compile(deployed), image()) <= 1e-5
    assert metrics.generated_kernel_count == 0


@pytest.mark.parametrize("name", first_now(KINDS))
def test_exported_form_holds_no_buffer(name):
    net = tiny(name, layers=1).eval()
    sizes = {0: Dim("n", min=1), 2: Dim("h", min=64), 3: Dim("w", min=64)}
    program = torch.export.export(
        deploy(net),
        (image(2, 3, 96, 64),),
        dynamic_shapes=(sizes,),
        prefer_deferred_runtime_asserts_over_guards=True,
    )
    targets = {str(node.target) for node in program.graph.nodes}
    assert not any("copy" in t or "folded_block" in t or "mkldnn" in t for t in targets)
    # Blocks with groups are not folded: see `deploy`.
    assert net.spec.groups > 1 or not any("batch_norm" in t for t in targets)
    assert difference(net, program.module(), image(3, 3, 90, 75)) <= 1e-5


@pytest.mark.long
def test_onnx(tmp_path):
    net = tiny("densenet121_features", layers=1).eval()
    sizes = {0: Dim("n", min=1), 2: Dim("h", min=64), 3: Dim("w", min=64)}
    file = tmp_path / "net.onnx"
    torch.onnx.export(
        deploy(net), (image(2, 3, 96, 64),), file, dynamo=True, dynamic_shapes=(sizes,)
    )
    session = onnxruntime.InferenceSession(file)
    (given_name,) = (put.name for put in session.get_inputs())

    def run(x):
        return [torch.from_numpy(m) for m in session.run(None, {given_name: x.numpy()})]

    for size in [(2, 3, 96, 64), (1, 3, 75, 90)]:
        assert difference(net, run, image(*size)) <= 1e-5


def test_traced():
    deployed = deploy(tiny("densenet121_features").eval())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        traced = torch.jit.trace(deployed, image(1, 3, 64, 64))
    assert difference(deployed, traced, image(2, 3, 75, 90)) <= 1e-5


# ---------------------------------------------------------------------- models built on the net


def test_detectors_find_the_same():
    for build in (
        partial(dsod300, image_size=64, adapter_channels=[8] * 3, score_thresh=0.0),
        partial(retinanet_fpn, out_channels=64, min_size=64, max_size=96, score_thresh=0.0),
    ):
        torch.manual_seed(0)
        name = "dsod_smallest_features" if build.func is dsod300 else "densenet121_features"
        model = randomise_norms(build(num_classes=4, backbone=name, backbone_kwargs=BODY)).eval()
        deployed = deploy(model)
        assert len(folded_parts(deployed)) == 4
        with torch.no_grad():
            images = [image()[0].sigmoid()]
            for a, b in zip(model(images), deployed(images), strict=True):
                torch.testing.assert_close(a["scores"], b["scores"], rtol=1e-4, atol=1e-5)
                assert torch.equal(a["labels"][:3], b["labels"][:3])


def test_segmenters_give_the_same_logits():
    encoder = smp.Unet("tu-densenet121_features", encoder_weights=None, classes=3)
    for model, blocks in [
        (unet(num_classes=3, backbone="densenet121_features", backbone_kwargs=BODY), 4),
        (fcdensenet56(num_classes=3, growth_rate=4, num_init_features=8), 11),
        (encoder, 4),
    ]:
        model = randomise_norms(model).eval()
        deployed = deploy(model)
        assert len(folded_parts(deployed)) == blocks
        x = image(1, 3, 64, 96).sigmoid()
        with torch.no_grad():
            torch.testing.assert_close(deployed(x), model(x), rtol=1e-4, atol=1e-4)


def test_convolutions_around_the_net_take_in_the_norms_and_activations_behind_them():
    model = unet(num_classes=3, backbone="densenet121_features", backbone_kwargs=BODY)
    model = randomise_norms(model).eval()
    stages = [module for module in model.modules() if isinstance(module, DecoderStage)]
    assert len(stages) == 5
    calls = []
    stages[0].convs[0].conv.register_forward_hook(lambda *_: calls.append("hook"))
    stages[1].convs[0].norm = nn.InstanceNorm2d(stages[1].convs[0].conv.out_channels)
    deployed = deploy(model)
    kinds = [
        [type(part) for part in (convs.conv, convs.norm, convs.relu)]
        for module in deployed.modules()
        if isinstance(module, DecoderStage)
        for convs in module.convs
    ]
    assert kinds[0] == [nn.Conv2d, nn.BatchNorm2d, nn.ReLU]
    assert kinds[2] == [FoldedConv2d, nn.InstanceNorm2d, nn.ReLU]
    folded = [FoldedConv2d, nn.Identity, nn.Identity]
    assert all(parts == folded for parts in (kinds[1], *kinds[3:]))
    x = image(1, 3, 64, 96).sigmoid()
    with torch.no_grad():
        torch.testing.assert_close(deployed(x), model(x), rtol=1e-4, atol=1e-4)
    assert calls == ["hook"] * 2


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("act", [nn.ReLU(), nn.ReLU6(), nn.SiLU()])
def test_a_convolution_on_maps_of_many_sizes(act, native, monkeypatch):
    if not native:
        monkeypatch.setattr(
            "densenet_backbones.dense_block.folded.convolution.has_cpp", lambda x: False
        )
    net = tiny("densenet121_features").eval()
    model = nn.Sequential(net, nn.Sequential(nn.Conv2d(24, 20, 3, padding=1), act)).eval()
    head, folded = model[1], deploy(model)[1]
    assert type(folded[0]) is FoldedConv2d
    assert type(folded[1]) is (nn.SiLU if type(act) is nn.SiLU else nn.Identity)
    for size in [*range(1, 12), 1, 2]:
        x = 5 * image(2, 24, size, size + 3)
        with torch.no_grad():
            torch.testing.assert_close(folded(x), head(x), rtol=1e-4, atol=1e-5)
    assert len(folded[0]._layouts) <= 6, "more sizes than that hold no memory"


def test_statistics_of_the_batch_are_not_folded():
    torch.manual_seed(0)
    model = fcdensenet56(
        num_classes=3, growth_rate=4, num_init_features=8, batch_statistics_in_eval=True
    )
    model.double().eval()  # two runs in float32 need not be equal to the bit
    with pytest.warns(UserWarning, match="unfolded"):
        deployed = deploy(model)
    x = image(2, 3, 64, 64).sigmoid().double()
    with torch.no_grad():
        torch.testing.assert_close(deployed(x), model(x))
