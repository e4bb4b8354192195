"""`densenet list`: configs, backbones, detectors, segmenters and classifiers, a line each.

Everything is read from tables and the heads of files, so that the list comes at once.
"""

import re
import textwrap
from collections.abc import Iterator, Sequence

from densenet_backbones.messages import CommandParser, print_lines
from densenet_backbones.training.arguments import (
    CLASSIFICATION_FORM,
    DETECTION_FORM,
    SEGMENTATION_FORM,
    list_configs,
)
from densenet_backbones.variants import SUFFIX, VARIANTS

__all__ = ["DETECTORS", "SEGMENTERS", "main", "make_parser"]

DETECTORS = {
    "dsod300": "DSOD of 300 pixels, as published",
    "dsod300_smallest": "DSOD300 with its smallest base",
    "dsod512": "DSOD of 512 pixels",
    "dsod_tiny": "DSOD of 160 pixels that trains on a CPU in minutes",
    "fasterrcnn_fpn": "Faster R-CNN on a feature pyramid",
    "fasterrcnn_fpn_v2": "Faster R-CNN with torchvision's newer heads",
    "maskrcnn_fpn": "Mask R-CNN: boxes and masks",
    "maskrcnn_fpn_v2": "Mask R-CNN with torchvision's newer heads",
    "keypointrcnn_fpn": "Keypoint R-CNN: boxes and keypoints",
    "retinanet_fpn": "RetinaNet on a feature pyramid",
    "retinanet_fpn_v2": "RetinaNet with torchvision's newer heads",
    "fcos_fpn": "FCOS: one stage, no anchors",
    "ssd300": "SSD of 300 pixels",
    "ssd512": "SSD of 512 pixels",
}
"""Detectors of torchvision's registry that stand on any backbone or their own -> a line."""

SEGMENTERS = {
    "fcdensenet56": "FC-DenseNet of 56 layers, 1.4 M parameters",
    "fcdensenet67": "FC-DenseNet of 67 layers, 3.5 M parameters",
    "fcdensenet103": "FC-DenseNet of 103 layers, 9.3 M parameters, as published",
    "unet": "U-Net on any backbone",
    "smp:NAME": "decoder of segmentation_models.pytorch: smp:DeepLabV3Plus, smp:Segformer, ...",
}


CLASSIFIERS = {
    **{name: "of ours" for name in VARIANTS if "_k" in name},
    "densenet121_features": "DenseNet-121 of ours; so are all backbones",
    "densenet121": "timm's own DenseNet-121; so is any network of timm",
    "torchvision:NAME": "network of torchvision, such as torchvision:densenet121",
}


def main(argv: Sequence[str]) -> None:
    """Print the list of one kind or of all."""
    parser = make_parser()
    options = parser.parse_args(argv)
    asked = options.kind
    if options.costs:
        # Networks are planned, which needs torch.
        from densenet_backbones.anatomy.registered import KINDS, print_costs

        if asked is not None and asked not in KINDS:
            parser.error(f"--costs are those of {', '.join(KINDS)}")
        print_costs([asked] if asked else tuple(KINDS))
        return
    for kind, (title, make_rows) in _KINDS.items():
        if asked in (None, kind):
            rows = list(make_rows())
            width = max(len(name) for name, _ in rows)
            print_lines(f"{kind}: {title}", *(f"  {name:{width}}  {line}" for name, line in rows))


def make_parser() -> CommandParser:
    """Return the parser of the command line."""
    parser = CommandParser(description="List what can be named on the command line.")
    parser.add_argument("kind", nargs="?", choices=tuple(_KINDS), help="all, if left out")
    parser.add_argument(
        "--costs",
        action="store_true",
        help="parameters, multiply-adds and strides of everything registered (a minute)",
    )
    return parser


def _list_experiments() -> Iterator[tuple[str, str]]:
    forms = {"det": DETECTION_FORM, "seg": SEGMENTATION_FORM, "cls": CLASSIFICATION_FORM}
    for folder, form in forms.items():
        for name, file in list_configs(form).items():
            yield f"{folder}/{name}", _read_purpose(file.read_text(encoding="utf-8"))


def _read_purpose(text: str) -> str:
    """Return the beginning of a file's comment, without what explains it."""
    lines = []
    for line in text.splitlines():
        if not line.startswith("# "):
            break
        lines.append(line.removeprefix("# ").strip())
    start = re.split(r"[.:;,]? \(|[.:;] ", " ".join(lines))[0].rstrip(".:")
    return textwrap.shorten(start, 100, placeholder=" …")


def _list_backbones() -> Iterator[tuple[str, str]]:
    for name, spec in VARIANTS.items():
        blocks = "-".join(map(str, spec.block_config))
        line = f"growth {spec.growth_rate}, layers {blocks}, stem {spec.num_init_features}"
        yield f"{name}{SUFFIX}", line


_KINDS = {
    "configs": ("experiments, for --config", _list_experiments),
    "backbones": (
        "for --model.args '{backbone: NAME}', or any timm name",
        _list_backbones,
    ),
    "detectors": (
        "for --model.detector; retinanet_densenet169_fpn and the like as well",
        DETECTORS.items,
    ),
    "segmenters": ("for --model.segmenter", SEGMENTERS.items),
    "classifiers": ("for --model.classifier", CLASSIFIERS.items),
}
"""Kind -> its title and a function that returns names with a line each."""
