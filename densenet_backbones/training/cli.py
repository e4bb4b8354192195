"""Command line of training: short flags over Lightning's, one YAML an experiment.

`train_det` is what ``tools/train_det.py`` and the console script ``densenet-train-det`` call, and
`train_seg` and `train_cls` the same for segmentation and classification. Help is answered and the
short flags are checked here, before Lightning is imported; `running` does the work, and checks the
options of the engine.
"""

import argparse
import ctypes
import gc
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from densenet_backbones.data.faults import check_is_there
from densenet_backbones.inference.locating import find_model_file
from densenet_backbones.messages import one_sentence
from densenet_backbones.reporting.console import fail, quiet_libraries
from densenet_backbones.training.arguments import (
    CLASSIFICATION_FORM,
    DEFAULT_CONFIG,
    DETECTION_FORM,
    NUMBERS,
    RECIPE,
    RUN_OPTIONS,
    SEGMENTATION_FORM,
    SHORT_FLAGS,
    ShortForm,
    expand_short_flags,
    make_parser,
    read_config,
)
from densenet_backbones.training.options.names import check_options, list_options
from densenet_backbones.training.run_folder import (
    RunFolderError,
    find_checkpoint,
    find_latest_folder,
)

__all__ = ["check_words", "train_cls", "train_det", "train_seg"]

_ENGINE = {"config", "print_config", "help", "seed_everything", "model", "data", "trainer"}
"""First parts of the engine's options, besides those of the run."""

_SPINS = "10000"
"""How often a thread looks whether the others have come to the end of a parallel region, before it
sleeps; GCC's library of OpenMP looks 300,000 times. Beside another busy process, a thread that
waits takes the processor from one that works."""

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""Names that glibc's ``mallopt`` has for them (its ``malloc.h``)."""


def train_det(argv: Sequence[str] | None = None) -> None:
    """Train a detector; see `running.train`."""
    _train("detection", argv, DETECTION_FORM)


def train_seg(argv: Sequence[str] | None = None) -> None:
    """Train a segmentation model; see `running.train`."""
    _train("segmentation", argv, SEGMENTATION_FORM)


def train_cls(argv: Sequence[str] | None = None) -> None:
    """Train an image classifier; see `running.train`."""
    _train("classification", argv, CLASSIFICATION_FORM)


def _train(kind: str, argv: Sequence[str] | None, form: ShortForm) -> None:
    words = list(sys.argv[1:] if argv is None else argv)
    _let_threads_sleep()
    _keep_freed_memory()
    quiet_libraries()
    try:
        check_words(words, kind, form)
    except argparse.ArgumentError as error:
        options = [option.lstrip("-") for option in make_parser(form).list_names()]
        fail(one_sentence(str(error), lambda: [*options, *list_options(kind)]), 2)
    except RunFolderError as error:
        fail(error, 2)
    except (ValueError, OSError) as error:
        fail(error, 1)
    from densenet_backbones.training.running import train

    gc.freeze()  # collections, and the last one at the end, pass over what was imported
    train(kind, words)


def _let_threads_sleep() -> None:
    """Shorten the waits of OpenMP's threads, before torch loads it, unless the user chose them."""
    if not os.environ.keys() & {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"}:
        os.environ["GOMP_SPINCOUNT"] = _SPINS


def _keep_freed_memory() -> None:
    """Have glibc keep what is freed for the next step, unless the user tuned it.

    Left alone, it gives large maps back to the system and asks for them again in every step, which
    fills them with zeros, page by page (``mallopt`` in glibc's manual). Kept, they lie in more
    places: the process grows a little.
    """
    if os.environ.keys() & {"GLIBC_TUNABLES", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"}:
        return
    with suppress(AttributeError, OSError, TypeError):  # another C library
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_MMAP_THRESHOLD, 2**30)
        mallopt(_TRIM_THRESHOLD, 2**31 - 1)


def check_words(words: Sequence[str], kind: str, form: ShortForm) -> None:
    """Refuse what is wrong for certain, before the engine is imported.

    Args:
        words: As typed.
        kind: What is trained.
        form: Of this kind of training.

    Raises:
        ArgumentError: An option, or the value of a short flag, cannot be right.
        ValueError: The data, the weights or the run are not there.
    """
    known, rest = make_parser(form).parse_known_args(words)
    _check_options(rest)
    _check_numbers(known)
    is_training = not known.help_all and known.print_config is None
    continues = any(word.partition("=")[0] == "--ckpt_path" for word in rest)
    if known.resume:  # its config may have to be mended first
        check_options(rest, kind, {}, any_model=True)
        name = known.name or ("" if known.config or known.data else DEFAULT_CONFIG)
        folder = known.run_dir or (name and find_latest_folder(name))
        if folder and is_training and not (continues or known.init_from):
            find_checkpoint(Path(folder))
        return
    full = expand_short_flags(words, form)
    configs = [word.removeprefix("--config=") for word in full if word.startswith("--config=")]
    files = [file for file in configs if file != RECIPE]
    check_options(rest, kind, {file: read_config(Path(file)) for file in files})
    if not is_training:
        return
    if known.data is not None:
        check_is_there(known.data)
    weights = known.init_from
    if weights and not continues:
        find_model_file(weights)


def _check_options(words: Sequence[str]) -> None:
    """Refuse words that are neither options of the engine nor values of these."""
    if words and not words[0].startswith("-"):
        raise argparse.ArgumentError(None, f"unrecognized arguments: {' '.join(words)}")
    for word in words:
        name = word.partition("=")[0].removeprefix("--").partition(".")[0]
        if word.startswith("--") and name.rstrip("+") not in _ENGINE | RUN_OPTIONS.keys():
            raise argparse.ArgumentError(None, f"unrecognized arguments: {word}")


def _check_numbers(known: argparse.Namespace) -> None:
    """Refuse values of short flags that are no numbers, in the engine's words."""
    for name, wanted in NUMBERS.items():
        value = getattr(known, name)
        if value is None or value in ("auto", "null", "None", "~", "true", "false"):
            continue
        try:
            is_right = "float" in wanted or float(value).is_integer()
            float(value)
        except ValueError:
            is_right = False
        if not is_right:
            target = SHORT_FLAGS.get(name, name).removeprefix("--")
            raise argparse.ArgumentError(None, f"{target} must be {wanted}, got {value}")
