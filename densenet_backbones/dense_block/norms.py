"""What a batch norm does in one pass, as numbers a channel: for executions that reuse statistics.

In a dense block every layer norms the same maps again. A batch's mean and variance belong to the
map, not to the layer that reads it, so they are computed once; what differs by layer is the affine
map made of them, and the running statistics they are mixed into.

On an NVIDIA GPU a Triton kernel makes that map and mixes, and another does the way back; elsewhere
plain operators do.

Shapes: N images, C channels, H and W pixels. Statistics are (C,) in at least single precision.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

from densenet_backbones.dense_block.backends import has_triton_training

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

    def affine(
        self, parameters: Sequence[Tensor | None], moments: Moments, count: float | None = None
    ) -> Affine:
        """The norm as a map, from its weight and bias, (C,), and the statistics it goes by.

        With a ``count`` these are new, of that many values a channel: if the norm tracks, they are
        mixed into the running ones.
        """
        norm, vectors = self.module, (moments.mean, moments.var)
        if count is None or not self.tracks:
            if kernels := _kernels(*vectors, *parameters):
                return Affine(*kernels.affine(vectors, parameters, norm.eps))
            return self._affine(parameters, moments)
        running = norm.running_mean, norm.running_var
        if norm.momentum is not None and (kernels := _kernels(*vectors, *parameters, *running)):
            self._count_batch()
            mixing = running, norm.momentum, _correction(count)
            return Affine(*kernels.affine(vectors, parameters, norm.eps, *mixing))
        self._track(moments, count)
        return self.affine(parameters, moments)

    def _affine(self, parameters: Sequence[Tensor | None], moments: Moments) -> Affine:
        weight, bias = parameters
        inverse_std = (moments.var + self.module.eps).rsqrt()
        scale = inverse_std if weight is None else inverse_std * weight
        if bias is None:
            return Affine(scale, -moments.mean * scale, inverse_std)
        bias = bias.to(moments.mean.dtype)
        return Affine(scale, torch.addcmul(bias, moments.mean, scale, value=-1), inverse_std)

    def _track(self, moments: Moments, count: float) -> None:
        norm, weight = self.module, self.module.momentum
        self._count_batch()
        if norm.num_batches_tracked is not None and weight is None:  # the average over all batches
            weight = 1.0 / float(norm.num_batches_tracked)
        norm.running_mean.lerp_(moments.mean.to(norm.running_mean.dtype), weight)
        norm.running_var.mul_(1 - weight).add_(moments.var, alpha=weight * _correction(count))

    def _count_batch(self) -> None:
        if self.module.num_batches_tracked is not None:
            self.module.num_batches_tracked.add_(1)

    def run_back(
        self,
        sums: tuple[Tensor, Tensor],
        affine: Affine,
        moments: Moments,
        count: float,
        parameters: Sequence[Tensor | None],
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """What follows from the two sums that a norm's gradient is made of.

        Args:
            sums: Of the gradient of the norm's output, and of that weighted by its input: (C,), or
                (R, C) in rows to be added up.
            affine: What `affine` returned.
            moments: What it was made of.
            count: Values of each channel that these are of.
            parameters: Weight and bias, each None if its gradient is not asked for.

        Returns:
            What the batch's statistics take from the input's gradient, (2, C), a constant and a
            multiple of the input; and the gradients of weight and bias.
        """
        vectors = moments.mean, affine.scale, affine.inverse_std
        if kernels := _kernels(*sums, *vectors, *parameters):
            of_value = 1 / count if self.of_batch else 0.0
            found: tuple[Tensor, Tensor | None, Tensor | None]
            found = kernels.norm_gradients(sums, *vectors, of_value, parameters)
            return found
        summed, weighted = (s.sum(0) if s.dim() > 1 else s for s in sums)
        correlated = torch.addcmul(weighted, moments.mean, summed, value=-1)
        correlated.mul_(affine.inverse_std)
        share = affine.scale / count if self.of_batch else torch.zeros_like(affine.scale)
        slope = (share * correlated).mul_(affine.inverse_std)
        constant = (share * summed).addcmul_(slope, moments.mean, value=-1)
        weight, bias = parameters
        return (
            torch.stack((constant, slope)),
            None if weight is None else correlated.to(weight.dtype),
            None if bias is None else summed.to(bias.dtype),
        )

    def running(self) -> Moments:
        """The running statistics, in at least single precision."""
        return Moments(precise(self.module.running_mean), precise(self.module.running_var))


def _kernels(*vectors: Tensor | None) -> Any:
    """The kernels that take these vectors, of which some may be None; None if there are none."""
    known = [vector for vector in vectors if vector is not None]
    if not all(x.stride(-1) == 1 for x in known) or not has_triton_training(*known):
        return None
    from densenet_backbones.dense_block.triton_training import norms

    return norms


def _correction(count: float) -> float:
    """Factor from the biased variance of ``count`` values to the unbiased one."""
    return count / max(count - 1, 1)


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
