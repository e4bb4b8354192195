"""Convolutions in evaluation, from weights that oneDNN lays out once.

The calls are those that torch.compile makes on a CPU (pytorch/pytorch,
``torch/_inductor/mkldnn_ir.py`` and ``torch/_inductor/fx_passes/mkldnn_fusion.py``).

Shapes: N images, C channels, H and W pixels.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.jit import is_tracing  # type: ignore[attr-defined]

__all__ = ["ONEDNN", "FoldedConv2d", "LayoutCache", "is_for_onednn", "is_recorded"]

ONEDNN: Any = torch.ops.mkldnn  # what torch.compile calls on a CPU


class LayoutCache:
    """Keeps weights as oneDNN lays them out, which it otherwise does in every call.

    They are no part of the state dict, and are made anew after ``to`` and ``load_state_dict``.
    """

    _layouts: dict[torch.dtype, tuple[Tensor, Tensor]]

    def get_laid_out(
        self, dtype: torch.dtype, lay_out: Callable[[], tuple[Tensor, Tensor]]
    ) -> tuple[Tensor, Tensor]:
        """Return weight and bias for maps of ``dtype``; ``lay_out`` makes them the first time."""
        if dtype not in self._layouts:
            self._layouts[dtype] = lay_out()
        return self._layouts[dtype]

    def _apply(self, *args: Any, **kwargs: Any) -> Any:
        self._layouts.clear()
        return super()._apply(*args, **kwargs)  # type: ignore[misc]

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self._layouts.clear()
        super()._load_from_state_dict(*args, **kwargs)  # type: ignore[misc]

    def __getstate__(self) -> dict[str, Any]:
        """Return the state for copies and pickles, which cannot hold those layouts."""
        return {**self.__dict__, "_layouts": {}}


class FoldedConv2d(LayoutCache, nn.Conv2d):
    """A convolution that does not learn, with other weights than the one it is made of.

    Args:
        like: Convolution whose geometry it takes.
        weight: Weight, of as many input channels as it is to read.
        bias: Bias, (out channels,).
    """

    def __init__(self, like: nn.Conv2d, weight: Tensor, bias: Tensor) -> None:
        super().__init__(
            weight.shape[1],
            like.out_channels,
            (like.kernel_size[0], like.kernel_size[1]),
            (like.stride[0], like.stride[1]),
            like.padding if isinstance(like.padding, str) else (like.padding[0], like.padding[1]),
            (like.dilation[0], like.dilation[1]),
            device="meta",
        )
        weight = weight.contiguous(memory_format=torch.channels_last)
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.bias = nn.Parameter(bias, requires_grad=False)
        self._layouts = {}

    def forward(self, x: Tensor) -> Tensor:
        """Convolve, (N, C, H, W) to (N, C', H', W')."""
        if not is_for_onednn(x):
            return super().forward(x)
        if torch.is_autocast_enabled("cpu"):  # which does not know this operation
            x = x.to(torch.get_autocast_dtype("cpu"))
        geometry = [list(pair) for pair in (self.padding, self.stride, self.dilation)]

        def lay_out() -> tuple[Tensor, Tensor]:
            weight, bias = (tensor.to(x.dtype) for tensor in self.list_tensors())
            return ONEDNN._reorder_convolution_weight(weight, *geometry), bias

        weights = self.get_laid_out(x.dtype, lay_out)
        out: Tensor = ONEDNN._convolution_pointwise(x, *weights, *geometry, 1, "none", [], "")
        return out

    def list_tensors(self) -> list[Tensor]:
        """Return weight and bias."""
        assert self.bias is not None
        return [self.weight, self.bias]


def is_for_onednn(x: Tensor) -> bool:
    """Return True if oneDNN computes on ``x``, at once and without gradients."""
    if torch.compiler.is_compiling() or is_recorded(x):
        return False
    if x.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    if torch.is_autocast_enabled("cpu") and not _can_compute_in(torch.get_autocast_dtype("cpu")):
        return False
    return _can_compute_in(x.dtype)


def _can_compute_in(dtype: torch.dtype) -> bool:
    if dtype == torch.bfloat16:
        return bool(ONEDNN._is_mkldnn_bf16_supported())
    return dtype == torch.float32  # few processors have float16


def is_recorded(x: Tensor) -> bool:
    """Return True if torch records what runs on ``x``: to export, trace or differentiate it."""
    if isinstance(x, fx.Proxy) or is_tracing() or torch.compiler.is_exporting():
        return True
    return x.requires_grad and torch.is_grad_enabled()
