"""The plain execution of a dense block: what every other mode must equal."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

__all__ = ["run_plain"]


def run_plain(x: Tensor, layers: Iterable[Callable[[Tensor], Tensor]]) -> Tensor:
    """Run dense layers one after the other on the growing concatenation.

    Layer ``l`` reads the block's input and every map made before it, ``x_l = H_l([x_0, ...,
    x_(l-1)])`` (Huang et al., 1608.06993, section 3).

    Args:
        x: Input of the block, (N, C, H, W).
        layers: Layers in order. Each maps the concatenation so far, (N, C_l, H, W), to its new
            maps, (N, k_l, H, W).

    Returns:
        The concatenation of the input and all new maps in the order they were made,
        (N, C + sum of k_l, H, W). With no layers it is ``x`` itself.
    """
    for layer in layers:
        # Growing one tensor makes the block's output the last concatenation; a list of all maps
        # would have to be joined once more at the end.
        x = torch.cat((x, layer(x)), dim=1)
    return x
