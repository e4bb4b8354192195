"""Our entries in torchvision's registry."""

import importlib.util
from pathlib import Path

import pytest
import torch
import torchvision

import densenet_backbones.heads
from densenet_backbones import torchvision_models

TINY = {
    "image_size": 64,
    "adapter_channels": [4, 4, 4],
    "backbone": "dsod_smallest_features",
    "backbone_kwargs": {"growth_rate": 4, "block_config": [1, 1, 1, 1], "num_init_features": 8},
}


@pytest.mark.parametrize("name", torchvision_models.MODELS)
def test_every_name_builds_trains_and_predicts(name: str) -> None:
    model = torchvision.models.get_model(name, num_classes=3, **TINY)
    target = {"boxes": torch.tensor([[4.0, 4.0, 40.0, 40.0]]), "labels": torch.tensor([2])}
    losses = model([torch.rand(3, 64, 64), torch.rand(3, 48, 48)], [target, target])
    assert all(loss.isfinite() for loss in losses.values())
    found = model.eval()([torch.rand(3, 50, 70)])[0]
    assert set(found) == {"boxes", "scores", "labels"}


@pytest.mark.parametrize("name", torchvision_models.MODELS)
def test_every_name_builds_as_it_is(name: str) -> None:
    with torch.device("meta"):
        model = torchvision.models.get_model(name)
    assert model.num_classes == 21


def test_names_are_listed() -> None:
    names = torchvision.models.list_models(module=densenet_backbones.heads)
    assert names == sorted(torchvision_models.MODELS)
    assert {"dsod300", "dsod300_smallest", "dsod_tiny"} <= set(names)
    assert all(name == name.lower() for name in names)  # torchvision lower-cases before it looks


def _run_the_module_again() -> None:
    path = Path(str(torchvision_models.__file__))
    spec = importlib.util.spec_from_file_location("another_torchvision_models", path)
    assert spec is not None and spec.loader is not None
    spec.loader.exec_module(importlib.util.module_from_spec(spec))


def test_a_name_registered_twice_raises() -> None:
    with pytest.raises(ValueError, match="already registered under the name 'dsod300'"):
        _run_the_module_again()


def test_a_torchvision_without_the_registry_gets_a_sentence(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delattr(torchvision.models._api, "register_model")
    with pytest.raises(ImportError, match=r"tested with torchvision 0\.26 to"):
        _run_the_module_again()
