"""Show models on a page of this machine: ``densenet demo MODEL [MODEL]``."""

import argparse
import importlib.util
import ipaddress
import os
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from densenet_backbones.inference.locating import find_model_file
from densenet_backbones.messages import CommandParser
from densenet_backbones.reporting.console import fail, quiet_libraries, say

if TYPE_CHECKING:
    from densenet_backbones.demo.answers import Model

_FIRST_PORT, _PORTS = 7860, 100


class DemoError(ValueError):
    """The page cannot be served; the message says why and what helps."""


def make_parser() -> CommandParser:
    """Return the parser of the command line."""
    parser = CommandParser(
        description="Show what a trained model finds, on a page in your browser: drop a picture, "
        "move the score, choose classes, save picture and JSON. Two models are shown side by side. "
        "The page is for this machine alone, unless --host says otherwise."
    )
    parser.add_argument(
        "models",
        nargs="+",
        metavar="MODEL",
        help="one or two: folder of a run, its *.ckpt or model.safetensors, or hf-hub:OWNER/NAME",
    )
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        metavar="ADDRESS",
        help="address to serve on (%(default)s); 0.0.0.0 shows it to everybody in your network",
    )
    parser.add_argument(
        "--port", type=int, metavar="N", help=f"port (the first free one from {_FIRST_PORT} on)"
    )
    parser.add_argument(
        "--device", default=None, help="where the models run (a GPU if there is one)"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Run ``tools/demo.py`` and ``densenet-demo``, until Ctrl-C.

    Raises:
        SystemExit: 1 with one line on standard error where the page cannot be shown.
    """
    quiet_libraries()
    options = make_parser().parse_args(argv)
    # So that the page's folder goes with it.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        with serve(options) as address:
            say(f"The page is at {address}", "Ctrl-C ends it.")
            threading.Event().wait()
    except KeyboardInterrupt:
        say("", "Ended.")
    except (ValueError, OSError, MemoryError) as error:
        fail(error, 1)


@contextmanager
def serve(options: argparse.Namespace) -> Iterator[str]:
    """Serve the page in threads of this process.

    Yields:
        Its address.

    Raises:
        DemoError: Gradio is missing, or the address cannot be served on.
        CheckpointError: A model cannot be read.
    """
    if importlib.util.find_spec("gradio") is None:
        raise DemoError(
            'the page needs Gradio: pip install "densenet-backbones[demo]" (or pip install gradio)'
        )
    if options.port is not None and not 1 <= options.port <= 65535:
        raise DemoError(f"--port must lie in [1, 65535], got {options.port}")
    port = find_port(options.host, options.port)
    models = load_models(options.models, options.device)
    from densenet_backbones.demo.page import STYLE, Page

    with own_folder() as folder:
        blocks = Page(models, folder).build()
        _, address, _ = blocks.launch(
            server_name=options.host, server_port=port, css=STYLE, **_choose_settings(options.host)
        )
        try:
            yield address
        finally:
            blocks.close(verbose=False)


@contextmanager
def own_folder() -> Iterator[Path]:
    """Give Gradio a folder of its own for what is uploaded and drawn, and remove it at the end."""
    with tempfile.TemporaryDirectory(prefix="densenet-demo-") as folder:
        # Gradio reads them when it is imported, when a page is made and at every file.
        settings = {"GRADIO_TEMP_DIR": folder, "GRADIO_ANALYTICS_ENABLED": "False"}
        before = {name: os.environ.get(name) for name in settings}
        os.environ.update(settings)
        try:
            yield Path(folder)
        finally:
            for name, value in before.items():
                os.environ.pop(name)
                if value is not None:
                    os.environ[name] = value


def find_port(host: str, port: int | None) -> int:
    """Return a port that can be served on: the one that is named, or the first free one.

    Raises:
        DemoError: It is taken, or the address is none of this machine.
    """
    ports = range(_FIRST_PORT, _FIRST_PORT + _PORTS) if port is None else [port]
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    reason: OSError | None = None
    for candidate in ports:
        try:
            with socket.create_server((host, candidate), family=family):
                return candidate
        except OSError as error:
            reason = error
    where = f"--host {host}" + (f" --port {port}" if port else "")
    raise DemoError(f"{where}: cannot be served on ({reason}); name another") from reason


def load_models(names: Sequence[str], device: str | None) -> "list[Model]":
    """Load the models of the page.

    Raises:
        CheckpointError: A model cannot be read.
        ValueError: There are more than two, or there is no such device.
    """
    if len(names) > 2:
        raise ValueError(f"the page shows one model or two side by side, got {len(names)}")
    for name in names:
        find_model_file(name)
    import torch

    from densenet_backbones.demo.answers import Model
    from densenet_backbones.inference.loading import check_device, load

    place = check_device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    models = []
    for name in names:
        models.append(Model(_name(name), load(name, place)))
    return models


def _name(model: str) -> str:
    """Return a model's name on the page: that of its run, or of its file."""
    path = Path(model)
    run = path.parent.parent if path.parent.name == "checkpoints" else path.parent
    return (
        run if path.name in ("model.safetensors", "best.ckpt", "last.ckpt") else path
    ).name or model


def _choose_settings(host: str) -> dict[str, Any]:
    """Return Gradio's settings: nothing of this machine is served but the page and its uploads."""
    import gradio

    from densenet_backbones.demo.answers import MOST_BYTES
    from densenet_backbones.demo.guard import Guard

    hosts = ("127.0.0.1", "localhost", "::1", host) if _is_loopback(host) else ()
    # Fonts of the system: those of other themes are fetched.
    theme = gradio.themes.Base(
        primary_hue="slate",
        neutral_hue="slate",
        font=["system-ui", "sans-serif"],
        font_mono=["ui-monospace", "monospace"],
    )
    return {
        "theme": theme,
        "share": False,
        "allowed_paths": [],
        "max_file_size": MOST_BYTES,
        "app_kwargs": {
            "middleware": [(Guard, (), {"hosts": hosts})],
            **dict.fromkeys(("docs_url", "redoc_url", "openapi_url")),
        },
        "footer_links": [],
        "run_history": False,
        "ssr_mode": False,
        "mcp_server": False,
        "pwa": False,
        "enable_monitoring": False,
        "prevent_thread_lock": True,
        "quiet": True,
    }


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"
