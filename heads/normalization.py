"""From images to the channel order, range, mean and deviation that a network was made for."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

CHANNEL_ORDERS = ("rgb", "bgr")


class ImageNormalization(nn.Module):
    """Channel order, value range, mean and standard deviation; it has no weights.

    Args:
        mean: Of the three channels, in the order of ``channel_order`` and units of ``value_range``;
            ImageNet's when left out.
        std: Likewise.
        channel_order: ``"rgb"`` or ``"bgr"``, the order the network was made for.
        value_range: 1 or 255, the upper end of the values the network was made for.
        channels: Of the images; with others than three the order must be ``"rgb"``, as they come.

    Raises:
        ValueError: An argument is out of range.
    """

    def __init__(
        self,
        mean: Sequence[float] = (0.485, 0.456, 0.406),
        std: Sequence[float] = (0.229, 0.224, 0.225),
        channel_order: str = "rgb",
        value_range: float = 1,
        channels: int = 3,
    ) -> None:
        super().__init__()
        if not len(mean) == len(std) == channels or min(std) <= 0:
            numbers = "three numbers" if channels == 3 else f"{channels} numbers"
            raise ValueError(f"mean and std need {numbers}, std above 0; got {mean!r} and {std!r}")
        if channel_order not in CHANNEL_ORDERS or (channel_order == "bgr" and channels != 3):
            raise ValueError(
                f"channel_order must be in {CHANNEL_ORDERS}, 'rgb' but for three channels; got "
                f"{channel_order!r} for {channels}"
            )
        if value_range not in (1, 255):
            raise ValueError(f"value_range must be 1 or 255, got {value_range!r}")
        self.mean = [float(value) for value in mean]
        self.std = [float(value) for value in std]
        self.channel_order = channel_order
        self.value_range = int(value_range)

    @property
    def fill_color(self) -> tuple[float, float, float]:
        """The mean as an RGB colour in 0..255, for borders that should mean nothing.

        The grey of the mean of all channels where there are not three.
        """
        scaled = [value * 255 / self.value_range for value in self.mean]
        if len(scaled) != 3:
            scaled = [sum(scaled) / len(scaled)] * 3
        red, green, blue = scaled if self.channel_order == "rgb" else reversed(scaled)
        return red, green, blue

    def to_dict(self) -> dict[str, Any]:
        """The constructor's arguments as plain JSON types."""
        return {
            "mean": list(self.mean),
            "std": list(self.std),
            "channel_order": self.channel_order,
            "value_range": self.value_range,
        }

    def forward(self, images: Tensor) -> Tensor:
        """(..., C, H, W) 0..1 to the network's channel order, range, mean and deviation."""
        if self.channel_order == "bgr":
            images = images.flip(-3)
        mean, std = images.new_tensor(self.mean), images.new_tensor(self.std)
        return (images * self.value_range - mean[:, None, None]) / std[:, None, None]

    def extra_repr(self) -> str:
        """What `print` shows."""
        return ", ".join(f"{name}={value}" for name, value in self.to_dict().items())
