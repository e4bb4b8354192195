"""Cases of a parametrized test of which the first stand for the rest until there is time."""

from collections.abc import Iterable

import pytest


def first_now(cases: Iterable[object], now: int = 1) -> list[object]:
    """Mark the cases after the first ``now`` as long: ``pytest -m long`` runs them."""
    cases = list(cases)
    rest = [case if isinstance(case, tuple) else (case,) for case in cases[now:]]
    return [*cases[:now], *(pytest.param(*case, marks=pytest.mark.long) for case in rest)]


def each_once(*lists: Iterable[object]) -> list[tuple[object, ...]]:
    """Combine lists so that each of their entries is there, in as few cases as the longest has.

    That is enough where faults of one kind show with any entry of the other lists.
    """
    entries = [list(one) for one in lists]
    return [tuple(one[n % len(one)] for one in entries) for n in range(max(map(len, entries)))]
