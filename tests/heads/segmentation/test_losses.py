"""Segmentation losses: against torch, smp and hand-made numbers; ignored pixels never count."""

import math

import hypothesis.strategies as st
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from torch import Tensor

from densenet_backbones.heads import IGNORED, SegmentationLoss
from densenet_backbones.heads.segmentation.losses import TERMS
from densenet_backbones.heads.segmentation.pixel_losses import Pixels, dice, focal, lovasz, ohem

MODES = ("multiclass", "binary", "multilabel")
ALL_TERMS = dict.fromkeys(TERMS, 1.0)


def batch(
    mode: str, seed: int = 0, size: tuple[int, int] = (5, 6), ignored: float = 0.3, scale: float = 3
) -> tuple[Tensor, Tensor]:
    """Logits (2, K, H, W), float64, and a target of which a share is ignored."""
    generator = torch.Generator().manual_seed(seed)
    classes = 1 if mode == "binary" else 4
    shape = (2, classes, *size) if mode == "multilabel" else (2, *size)
    logits = scale * torch.randn(2, classes, *size, generator=generator, dtype=torch.float64)
    answers = classes if mode == "multiclass" else 2
    target = torch.randint(answers, shape, generator=generator, dtype=torch.uint8)
    target[torch.rand(shape, generator=generator) < ignored] = IGNORED
    return logits, target


def term(name: str, mode: str, **options: object) -> SegmentationLoss:
    return SegmentationLoss(mode, {name: 1.0}, **options)


def value(name: str, mode: str, logits: Tensor, target: Tensor, **options: object) -> Tensor:
    return term(name, mode, **options)(logits, target)[name]


def counted(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Logits and labels of what is not ignored, one after the other."""
    if target.dim() < 4 and logits.shape[1] > 1:
        logits = logits.movedim(1, -1)
    else:
        target = target.view_as(logits)
    kept = target != IGNORED
    return logits[kept], target[kept].long()


# --- ignored pixels ----------------------------------------------------------------------------


@given(
    mode=st.sampled_from(MODES),
    name=st.sampled_from(TERMS),
    seed=st.integers(0, 10_000),
    size=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    ignored=st.sampled_from([0.1, 0.5, 0.9]),
    noise=st.sampled_from([1.0, 1e4, math.inf, math.nan]),
)
@settings(max_examples=150)
def test_logits_at_ignored_pixels_change_nothing(
    mode: str, name: str, seed: int, size: tuple[int, int], ignored: float, noise: float
) -> None:
    logits, target = batch(mode, seed, size, ignored)
    gone = (target == IGNORED) if mode == "multilabel" else (target == IGNORED)[:, None]
    other = torch.where(gone, noise * (1 + torch.rand_like(logits)), logits)
    results = []
    for given_logits in (logits, other):
        leaf = given_logits.clone().requires_grad_()
        loss = value(name, mode, leaf, target)
        loss.backward()
        results.append((loss.detach(), leaf.grad))
    (loss, gradient), (other_loss, other_gradient) = results
    assert torch.equal(loss, other_loss)
    assert torch.equal(gradient, other_gradient)
    assert not gradient.where(gone, 0.0).any()
    assert loss >= 0 and gradient.isfinite().all()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", TERMS)
def test_ignored_pixels_might_as_well_not_be_there(mode: str, name: str) -> None:
    logits, target = batch(mode, size=(1, 12), ignored=0)
    target[..., 7:] = IGNORED
    expected = value(name, mode, logits[..., :7], target[..., :7])
    torch.testing.assert_close(value(name, mode, logits, target), expected)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("aux", [0, 2])
def test_a_batch_that_is_ignored_as_a_whole_is_zero(mode: str, aux: int) -> None:
    logits, target = batch(mode)
    logits.requires_grad_()
    target.fill_(IGNORED)
    weights = [2.0] * logits.shape[1]
    output = {"logits": logits, "aux": [logits * 2] * aux}
    losses = SegmentationLoss(mode, ALL_TERMS, class_weights=weights, dice_smooth=1.0)(
        output, target
    )
    assert set(losses) == {*TERMS, *(["aux"] if aux else [])}
    assert [loss.item() for loss in losses.values()] == [0] * len(losses)
    sum(losses.values()).backward()
    assert logits.grad is not None and not logits.grad.any()


# --- precision ---------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(mode: str, dtype: torch.dtype) -> None:
    logits, target = batch(mode, size=(64, 64), scale=1000)
    half = logits.to(dtype).requires_grad_()
    loss = SegmentationLoss(mode, ALL_TERMS)
    with torch.autocast("cpu", torch.bfloat16):
        found = loss({"logits": half, "aux": [half]}, target)
    expected = loss(half.detach().double(), target)
    for name in TERMS:
        assert found[name].dtype == torch.float32
        torch.testing.assert_close(found[name].double(), expected[name], rtol=1e-4, atol=1e-5)
    sum(found.values()).backward()
    assert half.grad.isfinite().all() and half.grad.any()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_certain_answers_have_finite_gradients(mode: str, gamma: float) -> None:
    logits, target = batch(mode, scale=1e6)
    logits.requires_grad_()
    losses = SegmentationLoss(mode, ALL_TERMS, focal_gamma=gamma)(logits, target)
    sum(losses.values()).backward()
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", TERMS)
def test_gradients_are_those_of_the_values(mode: str, name: str) -> None:
    logits, target = batch(mode, size=(2, 3), ignored=0.2, scale=1)
    loss = term(name, mode)
    assert torch.autograd.gradcheck(lambda x: loss(x, target)[name], logits.requires_grad_())


# --- cross-entropy -----------------------------------------------------------------------------


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weights", [None, [1.0, 0.25, 3.0, 0.0]])
def test_cross_entropy_equals_torchs(smoothing: float, weights: list[float] | None) -> None:
    logits, target = batch("multiclass")
    found = value(
        "cross_entropy", "multiclass", logits, target,
        class_weights=weights, label_smoothing=smoothing,
    )  # fmt: skip
    expected = F.cross_entropy(
        logits,
        target.long(),
        weight=None if weights is None else torch.tensor(weights).double(),
        ignore_index=IGNORED,
        label_smoothing=smoothing,
    )
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("mode", ["binary", "multilabel"])
def test_cross_entropy_with_sigmoids_equals_torchs(mode: str) -> None:
    logits, target = batch(mode)
    plain = F.binary_cross_entropy_with_logits(*(t.double() for t in counted(logits, target)))
    torch.testing.assert_close(value("cross_entropy", mode, logits, target), plain)
    weights = torch.arange(1.0, 1 + logits.shape[1])
    found = value(
        "cross_entropy", mode, logits, target, class_weights=weights.tolist(), label_smoothing=0.2
    )
    kept = target.view_as(logits) != IGNORED
    expected = F.binary_cross_entropy_with_logits(
        logits,
        target.view_as(logits).double() * 0.8 + 0.1,
        pos_weight=weights.view(-1, 1, 1).double(),
        reduction="none",
    )[kept].mean()
    torch.testing.assert_close(found, expected)


def test_no_pixel_of_a_class_with_weight_is_zero() -> None:
    logits, target = batch("multiclass", ignored=0)
    weights = [0.0, 0.0, 0.0, 1.0]
    found = value("cross_entropy", "multiclass", logits, target % 3, class_weights=weights)
    assert found == 0


# --- against smp -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def smp():
    return pytest.importorskip("segmentation_models_pytorch").losses


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("seed", range(3))
def test_dice_equals_smps(smp, mode: str, seed: int) -> None:
    logits, target = batch(mode, seed)
    for smooth in (0.0, 1.0):
        expected = smp.DiceLoss(mode, ignore_index=IGNORED, smooth=smooth)(logits, target.long())
        # smp's smooth stands in TP / (TP + FP / 2 + FN / 2), which is half of ours
        found = value("dice", mode, logits, target, dice_smooth=2 * smooth)
        torch.testing.assert_close(found, expected)


def test_dice_is_the_mean_over_the_classes_that_are_there(smp) -> None:
    logits, target = batch("multiclass")
    target[target == 2] = IGNORED  # smp divides by all 4 classes
    expected = smp.DiceLoss("multiclass", ignore_index=IGNORED)(logits, target.long()) * 4 / 3
    torch.testing.assert_close(value("dice", "multiclass", logits, target), expected)


@pytest.mark.parametrize("gamma", [0.0, 1.0, 2.5])
@pytest.mark.parametrize("alpha", [None, 0.25])
def test_focal_with_sigmoids_equals_smps(smp, gamma: float, alpha: float | None) -> None:
    logits, target = batch("binary")
    expected = smp.FocalLoss("binary", alpha=alpha, gamma=gamma, ignore_index=IGNORED)
    found = value("focal", "binary", logits, target, focal_gamma=gamma, focal_alpha=alpha)
    torch.testing.assert_close(found, expected(logits, target.long()))
    logits, target = batch("multilabel", ignored=0)  # smp cannot ignore parts of a pixel
    expected = smp.FocalLoss("multilabel", alpha=alpha, gamma=gamma)
    found = value("focal", "multilabel", logits, target, focal_gamma=gamma, focal_alpha=alpha)
    torch.testing.assert_close(found, expected(logits, target.long()))


@pytest.mark.parametrize("gamma", [0.0, 1.0, 2.5])
def test_focal_with_a_softmax_equals_smps(smp, gamma: float) -> None:
    logits, target = batch("multiclass")
    expected = smp._functional.softmax_focal_loss_with_logits(*counted(logits, target), gamma=gamma)
    found = value("focal", "multiclass", logits, target, focal_gamma=gamma)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("present", [True, False])
def test_lovasz_equals_smps(smp, seed: int, present: bool) -> None:
    def of(mode: str) -> tuple[Tensor, Tensor]:
        logits, target = batch(mode, seed)
        if not present:
            target[target == 1] = 0
        return logits.float(), target  # smp's knows no other precision

    logits, target = of("multiclass")
    expected = smp.LovaszLoss("multiclass", ignore_index=IGNORED)(logits, target.long())
    torch.testing.assert_close(value("lovasz", "multiclass", logits, target), expected)
    logits, target = of("binary")
    binary = smp.LovaszLoss("binary", ignore_index=IGNORED)
    expected = binary(logits, target.long())
    torch.testing.assert_close(value("lovasz", "binary", logits, target), expected)
    logits, target = of("multilabel")
    each = [binary(logits[:, k], target[:, k].long()) for k in range(4)]
    found = value("lovasz", "multilabel", logits, target)
    torch.testing.assert_close(found, torch.stack(each).mean())


# --- by hand -----------------------------------------------------------------------------------


def certain(labels: Tensor, classes: int) -> Tensor:
    """Logits that say ``labels`` (N, H, W) for sure."""
    return 200.0 * F.one_hot(labels, classes).movedim(-1, 1).float()


@given(seed=st.integers(0, 10_000), classes=st.integers(2, 5))
@settings(max_examples=60)
def test_lovasz_of_hard_answers_is_the_jaccard_loss(seed: int, classes: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    said, target = torch.randint(classes, (2, 2, 3, 4), generator=generator)
    losses = []
    for k in target.unique():
        both = ((said == k) & (target == k)).sum()
        losses.append(1 - both / ((said == k) | (target == k)).sum())
    found = value("lovasz", "multiclass", certain(said, classes), target)
    assert found.item() == pytest.approx(float(torch.stack(losses).mean()), abs=1e-5)


@given(seed=st.integers(0, 10_000), classes=st.integers(2, 5))
@settings(max_examples=60)
def test_dice_of_hard_answers_is_one_minus_dice(seed: int, classes: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    said, target = torch.randint(classes, (2, 2, 3, 4), generator=generator)
    losses = []
    for k in target.unique():
        both = ((said == k) & (target == k)).sum()
        losses.append(1 - 2 * both / ((said == k).sum() + (target == k).sum()))
    found = value("dice", "multiclass", certain(said, classes), target)
    assert found.item() == pytest.approx(float(torch.stack(losses).mean()), abs=1e-5)


def test_lovasz_stays_exact_over_many_pixels() -> None:
    # One wrong pixel in a million, whose share neighboring values of the loss would round away.
    target = torch.ones(1, 1000, 1000, dtype=torch.int64)
    logits = torch.full((1, 1, 1000, 1000), 50.0)
    logits[..., 0, 0] = -1.0
    assert value("lovasz", "binary", logits, target).item() == pytest.approx(2e-6, rel=1e-6)


def pixels(probabilities: list[float]) -> Pixels:
    """Binary pixels that have the label, of the given probabilities."""
    logits = torch.tensor(probabilities).double().logit().view(1, 1, 1, -1)
    return Pixels.of(logits, torch.ones(1, 1, len(probabilities), dtype=torch.int64), "binary")


def test_focal_by_hand() -> None:
    expected = -(0.1**2 * math.log(0.9) + 0.6**2 * math.log(0.4)) / 2
    assert focal(pixels([0.9, 0.4]), gamma=2.0).item() == pytest.approx(expected)
    assert focal(pixels([0.9, 0.4]), 2.0, alpha=0.3).item() == pytest.approx(0.3 * expected)


def test_dice_by_hand() -> None:
    expected = 1 - (2 * 1.3 + 1) / (1.3 + 2 + 1)
    assert dice(pixels([0.9, 0.4]), smooth=1.0).item() == pytest.approx(expected)


def test_ohem_keeps_the_hard_pixels_and_at_least_a_share() -> None:
    four = pixels([0.95, 0.4, 0.9, 0.6])
    hard = -(math.log(0.4) + math.log(0.6)) / 2
    assert ohem(four, threshold=0.7, share=0.01).item() == pytest.approx(hard)
    three = -(math.log(0.4) + math.log(0.6) + math.log(0.9)) / 3
    assert ohem(four, threshold=0.7, share=0.75).item() == pytest.approx(three)
    assert ohem(four, threshold=0.7, share=0.6).item() == pytest.approx(three)  # rounded up
    assert ohem(four, threshold=0.5, share=0.01).item() == pytest.approx(-math.log(0.4))
    assert ohem(four, threshold=0.1, share=0.01).item() == pytest.approx(-math.log(0.4))
    every = four.mean(four.negative_log_likelihood)
    torch.testing.assert_close(ohem(four, share=1.0), every)


def test_lovasz_hinge_by_hand() -> None:
    # Errors 1.5 (of the class), 0.5 (not of it), -1 (of it); Jaccard losses 1/2, 2/3, 1.
    logits = torch.tensor([-0.5, -0.5, 2.0]).view(1, 1, 1, 3)
    target = torch.tensor([[[1, 0, 1]]])
    assert lovasz(Pixels.of(logits, target, "binary")).item() == pytest.approx(
        1.5 * 1 / 2 + 0.5 * (2 / 3 - 1 / 2)
    )


# --- terms together ----------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_terms_are_weighted_and_auxiliary_logits_count_as_said(mode: str) -> None:
    logits, target = batch(mode)
    other = batch(mode, seed=1)[0]
    loss = SegmentationLoss(mode, {"dice": 2.0, "ohem": 0.5}, aux_weight=0.3)
    losses = loss({"logits": logits, "aux": [other, logits]}, target)
    assert list(losses) == ["dice", "ohem", "aux"]
    torch.testing.assert_close(losses["dice"], 2 * value("dice", mode, logits, target))
    torch.testing.assert_close(losses["ohem"], 0.5 * value("ohem", mode, logits, target))
    total = sum(loss(logits, target).values()) + sum(loss(other, target).values())
    torch.testing.assert_close(losses["aux"], 0.3 * total / 2)
    assert list(loss({"logits": logits}, target)) == ["dice", "ohem"]


def test_binary_targets_with_and_without_an_axis_are_one() -> None:
    logits, target = batch("binary")
    loss = SegmentationLoss("binary", ALL_TERMS)
    for name, found in loss(logits, target[:, None].long()).items():
        assert torch.equal(found, loss(logits, target)[name])


def test_class_weights_follow_the_module_and_are_no_part_of_a_checkpoint() -> None:
    loss = SegmentationLoss(class_weights=[1.0, 2.0])
    assert loss.state_dict() == {}
    assert loss.to("meta").class_weights.device.type == "meta"
    assert SegmentationLoss().class_weights is None


@pytest.mark.parametrize("mode", MODES)
def test_channels_last_gives_the_same(mode: str) -> None:
    logits, target = batch(mode)
    loss = SegmentationLoss(mode, ALL_TERMS)
    found = loss(logits.contiguous(memory_format=torch.channels_last), target)
    for name, expected in loss(logits, target).items():
        torch.testing.assert_close(found[name], expected)


@pytest.mark.parametrize("mode", MODES)
def test_the_loss_compiles_as_one_graph(mode: str) -> None:
    logits, target = batch(mode)
    loss = SegmentationLoss(mode, ALL_TERMS, class_weights=[1.0] * logits.shape[1])
    found = torch.compile(loss, backend="eager", fullgraph=True)(logits, target)
    for name, expected in loss(logits, target).items():
        torch.testing.assert_close(found[name], expected)


# --- mistakes ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "softmax"}, r"mode must be one of .* got 'softmax'"),
        ({"terms": {}}, r"terms must be one or more of .* got \[\]"),
        ({"terms": {"jaccard": 1.0}}, r"got \['jaccard'\]"),
        ({"terms": {"dice": 0.0}}, "the weight of dice must be above 0, got 0.0"),
        ({"terms": {"dice": math.nan}}, "got nan"),
        ({"label_smoothing": 1.0}, r"label_smoothing must be in \[0, 1\), got 1.0"),
        ({"focal_gamma": -1.0}, "focal_gamma must be 0 or more"),
        ({"mode": "binary", "focal_alpha": 1.5}, r"focal_alpha must be in \(0, 1\), or None"),
        ({"focal_alpha": 0.25}, "leave it out in multiclass mode"),
        ({"dice_smooth": -1.0}, "dice_smooth must be 0 or more"),
        ({"ohem_threshold": 0.0}, r"ohem_threshold must be in \(0, 1\]"),
        ({"ohem_share": 1.5}, r"ohem_share must be in \(0, 1\]"),
        ({"aux_weight": -0.1}, "aux_weight must be 0 or more"),
        ({"class_weights": [1.0, -1.0]}, r"numbers of 0 or more, got \[1.0, -1.0\]"),
        ({"class_weights": []}, r"numbers of 0 or more, got \[\]"),
    ],
)
def test_wrong_options_get_a_sentence(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SegmentationLoss(**options)


LABELS = torch.zeros(2, 4, 4, dtype=torch.int64)


@pytest.mark.parametrize(
    ("mode", "shape", "target", "message"),
    [
        ("multiclass", (2, 1, 4, 4), LABELS, r"\(N, K, H, W\), K 2 to 255, got \(2, 1, 4, 4\)"),
        ("multiclass", (2, 256, 4, 4), LABELS, "K 2 to 255"),
        ("binary", (2, 2, 4, 4), LABELS, r"K 1, got \(2, 2, 4, 4\)"),
        ("multilabel", (2, 4, 4), LABELS, r"K 1 or more, got \(2, 4, 4\)"),
        ("multiclass", (2, 3, 2, 4), LABELS, r"shape \(2, 2, 4\).* got torch.int64 of \(2, 4, 4\)"),
        ("multiclass", (2, 3, 4, 4), LABELS.float(), "integers of shape .* got torch.float32"),
        ("multilabel", (2, 3, 4, 4), LABELS, r"shape \(2, 3, 4, 4\)"),
        ("multiclass", (2, 3, 4, 4), LABELS + 3, r"holds 3 at \[0, 0, 0\]: .* 0..2, or be 255"),
        ("binary", (2, 1, 4, 4), LABELS - 1, r"holds -1 at .* 0..1, or be 255"),
    ],
)
def test_wrong_logits_and_targets_get_a_sentence(
    mode: str, shape: tuple[int, ...], target: Tensor, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        SegmentationLoss(mode)(torch.zeros(shape), target)


def test_class_weights_must_fit_the_logits() -> None:
    with pytest.raises(ValueError, match=r"class_weights must be 3 numbers, .* got 2"):
        SegmentationLoss(class_weights=[1.0, 2.0])(torch.zeros(2, 3, 4, 4), LABELS)
