"""Arguments of the model from configs and the command line: merged, and its image size by its kind.

The engine takes ``model.args`` as one value, so that the last one given would replace all others.
"""

import argparse
import inspect
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torchvision.models
from jsonargparse import get_loader

from densenet_backbones.heads.renamed_options import rename_options
from densenet_backbones.training.arguments import SIZE

__all__ = ["settle_model_arguments"]

_ARGS = "--model.args"
_SIDES = (800, 1333)  # torchvision's min_size and max_size
Words = list[tuple[str, str | None]]
"""Options with their values; None for a word without one."""


def settle_model_arguments(arguments: Sequence[str], key: str, default: str | None) -> list[str]:
    """Merge all that configs and words say of ``model.args``, and turn a size into the model's own.

    Later ones win, key by key; ``--model.args null`` forgets those before it, as the first
    ``--model.args`` behind the name of another model does: those before are another's. Without one,
    those stay that the other model takes, too.

    Args:
        arguments: The engine's, configs included.
        key: Option that names the model: ``detector``, ``segmenter`` or ``classifier``.
        default: Name of the model where none is given.

    Returns:
        Arguments with one ``--model.args`` at most, the last of them.

    Raises:
        ArgumentError: The size is no whole number, or the model takes none.
    """
    name, is_merged, is_other = default, False, False
    args: dict[str, Any] = {}
    rest: list[str] = []
    size: str | None = None
    for option, value in _pair(arguments):
        if option == "--config" and value is not None:
            model = _read_model(value)
            name = model.get(key, name)
            config = model.get("args")
            is_merged |= bool(args and config)
            args |= rename_options(config) if isinstance(config, dict) else {}
        elif option == f"--model.{key}":
            if value != name:
                kept = _keep_taken(args, value)
                is_merged |= kept != args
                name, args, is_other = value, kept, True
        elif option == SIZE:
            size = value
            continue
        elif option == _ARGS or option.startswith(f"{_ARGS}."):
            if is_other and option == _ARGS:
                args, is_other = {}, False
            if not _merge(args, option.removeprefix(_ARGS)[1:], _parse(value)):
                return list(arguments)  # the engine says what is wrong with it
            is_merged = True
            continue
        rest.append(option if value is None else f"{option}={value}")
    if size is not None:
        chosen, own = _choose_size(size, str(name), args, key)
        args |= chosen
        is_merged |= bool(chosen)
        rest += own
    return [*rest, f"{_ARGS}={json.dumps(args)}"] if is_merged else rest


def _pair(arguments: Sequence[str]) -> Iterator[tuple[str, str | None]]:
    """Yield options with their values, which may be words of their own."""
    words = iter(arguments)
    takes_value = ("--config", SIZE, _ARGS)
    for word in words:
        option, equals, value = word.partition("=")
        if equals:
            yield option, value
        elif option in takes_value or option.startswith("--model."):
            yield option, next(words, None)
        else:
            yield word, None


def _read_model(file: str) -> dict[str, Any]:
    try:
        content = get_loader("yaml")(Path(file).read_text(encoding="utf-8"))
    except (OSError, ValueError):  # whose sentence the engine says
        return {}
    model = content.get("model") if isinstance(content, dict) else None
    return model if isinstance(model, dict) else {}


def _parse(text: str | None) -> Any:
    try:
        return get_loader("yaml")(text or "")
    except Exception:  # any fault of YAML: a text, as the engine takes it
        return text


def _merge(args: dict[str, Any], path: str, value: Any) -> bool:
    """Merge a value at a dotted path; False for one that cannot be."""
    *above, last = path.split(".") if path else [""]
    if not path:
        if value is None:
            args.clear()
            return True
        if isinstance(value, dict):
            args |= rename_options(value)
        return isinstance(value, dict)
    for name in above:
        args[name] = dict(args[name]) if isinstance(args.get(name), dict) else {}
        args = args[name]
    args[last] = value
    return True


def _keep_taken(args: dict[str, Any], name: str | None) -> dict[str, Any]:
    """Return the arguments that a model takes; all, where its builder does not say."""
    try:
        takes = _list_arguments(torchvision.models.get_model_builder(str(name)))
    except ValueError:  # whose sentence the model's description says
        return args
    return args if "kwargs" in takes else {k: v for k, v in args.items() if k in takes}


def _choose_size(
    text: str, name: str, args: Mapping[str, Any], key: str
) -> tuple[dict[str, Any], list[str]]:
    """Return the model's arguments and the engine's options that make images of a size."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentError(None, f"--size must be a number of pixels, got {text}")
    size = int(text)
    if key == "classifier":
        return {"image_size": size}, []
    if key == "segmenter":  # which takes any size: that of its training images is the data's
        return {}, [f"--data.crop=[{size}, {size}]"]
    try:
        takes = _list_arguments(torchvision.models.get_model_builder(name))
    except ValueError:  # whose sentence the model's description says
        return {}, []
    if "min_size" not in takes:
        return {"image_size": size}, []
    # The longer side keeps its share, whatever the config has.
    shorter, longer = args.get("min_size", _SIDES[0]), args.get("max_size", _SIDES[1])
    shorter = max(shorter) if isinstance(shorter, list) else shorter
    chosen = {"min_size": size, "max_size": round(size * longer / shorter)}
    return {**chosen, **({"image_size": None} if args.get("image_size") else {})}, []


def _list_arguments(builder: Callable[..., object]) -> set[str]:
    """Return the names of a builder's keyword arguments, those of its typed dictionary too."""
    names: set[str] = set()
    for parameter in inspect.signature(inspect.unwrap(builder)).parameters.values():
        names.add(parameter.name)
        options = getattr(parameter.annotation, "__args__", ())
        names.update(*(getattr(kind, "__optional_keys__", ()) for kind in options))
    # torchvision's own pass what is left to their class, which takes both sizes.
    return names | ({"min_size"} if "kwargs" in names else set())
