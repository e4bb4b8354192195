"""Read plain values of untrusted YAML within bounds.

PyYAML belongs to the extra ``train``, as whatever reads YAML does.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from densenet_backbones.untrusted.limits import MAX_DEPTH, MAX_SCALAR, MAX_VALUES, MAX_YAML_FILE
from densenet_backbones.untrusted.reading import read_text


def read_yaml(path: Path, error: type[Exception], *, aliases: bool = True) -> object:
    """Read plain values of a YAML file; see `parse_yaml`."""
    return parse_yaml(read_text(path, MAX_YAML_FILE, error), path, error, aliases=aliases)


def parse_yaml(text: object, path: Path, error: type[Exception], *, aliases: bool = True) -> object:
    """Parse plain values: nothing in the text makes objects or runs code.

    Args:
        text: YAML; of another type or longer than `MAX_YAML_FILE` it is refused.
        path: The file it comes from.
        error: Type of what is raised.
        aliases: Allow aliases (``*name``), as long as all they stand for stays within the bounds.
    """
    if not isinstance(text, str) or len(text) > MAX_YAML_FILE:
        raise error(f"{path}: its YAML is no text of at most {MAX_YAML_FILE} characters")
    # libyaml's reader; the one in Python takes minutes for kilobytes of brackets.
    loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        fault = _find_excess(yaml.parse(text, Loader=loader), aliases)
        if fault is None:
            return yaml.load(text, Loader=loader)
    except (yaml.YAMLError, ValueError, RecursionError) as problem:
        line = " ".join(str(problem).split())[:200]
        raise error(f"{path}: not valid YAML ({line}); correct it") from problem
    raise error(f"{path}: {fault}")


def _find_excess(events: Iterator[Any], aliases: bool) -> str | None:
    """Describe what exceeds the bounds among a parser's events; None if nothing does.

    Events come one by one, so that a hostile file is left where it becomes too much.
    """
    size = 0  # values so far, those behind aliases included
    sizes: dict[str, int] = {}  # of what has an anchor
    opened: list[tuple[str | None, int]] = []  # anchor of each open collection, and size before it
    for event in events:
        kind = type(event).__name__
        if kind == "AliasEvent":
            if not aliases:
                return "has aliases (*name), which are not read; write values out"
            size += sizes.get(event.anchor, 0)  # the loader refuses one that stands for nothing
        elif kind == "ScalarEvent":
            if len(event.value) > MAX_SCALAR:
                return f"has a value of more than {MAX_SCALAR} characters; shorten it"
            size += 1
            if event.anchor:
                sizes[event.anchor] = 1
        elif kind in ("SequenceStartEvent", "MappingStartEvent"):
            opened.append((event.anchor, size))
            size += 1
            if event.anchor:
                sizes[event.anchor] = MAX_VALUES  # within itself it never ends
        elif kind in ("SequenceEndEvent", "MappingEndEvent"):
            anchor, before = opened.pop()
            if anchor:
                sizes[anchor] = size - before
        if len(opened) > MAX_DEPTH:
            return f"has more than {MAX_DEPTH} lists inside each other; it is damaged"
        if size > MAX_VALUES:
            return (
                f"stands for more than the {MAX_VALUES} values that are allowed, to protect the "
                "memory; write less into it"
            )
    return None
