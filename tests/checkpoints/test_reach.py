"""Published weights out of reach are answered within seconds, in the words of who asked."""

import time

import huggingface_hub.constants as hub
import pytest
import timm

from densenet_backbones.checkpoints.reach import OfflineError, download_or_fail_soon, is_reachable
from densenet_backbones.heads import fcdensenet103, retinanet_fpn, unet
from densenet_backbones.inference.smp_segmenters import build_smp

NOWHERE = "http://127.0.0.1:9"


@pytest.fixture(autouse=True)
def out_of_reach(monkeypatch, tmp_path):
    monkeypatch.setattr(hub, "ENDPOINT", NOWHERE)
    monkeypatch.setattr(hub, "HF_HUB_CACHE", str(tmp_path))
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)


def smp_unet(**options):
    return build_smp("Unet", 2, {"encoder_name": "resnet18", **options})


@pytest.mark.parametrize(
    ("build", "options", "sentence"),
    [
        (retinanet_fpn, {"weights_backbone": "timm"}, "file as weights_backbone, or leave it out"),
        (
            unet,
            {"num_classes": 2, "backbone": "resnet18", "weights_backbone": "timm"},
            "timm publishes of 'resnet18' are neither on this machine nor within its reach",
        ),
        (smp_unet, {"encoder_weights": "imagenet"}, "leave out encoder_weights, or start from a"),
        (
            timm.create_model,
            {"model_name": "densenet121_features", "pretrained": True},
            "give a file, pretrained=True, pretrained_cfg_overlay",
        ),
        (retinanet_fpn, {"weights": "COCO_V1"}, "no weights of whole models are published"),
        (unet, {"num_classes": 2, "weights": "DEFAULT"}, "or weights_backbone='DEFAULT' for publi"),
        (retinanet_fpn, {"pretrained": True}, "weights_backbone='timm' begins with published"),
        (
            fcdensenet103,
            {"num_classes": 2, "weights_backbone": "timm"},
            "leave out weights_backbone",
        ),
    ],
)
def test_weights_out_of_reach_are_answered_at_once(build, options, sentence):
    begin = time.monotonic()
    with pytest.raises((OfflineError, TypeError, ValueError)) as error:
        build(**options)
    assert sentence in str(error.value)
    assert time.monotonic() - begin < 10


def test_the_hub_is_asked_again_afterwards():
    assert not is_reachable(NOWHERE)
    with download_or_fail_soon():
        assert hub.HF_HUB_OFFLINE
    assert not hub.HF_HUB_OFFLINE
    with pytest.raises(OfflineError, match="neither on this machine"), download_or_fail_soon():
        raise ConnectionError


def test_a_proxy_may_know_hosts_that_this_machine_does_not(monkeypatch):
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    assert is_reachable("https://no.such.host.example")
