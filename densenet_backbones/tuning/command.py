"""Sweep: ``python tools/sweep.py --try KEY=VALUES … OPTIONS_OF_A_TRAINING …``."""

import argparse
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from densenet_backbones.messages import CommandParser, find_foreign, pluralize, quote_word

if TYPE_CHECKING:
    from densenet_backbones.tuning.plan import SweepPlan
    from densenet_backbones.tuning.space import Knob

_NEEDED = {"optuna": "optuna", "sqlalchemy": "sqlalchemy", "scikit-learn": "sklearn"}
"""Distributions of the extra ``tune``, and the modules that they bring."""

_OWN = (
    *("--run-dir", "--run_dir", "--name", "--resume", "--ckpt_path", "--seed", "--seed_everything"),
    *("--dry-run", "--profile", "--print_config", "--help-all"),
)


def make_parser() -> CommandParser:
    """Return the parser of the command line."""
    parser = CommandParser(
        usage="%(prog)s --try KEY=VALUES ... [OPTION VALUE] ... [OPTION OF A TRAINING] ...",
        description="Find which values of a training's options pay: many short trainings, chosen "
        "by Optuna. All words that are not listed here are those of `densenet train`.",
        epilog="A sweep that was stopped or killed goes on with --resume DIR; the same in another "
        "terminal, or with another GPU, is a second worker.",
        allow_abbrev=False,
    )
    parser.handed_on = None
    parser.add_argument(
        "--try",
        dest="tries",
        metavar="KEY=VALUES",
        action="append",
        default=[],
        help="option and its values: growth_rate=8,12,24 or optimizer.lr=1e-4..1e-1:log or "
        "data.batch_size=8..64:step=8; may be given several times",
    )
    parser.add_argument("--space", type=Path, metavar="FILE", help="the same as a YAML mapping")
    parser.add_argument(
        "--budget", metavar="N", help="length of a trial: 500steps, 5min, 2cpumin (the config's)"
    )
    parser.add_argument("--evaluations", metavar="N", help="evaluations within a budget (4)")
    parser.add_argument(
        "--trials", type=int, metavar="N", help="points to try (all of a grid; otherwise 20)"
    )
    parser.add_argument(
        "--seeds", metavar="N", help="trainings of each point, seeds from 0; or a list: 3,4,5 (1)"
    )
    parser.add_argument(
        "--sampler", metavar="NAME", help="grid (where all values are lists), tpe, random or gp"
    )
    parser.add_argument(
        "--pruner",
        metavar="NAME",
        help="give trials up early: none, median, halving or hyperband (none)",
    )
    parser.add_argument("--sampler-seed", type=int, metavar="N", help="of the choice of points (0)")
    parser.add_argument(
        "--keep-checkpoints", action="store_true", help="keep those of trials that have ended"
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder of the sweep (sweeps/NAME)")
    parser.add_argument(
        "--resume", type=Path, metavar="DIR", help="go on with a sweep, or join it; needs no more"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command of ``tools/sweep.py`` and ``densenet-sweep``.

    Raises:
        SystemExit: 2 for wrong usage, 130 after Ctrl-C, 143 after a termination signal; with one
            line on standard error.
    """
    parser = make_parser()
    options, words = parser.parse_known_args(argv)
    own = [word for word in words if word.partition("=")[0] in _OWN]
    if own:
        parser.fail(f"{own[0]} is the sweep's own; leave it out (--help lists the options)")
    if sentence := find_foreign(words, parser.list_names()):
        parser.fail(f"{sentence}; --help lists the options")
    if options.resume is None and not (options.tries or options.space):
        parser.fail("nothing is tried: give --try KEY=VALUES, or --space FILE")
    # Here, as the first that needs scikit-learn is the report, when all trials have run.
    missing = [name for name, module in _NEEDED.items() if find_spec(module) is None]
    if missing:
        parser.fail(
            f'a sweep needs {" and ".join(missing)}; pip install "densenet-backbones[tune]"'
        )
    from densenet_backbones.data.faults import DataError, check_is_there
    from densenet_backbones.reporting.console import fail, quiet_libraries
    from densenet_backbones.training.arguments import EITHER_FORM
    from densenet_backbones.training.arguments import make_parser as make_training_parser

    data = make_training_parser(EITHER_FORM).parse_known_args(words)[0].data
    try:  # before anything heavy is imported
        if data is not None:
            check_is_there(data)
    except DataError as error:
        fail(error, 2)
    from densenet_backbones.tuning.worker import Stopped

    quiet_libraries()
    try:
        run_sweep(options, words)
    except Stopped:
        sys.exit(143)
    except KeyboardInterrupt:
        sys.exit(130)
    except (ValueError, OSError, MemoryError) as error:
        fail(error, 2)


def run_sweep(options: argparse.Namespace, words: Sequence[str]) -> Path:
    """Run a sweep, or go on with one, and report on it.

    Args:
        options: Of the command line.
        words: Those of the training.

    Returns:
        The sweep's folder.

    Raises:
        ValueError: An option or value is not as it must be.
        OSError: The folder cannot be written.
        KeyboardInterrupt: The sweep was stopped, after its report.
    """
    from densenet_backbones.file_writing import check_output, find_unused_folder
    from densenet_backbones.reporting.console import say
    from densenet_backbones.tuning.choosing import SweepStudy
    from densenet_backbones.tuning.plan import read_plan
    from densenet_backbones.tuning.report import report_sweep
    from densenet_backbones.tuning.worker import work

    if options.resume:
        if words or options.tries or options.space or options.budget or options.out:
            raise ValueError(
                "--resume goes on with the sweep's own options; with it stand --trials and --seeds "
                "alone, which make it longer"
            )
        folder = Path(options.resume)
        plan = _lengthen(read_plan(folder), options)
    else:
        folder = (
            Path(options.out or "") if options.out else find_unused_folder(Path("sweeps") / "sweep")
        )
        check_output(folder, "--out")
        if folder.exists() and any(folder.iterdir()):
            raise ValueError(
                f"{folder} already holds files; go on with that sweep (--resume "
                f"{quote_word(folder)}), or name another folder"
            )
        plan = make_plan(options, words)
    plan.save(folder)
    sweep = SweepStudy(folder, plan)
    say(
        f"{pluralize(plan.points, 'point')} by {plan.sampler}, seeds "
        f"{', '.join(map(str, plan.seeds))}: {pluralize(plan.trials, 'trial')}"
    )
    say(
        f"Output goes to {folder}/; stopped or killed, the sweep goes on with --resume "
        f"{quote_word(folder)}"
    )
    try:
        work(sweep)
    except KeyboardInterrupt:
        say(
            "",
            "Stopped; the trial that was broken off goes on from its checkpoint.",
            style="yellow",
        )
        report_sweep(sweep)
        raise
    report_sweep(sweep)
    return folder


def make_plan(options: argparse.Namespace, words: Sequence[str]) -> "SweepPlan":
    """Return the plan that the command line describes, after the training itself has checked it.

    Raises:
        ValueError: A key or value is wrong, or the training refuses its words.
    """
    from densenet_backbones.tuning.plan import SweepPlan
    from densenet_backbones.tuning.space import check_space, count_points, parse_knob, read_space

    knobs = [parse_knob(text) for text in options.tries]
    knobs += read_space(options.space) if options.space else []
    check_space(knobs)
    if options.budget:
        from densenet_backbones.training.progress.budget import parse_budget

        parse_budget(options.budget)
        words = [*words, f"--budget={options.budget}"]
    words = [*words, *([f"--evaluations={options.evaluations}"] if options.evaluations else [])]
    size = count_points(knobs)
    sampler = options.sampler or ("grid" if size and options.trials is None else "tpe")
    points = options.trials
    if sampler == "grid" and size:
        points = size if points is None else min(points, size)
    plan = SweepPlan(
        tuple(words),
        tuple(knobs),
        20 if points is None else points,
        parse_seeds(options.seeds or "1"),
        sampler,
        options.pruner or "none",
        options.sampler_seed or 0,
        options.keep_checkpoints,
    )
    return replace(plan, knobs=tuple(_resolve(plan)))


def _resolve(plan: "SweepPlan") -> "list[Knob]":
    """Return the knobs by their full keys, as the training's own description has them."""
    from densenet_backbones.comparison.runs import flatten
    from densenet_backbones.training.arguments import EITHER_FORM
    from densenet_backbones.training.arguments import make_parser as make_training_parser
    from densenet_backbones.tuning.space import check_space, resolve_key
    from densenet_backbones.tuning.trial import TRAIN
    from densenet_backbones.untrusted.plain_yaml import parse_yaml

    asked = subprocess.run(
        [*TRAIN, *plan.words, "--print_config"], capture_output=True, text=True, check=False
    )
    if asked.returncode:
        lines = [line for line in asked.stderr.splitlines() if line.strip()]
        reason = lines[-1] if lines else "the training refuses its options"
        raise ValueError(reason.removeprefix("error: "))
    config = parse_yaml(asked.stdout, Path("--print_config"), ValueError)
    options = [key for key in flatten(config) if not key.startswith("model.args.")]
    flags = [
        name.removeprefix("--")
        for action in make_training_parser(EITHER_FORM)._actions
        for name in action.option_strings
        if action.nargs != 0 and name.startswith("--") and "_" not in name
    ]
    knobs = [replace(k, key=resolve_key(k.key, options, flags)) for k in plan.knobs]
    check_space(knobs)
    return knobs


def parse_seeds(text: str) -> tuple[int, ...]:
    """Return the seeds: a number of them, from 0, or a list.

    Raises:
        ValueError: It is neither, or has one twice.
    """
    parts = text.split(",")
    if not all(part.strip().isdecimal() and len(part) < 10 for part in parts):
        raise ValueError(f"--seeds must be a number, or a list such as 3,4,5, got {text!r}")
    numbers = tuple(map(int, parts))
    if len(numbers) > 1:
        if len(set(numbers)) < len(numbers):
            raise ValueError(f"--seeds has one twice: {text}")
        return numbers
    from densenet_backbones.tuning.plan import MAX_SEEDS

    if not 1 <= numbers[0] <= MAX_SEEDS:
        raise ValueError(f"--seeds must be 1 to {MAX_SEEDS}, got {text}")
    return tuple(range(numbers[0]))


def _lengthen(plan: "SweepPlan", options: argparse.Namespace) -> "SweepPlan":
    """Return the plan of a sweep that goes on, perhaps with more points or seeds."""
    from densenet_backbones.tuning.space import count_points

    seeds = parse_seeds(options.seeds) if options.seeds else plan.seeds
    points = options.trials if options.trials is not None else plan.points
    if plan.sampler == "grid":
        points = min(points, count_points(plan.knobs) or points)
    if seeds[0] != plan.seeds[0]:
        raise ValueError(f"--seeds must begin with the sweep's first seed, {plan.seeds[0]}")
    if options.sampler or options.pruner or options.sampler_seed is not None:
        raise ValueError("--sampler, --sampler-seed and --pruner are those of the sweep's start")
    return replace(plan, points=points, seeds=seeds)
