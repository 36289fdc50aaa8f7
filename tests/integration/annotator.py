"""Somebody who judges on the labeling page of a run under test."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import cycle

import httpx2

TOKEN = "a-token-of-the-test"  # CHOOSY_LABELING_TOKEN


@contextmanager
def annotator(port: int, actions: str = "left") -> Iterator[None]:
    """Somebody who clicks these in turn, as long as there is a page; `left` finds the left answer better."""
    over, turns = threading.Event(), cycle(actions.split())

    def label() -> None:
        with httpx2.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False) as browser:
            while not over.wait(0.05):
                try:
                    question = browser.get("/screen", params={"annotator": "Ada", "token": TOKEN}).json()["question"]
                    if question:
                        named = {"annotator": "Ada", "question": question, "action": next(turns)}
                        browser.post("/act", params={"token": TOKEN}, json=named)
                except httpx2.TransportError:
                    continue

    thread = threading.Thread(target=label)
    thread.start()
    yield
    over.set()
    thread.join()
