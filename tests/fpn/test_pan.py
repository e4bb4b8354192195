"""PANet's bottom-up path against the paper written out."""

import pytest
import torch
import torch.nn.functional as F
from tiny_levels import C3, C4, C5, maps_of, shake
from torch import Tensor

from densenet_backbones.features import FeatureLevel
from densenet_backbones.fpn import FPN, PAN


def _by_hand(weights: dict[str, Tensor], c3: Tensor, c4: Tensor, c5: Tensor) -> list[Tensor]:
    """Lin et al. 2017, section 3, then Liu et al. 2018, section 3.1, where sizes double."""

    def conv(name: str, x: Tensor, stride: int = 1) -> Tensor:
        kernel = weights[f"{name}.weight"]
        padding = kernel.shape[-1] // 2
        return F.conv2d(x, kernel, weights[f"{name}.bias"], stride, padding)

    def up(x: Tensor) -> Tensor:
        return x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)

    m5 = conv("pyramid.inner_blocks.2.0", c5)
    m4 = conv("pyramid.inner_blocks.1.0", c4) + up(m5)
    m3 = conv("pyramid.inner_blocks.0.0", c3) + up(m4)
    p3, p4, p5 = (conv(f"pyramid.layer_blocks.{i}.0", m) for i, m in enumerate((m3, m4, m5)))
    n3 = p3
    n4 = conv("steps.0.fuse", p4 + conv("steps.0.down", n3, 2).relu()).relu()
    n5 = conv("steps.1.fuse", p5 + conv("steps.1.down", n4, 2).relu()).relu()
    return [n3, n4, n5]


def test_it_is_the_paper() -> None:
    pan = shake(PAN((C3, C4, C5), 8, None))
    maps = maps_of((C3, C4, C5), 64, 96, dtype=torch.float64)
    expected = _by_hand(pan.state_dict(), *maps)
    torch.testing.assert_close(pan(maps), expected, rtol=1e-12, atol=1e-12)
    assert all((x > 0).any() for x in expected)  # ReLU has not silenced the comparison


@pytest.mark.parametrize("extra", ["pool", "p6p7"])
@pytest.mark.parametrize("p6p7_input", ["c5", "p5"])
def test_extra_levels_stand_on_the_last_map(extra: str, p6p7_input: str) -> None:
    # c5 is as wide as the outputs, so that the wrong input would fit
    levels = (C4, FeatureLevel("c5", 8, 32))
    pan = shake(PAN(levels, 8, extra, p6p7_input))
    maps = maps_of(levels, 128, dtype=torch.float64)
    p4, p5, *more = pan(maps)
    if extra == "pool":
        torch.testing.assert_close(more, [p5[:, :, ::2, ::2]])
    else:
        p6 = pan.extra.p6(maps[-1] if p6p7_input == "c5" else p5)
        torch.testing.assert_close(more, [p6, pan.extra.p7(p6.relu())])
    assert [x.shape[-1] for x in (p4, p5, *more)] == [128 // x.stride for x in pan.levels]


def test_sizes_that_the_backbone_rounds_down() -> None:
    pan = shake(PAN((C3, C4, C5), 8, None))
    c3, c4, c5 = maps_of((C3, C4, C5), 93, 109, up=False, dtype=torch.float64)  # 11, 5, 2 high
    n3, n4, n5 = pan([c3, c4, c5])
    assert [x.shape[-2:] for x in (n3, n4, n5)] == [x.shape[-2:] for x in (c3, c4, c5)]
    p4 = pan.pyramid({"c3": c3, "c4": c4, "c5": c5})["c4"]
    down = pan.steps[0].down(n3).relu()  # 6 rows for 5: the last one has no partner
    torch.testing.assert_close(n4, pan.steps[0].fuse(p4 + down[..., :5, :6]).relu())


def test_it_takes_the_weights_of_a_feature_pyramid() -> None:
    fpn, pan = FPN((C3, C4, C5), 8, None), PAN((C3, C4, C5), 8, None)
    missing, unexpected = pan.load_state_dict(fpn.state_dict(), strict=False)
    assert unexpected == []
    assert all(name.startswith("steps.") for name in missing)
    maps = maps_of((C3, C4, C5))
    torch.testing.assert_close(pan(maps)[0], fpn(maps)[0])  # N2 = P2


def test_every_parameter_learns() -> None:
    pan = PAN((C3, C4, C5), 8, "p6p7")
    sum(x.square().sum() for x in pan(maps_of(pan.levels_in, 128))).backward()
    assert all(p.grad is not None and p.grad.any() for p in pan.parameters())
