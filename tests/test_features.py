import pytest
import timm
import torch
import torchvision
from tiny_nets import TINY, randomise_norms
from torch import nn
from torchvision.models._utils import IntermediateLayerGetter

from densenet_backbones.checkpoints import to_ours
from densenet_backbones.densenet import DenseNet, DenseNetSpec
from densenet_backbones.features import DenseFeatureNet, FeatureLevel, feature_levels

TAPS = ("raw", "norm", "compressed", "pooled")
DSOD_LIKE = DenseNetSpec(
    **TINY,
    stem="dsod",
    pool="max",
    ceil_mode=True,
    transition_pool=(True, True, False),
    compression=1.0,
    final_norm=False,
)
CIFAR_LIKE = DenseNetSpec(
    growth_rate=4, block_config=(2, 1, 1), num_init_features=8, stem="cifar", bn_size=None
)
SPECS = {"imagenet": DenseNetSpec(**TINY), "dsod": DSOD_LIKE, "cifar": CIFAR_LIKE}


def tiny_net(spec=SPECS["imagenet"], seed=0):
    torch.manual_seed(seed)
    return randomise_norms(DenseNet(spec)).eval()


def pairs(levels):
    return [(level.channels, level.stride) for level in levels]


@pytest.mark.parametrize(
    ("tap", "expected"),
    [
        ("raw", [(64, 2), (256, 4), (512, 8), (1024, 16), (1024, 32)]),
        ("norm", [(64, 2), (256, 4), (512, 8), (1024, 16), (1024, 32)]),
        ("compressed", [(64, 2), (128, 4), (256, 8), (512, 16), (1024, 32)]),
        ("pooled", [(64, 2), (128, 8), (256, 16), (512, 32), (1024, 32)]),
    ],
)
def test_tap_table_of_densenet121(tap, expected):
    with torch.device("meta"):
        net = DenseFeatureNet(DenseNet(), tap=tap)
        maps = net(torch.empty(1, 3, 64, 96))
    assert pairs(net.levels) == expected
    assert [level.name for level in net.levels] == ["c1", "c2", "c3", "c4", "c5"]
    assert [tuple(m.shape) for m in maps] == [(1, c, 64 // s, 96 // s) for c, s in expected]


@pytest.mark.parametrize("size", [64, 75])
def test_default_taps_equal_timms_bit_for_bit(size):
    torch.manual_seed(0)
    theirs = timm.create_model("densenet121", growth_rate=8, block_config=(2, 3, 2, 2))
    randomise_norms(theirs).eval()
    spec = DenseNetSpec(growth_rate=8, block_config=(2, 3, 2, 2), num_init_features=16)
    net = DenseNet(spec).eval()
    net.load_state_dict(to_ours(theirs.state_dict()))
    image = torch.randn(2, 3, size, size)
    with torch.no_grad():
        expected = theirs.forward_intermediates(image, intermediates_only=True)
        features = DenseFeatureNet(net)(image)
    assert len(features) == 5
    assert all(torch.equal(a, b) for a, b in zip(features, expected, strict=True))


def test_densenet121_taps_equal_timms_features_only_net():
    torch.manual_seed(0)
    theirs = randomise_norms(timm.create_model("densenet121", features_only=True)).eval()
    net = DenseNet(num_classes=0).eval()
    net.load_state_dict(to_ours(theirs.state_dict()))
    ours = DenseFeatureNet(net)
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        for a, b in zip(ours(image), theirs(image), strict=True):
            assert torch.equal(a, b)
    assert ours.feature_info.channels() == theirs.feature_info.channels()
    assert ours.feature_info.reduction() == theirs.feature_info.reduction()


@pytest.mark.parametrize("size", [64, 75])
def test_taps_equal_torchvisions_on_the_same_weights(size):
    torch.manual_seed(0)
    theirs = torchvision.models.DenseNet(4, (1, 2, 2, 1), 8)
    randomise_norms(theirs).eval()
    ours = DenseNet(DenseNetSpec(growth_rate=4, block_config=(1, 2, 2, 1), num_init_features=8))
    ours.load_state_dict(theirs.state_dict())
    ours.eval()
    blocks = {f"denseblock{i}": str(i) for i in range(1, 5)} | {"relu0": "0", "norm5": "5"}
    image = torch.randn(2, 3, size, size)
    with torch.no_grad():
        expected = IntermediateLayerGetter(theirs.features, blocks)(image)
        maps = DenseFeatureNet(ours)(image)
        for i in range(4):
            assert torch.equal(maps[i], expected[str(i)])
        assert torch.equal(maps[4], expected["5"].relu()), "torchvision leaves the last ReLU out"
        assert torch.equal(ours.denseblock4(ours.pool3(ours.transition3(maps[3]))), expected["4"])
        for i in (1, 2, 3):  # a transition of torchvision pools, too
            whole = getattr(theirs.features, f"transition{i}")(expected[str(i)])
            assert torch.equal(DenseFeatureNet(ours, tap="pooled")(image)[i], whole)
        assert torch.equal(ours(image), theirs(image))


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_taps_are_what_the_table_says(spec):
    net = tiny_net(spec)
    image = torch.randn(1, 3, 75, 64)
    with torch.no_grad():
        taps = {tap: DenseFeatureNet(net, tap=tap)(image) for tap in TAPS}
        for i in range(1, len(spec.block_config)):
            transition = getattr(net, f"transition{i}")
            raw = taps["raw"][i]
            normed = transition.norm(raw).relu()
            assert torch.equal(taps["norm"][i], normed) and normed.min() >= 0
            assert torch.equal(taps["compressed"][i], transition.conv(normed))
            pool = getattr(net, f"pool{i}", nn.Identity())
            assert torch.equal(taps["pooled"][i], pool(taps["compressed"][i]))
    for tap in TAPS:
        assert torch.equal(taps[tap][0], taps["raw"][0])
        assert torch.equal(taps[tap][-1], taps["raw"][-1])
    assert (taps["raw"][-1].min() >= 0) == spec.final_norm


@pytest.mark.parametrize("tap", TAPS)
@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_levels_tell_channels_and_strides_of_the_maps(spec, tap):
    net = DenseFeatureNet(tiny_net(spec), tap=tap)
    # Pools that round down cut the last row, so exact sizes need a multiple of the stride there.
    height, width = (75, 90) if spec.ceil_mode else (64, 96)
    with torch.no_grad():
        maps = net(torch.randn(1, 3, height, width))
    for level, features in zip(net.levels, maps, strict=True):
        shape = (1, level.channels, -(-height // level.stride), -(-width // level.stride))
        assert features.shape == shape


def test_dsod_like_levels_share_a_stride():
    assert pairs(DenseFeatureNet(tiny_net(DSOD_LIKE)).levels)[2:] == [(20, 8), (24, 16), (28, 16)]
    pooled = DenseFeatureNet(tiny_net(DSOD_LIKE), tap="pooled").levels
    assert [level.stride for level in pooled] == [2, 8, 16, 16, 16]


@pytest.mark.parametrize("tap", TAPS)
@pytest.mark.parametrize("out_indices", [(0,), (2,), (1, 3), (4,), (0, 1, 2, 3, 4)])
def test_every_parameter_kept_gets_a_gradient(tap, out_indices):
    net = DenseFeatureNet(tiny_net(), out_indices, tap=tap).train()
    sum(m.square().sum() for m in net(torch.randn(2, 3, 64, 64))).backward()
    assert all(p.grad is not None for p in net.parameters())


@pytest.mark.parametrize("tap", TAPS)
def test_wanted_taps_equal_those_of_the_whole_net(tap):
    net = tiny_net()
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        every = DenseFeatureNet(net, tap=tap)(image)
        some = DenseFeatureNet(net, (1, 3), tap=tap)
        assert all(torch.equal(a, every[i]) for a, i in zip(some(image), (1, 3), strict=True))
    assert [level.name for level in some.levels] == ["c2", "c4"]
    assert some.num_features == every[3].shape[1]
    assert net(image).shape == (1, 1000), "the classifier net must stay whole"


def test_it_stops_after_the_last_wanted_tap():
    names = [name for name, _ in DenseFeatureNet(tiny_net(), (1, 2)).named_children()]
    assert names[-1] == "denseblock2"
    norm = DenseFeatureNet(tiny_net(), (1, 2), tap="norm")
    assert [name for name, _ in norm.transition2.named_children()] == ["norm", "relu"]
    assert set(norm.state_dict()) < set(tiny_net().state_dict())


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_module_names_are_children_and_return_layers(spec):
    for tap in TAPS:
        net = DenseFeatureNet(tiny_net(spec), tap=tap)
        names = net.feature_info.module_name()
        modules = dict(net.named_modules() if tap == "norm" else net.named_children())
        assert set(names) <= set(modules)
        assert net.return_layers == {name: str(i) for i, name in enumerate(names)}


@pytest.mark.parametrize("tap", ["raw", "compressed", "pooled"])
def test_torchvisions_layer_getter_gets_the_same_taps(tap):
    net = tiny_net()
    ours = DenseFeatureNet(net, tap=tap)
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        theirs = IntermediateLayerGetter(net, ours.return_layers)(image)
        for i, features in enumerate(ours(image)):
            assert torch.equal(theirs[str(i)], features)


@pytest.mark.parametrize("tap", TAPS)
def test_return_layers_may_be_replaced_as_transformers_does(tap):
    net = DenseFeatureNet(tiny_net(), (1, 3), tap=tap)
    image = torch.randn(1, 3, 64, 64)
    own = net.return_layers
    with torch.no_grad():
        features = net(image)
        net.return_layers = {info["module"]: str(i) for i, info in enumerate(net.feature_info.info)}
        hidden = net(image)
        net.return_layers = own
        again = net(image)
    assert torch.equal(hidden[1], features[0]) and torch.equal(hidden[3], features[1])
    assert len(again) == 2


def test_attributes_timm_and_others_read():
    net = DenseFeatureNet(DenseNet(DenseNetSpec(**TINY), in_chans=4), (2, 3))
    assert net.num_classes == 0 and net.in_chans == 4 and net.output_fmt == "NCHW"
    assert net.feature_info.out_indices == (2, 3)
    assert net.feature_info[1]["num_chs"] == 12


def test_weights_of_the_whole_net_load_by_name():
    source, target = tiny_net(seed=0), DenseFeatureNet(tiny_net(seed=1))
    target.load_state_dict(source.state_dict())
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(target(image)[-1], source.forward_features(image))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tap": "post"}, r"tap must be one of 'raw', 'norm', .* got 'post'"),
        ({"output_fmt": "NHWC"}, "output_fmt must be 'NCHW', got 'NHWC'"),
        ({"out_indices": -2}, "out_indices=-2"),
        ({"out_indices": (5,)}, "there is no tap 5"),
        ({"out_indices": ()}, "out_indices is empty"),
    ],
)
def test_refusals_are_sentences(arguments, message):
    with pytest.raises(ValueError, match=message):
        DenseFeatureNet(tiny_net(), **arguments)


# ------------------------------------------------------------------------------ feature_levels


def test_level_is_a_checked_value():
    assert FeatureLevel("c2", 64, 4) == FeatureLevel("c2", 64, 4)
    for channels, stride in ((0, 4), (64, 0)):
        with pytest.raises(ValueError, match="of level 'c2' must be at least 1"):
            FeatureLevel("c2", channels, stride)


def test_levels_of_ours():
    net = DenseFeatureNet(tiny_net(), (1, 4))
    assert feature_levels(net) == net.levels
    assert [level.name for level in net.levels] == ["c2", "c5"]


@pytest.mark.parametrize(
    ("name", "arguments", "expected"),
    [
        ("resnet18", {}, "c1:64@2 c2:64@4 c3:128@8 c4:256@16 c5:512@32"),
        ("resnet18", {"out_indices": (-3, 4)}, "c3:128@8 c5:512@32"),
        ("resnet18", {"out_indices": (4, 2)}, "c3:128@8 c5:512@32"),
        ("convnext_atto", {"out_indices": (1, 3)}, "c3:80@8 c5:320@32"),
        ("densenet121", {"out_indices": (2, 3, 4)}, "c3:512@8 c4:1024@16 c5:1024@32"),
        ("vit_tiny_patch16_224", {"out_indices": (2, 11)}, "c3:192@16 c12:192@16"),
    ],
)
def test_levels_of_timm_nets(name, arguments, expected):
    with torch.device("meta"):
        net = timm.create_model(name, features_only=True, **arguments)
        maps = net(torch.empty(1, 3, 224, 224))
    levels = feature_levels(net)
    assert " ".join(f"{x.name}:{x.channels}@{x.stride}" for x in levels) == expected
    assert [m.shape[1] for m in maps] == [level.channels for level in levels]


def test_levels_need_a_feature_net_in_nchw():
    with torch.device("meta"):
        swin = timm.create_model("swin_tiny_patch4_window7_224", features_only=True)
        classifier = timm.create_model("resnet18")
    with pytest.raises(ValueError, match="NHWC maps; NCHW maps are needed"):
        feature_levels(swin)
    for net in (classifier, nn.ReLU()):
        with pytest.raises(ValueError, match="features_only=True"):
            feature_levels(net)
