"""Sizes of tiles that kernels choose from, by measuring them once for each size of maps.

Measuring runs a kernel many times over: one that adds to what is there must not be tuned so. And it
cannot be captured in a CUDA graph: a step is to be run once before that.
"""

import torch
import triton
from triton import knobs

__all__ = ["make_autotune_arguments"]


def make_autotune_arguments(
    configs: list[triton.Config], rows_in_a_tile: str, interpreted: triton.Config
) -> dict[str, object]:
    """Make the arguments of `triton.autotune` for a kernel that reads ``rows`` pixels.

    Args:
        configs: Configurations from small tiles to large ones.
        rows_in_a_tile: Name of the constant that says how many pixels a tile has.
        interpreted: Configuration for the interpreter, which has no clock to choose by.
    """

    def prune_configs(
        configs: list[triton.Config], arguments: dict[str, int], **_: object
    ) -> list[triton.Config]:
        """Leave out tiles larger than the map, and those that are more programs than fill a GPU.

        Where only deterministic algorithms are allowed, the smallest is left: each sums in an order
        of its own, and which is the fastest may differ from run to run.
        """
        rows = arguments["rows"]
        sizes = [config.kwargs[rows_in_a_tile] for config in configs]
        pairs = zip(configs, sizes, strict=True)
        fitting = [c for c, size in pairs if rows // 4096 <= size <= max(rows, 16)] or configs[-1:]
        return fitting[:1] if torch.are_deterministic_algorithms_enabled() else fitting

    return {
        "configs": [interpreted] if knobs.runtime.interpret else configs,
        "prune_configs_by": {"early_config_prune": prune_configs},
    }
