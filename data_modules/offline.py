"""Offline data: responses that are given, of which each round chooses the pairs that are worth a label."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from choosy.data.pool import Pool
from choosy.data.sources import named
from choosy.labeling.buyer import LabelBuyer
from choosy.module import WeightedDPO
from choosy.parallel.ranks import shard
from choosy.rounds.choose import can_be_labeled
from choosy.rounds.context import ChosenPrompt, OnSampled, Round
from choosy.rounds.sample import sample_responses
from choosy.terminal import logger
from choosy.types import Candidates, Prompt
from data_modules.round_data import RoundData

log = logger(__name__)


@dataclass(kw_only=True, eq=False)
class OfflineData(RoundData):
    """Trains on labeled pairs of given responses; each round labels some of those that have no label yet.

    `train` holds pairs or scored responses, in any of the formats of `choosy.data.formats`.

    Args:
        own_samples: Fresh responses to each prompt beside the given ones, in each round, for a loss that needs samples
            of the policy's own.
    """

    own_samples: int = 1

    def __post_init__(self) -> None:
        if self.run.sampler.ahead:
            raise ValueError(
                "sampler.ahead=1 samples the next round's prompts, and data=offline has given responses; type "
                "sampler.ahead=0, or data=on_policy."
            )
        super().__post_init__()

    @property
    def responses(self) -> int:
        """The most responses that a prompt has."""
        return GivenResponses(self.given).responses

    def read_train(self, module: WeightedDPO) -> list[Prompt]:
        if self.reader.asked_score is not None and not self.run.labels.terms.given_only:
            raise ValueError(
                f"data.reader.asked_score prefers the responses whose given scores are near those asked for, and "
                f"labeler {self.run.labels.labeler.name} judges them again; type labeler=dataset."
            )
        candidates = self.read_sources(
            lambda source, limit: self.reader.candidates(source, module.policy, limit=limit, judge=self.run.labels)
        )
        self.check_needs(module.loss, [len(c.responses) for c in candidates], source=named(self.source))
        if self.run.weighting.needs == "given":
            refuse_unweighted(candidates, named(self.source))
        overruled = overruled_verdicts(candidates, self.run.labels, named(self.source))
        if overruled and module.trainer.is_global_zero:
            log.warning(overruled)
        self.given = {c.prompt.id: c for c in candidates}
        return [c.prompt for c in candidates]

    def play(self, number: int) -> None:
        given = GivenResponses(self.given, self.own_samples)
        selector, scores = self.run.pair_selector, self.run.labels.scores
        own = "own" in self.run.loss.needs  # every prompt gets a sample of the present policy
        known = given.with_labels(self.run.pool, self.given)
        left = [c.prompt for c in known if own or can_be_labeled(c, selector, scores=scores)]
        self.run.play(number, left, given)


@dataclass(frozen=True)
class GivenResponses:
    """Looks up the given responses to each chosen prompt (see `Sample`)."""

    given: Mapping[str, Candidates]
    own_samples: int = 1

    @property
    def responses(self) -> int:
        return max(len(c.responses) for c in self.given.values())

    def __call__(
        self, at: Round, chosen: Sequence[ChosenPrompt], *, begun: Mapping[str, Candidates], done: OnSampled
    ) -> list[Candidates]:
        """Return the candidates with the rewards and pairs that earlier rounds have bought.

        A loss that needs samples of the policy's own gets fresh responses to each prompt beside them.
        """
        mine = shard(chosen, at.ranks)
        known = self.with_labels(at.pool, [p.id for p, _ in mine])
        found = [replace(c, utility=utility) for c, (_, utility) in zip(known, mine, strict=True)]
        if "own" not in at.loss.needs:
            return found
        sampled = sample_responses(at, [p for p, _ in mine], n=self.own_samples, purpose="own")
        return [replace(c, own=beside.responses) for c, beside in zip(found, sampled, strict=True)]

    def with_labels(self, pool: Pool, prompt_ids: Iterable[str]) -> list[Candidates]:
        """Return the given candidates with the rewards and pairs that are in the pool."""
        ids = list(prompt_ids)
        stored = {c.prompt.id: c for c in pool.candidates(pool.newest(ids).drop_null().to_pylist())}
        return [_as_given(stored.get(name, self.given[name]), self.given[name]) for name in ids]


def _as_given(stored: Candidates, given: Candidates) -> Candidates:
    """Return stored candidates with the conversations of the data, which the pool has as text."""
    turns = {r.text: r.turns for r in given.responses}
    responses = tuple(replace(r, turns=turns.get(r.text, ())) for r in stored.responses)
    return replace(stored, prompt=given.prompt, responses=responses)


def overruled_verdicts(candidates: Sequence[Candidates], labels: LabelBuyer, source: str) -> str | None:
    """Say how many verdicts of the data another labeler replaces; None where it replaces none."""
    judged = sum(len({r.gold for r in c.responses} - {None}) > 1 for c in candidates)
    if labels.terms.given_only or not judged:
        return None
    return (
        f"{source} says which response is better for {judged} of its {len(candidates)} prompts, and labeler "
        f"{labels.labeler.name} judges them again: the run trains on its labels, and not on those of the file. "
        "Type labeler=dataset to train on the given ones."
    )


def refuse_unweighted(candidates: Sequence[Candidates], source: str) -> None:
    """Refuse data without a full weight column, where a weighting needs one."""
    if lack := [c.prompt.id for c in candidates if c.weight is None]:
        raise ValueError(
            f"weighting=column needs a weight column in the data, and the row of prompt {lack[0]} in {source} has no "
            "weight; fill the column in, or choose weighting=uniform."
        )
