"""The kernels through Triton's compiler, which needs no GPU; its interpreter takes more than it."""

import importlib
import itertools
import warnings

import pytest
from long_cases import each_once

from densenet_backbones.dense_block.triton_training import norms
from densenet_backbones.dense_block.triton_training.gradients import _choose_tile

triton = pytest.importorskip("triton")
pytestmark = pytest.mark.long

BF16 = {"PRECISION": "ieee", "BLOCK_B": 64, "BLOCK_C": 64}
POINTWISE = {**BF16, "BLOCK_M": 64, "ACTIVATE": True, "POOL": False}
SHAPE = {"HEIGHT": 28, "WIDTH": 28, "TILE_HEIGHT": 7, "TILE_WIDTH": 14, "DILATION": 1}
CONV = {"BLOCK_M": 64, "BLOCK_B": 64, "BLOCK_K": 32, "PRECISION": "ieee"}
GRADIENT = {"PRECISION": "ieee", "BLOCK_M": 64, "BLOCK_C": 64}
INPUT, WEIGHT = {**GRADIENT, "BLOCK_O": 32}, {**GRADIENT, "BLOCK_J": 64}
PASS = {"BLOCK_M": 32, "BLOCK_C": 128}
LAYER = {**BF16, **SHAPE, "BLOCK_K": 32, "PIXELS": 128}
CASES = {
    "pointwise, outputs side by side": ("pointwise", POINTWISE, {"weight_stride_b"}),
    "pointwise, inputs side by side": (
        "pointwise",
        {**POINTWISE, "ACTIVATE": False, "POOL": True},
        {"weight_stride_c"},
    ),
    "3x3": ("conv", {**CONV, "scale_ptr": None, "shift_ptr": None}, {"weight_stride_b"}),
    "3x3 of a norm": ("conv", {**CONV, "bias_ptr": None}, {"weight_stride_b", "dilation"}),
    "fused": ("layer", {**LAYER, "SQUEEZE": True}, {"weight1_stride_b", "weight2_stride_b"}),
    "3x3 shifted": ("layer", {**LAYER, "SQUEEZE": False}, {"weight2_stride_b"}),
    "input of a 1x1": (
        "input_gradient",
        {**INPUT, "SIDE": 1, "ADD": True},
        {"weight_stride_c", "dilation"},
    ),
    "input of a 3x3": (
        "input_gradient",
        {**INPUT, "SIDE": 3, "ADD": False},
        {"weight_stride_c", "dilation"},
    ),
    "weight of a 1x1": ("weight_gradient", {**WEIGHT, "SIDE": 1}, {"dilation"}),
    "weight of a 3x3": ("weight_gradient", {**WEIGHT, "SIDE": 3}, {"dilation"}),
}
PASSES = {
    "scale_shift_relu": {},
    "affine_difference": {"scale_ptr": None},
    "masked_sums": {"ADD": True},
    "add_scaled": {},
}
FLOATS = {"scale_ptr", "shift_ptr", "constant_ptr", "slope_ptr", "sums_ptr"}
FLOATS |= {"mean_ptr", "var_ptr", "inverse_std_ptr", "summed_ptr", "weighted_ptr", "linear_ptr"}
FLOATS |= {"running_mean_ptr", "running_var_ptr", "affine_ptr"}
NUMBERS = {"ceiling", "eps", "momentum", "correction", "share"}
NORMS = {
    "affine": ("affine", {"BLOCK_C": 128}),
    "affine without parameters": (
        "affine",
        {"BLOCK_C": 128, "weight_ptr": None, "bias_ptr": None},
    ),
    "affine that mixes nothing": (
        "affine",
        {"BLOCK_C": 128, "running_mean_ptr": None, "running_var_ptr": None},
    ),
    "gradients": ("norm_gradients", norms._BLOCK),
    "gradients of no parameters": (
        "norm_gradients",
        {**norms._BLOCK, "weight_gradient_ptr": None, "bias_gradient_ptr": None},
    ),
}


@pytest.fixture(autouse=True)
def _compiled():
    if triton.knobs.runtime.interpret:
        pytest.skip("Triton interprets in this process")


def compiled(kernel, constants, ones=(), capability=90, maps="*bf16"):
    """A kernel for these maps, and norms in float32.

    Pointers and sizes are multiples of 16, and ``ones`` are 1, as a launch would find them.
    """
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    signature, attributes = {}, {}
    for i, name in enumerate(kernel.arg_names):
        fixed = name in constants or name in ones
        pointer = "*fp32" if name in FLOATS else maps
        number = "fp32" if name in NUMBERS else "i32"
        variable = pointer if name.endswith("_ptr") else number
        signature[name] = "constexpr" if fixed else variable
        if not fixed and name not in NUMBERS:
            attributes[(i,)] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, signature, {**constants, **dict.fromkeys(ones, 1)}, attributes)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Triton's own defaults
        return triton.compile(source, target=GPUTarget("cuda", capability, 32))


def kernel_called(name):
    room = "triton_training" if name.endswith("_gradient") else "triton"
    module = importlib.import_module(f"densenet_backbones.dense_block.{room}.{name}_kernel")
    kernel = getattr(module, f"{name}_kernel")
    return kernel.fn if hasattr(kernel, "configs") else kernel  # tuned or not


# Every kernel has a form for each.
PRODUCTS = ((90, "wgmma.mma_async"), (80, "mma.sync"))


@pytest.mark.parametrize(("name", "gpu"), each_once(CASES, PRODUCTS))
def test_compiles_for_tensor_cores_with_wide_loads(name, gpu):
    capability, product = gpu
    kernel, constants, ones = CASES[name]
    ptx = compiled(kernel_called(kernel), constants, ones, capability).asm["ptx"]
    assert product in ptx
    narrow = [line for line in ptx.split("\n") if "cp.async.ca" in line and ", 0x2" in line]
    assert "cp.async.cg.shared.global" in ptx and narrow == [], "sixteen bytes at once"


@pytest.mark.parametrize("name", PASSES)
def test_passes_read_and_write_sixteen_bytes_at_once(name):
    from densenet_backbones.dense_block.triton_training import passes_kernel

    kernel = getattr(passes_kernel, f"{name}_kernel")
    ptx = compiled(kernel, {**PASS, **PASSES[name]}).asm["ptx"]
    assert "ld.global.v4.b32" in ptx and "st.global.v4.b32" in ptx
    assert "ld.global.b16" not in ptx and "st.global.b16" not in ptx


@pytest.mark.parametrize(
    ("name", "capability", "parameters"),
    [(n, *way) for n, way in each_once(NORMS, itertools.product((80, 90), ("*bf16", "*fp32")))],
)
def test_norms_compute_in_single_precision(name, capability, parameters):
    from densenet_backbones.dense_block.triton_training import norms_kernel

    which, constants = NORMS[name]
    kernel = getattr(norms_kernel, f"{which}_kernel")
    ptx = compiled(kernel, constants, (), capability, parameters).asm["ptx"]
    assert ".f64" not in ptx, "as a Python number might be"
    assert ("rsqrt.approx" in ptx) == (which == "affine")
    if which == "norm_gradients":
        assert "ld.global.v4.b32" in ptx, "sums sixteen bytes at once"


@pytest.mark.parametrize("maps", ["*bf16", "*fp32"])
def test_tiles_that_no_clock_chooses_fit_every_gpu(maps):
    """Kernels that are tuned leave out what does not fit; this one has no choice."""
    tile = _choose_tile(rows=200_000, channels=256, outputs=128)
    constants = {**tile, "PRECISION": "tf32", "SIDE": 3, "ADD": True}
    for capability in (80, 90):
        found = compiled(kernel_called("input_gradient"), constants, (), capability, maps)
        # Of 8.6, 8.9 and 12.0, which compile as 8.0 does, a program has 99 KiB; of 9.0 it has 227.
        assert found.metadata.shared <= (99 if capability == 80 else 227) * 1024
