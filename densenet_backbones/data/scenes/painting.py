"""Paints the drawn scenes: backgrounds, clutter, textures of objects, and a camera's faults.

Canvases are (H, W, 3) uint8 RGB; `unit` is the number of canvas pixels that stand for one pixel
of a 160-pixel image, so that patterns keep their look at every image size.
"""

from collections.abc import Callable

import cv2
import numpy as np

STUFF = ("sky", "ground", "wall")
# An object's colors differ from the background's mean by at least this much (RGB distance).
CONTRAST = 95.0
HUE_SPREAD = 15.0


def pick_color(
    rng: np.random.Generator,
    saturation: tuple[float, float] = (0.3, 1.0),
    value: tuple[float, float] = (0.25, 1.0),
    hue: tuple[float, float] = (0.0, 360.0),
) -> np.ndarray:
    """Pick (3,) float32 RGB in 0..255, uniform in the ranges (of 0..1, and of 360 degrees)."""
    degrees = np.float32(rng.uniform(*hue) % 360)
    hsv = np.array([[[degrees, rng.uniform(*saturation), rng.uniform(*value)]]], np.float32)
    return np.asarray(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)[0, 0] * 255)


def paint_background(
    rng: np.random.Generator, height: int, width: int
) -> tuple[np.ndarray, np.ndarray]:
    """Draw either sky over ground or one wall on a canvas of even height and width.

    Returns:
        The canvas, and (H, W) uint8 with the number of the `STUFF` region (from 1) of each pixel.
    """
    stuff = np.full((height, width), 3, np.uint8)
    if rng.random() < 0.65:
        stuff[:] = 1
        left, right = rng.uniform(0.3, 0.75) + rng.uniform(-0.1, 0.1, 2)
        ground = np.array(
            [(0, left * height), (width, right * height), (width, height), (0, height)]
        )
        cv2.fillPoly(stuff, [np.round(ground).astype(np.int32)], 2)
    canvas = np.zeros((height, width, 3), np.uint8)
    for region in (3,) if stuff[0, 0] == 3 else (1, 2):
        # Smooth, so that half the size is enough: it takes a quarter of the time.
        h, w = height // 2, width // 2
        first = pick_color(rng, (0.0, 0.55), (0.2, 1.0))
        change = rng.uniform(-55, 55, 3).astype(np.float32)
        cloud = _cloud(rng, h, w, grain=rng.choice((4, 9, 24))) * np.float32(rng.uniform(2, 13))
        ramp = _ramp(rng, h, w)
        painted = cv2.merge([ramp * change[c] + (cloud + first[c]) for c in range(3)])
        painted = np.clip(painted, 0, 255).astype(np.uint8)
        painted = cv2.resize(painted, (width, height), interpolation=cv2.INTER_LINEAR)
        cv2.copyTo(painted, (stuff == region).view(np.uint8), canvas)
    return canvas, stuff


def paint_clutter(rng: np.random.Generator, canvas: np.ndarray, unit: float) -> None:
    """Draw lines, faint blobs and specks that are no objects, in place."""
    height, width = canvas.shape[:2]

    def somewhere() -> np.ndarray:
        return rng.uniform((0, 0), (width, height))

    for _ in range(rng.integers(0, 4)):  # blobs of uneven outline, close to the color below
        center, n = somewhere(), 12
        radii = rng.uniform(4, 22) * unit * rng.uniform(0.5, 1.2, n)
        angles = np.arange(n) * 2 * np.pi / n
        outline = center + radii[:, None] * np.stack((np.cos(angles), 0.6 * np.sin(angles)), 1)
        x, y = center.astype(int)
        color = canvas[y, x].astype(float) + rng.uniform(-35, 35, 3)
        _fill(canvas, outline, color)
    for _ in range(rng.integers(0, 5)):
        start, bend, end = somewhere(), somewhere(), somewhere()
        t = np.linspace(0, 1, 16)[:, None]
        curve = (1 - t) ** 2 * start + 2 * t * (1 - t) * bend + t**2 * end
        thickness = max(round(rng.uniform(0.5, 1.6) * unit), 1)
        points = np.round(curve).astype(np.int32)
        cv2.polylines(canvas, [points], False, pick_color(rng).tolist(), thickness)
    for _ in range(rng.integers(0, 14)):
        x, y = somewhere().astype(int)
        radius = max(int(rng.uniform(0.4, 1.6) * unit), 1)
        cv2.circle(canvas, (int(x), int(y)), radius, pick_color(rng).tolist(), cv2.FILLED)


def paint_object(
    rng: np.random.Generator,
    canvas: np.ndarray,
    mask: np.ndarray,
    unit: float,
    accent: np.ndarray | None = None,
    hue: float | None = None,
) -> None:
    """Fill a mask with a random texture in colors that stand out, in place.

    Args:
        rng: Random numbers that decide colors and texture.
        canvas: Part of the canvas that the mask covers, (h, w, 3).
        mask: (h, w) uint8, not 0 inside the object.
        unit: Canvas pixels that stand for one pixel of a 160-pixel image.
        accent: Mask of the pixels that get the plain second color, or None.
        hue: Hue in degrees around which the first color lies; None for any.
    """
    below = canvas.reshape(-1, 3).mean(0)
    first = _pick_contrasting(rng, below, hue)
    second = _pick_contrasting(rng, below)
    if rng.random() < 0.5:  # a shade of the first color
        shade = first * rng.choice((0.6, 1.5))
        if np.linalg.norm(shade - below) > CONTRAST / 2:
            second = np.clip(shade, 0, 255)
    height, width = mask.shape
    blend = _TEXTURES[rng.integers(len(_TEXTURES))](rng, height, width, unit)[..., None]
    painted = first + (second - first) * blend
    if accent is not None:
        np.copyto(painted, second.astype(painted.dtype), where=(accent > 0)[..., None])
    inner = mask
    if rng.random() < 0.35:  # a dark or bright rim
        rim = cv2.erode(mask, np.ones((3, 3), np.uint8), borderType=cv2.BORDER_REPLICATE)
        inner = rim if cv2.countNonZero(rim) else mask
        canvas[mask > 0] = np.clip(first * rng.choice((0.35, 1.6)), 0, 255).astype(np.uint8)
    np.copyto(canvas, np.clip(painted, 0, 255).astype(np.uint8), where=(inner > 0)[..., None])


def simulate_camera(rng: np.random.Generator, image: np.ndarray) -> np.ndarray:
    """Apply one exposure, blur and sensor noise to the whole (H, W, 3) uint8 image."""
    if rng.random() < 0.35:
        image = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.3, 0.9))
    gain, offset = rng.uniform(0.75, 1.15), rng.uniform(-18, 18)
    noisy = image.astype(np.float32) * gain + offset
    noise = rng.standard_normal(image.shape, dtype=np.float32)
    noisy += noise * rng.choice((0.0, 2.5, 6.0, 10.0))
    return np.asarray(np.clip(np.rint(noisy), 0, 255).astype(np.uint8))


def _pick_contrasting(
    rng: np.random.Generator, below: np.ndarray, hue: float | None = None
) -> np.ndarray:
    hues = (0.0, 360.0) if hue is None else (hue - HUE_SPREAD, hue + HUE_SPREAD)
    least = 0.3 if hue is None else 0.55  # a grayish color has no hue to speak of
    for _ in range(20):
        color = pick_color(rng, (least, 1.0), hue=hues)
        if np.linalg.norm(color - below) > CONTRAST:
            break
    return color


def _fill(canvas: np.ndarray, outline: np.ndarray, color: np.ndarray) -> None:
    rgb = [float(c) for c in np.clip(color, 0, 255)]
    cv2.fillPoly(canvas, [np.round(outline).astype(np.int32)], rgb)


def _along(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """(h, w) float32 distance in pixels along a random direction."""
    angle = rng.uniform(0, 2 * np.pi)
    x = np.arange(width, dtype=np.float32) * np.float32(np.cos(angle))
    y = np.arange(height, dtype=np.float32) * np.float32(np.sin(angle))
    return np.asarray(y[:, None] + x[None])


def _cloud(rng: np.random.Generator, height: int, width: int, grain: int) -> np.ndarray:
    """(h, w) float32 smooth noise around 0, `grain` cells across the shorter side."""
    rows, columns = (max(int(grain * s / min(height, width)), 2) for s in (height, width))
    cells = rng.standard_normal((rows, columns), dtype=np.float32)
    return cv2.resize(cells, (width, height), interpolation=cv2.INTER_LINEAR)


def _ramp(rng: np.random.Generator, height: int, width: int, unit: float = 1) -> np.ndarray:
    """(h, w) float32 from 0 to 1 along a random direction, whatever the unit."""
    along = _along(rng, height, width)
    low, high = along.min(), along.max()
    return np.asarray((along - low) / max(high - low, 1.0))


def _flat(rng: np.random.Generator, height: int, width: int, unit: float) -> np.ndarray:
    return np.zeros((height, width), np.float32)


def _stripes(rng: np.random.Generator, height: int, width: int, unit: float) -> np.ndarray:
    period = rng.uniform(4, 9) * unit
    return (_along(rng, height, width) % period < period / 2).astype(np.float32)


def _dots(rng: np.random.Generator, height: int, width: int, unit: float) -> np.ndarray:
    period = rng.uniform(4.5, 8) * unit
    angle = rng.uniform(0, np.pi / 2)
    y, x = np.mgrid[:height, :width].astype(np.float32)
    u = (x * np.cos(angle) + y * np.sin(angle)) % period - period / 2
    v = (y * np.cos(angle) - x * np.sin(angle)) % period - period / 2
    return np.asarray(u * u + v * v < (0.32 * period) ** 2, np.float32)


def _speckle(rng: np.random.Generator, height: int, width: int, unit: float) -> np.ndarray:
    grain = max(int(min(height, width) / (2 * unit)), 2)
    return np.clip(0.4 + 0.4 * _cloud(rng, height, width, grain), 0, 1)


# (generator, height, width, unit) -> (h, w) float32 share of the second color.
_TEXTURES: tuple[Callable[[np.random.Generator, int, int, float], np.ndarray], ...] = (
    _flat,
    _flat,
    _ramp,
    _stripes,
    _dots,
    _speckle,
)
