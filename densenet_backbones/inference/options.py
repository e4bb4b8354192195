"""Options of the command lines of `predict` and `evaluate`, which are read without torch."""

import argparse

FORMATS = ("json", "coco", "yolo", "voc", "labelme", "csv", "crops")
"""Formats of `predict --save`, those of `SAVERS`."""

PRECISIONS = {"32-true": None, "bf16-mixed": "bfloat16", "16-mixed": "float16"}
"""Precision, as Lightning names it -> torch's name of what autocast computes in."""

SEGMENTER_TILE = 1024
"""Pixels of the tiles that larger images are cut into for a segmenter."""

BOUNDARY_TOLERANCE = 0.008
"""Of the boundary F-score, as `metrics.boundary` has it."""


def add_view_options(group: argparse._ArgumentGroup) -> None:
    """Add the options of `evaluate` and `predict` that `parse_views` reads to their detectors'."""
    group.add_argument("--tta", choices=("flip",), help="look at every image mirrored, too")
    group.add_argument(
        "--tta-scales",
        metavar="F,F,…",
        help="look at every image at these factors of its size, such as 0.75,1,1.25",
    )
    group.add_argument(
        "--soft-nms",
        choices=("linear", "gaussian"),
        help="overlapped boxes lose score instead of being dropped",
    )
    group.add_argument(
        "--box-votes",
        type=float,
        metavar="IOU",
        help="boxes that overlap a kept one by IOU, such as 0.65, say where it lies; 1: none do",
    )
