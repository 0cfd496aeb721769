"""Calls a running ``prudent serve``: retries while it is busy or starting, and never turns an error into a reward."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import random
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from typing import Any

from prudent.data.messages import last_text
from prudent.errors import PrudentError

URL = "http://127.0.0.1:8010"


class RewardClient:
    """url, token: of the service; by default $PRUDENT_SERVE_URL (or the local one) and $PRUDENT_SERVE_TOKEN.

    timeout: seconds of one try. tries: how often a request is sent while the service can't be reached or is busy.
    """

    def __init__(
        self, url: str | None = None, token: str | None = None, *, timeout: float = 120.0, tries: int = 10
    ) -> None:
        self.url = (url or os.environ.get("PRUDENT_SERVE_URL") or URL).rstrip("/")
        self.token = os.environ.get("PRUDENT_SERVE_TOKEN", "") if token is None else token
        self.timeout, self.tries = timeout, tries

    def score(self, prompts: Sequence[Any], responses: Sequence[Any]) -> list[dict[str, Any]]:
        """One result a response (reward, rule, mean, variance, standard_deviation, members, ...), in order.

        prompts: texts, rendered texts or messages. Raises PrudentError for the first response without a reward.
        """
        pairs = [{"prompt": prompt, "response": last_text(response)} for prompt, response in zip(prompts, responses)]
        results = self._post({"conversations": pairs})["results"]
        for result in results:
            if "error" in result:
                raise PrudentError(f"response {result['index']} has no reward: {result['error']}")
        return results

    async def ascore(self, prompts: Sequence[Any], responses: Sequence[Any]) -> list[dict[str, Any]]:
        """``score`` off the event loop."""
        return await asyncio.to_thread(self.score, prompts, responses)

    def _post(self, body: dict[str, Any]) -> dict[str, Any]:
        headers = {"Content-Type": "application/json"}
        if self.token:
            headers["Authorization"] = f"Bearer {self.token}"
        request = urllib.request.Request(f"{self.url}/score", json.dumps(body).encode(), headers)
        reason = ""
        for attempt in range(self.tries):
            if attempt:
                time.sleep(min(0.2 * 2**attempt, 10) * (0.5 + random.random() / 2))
            try:
                with urllib.request.urlopen(request, timeout=self.timeout) as answer:
                    return json.load(answer)
            except urllib.error.HTTPError as error:
                reason = f"{error.code}: {error.read().decode(errors='replace')[:300]}"
                if error.code < 500:
                    break
            except (OSError, http.client.HTTPException) as error:  # also a connection that ends within an answer
                reason = str(error)
        raise PrudentError(f"no rewards from {self.url} ({reason})")
