"""Labels that are bought while their round is still being sampled, of a labeler that judges elsewhere."""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import TracebackType

from choosy.labeling.buyer import Interrupted, LabelBuyer
from choosy.types import Candidates

LOOK = 0.2  # seconds between two looks at what has been kept
PATIENCE = 3.0  # seconds that a purchase may take to stop when the sampling has failed


class Ahead:
    """Buys in a thread of its own the labels of what is kept of a round, for as long as the round is sampled.

    The labels lie in the ledger, where the round finds them when it asks for all of its labels.

    Args:
        labels: Where they are bought.
        buy: Buys all labels of these candidates.

    Example:
        >>> from choosy.labeling.vader import Vader
        >>> with Ahead(LabelBuyer(Vader(), path="ledger.sqlite"), print) as ahead:
        ...     ahead.finish()  # it was not started
        0
    """

    def __init__(self, labels: LabelBuyer, buy: Callable[[list[Candidates]], object]) -> None:
        self._labels = labels
        self._buy = buy
        self._thread: threading.Thread | None = None
        self._last = threading.Event()
        self._error: BaseException | None = None
        self._bought = 0

    def start(self, news: Callable[[], list[Candidates]], *, prompts: int, responses: int) -> None:
        """Buy from now on, if the labeler need not wait and the budgets surely pay the whole round.

        Args:
            news: Gives the candidates that were kept since it was last called.
            prompts: How many the round samples.
            responses: How many responses each of them gets.
        """
        answers = prompts * (responses if self._labels.scores else 1)
        if not (self._labels.elsewhere and self._labels.covers(answers)):
            return
        self._thread = threading.Thread(target=self._run, args=(news,), name="ahead", daemon=True)
        self._thread.start()

    def _run(self, news: Callable[[], list[Candidates]]) -> None:
        try:
            while not self._last.is_set():
                if kept := news():
                    self._buy(kept)
                    self._bought += len(kept)
                else:
                    self._last.wait(LOOK)
        except Interrupted:
            pass
        except BaseException as error:  # whatever it is, it is raised where the round is played
            self._error = error
        finally:
            self._labels.interrupted = False

    def check(self) -> None:
        """Raise what a purchase has raised; called while the sampling goes on."""
        if self._error is not None:
            raise self._error

    def finish(self) -> int:
        """Let the purchase that is under way end, and begin no other; how many prompts were served ahead."""
        self._last.set()
        if self._thread is not None:
            self._thread.join()
        self.check()
        return self._bought

    def __enter__(self) -> Ahead:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Where the round has failed, stop after the answer that comes next."""
        self._last.set()
        if self._thread is not None and self._thread.is_alive():
            self._labels.interrupted = True
            self._thread.join(PATIENCE)
            if not self._thread.is_alive():  # else it ends later, or with the process, as if it were killed
                self._labels.interrupted = False
