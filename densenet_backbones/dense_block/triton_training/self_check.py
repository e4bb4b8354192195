"""Runs a dense layer forward and backward in the Triton kernels of training and in plain operators.

`triton.self_check` decides by it whether nets may train in the kernels.

Shapes: N images, C channels of the concatenation, B of the bottleneck, k new maps, H and W pixels.
"""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from densenet_backbones.dense_block.triton.self_check import draw_map, measure_relative_error
from densenet_backbones.dense_block.triton_training import norms, passes
from densenet_backbones.dense_block.triton_training.unit import run_unit, run_unit_backward

__all__ = ["compare_training"]

_EPS, _MOMENTUM = 1e-5, 0.1
_CHANNELS, _BOTTLENECK, _GROWTH = 24, 32, 16


def compare_training(device: torch.device, dtype: torch.dtype) -> Mapping[str, float]:
    """Run a layer of batch norms, ReLUs, a 1x1 and a 3x3, its gradients, and passes over maps.

    Returns:
        The error of each result, as a share of the norm of what plain operators make in float64.
    """
    x = draw_map(_CHANNELS, 8, device, dtype, seed=0)
    gradient = draw_map(_GROWTH, 0, device, dtype, seed=1)
    parameters = _draw_parameters(device, dtype)
    ours = _run_layer(x, gradient, parameters)
    plain = _run_plain_layer(x, gradient, parameters)
    errors = {name: measure_relative_error(ours[name], plain[name]) for name in plain}
    return errors | _compare_passes(x, device, dtype)


def _draw_parameters(device: torch.device, dtype: torch.dtype) -> list[Tensor]:
    """Draw weight and bias of the first norm, the 1x1, and the same of the second unit."""
    generator = torch.Generator().manual_seed(2)

    def draw(*shape: int, scale: float = 1.0, offset: float = 0.0) -> Tensor:
        values = torch.randn(shape, generator=generator, dtype=torch.float32)
        return (offset + scale * values).to(device, dtype)

    return [
        draw(_CHANNELS, scale=0.3, offset=1.0),
        draw(_CHANNELS, scale=0.3),
        draw(_BOTTLENECK, _CHANNELS, 1, 1, scale=_CHANNELS**-0.5),
        draw(_BOTTLENECK, scale=0.3, offset=1.0),
        draw(_BOTTLENECK, scale=0.3),
        draw(_GROWTH, _BOTTLENECK, 3, 3, scale=(9 * _BOTTLENECK) ** -0.5),
    ]


def _run_layer(x: Tensor, gradient: Tensor, parameters: Sequence[Tensor]) -> dict[str, Tensor]:
    """Run the layer in kernels, in the order in which `shared` starts them."""
    weight1, bias1, kernel1, weight2, bias2, kernel2 = parameters
    of_value = x.shape[1] / x.numel()
    correction = 1 / (1 - of_value)
    # Forward: statistics, the norm as a map, then norm, ReLU and convolution in one kernel.
    mean1, var1 = _compute_moments(x)
    running = torch.zeros_like(mean1), torch.ones_like(var1)
    scale1, shift1, inverse_std1 = norms.make_affine(
        (mean1, var1), (weight1, bias1), _EPS, running, _MOMENTUM, correction
    )
    squeezed = run_unit(x, (scale1, shift1), kernel1)
    mean2, var2 = _compute_moments(squeezed)
    scale2, shift2, inverse_std2 = norms.make_affine((mean2, var2), (weight2, bias2), _EPS)
    out = run_unit(squeezed, (scale2, shift2), kernel2)
    # Backward through the 3x3 and the second norm, to the gradient of the bottleneck.
    sums, kernel2_gradient = run_unit_backward(gradient, squeezed, (scale2, shift2), kernel2)
    masked, *rest = sums
    assert masked is not None
    linear, *norm2_gradients = norms.compute_norm_gradients(
        (rest[0], rest[1]), mean2, scale2, inverse_std2, of_value, (weight2, bias2)
    )
    inner = passes.compute_affine_difference(masked, squeezed, scale2, *linear)
    # Backward through the 1x1 and the first norm, added to a gradient that is there already.
    total = torch.zeros_like(x, memory_format=torch.channels_last)
    sums, kernel1_gradient = run_unit_backward(inner, x, (scale1, shift1), kernel1, into=total)
    _, *rest = sums
    linear, *norm1_gradients = norms.compute_norm_gradients(
        (rest[0], rest[1]), mean1, scale1, inverse_std1, of_value, (weight1, bias1)
    )
    gradients = (*norm1_gradients, kernel1_gradient, *norm2_gradients, kernel2_gradient)
    results = {
        "the output of a layer": out,
        "the gradient of a layer's input": passes.compute_affine_difference(
            total, x, None, *linear
        ),
        "a running mean": running[0],
        "a running variance": running[1],
    }
    for name, value in zip(_NAMES, gradients, strict=True):
        assert value is not None
        results[f"the gradient of {name}"] = value
    return results


_NAMES = ("norm1.weight", "norm1.bias", "conv1", "norm2.weight", "norm2.bias", "conv2")


def _run_plain_layer(
    x: Tensor, gradient: Tensor, parameters: Sequence[Tensor]
) -> dict[str, Tensor]:
    """Run the layer in float64 by autograd."""
    leaves = [part.double().requires_grad_() for part in (x, *parameters)]
    exact, weight1, bias1, kernel1, weight2, bias2, kernel2 = leaves
    running = exact.new_zeros(x.shape[1]), exact.new_ones(x.shape[1])
    first = F.batch_norm(exact, running[0], running[1], weight1, bias1, True, _MOMENTUM, _EPS)
    first = first.relu()
    squeezed = F.conv2d(first, kernel1)
    second = F.batch_norm(squeezed, None, None, weight2, bias2, True, 0.0, _EPS).relu()
    out = F.conv2d(second, kernel2, padding=1)
    of_x, *gradients = torch.autograd.grad(out, leaves, gradient.double())
    named = {f"the gradient of {name}": g for name, g in zip(_NAMES, gradients, strict=True)}
    return {
        "the output of a layer": out.detach(),
        "the gradient of a layer's input": of_x,
        "a running mean": running[0],
        "a running variance": running[1],
        **named,
    }


def _compare_passes(x: Tensor, device: torch.device, dtype: torch.dtype) -> dict[str, float]:
    """Run the passes that stand around convolutions which the kernels do not have."""
    generator = torch.Generator().manual_seed(3)
    vectors = torch.randn((2, _CHANNELS), generator=generator, dtype=torch.float32).to(device)
    scale, shift = vectors
    a, b = (vector.double()[:, None, None] for vector in (scale, shift))
    active = passes.scale_shift_relu(x, scale, shift)
    exact = (a * x.double() + b).relu()
    gradient = draw_map(_CHANNELS, 0, device, dtype, seed=4)
    masked, summed, weighted = passes.mask_and_sum(gradient, active, x)
    assert masked is not None
    expected = gradient.double() * (active > 0)
    total = draw_map(_CHANNELS, 8, device, dtype, seed=5)
    added = total.double() + a * gradient.double()
    passes.add_scaled(total, gradient, scale)
    return {
        "norm and ReLU": measure_relative_error(active, exact),
        "a masked gradient": measure_relative_error(masked, expected),
        "a masked gradient's sum": measure_relative_error(summed.sum(0), expected.sum((0, 2, 3))),
        "a masked gradient's weighted sum": measure_relative_error(
            weighted.sum(0), (expected * x.double()).sum((0, 2, 3))
        ),
        "a scaled sum": measure_relative_error(total, added),
    }


def _compute_moments(x: Tensor) -> tuple[Tensor, Tensor]:
    var, mean = torch.var_mean(x.float(), dim=(0, 2, 3), correction=0)
    return mean, var
