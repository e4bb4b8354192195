"""FC-DenseNet: published sizes, the paper written out, memory modes, norms."""

import copy
import math
from typing import get_args

import pytest
import torch
import torch.nn.functional as F
from timm.optim import param_groups_layer_decay
from tiny_nets import parameters_of, randomise_norms
from torch import Tensor, nn

from densenet_backbones.dense_block import Memory
from densenet_backbones.heads import (
    FCDenseNet,
    Segmenter,
    fcdensenet56,
    fcdensenet67,
    fcdensenet103,
)
from densenet_backbones.heads.segmentation.fcdensenet import BatchStatisticsNorm2d, TransitionUp

TINY = {"growth_rate": 4, "block_config": (1, 2, 3), "num_init_features": 8}
BUILDERS = {56: fcdensenet56, 67: fcdensenet67, 103: fcdensenet103}


def tiny(**options: object) -> FCDenseNet:
    torch.manual_seed(0)
    return randomise_norms(FCDenseNet(3, **{**TINY, **options}))


def on_meta(depth: int) -> FCDenseNet:
    with torch.device("meta"):
        return BUILDERS[depth](num_classes=11).net


def norms(net: nn.Module) -> list[nn.BatchNorm2d]:
    return [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]


# --- published sizes ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("depth", "learnable", "statistics"),
    [(56, 1_376_795, 21_168), (67, 3_463_243, 39_680), (103, 9_322_091, 103_072)],
)
def test_parameters_and_convolutions(depth: int, learnable: int, statistics: int) -> None:
    net = on_meta(depth)
    assert parameters_of(lambda: BUILDERS[depth](num_classes=11)) == learnable
    assert sum(2 * norm.num_features for norm in norms(net)) == statistics
    convs = [m for m in net.modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)]
    assert len(convs) == depth
    assert all(conv.bias is not None for conv in convs)


@pytest.mark.parametrize(
    ("depth", "down", "up"),
    [
        (56, [96, 144, 192, 240, 288, 336], [384, 336, 288, 240, 192]),
        (67, [128, 208, 288, 368, 448, 528], [608, 528, 448, 368, 288]),
        (103, [112, 192, 304, 464, 656, 896], [1088, 816, 576, 384, 256]),
    ],
)
def test_channels_of_every_block(depth: int, down: list[int], up: list[int]) -> None:
    net = on_meta(depth)
    seen: list[int] = []
    hook = lambda _, args, out: seen.append(out.shape[1])  # noqa: E731
    for i in range(1, 7):
        getattr(net.encoder, f"denseblock{i}").register_forward_hook(hook)
    for block in net.blocks_up:
        block.register_forward_hook(hook)
    with torch.no_grad():
        logits = net.eval()(torch.empty(1, 3, 64, 96, device="meta"))
    assert seen == down + up
    assert logits.shape == (1, 11, 64, 96)
    assert [level.stride for level in net.encoder.levels] == [1, 2, 4, 8, 16, 32]


# --- the paper, written out --------------------------------------------------------------------


def batch_norm(x: Tensor, state: dict[str, Tensor], name: str, own: bool) -> Tensor:
    """By the batch's statistics, or by the running ones."""
    mean, var = state[f"{name}.running_mean"], state[f"{name}.running_var"]
    if own:
        mean, var = x.mean(dim=(0, 2, 3)), x.var(dim=(0, 2, 3), correction=0)
    weight, bias = (state[f"{name}.{part}"][:, None, None] for part in ("weight", "bias"))
    return (x - mean[:, None, None]) / (var[:, None, None] + 1e-4).sqrt() * weight + bias


def written_out(state: dict[str, Tensor], x: Tensor, own: bool) -> Tensor:
    """FC-DenseNet without dropout, from a state dictionary of `TINY`'s names."""

    def bn_relu_conv(x: Tensor, norm: str, conv: str) -> Tensor:
        weight = state[f"{conv}.weight"]
        x = batch_norm(x, state, norm, own).relu()
        return F.conv2d(x, weight, state[f"{conv}.bias"], padding=weight.shape[-1] // 2)

    def new_maps(stack: Tensor, block: str) -> Tensor:
        made = []
        while f"{block}.denselayer{len(made) + 1}.conv1.weight" in state:
            layer = f"{block}.denselayer{len(made) + 1}"
            made.append(bn_relu_conv(stack, f"{layer}.norm1", f"{layer}.conv1"))
            stack = torch.cat((stack, made[-1]), dim=1)
        return torch.cat(made, dim=1)

    x = F.conv2d(x, state["encoder.conv0.weight"], state["encoder.conv0.bias"], padding=1)
    skips = []
    for i in (1, 2):
        skips.append(torch.cat((x, new_maps(x, f"encoder.denseblock{i}")), dim=1))
        name = f"encoder.transition{i}"
        x = F.max_pool2d(bn_relu_conv(skips[-1], f"{name}.norm", f"{name}.conv"), 2)
    new = new_maps(x, "encoder.denseblock3")
    for i in (0, 1):
        skip, name = skips.pop(), f"transitions_up.{i}.conv"
        up = F.conv_transpose2d(new, state[f"{name}.weight"], state[f"{name}.bias"], stride=2)
        x = torch.cat((up[..., : skip.shape[-2], : skip.shape[-1]], skip), dim=1)
        new = new_maps(x, f"blocks_up.{i}")
    last = torch.cat((x, new), dim=1)
    return F.conv2d(last, state["classifier.weight"], state["classifier.bias"])


@pytest.mark.parametrize("size", [(8, 12), (11, 13), (4, 7)])
@pytest.mark.parametrize("own", [False, True])
def test_forward_equals_the_paper_written_out(size: tuple[int, int], own: bool) -> None:
    net = tiny(batch_statistics_in_eval=own).double().eval()
    for name, p in net.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(p)  # they start at 0, where one left out would not show
    x = torch.randn(2, 3, *size, dtype=torch.float64)
    torch.testing.assert_close(net(x), written_out(net.state_dict(), x, own))
    net = tiny(drop_rate=0.0).double().train()
    before = copy.deepcopy(net.state_dict())
    torch.testing.assert_close(net(x), written_out(before, x, own=True))


def test_only_the_new_maps_are_brought_up_and_come_before_the_skip() -> None:
    up = TransitionUp(2)
    x, skip = torch.randn(1, 5, 3, 4), torch.randn(1, 1, 7, 8)
    joined = up(x, skip)
    assert torch.equal(joined[:, 2:], skip)
    x[:, :3] += 1
    assert torch.equal(up(x, skip), joined)
    expected = F.conv_transpose2d(x[:, 3:], up.conv.weight, up.conv.bias, stride=2)
    assert torch.equal(joined[:, :2], expected[..., :8])


@pytest.mark.parametrize("height", [8, 9])
@pytest.mark.parametrize("width", [6, 7])
def test_the_center_is_cut(height: int, width: int) -> None:
    up = TransitionUp(1)
    x = torch.rand(1, 1, 4, 3)
    whole = up.conv(x)
    top, left = (whole.shape[-2] - height) // 2, (whole.shape[-1] - width) // 2
    cut = up(x, torch.zeros(1, 0, height, width))
    assert torch.equal(cut, whole[..., top : top + height, left : left + width])


# --- initial values, dropout -------------------------------------------------------------------


def test_initial_values_and_norms_are_the_papers() -> None:
    torch.manual_seed(0)
    net = FCDenseNet(3, growth_rate=16, block_config=(3, 3), num_init_features=48)
    assert {(n.eps, n.momentum) for n in norms(net)} == {(1e-4, 0.1)}
    convs = [m for m in net.modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)]
    for conv in convs:
        assert not conv.bias.any()
        bound = math.sqrt(6 / conv.weight[0].numel())
        assert 0.9 * bound < conv.weight.abs().max() <= bound
        assert conv.weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.1)


def test_dropout_of_single_values_in_layers_and_transitions_in_training_only() -> None:
    net = tiny(drop_rate=0.5)
    x = torch.randn(2, 3, 16, 16)
    block = net.encoder.denseblock1
    new = block(net.encoder.conv0(x))[:, -4:]
    for maps in (new, net.encoder.pool1.drop(torch.ones(2, 12, 16, 16))):
        share = (maps == 0).float().mean(dim=(2, 3))
        assert (share > 0.3).all() and (share < 0.7).all()
    new = net.blocks_up[1](torch.randn(2, 20, 16, 16))[:, -4:]
    assert 0.3 < (new == 0).float().mean() < 0.7
    net.eval()
    assert torch.equal(net(x), net(x))
    assert list(dict(net.encoder.pool1.named_children())) == ["drop", "pool"]
    rates = {m.p for m in on_meta(103).modules() if isinstance(m, nn.Dropout)}
    assert rates == {0.2}
    assert on_meta(103).blocks_up[0].denselayer1.drop_rate == 0.2


# --- memory modes ------------------------------------------------------------------------------


@pytest.mark.parametrize("memory", get_args(Memory)[1:])
def test_memory_modes_equal_plain_with_dropout(memory: str) -> None:
    x = torch.randn(2, 3, 13, 10, dtype=torch.float64)
    results = []
    for mode in ("none", memory):
        net = tiny(memory=mode).double().train()
        torch.manual_seed(1)
        logits = net(x)
        logits.square().mean().backward()
        results.append(
            [logits, *(p.grad for p in net.parameters()), *(b for _, b in net.named_buffers())]
        )
        assert net.blocks_up[0].memory == net.encoder.memory == mode
    for plain, other in zip(*results, strict=True):
        torch.testing.assert_close(other, plain, rtol=1e-10, atol=1e-12)


def test_memory_modes_keep_less_for_the_backward_pass() -> None:
    saved = []

    def kept(memory: str) -> int:
        net = tiny(memory=memory, drop_rate=0.0).train()
        saved.clear()
        with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
            net(torch.randn(2, 3, 16, 16))
        return sum(t.numel() for t in saved)

    assert kept("block") < 0.7 * kept("none")


def test_memory_mode_must_exist() -> None:
    with pytest.raises(ValueError, match=r"memory must be one of .* got 'all'"):
        tiny(memory="all")


# --- batch statistics in evaluation ------------------------------------------------------------


def test_batch_statistics_in_evaluation_leave_the_buffers_alone() -> None:
    net = tiny(batch_statistics_in_eval=True)
    assert norms(net) and all(isinstance(n, BatchStatisticsNorm2d) for n in norms(net))
    x = torch.randn(2, 3, 16, 16)
    net.train()(x)
    before = copy.deepcopy(net.state_dict())
    logits = net.eval()(x)
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    assert {int(n.num_batches_tracked) for n in norms(net)} == {1}
    assert not torch.allclose(net(torch.cat((x[:1], 9 * x[1:])))[0], logits[0], atol=1e-3)


def test_weights_fit_with_and_without_batch_statistics() -> None:
    own, running = tiny(batch_statistics_in_eval=True), tiny()
    running.load_state_dict(own.state_dict())
    x = torch.randn(2, 3, 16, 16)
    assert not torch.allclose(own.eval()(x), running.eval()(x), atol=1e-3)
    for net in (own, running):
        torch.manual_seed(0)
        net.train()(x)
    for name, value in running.state_dict().items():
        torch.testing.assert_close(own.state_dict()[name], value)


def test_layers_of_the_way_down_are_ordered_for_layer_decay() -> None:
    model = fcdensenet103(num_classes=3, **TINY)
    groups = param_groups_layer_decay(model, layer_decay=0.5)
    scale = {id(p): group["lr_scale"] for group in groups for p in group["params"]}
    of = {name: scale[id(p)] for name, p in model.named_parameters()}
    assert of["net.encoder.conv0.weight"] == min(of.values()) < 0.2
    down = [of[f"net.encoder.denseblock{i}.denselayer1.conv1.weight"] for i in (1, 2, 3)]
    assert down == sorted(set(down))
    assert of["net.classifier.weight"] == of["net.transitions_up.0.conv.weight"] == 1.0


def test_a_converter_of_norms_gets_a_sentence() -> None:
    net = nn.SyncBatchNorm.convert_sync_batchnorm(tiny(batch_statistics_in_eval=True))
    with pytest.raises(ValueError, match=r"its own norms, not SyncBatchNorm, .*sync_batchnorm"):
        net.eval()(torch.randn(2, 3, 16, 16))
    nn.SyncBatchNorm.convert_sync_batchnorm(tiny()).eval()(torch.randn(2, 3, 16, 16))


@pytest.mark.parametrize("training", [True, False])
def test_one_image_of_a_single_cell_gets_a_sentence(training: bool) -> None:
    model = fcdensenet103(num_classes=3, batch_statistics_in_eval=True, **TINY).train(training)
    with pytest.raises(ValueError, match=r"images of 8 pixels or more, not 7x4"):
        model(torch.rand(1, 3, 7, 4))
    assert model(torch.rand(1, 3, 8, 4)).shape == (1, 3, 8, 4)
    assert model(torch.rand(2, 3, 7, 4)).shape == (2, 3, 7, 4)


# --- as a whole --------------------------------------------------------------------------------


def test_the_builders_pad_small_images_only() -> None:
    model = fcdensenet103(num_classes=3, **TINY, image_mean=[0.5] * 3).eval()
    assert isinstance(model, Segmenter)
    assert (model.stride, model.smallest) == (1, 4)
    assert model.normalization.image_mean == [0.5] * 3
    images = torch.rand(1, 3, 9, 6)
    assert torch.equal(model(images), model.net(model.normalization(images)))
    assert model(images[..., :2, :3]).shape == (1, 3, 2, 3)
    with pytest.raises(ValueError, match="4 pixels or more on each side"):
        model.net(torch.rand(1, 3, 3, 9))


def test_options_reach_the_network() -> None:
    model = fcdensenet56(num_classes=2, drop_rate=0.0, memory="layer", **TINY)
    assert model.net.encoder.memory == "layer"
    assert model.net.encoder.spec.proj_drop_rate == 0.0
    assert model.net.num_classes == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"growth_rate": 0}, "growth_rate must be an integer >= 1"),
        ({"block_config": ()}, "block_config must be one or more"),
        ({"drop_rate": 1.0}, r"proj_drop_rate must be in \[0, 1\)"),
    ],
)
def test_wrong_options_get_a_sentence(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny(**options)


def test_a_few_steps_find_squares() -> None:
    model = fcdensenet103(num_classes=2, **TINY)
    images, target = torch.zeros(2, 3, 21, 26), torch.zeros(2, 21, 26, dtype=torch.int64)
    images[0, :, 5:12, 5:12] = images[1, :, 10:20, 12:24] = 1.0
    target[0, 5:12, 5:12] = target[1, 10:20, 12:24] = 1
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(40):
        optimizer.zero_grad()
        F.cross_entropy(model(images), target).backward()
        optimizer.step()
    assert (model.eval()(images).argmax(dim=1) == target).float().mean() > 0.97


def test_parameter_names_are_stable() -> None:
    layers = [
        f"{block}.denselayer{i}"
        for block, count in (
            ("encoder.denseblock1", 1),
            ("encoder.denseblock2", 2),
            ("encoder.denseblock3", 3),
            ("blocks_up.0", 2),
            ("blocks_up.1", 1),
        )
        for i in range(1, count + 1)
    ]
    modules = [
        "encoder.conv0",
        *(f"{layer}.{part}" for layer in layers for part in ("norm1", "conv1")),
        *(f"encoder.transition{i}.{part}" for i in (1, 2) for part in ("norm", "conv")),
        "transitions_up.0.conv",
        "transitions_up.1.conv",
        "classifier",
    ]
    expected = {f"{module}.{part}" for module in modules for part in ("weight", "bias")}
    for own in (False, True):
        net = tiny(batch_statistics_in_eval=own)
        assert set(dict(net.named_parameters())) == expected
        buffers = {name.rpartition(".")[2] for name, _ in net.named_buffers()}
        assert buffers == {"running_mean", "running_var", "num_batches_tracked"}
