"""Feature-reuse heat map: ``python tools/heatmap.py NAME_OR_CHECKPOINT``."""

import csv
import io
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from densenet_backbones.anatomy.naming import refuse_missing
from densenet_backbones.messages import CommandParser

if TYPE_CHECKING:
    from densenet_backbones.analysis.feature_reuse import BlockReuse
    from densenet_backbones.anatomy.opening import OpenedModel


def make_parser() -> CommandParser:
    """Return the parser of the command line."""
    parser = CommandParser(
        description="Draw which layer of each dense block uses the maps of which earlier one, as "
        "figure 5 of the DenseNet paper: mean absolute weights, plain and scaled by batch norm. "
        "Says what is reused least and most, and whether the paper's four findings hold."
    )
    parser.add_argument(
        "model",
        metavar="MODEL",
        help="registered name, config, model.safetensors, checkpoint, or folder of a run",
    )
    parser.add_argument("--weights", metavar="FILE", help="weights for a name")
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="where files go (heatmap-NAME, or a numbered one beside it)",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command of ``tools/heatmap.py`` and ``densenet-heatmap``.

    Raises:
        SystemExit: 2 for wrong usage, 1 for what is no model with dense blocks; with one line on
            standard error.
    """
    options = make_parser().parse_args(argv)
    # Help and wrong words need no more than what is above.
    from densenet_backbones.reporting.console import fail, quiet_libraries

    quiet_libraries()
    try:
        refuse_missing(options.model, options.weights)
        draw_heatmap(options.model, options.weights, options.out)
    except (ValueError, OSError, MemoryError) as error:
        fail(error, 1)


def draw_heatmap(source: str, weights: str | None = None, out: Path | None = None) -> Path:
    """Measure and draw a model's feature reuse.

    Args:
        source: As of `open_model`.
        weights: As of `open_model`.
        out: Folder for the files; one of another number where it holds files.

    Returns:
        The folder, with ``heatmap.png``, ``heatmap.csv`` and ``heatmap.txt``.

    Raises:
        ValueError: The source names no model, or one without dense blocks.
        OSError: The files cannot be written.
    """
    from densenet_backbones.analysis.feature_reuse import find_head_readers, measure_reuse
    from densenet_backbones.anatomy.heatmap_picture import plot_heatmap
    from densenet_backbones.anatomy.opening import open_model
    from densenet_backbones.file_writing import check_output, find_unused_folder, save_text
    from densenet_backbones.reporting.console import say

    out = out or Path(name_folder("heatmap", source))
    check_output(out, "--out")
    opened = open_model(source, weights)
    has_head = opened.kind in ("detector", "segmenter")
    inputs = opened.make_inputs(opened.input_size)
    readers = find_head_readers(opened.model, inputs) if has_head else []
    blocks = measure_reuse(opened.model, readers)
    lines = list(_describe(opened, blocks, bool(readers)))
    out = find_unused_folder(out)
    plot_heatmap(blocks, opened.name, out / "heatmap.png")
    save_text(out / "heatmap.csv", _format_csv(blocks))
    save_text(out / "heatmap.txt", "\n".join(lines) + "\n")
    say(*lines, "", f"Written to {out}/: heatmap.png, heatmap.csv, heatmap.txt")
    return out


def name_folder(prefix: str, source: str) -> str:
    """Return a folder's name for what is said of a model: ``heatmap-dsod300``."""
    stem = Path(source).stem if Path(source).suffix else Path(source).name
    letters = re.sub(r"[^\w.-]+", "-", stem).strip("-.") or "model"
    return f"{prefix}-{letters[:80]}"


def _describe(
    opened: "OpenedModel", blocks: Sequence["BlockReuse"], head_is_read: bool
) -> Iterator[str]:
    from densenet_backbones.analysis.reuse_findings import check_findings, list_sentences

    if not opened.trained:
        yield f"{opened.name} has random weights: the map is that of its initialization."
    if opened.kind in ("detector", "segmenter") and not head_is_read:
        yield "Its head joins maps before its first convolution, so the map has no column of it."
    for scaled in (False, True):
        yield "Scaled by batch norm:" if scaled else "Plain weights:"
        yield from (f"  {line}" for line in list_sentences(blocks, scaled))
        yield from (f"  {finding.sentence()}" for finding in check_findings(blocks, scaled))


def _format_csv(blocks: Sequence["BlockReuse"]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("block", "source", "channels", "reader", "kind", "plain", "scaled"))
    for block in blocks:
        for reader in block.readers:
            values = zip(block.sources, block.widths, reader.plain, reader.scaled, strict=True)
            for source, width, plain, scaled in values:
                if plain is not None and scaled is not None:
                    row = (block.name, source, width, reader.name, reader.kind)
                    writer.writerow((*row, f"{plain:.6g}", f"{scaled:.6g}"))
    return text.getvalue()
