"""Sources of a data module: the folders and splits it reads, and the split of data without any."""

from abc import abstractmethod
from dataclasses import KW_ONLY, asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Generic, TypeVar

from filelock import FileLock

from densenet_backbones.data.faults import DataError
from densenet_backbones.data.mask_samples import SegmentationSet
from densenet_backbones.data.recognition.recognize import Recognized
from densenet_backbones.data.recognition.recognize import Split as Part
from densenet_backbones.data.samples import DetectionSet
from densenet_backbones.data.scenes.generation import generate_scenes
from densenet_backbones.data.sets.split_file import SPLIT_FILE, name_split_file
from densenet_backbones.data.sets.splitting import Split, SplitOptions, split_set
from densenet_backbones.messages import nearest, quote_word

SetT = TypeVar("SetT", DetectionSet, SegmentationSet)
Sources = list[dict[str, str | None]]
"""Folders that make one set, each a `Source` as a dictionary."""
HELD_OUT = ("val", "valid", "validation", "dev", "test")
"""Names that mean the part that is held out of data without splits."""


@dataclass
class Source:
    """One folder and one split of it, for training sets made of several (VOC07+12).

    Attributes:
        root: Folder of the data set.
        split: Name of the split; "all" where the folder has none.
        annotation_file: As `ImageSources` has it.
        image_folder: As `ImageSources` has it.
    """

    root: str
    split: str = "all"
    annotation_file: str | None = None
    image_folder: str | None = None


@dataclass
class Scenes:
    """The generated data set of the quick start.

    Attributes:
        folder: Where it is drawn.
        train: Number of training images.
        val: Number of held-out images.
        size: Side of the square images, in pixels.
        seed: Same seed, same scenes.
    """

    folder: str = "datasets/scenes"
    train: int = 480
    val: int = 120
    size: int = 160
    seed: int = 0


@dataclass(eq=False, repr=False)
class ImageSources(Generic[SetT]):
    """Names what a data module reads: the splits of one path, several sources, or drawn scenes.

    A subclass recognizes what lies at a path (`recognize_data`) and reads the sources.

    Args:
        root: Folder, annotation file or zip archive of the data; what it is is recognized. None
            draws `scenes`.
        train_split: Name of the training split under `root`.
        val_split: Name of the split that is evaluated.
        train: Several (root, split) taken together as the training set, instead of `root` and
            `train_split`; their classes are unified by name.
        val: Several (root, split) that are evaluated together, instead of `root` and `val_split`.
        annotation_file: COCO's JSON file where it has another name, absolute or below `root`. In it
            and in `image_folder`, {split} stands for the split's name.
        image_folder: Folder of COCO's images where it has another name.
        val_fraction: Share of the images that are held out of data without splits; None takes the
            stored split's, or 0.2.
        group_pattern: Regular expression whose first group names, in the names of the files, images
            that a split keeps together: '(.+)_frame'. None takes the stored split's, or none.
        seed: At least 0; the split is a function of it, order and augmentation are functions of
            (seed, epoch, index).
        scenes: What to draw when `root` is None.

    Attributes:
        split_folders: Folders where the split of data without splits is stored too, if it cannot
            be beside the data: the run's own.
    """

    root: str | None = None
    _: KW_ONLY
    train_split: str = "train"
    val_split: str = "val"
    train: list[Source] | None = None
    val: list[Source] | None = None
    annotation_file: str | None = None
    image_folder: str | None = None
    val_fraction: float | None = None
    group_pattern: str | None = None
    seed: int = 0
    scenes: Scenes = field(default_factory=Scenes)

    def __post_init__(self) -> None:
        self.split_folders: list[Path] = []
        self._split: Split[SetT] | None = None

    @abstractmethod
    def recognize_data(self, path: str) -> Recognized:
        """Recognize what lies at a path, with the layout and the files that options name."""

    @cached_property
    def recognized(self) -> Recognized:
        """Data at `root` as it is recognized, at first use, and the way its splits are read."""
        return self.recognize_data(self._find_root())

    @property
    def lines(self) -> list[str]:
        """Sentences that say what `root` was recognized as, and which split is evaluated."""
        if self.train and (self.val or self.root is None):
            return []
        lines: list[str] = list(self.recognized.lines)
        split = self.recognized.find(self._choose_val_split())
        if split is not None and split.name != self.val_split and not self.val:
            lines[1] += f" {split.name!r} is evaluated."
        if self._split is not None:
            return [*lines, self._split.describe()]
        if self._find_unsplit() is not None:
            lines.append(f"No split {self.val_split!r} is given: all of these images are taken.")
        return lines

    def _name_train_sources(self) -> Sources:
        if self.train:
            return [asdict(source) for source in self.train]
        return self._name_source(self.train_split, "--data.train_split")

    def _name_val_sources(self) -> Sources:
        if self.val:
            return [asdict(source) for source in self.val]
        if self.root is None and self.train:
            raise DataError("data.root is needed: it holds the split that is evaluated")
        return self._name_source(self._choose_val_split(), "--data.val_split (evaluate: --split)")

    def _choose_val_split(self) -> str:
        """Return the split that is evaluated: "test" stands in for "val" where there is none."""
        recognized = self.recognized
        if self.val_split == "val" and recognized.find("val") is None:
            return "test" if recognized.find("test") is not None else "val"
        return self.val_split

    def _find_unsplit(self) -> Part | None:
        """Return the whole of data that does not say which images are for evaluation."""
        whole = None if self.train or self.val else self.recognized.whole
        if whole is not None and any(self.recognized.find(name) for name in ("val", "test")):
            return None  # what is held out is there, and what is trained on is missing
        named = [self.train_split, self._choose_val_split()] if whole is not None else []
        return whole if any(self.recognized.find(name) is None for name in named) else None

    def _name_source(self, split: str, option: str) -> Sources:
        whole = self.recognized.whole
        if whole is not None and self._find_unsplit() is not None:
            return [{**whole.source}]
        try:
            return [dict(self.recognized.name_source(split))]
        except DataError as error:
            usual = [self.recognized.find(name) for name in ("train", "val", "test")]
            others = [part.name for part in self.recognized.splits if part not in usual]
            example = f", such as {quote_word(others[0])}" if others else ""
            raise DataError(f"{error}; {option} takes its name{example}") from None

    def _find_root(self) -> str:
        """Return the folder of the data, which is drawn first where none is given."""
        if self.root is not None:
            return self.root
        s = self.scenes
        folder = Path(s.folder)
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_name(f"{folder.name}.lock")):  # several processes may ask
            generate_scenes(folder, train=s.train, val=s.val, size=s.size, seed=s.seed)
        return s.folder

    def _split_data(self, whole: SetT) -> Split[SetT]:
        """Split data that has no splits, as it was split before or by the options."""
        options = SplitOptions(self.val_fraction, self.group_pattern, self.seed)
        self._split = split_set(whole, self.recognized.root, options, self._list_split_files())
        return self._split

    def _choose_part(self, split: Split[SetT]) -> SetT:
        """Return the part of data without splits that the evaluated split's name means.

        Raises:
            DataError: It means none, so that other images than asked for would be evaluated.
        """
        if self.val_split == "train":
            return split.train
        if self.val_split not in HELD_OUT:
            raise DataError(
                f"{self.recognized.root}: has no split {self.val_split!r}"
                f"{nearest(self.val_split, ('train', *HELD_OUT))}; none is given there, so it was "
                "split into 'train' and 'val'"
            )
        return split.val

    def store_split(self) -> None:
        """Write the split of data without splits, so that it is used again."""
        if self._split is not None:
            self._split = self._split.store(self._list_split_files())

    def _list_split_files(self) -> list[Path]:
        # A run's model may evaluate other data, so the file there has the data's name.
        own: str = f"{self.recognized.root.resolve().name}.{SPLIT_FILE}"
        beside = name_split_file(Path(self._find_root()))
        return [beside, *(folder / own for folder in self.split_folders)]
