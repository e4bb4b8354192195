"""Prune a trained model, and measure what that costs: ``densenet prune MODEL``."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from densenet_backbones.messages import CommandParser, quote_word

if TYPE_CHECKING:
    from densenet_backbones.anatomy.opening import OpenedModel
    from densenet_backbones.anatomy.prune_report import Measured
    from densenet_backbones.anatomy.pruning import Pruning
    from densenet_backbones.inference.model_file import ModelSpec

_MODEL = "model.safetensors"


def make_parser() -> CommandParser:
    """Return the parser of the command line."""
    parser = CommandParser(
        allow_abbrev=False,
        description="Prune a trained detector, segmenter or classifier on one of our nets by its "
        "feature reuse: the least used connections between layers, or whole layers, are taken out. "
        "The smaller model is written as a file like any other. With --data its quality before, "
        "after, and after fine-tuning is measured.",
        epilog="Other options are the fine-tuning's, those of densenet train: --lr 0.01, --config "
        "FILE. A run's folder is fine-tuned with its own config.",
    )
    parser.add_argument("model", metavar="MODEL", help="model.safetensors, *.ckpt, a run's folder")
    parser.add_argument(
        "--keep",
        type=float,
        default=1.0,
        metavar="SHARE",
        help="share of the connections between layers to keep, in (0, 1); of those that are left "
        "by --layers",
    )
    parser.add_argument(
        "--layers", type=int, default=0, metavar="N", help="number of whole layers to take out"
    )
    parser.add_argument(
        "--plain",
        action="store_true",
        help="judge by plain weights, not by those scaled by batch norm",
    )
    parser.add_argument("--data", metavar="PATH", help="annotated data to evaluate and tune on")
    parser.add_argument("--split", default="val", help="part to evaluate on (%(default)s)")
    parser.add_argument("--layout", default="auto", help="as in training; %(default)s looks")
    parser.add_argument("--workers", type=int, metavar="N", help="processes that read images")
    parser.add_argument(
        "--batch-size", type=int, metavar="N", help="of evaluations (16) and tuning (its config's)"
    )
    parser.add_argument(
        "--fine-tune", type=int, default=0, metavar="EPOCHS", help="train the pruned model on"
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="where files go (prune-NAME, or a numbered one beside it)",
    )
    parser.add_argument(
        "--resume",
        action="store_true",
        help="go on with a fine-tuning that was stopped: the same words again, and its --out",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Run ``densenet prune``.

    Raises:
        SystemExit: 2 for wrong usage, 1 for what cannot be pruned or measured; with one line on
            standard error.
    """
    parser = make_parser()
    options, engine = parser.parse_known_args(argv)
    if engine and not options.fine_tune:
        parser.error(f"{engine[0]} is no option, and there is no --fine-tune to hand it on to")
    if options.keep == 1 and not options.layers:
        parser.error("give --keep SHARE below 1, --layers N, or both: what is to be taken out")
    if options.fine_tune < 0 or (options.fine_tune and options.data is None):
        parser.error("--fine-tune takes a number of epochs, and --data to train on")
    if options.resume and not (options.fine_tune and options.out):
        parser.error("--resume goes on with a --fine-tune: give it, and the --out that it is in")
    # Help and wrong words need no more than what is above.
    import argparse

    from densenet_backbones.messages import one_sentence
    from densenet_backbones.reporting.console import fail, quiet_libraries

    quiet_libraries()
    try:
        prune(Job(**vars(options), engine=engine))
    except argparse.ArgumentError as error:
        fail(one_sentence(str(error)), 2)
    except (ValueError, OSError, MemoryError) as error:
        fail(error, 1)


@dataclass(frozen=True)
class Job:
    """Options of the command, by their names there.

    Attributes:
        engine: Words for the fine-tuning.
    """

    model: str
    keep: float
    layers: int
    plain: bool
    data: str | None
    split: str
    layout: str
    workers: int | None
    batch_size: int | None
    fine_tune: int
    out: Path | None
    resume: bool
    engine: Sequence[str]

    def data_words(self) -> list[str]:
        """Return the words about the data, the same for evaluation and training."""
        words = [f"--data={self.data}", f"--layout={self.layout}"]
        words += [f"--batch-size={self.batch_size}"] if self.batch_size is not None else []
        return words if self.workers is None else [*words, f"--workers={self.workers}"]


def prune(job: Job) -> Path:
    """Prune a model, write it, and measure it before and after.

    What is measured before a fine-tuning is written before it, and a fine-tuning that was stopped
    goes on with ``resume``, as one that was not.

    Returns:
        The folder, with ``model.safetensors`` of the pruned model, ``prune.txt``, ``prune.json``,
        and the evaluations and the fine-tuning's run in folders of their own.

    Raises:
        ValueError: The model cannot be pruned so, or data and model do not go together.
        OSError: The files cannot be written.
    """
    from densenet_backbones.anatomy.heatmap import name_folder
    from densenet_backbones.anatomy.opening import open_model
    from densenet_backbones.anatomy.prune_report import TUNED, PruneReport
    from densenet_backbones.file_writing import check_output, find_unused_folder
    from densenet_backbones.inference.model_file import save_model
    from densenet_backbones.reporting.console import say

    out = job.out or Path(name_folder("prune", job.model))
    check_output(out, "--out")
    opened = open_model(job.model)
    if opened.spec is None:
        raise ValueError(
            f"{job.model} has no trained weights to judge by; give a model.safetensors, a "
            "checkpoint or a run's folder"
        )
    if job.resume:
        report = PruneReport.read(out)
        pruned = open_model(str(out / _MODEL))
    else:
        chosen, spec, pruned = make_pruned(opened, job.keep, job.layers, not job.plain)
        out = find_unused_folder(out)
        out.mkdir(parents=True, exist_ok=True)
        save_model(out / _MODEL, spec, pruned.model)
        report = PruneReport(chosen.before, chosen.after, list(chosen.absent), [])
        say(*report.describe())
        report.rows.append(_measure("before", opened, job.model, job, out))
        report.rows.append(_measure("after", pruned, str(out / _MODEL), job, out))
        report.save(out)
    if job.fine_tune:
        assert pruned.spec is not None
        tuned = str(_fine_tune(job, pruned.spec, out))
        report.rows.append(_measure(TUNED, open_model(tuned), tuned, job, out))
        report.save(out)
    say("", *report.render().splitlines())
    say(f"Written to {out}/: {_MODEL}, prune.txt, prune.json")
    return out


def make_pruned(
    opened: "OpenedModel", keep: float, layers: int, scaled: bool = True
) -> "tuple[Pruning, ModelSpec, OpenedModel]":
    """Return what is taken out of a model, and the smaller model with its description.

    Args:
        opened: A trained model, with its description.
        keep: Share of the connections between layers that stay, in (0, 1].
        layers: Number of layers to take out.
        scaled: As of `choose_connections`.

    Raises:
        ValueError: The model has no net of ours, or nothing or too much would be taken out.
    """
    from densenet_backbones.analysis.feature_reuse import find_head_readers
    from densenet_backbones.anatomy.pruning import choose_connections, cut_weights

    assert opened.spec is not None
    has_head = opened.kind in ("detector", "segmenter")
    inputs = opened.make_inputs(opened.input_size)
    readers = find_head_readers(opened.model, inputs) if has_head else []
    chosen = choose_connections(opened.model, keep, layers, readers, scaled)
    args = _add_connections(opened.spec.args, json.loads(json.dumps(chosen.connections)))
    spec: ModelSpec = replace(opened.spec, args=args)  # type: ignore[type-var]
    model = spec.restore(cut_weights(opened.model, chosen.connections), opened.name).eval()
    return chosen, spec, replace(opened, model=model, args=args, spec=spec)


def _add_connections(args: Mapping[str, Any], connections: list[Any]) -> dict[str, Any]:
    """Return a builder's arguments with others of its backbone, where these stand."""
    from densenet_backbones.heads.backbones import is_ours

    args, inner = dict(args), args.get("backbone_kwargs") or {}
    encoder = args.get("encoder_name")
    if isinstance(encoder, str) and is_ours(encoder):
        args["encoder_name"] = f"tu-{encoder}"  # the same network, and smp hands arguments on
    if "connections" in inner:
        return {**args, "backbone_kwargs": {**inner, "connections": connections}}
    return {**args, "connections": connections}


def _measure(title: str, opened: "OpenedModel", file: str, job: Job, out: Path) -> "Measured":
    from densenet_backbones.analysis.plan import plan_inputs
    from densenet_backbones.anatomy.prune_report import Measured
    from densenet_backbones.reporting.console import say
    from densenet_backbones.training.evaluate import parse
    from densenet_backbones.training.evaluation.evaluating import evaluate

    inputs: Any = opened.make_inputs(opened.input_size)
    macs = plan_inputs(opened.model, inputs[:1]).macs
    numbers: Mapping[str, float] = {}
    if job.data is not None:
        say("", f"Quality {title}:")
        words = [file, *job.data_words(), f"--split={job.split}", f"--out={out / title}"]
        evaluated = evaluate(parse(words))
        numbers = evaluated.numbers if evaluated else {}
    parameters = sum(p.numel() for p in opened.model.parameters())
    return Measured(title, parameters, macs, numbers)


def _fine_tune(job: Job, spec: "ModelSpec", out: Path) -> Path:
    """Train a pruned model on, by the config of the run that it is of; return its run's folder."""
    from densenet_backbones.reporting.console import say
    from densenet_backbones.training.resuming.going_on import prepare_to_go_on
    from densenet_backbones.training.running import start_training
    from densenet_backbones.training.tasks.classification import ClassificationTask
    from densenet_backbones.training.tasks.detection import DetectionTask
    from densenet_backbones.training.tasks.segmentation import SegmentationTask
    from densenet_backbones.training.tasks.task import AnyTask

    folder = out / "fine-tuning"
    more = prepare_to_go_on(folder)
    if more is None:
        return folder
    tasks: list[type[AnyTask]] = [DetectionTask, SegmentationTask, ClassificationTask]
    task = next(task for task in tasks if task.spec_type.kind == spec.kind)
    key, _ = task.name_model()
    # A run's folder has model.safetensors and, one folder further down, checkpoints.
    run = Path(job.model).absolute()
    run = run.parents[run.suffix == ".ckpt"] if run.is_file() else run
    config = run / "config.yaml"
    # Weights that the whole net began with do not fit the pruned one.
    args = {**spec.args, **spec.without_downloads()}
    words = [
        *([f"--config={config}"] if config.is_file() else []),
        f"--model.{key}={spec.name}",
        "--model.args=null",
        f"--model.args={json.dumps(args)}",
        *job.data_words(),
        *job.engine,
        f"--epochs={job.fine_tune}",
        *(more or [f"--init-from={out / _MODEL}"]),
        f"--run-dir={folder}",
    ]
    try:
        return start_training(task, words)
    except SystemExit:
        say(f"With densenet prune: the same command, --out {quote_word(out)} --resume")
        raise
