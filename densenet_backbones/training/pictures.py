"""Pictures of what goes into a detector and what comes out of it.

Images are uint8 arrays (H, W, 3), RGB; boxes are xyxy in pixels of their image. The curves and
matrices are drawn in `plots`; their functions can be imported from here too.
"""

import functools
import io
import math
import os
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from densenet_backbones.training.plots import (
    class_colour,
    plot_confidence_curves,
    plot_confusion,
    plot_pr_curves,
    plot_training_curves,
    save_bytes,
)

__all__ = [
    "class_colour",
    "draw_detections",
    "ground_truth_beside_predictions",
    "montage",
    "plot_confidence_curves",
    "plot_confusion",
    "plot_pr_curves",
    "plot_training_curves",
    "save_picture",
]
