import pytest
import timm
import torch
import torchvision
from tiny_nets import TINY, parameters_of, randomise_norms
from torch import nn
from torchvision.models._utils import IntermediateLayerGetter

from densenet_backbones.checkpoints import to_ours, to_torchvision
from densenet_backbones.dense_block import run_plain
from densenet_backbones.densenet import DenseNet, DenseNetSpec
from densenet_backbones.stages import take_indices
from densenet_backbones.variants import VARIANTS, cifar_spec

# ------------------------------------------------------------------------------ architecture


@pytest.mark.parametrize("depth", [121, 161, 169, 201])
def test_imagenet_nets_have_torchvisions_names_and_shapes(depth):
    with torch.device("meta"):
        ours = DenseNet(VARIANTS[f"densenet{depth}"])
        theirs = torchvision.models.get_model(f"densenet{depth}", weights=None)
    expected = {key: value.shape for key, value in to_ours(theirs.state_dict()).items()}
    assert {key: value.shape for key, value in ours.state_dict().items()} == expected
    assert list(ours.state_dict()) == list(expected)


@pytest.mark.parametrize(
    ("name", "total", "features"),
    [
        ("densenet121", 7_978_856, 6_953_856),
        ("densenet161", 28_681_000, 26_472_000),
        ("densenet169", 14_149_480, 12_484_480),
        ("densenet201", 20_013_928, 18_092_928),
        ("densenet264", 33_337_704, 30_648_704),
        ("densenet232_k48", 55_570_984, None),
        ("densenet264_k48", 72_686_632, None),
        ("densenet264d", 72_736_216, 68_703_216),
        ("densenetblur121d", 7_998_088, 6_973_088),
    ],
)
def test_imagenet_parameter_counts(name, total, features):
    assert parameters_of(lambda: DenseNet(VARIANTS[name])) == total
    if features:
        assert parameters_of(lambda: DenseNet(VARIANTS[name], num_classes=0)) == features


CIFAR_PARAMETERS = {
    "densenet40_k12": 1_019_722,
    "densenet100_k12": 6_979_642,
    "densenet100_k24": 27_249_082,
    "densenet40b_k12": 238_306,
    "densenet40c_k12": 578_090,
    "densenet40bc_k12": 176_122,
    "densenet100bc_k12": 769_162,
    "densenet250bc_k24": 15_324_406,
    "densenet190bc_k40": 25_624_430,
    "densenet40bc_k36": 1_542_682,
    "densenet40bc_k48": 2_733_130,
    "densenet40bc_k60": 4_261_690,
}


@pytest.mark.parametrize(("name", "total"), CIFAR_PARAMETERS.items())
def test_cifar_parameter_counts(name, total):
    assert parameters_of(lambda: DenseNet(VARIANTS[name], num_classes=10)) == total


def test_every_cifar_net_is_counted():
    dense = {n for n, spec in VARIANTS.items() if spec.stem == "cifar" and not spec.is_condensed}
    assert dense == set(CIFAR_PARAMETERS)


@pytest.mark.parametrize(("depth", "kind"), [(40, "x"), (41, ""), (43, "bc"), (4, "")])
def test_cifar_nets_that_do_not_exist(depth, kind):
    with pytest.raises(ValueError, match="must be"):
        cifar_spec(depth, 12, kind)


def test_cifar_children_and_strides():
    net = DenseNet(cifar_spec(10, 4), num_classes=10)
    names = [name for name, _ in net.named_children()]
    assert names[:3] == ["conv0", "denseblock1", "transition1"]
    assert names[-5:] == ["norm5", "relu5", "global_pool", "head_drop", "classifier"]
    assert [info["reduction"] for info in net.feature_info] == [1, 1, 2, 4]
    assert net.feature_info[0]["module"] == "conv0"
    layer = net.denseblock1.denselayer1
    assert [name for name, _ in layer.named_children()] == ["norm1", "relu1", "conv1"]
    assert layer.conv1.kernel_size == (3, 3)


def test_children_are_flat_and_named_as_torchvisions():
    names = [name for name, _ in DenseNet(DenseNetSpec(**TINY)).named_children()]
    stages = ["conv0", "norm0", "relu0", "pool0"]
    for i in (1, 2, 3):
        stages += [f"denseblock{i}", f"transition{i}", f"pool{i}"]
    stages += ["denseblock4", "norm5", "relu5", "global_pool", "head_drop", "classifier"]
    assert names == stages


def test_unpooled_transition_has_no_pool_and_keeps_the_stride():
    spec = DenseNetSpec(**TINY, transition_pool=(True, False, True))
    net = DenseNet(spec).eval()
    assert not hasattr(net, "pool2") and hasattr(net, "transition2")
    assert [info["reduction"] for info in net.feature_info] == [2, 4, 8, 8, 16]
    assert_strides_true(net, 64)


@pytest.mark.parametrize("size", [75, 90, 97])
def test_strides_hold_in_ceil_mode_at_odd_sizes(size):
    spec = DenseNetSpec(
        **TINY, stem="dsod", pool="max", ceil_mode=True, transition_pool=(True, True, False)
    )
    net = DenseNet(spec, num_classes=0).eval()
    assert [info["reduction"] for info in net.feature_info] == [2, 4, 8, 16, 16]
    assert_strides_true(net, size)


def assert_strides_true(net, size):
    with torch.no_grad():
        maps = net.forward_intermediates(torch.randn(1, 3, size, size), intermediates_only=True)
    for info, features in zip(net.feature_info, maps, strict=True):
        side = -(-size // info["reduction"])
        assert features.shape == (1, info["num_chs"], side, side)


def test_widths_may_differ_per_block():
    spec = DenseNetSpec(
        growth_rate=(4, 8, 2),
        block_config=(1, 2, 3),
        compression=(0.5, 1.0),
        transition_channels=(None, 9),
    )
    net = DenseNet(spec)
    assert [info["num_chs"] for info in net.feature_info] == [64, 68, 50, 15]
    assert net(torch.randn(2, 3, 32, 32)).shape == (2, 1000)


def test_initialisation():
    torch.manual_seed(0)
    he = DenseNet(DenseNetSpec(block_config=(6,))).denseblock1.denselayer6.conv2.weight
    fan_in = 128 * 9
    assert he.std().item() == pytest.approx((2 / fan_in) ** 0.5, rel=0.03)
    xavier = DenseNet(DenseNetSpec(block_config=(6,), init="xavier_caffe"))
    weight = xavier.denseblock1.denselayer6.conv2.weight
    bound = (3 / fan_in) ** 0.5
    assert weight.abs().max().item() <= bound
    assert weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.03)
    assert not xavier.classifier.bias.any()


# ------------------------------------------------------------------------------ what it computes


def test_run_plain_is_dense():
    x = torch.tensor([[[[1.0]]]])
    total = run_plain(x, [lambda t: t.sum(1, keepdim=True), lambda t: t.sum(1, keepdim=True)])
    assert total.flatten().tolist() == [1.0, 1.0, 2.0]
    assert run_plain(x, []) is x


def tiny_torchvision():
    return randomise_norms(torchvision.models.DenseNet(4, (2, 3, 2, 2), 8, num_classes=5))


def ours_like(theirs):
    spec = DenseNetSpec(growth_rate=4, block_config=(2, 3, 2, 2), num_init_features=8)
    ours = DenseNet(spec, num_classes=5)
    ours.load_state_dict(to_ours(theirs.state_dict()))
    return ours


@pytest.mark.parametrize("size", [64, 75])
def test_equals_torchvision_in_eval(size):
    torch.manual_seed(0)
    theirs = tiny_torchvision().double().eval()
    ours = ours_like(theirs).double().eval()
    image = torch.randn(2, 3, size, size, dtype=torch.float64)
    with torch.no_grad():
        expected = theirs(image)
        assert expected.std() > 0.01
        torch.testing.assert_close(ours(image), expected)


def test_equals_torchvision_in_training_with_gradients_and_buffers():
    torch.manual_seed(0)
    theirs = tiny_torchvision().double().train()
    ours = ours_like(theirs).double().train()
    image = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    for net in (theirs, ours):
        net(image).square().sum().backward()
    grads = to_ours({name: p.grad for name, p in theirs.named_parameters()})
    torch.testing.assert_close({n: p.grad for n, p in ours.named_parameters()}, grads)
    torch.testing.assert_close(dict(ours.named_buffers()), to_ours(dict(theirs.named_buffers())))
    assert int(ours.norm0.num_batches_tracked) == 1


def test_deep_stem_equals_timms_densenet264d():
    torch.manual_seed(0)
    blocks = (1, 2, 1, 1)
    theirs = timm.create_model("densenet264d", growth_rate=8, block_config=blocks).eval()
    randomise_norms(theirs)
    spec = DenseNetSpec(growth_rate=8, block_config=blocks, num_init_features=16, stem="deep")
    ours = DenseNet(spec).eval()
    ours.load_state_dict(to_ours(theirs.state_dict()))
    image = torch.randn(1, 3, 67, 64)
    with torch.no_grad():
        assert torch.equal(ours(image), theirs(image))
        taps = zip(
            ours.forward_intermediates(image, intermediates_only=True),
            theirs.forward_intermediates(image, intermediates_only=True),
            strict=True,
        )
        assert all(torch.equal(a, b) for a, b in taps)
    assert {k: v.shape for k, v in to_torchvision(ours.state_dict()).items()} == {
        k: v.shape for k, v in theirs.state_dict().items()
    }


def test_dropout_acts_in_training_only():
    torch.manual_seed(0)
    net = DenseNet(DenseNetSpec(**TINY, proj_drop_rate=0.5))
    block, x = net.denseblock1, torch.randn(1, 8, 8, 8)
    new = block.train()(x)[:, 8:]
    assert 0.3 < (new == 0).float().mean() < 0.7
    assert not (block.eval()(x)[:, 8:] == 0).any()


def test_norm_arguments_reach_every_norm():
    net = DenseNet(DenseNetSpec(**TINY, norm_eps=1e-3, norm_momentum=0.01))
    norms = [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
    assert {(norm.eps, norm.momentum) for norm in norms} == {(1e-3, 0.01)}
    assert {type(norm) for norm in norms} == {nn.BatchNorm2d}


def test_norm_converters_keep_every_activation():
    torch.manual_seed(0)
    net = randomise_norms(DenseNet(DenseNetSpec(**TINY))).eval()
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = net(image)
        converted = nn.SyncBatchNorm.convert_sync_batchnorm(net)
        assert torch.equal(converted(image), expected)


def test_torchvisions_layer_getter_reads_the_norms_before_their_relu():
    torch.manual_seed(0)
    net = DenseNet(DenseNetSpec(**TINY)).eval()
    layers = {"norm0": "a", "relu0": "b", "norm5": "c", "relu5": "d"}
    with torch.no_grad():
        taps = IntermediateLayerGetter(net, layers)(torch.randn(1, 3, 64, 64))
    assert taps["a"].min() < 0 and taps["c"].min() < 0
    assert torch.equal(taps["a"].relu(), taps["b"]) and torch.equal(taps["c"].relu(), taps["d"])


# ------------------------------------------------------------------------------ timm's interface


def test_head_interface():
    net = DenseNet(DenseNetSpec(**TINY), num_classes=7, in_chans=5, drop_rate=0.5).eval()
    features = net.forward_features(torch.randn(2, 5, 64, 64))
    assert features.shape == (2, net.num_features, 2, 2)
    assert net.forward_head(features).shape == (2, 7)
    assert net.forward_head(features, pre_logits=True).shape == (2, net.head_hidden_size)
    assert net.get_classifier() is net.classifier
    net.reset_classifier(3, "catavgmax")
    assert net.num_classes == 3 and net.head_hidden_size == 2 * net.num_features
    assert net.forward_head(features).shape == (2, 3)
    assert not net.classifier.training and net.head_drop.p == 0.5
    net.reset_classifier(0, "")
    assert net.forward_head(features).shape == features.shape


def test_forward_intermediates_and_pruning():
    torch.manual_seed(0)
    net = DenseNet(DenseNetSpec(**TINY)).eval()
    image = torch.randn(1, 3, 64, 64)
    last, taps = net.forward_intermediates(image)
    assert torch.equal(last, taps[-1]) and len(taps) == 5
    stopped, some = net.forward_intermediates(image, (1, 2), stop_early=True)
    assert torch.equal(stopped, some[-1])
    assert torch.equal(some[0], taps[1]) and torch.equal(some[1], taps[2])
    with pytest.raises(ValueError, match="output_fmt must be 'NCHW', got 'NHWC'"):
        net.forward_intermediates(image, output_fmt="NHWC")
    assert net.prune_intermediate_layers([1, 2]) == [1, 2]
    assert torch.equal(net.forward_features(image), taps[2])
    assert not hasattr(net, "denseblock3") and net.num_features == taps[2].shape[1]


@pytest.mark.parametrize("coarse", [False, True])
def test_group_matcher_orders_every_parameter(coarse):
    net = DenseNet(DenseNetSpec(**TINY, stem="deep"))
    groups = timm.models.group_parameters(net, net.group_matcher(coarse), reverse=True)
    assert groups.keys() == dict(net.named_parameters()).keys()
    assert {groups[f"conv{i}.weight"] for i in range(3)} == {0}
    depth = [groups[f"denseblock{i}.denselayer1.conv1.weight"] for i in (1, 2, 3, 4)]
    assert depth == sorted(set(depth)) and depth[0] > 0
    assert groups["transition1.conv.weight"] == depth[0]
    assert groups["norm5.weight"] == groups["classifier.weight"] > depth[-1]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"num_classes": -1}, "num_classes must be at least 0, got -1"),
        ({"in_chans": 0}, "in_chans must be at least 1, got 0"),
        ({"drop_rate": 1.0}, r"drop_rate must lie in \[0, 1\), got 1.0"),
        ({"drop_rate": -0.1}, r"drop_rate must lie in \[0, 1\), got -0.1"),
        ({"global_pool": ""}, "'' leaves a map, which a classifier does not take; give num_cl"),
    ],
)
def test_net_refuses_arguments_out_of_range(arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        DenseNet(DenseNetSpec(**TINY), **arguments)


@pytest.mark.parametrize(
    ("indices", "taken"),
    [(None, (0, 1, 2, 3, 4)), (2, (3, 4)), ((1, -1), (1, 4)), (range(3), (0, 1, 2)), ([4], (4,))],
)
def test_take_indices(indices, taken):
    assert take_indices(5, indices) == taken


@pytest.mark.parametrize(
    ("indices", "message"),
    [
        (-2, "out_indices=-2 .* give 1 to 5"),
        (0, "give 1 to 5"),
        (6, "the last 6 of 5 taps"),
        ((), "out_indices is empty; give positions from 0 to 4"),
        ((1, 5), r"out_indices=\(1, 5\): there is no tap 5; give positions from 0 to 4"),
        ((-6,), "there is no tap -6"),
        ((2, 1), "must ascend without repeats"),
        ((4, -1), "must ascend without repeats"),
    ],
)
def test_take_indices_refuses_in_sentences(indices, message):
    with pytest.raises(ValueError, match=message):
        take_indices(5, indices)
