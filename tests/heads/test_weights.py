"""Weights of whole detectors: ours, and torchvision's own."""

import re
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import timm
import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone

from densenet_backbones.heads import fasterrcnn_fpn, load_matching, retinanet_fpn
from densenet_backbones.heads.weights import translate_name

BODY = {"growth_rate": 4, "block_config": [1, 1, 1, 1], "num_init_features": 8}
SMALL = {"min_size": 64, "max_size": 96, "score_thresh": 0.0}
# torchvision's names: ours, and how its parts that are no network below an adapter begin
THEIRS = {
    "fasterrcnn_resnet50_fpn": "fasterrcnn_fpn",
    "fasterrcnn_resnet50_fpn_v2": "fasterrcnn_fpn_v2",
    "maskrcnn_resnet50_fpn": "maskrcnn_fpn",
    "maskrcnn_resnet50_fpn_v2": "maskrcnn_fpn_v2",
    "keypointrcnn_resnet50_fpn": "keypointrcnn_fpn",
    "retinanet_resnet50_fpn": "retinanet_fpn",
    "retinanet_resnet50_fpn_v2": "retinanet_fpn_v2",
    "fcos_resnet50_fpn": "fcos_fpn",
}


def theirs(name: str) -> nn.Module:
    with torch.device("meta"):
        return torchvision.models.get_model(name, weights=None, weights_backbone=None)


def ours(name: str, **options: Any) -> nn.Module:
    with torch.device("meta"):
        return torchvision.models.get_model(name, **options)


@pytest.mark.parametrize("name", THEIRS)
def test_all_of_torchvisions_detectors_but_its_resnet_is_taken(name: str) -> None:
    state = theirs(name).state_dict()
    taken, left = load_matching(ours(THEIRS[name], backbone_kwargs=BODY), state)
    inputs = ("backbone.fpn.inner_blocks.", "backbone.fpn.extra_blocks.p6.weight")
    for given in state:
        # 1x1 convolutions from the ResNet's widths; their norms and biases fit
        of_body = given.startswith("backbone.body.")
        of_width = given.startswith(inputs) and state[given].dim() == 4
        if of_width and given.endswith("p6.weight"):
            of_width = name == "retinanet_resnet50_fpn_v2"  # from C5; else from P5
        refused = [line for line in left if line.startswith(f"{given}: ")]
        assert len(refused) == (of_body or of_width), given
    assert len(taken) + len(left) == len(state)
    assert any(line.startswith(("roi_heads.", "head.")) for line in taken)


@pytest.mark.parametrize("name", THEIRS)
def test_a_model_on_the_same_network_takes_every_tensor(name: str) -> None:
    state = theirs(name).state_dict()
    model = ours(THEIRS[name], backbone="resnet50", norm="frozen")
    taken, left = load_matching(model, state)
    counters = [line for line in left if "num_batches_tracked" not in line]
    assert counters == []
    missing = model.state_dict().keys() - set(taken)
    assert all(key.endswith("num_batches_tracked") for key in missing)


@pytest.mark.parametrize("name", ["maskrcnn_resnet50_fpn", "retinanet_resnet50_fpn"])
def test_names_of_torchvisions_published_files(name: str) -> None:
    known = ours(THEIRS[name], backbone="resnet50").state_dict()
    for given in theirs(name).state_dict():
        assert translate_name(old_name(given), known) == translate_name(given, known)


def old_name(name: str) -> str:
    """As torchvision named it before 0.13."""
    name = re.sub(r"((?:inner|layer)_blocks\.\d+)\.0\.", r"\1.", name)
    name = re.sub(r"^rpn\.head\.conv\.0\.0\.", "rpn.head.conv.", name)
    name = re.sub(r"^(head\.\w+_head\.conv)\.(\d)\.0\.", lambda m: f"{m[1]}.{2 * int(m[2])}.", name)
    return re.sub(
        r"^roi_heads\.mask_head\.(\d)\.0\.",
        lambda m: f"roi_heads.mask_head.mask_fcn{int(m[1]) + 1}.",
        name,
    )


def test_ssd_takes_the_heads_of_its_widths() -> None:
    state = theirs("ssd300_vgg16").state_dict()
    taken, _ = load_matching(ours("ssd300_densenet121"), state)
    heads = {key.rpartition(".")[0] for key in taken if key.startswith("head.")}
    for part in ("classification", "regression"):  # 512, 1024 and 256 channels fit
        for level in (0, 1, 4, 5):
            assert f"head.{part}_head.module_list.{level}" in heads


def test_the_same_weights_give_the_same_detections(tmp_path: Path) -> None:
    torch.manual_seed(0)
    backbone = resnet_fpn_backbone(
        backbone_name="resnet18", weights=None, norm_layer=nn.BatchNorm2d
    )
    few = {"rpn_post_nms_top_n_test": 20, "box_score_thresh": 0.0}
    reference = torchvision.models.detection.FasterRCNN(
        backbone, 4, min_size=128, max_size=128, **few
    )
    torch.save(reference.state_dict(), tmp_path / "theirs.pth")
    model = fasterrcnn_fpn(
        num_classes=4,
        backbone="resnet18",
        weights=str(tmp_path / "theirs.pth"),
        min_size=128,
        max_size=128,
        **few,
    )
    assert model.weights_left == () and len(model.weights_taken) == len(reference.state_dict())
    image = [torch.rand(3, 128, 128)]
    with torch.no_grad():
        (expected,), (found,) = reference.eval()(image), model.eval()(image)
    assert len(found["boxes"]) > 0
    for key in ("boxes", "scores", "labels"):
        assert torch.allclose(found[key].float(), expected[key].float(), atol=1e-3)


# ------------------------------------------------------------------------------ our files


def tiny(**options: Any) -> Any:
    torch.manual_seed(0)
    return retinanet_fpn(backbone_kwargs=BODY, out_channels=64, **SMALL, **options)


@pytest.mark.parametrize("form", ["bare.pth", "task.ckpt", "parallel.pth", "slim.safetensors"])
def test_files_of_ours(tmp_path: Path, form: str) -> None:
    state: dict[str, Tensor] = tiny(num_classes=3).state_dict()
    path = tmp_path / form
    if form.endswith("safetensors"):
        safetensors.torch.save_file(state, path)
    elif form.startswith("task"):
        torch.save({"state_dict": {f"model.{k}": v for k, v in state.items()}}, path)
    elif form.startswith("parallel"):
        torch.save({f"module.{k}": v for k, v in state.items()}, path)
    else:
        torch.save(state, path)
    torch.manual_seed(9)
    model = retinanet_fpn(
        num_classes=3, backbone_kwargs=BODY, out_channels=64, weights=str(path), **SMALL
    )
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert set(model.weights_taken) == set(state) and model.weights_left == ()


def test_what_does_not_fit_is_left_and_said(tmp_path: Path) -> None:
    torch.save(tiny(num_classes=3).state_dict(), tmp_path / "three.pth")
    with pytest.warns(UserWarning, match=r"three.pth: \d+ tensors taken, 2 left out, and 2 of the"):
        model = tiny(num_classes=7, weights=str(tmp_path / "three.pth"))
    head = "head.classification_head.cls_logits"
    assert [line.partition(":")[0] for line in model.weights_left] == [
        f"{head}.weight",
        f"{head}.bias",
    ]
    assert "(27,), the model's is (63,)" in model.weights_left[1]
    assert f"{head}.weight" not in model.weights_taken


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    net = timm.create_model("densenet121_features", **BODY)
    torch.save(net.state_dict(), tmp_path / "backbone.pth")
    with pytest.raises(ValueError, match=r"of its \d+ tensors none fits .* as weights_backbone"):
        tiny(weights=str(tmp_path / "backbone.pth"))
