"""Bring images to the channel order, range, mean and deviation that a network was made for.

Names as in torchvision's detectors (``models/detection/transform.py``); channel order and range
besides, for networks whose weights come from Caffe's kind of input (szq0214/DSOD).
"""

from collections.abc import Sequence

from torch import Tensor, nn

CHANNEL_ORDERS = ("rgb", "bgr")


class ImageNormalization(nn.Module):
    """Channel order, value range, mean and standard deviation; it has no weights.

    Args:
        image_mean: Mean of each channel, in the order of ``channel_order`` and units of
            ``value_range``; ImageNet's when left out.
        image_std: Standard deviation of each channel, in the same order and units.
        channel_order: ``"rgb"`` or ``"bgr"``, the order the network was made for.
        value_range: 1 or 255, the upper end of the values the network was made for.
        channels: Number of channels; other than three, the order must be ``"rgb"``: as they come.

    Raises:
        ValueError: An argument is out of range.
    """

    def __init__(
        self,
        image_mean: Sequence[float] = (0.485, 0.456, 0.406),
        image_std: Sequence[float] = (0.229, 0.224, 0.225),
        channel_order: str = "rgb",
        value_range: float = 1,
        channels: int = 3,
    ) -> None:
        super().__init__()
        # Checked here, since a wrong mean, order or range raises no error later.
        if not len(image_mean) == len(image_std) == channels or min(image_std) <= 0:
            numbers = "three numbers" if channels == 3 else f"{channels} numbers"
            raise ValueError(
                f"image_mean and image_std need {numbers}, image_std above 0; got {image_mean!r} "
                f"and {image_std!r}"
            )
        if channel_order not in CHANNEL_ORDERS or (channel_order == "bgr" and channels != 3):
            raise ValueError(
                f"channel_order must be in {CHANNEL_ORDERS}, 'rgb' but for three channels; got "
                f"{channel_order!r} for {channels}"
            )
        if value_range not in (1, 255):
            raise ValueError(f"value_range must be 1 or 255, got {value_range!r}")
        self.image_mean = [float(value) for value in image_mean]
        self.image_std = [float(value) for value in image_std]
        self.channel_order = channel_order
        self.value_range = int(value_range)

    @property
    def fill_color(self) -> tuple[float, float, float]:
        """Mean as an RGB color in 0..255, for borders that should mean nothing.

        The gray of the mean of all channels where there are not three.
        """
        scaled = [value * 255 / self.value_range for value in self.image_mean]
        if len(scaled) != 3:
            scaled = [sum(scaled) / len(scaled)] * 3
        red, green, blue = scaled if self.channel_order == "rgb" else reversed(scaled)
        return red, green, blue

    def to_dict(self) -> dict[str, float | str | list[float]]:
        """Return the constructor's arguments as plain JSON types."""
        return {
            "image_mean": list(self.image_mean),
            "image_std": list(self.image_std),
            "channel_order": self.channel_order,
            "value_range": self.value_range,
        }

    def forward(self, images: Tensor) -> Tensor:
        """(..., C, H, W) 0..1 to the network's channel order, range, mean and deviation."""
        if self.channel_order == "bgr":
            images = images.flip(-3)
        mean, std = images.new_tensor(self.image_mean), images.new_tensor(self.image_std)
        return (images * self.value_range - mean[:, None, None]) / std[:, None, None]

    def extra_repr(self) -> str:
        """Return what `print` shows."""
        return ", ".join(f"{name}={value}" for name, value in self.to_dict().items())
