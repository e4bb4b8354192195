"""What is said about wrong usage: one sentence, with the nearest right key."""

import re
from collections.abc import Iterable

import lightning.pytorch as pl
from lightning.pytorch.cli import LightningArgumentParser

from densenet_backbones.data.detection import DetectionData
from densenet_backbones.data.files import nearest
from densenet_backbones.training.detection_task import DetectionTask

RUN_OPTIONS = ("run_dir", "ckpt_path", "init_from", "ema_decay", "seed_everything")
"""Options of the command line beside those of trainer, model and data."""

# What jsonargparse says of an option that does not exist, in a file and on the command line.
_UNKNOWN = re.compile(
    r"(?:unrecognized arguments: -*|does not accept option '|Key ')([\w.-]+)", re.IGNORECASE
)
_WRONG_VALUE = re.compile(
    r"Parser key \"(?P<key>[\w.]+)\": (?P<why>.*?)\.? (?:Got|Given) value: (?P<value>.*)"
)
_WANTED = re.compile(r"Expected an? (<class '[\w.]+'>|[\w.]+\[.*?\](?=\.? |\.?$))")


def one_sentence(message: str, short_flags: Iterable[str] = ()) -> str:
    """A message of argparse or jsonargparse without its dump of types and usage.

    Args:
        message: Any number of lines.
        short_flags: Keys that are right besides the engine's own.
    """
    text = " ".join(line.strip() for line in message.splitlines() if line.strip())
    if wrong := _WRONG_VALUE.search(text):
        wanted = [_readable(kind) for kind in _WANTED.findall(wrong["why"])]
        if wanted:
            return f"{wrong['key']} must be {' or '.join(wanted)}, got {wrong['value']}"
    if unknown := _UNKNOWN.search(text):
        text += nearest(unknown[1].split("=")[0], [*known_keys(), *short_flags])
    return text


def known_keys() -> list[str]:
    """Every dotted key of the command line."""
    parser = LightningArgumentParser(exit_on_error=False)
    parser.add_lightning_class_args(pl.Trainer, "trainer")
    parser.add_lightning_class_args(DetectionTask, "model")
    parser.add_lightning_class_args(DetectionData, "data")
    keys = [action.dest for action in parser._actions if action.dest not in ("help", "config")]
    return [*keys, *RUN_OPTIONS]


def _readable(kind: str) -> str:
    """``<class 'int'>`` as ``int``, ``typing.Literal['a', 'b']`` as ``'a', 'b'``."""
    if name := re.fullmatch(r"<class '(?:[\w.]+\.)?(\w+)'>", kind):
        return "null" if name[1] == "NoneType" else name[1]
    if choices := re.fullmatch(r"(?:typing\.)?Literal\[(.*)\]", kind):
        return f"one of {choices[1]}"
    return kind
