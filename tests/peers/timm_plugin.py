"""Plugin of pytest: timm's own ``tests/test_models.py`` asks its questions about our names.

That file lists timm's registry where it is imported, so `timm.list_models` is replaced before, and
`timm.create_model` by one that builds a classifier where nothing else is asked for, as timm's own
entries do. Tests that type a few names ask about ours where the question is one of any net.
"""

from typing import Any

import pytest
import timm
from tiny_nets import KINDS
from torch import nn

from densenet_backbones.timm_models import SUFFIX
from densenet_backbones.variants import VARIANTS

NAMES = timm.list_models(module="timm_models")
DEEP = [name for name in KINDS if VARIANTS[name.removesuffix(SUFFIX)].blocks[-1].stride == 32]

# Tests that type names of timm though their question is one of any net, and our names instead.
OF_ANY_NET = {
    "test_reset_classifier_keeps_pool": KINDS,
    "test_head_hidden_size": KINDS,
    "test_features_only_grad_checkpointing_backward": KINDS,
    "test_features_only_feature_cls_class": KINDS,
    "test_feature_getter_stage_ends_torchscript": KINDS,
    "test_model_features_output_stride": DEEP,  # the other nets have no strides of 8 and 16
    "test_model_forward_torchscript_with_features_fx": KINDS,
    "test_prune_intermediate_layers_params_used": KINDS,
    "test_prune_intermediate_layers_last_feature": KINDS,
    "test_prune_to_stem_feature": KINDS,
    "test_forward_after_prune_intermediate_layers": KINDS,
}
# Their further parameters, as they are for a net that ends in a norm.
BESIDE_THE_NAME: dict[str, Any] = {"model_kwargs": {}, "stop_early_final": True}

_list_models, _create_model = timm.list_models, timm.create_model


def list_ours(
    filter: Any = "",
    *,
    pretrained: bool = False,
    include_tags: bool = False,
    **families: object,
) -> list[str]:
    """List our names, whichever families of timm's a test takes or leaves out."""
    if pretrained:
        return []  # published weights are behind the network
    return _list_models(filter, module="timm_models", include_tags=include_tags)


def create_classifier(name: str, *args: Any, **options: Any) -> nn.Module:
    """Build a net as `timm.create_model`, ours as the classifier unless features are asked for."""
    if name.partition(".")[0] in NAMES:
        options.setdefault("features_only", False)
    return _create_model(name, *args, **options)


def pytest_configure() -> None:
    """Replace what timm's test file imports."""
    timm.list_models = list_ours
    timm.create_model = create_classifier


@pytest.hookimpl(tryfirst=True)
def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Put our names into the place of typed ones."""
    ours = OF_ANY_NET.get(metafunc.function.__name__)
    for place, mark in enumerate(metafunc.definition.own_markers):
        if ours and mark.name == "parametrize" and "model_name" in mark.args[0]:
            arguments = mark.args[0].replace(" ", "").split(",")
            values = [BESIDE_THE_NAME[argument] for argument in arguments[1:]]
            ours_in_place = pytest.mark.parametrize(arguments, [(name, *values) for name in ours])
            metafunc.definition.own_markers[place] = ours_in_place.mark


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out the tests of other nets."""

    def asks_about_ours(item: pytest.Item) -> bool:
        name = getattr(item, "callspec", None) and item.callspec.params.get("model_name")
        return isinstance(name, str) and name.partition(".")[0] in NAMES

    others = [item for item in items if not asks_about_ours(item)]
    items[:] = [item for item in items if asks_about_ours(item)]
    config.hook.pytest_deselected(items=others)
