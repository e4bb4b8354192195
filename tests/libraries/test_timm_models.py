import json

import pytest
import safetensors.torch
import timm
import torch
import torchvision
from huggingface_hub.errors import LocalEntryNotFoundError
from tiny_nets import TINY, parameters_of, randomise_norms

import densenet_backbones.timm_models as entries
from densenet_backbones.checkpoints import to_ours, to_timm_features
from densenet_backbones.densenet import DenseNet
from densenet_backbones.features import DenseFeatureNet, feature_levels
from densenet_backbones.variants import VARIANTS

NAMES = timm.list_models(module="timm_models")
# Everything but the widths and depths that make the nets big stays as registered.
TINY_ENTRY = {"growth_rate": 2, "block_config": (1, 1, 1, 1), "num_init_features": 4}


def tiny_entry(name):
    """Arguments of a tiny form of any name; groups divide its growth rate."""
    condensed = VARIANTS[name.removesuffix("_features")].is_condensed
    return {**TINY_ENTRY, "groups": 2, "condense_factor": 2} if condensed else TINY_ENTRY


def test_names_and_module():
    assert {
        "densenet121_features",
        "densenet161_features",
        "densenet169_features",
        "densenet201_features",
        "densenet264_features",
        "dsod_features",
        "dsod_smallest_features",
    } <= set(NAMES)
    assert set(NAMES) <= set(entries.__all__) and isinstance(entries.__all__, list)
    assert timm.is_model("densenet121") and "densenet121" not in NAMES


@pytest.mark.parametrize("name", NAMES)
def test_entry_is_a_feature_net_by_default(name):
    net = timm.create_model(name, **tiny_entry(name)).eval()
    assert isinstance(net, DenseFeatureNet)
    with torch.no_grad():
        maps = net(torch.randn(1, 3, 64, 64))
    described = [(1, x.channels, 64 // x.stride, 64 // x.stride) for x in feature_levels(net)]
    assert [tuple(m.shape) for m in maps] == described
    assert net.feature_info.channels() == [m.shape[1] for m in maps]
    assert net.pretrained_cfg["architecture"] == name
    assert "classifier" not in net.pretrained_cfg


@pytest.mark.parametrize("name", NAMES)
def test_entry_is_a_classifier_on_demand(name):
    net = timm.create_model(
        name, features_only=False, num_classes=3, in_chans=2, **tiny_entry(name)
    )
    assert isinstance(net, DenseNet) and net.num_classes == 3
    assert net.eval()(torch.randn(2, 2, 64, 64)).shape == (2, 3)
    assert net.get_submodule(net.pretrained_cfg["first_conv"]).in_channels == 2
    assert net.get_submodule(net.pretrained_cfg["classifier"]).out_features == 3


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("features_only", [True, False])
def test_device_and_type_are_those_asked_for(name, features_only):
    options = {"device": "meta", "dtype": torch.float64, "features_only": features_only}
    tensors = timm.create_model(name, **options, **tiny_entry(name)).state_dict().values()
    assert {t.device.type for t in tensors} == {"meta"}
    assert {t.dtype for t in tensors if t.is_floating_point()} == {torch.float64}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("tap", ["norm", "compressed", "pooled"])
def test_taps_and_indices_pass_through(name, tap):
    net = timm.create_model(name, tap=tap, out_indices=(1, -1), **tiny_entry(name))
    assert net.tap == tap and [level.name for level in net.levels] == ["c2", "c5"]
    assert len(net(torch.randn(2, 3, 64, 64))) == 2


@pytest.mark.parametrize("name", NAMES)
def test_published_weights_are_named_in_full(name):
    for tag in entries.default_cfgs[name].tags:
        cfg = timm.get_pretrained_cfg(f"{name}.{tag}")
        base = name.removesuffix("_features")
        assert cfg.hf_hub_id == (None if tag == "untrained" else f"timm/{base}.{tag}")
        if cfg.hf_hub_id:
            assert timm.get_pretrained_cfg(f"{base}.{tag}").hf_hub_id == cfg.hf_hub_id


def test_published_sizes():
    def total(name):
        return parameters_of(lambda: timm.create_model(name))

    assert total("densenet121_features") == 6_953_856
    assert total("densenet264_features") == 30_648_704
    with torch.device("meta"):
        dsod = timm.create_model("dsod_features")
        smallest = timm.create_model("dsod_smallest_features")
    assert dsod.feature_info.channels() == [128, 416, 800, 1184, 1568]
    assert dsod.feature_info.reduction() == [2, 4, 8, 16, 16]
    assert smallest.feature_info.channels() == [128, 224, 352, 480, 608]
    layer = dsod.denseblock1.denselayer1
    assert (layer.conv1.out_channels, layer.conv2.out_channels) == (192, 48)
    assert smallest.denseblock1.denselayer1.conv1.out_channels == 64


def test_dsod_maps_at_300_pixels():
    with torch.device("meta"):
        net = timm.create_model("dsod_features", tap="compressed", out_indices=(2, 4))
        maps = net(torch.empty(1, 3, 300, 300))
    assert [tuple(m.shape) for m in maps] == [(1, 800, 38, 38), (1, 1568, 19, 19)]


@pytest.mark.parametrize("blocks", [(1, 1), (1, 1, 1), (1, 1, 1, 1, 1)])
def test_any_number_of_blocks(blocks):
    net = timm.create_model("densenet121_features", **{**TINY_ENTRY, "block_config": blocks})
    strides = [2 ** (i + 1) for i in range(len(blocks) + 1)]
    assert [level.stride for level in net.levels] == strides
    assert len(net(torch.randn(2, 3, 64, 64))) == len(strides)


def test_spec_fields_are_overridden_by_name():
    net = timm.create_model(
        "densenet121_features",
        features_only=False,
        bn_size=0,
        stem="cifar",
        transition_pool=[True, False, True],
        **TINY_ENTRY,
    )
    assert net.spec.bn_size is None and net.spec.stem == "cifar"
    assert not hasattr(net, "pool2") and not hasattr(net, "norm0")
    json.dumps(net._model_args)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"tap": "post"}, ValueError, "tap must be one of"),
        ({"tap": "norm", "features_only": False}, ValueError, "tap belongs to our own"),
        ({"tap": "norm", "feature_cls": "list"}, ValueError, "tap belongs to our own"),
        ({"out_indices": -2}, ValueError, "out_indices=-2"),
        ({"out_indices": (7,)}, ValueError, "there is no tap 7"),
        ({"growth_rate": 0}, ValueError, "growth_rate must be an integer >= 1"),
        ({"grwoth_rate": 4}, TypeError, "grwoth_rate"),
    ],
)
def test_wrong_arguments_are_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        timm.create_model("densenet121_features", **{**TINY_ENTRY, **arguments})


@pytest.mark.parametrize("feature_cls", ["list", "hook", "getter", DenseFeatureNet])
def test_timms_own_wrappers_work_too(feature_cls):
    torch.manual_seed(0)
    net = timm.create_model("densenet121_features", feature_cls=feature_cls, **TINY_ENTRY).eval()
    ours = timm.create_model("densenet121_features", **TINY_ENTRY).eval()
    state = {
        key.removeprefix("body.").removeprefix("model."): v for key, v in net.state_dict().items()
    }
    ours.load_state_dict(state)
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert all(torch.equal(a, b) for a, b in zip(net(image), ours(image), strict=True))


# ------------------------------------------------------------------------------ weights


def torchvision_net():
    torch.manual_seed(0)
    net = torchvision.models.DenseNet(num_init_features=8, growth_rate=4, block_config=(1, 2, 1, 1))
    return randomise_norms(net).eval()


def dotted(state):
    return {k.replace("norm1", "norm.1").replace("conv2", "conv.2"): v for k, v in state.items()}


def create(path, **arguments):
    overlay = {"file": str(path)}
    return timm.create_model(
        "densenet121_features", pretrained=True, pretrained_cfg_overlay=overlay, **TINY, **arguments
    ).eval()


@pytest.mark.parametrize("rename", [dict, dotted, to_ours], ids=["new", "old", "ours"])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_local_files_load_into_feature_nets_and_classifiers(tmp_path, rename, suffix):
    theirs = torchvision_net()
    path = tmp_path / f"weights{suffix}"
    state = rename(theirs.state_dict())
    safetensors.torch.save_file(state, path) if suffix != ".pth" else torch.save(state, path)
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(create(path, features_only=False)(image), theirs(image))
        assert torch.equal(create(path)(image)[-1], theirs.features(image).relu())


@pytest.mark.parametrize("rename", [dict, dotted, to_ours, to_timm_features])
@pytest.mark.parametrize("out_indices", [None, (0, 2)])
def test_checkpoint_path_loads_into_feature_nets(tmp_path, rename, out_indices):
    theirs = torchvision_net()
    torch.save({"state_dict": rename(theirs.state_dict())}, tmp_path / "weights.pth")
    arguments = {**TINY, "checkpoint_path": str(tmp_path / "weights.pth")}
    net = timm.create_model("densenet121_features", out_indices=out_indices, **arguments).eval()
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = theirs.features[:5](image)
        assert torch.equal(net(image)[0], theirs.features[:3](image))
        assert torch.equal(net.forward_intermediates(image, [0])[1][0], net(image)[0])
        if out_indices is None:
            assert torch.equal(net(image)[1], expected)
            assert torch.equal(net(image)[-1], theirs.features(image).relu())
    if rename is not to_timm_features:
        net = timm.create_model("densenet121_features", features_only=False, **arguments).eval()
        assert torch.equal(net(image), theirs(image))


def test_checkpoint_path_of_another_network_says_which(tmp_path):
    other = torchvision.models.DenseNet(4, (1, 2, 2, 1), 8).state_dict()
    torch.save(other, tmp_path / "weights.pth")
    with pytest.raises(RuntimeError, match=r"What these weights are: .*blocks 1-2-2-1"):
        timm.create_model(
            "densenet121_features", checkpoint_path=str(tmp_path / "weights.pth"), **TINY
        )


@pytest.mark.parametrize("name", [n for n in NAMES if timm.list_models(n, pretrained=True)])
def test_without_a_network_pretrained_says_what_to_do(name, monkeypatch):
    def unreachable(*args, **kwargs):
        raise LocalEntryNotFoundError("no network, and nothing in the cache")

    monkeypatch.setattr(timm.models._builder, "load_state_dict_from_hf", unreachable)
    with pytest.raises(RuntimeError, match=f"{name}: its pretrained weights are neither on this"):
        timm.create_model(name, pretrained=True, **tiny_entry(name))


@pytest.mark.parametrize("name", [n for n in NAMES if timm.list_models(n, pretrained=True)])
def test_pretrained_asks_the_hub_for_timms_weights(name, monkeypatch):
    asked = []
    theirs = torchvision_net().state_dict()

    def download(model_id, **kwargs):
        asked.append(model_id)
        return theirs

    monkeypatch.setattr(timm.models._builder, "load_state_dict_from_hf", download)
    stem = {"stem": "imagenet", "stem_pool": "max"}
    net = timm.create_model(name, pretrained=True, out_indices=(1, 3), **TINY, **stem)
    tag = entries.default_cfgs[name].tags[0]
    assert asked == [f"timm/{name.removesuffix('_features')}.{tag}"]
    assert torch.equal(net.conv0.weight, theirs["features.conv0.weight"])


@pytest.mark.parametrize("name", NAMES)
def test_no_published_weights_is_an_error(name):
    if "untrained" in entries.default_cfgs[name].tags:
        with pytest.raises(RuntimeError, match=f"No pretrained weights exist for {name}"):
            timm.create_model(name, pretrained=True, **tiny_entry(name))


@pytest.mark.parametrize("in_chans", [1, 5])
def test_weights_adapt_to_other_image_channels(tmp_path, in_chans):
    theirs = torchvision_net()
    torch.save(theirs.state_dict(), tmp_path / "weights.pth")
    net = create(tmp_path / "weights.pth", in_chans=in_chans)
    weight = theirs.features.conv0.weight
    assert net.conv0.weight.shape[1] == net.in_chans == in_chans
    if in_chans == 1:
        torch.testing.assert_close(net.conv0.weight, weight.sum(1, keepdim=True))
    else:
        torch.testing.assert_close(net.conv0.weight[:, :2] * 5 / 3, weight[:, :2])
    assert torch.equal(net.norm5.bias, theirs.features.norm5.bias)


def test_another_number_of_classes_keeps_the_features(tmp_path):
    theirs = torchvision_net()
    torch.save(theirs.state_dict(), tmp_path / "weights.pth")
    net = create(tmp_path / "weights.pth", features_only=False, num_classes=2)
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(net.forward_features(image), theirs.features(image).relu())


def test_weights_of_a_shorter_net_load_as_far_as_they_reach(tmp_path):
    torch.manual_seed(0)
    saved = timm.create_model("densenet121_features", tap="norm", out_indices=(1, 2), **TINY)
    torch.save(saved.state_dict(), tmp_path / "short.pth")
    again = create(tmp_path / "short.pth", tap="norm", out_indices=(1, 2))
    assert torch.equal(again.transition2.norm.weight, saved.transition2.norm.weight)
    assert torch.equal(
        again.denseblock2.denselayer2.conv1.weight, saved.denseblock2.denselayer2.conv1.weight
    )
    with pytest.raises(ValueError, match=r"11 entries are missing: transition2.conv.weight"):
        create(tmp_path / "short.pth", out_indices=(1, 3))


def test_weights_of_another_architecture_are_refused(tmp_path):
    torch.save(torchvision.models.resnet18(weights=None).state_dict(), tmp_path / "resnet.pth")
    with pytest.raises(ValueError, match=r"entries are unexpected: conv1.weight"):
        create(tmp_path / "resnet.pth")


def test_local_dir_restores_architecture_and_weights(tmp_path):
    torch.manual_seed(0)
    net = timm.create_model("dsod_features", out_indices=(2, 3), **TINY_ENTRY).eval()
    config = {
        "architecture": "dsod_features",
        "pretrained_cfg": {"input_size": [3, 300, 300], "first_conv": "conv0"},
        "model_args": net._model_args,
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    safetensors.torch.save_file(net.state_dict(), tmp_path / "model.safetensors")
    again = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    image = torch.randn(1, 3, 75, 75)
    with torch.no_grad():
        assert all(torch.equal(a, b) for a, b in zip(net(image), again(image), strict=True))
    assert net.levels == again.levels
