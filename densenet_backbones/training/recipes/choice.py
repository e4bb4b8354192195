"""Recipe for data of one's own, where no experiment is named: a shipped one, fitted to the data."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from densenet_backbones.data.loading import AnyData
from densenet_backbones.messages import pluralize, quote_word
from densenet_backbones.training.arguments import RECIPE
from densenet_backbones.training.recipes.facts import DataFacts, Kind, gather_facts, read_data
from densenet_backbones.training.recipes.pretrained import find_densenet121_weights

FEW = 1000
"""Photos up to which a small network and many epochs do better than a published schedule."""
SEEN = {"boxes": 8000, "masks": 10_000, "keypoints": 10_000, "semantic": 20_000, "classes": 60_000}
"""Images that a short recipe shows to the network, repetitions included, by kind. (205 photos of
blood cells reach an AP50 of 0.89 after 13 epochs, and 0.90 after 30.)"""
LEAST_EPOCHS, MOST_EPOCHS = 10, 300
SEEN_BY_LONG = 100_000
"""The same of a published schedule: 12 epochs of COCO are more, and stay what they are."""
EVALUATIONS = 10
SMALL = 16
"""Pixels that a small object should have for the network: two cells of the finest map."""
SIDES = {"cpu": (320, 480), "gpu": (640, 800)}  # of the shorter side: usual, and the most

_SCRATCH, _MASKS = "few_photos_scratch", "few_photos_masks"
_CLASSES = {True: "densenet121_small_data", False: "few_photos_classes"}  # with weights, without
_FPN = {"boxes": "retinanet", "masks": "maskrcnn", "keypoints": "keypointrcnn"}
_LONG = {
    ("boxes", True): "retinanet_densenet121_fpn_coco",
    ("boxes", False): "dsod300_coco",
    ("masks", True): "maskrcnn_densenet121_fpn_coco",
    ("masks", False): "maskrcnn_densenet121_fpn_coco",
    ("keypoints", True): "keypointrcnn_densenet121_fpn_coco",
    ("keypoints", False): "keypointrcnn_densenet121_fpn_coco",
    ("semantic", True): "unet_densenet121_voc",
    ("semantic", False): "unet_densenet121_camvid",
}
_MODELS = ("--model", "--model.detector", "--model.segmenter", "--model.classifier")
_LEARNS = {
    "boxes": "boxes",
    "masks": "outlines of objects",
    "keypoints": "keypoints",
    "semantic": "masks",
    "classes": "classes",
}


@dataclass(frozen=True)
class Recipe:
    """Experiment for a data set.

    Attributes:
        config: Name of a shipped experiment.
        options: Options of the engine that fit it to the data, by their dotted keys.
        reason: Sentence that names it and says why.
    """

    config: str
    options: dict[str, Any]
    reason: str


def choose_recipe(facts: DataFacts, weights: Path | None, has_gpu: bool) -> Recipe:
    """Choose the experiment for a data set.

    Args:
        facts: Of the training images.
        weights: File of pretrained weights of DenseNet-121; None without.
        has_gpu: Without one the short recipe is taken for any number of images.
    """
    if facts.kind == "classes":
        return _choose_classifier(facts, weights, has_gpu)
    is_short = facts.images <= FEW or not has_gpu
    config = _LONG[facts.kind, bool(weights)]
    if is_short:
        config = _name_short(facts.kind, bool(weights), has_gpu)
    options = {**_choose_length(facts, is_short), "data.batch_size": "auto"}
    options |= {"model.memory": "auto", "trainer.precision": "auto"}
    if not is_short:
        options["trainer.accumulate_grad_batches"] = 1  # the rate follows the batch
    if config not in (_SCRATCH, "dsod300_coco"):
        options |= _choose_weights(facts.kind, weights, is_short)
    if is_short:
        options |= _choose_sizes(facts, config, has_gpu)
    return Recipe(config, options, _explain(facts, config, weights, has_gpu))


def _choose_classifier(facts: DataFacts, weights: Path | None, has_gpu: bool) -> Recipe:
    """Choose the experiment of labelled images: fine-tuning where there are weights and a GPU."""
    fine_tunes = bool(weights) and (has_gpu or min(facts.size) > 64)
    config = _CLASSES[fine_tunes]
    options = {**_choose_length(facts, True), "data.batch_size": "auto", "model.memory": "auto"}
    options["trainer.precision"] = "auto"
    if fine_tunes:
        options["model.args.weights"] = str(weights)
    else:
        side = min(max(_round(min(facts.size)), 32), 224 if has_gpu else 96)
        options["model.args.image_size"] = side
    return Recipe(
        config, options, _explain(facts, config, weights if fine_tunes else None, has_gpu)
    )


def _name_short(kind: Kind, has_weights: bool, has_gpu: bool) -> str:
    if kind == "semantic":
        return _MASKS
    # Two stages from random weights learn nothing within the hours of a processor.
    if has_weights or (has_gpu and kind != "boxes"):
        return "few_photos"
    return _SCRATCH


def _choose_length(facts: DataFacts, is_short: bool) -> dict[str, Any]:
    """Return the epochs that show enough images, and how many lie between two evaluations."""
    seen = SEEN[facts.kind] if is_short else SEEN_BY_LONG
    epochs = min(max(round(seen / max(facts.images, 1)), LEAST_EPOCHS), MOST_EPOCHS)
    between = max(1, epochs // EVALUATIONS)
    return {"trainer.max_epochs": epochs, "trainer.check_val_every_n_epoch": between}


def _choose_weights(kind: Kind, weights: Path | None, is_short: bool) -> dict[str, Any]:
    """Return options of the weights, and of what fits a network that begins with them or without.

    Short recipes of boxes begin with weights, that of masks without: the other one is made here.
    """
    args = "model.args.weights_backbone"
    if weights is None:
        faster = is_short and kind != "semantic"
        return {args: None, **({"model.optimizer.lr": 1e-3} if faster else {})}
    options: dict[str, Any] = {args: str(weights)}
    if is_short and kind == "semantic":
        options["model.args.backbone_kwargs"] = {}
        options["model.args.decoder_channels"] = [256, 128, 64, 32, 16]
        # Fine-tuned gently, and by AdamW: the lower layers lie, the less they change.
        options |= {"model.optimizer.name": "adamw", "model.optimizer.lr": 5e-4}
        options["model.optimizer.layer_decay"] = 0.9
    return options


def _choose_sizes(facts: DataFacts, config: str, has_gpu: bool) -> dict[str, Any]:
    """Return options of the image size: what the photos have, what small objects need."""
    short, long = sorted(facts.size)
    small = facts.small_object or short
    if config == _MASKS:
        side = _round(min(max(short, 64), 512 if has_gpu else 224))
        return {"data.crop": [side, side]}
    if config == _SCRATCH:
        # 300 pixels are DSOD's own; its first map has cells of 8 of them.
        if small * 300 / short >= 12:
            return {}
        return {"model.args.image_size": 448}
    usual, most = SIDES["gpu" if has_gpu else "cpu"]
    side = _round(min(max(usual, SMALL * short / small), most, max(short, 128)))
    sizes = {"min_size": side, "max_size": _round(side * min(long / short, 2.0))}
    detector = f"{_FPN[facts.kind]}_densenet121_fpn"
    return {"model.detector": detector, **{f"model.args.{k}": v for k, v in sizes.items()}}


def _round(pixels: float) -> int:
    """Round to multiples of 32, the step of the coarsest map."""
    return 32 * max(1, round(pixels / 32))


def _explain(facts: DataFacts, config: str, weights: Path | None, has_gpu: bool) -> str:
    width, height = facts.size
    size = (
        f"{pluralize(facts.images, 'image')} of about {width}x{height} with {_LEARNS[facts.kind]}"
    )
    if facts.images > FEW and not has_gpu:
        size += ", and no GPU"
    if config == _SCRATCH and facts.kind != "boxes":
        size += (
            ", of which the boxes alone are learned: few_photos learns the rest, and takes a GPU"
        )
    if weights:
        start = f"from the pretrained weights {quote_word(weights)}"
    else:
        start = "from scratch, as no pretrained DenseNet-121 is on this machine"
    return f"Recipe {config} ({size}), {start}; --config names another."


# -- on the command line ---------------------------------------------------------------------------


def insert_recipe(
    arguments: Sequence[str], data_type: type[AnyData], find: Callable[[str], Path]
) -> tuple[list[str], list[str]]:
    """Put a recipe in the place of `RECIPE`, where that stands: before what was typed.

    Args:
        arguments: The engine's.
        data_type: Data module of the kind of training.
        find: Returns the file of a shipped experiment by its name.

    Returns:
        Arguments, and lines that say what was chosen.

    Raises:
        DataError: The data cannot be read.
    """
    marks = [argument for argument in arguments if argument == f"--config={RECIPE}"]
    if not marks:
        return list(arguments), []
    typed = [argument for argument in arguments if argument not in marks]
    facts = gather_facts(read_data(typed, data_type))
    recipe = choose_recipe(facts, find_densenet121_weights(), torch.cuda.is_available())
    options = {**recipe.options, **_fit_evaluations(typed)}
    if any(argument.partition("=")[0] in _MODELS for argument in typed):
        # A network that was named has options of its own.
        options = {key: v for key, v in options.items() if not key.startswith("model.args")}
        options["model.args"] = None
    # A word is one without quotes; json writes everything else as YAML reads it.
    texts = {k: v if isinstance(v, str) else json.dumps(v) for k, v in options.items()}
    given = [f"--{key}={text}" for key, text in texts.items()]
    return [f"--config={find(recipe.config)}", *given, *typed], [
        recipe.reason,
        *([facts.unused] if facts.unused else []),
    ]


def _fit_evaluations(typed: Sequence[str]) -> dict[str, int]:
    """Return how many epochs lie between two evaluations of a run of another length."""
    epochs = [a.partition("=")[2] for a in typed if a.startswith("--trainer.max_epochs=")]
    if not epochs or not epochs[-1].isdigit():
        return {}
    return {"trainer.check_val_every_n_epoch": max(1, int(epochs[-1]) // EVALUATIONS)}
