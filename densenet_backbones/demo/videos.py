"""Run the page's models on the frames of a short video, and write it with what they found."""

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from densenet_backbones.data.faults import DataError
from densenet_backbones.demo.answers import Answer, Model, describe, draw, select
from densenet_backbones.file_writing import save_json
from densenet_backbones.inference.detector import Detector
from densenet_backbones.inference.inputs.clips import Clip, VideoWriter, open_clip
from densenet_backbones.inference.inputs.image_tensors import convert_image
from densenet_backbones.inference.results.base import ImageResult
from densenet_backbones.messages import pluralize
from densenet_backbones.reporting.pictures import scale_image

LONGEST = 60
"""Seconds of a video."""

MOST_FRAMES = 300
"""Frames that are looked at: of longer videos every second one, every third, …"""

_LARGEST_FRAME = 640
"""Pixels of a frame's longer side: of every frame, labels and scores of all pixels are held."""


def find_in_video(
    models: Sequence[Model], file: Path, report: Callable[[float], object] = lambda share: None
) -> Answer:
    """Run the models on a video.

    Args:
        models: The models.
        file: The video.
        report: Called with the share that is done, in [0, 1].

    Raises:
        DataError: It cannot be decoded, or is too long.
    """
    with open_clip(str(file)) as clip:
        most = int(LONGEST * clip.rate)
        # Where the file does not say its length, it may be as long as any.
        step = -(-min(clip.length or most, most) // MOST_FRAMES) or 1
        expected = -(-(clip.length or most) // step)
        frames = []
        for frame in _read_frames(clip, file, step):
            frames.append(tuple(_predict(model, frame) for model in models))
            report(min(1.0, len(frames) / expected))
    if not frames:
        raise DataError(f"{file}: has no pictures in it; give a video")
    return Answer(file, tuple(frames), step)


def _read_frames(clip: Clip, file: Path, step: int) -> Iterator[np.ndarray]:
    """Yield every `step`-th frame, at most `_LARGEST_FRAME` pixels wide or high."""
    if clip.length and clip.length > LONGEST * clip.rate:
        raise DataError(_describe_length(file, float(clip.length / clip.rate)))
    for number, frame in enumerate(clip.frames):
        if number > LONGEST * clip.rate:
            raise DataError(_describe_length(file, None))
        if number % step == 0:
            yield scale_image(frame, min(1.0, _LARGEST_FRAME / max(frame.shape[:2])))


def _describe_length(file: Path, seconds: float | None) -> str:
    length = f"is {seconds:.0f} seconds long" if seconds else "is longer"
    return f"{file}: {length}, this page takes videos up to {LONGEST} seconds; cut it"


def _predict(model: Model, frame: np.ndarray) -> ImageResult:
    if isinstance(model.predictor, Detector):
        return replace(model.predictor.predict(frame, 0.0), image=None)
    result = model.predictor.predict(frame)
    # Half the memory, for a slider of a hundred steps.
    return replace(result, image=None, scores=result.scores.astype(np.float16))


def save_video(
    answer: Answer, number: int, score: float, classes: Collection[str], stem: Path
) -> tuple[Path, Path, str]:
    """Write what a model found in a video, from a score on; see `save_answer`."""
    assert answer.step is not None
    video, described = Path(f"{stem}.mp4"), Path(f"{stem}.json")
    entries, seen = [], Counter[str]()
    with open_clip(str(answer.file)) as clip:
        rate = clip.rate / answer.step
        writer = VideoWriter(video, rate)
        try:
            frames = _read_frames(clip, answer.file, answer.step)
            for place, (frame, results) in enumerate(zip(frames, answer.frames, strict=True)):
                image = convert_image(frame)
                found = select(results[number], score, classes)
                chosen = replace(found, image=image)  # type: ignore[type-var]
                writer.add(draw(chosen))
                seen.update(set(chosen.count_classes()))
                seconds = round(float(place / rate), 3)
                entries.append(
                    {"frame": place * answer.step, "seconds": seconds, **describe(chosen)}
                )
        finally:
            writer.close()
    content = {"file": answer.file.name, "score_from": score, "frames": entries}
    save_json(described, content)
    parts = ", ".join(f"{name} in {count}" for name, count in seen.most_common())
    return (
        video,
        described,
        f"{pluralize(len(entries), 'frame')}: {parts or 'nothing from this score on'}",
    )
