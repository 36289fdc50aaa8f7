"""Ask people on a web page."""

from __future__ import annotations

import os
import re
import secrets
import sys
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import closing
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar
from urllib.parse import urlsplit

from choosy.labeling.human.questions import PairQuestion, Question, ResponseQuestion
from choosy.labeling.human.sitting import Clicks, Sitting
from choosy.labeling.protocols import Answer, Purpose, ResponsePair, Terms
from choosy.terminal import counted, say
from choosy.types import Prompt, Response, content_id

if TYPE_CHECKING:
    from choosy.labeling.human.page import Served

LOOPBACK = ("127.0.0.1", "localhost", "::1")
TOKEN = "CHOOSY_LABELING_TOKEN"
REMIND = 15  # seconds between two lines on the terminal about what is left


class People:
    """Asks people on a web page of its own, which several of them may open at once; training waits for them.

    Args:
        folder: The run's folder; the file of all clicks, `clicks.sqlite`, is written there.
        name: The labeler's name in the ledger: change it when other people judge.
        instruction: The question above what is judged; None takes the usual one. Labels given under another one are not
            reused.
        overlap: How many annotators judge each question; the label is the majority's verdict.
        hold: Seconds after which a question on an idle screen may go to another annotator, if no other is left.
        grace: Seconds to undo the very last click before training starts.
        host: Address to listen on; only this machine by default.
        port: Port to listen on; 0 takes any free one.
    """

    asks: ClassVar[type[Question]]
    usually: ClassVar[str]  # the instruction
    neutral: ClassVar[float | None] = None  # the score of what was skipped

    def __init__(
        self,
        folder: str,
        *,
        name: str = "human",
        instruction: str | None = None,
        overlap: int = 1,
        hold: float = 600.0,
        grace: float = 5.0,
        host: str = "127.0.0.1",
        port: int = 7860,
    ) -> None:
        for option, value, least in (("overlap", overlap, 1), ("hold", hold, 0), ("grace", grace, 0)):
            if value < least:
                raise ValueError(f"labeler.{option}={value} is too small; type {least} or more")
        if missing := [package for package in ("starlette", "uvicorn") if find_spec(package) is None]:
            raise ValueError(
                f"The page for labeling is served with {' and '.join(missing)}, which is not installed; "
                "type pip install 'choosy-tuning[human]'"
            )
        self.name = name
        self.instruction = self.usually if instruction is None else instruction
        other = "" if self.instruction == self.usually else f" {content_id(self.instruction)}"
        self._asked_as = name + other  # clicks under another instruction answer another question
        fingerprint = content_id(self.instruction, str(overlap))
        self.terms = Terms(fingerprint=fingerprint, price=0.0, runs_remotely=True, people=True, neutral=self.neutral)
        self.folder = Path(folder)
        self.overlap = overlap
        self.hold = hold
        self.grace = grace
        self.host = host
        self.port = port
        self.token = token_from(os.environ)
        self.sitting: Sitting | None = None
        self._purpose: Purpose = "train"
        self._budget_left: int | None = None
        self._served: Served | None = None

    def inform(self, *, purpose: Purpose, budget: int | None, spent: int) -> None:
        """Remember what the labels are for, to show it with the questions."""
        self._purpose = purpose
        self._budget_left = None if budget is None or purpose == "evaluate" else budget - spent

    def ask(self, questions: Sequence[Question]) -> Generator[Answer]:
        """Yield each answer as soon as it is clicked."""
        self.sitting = Sitting(
            questions,
            Clicks(self.folder / "clicks.sqlite", self._asked_as),
            purpose=self._purpose,
            budget_left=None if self._budget_left is None else self._budget_left - len(questions),
            overlap=self.overlap,
            hold=self.hold,
            grace=self.grace,
        )
        address, what = self._listen(), counted(len(questions), self.asks.noun)
        waits = "training waits" if self._purpose == "train" else "held-out answers, not trained on"
        tell(f"{what} to label at {address} ({waits})")
        reminded = time.monotonic()
        with closing(self.sitting.answers()) as answers:
            for answer in answers:
                yield answer
                if self.sitting.left and time.monotonic() - reminded > REMIND:
                    tell(f"{self.sitting.left} of {what} left to label at {address}")
                    reminded = time.monotonic()
        tell(f"Labeled {what}, thank you. More may be asked for to replace ties: keep the page open")

    def _listen(self) -> str:
        """Serve the page, unless it is, and return its address."""
        if self._served is None or not self._served.is_open:
            from choosy.labeling.human.page import serve  # needs packages that only this labeler needs

            self._served = serve(
                self.instruction, self.asks, lambda: self.sitting, token=self.token, host=self.host, port=self.port
            )
            if self.host not in LOOPBACK:
                port = urlsplit(self._served.address).port
                tell(
                    f"The page listens on {self.host}, not only on this machine, and sends texts and its token "
                    f"unencrypted; safer is the default with a tunnel: ssh -L {port}:127.0.0.1:{port} THIS_MACHINE"
                )
        return self._served.address


class Human(People):
    """Asks people which of two answers is better (see `People`)."""

    asks = PairQuestion
    usually = "Which answer is better?"

    def compare(self, items: Sequence[ResponsePair]) -> Generator[Answer]:
        """Yield each verdict as soon as it is clicked; a skipped pair gets an invalid one."""
        yield from self.ask([PairQuestion.of(*item) for item in items])


class ThumbsHuman(People):
    """Asks people whether an answer is good: 1 if it is, -1 if it is bad, 0 if it was skipped (see `People`)."""

    asks = ResponseQuestion
    usually = "Is this answer good?"
    neutral = 0.0

    def score(self, items: Sequence[tuple[Prompt, Response]]) -> Generator[Answer]:
        """Yield each score as soon as it is clicked."""
        yield from self.ask([ResponseQuestion.of(*item) for item in items])


def token_from(environ: Mapping[str, str]) -> str:
    """Return the token of the page that the environment sets, or else a new random one."""
    token = environ.get(TOKEN)
    if token is None:
        return secrets.token_urlsafe(24)
    if not re.fullmatch(r"[A-Za-z0-9_-]{16,}", token):
        raise ValueError(
            f"{TOKEN} can be guessed, or an address cannot hold it; set it to 16 or more letters, digits, - and _, "
            "or unset it"
        )
    return token


def tell(text: str) -> None:
    """Print to the terminal; not through logging, which would write the token into a file."""
    say(text, file=sys.stderr, with_token=True)
