"""Active preference learning (arXiv 2402.08114): label the pairs that the implicit reward is most certain about."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from callbacks.selector import PairChooser
from choosy.methods import selection
from choosy.rounds.context import Round
from choosy.types import Candidates


@dataclass(kw_only=True, eq=False)
class Certainty(PairChooser):
    """Labels the pairs with the largest |difference of implicit rewards|, where an error of the policy shows.

    Args:
        rescore: Compute the policy's log-probs again instead of using those of the sampling engine. In bf16 this is
            hardly more exact: below a gap of one nat only model.dtype=float32 is (docs/benchmarks.md).
    """

    rescore: bool = False
    needs_reference: ClassVar[bool] = True

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if trainer.datamodule.run.reference == "previous_round":
            raise ValueError(
                "reference=previous_round makes the policy its own reference when pairs are chosen, so that certainty "
                "would draw lots; choose reference=initial, or another pair selector such as selector=dissimilarity."
            )

    def pair_utilities(self, candidates: Sequence[Candidates], at: Round) -> list[list[float]]:
        refs = [[r.logp_ref for r in c.responses] for c in candidates]
        logps = refs if at.policy.states.is_reference() else self.policy_logps(candidates, at)  # equal policies: gap 0
        both = zip(logps, refs, strict=True)
        return [selection.certainty(selection.implicit_rewards(logp_N, ref_N, at.loss.beta)) for logp_N, ref_N in both]

    def policy_logps(self, candidates: Sequence[Candidates], at: Round) -> list[list[float]]:
        """Log-probability of each response under the policy: as it was sampled, or computed where that is unknown."""
        sampled = [[r.logp for r in c.responses] for c in candidates]
        known = all(math.isfinite(logp) for logp_N in sampled for logp in logp_N)
        return at.policy.score(candidates) if self.rescore or not all(at.ranks.gather([known])) else sampled
