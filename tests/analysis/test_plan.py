import pytest
import timm
import torch
import torchvision
from tiny_nets import TINY
from torch import nn

from densenet_backbones.analysis.plan import plan, plan_inputs
from densenet_backbones.densenet import DenseNet, DenseNetSpec
from densenet_backbones.features import DenseFeatureNet


@pytest.mark.parametrize("depth", [121, 161, 169, 201])
def test_published_costs(depth):
    meta = torchvision.models.get_model_weights(f"densenet{depth}").DEFAULT.meta
    with torch.device("meta"):
        net = timm.create_model(f"densenet{depth}_features", features_only=False)
    costs = plan(net)
    assert costs.parameters == meta["num_params"]
    assert round(costs.macs / 1e9, 3) == pytest.approx(meta["_ops"], abs=0.0011)


def by_hand(net):
    return {row.name: (row.parameters, row.macs) for row in net.rows}


def test_rows_by_hand():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 8, 3, padding=1)
            self.relu = nn.ReLU()
            self.head = nn.Sequential(nn.Flatten(), nn.Linear(8 * 4 * 6, 5))
            self.scale = nn.Parameter(torch.ones(5, 5))

        def forward(self, x):
            return self.head(self.relu(self.conv(x))) @ self.scale

    net = Net()
    expected = {
        "conv": (3 * 8 * 9 + 8, 2 * 3 * 8 * 9 * 24),
        "head": (192 * 5 + 5, 2 * 192 * 5),
        "(itself)": (25, 2 * 5 * 5),
    }
    costs = plan(net, (2, 3, 4, 6))
    assert by_hand(costs) == expected
    assert by_hand(plan_inputs(net, torch.randn(2, 3, 4, 6))) == expected
    table = costs.table().splitlines()
    assert table[0] == "Net at 2 x 3 x 4 x 6"
    assert table[-1].split()[:2] == ["total", f"{costs.parameters:,}"]


def test_shared_weights_count_once():
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    net[1].weight = net[0].weight
    assert [row.parameters for row in plan(net, (1, 4)).rows] == [20, 4]


@pytest.mark.parametrize("tap", ["raw", "norm", "compressed", "pooled"])
def test_every_stage_of_a_feature_net_is_counted_under_its_name(tap):
    net = DenseFeatureNet(DenseNet(DenseNetSpec(**TINY)), tap=tap)
    costs = plan(net, (1, 3, 64, 64))
    assert costs == plan_inputs(net, torch.randn(1, 3, 64, 64))
    assert [row.name for row in costs.rows if row.macs] == [
        *("conv0", "denseblock1", "transition1", "denseblock2", "transition2"),
        *("denseblock3", "transition3", "denseblock4"),
    ]
    assert by_hand(costs)["transition1"] == (12 * 2 + 12 * 6, 12 * 6 * 16 * 16)


def test_the_model_is_left_as_it_was():
    net = DenseNet(DenseNetSpec(**TINY)).train()
    net.denseblock1.eval()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    plan(net, (1, 3, 64, 64))
    plan_inputs(net, torch.randn(1, 3, 64, 64))
    assert net.training and net.norm5.training and not net.denseblock1.denselayer1.training
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    with pytest.raises(ValueError, match="input_size must hold integers >= 1"):
        plan(net, (1, 3, 0, 64))
