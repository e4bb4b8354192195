"""Processes beside the test's own that need not import what they run.

A server imports it once and forks a process for each call, as fresh as a new Python: no threads, no
state of other tests. Where the start of a command is what is tested, a new Python runs it.
"""

import multiprocessing
import os
import runpy
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
from blank_figures import leave_blank
from lightning.pytorch.utilities import rank_zero_only

IMPORTED = ["densenet_backbones.training.engine", "densenet_backbones.training.evaluate"]


def start_beside(function: Callable[..., None], *arguments: object) -> Any:
    """Call ``function(0, *arguments)`` in another process; ``join()`` of the result ends with it.

    What is raised there is raised by ``join()`` here.
    """
    multiprocessing.set_forkserver_preload(IMPORTED)
    return torch.multiprocessing.start_processes(
        function, arguments, nprocs=1, join=False, start_method="forkserver"
    )


def start_saying(
    said: Path,
    function: Callable[..., None],
    *arguments: object,
    environment: Mapping[str, str] | None = None,
) -> BaseProcess:
    """Call a function in a process whose output goes to the end of a file.

    Args:
        said: The file.
        function: One that a module has by name; it draws no figures.
        arguments: The function's.
        environment: Variables that it has besides this process's.
    """
    multiprocessing.set_forkserver_preload(IMPORTED)
    variables = {**os.environ, **(environment or {})}
    process = multiprocessing.get_context("forkserver").Process(
        target=_call, args=(said, variables, os.getcwd(), function, arguments)
    )
    process.start()
    return process


def _call(
    said: Path,
    environment: Mapping[str, str],
    folder: str,
    function: Callable[..., None],
    arguments: Sequence[object],
) -> None:
    with said.open("a") as file:
        for descriptor in (1, 2):
            os.dup2(file.fileno(), descriptor)
    os.environ.update(environment)
    os.chdir(folder)
    torch.set_num_threads(1)
    leave_blank(setattr)
    function(*arguments)


def run_on_two(words: Sequence[object], said: Path) -> list[int | None]:
    """Run a script on two processes that train together, as a launcher starts them.

    Args:
        words: The script's path and its arguments.
        said: File of what both say.

    Returns:
        The exit codes of both.
    """
    with closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    together = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2"}
    script, *arguments = map(str, words)
    processes = [
        start_saying(said, _run_script, script, arguments, environment=together | own)
        for own in ({"LOCAL_RANK": "0"}, {"LOCAL_RANK": "1"})
    ]
    try:
        for process in processes:
            process.join(240)
        return [process.exitcode for process in processes]
    finally:
        for process in processes:
            process.kill()


def _run_script(script: str, arguments: list[str]) -> None:
    # Lightning reads its process's number when it is imported, which the server has done.
    rank_zero_only.rank = int(os.environ["LOCAL_RANK"])
    sys.argv = [script, *arguments]
    runpy.run_path(script, run_name="__main__")
