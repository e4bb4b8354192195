"""SSD's box code: offsets of a box from its prior, by torchvision's ``BoxCoder``.

A code is ``((cx - px) / pw, (cy - py) / ph, log(w / pw), log(h / ph))`` divided by SSD's variances
0.1, 0.1, 0.2, 0.2 (SSD, arXiv:1512.02325, equation 2, and its Caffe code); torchvision states the
variances as their inverse, the weights 10, 10, 5, 5.
"""

from torch import Tensor
from torchvision.models.detection._utils import BoxCoder

# Decoded sides stay below 62.5 times the prior's (torchvision's clip): exp() of an untrained
# regressor cannot overflow.
_CODER = BoxCoder(weights=(10.0, 10.0, 5.0, 5.0))


def encode(boxes: Tensor, priors: Tensor) -> Tensor:
    """Codes of boxes.

    Args:
        boxes: (P, 4) xyxy with positive width and height, in the priors' frame.
        priors: (P, 4) xyxy, the prior of each box.

    Returns:
        (P, 4) codes, of the boxes' type.
    """
    codes: Tensor = _CODER.encode_single(boxes, priors)
    return codes


def decode(codes: Tensor, priors: Tensor) -> Tensor:
    """Boxes of codes: the inverse of `encode`.

    Args:
        codes: (..., P, 4).
        priors: (P, 4) xyxy.

    Returns:
        (..., P, 4) xyxy float32 in the priors' frame, not clipped to the image.
    """
    flat = codes.float().reshape(-1, 4)
    repeated = priors.expand(codes.shape).reshape(-1, 4)
    boxes: Tensor = _CODER.decode_single(flat, repeated)
    return boxes.reshape(codes.shape)
