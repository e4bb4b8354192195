"""CondenseNets: published sizes, condensation, the converted form, and the authors' weights."""

import copy
from itertools import pairwise

import pytest
import timm
import torch
from tiny_nets import tiny
from torch import Tensor, nn

from densenet_backbones.analysis.plan import plan
from densenet_backbones.checkpoints import CheckpointError, recognize, to_ours
from densenet_backbones.condensenet import (
    CondensedConv2d,
    LearnedGroupConv2d,
    LearnedGroupLinear,
    condense,
    convert,
    count_kept,
    find_learned_groups,
    group_lasso,
    is_condensing,
)
from densenet_backbones.densenet import DenseNet
from densenet_backbones.densenet_spec import DenseNetSpec
from densenet_backbones.variants import VARIANTS

CONDENSED = [name for name, spec in VARIANTS.items() if spec.is_condensed]
KINDS = ("condensenet74_features", "condensenet50_cifar_features")
# Parameters and multiply-adds before and after condensation (`plan`: convolutions and products),
# and what the authors' README publishes: millions of operations and of parameters.
COSTS = {
    "condensenet74": (11_922_680, 1_267_904_128, 4_773_944, 516_640_576, "529", "4.8"),
    "condensenet74_c8": (11_103_608, 1_137_847_936, 2_935_416, 261_545_792, "274", "2.9"),
    "condensenet50_cifar": (522_938, 64_934_432, 216_506, 27_185_696, "28.6", "0.22"),
    "condensenet74_cifar": (1_090_906, 131_783_392, 405_466, 49_208_032, "51.9", "0.41"),
    "condensenet86_cifar": (1_451_594, 173_858_624, 520_202, 62_381_888, "65.8", "0.52"),
    "condensenet98_cifar": (1_863_418, 221_701_024, 648_442, 76_997_536, "81.3", "0.65"),
    "condensenet110_cifar": (2_326_378, 275_310_592, 790_186, 93_054_976, "98.2", "0.79"),
    "condensenet122_cifar": (2_840_474, 334_687_328, 945_434, 110_554_208, "116.7", "0.95"),
    "condensenet182_cifar": (13_792_906, 1_615_332_192, 4_221_946, 493_929_312, "513", "4.2"),
}


def classifier(name: str = KINDS[0], **options: object) -> nn.Module:
    return tiny(name, features_only=False, num_classes=5, **options).eval()


def image(**options: object) -> Tensor:
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1), **options)


def shake(net: nn.Module) -> nn.Module:
    """Give the classifier other weights than zeros, so that equal outputs mean something."""
    torch.manual_seed(3)
    nn.init.normal_(net.classifier.bias)
    return net


# ------------------------------------------------------------------------------ sizes


def test_every_condensenet_is_counted() -> None:
    assert list(COSTS) == CONDENSED


@pytest.mark.parametrize("name", CONDENSED)
def test_parameters_and_multiply_adds_are_as_published(name: str) -> None:
    *expected, published, millions = COSTS[name]
    cifar = name.endswith("cifar")
    net = DenseNet(VARIANTS[name], num_classes=10 if cifar else 1000).eval()
    size = (1, 3, 32, 32) if cifar else (1, 3, 224, 224)
    before = plan(net, size)
    condense(net, 1.0)
    condensed = convert(net)
    after = plan(condensed, size)
    assert [before.parameters, before.macs, after.parameters, after.macs] == expected
    # The authors count values of activations and pools, and biases, as operations too.
    others = count_other_operations(condensed, size)
    assert f"{(after.macs + others) / 1e6:.{len(published.partition('.')[2])}f}" == published
    assert f"{after.parameters / 1e6:.{len(millions.partition('.')[2])}f}" == millions


def count_other_operations(net: nn.Module, size: tuple[int, ...]) -> int:
    """Values that ReLUs and pools read, and biases, as ``utils.py`` of the authors counts them."""
    counts = [net.num_classes]

    def count(module: nn.Module, inputs: tuple[Tensor], output: object) -> None:
        if inputs[0].dim() == 4:  # head pools of timm contain others
            counts.append(inputs[0].numel())

    kinds = (nn.ReLU, nn.AvgPool2d)
    modules = [m for m in net.modules() if isinstance(m, kinds)] + [net.global_pool]
    for module in modules:
        module.register_forward_hook(count)
    with torch.device("meta"):
        net.to("meta")(torch.empty(size))
    return sum(counts)


def test_growth_doubles_and_earlier_maps_pass_all_blocks() -> None:
    net = tiny(KINDS[0]).eval()
    assert VARIANTS["condensenet74"].growth_rate == (8, 16, 32, 64, 128)
    maps = net(image())
    for earlier, later in pairwise(maps[1:-1]):
        pooled = nn.functional.avg_pool2d(earlier, 2)
        assert torch.equal(later[:, : earlier.shape[1]], pooled)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"groups": 3}, r"groups must be a divisor of the growth rates \[4\], got 3"),
        ({"bn_size": 0}, "need the 1x1 of a bottleneck"),
        ({"condense_factor": 9}, "condense_factor must be at most num_init_features, 8, got 9"),
        ({"groups": 0}, "groups must be an integer >= 1, got 0"),
        ({"compression": 0.5}, "transition_conv=False leaves nothing to compress"),
    ],
)
def test_architectures_that_cannot_be(fields: dict[str, object], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        tiny(KINDS[0], **fields)


# ------------------------------------------------------------------------------ condensation


@pytest.mark.parametrize(("inputs", "factor"), [(16, 4), (12, 8), (9, 2), (5, 5), (7, 1)])
def test_each_stage_drops_the_inputs_of_least_weight(inputs: int, factor: int) -> None:
    torch.manual_seed(0)
    layer = LearnedGroupConv2d(inputs, 6, learned_groups=3, condense_factor=factor)
    for stage in range(factor):
        layer.condense_to(stage)
        assert int(layer.stage) == stage
        assert layer.mask.sum(1).tolist() == [count_kept(inputs, factor, stage)] * 3
        for group in range(3):  # output o belongs to group o % 3
            sums = layer.weight[group::3].abs().sum((0, 2, 3))
            kept = layer.mask[group]
            assert not kept.any() or (~kept).sum() == 0 or sums[kept].min() >= sums[~kept].max()
            assert (layer.masked_weight()[group::3, ~kept] == 0).all()
    layer.condense_to(0)
    assert int(layer.stage) == factor - 1, "stages go up only"


def test_stages_follow_the_progress_of_a_training() -> None:
    net = tiny(KINDS[0])  # C = 4: three stages in the first half
    expected = {0: 0, 0.16: 0, 1 / 6: 1, 0.32: 1, 1 / 3: 2, 0.49: 2, 0.5: 3, 1.0: 3}
    for progress, stage in expected.items():
        condense(net, progress)
        assert {int(layer.stage) for layer in find_learned_groups(net)} == {stage}, progress
        assert is_condensing(net) == (stage < 3)
    assert condense(net, 0.1) == 0
    other = tiny(KINDS[0])
    assert condense(other, 0.1, until=0.3) and not condense(tiny("densenet121_features"), 1.0)
    with pytest.raises(ValueError, match=r"progress must lie in \[0, 1\], got 1.5"):
        condense(net, 1.5)


def test_two_nets_condense_each_at_its_own_stage() -> None:
    first, second = tiny(KINDS[0]), tiny(KINDS[0])
    condense(first, 1.0)
    assert not is_condensing(first) and is_condensing(second)
    assert all(int(layer.stage) == 0 for layer in find_learned_groups(second))


def test_group_lasso_is_the_sum_of_norms_until_the_last_stage() -> None:
    torch.manual_seed(0)
    layer = LearnedGroupConv2d(8, 6, learned_groups=2, condense_factor=4)
    for stage in range(3):
        layer.condense_to(stage)
        weight = layer.masked_weight()[:, :, 0, 0]
        by_hand = sum(weight[g::2, i].norm() for g in range(2) for i in range(8))
        torch.testing.assert_close(layer.group_lasso(), by_hand)
    layer.group_lasso().backward()
    assert layer.weight.grad.isfinite().all()
    assert (layer.weight.grad[0::2, ~layer.mask[0]] == 0).all()
    layer.condense_to(3)  # C - 1, though there are two groups only
    assert layer.group_lasso() == 0
    net = tiny(KINDS[0])
    convs = [m for m in net.modules() if isinstance(m, LearnedGroupConv2d)]
    torch.testing.assert_close(group_lasso(net), sum(conv.group_lasso() for conv in convs))
    assert group_lasso(tiny("densenet121_features")) is None


@pytest.mark.parametrize("memory", ["none", "shared", "shared_lean", "layer"])
def test_memory_modes_train_the_masked_weights(memory: str) -> None:
    results = []
    for mode in ("none", memory):
        net = tiny(KINDS[0], memory=mode).double().train()
        condense(net, 0.4)
        sum(m.square().mean() for m in net(image(dtype=torch.float64))).backward()
        results.append({key: p.grad for key, p in net.named_parameters()})
    torch.testing.assert_close(*results, rtol=1e-10, atol=1e-12)
    layer = net.denseblock2.denselayer1.conv1
    assert (layer.weight.grad[0 :: layer.learned_groups, ~layer.mask[0]] == 0).all()


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiles_without_a_break_and_follows_condensation(backend: str) -> None:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    net = tiny(KINDS[1], layers=1).eval()
    compiled = torch.compile(net, backend=backend, fullgraph=True)
    for progress in (0.0, 0.4, 1.0):
        condense(net, progress)  # in place: nothing is compiled again
        for found, expected in zip(compiled(image()), net(image()), strict=True):
            torch.testing.assert_close(found, expected)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


# ------------------------------------------------------------------------------ converted form


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("progress", [0.0, 0.4, 1.0])
def test_the_converted_net_equals_the_masked_one(name: str, progress: float) -> None:
    net = shake(classifier(name))
    condense(net, progress)
    for dtype, tolerance in ((torch.float32, 1e-6), (torch.float64, 1e-13)):
        masked = copy.deepcopy(net).to(dtype)
        converted = convert(masked)
        assert not any(find_learned_groups(converted)) and any(find_learned_groups(masked))
        found, expected = converted(image(dtype=dtype)), masked(image(dtype=dtype))
        assert (found - expected).abs().max() <= tolerance * expected.abs().max()
        maps = zip(
            converted.forward_intermediates(image(dtype=dtype), intermediates_only=True),
            masked.forward_intermediates(image(dtype=dtype), intermediates_only=True),
            strict=True,
        )
        assert all((a - b).abs().max() <= tolerance * b.abs().max() for a, b in maps)


def test_a_converted_net_is_trained_on_and_keeps_what_was_frozen() -> None:
    net = classifier().train()
    net.freeze(2)
    condense(net, 1.0)
    converted = convert(net)
    converted(image()).square().mean().backward()
    conv = converted.denseblock2.denselayer1.conv1
    assert isinstance(conv, CondensedConv2d) and conv.conv.weight.grad is not None
    assert not converted.denseblock1.denselayer1.conv1.conv.weight.requires_grad
    assert not converted.denseblock1.denselayer1.conv1.training and conv.training


def test_a_net_without_learned_groups_has_nothing_to_convert() -> None:
    with pytest.raises(ValueError, match="DenseFeatureNet has no learned groups to convert"):
        convert(tiny("densenet121_features"))


# ------------------------------------------------------------------------------ weights


@pytest.mark.parametrize("name", KINDS)
def test_weights_of_the_converted_net_load_into_the_masked_one(name: str) -> None:
    net = shake(classifier(name))
    condense(net, 1.0)
    weights = convert(net).state_dict()
    again = classifier(name)
    again.load_state_dict(weights)
    for key, value in net.state_dict().items():
        if key.endswith(("mask", "stage")):
            assert torch.equal(again.state_dict()[key], value), key
    assert torch.equal(again(image()), net(image()))
    features = tiny(name)
    features.load_state_dict(weights)
    assert {int(layer.stage) for layer in find_learned_groups(features)} == {3}


def test_the_state_holds_mask_and_stage_and_weights_without_them_are_not_condensed() -> None:
    net = tiny(KINDS[0])
    condense(net, 0.4)
    state = net.state_dict()
    again = tiny(KINDS[0])
    again.load_state_dict(state)
    layer = again.denseblock3.denselayer1.conv1
    assert int(layer.stage) == 2 and torch.equal(layer.mask, net.denseblock3.denselayer1.conv1.mask)
    again.load_state_dict({k: v for k, v in state.items() if not k.endswith(("mask", "stage"))})
    assert int(layer.stage) == 0 and layer.mask.all()


def to_authors(net: nn.Module, prefix: str = "module.") -> dict[str, Tensor]:
    """Weights of a masked net as the authors' code names and shapes them."""
    theirs: dict[str, Tensor] = {}
    for key, value in net.state_dict().items():
        parts = key.split(".")
        if parts[0].startswith("denseblock"):
            block, layer = parts[0][len("denseblock") :], parts[1][len("denselayer") :]
            kind, number = parts[2][:-1], parts[2][-1]
            base = f"features.denseblock_{block}.denselayer_{layer}.conv_{number}."
            if parts[3] == "mask":
                conv = net.get_submodule(".".join(parts[:3]))
                rows = value.repeat(conv.out_channels // len(value), 1)
                theirs[f"{base}_mask"] = rows[:, :, None, None].float()
                theirs[f"{base}_count"] = torch.zeros(1)
            elif parts[3] == "stage":
                theirs[f"{base}_stage"] = value.float().reshape(1)
            else:
                theirs[f"{base}{kind}.{parts[3]}"] = value
        elif parts[0] in ("conv0", "norm5"):
            name = {"conv0": "init_conv", "norm5": "norm_last"}[parts[0]]
            theirs[f"features.{name}.{parts[1]}"] = value
        elif parts[-1] in ("weight", "bias"):  # their classifier is plain
            theirs[key] = value
    return {prefix + key: value for key, value in theirs.items()}


def to_authors_converted(net: nn.Module) -> dict[str, Tensor]:
    """Weights of a condensed net as the authors' ``convert_model`` leaves them."""
    theirs = to_authors(net, prefix="")
    for name, layer in convert(net).named_modules():
        if isinstance(layer, CondensedConv2d):
            block, number = (part[len("denseblock") :] for part in name.split(".")[:2])
            base = f"features.denseblock_{block}.denselayer_{number}.conv_1."
            for key in ("_mask", "_count", "_stage"):
                del theirs[base + key]
            theirs[f"{base}index"] = layer.index
            theirs[f"{base}conv.weight"] = layer.conv.weight
            for key in ("weight", "bias", "running_mean", "running_var"):
                theirs[f"{base}norm.{key}"] = theirs[f"{base}norm.{key}"][layer.index]
    weight = theirs.pop("classifier.weight")
    index = weight.abs().sum(0).argsort()[weight.shape[1] // 2 :]
    theirs["classifier.index"], theirs["classifier.linear.weight"] = index, weight[:, index]
    theirs["classifier.linear.bias"] = theirs.pop("classifier.bias")
    return theirs


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("progress", [0.0, 0.4, 1.0])
def test_the_authors_weights_are_read(name: str, progress: float) -> None:
    net = shake(classifier(name))
    convs = nn.ModuleList(m for m in net.modules() if isinstance(m, LearnedGroupConv2d))
    condense(convs, progress)
    again = classifier(name)
    again.load_state_dict(to_authors(net))
    assert torch.equal(again(image()), net(image()))
    assert {int(layer.stage) for layer in convs} == {
        int(m.stage) for m in again.modules() if isinstance(m, LearnedGroupConv2d)
    }


@pytest.mark.parametrize("name", KINDS)
def test_the_authors_converted_weights_are_read(name: str) -> None:
    net = shake(classifier(name))
    if isinstance(net.classifier, LearnedGroupLinear):
        condense(net, 1.0)
    else:  # their conversion drops half of any classifier's inputs
        condense(net, 1.0)
        weak = net.classifier.weight.abs().sum(0).argsort()[: net.num_features // 2]
        net.classifier.weight.data[:, weak] = 0
    weights = to_authors_converted(net)
    again = classifier(name)
    again.load_state_dict(weights)
    torch.testing.assert_close(again(image()), net(image()), rtol=1e-6, atol=1e-6)
    assert not is_condensing(again)
    torch.testing.assert_close(convert(again)(image()), net(image()), rtol=1e-5, atol=1e-5)


def test_published_nets_are_recognized_in_all_forms() -> None:
    for name in ("condensenet74_c8", "condensenet50_cifar"):
        net = timm.create_model(f"{name}_features", features_only=False, num_classes=7)
        condense(net, 1.0)
        for weights in (net.state_dict(), convert(net).state_dict(), to_authors(net)):
            found = recognize(weights)
            assert found.variants == (name,) and not found.missing and not found.unexpected
            assert found.classes == 7 and found.spec == VARIANTS[name]
        assert recognize(to_authors_converted(net)).variants == (name,)


def test_unpublished_nets_are_recognized() -> None:
    spec = DenseNetSpec(
        growth_rate=(6, 12),
        block_config=(2, 3),
        num_init_features=10,
        compression=1.0,
        transition_conv=False,
        stem="cifar",
        groups=3,
        condense_factor=3,
    )
    found = recognize(DenseNet(spec, num_classes=0).state_dict())
    assert found.spec == spec and found.levels["norm"] == ("c1", "c2", "c3")


def test_a_damaged_index_is_one_clear_error() -> None:
    net = classifier()
    condense(net, 1.0)
    weights = convert(net).state_dict()
    weights["denseblock1.denselayer1.conv1.index"] += 1000
    with pytest.raises(CheckpointError, match="are no CondenseNet's"):
        to_ours(weights)
