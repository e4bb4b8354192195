"""Weights of other libraries' modules load into ours."""

import pytest
import timm
import torch
import torchvision
from tiny_nets import TINY
from torch import nn
from weight_names import old, prefixed, state

from densenet_backbones.checkpoints import find_place, to_ours, to_timm_features, to_torchvision
from densenet_backbones.densenet import DenseNet, DenseNetSpec


@pytest.mark.parametrize("library", ["torchvision", "timm"])
def test_maps_are_inverse_on_whole_nets(library):
    with torch.device("meta"):
        if library == "timm":
            theirs = timm.create_model("densenet121")
        else:
            theirs = torchvision.models.densenet121(weights=None)
        ours = DenseNet()
    assert to_ours(theirs.state_dict()).keys() == ours.state_dict().keys()
    assert to_torchvision(ours.state_dict()).keys() == theirs.state_dict().keys()


def tiny_torchvision(**arguments):
    return torchvision.models.DenseNet(
        growth_rate=4, block_config=(1, 2, 1, 1), num_init_features=8, **arguments
    )


def body_of(net: nn.Module) -> dict:
    return {key: value for key, value in net.state_dict().items() if "classifier" not in key}


def assert_loads(state: dict, spec: dict, classes: int = 0) -> None:
    net = DenseNet(DenseNetSpec(**spec), num_classes=classes)
    net.load_state_dict(to_ours(state))


@pytest.mark.parametrize("name", ["densenet121", "densenet264d", "densenetblur121d"])
@pytest.mark.parametrize("features", [True, False])
def test_timm_nets(name, features):
    arguments = {"growth_rate": 4, "block_config": (1, 2, 1, 1), "features_only": features}
    theirs = timm.create_model(name, **arguments)
    width = theirs.state_dict()[("features_" if features else "features.") + "conv0.weight"]
    deep = name != "densenet121"
    spec = TINY | {
        "num_init_features": width.shape[0] * (2 if deep else 1),
        "stem": "deep" if deep else "imagenet",
    }
    assert_loads(theirs.state_dict(), spec, classes=0 if features else 1000)


def test_timm_features_take_our_weights():
    theirs = timm.create_model(
        "densenet121", growth_rate=4, block_config=(1, 2, 1, 1), features_only=True
    )
    ours = DenseNet(DenseNetSpec(**{**TINY, "num_init_features": 8}), num_classes=2)
    assert to_timm_features(ours.state_dict()).keys() == theirs.state_dict().keys()
    theirs.load_state_dict(to_timm_features(ours.state_dict()))


@pytest.mark.parametrize("getter", ["list", "dict", "getter", "fx"])
def test_timm_feature_classes(getter):
    theirs = timm.create_model(
        "densenet121",
        growth_rate=4,
        block_config=(1, 1, 1, 1),
        features_only=True,
        feature_cls=getter,
    )
    assert to_ours(theirs.state_dict()).keys() <= state(DenseNetSpec()).keys()
    assert "denseblock4.denselayer1.conv2.weight" in to_ours(theirs.state_dict())


@pytest.mark.parametrize("name", ["densenet121", "tu-densenet121"])
def test_smp_encoders_and_models(name):
    smp = pytest.importorskip("segmentation_models_pytorch")
    with torch.device("meta"):
        encoder = smp.encoders.get_encoder(name, weights=None)
        ours = DenseNet(num_classes=0).state_dict()
    assert to_ours(encoder.state_dict()).keys() == ours.keys()
    state = {f"encoder.{key}": value for key, value in encoder.state_dict().items()}
    state["decoder.blocks.0.conv1.0.weight"] = state["segmentation_head.0.weight"] = 0
    assert to_ours(state).keys() == ours.keys()


def test_compiled_and_parallel_nets():
    theirs = tiny_torchvision(num_classes=2)
    theirs.features = nn.DataParallel(theirs.features)
    assert_loads(theirs.state_dict(), TINY, classes=2)
    compiled = torch.compile(nn.DataParallel(tiny_torchvision(num_classes=2)))
    assert_loads(compiled.state_dict(), TINY, classes=2)
    inner = tiny_torchvision(num_classes=2)
    inner.features.denseblock2 = torch.compile(inner.features.denseblock2)
    assert "features.denseblock2._orig_mod.denselayer1.norm1.weight" in inner.state_dict()
    assert_loads(inner.state_dict(), TINY, classes=2)


def test_averaged_models_and_their_counter():
    averaged = torch.optim.swa_utils.AveragedModel(tiny_torchvision(num_classes=2))
    assert "n_averaged" in averaged.state_dict()
    assert_loads(averaged.state_dict(), TINY, classes=2)


def test_torchvision_backbones():
    body = torchvision.models.detection.backbone_utils.BackboneWithFPN(
        tiny_torchvision().features, {"denseblock2": "0", "denseblock4": "1"}, [14, 9], 8
    )
    state = {f"backbone.{key}": value for key, value in body.state_dict().items()}
    place = find_place(state)
    assert (place.prefix, place.beside) == ("backbone.body.", "backbone.body.")
    ours = to_ours(state)
    assert {key: value.shape for key, value in ours.items()} == {
        key: value.shape
        for key, value in to_ours(tiny_torchvision().features.state_dict()).items()
        if not key.startswith("norm5")
    }


def test_transformers_detr_names():
    features = to_timm_features(body_of(DenseNet(DenseNetSpec(**TINY))))
    state = prefixed(features, "model.backbone.conv_encoder.model.")
    state["model.encoder.layers.0.fc1.weight"] = state["class_labels_classifier.weight"] = None
    assert_loads(state, TINY)


class CheXNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.densenet121 = tiny_torchvision()
        width = self.densenet121.classifier.in_features
        self.densenet121.classifier = nn.Sequential(nn.Linear(width, 14), nn.Sigmoid())


def test_a_classifier_in_a_sequence_beside_the_features_is_kept():
    state = old(nn.DataParallel(CheXNet()).state_dict())
    assert "module.densenet121.classifier.0.weight" in state
    assert "module.densenet121.features.denseblock1.denselayer1.norm.1.weight" in state
    assert_loads(state, TINY, classes=14)
