"""Cases of a parametrized test of which the first stand for the rest until there is time."""

from collections.abc import Iterable

import pytest


def first_now(cases: Iterable[object], now: int = 1) -> list[object]:
    """Mark the cases after the first ``now`` as long: ``pytest -m long`` runs them."""
    cases = list(cases)
    rest = [case if isinstance(case, tuple) else (case,) for case in cases[now:]]
    return [*cases[:now], *(pytest.param(*case, marks=pytest.mark.long) for case in rest)]
