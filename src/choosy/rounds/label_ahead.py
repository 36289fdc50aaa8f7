"""Labels that are bought while their round is still being sampled, from a labeler that runs on another machine."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType

from choosy.labeling.buyer import Interrupted, LabelBuyer
from choosy.labeling.protocols import Labeler, ResponsePair, Terms
from choosy.types import Candidates, Prompt, Response, Verdict

POLL = 0.2  # seconds between two looks at what has been sampled
PATIENCE = 3.0  # seconds that a purchase may take to stop when the sampling has failed


class LabelAhead:
    """Buys labels in a thread while the round is sampled, and stands in the place of the buyer.

    The round's own purchase waits for the thread, and finds the labels in the ledger.

    Args:
        buyer: Where labels are bought.
        buy: Buys all labels of some candidates.

    Example:
        >>> from choosy.labeling.vader import Vader
        >>> with LabelAhead(LabelBuyer(Vader(), ledger="ledger.sqlite"), print) as labels:
        ...     labels.finish()  # it was not started
        0
    """

    def __init__(self, buyer: LabelBuyer, buy: Callable[[list[Candidates]], object]) -> None:
        self._buyer = buyer
        self._buy = buy
        self._thread: threading.Thread | None = None
        self._last = threading.Event()
        self._error: BaseException | None = None
        self._bought = 0

    @property
    def labeler(self) -> Labeler:
        return self._buyer.labeler

    @property
    def terms(self) -> Terms:
        return self._buyer.terms

    @property
    def scores(self) -> bool:
        return self._buyer.scores

    def score(self, candidates: Sequence[Candidates]) -> list[Candidates]:
        self.finish()
        return self._buyer.score(candidates)

    def compare(self, questions: Sequence[tuple[Prompt, Response, Response]]) -> list[Verdict | None]:
        self.finish()
        return self._buyer.compare(questions)

    @property
    def editor(self) -> LabelBuyer | None:
        return self._buyer.editor

    def edits(self, pairs: Sequence[ResponsePair]) -> list[str | None]:
        self.finish()
        return self._buyer.edits(pairs)

    def start(self, feed: Iterator[list[Candidates]], *, prompts: int, responses: int) -> None:
        """Start to buy, if the labeler runs remotely and the budgets certainly pay for the whole round.

        Args:
            feed: Yields, without end, the candidates that were sampled since the last time.
            prompts: Number of prompts that the round samples.
            responses: Number of responses to each of them.
        """
        answers = prompts * (responses if self._buyer.scores else 1)
        if not (self._buyer.terms.runs_remotely and self._buyer.covers(answers)):
            return
        self._thread = threading.Thread(target=self._run, args=(feed,), name="label ahead", daemon=True)
        self._thread.start()

    def _run(self, feed: Iterator[list[Candidates]]) -> None:
        try:
            while not self._last.is_set():
                if sampled := next(feed):
                    self._buy(sampled)
                    self._bought += len(sampled)
                else:
                    self._last.wait(POLL)
        except Interrupted:
            pass
        except BaseException as error:  # whatever it is, it is raised where the round is played
            self._error = error
        finally:
            self._buyer.interrupted = False

    def check(self) -> None:
        """Raise the error of a purchase; called during the sampling."""
        if self._error is not None:
            raise self._error

    def finish(self) -> int:
        """Wait for the purchase under way and start no other; returns how many prompts were labeled ahead."""
        self._last.set()
        if self._thread is not None:
            self._thread.join()
        self.check()
        return self._bought

    def __enter__(self) -> LabelAhead:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Stop a purchase after its next answer, where the round has failed."""
        self._last.set()
        if self._thread is not None and self._thread.is_alive():
            self._buyer.interrupted = True
            self._thread.join(PATIENCE)
            if not self._thread.is_alive():  # else it ends later, or with the process, as if it were killed
                self._buyer.interrupted = False
