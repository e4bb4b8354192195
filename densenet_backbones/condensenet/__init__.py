"""CondenseNet's learned groups: layers, condensation over a training, and the condensed form.

Huang et al., "CondenseNet: An Efficient DenseNet using Learned Group Convolutions" (1711.09224).
The networks themselves are `DenseNetSpec`s with ``groups`` and ``condense_factor``: see `variants`.
"""

from densenet_backbones.condensenet.condensation import (
    choose_stage,
    condense,
    group_lasso,
    is_condensing,
)
from densenet_backbones.condensenet.conversion import CondensedConv2d, CondensedLinear, convert
from densenet_backbones.condensenet.learned_groups import (
    LearnedGroupConv2d,
    LearnedGroupLinear,
    LearnedGroups,
    count_kept,
    find_learned_groups,
)

__all__ = [
    "CondensedConv2d",
    "CondensedLinear",
    "LearnedGroupConv2d",
    "LearnedGroupLinear",
    "LearnedGroups",
    "choose_stage",
    "condense",
    "convert",
    "count_kept",
    "find_learned_groups",
    "group_lasso",
    "is_condensing",
]
