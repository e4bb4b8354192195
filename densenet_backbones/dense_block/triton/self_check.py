"""Checks the Triton kernels against plain operators before a net may run in them.

What a new card, driver or version of Triton makes of a kernel is not known before it runs. So the
first use on a device, in a type and for a kind of use (inference, training) runs a small block both
ways; where the two differ, or a kernel raises, dense blocks run in plain operators, and a warning
says so once.

Shapes: N images, C channels of the concatenation, B of the bottleneck, k new maps, H and W pixels.
"""

import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from math import inf

import torch
import torch.nn.functional as F
from torch import Tensor

from densenet_backbones.dense_block.interfaces import LayerWeights
from densenet_backbones.dense_block.triton.block import list_layer_ways
from densenet_backbones.dense_block.triton.launch import convolve_1x1
from densenet_backbones.dense_block.triton.layout import (
    get_convolution_precision,
    get_product_precision,
)

__all__ = ["compare_inference", "draw_map", "has_passed_check", "measure_relative_error"]

Comparison = Callable[[torch.device, torch.dtype], Mapping[str, float]]

# Error that rounding may cause, as a share of the result's norm. Products of bfloat16 have 8 bits,
# those of float16 and TF32 have 11; a gradient is rounded several times on its way. Triton's
# interpreter stays below a third of each.
_BOUNDS = {torch.bfloat16: 2e-2, torch.float16: 3e-3, torch.float32: 1e-5}
_TF32_BOUND = 3e-3

_PASSED: dict[tuple[str, torch.device, torch.dtype], bool] = {}
_LOCK = threading.Lock()  # for threads that run nets beside each other


def has_passed_check(
    kind: str, compare: Comparison, device: torch.device, dtype: torch.dtype
) -> bool:
    """Return True if kernels compute on a device what plain operators do; checked once.

    Args:
        kind: Use of the kernels: ``inference`` or ``training``.
        compare: Runs a small block both ways, and returns the error of each result by name, as a
            share of the result's norm.
        device: Device of the maps.
        dtype: Type of the maps.
    """
    key = kind, device, dtype
    with _LOCK:
        if key in _PASSED:
            return _PASSED[key]
        if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
            return False  # nothing can be compared within a CUDA graph, so nothing is concluded
        fault = _find_fault(compare, device, dtype)
        _PASSED[key] = fault is None
    if fault is not None:
        warnings.warn(
            f"dense blocks run without their Triton kernels of {kind}: on a small block on "
            f"{device} in {dtype}, {fault}",
            stacklevel=3,
        )
    return fault is None


def _find_fault(compare: Comparison, device: torch.device, dtype: torch.dtype) -> str | None:
    """Return what is wrong with the kernels, as the end of a sentence; None if nothing is."""
    # A thread of its own has no autocast, inference mode, autograd hooks or modes of the caller's.
    try:
        with ThreadPoolExecutor(1) as pool:
            errors = pool.submit(compare, device, dtype).result()
    except Exception as error:  # whatever a compiler or a driver raises
        return f"they raise {type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
    bound = _BOUNDS[dtype]
    if dtype == torch.float32 and "tf32" in (get_convolution_precision(), get_product_precision()):
        bound = _TF32_BOUND
    name = max(errors, key=lambda name: _order(errors[name]))
    if errors[name] <= bound:
        return None
    return (
        f"{name} is off by {errors[name]:.1e} of its norm, of which rounding explains {bound:.0e} "
        "at most"
    )


def _order(error: float) -> float:
    return error if error == error else inf  # what is not a number is the worst


def measure_relative_error(result: Tensor, expected: Tensor) -> float:
    """Return the norm of the difference as a share of the norm of ``expected``."""
    expected = expected.double()
    return float((result.double() - expected).norm() / expected.norm())


def draw_map(
    channels: int, wider: int, device: torch.device, dtype: torch.dtype, seed: int
) -> Tensor:
    """Draw a channels-last map, (2, ``channels``, 9, 7), the first channels of a wider one."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn((2, 9, 7, channels + wider), generator=generator, dtype=torch.float32)
    return values.to(device, dtype).permute(0, 3, 1, 2)[:, :channels]


# ------------------------------------------------------------------------------ inference


def compare_inference(device: torch.device, dtype: torch.dtype) -> dict[str, float]:
    """Run a folded layer in each way there is, and a transition, and compare with plain operators.

    Returns:
        The error of each, as a share of the norm of what plain operators make in float64.
    """
    return dict(_compare_layers(device, dtype)) | dict(_compare_transition(device, dtype))


def _compare_layers(device: torch.device, dtype: torch.dtype) -> Iterator[tuple[str, float]]:
    weights = _draw_layer(24, 32, 16, device, dtype)
    for dilation, ceiling in ((1, inf), (2, 6.0)):
        buffer = draw_map(24 + 16, 0, device, dtype, seed=0)
        expected = _run_plain_layer(buffer[:, :24], weights, dilation, ceiling)
        # The choice among ways goes by the clock, so each must be right.
        for name, run in list_layer_ways(buffer, weights, dilation, ceiling).items():
            buffer[:, 24:] = 0
            run()
            yield (
                f"a layer ({name}, dilation {dilation})",
                measure_relative_error(buffer[:, 24:], expected),
            )


def _compare_transition(device: torch.device, dtype: torch.dtype) -> Iterator[tuple[str, float]]:
    weights = _draw_layer(24, 32, 16, device, dtype)
    x = draw_map(24, 0, device, dtype, seed=1)
    out = torch.zeros((2, 4, 3, 32), device=device, dtype=dtype).permute(0, 3, 1, 2)
    convolve_1x1(x, *weights[:4], out, pool=True)
    expected = F.avg_pool2d(_run_plain_squeeze(x, weights, inf), 2)
    yield "a transition", measure_relative_error(out, expected)


def _draw_layer(
    channels: int, bottleneck: int, growth: int, device: torch.device, dtype: torch.dtype
) -> LayerWeights:
    generator = torch.Generator().manual_seed(2)

    def draw(*shape: int, scale: float = 1.0) -> Tensor:
        values = torch.randn(shape, generator=generator, dtype=torch.float32)
        return (scale * values).to(device, dtype)

    weight2 = draw(growth, 3, 3, bottleneck, scale=(9 * bottleneck) ** -0.5)
    return LayerWeights(
        draw(channels),
        draw(channels),
        draw(channels, bottleneck, scale=channels**-0.5),
        draw(bottleneck),
        weight2.permute(0, 3, 1, 2),
        draw(growth),
    )


def _run_plain_squeeze(x: Tensor, weights: LayerWeights, ceiling: float) -> Tensor:
    scale, shift, weight, bias = (part.double() for part in weights[:4])
    normed = (scale[:, None, None] * x.double() + shift[:, None, None]).clamp(0, ceiling)
    return F.conv2d(normed, weight.t()[:, :, None, None], bias)


def _run_plain_layer(x: Tensor, weights: LayerWeights, dilation: int, ceiling: float) -> Tensor:
    squeezed = _run_plain_squeeze(x, weights, ceiling).clamp(0, ceiling)
    weight, bias = weights.weight2.double(), weights.bias2.double()
    return F.conv2d(squeezed, weight, bias, padding=dilation, dilation=dilation)
