"""Read what a run's folder says about its model: the experiment, numbers, counts and versions.

Every part may be missing (a model can be moved away from its run), and a damaged one counts as
missing and is named: the card then says less.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from densenet_backbones.file_writing import find_last_folder
from densenet_backbones.untrusted.limits import MAX_RUN_FILE
from densenet_backbones.untrusted.plain_yaml import parse_yaml
from densenet_backbones.untrusted.reading import parse_json, read_text

JsonDict = dict[str, Any]


@dataclass(frozen=True)
class RunRecord:
    """Facts about a run.

    Attributes:
        folder: The run's folder, or None where the model lies in none.
        config: The experiment, as `config.yaml` has it.
        metrics: The evaluation of the model, as its `metrics.json` has it.
        summary: What `summary.json` has.
        versions: Version of each package that the run was made with.
        pictures: Of predictions and of the training, as far as the run has them.
        damaged: Files of the run that cannot be read.
    """

    folder: Path | None = None
    config: JsonDict = field(default_factory=dict)
    metrics: JsonDict = field(default_factory=dict)
    summary: JsonDict = field(default_factory=dict)
    versions: JsonDict = field(default_factory=dict)
    pictures: tuple[Path, ...] = ()
    damaged: tuple[Path, ...] = ()

    def get_option(self, *names: str) -> Any:
        """Return an option of the experiment by its path, None if it is not there."""
        value: Any = self.config
        for name in names:
            value = value.get(name) if isinstance(value, Mapping) else None
        return value

    def list_evaluations(self) -> Iterator[tuple[str, JsonDict]]:
        """Yield the title and content of each evaluation that has numbers."""
        is_one = isinstance(self.metrics.get("numbers"), dict)
        parts = {"evaluation": self.metrics} if is_one else self.metrics
        for name, part in parts.items():
            if isinstance(part, dict) and isinstance(part.get("numbers"), dict):
                yield str(part.get("iou_type", name)), part


def read_run(model: Path) -> RunRecord:
    """Read the record of the run that a model's file lies in.

    Args:
        model: `model.safetensors` of a run, or one of its checkpoints.
    """
    parents = (model.absolute().parent, model.absolute().parent.parent)
    folder = next((p for p in parents if (p / "config.yaml").is_file()), None)
    if folder is None:
        return RunRecord()
    # A resumed run has a config of each start; the last one says how it ended.
    later = sorted(folder.glob("config_from_step_*.yaml"), key=_read_step)
    damaged: list[Path] = []

    def read(file: Path) -> object:
        """Return the content of a file of YAML or JSON, or None where it cannot be had."""
        if not file.exists():
            return None
        try:
            text = read_text(file, MAX_RUN_FILE, ValueError)
            return (
                parse_json(text) if file.suffix == ".json" else parse_yaml(text, file, ValueError)
            )
        except ValueError:
            damaged.append(file)
            return None

    # And so it has evaluations, of which the last is the model's.
    evaluation = find_last_folder(folder / "evaluation")
    pictures = evaluation / "predictions.png", folder / "pictures" / "training_curves.png"
    starts = read(folder / "environment.json")
    last = starts[-1] if isinstance(starts, list) and starts else {}
    return RunRecord(
        folder,
        _as_dict(read([folder / "config.yaml", *later][-1])),
        _as_dict(read(evaluation / "metrics.json")),
        _as_dict(read(folder / "summary.json")),
        _as_dict(_as_dict(last).get("packages")),
        tuple(file for file in pictures if file.is_file()),
        tuple(damaged),
    )


def _read_step(file: Path) -> int:
    step = file.stem.rpartition("_")[2]
    return int(step) if step.isdecimal() else 0


def _as_dict(value: object) -> JsonDict:
    return value if isinstance(value, dict) else {}
