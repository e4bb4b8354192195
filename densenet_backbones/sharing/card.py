"""Write a model card: the README.md of a model's repository on the Hugging Face Hub.

Its head is YAML with the Hub's own fields (huggingface.co/docs/hub/model-cards), the rest Markdown.
Names of classes and data sets may hold anything, and are written so that none acts as either.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import PurePath

import torch
from huggingface_hub import EvalResult, ModelCardData

from densenet_backbones.checkpoints.hub import HUB
from densenet_backbones.inference.classifier import ClassifierSpec
from densenet_backbones.inference.detector import DetectorSpec
from densenet_backbones.inference.model_file import ModelSpec
from densenet_backbones.messages import pluralize, show_controls
from densenet_backbones.sharing.run_record import RunRecord

LIBRARY = "densenet-backbones"

_MARKUP = re.compile(r"([\\`*_{}\[\]<>()#+!|~$&])")
_MOST_ROWS = 100  # classes in a table
_FEW = 50  # training objects of a class that are called few

_COLUMNS = (
    {"objects": "objects", "ap": "AP", "ap50": "AP50"},
    {"pixels": "pixels", "iou": "IoU", "accuracy": "accuracy", "precision": "precision"},
    {"images": "images", "recall": "recall", "precision": "precision", "f1": "F1"},
)
"""Entries of a class in the evaluation of each kind of model, and their headings."""

_RECIPE = {
    "pretrained backbone": ("model", "args", "weights_backbone"),
    "started from": ("init_from",),
    "epochs": ("trainer", "max_epochs"),
    "images a step": ("data", "batch_size"),
    "optimizer": ("model", "optimizer", "name"),
    "learning rate": ("model", "optimizer", "lr"),
    "weight decay": ("model", "optimizer", "weight_decay"),
    "schedule": ("model", "schedule", "name"),
    "augmentation": ("data", "augmentation"),
    "averaged weights (decay)": ("ema_decay",),
    "precision": ("trainer", "precision"),
    "seed": ("seed_everything",),
}
"""Lines of the recipe, and where the experiment has them."""


def write_card(spec: ModelSpec, run: RunRecord, repo: str, license_id: str, values: int) -> str:
    """Return the text of a model's card.

    Args:
        spec: Description of the model.
        run: Record of its run, perhaps empty.
        repo: ``OWNER/NAME`` on the Hub.
        license_id: The Hub's name of a license.
        values: Number of the model's parameters and buffers' values.
    """
    kind = describe_task(spec)[1]
    classes = ", ".join(map(escape, spec.class_names[:_MOST_ROWS]))
    more = len(spec.class_names) - _MOST_ROWS
    lines = [
        "---",
        _describe_to_hub(spec, run, repo, license_id).to_yaml().rstrip("\n"),
        "---",
        "",
        f"# {escape(repo.partition('/')[2])}",
        "",
        f"{kind}: `{spec.name}`, {values / 1e6:.1f} M values, "
        f"{pluralize(len(spec.class_names), 'class')} "
        f"({classes}{f' and {more} more' if more > 0 else ''}).",
        "",
        *_show_use(spec, repo),
        *_show_numbers(run),
        *_show_pictures(run),
        *_show_data(run),
        *_show_recipe(spec, run),
        *_show_limits(spec, run),
        *("## License", "", f"`{license_id}`, as its owner says; that of the data is its own.", ""),
    ]
    return "\n".join(lines)


def describe_task(spec: ModelSpec) -> tuple[str, str]:
    """Return the Hub's name of what a model does, and ours."""
    if isinstance(spec, ClassifierSpec):
        return "image-classification", "Image classification"
    if not isinstance(spec, DetectorSpec):
        return "image-segmentation", "Semantic segmentation"
    if spec.keypoint_names:
        return "keypoint-detection", "Object and keypoint detection"
    if spec.name.startswith("maskrcnn"):
        return "image-segmentation", "Instance segmentation"
    return "object-detection", "Object detection"


def escape(text: object) -> str:
    """Return a text of one line in which nothing acts as Markdown or HTML."""
    return _MARKUP.sub(r"\\\1", show_controls(str(text))).replace("\\<", "&lt;")


def _describe_to_hub(spec: ModelSpec, run: RunRecord, repo: str, license_id: str) -> ModelCardData:
    task = describe_task(spec)[0]
    data = _name_data(run)
    results = [
        EvalResult(
            task_type=task,
            dataset_type=data,
            dataset_name=data,
            metric_type=_slug(name),
            metric_name=name if title in ("bbox", "evaluation") else f"{title} {name}",
            metric_value=round(value, 4),
        )
        for title, part in run.list_evaluations()
        for name, value in part["numbers"].items()
        if isinstance(value, float)
    ]
    origin = run.get_option("init_from")
    on_hub = isinstance(origin, str) and origin.startswith(HUB)
    return ModelCardData(
        license=license_id,
        library_name=LIBRARY,
        pipeline_tag=task,
        tags=["densenet", "pytorch", LIBRARY, *([spec.name] if spec.name.isidentifier() else [])],
        metrics=sorted({result.metric_type for result in results}) or None,
        base_model=origin.removeprefix(HUB).partition("@")[0] if on_hub else None,
        model_name=repo.partition("/")[2],
        eval_results=results or None,
    )


def _slug(name: str) -> str:
    return re.sub(r"\W+", "_", name).lower()


def _name_data(run: RunRecord) -> str:
    """Return the name of the folder of a run's data: where it lies is nobody's business."""
    root = run.get_option("data", "root") or run.get_option("data", "scenes", "folder")
    name = PurePath(str(root)).name if root else ""
    return show_controls(name)[:100] or "own data"


def _show_use(spec: ModelSpec, repo: str) -> Iterator[str]:
    image = "photo.jpg"
    yield from ("## Use", "", "```bash", f'pip install "{LIBRARY}[train]"')
    yield from (f"densenet predict {HUB}{repo} {image}", "```", "", "```python")
    yield from ("from densenet_backbones import load", "")
    yield from (f'result = load("{HUB}{repo}").predict("{image}")', "```", "")
    if isinstance(spec, DetectorSpec):
        yield "Boxes are xyxy in pixels of the image as shown; pre-processing is in the file."
        if spec.best_score is not None:
            score = f"{spec.best_score:.2f}"
            yield f"Detections from a score of {score} on are given, the best one where it was"
            yield "evaluated."
    elif isinstance(spec, ClassifierSpec):
        yield "`result.name` is the most probable class, `result.score` its probability and"
        yield "`result.top()` the five most probable; pre-processing is in the file."
    else:
        yield "Labels have the size of the image as shown; pre-processing is in the file."
    yield ""


def _show_numbers(run: RunRecord) -> Iterator[str]:
    shown = list(run.list_evaluations())
    if not shown:
        return
    yield from ("## Numbers", "")
    for title, part in shown:
        what = "" if title == "evaluation" else f" ({escape(title)})"
        yield f"Over the {pluralize(part.get('images', '?'), 'evaluated image')}{what}:"
        yield ""
        numbers = part["numbers"]
        yield from _make_table(map(escape, numbers), [map(_format, numbers.values())])
        yield from _show_classes(part.get("classes"))


def _show_classes(classes: object) -> Iterator[str]:
    rows = [row for row in classes if isinstance(row, dict)] if isinstance(classes, list) else []
    columns = next((c for c in _COLUMNS if rows and set(c) <= set(rows[0])), None)
    if columns is None:
        return
    cells = [
        [escape(row.get("name")), *(_format(row.get(key)) for key in columns)]
        for row in rows[:_MOST_ROWS]
    ]
    yield from _make_table(["class", *columns.values()], cells)


def _show_pictures(run: RunRecord) -> Iterator[str]:
    for file in run.pictures:
        yield from (f"![{file.stem.replace('_', ' ')}]({file.name})", "")


def _show_data(run: RunRecord) -> Iterator[str]:
    if run.folder is None:
        return
    yield from ("## Data", "", f"Trained on `{escape(_name_data(run))}`.", "")
    counts = run.summary.get("data")
    if isinstance(counts, dict):
        rows = [
            (escape(part), escape(facts.get("name")), _format(facts.get("images")))
            for part, facts in counts.items()
            if isinstance(facts, dict)
        ]
        yield from _make_table(["part", "name", "images"], rows)


def _show_recipe(spec: ModelSpec, run: RunRecord) -> Iterator[str]:
    yield from ("## Training", "")
    rows = [("architecture", f"`{spec.name}`")]
    rows += [(f"argument {escape(name)}", _hide_place(v)) for name, v in spec.args.items()]
    for line, place in _RECIPE.items():
        value = run.get_option(*place)
        if value is not None and (line != "started from" or str(value).startswith(HUB)):
            rows.append((line, escape(value)))
    rows += [(escape(name), escape(version)) for name, version in run.versions.items()]
    if not run.versions:
        rows.append(("torch that wrote this card", torch.__version__))
    yield from _make_table(["", ""], rows)


def _show_limits(spec: ModelSpec, run: RunRecord) -> Iterator[str]:
    yield from ("## Limits", "")
    classes = pluralize(len(spec.class_names), "class")
    yield f"- It knows its {classes} alone, and images like those it was"
    yield "  trained on; on others it was not measured."
    yield "- Its best weights were chosen on the same images that the numbers are of, unless a"
    yield "  further set was evaluated: expect a little less elsewhere."
    if isinstance(spec, ClassifierSpec):
        yield "- It gives every image one of its classes, also one that shows none of them."
    else:
        yield "- Scores order what it found; they are no probabilities of being right."
    counted = "images" if isinstance(spec, ClassifierSpec) else "objects"
    few = list(_list_rare_classes(run, counted))
    if few:
        names = ", ".join(map(escape, few[:_MOST_ROWS]))
        yield f"- Fewer than {_FEW} {counted} were there to measure these classes on: {names}."
    yield "- Not made for decisions about people's safety, health or rights."
    yield ""


def _list_rare_classes(run: RunRecord, counted: str) -> Iterator[object]:
    for _, part in list(run.list_evaluations())[:1]:
        for row in part.get("classes") or ():
            count = row.get(counted) if isinstance(row, Mapping) else None
            if isinstance(count, int) and count < _FEW:
                yield row.get("name")


def _make_table(head: Iterable[str], rows: Sequence[Iterable[str]]) -> Iterator[str]:
    heading = list(head)
    yield f"| {' | '.join(heading)} |"
    yield "|---" * len(heading) + "|"
    for row in rows:
        yield f"| {' | '.join(row)} |"
    yield ""


def _hide_place(value: object) -> str:
    """Write an option's value; of a path its last part alone, as where it lies is private."""
    is_path = isinstance(value, str) and not value.startswith(HUB) and re.search(r"[/\\\\]", value)
    return escape(re.split(r"[/\\\\]", str(value))[-1] if is_path else value)


def _format(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.3f}" if isinstance(value, float) else escape(value)
