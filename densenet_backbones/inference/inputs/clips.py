"""Read the frames of videos, cameras and animations one by one, and write videos.

PyAV is imported where it is used: it belongs to the extra ``video``. Animations (GIF, WebP) are
read by Pillow.
"""

import importlib
import io
import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import ModuleType
from typing import Any

import cv2
import numpy as np

from densenet_backbones.data.faults import DataError
from densenet_backbones.data.images import convert_picture, open_image
from densenet_backbones.file_writing import replace_file
from densenet_backbones.messages import pluralize
from densenet_backbones.untrusted.limits import MAX_PIXELS

# FFmpeg's names of what it may read: others (playlists) open further files and addresses.
_CONTAINERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpeg,mpegts,asf,gif,flv,ogg"
_CAMERAS = {"linux": ("v4l2", "/dev/video{}"), "darwin": ("avfoundation", "{}")}
_USUAL_RATE = Fraction(25)


@dataclass(frozen=True)
class Clip:
    """Open video.

    Attributes:
        rate: Frames a second.
        length: Number of frames, as far as the file tells; None if it does not.
        frames: The frames from the first one on, (H, W, 3) uint8 RGB as shown.
    """

    rate: Fraction
    length: int | None
    frames: Iterator[np.ndarray]


@contextmanager
def open_clip(name: str, content: bytes | None = None, camera: int | None = None) -> Iterator[Clip]:
    """Open a video, an animation or a camera; one frame is in memory at a time.

    Args:
        name: File, or another name for messages.
        content: Bytes of the file where they are at hand.
        camera: Number of a camera to read instead.

    Raises:
        DataError: It cannot be read, here or at a later frame, or PyAV is not installed.
    """
    start = content[:16] if content is not None else _read_start(name, camera)
    if start.startswith(b"GIF8") or start[8:12] == b"WEBP":
        with open_image(name, content=content) as image:
            pace = Fraction(1000, max(int(image.info.get("duration") or 0), 20))
            yield Clip(pace, getattr(image, "n_frames", None), _read_animation(image, name))
        return
    av = _import_av(name)
    where, options = _find_input(name, content, camera)
    with _convert_errors(av, name, camera), closing(av.open(where, **options)) as container:
        if not container.streams.video:
            raise DataError(f"{name}: has no pictures in it; give a video")
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        yield Clip(
            Fraction(stream.average_rate or _USUAL_RATE),
            stream.frames or None,
            _decode(av, container, stream, name),
        )


def _read_start(name: str, camera: int | None) -> bytes:
    if camera is not None:
        return b""
    try:
        with Path(name).open("rb") as file:
            return file.read(16)
    except FileNotFoundError:
        raise DataError(f"{name}: there is no such video; check the path") from None


def _find_input(
    name: str, content: bytes | None, camera: int | None
) -> tuple[str | io.BytesIO, dict[str, Any]]:
    """Return what PyAV opens, and its options."""
    if camera is None:
        limits = {"format_whitelist": _CONTAINERS, "protocol_whitelist": "file"}
        options = {"options": limits, "metadata_errors": "replace"}  # a title may be no UTF-8
        return (name if content is None else io.BytesIO(content)), options
    if sys.platform not in _CAMERAS:
        raise DataError(f"{name}: cameras can be read on Linux and macOS; record a video instead")
    driver, place = _CAMERAS[sys.platform]
    return place.format(camera), {"format": driver}


def _decode(av: ModuleType, container: Any, stream: Any, name: str) -> Iterator[np.ndarray]:
    number = 0
    with _convert_errors(av, name, where=lambda: f" after {pluralize(number, 'frame')}"):
        for frame in container.decode(stream):
            if frame.width * frame.height > MAX_PIXELS:
                raise DataError(
                    f"{name}: frames of {frame.width}x{frame.height} pixels are more than the "
                    f"{MAX_PIXELS} that are allowed; save it smaller"
                )
            pixels = frame.to_ndarray(format="rgb24")
            # Phones write upright videos lying, with a note that turns them.
            yield np.ascontiguousarray(np.rot90(pixels, round(frame.rotation / 90)))
            number += 1


def _read_animation(image: Any, name: str) -> Iterator[np.ndarray]:
    number = 0
    while True:
        try:
            image.seek(number)
        except EOFError:
            return
        yield convert_picture(image, name)
        number += 1


@contextmanager
def _convert_errors(
    av: ModuleType, name: str, camera: int | None = None, where: Any = lambda: ""
) -> Iterator[None]:
    """Make a `DataError` of FFmpeg's errors."""
    try:
        yield
    except av.error.FFmpegError as error:
        reason = getattr(error, "strerror", None) or str(error)
        fix = "fetch or export the file again"
        if camera is not None:
            fix = "connect it, or give the number of another, such as camera:0"
        raise DataError(f"{name}: cannot be read as a video{where()} ({reason}); {fix}") from error


def _import_av(name: str) -> ModuleType:
    try:
        av = importlib.import_module("av")
    except ModuleNotFoundError as error:
        raise DataError(
            f"{name}: videos need av: pip install 'densenet-backbones[video]'"
        ) from error
    av.logging.set_level(None)  # what it prints of damaged files is no sentence
    return av


class VideoWriter:
    """Video file (H.264 in MP4, which browsers play) that appears whole when it is closed.

    Args:
        path: The ``.mp4``.
        rate: Frames a second.

    Raises:
        DataError: PyAV is not installed.
    """

    def __init__(self, path: Path, rate: Fraction) -> None:
        self._av = _import_av(str(path))
        self._files = ExitStack()
        draft = self._files.enter_context(replace_file(path))
        options = {"movflags": "faststart"}  # plays before all of it is there
        self._container = self._av.open(str(draft), "w", format="mp4", options=options)
        self._rate = max(min(rate, Fraction(240)), Fraction(1, 10)).limit_denominator(1001)
        self._stream: Any = None

    def add(self, picture: np.ndarray) -> None:
        """Write a frame (H, W, 3) uint8 RGB; all have the size of the first, made even."""
        if self._stream is None:
            self._stream = self._container.add_stream("libx264", self._rate)
            self._stream.height, self._stream.width = (s + s % 2 for s in picture.shape[:2])
            self._stream.pix_fmt = "yuv420p"
            self._stream.options = {"crf": "20", "preset": "veryfast"}
        width, height = self._stream.width, self._stream.height
        down, right = height - picture.shape[0], width - picture.shape[1]
        if down in (0, 1) and right in (0, 1):
            picture = np.pad(picture, ((0, down), (0, right), (0, 0)), mode="edge")
        else:
            picture = np.asarray(cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA))
        frame = self._av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
        self._container.mux(self._stream.encode(frame))

    def close(self) -> None:
        """Finish the file."""
        with self._files:
            if self._stream is not None:
                self._container.mux(self._stream.encode(None))
            self._container.close()
