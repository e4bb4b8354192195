"""Measure what cutting images into tiles changes in a segmenter's results.

    python -m densenet_backbones.inference.merging.tile_comparison runs/mine/model.safetensors a.jpg

A tile's outer pixels are seen without what lies beyond the tile. Where the blending leaves out as
much as the network sees, nothing changes; where it leaves out less, this table tells how much.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from densenet_backbones.inference.inputs.sources import list_sources
from densenet_backbones.inference.loading import load
from densenet_backbones.inference.merging.tiling import Tiling
from densenet_backbones.inference.segmenter import Segmentation, SegmentationModel
from densenet_backbones.messages import CommandParser, print_lines
from densenet_backbones.reporting.console import fail

__all__ = ["TileRow", "compare_tiles", "format_rows", "main"]

DISTANCES = (0, 16, 32, 64, 96)


@dataclass(frozen=True)
class TileRow:
    """Agreement of the pixels that lie so far from every edge of a tile inside their image.

    Attributes:
        distance: Least distance in pixels.
        share: Part of all pixels that lie so far, 0..1.
        same: Part of these whose labels are those of the whole image, 0..1.
        largest: Largest difference of the labels' probabilities.
        typical: 99th percentile of the differences.
    """

    distance: int
    share: float
    same: float
    largest: float
    typical: float


def compare_tiles(
    checkpoint: str, sources: Sequence[str], *, tile: int, overlap: int | None, images: int
) -> tuple[TileRow, ...]:
    """Segment images as a whole and by tiles, and compare the two.

    Args:
        checkpoint: File of a segmenter.
        sources: Images and folders of images.
        tile: Side of a tile in pixels.
        overlap: Pixels that tiles share; see `Tiling`.
        images: Most images to take, spread over the list.

    Returns:
        A row for each of `DISTANCES` at which there are pixels.

    Raises:
        ValueError: The checkpoint holds a detector, or no image is larger than a tile.
    """
    model = load(checkpoint)
    if not isinstance(model, SegmentationModel):
        raise ValueError(f"{checkpoint}: holds a detector; tiles are for segmenters")
    tiling = Tiling(tile, overlap, stride=getattr(model.model, "stride", 1))
    # Images spread over the list, and of each what every pixel differs by.
    files = [Path(source.name) for source in list_sources(sources)]
    files = files[:: max(-(-len(files) // max(images, 1)), 1)]
    parts = [part for file in files if (part := _compare(model, file, tiling)) is not None]
    if not parts:
        raise ValueError(f"no image is larger than a tile of {tiling.tile} pixels: give --tile")
    distance, same, difference = (np.concatenate(column) for column in zip(*parts, strict=True))
    # One row a distance: differences fall away from edges, which tells the overlap needed.
    rows = []
    for least in DISTANCES:
        far = distance >= least
        if far.any():
            off = difference[far]
            numbers = (far.mean(), same[far].mean(), off.max(), np.quantile(off, 0.99))
            rows.append(TileRow(least, *map(float, numbers)))
    return tuple(rows)


def _compare(
    model: SegmentationModel, file: Path, tiling: Tiling
) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """Return each pixel's distance to an edge, if labels agree, and the scores' difference."""
    whole = model.predict(file)
    size = whole.scores.shape[-2:]
    if max(size) <= tiling.tile:
        return None
    tiled: Segmentation = model.predict(file, tile=tiling.tile, overlap=tiling.overlap)
    distance = np.minimum(*np.ix_(*(_measure_distance(tiling, length) for length in size)))
    distance = np.broadcast_to(distance, whole.scores.shape)
    same, difference = whole.labels == tiled.labels, np.abs(whole.scores - tiled.scores)
    return distance.ravel(), same.ravel(), difference.ravel()


def _measure_distance(tiling: Tiling, length: int) -> np.ndarray:
    """Return (length,) pixels to the nearest edge of a tile that is not one of the image."""
    edges = {edge for span in tiling.split(length) for edge in span} - {0, length}
    position = np.arange(length) + 0.5
    away = [np.abs(position - edge) for edge in edges]
    return np.min(away, axis=0) if away else np.full(length, np.inf)


def format_rows(rows: Sequence[TileRow]) -> list[str]:
    """Format a table, one line a row."""
    lines = ["pixels from edges of tiles  share  labels equal  probability: largest, 99 % below"]
    for row in rows:
        lines.append(
            f"{row.distance:>20} or more  {row.share:5.3f}  {row.same:12.4f}  "
            f"{row.largest:20.4f}  {row.typical:10.4f}"
        )
    return lines


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line.

    Raises:
        SystemExit: 1 with one line on standard error for wrong input.
    """
    name = "python -m densenet_backbones.inference.merging.tile_comparison"
    parser = CommandParser(prog=name, description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("checkpoint", help="of a segmenter: *.ckpt or model.safetensors")
    parser.add_argument("images", nargs="+", help="images, and folders of images")
    parser.add_argument("--tile", type=int, default=512, help="side in pixels (%(default)s)")
    parser.add_argument("--overlap", type=int, help="pixels (a quarter of the tile)")
    parser.add_argument("--limit", type=int, default=10, metavar="N", help="images (%(default)s)")
    options = parser.parse_args(argv)
    try:
        rows = compare_tiles(
            options.checkpoint,
            options.images,
            tile=options.tile,
            overlap=options.overlap,
            images=options.limit,
        )
    except (ValueError, OSError) as error:
        fail(error, 1)
    print_lines(*format_rows(rows))


if __name__ == "__main__":
    main()
