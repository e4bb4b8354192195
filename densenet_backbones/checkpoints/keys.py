"""Names of DenseNet weights in torchvision, in timm, and here.

torchvision and timm name a classifier's weights alike: ours with ``features.`` before all but the
classifier. Files made before torchvision 0.4 write ``norm.1`` for ``norm1`` inside a dense layer
(torchvision/models/densenet.py, ``_load_state_dict``). timm's ``features_only`` nets write
``features_`` for ``features.`` (timm/models/_features.py, ``_module_list``).
"""

import re
from collections.abc import Collection, Iterable, Mapping
from typing import TypeVar

__all__ = ["CLASSIFIER", "fit_to", "to_ours", "to_torchvision"]

CLASSIFIER = "classifier."
_DOTTED = re.compile(r"(denselayer\d+\.(?:norm|relu|conv))\.([12]\.)")
_PREFIX = re.compile(r"^features[._]")
_T = TypeVar("_T")


def to_ours(weights: Mapping[str, _T]) -> dict[str, _T]:
    """Renames torchvision's or timm's DenseNet keys, old or new; our own keys stay as they are.

    Raises:
        ValueError: Two keys mean the same weight.
    """
    renamed: dict[str, _T] = {}
    for key, value in weights.items():
        name = _PREFIX.sub("", _DOTTED.sub(r"\1\2", key))
        if name in renamed:
            raise ValueError(f"the weights hold {name!r} twice, the second time as {key!r}")
        renamed[name] = value
    return renamed


def to_torchvision(weights: Mapping[str, _T]) -> dict[str, _T]:
    """Renames our keys to those of torchvision's and timm's classifiers."""
    return {
        key if key.startswith(CLASSIFIER) else f"features.{key}": value
        for key, value in weights.items()
    }


def fit_to(
    weights: Mapping[str, _T], known: Collection[str], needed: Iterable[str]
) -> dict[str, _T]:
    """Renames weights to our keys and checks that they belong to a network.

    A loader that is not strict, such as timm's for feature nets, leaves random what it cannot
    match, without a word; this check speaks. The classifier is left to the loader.

    Args:
        weights: torchvision's, timm's or our keys.
        known: Keys the network has.
        needed: Keys that must be there.

    Returns:
        All weights under our names.

    Raises:
        ValueError: A key is unknown, or a needed one is missing.
    """
    renamed = to_ours(weights)
    unknown = [key for key in renamed if key not in known and not key.startswith(CLASSIFIER)]
    if unknown:
        raise ValueError(
            f"the weights hold {len(unknown)} entries this network does not have, the first is "
            f"{unknown[0]!r}: they belong to another architecture"
        )
    # Counters of batches are younger than published files, and torch fills them in.
    missing = [
        key
        for key in needed
        if key not in renamed and not key.startswith(CLASSIFIER)
        if not key.endswith(".num_batches_tracked")
    ]
    if missing:
        raise ValueError(
            f"the weights lack {len(missing)} entries this network needs, the first is "
            f"{missing[0]!r}: they belong to another architecture or to fewer taps"
        )
    return renamed
