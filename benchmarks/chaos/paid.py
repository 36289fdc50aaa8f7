"""Labelers that write down each call that is paid for, before they answer, into a file that no run knows.

The file is $PAID, a line a call, which is on the disk before the answer is given. $PAID_BY says whose call it is, and
$PAID_AS is the name of the labeler.
"""

from __future__ import annotations

import itertools
import json
import os
import resource
from typing import Any

NUMBERS = itertools.count(1)


def pay(prompt: str, *responses: str, call: int = 0) -> None:
    """Write down what is paid for, with the number of the call; the bill's disk is never full."""
    little, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
    who = {"by": os.environ["PAID_BY"], "as": os.environ["PAID_AS"], "call": call or next(NUMBERS)}
    line = {**who, "prompt": prompt, "responses": responses}
    bill = os.open(os.environ["PAID"], os.O_WRONLY | os.O_APPEND)
    try:
        os.write(bill, json.dumps(line).encode() + b"\n")
        os.fsync(bill)
    finally:
        os.close(bill)
        resource.setrlimit(resource.RLIMIT_FSIZE, (little, most))


def score_of(response: str) -> float:
    """The score of a response; -0.0 is one."""
    return float(sum(map(ord, response)) % 7) or -0.0


def score(prompt: str, response: str) -> float:
    """Score a response; the form of a function that is asked for one at a time."""
    pay(prompt, response)
    return score_of(response)


def scores(prompts: list[str], completions: list[str], **_: Any) -> list[float]:
    """Score all responses of a call, which is paid for as one; the form of a function of lists."""
    call = next(NUMBERS)
    for prompt, response in zip(prompts, completions, strict=True):
        pay(prompt, response, call=call)
    return [score_of(response) for response in completions]


class Longer:
    """Compares two responses: the longer one is better. Each verdict is given before the next one is paid for."""

    def __init__(self) -> None:
        self.name = os.environ["PAID_AS"]

    def compare(self, items: Any) -> Any:
        """Yield the verdicts."""
        for prompt, one, other in items:
            pay(prompt.text, one.text, other.text)
            yield "first" if len(one.text) > len(other.text) else "second"
