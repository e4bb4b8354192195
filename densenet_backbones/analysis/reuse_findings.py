"""Sentences on feature reuse: what is reused least and most, and the paper's four findings.

Huang et al. (1608.06993), section 5, "Feature Reuse", on a DenseNet of 40 layers with k=12.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import mean, median

from densenet_backbones.analysis.feature_reuse import INPUT, BlockReuse, Reader
from densenet_backbones.messages import pluralize

__all__ = [
    "Finding",
    "check_findings",
    "list_sentences",
    "measure_spread",
    "measure_usage",
    "rank_sources",
]

SPREAD = 0.5
"""Share of its sources that a reader must use in effect for its weights to be "spread"."""
CONSISTENT = 0.75
"""Share of layers from which on something is "consistently" so."""


@dataclass(frozen=True)
class Finding:
    """One of the paper's findings, checked on a model.

    Attributes:
        claim: The paper's, in a sentence.
        held: Whether it holds here; None where the model has nothing to check it on.
        reason: The numbers it was decided by.
    """

    claim: str
    held: bool | None
    reason: str

    def sentence(self) -> str:
        """Return verdict, claim and numbers in a line."""
        verdict = {True: "held", False: "not held", None: "cannot be told"}[self.held]
        return f"{verdict}: {self.claim} ({self.reason})"


def measure_spread(weights: Sequence[float | None]) -> float:
    """Return the share of its sources that a reader uses in effect.

    The exponential of the entropy of its weights, which is S where all S are alike and 1 where one
    has all, divided by S; 0 where all weights are 0.
    """
    known = [w for w in weights if w is not None]
    total = sum(known)
    if not total:
        return 0.0
    entropy = -sum(w / total * math.log(w / total) for w in known if w > 0)
    return math.exp(entropy) / len(known)


def check_findings(blocks: Sequence[BlockReuse], scaled: bool = False) -> tuple[Finding, ...]:
    """Check the paper's four findings.

    Args:
        blocks: Of a model, in order.
        scaled: Use the weights scaled by batch norm.
    """
    return (
        _check_layers(blocks, scaled),
        _check_transitions(blocks, scaled),
        _check_inputs(blocks, scaled),
        _check_last(blocks, scaled),
    )


def _weights(reader: Reader, scaled: bool) -> list[float]:
    return [w for w in (reader.scaled if scaled else reader.plain) if w is not None]


def _select(
    blocks: Sequence[BlockReuse], kind: str, sources: int, scaled: bool
) -> list[list[float]]:
    """Return the weights of readers of a kind that have at least so many sources."""
    readers = (r for block in blocks for r in block.readers if r.kind == kind)
    weights = (_weights(reader, scaled) for reader in readers)
    return [w for w in weights if len(w) >= sources]


def _check_layers(blocks: Sequence[BlockReuse], scaled: bool) -> Finding:
    claim = "layers spread their weights over many inputs of their block"
    shares = [measure_spread(w) for w in _select(blocks, "layer", 3, scaled)]
    if not shares:
        return Finding(claim, None, "no layer has three inputs")
    reason = (
        f"half of the {pluralize(len(shares), 'layer')} with three inputs or more use "
        f"{median(shares):.0%} of them or more in effect, the narrowest {min(shares):.0%}; from "
        f"{SPREAD:.0%} counts"
    )
    return Finding(claim, median(shares) >= SPREAD, reason)


def _check_transitions(blocks: Sequence[BlockReuse], scaled: bool) -> Finding:
    claim = "transitions use all layers of the block before them"
    shares = [measure_spread(w) for w in _select(blocks, "transition", 2, scaled)]
    if not shares:
        return Finding(claim, None, "there is no transition")
    shown = ", ".join(f"{share:.0%}" for share in shares)
    reason = f"in effect they use {shown} of them; from {SPREAD:.0%} counts"
    return Finding(claim, min(shares) >= SPREAD, reason)


def _check_inputs(blocks: Sequence[BlockReuse], scaled: bool) -> Finding:
    claim = "layers of later blocks give the transition's output the least weight"
    # Pruned layers may read other sources alone.
    readers = [r for block in blocks[1:] for r in block.readers if r.plain[0] is not None]
    weights = [_weights(r, scaled) for r in readers if r.kind == "layer"]
    weights = [w for w in weights if len(w) >= 2]
    if not weights:
        return Finding(claim, None, "there is no second block of two layers")
    least = sum(w[0] == min(w) for w in weights)
    reason = f"so do {least} of {pluralize(len(weights), 'layer')}; from {CONSISTENT:.0%} counts"
    return Finding(claim, least >= CONSISTENT * len(weights), reason)


def _check_last(blocks: Sequence[BlockReuse], scaled: bool) -> Finding:
    claim = "the classifier prefers late maps"
    readers = [r for r in blocks[-1].readers if r.kind == "classifier"]
    if not readers:
        readers = [r for r in blocks[-1].readers if r.kind == "head"]
        claim = "the head prefers late maps of the last block"
    layers = [_weights(reader, scaled)[1:] for reader in readers]
    if not layers or len(layers[0]) < 3:
        return Finding(claim, None, "nothing that is known reads three layers of the last block")
    third = math.ceil(len(layers[0]) / 3)
    late = mean(mean(w[-third:]) for w in layers)
    early = mean(mean(w[:-third]) for w in layers)
    ratio = late / early if early else math.inf
    reason = f"the last third of its layers has {ratio:.2f} times the weight of those before"
    return Finding(claim, ratio > 1, reason)


def measure_usage(block: BlockReuse, scaled: bool = False) -> dict[str, float]:
    """Measure how much a block's sources are used: their mean weight over all readers.

    Each reader's weights are divided by their mean first, since readers differ in scale; 1 is what
    a reader gives on average.
    """
    shares: dict[str, list[float]] = {source: [] for source in block.sources}
    for reader in block.readers:
        weights = reader.scaled if scaled else reader.plain
        known = [w for w in weights if w is not None]
        if len(known) < 2 or not any(known):
            continue
        average = mean(known)
        for source, weight in zip(block.sources, weights, strict=True):
            if weight is not None:
                shares[source].append(weight / average)
    return {source: mean(values) for source, values in shares.items() if values}


def rank_sources(block: BlockReuse, scaled: bool = False) -> list[tuple[str, float]]:
    """Return a block's sources with their usage (see `measure_usage`), the least used one first."""
    return sorted(measure_usage(block, scaled).items(), key=lambda entry: entry[1])


def list_sentences(blocks: Sequence[BlockReuse], scaled: bool = False) -> Iterator[str]:
    """Yield what is reused least and most in each block."""
    for block in blocks:
        ranked = rank_sources(block, scaled)
        if len(ranked) < 2:
            yield f"{block.name}: too few readers to compare its sources."
            continue
        (least, low), (most, high) = ranked[0], ranked[-1]
        yield (
            f"{block.name}: its readers use {_name(least)} least ({low:.2f} of their mean) and "
            f"{_name(most)} most ({high:.2f})."
        )


def _name(source: str) -> str:
    return "the block's input" if source == INPUT else source
