"""Draws one random scene of flat shapes and stick figures, with the exact mask of everything in it.

A scene is drawn back to front on a canvas of twice the size (`SCALE`), which anti-aliases the
picture when it is shrunk, while an id canvas of the same size remembers which object owns which
pixel. A candidate object that would hide another one too much is thrown away before it is drawn:
nothing in a scene is hidden for more than `MAX_HIDDEN` of its area or shows less than
`MIN_VISIBLE` pixels of extent.

Legend: H x W pixels of the finished image, `radius` half an object's extent in canvas pixels.
"""

from dataclasses import dataclass, field

import cv2
import numpy as np

from densenet_backbones.data.scenes.painting import (
    paint_background,
    paint_clutter,
    paint_object,
    simulate_camera,
)

Point = tuple[float, float]

CLASSES = ("circle", "rectangle", "triangle", "star", "ring", "figure")
FIGURE = CLASSES.index("figure") + 1

# A figure faces the viewer: its left is on the right of the picture, as in COCO.
_JOINTS = ("shoulder", "elbow", "wrist", "hip", "knee", "ankle")
KEYPOINTS = ("head", *(f"{side}_{joint}" for joint in _JOINTS for side in ("left", "right")))
_LIMBS = (
    ("left_shoulder", "left_elbow"),
    ("left_elbow", "left_wrist"),
    ("right_shoulder", "right_elbow"),
    ("right_elbow", "right_wrist"),
    ("left_hip", "left_knee"),
    ("left_knee", "left_ankle"),
    ("right_hip", "right_knee"),
    ("right_knee", "right_ankle"),
)
_TRUNK = (
    ("head", "left_shoulder"),
    ("head", "right_shoulder"),
    ("left_shoulder", "right_shoulder"),
    ("left_shoulder", "left_hip"),
    ("right_shoulder", "right_hip"),
    ("left_hip", "right_hip"),
)
# COCO's form: pairs of one-based keypoint numbers.
SKELETON = tuple((KEYPOINTS.index(a) + 1, KEYPOINTS.index(b) + 1) for a, b in (*_LIMBS, *_TRUNK))

SCALE = 2
REFERENCE = 160  # sizes below are pixels of an image whose shorter side has this many
MIN_SIDE = 64  # below this nothing that is drawn can be told apart
MIN_VISIBLE = 10.0
MAX_HIDDEN = 0.85
MIN_INSIDE = 0.5  # of an object's area must lie inside the image, and
WHOLE_SHARE = 0.8  # of the objects all of it
RADII = (13.0, 40.0)
FIGURE_RADII = (22.0, 46.0)
CROWD_RADIUS = 4.5
MAX_OBJECTS = 5
TYPICAL_HUE_SHARE = 0.85
EMPTY_SHARE = 0.04
CROWD_SHARE = 0.06


@dataclass(frozen=True, eq=False)
class SceneObject:
    """Object, or crowd of small ones, as far as it can be seen.

    Attributes:
        label: Label of the class in ``1 .. len(CLASSES)``.
        mask: (H, W) bool, the visible pixels.
        visible_share: Visible share of the whole object, in ``(0, 1]``; what lies outside the
            image counts as hidden.
        truncated: True if a part lies outside the image.
        crowd: True for a group that COCO marks with `iscrowd`.
        keypoints: (13, 3) float64 of x, y in pixels and COCO's visibility (0 outside the image,
            1 hidden, 2 visible) for a figure, else None.
    """

    label: int
    mask: np.ndarray
    visible_share: float
    truncated: bool
    crowd: bool
    keypoints: np.ndarray | None


@dataclass(frozen=True, eq=False)
class Scene:
    """Drawn scene: picture, objects and regions.

    Attributes:
        image: (H, W, 3) uint8 RGB.
        objects: Objects, back to front.
        ids: (H, W) uint8, ``k`` where ``objects[k - 1]`` is visible, 0 where none is.
        stuff: (H, W) uint8, ``s`` where the background is ``STUFF[s - 1]`` (below objects too).
    """

    image: np.ndarray
    objects: tuple[SceneObject, ...]
    ids: np.ndarray
    stuff: np.ndarray


@dataclass(eq=False)
class _Stamp:
    """Mask of an object before it meets the canvas; (x, y) is its top left canvas pixel."""

    label: int
    mask: np.ndarray  # (h, w) uint8, 0 or 1
    x: int
    y: int
    crowd: bool = False
    accent: np.ndarray | None = None  # (h, w) uint8, 1 where the second color goes
    keypoints: np.ndarray | None = None  # (13, 2) canvas pixels
    area: int = field(init=False)

    def __post_init__(self) -> None:
        self.area = int(self.mask.sum())

    def inside(self, height: int, width: int) -> tuple[slice, slice, slice, slice]:
        """Return rows and columns of the canvas, then of the stamp, where the two overlap."""
        h, w = self.mask.shape
        top, bottom = max(self.y, 0), max(min(self.y + h, height), 0)
        left, right = max(self.x, 0), max(min(self.x + w, width), 0)
        bottom, right = max(top, bottom), max(left, right)
        return (
            slice(top, bottom),
            slice(left, right),
            slice(top - self.y, bottom - self.y),
            slice(left - self.x, right - self.x),
        )


def draw_scene(rng: np.random.Generator, size: tuple[int, int]) -> Scene:
    """Draw one scene; everything about it is taken from `rng`.

    Args:
        rng: Random numbers that decide the scene.
        size: (H, W) pixels, each at least `MIN_SIDE`.
    """
    height, width = size[0] * SCALE, size[1] * SCALE
    unit = SCALE * min(size) / REFERENCE
    canvas, stuff = paint_background(rng, height, width)
    paint_clutter(rng, canvas, unit)
    ids = np.zeros((height, width), np.uint8)
    stamps: list[_Stamp] = []
    count = 0 if rng.random() < EMPTY_SHARE else int(rng.integers(1, MAX_OBJECTS + 1))
    crowds = int(count > 0 and rng.random() < CROWD_SHARE)
    for number in range(count + crowds):
        tolerance = rng.choice((0.1, 0.4, MAX_HIDDEN), p=(0.6, 0.3, 0.1))
        inside = 1.0 if rng.random() < WHOLE_SHARE else MIN_INSIDE
        # A few tries to find a place where nothing is hidden too much.
        for _ in range(12):
            below = stamps[-1] if stamps and tolerance > 0.1 and rng.random() < 0.7 else None
            center = _choose_center(rng, height, width, below)
            stamp = _draw_stamp(rng, center, unit, crowd=number < crowds)
            if _fits(stamp, ids, stamps, inside, tolerance, MIN_VISIBLE * unit + 1):
                stamps.append(stamp)
                rows, columns, *own = stamp.inside(height, width)
                mask = stamp.mask[*own]
                accent = None if stamp.accent is None else stamp.accent[*own]
                hue = None if rng.random() > TYPICAL_HUE_SHARE else _choose_hue(stamp.label)
                paint_object(rng, canvas[rows, columns], mask, unit, accent, hue)
                ids[rows, columns][mask > 0] = len(stamps)
                break
    # The finished size: masks by the middle pixel of each cell, the picture by averaging.
    small_ids = np.ascontiguousarray(ids[1::SCALE, 1::SCALE])
    objects = tuple(_make_object(stamp, k + 1, ids, small_ids) for k, stamp in enumerate(stamps))
    image = cv2.resize(canvas, (size[1], size[0]), interpolation=cv2.INTER_AREA)
    return Scene(
        simulate_camera(rng, image),
        objects,
        small_ids,
        np.ascontiguousarray(stuff[1::SCALE, 1::SCALE]),
    )


def _choose_hue(label: int) -> float:
    """Return the hue in degrees that objects of a class tend to, as classes of real things do."""
    return 360 / len(CLASSES) * (label - 1)


def _choose_center(
    rng: np.random.Generator, height: int, width: int, below: _Stamp | None
) -> Point:
    """Choose a place on the canvas, or over the stamp that is to be partly hidden."""
    if below is None:
        return rng.uniform(0, width), rng.uniform(0, height)
    h, w = below.mask.shape
    return below.x + w * rng.uniform(-0.2, 1.2), below.y + h * rng.uniform(-0.2, 1.2)


def _draw_stamp(rng: np.random.Generator, center: Point, unit: float, *, crowd: bool) -> _Stamp:
    if crowd:
        return _draw_crowd(rng, center, CROWD_RADIUS * unit)
    label = int(rng.integers(1, len(CLASSES) + 1))
    low, high = FIGURE_RADII if label == FIGURE else RADII
    radius = float(np.exp(rng.uniform(np.log(low), np.log(high)))) * unit
    if label == FIGURE:
        return _draw_figure(rng, center, radius)
    return _fill_stamp(label, _draw_outline(rng, CLASSES[label - 1], radius), center)


def _draw_outline(rng: np.random.Generator, name: str, radius: float) -> list[np.ndarray]:
    """Draw closed (n, 2) curves around the origin, to be filled by the even-odd rule."""
    # Each shape is a list of angles with a radius each, turned by one random angle.
    angle = rng.uniform(0, 2 * np.pi)
    if name == "rectangle":
        corner = np.arctan(rng.uniform(0.5, 1.0))
        angles = np.array([corner, np.pi - corner, np.pi + corner, -corner])
        radii = np.ones(4)
    elif name == "triangle":
        angles = np.arange(3) * 2 * np.pi / 3 + rng.uniform(-0.15, 0.15, 3)
        radii = np.ones(3)
    elif name == "star":
        angles = np.arange(10) * np.pi / 5
        radii = np.where(np.arange(10) % 2, rng.uniform(0.4, 0.5), 1.0)
    else:
        angles = np.linspace(0, 2 * np.pi, 48, endpoint=False)
        radii = np.ones(48)
    curve = radius * radii[:, None] * np.stack((np.cos(angles + angle), np.sin(angles + angle)), 1)
    return [curve, curve * rng.uniform(0.48, 0.62)] if name == "ring" else [curve]


def _fill_stamp(
    label: int, curves: list[np.ndarray], center: Point, *, crowd: bool = False
) -> _Stamp:
    points = np.concatenate(curves) + center
    origin = np.floor(points.min(0)).astype(int) - 1
    extent = np.ceil(points.max(0)).astype(int) + 2 - origin
    mask = np.zeros((extent[1], extent[0]), np.uint8)
    # 4 fractional bits: shapes move by less than a canvas pixel.
    fixed = [np.round((curve + center - origin) * 16).astype(np.int32) for curve in curves]
    cv2.fillPoly(mask, fixed, 1, shift=4)
    return _Stamp(label, mask, int(origin[0]), int(origin[1]), crowd=crowd)


def _draw_crowd(rng: np.random.Generator, center: Point, radius: float) -> _Stamp:
    """Draw a patch of small shapes of one class, too many to be annotated one by one."""
    label = int(rng.choice([k for k in range(1, len(CLASSES) + 1) if k != FIGURE]))
    rows, columns = int(rng.integers(2, 4)), int(rng.integers(3, 5))
    curves = []
    for row in range(rows):
        for column in range(columns):
            place = np.array((column - columns / 2, row - rows / 2)) + rng.uniform(-0.15, 0.15, 2)
            shape = _draw_outline(rng, CLASSES[label - 1], radius * rng.uniform(0.8, 1.0))
            curves += [curve + place * 2.3 * radius for curve in shape]
    return _fill_stamp(label, curves, center, crowd=True)


def _draw_figure(rng: np.random.Generator, center: Point, radius: float) -> _Stamp:
    # The pose in units of the radius, tilted as a whole.
    joints = _draw_pose(rng)
    tilt = rng.uniform(-0.35, 0.35)
    turn = np.array(((np.cos(tilt), np.sin(tilt)), (-np.sin(tilt), np.cos(tilt))))
    places = {name: radius * (np.asarray(point) @ turn) for name, point in joints.items()}
    points = np.stack([places[name] for name in KEYPOINTS]) + center
    # A canvas of the figure's own, with room for the thickness of lines and the head.
    margin = 0.3 * radius
    origin = np.floor(points.min(0) - margin).astype(int)
    extent = np.ceil(points.max(0) + margin).astype(int) - origin
    mask = np.zeros((extent[1], extent[0]), np.uint8)
    accent = np.zeros_like(mask)

    def pixel(name: str) -> tuple[int, int]:
        x, y = np.round(places[name] + center - origin).astype(int)
        return int(x), int(y)

    # Limbs and trunk in the body's color, the head in the accent's.
    thickness = max(round(0.19 * radius), 2 * SCALE)
    for start, end in _LIMBS:
        cv2.line(mask, pixel(start), pixel(end), 1, thickness)
    trunk = [pixel(f"{s}_{j}") for s, j in (("left", "shoulder"), ("right", "shoulder"))]
    trunk += [pixel(f"{s}_{j}") for s, j in (("right", "hip"), ("left", "hip"))]
    cv2.fillPoly(mask, [np.array(trunk, np.int32)], 1)
    cv2.polylines(mask, [np.array(trunk, np.int32)], True, 1, thickness)
    cv2.circle(accent, pixel("head"), max(round(0.22 * radius), 3), 1, cv2.FILLED)
    return _Stamp(
        FIGURE, mask | accent, int(origin[0]), int(origin[1]), accent=accent, keypoints=points
    )


def _draw_pose(rng: np.random.Generator) -> dict[str, Point]:
    """Draw the joints of a figure two units tall around the origin, y pointing down."""
    # Limbs hang from fixed shoulders and hips; both sides are drawn by the same rule, mirrored.
    joints: dict[str, Point] = {"head": (0.0, -0.78)}

    def limb(
        side: str, names: tuple[str, str, str], start: Point, angles: Point, step: Point
    ) -> None:
        sign = 1.0 if side == "left" else -1.0
        x, y = sign * start[0], start[1]
        joints[f"{side}_{names[0]}"] = (x, y)
        for name, angle, length in zip(names[1:], angles, step, strict=True):
            x, y = x + sign * length * np.sin(angle), y + length * np.cos(angle)
            joints[f"{side}_{name}"] = (float(x), float(y))

    for side in ("left", "right"):
        arm = rng.uniform(0.25, 2.4)
        forearm = arm + rng.uniform(-0.5, 1.0)
        limb(side, ("shoulder", "elbow", "wrist"), (0.22, -0.46), (arm, forearm), (0.32, 0.3))
        leg = rng.uniform(0.08, 0.5)
        shin = leg + rng.uniform(-0.45, 0.1)
        limb(side, ("hip", "knee", "ankle"), (0.13, 0.08), (leg, shin), (0.45, 0.45))
    return joints


def _fits(
    stamp: _Stamp,
    ids: np.ndarray,
    stamps: list[_Stamp],
    inside: float,
    tolerance: float,
    min_extent: float,
) -> bool:
    """Return True if the stamp is inside enough and leaves enough of every object below it."""
    rows, columns, own_rows, own_columns = stamp.inside(*ids.shape)
    mask = stamp.mask[own_rows, own_columns]
    if cv2.countNonZero(mask) < inside * stamp.area or not _has_extent(mask, min_extent):
        return False
    below = ids[rows, columns]
    for k in np.unique(below[mask > 0]):
        if k == 0:
            continue
        visible = ids == k
        visible[rows, columns] &= mask == 0
        allowed = 0.05 if stamps[k - 1].crowd else tolerance
        if np.count_nonzero(visible) < (1 - allowed) * stamps[k - 1].area:
            return False
        if not _has_extent(visible.view(np.uint8), min_extent):
            return False
    return True


def _has_extent(mask: np.ndarray, extent: float) -> bool:
    _, _, width, height = cv2.boundingRect(mask)
    return bool(min(width, height) >= extent)


def _make_object(stamp: _Stamp, k: int, ids: np.ndarray, small_ids: np.ndarray) -> SceneObject:
    rows, columns, own_rows, own_columns = stamp.inside(*ids.shape)
    truncated = cv2.countNonZero(stamp.mask[own_rows, own_columns]) < stamp.area
    visible_share = np.count_nonzero(ids[rows, columns] == k) / stamp.area
    keypoints = None
    if stamp.keypoints is not None:
        height, width = small_ids.shape
        keypoints = np.zeros((len(KEYPOINTS), 3))
        for row, (x, y) in zip(keypoints, stamp.keypoints / SCALE, strict=True):
            if 0 <= x < width and 0 <= y < height:
                row[:] = x, y, 2 if small_ids[int(y), int(x)] == k else 1
    return SceneObject(
        stamp.label, small_ids == k, visible_share, truncated, stamp.crowd, keypoints
    )
