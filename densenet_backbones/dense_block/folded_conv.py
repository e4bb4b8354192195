"""Convolutions in evaluation, from weights that oneDNN lays out once.

Shapes: N images, C channels, H and W pixels.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.jit import is_tracing  # type: ignore[attr-defined]

__all__ = ["ONEDNN", "FoldedConv2d", "LaidOut", "is_for_onednn", "is_written_down"]

ONEDNN: Any = torch.ops.mkldnn  # what torch.compile calls on a CPU


class LaidOut:
    """Keeps weights as oneDNN lays them out, which it otherwise does in every call.

    They are no part of the state dict, and are made anew after ``to`` and ``load_state_dict``.
    """

    _kept: dict[torch.dtype, tuple[Tensor, Tensor]]

    def laid_out(
        self, dtype: torch.dtype, lay_out: Callable[[], tuple[Tensor, Tensor]]
    ) -> tuple[Tensor, Tensor]:
        """Weight and bias for maps of ``dtype``; ``lay_out`` makes them the first time."""
        if dtype not in self._kept:
            self._kept[dtype] = lay_out()
        return self._kept[dtype]

    def _apply(self, *args: Any, **kwargs: Any) -> Any:
        self._kept.clear()
        return super()._apply(*args, **kwargs)  # type: ignore[misc]

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self._kept.clear()
        super()._load_from_state_dict(*args, **kwargs)  # type: ignore[misc]

    def __getstate__(self) -> dict[str, Any]:
        """For copies and pickles, which cannot hold those layouts."""
        return {**self.__dict__, "_kept": {}}


class FoldedConv2d(LaidOut, nn.Conv2d):
    """A convolution that does not learn, with other weights than the one it is made of.

    Args:
        like: Whose geometry it takes.
        weight: Shaped as that one's.
        bias: (out channels,).
    """

    def __init__(self, like: nn.Conv2d, weight: Tensor, bias: Tensor) -> None:
        super().__init__(
            like.in_channels,
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
        self._kept = {}

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C', H', W')."""
        if not is_for_onednn(x):
            return super().forward(x)
        if torch.is_autocast_enabled("cpu"):  # which does not know this operation
            x = x.to(torch.get_autocast_dtype("cpu"))
        geometry = [list(pair) for pair in (self.padding, self.stride, self.dilation)]

        def lay_out() -> tuple[Tensor, Tensor]:
            weight, bias = (tensor.to(x.dtype) for tensor in self.tensors())
            return ONEDNN._reorder_convolution_weight(weight, *geometry), bias

        weights = self.laid_out(x.dtype, lay_out)
        out: Tensor = ONEDNN._convolution_pointwise(x, *weights, *geometry, 1, "none", [], "")
        return out

    def tensors(self) -> list[Tensor]:
        """Weight and bias."""
        assert self.bias is not None
        return [self.weight, self.bias]


def is_for_onednn(x: Tensor) -> bool:
    """Return True if oneDNN computes on ``x``, at once and without gradients."""
    if torch.compiler.is_compiling() or is_written_down(x):
        return False
    if x.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    if torch.is_autocast_enabled("cpu") and not _computes_in(torch.get_autocast_dtype("cpu")):
        return False
    return _computes_in(x.dtype)


def _computes_in(dtype: torch.dtype) -> bool:
    if dtype == torch.bfloat16:
        return bool(ONEDNN._is_mkldnn_bf16_supported())
    return dtype == torch.float32  # few processors have float16


def is_written_down(x: Tensor) -> bool:
    """Return True if what runs on ``x`` is exported, traced or differentiated by torch."""
    if isinstance(x, fx.Proxy) or is_tracing() or torch.compiler.is_exporting():
        return True
    return x.requires_grad and torch.is_grad_enabled()
