"""The architecture below every detector and segmenter is asked for by the same names."""

import re

import pytest
import torch
from torch import nn

from densenet_backbones.heads import fcdensenet103, retinanet_fpn, unet
from densenet_backbones.inference.model_file import build_registered
from densenet_backbones.inference.smp_segmenters import build_smp
from densenet_backbones.layers import DenseBlock
from densenet_backbones.torchvision_models import DETECTORS, MODELS, SEGMENTERS

# One for each builder: those of single backbones are the same function.
NAMES = [name for name in MODELS if not re.search("densenet(1|201|74)|_v2", name)] + [
    "fcdensenet103",
    "fcos_densenet121_fpn",
]
SMALL = {"growth_rate": 4, "num_init_features": 8, "drop_rate": 0.25, "memory": "layer"}


@pytest.mark.parametrize("name", dict.fromkeys(NAMES))
def test_every_builder_takes_them(name):
    block_config = [1] * 6 if name.startswith("fc") and name in SEGMENTERS else [1, 1, 1, 1]
    kind = "detector" if name in DETECTORS else "segmenter"
    with torch.device("meta"):
        model = build_registered(kind, name, 3, {**SMALL, "block_config": block_config})
    net = model.net.encoder if hasattr(getattr(model, "net", None), "encoder") else model
    blocks = [module for module in net.modules() if isinstance(module, DenseBlock)]
    assert blocks and {len(list(block.children())) for block in blocks} == {1}
    assert {block.memory for block in blocks} == {"layer"}
    first = next(m for m in model.modules() if isinstance(m, nn.Conv2d))
    assert first.out_channels in (4, 8)  # half of it in the first of the three of DSOD
    rates = {layer.drop_rate for block in blocks for layer in block.children()}
    assert rates == {0.25}


def test_smp_takes_them_for_its_timm_encoders():
    args = {"encoder_name": "tu-densenet121_features", **SMALL, "block_config": [1, 1, 1, 1]}
    model = build_smp("Unet", 2, args)
    assert model.net.encoder.out_channels[1:3] == [8, 12]
    with pytest.raises(ValueError, match=r"growth_rate can be given for timm's encoders"):
        build_smp("Unet", 2, {"encoder_name": "densenet121_features", "growth_rate": 4})
    with pytest.raises(ValueError, match=r"'encoder_nam'; did you mean 'encoder_name'\? \(known"):
        build_smp("Unet", 2, {"encoder_nam": "densenet121_features"})


@pytest.mark.parametrize(
    ("build", "options", "error", "sentence"),
    [
        (retinanet_fpn, {"minsize": 9}, TypeError, r"'minsize'; did you mean 'min_size'\? \(known"),
        (unet, {"groth_rate": 9}, TypeError, r"'groth_rate'; did you mean 'growth_rate'\? \(known"),
        (fcdensenet103, {"compression": 1}, TypeError, r"'compression' \(known: \['batch_stat"),
        (
            unet,
            {"growth_rate": 4, "backbone_kwargs": {"growth_rate": 8}},
            ValueError,
            "growth_rate is given, and growth_rate in backbone_kwargs: leave one of them out",
        ),
    ],
)
def test_what_a_builder_does_not_take(build, options, error, sentence):
    with pytest.raises(error, match=sentence):
        build(num_classes=2, **options)
