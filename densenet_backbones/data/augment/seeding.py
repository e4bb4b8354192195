"""Seeds the random choices of augmentation from a key, such as (seed, epoch, index).

Not `albumentations.Compose(seed=...)`, which gives every transform the same stream (their choices
would hang together) and every worker process the same choices. The streams are numpy's
`SeedSequence` and PCG64.
"""

import random

import albumentations as A
import numpy as np


def reseed(pipeline: A.Compose, key: tuple[int, ...]) -> None:
    """Make the pipeline's next choices a function of the key.

    Args:
        pipeline: Pipeline to seed, in place.
        key: Whole numbers of at least 0, e.g. (seed, epoch, index).

    Raises:
        ValueError: If the key holds anything else.
    """
    sequence = _make_sequence(key)
    pipeline.set_random_state(
        np.random.Generator(np.random.PCG64(sequence)),
        random.Random(int(sequence.generate_state(1, np.uint64)[0])),
    )


def make_generator(key: tuple[int, ...]) -> np.random.Generator:
    """Make a source of random numbers that is a function of the key.

    Args:
        key: Whole numbers of at least 0, e.g. (seed, epoch, index).

    Raises:
        ValueError: If the key holds anything else.
    """
    return np.random.Generator(np.random.PCG64(_make_sequence(key)))


def draw_other(index: int, count: int, rng: np.random.Generator) -> int:
    """Draw any image of `count` but the one at `index`, as far as there are others."""
    return (index + 1 + int(rng.integers(max(count - 1, 1)))) % count


def _make_sequence(key: tuple[int, ...]) -> np.random.SeedSequence:
    if not all(isinstance(k, int | np.integer) and k >= 0 for k in key):
        raise ValueError(f"key must hold whole numbers of at least 0, got {key}")
    # SeedSequence pads with zeros: the length makes (1,) and (1, 0) differ.
    return np.random.SeedSequence((len(key), *key))
