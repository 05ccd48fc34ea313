"""How long a file of the hub would take to fetch, found out in no more than a moment."""

from __future__ import annotations

import contextlib
import http.client
import threading
import time
import urllib.request

from .catalogue import HubModel
from .wheels import certificates

_PATIENCE_S = 2.0
_BLOCK = 1 << 16


def seconds_to_fetch(entry: HubModel, patience_s: float = _PATIENCE_S) -> float | None:
    """Seconds that a model's file would take, judged by what arrives in the first moment; None: nothing does.

    patience_s: what this takes at most, also where a name is looked up for longer.
    """
    try:
        from huggingface_hub.constants import ENDPOINT, HF_HUB_OFFLINE
    except ImportError:
        return None
    if HF_HUB_OFFLINE:
        return None
    rates: list[float] = []  # bytes a second, the last one is the best known
    url = f"{ENDPOINT}/{entry.repository}/resolve/main/{entry.filename}"
    asking = threading.Thread(target=_listen, args=(url, time.monotonic() + patience_s, rates), daemon=True)
    asking.start()
    asking.join(patience_s)
    return entry.megabytes * 1e6 / rates[-1] if rates else None


def _listen(url: str, until: float, rates: list[float]) -> None:
    """Note how fast a file arrives, until a time."""
    with contextlib.suppress(OSError, ValueError, http.client.HTTPException):  # it is not to be had, then
        left = max(until - time.monotonic(), 0.1)
        with urllib.request.urlopen(url, timeout=left, context=certificates()) as response:
            began, n_bytes = time.monotonic(), 0
            while time.monotonic() < until and (block := response.read(_BLOCK)):
                n_bytes += len(block)
                rates.append(n_bytes / max(time.monotonic() - began, 1e-6))
