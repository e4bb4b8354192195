"""A contract that every registered detector keeps, on tiny networks.

A name with a backbone in it (`fasterrcnn_densenet121_fpn`) differs from the one without by the
backbone alone, so that with a tiny one both are the same: a test of its own holds this for each,
and the contract runs over the others.
"""

import copy
import io
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torchvision
from long_cases import each_once, first_now
from tiny_runs import shallow_heads
from torch import Tensor, nn

from densenet_backbones.heads import DSOD, SSD, retinanet_fpn
from densenet_backbones.inference.model_file import build_registered
from densenet_backbones.torchvision_models import DETECTORS

BODY = {"growth_rate": 4, "block_config": [1, 1, 1, 1], "num_init_features": 8}
FEW = {
    "rpn_pre_nms_top_n_train": 40,
    "rpn_pre_nms_top_n_test": 40,
    "rpn_post_nms_top_n_train": 8,
    "rpn_post_nms_top_n_test": 8,
    "box_batch_size_per_image": 4,
    "box_detections_per_img": 2,
    "box_score_thresh": 0.0,
}
VARIANTS = [name for name in DETECTORS if "densenet" in name]
GENERIC = [name for name in DETECTORS if name not in VARIANTS and not name.startswith("dsod")]
CLASSES = 4
KEYPOINTS = 3


def backbone_of(name: str) -> str:
    return name.split("_")[1]


def make_name(generic: str, backbone: str) -> str:
    kind, *rest = generic.split("_")
    return "_".join((kind, backbone, *rest))


def tiny_options(name: str) -> dict[str, Any]:
    if name.startswith("dsod"):
        dsod = {"image_size": 64, "adapter_channels": [8, 8, 8], "score_thresh": 0.0}
        return {**dsod, "backbone": "dsod_smallest_features", "backbone_kwargs": BODY}
    options: dict[str, Any] = {"backbone_kwargs": BODY, "out_channels": 64}
    if name.startswith("ssd"):
        return {**options, "image_size": 64, "score_thresh": 0.0}
    options |= {"min_size": 64, "max_size": 96}
    if "rcnn" not in name:
        return {**options, "score_thresh": 0.0}
    keypoints = {"num_keypoints": KEYPOINTS} if name.startswith("keypoint") else {}
    return {**options, **FEW, **keypoints}


def build(name: str, **options: Any) -> Any:
    torch.manual_seed(0)
    return build_registered("detector", name, CLASSES, {**tiny_options(name), **options})


@pytest.fixture(scope="module", autouse=True)
def small_heads() -> Iterator[None]:
    with shallow_heads():
        yield


@pytest.fixture(scope="module", params=[name for name in DETECTORS if name not in VARIANTS])
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def detector(name: str) -> Iterator[Any]:
    return build(name)


def images() -> list[Tensor]:
    """Three, one of them without objects and one of an odd size."""
    pictures = [torch.full((3, *size), 0.5) for size in ((64, 64), (45, 71), (64, 64))]
    pictures[0][:, 8:40, 8:40] = 1.0
    pictures[1][:, 4:24, 10:70] = 0.0
    return pictures


def targets() -> list[dict[str, Tensor]]:
    found = []
    for image, boxes in zip(images(), ([[8.0, 8, 40, 40]], [[10.0, 4, 70, 24]], []), strict=True):
        masks = torch.zeros(len(boxes), *image.shape[1:], dtype=torch.uint8)
        points = torch.zeros(len(boxes), KEYPOINTS, 3)
        for index, (x1, y1, x2, y2) in enumerate(boxes):
            masks[index, int(y1) : int(y2), int(x1) : int(x2)] = 1
            xs, ys = torch.linspace(x1, x2 - 1, KEYPOINTS), torch.linspace(y1, y2 - 1, KEYPOINTS)
            points[index] = torch.stack((xs, ys, torch.full_like(xs, 2.0)), dim=1)
        labels = torch.tensor([1, 3])[: len(boxes)]
        found.append(
            {
                "boxes": torch.tensor(boxes).reshape(-1, 4),
                "labels": labels,
                "masks": masks,
                "keypoints": points,
            }
        )
    return found


def empty_targets() -> list[dict[str, Tensor]]:
    return [{key: value[:0] for key, value in target.items()} for target in targets()]


def total(losses: dict[str, Tensor]) -> Tensor:
    return torch.stack(list(losses.values())).sum()


def is_dsod(detector: nn.Module) -> bool:
    return isinstance(detector, DSOD)


def test_a_repeated_step_lowers_the_loss_of_a_copy(detector: Any) -> None:
    before = {key: value.clone() for key, value in detector.state_dict().items()}
    learner = copy.deepcopy(detector).train()
    optimizer = torch.optim.SGD(learner.parameters(), lr=1e-3)
    seen = []
    for _ in range(2):
        torch.manual_seed(1)  # torchvision draws anchors and proposals
        loss = total(learner(images(), targets()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        seen.append(loss.item())
    assert seen[1] < seen[0]
    assert all(torch.equal(before[key], value) for key, value in detector.state_dict().items())
    idle = [key for key, p in learner.named_parameters() if p.grad is None]
    assert idle == []


def test_detections_lie_in_their_images(detector: Any) -> None:
    pictures = images()
    with torch.no_grad():
        found = detector.eval()(pictures)
    assert len(found) == len(pictures)
    assert sum(len(one["boxes"]) for one in found) > 0
    target_types = getattr(detector, "target_types", ("boxes",))
    for one, image in zip(found, pictures, strict=True):
        height, width = image.shape[1:]
        boxes, scores, labels = one["boxes"], one["scores"], one["labels"]
        assert boxes.dtype == scores.dtype == torch.float32 and labels.dtype == torch.int64
        assert boxes.shape == (len(scores), 4) and labels.shape == scores.shape
        assert (boxes >= 0).all() and (boxes[:, 2:] > boxes[:, :2]).all()
        assert (boxes[:, 2] <= width).all() and (boxes[:, 3] <= height).all()
        assert (scores >= 0).all() and (scores <= 1).all()
        assert (scores[:-1] >= scores[1:]).all()
        assert (labels >= 1).all() and (labels < CLASSES).all()
        assert ("masks" in one) == ("masks" in target_types)
        assert ("keypoints" in one) == ("keypoints" in target_types)
        if "masks" in target_types:
            assert one["masks"].shape == (len(scores), 1, height, width)
            assert (one["masks"] >= 0).all() and (one["masks"] <= 1).all()
        if "keypoints" in target_types:
            assert one["keypoints"].shape == (len(scores), KEYPOINTS, 3)
            assert one["keypoints"].isfinite().all()


def test_scores_have_gradients_of_the_image(detector: Any) -> None:
    """As maps of what a detection depends on are drawn."""
    picture = images()[0].requires_grad_()
    (found,) = detector.eval()([picture])
    (gradient,) = torch.autograd.grad(found["scores"].sum(), picture)
    assert gradient.isfinite().all() and gradient.any()


def test_images_without_objects_have_losses(detector: Any) -> None:
    losses = detector.train()(images(), empty_targets())
    assert all(loss.isfinite() for loss in losses.values())
    detector.zero_grad()
    total(losses).backward()
    # a parameter without a gradient would stop training on several processes
    assert [key for key, p in detector.named_parameters() if p.grad is None] == []


def test_bfloat16_autocast(detector: Any) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        losses = detector.train()(images(), targets())
        with torch.no_grad():
            found = detector.eval()(images())
    assert all(loss.isfinite() and loss.dtype == torch.float32 for loss in losses.values())
    assert all(one["boxes"].dtype == torch.float32 for one in found)


def test_float64(detector: Any) -> None:
    found = copy.deepcopy(detector).double().eval()([image.double() for image in images()])
    assert all(one["boxes"].isfinite().all() and one["scores"].numel() for one in found)


def test_a_state_dict_is_all_there_is(detector: Any, name: str) -> None:
    file = io.BytesIO()
    torch.save(detector.state_dict(), file)
    file.seek(0)
    torch.manual_seed(5)
    other = build_registered("detector", name, CLASSES, tiny_options(name))
    other.load_state_dict(torch.load(file, weights_only=True))
    with torch.no_grad():
        expected, found = detector.eval()(images()), other.eval()(images())
    for a, b in zip(expected, found, strict=True):
        assert all(torch.equal(a[key], b[key]) for key in a)


def test_classes_and_pre_processing(detector: Any, name: str) -> None:
    assert detector.num_classes == CLASSES
    described = detector.transform.to_dict()
    again = type(detector.transform)(**described)
    assert again.to_dict() == described and len(again.fill_color) == 3
    if is_dsod(detector):
        return
    detector.set_transform({**described, "image_mean": [0.5, 0.5, 0.5]})
    assert detector.transform.to_dict()["image_mean"] == [0.5, 0.5, 0.5]
    detector.set_transform(described)
    kind = {"mask": "masks", "keyp": "keypoints"}.get(name[:4])
    assert detector.target_types == (("boxes", kind) if kind else ("boxes",))
    assert (getattr(detector, "image_size", None) == (64, 64)) == name.startswith("ssd")


def test_freezing_counts_stages_from_the_stem(detector: Any) -> None:
    body = detector.backbone if is_dsod(detector) else detector.backbone.body
    for stages in (2, 5, 0):
        detector.train().freeze(stages)
        children = [child for stage in body.stage_children()[:stages] for child in stage]
        frozen = {id(p) for child in children for p in child.parameters()}
        trained = {id(p) for p in detector.parameters() if p.requires_grad}
        assert trained == {id(p) for p in detector.parameters()} - frozen
        detector.train()
        assert all(not m.training for child in children for m in child.modules())
    assert all(p.requires_grad for p in detector.parameters())


def test_names_for_the_optimizer(detector: Any) -> None:
    parameters = dict(detector.named_parameters())
    assert detector.no_weight_decay() <= parameters.keys()
    if is_dsod(detector):
        return
    import timm.models

    groups = timm.models.group_parameters(detector, detector.group_matcher(coarse=True))
    assert len(groups) == 6  # the stem, four blocks, and all that is not the backbone's body
    last = set(groups[max(groups)])
    assert {key for key in parameters if not key.startswith("backbone.body.")} <= last


# ------------------------------------------------------------------------------ names


ONE_OF_EACH = each_once(GENERIC, sorted({backbone_of(name) for name in VARIANTS}))
"""Kinds and networks; that each name has its own network is tested beside torchvision's script."""


@pytest.mark.parametrize("name", [make_name(*pair) for pair in ONE_OF_EACH])
def test_a_name_with_a_backbone_is_the_same_detector(name: str) -> None:
    kind, variant, *rest = name.split("_")
    generic = "_".join((kind, *rest))
    assert generic in GENERIC and variant in (
        "densenet121",
        "densenet161",
        "densenet169",
        "densenet201",
        "condensenet74",
    )
    with torch.device("meta"):
        model = build(name)
        same = build(generic, backbone=f"{variant}_features")
        assert model.backbone.body.pretrained_cfg["architecture"] == f"{variant}_features"
    assert type(model) is type(same) and repr(model) == repr(same)
    shapes = {key: value.shape for key, value in model.state_dict().items()}
    assert shapes == {key: value.shape for key, value in same.state_dict().items()}
    for own, other in zip(model.modules(), same.modules(), strict=True):
        for key, value in vars(own).items():
            if isinstance(value, int | float | str | tuple):
                assert getattr(other, key) == value


# ------------------------------------------------------------------------------ options


@pytest.mark.parametrize(
    ("name", "adapter"), first_now(each_once(GENERIC, ["pan", "bifpn", "dense_prediction"]), 3)
)
def test_every_adapter_drops_in(name: str, adapter: str) -> None:
    plain, other = build(name), build(name, adapter=adapter)
    assert [level.stride for level in other.backbone.levels] == [
        level.stride for level in plain.backbone.levels
    ]
    total(other(images(), targets())).backward()
    assert all(p.grad is not None for p in other.parameters())
    with torch.no_grad():
        assert len(other.eval()(images())) == 3


BODIES = ({"output_stride": 16}, {"in_chans": 1}, {"backbone": "resnet18", "backbone_kwargs": None})


@pytest.mark.parametrize(("name", "options"), first_now(each_once(GENERIC, BODIES), 3))
def test_other_bodies(name: str, options: dict[str, Any]) -> None:
    model = build(name, **options)
    if "output_stride" in options:
        read = model.backbone.adapter.levels_in
        assert max(level.stride for level in read) == 16
        assert read[-1].name == "c5"  # the deepest of the two at that stride
    pictures = [image[: options.get("in_chans", 3)] for image in images()]
    total(model(pictures, targets())).backward()
    assert all(p.grad is not None for p in model.parameters())
    with torch.no_grad():
        assert len(model.eval()(pictures)) == 3


def test_ssd_refuses_a_pre_processing_of_another_size() -> None:
    model = build("ssd300")
    assert isinstance(model, SSD)
    described = {**model.transform.to_dict(), "image_size": [96, 96]}
    with pytest.raises(ValueError, match=r"images of \(64, 64\).*image_size \[96, 96\]"):
        model.set_transform(described)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("fasterrcnn_fpn", {"box_nms_thresh": 1.5}, r"_nms_thresh must lie in \[0, 1\], got 1.5"),
        (
            "fasterrcnn_fpn",
            {"box_detections_per_img": 0},
            "_detections_per_img must be at least 1",
        ),
        ("fasterrcnn_fpn", {"score_thresh": 0.5}, "no argument 'score_thresh'; did you mean"),
        ("fasterrcnn_fpn", {"min_size": "big"}, "min_size"),
        ("fasterrcnn_fpn", {"min_size": 200}, "at most max_size, got 200 and 96"),
        ("maskrcnn_fpn", {"weights": "missing.pth"}, "missing.pth: there is no such file"),
        ("keypointrcnn_fpn", {"num_keypoints": 0}, "num_keypoints must be at least 1, got 0"),
        ("retinanet_fpn", {"topk_candidates": 0}, "topk_candidates must be at least 1, got 0"),
        ("retinanet_fpn", {"fg_iou_thresh": 0.2}, "RetinaNet cannot be built with .*fg_iou_thresh"),
        ("retinanet_fpn", {"anchor_scale": -1.0}, "anchors need scales .* above 0"),
        ("retinanet_fpn", {"adapter": "nas"}, "adapter must be one of"),
        ("retinanet_fpn", {"backbone": "resnet_none"}, "resnet_none"),
        (
            "retinanet_fpn",
            {"image_men": [0.5]},
            "no argument 'image_men'; did you mean 'image_mean",
        ),
        ("retinanet_fpn", {"image_mean": [0.5], "image_std": [1.0]}, "1 numbers in image_mean and"),
        ("retinanet_fpn_v2", {"out_channels": 48}, "out_channels must be a multiple of 32, 64 or"),
        ("fcos_fpn", {"out_channels": 32}, "out_channels must be a multiple of 32, 64 or more"),
        ("ssd300", {"positive_fraction": 0.0}, r"positive_fraction must lie in \(0, 1\]"),
        ("ssd300", {"extra": "pool"}, "ssd300 has no argument 'extra'"),
        ("ssd512", {"iou_thresh": True}, "iou_thresh"),
        ("fcos_densenet121_fpn", {"backbone": "resnet18"}, "call fcos_fpn with backbone='resnet18"),
    ],
)
def test_options_out_of_range(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(name, **options)


def test_unknown_keywords_and_too_few_classes() -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'scoore_thresh'"):
        torchvision.models.get_model("retinanet_fpn", scoore_thresh=0.5)
    with pytest.raises(ValueError, match="num_classes counts the background: 2 or more, got 1"):
        retinanet_fpn(num_classes=1)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("retinanet_fpn", {"labels": torch.tensor([4])}, "label 4: labels must lie in 1..3"),
        ("maskrcnn_fpn", {"masks": torch.zeros(1, 9, 9)}, r"masks \(1, 64, 64\), .*got \(1, 9, 9"),
        ("keypointrcnn_fpn", {"keypoints": torch.zeros(1, 17, 3)}, r"keypoints \(1, 3, 3\) floats"),
        ("retinanet_fpn", {"boxes": 0.0}, r"boxes of target 0 must be \(B, 4\) floats, got float"),
        ("retinanet_fpn", {"boxes": torch.zeros(4)}, r"must be \(B, 4\) floats, got \(4,\) torch"),
        ("retinanet_fpn", {"labels": [1]}, r"labels of target 0 must be \(1,\) int64, got list"),
        ("maskrcnn_fpn", {"masks": [[0]]}, r"masks \(1, 64, 64\), .*got list"),
        ("keypointrcnn_fpn", {"keypoints": [[0.0]]}, r"keypoints \(1, 3, 3\) floats.*got list"),
    ],
)
def test_targets_that_are_wrong(name: str, change: dict[str, object], message: str) -> None:
    wrong: list[Any] = targets()
    wrong[0] |= change
    with pytest.raises(ValueError, match=message):
        build(name)(images(), wrong)


def test_images_that_are_wrong() -> None:
    model = build("retinanet_fpn", in_chans=1)
    with pytest.raises(ValueError, match=r"image 0 must be \(1, H, W\), got \(3, 64, 64\)"):
        model(images(), targets())
    with pytest.raises(ValueError, match=r"image 0 must be a \(1, H, W\) tensor, got ndarray"):
        model([images()[0].numpy()], targets()[:1])
    with pytest.raises(ValueError, match="target 0 must be a dict, got list"):
        model([torch.zeros(1, 64, 64)], [[]])


def test_batch_norm_on_a_single_cell_has_a_sentence() -> None:
    model = build("retinanet_fpn", min_size=32, max_size=32)
    with pytest.raises(ValueError, match="a norm cannot take its statistics from a single value"):
        model(images()[:1], targets()[:1])
