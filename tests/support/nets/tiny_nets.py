"""Small networks and random norms for tests of equality."""

from contextlib import contextmanager

import timm
import torch
from torch import nn

from densenet_backbones.timm_models import SUFFIX
from densenet_backbones.variants import VARIANTS

# growth 4, one or two layers a block: every code path in milliseconds
TINY = {"growth_rate": 4, "block_config": (1, 2, 1, 1), "num_init_features": 8}


def randomise_norms(net: nn.Module) -> nn.Module:
    """Gives every batch norm its own statistics and affine map: fresh ones hide a mix-up."""
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.1)
    return net


def parameters_of(build) -> int:
    """Learnable values of what ``build()`` makes, without making them."""
    with torch.device("meta"):
        return sum(p.numel() for p in build().parameters())


def tiny_fields(name: str, layers: int = 2) -> dict[str, object]:
    """Fields of `DenseNetSpec` that make a registered net small: few narrow layers a block."""
    spec = VARIANTS[name.removesuffix(SUFFIX)]
    blocks = (layers,) * len(spec.block_config)
    fields = {"growth_rate": 4, "block_config": blocks, "num_init_features": 8}
    if spec.is_condensed:  # groups divide the growth rate
        fields |= {"groups": 4, "condense_factor": 4}
    return fields


def tiny(name: str, layers: int = 2, **arguments) -> nn.Module:
    """A registered net with its stem, pools and transitions, but few narrow layers a block."""
    torch.manual_seed(0)
    return randomise_norms(timm.create_model(name, **{**tiny_fields(name, layers), **arguments}))


# Every name of the registry, and one name for each kind of net that remains with few layers.
NAMES = timm.list_models(module="timm_models")
KINDS = list({tiny(name).spec: name for name in reversed(NAMES)}.values())


@contextmanager
def threads_set(count):
    """As many threads as that for a while."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
