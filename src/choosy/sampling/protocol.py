"""What every engine that samples responses has."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch

from choosy.models.policy import Policy
from choosy.models.rows import Ids
from choosy.sampling.settings import SamplingSettings
from choosy.types import Candidates, Prompt, Response, token_ids

OnComplete = Callable[[Mapping[int, list[Response]]], None]


class Request(NamedTuple):
    """One response for each seed of each prompt; see `Sampler.sample`."""

    policy: Policy
    prompts: Sequence[Ids]
    seeds: Sequence[Sequence[int]]
    settings: SamplingSettings

    @property
    def blank(self) -> list[list[Response]]:
        """The responses before they are sampled."""
        return [[Response("")] * len(of_prompt) for of_prompt in self.seeds]


@dataclass(kw_only=True, eq=False)
class Sampler(SamplingSettings, ABC):
    """An engine that samples responses from the policy, with settings that a call may replace.

    Args:
        batch_size: Responses in flight at once.
        ahead: 1 = sample the next round's prompts while this round trains, in another process; 0 = when it begins.
        ahead_device: The device of that process: auto = a CPU beside a CPU, and a second GPU beside each that trains.
        max_ratio: c of [1/c, c], to which the importance ratio of a response that was sampled ahead is clipped: how
            likely it is when its round begins, over how likely it was when it was sampled. 1 = all weigh alike.

    Attributes:
        sync_seconds: Seconds spent so far on copying the policy's weights into the engine; 0 where it needs no copy.
        start_seconds: Seconds spent so far on starting the engine; 0 where nothing starts.
        origin: Where the responses of the last call came from, in words.
    """

    batch_size: int = 64
    ahead: int = 0
    ahead_device: str = "auto"
    max_ratio: float = 2.0
    sync_seconds: float = field(default=0.0, init=False)
    start_seconds: float = field(default=0.0, init=False)
    origin: str = field(default="", init=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.batch_size < 1:
            raise ValueError(f"sampler.batch_size={self.batch_size} samples nothing; choose >= 1.")
        if self.ahead not in (0, 1):
            raise ValueError(f"sampler.ahead={self.ahead}: prompts are sampled one round ahead, or none; type 1 or 0.")
        if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", self.ahead_device):
            raise ValueError(f"sampler.ahead_device={self.ahead_device} is none of auto, cpu, cuda and cuda:N.")
        if not self.max_ratio >= 1:
            raise ValueError(
                f"sampler.max_ratio={self.max_ratio} leaves no ratio in [1/{self.max_ratio}, {self.max_ratio}]; choose "
                ">= 1 (1 = responses that were sampled ahead weigh like others)."
            )

    def sample(
        self,
        policy: Policy,
        prompts: Sequence[Ids],
        seeds: Sequence[Sequence[int]],
        *,
        settings: SamplingSettings | None = None,
        done: OnComplete = lambda ended: None,
    ) -> list[list[Response]]:
        """Sample one response for each seed of each prompt; the same seed gives the same text.

        Args:
            policy: Whose responses.
            prompts: Token ids, chat template applied.
            seeds: Per prompt one seed a response.
            settings: The distribution of this call; None = the engine's own settings.
            done: Called during the sampling with the prompts that are complete: each one's position and all its
                responses. What it raises ends the sampling.
        """
        request = Request(policy, prompts, seeds, self if settings is None else settings)
        policy.tokens.refuse_beyond_window(max(map(len, prompts), default=0) + request.settings.max_new_tokens)
        return self.answer(request, done)

    @abstractmethod
    def answer(self, request: Request, done: OnComplete) -> list[list[Response]]:
        """Sample the responses of a request."""

    def refuse_ranks(self, ranks: int) -> None:  # most engines work with any number
        """Raise a ValueError for a number of processes that the engine cannot sample in, before weights are loaded."""

    def expect(self, settings: SamplingSettings) -> None:  # most engines work with any
        """Learn, before the engine starts, what the evaluation will sample."""

    def close(self) -> None:  # an engine that holds nothing has nothing to free
        """Free what the engine holds; the next call starts it again."""


def check_engine(engine: str, policy: Policy, prompt: Ids, response: Response) -> None:
    """Raise a ValueError if the log-prob that an engine gave a response differs from the policy's own."""
    ((own,),) = policy.score([Candidates(Prompt("", ""), (response,), tuple(prompt))])
    n = len(response.ids)
    rounding = 0.01 * n if policy.compute_dtype == torch.float32 else 0.5 + 0.2 * n
    if abs(own - response.logp) > rounding:
        raise ValueError(
            f"sampler={engine} gave a response of {n} tokens the log-probability {response.logp:.2f}, and the policy "
            f"gives it {own:.2f}: the engine samples another model than {policy.source.name} as it is trained. Choose "
            "another sampler, or another adapter."
        )


def as_response(policy: Policy, ids: Sequence[int], logp: float) -> Response:
    """Make a response of sampled token ids; a token that ended it stays in the ids, not in the text."""
    finished = bool(ids) and ids[-1] in policy.tokens.stop_ids
    return Response(policy.tokens.decode(ids).strip(), token_ids(ids), finished, logp)
