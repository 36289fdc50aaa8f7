"""Active preference learning's prompt filter (arXiv 2402.08114): ask where the policy is least sure what to say."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lightning.pytorch import Callback

from choosy.methods import selection
from choosy.rounds.context import Round
from choosy.sampling.settings import SamplingSettings
from choosy.types import Prompt, seed_of


class Entropy(Callback):
    """Samples the prompts with the highest predictive entropy, estimated from N samples at temperature 1.

    Args:
        fraction: Share of the prompts to keep.
        count: Number of prompts instead of a share.
        samples: N, the responses sampled for each prompt's estimate.
        warmup_rounds: Rounds that sample every prompt before the filter starts.
    """

    def __init__(
        self,
        fraction: float | None = 0.5,
        *,
        count: int | None = None,
        samples: int = 8,
        warmup_rounds: int = 0,
    ) -> None:
        selection.quota(1, fraction=fraction, count=count)
        if samples < 1:
            raise ValueError(f"samples={samples} estimates no entropy; choose samples >= 1.")
        self.fraction = fraction
        self.count = count
        self.samples = samples
        self.warmup_rounds = warmup_rounds

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        trainer.datamodule.run.use(prompts=self)

    def prompt_utilities(self, prompts: Sequence[Prompt], at: Round) -> list[float]:
        def entropy_of(mine: list[Prompt]) -> list[float]:
            seeds = [[seed_of(at.seed, "entropy", at.number, p.id, n) for n in range(self.samples)] for p in mine]
            ids = [at.policy.encode_prompt(p) for p in mine]
            settings = SamplingSettings(max_new_tokens=at.sampler.max_new_tokens)  # temperature 1, all tokens
            sampled = at.sampler.sample(at.policy, ids, seeds, settings=settings)
            at.counts["tokens_generated"] += sum(len(r.ids) for of_prompt in sampled for r in of_prompt)
            return selection.entropy([[r.logp for r in of_prompt] for of_prompt in sampled])

        return at.spread(prompts, entropy_of)
