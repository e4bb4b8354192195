"""Pretrained DenseNet-121 on this machine: in the caches of torchvision and Hugging Face.

Nothing is fetched, and no server is asked: a recipe is the same with and without a network.
"""

from collections.abc import Iterator
from pathlib import Path

import torch
from huggingface_hub import try_to_load_from_cache
from torchvision.models import DenseNet121_Weights

HUB_REPOSITORIES = ("timm/densenet121.ra_in1k", "timm/densenet121.tv_in1k")
HUB_FILES = ("model.safetensors", "pytorch_model.bin")


def find_densenet121_weights() -> Path | None:
    """Return the file of ImageNet weights of DenseNet-121 in one of the caches; None without."""
    return next((file for file in _list_places() if file.is_file()), None)


def _list_places() -> Iterator[Path]:
    # timm's own first: they were trained for longer.
    for repository in HUB_REPOSITORIES:
        for name in HUB_FILES:
            found = try_to_load_from_cache(repository, name)
            if isinstance(found, str):
                yield Path(found)
    url: str = DenseNet121_Weights.IMAGENET1K_V1.url
    yield Path(torch.hub.get_dir(), "checkpoints", url.rpartition("/")[2])
