"""Errors and help name options that exist, and nothing that the reader should not do."""

import argparse
import ast
import re

import pytest
from locations import PROJECT

from densenet_backbones.anatomy import heatmap, prune, report
from densenet_backbones.benchmark import command as benchmark
from densenet_backbones.checkpoints import __main__ as inspection
from densenet_backbones.command import listing, training
from densenet_backbones.data.scenes import __main__ as scenes
from densenet_backbones.demo import command as demo
from densenet_backbones.export import export
from densenet_backbones.inference import predict
from densenet_backbones.inference.merging import tile_comparison
from densenet_backbones.inspection import command as inspect_command
from densenet_backbones.messages import CommandParser
from densenet_backbones.sharing import push
from densenet_backbones.training import arguments, evaluate
from densenet_backbones.training.options import names
from densenet_backbones.tuning import command as tuning

ROOM = PROJECT / "densenet_backbones"
NOT_OURS = {"--always", "--dirty", "--logdir", "--backend-store-uri"}  # of git and loggers
TRAINING = re.compile(r"(?<![\w.])((?:data|model|trainer)\.[a-z_]+(?:\.[a-z_]+)?)(?![\w.(-])")


def list_options(parser):
    for action in parser._actions:
        yield from action.option_strings
        if isinstance(action, argparse._SubParsersAction):
            for sub in action.choices.values():
                yield from list_options(sub)


@pytest.fixture(scope="module")
def options():
    """Options of every command, by the module that has it."""
    known = {}

    class Caught(Exception):  # noqa: N818
        pass

    def catch(parser, *args):
        raise Caught(parser)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CommandParser, "parse_args", catch)
        patch.setattr(CommandParser, "parse_known_args", catch)
        commands = {
            "anatomy/heatmap": heatmap.main,
            "anatomy/report": report.main,
            "anatomy/prune": prune.main,
            "benchmark": benchmark.main,
            "checkpoints": inspection.main,
            "command": training.train,
            "command/listing": listing.main,
            "data/scenes": scenes.main,
            "export": export.parse_arguments,
            "inference/predict": predict.parse_arguments,
            "inference/tile_comparison": tile_comparison.main,
            "data/writers": inspect_command.main,
            "inspection": inspect_command.main,
            "demo": demo.main,
            "sharing/push": push.main,
            "training/evaluate": evaluate.parse,
            "training/evaluation/evaluating": evaluate.parse,
            "tuning": tuning.main,
            "training": arguments.expand_short_flags,
        }
        for module, run in commands.items():
            with pytest.raises(Caught) as caught:
                run([])
            known[module] = set(list_options(caught.value.args[0]))
    known["anatomy"] = known["anatomy/heatmap"] | known["anatomy/report"]
    known["training"] |= {f"--{key}" for key in list_training_keys()}
    known["anatomy/prune"] |= known["training"] | known["training/evaluate"]  # which it runs
    return known


def list_training_keys():
    keys = {
        key
        for kind in ("classification", "detection", "segmentation")
        for key in names.list_options(kind)
    }
    return keys | {key.rpartition(".")[0] for key in keys}


def list_texts():
    """File and text of every string in the sources that is no docstring, its parts joined."""
    for folder in (ROOM, PROJECT / "heads"):
        for path in sorted(folder.rglob("*.py")):
            tree = ast.parse(path.read_text())
            docstrings = {
                id(node.body[0].value)
                for node in ast.walk(tree)
                if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
                and isinstance(node.body[0], ast.Expr)
            }
            for node in ast.walk(tree):
                if isinstance(node, ast.JoinedStr):
                    parts = [p.value if isinstance(p, ast.Constant) else "…" for p in node.values]
                    yield path.relative_to(PROJECT).as_posix(), "".join(map(str, parts))
                elif isinstance(getattr(node, "value", None), str) and id(node) not in docstrings:
                    yield path.relative_to(PROJECT).as_posix(), node.value


def test_options_that_are_named_exist(options):
    every = set().union(*options.values())
    wrong = []
    for file, text in list_texts():
        place = file.removeprefix("densenet_backbones/").removesuffix(".py")
        legal = next((o for module, o in options.items() if place.startswith(module)), every)
        if place.startswith(
            ("command", "inference", "training", "tuning")
        ):  # a model's file is the training's as well
            legal = legal | options["training"]
        if place.startswith("command"):
            legal = legal | options["command/listing"]
        if place == "benchmark/startup":  # times other commands
            legal = legal | options["training"]
        if place.startswith("export/int8"):  # evaluates what it writes
            legal = legal | options["training/evaluate"]
        if place == "training/report":  # names the next commands
            legal = legal | options["training/evaluate"] | options["export"]
        for option in re.findall(r"(?<!var\()(?<![\w-])--[a-z][\w.-]*\w", text):
            # `--model.args.min_size`: each model has its own
            if re.sub(r"(?<=^--model\.args)\..*", "", option) not in legal | NOT_OURS:
                wrong.append(f"{file}: {option} in {text[:80]!r}")
    assert not wrong


def test_keys_of_the_training_that_are_named_exist():
    keys = list_training_keys()
    others = ("densenet_backbones/training/profiling.py", "heads/")  # name attributes of a model
    wrong = [
        f"{file}: {key} in {text[:80]!r}"
        for file, text in list_texts()
        for key in TRAINING.findall(text)
        if " " in text and not file.startswith(others) and key not in keys
        if not key.startswith("model.args.")  # each model has its own
        if not key.endswith((".safetensors", ".state_dict", ".yaml"))
    ]
    assert not wrong


def test_words_that_readers_advise_are_options_of_training_and_evaluation(options):
    keys = list_training_keys()
    advised = set()
    for file, text in list_texts():
        if file.startswith("densenet_backbones/data/readers/"):
            advised |= set(re.findall(r"\bgive ([a-z]+_[a-z_]+)", text))
    assert {"annotation_file", "image_folder"} <= advised
    for name in advised:
        assert f"data.{name}" in keys
        assert f"--{name.replace('_', '-')}" in options["training/evaluate"]


def test_nothing_advises_to_load_unsafely():
    files = [file for file, text in list_texts() if re.search(r"weights_only\W*False", text)]
    assert not files
