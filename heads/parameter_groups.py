"""Rename a child's parameter groups, as timm's optimizers ask for them, to its parent's names."""

from torch import nn

__all__ = ["LayerGroups", "prefix_groups", "prefix_names"]

LayerGroups = dict[str, str | list[tuple[str, tuple[int, ...] | None]]]
"""Result of ``group_matcher``: patterns of parameters' names by group (timm
``models/_manipulate.py``, ``group_with_matcher``)."""


def prefix_names(child: nn.Module, prefix: str) -> set[str]:
    """A child's ``no_weight_decay()`` under its parent's names; empty where it has none.

    Args:
        child: Module that may follow timm's convention.
        prefix: What stands before the child's names in its parent, such as ``"net."``.
    """
    if not hasattr(child, "no_weight_decay"):
        return set()
    names: set[str] = child.no_weight_decay()  # type: ignore[operator]
    return {f"{prefix}{name}" for name in names}


def prefix_groups(child: nn.Module, prefix: str, coarse: bool) -> LayerGroups:
    """A child's ``group_matcher()`` under its parent's names; one group where it has none.

    Args:
        child: Module that may follow timm's convention.
        prefix: What stands before the child's names in its parent, such as ``"net."``.
        coarse: Fewer groups, as timm means it.
    """
    start = "^" + prefix.replace(".", r"\.")
    if not hasattr(child, "group_matcher"):
        return {"stem": start}
    groups: LayerGroups = child.group_matcher(coarse=coarse)  # type: ignore[operator]

    def moved(pattern: str) -> str:
        # timm matches at the start of a name, with or without "^".
        return f"{start}(?:{pattern.removeprefix('^')})"

    return {
        name: moved(p) if isinstance(p, str) else [(moved(part), order) for part, order in p]
        for name, p in groups.items()
    }
