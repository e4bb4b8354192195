"""The kernels through Triton's compiler, which needs no GPU; its interpreter takes more than it."""

import warnings

import pytest

triton = pytest.importorskip("triton")

BF16 = {"PRECISION": "ieee", "BLOCK_B": 64, "BLOCK_C": 64}
POINTWISE = {**BF16, "BLOCK_M": 64, "ACTIVATE": True, "POOL": False}
SHAPE = {"HEIGHT": 28, "WIDTH": 28, "TILE_HEIGHT": 7, "TILE_WIDTH": 14, "DILATION": 1}
LAYER = {**BF16, **SHAPE, "BLOCK_K": 32, "PIXELS": 128}
CASES = {
    "pointwise, outputs side by side": ("pointwise", POINTWISE, {"weight_stride_b"}),
    "pointwise, inputs side by side": (
        "pointwise",
        {**POINTWISE, "ACTIVATE": False, "POOL": True},
        {"weight_stride_c"},
    ),
    "3x3": (
        "conv",
        {"BLOCK_M": 64, "BLOCK_B": 64, "BLOCK_K": 32, "PRECISION": "ieee"},
        {"weight_stride_b"},
    ),
    "fused": ("layer", {**LAYER, "SQUEEZE": True}, {"weight1_stride_b", "weight2_stride_b"}),
    "3x3 shifted": ("layer", {**LAYER, "SQUEEZE": False}, {"weight2_stride_b"}),
}


def assembly(kernel, constants, ones):
    """PTX for compute capability 9.0, maps in bfloat16, norms in float32.

    Pointers and sizes are multiples of 16, and ``ones`` are 1, as a launch would find them.
    """
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    signature, attributes = {}, {}
    for i, name in enumerate(kernel.arg_names):
        fixed = name in constants or name in ones
        pointer = "*fp32" if name in ("scale_ptr", "shift_ptr") else "*bf16"
        number = "fp32" if name == "ceiling" else "i32"
        variable = pointer if name.endswith("_ptr") else number
        signature[name] = "constexpr" if fixed else variable
        if not fixed and name != "ceiling":
            attributes[(i,)] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, signature, {**constants, **dict.fromkeys(ones, 1)}, attributes)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Triton's own defaults
        return triton.compile(source, target=GPUTarget("cuda", 90, 32)).asm["ptx"]


@pytest.mark.parametrize("name", CASES)
def test_compiles_for_tensor_cores_with_wide_loads(name):
    if triton.knobs.runtime.interpret:
        pytest.skip("Triton interprets in this process")
    from densenet_backbones.dense_block.kernels import conv_kernel, layer_kernel, pointwise_kernel

    kernels = {
        "pointwise": pointwise_kernel.pointwise_kernel.fn,
        "conv": conv_kernel.conv_kernel.fn,
        "layer": layer_kernel.layer_kernel,
    }
    kernel, constants, ones = CASES[name]
    ptx = assembly(kernels[kernel], constants, ones)
    assert "wgmma.mma_async" in ptx
    narrow = [line for line in ptx.split("\n") if "cp.async.ca" in line and ", 0x2" in line]
    assert "cp.async.cg.shared.global" in ptx and narrow == [], "sixteen bytes at once"
