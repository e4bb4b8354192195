"""Random choices of augmentation as a function of a key."""

import os
import random

import numpy as np

# Read when albumentations is imported: without it the import asks the package index for updates.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
import albumentations as A


def reseed(pipeline: A.Compose, key: tuple[int, ...]) -> None:
    """Make the pipeline's next choices a function of the key.

    `A.Compose(seed=...)` would give every transform the same stream, which ties their choices
    together, and worker processes would repeat each other's.

    Args:
        pipeline: Reseeded in place.
        key: Whole numbers of at least 0, e.g. (seed, epoch, index).

    Raises:
        ValueError: If the key holds anything else.
    """
    sequence = _sequence(key)
    pipeline.set_random_state(
        np.random.Generator(np.random.PCG64(sequence)),
        random.Random(int(sequence.generate_state(1, np.uint64)[0])),
    )


def make_generator(key: tuple[int, ...]) -> np.random.Generator:
    """A source of random numbers that is a function of the key.

    Args:
        key: Whole numbers of at least 0, e.g. (seed, epoch, index).

    Raises:
        ValueError: If the key holds anything else.
    """
    return np.random.Generator(np.random.PCG64(_sequence(key)))


def _sequence(key: tuple[int, ...]) -> np.random.SeedSequence:
    if not all(isinstance(k, int | np.integer) and k >= 0 for k in key):
        raise ValueError(f"key must hold whole numbers of at least 0, got {key}")
    # SeedSequence pads with zeros: the length makes (1,) and (1, 0) differ.
    return np.random.SeedSequence((len(key), *key))
