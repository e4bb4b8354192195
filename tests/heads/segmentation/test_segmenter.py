"""Images of any size in, logits of the same size out; every registered segmenter."""

import copy
import inspect
import json
import pickle

import pytest
import torch
import torch.nn.functional as F
import torchvision
from timm.models._manipulate import group_parameters
from torch import Tensor, nn

from densenet_backbones.heads import DetectionTransform, ImageNormalization, Segmenter
from densenet_backbones.heads.segmentation.unet import unet
from densenet_backbones.torchvision_models import SEGMENTERS

PLAIN = {"image_mean": (0, 0, 0), "image_std": (1, 1, 1)}
DSOD = {
    "image_mean": (104, 117, 123),
    "image_std": (1, 1, 1),
    "channel_order": "bgr",
    "value_range": 255,
}
TINY_NET = {"growth_rate": 4, "block_config": [1, 2, 1], "num_init_features": 8}


class Recorder(nn.Module):
    """Gives back what it sees."""

    def forward(self, x: Tensor) -> Tensor:
        self.seen = x
        return x


class Supervised(nn.Module):
    """Its logits, and the same at a quarter of the size."""

    def forward(self, x: Tensor) -> dict[str, object]:
        return {"logits": x, "aux": [F.avg_pool2d(x, 4)]}


def tiny(name: str) -> Segmenter:
    torch.manual_seed(0)
    arguments = {"backbone_kwargs": TINY_NET} if name == "unet" else TINY_NET
    return torchvision.models.get_model(name, num_classes=3, **arguments)


# --- normalization -----------------------------------------------------------------------------


@pytest.mark.parametrize("facts", [{}, DSOD])
def test_batches_are_normalized_as_detectors_normalise_images(facts: dict) -> None:
    normalization = ImageNormalization(**facts)
    images = torch.rand(2, 3, 5, 7)
    expected = DetectionTransform(image_size=(5, 7), **normalization.to_dict())(list(images))[
        0
    ].tensors
    assert torch.equal(normalization(images), expected)
    assert normalization(images.half()).dtype == torch.float16


def test_normalization_by_hand() -> None:
    red = torch.tensor([1.0, 0.5, 0.0]).view(1, 3, 1, 1)
    normed = ImageNormalization(**DSOD)(red).flatten()
    assert normed.tolist() == pytest.approx([0 - 104, 127.5 - 117, 255 - 123])
    normed = ImageNormalization((0.5, 0.4, 0.3), (0.5, 0.2, 0.1))(red).flatten()
    assert normed.tolist() == pytest.approx([1.0, 0.5, -3.0])


def test_normalization_survives_json_and_has_no_weights() -> None:
    model = Segmenter(nn.Identity(), stride=1, normalization=ImageNormalization(**DSOD))
    facts = json.loads(json.dumps(model.normalization.to_dict()))
    assert ImageNormalization(**facts).to_dict() == facts
    assert facts["channel_order"] == "bgr"
    assert model.state_dict() == {}
    assert "value_range=255" in repr(model)


# --- padding -----------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(1, 1), (8, 8), (9, 16), (31, 5)])
def test_images_are_padded_with_the_mean_and_logits_cut_back(size: tuple[int, int]) -> None:
    model = Segmenter(Recorder(), stride=8)
    images = torch.rand(2, 3, *size)
    logits = model(images)
    height, width = size
    seen = model.net.seen
    assert tuple(seen.shape[-2:]) == (-(-height // 8) * 8, -(-width // 8) * 8)
    assert torch.equal(logits, model.normalization(images))
    assert not seen[..., height:, :].any() and not seen[..., width:].any()
    mean = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1).expand(3, *size)
    assert torch.allclose(model.normalization(mean), torch.zeros(()), atol=1e-6)


def test_networks_of_any_size_pad_up_to_the_smallest_only() -> None:
    model = Segmenter(Recorder(), stride=1, smallest=32)
    for size, seen in (((33, 47), (33, 47)), ((7, 40), (32, 40)), ((32, 31), (32, 32))):
        assert tuple(model(torch.rand(2, 3, *size)).shape[-2:]) == size
        assert tuple(model.net.seen.shape[-2:]) == seen


def test_auxiliary_logits_keep_their_places() -> None:
    # A ramp, sampled at a quarter of the size and brought back, is the ramp but for the border.
    model = Segmenter(Supervised(), stride=8, normalization=ImageNormalization(**PLAIN))
    ramp = torch.arange(27 * 21.0).view(1, 1, 27, 21).expand(2, 3, 27, 21) / 600
    output = model(ramp)
    assert torch.equal(output["logits"], ramp)
    (aux,) = output["aux"]
    assert aux.shape == ramp.shape
    torch.testing.assert_close(aux[..., 2:21, 2:15], ramp[..., 2:21, 2:15])


# --- mistakes ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.rand(3, 8, 8), r"a \(N, 3, H, W\) tensor, got \(3, 8, 8\)"),
        (torch.rand(2, 1, 8, 8), r"must be \(3, H, W\), got \(1, 8, 8\)"),
        (torch.rand(0, 3, 8, 8), "images is empty"),
        (torch.rand(2, 3, 0, 8), r"got \(3, 0, 8\)"),
        (torch.zeros(2, 3, 8, 8, dtype=torch.uint8), "floats 0..1, got torch.uint8"),
        (torch.rand(2, 3, 8, 8) + torch.tensor([0, 200.0]).view(2, 1, 1, 1), "image 1 .*by 255"),
    ],
)
def test_wrong_images_get_a_sentence(images: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Segmenter(nn.Identity(), stride=8)(images)


@pytest.mark.parametrize("options", [{"stride": 0}, {"stride": 8, "smallest": 0}])
def test_strides_below_one_get_a_sentence(options: dict) -> None:
    with pytest.raises(ValueError, match="must be 1 or more, got"):
        Segmenter(nn.Identity(), **options)


def test_one_image_of_a_single_cell_gets_a_sentence() -> None:
    model = Segmenter(nn.BatchNorm2d(3), stride=8)
    with pytest.raises(ValueError, match=r"batch of 2 or more, or images of 16 pixels .* not 5x8"):
        model(torch.rand(1, 3, 5, 8))
    model(torch.rand(1, 3, 5, 9))
    model(torch.rand(2, 3, 5, 8))
    model.eval()(torch.rand(1, 3, 5, 8))
    Segmenter(nn.GroupNorm(1, 3), stride=8)(torch.rand(1, 3, 5, 8))


# --- timm's optimizers -------------------------------------------------------------------------


@pytest.mark.parametrize("coarse", [True, False])
def test_layer_groups_of_the_backbone_come_before_the_decoder(coarse: bool) -> None:
    model = tiny("unet")
    groups = group_parameters(model, model.group_matcher(coarse), reverse=True)
    assert set(groups) == {name for name, _ in model.named_parameters()}
    place = {"stem": groups["net.backbone.conv0.weight"], "last": groups["net.classifier.weight"]}
    first = groups["net.backbone.denseblock1.denselayer1.conv1.weight"]
    second = groups["net.backbone.denseblock2.denselayer2.conv1.weight"]
    assert place["stem"] < first < second < place["last"]
    assert groups["net.backbone.transition1.conv.weight"] == first
    assert groups["net.stages.0.convs.0.conv.weight"] == place["last"]


def test_backbones_without_layer_groups_are_one() -> None:
    model = unet(num_classes=2, backbone="resnet18")
    groups = group_parameters(model, model.group_matcher(), reverse=True)
    backbone = {group for name, group in groups.items() if name.startswith("net.backbone.")}
    decoder = {group for name, group in groups.items() if not name.startswith("net.backbone.")}
    assert len(backbone) == len(decoder) == 1 and backbone != decoder
    assert model.no_weight_decay() == set()


def test_patterns_with_alternatives_and_names_without_decay_are_passed_on() -> None:
    class Net(nn.Sequential):
        def group_matcher(self, coarse: bool = False) -> dict:
            return {"stem": r"^0\.|1\.", "blocks": r"^(\d+)"}

        def no_weight_decay(self) -> set[str]:
            return {"0.bias"}

    model = Segmenter(Net(nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)), stride=1)
    groups = group_parameters(model, model.group_matcher(), reverse=True)
    assert groups["net.0.bias"] == groups["net.1.bias"] < groups["net.2.bias"]
    assert model.no_weight_decay() == {"net.0.bias"}


# --- every registered segmenter ----------------------------------------------------------------


@pytest.mark.parametrize("name", SEGMENTERS)
def test_any_size_trains_and_predicts(name: str) -> None:
    model = tiny(name)
    logits = model(torch.rand(2, 3, 33, 47))
    assert logits.shape == (2, 3, 33, 47)
    logits.square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    model.eval()
    for size in ((1, 1), (40, 7), (64, 64)):
        assert model(torch.rand(1, 3, *size)).shape == (1, 3, *size)


@pytest.mark.parametrize("name", SEGMENTERS)
def test_copies_pickles_and_weights_give_the_same_logits(name: str) -> None:
    model, images = tiny(name), torch.rand(2, 3, 33, 20)
    model(images)  # moves the running statistics
    expected = model.eval()(images)
    other = tiny(name).eval()
    assert not torch.equal(other(images), expected)
    other.load_state_dict(model.state_dict())
    for same in (other, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(same(images), expected)


@pytest.mark.parametrize("name", SEGMENTERS)
def test_channels_last_gives_the_same_logits(name: str) -> None:
    model, images = tiny(name).double(), torch.rand(2, 3, 33, 20, dtype=torch.float64)
    expected = model(images)
    last = torch.channels_last
    found = model.to(memory_format=last)(images.to(memory_format=last))
    if name == "unet":  # FC-DenseNet drops out at random
        torch.testing.assert_close(found, expected)
    expected = model.eval()(images)
    torch.testing.assert_close(model(images.to(memory_format=last)), expected)


@pytest.mark.parametrize("name", SEGMENTERS)
def test_bfloat16_autocast_trains(name: str) -> None:
    model = tiny(name)
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(torch.rand(2, 3, 32, 32))
        logits.float().square().mean().backward()
    assert logits.dtype == torch.bfloat16
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("name", SEGMENTERS)
def test_export_with_any_batch_size(name: str) -> None:
    model, images = tiny(name).eval(), torch.rand(2, 3, 40, 33)
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(model, (images,), dynamic_shapes=({0: batch},))
    for number in (1, 3):
        images = torch.rand(number, 3, 40, 33)
        torch.testing.assert_close(program.module()(images), model(images), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", SEGMENTERS)
def test_traced_by_fx_for_any_size(name: str) -> None:
    model = tiny(name).eval()
    graph = torch.fx.symbolic_trace(model)
    for size in ((33, 47), (1, 1), (64, 64)):
        images = torch.rand(2, 3, *size)
        assert torch.equal(graph(images), model(images))


@pytest.mark.parametrize("name", SEGMENTERS)
def test_arguments_are_json(name: str) -> None:
    for parameter in inspect.signature(SEGMENTERS[name]).parameters.values():
        if parameter.default is not inspect.Parameter.empty:
            json.dumps(parameter.default)
    with pytest.raises(ValueError, match="num_classes must be at least 1, got 0"):
        SEGMENTERS[name](num_classes=0)
