"""What a round is played with: the context of a round, its parts, the protocols of its selectors."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal, NamedTuple, Protocol, TypeVar, runtime_checkable

from torch import Tensor

from choosy.data.pool import Keep, Pool
from choosy.labeling.buyer import LabelBuyer
from choosy.methods.loss_inputs import Loss
from choosy.methods.pairing import PairingRule, Threshold
from choosy.methods.predicted import explored
from choosy.methods.reward_head import RewardHead
from choosy.methods.selection import Direction
from choosy.methods.weighting import GapSource, Weighting
from choosy.models.policy import Policy
from choosy.parallel.ranks import Ranks, shard
from choosy.reporting.display import Phases
from choosy.rounds.label_ahead import LabelAhead
from choosy.sampling.protocol import Sampler
from choosy.types import Candidates, Pair, Prompt, seed_of

T = TypeVar("T")

PairTexts = tuple[str, str, str]  # the prompt's id, the chosen and the rejected text
TrainOn = Literal["pool", "round"]
Labels = LabelBuyer | LabelAhead
OnSampled = Callable[[Sequence[Candidates]], None]


@dataclass(frozen=True)
class Round:
    """The context of one round. Nothing in it changes during the round except `counts` and `importance`.

    Attributes:
        number: Number of the round, from 0.
        seed: Seed of the run.
        policy: The policy as trained so far.
        sampler: The sampling engine.
        pool: The pool after the previous round.
        ranks: The processes that play together.
        phases: The stopwatch.
        loss: The loss, whose beta scales implicit rewards and whose needs decide what is computed.
        learned: Predicts rewards from the labels of earlier rounds.
        rounds: Number of rounds that are planned.
        given: All given responses by prompt id, which compete again in every round; empty where each round samples.
        counts: This rank's tokens and the like, summed over ranks at the end of the round.
        folder: Where the rounds' files are.
        pairing: Which responses make pairs where all of a prompt are scored.
        threshold: The reward above which a prompt's single response is good, and below which it is bad.
        neutral: The score that says nothing; None if there is none.
        ahead: The prompts that were chosen and sampled while the round before trained; None where that was not done.
        importance: Figures of the weights of responses that were sampled ahead, the same on every rank.
    """

    number: int
    seed: int
    policy: Policy
    sampler: Sampler
    pool: Pool
    ranks: Ranks
    phases: Phases
    loss: Loss
    learned: RewardPredictor
    rounds: int = 1
    given: Mapping[str, Candidates] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)
    folder: Path = Path()
    pairing: PairingRule = "best_worst"
    threshold: Threshold = 0.0
    neutral: float | None = None
    ahead: Sequence[ChosenPrompt] | None = None
    importance: dict[str, float] = field(default_factory=dict)

    def each_on_one_rank(self, prompts: Sequence[Prompt], numbers_of: Callable[[list[Prompt]], list[T]]) -> list[T]:
        """Compute what is expensive for each prompt on one rank only; every rank returns all of it."""
        mine = shard(prompts, self.ranks)
        found = dict(self.ranks.gather(list(zip((p.id for p in mine), numbers_of(mine), strict=True))))
        return [found[p.id] for p in prompts]

    def partly_by_chance(
        self, candidates: Sequence[Candidates], utilities: Sequence[Sequence[float]], share: float
    ) -> list[list[float]]:
        """Let chance choose the pairs of a share of all ranks' prompts (see `explored`)."""
        if share == 0:
            return [list(of_prompt) for of_prompt in utilities]
        mine = [(c.prompt.id, of_prompt) for c, of_prompt in zip(candidates, utilities, strict=True)]
        mixed = explored(dict(self.ranks.gather(mine)), share, seed=seed_of(self.seed, self.number))
        return [list(mixed[name]) for name, _ in mine]


class RewardPredictor(Protocol):
    """Predicts rewards from the labels that the run has bought to train on (see `LearnedReward`)."""

    def head(self, at: Round) -> RewardHead | None:
        """The head that knows the labels of all rounds before this one; None while there are too few."""
        ...

    def embed(self, candidates: Sequence[Candidates], at: Round) -> list[Tensor]:
        """Embeddings (N, D) of the responses to each prompt, the prompt included."""
        ...

    def differences(self, labeled: Sequence[Candidates], at: Round) -> dict[PairTexts, float] | None:
        """The reward difference of each pair, predicted from the verdicts on all others; None while they are few."""
        ...

    def pairs(self) -> Tensor:
        """Differences (K, D) of the embeddings of chosen and rejected responses, of all pairs that it has read."""
        ...

    def scored(self) -> Tensor:
        """Embeddings (K, D) of the responses whose scores it has read."""
        ...


def pair_texts(c: Candidates, pair: Pair) -> PairTexts:
    """What names a pair."""
    return c.prompt.id, c.responses[pair.chosen].text, c.responses[pair.rejected].text


class PromptSelector(Protocol):
    """Answers slot 1: which prompts are sampled again?

    Attributes:
        fraction: Share of the prompts to sample; `count` gives a number instead.
        count: Number of prompts to sample.
        direction: Which end of the utilities is spent on first.
        warmup_rounds: Rounds that sample every prompt before this selector starts to choose.
    """

    fraction: float | None
    count: int | None
    direction: Direction
    warmup_rounds: int

    def prompt_utilities(self, prompts: Sequence[Prompt], at: Round) -> list[float]:
        """How much fresh responses to each prompt would teach: larger = more. The same on every rank."""
        ...


class PairSelector(Protocol):
    """Answers slot 2: which pairs are labeled?

    Attributes:
        fraction: Share of the competing pairs to label; `count` gives a number instead.
        count: Number of pairs to label.
        per_prompt: Most pairs of one prompt; None = any number.
        direction: Which end of the utilities is spent on first.
        score_all: Whether all responses of a chosen pair's prompt are scored, and two of them make its pair.
        needs_reference: Whether the utilities need log-probs under the reference, whatever the loss needs.
    """

    fraction: float | None
    count: int | None
    per_prompt: int | None
    direction: Direction
    score_all: bool
    needs_reference: ClassVar[bool]

    def pair_utilities(self, candidates: Sequence[Candidates], at: Round) -> list[list[float]]:
        """How much a label of each candidate's pairs i < j would teach: larger = more. Sees this rank's share only."""
        ...


@runtime_checkable
class ResponseSelector(Protocol):
    """A `PairSelector` that also chooses among prompts with a single response each, which is good or bad by itself."""

    def response_utilities(self, candidates: Sequence[Candidates], at: Round) -> list[float]:
        """How much a label of each candidate's only response would teach: larger = more. Sees this rank's share only.

        Every rank must call this.
        """
        ...


class ChosenPrompt(NamedTuple):
    """A prompt that gets fresh responses, with its utility; nan without a selector."""

    prompt: Prompt
    utility: float = math.nan


class Sample(Protocol):
    """Gives the chosen prompts their responses.

    Attributes:
        responses: The most responses that a prompt gets.
        given: All given responses by prompt id; empty if they are sampled.
    """

    @property
    def responses(self) -> int: ...
    @property
    def given(self) -> Mapping[str, Candidates]: ...

    def __call__(
        self, at: Round, chosen: Sequence[ChosenPrompt], *, begun: Mapping[str, Candidates], done: OnSampled
    ) -> list[Candidates]:
        """Return the candidates of this rank's share of the chosen prompts.

        Args:
            at: The context of the round.
            chosen: All chosen prompts, the same on every rank.
            begun: Candidates of this round that an interrupted run has sampled already, by prompt id.
            done: Called during the sampling with candidates that are ready.
        """
        ...


@dataclass(frozen=True)
class Parts:
    """The parts that a run plugs into its rounds.

    Attributes:
        sample: Gives chosen prompts their responses: this rank's share of the candidates.
        labels: Where labels are bought: the budget pays for the first ones, in the order given.
        weighting: The factor on each pair's loss.
        keep: What the pool keeps of a prompt's earlier rounds.
        reward_gap: Which reward gap weights and margins read.
        prompt_selector: Slot 1; None samples every prompt.
        pair_selector: Slot 2; None scores every response; `Round.pairing` makes pairs of them.
    """

    sample: Callable[[Round, Sequence[ChosenPrompt]], list[Candidates]]
    labels: Labels
    weighting: Weighting
    keep: Keep
    reward_gap: GapSource
    prompt_selector: PromptSelector | None = None
    pair_selector: PairSelector | None = None
