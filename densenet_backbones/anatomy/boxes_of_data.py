"""A detector's priors or anchors against a data set's boxes, for its report."""

import argparse
from typing import Any

import numpy as np
import yaml

from densenet_backbones.analysis.reference_boxes import ReferenceBoxes, read_references
from densenet_backbones.anatomy.box_fit import collect_sides, list_candidates
from densenet_backbones.anatomy.opening import CLASSES, OpenedModel
from densenet_backbones.data.faults import DataError
from densenet_backbones.data.files import spread
from densenet_backbones.data.loaders.image_checks import check_present_sizes
from densenet_backbones.data.samples import DetectionSet, ImageRecord
from densenet_backbones.inference.model_file import build_registered
from densenet_backbones.inspection.measuring import match_references
from densenet_backbones.inspection.reading import read_data

__all__ = ["measure_boxes"]

MATCHED = 500
"""Images whose boxes are matched: anchors of a large image take some hundredths of a second."""
_KEPT = 2000  # boxes in the JSON and the picture

Table = dict[str, Any]


def measure_boxes(opened: OpenedModel, data: str) -> Table:
    """Match a data set's boxes with a detector's priors or anchors, and fit some to them.

    Args:
        opened: A detector with priors or anchors.
        data: Folder, annotation file or zip archive; of the split "train", or else of all.

    Returns:
        ``classes`` (names), ``kind``, ``now`` (see `match_references`), ``fitted`` (the same with
        the fitted arguments, or None where no better ones were found), ``config`` (the lines to
        paste) and, for a picture, ``sides``, ``shapes`` and ``fitted_shapes``.

    Raises:
        DataError: The data cannot be read, has no boxes, or images of other sizes than they say.
        ValueError: The model has neither priors nor anchors of ours.
    """
    references = read_references(opened.model) if opened.kind == "detector" else None
    if references is None:
        raise ValueError(
            f"{opened.name} has no priors or anchors of ours to compare with --data; give an SSD, "
            "a DSOD, a RetinaNet or an R-CNN of densenet list detectors"
        )
    names, records = _read_records(data)
    sides = collect_sides(references, records)
    now = match_references(references, records, names)
    # Clusters ignore where boxes lie on the grid; what the grid says counts.
    fitted, found, shapes = None, Table(), references.shapes()[:0]
    for arguments in list_candidates(references, sides, opened.args or {}):
        candidate = _build_fitted(opened, arguments)
        matches = match_references(candidate, records, names)
        if _rank(matches) > _rank(fitted or now):
            fitted, found, shapes = matches, arguments, candidate.shapes()
    step = max(1, -(-len(sides) // _KEPT))
    return {
        "data": data,
        "classes": list(names),
        "kind": references.kind,
        "threshold": references.threshold,
        "now": now,
        "fitted": fitted,
        "arguments": found,
        "config": _write_config(found) if fitted else "",
        "sides": np.round(sides[::step].numpy(), 1).tolist(),
        "shapes": np.round(references.shapes().numpy(), 1).tolist(),
        "fitted_shapes": np.round(shapes.numpy(), 1).tolist(),
    }


def _rank(matches: Table) -> tuple[float, float]:
    return matches["coverage"], matches["mean_best_iou"]


def _read_records(data: str) -> tuple[tuple[str, ...], list[ImageRecord]]:
    nothing = dict.fromkeys(("annotation_file", "image_folder", "rename", "drop", "classes"))
    options = argparse.Namespace(data=data, layout="auto", masks=False, **nothing)
    parts = read_data(options).parts
    sets = {name: part for name, part in parts.items() if isinstance(part, DetectionSet)}
    chosen = [sets["train"]] if "train" in sets else list(sets.values())
    for part in chosen:
        check_present_sizes(part)
    records = [record for part in chosen for record in part.records if len(record.boxes)]
    if not records:
        raise DataError(f"{data}: has no boxes to compare with priors or anchors")
    return chosen[0].categories.names, list(spread(records, MATCHED))


def _build_fitted(opened: OpenedModel, arguments: Table) -> ReferenceBoxes:
    """Return those of a detector that is built with other arguments, as a training builds it."""
    fetched = ("weights", "weights_backbone")
    args = {k: v for k, v in (opened.args or {}).items() if k not in fetched}
    model = build_registered("detector", opened.builder, CLASSES, {**args, **arguments})
    references = read_references(model)
    assert references is not None
    return references


def _write_config(arguments: Table) -> str:
    text: str = yaml.safe_dump({"model": {"args": arguments}}, default_flow_style=None)
    return text
