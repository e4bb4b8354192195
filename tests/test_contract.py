"""What every registered network does, whichever library asks.

Tests run over the registry: NAMES is all of it; KINDS one name for each net that is left distinct
when layers are few and narrow. Other names would build the same tiny nets over again.
"""

import copy
import dataclasses
import json
from typing import get_args

import pytest
import timm
import torch
from tiny_nets import KINDS, NAMES, tiny
from torch import nn

from densenet_backbones.dense_block import Memory, SharedMemory
from densenet_backbones.densenet_spec import DenseNetSpec
from densenet_backbones.layers import FrozenBatchNorm2d
from densenet_backbones.variants import VARIANTS

TAPS = ("raw", "norm", "compressed", "pooled")


def spec_of(name):
    return VARIANTS[name.removesuffix("_features")]


def image(size=64, batch=2, channels=3, **kwargs):
    height, width = size if isinstance(size, tuple) else (size, size)
    torch.manual_seed(1)
    return torch.randn(batch, channels, height, width, **kwargs)


def train_step(net, x):
    """Maps, gradients and buffers after one forward and backward pass."""
    net = copy.deepcopy(net).train()
    torch.manual_seed(2)
    maps = net(x)
    sum(m.square().mean() for m in maps).backward()
    gradients = {name: p.grad for name, p in net.named_parameters()}
    return maps, gradients, dict(net.named_buffers())


# ------------------------------------------------------------------------------ sizes, layouts


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("size", [32, 33, (47, 61), (32, 100)])
def test_any_size_from_32_pixels_up(name, size):
    net = tiny(name).eval()
    maps = net(image(size))
    height, width = size if isinstance(size, tuple) else (size, size)
    for level, m in zip(net.levels, maps, strict=True):
        assert m.shape[1] == level.channels
        for side, full in zip(m.shape[2:], (height, width), strict=True):
            assert full // level.stride <= side <= -(-full // level.stride) + 1


@pytest.mark.parametrize("name", KINDS)
def test_smaller_images_are_one_clear_error(name):
    net = tiny(name)
    smallest = spec_of(name).nominal_stride
    net.eval()(image(smallest))
    with pytest.raises(ValueError, match=f"{smallest} pixels or more .* got {smallest - 1}x40"):
        net(image((smallest - 1, 40)))
    with pytest.raises(ValueError, match=r"a \(N, 3, H, W\) tensor, got \(2, 4, 64, 64\)"):
        net(image(channels=4))
    with pytest.raises(ValueError, match=r"got \(3, 64, 64\)"):
        net(torch.rand(3, 64, 64))
    few = tiny(name, out_indices=(0,))
    few(image(few.levels[0].stride))


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("tap", TAPS)
def test_channels_last_is_kept_by_every_tap(name, tap):
    layer = "denseblock2.denselayer1"
    net = tiny(name, tap=tap, layer_taps=(layer,), output_stride=spec_of(name).blocks[1].stride)
    net = net.to(memory_format=torch.channels_last).train()
    for memory in get_args(Memory):
        net.set_memory(memory)
        for m in net(image().to(memory_format=torch.channels_last)):
            assert m.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("norm", ["bn", "frozen", "group"])
def test_dtypes_and_autocast(name, norm):
    net = tiny(name, norm=norm).eval()
    expected = net(image())
    for dtype, tolerance in ((torch.float64, 1e-4), (torch.bfloat16, 0.3)):
        maps = copy.deepcopy(net).to(dtype)(image().to(dtype))
        for m, e in zip(maps, expected, strict=True):
            assert m.dtype == dtype
            assert (m.to(e.dtype) - e).abs().max() <= tolerance * e.abs().max()
    with torch.autocast("cpu", torch.bfloat16):
        maps = net(image())
    if norm != "group":  # group norm computes in float32 under autocast
        assert all(m.dtype == torch.bfloat16 for m in maps)
    for m, e in zip(maps, expected, strict=True):
        assert (m.float() - e).abs().max() <= 0.3 * e.abs().max()


# ------------------------------------------------------------------------------ taps in blocks


@pytest.mark.parametrize("name", KINDS)
def test_layer_taps_are_what_the_block_holds_then(name):
    net = tiny(name, layer_taps=("denseblock2.denselayer1", "denseblock1.denselayer2")).eval()
    names = [level.name for level in net.levels]
    assert names[:6] == ["c1", "c2.2", "c2", "c3.1", "c3", "c4"]
    maps = dict(zip(names, net(image()), strict=True))
    assert [m.shape[1] for m in maps.values()] == net.feature_info.channels()
    width = maps["c3.1"].shape[1]
    assert torch.equal(maps["c3.1"], maps["c3"][:, :width])
    assert torch.equal(maps["c2.2"], maps["c2"])  # its last layer
    seen = {}
    layer = net.denseblock2.denselayer1
    layer.register_forward_hook(lambda module, args, out: seen.update(new=out))
    net(image())
    assert torch.equal(maps["c3.1"][:, -4:], seen["new"]), "the layer's own maps come last"


@pytest.mark.parametrize("name", KINDS)
def test_a_net_that_ends_inside_a_block_is_cut_there(name):
    arguments = {"layer_taps": ("denseblock2.denselayer1",)}
    net = tiny(name, out_indices=(1, 2), **arguments)
    assert [level.name for level in net.levels] == ["c2", "c3.1"]
    assert list(net.denseblock2) == ["denselayer1"]
    whole = tiny(name, **arguments)
    net.load_state_dict(whole.state_dict())
    for ours, theirs in zip(net.eval()(image()), whole.eval()(image())[1:3], strict=True):
        assert torch.equal(ours, theirs)
    assert all(g is not None for g in train_step(net, image())[1].values())


@pytest.mark.parametrize(
    "name", ["denseblock9.denselayer1", "denseblock1.denselayer3", "denseblock0.denselayer1", "c2"]
)
def test_layer_taps_that_do_not_exist(name):
    with pytest.raises(ValueError, match=f"there is no '{name}'; write 'denseblock<i>"):
        tiny(NAMES[0], layer_taps=(name,))
    with pytest.raises(ValueError, match="must not repeat"):
        tiny(NAMES[0], layer_taps=("denseblock1.denselayer1",) * 2)


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("tap", TAPS)
def test_forward_intermediates_are_the_taps(name, tap):
    net = tiny(name, tap=tap, layer_taps=("denseblock2.denselayer1",)).eval()
    maps = net(image())
    last, taps = net.forward_intermediates(image())
    assert torch.equal(last, maps[-1])
    assert all(torch.equal(a, b) for a, b in zip(taps, maps, strict=True))
    some = net.forward_intermediates(image(), [0, 2], stop_early=True, intermediates_only=True)
    assert all(torch.equal(a, maps[i]) for a, i in zip(some, (0, 2), strict=True))
    short = tiny(name, tap=tap, out_indices=(0, 1))
    with pytest.raises(ValueError, match="this net ends before"):
        short.forward_intermediates(image(), [2])


# ------------------------------------------------------------------------------ output stride


def strides_up_to_nominal(name):
    entry, nominal = spec_of(name).blocks[0].stride, spec_of(name).nominal_stride
    return [stride for stride in (1, 2, 4, 8, 16, 32) if entry <= stride <= nominal]


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("pool", ["avg", "max", "blur"])
def test_the_sub_grid_of_a_dilated_net_is_the_undilated_net(name, pool):
    x = image((64, 96)).double()
    # The other taps are read in front of the pool: its sort shows in raw taps behind it.
    for tap in TAPS if pool == "avg" else ("raw", "pooled"):
        full = tiny(name, pool=pool, tap=tap).double().eval()
        expected = full(x)
        for output_stride in strides_up_to_nominal(name):
            dilated = tiny(name, pool=pool, tap=tap, output_stride=output_stride).double().eval()
            dilated.load_state_dict(full.state_dict())
            for ours, ref, a, b in zip(
                dilated(x), expected, dilated.levels, full.levels, strict=True
            ):
                assert a.stride == min(b.stride, output_stride) or a.name == "c1"
                assert ours.shape[2:] == (64 // a.stride, 96 // a.stride)
                step = b.stride // a.stride
                assert (ours[..., ::step, ::step] - ref).abs().max() <= 1e-12


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("pool", ["avg", "max"])
def test_at_other_sizes_the_sub_grid_is_that_of_pools_that_round_up(name, pool):
    full = tiny(name, pool=pool, ceil_mode=True).double().eval()
    images = [image(size).double() for size in ((75, 64), (101, 83), (34, 47))]
    expected = [full(x) for x in images]
    for output_stride in strides_up_to_nominal(name):
        # Pools in front of the output stride round as they are told to.
        dilated = tiny(name, pool=pool, output_stride=output_stride, ceil_mode=True)
        dilated = dilated.double().eval()
        dilated.load_state_dict(full.state_dict())
        for x, maps in zip(images, expected, strict=True):
            for ours, ref, a, b in zip(dilated(x), maps, dilated.levels, full.levels, strict=True):
                step = b.stride // a.stride
                assert (ours[..., ::step, ::step] - ref).abs().max() <= 1e-12


@pytest.mark.parametrize("name", KINDS)
def test_dilated_nets_in_float32(name):
    smallest = strides_up_to_nominal(name)[0]
    dilated, full = tiny(name, output_stride=smallest).eval(), tiny(name).eval()
    full.load_state_dict(dilated.state_dict())
    step = full.levels[-1].stride // dilated.levels[-1].stride
    ours, ref = dilated(image())[-1][..., ::step, ::step], full(image())[-1]
    assert (ours - ref).abs().max() <= 1e-4 * ref.abs().max()


@pytest.mark.parametrize("name", KINDS)
def test_output_strides_that_do_not_exist(name):
    for wrong in (0, 3, 64, True):
        with pytest.raises(ValueError, match=r"output_stride must be None or one of \["):
            tiny(name, output_stride=wrong)


# ------------------------------------------------------------------------------ memory


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("norm", ["bn", "frozen", "group"])
def test_memory_modes_change_nothing(name, norm):
    drops = {"proj_drop_rate": 0.2, "drop_path_rate": 0.3}
    net = tiny(name, norm=norm, **drops).double()
    maps, gradients, buffers = train_step(net, image().double())
    for memory in get_args(Memory)[1:]:
        lean = tiny(name, norm=norm, memory=memory, **drops).double()
        assert lean.memory == memory
        lean_maps, lean_gradients, lean_buffers = train_step(lean, image().double())
        same = close_to if memory in get_args(SharedMemory) else torch.equal
        assert all(same(a, b) for a, b in zip(lean_maps, maps, strict=True))
        for key, expected in gradients.items():
            assert (lean_gradients[key] - expected).abs().max() <= 1e-12 * expected.abs().max()
        assert buffers.keys() == lean_buffers.keys()
        for key, expected in buffers.items():
            assert same(lean_buffers[key], expected), key


def close_to(found, expected):
    if not expected.is_floating_point():
        return torch.equal(found, expected)
    return bool((found - expected).abs().max() <= 1e-12 * expected.abs().max())


@pytest.mark.parametrize("name", KINDS)
def test_set_grad_checkpointing_is_timms_switch(name):
    for net in (tiny(name), tiny(name, features_only=False)):
        net.set_grad_checkpointing()
        assert net.memory == "layer"
        net.set_grad_checkpointing(False)
        assert net.memory == "none"
        with pytest.raises(ValueError, match=r"memory must be one of .* got 'all'"):
            net.set_memory("all")


# ------------------------------------------------------------------------------ norms


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("norm", ["frozen", "sync"])
def test_frozen_and_sync_norms_evaluate_as_batch_norm(name, norm):
    net, other = tiny(name).eval(), tiny(name, norm=norm).eval()
    kind = FrozenBatchNorm2d if norm == "frozen" else nn.SyncBatchNorm
    assert any(isinstance(module, kind) for module in other.modules())
    other.load_state_dict(net.state_dict())
    for a, b in zip(net(image()), other(image()), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", KINDS)
def test_frozen_norms_learn_nothing(name):
    net = tiny(name, norm="frozen")
    assert not any("norm" in key for key, _ in net.named_parameters())
    _, gradients, buffers = train_step(net, image())
    assert all(g is not None for g in gradients.values())
    assert all(torch.equal(b, dict(net.named_buffers())[key]) for key, b in buffers.items())


@pytest.mark.parametrize("name", NAMES)
def test_groups_lie_within_the_maps_of_one_layer(name):
    for spec in (spec_of(name), tiny(name).spec):
        spec = dataclasses.replace(spec, norm="group")
        size = spec.group_size
        assert size > 1 and spec.num_init_features % size == 0
        for plan in spec.blocks:
            assert plan.in_channels % size == 0 and plan.growth_rate % size == 0
    norms = [m for m in tiny(name, norm="group").modules() if isinstance(m, nn.GroupNorm)]
    assert norms and all(m.num_channels // m.num_groups == size for m in norms)


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("act_layer", ["silu", "leaky_relu", "gelu", "hard_swish"])
def test_other_activations(name, act_layer):
    net = tiny(name, act_layer=act_layer)
    relu = tiny(name)
    assert net.state_dict().keys() == relu.state_dict().keys()
    assert not any(isinstance(m, nn.ReLU) for m in net.modules())
    assert all(g is not None for g in train_step(net, image())[1].values())


@pytest.mark.parametrize("name", KINDS)
def test_stochastic_depth_drops_whole_samples_of_a_layer(name):
    net = tiny(name, drop_path_rate=0.5).train()
    rates = [rate for plan in net.spec.blocks for rate in plan.drop_path]
    assert rates[0] == 0 and rates[-1] == 0.5 and rates == sorted(rates)
    last = net.spec.blocks[-1]
    block = getattr(net, f"denseblock{len(net.spec.blocks)}")
    x = torch.randn(64, last.in_channels, 4, 4)
    new = block(x)[:, -last.growth_rate :]
    gone = (new == 0).flatten(1).all(1)
    assert 10 < gone.sum() < 54
    assert not (block.eval()(x)[:, -last.growth_rate :] == 0).flatten(1).all(1).any()


# ------------------------------------------------------------------------------ freezing


@pytest.mark.parametrize("name", KINDS)
def test_frozen_stages_stay_as_they_are(name):
    count = len(spec_of(name).block_config)
    for net in (tiny(name), tiny(name, features_only=False, num_classes=3)):
        for stages in (*range(count + 2), 1):
            net.freeze(stages)
            net.train()
            for key, parameter in net.named_parameters():
                assert parameter.requires_grad == (stage_of(key, count) >= stages), key
            for key, module in net.named_modules():
                if key and not list(module.children()):
                    assert module.training == (stage_of(key, count) >= stages), key
    net = tiny(name)
    net.freeze(2)
    before = copy.deepcopy(dict(net.named_buffers()))
    _, gradients, buffers = train_step(net, image())
    for key, buffer in buffers.items():
        constant = stage_of(key, count) < 2 or key.endswith(("filt", ".mask", ".stage"))
        assert torch.equal(buffer, before[key]) == constant, key
    assert all((g is None) == (stage_of(key, count) < 2) for key, g in gradients.items())


def stage_of(key, blocks):
    head = key.split(".")[0]
    number = int("".join(c for c in head if c.isdigit()) or 0)
    if head in ("global_pool", "head_drop", "classifier"):
        return 99
    if head in ("norm5", "relu5"):
        return blocks
    inside = head.startswith(("denseblock", "transition")) or (
        head.startswith("pool") and number > 0
    )
    return number if inside else 0


def test_stages_that_do_not_exist():
    for wrong in (-1, 6):
        with pytest.raises(ValueError, match=f"stages must be 0 to 5 .* got {wrong}"):
            tiny("densenet121_features").freeze(wrong)
    tiny("densenet121_features", out_indices=(0, 1)).freeze(2)


# ------------------------------------------------------------------------------ inputs


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("in_chans", [1, 2, 4, 5])
def test_weights_adapt_to_other_channels(name, in_chans, tmp_path):
    source = tiny(name)
    torch.save(source.state_dict(), tmp_path / "weights.pth")
    cfg = {"file": str(tmp_path / "weights.pth")}
    net = tiny(name, in_chans=in_chans, pretrained=True, pretrained_cfg_overlay=cfg)
    assert net.in_chans == in_chans
    assert net(image(channels=in_chans))[0].shape[1] == net.levels[0].channels
    adapted = timm.models.adapt_input_conv(in_chans, source.conv0.weight.detach())
    assert torch.equal(net.conv0.weight, adapted)


@pytest.mark.parametrize("name", KINDS)
def test_saved_for_the_hub_and_loaded_back(name, tmp_path):
    arguments = {"tap": "norm", "layer_taps": ["denseblock2.denselayer1"], "norm": "group"}
    arguments |= {"out_indices": (1, 2), "memory": "layer"}
    for i, extra in enumerate((arguments, {"features_only": False, "num_classes": 5})):
        net = tiny(name, **extra).eval()
        folder = tmp_path / str(i)
        timm.models._hub.save_for_hf(net, folder, safe_serialization=True)
        again = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
        expected, found = net(image()), again(image())
        assert again.spec == net.spec and again.memory == net.memory
        if extra is arguments:
            assert again.levels == net.levels
            assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))
        else:
            assert torch.equal(expected, found)


@pytest.mark.parametrize("name", KINDS)
def test_loaded_from_the_hub(name, tmp_path, monkeypatch):
    net = tiny(name, out_indices=(1, -1)).eval()
    timm.models._hub.save_for_hf(net, tmp_path, safe_serialization=True)
    asked = []

    def download(repo_id, filename, **kwargs):
        asked.append((repo_id, filename))
        return str(tmp_path / filename)

    monkeypatch.setattr(timm.models._hub, "hf_hub_download", download)
    again = timm.create_model("hf-hub:someone/their-densenet", pretrained=True).eval()
    assert {repository for repository, _ in asked} == {"someone/their-densenet"}
    assert all(torch.equal(a, b) for a, b in zip(net(image()), again(image()), strict=True))


@pytest.mark.parametrize("name", KINDS)
def test_optimisers_with_layer_decay_know_every_parameter(name):
    from timm.optim import param_groups_layer_decay

    for net in (tiny(name), tiny(name, features_only=False, num_classes=3)):
        groups = param_groups_layer_decay(net, layer_decay=0.5)
        assert sum(len(g["params"]) for g in groups) == len(list(net.parameters()))
        assert len({g["lr_scale"] for g in groups}) > len(net.spec.block_config)


def test_specs_survive_json():
    for spec in VARIANTS.values():
        assert DenseNetSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec
