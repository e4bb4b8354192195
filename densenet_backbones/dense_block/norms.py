"""What a batch norm does in one pass, as numbers a channel: for executions that reuse statistics.

In a dense block every layer norms the same maps again. A batch's mean and variance belong to the
map, not to the layer that reads it, so they are computed once; what differs by layer is the affine
map made of them, and the running statistics they are mixed into.

Shapes: N images, C channels, H and W pixels. Statistics are (C,) in at least single precision.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

__all__ = ["Affine", "Moments", "NormForm", "batch_moments", "precise", "read_norm", "value_count"]


@dataclass(frozen=True)
class Moments:
    """Mean and biased variance of each channel, (C,)."""

    mean: Tensor
    var: Tensor


@dataclass(frozen=True)
class Affine:
    """A norm as ``scale * x + shift``, (C,) each, with 1 / std, which gradients need besides."""

    scale: Tensor
    shift: Tensor
    inverse_std: Tensor


@dataclass(frozen=True)
class NormForm:
    """How a norm gets its statistics in this pass.

    Attributes:
        module: The norm.
        of_batch: Whether they are the batch's; else they are the running ones, which are constants.
        tracks: Whether the batch's are mixed into the running ones.
        group: Processes whose batches count as one; None for this process alone.
    """

    module: Any
    of_batch: bool
    tracks: bool
    group: Any = None

    def affine(self, weight: Tensor | None, bias: Tensor | None, moments: Moments) -> Affine:
        """The norm as a map, from its parameters, (C,), and the statistics it goes by."""
        inverse_std = (moments.var + self.module.eps).rsqrt()
        scale = inverse_std if weight is None else inverse_std * weight
        if bias is None:
            return Affine(scale, -moments.mean * scale, inverse_std)
        bias = bias.to(moments.mean.dtype)
        return Affine(scale, torch.addcmul(bias, moments.mean, scale, value=-1), inverse_std)

    def track(self, moments: Moments, count: float) -> None:
        """Mixes a batch's statistics of ``count`` values a channel into the running ones."""
        if not self.tracks:
            return
        norm, weight = self.module, self.module.momentum
        if norm.num_batches_tracked is not None:
            norm.num_batches_tracked.add_(1)
            if weight is None:  # the average over all batches
                weight = 1.0 / float(norm.num_batches_tracked)
        unbiased = count / max(count - 1, 1)
        norm.running_mean.lerp_(moments.mean.to(norm.running_mean.dtype), weight)
        norm.running_var.mul_(1 - weight).add_(moments.var, alpha=weight * unbiased)

    def running(self) -> Moments:
        """The running statistics, in at least single precision."""
        return Moments(precise(self.module.running_mean), precise(self.module.running_var))


def read_norm(norm: nn.Module) -> NormForm | None:
    """What ``norm`` does in its present mode; None for a norm that is not known here.

    Known are batch norm, SyncBN, torchvision's frozen batch norm and heirs of it that say
    ``evaluates_as_batch_norm``, and heirs of batch norm that say ``batch_statistics_in_eval``.
    Other heirs may compute anything.
    """
    if isinstance(norm, FrozenBatchNorm2d):
        exact = type(norm) is FrozenBatchNorm2d or "evaluates_as_batch_norm" in vars(type(norm))
        return NormForm(norm, of_batch=False, tracks=False) if exact else None
    in_eval_too = "batch_statistics_in_eval" in vars(type(norm))
    if type(norm) not in (nn.BatchNorm2d, nn.SyncBatchNorm) and not in_eval_too:
        return None
    if not isinstance(norm, nn.BatchNorm2d | nn.SyncBatchNorm):
        return None
    tracks = norm.training and norm.track_running_stats and norm.running_mean is not None
    of_batch = norm.training or in_eval_too or norm.running_mean is None
    if norm.training and isinstance(norm, nn.SyncBatchNorm):
        group = norm.process_group or _all_processes()
        return NormForm(norm, of_batch, tracks, group if _world_of(group) > 1 else None)
    return NormForm(norm, of_batch, tracks)


def _all_processes() -> Any:
    return dist.group.WORLD if dist.is_available() and dist.is_initialized() else None


def _world_of(group: Any) -> int:
    """Number of processes in ``group``; 1 for None."""
    return 1 if group is None else dist.get_world_size(group)


def precise(x: Tensor) -> Tensor:
    """``x`` in single precision if it is in half precision: what norms compute in."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def value_count(x: Tensor, group: Any = None) -> float:
    """Values of each channel of ``x``, (N, C, H, W), over a process group."""
    count = x.numel() / x.shape[1]
    if group is None:
        return count
    total = torch.tensor(count, device=x.device, dtype=torch.float64)
    dist.all_reduce(total, group=group)
    return float(total)


def batch_moments(x: Tensor, group: Any = None) -> Moments:
    """Mean and biased variance of each channel of ``x``, (N, C, H, W), over a process group.

    With a group it is one exchange: each process tells its own moments, and the variance of all is
    put together from them (Chan et al., 1979), as summed squares would lose digits.
    """
    if x.device.type in ("cpu", "cuda"):
        # On CPUs many times faster than `torch.var_mean` over channels-last maps. On GPUs it takes
        # half precision as it is, computes in single precision, and returns that.
        known = x if x.is_cuda else precise(x)
        mean, var = torch.batch_norm_update_stats(known, None, None, 0.0)
    else:
        var, mean = torch.var_mean(precise(x), dim=(0, 2, 3), correction=0)
    if group is None:
        return Moments(mean, var)
    count = mean.new_full((1,), x.numel() / x.shape[1])
    every = mean.new_empty(_world_of(group), 2 * x.shape[1] + 1)
    dist.all_gather(list(every.unbind()), torch.cat((mean, var, count)), group=group)
    share = every[:, -1:] / every[:, -1:].sum()
    means, variances = every[:, :-1].chunk(2, dim=1)
    mean = (share * means).sum(0)
    return Moments(mean, (share * (variances + (means - mean).square())).sum(0))
