"""Part of a graph that is worth 8 bits: what lies between its first and its last convolution."""

from collections.abc import Collection, Sequence
from typing import NamedTuple

__all__ = ["Node", "find_inner"]


class Node(NamedTuple):
    """Operation of a graph, of ONNX or OpenVINO.

    Attributes:
        name: Its name, like no other's.
        is_learned: True if it multiplies by weights (a convolution, a linear layer).
        sources: Names of the nodes whose outputs it reads.
    """

    name: str
    is_learned: bool
    sources: Collection[str]


def find_inner(nodes: Sequence[Node]) -> set[str]:
    """Return the names of the nodes between learned ones, and of these all but the last.

    What is left is kept in float32: normalization and resizing before the first convolution; the
    last convolutions, whose outputs are scores and boxes; the decoding and suppression of boxes.

    Args:
        nodes: The nodes, each behind those that it reads.
    """
    behind: set[str] = set()
    for node in nodes:
        if node.is_learned or any(source in behind for source in node.sources):
            behind.add(node.name)
    before: set[str] = set()
    for node in reversed(nodes):
        if node.is_learned or node.name in before:
            before.update(node.sources)
    return behind & before
