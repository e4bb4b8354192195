"""transformers (Hugging Face) on our networks: its backbone class and its DETR; EfficientDet's way.

Nothing here reaches for the network: the entries are random, and names are looked up in timm.
"""

import copy
import importlib.util
from types import ModuleType

import pytest
import safetensors.torch
import timm
import torch
from tiny_nets import KINDS, NAMES, TINY, randomise_norms, tiny, tiny_fields
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

from densenet_backbones.features import DenseFeatureNet, feature_levels

pytestmark = pytest.mark.long

NAME = "densenet121_features"
TAPS = ("raw", "norm", "compressed", "pooled")


@pytest.fixture(scope="module")
def hf() -> ModuleType:
    if not importlib.util.find_spec("transformers"):
        pytest.skip("needs transformers (pip install densenet-backbones[dev])")
    import transformers

    return transformers


def image() -> Tensor:
    return torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(1))


def backbone(hf: ModuleType, out_indices=(1, 3), arguments=TINY, name=NAME, **config) -> nn.Module:
    """transformers' backbone in eval mode; our own arguments go beside its config."""
    settings = hf.TimmBackboneConfig(backbone=name, out_indices=list(out_indices), **config)
    torch.manual_seed(0)
    return randomise_norms(hf.AutoBackbone.from_config(settings, **arguments)).eval()


def equal(found, expected) -> bool:
    return all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


# ------------------------------------------------------------------------------ TimmBackbone


@pytest.mark.parametrize("tap", TAPS)
@pytest.mark.parametrize("inner", [(), ("denseblock2.denselayer1",)])
def test_maps_channels_and_hidden_states(hf, tap, inner):
    model = backbone(hf, arguments={**TINY, "tap": tap, "layer_taps": inner})
    net = model._backbone
    assert isinstance(net, DenseFeatureNet) and net.tap == tap
    assert model.stage_names == [level["module"] for level in net.feature_info.info]
    with torch.no_grad():
        maps = model(image()).feature_maps
        assert equal(maps, net(image()))
        assert model.channels == [m.shape[1] for m in maps] == net.out_channels
        everything = model(image(), output_hidden_states=True)
        assert equal(everything.feature_maps, maps)
        # all that stand in front of the last wanted tap
        expected = net.forward_intermediates(image(), (0, 1, 2, 3), intermediates_only=True)
        assert equal(everything.hidden_states, expected)
        assert equal(model(image()).feature_maps, maps)
        pairs = model(image(), return_dict=False)
        assert equal(pairs[0], maps)


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_of_network(hf, name):
    arguments = tiny_fields(name, layers=1)
    model = backbone(hf, range(len(arguments["block_config"]) + 1), arguments, name)
    with torch.no_grad():
        output = model(image(), output_hidden_states=True)
    strides = model._backbone.feature_info.reduction()
    sizes = [(2, c, 64 // s, 96 // s) for c, s in zip(model.channels, strides, strict=True)]
    assert [tuple(m.shape) for m in output.feature_maps] == sizes
    assert equal(output.hidden_states, output.feature_maps)


@pytest.mark.parametrize(
    ("out_indices", "names"),
    [
        ((-1,), ["relu5"]),
        ((0, 2), ["relu0", "denseblock2"]),
        ((1, -1), ["denseblock1", "relu5"]),
    ],
)
def test_indices_and_names_of_outputs(hf, out_indices, names):
    model = backbone(hf, out_indices)
    assert model.out_features == model.config.out_features == names
    with torch.no_grad():
        maps = model(image(), output_hidden_states=True).feature_maps
        assert equal(maps, model._backbone(image())) and len(maps) == len(names)
    assert backbone(hf, out_indices, out_features=names).out_features == names
    with pytest.raises(ValueError, match="doesn't match `out_features`"):
        backbone(hf, out_indices, out_features=["denseblock3"])


def test_output_stride_and_image_channels_come_from_the_config(hf):
    model = backbone(hf, (2, 4), output_stride=8, num_channels=5)
    maps = model(torch.randn(2, 5, 64, 96)).feature_maps
    assert [tuple(m.shape[2:]) for m in maps] == [(8, 12), (8, 12)]


def test_saved_and_built_again(hf, tmp_path):
    model = backbone(hf)
    model.save_pretrained(tmp_path)
    # `from_pretrained` takes the name of a timm model with published weights, not a folder, for
    # timm's own nets too; the config and the weights do.
    config = hf.TimmBackboneConfig.from_pretrained(tmp_path)
    assert config.backbone == NAME and config.out_features == ["denseblock1", "denseblock3"]
    again = hf.TimmBackbone(config, **TINY).eval()
    with torch.no_grad():
        assert not equal(again(image()).feature_maps, model(image()).feature_maps)
        again.load_state_dict(safetensors.torch.load_file(tmp_path / "model.safetensors"))
        assert equal(again(image()).feature_maps, model(image()).feature_maps)


def test_frozen_batch_norms(hf):
    plain, frozen = backbone(hf), backbone(hf, freeze_batch_norm_2d=True)
    frozen.load_state_dict(plain.state_dict())
    norms = [m for m in plain.modules() if isinstance(m, nn.BatchNorm2d)]
    assert sum(isinstance(m, FrozenBatchNorm2d) for m in frozen.modules()) == len(norms) > 0
    with torch.no_grad():
        expected = plain(image()).feature_maps
    before = {key: buffer.clone() for key, buffer in frozen.named_buffers()}
    for a, b in zip(frozen.train()(image()).feature_maps, expected, strict=True):
        assert (a - b).abs().max() <= 1e-6 * b.abs().max()
    assert all(torch.equal(buffer, before[key]) for key, buffer in frozen.named_buffers())


# ------------------------------------------------------------------------------ DETR


def detr(hf: ModuleType, **arguments) -> nn.Module:
    """A DETR of one layer each, with the real densenet121: its config takes no more of a net."""
    config = hf.DetrConfig(
        use_timm_backbone=True,
        backbone=NAME,
        use_pretrained_backbone=False,
        d_model=32,
        encoder_layers=1,
        decoder_layers=1,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        num_queries=5,
        num_labels=3,
        **arguments,
    )
    torch.manual_seed(0)
    return hf.DetrForObjectDetection(config)


def test_detr_trains_and_keeps_every_activation(hf, tmp_path):
    model = detr(hf)
    net = model.model.backbone.model
    assert isinstance(net, DenseFeatureNet)
    # `replace_batch_norm` has been at work
    assert not any(isinstance(m, nn.BatchNorm2d) for m in net.modules())
    plain = randomise_norms(timm.create_model(NAME, out_indices=(1, 2, 3, 4))).eval()
    assert net.levels == plain.levels
    net.load_state_dict(plain.state_dict())
    calls: list[nn.Module] = []
    handles = [
        module.register_forward_hook(lambda module, *_: calls.append(module))
        for module in net.modules()
        if isinstance(module, nn.ReLU)
    ]
    with torch.no_grad():
        for a, b in zip(net.eval()(image()), plain(image()), strict=True):
            assert (a - b).abs().max() <= 1e-5 * b.abs().max()
    assert len(calls) == len(set(calls)) == len(handles) == 121
    for handle in handles:
        handle.remove()

    boxes = torch.tensor([[0.5, 0.5, 0.3, 0.2], [0.2, 0.3, 0.1, 0.1]])
    labels = [{"class_labels": torch.tensor([1, 2]), "boxes": boxes}] * 2
    output = model.train()(pixel_values=image(), labels=labels)
    assert output.loss.isfinite() and output.logits.shape == (2, 5, 4)
    output.loss.backward()
    for key, parameter in net.named_parameters():
        gradient = parameter.grad
        assert gradient is not None and gradient.isfinite().all() and gradient.any(), key

    model.save_pretrained(tmp_path)
    again = hf.DetrForObjectDetection.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        a, b = again(pixel_values=image()), model.eval()(pixel_values=image())
    assert torch.equal(a.logits, b.logits) and torch.equal(a.pred_boxes, b.pred_boxes)


@pytest.mark.parametrize("name", KINDS)
def test_detrs_converter_changes_nothing_in_eval(hf, name):
    from transformers.models.detr.modeling_detr import replace_batch_norm

    for dtype, tolerance in ((torch.float32, 1e-6), (torch.float64, 1e-12)):
        net = tiny(name).to(dtype).eval()
        other = copy.deepcopy(net)
        with torch.no_grad():
            replace_batch_norm(other)
            assert not any(isinstance(m, nn.BatchNorm2d) for m in other.modules())
            pairs = zip(other.to(dtype)(image().to(dtype)), net(image().to(dtype)), strict=True)
            for a, b in pairs:
                assert (a - b).abs().max() <= tolerance * b.abs().max()


# ------------------------------------------------------------------------------ EfficientDet


@pytest.mark.parametrize("name", NAMES)
def test_feature_info_as_effdet_reads_it(name):
    net = tiny(name, features_only=True, out_indices=(1, 2, 3), pretrained=False)
    found = net.feature_info.get_dicts(keys=["num_chs", "reduction"])
    levels = [{"num_chs": x.channels, "reduction": x.stride} for x in feature_levels(net)]
    assert found == levels and len(found) == 3
    maps = net.eval()(image())
    for level, m in zip(found, maps, strict=True):
        side = 64 // level["reduction"]
        assert m.shape == (2, level["num_chs"], side, side * 96 // 64)


def test_effdets_levels_of_densenet121():
    with torch.device("meta"):
        net = timm.create_model(NAME, features_only=True, out_indices=(2, 3, 4))
    assert [x["reduction"] for x in net.feature_info.get_dicts(keys=["reduction"])] == [8, 16, 32]
