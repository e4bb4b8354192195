"""Our entries in torchvision's registry, and torchvision's tools on our networks."""

import copy
import importlib.util
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from long_cases import first_now
from tiny_nets import KINDS, NAMES, randomise_norms, tiny, tiny_fields
from tiny_nets import TINY as TINY_NET
from torch import Tensor, nn
from torchvision.models import WeightsEnum
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.feature_extraction import create_feature_extractor
from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign

from densenet_backbones import torchvision_models
from densenet_backbones.features import DenseFeatureNet, feature_levels
from densenet_backbones.variants import VARIANTS

DSODS = [name for name in torchvision_models.DETECTORS if name.startswith("dsod")]
OTHERS = [name for name in torchvision_models.DETECTORS if name not in DSODS]
GENERIC = [name for name in torchvision_models.DETECTORS if "densenet" not in name]
VARIANTS_OF_THEM = [name for name in torchvision_models.DETECTORS if name not in GENERIC]


def take_turns() -> list[str]:
    """A name for each detector that has variants: their backbones take turns.

    One function makes all of them, and each says which backbone it stands on; see below.
    """
    names: dict[str, list[str]] = {}
    for name in VARIANTS_OF_THEM:
        kind, _, *rest = name.split("_")
        names.setdefault("_".join((kind, *rest)), []).append(name)
    assert set(names) <= set(GENERIC)
    return [variants[turn % len(variants)] for turn, variants in enumerate(names.values())]


@pytest.mark.parametrize("name", [*GENERIC, *first_now(take_turns())])
def test_every_name_builds_as_references_detection_train_builds_it(name: str) -> None:
    options: dict[str, Any] = {"trainable_backbone_layers": None}
    options["_skip_resize"] = True  # for the augmentations multiscale and lsj
    if "rcnn" in name:
        options["rpn_score_thresh"] = 0.1
    with torch.device("meta"):
        model = torchvision.models.get_model(
            name, weights=None, weights_backbone=None, progress=False, **options
        )
    assert model.transform.resize_in_training == (model.transform.image_size is not None)
    classes = 21 if name in DSODS else 2 if name.startswith("keypoint") else 91
    assert model.num_classes == classes
    variant = name.split("_")[1] if name.count("densenet") else "densenet121"
    if name in OTHERS:
        assert model.backbone.body.spec.block_config == VARIANTS[variant].block_config


@pytest.mark.parametrize("name", VARIANTS_OF_THEM)
def test_every_variant_stands_on_the_backbone_that_it_names(name: str) -> None:
    kind, variant, *rest = name.split("_")
    assert variant in VARIANTS
    generic = "_".join((kind, *rest))
    message = f"{name} stands on {variant}_features; call {generic} with backbone='another'"
    with pytest.raises(ValueError, match=f"^{message}$"):
        torchvision.models.get_model(name, backbone="another")


def test_names_are_listed() -> None:
    for module, ours in (
        (torchvision.models.detection, torchvision_models.DETECTORS),
        (torchvision.models.segmentation, torchvision_models.SEGMENTERS),
    ):
        names = set(torchvision.models.list_models(module=module))
        assert set(ours) < names  # beside torchvision's own
    ours = torchvision_models.MODELS
    assert {"dsod300", "dsod300_smallest", "dsod_tiny", "fcdensenet103", "unet"} <= ours.keys()
    assert all(name == name.lower() for name in ours)  # torchvision lower-cases before it looks


def test_weights_can_be_asked_for() -> None:
    for name in (*torchvision_models.MODELS, *torchvision_models.BACKBONES):
        weights = torchvision.models.get_model_weights(name)
        assert issubclass(weights, WeightsEnum) and list(weights) == []  # none are published


# ------------------------------------------------------------------------------ segmentation


def tiny_segmenter(name: str, **options: Any) -> Any:
    """As torchvision's ``references/segmentation/train.py`` builds it."""
    small: dict[str, Any] = {"backbone_kwargs": {**TINY_NET, "out_indices": (0, 1)}}
    if name.startswith("fcdensenet"):
        small = {"growth_rate": 2, "block_config": [1] * 3, "num_init_features": 4}
    return torchvision.models.get_model(
        name, weights=None, weights_backbone=None, num_classes=3, **small, **options
    )


@pytest.mark.parametrize("name", torchvision_models.SEGMENTERS)
@pytest.mark.parametrize("aux_loss", [False, True])
def test_segmenters_train_as_references_segmentation_train_does(name: str, aux_loss: bool) -> None:
    if aux_loss and name.startswith("fcdensenet"):
        with pytest.raises(ValueError, match=f"{name} has no auxiliary logits: leave aux_loss out"):
            tiny_segmenter(name, aux_loss=aux_loss)
        return
    torch.manual_seed(0)
    model = tiny_segmenter(name, aux_loss=aux_loss)
    parts = [model.backbone, model.classifier, *([model.aux_classifier] if aux_loss else [])]
    parameters = [p for part in parts for p in part.parameters()]
    assert {id(p) for p in parameters} == {id(p) for p in model.parameters()}
    assert len(parameters) == len(list(model.parameters()))
    optimizer = torch.optim.SGD(parameters, lr=0.05, momentum=0.9)
    images, target = image(32, 40), torch.randint(3, (2, 32, 40))
    target[0, :4] = 255
    totals = []
    for _ in range(4):
        losses = {
            key: nn.functional.cross_entropy(logits, target, ignore_index=255)
            for key, logits in model(images).items()
        }
        assert list(losses) == (["out", "aux"] if aux_loss else ["out"])
        loss = losses["out"] + 0.5 * losses["aux"] if aux_loss else losses["out"]
        optimizer.zero_grad()
        loss.backward()
        assert all(p.grad is not None for p in parameters)
        optimizer.step()
        totals.append(loss.item())
    assert totals[-1] < totals[0]
    assert model.eval()(images)["out"].shape == (2, 3, 32, 40)


@pytest.mark.parametrize("name", torchvision_models.SEGMENTERS)
def test_both_forms_of_a_segmenter_take_each_others_weights(name: str) -> None:
    theirs, ours = tiny_segmenter(name, aux_loss=False).eval(), tiny_segmenter(name).eval()
    ours.load_state_dict(theirs.state_dict())
    images = torch.rand(1, 3, 32, 40)
    with torch.no_grad():
        assert torch.equal(theirs(ours.normalization(images))["out"], ours(images))


def _run_the_module_again() -> None:
    path = Path(str(torchvision_models.__file__))
    spec = importlib.util.spec_from_file_location("another_torchvision_models", path)
    assert spec is not None and spec.loader is not None
    spec.loader.exec_module(importlib.util.module_from_spec(spec))


def test_a_name_registered_twice_raises() -> None:
    with pytest.raises(ValueError, match="already registered under the name 'dsod300'"):
        _run_the_module_again()


def test_a_torchvision_without_the_registry_gets_a_sentence(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delattr(torchvision.models._api, "register_model")
    with pytest.raises(ImportError, match=r"tested with torchvision 0\.28 and"):
        _run_the_module_again()


# ------------------------------------------------------------------------------ backbones


def tiny_arguments(name: str) -> dict[str, Any]:
    return tiny_fields(name, layers=1)


def image(height: int = 64, width: int = 96) -> Tensor:
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(1))


def test_every_backbone_has_its_timm_name() -> None:
    names = torchvision.models.list_models(include="*_features")
    assert names == sorted(torchvision_models.BACKBONES) == sorted(NAMES)


@pytest.mark.parametrize("name", torchvision_models.BACKBONES)
def test_every_backbone_builds_as_timm_builds_it(name: str) -> None:
    arguments = tiny_arguments(name)
    net = torchvision.models.get_model(name, **arguments).eval()
    assert isinstance(net, DenseFeatureNet) and net.spec == one_layer_a_block(name).spec
    with torch.no_grad():
        maps = net(image())
        sizes = [(2, x.channels, 64 // x.stride, 96 // x.stride) for x in net.levels]
        assert [tuple(m.shape) for m in maps] == sizes
        options = {"tap": "norm", "out_indices": (1, 2), "memory": "block", "weights": None}
        some = torchvision.models.get_model(name, **arguments, **options)
        assert some.tap == "norm" and len(some(image())) == 2 and some.memory == "block"
        whole = {"features_only": False, "num_classes": 5}
        assert torchvision.models.get_model(name, **arguments, **whole)(image()).shape == (2, 5)


def test_a_backbone_takes_keywords_only_and_knows_its_arguments() -> None:
    build = torchvision.models.get_model_builder("densenet121_features")
    assert build.__name__ == "densenet121_features" and "weights: File" in str(build.__doc__)
    with pytest.raises(TypeError):
        build(None)
    with pytest.raises(TypeError, match="grwoth_rate"):
        torchvision.models.get_model("densenet121_features", grwoth_rate=4)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_weights_are_a_file_in_torchvisions_naming(tmp_path: Path, suffix: str) -> None:
    import safetensors.torch

    torch.manual_seed(0)
    theirs = torchvision.models.DenseNet(4, (1, 2, 1, 1), 8, num_classes=5)
    randomise_norms(theirs).eval()
    path = tmp_path / f"weights{suffix}"
    save = torch.save if suffix == ".pth" else safetensors.torch.save_file
    save(theirs.state_dict(), path)
    with torch.no_grad():
        for given in (path, str(path)):
            options = {**TINY_NET, "weights": given}
            features = torchvision.models.get_model("densenet121_features", **options).eval()
            assert torch.equal(features(image())[-1], theirs.features(image()).relu())
        options |= {"features_only": False, "num_classes": 5}
        whole = torchvision.models.get_model("densenet121_features", **options).eval()
        assert torch.equal(whole(image()), theirs(image()))
    options["num_classes"] = 7
    with pytest.raises(ValueError, match=rf"weights{suffix}: .* do not fit .*classifier.*shape"):
        torchvision.models.get_model("densenet121_features", **options)
    with pytest.raises(ValueError, match=rf"weights{suffix}: .* do not fit densenet169_features"):
        deeper = {**TINY_NET, "block_config": (1, 2, 2, 1)}
        torchvision.models.get_model("densenet169_features", **deeper, weights=path)


@pytest.mark.parametrize(
    "weights",
    [
        "DEFAULT",
        "IMAGENET1K_V1",
        torchvision.models.DenseNet121_Weights.IMAGENET1K_V1,
        "missing.pth",
        ".",
        True,
    ],
)
def test_weights_that_are_no_file_are_refused(weights: object) -> None:
    with pytest.raises(ValueError, match=r"or a file .* not .*nothing is downloaded: timm.create"):
        torchvision.models.get_model("densenet121_features", **TINY_NET, weights=weights)


def test_pretrained_is_refused_as_nothing_is_downloaded() -> None:
    with pytest.raises(ValueError, match=r"downloads nothing.*give weights=FILE"):
        torchvision.models.get_model("densenet121_features", **TINY_NET, pretrained=True)


# ------------------------------------------------------------------------------ their tools on ours


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("tap", ["raw", "compressed", "pooled"])
def test_the_layer_getter_reads_the_taps_from_children(name: str, tap: str) -> None:
    net = one_layer_a_block(name, tap=tap).eval()
    whole = one_layer_a_block(name, features_only=False).eval()
    whole.load_state_dict(net.state_dict(), strict=False)
    with torch.no_grad():
        expected = net(image(75, 97))
        for modules in (net, whole):
            found = IntermediateLayerGetter(modules, net.return_layers)(image(75, 97))
            assert list(found) == [str(i) for i in range(len(expected))]
            assert all(torch.equal(a, b) for a, b in zip(found.values(), expected, strict=True))


def one_layer_a_block(name: str, **arguments: Any) -> nn.Module:
    return randomise_norms(timm.create_model(name, **{**tiny_arguments(name), **arguments}))


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("features_only", [True, False])
@pytest.mark.parametrize("memory", ["none", "block"])
def test_the_feature_extractor_of_fx(name: str, features_only: bool, memory: str) -> None:
    net = one_layer_a_block(name, features_only=features_only, memory=memory)
    # A CondenseNet has pools alone between blocks.
    taps = ["transition1.relu"] if hasattr(net, "transition1") else []
    extractor = create_feature_extractor(copy.deepcopy(net), ["denseblock1", *taps, "denseblock2"])
    for training in (False, True):
        extractor.train(training)
        net.train(training)
        normed = copy.deepcopy(net.transition1.norm) if taps else None  # before it is updated
        found = extractor(image())
        first, second = net.forward_intermediates(image(), (1, 2), intermediates_only=True)
        assert torch.equal(found["denseblock1"], first)
        assert torch.equal(found["denseblock2"], second)
        if normed is not None:
            assert torch.equal(found["transition1.relu"], normed(first).relu())
    (found["denseblock1"].square().sum() + found["denseblock2"].square().sum()).backward()
    (first.square().sum() + second.square().sum()).backward()
    for theirs, ours in ((extractor.conv0, net.conv0), (extractor.denseblock2, net.denseblock2)):
        for a, b in zip(theirs.parameters(), ours.parameters(), strict=True):
            assert (a.grad - b.grad).abs().max() <= 1e-5 * b.grad.abs().max()
    for key, buffer in extractor.named_buffers():
        assert torch.equal(buffer, net.get_buffer(key)), key


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("tap", ["raw", "norm", "compressed", "pooled"])
def test_torchvisions_pyramid_stands_on_our_levels(name: str, tap: str) -> None:
    net = one_layer_a_block(name, tap=tap, out_indices=3)
    levels = feature_levels(net)
    pyramid = FeaturePyramidNetwork([level.channels for level in levels], 6)
    names = [level.name for level in levels]
    maps = pyramid(OrderedDict(zip(names, net(image()), strict=True)))
    sizes = [(2, 6, 64 // level.stride, 96 // level.stride) for level in levels]
    assert [tuple(m.shape) for m in maps.values()] == sizes
    sum(m.square().mean() for m in maps.values()).backward()
    assert all(p.grad is not None for p in net.parameters())


@pytest.mark.parametrize("name", KINDS)
def test_backbone_with_fpn_takes_the_networks_children(name: str) -> None:
    levels = tiny(name).feature_info
    channels, layers = levels.channels()[1:], levels.module_name()[1:]
    body = tiny(name, features_only=False, num_classes=0)
    last = body.forward_features(image()).detach()
    backbone = BackboneWithFPN(body, {n: str(i) for i, n in enumerate(layers)}, channels, 6)
    maps = backbone(image())
    assert list(maps) == [*map(str, range(len(layers))), "pool"]
    assert {m.shape[1] for m in maps.values()} == {6}
    with torch.no_grad():
        assert torch.equal(backbone.body(image())[str(len(layers) - 1)], last)


def test_faster_rcnn_trains_on_our_children() -> None:
    net = tiny("densenet121_features", features_only=False, num_classes=0)
    info = net.feature_info[1:]
    layers = {level["module"]: str(i) for i, level in enumerate(info)}
    backbone = BackboneWithFPN(net, layers, [level["num_chs"] for level in info], 8)
    sizes = tuple((8 * level["reduction"],) for level in (*info, {"reduction": 64}))
    model = FasterRCNN(
        backbone,
        num_classes=3,
        rpn_anchor_generator=AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * len(sizes)),
        box_roi_pool=MultiScaleRoIAlign([str(i) for i in range(len(info))], 3, 2),
        box_head=nn.Sequential(nn.Flatten(), nn.Linear(8 * 9, 1024), nn.ReLU()),
        min_size=64,
        max_size=96,
    )
    target = {"boxes": torch.tensor([[4.0, 4.0, 40.0, 40.0]]), "labels": torch.tensor([2])}
    losses = model([torch.rand(3, 64, 96)] * 2, [target] * 2)
    assert set(losses) >= {"loss_classifier", "loss_box_reg"}
    sum(losses.values()).backward()
    gradients = [p.grad for p in backbone.body.parameters()]
    assert gradients and all(g is not None and g.isfinite().all() for g in gradients)
