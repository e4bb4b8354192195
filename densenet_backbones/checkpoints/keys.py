"""Rename DenseNet weights between libraries: other libraries' names, and ours.

Ours are torchvision's without ``features.``. What else is read (``P`` is any prefix):

=============================================  ===================================================
names                                          source
=============================================  ===================================================
``P features.denseblock1.denselayer1.norm1``   torchvision, timm, smp's native encoders
``P features.denseblock1.denselayer1.norm.1``  torchvision before 0.4 and its published files
                                               (models/densenet.py, ``_load_state_dict``)
``P features_denseblock1.denselayer1.norm1``   timm's ``features_only`` (timm/models/_features.py)
``P features.norm_final``                      gpleiss/efficient_densenet_pytorch,
                                               models/densenet.py
``P features.denseblock_1.denselayer_1.``      ShichenLiu/CondenseNet; see `learned_groups`
``P denseblock1.denselayer1.norm1``            ours, ``torchvision.models.densenet121().features``
=============================================  ===================================================

The prefix is found by looking for the network's own names, not from a list of words: all before
``denseblock1.denselayer1.`` belongs to it. So DataParallel's ``module.``, Lightning's ``model.``,
DETR's ``backbone.0.body.``, smp's ``encoder.`` and any nesting of them are one case. What stands
outside the prefix is the rest of a bigger model and is left out, except a ``classifier`` beside
the features. Names that wrappers put in the middle (``_orig_mod.`` of torch.compile, those of FSDP
and of activation checkpointing) are taken off everywhere.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeVar, cast

from torch import Tensor

from densenet_backbones.checkpoints.errors import CheckpointError
from densenet_backbones.checkpoints.learned_groups import (
    fill_learned_groups,
    is_authors_name,
    rename_authors,
)

__all__ = ["CLASSIFIER", "Place", "find_place", "to_ours", "to_timm_features", "to_torchvision"]

CLASSIFIER = "classifier."
_WRAPPERS = r"(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\."
# A DataParallel around the features alone stands behind their name.
_WRAPPED = re.compile(rf"(?:^|(?<=\.)){_WRAPPERS}|(?:(?<=^features\.)|(?<=\.features\.))module\.")
_AVERAGED = "n_averaged"  # counter beside AveragedModel's "module.", which timm takes off
_DOTTED = re.compile(r"(denselayer\d+\.(?:norm|relu|conv))\.([12]\.)")
_FEATURES = re.compile(r"features[._]$")
_NORM_FINAL = "norm_final."
_SEQUENTIAL = re.compile(r"classifier\.\d+\.(weight|bias)")
_PREFIX = r"((?:.*\.)?(?:features_)?)"
# The surest first: feature nets of the stem alone have no dense layer, parts of nets no stem.
_LAYER = re.compile(_PREFIX + r"denseblock1\.denselayer1\.")
_STEM = re.compile(_PREFIX + r"conv0\.")
_ANY = re.compile(_PREFIX + r"(?:denseblock\d+\.denselayer\d+|transition\d+)\.")
_T = TypeVar("_T")


@dataclass(frozen=True)
class Place:
    """Place of a DenseNet among the weights of a file.

    Attributes:
        prefix: What stands before our name, wrappers' names taken off: ``module.features.``,
            ``features_``, ``backbone.0.body.``, or nothing.
        naming: Whose names they are, in words.
    """

    prefix: str
    naming: str

    @property
    def beside(self) -> str:
        """Prefix without ``features``, as a classifier beside them has it."""
        return _FEATURES.sub("", self.prefix)

    def our_name(self, key: str) -> str | None:
        """Return our name of an entry, or None if it belongs to the rest of a bigger model."""
        key = _strip_wrappers(key)
        if key == _AVERAGED:
            return None
        if key.startswith(self.prefix):
            name = key.removeprefix(self.prefix)
            return f"norm5.{name[len(_NORM_FINAL) :]}" if name.startswith(_NORM_FINAL) else name
        name = key.removeprefix(self.beside)
        beside = key.startswith(self.beside) and name.startswith(CLASSIFIER)
        return name if beside else None


def _strip_wrappers(key: str) -> str:
    """Return a name without wrappers' names, and with torchvision's present spelling."""
    return rename_authors(_DOTTED.sub(r"\1\2", _WRAPPED.sub("", key)))


def _find_prefixes(names: Iterable[str], pattern: re.Pattern[str]) -> list[str]:
    matches = (pattern.match(name) for name in names)
    return list(dict.fromkeys(match[1] for match in matches if match))


def _find_candidates(names: Iterable[str]) -> list[str]:
    layers, stems = _find_prefixes(names, _LAYER), _find_prefixes(names, _STEM)
    whole = [prefix for prefix in layers if prefix in stems]
    # A dense decoder has dense layers too, but no stem.
    return whole or layers or stems or _find_prefixes(names, _ANY)


def _choose_prefix(names: Iterable[str], wanted: str) -> str:
    prefixes = [
        prefix for pattern in (_LAYER, _STEM, _ANY) for prefix in _find_prefixes(names, pattern)
    ]
    wanted = _strip_wrappers(wanted if not wanted or wanted.endswith((".", "_")) else f"{wanted}.")
    # The prefix itself first: "" is also what stands beside "features.".
    fitting = [prefix for prefix in prefixes if prefix == wanted]
    fitting += [prefix for prefix in prefixes if _FEATURES.sub("", prefix) == wanted]
    if not fitting:
        known = list(dict.fromkeys(prefixes))
        raise CheckpointError(
            f"the weights hold no DenseNet under the prefix {wanted!r}; "
            + (f"there is one under {_join_names(known)}" if known else "there is none at all")
        )
    return fitting[0]


def _join_names(prefixes: Iterable[str]) -> str:
    return " and ".join(map(repr, prefixes))


def find_place(keys: Iterable[str], prefix: str | None = None) -> Place | None:
    """Find the DenseNet among the names of a file's weights.

    Args:
        keys: Names as saved.
        prefix: The prefix to take where there are several, with or without its ``features.`` and
            its last dot.

    Returns:
        The place; None if no name is a DenseNet's.

    Raises:
        CheckpointError: There are several networks and no ``prefix``, or none under ``prefix``.
    """
    keys = list(keys)
    names = [_strip_wrappers(key) for key in keys]
    if prefix is not None:
        return _describe_place(_choose_prefix(names, prefix), keys)
    prefixes = _find_candidates(names)
    if len(prefixes) > 1:
        raise CheckpointError(
            f"the weights hold {len(prefixes)} DenseNets, under the prefixes "
            f"{_join_names(prefixes)}; choose one of them with prefix"
        )
    return _describe_place(prefixes[0], keys) if prefixes else None


def _describe_place(prefix: str, keys: Iterable[str]) -> Place:
    own = [key for key in keys if _strip_wrappers(key).startswith(prefix)]
    if any(_strip_wrappers(key).startswith(f"{prefix}{_NORM_FINAL}") for key in own):
        naming = "efficient_densenet_pytorch's (gpleiss)"
    elif any(map(is_authors_name, own)):
        naming = "CondenseNet's (ShichenLiu)"
    elif prefix.endswith("features_"):
        naming = "timm's features_only"
    elif any(_DOTTED.search(key) for key in own):
        naming = "torchvision's before 0.4 (norm.1 for norm1)"
    elif prefix.endswith("features."):
        naming = "torchvision's and timm's"
    else:
        naming = "ours (torchvision's without features.)"
    return Place(prefix, naming)


def to_ours(weights: Mapping[str, _T], prefix: str | None = None) -> dict[str, _T]:
    """Rename a DenseNet's weights to our names, and leaves out the rest of a bigger model.

    Our own names stay as they are, and so do all names where no DenseNet is found. A classifier
    that is a sequence with weights in one layer only (CheXNet's ``classifier.0.weight``) becomes
    that layer.

    Args:
        weights: Names as saved to anything; see this module's table.
        prefix: See `find_place`.

    Raises:
        CheckpointError: As `find_place`, or two names mean the same weight.
    """
    place = find_place(weights, prefix)
    if place is None:
        return dict(weights)
    named = {key: name for key in weights if (name := place.our_name(key)) is not None}
    # Layers of a sequential classifier; it can be renamed only if a single one has weights.
    sequential = set(filter(_SEQUENTIAL.fullmatch, named.values()))
    single = len({name.rpartition(".")[0] for name in sequential}) == 1
    renamed: dict[str, _T] = {}
    for key, name in named.items():
        if single and name in sequential:
            name = CLASSIFIER + name.rpartition(".")[2]
        if name in renamed:
            raise CheckpointError(
                f"the weights hold {name!r} twice, the second time as {key!r}; give a file with "
                "one of them"
            )
        renamed[name] = weights[key]
    if any(name.endswith((".index", "._mask")) for name in renamed):
        return _fill(renamed, any(map(is_authors_name, named)))
    return renamed


def _fill(renamed: dict[str, _T], authors: bool) -> dict[str, _T]:
    """Bring learned groups to our masked form, where the weights are tensors."""
    tensors = {key: value for key, value in renamed.items() if isinstance(value, Tensor)}
    if len(tensors) < len(renamed):
        return renamed
    return cast("dict[str, _T]", fill_learned_groups(tensors, authors))


def to_torchvision(weights: Mapping[str, _T]) -> dict[str, _T]:
    """Rename our keys to those of torchvision's and timm's classifiers; `to_ours` is its inverse.

    Args:
        weights: Our names to anything.
    """
    return {
        key if key.startswith(CLASSIFIER) else f"features.{key}": value
        for key, value in weights.items()
    }


def to_timm_features(weights: Mapping[str, _T]) -> dict[str, _T]:
    """Rename our keys to those of timm's ``features_only`` nets, which have no classifier.

    `to_ours` is its inverse but for the classifier, which is left out.

    Args:
        weights: Our names to anything.
    """
    return {f"features_{key}": value for key, value in _without_classifier(weights)}


def _without_classifier(weights: Mapping[str, _T]) -> Iterator[tuple[str, _T]]:
    return ((key, value) for key, value in weights.items() if not key.startswith(CLASSIFIER))
