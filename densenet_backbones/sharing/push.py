"""Send a trained model to the Hugging Face Hub: ``densenet push MODEL OWNER/NAME``."""

import argparse
import re
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from densenet_backbones.checkpoints.hub_name import HUB, HUB_FILE, is_on_hub
from densenet_backbones.file_writing import save_bytes, save_text
from densenet_backbones.inference.locating import find_model_file
from densenet_backbones.messages import CommandParser
from densenet_backbones.reporting.console import fail, quiet_libraries, say

_REPO = re.compile(r"[\w.-]{1,96}/[\w.-]{1,96}")


class PushError(ValueError):
    """The Hub took nothing; the message says why and what helps."""


def make_parser() -> CommandParser:
    """Return the parser of the command line."""
    parser = CommandParser(
        description="Send a trained model to the Hugging Face Hub: model.safetensors and a model "
        "card made from its run, with pictures of the evaluated images. Others then use it as "
        "hf-hub:OWNER/NAME wherever a model's file is named."
    )
    parser.add_argument(
        "checkpoint", metavar="MODEL", help="folder of a run, its *.ckpt or model.safetensors"
    )
    parser.add_argument("repo", metavar="REPO", help="OWNER/NAME on the Hub; made if it is missing")
    parser.add_argument("--private", action="store_true", help="make the repository a private one")
    parser.add_argument(
        "--license",
        default="unknown",
        metavar="ID",
        help="license of the model by the Hub's name: apache-2.0, cc-by-4.0, … (%(default)s)",
    )
    parser.add_argument(
        "--no-pictures", action="store_true", help="send no pictures of the evaluated images"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="write what would be sent to --out, send nothing"
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="folder of a dry run (hub/NAME), which must be new or empty",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Run ``tools/push.py`` and ``densenet-push``.

    Raises:
        SystemExit: 1 with one line on standard error for wrong input, or where the Hub refuses.
    """
    quiet_libraries()
    options = make_parser().parse_args(argv)
    try:
        push(options)
    except KeyboardInterrupt:
        say("Stopped; the Hub may have a part of it", style="yellow")
        sys.exit(130)
    except (ValueError, OSError) as error:
        fail(error, 1)


def push(options: argparse.Namespace) -> None:
    """Push as the command line says.

    Raises:
        CheckpointError: The file holds no model.
        PushError: The Hub is out of reach or refuses.
    """
    repo = options.repo.removeprefix(HUB)
    if not _REPO.fullmatch(repo):
        raise ValueError(f"REPO must be OWNER/NAME, got {options.repo!r}")
    if not re.fullmatch(r"[\w.+-]{1,64}", options.license):
        raise ValueError(f"--license must be a name such as apache-2.0, got {options.license!r}")
    if options.out and not options.dry_run:
        raise ValueError("--out names the folder of a dry run; add --dry-run, or leave it out")
    if is_on_hub(options.checkpoint):
        raise ValueError(f"{options.checkpoint} is on the Hub already; give a file of a run")
    model = find_model_file(options.checkpoint)
    if options.dry_run:
        folder = options.out or Path("hub") / repo.partition("/")[2]
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise ValueError(f"{folder} has files already; name a new folder with --out")
        write_folder(model, repo, folder, options)
        say(f"Dry run: written to {folder}/, nothing sent")
        return
    with tempfile.TemporaryDirectory(prefix="densenet-push-") as temporary:
        folder = Path(temporary)
        write_folder(model, repo, folder, options)
        say(f"Sent to {send_folder(folder, repo, options.private)}")
        say(f"Use it:  densenet predict {HUB}{repo} photo.jpg")


def write_folder(model: Path, repo: str, folder: Path, options: argparse.Namespace) -> None:
    """Write the files of a model's repository to a folder: weights, card, pictures."""
    from densenet_backbones.inference.classifier import ClassifierSpec
    from densenet_backbones.inference.detector import DetectorSpec
    from densenet_backbones.inference.model_file import read_model_file, save_model
    from densenet_backbones.inference.segmenter import SegmenterSpec
    from densenet_backbones.sharing.card import write_card
    from densenet_backbones.sharing.run_record import read_run

    spec, weights = read_model_file(model, (DetectorSpec, SegmenterSpec, ClassifierSpec))
    run = read_run(model)
    for file in run.damaged:
        say(f"{file}: is damaged, so the card says less", style="yellow")
    if options.no_pictures:
        run = replace(run, pictures=())
    if model.suffix == ".safetensors":
        shutil.copyfile(model, _make_parents(folder / HUB_FILE))
    else:
        save_model(folder / HUB_FILE, spec, spec.restore(weights, model))
    values = sum(weight.numel() for weight in weights.values())
    save_text(folder / "README.md", write_card(spec, run, repo, options.license, values))
    for picture in run.pictures:
        save_bytes(folder / picture.name, picture.read_bytes())


def _make_parents(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def send_folder(folder: Path, repo: str, private: bool) -> str:
    """Upload a folder as one commit, and return the address of the repository.

    Raises:
        PushError: The Hub is out of reach or refuses.
    """
    from huggingface_hub import HfApi, get_token
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    api = HfApi()
    if get_token() is None:
        raise PushError(
            "the Hub takes models from accounts alone; run `hf auth login`, or set HF_TOKEN to a "
            "token of huggingface.co/settings/tokens that may write"
        )
    try:
        address = api.create_repo(repo, private=private, exist_ok=True)
        if private and not api.repo_info(repo).private:  # one that was there already
            raise PushError(
                f"{repo}: is a public repository; make it private on its page, or name another"
            )
        api.upload_folder(
            repo_id=repo,
            folder_path=folder,
            commit_message="Model and card by densenet-backbones",
        )
    except PushError:
        raise
    except OfflineModeIsEnabled as error:
        raise PushError("HF_HUB_OFFLINE forbids to send; unset it") from error
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else 0
        if status in (401, 403):
            raise PushError(
                f"{repo}: this account may not write there (HTTP status {status}); give an OWNER "
                "of yours, or log in with a token that may write (`hf auth login`)"
            ) from error
        reason = " ".join(str(error).split())[:300]
        raise PushError(f"{repo}: the Hub refuses ({reason}); try again later") from error
    except Exception as error:  # of the network, by types of several libraries
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise PushError(
            f"{repo}: the Hub cannot be reached, or broke off ({reason}); check the network and "
            "push again, which sends what is missing"
        ) from error
    return str(address)
