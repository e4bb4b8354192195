"""Builds the list of transforms that `data.augmentation` may hold in place of a preset's name.

An entry is ``{name: HorizontalFlip, p: 0.5}``: the name of a transform of albumentations and its
arguments; `OneOf`, `SomeOf` and `Sequential` hold entries themselves, as ``transforms``. `MixUp` is
this package's. Names and arguments are looked up in what albumentations exports, so that a file
calls nothing else; albumentations 2.0.8 only warns of arguments that a transform has not.
"""

import inspect
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeAlias

import albumentations as A
from albumentations.core.type_definitions import Targets

from densenet_backbones.data.faults import DataError
from densenet_backbones.messages import nearest, one_sentence

Entries = Sequence[dict[str, Any]]  # as written in YAML
Step: TypeAlias = A.BasicTransform | A.BaseCompose
EXAMPLE = "{name: HorizontalFlip, p: 0.5}"
COMPOSITIONS: dict[str, type[A.BaseCompose]] = {
    "OneOf": A.OneOf,
    "SomeOf": A.SomeOf,
    "Sequential": A.Sequential,
}
BASES = (A.BasicTransform, A.DualTransform, A.ImageOnlyTransform, A.Transform3D)
# Lambda takes functions; the others make images that are not the 8 bits which networks are given.
UNFIT = ("Lambda", "Normalize", "ToFloat", "FromFloat", "ToTensorV2", "ToTensor3D")
MOSAIC = "mosaic_metadata"  # A.Mosaic's key for other images
MAX_STEPS = 100  # entries, those in others too: YAML knows circles


@dataclass(frozen=True)
class MixUp:
    """Blend of an image with another one, objects of both kept.

    Source: Zhang et al., "Bag of Freebies for Training Object Detection", 2019 (arXiv 1902.04103),
    section 3.1; the default of `alpha`, which makes the images about equally strong, is that of
    ultralytics/yolov5, utils/augmentations.py (`mixup`), whose losses have no weights either.

    Attributes:
        alpha: Both parameters of the beta distribution of the ratio, above 0.
        p: Probability.
    """

    alpha: float = 32.0
    p: float = 0.5

    def __post_init__(self) -> None:
        for name, value in (("alpha", self.alpha), ("p", self.p)):
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise ValueError(f"{name} must be a number, got {value!r}")
        if not 0 < self.alpha < float("inf") or not 0 <= self.p <= 1:
            raise ValueError(
                f"alpha must be above 0 and p in [0, 1], got {self.alpha} and {self.p}"
            )


@cache
def list_transforms() -> dict[str, type[A.BasicTransform]]:
    """Return the transforms of albumentations that change images with all that is on them."""
    found: dict[str, type[A.BasicTransform]] = {}
    moved = {Targets.MASK, Targets.BBOXES, Targets.KEYPOINTS}
    for name, kind in vars(A).items():
        if not (isinstance(kind, type) and issubclass(kind, A.BasicTransform)):
            continue
        if kind in BASES or name in UNFIT:
            continue
        given = getattr(kind, "_targets", ())
        targets = set(given) if isinstance(given, tuple) else {given}
        wanted = {Targets.IMAGE} | (moved if issubclass(kind, A.DualTransform) else set())
        if wanted <= targets:
            found[name] = kind
    return dict(sorted(found.items()))


def build_steps(entries: Entries, outside: int | None = None) -> list[Step | MixUp]:
    """Build transforms of what was written in YAML.

    Args:
        entries: Entries as the module describes them.
        outside: Value of masks beyond the image, for transforms whose own is 0 and which were given
            none; None leaves 0.

    Raises:
        DataError: If an entry names no known transform, or gives it what it does not take.
    """
    budget = iter(range(MAX_STEPS))
    return [
        _build(entry, f"data.augmentation[{n}]", True, outside, budget)
        for n, entry in enumerate(entries)
    ]


def uses_mosaic(steps: Sequence[Step | MixUp]) -> bool:
    """Return True if a step, or one in it, takes other images."""
    return any(
        isinstance(step, A.Mosaic)
        or (isinstance(step, A.BaseCompose) and uses_mosaic(step.transforms))
        for step in steps
    )


def _build(entry: object, where: str, is_outer: bool, outside: int | None, budget: Any) -> Any:
    if next(budget, None) is None:
        raise DataError(
            f"data.augmentation: at most {MAX_STEPS} entries are allowed, those of OneOf, SomeOf "
            "and Sequential too; shorten the list"
        )
    name = entry.get("name") if isinstance(entry, dict) else None
    if not isinstance(entry, dict) or not isinstance(name, str):
        raise DataError(f"{where} must be like {EXAMPLE}, got {str(entry)[:100]!r}")
    transforms = list_transforms()
    kinds: dict[str, Any] = {**transforms, **COMPOSITIONS}
    if is_outer:
        kinds["MixUp"] = MixUp
    if name not in kinds:
        raise DataError(f"{where}: {_refuse(name, kinds)}")
    arguments = {key: value for key, value in entry.items() if key != "name"}
    own = [key for key in inspect.signature(kinds[name]).parameters if key != "strict"]
    for key in arguments:
        if key not in own:
            raise DataError(
                f"{where}: {name} has no argument {str(key)!r}{nearest(str(key), own)}; it has "
                f"{', '.join(own)}"
            )
    if name in COMPOSITIONS:
        inner = arguments.get("transforms")
        if not isinstance(inner, list) or not inner:
            raise DataError(f"{where}: {name} needs transforms, a list of entries like {EXAMPLE}")
        arguments["transforms"] = [
            _build(one, f"{where}.transforms[{n}]", False, outside, budget)
            for n, one in enumerate(inner)
        ]
    elif name in transforms:
        default = inspect.signature(kinds[name]).parameters.get("fill_mask")
        if outside is not None and default is not None and default.default == 0:
            arguments.setdefault("fill_mask", outside)
        # Initializers that check their arguments take any; some have no more than p. Strictness
        # is needed: without it wrong values may silently become the default's.
        if kinds[name].__init__.__code__.co_flags & inspect.CO_VARKEYWORDS:
            arguments["strict"] = True
    return _make(kinds[name], arguments, f"{where}: {name}")


def _refuse(name: str, kinds: Sequence[str] | dict[str, Any]) -> str:
    if name == "MixUp":
        return "MixUp must be an entry of the list itself; take it out of the other entry"
    if name in UNFIT:
        return f"{name} is not for training images; leave it out, images stay 8 bits"
    return (
        f"{name[:100]!r} is no transform of albumentations {A.__version__} for images"
        f"{nearest(name, kinds)}"
    )


def _make(kind: Any, arguments: dict[str, Any], where: str) -> Any:
    """Call a class of the lists above, whose errors become one sentence."""
    if issubclass(kind, A.BaseCompose):
        _check_composition(arguments, where)
    try:
        with warnings.catch_warnings():  # advice to prefer another transform
            warnings.simplefilter("ignore")
            made = kind(**arguments)
            needed = getattr(made, "targets_as_params", ())
    except Exception as error:  # third-party code meets a user's values
        raise DataError(f"{where}: {_describe(error)}") from error
    if missing := [key for key in needed if key != MOSAIC]:
        raise DataError(f"{where} needs {missing[0]}, which training has not; leave it out")
    return made


def _check_composition(arguments: dict[str, Any], where: str) -> None:
    p, n = arguments.get("p", 1), arguments.get("n", 1)
    if isinstance(p, bool) or not isinstance(p, int | float) or not 0 <= p <= 1:
        raise DataError(f"{where}: p must be a number in [0, 1], got {p!r}")
    if isinstance(n, bool) or not isinstance(n, int) or not 1 <= n <= MAX_STEPS:
        raise DataError(f"{where}: n must be a whole number from 1 to {MAX_STEPS}, got {n!r}")
    if not isinstance(arguments.get("replace", False), bool):
        raise DataError(f"{where}: replace must be true or false, got {arguments['replace']!r}")
    if not any(one.p for one in arguments["transforms"]):
        raise DataError(f"{where}: one of its transforms needs a p above 0")


def _describe(error: Exception) -> str:
    list_errors = getattr(error.__cause__, "errors", None)  # pydantic's, one for each argument
    if callable(list_errors):
        first = list_errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        return f"{key}: {first['msg']}" if key else str(first["msg"])
    return one_sentence(str(error)) or type(error).__name__
