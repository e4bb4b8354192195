"""Names of options that are known without the engine: those of the parsers, and what they refuse.

``python tests/training/options/test_option_names.py`` writes the file of names anew.
"""

import argparse
import inspect
import json
from dataclasses import fields
from pathlib import Path

import jsonargparse
import pytest
import timm
import torchvision
from lightning.pytorch.cli import LightningArgumentParser

from densenet_backbones.densenet import DenseNet
from densenet_backbones.densenet_spec import DenseNetSpec
from densenet_backbones.heads.classification.classifier import create_classifier
from densenet_backbones.heads.renamed_options import NESTED, RENAMED
from densenet_backbones.torchvision_models import MODELS, SEGMENTERS
from densenet_backbones.training.arguments import list_configs, read_config
from densenet_backbones.training.cli import check_words
from densenet_backbones.training.options import names
from densenet_backbones.training.precision import PrecisionTrainer
from densenet_backbones.training.running import TASKS
from densenet_backbones.variants import SUFFIX, VARIANTS

FILE = Path(names.__file__).with_suffix(".json")


def list_declared(*declared):
    """Dotted names that the engine's parser makes of classes and groups."""
    parser = LightningArgumentParser(exit_on_error=False)
    for owner, group in declared:
        parser.add_lightning_class_args(owner, group)
    found = dict.fromkeys(action.dest.removesuffix(".help") for action in parser._actions)
    return [name for name in found if name not in ("help", "config")]


def list_models(kind):
    if kind == "classification":
        return sorted({*VARIANTS, *(f"{name}{SUFFIX}" for name in VARIANTS)})
    return sorted(SEGMENTERS if kind == "segmentation" else MODELS.keys() - SEGMENTERS)


def list_arguments(kind):
    """Arguments that a model of ours takes, under old names too."""
    if kind == "classification":
        takers = (create_classifier, DenseNet, timm.create_model)
        found = {name for taker in takers for name in inspect.signature(taker).parameters}
        found |= {field.name for field in fields(DenseNetSpec)} | {"features_only"}
        return sorted(found - {"num_classes", "name", "model_name", "spec", "kwargs"})
    found = {*RENAMED, *NESTED}
    for name in list_models(kind):
        builder = inspect.unwrap(torchvision.models.get_model_builder(name))
        parser = jsonargparse.ArgumentParser(exit_on_error=False)
        found |= {*parser.add_function_arguments(builder, skip={"num_classes"}, fail_untyped=False)}
    return sorted(found)


def read_parsers():
    return {
        kind: {
            "options": list_declared((task, "model"), (task.data_type, "data")),
            "models": list_models(kind),
            "arguments": list_arguments(kind),
        }
        for kind, task in TASKS.items()
    }


def test_names_are_those_of_the_parsers():
    assert json.loads(FILE.read_text()) == read_parsers(), (
        f"write them anew: python {Path(__file__).name}"
    )


def test_options_of_the_trainer_are_those_of_the_parser():
    declared = list_declared((PrecisionTrainer, "trainer"))
    assert set(declared) == {name for name in names.list_options("detection") if "trainer" in name}


@pytest.mark.parametrize(
    ("kind", "words", "wrong"),
    [
        ("detection", "--model.optimiser.lr 0.1", "--model.optimiser.lr"),
        ("detection", "--data.bach_size=4", "--data.bach_size"),
        ("detection", "--model {optimizer: {lrr: 1}}", "--model.optimizer.lrr"),
        ("detection", "--model.optimizer {lrr: 1}", "--model.optimizer.lrr"),
        ("classification", "--trainer.max_epoch 3", "--trainer.max_epoch"),
        ("detection", "--model.args.growthrate 8", "--model.args.growthrate"),
        ("detection", "--model.args {growthrate: 8}", "--model.args.growthrate"),
        ("segmentation", "--model.segmenter unet --model.args.dept 3", "--model.args.dept"),
        ("classification", "--model.args.growthrate 8", "--model.args.growthrate"),
        ("detection", "--model.optimizer.lr.x 1", None),
        ("detection", "--model.optimizer.lr=0.1 --data.batch_size 4", None),
        ("detection", "--trainer.callbacks+=x --trainer.callbacks.monitor y", None),
        ("detection", "--data.train.images x --data.train.help", None),
        ("detection", "--model.args.backbone_kwargs.growth 8", None),
        ("detection", "--model.args.nms_threshold 0.5", None),
        ("segmentation", "--model.segmenter smp:FPN --model.args.dept 3", None),
        ("segmentation", "--model.args {dept: 3} --model.segmenter=smp:FPN", None),
        ("segmentation", "--model {segmenter: 'smp:FPN', args: {dept: 3}}", None),
        ("classification", "--model.classifier resnet18 --model.args.zero_init_last x", None),
        ("detection", "--model.args {growthrate", None),
    ],
)
def test_dotted_options(kind, words, wrong):
    words = words.split(" ") if "{" not in words else words.split(" ", 1)
    if wrong is None:
        names.check_options(words, kind, {})
        return
    with pytest.raises(argparse.ArgumentError, match=f"unrecognized arguments: {wrong}$"):
        names.check_options(words, kind, {})
    is_of_model = wrong.startswith("--model.args")
    if is_of_model:  # the run that goes on may have another model
        names.check_options(words, kind, {}, any_model=True)


def test_experiments_have_names_that_exist(tmp_path):
    for kind, task in TASKS.items():
        for file in list_configs(task.form).values():
            names.check_options((), kind, {str(file): read_config(file)})
    config = tmp_path / "mine.yaml"
    words = ["--config", str(config)]
    form = TASKS["segmentation"].form
    for text, name, hint in (
        ("model: {optimizer: {lrr: 1}}", "model.optimizer.lrr", "model.optimizer.lr"),
        ("model: {args: {decoder_chanels: 1}}", "model.args.decoder_chanels", "decoder_channels"),
        ("trainer: {max_epoch: 3}", "trainer.max_epoch", "trainer.max_epochs"),
    ):
        config.write_text(text)
        with pytest.raises(argparse.ArgumentError, match=f"mine.yaml: .*'{name}'.*{hint}"):
            check_words(words, "segmentation", form)
    config.write_text("model: {segmenter: 'smp:FPN', args: {decoder_chanels: 1}}")
    check_words(words, "segmentation", form)


if __name__ == "__main__":
    FILE.write_text(json.dumps(read_parsers(), indent=1) + "\n")
