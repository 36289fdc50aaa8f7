"""The buyer of a run's labels."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from numbers import Real
from typing import Any, Literal, Protocol, runtime_checkable

from choosy.labeling.asking import LabelerCall, chunks
from choosy.labeling.changed import report_change
from choosy.labeling.ledger import Counts, Label, Ledger, Question
from choosy.labeling.limits import MAX_INVALID, Budget, EvaluationPlan, InvalidVerdicts, affordable_groups
from choosy.labeling.outcomes import rewarded, verdict_of
from choosy.labeling.protocols import (
    ALL,
    LIST_AT_ONCE,
    Answer,
    ChecksPrompts,
    Compares,
    Estimates,
    Informed,
    Labeler,
    Measures,
    NeedsPolicy,
    Postponed,
    Purpose,
    ReadsColumns,
    ResponsePair,
    Stamps,
    TakenBack,
    fingerprint_of,
    is_name,
    labelers_able_to,
    terms_of,
)
from choosy.labeling.statistics import as_money
from choosy.models.policy import Policy
from choosy.terminal import logger
from choosy.types import Candidates, Prompt, Response, Verdict

log = logger(__name__)

PlacedQuestion = tuple[str, Prompt, tuple[Response, ...]]  # its place, for error messages, and what it is about


class Interrupted(Exception):
    """Another thread has ended the purchase; what was answered is in the ledger."""


class LabelBuyer:
    """Buys a run's labels through the ledger, within its budgets, and never the same label twice.

    Args:
        labeler: Who judges.
        ledger: The ledger's file.
        budget: The most labels that the run may buy to train on; None = no limit. Labels that evaluate, and labels
            that another run has bought, do not count.
        budget_money: The most money that labels may cost, those that evaluate included, in the labeler's currency;
            None = no limit. What the planned evaluation is expected to cost is kept for it. A labeler without a price
            is asked one prompt or pair first, then at most as many questions at once as it has answered before; what
            the last of them cost above the most expensive one before it may exceed the budget.
        max_invalid: The largest share of invalid verdicts among those bought since the run was started or resumed;
            above it, once there are 20, the run stops. None = no limit. `auto` = 0.2, and no limit if people answer.
        missing_eos_penalty: Subtracted from the reward to train on of a response that was cut at the length limit; the
            ledger keeps the labeler's own score. None = no penalty.
        evaluation: Who judges held-out answers: another labeler, the training `labeler`, or `none`. `auto` = the
            training labeler, and none if people answer.
        editor: Edits rejected responses towards chosen ones (see `edits`); None = they stay as they are.
    """

    payer: LabelBuyer | None = None  # of an editor: the buyer whose money it spends

    def __init__(
        self,
        labeler: Labeler,
        *,
        ledger: str,
        budget: int | None = None,
        budget_money: float | None = None,
        max_invalid: float | Literal["auto"] | None = "auto",
        missing_eos_penalty: float | None = None,
        evaluation: Labeler | Literal["auto", "labeler", "none"] = "auto",
        editor: Compares | None = None,
    ) -> None:
        self.terms = terms_of(labeler)
        if not ((self.terms.scores or self.terms.compares) and is_name(labeler.name)):
            raise ValueError(
                f"a labeler has a text as its name, and a method score or compare; {type(labeler).__name__} has not: "
                f"choose one, such as {labelers_able_to('score')}"
            )
        if max_invalid not in ("auto", None) and not (isinstance(max_invalid, Real) and 0 <= max_invalid <= 1):
            raise ValueError(f"labels.max_invalid={max_invalid} is no share; choose 0 to 1, null for no limit, or auto")
        if missing_eos_penalty is not None and not (missing_eos_penalty > 0 and self.terms.scores):
            raise ValueError(
                f"labels.missing_eos_penalty={missing_eos_penalty} is subtracted from rewards: it must be positive, "
                f"and labeler {labeler.name} must give rewards; choose null for none"
            )
        self.missing_eos_penalty = missing_eos_penalty
        self.labeler = labeler
        self.ledger = Ledger(ledger)
        self.scores = bool(self.terms.scores)  # whether the labeler gives a response a reward
        self.budget = budget
        self.budget_money = budget_money
        self.limits = Budget(budget, budget_money, labeler.name, self.terms)
        self.max_invalid = max_invalid
        self.interrupted = False  # another thread sets it to end a purchase after the next answer
        limits: dict[str, Any] = {"budget_money": budget_money, "max_invalid": max_invalid}
        self.editor = None if editor is None else LabelBuyer(editor, ledger=ledger, evaluation="none", **limits)
        if self.editor is not None:
            self.editor.payer = self
        self.evaluator = self._evaluator(evaluation)  # buys the labels of held-out answers; None = they are not judged
        most = (None if self.terms.people else MAX_INVALID) if max_invalid == "auto" else max_invalid
        self._verdicts = InvalidVerdicts(labeler.name, most, neutral=self.terms.neutral)
        self.run = ""
        self._plan: EvaluationPlan | None = None

    def _evaluator(self, evaluation: Labeler | str) -> LabelBuyer | None:
        if evaluation == "auto":
            return None if self.terms.people else self
        if evaluation in ("labeler", "none"):
            return self if evaluation == "labeler" else None
        if isinstance(evaluation, str):
            raise ValueError(
                f"labels.evaluation={evaluation} is none of auto, labeler, none; "
                f"another labeler is named as labeler@labels.evaluation={evaluation}"
            )
        limits: dict[str, Any] = {"budget_money": self.budget_money, "max_invalid": self.max_invalid}
        return LabelBuyer(evaluation, ledger=self.ledger.path, evaluation="labeler", **limits)

    def check_heldout(self, heldout: str | None) -> None:
        """Refuse held-out prompts, which are answered by sampling, if the evaluator judges given responses only."""
        if heldout is not None and self.evaluator is not None and self.evaluator.terms.given_only:
            pairs = "FILE" if heldout == "auto" else heldout
            raise ValueError(
                f"data.heldout={heldout} is answered by sampled responses, for which labeler "
                f"{self.evaluator.labeler.name} has no scores. Labeled pairs, such as chosen and rejected, go by "
                f"data.heldout_pairs={pairs}; for other rows type labeler@labels.evaluation=vader, or any that "
                "judges sampled responses, or labels.evaluation=none, which measures KL and length alone"
            )

    def check_budget(self) -> None:
        """Refuse a budget of money if it is known that no label costs anything."""
        buyers = (self, self.evaluator or self, self.editor or self)
        if self.budget_money is not None and all(one.terms.price == 0 for one in buyers):
            raise ValueError(self.limits.limits_nothing())

    def reads(self, column: str) -> bool:
        """Whether the labeler reads this column of the data."""
        return isinstance(self.labeler, ReadsColumns) and self.labeler.reads(column)

    def check_prompts(self, prompts: Sequence[Prompt]) -> None:
        """Refuse prompts that the labeler could not judge answers to."""
        if isinstance(self.labeler, ChecksPrompts):
            self.labeler.check_prompts(prompts)

    def open(self, run: str) -> None:
        """Buy for this run from now on; a run that is resumed continues its counts."""
        self.ledger.create()
        self.run = run
        report_change(self.ledger, self.labeler)
        if isinstance(self.labeler, BuysLabels):
            self.labeler.use_buyer(self)
        if self.editor is not None:
            self.editor.open(run)
        if self.evaluator is not None and self.evaluator is not self:
            self.evaluator.open(run)

    def nested(self, name: str, labeler: Labeler, budget: int | None = None) -> LabelBuyer:
        """A buyer of a labeler that stands inside this buyer's; its labels belong to the run `RUN#LABELER#NAME`."""
        buyer = LabelBuyer(labeler, ledger=self.ledger.path, budget=budget, max_invalid=self.max_invalid)
        buyer.open(f"{self.run}#{self.labeler.name}#{name}")
        return buyer

    def use_policy(self, policy: Policy) -> None:
        """Pass the policy to the labelers that judge with it."""
        if isinstance(self.labeler, NeedsPolicy):
            self.labeler.use_policy(policy)
        if self.evaluator is not None and self.evaluator is not self:
            self.evaluator.use_policy(policy)

    # -- what was bought -----------------------------------------------------------------------------------------

    @property
    def counts(self) -> Counts:
        """What the run has bought and reused so far, also before an interruption."""
        assert self.run, "the buyer is not open"
        return self.ledger.counts(self.run)

    @property
    def spent(self) -> int:
        """Labels that the run has bought to train on."""
        return self.counts.spent

    @property
    def knowledge(self) -> dict[str, float]:
        """What the labeler has measured about itself; empty if it measures nothing."""
        return self.labeler.knowledge if isinstance(self.labeler, Measures) else {}

    def pays(self, answers: int) -> bool:
        """Whether the budgets still pay so many answers that are bought together."""
        return answers <= self._affordable()[0]

    def covers(self, answers: int) -> bool:
        """Whether the budgets certainly pay so many answers, so that it does not matter which are bought first."""
        return not self.limits.price_unknown and answers <= self._affordable()[0]

    def _affordable(self, purpose: Purpose = "train") -> tuple[float, float]:
        """How many answers the budgets still pay, and how many to buy before their cost is looked at again."""
        answers, paid, highest = self.ledger.prices(self.run, self.labeler.name)
        left = replace(self.limits, labels=None).answers_left(self.counts, highest, free=True)
        if purpose == "train":  # what the others of the run give costs something, even if this does not
            others = self.payer is not None or self.editor is not None or self.evaluator not in (None, self)
            free = others or self.limits.may_be_free(answers, inner=isinstance(self.labeler, BuysLabels))
            left = self.limits.answers_left(self.counts, highest, kept=self._kept(), free=free)
        return left, max(1, paid) if self.limits.price_unknown else math.inf

    def plan_evaluation(self, prompts: Sequence[Prompt], times: int, *, response_tokens: int) -> str | None:
        """Keep the money for judging answers to held-out prompts so many times, and say what it will be.

        Args:
            prompts: The held-out prompts.
            times: How often the run judges an answer to each of them.
            response_tokens: The most tokens of an answer.

        Returns:
            A sentence; None if the judgements cost nothing.

        Raises:
            ValueError: They cost more than the budget of money.
        """
        judge = self.evaluator
        if judge is None or not prompts:
            return None
        *_, estimate = self.ledger.prices(self.run, judge.labeler.name)
        if estimate is None and isinstance(judge.labeler, Estimates):
            estimate = sum(judge.labeler.estimate(p, response_tokens) for p in prompts) / len(prompts)
        self._plan = EvaluationPlan(judge.labeler.name, len(prompts) * times, judge.terms.price, estimate)
        return self._plan.announced(self.budget_money)

    def _kept(self) -> float:
        """Money that the rest of the planned evaluation is expected to cost."""
        of_run = self.payer or self
        judge, plan = of_run.evaluator, of_run._plan
        if judge is None or plan is None:
            return 0.0
        *_, highest = self.ledger.prices(self.run, judge.labeler.name)
        return plan.kept(self.counts.evaluation // judge.terms.labels_per_answer, highest)

    # -- purchases -----------------------------------------------------------------------------------------------

    def score(self, candidates: Sequence[Candidates], *, purpose: Purpose = "train") -> list[Candidates]:
        """Buy the rewards of candidates, in the order given (most useful first).

        The responses of a prompt are bought together or not at all.

        Returns:
            The candidates with their rewards; unchanged if the rest of the budget cannot pay them. Rewards to train on
            are reduced by `missing_eos_penalty`.
        """
        if not self.scores:
            raise ValueError(
                f"labeler {self.labeler.name} only compares, and here every response needs a score; "
                f"select pairs to compare, or choose a labeler that scores: {labelers_able_to('score')}"
            )
        groups = [[(f"response {i}", c.prompt, (one,)) for i, one in enumerate(c.responses)] for c in candidates]
        served = zip(candidates, self._serve(groups, purpose), strict=True)
        cut = (self.missing_eos_penalty or 0.0) if purpose == "train" else 0.0, self.terms.neutral
        return [c if labels is None else rewarded(c, labels, self.labeler, *cut) for c, labels in served]

    def compare(self, questions: Sequence[ResponsePair], *, purpose: Purpose = "train") -> list[Verdict | None]:
        """Buy a verdict on each pair, in the order given (most useful first).

        A labeler that only scores is asked for both scores, which are two labels, and the higher one wins.

        Returns:
            The verdicts; None where the rest of the budget cannot pay one.
        """
        groups: list[list[PlacedQuestion]] = []
        for i, (prompt, *both) in enumerate(questions):
            asked = [tuple(both)] if self.terms.compares else [(response,) for response in both]
            groups.append([(f"question {i}", prompt, responses) for responses in asked])
        served = zip(questions, self._serve(groups, purpose), strict=True)
        silent = self.terms.neutral
        return [None if labels is None else verdict_of(labels, first, silent) for (_, first, _), labels in served]

    def edits(self, pairs: Sequence[ResponsePair]) -> list[str | None]:
        """Buy edits of each pair's rejected response towards its chosen one, which comes first.

        Returns:
            The edited texts; None where the editor gave none, or the rest of the money cannot pay one.
        """
        assert self.editor is not None, "there is no editor"
        asked = [[(f"edit {i}", prompt, (chosen, rejected))] for i, (prompt, chosen, rejected) in enumerate(pairs)]
        served = self.editor._serve(asked, "train")
        return [labels[0].raw if labels and labels[0].verdict == "first" else None for labels in served]

    def _serve(self, asked: Sequence[Sequence[PlacedQuestion]], purpose: Purpose) -> list[list[Label] | None]:
        """All labels of each group of questions, or None where the rest of the budget cannot pay them."""
        assert self.run, "the buyer is not open"
        fingerprint = fingerprint_of(self.labeler, self.terms)  # once, since it may depend on all weights of a model
        groups = [[self._question(*one, fingerprint) for one in group] for group in asked]
        train = purpose == "train"
        pause = 0.05
        while True:  # more than once if only an answer that is bought shows what the next one may cost
            with self.ledger.turn(self.run):
                known = self.ledger.find(q.key for group in groups for q in group)
                owed = {key for key, label in known.items() if label.run == self.run and label.purpose == "evaluate"}
                free = known.keys() - owed if train else known.keys()
                one = self.terms.given_only and not isinstance(self.labeler, BuysLabels)
                served = affordable_groups(groups, free, *self._affordable(purpose), pair_is_one=one)
                wanted: dict[str, Question] = {}
                for question in (q for group in served for q in group or ()):
                    wanted.setdefault(question.key, question)  # of two equal questions, the first is asked
                missing = [q for key, q in wanted.items() if key not in known]
                bought = self._buy(missing, purpose)
                if train:
                    self.ledger.train_on(wanted, run=self.run)
            if wanted.keys() <= free:
                break
            if missing and not bought:
                pause = self._wait(pause, len(missing))
        if None in served:
            limits = str(self.limits) if train else f"labels.budget_money={self.budget_money}"
            kept = f" ({as_money(self._kept())} of the money is kept for evaluation)" if train and self._kept() else ""
            log.warning(
                f"{limits} is spent{kept}: {served.count(None)} of {len(served)} judgements were not bought. "
                f"{'Training continues' if train else 'Held-out answers are measured'} with the labels bought so far.",
            )
        labels = self.ledger.find(wanted)
        return [None if group is None else [labels[q.key] for q in group] for group in served]

    def _question(self, place: str, prompt: Prompt, responses: tuple[Response, ...], fingerprint: str) -> Question:
        stamp = self.labeler.stamp(prompt, responses) if isinstance(self.labeler, Stamps) else ""
        return Question(self.labeler.name, place, prompt, responses, stamp, fingerprint)

    def _wait(self, pause: float, labels: int) -> float:
        """Wait for labels that other processes are buying, and return how long to wait next."""
        if 1 <= pause < 2:
            log.warning("Waiting for %d labels that another process is buying into %s.", labels, self.ledger.path)
        time.sleep(min(pause, 1.0))
        return 2 * pause

    def _buy(self, questions: Sequence[Question], purpose: Purpose) -> int:
        """Buy the labels that no other process is buying, and return how many these are."""
        size = self.terms.at_once or ALL
        bought = 0
        try:
            for some in chunks(questions, max(size, LIST_AT_ONCE)):
                with self.ledger.buying([q.key for q in some]) as mine:
                    for chunk in chunks([q for q in some if q.key in mine], size):
                        self._ask(chunk, purpose)
                    bought += len(mine)
        except Postponed:
            if not isinstance(self.labeler, BuysLabels):  # else the labeler inside it has said what it wants
                self.ledger.want(questions, purpose=purpose, run=self.run, judgements=self.terms.labels_per_answer)
            raise
        return bought

    def _ask(self, questions: Sequence[Question], purpose: Purpose) -> None:
        """Ask the labeler these questions, and write each answer before the next one is requested."""
        if isinstance(self.labeler, Informed):
            self.labeler.inform(purpose=purpose, budget=self.budget, spent=self.spent)
        call = LabelerCall(self.labeler, questions)
        with closing(call.answers()) as answers:
            for portion in answers:
                self._record(call, portion, purpose)
                if self.interrupted and call.left:
                    raise Interrupted

    def _record(self, call: LabelerCall, portion: Sequence[Answer], purpose: Purpose) -> None:
        """Write answers to the ledger, up to the first that cannot be used."""
        if isinstance(portion[0], TakenBack):
            self.ledger.delete(call.take_back(portion[0]).key, run=self.run)
            self._verdicts.remove(portion[0])
            return
        accepted: list[tuple[Question, Answer]] = []
        try:
            for answer in portion:
                question = call.accept(answer)
                if answer.judgements is None:
                    cost = answer.cost or float(self.terms.price or 0.0)
                    answer = answer._replace(cost=cost, judgements=self.terms.labels_per_answer * question.answers)
                accepted.append((question, answer))
        finally:
            self.ledger.write(accepted, purpose=purpose, run=self.run)
        self._verdicts.add(accepted)


@runtime_checkable
class BuysLabels(Protocol):
    """A labeler that makes its answers of what it buys from other labelers, or that learns from earlier labels."""

    def use_buyer(self, buyer: LabelBuyer) -> None:
        """Judge for this buyer's run from now on, before the first question.

        `buyer.nested` makes buyers of other labelers, and `buyer.ledger.labels_of` reads earlier labels."""
