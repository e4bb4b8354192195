"""Our detectors in torchvision's registry: ``torchvision.models.get_model("dsod300", ...)``.

torchvision looks names up in lower case and offers no public decorator, so its private one is
reached here and nowhere else.
"""

try:
    from torchvision.models._api import register_model
except ImportError as error:
    raise ImportError(
        "this torchvision has no models._api.register_model; densenet-backbones was tested with "
        "torchvision 0.26 to 0.29. The builders are in densenet_backbones.heads"
    ) from error

from densenet_backbones.heads import dsod300, dsod300_smallest, dsod_tiny

__all__ = ["MODELS"]

# A name that torchvision, or another package, registered before raises a ValueError here.
MODELS = {
    builder.__name__: register_model()(builder)
    for builder in (dsod300, dsod300_smallest, dsod_tiny)
}
