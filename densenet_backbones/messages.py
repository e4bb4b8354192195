"""One voice for errors, and for all that is printed: text, in which nothing acts on a terminal.

A check raises a ``ValueError`` that says the argument, what is legal and what it got::

    check_choice("tap", "nrom", ("raw", "norm"))
    # tap must be one of 'raw', 'norm', got 'nrom'; did you mean 'norm'?
    check_interval("drop_rate", 1.5, "[0, 1)")  # drop_rate must lie in [0, 1), got 1.5

Names of classes, files and folders may hold anything. `print_lines` prints them for the commands
that need no rich tables; ``reporting.console.say`` prints for the others.
"""

import argparse
import difflib
import errno
import os
import re
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from numbers import Integral
from pathlib import Path
from typing import Any, ClassVar, NoReturn, TextIO

__all__ = [
    "CommandParser",
    "advise",
    "check_choice",
    "check_interval",
    "check_whole",
    "describe_error",
    "describe_missing",
    "find_foreign",
    "nearest",
    "one_sentence",
    "print_lines",
    "quote_word",
    "read_version",
    "show_controls",
    "to_plain",
]

# Errors of jsonargparse about an option that does not exist, in a file and on the command line.
_UNKNOWN = re.compile(
    r"(?:unrecognized arguments: |(?<!\w)option '|Key ')(-*)([\w.-]+)", re.IGNORECASE
)
_BARE_WORD = re.compile(r"unrecognized arguments: (?!-)(?:(\w[\w.]*)=)?(\S+)")
_NO_GROUP = re.compile(r"Parser key \"(\w+)\": Unable to load config '(.*?)'")
# Control codes (C0 and C1), other ends of lines, codes that reverse text, and lone surrogates.
_CONTROLS = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]"
)
# What helps against an error of the system, by its number.
_ADVICE = {
    errno.EACCES: "change its permissions, or give another path",
    errno.EDQUOT: "remove other files, or choose another disk",
    errno.EEXIST: "remove it, or give another path",
    errno.EISDIR: "it is a folder, give a file",
    errno.ELOOP: "its links lead in a circle, correct one of them",
    errno.EMFILE: "raise the limit with `ulimit -n`",
    errno.ENAMETOOLONG: "give a shorter path",
    errno.ENOENT: "check the path",
    errno.ENOSPC: "remove other files, or choose another disk",
    errno.ENOTDIR: "a part of the path is a file, check the path",
    errno.EPERM: "change its permissions, or give another path",
    errno.EROFS: "give a path on a disk that can be written to",
}
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
_LONGEST_NAME, _MOST_NAMES = 100, 2000  # that `nearest` compares
_WANTED = re.compile(r"Expected an? (<class '[\w.]+'>|[\w.]+\[.*?\](?=\.? |\.?$))")


# ------------------------------------------------------------------------------ checks


def check_choice(name: str, value: object, choices: Iterable[object]) -> None:
    """Refuse a value that is none of the choices, naming the nearest one.

    Args:
        name: Argument or option, as the user writes it.
        value: Value to check.
        choices: Legal values, in the order to list them.

    Raises:
        ValueError: If ``value`` is not among ``choices``.
    """
    choices = list(choices)
    if value in choices:
        return
    texts = [choice for choice in choices if isinstance(choice, str)]
    close = nearest(value, texts) if isinstance(value, str) else ""
    legal = ("one of " if len(choices) > 1 else "") + ", ".join(map(repr, choices))
    raise ValueError(f"{name} must be {legal}, got {value!r}{close}")


def check_interval(name: str, value: float, interval: str) -> None:
    """Refuse a number outside an interval; NaN lies in none.

    Args:
        name: Argument or option, as the user writes it.
        value: Number to check.
        interval: Interval in mathematical notation, such as ``[0, 1)`` or ``(0, inf)``.

    Raises:
        ValueError: If ``value`` lies outside ``interval``.
    """
    low, high = map(float, interval[1:-1].split(","))
    above = value >= low if interval[0] == "[" else value > low
    below = value <= high if interval[-1] == "]" else value < high
    if above and below:
        return
    legal = f"lie in {interval}"
    if high == float("inf"):
        legal = f"be {'at least' if interval[0] == '[' else 'above'} {low:g} and finite"
    raise ValueError(f"{name} must {legal}, got {value}")


def check_whole(name: str, value: object, least: int = 1) -> None:
    """Refuse anything but an integer of at least ``least``.

    Args:
        name: Argument or option, as the user writes it.
        value: Value to check; booleans are no integers.
        least: Smallest legal integer.

    Raises:
        ValueError: If ``value`` is not an integer, or is below ``least``.
    """
    if isinstance(value, bool) or not isinstance(value, Integral):
        hint = ""
        if isinstance(value, float) and value.is_integer():
            hint = f"; write {value:.0f}"
        raise ValueError(f"{name} must be a whole number, got {value!r}{hint}")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")


def to_plain(value: object) -> Any:
    """Return an argument in Python's own types, as configs of other libraries hold numbers.

    NumPy's numbers and arrays become numbers and lists; so do, with what is in them, sequences and
    mappings such as ranges and OmegaConf's ``ListConfig`` and ``DictConfig``. Numbers keep their
    kind: 2.0 stays a float, which counts refuse, as in torch and timm.
    """
    if type(value).__module__ == "numpy" and hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {to_plain(key): to_plain(entry) for key, entry in value.items()}
    if isinstance(value, tuple):
        return tuple(map(to_plain, value)) if type(value) is tuple else value
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return [to_plain(entry) for entry in value]
    return value


# ------------------------------------------------------------------------------ sentences


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


def describe_error(error: BaseException) -> str:
    """Describe an error in one sentence; those of the system with the file and what helps.

    Args:
        error: Any error. One without words is described by its type.
    """
    if isinstance(error, UnicodeEncodeError):  # nearly always the name of a file
        return f"{error.object[:300]!r} has characters that are no text; rename it"
    if not isinstance(error, OSError) or error.errno is None:
        return str(error) or type(error).__name__
    reason = (error.strerror or os.strerror(error.errno)).rstrip(".")
    file = f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, str | bytes) else ""
    return f"{file}{reason[:1].lower()}{reason[1:]}{advise(error)}"


def describe_missing(path: Path, what: str = "file") -> str:
    """Describe in one sentence a path where nothing is, with the nearest name beside it.

    Args:
        path: What was named.
        what: What was wanted there, such as ``"file or folder"``.
    """
    try:
        with os.scandir(path.parent) as entries:
            beside = [entry.name for entry, _ in zip(entries, range(_MOST_NAMES), strict=False)]
    except OSError:
        beside = []
    return f"{path}: there is no such {what}{nearest(path.name, beside) or '; check the path'}"


def advise(error: OSError) -> str:
    """Return ``"; check the path"`` or what else helps against an error of the system, if known."""
    advice = _ADVICE.get(error.errno or 0)
    return f"; {advice}" if advice else ""


def read_version() -> str:
    """Return the version of this package, which a bare checkout has too."""
    return str(getattr(sys.modules.get("densenet_backbones"), "__version__", "unknown"))


def show_controls(text: str) -> str:
    """Return a text for one line of a terminal: control codes are spelled, line feeds too.

    Args:
        text: Text with names of files, folders or classes in it, which may hold anything.
    """
    return _CONTROLS.sub(lambda found: repr(found[0])[1:-1], text)


def quote_word(text: object) -> str:
    """Quote a path for a command that people copy: a shell takes it as one word."""
    shown = show_controls(str(text))
    if shown == str(text):
        return shlex.quote(shown)
    escaped = str(text).replace("\\", "\\\\").replace("'", "\\'")
    spelled = _CONTROLS.sub(
        lambda found: "".join(f"\\x{byte:02x}" for byte in os.fsencode(found[0])), escaped
    )
    return f"$'{spelled}'"


def print_lines(*lines: str, file: TextIO | None = None) -> None:
    """Print one line for each text; control codes in it are spelled.

    Args:
        lines: Texts of a line each.
        file: Standard output by default.
    """
    file = file or sys.stdout
    encoding = getattr(file, "encoding", None) or "utf-8"
    for line in lines:  # letters that the terminal has not are spelled as well
        text = show_controls(line).encode(encoding, "backslashreplace").decode(encoding)
        print(text, file=file, flush=True)


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


def nearest(name: str, known: Iterable[str]) -> str:
    """Return ``"; did you mean 'dog'?"`` for the end of an error, or nothing.

    Args:
        name: Name that does not exist.
        known: Names that exist; compared without regard to case.
    """
    if len(name) > _LONGEST_NAME:
        return ""
    # Some names, and short ones: comparing takes the product of the lengths, and a hostile file
    # may hold hundreds of thousands.
    some = (other for _, other in zip(range(_MOST_NAMES), known, strict=False))
    by_lower = {other.lower(): other for other in some if len(other) <= _LONGEST_NAME}
    close = difflib.get_close_matches(name.lower(), by_lower, n=1)
    return f"; did you mean {by_lower[close[0]]!r}?" if close else ""


def _readable(kind: str) -> str:
    """``<class 'int'>`` as ``int``, ``typing.Literal['a', 'b']`` as ``'a', 'b'``."""
    if name := re.fullmatch(r"<class '(?:[\w.]+\.)?(\w+)'>", kind):
        return "null" if name[1] == "NoneType" else name[1]
    if choices := re.fullmatch(r"(?:typing\.)?Literal\[(.*)\]", kind):
        return f"one of {choices[1]}"
    return kind
