"""Fetch a file from an http(s) address within bounds of size and time."""

import queue
import threading
import urllib.error
import urllib.request
from http.client import HTTPMessage
from pathlib import Path
from typing import IO

from densenet_backbones.data.faults import DataError
from densenet_backbones.untrusted.limits import MAX_DOWNLOAD, MAX_DOWNLOAD_SECONDS

_SCHEMES = ("http://", "https://")
_PIECE = 1 << 16  # bytes that are read at once


def is_url(source: object) -> bool:
    """Return True for an address of the web, as text."""
    return isinstance(source, str) and source.lower().startswith(_SCHEMES)


def fetch(url: str) -> bytes:
    """Return the bytes behind an address.

    Raises:
        DataError: The server cannot be reached or refuses, or the file is larger than
            `MAX_DOWNLOAD` or takes longer than `MAX_DOWNLOAD_SECONDS`. Names the address.
    """
    # A server may send its headers byte by byte for hours: a thread waits for it, which is left.
    box: queue.Queue[bytes | Exception] = queue.Queue(1)
    threading.Thread(target=_fetch_into, args=(url, box), daemon=True).start()
    try:
        outcome = box.get(timeout=MAX_DOWNLOAD_SECONDS)
    except queue.Empty:
        outcome = TimeoutError(f"it takes longer than {MAX_DOWNLOAD_SECONDS} s")
    if isinstance(outcome, bytes):
        return outcome
    reason = getattr(outcome, "reason", None) or outcome
    raise DataError(
        f"{url}: cannot be fetched ({' '.join(str(reason).split())[:200]}); check the address, or "
        "fetch the file yourself and give its path"
    )


def _fetch_into(url: str, box: "queue.Queue[bytes | Exception]") -> None:
    try:
        opener = urllib.request.build_opener(_WebOnly)
        request = urllib.request.Request(url, headers={"User-Agent": "densenet-backbones"})
        with opener.open(request, timeout=MAX_DOWNLOAD_SECONDS) as response:
            box.put(_read_bounded(response))
    except Exception as error:  # whatever a server or an address makes the library raise
        box.put(error)


class _WebOnly(urllib.request.HTTPRedirectHandler):
    """Follows redirections to other addresses of the web alone."""

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        """Refuse the schemes that the library would follow besides, such as ftp."""
        if not is_url(newurl):
            raise urllib.error.URLError(f"it leads to {newurl[:100]}")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _read_bounded(response: IO[bytes]) -> bytes:
    content = bytearray()
    while piece := response.read(_PIECE):
        content += piece
        if len(content) > MAX_DOWNLOAD:
            raise ValueError(f"it has more than {MAX_DOWNLOAD >> 20} MiB")
    return bytes(content)


def name_file(url: str) -> str:
    """Return the name of the file that an address ends with; "image" where it has none."""
    return Path(url.split("?")[0].split("#")[0].split("://", 1)[1]).name or "image"
