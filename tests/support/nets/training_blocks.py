"""One dense block in double precision and one step of its training, for tests of equality."""

import copy

import torch
from tiny_nets import randomise_norms
from torch import nn

from densenet_backbones.densenet_spec import DenseNetSpec
from densenet_backbones.layers import DenseBlock


def block_of(layers=3, growth=4, entry=6, **fields):
    """A block in double precision with statistics and affine maps of its own."""
    torch.manual_seed(0)
    spec = DenseNetSpec(growth, (layers,), entry, bn_size=fields.pop("bn_size", 2), **fields)
    block = DenseBlock.from_plan(spec.blocks[0], spec, name="denseblock1")
    return randomise_norms(block).double().train()


def maps(*shape, seed=1, **kwargs):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(**kwargs)


def step(net, x, memory, weight=None):
    """Output, gradients by name (the input's as ``x``) and buffers of one step on a copy."""
    net, x = copy.deepcopy(net), x.clone().requires_grad_()
    net.memory = memory
    torch.manual_seed(2)
    out = net(x)
    (out * torch.linspace(-1, 2, out.numel(), dtype=out.dtype).view(out.shape)).sum().backward()
    gradients = {name: p.grad for name, p in net.named_parameters()}
    return out.detach(), {**gradients, "x": x.grad}, dict(net.named_buffers())


def assert_as_exact(found, usual, run, net, dtype=torch.float32):
    """Outputs, gradients and buffers: no further from float64 than ``dtype`` is, or hardly.

    ``run(net)`` makes a step, as `step` returns it, in float64 as the net is; ``usual`` is the
    plain execution's in ``dtype``. What norms cancel of gradients leaves its rounding, a step of it
    of the largest. Where a ReLU's input is 0 but for its rounding, either slope is right.
    """
    eps = torch.finfo(dtype).eps
    share, kink = (1e-5, 32 * eps) if dtype == torch.float32 else (1e-2, eps)
    exact = run(net)
    largest = max((g.norm() for g in exact[1].values() if g is not None), default=0)
    least = 1e-6 + eps * largest
    beside = None
    gradients = exact[1].keys()
    found, usual, exact = ({"out": o, **g, **b} for o, g, b in (found, usual, exact))
    assert found.keys() == exact.keys()
    for key, value in exact.items():
        assert (found[key] is None) == (value is None), key
        if value is not None:
            assert found[key].shape == value.shape and found[key].dtype == usual[key].dtype, key
            value = value.double()
            error, plain = ((d[key].double() - value).norm() for d in (found, usual))
            bound = share * value.norm() + 2 * plain + least
            if error > bound and key in gradients:
                beside = beside or [run(with_shifts(net, by))[1] for by in (-kink, kink)]
                bound += (beside[0][key] - beside[1][key]).norm()
            assert error <= bound, key


def with_shifts(net, by):
    """A copy whose norms add so much more: ReLUs' inputs about 0 are all on one side."""
    net = copy.deepcopy(net)
    with torch.no_grad():
        for norm in (m for m in net.modules() if isinstance(m, nn.BatchNorm2d)):
            if norm.bias is not None:
                norm.bias += by
    return net
