"""Active preference learning (arXiv 2402.08114): label the pairs that the implicit reward is most certain about."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from lightning.pytorch import Callback

from choosy.methods import selection
from choosy.rounds.context import Round
from choosy.types import Candidates


class Certainty(Callback):
    """Labels the pairs with the largest |difference of implicit rewards|, where an error of the policy shows.

    Args:
        fraction: Share of the competing pairs to label.
        count: Number of pairs instead of a share.
        per_prompt: Most pairs of one prompt; None = any number.
        direction: `largest` = most certain first; `smallest` = most uncertain; `middle`; `tails`.
        rescore: Compute the policy's log-probs in a pass of their own instead of taking those that the sampling engine
            gave. It costs as much as the reference's and in bf16 is hardly nearer to the truth: as long as gaps are
            below a nat, both mostly tell rounding, and only model.dtype=float32 tells more (docs/benchmarks.md).
    """

    def __init__(
        self,
        fraction: float | None = 0.5,
        *,
        count: int | None = None,
        per_prompt: int | None = 1,
        direction: selection.Direction = "largest",
        rescore: bool = False,
    ) -> None:
        selection.quota(1, fraction=fraction, count=count)
        self.fraction = fraction
        self.count = count
        self.per_prompt = per_prompt
        self.direction: selection.Direction = direction
        self.rescore = rescore

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        if trainer.datamodule.run.reference == "previous_round":
            raise ValueError(
                "reference=previous_round makes the policy its own reference when pairs are chosen, so that certainty "
                "would draw lots; choose reference=initial, or another pair selector such as selector=dissimilarity."
            )
        trainer.datamodule.run.use(pairs=self)

    def pair_utilities(self, candidates: Sequence[Candidates], at: Round) -> list[list[float]]:
        refs = [[r.logp_ref for r in c.responses] for c in candidates]
        logps = refs if at.policy.states.is_reference() else self.policy_logps(candidates, at)  # equal policies: gap 0
        both = zip(logps, refs, strict=True)
        return [selection.certainty(selection.implicit_rewards(logp_N, ref_N, at.loss.beta)) for logp_N, ref_N in both]

    def policy_logps(self, candidates: Sequence[Candidates], at: Round) -> list[list[float]]:
        """Log-probability of each response under the policy: as it was sampled, or scored where that is not known."""
        sampled = [[r.logp for r in c.responses] for c in candidates]
        known = all(math.isfinite(logp) for logp_N in sampled for logp in logp_N)
        if self.rescore or not all(at.ranks.gather([known])):
            return at.policy.score(candidates)
        return sampled
