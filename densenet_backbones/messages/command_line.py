"""A parser of command lines whose errors are one line, and knows options of other tools."""

import argparse
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, ClassVar, NoReturn

from densenet_backbones.messages.sentences import describe_error, nearest, print_lines

__all__ = ["CommandParser", "find_foreign", "one_sentence"]

# Errors of jsonargparse about an option that does not exist, in a file and on the command line.
_UNKNOWN = re.compile(
    r"(?:unrecognized arguments: |(?<!\w)option '|Key ')(-*)([\w.-]+)", re.IGNORECASE
)
_BARE_WORD = re.compile(r"unrecognized arguments: (?!-)(?:(\w[\w.]*)=)?(\S+)")
_NO_GROUP = re.compile(r"Parser key \"(\w+)\": Unable to load config '(.*?)'")
# Options of other tools -> ours, the first of them that a command has, or a word on it.
_FOREIGN = {
    "amp fp16 half bf16 mixed-precision": ("precision",),
    "ann-file annotation-file annotations data.annotation-file": ("annotation-file",),
    "arch": ("model.detector", "model.segmenter"),
    "backbone": ("model.args",),
    "base-lr learning-rate lr0": ("lr",),
    "batch batchsize bs imgs-per-gpu samples-per-gpu train-batch-size": ("batch-size",),
    "cfg config-file hyp yaml": ("config",),
    "cfg-options opts": ("help-all",),
    "conf conf-thres conf-threshold confidence score-thr score-threshold": ("score", "model.args"),
    "cuda gpu gpu-id gpu-ids gpus": ("device",),
    "data-dir data-path data-root dataset dataset-path root": ("data",),
    "early-stop early-stopping": ("patience",),
    "exp-dir log-dir output output-dir project save-dir work-dir": ("run-dir", "out"),
    "freeze": ("model.args",),
    "data.image-folder image-folder images-dir img-dir img-prefix": ("image-folder", "images"),
    "img img-size image-size imgsz input-size resolution": ("size", "image-size"),
    "input inputs source": ("images",),
    "iou iou-thres iou-threshold nms-thres": ("model.args",),
    "load-from pretrained-weights weights": ("init-from", "model", "checkpoint"),
    "manual-seed random-seed": ("seed",),
    "max-epoch max-epochs n-epochs num-epochs": ("epochs",),
    "momentum optim optimizer wd weight-decay": ("model.optimizer",),
    "n-workers num-workers nw": ("workers",),
}
_IN_ARGS = {
    "backbone": "backbone",
    "conf": "score_thresh",
    "freeze": "trainable_backbone_layers",
    "iou": "nms_thresh",
}
_WRONG_VALUE = re.compile(
    r"Parser key \"(?P<key>[\w.]+)\": (?P<why>.*?)\.? (?:Got|Given) value: (?P<value>.*?)"
    r"(?= - Expected | Given value type: |$)"
)
_WANTED = re.compile(r"Expected an? (<class '[\w.]+'>|[\w.]+\[.*?\](?=\.? |\.?$))")


class CommandParser(argparse.ArgumentParser):
    """Parser of a command line whose errors are one line.

    Attributes:
        program: Words that started the command, for its help; None takes the script's name.
        handed_on: Options that are no part of the help, as another parser takes them; None where
            that one answers for all the words that this one does not take.
    """

    program: ClassVar[str | None] = None
    handed_on: tuple[str, ...] | None = ()

    def __init__(self, *, prog: str | None = None, **options: Any) -> None:
        super().__init__(prog=prog or self.program, **options)

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """Parse the words, of which options of other tools are answered with ours."""
        words = list(sys.argv[1:] if args is None else args)
        is_asked = self._subparsers is None and self.handed_on is not None
        if is_asked and (sentence := find_foreign(words, self.list_names())):
            self.fail(f"{sentence}; --help lists the options")
        return super().parse_known_args(words, namespace)

    def list_names(self) -> Iterator[str]:
        """Yield the options and the names of the arguments that are words of their own."""
        for action in self._actions:
            yield from action.option_strings or [action.dest]
        yield from self.handed_on or ()

    def error(self, message: str) -> NoReturn:
        """Print what is wrong with the words of the command line, and end with status 2."""
        options = (name for name in self.list_names() if name.startswith("--"))
        self.fail(f"{one_sentence(message, lambda: options)}; --help lists the options")

    def fail(self, error: Exception | str) -> NoReturn:
        """Print an error, or its sentence, and end with status 2."""
        sentence = error if isinstance(error, str) else describe_error(error)
        print_lines(f"error: {sentence}", file=sys.stderr)
        sys.exit(2)


def find_foreign(words: Iterable[str], known: Iterable[str]) -> str | None:
    """Return a sentence about the first option of another tool, with ours; None without one.

    Args:
        words: Words of a command line.
        known: Options and names of arguments of the command; those of them are nobody else's.
    """
    names: dict[str, str] = {}
    for name in known:  # of two spellings, the first
        names.setdefault(name.lstrip("-").replace("_", "-"), name)
    for word in words:
        option = word.partition("=")[0]
        plain = option.lstrip("-").replace("_", "-").lower()
        if not option.startswith("--") or f"--{plain}" in names.values():
            continue
        for foreign, ours in _FOREIGN.items():
            fitting = next((name for name in ours if name in names), None)
            if plain in foreign.split() and fitting is not None:
                own = _name_ours(foreign, names[fitting])
                return f"{option} is an option of other tools; {own}"
    return None


def _name_ours(foreign: str, ours: str) -> str:
    if ours == "--help-all":
        return "here each entry of a config is an option, such as --trainer.max_epochs 12"
    if ours == "--model.args":
        key = next(name for start, name in _IN_ARGS.items() if start in foreign.split())
        return f"here it is {key} of {ours}, --model.args.{key} VALUE"
    if ours.startswith("--"):
        return f"here it is {ours}"
    return f"give the {ours} as a word of its own"


def one_sentence(message: str, known_keys: Callable[[], Iterable[str]] = tuple) -> str:
    """Shorten a message of argparse or jsonargparse to one sentence without types and usage.

    Args:
        message: Text of any number of lines.
        known_keys: Function that returns the right keys; called only if one is unknown.
    """
    text = " ".join(line.strip() for line in message.splitlines() if line.strip())
    if wrong := _WRONG_VALUE.search(text):
        wanted = [_readable(kind) for kind in _WANTED.findall(wrong["why"])]
        if wanted:
            return f"{wrong['key']} must be {' or '.join(wanted)}, got {wrong['value']}"
    if no_group := _NO_GROUP.search(text):
        keys = [key for key in known_keys() if key.startswith(f"{no_group[1]}.")]
        return (
            f"--{no_group[1]} takes a YAML file or a mapping, got {no_group[2]}; its entries have "
            f"options of their own: --{', --'.join(keys[:4])}, ..."
        )
    if bare := _BARE_WORD.search(text):  # as other tools want their options
        name = bare[1] or "data"
        is_known = name in {key.lstrip("-") for key in known_keys()}
        return f"{text}; write --{name} {bare[2]}" if is_known else text
    if unknown := _UNKNOWN.search(text):
        dashes, name = unknown.groups()
        text += nearest(f"{dashes}{name}", (f"{dashes}{key.lstrip('-')}" for key in known_keys()))
    return text


def _readable(kind: str) -> str:
    """``<class 'int'>`` as ``int``, ``typing.Literal['a', 'b']`` as ``'a', 'b'``.

    Lists and dicts come with an example of how they are written.
    """
    if name := re.fullmatch(r"<class '(?:[\w.]+\.)?(\w+)'>", kind):
        written = {"NoneType": "null", "list": "list ('[a, b]')", "dict": "dict ('{a: b}')"}
        return written.get(name[1], name[1])
    if choices := re.fullmatch(r"(?:typing\.)?Literal\[(.*)\]", kind):
        return f"one of {choices[1]}"
    return kind
