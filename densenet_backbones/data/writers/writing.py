"""Writes a data set in any of the layouts, whole or not at all."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from densenet_backbones.data.faults import DataError
from densenet_backbones.data.loaders.image_checks import check_present_sizes
from densenet_backbones.data.mask_samples import SegmentationSet
from densenet_backbones.data.samples import DetectionSet
from densenet_backbones.data.writers.coco import write_coco
from densenet_backbones.data.writers.output import ImagePlacer, fill_folder
from densenet_backbones.data.writers.voc import write_voc
from densenet_backbones.data.writers.yolo import write_yolo
from densenet_backbones.file_writing import save_text
from densenet_backbones.messages import pluralize

AnySet = DetectionSet | SegmentationSet
Writer = Callable[[Mapping[str, AnySet], Path, ImagePlacer, Counter[str]], None]
WRITERS: Mapping[str, Writer] = {"coco": write_coco, "voc": write_voc, "yolo": write_yolo}
"""Writers of the layouts, by their names in options."""
CHANGES_FILE = "changes.txt"


def write_data_set(
    parts: Mapping[str, AnySet],
    out: Path,
    layout: str,
    *,
    upright: frozenset[Path] = frozenset(),
    changes: Sequence[str] = (),
) -> list[str]:
    """Write the splits of a data set in another layout.

    Args:
        parts: Set of each split, all of one kind and with the same classes.
        out: New or empty folder.
        layout: A key of `WRITERS`.
        upright: Images that are written as shown, because a camera's tag turns them.
        changes: Lines about what was changed before, kept in a file beside the data.

    Returns:
        Lines about what was written, and what the layout could not hold.

    Raises:
        DataError: If the folder is not empty, classes differ, an image or a mask cannot be read,
            or images are not of the size that boxes were drawn in; nothing is left of what was
            written then.
    """
    names = {
        data.categories.names if isinstance(data, DetectionSet) else data.classes.names
        for data in parts.values()
    }
    if len(names) != 1:
        raise DataError(f"{out}: the splits do not have the same classes; give --classes")
    placer, left_out = ImagePlacer(upright), Counter[str]()
    with fill_folder(out) as draft:
        for data in parts.values():
            if isinstance(data, DetectionSet):
                check_present_sizes(data)
        WRITERS[layout](parts, draft, placer, left_out)
        lost = [f"left out: {what}: {count}" for what, count in left_out.items() if count]
        if changes or lost:
            save_text(draft / CHANGES_FILE, "".join(f"{line}\n" for line in (*changes, *lost)))
    counts = ", ".join(f"{split} {pluralize(len(data), 'image')}" for split, data in parts.items())
    return [f"Written to {out}: {counts}; {placer.describe()}", *lost]
