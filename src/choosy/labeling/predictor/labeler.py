"""Answer for a paid labeler with a model of its preferences."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from scipy.stats import binomtest

from choosy.labeling.buyer import LabelBuyer
from choosy.labeling.ledger import Label
from choosy.labeling.nested import OuterLabeler, audit_draw
from choosy.labeling.predictor.preference_model import Choice, Preference, PreferenceModel
from choosy.labeling.protocols import Answer, Labeler, ResponsePair
from choosy.terminal import logger
from choosy.types import Verdict, content_id, seed_of

log = logger(__name__)

HELD_OUT = 3  # the preferences of every third prompt calibrate the model and are not trained on
GROWTH = 1.5  # the model is trained again each time the number of preferences has grown by this factor
ANNOTATOR = "predictor"  # of the model's own answers


@dataclass
class Savings:
    """Counts of a run's pairs."""

    answered: int = 0  # by the model
    paid: int = 0  # bought because the model was not sure
    audited: int = 0  # bought although the model was sure
    disagreed: int = 0  # audited pairs on which the paid verdict was another

    def __str__(self) -> str:
        return (
            f"{self.answered} labels saved, {self.paid + self.audited} bought; "
            f"the audit disagreed with {self.disagreed} of {self.audited}"
        )


class Predictor(OuterLabeler):
    """Answers for another labeler where a model of its preferences is sure enough (LoRA-LiteE, arXiv 2411.09947).

    The model is trained on every preference of the paid labeler in the ledger: those of earlier runs, then this run's.
    It is trained first on `min_labels`, and again each time there are half as many more. The preferences of a third
    of the prompts are held out to find the confidence from which at most `max_error` of its answers are wrong; if there
    is no such confidence, every pair is bought. The paid labeler's ties are learned and answered too.

    The model's answers take no label of the budget. A share of them is bought as well: there the paid verdict counts,
    and the log says how often the two disagree. A label's `annotator` and `raw` say who answered and why.

    Args:
        paid: The labeler whose preferences are learned; its labels count against `labels.budget`.
        model: The model to train; None takes a MiniLM encoder.
        max_error: Share of the model's answers that may be wrong, with 90 % confidence.
        audit: Share of the model's answers that are bought as well; a hash of the pair decides which.
        min_labels: Preferences before the first training.
    """

    def __init__(
        self,
        paid: Labeler,
        *,
        model: PreferenceModel | None = None,
        max_error: float = 0.1,
        audit: float = 0.1,
        min_labels: int = 120,
    ) -> None:
        for name, share in (("max_error", max_error), ("audit", audit)):
            if not 0 < share < 1:
                raise ValueError(f"labeler.{name}={share} is no share; type a number between 0 and 1")
        if min_labels < HELD_OUT:
            raise ValueError(f"labeler.min_labels={min_labels} is too small; type {HELD_OUT} or more")
        self.paid = paid
        self.model = model or PreferenceModel()
        self.max_error = max_error
        self.audit = audit
        self.min_labels = min_labels
        fingerprint = content_id(*self.model.fingerprint, str(max_error), str(audit), str(min_labels))
        super().__init__(f"predictor:{paid.name}", {"paid": paid}, fingerprint=fingerprint)

    def use_buyer(self, buyer: LabelBuyer) -> None:
        super().use_buyer(buyer)
        self.savings = Savings()
        self._preferences: dict[Preference, None] = {}  # in the order in which they came, each once
        self._trained_on = 0
        self._threshold = math.inf  # the confidence from which the model is sure
        self.knowledge: dict[str, float] = {}
        of_paid = buyer.ledger.labels_of(self.paid.name, fingerprint=self._fingerprint("paid"))
        self._add(earlier_preferences(of_paid, self.buyers["paid"].run, self._inner_terms["paid"].neutral))
        for label in self.earlier_answers():
            assert label.second is not None
            assert label.verdict
            self._count(label.raw, label.annotator)
            if label.annotator != ANNOTATOR:
                self._add(preferences_in(label.prompt, label.first, label.second, label.verdict))

    def compare(self, items: Sequence[ResponsePair]) -> Iterator[Answer]:
        """Yield a verdict on each item, in order; pairs are bought together up to the next training."""
        todo = list(enumerate(items))
        while todo:
            self._train_if_due()
            texts = [(prompt.text, first.text, second.text) for _, (prompt, first, second) in todo]
            guesses = [None] * len(todo) if math.isinf(self._threshold) else self.model.choices(texts)
            drawn = [audit_draw("predictor", item) < self.audit for _, item in todo]
            paid = [n for n, guess in enumerate(guesses) if drawn[n] or not self._is_sure(guess)]
            _, due = training_sizes(self._trained_on, first=self.min_labels)
            room = max(due - len(self._preferences), 1)
            stretch = paid[room - 1] + 1 if len(paid) >= room else len(todo)
            yield from self._answers(todo[:stretch], guesses, [n for n in paid if n < stretch])
            todo = todo[stretch:]
        log.info("%s: %s", self.name, self.savings)

    def _is_sure(self, guess: Choice | None) -> bool:
        return guess is not None and guess.confidence >= self._threshold

    def _answers(
        self, asked: Sequence[tuple[int, ResponsePair]], guesses: Sequence[Choice | None], paid: Sequence[int]
    ) -> Iterator[Answer]:
        bought = dict(zip(paid, self.buyers["paid"].compare([asked[n][1] for n in paid]), strict=True))
        charges = iter(self.charges(len(paid)) if paid else [])
        for n, (at, item) in enumerate(asked):
            guess, verdict = guesses[n], bought.get(n)
            details: dict[str, Any] = {"trained_on": self._trained_on, "sure": self._is_sure(guess)}
            if guess is not None:
                details |= {"verdict": guess.verdict, "confidence": guess.confidence}
            if verdict is None:
                answer = Answer(at, details["verdict"], json.dumps(details), 0.0, ANNOTATOR, 0)
            else:
                labels, money = next(charges)
                answer = Answer(at, verdict, json.dumps({**details, "paid": verdict}), money, self.paid.name, labels)
                self._add(preferences_in(item[0].text, item[1].text, item[2].text, verdict))
            self._count(answer.raw, answer.annotator)
            yield answer

    def _count(self, raw: str, annotator: str) -> None:
        details = json.loads(raw)
        if annotator == ANNOTATOR:
            self.savings.answered += 1
        elif not details["sure"]:
            self.savings.paid += 1
        else:
            self.savings.audited += 1
            self.savings.disagreed += details["paid"] not in (details["verdict"], "invalid")

    def _add(self, preferences: Sequence[Preference]) -> None:
        self._preferences.update(dict.fromkeys(preferences))

    def _train_if_due(self) -> None:
        """Train on as many preferences as the last due training used, so that a resumed run trains the same model."""
        size, _ = training_sizes(len(self._preferences), first=self.min_labels)
        if size <= self._trained_on:
            return
        preferences = list(self._preferences)[:size]
        self.model.fit([p for p in preferences if seed_of("held out", p.prompt) % HELD_OUT])
        held = [p for p in preferences if seed_of("held out", p.prompt) % HELD_OUT == 0]
        guesses = self.model.choices([(p.prompt, p.better, p.worse) for p in held])
        correct = [guess.verdict == ("tie" if p.tie else "first") for guess, p in zip(guesses, held, strict=True)]
        confidences = [guess.confidence for guess in guesses]
        self._trained_on = size
        self._threshold = answer_threshold(confidences, correct, max_error=self.max_error)
        sure = [ok for confidence, ok in zip(confidences, correct, strict=True) if confidence >= self._threshold]
        self.knowledge = {"preferences": float(size), "heldout": float(len(held)), "sure": float(len(sure))}
        if held:
            self.knowledge["heldout_accuracy"] = sum(correct) / len(held)
        log.info(
            "%s: trained on %d preferences; right on %d of %d held out, sure of %d and right on %d of these",
            *(self.name, size, sum(correct), len(correct), len(sure), sum(sure)),
        )


def training_sizes(preferences: int, *, first: int) -> tuple[int, int]:
    """Return the largest training size up to a number of preferences, or 0, and the next one.

    Example:
        >>> training_sizes(100, first=40), training_sizes(39, first=40)
        ((90, 135), (0, 40))
    """
    size, following = 0, float(first)
    while math.ceil(following) <= preferences:
        size, following = math.ceil(following), following * GROWTH
    return size, math.ceil(following)


def preferences_in(prompt: str, first: str, second: str, verdict: Verdict) -> list[Preference]:
    """Return the preference in a verdict, which may be a tie; an invalid verdict holds none.

    Example:
        >>> preferences_in("2+2?", "5", "4", "second")
        [Preference(prompt='2+2?', better='4', worse='5', tie=False)]
    """
    if verdict == "invalid":
        return []
    if verdict == "tie":
        return [Preference(prompt, min(first, second), max(first, second), tie=True)]
    return [Preference(prompt, first, second) if verdict == "first" else Preference(prompt, second, first)]


def earlier_preferences(labels: Sequence[Label], run: str, neutral: float | None = None) -> list[Preference]:
    """Return the preferences in labels, oldest first, from before a run bought its first.

    The scores of one prompt are paired: the best over the worst, the second best over the second worst. A `neutral`
    score, which says nothing, is left out.
    """
    runs = [label.run for label in labels]
    earlier = labels[: runs.index(run)] if run in runs else labels
    found: list[Preference] = []
    scores: dict[str, dict[str, float]] = defaultdict(dict)
    for label in earlier:
        if label.second is not None and label.verdict:
            found += preferences_in(label.prompt, label.first, label.second, label.verdict)
        elif label.score not in (None, neutral):
            scores[label.prompt][label.first] = label.score
    for prompt, score_of in scores.items():
        texts = sorted(score_of, key=lambda text: (-score_of[text], text))
        pairs = zip(texts[: len(texts) // 2], reversed(texts), strict=False)
        found += [Preference(prompt, best, worst) for best, worst in pairs if score_of[best] > score_of[worst]]
    return found


def error_rate_bound(wrong: int, answers: int, *, confidence: float) -> float:
    """Return the one-sided upper confidence bound on an error rate (Clopper and Pearson 1934).

    Example:
        >>> round(error_rate_bound(0, 22, confidence=0.9), 4), round(error_rate_bound(2, 40, confidence=0.95), 4)
        (0.0994, 0.1492)
    """
    if answers == 0:
        return 1.0
    return float(binomtest(wrong, answers, alternative="less").proportion_ci(confidence, method="exact").high)


def answer_threshold(
    margins: Sequence[float], correct: Sequence[bool], *, max_error: float, confidence: float = 0.9, steps: int = 4
) -> float:
    """Return the lowest confidence from which the error rate is at most `max_error`, or infinity if none can be shown.

    The 1/steps, 2/steps, ... of the answers with the largest confidence are tried (with Bonferroni's correction).

    Args:
        margins: Confidences of held-out answers; larger is surer.
        correct: Whether each was right.
        max_error: Share of answers that may be wrong, at this confidence.

    Example:
        >>> answer_threshold([3, 2, 1, 0] * 30, [True, True, True, False] * 30, max_error=0.1)
        1
        >>> answer_threshold([3, 2, 1, 0], [True] * 4, max_error=0.1)
        inf
    """
    descending = sorted(margins, reverse=True)
    lowest = math.inf
    for step in range(1, steps + 1) if descending else ():
        threshold = descending[math.ceil(step * len(descending) / steps) - 1]
        above = [right for margin, right in zip(margins, correct, strict=True) if margin >= threshold]
        bound = error_rate_bound(above.count(False), len(above), confidence=1 - (1 - confidence) / steps)
        if bound <= max_error:
            lowest = threshold
    return lowest
