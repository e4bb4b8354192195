"""Blocks that train over one shared buffer: equal to plain ones, and keeping as little as said."""

import copy
import io
import warnings

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from forked_processes import start_beside
from hypothesis import given, settings
from hypothesis import strategies as st
from long_cases import by_turns, first_now
from tiny_nets import KINDS, tiny
from torch import nn
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint
from torchvision.ops import FrozenBatchNorm2d
from training_blocks import block_of, maps, step

from densenet_backbones.benchmark.measuring import measure_saved_bytes
from densenet_backbones.dense_block import MEMORY_MODES, run_block, run_plain
from densenet_backbones.densenet import DenseNet
from densenet_backbones.heads.segmentation.fcdensenet import FCDenseNet

MODES = ("shared", "shared_lean")
TAPS = ("raw", "norm", "compressed", "pooled")
FORMATS = {"NCHW": torch.contiguous_format, "NHWC": torch.channels_last}


def assert_equal_step(found, expected, tolerance=1e-12):
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


def assert_as_exact(found, expected, exact):
    """Half precision: both executions round, so each is held against double precision."""
    for key, value in exact.items():
        assert found[key].dtype == expected[key].dtype, key
        error, usual = ((d[key].double() - value).norm() for d in (found, expected))
        assert error <= 1.5 * usual + 0.01 * value.double().norm(), key


@pytest.fixture(autouse=True)
def _no_fallback(recwarn):
    yield
    said = [str(w.message) for w in recwarn if " is off for " in str(w.message)]
    assert not said


# ------------------------------------------------------------------------------ equality


@pytest.mark.parametrize("memory", MODES)
@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("bn_size", [2, None])
@pytest.mark.parametrize("norm", ["bn", "frozen", "sync"])
def test_a_step_equals_the_plain_one(memory, layout, bn_size, norm):
    block = block_of(bn_size=bn_size, norm=norm, proj_drop_rate=0.3, drop_path_rate=0.4)
    x = maps(3, 6, 5, 4).to(memory_format=FORMATS[layout])
    found, expected = step(block, x, memory), step(block, x, "none")
    assert_equal_step(found, expected)
    assert found[0].stride() == expected[0].stride()


@given(
    layers=st.integers(1, 4),
    growth=st.integers(1, 3),
    images=st.integers(1, 3),
    height=st.integers(1, 4),
    width=st.integers(2, 4),
    bn_size=st.sampled_from([None, 1, 3]),
    layout=st.sampled_from(list(FORMATS)),
    memory=st.sampled_from(MODES),
)
@settings(max_examples=25)
def test_any_shape_of_block_equals_the_plain_one(
    layers, growth, images, height, width, bn_size, layout, memory
):
    block = block_of(layers, growth, entry=2, bn_size=bn_size)
    x = maps(images, 2, height, width).to(memory_format=FORMATS[layout])
    # Of very few values a channel, the variance may be tiny, and its inverse magnifies rounding.
    assert_equal_step(step(block, x, memory), step(block, x, "none"), tolerance=1e-8)


@pytest.mark.parametrize("memory", MODES)
@pytest.mark.parametrize("bn_size", [2, None])
def test_gradcheck(memory, bn_size):
    block = block_of(2, 2, entry=2, bn_size=bn_size)
    block.memory = memory
    parameters = dict(block.named_parameters())

    def run(x, *values):
        named = dict(zip(parameters, values, strict=True))
        return torch.func.functional_call(block, named, (x,))

    values = [p.detach().clone().requires_grad_() for p in parameters.values()]
    assert torch.autograd.gradcheck(run, (maps(2, 2, 3, 3).requires_grad_(), *values))


@pytest.mark.parametrize(("name", "tap", "memory"), by_turns(KINDS, TAPS, MODES))
def test_nets_keep_every_tap(name, tap, memory):
    results = []
    for mode in ("none", memory):
        net = tiny(name, memory=mode, tap=tap, ceil_mode=True).double().train()
        found = net(maps(2, 3, 77, 66))
        sum(m.square().mean() for m in found).backward()
        gradients = {key: p.grad for key, p in net.named_parameters()}
        results.append((found, gradients, dict(net.named_buffers())))
    torch.testing.assert_close(*results, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("memory", MODES)
@pytest.mark.parametrize("options", [{"pool": "max"}, {"output_stride": 8}, {"tap": "norm"}])
def test_other_pools_and_taps_in_blocks(memory, options):
    results = []
    for mode in ("none", memory):
        layers = ("denseblock2.denselayer1",)
        net = tiny("densenet121_features", memory=mode, layer_taps=layers, **options)
        found = net.double().train()(maps(2, 3, 64, 96))
        sum(m.square().mean() for m in found).backward()
        results.append((found, [p.grad for p in net.parameters()]))
    torch.testing.assert_close(*results, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("memory", MODES)
@pytest.mark.parametrize("own", [False, True])
def test_fcdensenet_with_dropout_and_its_own_norms(memory, own):
    results = []
    for mode in ("none", memory):
        torch.manual_seed(0)
        net = FCDenseNet(
            3,
            growth_rate=4,
            block_config=(2, 2),
            num_init_features=8,
            batch_statistics_in_eval=own,
            memory=mode,
        )
        net.double().train()
        if own:
            net.encoder.denseblock1.denselayer1.eval()  # norms by the batch in evaluation too
        torch.manual_seed(3)
        out = net(maps(2, 3, 33, 34))
        out.square().mean().backward()
        gradients = {key: p.grad for key, p in net.named_parameters()}
        results.append((out, gradients, dict(net.named_buffers())))
    torch.testing.assert_close(*results, rtol=1e-10, atol=1e-12)


# ------------------------------------------------------------------------------ norms


@pytest.mark.parametrize("memory", MODES)
@pytest.mark.parametrize("kind", ["cumulative", "untracked", "not affine", "eps", "eval"])
def test_norms_with_other_settings(memory, kind):
    block = block_of()
    for name, norm in list(block.named_modules()):
        if not isinstance(norm, nn.BatchNorm2d):
            continue
        if kind == "cumulative":
            norm.momentum = None
        elif kind == "eps":
            norm.eps = 1e-3 * (1 + len(name) % 3 + norm.num_features)
        elif kind == "eval" and "denselayer2" in name:
            norm.eval()
        elif kind in ("untracked", "not affine"):
            affine, tracked = kind != "not affine", kind != "untracked"
            other = nn.BatchNorm2d(norm.num_features, affine=affine, track_running_stats=tracked)
            block.set_submodule(name, other.double())
    for training in (True, False):
        block.denselayer3.norm1.train(training)
        x = maps(2, 6, 4, 4)
        assert_equal_step(step(block, x, memory), step(block, x, "none"))


@pytest.mark.parametrize("memory", MODES)
def test_torchvisions_frozen_norm(memory):
    block = block_of(norm="frozen")
    for name, norm in list(block.named_modules()):
        if isinstance(norm, FrozenBatchNorm2d):
            other = FrozenBatchNorm2d(len(norm.weight)).double()
            other.load_state_dict(norm.state_dict())
            block.set_submodule(name, other)
    x = maps(2, 6, 4, 4)
    assert_equal_step(step(block, x, memory), step(block, x, "none"))


@pytest.mark.parametrize("memory", MODES)
def test_frozen_parts_get_no_gradient_and_the_rest_the_same(memory):
    block = block_of()
    block.denselayer1.requires_grad_(False).eval()
    block.denselayer2.norm1.weight.requires_grad_(False)
    block.denselayer2.conv2.requires_grad_(False)
    block.denselayer3.norm2.bias.requires_grad_(False)
    x = maps(2, 6, 4, 4)
    found = step(block, x, memory)
    assert_equal_step(found, step(block, x, "none"))
    assert sum(gradient is None for gradient in found[1].values()) == 9
    for block_frozen in (True, False):
        block.requires_grad_(not block_frozen).memory = memory
        block(x).sum()  # a frozen block and an image: there is nothing to keep
    net = tiny("densenet121_features", memory=memory).train()
    net.freeze(2)
    sum(m.sum() for m in net(torch.randn(2, 3, 64, 64))).backward()
    assert net.denseblock1.denselayer1.conv1.weight.grad is None
    assert net.denseblock2.denselayer1.conv1.weight.grad is not None


# ------------------------------------------------------------------------------ autograd


@pytest.mark.parametrize("memory", MODES)
def test_one_module_used_twice(memory):
    results = []
    for mode in ("none", memory):
        block = block_of()
        block.memory = mode
        out = block(maps(2, 6, 4, 4)) + 2 * block(maps(2, 6, 4, 4, seed=5))
        out.square().sum().backward()
        results.append(([p.grad for p in block.parameters()], list(block.buffers())))
    torch.testing.assert_close(*results, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("memory", MODES)
def test_gradients_are_taken_as_often_as_asked_and_once_in_depth(memory):
    block = block_of()
    block.memory = memory
    x = maps(2, 6, 4, 4).requires_grad_()
    out = block(x).square().sum()
    first = torch.autograd.grad(out, [x, *block.parameters()], retain_graph=True)
    second = torch.autograd.grad(out, [x, *block.parameters()], retain_graph=True)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert block.denselayer1.norm1.num_batches_tracked == 1
    # Refused before anything is computed: what comes from a constant gradient would look right.
    for loss in (out, block(x).mean()):
        with pytest.raises(RuntimeError, match=r"no second derivatives.*memory='none'"):
            torch.autograd.grad(loss, x, create_graph=True)


@pytest.mark.parametrize("memory", MEMORY_MODES)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_penalties_on_gradients_are_right_or_refused(memory, layout):
    """Of every function that is differentiated by hand, the stem's and the transitions' too."""
    found = []
    for mode in (memory, "none"):
        net = tiny("densenet121_features", memory=mode).double().to(memory_format=layout)
        x = torch.rand(2, 3, 64, 64, dtype=torch.double, generator=torch.Generator().manual_seed(0))
        x = x.to(memory_format=layout).requires_grad_()
        (out,) = (maps.mean() for maps in net(x)[-1:])
        if mode.startswith("shared"):
            with pytest.raises(RuntimeError, match="no second derivatives"):
                torch.autograd.grad(out, x, create_graph=True)
            return
        (gradient,) = torch.autograd.grad(out, x, create_graph=True)
        gradient.square().sum().backward()
        found.append([p.grad for p in net.parameters() if p.grad is not None])
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("memory", MODES)
def test_changes_of_what_is_kept_are_noticed(memory):
    block = block_of()
    block.memory = memory
    for changed in ("output", "weight"):
        out = block(maps(2, 6, 4, 4))
        loss = out.sum()  # which keeps nothing by itself
        with torch.no_grad():
            (out if changed == "output" else block.denselayer2.conv1.weight).mul_(2)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()


@pytest.mark.parametrize("memory", MODES)
def test_checkpointing_around_it(memory):
    block = block_of()
    x = maps(2, 6, 4, 4).requires_grad_()
    expected = torch.autograd.grad(block(x).square().sum(), [x, *block.parameters()])
    block.memory = memory
    for reentrant in (False, True):
        out = checkpoint(block, x, use_reentrant=reentrant)
        block.zero_grad()
        x.grad = None
        out.square().sum().backward()
        found = [x.grad, *(p.grad for p in block.parameters())]
        torch.testing.assert_close(found, list(expected), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("memory", MODES)
@pytest.mark.parametrize("norm", ["bn", "frozen"])
@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("layout", FORMATS)
def test_autocast(memory, norm, half, layout):
    block = block_of(norm=norm)
    for dtype in (torch.float32, half):
        x = maps(2, 6, 8, 8, dtype=dtype).to(memory_format=FORMATS[layout])
        exact = step(block, x.double(), "none")
        results = []
        for mode in (memory, "none"):
            with torch.autocast("cpu", half):
                results.append(step(copy.deepcopy(block).float(), x, mode))
        assert results[0][0].dtype == results[1][0].dtype == dtype
        for found, plain, values in zip(*results, exact, strict=True):
            if isinstance(values, torch.Tensor):
                assert_as_exact({"out": found}, {"out": plain}, {"out": values})
            else:
                assert_as_exact(found, plain, values)


@pytest.mark.parametrize("memory", MODES)
@pytest.mark.parametrize("layout", FORMATS)
def test_half_precision_throughout(memory, layout):
    block = block_of().to(torch.bfloat16)
    x = maps(2, 6, 8, 8, dtype=torch.bfloat16).to(memory_format=FORMATS[layout])
    exact = step(copy.deepcopy(block).double(), x.double(), "none")
    found, plain = (step(block, x, mode) for mode in (memory, "none"))
    assert_as_exact({"out": found[0]}, {"out": plain[0]}, {"out": exact[0]})
    assert_as_exact(found[1], plain[1], exact[1])
    assert_as_exact(found[2], plain[2], exact[2])


# ------------------------------------------------------------------------------ memory


@pytest.mark.parametrize("layout", FORMATS)
def test_what_densenet121_keeps(layout):
    """MiB of 2 images of 224 pixels; plain 249, torchvision's memory_efficient 120."""
    net = DenseNet(num_classes=2).to(memory_format=FORMATS[layout]).train()
    x = torch.randn(2, 3, 224, 224).to(memory_format=FORMATS[layout])
    for memory, most in (("shared", 52), ("shared_lean", 19)):
        net.set_memory(memory)
        kept, _ = measure_saved_bytes(net, lambda: net(x).sum())
        assert most - 2 <= kept / 2**20 <= most


@pytest.mark.parametrize("memory", MODES)
def test_nothing_is_kept_beside_what_autograd_knows(memory):
    block = block_of()
    block.memory = memory
    x = maps(2, 6, 4, 4).requires_grad_()
    context = block(x).grad_fn
    assert not any(isinstance(value, torch.Tensor) for value in vars(context).values())
    del context
    kept, out = measure_saved_bytes(block, lambda: block(x))
    assert kept < (3 if memory == "shared" else 2) * out.numel() * 8 + 4096


# ------------------------------------------------------------------------------ when it is off


def _hooked(layer):
    layer.conv1.register_forward_hook(lambda *args: None)


def _parametrized(layer):
    parametrizations.weight_norm(layer.conv2)


def _own_forward(layer):
    layer.conv1.forward = lambda x: F.conv2d(x, layer.conv1.weight)


def _group_norm(layer):
    layer.norm1 = nn.GroupNorm(1, layer.norm1.num_features).double()


def _heir(layer):
    class Twice(nn.BatchNorm2d):
        def forward(self, input):
            return 2 * super().forward(input)

    layer.norm2 = Twice(layer.norm2.num_features).double()


def _other_activation(layer):
    layer.relu2 = nn.SiLU()


@pytest.mark.parametrize(
    "change", [_hooked, _parametrized, _own_forward, _group_norm, _heir, _other_activation]
)
@pytest.mark.parametrize("memory", MODES)
def test_what_is_not_understood_runs_plain_and_says_so(memory, change, recwarn):
    block = block_of()
    change(block.denselayer2)
    x = maps(2, 6, 4, 4).requires_grad_()
    expected = torch.autograd.grad(run_plain(x, list(block.values())).square().sum(), x)
    with pytest.warns(UserWarning, match=f"memory='{memory}' is off for a dense block"):
        out = run_block(x, list(block.values()), memory)
    assert torch.equal(torch.autograd.grad(out.square().sum(), x)[0], expected[0])
    recwarn.clear()


@pytest.mark.parametrize("memory", MODES)
def test_blocks_of_nothing(memory):
    block = block_of()
    block.memory = memory
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        block(maps(1, 6, 1, 1))
    x = maps(2, 6, 4, 4)
    assert run_block(x, [], memory) is x


@pytest.mark.parametrize("memory", MODES)
@pytest.mark.parametrize(
    "stage", ["norm0", "relu0", "pool0", "denseblock1", "transition1", "transition2.conv", "relu5"]
)
def test_hooks_on_stages_see_what_passes(memory, stage):
    seen = []
    for mode in ("none", memory):
        net = tiny("densenet121_features", memory=mode).double().train()
        net.get_submodule(stage).register_forward_hook(
            lambda module, args, out: seen.append(out.detach().clone())
        )
        net(maps(2, 3, 64, 64))
    plain, lean = seen
    torch.testing.assert_close(lean, plain, rtol=1e-10, atol=1e-12)


# ------------------------------------------------------------------------------ around it


@pytest.mark.parametrize(
    ("memory", "backend"),
    first_now([(memory, backend) for backend in ("aot_eager", "eager") for memory in MODES]),
)
def test_compiled_nets_run_blocks_as_they_are(memory, backend):
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    results = []
    for mode in ("none", memory):
        net = tiny("densenet121_features", memory=mode).double().train()
        run = net if mode == "none" else torch.compile(net, backend=backend)
        found = run(maps(2, 3, 64, 64))
        sum(m.square().mean() for m in found).backward()
        gradients = [p.grad for p in net.parameters()]
        results.append((found, gradients, dict(net.named_buffers())))
    torch.testing.assert_close(*results, rtol=1e-10, atol=1e-12)
    # The graph is broken where blocks run, and nowhere else.
    breaks = torch._dynamo.utils.counters["graph_break"]
    assert breaks and all("function run_shared at" in reason for reason in breaks)


@pytest.mark.parametrize("memory", MODES)
def test_a_step_on_the_meta_device(memory):
    """Which has shapes alone, and no autocast to ask about."""
    with torch.device("meta"):
        net, x = tiny("densenet121_features", memory=memory).train(), torch.empty(2, 3, 64, 64)
    maps = net(x)
    torch.autograd.backward(sum(level.sum() for level in maps))
    assert [tuple(level.shape[1:]) for level in maps] == [
        (level.channels, 64 // level.stride, 64 // level.stride) for level in net.levels
    ]
    assert all(p.grad is not None and p.grad.is_meta for p in net.parameters())


@pytest.mark.parametrize("memory", MODES)
def test_nets_are_copied_and_saved_in_these_modes(memory):
    net = tiny("densenet121_features", memory=memory).train()
    file = io.BytesIO()
    torch.save(net, file)
    file.seek(0)
    again = torch.load(file, weights_only=False)
    assert again.memory == memory
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again(torch.randn(2, 3, 64, 64))[-1].sum().backward()


# memory mode, norm: everything that two processes train, in one start of them
RUNS = (("none", "bn"), ("shared", "bn"), ("shared", "sync"), ("shared_lean", "sync"))


def _train_halves(rank, folder):
    dist.init_process_group("gloo", f"file://{folder}/meeting", rank=rank, world_size=2)
    try:
        torch.save([_half_step(rank, *run) for run in RUNS], f"{folder}/{rank}.pt")
    finally:
        dist.destroy_process_group()


def _half_step(rank, memory, norm):
    net = tiny("densenet121_features", memory=memory, norm=norm).double().train()
    net.load_state_dict(tiny("densenet121_features").state_dict())
    # DistributedDataParallel refuses synchronised norms on a CPU: gradients are averaged here.
    run = nn.parallel.DistributedDataParallel(net) if norm == "bn" else net
    images = maps(4, 3, 64, 64)[2 * rank : 2 * rank + 2]
    sum(m.square().mean() for m in run(images)).backward()
    gradients = {key: p.grad for key, p in net.named_parameters()}
    for gradient in gradients.values() if run is net else ():
        dist.all_reduce(gradient)
        gradient /= 2
    return gradients, dict(net.named_buffers())


@pytest.fixture(scope="module")
def on_two_processes(tmp_path_factory):
    """Gradients and buffers of this process and another, by memory mode and norm."""
    folder = tmp_path_factory.mktemp("processes")
    other = start_beside(_train_halves, str(folder))
    _train_halves(1, str(folder))
    assert other.join()
    ranks = [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]
    return dict(zip(RUNS, zip(*ranks, strict=True), strict=True))


@pytest.mark.long
def test_two_processes_average_their_gradients(on_two_processes):
    """Each process norms by its own half of the batch."""
    averaged = (on_two_processes[memory, "bn"] for memory in ("shared", "none"))
    torch.testing.assert_close(*averaged, rtol=1e-10, atol=1e-12)


@pytest.mark.long
@pytest.mark.parametrize("memory", MODES)
def test_synchronised_norms_on_two_processes_are_those_of_the_whole_batch(memory, on_two_processes):
    net = tiny("densenet121_features").double().train()
    sum(m.square().mean() for m in net(maps(4, 3, 64, 64))).backward()
    expected = ({key: p.grad for key, p in net.named_parameters()}, dict(net.named_buffers()))
    for found in on_two_processes[memory, "sync"]:
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
