"""Which annotations a detector learns from, told by its class and by its builder."""

import inspect

import pytest
from torch import nn

from densenet_backbones.data.categories import Categories
from densenet_backbones.torchvision_models import DETECTORS
from densenet_backbones.training.tasks.detection import (
    add_num_keypoints,
    name_headline,
    read_builder_target_types,
    read_target_types,
)

POINTS = Categories(("dot",), (5,), ("left_end", "right_end"), ((0, 1),))


class Heads(nn.Module):
    """torchvision's RoI heads answer these two questions."""

    def __init__(self, masks, keypoints):
        super().__init__()
        self.has_mask, self.has_keypoint = lambda: masks, lambda: keypoints


def test_ours_say_it_and_torchvisions_show_it():
    model = nn.Module()
    assert read_target_types(model) == ("boxes",)
    model.roi_heads = Heads(False, False)
    assert read_target_types(model) == ("boxes",)
    model.roi_heads = Heads(True, False)
    assert read_target_types(model) == ("boxes", "masks")
    model.roi_heads = Heads(False, True)
    assert read_target_types(model) == ("boxes", "keypoints")
    model.target_types = ["boxes"]
    assert read_target_types(model) == ("boxes",)


def test_a_builder_tells_it_before_anything_is_built():
    for name in ("dsod300", "fasterrcnn_fpn", "maskrcnn_of_nobody"):
        assert read_builder_target_types(name) == ("boxes",)
    assert read_builder_target_types("maskrcnn_densenet121_fpn_v2") == ("boxes", "masks")
    assert read_builder_target_types("KeypointRCNN_resnet50_fpn") == ("boxes", "keypoints")
    assert read_builder_target_types("maskrcnn_resnet50_fpn") == ("boxes", "masks")


@pytest.mark.parametrize("name", DETECTORS)
def test_every_builder_tells_what_its_detector_does(name):
    made = inspect.signature(DETECTORS[name]).return_annotation
    assert read_builder_target_types(name) == tuple(getattr(made, "target_types", ("boxes",)))
    assert issubclass(made, nn.Module)


def test_the_last_target_type_is_shown_last():
    assert name_headline(("boxes",)) == ("AP",)
    assert name_headline(("boxes", "masks")) == ("AP", "mask_AP")
    assert name_headline(("boxes", "keypoints")) == ("AP", "keypoint_AP")


def test_the_number_of_keypoints_is_the_datas():
    assert add_num_keypoints("keypointrcnn_fpn", {"a": 1}, POINTS) == {"a": 1, "num_keypoints": 2}
    assert add_num_keypoints("maskrcnn_fpn", {"a": 1}, POINTS) == {"a": 1}
    assert add_num_keypoints("keypointrcnn_fpn", {}, Categories(("x",), (1,))) == {}
    with pytest.raises(ValueError, match=r"num_keypoints is 17, .* has 2 keypoints \(left_end, "):
        add_num_keypoints("keypointrcnn_fpn", {"num_keypoints": 17}, POINTS)
