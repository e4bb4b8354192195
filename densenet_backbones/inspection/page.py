"""Writes the inspection as one HTML page that needs no other file.

Names of files and classes come from the data and may hold anything: every text is escaped.
"""

import base64
import html
import io
import string
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from densenet_backbones.messages import pluralize, show_controls

_COLORS = {  # of light and of dark pages
    "ink": "#1c2330, #e6e9ef",
    "soft": "#5b6577, #9aa5b8",
    "line": "#d9dee7, #39414f",
    "paper": "#ffffff, #1e232c",
    "ground": "#f4f6f9, #14181f",
    "blue": "#3b7dd8, #6aa2ee",
    "red": "#c0392b, #ef7d70",
    "green": "#2e8b57, #6cc796",
}
_STYLE = """
:root { color-scheme: light dark; }
* { box-sizing: border-box; }
body { margin: 0; background: $ground; color: $ink;
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 24px 20px 60px; }
h1 { font-size: 26px; margin: 8px 0 2px; overflow-wrap: anywhere; }
h2 { font-size: 18px; margin: 0 0 12px; }
h3 { font-size: 14px; margin: 18px 0 6px; color: $soft; font-weight: 600; }
p { margin: 4px 0 10px; color: $soft; overflow-wrap: anywhere; }
section { background: $paper; border: 1px solid $line; border-radius: 10px;
  padding: 18px 20px; margin: 16px 0; }
.tiles { display: flex; flex-wrap: wrap; gap: 12px; margin: 16px 0; }
.tile { background: $paper; border: 1px solid $line; border-radius: 10px;
  padding: 10px 16px; min-width: 120px; }
.tile b { display: block; font-size: 22px; }
.tile.bad b { color: $red; } .tile.good b { color: $green; }
.tile span { color: $soft; font-size: 13px; }
table { border-collapse: collapse; width: 100%; font-size: 14px; }
th { text-align: left; color: $soft; font-weight: 600; border-bottom: 1px solid $line; }
th, td { padding: 5px 12px 5px 0; vertical-align: top; }
td { overflow-wrap: break-word; } td:first-child { min-width: 90px; max-width: 420px; }
td.n, th.n { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums;
  width: 1%; min-width: 0; }
code, summary { overflow-wrap: anywhere; }
tr + tr td { border-top: 1px solid $line; }
.bar { background: $blue; height: 10px; border-radius: 3px; min-width: 1px; margin-top: 6px; }
.bad { color: $red; }
code { font-size: 12.5px; color: $soft; }
summary { cursor: pointer; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(320px, 1fr)); gap: 18px; }
figure { margin: 0; } figcaption { color: $soft; font-size: 13px; margin-bottom: 4px; }
svg { width: 100%; height: auto; } svg text { fill: $soft; font-size: 11px; }
svg rect, svg circle { fill: $blue; }
img { max-width: 100%; height: auto; border-radius: 6px; background: #fff; }
.crops td:first-child { width: 160px; }
.narrow { width: auto; } .narrow td.n, .narrow th.n { padding-left: 24px; }
"""

Report = dict[str, Any]


def escape(text: object) -> str:
    """Return a text as it is shown: no markup, and control codes spelled."""
    return html.escape(show_controls(str(text)), quote=True)


def embed_picture(picture: np.ndarray, quality: int = 84) -> str:
    """Return an image element that holds an (H, W, 3) uint8 picture as JPEG."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="JPEG", quality=quality)
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    size = f'width="{picture.shape[1]}" height="{picture.shape[0]}"'
    return f'<img {size} alt="" src="data:image/jpeg;base64,{data}">'


def make_page(
    report: Report,
    samples: Mapping[str, np.ndarray],
    crops: Mapping[str, np.ndarray],
    pairs: Sequence[np.ndarray],
) -> str:
    """Make the page.

    Args:
        report: Numbers and texts, as in the JSON file.
        samples: Sheet of each split.
        crops: Row of objects of each class.
        pairs: Pictures of images that look the same.
    """
    name = escape(report["name"])
    sections = [
        _make_tiles(report),
        _make_defects(report["defects"]),
        _make_classes(report),
        _make_charts(report),
        _make_priors(report.get("priors")),
        *(
            _make_section(f"Samples of {escape(split)}", embed_picture(sheet))
            for split, sheet in samples.items()
        ),
        _make_crops(crops),
        _make_section(
            "Images that look the same", "".join(f"<p>{embed_picture(p)}</p>" for p in pairs)
        )
        if pairs
        else "",
    ]
    lines = "".join(f"<p>{escape(line)}</p>" for line in report["lines"])
    style = string.Template(_STYLE).substitute(
        {color: f"light-dark({pair})" for color, pair in _COLORS.items()}
    )
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{name}: data report</title>\n<style>{style}</style></head>\n"
        f"<body><main><h1>{name}</h1>{lines}\n" + "\n".join(sections) + "\n</main></body></html>\n"
    )


def _make_section(title: str, content: str) -> str:
    return f"<section><h2>{title}</h2>{content}</section>"


def _make_tiles(report: Report) -> str:
    tiles = [(f"{count:,}", f"images in {split}", "") for split, count in report["images"].items()]
    if "boxes" in report:
        tiles.append((f"{report['boxes']['count']:,}", "boxes", ""))
    tiles.append((str(len(report["classes"])), "classes", ""))
    errors = sum(defect["count"] for defect in report["defects"] if defect["is_error"])
    tiles.append((f"{errors:,}", "faults", "bad" if errors else "good"))
    return (
        '<div class="tiles">'
        + "".join(
            f'<div class="tile {kind}"><b>{value}</b><span>{escape(label)}</span></div>'
            for value, label, kind in tiles
        )
        + "</div>"
    )


def _make_defects(defects: Sequence[Mapping[str, Any]]) -> str:
    if not defects:
        return _make_section("Faults", "<p>None was found.</p>")
    rows = []
    for defect in defects:
        examples = "".join(f"<div><code>{escape(e)}</code></div>" for e in defect["examples"])
        mark = ' class="bad"' if defect["is_error"] else ""
        rows.append(
            f'<tr><td class="n">{defect["count"]:,}</td><td><details><summary{mark}>'
            f"{escape(defect['kind'])}</summary>{examples}</details></td></tr>"
        )
    note = "<p>Faults in red; the others are worth knowing. A click shows examples.</p>"
    return _make_section("Faults by kind", f"{note}<table>{''.join(rows)}</table>")


def _make_classes(report: Report) -> str:
    classes, splits = report["classes"], list(report["images"])
    is_detection = "boxes" in report
    unit = "objects" if is_detection else "share"
    most = max((row.get(s, {}).get(unit, 0) for row in classes for s in splits), default=0) or 1
    head = "<th>class</th>" + "".join(
        f'<th class="n">{escape(s)} {"objects" if is_detection else "pixels"}</th>'
        f'<th class="n">images</th><th></th>'
        for s in splits
    )
    body = []
    for row in classes:
        cells = [f"<td>{escape(row['name'])}</td>"]
        for split in splits:
            numbers = row.get(split, {})
            value = numbers.get(unit, 0)
            shown = f"{value:,}" if is_detection else f"{100 * value:.3g} %"
            bad = " bad" if not value and split.startswith("train") else ""
            width = round(100 * value / most, 1)
            cells.append(
                f'<td class="n{bad}">{shown}</td><td class="n">{numbers.get("images", 0):,}</td>'
                f'<td style="width:{round(40 / len(splits))}%">'
                f'<div class="bar" style="width:{width}%"></div></td>'
            )
        body.append(f"<tr>{''.join(cells)}</tr>")
    return _make_section("Classes", f"<table><tr>{head}</tr>{''.join(body)}</table>")


def _make_charts(report: Report) -> str:
    sizes = report["image_sizes"]
    figures = []
    if sizes["different"] > 1:
        figures.append(_draw_points("images: width to the right, height up", sizes["points"]))
    boxes = report.get("boxes")
    if boxes:
        figures += [_draw_bars(title, chart) for title, chart in boxes["histograms"].items()]
    rows = "".join(
        f'<tr><td>{w} x {h}</td><td class="n">{n:,}</td></tr>' for w, h, n in sizes["most_frequent"]
    )
    several = sizes["different"] > 1
    title = (
        f"{sizes['different']:,} sizes of images, the most frequent" if several else "all images"
    )
    facts = f"<h3>{title}</h3><table>{rows}</table>"
    if boxes:
        facts += (
            "<h3>boxes by COCO's bounds</h3><p>"
            f"{boxes['small']:,} small (below 32 pixels), {boxes['medium']:,} medium, "
            f"{boxes['large']:,} large (from 96 pixels)</p>"
        )
    charts = f'<div class="charts">{"".join(figures)}<div>{facts}</div></div>'
    return _make_section("Sizes", charts)


def _draw_bars(title: str, chart: Mapping[str, Any], width: int = 360, height: int = 150) -> str:
    counts, edges = chart["counts"], chart["edges"]
    if not counts:
        return ""
    most, step, base = max(counts) or 1, (width - 20) / len(counts), height - 22
    bars = "".join(
        f'<rect x="{10 + n * step:.1f}" y="{base - (base - 14) * c / most:.1f}" '
        f'width="{max(step - 1, 1):.1f}" height="{(base - 14) * c / most:.1f}">'
        f"<title>{edges[n]:g} to {edges[n + 1]:g}: {c:,}</title></rect>"
        for n, c in enumerate(counts)
    )
    middle = len(counts) // 2
    labels = "".join(
        f'<text x="{10 + n * step:.1f}" y="{height - 6}" text-anchor="{anchor}">'
        f"{edges[n]:.3g}</text>"
        for n, anchor in ((0, "start"), (middle, "middle"), (len(counts), "end"))
    )
    top = f'<text x="10" y="11">{most:,}</text>'
    log = " (logarithmic axis)" if chart["log"] else ""
    return (
        f"<figure><figcaption>{escape(title)}{log}</figcaption>"
        f'<svg viewBox="0 0 {width} {height}">{top}{bars}{labels}</svg></figure>'
    )


def _draw_points(title: str, points: Sequence[Sequence[int]], side: int = 150) -> str:
    """Draw the sizes as points whose areas grow with their number."""
    if not points:
        return ""
    largest = max(max(w, h) for w, h, _ in points)
    most = max(n for *_, n in points)
    scale = (side - 40) / largest
    dots = "".join(
        f'<circle cx="{34 + w * scale:.1f}" cy="{side - 22 - h * scale:.1f}" '
        f'r="{2 + 6 * (n / most) ** 0.5:.1f}" fill-opacity="0.55"><title>{w} x {h}: {n:,}</title>'
        "</circle>"
        for w, h, n in points
    )
    axes = (
        f'<text x="34" y="{side - 6}">0</text><text x="{side - 6}" y="{side - 6}" '
        f'text-anchor="end">{largest}</text>'
        f'<text x="30" y="{side - 12 - largest * scale:.0f}" text-anchor="end">{largest}</text>'
    )
    return (
        f"<figure><figcaption>{escape(title)}</figcaption>"
        f'<svg viewBox="0 0 360 {side}">{dots}{axes}</svg></figure>'
    )


def _make_priors(priors: Mapping[str, Any] | None) -> str:
    if not priors:
        return ""
    share = priors["missed"] / max(1, priors["of"])
    text = (
        f"{priors['missed']:,} of {pluralize(priors['of'], 'box', grouped=True)} ({share:.1%}) "
        f"overlap no prior of {priors['detector']} by half: it learns each from its best prior "
        "alone."
    )
    if priors["median_side"] is not None:
        text += (
            f" Their median side is {priors['median_side']:g} pixels; a larger image size or "
            "another detector reaches smaller objects."
        )
    rows = "".join(
        f'<tr><td>{escape(name)}</td><td class="n">{missed:,}</td><td class="n">{total:,}</td></tr>'
        for name, missed, total in priors["classes"][:20]
    )
    head = '<tr><th>class</th><th class="n">matched by none</th><th class="n">of</th></tr>'
    table = f'<table class="narrow">{head}{rows}</table>' if rows else ""
    return _make_section("What no prior matches", f"<p>{escape(text)}</p>{table}")


def _make_crops(crops: Mapping[str, np.ndarray]) -> str:
    if not crops:
        return ""
    rows = "".join(
        f"<tr><td>{escape(name)}</td><td>{embed_picture(row)}</td></tr>"
        for name, row in crops.items()
    )
    return _make_section("Objects of each class", f'<table class="crops">{rows}</table>')
