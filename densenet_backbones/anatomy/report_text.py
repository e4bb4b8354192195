"""Tables and sentences of a model's report, for the terminal."""

from collections.abc import Iterator, Sequence
from typing import Any

from rich.table import Table as RichTable

from densenet_backbones.analysis.memory_plan import format_bytes
from densenet_backbones.messages import pluralize

__all__ = ["list_tables"]

Table = dict[str, Any]


def list_tables(report: Table) -> Iterator[RichTable | str]:
    """Yield the tables and lines of a report, as `measure_model` makes it."""
    height, width = report["size"]
    yield (
        f"{report['name']} ({report['kind']}): {report['parameters']:,} parameters, "
        f"{report['macs'] / 1e9:.3f} GMAC at {width}x{height}"
    )
    if not report["trained"]:
        yield "Its weights are random: effective fields are those of the initialization."
    heads = ("stage", "channels", "stride", "parameters", "GMAC")
    yield _make_table(
        "Stages",
        heads,
        [
            (
                row["name"],
                _show(row["channels"]),
                _show(row["stride"], "g"),
                f"{row['parameters']:,}",
                f"{row['macs'] / 1e9:.3f}",
            )
            for row in report["stages"]
        ],
    )
    titles = ("level", "tap", "channels", "stride", "receptive field", "effective")
    fields = ("name", "tap", "channels", "stride", "receptive_field", "effective_field")
    levels = [tuple(_show(level[field]) for field in fields) for level in report["levels"]]
    yield _make_table("Levels; fields in pixels a side", titles, levels)
    yield _tabulate_memory(report["memory"])
    if "boxes" in report:
        yield from _describe_boxes(report["boxes"])


def _show(value: object, form: str = "") -> str:
    return "-" if value is None else format(value, form)


def _make_table(title: str, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> RichTable:
    table = RichTable(title=title, title_justify="left", box=None, pad_edge=False)
    for number, head in enumerate(heads):
        text = number == 0 or head == "tap"
        table.add_column(head, justify="left" if text else "right")
    for row in rows:
        table.add_row(*row)
    return table


def _tabulate_memory(memory: Table) -> RichTable:
    budget = memory["budget_bytes"]
    title = (
        f"Kept for the backward pass by the {memory['of']}, {pluralize(memory['batch'], 'image')}"
    )
    heads = ["mode", "kept"] + ([f"largest batch in {format_bytes(budget)}"] if budget else [])
    rows = [
        (mode, format_bytes(row["saved_bytes"]), *([str(row["largest_batch"])] if budget else []))
        for mode, row in memory["modes"].items()
    ]
    return _make_table(title, heads, rows)


def _describe_boxes(boxes: Table) -> Iterator[RichTable | str]:
    heads = ("", "IoU >= 0.5", "mean best IoU", "best possible recall", "IoU < 0.5")
    rows = [
        (
            name,
            *(f"{m[k]:.1%}" for k in ("coverage", "mean_best_iou", "best_possible_recall")),
            f"{m['missed']} of {m['of']}",
        )
        for name, m in (("now", boxes["now"]), ("fitted", boxes["fitted"]))
        if m is not None
    ]
    now = boxes["now"]
    yield _make_table(
        f"Boxes of {pluralize(now['images'], 'image')} and its {boxes['kind']}", heads, rows
    )
    if now["missed"]:
        classes = ", ".join(f"{name} {missed} of {of}" for name, missed, of in now["classes"][:8])
        yield (
            f"No {boxes['kind'][:-1]} reaches an IoU of 0.5 with {now['missed']} of "
            f"{pluralize(now['of'], 'box')}, of a median side of {now['median_side']:.0f} pixels: "
            f"{classes}."
        )
    if boxes["fitted"] is None:
        yield f"Its {boxes['kind']} fit these boxes: k-means under IoU found none that fit better."
    else:
        yield f"Fitted {boxes['kind']}, to paste into a config:"
        yield from boxes["config"].rstrip().splitlines()
