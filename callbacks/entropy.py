"""Active preference learning's prompt filter (arXiv 2402.08114): ask where the policy is least sure what to say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from callbacks.selector import PromptChooser
from choosy.methods import selection
from choosy.rounds.context import Round
from choosy.sampling.settings import SamplingSettings
from choosy.types import Prompt, seed_of


@dataclass(kw_only=True, eq=False)
class Entropy(PromptChooser):
    """Samples the prompts with the highest predictive entropy, estimated from N samples at temperature 1.

    Args:
        samples: N, the responses sampled for each prompt's estimate.
    """

    samples: int = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.samples < 1:
            raise ValueError(f"samples={self.samples} estimates no entropy; choose samples >= 1.")

    def prompt_utilities(self, prompts: Sequence[Prompt], at: Round) -> list[float]:
        def entropy_of(mine: list[Prompt]) -> list[float]:
            seeds = [[seed_of(at.seed, "entropy", at.number, p.id, n) for n in range(self.samples)] for p in mine]
            ids = [at.policy.tokens.encode_prompt(p) for p in mine]
            settings = SamplingSettings(max_new_tokens=at.sampler.max_new_tokens)  # temperature 1, all tokens
            sampled = at.sampler.sample(at.policy, ids, seeds, settings=settings)
            at.counts["tokens_generated"] += sum(len(r.ids) for of_prompt in sampled for r in of_prompt)
            return selection.entropy([[r.logp for r in of_prompt] for of_prompt in sampled])

        return at.each_on_one_rank(prompts, entropy_of)
