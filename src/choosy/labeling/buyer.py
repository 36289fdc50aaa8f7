"""The buyer of a run's labels, within its budgets."""

from __future__ import annotations

import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Sequence, Set, Sized
from contextlib import closing
from dataclasses import replace
from numbers import Real
from typing import TYPE_CHECKING, Any, Literal

from choosy.labeling.asking import CHUNK, at_once, chunks
from choosy.labeling.dataset import Dataset
from choosy.labeling.ledger import Counts, Label, Ledger, Question
from choosy.labeling.nested import nested_run
from choosy.labeling.protocols import (
    Answer,
    BuysLabels,
    Compares,
    Informed,
    Labeler,
    NeedsPolicy,
    Postponed,
    Purpose,
    Recalls,
    Scores,
    TakenBack,
    that,
)
from choosy.redaction import scrub
from choosy.types import MIRRORED, Candidates, Prompt, Response, Verdict

if TYPE_CHECKING:
    from choosy.models.policy import Policy

log = logging.getLogger(__name__)

MAX_INVALID = 0.2  # the share of invalid verdicts that a machine may give, unless the run says otherwise
ENOUGH = 20  # verdicts, before their share of invalid ones says anything


class LabelBuyer:
    """The counter where a round buys its labels: within the budgets, and never the same label twice.

    Args:
        labeler: Who judges.
        ledger: The ledger's file.
        budget: The most labels the run may buy to train on; None sets no limit. Labels bought to evaluate, or
            by another run, do not count.
        budget_money: The most money that these labels may cost, in the labeler's currency; None sets no limit.
            Each answer is reckoned at the labeler's `price` or at the dearest that the run has bought, whichever is
            more. So it is never exceeded where no answer costs more than the price. A labeler without a price is
            asked for one prompt or pair first, then for as many answers at once as it has given before; what it
            costs above the budget is at most what the answers of the last purchase cost above the dearest before it.
        max_invalid: The largest share of invalid verdicts among those bought since the run was started or resumed;
            above it, once there are 20, the run stops with what was said. None sets no limit. `auto` is 0.2, and no
            limit where people answer, who may call a pair invalid as they like.
        evaluation: Who judges held-out answers: another labeler, the training `labeler`, or `nobody`. `auto` is the
            training labeler, and nobody where people answer, whose time it would take.

    Attributes:
        scores: Whether the labeler can score a response.
        compares: Whether the labeler itself can compare two; if not, `compare` compares two of its scores.
        evaluator: The buyer of labels of held-out answers, which may be this one; None if nobody judges them.
        interrupted: Set by another thread: a purchase under way ends with the answer that comes next.
    """

    def __init__(
        self,
        labeler: Labeler,
        *,
        ledger: str,
        budget: int | None = None,
        budget_money: float | None = None,
        max_invalid: float | Literal["auto"] | None = "auto",
        evaluation: Labeler | Literal["auto", "labeler", "nobody"] = "auto",
    ) -> None:
        if budget is not None and budget < (least := int(getattr(labeler, "judgements", 1))):
            raise ValueError(f"labels.budget={budget} buys nothing; type {least} or more, or null for no limit")
        if budget_money is not None and not 0 < budget_money < math.inf:
            raise ValueError(f"labels.budget_money={budget_money} buys nothing; type an amount, or null for no limit")
        if max_invalid not in ("auto", None) and not (isinstance(max_invalid, Real) and 0 <= max_invalid <= 1):
            raise ValueError(f"labels.max_invalid={max_invalid} is no share; choose 0 to 1, null for no limit, or auto")
        self.labeler = labeler
        self.budget = budget
        self.budget_money = budget_money
        self.max_invalid = max_invalid
        self.interrupted = False
        self._judged: Counter[str] = Counter()
        self._invalid: list[str] = []
        self.scores = isinstance(labeler, Scores)
        self.compares = isinstance(labeler, Compares)
        if not (self.scores or self.compares):
            raise ValueError(
                f"a labeler has a name, and a method score or compare; {type(labeler).__name__} has not: "
                f"choose one, such as {that('score')}"
            )
        self.ledger = Ledger(ledger)
        self._run = ""
        if evaluation == "auto":
            evaluation = "nobody" if self._people else "labeler"
        self.evaluator = self._evaluator(evaluation)

    @property
    def _people(self) -> bool:
        return bool(getattr(self.labeler, "people", False))

    def _evaluator(self, evaluation: Labeler | str) -> LabelBuyer | None:
        if evaluation in ("labeler", "nobody"):
            return self if evaluation == "labeler" else None
        if isinstance(evaluation, str):
            raise ValueError(
                f"labels.evaluation={evaluation} is none of auto, labeler, nobody; "
                f"another labeler is named as labeler@labels.evaluation={evaluation}"
            )
        return LabelBuyer(evaluation, ledger=self.ledger.path, max_invalid=self.max_invalid, evaluation="labeler")

    def open(self, run: str) -> None:
        """Buy for this run from now on; a run that is resumed under its name goes on counting."""
        self.ledger.create()
        self._run = run
        if isinstance(self.labeler, BuysLabels):
            self.labeler.use_buyers(self._buyer_of)
        if isinstance(self.labeler, Recalls):
            self.labeler.recall(self.ledger, run)
        if self.evaluator is not None and self.evaluator is not self:
            self.evaluator.open(run)

    def _buyer_of(self, name: str, labeler: Labeler, *, budget: int | None = None) -> LabelBuyer:
        """The buyer of a labeler that stands inside this buyer's."""
        buyer = LabelBuyer(labeler, ledger=self.ledger.path, budget=budget, max_invalid=self.max_invalid)
        buyer.open(nested_run(self._run, self.labeler.name, name))
        return buyer

    def use_policy(self, policy: Policy) -> None:
        """Hand the policy to the labelers that judge with it."""
        if isinstance(self.labeler, NeedsPolicy):
            self.labeler.use_policy(policy)
        if self.evaluator is not None and self.evaluator is not self:
            self.evaluator.use_policy(policy)

    @property
    def _counts(self) -> Counts:
        assert self._run, "the buyer is not open"
        return self.ledger.counts(self._run)

    @property
    def spent(self) -> int:
        """Labels that this run has bought to train on."""
        return self._counts.spent

    @property
    def evaluation(self) -> int:
        """Labels that this run has bought to evaluate."""
        return self._counts.evaluation

    @property
    def reused(self) -> int:
        """Labels that this run trains on and another run has bought."""
        return self._counts.reused

    @property
    def money(self) -> float:
        """What the labels cost that this run has bought to train on."""
        return self._counts.money

    @property
    def money_evaluation(self) -> float:
        """What the labels cost that this run has bought to evaluate."""
        return self._counts.money_evaluation

    @property
    def exhausted(self) -> bool:
        """Whether a budget has no label left."""
        return self._left() < 1

    @property
    def elsewhere(self) -> bool:
        """Whether the labeler may be asked while this process samples."""
        return bool(getattr(self.labeler, "elsewhere", False))

    def covers(self, answers: int) -> bool:
        """Whether the budgets surely pay so many answers, so that it does not matter which are bought first."""
        priceless = self.budget_money is not None and getattr(self.labeler, "price", None) is None
        return not priceless and answers <= self._left()

    @property
    def _judgements(self) -> int:
        return int(getattr(self.labeler, "judgements", 1))

    def _left(self) -> float:
        """How many answers the budgets still pay; infinite where there is no limit."""
        counts = self._counts
        left = math.inf if self.budget is None else max(0, self.budget - counts.spent) // self._judgements
        if self.budget_money is not None and (price := self._reckoned_price()) is not None:
            affordable = (self.budget_money - counts.money) / price
            left = min(left, max(0, math.floor(affordable + 1e-9)))  # 0.3 / 0.1 is 2.9999999999999996 to a float
        return left

    def _reckoned_price(self) -> float | None:
        """What an answer is reckoned at before it is bought; None before anything is known.

        Raises:
            ValueError: The labels cost nothing, so that a budget of money limits nothing.
        """
        price = getattr(self.labeler, "price", None)
        _, dearest = self.ledger.prices(self._run, self.labeler.name)
        known = [float(cost) for cost in (price, dearest) if cost is not None]
        if known and max(known) <= 0:
            raise ValueError(
                f"labels.budget_money={self.budget_money} limits nothing: the labels of {self.labeler.name} cost "
                "nothing. Type labels.budget_money=null, or tell what a label costs, where the labeler has a price"
            )
        return max(known, default=None)

    def score(self, candidates: Sequence[Candidates], *, purpose: Purpose = "train") -> list[Candidates]:
        """The candidates with their rewards, bought in the order given (most useful first).

        A prompt is bought whole or not at all; one that the rest of the budget cannot pay stays as it was.

        Raises:
            ValueError: The labeler cannot score, or failed on a response; labels bought before it are kept.
        """
        if not self.scores:
            raise ValueError(
                f"labeler {self.labeler.name} only compares, and here every response needs a score; "
                f"select pairs to compare, or choose a labeler that scores: {that('score')}"
            )
        question = self._asker()
        groups = [
            [question(f"response {i}", c.prompt, response) for i, response in enumerate(c.responses)]
            for c in candidates
        ]
        served = zip(candidates, self._serve(groups, purpose), strict=True)
        return [c if labels is None else _rewarded(c, labels) for c, labels in served]

    def compare(
        self, questions: Sequence[tuple[Prompt, Response, Response]], *, purpose: Purpose = "train"
    ) -> list[Verdict | None]:
        """The verdict on each question, bought in the order given, or None where the budget cannot pay it.

        A labeler that only scores is asked for both scores, which are two labels, and the higher one wins.

        Raises:
            ValueError: The labeler failed on a question; labels bought before it are kept.
        """
        question = self._asker()
        groups = [
            [question(f"question {i}", prompt, first, second)]
            if self.compares
            else [question(f"question {i}", prompt, response) for response in (first, second)]
            for i, (prompt, first, second) in enumerate(questions)
        ]
        served = zip(questions, self._serve(groups, purpose), strict=True)
        return [None if labels is None else _verdict(labels, first) for (_, first, _), labels in served]

    def _asker(self) -> Callable[..., Question]:
        """Makes questions to the labeler as it is now; a fingerprint of weights is too dear to take for each."""
        name, fingerprint = self.labeler.name, str(getattr(self.labeler, "fingerprint", ""))

        def question(place: str, prompt: Prompt, *responses: Response) -> Question:
            stamp = self.labeler.stamp(prompt, responses) if isinstance(self.labeler, Dataset) else ""
            return Question(name, place, prompt, responses, stamp, fingerprint)

        return question

    def _serve(self, groups: Sequence[Sequence[Question]], purpose: Purpose) -> list[list[Label] | None]:
        """All labels of each group of questions, or None where the rest of the budget cannot pay it."""
        assert self._run, "the buyer is not open"
        train = purpose == "train"
        pause = 0.05
        while True:  # several times, where only a label that is bought tells what the next one costs
            known = self.ledger.find(q.key for group in groups for q in group)
            owed = {key for key, label in known.items() if label.run == self._run and label.purpose == "evaluate"}
            free = known.keys() - owed if train else known.keys()
            limits = (self._left(), self._wave()) if train else (math.inf, math.inf)
            served = _affordable(groups, free, *limits)
            wanted: dict[str, Question] = {}
            for question in (q for group in served for q in group or ()):
                wanted.setdefault(question.key, question)  # of two that ask the same, the first is put to the labeler
            missing = [q for key, q in wanted.items() if key not in known]
            bought = self._buy(missing, purpose)
            if train:
                self.ledger.train_on(wanted, run=self._run)
            if wanted.keys() <= free:
                break
            if missing and not bought:
                pause = self._wait(pause, len(missing))
        labels = self.ledger.find(wanted)
        return [None if group is None else [labels[q.key] for q in group] for group in served]

    def _wait(self, pause: float, labels: int) -> float:
        """Give others, who are buying what is wanted here, some time; returns how long to wait next."""
        if 1 <= pause < 2:
            log.warning("Waiting for %d labels that another process is buying into %s.", labels, self.ledger.path)
        time.sleep(min(pause, 1.0))
        return 2 * pause

    def _wave(self) -> float:
        """How many answers may be bought before it is looked again what they cost."""
        if self.budget_money is None or getattr(self.labeler, "price", None) is not None:
            return math.inf
        return max(1, self.ledger.prices(self._run, self.labeler.name)[0])

    def _buy(self, questions: Sequence[Question], purpose: Purpose) -> int:
        """Buy what nobody else is buying; how many that were."""
        if not questions:
            return 0
        size, bought = at_once(self.labeler, self._method(questions[0]), len(questions)), 0
        try:
            for _, some in chunks(questions, max(size, CHUNK)):
                with self.ledger.buying([q.key for q in some]) as mine:
                    for _, chunk in chunks([q for q in some if q.key in mine], size):
                        self._ask(chunk, purpose)
                    bought += len(mine)
        except Postponed:
            self.ledger.want(questions, purpose=purpose, run=self._run, judgements=self._judgements)
            raise
        return bought

    def _method(self, question: Question) -> Any:
        if len(question.responses) == 1:
            assert isinstance(self.labeler, Scores)
            return self.labeler.score
        assert isinstance(self.labeler, Compares)
        return self.labeler.compare

    def _ask(self, questions: Sequence[Question], purpose: Purpose) -> None:
        """Put these to the labeler at once, and write each answer before the next one is asked for."""
        if isinstance(self.labeler, Informed):
            self.labeler.inform(purpose=purpose, budget=self.budget, spent=self.spent)
        left = dict(enumerate(questions))
        try:
            with closing(self._portions(questions)) as portions:
                for portion in portions:
                    if isinstance(portion[0], TakenBack):
                        self._take_back(portion[0], questions, left)
                    else:
                        self._keep(portion, left, purpose)
                    if self.interrupted and left:
                        raise Interrupted
        except _Failed as failed:
            error = failed.error
            at = getattr(error, "at", None)
            if failed.at_the_call and len(questions) > 1 and at is None:
                for question in questions:  # keeps what precedes the culprit, and names it
                    self._ask([question], purpose)
                return
            culprit = questions[at] if isinstance(at, int) and at in range(len(questions)) else left[min(left)]
            raise self._failure(culprit, f"{type(error).__name__}: {error}") from error
        if left:
            raise ValueError(
                f"labeler {self.labeler.name} gave {len(questions) - len(left)} labels for {len(questions)} questions; "
                f"its method must give one for each, and gave none for {left[min(left)]}"
            )

    def _portions(self, questions: Sequence[Question]) -> Generator[list[Answer]]:
        """The labeler's answers in portions as they are there: those of a list at once, what is yielded one by one."""
        told: Any = None
        called = False
        try:
            told = self._method(questions[0])([(q.prompt, *q.responses) for q in questions])
            called = True
            if not isinstance(told, Sized):
                for at, one in enumerate(told):
                    yield [_answer(at, one)]
        except Postponed:
            raise
        except Exception as error:  # a labeler is anybody's code and may raise anything
            raise _Failed(error, at_the_call=not called) from error
        finally:
            if hasattr(told, "close"):
                told.close()
        if isinstance(told, Sized):
            answers: list[Any] = list(told)  # type: ignore[call-overload]
            if len(answers) != len(questions):
                raise ValueError(
                    f"labeler {self.labeler.name} gave {len(answers)} labels for {len(questions)} questions; "
                    "its method must give one for each, in their order"
                )
            yield [_answer(at, one) for at, one in enumerate(answers)]

    def _keep(self, portion: Sequence[Answer], left: dict[int, Question], purpose: Purpose) -> None:
        """Write what the labeler has said, up to the first answer that is none."""
        kept: list[tuple[Question, Answer]] = []
        why = None
        for answer in portion:
            if why := self._misfit(answer, left):
                break
            if not answer.cost and answer.judgements is None:
                answer = answer._replace(cost=float(getattr(self.labeler, "price", None) or 0.0))
            kept.append((left.pop(answer.at), answer))
        self.ledger.write(kept, purpose=purpose, run=self._run, judgements=self._judgements)
        self._refuse_nonsense(kept)
        if why:
            question = left.get(answer.at)
            raise self._failure(question, why) if question else ValueError(f"labeler {self.labeler.name} {why}")

    def _refuse_nonsense(self, bought: Sequence[tuple[Question, Answer]]) -> None:
        """Stop where too many verdicts are invalid: each costs as much as one that teaches something."""
        self._judged.update(str(answer.value) for q, answer in bought if len(q.responses) == 2)
        said = [answer.raw or "nothing" for _, answer in bought if answer.value == "invalid"]
        self._invalid = [*self._invalid, *said][-3:]
        invalid, judged = self._judged["invalid"], self._judged.total()
        limit = (None if self._people else MAX_INVALID) if self.max_invalid == "auto" else self.max_invalid
        if limit is None or judged < ENOUGH or invalid <= limit * judged:
            return
        quoted = "\n  ".join(repr(scrub(said)[:200]) for said in self._invalid)
        raise ValueError(
            f"{invalid} of the {judged} verdicts of labeler {self.labeler.name} are invalid, and "
            f"labels.max_invalid={limit} allows a share of no more. It said, for instance:\n  {quoted}\n"
            "All labels are in the ledger. Mend the labeler, or type a larger labels.max_invalid, and resume the run"
        )

    def _take_back(self, answer: TakenBack, questions: Sequence[Question], left: dict[int, Question]) -> None:
        """Strike out what the labeler has said of an item and now takes back."""
        at, value = answer.at, answer.value
        assert at in range(len(questions)), "a labeler takes back an answer to an item that it was not asked"
        assert at not in left, "a labeler takes back an answer that it has not given"
        self.ledger.strike(questions[at].key, run=self._run)
        self._judged[str(value)] -= 1
        left[at] = questions[at]

    def _misfit(self, answer: Answer, left: dict[int, Question]) -> str | None:
        """Why an answer cannot be kept; None if it can."""
        if answer.at not in left:
            return f"gave an answer to item {answer.at!r}, which it was not asked or has answered before"
        value = answer.value
        if len(left[answer.at].responses) == 2:
            if not (isinstance(value, str) and value in MIRRORED):
                return f"wanted one of {', '.join(MIRRORED)}, found {value!r}"
        elif not (isinstance(value, Real) and math.isfinite(value)):
            return f"wanted a finite number, found {value!r}"
        if not (isinstance(answer.cost, Real) and 0 <= answer.cost < math.inf):
            return f"wanted a cost that is 0 or more, found {answer.cost!r}"
        return None

    def _failure(self, question: Question, why: str) -> ValueError:
        return ValueError(
            f"labeler {self.labeler.name} gave no label for {question}: {scrub(why)}. "
            "The labels bought before it are in the ledger; mend the labeler and resume the run"
        )


def _answer(at: int, told: float | Verdict | Answer) -> Answer:
    return told if isinstance(told, Answer) else Answer(at, told)


class Interrupted(Exception):
    """A purchase that another thread has ended; what was answered is in the ledger."""


class _Failed(Exception):
    """A labeler raised an error: at the call, or while it gave its answers."""

    def __init__(self, error: Exception, *, at_the_call: bool) -> None:
        self.error = error
        self.at_the_call = at_the_call


def _affordable(
    groups: Iterable[Sequence[Question]], free: Set[str], left: float, wave: float = math.inf
) -> list[Sequence[Question] | None]:
    """Each group, the first first, if what is left pays all of its labels that are not free; else None.

    Once a wave of labels is paid for, only groups that are free are served.
    """
    paid: set[str] = set()
    served = []
    for group in groups:
        new = {question.key for question in group} - free - paid
        fits = len(new) <= left - len(paid) and (not new or len(paid) < wave)
        served.append(group if fits else None)
        paid |= new if fits else set()
    return served


def _rewarded(candidates: Candidates, labels: Sequence[Label]) -> Candidates:
    answered = zip(candidates.responses, labels, strict=True)
    return replace(candidates, responses=tuple(replace(r, reward=label.score) for r, label in answered))


def _verdict(labels: Sequence[Label], first: Response) -> Verdict:
    """The bought comparison as seen by who asks for `first` first, or that of two scores."""
    if len(labels) == 1:
        verdict = labels[0].verdict
        assert verdict
        return verdict if labels[0].first == first.text else MIRRORED[verdict]
    one, two = (label.score for label in labels)
    assert one is not None
    assert two is not None
    return "tie" if one == two else "first" if one > two else "second"
