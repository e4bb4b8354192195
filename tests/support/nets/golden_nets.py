"""Registered networks with weights by formula, and a few numbers that stand for what they compute.

Weights and images come from a hash of their position, in integers: no generator of random numbers
is involved, so the numbers are the same in every version of torch and NumPy.
"""

import copy
import math
from collections.abc import Sequence

import numpy as np
import timm
import torch
from locations import PROJECT
from torch import Tensor, nn

from densenet_backbones.condensenet import condense
from densenet_backbones.dense_block import Memory
from densenet_backbones.deploy import deploy
from densenet_backbones.timm_models import SUFFIX
from densenet_backbones.variants import VARIANTS

FILE = PROJECT / "tests" / "golden" / "values.json"
RENEW = "if the change is meant, renew them: .venv/bin/python tests/golden/renew.py"

# Relative to the root mean square. Five times what float32 differs from float64 by, over all names,
# memory modes and instruction sets: 6e-7, 4e-5, 1e-6 and 2e-2. Gradients jump where rounding takes
# a value across a ReLU's kink; that modes have the same ones to 1e-12 is tested in float64.
TOLERANCES = {"eval": 3e-6, "train": 2e-4, "statistics": 5e-6, "gradient": 0.1}

Summaries = dict[str, list[float]]

NARROWER = 4  # as deep as registered, a quarter as wide: seconds for all names
PROJECTIONS = 3


def hash_to_unit(count: int, seed: int) -> np.ndarray:
    """Values in [-1, 1) from their positions; the finalizer of MurmurHash3 (public domain)."""
    x = np.arange(count, dtype=np.uint32) + np.uint32(seed * 2654435761 % 2**32)
    for shift, factor in ((16, 2246822507), (13, 3266489909)):
        x = (x ^ (x >> np.uint32(shift))) * np.uint32(factor)
    x ^= x >> np.uint32(16)
    return x / 2**31 - 1


def make(shape: torch.Size | tuple[int, ...], seed: int) -> Tensor:
    return torch.from_numpy(hash_to_unit(math.prod(shape), seed)).view(shape)


def build(name: str, **changes: object) -> nn.Module:
    """A registered net, a quarter as wide, with weights by formula, in float64."""
    spec = VARIANTS[name.removesuffix(SUFFIX)]
    fixed = spec.transition_channels
    rates = [plan.growth_rate // NARROWER for plan in spec.blocks]
    narrow = {
        "growth_rate": rates,
        "num_init_features": spec.num_init_features // NARROWER,
        "transition_channels": fixed and tuple(n and n // NARROWER for n in fixed),
    }
    if spec.is_condensed:  # groups divide the growth rates
        narrow |= {"groups": math.gcd(*rates), "condense_factor": 2}
    net = timm.create_model(name, **{**narrow, **changes}).double()
    for seed, (key, value) in enumerate(net.state_dict().items()):
        if value.is_floating_point() and not key.endswith("filt"):
            unit = make(value.shape, seed)
            if value.dim() > 1:  # variance 2 / fan_in, He et al. (1502.01852)
                unit = unit * math.sqrt(6 / value[0].numel())
            elif key.endswith((".weight", "running_var")):
                unit = 1 + unit / 4
            else:
                unit = unit / 4
            value.copy_(unit)
    condense(net, 1.0)
    return net


def make_images(net: nn.Module) -> Tensor:
    # Odd, and odd again behind some pools: which way they round shows.
    side = 3 * net.spec.nominal_stride + net.spec.nominal_stride // 2 + 1
    return make((2, net.in_chans, side, side), seed=1)


def summarize(tensors: list[Tensor]) -> list[float]:
    """Root mean square of tensors taken as one vector, and projections of it on fixed ones."""
    x = torch.cat([tensor.detach().double().flatten() for tensor in tensors])
    size = math.sqrt(len(x))
    projections = [float(x @ make(x.shape, 100 + i)) / size for i in range(PROJECTIONS)]
    return [float(x.norm()) / size, *projections]


def evaluate(net: nn.Module, images: Tensor) -> Summaries:
    """Summaries of the maps in evaluation mode."""
    with torch.inference_mode():
        maps = net.eval()(images)
    return {f"eval c{i}": summarize([m]) for i, m in enumerate(maps, start=1)}


def train(net: nn.Module, images: Tensor, memory: Memory) -> Summaries:
    """Summaries of maps, gradients and updated statistics of one step in training mode."""
    net = copy.deepcopy(net).train()
    net.set_memory(memory)
    maps = net(images)
    sum(m.square().mean() for m in maps).backward()
    found = {f"train c{i}": summarize([m]) for i, m in enumerate(maps, start=1)}
    for i, modules in enumerate(map(nn.ModuleList, net.stage_children()), start=1):
        found[f"gradient c{i}"] = summarize([p.grad for p in modules.parameters()])
        statistics = [b for key, b in modules.named_buffers() if "running" in key]
        if statistics:  # a CIFAR stem has none
            found[f"statistics c{i}"] = summarize(statistics)
    return found


def read_levels(name: str) -> list[list[int]]:
    """Channels and stride of each block at full width."""
    blocks = VARIANTS[name.removesuffix(SUFFIX)].blocks
    return [[plan.channels, plan.stride] for plan in blocks]


def compute(name: str) -> Summaries:
    """The expected values of a name: in float64, by plain operators."""
    net = build(name)
    images = make_images(net)
    return evaluate(net, images) | train(net, images, "none")


def measure(
    name: str, expected: Summaries, modes: Sequence[Memory], **changes: object
) -> dict[str, float]:
    """Largest relative difference in float32 from the expected values, by what was run.

    Args:
        name: Registered name.
        expected: Its expected values.
        modes: Memory modes of training; besides, the net evaluates as built and deployed.
        **changes: Of the net, by which it is no longer the expected one.
    """
    net = build(name, **changes).float()
    images = make_images(net).float().contiguous(memory_format=torch.channels_last)
    runs = {"eval": evaluate(net, images), "deployed": evaluate(deploy(net), images)}
    runs |= {f"memory={memory}": train(net, images, memory) for memory in modes}
    return {
        f"{run}: {kind}": max(
            compare(values, expected[key]) for key, values in found.items() if key.startswith(kind)
        )
        for run, found in runs.items()
        for kind in dict.fromkeys(key.split()[0] for key in found)
    }


def list_faults(name: str, expected: Summaries, modes: Sequence[Memory]) -> list[str]:
    """What is further from the expected values than `TOLERANCES`, as text."""
    return [
        f"{name}, {what}: {difference:.1e}"
        for what, difference in measure(name, expected, modes).items()
        if difference > TOLERANCES[what.split()[-1]]
    ]


def compare(found: list[float], expected: list[float]) -> float:
    """Largest difference of two summaries, relative to the root mean square."""
    differences = [abs(a - b) for a, b in zip(found, expected, strict=True)]
    return max(differences) / expected[0] if math.isfinite(sum(differences)) else math.inf
