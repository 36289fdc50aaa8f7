"""The fastest engine that this device and this installation have."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Literal

from choosy.models.logprobs import Ids
from choosy.models.policy import Policy
from choosy.parallel.ranks import current_ranks
from choosy.sampling.generate import Generate
from choosy.sampling.protocol import Done, Sampler, refuse_settings
from choosy.sampling.vllm import Vllm, is_installed
from choosy.types import Response

log = logging.getLogger(__name__)

Engine = Literal["generate", "vllm"]


def fastest(device: str, *, has_vllm: bool, ranks: int) -> tuple[Engine, str]:
    """Which engine samples fastest, and why; the same answer wherever the same things are there.

    On a CPU vLLM was measured at 1.3 to 1.5 times the speed of `generate`, once it had started (a minute;
    benchmarks/engines.py); on a GPU its kernels and captured graphs are made for this, but it was not measured there.

    Args:
        device: The policy's: cpu, cuda, ...
        has_vllm: Whether vLLM is installed.
        ranks: Processes of the run.

    Example:
        >>> fastest("cpu", has_vllm=True, ranks=1)[0], fastest("cpu", has_vllm=True, ranks=2)[0]
        ('vllm', 'generate')
    """
    if device not in ("cpu", "cuda"):
        return "generate", f"the others do not run on {device}"
    if not has_vllm:
        return "generate", "vLLM, which is faster, is not installed"
    if ranks > 1:
        return "generate", f"vLLM samples in one process, and there are {ranks}"
    return "vllm", "it is installed, and worth the minute that it takes to start"


class Auto:
    """Looks at the device and at what is installed when it first samples, says what it chose, and stays with it.

    Args:
        temperature: 1 samples the policy itself; smaller is sharper; 0 takes the likeliest token.
        top_p: Smallest share of probability that the candidate tokens must reach; 1 = all tokens.
        top_k: Most candidate tokens; 0 = all.
        max_new_tokens: Longest response, end-of-sequence token included.
        batch_size: Responses in flight at once.
        max_prompt_tokens: Longest prompt.
    """

    def __init__(
        self,
        *,
        temperature: float = 1.0,
        top_p: float = 1.0,
        top_k: int = 0,
        max_new_tokens: int = 256,
        batch_size: int = 64,
        max_prompt_tokens: int = 512,
    ) -> None:
        refuse_settings(
            temperature=temperature, top_p=top_p, top_k=top_k, max_new_tokens=max_new_tokens, batch_size=batch_size
        )
        self.temperature = temperature
        self.top_p = top_p
        self.top_k = top_k
        self.max_new_tokens = max_new_tokens
        self.batch_size = batch_size
        self.max_prompt_tokens = max_prompt_tokens
        self._engine: Sampler | None = None

    @property
    def sync_seconds(self) -> float:
        """Of the engine that was chosen."""
        return self._engine.sync_seconds if self._engine else 0.0

    def sample(
        self,
        policy: Policy,
        prompts: Sequence[Ids],
        seeds: Sequence[Sequence[int]],
        *,
        plain: bool = False,
        done: Done = lambda ended: None,
    ) -> list[list[Response]]:
        """One response for each seed of each prompt (see `Sampler.sample`)."""
        if self._engine is None:
            ranks = current_ranks()
            name, why = fastest(policy.device.type, has_vllm=is_installed(), ranks=ranks.size)
            if ranks.rank == 0:
                log.info("sampler=auto samples with %s: %s.", name, why)
            self._engine = self._build(name)
        return self._engine.sample(policy, prompts, seeds, plain=plain, done=done)

    def close(self) -> None:
        """Close the engine that was chosen; the choice stays."""
        if self._engine is not None:
            self._engine.close()

    def _build(self, name: Engine) -> Sampler:
        if name == "vllm":
            return Vllm(
                temperature=self.temperature,
                top_p=self.top_p,
                top_k=self.top_k,
                max_new_tokens=self.max_new_tokens,
                batch_size=self.batch_size,
                max_prompt_tokens=self.max_prompt_tokens,
            )
        return Generate(
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            max_new_tokens=self.max_new_tokens,
            batch_size=self.batch_size,
        )
