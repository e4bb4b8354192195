"""What torchvision's ``test/test_models.py`` asks of detectors and segmenters, of our names.

torchvision publishes no sdist, so these properties are written anew, after that file and
``test/test_models_detection_negative_samples.py``. Where torchvision asserts, ours raise a
``ValueError`` with a sentence.
"""

import copy
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torchvision.models import get_model_builder, get_model_weights, list_models

from densenet_backbones.stages import DenseStages
from densenet_backbones.torchvision_models import DETECTORS, SEGMENTERS

GENERIC = [name for name in DETECTORS if "_densenet" not in name]
KEYPOINTS = 17
NO_BOX_LOSSES = ("loss_box_reg", "loss_rpn_box_reg", "loss_mask", "loss_keypoint")


def build(name: str, **options: Any) -> Any:
    """Build as torchvision's tests do: by the registry, without weights, 50 classes."""
    torch.manual_seed(0)
    if "num_classes" not in options:
        options["num_classes"] = 2 if name.startswith("keypoint") else 50
    return get_model_builder(name)(weights=None, weights_backbone=None, **options)


def show_all(name: str) -> dict[str, Any]:
    """Options with which a network of random weights has detections, of images of their size."""
    if name.startswith(("dsod", "ssd")):
        return {"score_thresh": 0.0}
    scores = {"box_score_thresh": 0.0} if "rcnn" in name else {"score_thresh": 0.0}
    return {"min_size": 224, "max_size": 224, **scores}


def make_targets(name: str, boxes: Tensor, side: int = 100) -> list[dict[str, Tensor]]:
    target = {"boxes": boxes, "labels": torch.ones(len(boxes), dtype=torch.int64)}
    if name.startswith("mask"):
        target["masks"] = torch.zeros(len(boxes), side, side, dtype=torch.uint8)
    if name.startswith("keypoint"):
        target["keypoints"] = torch.zeros(len(boxes), KEYPOINTS, 3)
    return [target]


# ------------------------------------------------------------------------------ registry


@pytest.mark.parametrize("name", [*DETECTORS, *SEGMENTERS])
def test_registry(name: str) -> None:
    module = torchvision.models.detection if name in DETECTORS else torchvision.models.segmentation
    assert name in list_models(module) and name in list_models()
    assert get_model_builder(name).__name__ == name
    assert issubclass(get_model_weights(name), torchvision.models.WeightsEnum)


# ------------------------------------------------------------------------------ detection


@pytest.mark.parametrize("name", DETECTORS)
def test_detection_model(name: str) -> None:
    model = build(name, **show_all(name)).eval()
    x = torch.rand(3, 300, 300)
    images = [x.requires_grad_()]
    (found,) = model(images)
    assert images[0] is x
    assert {"boxes", "labels", "scores"} <= found.keys() and len(found["scores"])
    found["scores"].sum().backward()
    assert x.grad is not None and x.grad.isfinite().all()


@pytest.mark.parametrize("name", GENERIC)
def test_doubles(name: str) -> None:
    model = build(name, **show_all(name)).double().eval()
    with torch.no_grad():
        (found,) = model([torch.rand(3, 300, 300, dtype=torch.float64)])
    assert len(found["scores"]) and found["boxes"].isfinite().all()


@pytest.mark.parametrize("name", GENERIC)
def test_torchscript_has_a_sentence(name: str) -> None:
    check_sentence(build(name).eval())


def check_sentence(model: nn.Module) -> None:
    with pytest.raises(RuntimeError, match=r"torch\.export|densenet-export"):
        torch.jit.script(model)


@pytest.mark.parametrize("name", DETECTORS)
def test_validation(name: str) -> None:
    model, images = build(name), [torch.rand(3, 300, 300)]
    with pytest.raises(ValueError, match="targets must be given in training"):
        model(images)
    for boxes in (0.0, torch.rand(4), torch.rand(1, 5)):
        target = {"boxes": boxes, "labels": torch.ones(1, dtype=torch.int64)}
        with pytest.raises(ValueError, match=r"boxes of target 0 must be \(B, 4\) floats"):
            model(images, targets=[target])
    flat = torch.tensor([[1.0, 3, 1, 4], [2, 4, 3, 4]])
    with pytest.raises(ValueError, match="drop boxes without area"):
        model(images, targets=make_targets(name, flat))


@pytest.mark.parametrize("name", GENERIC)
def test_images_without_objects(name: str) -> None:
    sizes = {} if name.startswith(("dsod", "ssd")) else {"min_size": 100, "max_size": 100}
    model = build(name, num_classes=2, **sizes).train()
    empty, images = make_targets(name, torch.zeros(0, 4)), [torch.rand(3, 100, 100)]
    # Two images: a batch norm takes no statistics from the single cell of a last map.
    losses = model(images * 2, empty * 2)
    assert all(loss.isfinite() for loss in losses.values())
    assert all(losses[key] == 0.0 for key in NO_BOX_LOSSES if key in losses)
    if "rcnn" not in name:
        assert losses["bbox_regression"] == 0.0


@pytest.mark.parametrize("name", GENERIC)
def test_trainable_backbone_layers(name: str) -> None:
    counts = []
    with torch.device("meta"):
        whole = build(name)
        everything = len(list(whole.parameters()))
        net = next(part for part in whole.modules() if isinstance(part, DenseStages))
        for layers in range(len(net.stage_children()) + 1):
            model = build(name, trainable_backbone_layers=layers)
            counts.append(sum(p.requires_grad for p in model.parameters()))
    assert counts == sorted(set(counts)) and counts[-1] == everything


# ------------------------------------------------------------------------------ segmentation


def build_segmenter(name: str) -> nn.Module:
    return build(name, num_classes=10, aux_loss=False).eval()


@pytest.mark.parametrize("name", SEGMENTERS)
def test_segmentation_model(name: str) -> None:
    model = build_segmenter(name)
    x = torch.rand(1, 3, 64, 64, requires_grad=True)
    out = model(x)["out"]
    assert out.shape == (1, 10, 64, 64)
    out.sum().backward()
    assert x.grad is not None and x.grad.isfinite().all()


@pytest.mark.parametrize("name", SEGMENTERS)
def test_segmentation_model_as_a_graph(name: str) -> None:
    model = build_segmenter(name)
    graph = torch.fx.symbolic_trace(copy.deepcopy(model))
    for size in ((64, 64), (70, 41)):
        x = torch.rand(1, 3, *size)
        with torch.no_grad():
            torch.testing.assert_close(graph(x)["out"], model(x)["out"], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", SEGMENTERS)
def test_torchscript_of_segmenters_has_a_sentence(name: str) -> None:
    check_sentence(build_segmenter(name))
