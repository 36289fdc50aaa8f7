"""A small model that learns a paid labeler's taste, answers where it is sure, and passes the rest on."""

from __future__ import annotations

import json
import logging
import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from choosy.labeling.nested import NestedLabelers, nested_run
from choosy.labeling.predictor.calibration import answer_threshold
from choosy.labeling.predictor.preference_model import Preference, PreferenceModel
from choosy.labeling.protocols import Answer, BuyerOf, Labeler, LabelHistory, LabelRecord
from choosy.models.policy import Policy
from choosy.types import Prompt, Response, Verdict, content_id, seed_of

log = logging.getLogger(__name__)

HELD_OUT = 3  # the preferences of every third prompt calibrate and are not trained on
GROWTH = 1.5  # the model is trained anew whenever the preferences have grown so much

Item = tuple[Prompt, Response, Response]


class Guess(NamedTuple):
    """What the model would say of an item, and how sure it is: the distance of the two ratings."""

    verdict: Verdict
    sureness: float


@dataclass
class Saved:
    """What a run has saved so far.

    Attributes:
        answered: Pairs the model has answered.
        paid: Pairs that were passed on because it was not sure.
        audited: Pairs it was sure of and that were passed on all the same.
        disagreed: How many of the audited ones the paid labeler saw the other way round; its ties are neither.
    """

    answered: int = 0
    paid: int = 0
    audited: int = 0
    disagreed: int = 0

    def __str__(self) -> str:
        return (
            f"{self.answered} labels saved, {self.paid + self.audited} bought; "
            f"the audit disagreed with {self.disagreed} of {self.audited}"
        )


class Predictor:
    """Answers for another labeler where a model of its taste is sure enough (LoRA-LiteE's idea, arXiv 2411.09947).

    The model is an encoder with a LoRA adapter, trained on every preference of the paid labeler that the ledger holds:
    those of other runs, then this run's as they come. It is trained first on `min_labels`, and anew whenever there are
    half as many again. The preferences of a third of the prompts are held out to find how sure it must be for at most
    `max_error` of its answers to be wrong (`calibration`); where that cannot be vouched for, all is passed on.

    What the model answers takes no label of the budget. An audited share of it is bought as well, the paid verdict
    stands there, and how often the two disagree is logged; `annotator` and `raw` of the label say who answered and why.

    Args:
        paid: The labeler whose taste is learned; its labels count against `labels.budget`.
        encoder: A folder or hub id of a transformer, or `demo:minilm`.
        max_error: Share of the model's answers that may be wrong, vouched for with 90 % confidence.
        audit: Share of the model's answers that are bought as well; drawn by content, the same in every run.
        min_labels: Preferences before it is trained at all.
        epochs: Passes over them in each training.
        lr: Learning rate of the adapter.
        max_length: Tokens of prompt and response that it reads, from the end.
        seed: Of the training.
        device: Where it runs; auto takes a GPU if there is one.

    Raises:
        ValueError: A number is out of range.
    """

    def __init__(
        self,
        paid: Labeler,
        *,
        encoder: str = "demo:minilm",
        max_error: float = 0.1,
        audit: float = 0.1,
        min_labels: int = 120,
        epochs: int = 4,
        lr: float = 1e-3,
        max_length: int = 256,
        seed: int = 0,
        device: str = "auto",
    ) -> None:
        for name, share in (("max_error", max_error), ("audit", audit)):
            if not 0 < share < 1:
                raise ValueError(f"labeler.{name}={share} is no share; type a number between 0 and 1")
        if min_labels < HELD_OUT:
            raise ValueError(f"labeler.min_labels={min_labels} teaches nothing; type {HELD_OUT} or more")
        self.name = f"predictor:{paid.name}"
        self.paid = paid
        self.encoder = encoder
        self.max_error = max_error
        self.audit = audit
        self.min_labels = min_labels
        self.epochs = epochs
        self.lr = lr
        self.max_length = max_length
        self.seed = seed
        self.device = device
        self.saved = Saved()
        self._nested = NestedLabelers({"paid": paid})
        self._history: LabelHistory | None = None
        self._run = ""
        self._preferences: dict[Preference, None] = {}  # in the order in which they came, each once
        self._trained_on = 0
        self._model: PreferenceModel | None = None
        self._sure_from = math.inf

    @property
    def judgements(self) -> int:
        """How many labels an answer takes at most: those of the paid labeler."""
        return self._nested.labels_per_comparison

    @property
    def price(self) -> float | None:
        """What an answer costs at most; None if the paid labeler does not say."""
        return self._nested.price_of_comparison

    @property
    def fingerprint(self) -> str:
        """Whose taste is learned, and how."""
        options = (self.encoder, self.max_error, self.audit, self.min_labels, self.epochs, self.lr, self.max_length)
        return content_id(str(getattr(self.paid, "fingerprint", "")), *map(str, options), str(self.seed))

    def use_policy(self, policy: Policy) -> None:
        self._nested.use_policy(policy)

    def use_buyers(self, buyer_of: BuyerOf) -> None:
        self._nested.use_buyers(buyer_of)

    def recall(self, history: LabelHistory, run: str) -> None:
        self._history, self._run = history, run
        self.saved, self._model, self._trained_on = Saved(), None, 0
        self._preferences = {}
        of_paid = history.labels_of(self.paid.name, fingerprint=str(getattr(self.paid, "fingerprint", "")))
        self._learn(before(of_paid, nested_run(run, self.name, "paid")))
        for label in history.labels_of(self.name, run=run):
            assert label.second is not None
            assert label.verdict
            self._count(label.raw, label.annotator)
            if label.annotator != "predictor":
                self._learn(preferred(label.prompt, label.first, label.second, label.verdict))

    def compare(self, items: Sequence[Item]) -> Iterator[Answer]:
        """A verdict on each item, in their order; the paid labeler is asked about those of a stretch at once."""
        todo = list(enumerate(items))
        while todo:
            self._train_if_due()
            guesses = self._guesses([item for _, item in todo])
            paid = [n for n, (_, item) in enumerate(todo) if self._passes_on(guesses[n], item)]
            room = max(self._due() - len(self._preferences), 1)
            stretch = paid[room - 1] + 1 if len(paid) >= room else len(todo)  # then there is enough to train anew
            yield from self._answers(todo[:stretch], guesses, [n for n in paid if n < stretch])
            todo = todo[stretch:]
        log.info("%s: %s", self.name, self.saved)

    def _passes_on(self, guess: Guess | None, item: Item) -> bool:
        return guess is None or guess.sureness < self._sure_from or _draw(*item) < self.audit

    def _answers(
        self, asked: Sequence[tuple[int, Item]], guesses: Sequence[Guess | None], paid: Sequence[int]
    ) -> Iterator[Answer]:
        assert self._history is not None, "a predictor is asked through a buyer that is open"
        bought = dict(zip(paid, self._nested.compare("paid", [asked[n][1] for n in paid]), strict=True))
        charges = iter(self._nested.charges(self._history, self.name, self._run, len(paid)) if paid else [])
        for n, (at, item) in enumerate(asked):
            guess, verdict = guesses[n], bought.get(n)
            sure = guess is not None and guess.sureness >= self._sure_from
            about = {"trained_on": self._trained_on, "sure": sure, **(guess._asdict() if guess else {})}
            raw = json.dumps(about)
            if verdict is None:
                assert guess is not None
                answer = Answer(at, guess.verdict, raw, 0.0, "predictor", 0)
            else:
                labels, money = next(charges)
                raw = json.dumps({**about, "paid": verdict})
                answer = Answer(at, verdict, raw, money, self.paid.name, labels)
                self._learn(preferred(item[0].text, item[1].text, item[2].text, verdict))
            self._count(answer.raw, answer.annotator)
            yield answer

    def _count(self, raw: str, annotator: str) -> None:
        about = json.loads(raw)
        audited = annotator != "predictor" and about["sure"]
        self.saved.answered += annotator == "predictor"
        self.saved.paid += annotator != "predictor" and not about["sure"]
        self.saved.audited += audited
        self.saved.disagreed += audited and {about["verdict"], about["paid"]} == {"first", "second"}

    def _guesses(self, items: Sequence[Item]) -> list[Guess | None]:
        if self._model is None or math.isinf(self._sure_from):
            return [None] * len(items)
        texts = [(prompt.text, response.text) for prompt, *both in items for response in both]
        ratings = self._model.ratings(texts)
        return [
            Guess("first" if one > other else "second" if one < other else "tie", abs(one - other))
            for one, other in zip(ratings[::2], ratings[1::2], strict=True)
        ]

    # -- the model ---------------------------------------------------------------------------------------------

    def _learn(self, preferences: Sequence[Preference]) -> None:
        self._preferences.update(dict.fromkeys(preferences))

    def _due(self) -> int:
        """How many preferences there must be for the next training."""
        due = float(self.min_labels)
        while math.ceil(due) <= self._trained_on:
            due *= GROWTH
        return math.ceil(due)

    def _train_if_due(self) -> None:
        """Train on the first so many preferences as the last due training had, the same after an interruption."""
        reached, due = 0, float(self.min_labels)
        while math.ceil(due) <= len(self._preferences):
            reached, due = math.ceil(due), due * GROWTH
        if reached > self._trained_on:
            self._train(list(self._preferences)[:reached])

    def _train(self, preferences: Sequence[Preference]) -> None:
        held_out = [p for p in preferences if seed_of("held out", p.prompt) % HELD_OUT == 0]
        model = PreferenceModel(
            self.encoder,
            seed=self.seed,
            lr=self.lr,
            epochs=self.epochs,
            max_length=self.max_length,
            device=self.device,
        )
        model.fit([p for p in preferences if seed_of("held out", p.prompt) % HELD_OUT])
        ratings = model.ratings([(p.prompt, text) for p in held_out for text in (p.better, p.worse)])
        gaps = [better - worse for better, worse in zip(ratings[::2], ratings[1::2], strict=True)]
        right = [gap > 0 for gap in gaps]
        self._model, self._trained_on = model, len(preferences)
        self._sure_from = answer_threshold([abs(gap) for gap in gaps], right, max_error=self.max_error)
        sure = [ok for gap, ok in zip(gaps, right, strict=True) if abs(gap) >= self._sure_from]
        log.info(
            "%s: trained on %d preferences; right on %d of %d held out, sure of %d and right on %d of these",
            *(self.name, len(preferences), sum(right), len(right), len(sure), sum(sure)),
        )


def _draw(prompt: Prompt, *responses: Response) -> float:
    """A number in [0, 1) that depends on what is judged, not on the order in which it is shown."""
    return seed_of("predictor", prompt.text, *sorted(response.text for response in responses)) / 2**63


def preferred(prompt: str, first: str, second: str, verdict: Verdict) -> list[Preference]:
    """The preference in a verdict; a tie or an invalid one holds none.

    Example:
        >>> preferred("2+2?", "5", "4", "second")
        [Preference(prompt='2+2?', better='4', worse='5')]
    """
    if verdict not in ("first", "second"):
        return []
    return [Preference(prompt, first, second) if verdict == "first" else Preference(prompt, second, first)]


def before(labels: Sequence[LabelRecord], run: str) -> list[Preference]:
    """The preferences of other runs that were there when this run bought its first label, earliest first.

    Of scores, those of one prompt make preferences: the best over the worst, the second best over the second worst.
    """
    runs = [label.run for label in labels]
    earlier = labels[: runs.index(run)] if run in runs else labels
    found: list[Preference] = []
    scored: dict[str, dict[str, float]] = defaultdict(dict)
    for label in earlier:
        if label.second is not None and label.verdict:
            found += preferred(label.prompt, label.first, label.second, label.verdict)
        elif label.score is not None:
            scored[label.prompt][label.first] = label.score
    for prompt, score_of in scored.items():
        texts = sorted(score_of, key=lambda text: (-score_of[text], text))
        both = zip(texts[: len(texts) // 2], reversed(texts), strict=False)
        found += [Preference(prompt, best, worst) for best, worst in both if score_of[best] > score_of[worst]]
    return found
