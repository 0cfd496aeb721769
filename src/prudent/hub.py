"""The model hub, asked once whether it answers: its clients repeat a failing call for 40 seconds."""

from __future__ import annotations

import contextlib
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

SECONDS = 5.0  # to answer in
KEPT = 60.0  # seconds for which an answer is believed
GATEWAY = (407, 502, 503, 504)  # what a proxy says of a hub that it can't reach, or doesn't let through
_answers: dict[str, tuple[float, bool]] = {}  # endpoint -> when it was asked, whether it answered


def hub_reachable(seconds: float = SECONDS) -> bool:
    """Whether the model hub answers at all, by way of a proxy where one is set; False in offline mode."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    asked, found = _answers.get(constants.ENDPOINT, (-KEPT, False))
    if time.monotonic() - asked > KEPT:
        found = _asked(constants.ENDPOINT, seconds)
        _answers[constants.ENDPOINT] = (time.monotonic(), found)
    return found


def _asked(endpoint: str, seconds: float) -> bool:
    try:
        urllib.request.urlopen(urllib.request.Request(endpoint, method="HEAD"), timeout=seconds).close()
    except urllib.error.HTTPError as error:
        return error.code not in GATEWAY
    except (OSError, ValueError):  # ValueError: an endpoint that is no address
        return False
    return True


@contextlib.contextmanager
def hub_or_offline(*names: str | Path) -> Iterator[None]:
    """Inside, the hub's clients are in offline mode where the hub doesn't answer: what was downloaded is used, and the
    rest fails at once. The hub isn't asked where all of ``names`` are here."""
    from huggingface_hub import constants

    if all(Path(name).exists() for name in names) or hub_reachable():
        yield
        return
    # datasets copied the constant when it was imported; before that there is nothing to switch
    holders = [constants, *(config for config in [sys.modules.get("datasets.config")] if config is not None)]
    before = [holder.HF_HUB_OFFLINE for holder in holders]
    try:
        for holder in holders:
            holder.HF_HUB_OFFLINE = True  # type: ignore[attr-defined]
        yield
    finally:
        for holder, value in zip(holders, before):
            holder.HF_HUB_OFFLINE = value  # type: ignore[attr-defined]


def hub_words() -> str:
    """How a message names the hub: with why it wasn't asked, where it wasn't."""
    from huggingface_hub import constants

    _, answered = _answers.get(constants.ENDPOINT, (0.0, True))
    if not answered:  # offline mode may be that of ``hub_or_offline``
        return "the model hub (it can't be reached from here)"
    return "the model hub (not asked: offline mode is on)" if constants.HF_HUB_OFFLINE else "the model hub"
