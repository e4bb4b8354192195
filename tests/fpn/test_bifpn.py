"""BiFPN against the equations of its paper written out."""

import pytest
import torch
import torch.nn.functional as F
from tiny_levels import C3, C4, C5, maps_of, shake
from torch import Tensor

from densenet_backbones.fpn import BiFPN
from densenet_backbones.fpn.bifpn import FastFusion


class _Paper:
    """Tan et al. 2020, section 3.3, for levels 3 to 7, from a state dictionary."""

    def __init__(self, weights: dict[str, Tensor]) -> None:
        self.weights = weights

    def norm(self, name: str, x: Tensor) -> Tensor:
        parts = ("running_mean", "running_var", "weight", "bias")
        return F.batch_norm(x, *(self.weights[f"{name}.{part}"] for part in parts))

    def lateral(self, index: int, x: Tensor) -> Tensor:
        x = F.conv2d(x, self.weights[f"laterals.{index}.conv.weight"])
        return self.norm(f"laterals.{index}.norm", x)

    def fuse(self, name: str, *maps: Tensor) -> Tensor:
        w = self.weights[f"{name}.fusion_weights"].clamp(min=0)
        assert len(w) == len(maps)
        x = sum(w[i] * x for i, x in enumerate(maps)) / (0.0001 + w.sum())
        x = x * x.sigmoid()
        x = F.conv2d(x, self.weights[f"{name}.depthwise.weight"], padding=1, groups=x.shape[1])
        return self.norm(f"{name}.norm", F.conv2d(x, self.weights[f"{name}.pointwise.weight"]))

    def cell(self, index: int, p3: Tensor, p4: Tensor, p5: Tensor, p6: Tensor, p7: Tensor):
        c = f"cells.{index}"
        td6 = self.fuse(f"{c}.down.0", p6, _up(p7, p6))
        td5 = self.fuse(f"{c}.down.1", p5, _up(td6, p5))
        td4 = self.fuse(f"{c}.down.2", p4, _up(td5, p4))
        out3 = self.fuse(f"{c}.finest", p3, _up(td4, p3))
        out4 = self.fuse(f"{c}.up.0", p4, td4, _down(out3, p4))
        out5 = self.fuse(f"{c}.up.1", p5, td5, _down(out4, p5))
        out6 = self.fuse(f"{c}.up.2", p6, td6, _down(out5, p6))
        out7 = self.fuse(f"{c}.coarsest", p7, _down(out6, p7))
        return out3, out4, out5, out6, out7


def _pool(x: Tensor) -> Tensor:
    return F.max_pool2d(x, 3, 2, 1)


def _up(x: Tensor, to: Tensor) -> Tensor:
    """Row r of H reads row floor(r * h / H), as do columns."""
    rows, columns = (
        torch.arange(large) * small // large
        for large, small in zip(to.shape[-2:], x.shape[-2:], strict=True)
    )
    return x[:, :, rows][..., columns]


def _down(x: Tensor, to: Tensor) -> Tensor:
    return _pool(x)[..., : to.shape[-2], : to.shape[-1]]


@pytest.mark.parametrize("size", [(128, 256), (93, 173)])
@pytest.mark.parametrize("up", [True, False])
def test_it_is_the_paper(size: tuple[int, int], up: bool) -> None:
    net = shake(BiFPN((C3, C4, C5), 6, repeats=2, extra="p6p7"))
    c3, c4, c5 = maps_of((C3, C4, C5), *size, up=up, dtype=torch.float64)
    paper = _Paper(net.state_dict())
    p6 = _pool(paper.lateral(3, c5))
    inputs = (paper.lateral(0, c3), paper.lateral(1, c4), paper.lateral(2, c5), p6, _pool(p6))
    expected = list(paper.cell(1, *paper.cell(0, *inputs)))
    torch.testing.assert_close(net([c3, c4, c5]), expected, rtol=1e-12, atol=1e-12)


def test_two_levels_have_no_intermediate_nodes() -> None:
    net = shake(BiFPN((C3, C4), 6, repeats=1, extra=None))
    c3, c4 = maps_of((C3, C4), dtype=torch.float64)
    paper = _Paper(net.state_dict())
    p3, p4 = paper.lateral(0, c3), paper.lateral(1, c4)
    out3 = paper.fuse("cells.0.finest", p3, _up(p4, p3))
    out4 = paper.fuse("cells.0.coarsest", p4, _down(out3, p4))
    torch.testing.assert_close(net([c3, c4]), [out3, out4], rtol=1e-12, atol=1e-12)


def test_one_level_of_a_backbone_is_enough_with_extra_levels() -> None:
    net = BiFPN((C5,), 6, extra="p6p7").eval()
    assert [x.shape[-1] for x in net(maps_of((C5,), 256))] == [8, 4, 2]


def test_fusion_starts_as_the_mean_and_cannot_subtract() -> None:
    fusion = FastFusion(2, 4).eval()
    fusion.depthwise = fusion.pointwise = fusion.norm = torch.nn.Identity()
    a, b = torch.randn(2, 1, 4, 3, 3)
    torch.testing.assert_close(fusion(a, b), F.silu((a + b) / 2), rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        fusion.fusion_weights.copy_(torch.tensor([2.0, -1.0]))
    torch.testing.assert_close(fusion(a, b), F.silu(a), rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        fusion.fusion_weights.fill_(-1.0)
    assert not fusion(a, b).any()  # and nothing is divided by zero


def test_every_parameter_learns() -> None:
    net = BiFPN((C3, C4, C5), 6, repeats=2, extra="p6p7")
    # not the squares: their sum is the same for whatever batch norm normalises
    sum((x * torch.randn_like(x)).sum() for x in net(maps_of(net.levels_in, 256))).backward()
    assert all(p.grad is not None and p.grad.any() for p in net.parameters())


def test_fusion_weights_are_not_decayed() -> None:
    net = BiFPN((C3, C4, C5), 6, repeats=2, extra="p6p7")
    names = net.no_weight_decay()
    assert len(names) == 2 * (4 + 4)  # cells of five levels have four nodes a direction
    assert names == {n for n, p in net.named_parameters() if p.shape in ((2,), (3,))}


def test_autocast_keeps_its_maps_small() -> None:
    net = BiFPN((C3, C4), 6, repeats=1).eval()
    maps = maps_of((C3, C4), 128)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = net(maps)
    assert {x.dtype for x in mixed} == {torch.bfloat16}
    for low, full in zip(mixed, net(maps), strict=True):
        torch.testing.assert_close(low.float(), full, rtol=0.1, atol=0.1)


def test_mistakes_get_a_sentence() -> None:
    with pytest.raises(ValueError, match="two or more levels, got c5 of stride 32 and extra=None"):
        BiFPN((C5,), extra=None)
    with pytest.raises(ValueError, match="repeats must be at least 1, got 0"):
        BiFPN((C3, C4), repeats=0)
    with pytest.raises(ValueError, match=r"reads 2 maps \(c3 of stride 8, c4 .* got 1: choose"):
        BiFPN((C3, C4))(maps_of((C3,)))
