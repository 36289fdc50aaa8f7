"""Score responses with the policy itself, by two contrasting instructions."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import KW_ONLY, dataclass, replace
from itertools import chain
from operator import sub
from typing import Literal

from choosy.labeling.protocols import ALL, Terms
from choosy.models.instructions import Place, encode_instructed
from choosy.models.policy import Policy
from choosy.types import Candidates, Prompt, Response, content_id

Weights = Literal["start", "current"]


@dataclass(eq=False)
class Contrastive:
    """Scores a response by two contrasting instructions, without another labeler (DLMA, arXiv 2402.11907).

    The reward is log p(response | good instruction, prompt) - log p(response | bad instruction, prompt), summed over
    tokens; the difference of two responses' rewards is the paper's self-reward gap R. `data.instructions` samples one
    response under each instruction, as the paper does.

    Attributes:
        weights: Which weights score: the policy's at the `start` of the run, or the `current` ones, under which a
            response has another reward in every round.
        place: Where the instruction is put: before the `system` turn, or before the first `user` turn, for chat
            templates without a system turn. It always precedes a prompt that is no conversation.
    """

    good: str  # instruction that asks for the wanted behaviour
    bad: str  # instruction that asks for the opposite
    _: KW_ONLY
    weights: Weights = "start"
    place: Place = "system"

    def __post_init__(self) -> None:
        if not (self.good.strip() and self.bad.strip()) or self.good == self.bad:
            raise ValueError(
                "labeler=contrastive needs two different instructions, and these give every response the same reward; "
                "type labeler.good='...' and labeler.bad='...'"
            )
        for option, known in (("weights", ("start", "current")), ("place", ("system", "user"))):
            if (value := getattr(self, option)) not in known:
                raise ValueError(f"labeler.{option}={value} is unknown; type {' or '.join(known)}")
        self.name = f"contrastive:{self.weights}"
        # all items at once, since the policy packs its batches itself
        self.terms = Terms(fingerprint=content_id(self.good, self.bad, self.place), price=0.0, at_once=ALL)
        self._policy: Policy | None = None

    def use_policy(self, policy: Policy) -> None:
        self._policy = policy

    @property
    def policy(self) -> Policy:
        """The policy that scores; an error if there is none, or if its weights are sharded over several processes."""
        if self._policy is None:
            raise ValueError(
                "labeler=contrastive scores with the policy that is trained, and has none; "
                "use it in a run, or call use_policy first"
            )
        if not self._policy.is_gathered:
            raise ValueError(
                "labeler=contrastive scores on one process, and trainer=fsdp shards the policy's weights over all; "
                "choose trainer=ddp, or another labeler"
            )
        return self._policy

    def state(self) -> str:
        """A hash of the model and, under `current`, of its weights."""
        policy = self.policy
        model = (policy.source.name, str(policy.source.revision), str(policy.adapter), str(policy.tokens.chat_template))
        if self.weights == "start":
            return content_id(str(policy.dtype), *model, "")
        sums = (f"{name} {p.double().sum()} {p.double().square().sum()}" for name, p in policy.trainable())
        return content_id(str(policy.dtype), *model, content_id(*sums))

    def score(self, items: Sequence[tuple[Prompt, Response]]) -> list[float]:
        """Return the reward of each response; responses to one prompt share its forward pass."""
        of_prompt: dict[Prompt, list[int]] = defaultdict(list)
        for at, (prompt, _) in enumerate(items):
            of_prompt[prompt].append(at)
        encode = self.policy.tokens.encode_response
        responses = [replace(one, ids=one.ids or encode(one.text, prompt)) for prompt, one in items]
        asked = [
            Candidates(prompt, tuple(responses[at] for at in places), self._prompt_ids(prompt, instruction))
            for instruction in (self.good, self.bad)
            for prompt, places in of_prompt.items()
        ]
        with self.policy.states.as_start() if self.weights == "start" else nullcontext():
            logps = self.policy.score(asked)
        good, bad = chain(*logps[: len(of_prompt)]), chain(*logps[len(of_prompt) :])
        reward_at = dict(zip(chain(*of_prompt.values()), map(sub, good, bad), strict=True))
        return [reward_at[at] for at in range(len(items))]

    def _prompt_ids(self, prompt: Prompt, instruction: str) -> tuple[int, ...]:
        return encode_instructed(self.policy.tokens, prompt, instruction, self.place, "labeler.place")
