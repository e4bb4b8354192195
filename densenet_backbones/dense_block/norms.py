"""Batch norm taken apart into numbers a channel, for executions that reuse statistics.

Batch norm (Ioffe and Szegedy, 1502.03167, section 3) is a mean and a variance, and a scale and a
shift made of them. In a dense block every layer norms the same maps again. A batch's mean and
variance belong to the map, not to the layer that reads it, so they are computed once; what differs
by layer is the affine map made of them, and the running statistics they are mixed into.

Where the Triton kernels are on (see `backends`), one makes that map and mixes, and another goes
backward; elsewhere plain operators do.

Shapes: N images, C channels, H and W pixels. Statistics are (C,) in at least single precision.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

from densenet_backbones.dense_block.backends import has_triton_training
from densenet_backbones.dense_block.interfaces import find_change

__all__ = [
    "Affine",
    "BatchNormLike",
    "Moments",
    "NormForm",
    "compute_moments",
    "count_values",
    "read_norm",
    "widen_half",
]


class BatchNormLike(Protocol):
    """A norm that `read_norm` knows; frozen ones have no momentum and count no batches."""

    weight: Tensor | None
    bias: Tensor | None
    running_mean: Tensor | None
    running_var: Tensor | None
    num_batches_tracked: Tensor | None
    eps: float
    momentum: float | None


class _NormKernels(Protocol):
    """Kernels of norms: `triton_training.norms`."""

    def make_affine(
        self,
        moments: tuple[Tensor, Tensor],
        parameters: Sequence[Tensor | None],
        eps: float,
        running: tuple[Tensor, Tensor] | None = None,
        momentum: float = 0.0,
        correction: float = 1.0,
    ) -> tuple[Tensor, ...]:
        """Compute scale, shift and 1 / std; statistics are mixed into ``running``."""

    def compute_norm_gradients(
        self,
        sums: tuple[Tensor, Tensor],
        mean: Tensor,
        scale: Tensor,
        inverse_std: Tensor,
        share: float,
        parameters: Sequence[Tensor | None],
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Compute what `NormForm.backward` returns."""


@dataclass(frozen=True)
class Moments:
    """Mean and biased variance of each channel, (C,)."""

    mean: Tensor
    var: Tensor


@dataclass(frozen=True)
class Affine:
    """A norm as the map ``scale * x + shift``, (C,) each, and 1 / std, which gradients need."""

    scale: Tensor
    shift: Tensor
    inverse_std: Tensor


@dataclass(frozen=True)
class NormForm:
    """A norm, and where its statistics come from in this pass.

    Attributes:
        module: The norm.
        of_batch: True for the batch's statistics; else they are the running ones, constants.
        tracks: True if the batch's are mixed into the running ones.
        group: Processes whose batches count as one; None for this process alone.
    """

    module: BatchNormLike
    of_batch: bool
    tracks: bool
    group: dist.ProcessGroup | None = None

    def make_affine(
        self, parameters: Sequence[Tensor | None], moments: Moments, count: float | None = None
    ) -> Affine:
        """Make the norm a map.

        Args:
            parameters: Weight and bias, (C,) each, None where there is none.
            moments: Statistics it goes by.
            count: Values of each channel that these are of, if they are new: a norm that tracks
                mixes them into the running ones. None if they have been mixed, or never are.
        """
        norm, vectors = self.module, (moments.mean, moments.var)
        if count is None or not self.tracks:
            if kernels := _find_kernels(*vectors, *parameters):
                return Affine(*kernels.make_affine(vectors, parameters, norm.eps))
            return self._compute_affine(parameters, moments)
        # New statistics: mixed in the same kernel if there is one, and else before the map is made.
        assert norm.running_mean is not None and norm.running_var is not None
        running = norm.running_mean, norm.running_var
        if norm.momentum is not None and (
            kernels := _find_kernels(*vectors, *parameters, *running)
        ):
            self._count_batch()
            mixing = running, norm.momentum, _compute_correction(count)
            return Affine(*kernels.make_affine(vectors, parameters, norm.eps, *mixing))
        self._track(moments, count)
        return self.make_affine(parameters, moments)

    def _compute_affine(self, parameters: Sequence[Tensor | None], moments: Moments) -> Affine:
        weight, bias = parameters
        inverse_std = (moments.var + self.module.eps).rsqrt()
        scale = inverse_std if weight is None else inverse_std * weight
        if bias is None:
            return Affine(scale, -moments.mean * scale, inverse_std)
        bias = bias.to(moments.mean.dtype)
        return Affine(scale, torch.addcmul(bias, moments.mean, scale, value=-1), inverse_std)

    def _track(self, moments: Moments, count: float) -> None:
        norm, weight = self.module, self.module.momentum
        assert norm.running_mean is not None and norm.running_var is not None
        self._count_batch()
        # Without momentum, running statistics are the average over all batches.
        if norm.num_batches_tracked is not None and weight is None:
            weight = 1.0 / float(norm.num_batches_tracked)
        assert weight is not None
        norm.running_mean.lerp_(moments.mean.to(norm.running_mean.dtype), weight)
        norm.running_var.mul_(1 - weight).add_(
            moments.var, alpha=weight * _compute_correction(count)
        )

    def _count_batch(self) -> None:
        if self.module.num_batches_tracked is not None:
            self.module.num_batches_tracked.add_(1)

    def backward(
        self,
        sums: tuple[Tensor, Tensor],
        affine: Affine,
        moments: Moments,
        count: float,
        parameters: Sequence[Tensor | None],
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Compute gradients from the two sums that a norm's gradient is made of.

        Args:
            sums: Sums over pixels of the gradient of the norm's output, and of that weighted by its
                input: (C,), or (R, C) in rows to be added up.
            affine: The norm as a map, as `affine` returned it.
            moments: Statistics that the norm went by.
            count: Values of each channel that these are of.
            parameters: Weight and bias, each None if its gradient is not asked for.

        Returns:
            Coefficients of the linear function of the input that the batch's statistics take from
            its gradient, (2, C), a constant and a multiple of the input; and the gradients of
            weight and bias.
        """
        vectors = moments.mean, affine.scale, affine.inverse_std
        if kernels := _find_kernels(*sums, *vectors, *parameters):
            of_value = 1 / count if self.of_batch else 0.0
            return kernels.compute_norm_gradients(sums, *vectors, of_value, parameters)
        # sum(g * x_hat), the weight's gradient, from sums of g and of g * x.
        summed, weighted = (s.sum(0) if s.dim() > 1 else s for s in sums)
        correlated = torch.addcmul(weighted, moments.mean, summed, value=-1)
        correlated.mul_(affine.inverse_std)
        # With statistics of the batch, scale / n * (sum(g) + x_hat * sum(g * x_hat)) is taken, and
        # x_hat = (x - mean) / std makes that a constant and a multiple of x.
        share = affine.scale / count if self.of_batch else torch.zeros_like(affine.scale)
        slope = (share * correlated).mul_(affine.inverse_std)
        constant = (share * summed).addcmul_(slope, moments.mean, value=-1)
        weight, bias = parameters
        return (
            torch.stack((constant, slope)),
            None if weight is None else correlated.to(weight.dtype),
            None if bias is None else summed.to(bias.dtype),
        )

    def get_running(self) -> Moments:
        """Return the running statistics, in at least single precision."""
        mean, var = self.module.running_mean, self.module.running_var
        assert mean is not None and var is not None
        return Moments(widen_half(mean), widen_half(var))


def _find_kernels(*vectors: Tensor | None) -> _NormKernels | None:
    """Return the kernels that take these vectors, some of which may be None; None without any."""
    known = [vector for vector in vectors if vector is not None]
    if not all(x.stride(-1) == 1 for x in known) or not has_triton_training(*known):
        return None
    from densenet_backbones.dense_block.triton_training import norms

    return norms


def _compute_correction(count: float) -> float:
    """Return the factor from the biased variance of ``count`` values to the unbiased one."""
    return count / max(count - 1, 1)


def read_norm(norm: nn.Module) -> NormForm | None:
    """Return the form of ``norm`` in its present mode; None for a norm that is not known here.

    Known are batch norm, SyncBN, torchvision's frozen batch norm and heirs of it that say
    ``evaluates_as_batch_norm``, and heirs of batch norm that say ``batch_statistics_in_eval``.
    Other heirs may compute anything, and so may a norm with hooks or a ``forward`` of its own.
    """
    if find_change(norm, "norm") is not None:
        return None
    if isinstance(norm, FrozenBatchNorm2d):
        return NormForm(cast(BatchNormLike, norm), of_batch=False, tracks=False)
    in_eval_too = "batch_statistics_in_eval" in vars(type(norm))
    if not isinstance(norm, nn.BatchNorm2d | nn.SyncBatchNorm):
        return None
    tracks = norm.training and norm.track_running_stats and norm.running_mean is not None
    of_batch = norm.training or in_eval_too or norm.running_mean is None
    group = None
    if norm.training and isinstance(norm, nn.SyncBatchNorm):
        everyone = norm.process_group or _get_all_processes()
        group = everyone if _count_processes(everyone) > 1 else None
    return NormForm(cast(BatchNormLike, norm), of_batch, tracks, group)


def _get_all_processes() -> dist.ProcessGroup | None:
    return dist.group.WORLD if dist.is_available() and dist.is_initialized() else None


def _count_processes(group: dist.ProcessGroup | None) -> int:
    """Return the number of processes in ``group``; 1 for None."""
    return 1 if group is None else dist.get_world_size(group)


def widen_half(x: Tensor) -> Tensor:
    """Return ``x`` in single precision if it is in half precision: norms compute in it."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def count_values(x: Tensor, group: dist.ProcessGroup | None = None) -> float:
    """Count the values of each channel of ``x``, (N, C, H, W), over a process group."""
    count = x.numel() / x.shape[1]
    if group is None:
        return count
    total = torch.tensor(count, device=x.device, dtype=torch.float64)
    dist.all_reduce(total, group=group)
    return float(total)


def compute_moments(x: Tensor, group: dist.ProcessGroup | None = None) -> Moments:
    """Compute mean and biased variance of each channel of ``x``, (N, C, H, W), over a group.

    With a group it is one exchange: each process sends its own moments, and the variance of all is
    put together from them (Chan et al., 1979), as summed squares would lose digits.
    """
    if x.device.type in ("cpu", "cuda"):
        # On CPUs many times faster than `torch.var_mean` over channels-last maps. On GPUs it takes
        # half precision as it is, computes in single precision, and returns that.
        known = x if x.is_cuda else widen_half(x)
        mean, var = torch.batch_norm_update_stats(known, None, None, 0.0)
    else:
        var, mean = torch.var_mean(widen_half(x), dim=(0, 2, 3), correction=0)
    if group is None:
        return Moments(mean, var)
    # Gather count, mean and variance of all processes, and weigh them by their share of values.
    count = mean.new_full((1,), x.numel() / x.shape[1])
    every = mean.new_empty(_count_processes(group), 2 * x.shape[1] + 1)
    dist.all_gather(list(every.unbind()), torch.cat((mean, var, count)), group=group)
    share = every[:, -1:] / every[:, -1:].sum()
    means, variances = every[:, :-1].chunk(2, dim=1)
    mean = (share * means).sum(0)
    return Moments(mean, (share * (variances + (means - mean).square())).sum(0))
