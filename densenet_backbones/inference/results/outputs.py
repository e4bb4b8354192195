"""Write what `predict` finds: pictures, videos, masks and the chosen formats, frame by frame."""

from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

from densenet_backbones.inference.inputs.clips import VideoWriter
from densenet_backbones.inference.inputs.image_tensors import ReadImage
from densenet_backbones.inference.inputs.image_windows import ImageWindows
from densenet_backbones.inference.inputs.sources import Source
from densenet_backbones.inference.results import formats
from densenet_backbones.inference.results.base import ImageResult
from densenet_backbones.inference.results.classification import (
    Classification,
    describe_classification,
)
from densenet_backbones.inference.results.detections import Detections
from densenet_backbones.inference.results.mask_files import describe_segmentation, save_masks
from densenet_backbones.inference.results.savers import SAVERS, Saved
from densenet_backbones.inference.results.segmentation import Segmentation
from densenet_backbones.messages import pluralize
from densenet_backbones.reporting.pictures import save_picture


class Frame(NamedTuple):
    """Image to predict, and where it is from.

    Attributes:
        source: File, address or camera.
        image: The image.
        number: Number of the frame in a video, from 0; None for an image.
        rate: Frames a second that are taken of it.
    """

    source: Source
    image: ReadImage | ImageWindows
    number: int | None = None
    rate: Fraction = Fraction(1)


class Outputs:
    """Files of a prediction.

    Args:
        out: Folder of all.
        save: Formats, of `SAVERS`.
        stems: Path of each source's files without endings.
        pictures: Draw pictures and videos.
    """

    def __init__(
        self, out: Path, save: Sequence[str], stems: Mapping[Source, Path], *, pictures: bool
    ) -> None:
        self._savers = [SAVERS[name](out) for name in dict.fromkeys(save)]
        self._stems, self._pictures = stems, pictures
        self._video: VideoWriter | None = None
        self._filmed: Source | None = None
        self._objects = self._images = self._frames = 0
        self._kind = "objects"

    def add(self, frame: Frame, result: Detections | Segmentation | Classification) -> None:
        """Write one result."""
        stem = self._stems[frame.source]
        name = stem.name if frame.number is None else f"{stem.name}_{frame.number:06}"
        if frame.source is not self._filmed:
            self._end_video()
        picture = self._draw(frame, result, stem) if self._pictures else None
        if isinstance(result, Detections):
            entry = formats.to_json(result, picture, frame.number)
            self._objects += len(result)
        elif isinstance(result, Classification):
            self._kind = "classified"
            entry = describe_classification(result, picture, frame.number)
        else:
            self._kind = "segmented"
            masks = save_masks(result, stem.with_name(name))
            entry = describe_segmentation(result, picture, masks, frame.number)
        for saver in self._savers:
            saver.add(Saved(result, entry, name, frame.number))
        self._images += frame.number is None
        self._frames += frame.number is not None

    def _draw(self, frame: Frame, result: ImageResult, stem: Path) -> str:
        """Write the picture, or a frame of the video, and return the file's name."""
        drawn = result.plot()
        if frame.number is None:
            save_picture(f"{stem}.png", drawn)
            return f"{stem}.png"
        if self._video is None:
            self._video = VideoWriter(Path(f"{stem}.mp4"), frame.rate)
            self._filmed = frame.source
        self._video.add(drawn)
        return f"{stem}.mp4"

    def _end_video(self) -> None:
        video, self._video, self._filmed = self._video, None, None
        if video is not None:
            video.close()

    def close(self) -> None:
        """Finish every file."""
        self._end_video()
        for saver in self._savers:
            saver.close()

    def summarize(self) -> str:
        """Return the numbers of what was done."""
        parts = [pluralize(self._images, "image")] if self._images or not self._frames else []
        parts += [pluralize(self._frames, "frame")] if self._frames else []
        what = " and ".join(parts)
        return (
            f"{pluralize(self._objects, 'object')} in {what}"
            if self._kind == "objects"
            else f"{what} {self._kind}"
        )
