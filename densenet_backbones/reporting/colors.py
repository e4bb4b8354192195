"""Give every class and every instance its color, the same one in all pictures and plots."""

from colorsys import hsv_to_rgb

RGB = tuple[int, int, int]
"""Red, green and blue, each 0..255."""

# The palette of Okabe and Ito ("Color Universal Design", jfly.uni-koeln.de/color), which people
# with any kind of color vision tell apart; without black, in an order in which neighbors differ.
_SAFE: tuple[RGB, ...] = (
    *((0, 114, 178), (230, 159, 0), (0, 158, 115), (204, 121, 167)),
    *((240, 228, 66), (86, 180, 233), (213, 94, 0)),
)
_GOLDEN_RATIO = 0.618034
# Saturation and value, which change from label to label: hues that come close still differ.
_SHADES = ((0.85, 0.9), (0.8, 0.85), (0.55, 1.0))


def get_class_color(label: int) -> RGB:
    """Return the color of a class.

    The first seven can be told apart with any color vision. Then each step turns the hue by the
    golden ratio of a circle, so that neighboring labels differ most and no two of many labels share
    a hue.

    Args:
        label: 1 .. K - 1 (any integer will do).
    """
    if 1 <= label <= len(_SAFE):
        return _SAFE[label - 1]
    hue = _GOLDEN_RATIO * (label - 1) % 1
    red, green, blue = (round(255 * part) for part in hsv_to_rgb(hue, *_SHADES[label % 3]))
    return red, green, blue


def get_instance_color(instance: int) -> RGB:
    """Return the color of the n-th instance of an image, counted from 0."""
    return get_class_color(instance + 1)
