"""What smp's ``tests/encoders`` and ``tests/models`` ask of its encoders and models, of our names.

The sdist of segmentation_models.pytorch has neither folder, so their properties are written anew
(after ``tests/encoders/base.py`` and ``tests/models/base.py`` of version 0.5).
"""

import copy
import inspect
from pathlib import Path
from typing import Any

import pytest
import segmentation_models_pytorch as smp
import timm
import torch
from tiny_nets import KINDS
from torch import Tensor, nn

from densenet_backbones.smp_encoders import DenseFeatureEncoder

NATIVE = [n for n, e in smp.encoders.encoders.items() if e["encoder"] is DenseFeatureEncoder]
KINDS_OF_THEM = [name for name in KINDS if name in NATIVE]
STRIDES = [1, 2, 4, 8, 16, 32]


def get_strides(name: str) -> list[int]:
    with torch.device("meta"):
        return list(timm.create_model(name).feature_info.reduction())


# smp's universal encoders refuse levels of equal strides, as a CondenseNet's first two are.
UNIVERSAL = [f"tu-{name}" for name in KINDS_OF_THEM if get_strides(name) == STRIDES[1:]]
DECODERS = list(smp.MODEL_ARCHITECTURES_MAPPING)
SIDE = 64


def get_encoder(name: str, **options: Any) -> Any:
    torch.manual_seed(0)
    return smp.encoders.get_encoder(name, weights=None, **options)


def run(module: nn.Module, x: Tensor) -> Any:
    with torch.inference_mode():
        return module.eval()(x)


def image(channels: int = 3, side: int = SIDE) -> Tensor:
    return torch.rand(1, channels, side, side)


# ------------------------------------------------------------------------------ encoders


@pytest.mark.parametrize("name", [*NATIVE, *UNIVERSAL])
def test_forward_and_backward(name: str) -> None:
    encoder = get_encoder(name).train()
    maps = encoder(torch.rand(2, 3, SIDE, SIDE))
    assert len(maps) == len(STRIDES)
    maps[-1].mean().backward()
    assert [key for key, p in encoder.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize("name", [*NATIVE, *UNIVERSAL])
@pytest.mark.parametrize("channels", [1, 2, 4])
def test_in_channels(name: str, channels: int) -> None:
    maps = run(get_encoder(name, in_channels=channels), image(channels))
    assert maps[0].shape[1] == channels


@pytest.mark.parametrize("name", [*NATIVE, *UNIVERSAL])
@pytest.mark.parametrize("depth", [1, 2, 3, 4])
def test_depth(name: str, depth: int) -> None:
    encoder = get_encoder(name, depth=depth)
    maps = run(encoder, image())
    expected = STRIDES[: depth + 1]
    assert [SIDE // m.shape[2] for m in maps] == [SIDE // m.shape[3] for m in maps] == expected
    assert encoder.output_stride == expected[-1]
    assert [m.shape[1] for m in maps] == list(encoder.out_channels)


@pytest.mark.parametrize("name", NATIVE)
@pytest.mark.parametrize("depth", [0, 6])
def test_invalid_depth(name: str, depth: int) -> None:
    with pytest.raises(ValueError, match="depth"):
        get_encoder(name, depth=depth)


@pytest.mark.parametrize("name", [*NATIVE, *UNIVERSAL])
@pytest.mark.parametrize("stride", [8, 16])
def test_dilated(name: str, stride: int) -> None:
    maps = run(get_encoder(name, output_stride=stride), image())
    assert [SIDE // m.shape[2] for m in maps] == [min(s, stride) for s in STRIDES]
    assert [SIDE // m.shape[3] for m in maps] == [min(s, stride) for s in STRIDES]


@pytest.mark.parametrize("name", NATIVE)
def test_no_weights_and_unknown_weights(name: str) -> None:
    with pytest.raises(KeyError, match="nothing"):
        smp.encoders.get_encoder(name, weights="nothing")


@pytest.mark.parametrize("name", KINDS_OF_THEM)
@pytest.mark.parametrize("way", ["compile", "export", "script"])
def test_what_torch_does_with_an_encoder(name: str, way: str) -> None:
    encoder = get_encoder(name).eval()
    x = image()
    wanted = run(encoder, x)
    assert encoder._is_torch_compilable
    assert encoder._is_torch_exportable
    assert encoder._is_torch_scriptable
    for ours, theirs in zip(run_by(way, encoder, x), wanted, strict=True):
        torch.testing.assert_close(ours, theirs)


def run_by(way: str, module: nn.Module, x: Tensor) -> Any:
    """Run a module compiled, exported or scripted, as smp's tests do."""
    with torch.inference_mode():
        if way == "compile":
            torch.compiler.reset()
            return torch.compile(module, fullgraph=True, dynamic=True, backend="eager")(x)
        if way == "script":
            return torch.jit.script(copy.deepcopy(module))(x)
    exported = torch.export.export(module, (x,), strict=True).module()
    with torch.inference_mode():
        return exported(x)


# ------------------------------------------------------------------------------ models


def get_model(decoder: str, **options: Any) -> Any:
    torch.manual_seed(0)
    # DPT takes universal names alone, and no class token from a convolutional net.
    name = "tu-densenet121_features" if decoder == "dpt" else "densenet121_features"
    if decoder == "dpt":
        options.setdefault("decoder_readout", "ignore")
    return smp.create_model(decoder, name, encoder_weights=None, **options)


def image_of(decoder: str, channels: int = 3) -> Tensor:
    return image(channels, 128 if decoder == "pan" else SIDE)


@pytest.mark.parametrize("decoder", DECODERS)
def test_models_train(decoder: str) -> None:
    model = get_model(decoder).train()
    x = image_of(decoder)
    masks = model(torch.cat([x, x]))
    assert masks.shape == (2, 1, *x.shape[2:])
    masks.mean().backward()
    idle = [key for key, p in model.encoder.named_parameters() if p.grad is None]
    assert idle == []


@pytest.mark.parametrize("decoder", DECODERS)
def test_channels_depth_and_classes(decoder: str) -> None:
    depth = 3
    options: dict[str, Any] = {}
    parameters = inspect.signature(smp.MODEL_ARCHITECTURES_MAPPING[decoder]).parameters
    for key in ("decoder_channels", "decoder_intermediate_channels"):
        default = getattr(parameters.get(key), "default", None)
        if isinstance(default, tuple | list) and decoder not in ("deeplabv3", "deeplabv3plus"):
            options[key] = default[:depth]
    model = get_model(decoder, encoder_depth=depth, in_channels=1, classes=7, **options)
    assert run(model, image_of(decoder, 1)).shape[1] == 7


@pytest.mark.parametrize("decoder", DECODERS)
def test_classification_head(decoder: str) -> None:
    head = {"pooling": "avg", "classes": 10, "dropout": 0.5, "activation": "sigmoid"}
    _, labels = run(get_model(decoder, aux_params=head), image_of(decoder))
    assert labels.shape == (1, 10)


@pytest.mark.parametrize("decoder", DECODERS)
def test_any_resolution(decoder: str) -> None:
    model, x = get_model(decoder), torch.rand(1, 3, SIDE + 3, SIDE + 7)
    if model.requires_divisible_input_shape:
        with pytest.raises(RuntimeError, match="Wrong input shape"):
            run(model, x)
    else:
        assert run(model, x).shape[2:] == x.shape[2:]


@pytest.mark.parametrize("decoder", DECODERS)
def test_save_and_load(decoder: str, tmp_path: Path) -> None:
    model, x = get_model(decoder), image_of(decoder)
    model.save_pretrained(tmp_path, dataset="some_data", metrics={"some_metric": 0.99})
    assert torch.equal(run(smp.from_pretrained(tmp_path), x), run(model, x))
    card = (tmp_path / "README.md").read_text()
    assert "some_data" in card and "some_metric" in card


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("way", ["compile", "export", "script"])
def test_what_torch_does_with_a_model(decoder: str, way: str) -> None:
    model, x = get_model(decoder).eval(), image_of(decoder)
    wanted = run(model, x)
    torch.testing.assert_close(run_by(way, model, x), wanted, rtol=1e-4, atol=1e-5)
