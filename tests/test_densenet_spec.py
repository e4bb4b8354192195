import json

import numpy as np
import pytest

from densenet_backbones.densenet_spec import DenseNetSpec


def test_growth_rate_compression_and_widths_per_block():
    spec = DenseNetSpec(
        growth_rate=(4, 8, 2),
        block_config=(1, 2, 3),
        num_init_features=10,
        compression=(0.5, 1.0),
        transition_channels=(None, 9),
    )
    widths = [(b.in_channels, b.channels, b.transition_channels) for b in spec.blocks]
    assert widths == [(10, 14, 7), (7, 23, 9), (9, 15, None)]


def test_compression_rounds_the_product_as_written():
    spec = DenseNetSpec(growth_rate=1, block_config=(1, 1), num_init_features=99, compression=0.29)
    assert spec.blocks[0].transition_channels == 29


def test_spec_survives_json():
    spec = DenseNetSpec(
        growth_rate=(4, 8),
        block_config=(1, 2),
        transition_channels=(None,),
        transition_pool=(False,),
        bn_size=None,
    )
    assert DenseNetSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec
    assert hash(spec) == hash(DenseNetSpec.from_dict(spec.to_dict()))
    assert DenseNetSpec(bn_size=0).bn_size is None  # timm drops None
    with pytest.raises(ValueError, match="no field 'growth'; its fields are"):
        DenseNetSpec.from_dict({"growth": 4})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"block_config": ()}, r"block_config must be one or more layer counts, .* got \(\)"),
        ({"block_config": (6, 0)}, "block_config must be"),
        ({"block_config": 6}, "block_config must be"),
        ({"growth_rate": 0}, "growth_rate must be an integer >= 1"),
        ({"growth_rate": True}, "growth_rate must be an integer >= 1"),
        ({"growth_rate": (4, 4)}, r"one for all or 4 for block_config .* got \(4, 4\)"),
        ({"num_init_features": 0}, "num_init_features must be"),
        ({"num_init_features": 7, "stem": "deep"}, "num_init_features must be even"),
        ({"bn_size": -1}, "bn_size must be an integer >= 1, or None"),
        ({"compression": 0.0}, r"compression must be a number in \(0, 1\]"),
        ({"compression": 1.5}, "compression must be"),
        ({"compression": (0.5,)}, "one for all or 3"),
        ({"compression": 0.001}, "compression 0.001 leaves no channel of 256"),
        ({"transition_channels": (8,)}, "transition_channels must be 3 entries"),
        ({"transition_channels": (8, 0, 8)}, "transition_channels must be 3 entries"),
        ({"transition_pool": 1}, "transition_pool must be true or false"),
        ({"transition_pool": (True,)}, "one for all or 3"),
        ({"pool": "mean"}, "pool must be one of 'avg', 'max', 'blur', got 'mean'"),
        ({"stem": "vgg"}, "stem must be one of"),
        ({"init": "xavier"}, "init must be one of"),
        ({"ceil_mode": "yes"}, "ceil_mode must be true or false"),
        ({"final_norm": None}, "final_norm must be true or false"),
        ({"proj_drop_rate": 1.0}, r"proj_drop_rate must be in \[0, 1\)"),
        ({"norm_eps": 0.0}, "norm_eps must be above 0"),
        ({"norm_momentum": 0.0}, r"norm_momentum must be in \(0, 1\]"),
    ],
)
def test_spec_names_field_range_and_value(fields, message):
    with pytest.raises(ValueError, match=message):
        DenseNetSpec(**fields)


@pytest.mark.parametrize("kind", [list, tuple, np.array, lambda blocks: range(1, 3)])
def test_config_libraries_numbers_and_sequences_are_taken(kind):
    spec = DenseNetSpec(
        growth_rate=np.int64(8), block_config=kind((1, 2)), compression=np.float32(0.5)
    )
    assert spec == DenseNetSpec(growth_rate=8, block_config=(1, 2))
    assert DenseNetSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec
