"""The DSOD detectors: published sizes, torchvision's detector interface, learning."""

import json
import math

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from densenet_backbones.heads import DSOD, dsod300, dsod300_smallest, dsod512, dsod_tiny

TINY = {
    "image_size": 64,
    "adapter_channels": [8, 8, 8],
    "backbone": "dsod_smallest_features",
    "backbone_kwargs": {"growth_rate": 4, "block_config": [1, 1, 1, 1], "num_init_features": 8},
}
GRIDS_300 = ((38, 38), (19, 19), (10, 10), (5, 5), (3, 3), (2, 2))


def tiny(**options: object) -> DSOD:
    torch.manual_seed(0)
    return dsod300(**{"num_classes": 4, **TINY, **options})


def _batch() -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    """Bright squares and dim bars on gray, in three images; the last one is empty."""
    images = [torch.full((3, *size), 0.5) for size in ((64, 64), (48, 80), (64, 64))]
    images[0][:, 8:40, 8:40] = 1.0
    images[1][:, 4:24, 10:70] = 0.0
    targets = [
        {"boxes": torch.tensor([[8.0, 8.0, 40.0, 40.0]]), "labels": torch.tensor([1])},
        {"boxes": torch.tensor([[10.0, 4.0, 70.0, 24.0]]), "labels": torch.tensor([3])},
        {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)},
    ]
    return images, targets


def _total(losses: dict[str, Tensor]) -> Tensor:
    return sum(losses.values(), torch.zeros(()))


# --- published sizes ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("builder", "options", "parameters", "gmac"),
    [
        (dsod300, {}, 14_715_804, 15.08),
        (dsod300, {"num_classes": 81, "prior_sizes": "coco"}, 21_700_524, None),
        (dsod300_smallest, {}, 5_833_372, 5.30),
    ],
)
def test_published_sizes(builder, options: dict, parameters: int, gmac: float | None) -> None:
    with torch.device("meta"):
        model = builder(**options).eval()
        batch = torch.empty(1, 3, 300, 300)
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert model.grid_sizes == GRIDS_300
    assert len(model.priors("cpu")) == 8744
    if gmac is not None:
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            codes, logits = model.predict(batch)
        assert counter.get_total_flops() / 2e9 == pytest.approx(gmac, abs=0.005)
        assert codes.shape == (1, 8744, 4)
        assert logits.shape == (1, 8744, 21)


def test_dsod512_has_seven_maps_and_the_sizes_of_ssd512() -> None:
    with torch.device("meta"):
        model = dsod512()
    assert model.grid_sizes == tuple((512 >> i, 512 >> i) for i in range(3, 10))
    assert len(model.priors("cpu")) == 24564
    sizes = model.prior_spec.min_sizes  # weiliu89/caffe, ssd_pascal_512.py
    assert sizes == pytest.approx((35.84, 76.8, 153.6, 230.4, 307.2, 384.0, 460.8))
    with torch.device("meta"):
        sizes = dsod512(prior_sizes="coco512").prior_spec.min_sizes
    assert sizes == pytest.approx((20.48, 51.2, 133.12, 215.04, 296.96, 378.88, 460.8))


def test_tiny_is_small_enough_for_a_laptop() -> None:
    with torch.device("meta"):
        model = dsod_tiny(num_classes=5).eval()
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model.predict(torch.empty(1, 3, *model.image_size))
    assert counter.get_total_flops() / 2e9 < 0.25
    assert 4 <= len(model.grid_sizes) <= 6
    assert model.grid_sizes[-1] != (1, 1)  # batch norm can train on a single image


def test_initial_values_and_batch_norms_are_dsod_s() -> None:
    model = tiny(bn_momentum=0.25)
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert {m.momentum for m in norms} == {0.25}
    head_norms = [*model.head.box_norms, *model.head.class_norms]
    assert {m.eps for m in head_norms} == {1e-3}
    assert {m.eps for m in norms if m not in head_norms} == {1e-5}
    assert all((m.scale == 20).all() for m in model.head.feature_norms)
    weights = torch.cat([m.weight.flatten() for m in model.head.class_convs])
    assert weights.std().item() == pytest.approx(0.01, rel=0.05)
    convs = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    assert all(m.bias is None for m in convs)
    for conv in convs:
        if conv not in [*model.head.box_convs, *model.head.class_convs]:
            bound = math.sqrt(3 / conv.weight[0].numel())
            assert 0.9 * bound < conv.weight.abs().max() <= bound


@pytest.mark.parametrize("head_norm", [True, False])
def test_a_head_that_expects_the_background(head_norm: bool) -> None:
    model = tiny(num_classes=4, head_norm=head_norm, prior_probability=0.02)
    convs, norms = model.head.class_convs, model.head.class_norms
    for biased in norms if head_norm else convs:
        background = biased.bias.view(-1, 4).softmax(dim=1)[:, 0]
        torch.testing.assert_close(background, torch.full_like(background, 0.98))
    assert all(isinstance(norm, nn.BatchNorm2d) == head_norm for norm in norms)
    assert model.no_weight_decay() == {
        f"head.{name}"
        for name, _ in model.head.named_parameters()
        if name.endswith("bias") or "class_norms" in name or "box_norms" in name
    }
    _total(model(*_batch())).backward()
    model.eval()(_batch()[0])


def test_the_loss_of_boxes_has_the_beta_that_was_asked_for() -> None:
    published, sharp = tiny(), tiny(smooth_l1_beta=0.25)
    sharp.load_state_dict(published.state_dict())
    usual, other = published(*_batch()), sharp(*_batch())
    torch.testing.assert_close(usual["classification"], other["classification"])
    # |x| - beta / 2 instead of |x| - 1 / 2 for large errors, 4 x^2 / 2 for small ones.
    assert usual["bbox_regression"] < other["bbox_regression"] < 4 * usual["bbox_regression"]
    with pytest.raises(ValueError, match="smooth_l1_beta must be at least 0 and finite, got -1"):
        tiny(smooth_l1_beta=-1)


def test_a_prior_probability_is_one() -> None:
    with pytest.raises(ValueError, match=r"prior_probability must lie in \(0, 1\), got 1"):
        tiny(prior_probability=1)


def test_weight_decay_leaves_the_head_s_batch_norms_alone() -> None:
    model = tiny()
    names = model.no_weight_decay()
    assert names < set(dict(model.named_parameters()))
    assert len(names) == 4 * len(model.grid_sizes)  # weight and bias, boxes and classes
    assert "head.class_norms.0.weight" in names
    assert "head.feature_norms.0.scale" not in names


# --- detector interface ------------------------------------------------------------------------


def test_training_returns_losses_and_every_parameter_learns() -> None:
    model = tiny()
    losses = model(*_batch())
    assert set(losses) == {"classification", "bbox_regression"}
    _total(losses).backward()
    without = [
        n for n, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()
    ]
    assert without == []


def test_batches_without_objects_have_losses_of_zero() -> None:
    model = tiny()
    images, targets = _batch()
    losses = model(images[2:] * 2, targets[2:] * 2)
    assert [loss.item() for loss in losses.values()] == [0, 0]
    _total(losses).backward()
    assert all(p.grad is not None and not p.grad.any() for p in model.parameters())


def test_one_step_lowers_the_loss_and_a_few_find_the_objects() -> None:
    model = tiny()
    images, targets = _batch()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    history = []
    for _ in range(60):
        loss = _total(model(images, targets))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append(loss.item())
    assert history[1] < history[0]
    assert history[-1] < 0.3 * history[0]
    found = model.eval()(images)
    for index, label in ((0, 1), (1, 3)):
        assert found[index]["labels"][0] == label
        error = (found[index]["boxes"][0] - targets[index]["boxes"][0]).abs().max()
        assert error < 8  # in the frame of the 48x80 image as well


def test_detections_are_sorted_and_inside_each_image() -> None:
    model = tiny(detections_per_img=7).eval()
    sizes = [(64, 64), (30, 200), (301, 7)]
    for (height, width), found in zip(
        sizes, model([torch.rand(3, *s) for s in sizes]), strict=True
    ):
        boxes = found["boxes"]
        assert boxes.shape == (7, 4)
        assert boxes.min() >= 0 and boxes[:, 2].max() <= width and boxes[:, 3].max() <= height
        assert (found["scores"].diff() <= 0).all()
        assert found["labels"].min() >= 1 and found["labels"].max() <= 3


def test_boxes_of_perfect_codes_come_back_in_the_frame_of_the_image() -> None:
    model = tiny().eval()
    prior = len(model.priors()) // 2
    logits = torch.zeros(1, len(model.priors()), 4)
    logits[..., 0] = 20
    logits[0, prior] = torch.tensor([0.0, 0.0, 20.0, 0.0])
    found = model.detections(torch.zeros(1, len(model.priors()), 4), logits, [(128, 192)])[0]
    assert found["labels"].tolist() == [2]
    expected = model.priors()[prior] * torch.tensor([3.0, 2.0, 3.0, 2.0])
    limits = torch.tensor([192.0, 128.0, 192.0, 128.0])
    torch.testing.assert_close(found["boxes"][0], expected.clamp(min=0).minimum(limits))


def test_predictions_and_priors_are_in_the_same_order() -> None:
    model = tiny().eval()
    # Only the first map's class layer says something, and only in one cell and shape.
    maps = [
        torch.zeros(1, level.channels, *grid)
        for level, grid in zip(model.adapter.levels, model.grid_sizes, strict=True)
    ]
    maps[0][0, :, 2, 5] = 1.0
    _, logits = model.head(maps)
    rows, columns = model.grid_sizes[0]
    moved = (logits[0] - logits[0, -1 - 4 * 4]).abs().sum(dim=1)[: rows * columns * 4] > 1e-6
    cells = {int(p) // 4 for p in moved.nonzero()}
    assert cells == {r * columns + c for r in (1, 2, 3) for c in (4, 5, 6)}
    priors = model.priors()[: rows * columns * 4].view(rows, columns, 4, 4)
    center = (priors[2, 5, 0, :2] + priors[2, 5, 0, 2:]) / 2
    assert center.tolist() == [5.5 * 8, 2.5 * 8]


def test_state_dict_round_trip_and_priors_are_not_in_it() -> None:
    model, other = tiny().eval(), dsod300(num_classes=4, **TINY).eval()
    state = model.state_dict()
    assert not any("prior" in name for name in state)
    other.load_state_dict(state)
    image = [torch.rand(3, 64, 64)]
    assert torch.equal(model(image)[0]["boxes"], other(image)[0]["boxes"])


def test_parameter_names_are_stable() -> None:
    names = dict(tiny().named_parameters())
    for name in (
        "backbone.conv0.weight",
        "backbone.denseblock4.denselayer1.conv2.weight",
        "adapter.trans.conv.weight",
        "adapter.first_reuse.norm.bias",
        "adapter.stages.0.learn.1.conv.weight",
        "head.feature_norms.0.scale",
        "head.box_convs.3.weight",
        "head.class_norms.3.bias",
    ):
        assert name in names


def test_bfloat16_autocast_trains_and_predicts() -> None:
    model = tiny()
    exact = model(*_batch())
    with torch.autocast("cpu", torch.bfloat16):
        losses = model(*_batch())
        _total(losses).backward()
        found = model.eval()(_batch()[0])
    for name, loss in losses.items():
        assert loss.dtype == torch.float32
        torch.testing.assert_close(loss, exact[name], rtol=0.1, atol=0.05)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert found[0]["boxes"].dtype == found[0]["scores"].dtype == torch.float32


def test_predicting_in_inference_mode_does_not_spoil_training() -> None:
    model = tiny().eval()
    with torch.inference_mode():
        model([torch.rand(3, 64, 64)])
    assert not model.priors().is_inference()  # autograd refuses to save such a tensor
    _total(model.train()(*_batch())).backward()


def test_maps_silenced_by_their_network_have_finite_gradients() -> None:
    norm = tiny().head.feature_norms[0]
    x = torch.zeros(1, len(norm.scale), 2, 2, requires_grad=True)
    norm(x).sum().backward()
    assert x.grad is not None and x.grad.isfinite().all()
    y = norm(torch.randn(1, len(norm.scale), 2, 2))
    torch.testing.assert_close(y.square().sum(dim=1).sqrt(), torch.full((1, 2, 2), 20.0))


def test_objects_out_of_reach_are_told_in_either_frame() -> None:
    model = dsod_tiny()
    good, small = [40.0, 40.0, 72.0, 72.0], [80.0, 80.0, 84.0, 83.0]
    boxes = torch.tensor([good, small])
    assert [m.tolist() for m in model.find_unmatchable([boxes, boxes[:0]])] == [[False, True], []]
    in_larger_image = boxes * torch.tensor([2.0, 4.0, 2.0, 4.0])
    masks = model.find_unmatchable([in_larger_image], [(640, 320)])
    assert masks[0].tolist() == [False, True]


def test_first_is_the_second_transition_s_convolution_and_the_other_base_is_block_4() -> None:
    model = tiny().eval()
    seen = {}
    for name in ("transition2.conv", "denseblock4"):
        model.backbone.get_submodule(name).register_forward_hook(
            lambda _, __, out, name=name: seen.update({name: out})
        )
    received = []
    model.adapter.register_forward_pre_hook(lambda _, args: received.extend(args[0]))
    with torch.no_grad():
        model.predict(torch.rand(1, 3, 64, 64))
    assert received[0] is seen["transition2.conv"]
    assert received[1] is seen["denseblock4"]


# --- backbones ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("backbone", "kwargs"),
    [
        ("resnet18", {}),
        ("densenet121_features", {"growth_rate": 4, "block_config": [1, 1, 1, 1]}),
    ],
)
def test_other_timm_backbones(backbone: str, kwargs: dict) -> None:
    # 75 pixels: maps of 9 or 10, and of 4 or 5.
    model = tiny(backbone=backbone, backbone_kwargs=kwargs, image_size=75)
    assert [level.stride for level in model.adapter.levels] == [8, 16, 32, 64]
    assert model.transform.normalization.channel_order == "rgb"
    assert model.transform.image_mean == pytest.approx([0.485, 0.456, 0.406])
    _total(model(*_batch())).backward()
    # Nothing is built that the detector does not use.
    assert all(p.grad is not None for p in model.parameters())


def test_a_module_as_backbone_and_deviations_of_its_own() -> None:
    net = timm.create_model("resnet18", features_only=True)
    model = tiny(backbone=net, backbone_kwargs=None, image_std=[0.5, 0.5, 0.5])
    assert model.backbone is net
    assert model.transform.image_std == [0.5] * 3
    assert model.transform.normalization.channel_order == "rgb"
    model(*_batch())


def test_dsod_s_own_transform() -> None:
    assert tiny().transform.to_dict() == {
        "min_size": 64,
        "max_size": 64,
        "size_divisible": 1,
        "image_size": [64, 64],
        "image_mean": [104, 117, 123],
        "image_std": [1, 1, 1],
        "channel_order": "bgr",
        "value_range": 255,
    }


def test_arguments_may_come_from_json() -> None:
    options = {"faithful_priors": False, "prior_sizes": [8, 20, 40, 60, 70], **TINY}
    model = dsod300(num_classes=4, **json.loads(json.dumps(options)))
    assert model.prior_spec.min_sizes == (8, 20, 40, 60)


# --- mistakes ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_classes": 1}, "2 or more, got 1"),
        ({"image_size": [64]}, r"one number or \(H, W\), got \[64\]"),
        ({"faithful_priors": True}, "faithful_priors needs image_size 300"),
        ({"backbone": "resnet18", "backbone_kwargs": {"out_indices": (3, 4)}}, r"got \[16, 32\]"),
        ({"backbone": nn.Identity()}, "need a backbone given by name"),
        ({"score_thresh": 2}, r"score_thresh must lie in \[0, 1\], got 2"),
    ],
)
def test_wrong_options_get_a_sentence(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny(**options)


def _target(box: list[float], label: int = 1) -> dict[str, Tensor]:
    return {"boxes": torch.tensor([box]), "labels": torch.tensor([label])}


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (None, "targets must be given in training mode"),
        ([], "1 image, 0 given"),
        ([{"boxes": torch.zeros(0, 4)}], r"target 0 has no \['labels'\]"),
        ([_target([5.0, 5.0, 5.0, 9.0])], r"target 0 has the box \[5.0, 5.0, 5.0, 9.0\]"),
        ([_target([5.0, 5.0, math.nan, 9.0])], "finite"),
        ([_target([5.0, 5.0, 9.0, 9.0], 4)], r"label 4: labels must lie in 1..3"),
        ([_target([5.0, 5.0, 9.0, 9.0], 0)], "0 is the background"),
        ([{"boxes": torch.zeros(0), "labels": torch.zeros(0).long()}], r"torch.zeros\(0, 4\)"),
        ([{"boxes": torch.ones(1, 4), "labels": torch.ones(2).long()}], r"must be \(1,\) int64"),
    ],
)
def test_wrong_targets_get_a_sentence(targets: list | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny()([torch.rand(3, 64, 64)], targets)


def test_the_image_at_fault_is_named() -> None:
    images, targets = _batch()
    targets[1]["boxes"] = torch.tensor([[10.0, 24.0, 70.0, 4.0]])
    with pytest.raises(ValueError, match="target 1 has the box"):
        tiny()(images, targets)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ([], "images is empty"),
        ([torch.rand(1, 64, 64)], r"image 0 must be \(3, H, W\), got \(1, 64, 64\)"),
        (
            [torch.rand(3, 8, 8), torch.zeros(3, 64, 64, dtype=torch.uint8)],
            "image 1 must hold floats",
        ),
        ([torch.rand(3, 64, 64) * 255], "divide by 255"),
        (torch.rand(3, 64, 64), r"list of \(3, H, W\) tensors"),
    ],
)
def test_wrong_images_get_a_sentence(images: list, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny().eval()(images)


def test_one_image_on_a_single_cell_gets_a_sentence() -> None:
    model = tiny(adapter_channels=[4, 4, 4, 4])
    assert model.grid_sizes[-1] == (1, 1)
    images, targets = _batch()
    with pytest.raises(ValueError, match="batch of 2 or more"):
        model(images[:1], targets[:1])
    model(images, targets)
