"""The reward head that a run fits each round to the labels of its earlier rounds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from choosy.data.pool import Pool
from choosy.methods.reward_head import RewardHead, fit_scores, fit_verdicts, left_out_gaps, normal_scores
from choosy.models.embeddings import embed_with_prompts, refuse_embedder
from choosy.parallel.ranks import gather_rows, shard
from choosy.rounds.context import PairTexts, Round, pair_texts
from choosy.rounds.evaluate import good_against_bad
from choosy.types import Candidates, Response

LENGTH_SHARE = 0.25  # of a unit of log length, beside an embedding of length 1


@dataclass
class LearnedReward:
    """Predicts rewards by a linear head on frozen embeddings, fitted to what the run has labeled to train on.

    The labels are read from the pools of the rounds, in which no held-out answer ever is: a label that evaluates cannot
    enter. A round's head knows the labels of all rounds before it, also where the round is played a second time.

    Scores are learned by their ranks, so that a predicted reward is in standard deviations of the labeler's scores, and
    in log odds where the labeler compares. A score that says nothing, as of a skipped question, is not learned.

    Args:
        embedder: `minilm` or another sentence-transformers model, `policy` = the reference's last layer, `lm:NAME` =
            that of another language model.
        min_labels: Labels below which nothing is predicted; a score is one label, a verdict is one.
    """

    embedder: str = "minilm"
    min_labels: int = 32
    knowledge: dict[int, dict[str, float]] = field(default_factory=dict, init=False)  # by round, for the loggers
    _rows: dict[tuple[str, str], int] = field(default_factory=dict, init=False)  # (prompt id, text) -> row of _embed_ND
    _embed_ND: Tensor = field(default_factory=lambda: torch.zeros(0, 0), init=False)
    _fresh: dict[tuple[str, str], Tensor] = field(default_factory=dict, init=False)  # embedded in the round `_fresh_in`
    _fresh_in: int = field(default=-1, init=False)
    _scores: dict[int, float] = field(default_factory=dict, init=False)  # by row
    _verdicts: dict[tuple[int, int], None] = field(default_factory=dict, init=False)  # rows of chosen and rejected
    _known: int = field(default=0, init=False)  # rounds whose labels have been read
    _head: RewardHead | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        if self.min_labels < 2:
            raise ValueError(f"learned_reward.min_labels={self.min_labels} fits no head; choose 2 or more.")
        if self.embedder != "minilm":  # the default, whose package is needed only where something predicts
            refuse_embedder(self.embedder)

    def refuse_absent(self, *selectors: object) -> None:
        """Refuse an embedder that is not there, where a selector asks for predictions."""
        if any(getattr(one, "learns", False) for one in selectors):
            refuse_embedder(self.embedder)

    def head(self, at: Round) -> RewardHead | None:
        """Fit the head of a round; every rank must call this. None while there are too few labels."""
        while self._known < at.number:  # several times after a resume
            new = pool_after(at, self._known).with_labels()
            self._embed_new(new, at)
            scores, verdicts = self._labels(new, at.neutral)
            known = self._accuracy_on_new(new, scores, verdicts)
            self._scores.update(scores)
            self._verdicts.update(verdicts)
            self._head = self._fitted()
            self._known += 1
            self.knowledge[self._known] = known | {"labels": float(len(self._scores) or len(self._verdicts))}
        return self._head

    def embed(self, candidates: Sequence[Candidates], at: Round) -> list[Tensor]:
        """Embeddings (N, D) of the responses to each prompt, each behind the prompt; each once in a round.

        The last number is the length of the response, which many labelers favour (see `without_length`).
        """
        if self._fresh_in != at.number:
            self._fresh, self._fresh_in = {}, at.number
        every = {(c.prompt.id, r.text): (c, r) for c in candidates for r in c.responses}
        new = {name: one for name, one in every.items() if name not in self._rows and name not in self._fresh}
        self._fresh |= zip(new, self._features(list(new.values()), at), strict=True)
        return [torch.stack([self._embedding((c.prompt.id, r.text)) for r in c.responses]) for c in candidates]

    def _features(self, answered: Sequence[tuple[Candidates, Response]], at: Round) -> Tensor:
        """The embedding of each response behind its prompt, of length 1, and the length of the response."""
        length_N1 = torch.tensor([[LENGTH_SHARE * math.log1p(len(r.text))] for _, r in answered])
        embed_ND = F.normalize(embed_with_prompts(answered, self.embedder, at.policy), dim=-1)
        return torch.cat([embed_ND, length_N1.to(embed_ND)], dim=1) if answered else embed_ND

    def _embedding(self, name: tuple[str, str]) -> Tensor:
        row = self._rows.get(name)
        return self._fresh[name] if row is None else self._embed_ND[row]

    def pairs(self) -> Tensor:
        """Differences (K, D) of the embeddings of chosen and rejected responses, of all verdicts that were read."""
        if not self._verdicts:
            return torch.zeros(0, self._embed_ND.shape[1])
        chosen_K, rejected_K = torch.tensor(list(self._verdicts)).T
        return self._embed_ND[chosen_K] - self._embed_ND[rejected_K]

    def scored(self) -> Tensor:
        """Embeddings (K, D) of the responses whose scores were read."""
        return self._embed_ND[list(self._scores)]

    def differences(self, labeled: Sequence[Candidates], at: Round) -> dict[PairTexts, float] | None:
        """Predict the reward difference of each pair from the verdicts on all others, those of this round included.

        Every rank must call this with the candidates of all.

        Returns:
            The differences; None while there are too few verdicts.
        """
        self.head(at)  # reads the verdicts of earlier rounds
        paired = [c for c in labeled if c.pairs]
        self._embed_new(paired, at)
        rows = [*self._verdicts, *self._labels(paired, at.neutral)[1]]
        if len(rows) < self.min_labels:
            return None
        chosen_K, rejected_K = torch.tensor(rows).T
        gaps = left_out_gaps(self._embed_ND[chosen_K], self._embed_ND[rejected_K]).tolist()
        gap_of = dict(zip(rows, gaps, strict=True))
        named = [pair_texts(c, pair) for c in paired for pair in c.pairs]
        return {
            (name, chosen, rejected): gap_of[self._rows[name, chosen], self._rows[name, rejected]]
            for name, chosen, rejected in named
        }

    def _embed_new(self, labeled: Sequence[Candidates], at: Round) -> None:
        """Embed what has no embedding yet, each response on one rank."""
        new = {(c.prompt.id, r.text): (c, r) for c in labeled for r in c.responses}
        names = [name for name in new if name not in self._rows]
        mine_nD = self._features([new[name] for name in shard(names, at.ranks)], at)
        gathered_nD = gather_rows(mine_nD, at.ranks)
        by_rank = [n for rank in range(at.ranks.size) for n in range(rank, len(names), at.ranks.size)]
        self._rows |= {name: row for row, name in enumerate(names, len(self._rows))}
        if names:
            embed_nD = gathered_nD[torch.tensor(by_rank).argsort()]
            self._embed_ND = torch.cat([self._embed_ND, embed_nD]) if len(self._embed_ND) else embed_nD

    def _labels(
        self, labeled: Sequence[Candidates], neutral: float | None
    ) -> tuple[dict[int, float], dict[tuple[int, int], None]]:
        """Scores and verdicts that are not known yet, by the rows of their embeddings."""
        scores: dict[int, float] = {}
        verdicts: dict[tuple[int, int], None] = {}
        for c in labeled:
            row = [self._rows[c.prompt.id, r.text] for r in c.responses]
            scores |= {row[n]: r.reward for n, r in enumerate(c.responses) if r.reward not in (None, neutral)}
            verdicts |= {(row[p.chosen], row[p.rejected]): None for p in c.pairs}
        return (
            {row: score for row, score in scores.items() if row not in self._scores},
            {rows: None for rows in verdicts if rows not in self._verdicts},
        )

    def _fitted(self) -> RewardHead | None:
        if len(self._scores) >= self.min_labels:
            score_N = torch.tensor(list(self._scores.values()), dtype=torch.float64)
            return fit_scores(self._embed_ND[list(self._scores)], normal_scores(score_N))
        if not self._scores and len(self._verdicts) >= self.min_labels:
            chosen_K, rejected_K = torch.tensor(list(self._verdicts)).T
            return fit_verdicts(self._embed_ND[chosen_K], self._embed_ND[rejected_K])
        return None

    def _accuracy_on_new(
        self, new: Sequence[Candidates], scores: dict[int, float], verdicts: dict[tuple[int, int], None]
    ) -> dict[str, float]:
        """How well the head predicts labels that were bought after it was fitted.

        Of single responses each good one makes a pair with each bad one, as where held-out ones are evaluated.
        """
        if self._head is None:
            return {}
        reward_N = self._head.rewards(self._embed_ND)
        alone = [(c, self._rows[c.prompt.id, c.responses[0].text]) for c in new if len(c.responses) == 1]
        judged = [(reward_N[row].item(), scores[row] - c.threshold) for c, row in alone if row in scores]
        known: dict[str, float] = {}
        if verdicts:
            chosen_K, rejected_K = torch.tensor(list(verdicts)).T
            known = {"accuracy": (reward_N[chosen_K] > reward_N[rejected_K]).double().mean().item()}
        elif {1, -1} <= {(label > 0) - (label < 0) for _, label in judged}:
            known = {"accuracy": good_against_bad([one for one in judged if one[1] != 0])["accuracy"]}
        if len(scores) > 2:
            bought_N = torch.tensor(list(scores.values()), dtype=torch.float64)
            correlation = torch.corrcoef(torch.stack([reward_N[list(scores)], normal_scores(bought_N)]))[0, 1].item()
            known |= {} if math.isnan(correlation) else {"correlation": correlation}
        return known


def pool_after(at: Round, number: int) -> Pool:
    """The pool after a round, from memory or from the round's file."""
    return at.pool if at.pool.round == number else Pool.load(at.folder, number)[0]


def without_length(embed_ND: Tensor) -> Tensor:
    """The embeddings alone, for a similarity of meanings."""
    return embed_ND[:, :-1]
