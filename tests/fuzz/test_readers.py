import numpy as np
import pytest
from fuzzed_readers import READERS, check_reading, damage


@pytest.mark.parametrize("name", READERS)
def test_damaged_files_are_read_or_refused_in_a_sentence(name, tmp_path):
    """The fuzzer's own functions without the fuzzer, so that they work when it is run."""
    reader, rng = READERS[name], np.random.default_rng(0)
    for seed in reader.seeds():
        reader.read(seed, tmp_path) if name not in ("masks", "weights") else None
        for data in (seed, b"", *damage(seed, 12, rng)):
            check_reading(reader, data, tmp_path)
