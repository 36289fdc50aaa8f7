"""On-policy data: every epoch plays one round, which samples fresh responses to the chosen prompts."""

from __future__ import annotations

from dataclasses import dataclass

from choosy.models.instructions import Instructions
from choosy.module import WeightedDPO
from choosy.options.parts import typed_for
from choosy.rounds.sample import FreshResponses
from choosy.types import Prompt, seed_of
from data_modules.round_data import RoundData


@dataclass(kw_only=True, eq=False)
class OnPolicyData(RoundData):
    """Trains on labeled pairs of fresh responses to the prompts that the selectors choose each round.

    Args:
        responses: N, the fresh responses to each chosen prompt.
        prompts_per_round: Stream the prompts: each round sees the next so many of one shuffled pass, which is repeated;
            None = every round sees all prompts.
        instructions: Under which the responses are sampled; the policy trains on the prompts without them.
    """

    responses: int = 2
    prompts_per_round: int | None = None
    instructions: Instructions | None = None

    def __post_init__(self) -> None:
        if self.responses < 1:
            raise ValueError(f"data.responses={self.responses} leaves nothing to judge; choose at least 2.")
        if self.run.labels.terms.given_only:
            raise ValueError(
                "labeler=dataset reads the scores of given responses, and the fresh ones of data=on_policy have none; "
                "choose data=offline, or a labeler such as labeler=vader."
            )
        if self.run.weighting.needs == "given":
            raise ValueError(
                "weighting=column needs a weight column in the data, and fresh responses have none; "
                "choose data=offline, or weighting=uniform."
            )
        if self.prompts_per_round is not None and self.prompts_per_round < 1:
            raise ValueError(
                f"data.prompts_per_round={self.prompts_per_round} samples nothing; choose at least 1, or null."
            )
        if self.instructions is not None and self.responses % len(self.instructions.texts):
            raise ValueError(
                f"data.responses={self.responses} cannot be shared evenly by {len(self.instructions.texts)} "
                f"instructions; choose data.responses={len(self.instructions.texts)}, or a multiple of it."
            )
        if self.instructions is not None and self.run.sampler.ahead:
            raise ValueError(
                "sampler.ahead=1 weighs a response by how likely it was when it was sampled, which is not known of one "
                "under data.instructions; type sampler.ahead=0, or data.instructions=null."
            )
        super().__post_init__()
        greedy = self.run.sampler.temperature == 0 or self.run.sampler.top_k == 1
        if greedy and self.responses > 1 and self.instructions is None:
            raise ValueError(
                f"sampler.temperature={self.run.sampler.temperature} sampler.top_k={self.run.sampler.top_k} gives "
                f"{self.responses} equal responses to a prompt, of which no pair is made; type sampler.temperature=1 "
                "sampler.top_k=0, and evaluation.sampler.temperature=0 for held-out answers."
            )

    def read_train(self, module: WeightedDPO) -> list[Prompt]:
        self.check_needs(module.loss, [self.responses], source=f"data.responses={self.responses}")
        labels = self.run.labels
        instead = f"the policy samples its own answers, which labeler {labels.labeler.name} judges"
        prompts = self.read_sources(
            lambda source, limit: self.reader.prompts(source, module.policy, limit=limit, judge=labels, instead=instead)
        )
        tokens, new_tokens = module.policy.tokens, self.run.sampler.max_new_tokens
        tokens.refuse_long_answers(prompts, new_tokens)
        if self.instructions is not None:
            if "own" in module.loss.needs:
                raise ValueError(
                    f"{typed_for(module.loss)} needs samples of the policy's own distribution, and those under "
                    "data.instructions are of another; choose data.instructions=null, or loss=dlma."
                )
            longest = max(len(ids) for under_one in self.instructions.encode(tokens, prompts) for ids in under_one)
            tokens.refuse_beyond_window(longest + new_tokens)
        return prompts

    def play(self, number: int) -> None:
        prompts = [] if self.run.spent_out(number, responses=self.responses) else self.prompts_of(number)
        self.run.play(number, prompts, FreshResponses(self.responses, self.instructions))
        self.run.sample_ahead(number + 1, self.prompts_of(number + 1), responses=self.responses)

    def prompts_of(self, number: int) -> list[Prompt]:
        """Return the prompts that a round may sample: all, or the next ones of the stream."""
        if self.prompts_per_round is None or self.prompts_per_round >= len(self.prompts):
            return self.prompts
        stream = sorted(self.prompts, key=lambda p: seed_of(self.run.seed, "stream", p.id))
        first = number * self.prompts_per_round
        return [stream[(first + i) % len(stream)] for i in range(self.prompts_per_round)]
