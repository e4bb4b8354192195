"""torch.compile, torch.export, ONNX and TorchScript on every kind of network.

Kinds are what is left of the registry when layers are few and narrow, so that slow checks run once
for each kind of stem, layer, pool and end, and for whatever is registered later. One or two of
them run always, the others with the long tests.
"""

import copy
import importlib.util
import io
import warnings

import pytest
import torch
from long_cases import each_once, first_now
from tiny_nets import KINDS, tiny
from torch import Tensor, nn
from torch.export import Dim

from densenet_backbones.timm_models import SUFFIX
from densenet_backbones.variants import VARIANTS

# What no registered kind has: dilated pools of both sorts, other norms, another activation, taps
# behind the transition's activation and inside a block.
OPTIONS = (
    ("densenet121_features", {"output_stride": 8, "norm": "group", "growth_rate": 8}),
    ("densenet121_features", {"output_stride": 8, "pool": "blur", "act_layer": "hard_swish"}),
    ("densenet121_features", {"tap": "norm", "layer_taps": ["denseblock2.denselayer1"]}),
    ("dsod_features", {"output_stride": 4, "norm": "frozen"}),
)


def few_layers(name: str, layers: tuple[int, ...] = (1, 2, 1), **arguments) -> nn.Module:
    """Three short blocks, with the kind's last transitions: compilers take their time by layers."""
    pooled = VARIANTS[name.removesuffix(SUFFIX)].transition_pool
    if isinstance(pooled, tuple):
        arguments["transition_pool"] = pooled[1 - len(layers) :]
    return tiny(name, block_config=layers, **arguments)


def kinds_of_layers() -> list[str]:
    """A name for each kind of dense layer, which is all that the memory modes look at."""
    return list({tiny(name).spec.bn_size: name for name in reversed(KINDS)}.values())


def image(height: int = 64, width: int = 96, batch: int = 2, **kwargs) -> Tensor:
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(1)).to(
        **kwargs
    )


def maps_of(output) -> list[Tensor]:
    return [output] if isinstance(output, Tensor) else list(output)


def assert_same(found, expected, tolerance: float = 0.0) -> None:
    """Maps of equal shapes that differ by no more than ``tolerance`` of their scale."""
    found, expected = maps_of(found), maps_of(expected)
    assert [a.shape for a in found] == [b.shape for b in expected]
    for a, b in zip(found, expected, strict=True):
        assert (a - b).abs().max() <= tolerance * b.abs().max()


def train_step(net: nn.Module, run, x: Tensor) -> tuple[list[Tensor], dict, dict]:
    """Maps, gradients and buffers of ``net`` after a forward and backward pass of ``run``."""
    maps = maps_of(run(x))
    sum(m.square().mean() for m in maps).backward()
    return maps, {k: p.grad for k, p in net.named_parameters()}, dict(net.named_buffers())


def assert_same_step(found, expected, updates: int = 1) -> None:
    """Outputs, gradients and buffers equal in float64, and statistics taken so many times."""
    assert_same(found[0], expected[0], 1e-12)
    torch.testing.assert_close(found[1], expected[1], rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(found[2], expected[2], rtol=1e-12, atol=1e-14)
    counts = [buffer for key, buffer in found[2].items() if key.endswith("num_batches_tracked")]
    assert counts and all(count == updates for count in counts)


# ------------------------------------------------------------------------------ torch.compile


@pytest.fixture
def _fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize("name", first_now(KINDS, 2))
@pytest.mark.usefixtures("_fresh_compiler")
def test_compiles_as_one_graph_in_eval(name):
    net = few_layers(name).eval()
    with torch.no_grad():
        assert_same(torch.compile(net, backend="eager", fullgraph=True)(image()), net(image()))


@pytest.mark.parametrize(
    ("name", "memory"),
    first_now(
        [(n, memory) for n in kinds_of_layers() for memory in ("bottleneck", "layer", "block")], 3
    )
    + first_now([(name, "none") for name in KINDS]),
)
@pytest.mark.usefixtures("_fresh_compiler")
def test_compiles_as_one_graph_in_training_with_every_memory_mode(name, memory):
    layers = (1, 1, 1) if memory == "none" else (1, 2, 1)
    plain, net = (few_layers(name, layers, memory=mode).double() for mode in ("none", memory))
    x = image(dtype=torch.float64)
    compiled = torch.compile(net, backend="aot_eager", fullgraph=True)
    assert_same_step(train_step(net, compiled, x), train_step(plain, plain, x))


@pytest.mark.parametrize(("name", "options"), first_now(OPTIONS))
@pytest.mark.usefixtures("_fresh_compiler")
def test_options_compile_as_one_graph(name, options):
    net = few_layers(name, **options).eval()
    with torch.no_grad():
        assert_same(torch.compile(net, backend="eager", fullgraph=True)(image()), net(image()))


@pytest.mark.usefixtures("_fresh_compiler")
def test_classifiers_compile_as_one_graph():
    net = few_layers("densenet121_features", features_only=False, num_classes=3).train()
    compiled = torch.compile(copy.deepcopy(net), backend="eager", fullgraph=True)
    assert_same(compiled(image()), net(image()))


# ------------------------------------------------------------------------------ torch.export

# 64 pixels and more: at a stride of 32 a map below that is one cell wide, and a size of one is
# specialised.
DYNAMIC = ({0: Dim("n"), 2: Dim("h", min=64), 3: Dim("w", min=64)},)
SIZES = ((64, 64, 1), (77, 95, 3), (128, 65, 2))


def exported(net: nn.Module):
    return torch.export.export(
        net,
        (image(96, 128),),
        dynamic_shapes=DYNAMIC,
        # The guards that torch makes of pools in ceil mode hold for every size, which its solver
        # cannot prove; Dim.DYNAMIC would do as well.
        prefer_deferred_runtime_asserts_over_guards=net.spec.ceil_mode,
    )


def saved_and_loaded(program):
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    return torch.export.load(file)


@pytest.mark.parametrize(
    ("name", "options"),
    first_now([*reversed(OPTIONS), *((name, {"layers": (1, 1, 1)}) for name in KINDS)], 2),
)
def test_exports_with_dynamic_batch_and_size(name, options):
    net = few_layers(name, **options).eval()
    program = saved_and_loaded(exported(net)).module()
    with torch.no_grad():
        for size in SIZES:
            assert_same(program(image(*size)), net(image(*size)))


@pytest.mark.parametrize(
    ("name", "strict"),
    # Only strict export, which reads the code with Dynamo, knows an operator for checkpointing.
    first_now([(n, True) for n in kinds_of_layers()]) + first_now([(n, False) for n in KINDS]),
)
def test_a_training_net_exports_plain_whatever_its_memory_mode(name, strict):
    layers = (1, 2, 1) if strict else (1, 1, 1)
    plain, net = (few_layers(name, layers, memory=mode).double() for mode in ("none", "block"))
    x = image(dtype=torch.float64)
    program = saved_and_loaded(torch.export.export(net, (x,), strict=strict))
    assert not [n for n in program.graph.nodes if n.op == "call_module"]
    called = {str(n.target) for n in program.graph.nodes if n.op == "call_function"}
    assert all(target.startswith("aten.") for target in called), called
    expected = train_step(plain, plain, x)
    module = program.module()
    assert_same(module(x), expected[0])
    buffers = dict(module.named_buffers())
    assert all(torch.equal(buffers[key], value) for key, value in expected[2].items())


# ------------------------------------------------------------------------------ ONNX


def kinds_of_operators() -> list[tuple[str, dict]]:
    """Nets with average, blur, and max pools in ceil mode; then dilated pools and group norm."""
    kinds = {}
    for name in reversed(KINDS):
        spec = tiny(name).spec
        kinds[spec.pool, spec.stem_pool, spec.ceil_mode] = name
    return first_now([*((name, {}) for name in kinds.values()), *OPTIONS[:2]])


@pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in ("onnx", "onnxscript", "onnxruntime")),
    reason="needs onnx, onnxscript and onnxruntime (pip install densenet-backbones[dev])",
)
@pytest.mark.parametrize(("name", "options"), kinds_of_operators())
@pytest.mark.filterwarnings("ignore")  # onnxscript warns of what torch deprecates within
def test_onnx_computes_the_same_with_any_batch_and_size(tmp_path, name, options):
    import onnxruntime

    net = few_layers(name, layers=(1, 1, 1), **options).eval()
    path = str(tmp_path / "net.onnx")
    torch.onnx.export(
        net, (image(96, 128),), path, dynamo=True, dynamic_shapes=DYNAMIC, verbose=False
    )
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (entry,) = session.get_inputs()
    assert entry.shape[1] == 3 and not any(isinstance(entry.shape[i], int) for i in (0, 2, 3))
    with torch.no_grad():
        for size in SIZES:
            found = session.run(None, {entry.name: image(*size).numpy()})
            # float32 sums in another order: 1e-6 was seen on maps of scale one
            assert_same([torch.from_numpy(m) for m in found], net(image(*size)), 1e-5)


# ------------------------------------------------------------------------------ TorchScript


def in_torchscript(net: nn.Module, how: str, x: Tensor) -> nn.Module:
    """The net scripted, or traced with one run on ``x``; it shares the net's parameters."""
    with warnings.catch_warnings():
        # Deprecated in torch, and in use; tracing remarks on lists and on batch norm's own check.
        warnings.filterwarnings("ignore", message=r"`torch\.jit\.\w+` is deprecated")
        warnings.filterwarnings("ignore", category=torch.jit.TracerWarning)
        if how == "script":
            return torch.jit.script(net)
        return torch.jit.trace(net, x, check_trace=False)


FORMS = (
    {"tap": "norm", "layer_taps": ["denseblock2.denselayer1"]},
    {"features_only": False, "num_classes": 3},
)
WAYS = [(how, form) for form in FORMS for how in ("script", "trace")]


@pytest.mark.parametrize(
    ("name", "how", "options"),
    first_now([(name, *way) for name, way in each_once(KINDS, WAYS)], len(WAYS)),
)
def test_torchscript_computes_the_same(name, how, options):
    net = few_layers(name, memory="block", **options).eval()
    fixed = in_torchscript(net, how, image(64, 64))
    with torch.no_grad():
        for size in ((64, 64), (77, 95)):
            assert_same(fixed(image(*size)), net(image(*size)))

    x = image(dtype=torch.float64)
    plain, net = few_layers(name, **options), few_layers(name, memory="block", **options)
    plain, net = plain.double().train(), net.double().train()
    fixed = in_torchscript(net, how, x)
    runs = 1
    if how == "trace":  # tracing was a run of its own
        plain(x)
        runs = 2
    assert_same_step(train_step(net, fixed, x), train_step(plain, plain, x), updates=runs)
