"""What stands around the nets: detectors, segmenters, convolutions in a row."""

from functools import partial

import pytest
import segmentation_models_pytorch as smp
import torch
from deployed_nets import folded_parts, image
from tiny_nets import randomise_norms, tiny
from torch import nn

from densenet_backbones.dense_block import FoldedConv2d
from densenet_backbones.deploy import deploy
from densenet_backbones.heads import dsod300, fcdensenet56
from densenet_backbones.heads.detection.one_stage import retinanet_fpn
from densenet_backbones.heads.segmentation.unet import DecoderStage, unet

BODY = {"growth_rate": 4, "block_config": [1, 2, 1, 1], "num_init_features": 8}


def test_detectors_find_the_same():
    for build in (
        partial(dsod300, image_size=64, adapter_channels=[8] * 3, score_thresh=0.0),
        partial(retinanet_fpn, out_channels=64, min_size=64, max_size=96, score_thresh=0.0),
    ):
        torch.manual_seed(0)
        name = "dsod_smallest_features" if build.func is dsod300 else "densenet121_features"
        model = randomise_norms(build(num_classes=4, backbone=name, backbone_kwargs=BODY)).eval()
        deployed = deploy(model)
        assert len(folded_parts(deployed)) == 4
        with torch.no_grad():
            images = [image()[0].sigmoid()]
            for a, b in zip(model(images), deployed(images), strict=True):
                torch.testing.assert_close(a["scores"], b["scores"], rtol=1e-4, atol=1e-5)
                assert torch.equal(a["labels"][:3], b["labels"][:3])


def test_segmenters_give_the_same_logits():
    encoder = smp.Unet("tu-densenet121_features", encoder_weights=None, classes=3)
    for model, blocks in [
        (unet(num_classes=3, backbone="densenet121_features", backbone_kwargs=BODY), 4),
        (fcdensenet56(num_classes=3, growth_rate=4, num_init_features=8), 11),
        (encoder, 4),
    ]:
        model = randomise_norms(model).eval()
        deployed = deploy(model)
        assert len(folded_parts(deployed)) == blocks
        x = image(1, 3, 64, 96).sigmoid()
        with torch.no_grad():
            torch.testing.assert_close(deployed(x), model(x), rtol=1e-4, atol=1e-4)


def test_convolutions_around_the_net_take_in_the_norms_and_activations_behind_them():
    model = unet(num_classes=3, backbone="densenet121_features", backbone_kwargs=BODY)
    model = randomise_norms(model).eval()
    stages = [module for module in model.modules() if isinstance(module, DecoderStage)]
    assert len(stages) == 5
    calls = []
    stages[0].convs[0].conv.register_forward_hook(lambda *_: calls.append("hook"))
    stages[1].convs[0].norm = nn.InstanceNorm2d(stages[1].convs[0].conv.out_channels)
    deployed = deploy(model)
    kinds = [
        [type(part) for part in (convs.conv, convs.norm, convs.relu)]
        for module in deployed.modules()
        if isinstance(module, DecoderStage)
        for convs in module.convs
    ]
    assert kinds[0] == [nn.Conv2d, nn.BatchNorm2d, nn.ReLU]
    assert kinds[2] == [FoldedConv2d, nn.InstanceNorm2d, nn.ReLU]
    folded = [FoldedConv2d, nn.Identity, nn.Identity]
    assert all(parts == folded for parts in (kinds[1], *kinds[3:]))
    x = image(1, 3, 64, 96).sigmoid()
    with torch.no_grad():
        torch.testing.assert_close(deployed(x), model(x), rtol=1e-4, atol=1e-4)
    assert calls == ["hook"] * 2


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("act", [nn.ReLU(), nn.ReLU6(), nn.SiLU()])
def test_a_convolution_on_maps_of_many_sizes(act, native, monkeypatch):
    if not native:
        monkeypatch.setattr(
            "densenet_backbones.dense_block.folded.convolution.has_cpp", lambda x: False
        )
    net = tiny("densenet121_features").eval()
    model = nn.Sequential(net, nn.Sequential(nn.Conv2d(24, 20, 3, padding=1), act)).eval()
    head, folded = model[1], deploy(model)[1]
    assert type(folded[0]) is FoldedConv2d
    assert type(folded[1]) is (nn.SiLU if type(act) is nn.SiLU else nn.Identity)
    for size in [*range(1, 12), 1, 2]:
        x = 5 * image(2, 24, size, size + 3)
        with torch.no_grad():
            torch.testing.assert_close(folded(x), head(x), rtol=1e-4, atol=1e-5)
    assert len(folded[0]._layouts) <= 6, "more sizes than that hold no memory"


def test_statistics_of_the_batch_are_not_folded():
    torch.manual_seed(0)
    model = fcdensenet56(
        num_classes=3, growth_rate=4, num_init_features=8, batch_statistics_in_eval=True
    )
    model.double().eval()  # two runs in float32 need not be equal to the bit
    with pytest.warns(UserWarning, match="unfolded"):
        deployed = deploy(model)
    x = image(2, 3, 64, 64).sigmoid().double()
    with torch.no_grad():
        torch.testing.assert_close(deployed(x), model(x))
