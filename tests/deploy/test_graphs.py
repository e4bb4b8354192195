"""A deployed network as a graph: compiled, exported, traced."""

import warnings

import onnxruntime
import pytest
import torch
from deployed_nets import difference, image
from long_cases import first_now
from tiny_nets import KINDS, tiny
from torch._inductor import metrics
from torch.export import Dim

from densenet_backbones.deploy import deploy


@pytest.mark.parametrize(
    "options", first_now([{"tap": "norm"}, {"bn_size": 0}, {"act_layer": "relu6"}])
)
def test_compiled_without_breaks_for_any_size(options):
    net = tiny("densenet121_features", layers=1, **options).eval()
    deployed = deploy(net)
    torch.compiler.reset()  # which counts how often one function is compiled
    graphs = []

    def count(graph, inputs):
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(deployed, backend=count, fullgraph=True, dynamic=True)
    for size in [(2, 3, 64, 64), (1, 3, 75, 90), (3, 3, 96, 64)]:
        with torch.inference_mode():
            assert difference(deployed, compiled, image(*size)) <= 1e-6
    calls = [str(node.target) for graph in graphs for node in graph.graph.nodes]
    blocks = [call for call in calls if "folded_block" in call]
    assert len(blocks) == 4 * len(graphs)
    assert not any("cat" in call.split(".") for call in calls)


@pytest.mark.long
def test_compiled_ahead_of_time_and_under_autocast():
    deployed = deploy(tiny("densenet121_features").eval())
    torch.compiler.reset()
    compiled = torch.compile(deployed, backend="aot_eager", fullgraph=True)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert difference(deployed, compiled, image()) <= 2**-7


@pytest.mark.long
@pytest.mark.parametrize("name", ["densenet121_features", "dsod_smallest_features"])
def test_the_compiler_of_c_has_nothing_to_do(name):
    """On a CPU Inductor writes no loop, so that the first call takes no compiler's time."""
    net = tiny(name).eval()
    deployed = deploy(net)
    torch.compiler.reset()
    metrics.reset()
    with torch.inference_mode():
        assert difference(net, torch.compile(deployed), image()) <= 1e-5
    assert metrics.generated_kernel_count == 0


@pytest.mark.parametrize("name", first_now(KINDS))
def test_exported_form_holds_no_buffer(name):
    net = tiny(name, layers=1).eval()
    sizes = {0: Dim("n", min=1), 2: Dim("h", min=64), 3: Dim("w", min=64)}
    program = torch.export.export(
        deploy(net),
        (image(2, 3, 96, 64),),
        dynamic_shapes=(sizes,),
        prefer_deferred_runtime_asserts_over_guards=True,
    )
    targets = {str(node.target) for node in program.graph.nodes}
    assert not any("copy" in t or "folded_block" in t or "mkldnn" in t for t in targets)
    # Blocks with groups are not folded: see `deploy`.
    assert net.spec.groups > 1 or not any("batch_norm" in t for t in targets)
    assert difference(net, program.module(), image(3, 3, 90, 75)) <= 1e-5


@pytest.mark.long
def test_onnx(tmp_path):
    net = tiny("densenet121_features", layers=1).eval()
    sizes = {0: Dim("n", min=1), 2: Dim("h", min=64), 3: Dim("w", min=64)}
    file = tmp_path / "net.onnx"
    torch.onnx.export(
        deploy(net), (image(2, 3, 96, 64),), file, dynamo=True, dynamic_shapes=(sizes,)
    )
    session = onnxruntime.InferenceSession(file)
    (given_name,) = (put.name for put in session.get_inputs())

    def run(x):
        return [torch.from_numpy(m) for m in session.run(None, {given_name: x.numpy()})]

    for size in [(2, 3, 96, 64), (1, 3, 75, 90)]:
        assert difference(net, run, image(*size)) <= 1e-5


def test_traced():
    deployed = deploy(tiny("densenet121_features").eval())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        traced = torch.jit.trace(deployed, image(1, 3, 64, 64))
    assert difference(deployed, traced, image(2, 3, 75, 90)) <= 1e-5
