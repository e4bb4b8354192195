"""A dense block in evaluation, from folded weights: what `deploy` puts in a block's place.

Shapes: N images, C channels of the block's input, k new maps of a layer, H and W pixels.
"""

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from densenet_backbones.dense_block import (
    FoldedLayer,
    find_folded_change,
    is_recorded,
    run_folded,
    run_folded_compiled,
    run_plain,
    warn_eagerly,
)

__all__ = ["FoldedBlock"]


class FoldedBlock(nn.ModuleDict):
    """A dense block of `FoldedLayer`, under the names of the layers that they stand for.

    Of a pruned block it holds the layers that are left, and runs them as if there were no others;
    zeros come in the places of the others' maps at the end.

    Args:
        layers: Layers by name, in order.
        in_channels: Number of channels of the block's input.
        name: Name for warnings.
        widths: Each layer's name, those of absent ones too, and the channels of the concatenation
            with its maps.
    """

    def __init__(
        self,
        layers: OrderedDict[str, nn.Module],
        in_channels: int,
        name: str,
        widths: Sequence[tuple[str, int]],
    ) -> None:
        super().__init__(layers)
        self.name = name
        self.in_channels = in_channels
        self._widths = tuple(widths)

    def _get_layers(self) -> list[FoldedLayer]:
        return cast("list[FoldedLayer]", list(self.values()))

    def widths(self) -> Iterator[tuple[str, int]]:
        """Return each layer's name, and the channels of the concatenation with its maps."""
        return iter(self._widths)

    def forward(self, x: Tensor) -> Tensor:
        """Concatenate the input and all new maps, (N, C + layers * k, H, W)."""
        maps = self._run(x)
        return maps if len(self) == len(self._widths) else self._put_zeros(maps)

    def _run(self, x: Tensor) -> Tensor:
        layers = self._get_layers()
        if is_recorded(x, self.parameters()):
            return run_plain(x, layers)
        changes = (find_folded_change(layer, name) for name, layer in self.items())
        change = next(filter(None, changes), None)
        # Nothing but calling layers one by one calls hooks, and what was put in a part's place.
        if change is not None:
            warn_eagerly(f"{self.name} runs layer by layer in plain operators, as {change}")
            return run_plain(x, layers)
        if not self._fits(x):
            return run_plain(x, layers)  # in which an operator refuses what does not fit
        if torch.compiler.is_compiling():
            return run_folded_compiled(x, layers)
        return run_folded(x, layers)

    def _fits(self, x: Tensor) -> bool:
        """Return True if each layer takes the channels of ``x`` and of the maps made before it."""
        channels = x.shape[1]
        for layer in self._get_layers():
            if not layer.takes(channels):
                return False
            channels += layer.conv.out_channels
        return x.dim() == 4

    def _put_zeros(self, maps: Tensor) -> Tensor:
        """Put zeros in the places of absent layers' maps."""
        parts, begin, made, before = list[Tensor](), 0, self.in_channels, self.in_channels
        for name, end in self._widths:
            if name in self:
                made += end - before
            else:
                parts += [maps[:, begin:made], torch.zeros_like(maps[:, : end - before])]
                begin = made
            before = end
        return torch.cat([*parts, maps[:, begin:]], dim=1)
