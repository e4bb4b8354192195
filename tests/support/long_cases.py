"""Cases of a parametrized test: which of them run now, and which stand for others."""

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


def by_turns(
    first: Iterable[object], second: Iterable[object], third: Iterable[object]
) -> list[tuple[object, ...]]:
    """Combine each entry of two lists, and give each pair one of a third, which take turns.

    Any two entries meet where the third list is no longer than the others: enough where a fault
    shows with one entry, or with two that do not go together.
    """
    one, two, three = list(first), list(second), list(third)
    assert len(three) <= min(len(one), len(two))
    return [
        (a, b, three[(i + j) % len(three)]) for i, a in enumerate(one) for j, b in enumerate(two)
    ]
