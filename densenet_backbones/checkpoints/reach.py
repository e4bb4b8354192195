"""Published weights that cannot be reached: an answer within seconds, and not after retries."""

import socket
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

import huggingface_hub.constants as hub
from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled

__all__ = ["OfflineError", "download_or_fail_soon", "is_reachable"]

_SECONDS = 3.0


class OfflineError(RuntimeError):
    """Published weights are neither on this machine nor within its reach."""


def is_reachable(url: str) -> bool:
    """Return False if the host of an address does not take connections within seconds.

    With a proxy the host need not be known here: True, and the download itself will tell.
    """
    parts = urlsplit(url)
    if urllib.request.getproxies().get(parts.scheme):
        return True
    try:
        port = parts.port or (80 if parts.scheme == "http" else 443)
        socket.create_connection((parts.hostname or "", port), timeout=_SECONDS).close()
    except OSError:
        return False
    return True


@contextmanager
def download_or_fail_soon() -> Iterator[None]:
    """Context of downloads from the Hub: out of its reach they are read from the cache, or fail.

    huggingface_hub itself tries again and again, for most of a minute.

    Raises:
        OfflineError: The Hub is out of reach and the file was never fetched.
    """
    was_offline = hub.HF_HUB_OFFLINE
    hub.HF_HUB_OFFLINE = was_offline or not is_reachable(hub.ENDPOINT)
    try:
        yield
    except (ConnectionError, LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        raise OfflineError(
            f"published weights are neither on this machine nor within its reach ({hub.ENDPOINT})"
        ) from error
    finally:
        hub.HF_HUB_OFFLINE = was_offline
