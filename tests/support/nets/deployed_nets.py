"""Images for deployed nets, and how far these are from what they are made of."""

import torch

from densenet_backbones.deploy import FoldedBlock


def image(*size, dtype=torch.float32):
    """Random images, the same ones every time."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(*(size or (2, 3, 75, 90)), generator=generator, dtype=dtype)


@torch.no_grad()
def difference(net, deployed, x):
    """Largest difference of any map, as a share of the map's largest value."""
    maps, folded = net(x), deployed(x)
    assert [m.shape for m in maps] == [m.shape for m in folded]
    return max(
        float((a - b).abs().max() / a.abs().max()) for a, b in zip(maps, folded, strict=True)
    )


def folded_parts(net):
    """Names of the blocks that are folded."""
    return [name for name, module in net.named_modules() if isinstance(module, FoldedBlock)]
