"""Names of the engine's options, known without the engine: a typo in one is answered at once.

``names.json`` holds those of tasks, data and models as they are declared; a test compares it with
the parsers and writes it anew: ``python tests/training/options/test_option_names.py``. Those of the
trainer are in Lightning's source, in the version that is installed.
"""

import argparse
import ast
import importlib.util
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

from densenet_backbones.messages import nearest
from densenet_backbones.training.arguments import RUN_OPTIONS, SHORT_FLAGS
from densenet_backbones.untrusted.plain_yaml import parse_yaml

__all__ = ["check_options", "list_options"]

Config = Mapping[str, Any]
"""Content of an experiment."""

_ARGS = "model.args"
_GROUPS = ("model", "data", "trainer")
_NAMES = {"detection": "detector", "segmentation": "segmenter", "classification": "classifier"}
"""Kind of training -> option that names the model."""


def list_options(kind: str) -> list[str]:
    """Return every option of a training's command line, the engine's by their dotted names.

    Args:
        kind: ``detection``, ``segmentation`` or ``classification``.
    """
    short = [name.replace("_", "-") for name in SHORT_FLAGS]
    return [
        *_list_dotted(kind),
        *_read_trainer(),
        *RUN_OPTIONS,
        "seed_everything",
        "device",
        "seed",
        *short,
    ]


def check_options(
    words: Iterable[str], kind: str, configs: Mapping[str, Config], *, any_model: bool = False
) -> None:
    """Refuse options that do not exist.

    Arguments of the model are compared with those of all models of ours, unless one of another
    library is named, whose arguments only the library knows.

    Args:
        words: Those of the command line that the short flags left over.
        kind: What is trained.
        configs: File of each experiment -> its content.
        any_model: The model may be another than words and experiments say.

    Raises:
        ArgumentError: There is no option of such a name.
    """
    options = list_options(kind)
    typed = [(name, value, _read_mapping(name, value, options)) for name, value in _pair(words)]
    models = [config.get("model") for config in configs.values()]
    models += [mapping for name, _, mapping in typed if name == "model"]
    named: list[Any] = [value for name, value, _ in typed if name == f"model.{_NAMES[kind]}"]
    named += [model.get(_NAMES[kind]) for model in models if isinstance(model, dict)]
    if any_model or any(name not in (*_read_names()[kind]["models"], None) for name in named):
        options = [name for name in options if not name.startswith(f"{_ARGS}.")]
    for name, _, mapping in typed:
        for entry in [name] if mapping is None else _flatten(mapping, options, f"{name}."):
            if not _is_option(entry, options):
                raise argparse.ArgumentError(None, f"unrecognized arguments: --{entry}")
    for file, config in configs.items():
        for name in _flatten(config, options):
            if "." in name and not _is_option(name, options):
                hint = nearest(name, options)
                raise argparse.ArgumentError(None, f"{file}: there is no option {name!r}{hint}")


def _pair(words: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Yield the engine's options and their values, which may be words of their own."""
    words = [*words, ""]
    for word, following in pairwise(words):
        option, equals, value = word.partition("=")
        name = option.removeprefix("--").rstrip("+")
        if option.startswith("--") and name.partition(".")[0] in _GROUPS:
            yield name, value if equals else following


def _read_mapping(name: str, value: str, options: Sequence[str]) -> Config | None:
    """Return the mapping that a group of options is given as; None for all else."""
    content: object = None
    if _is_group(name, options):
        with suppress(ValueError):  # whose sentence the engine says
            content = parse_yaml(value, Path(name), ValueError)
    return content if isinstance(content, dict) else None


def _flatten(content: Config, options: Sequence[str], above: str = "") -> Iterator[str]:
    """Yield the dotted names of a nested mapping, down to the options that take a value."""
    for key, value in content.items():
        name = f"{above}{key}"
        # Below what is no option, too, for the nearest right name.
        if isinstance(value, dict) and value and (_is_group(name, options) or name not in options):
            yield from _flatten(value, options, f"{name}.")
        else:
            yield name


def _is_option(name: str, options: Sequence[str]) -> bool:
    """Return True for an option, and for an entry of one that has no options below it."""
    while name not in options:
        name, dot, _ = name.rpartition(".")
        if not dot or _is_group(name, options):
            return False
    return True


def _is_group(name: str, options: Sequence[str]) -> bool:
    """Return True for an option that has options below it."""
    return any(option.startswith(f"{name}.") for option in options)


@cache
def _list_dotted(kind: str) -> tuple[str, ...]:
    names = _read_names()[kind]
    return (*names["options"], *(f"{_ARGS}.{name}" for name in names["arguments"]))


@cache
def _read_names() -> dict[str, dict[str, list[str]]]:
    content: dict[str, dict[str, list[str]]] = json.loads(
        Path(__file__).with_suffix(".json").read_text(encoding="utf-8")
    )
    return content


@cache
def _read_trainer() -> tuple[str, ...]:
    """Return the trainer's options, from the source of Lightning: importing it takes seconds."""
    package = importlib.util.find_spec("lightning")
    if package is None or not package.submodule_search_locations:
        return ("trainer",)  # its absence is told when it is imported
    file = Path(package.submodule_search_locations[0], "pytorch/trainer/trainer.py")
    tree = ast.parse(file.read_text(encoding="utf-8"))
    trainer = next(n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == "Trainer")
    starts = (node for node in trainer.body if isinstance(node, ast.FunctionDef))
    start = next(node for node in starts if node.name == "__init__")
    names = (arg.arg for arg in (*start.args.args[1:], *start.args.kwonlyargs))
    return ("trainer", *(f"trainer.{name}" for name in names))
