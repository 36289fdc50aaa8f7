"""An engine that is chosen by the device, among those installed."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Literal

from choosy.models.policy import Policy
from choosy.parallel.ranks import current_ranks
from choosy.parallel.sharding import is_sharded
from choosy.sampling.generate import Generate
from choosy.sampling.protocol import OnComplete, Request, Sampler
from choosy.sampling.settings import SamplingSettings
from choosy.sampling.vllm import Vllm, is_installed
from choosy.terminal import logger
from choosy.types import Response

log = logger(__name__)

Engine = Literal["generate", "vllm"]


def fastest(device: str, *, has_vllm: bool, sharded: bool = False, mergeable: bool = True) -> tuple[Engine, str]:
    """Name the engine that samples fastest, with the reason.

    On a CPU vLLM was measured at 1.3 to 1.5 times the speed of `generate`, once it had started (a minute;
    benchmarks/engines.py); on a GPU its kernels and captured graphs are made for this, but it was not measured.

    Example:
        >>> fastest("cpu", has_vllm=True)[0], fastest("cpu", has_vllm=True, sharded=True)[0]
        ('vllm', 'generate')
    """
    if device not in ("cpu", "cuda"):
        return "generate", f"the others do not run on {device}"
    if not has_vllm:
        return "generate", "vLLM, which is faster, is not installed"
    if sharded:
        return "generate", "vLLM keeps whole weights on each device, and these are sharded"
    if not mergeable:
        return "generate", "vLLM takes plain LoRA on whole weights, and these are of another kind"
    return "vllm", "it is installed, and worth the minute that it takes to start"


@dataclass(kw_only=True, eq=False)
class Auto(Sampler):
    """Chooses an engine by the device and by what is installed when it first samples, and logs which.

    Args:
        max_prompt_tokens: Longest prompt.
    """

    max_prompt_tokens: int = 512
    _engine: Sampler | None = field(default=None, init=False, repr=False)
    _expected: SamplingSettings | None = field(default=None, init=False, repr=False)

    def expect(self, settings: SamplingSettings) -> None:
        self._expected = settings

    def answer(self, request: Request, done: OnComplete) -> list[list[Response]]:
        if self._engine is None:
            self._engine = self._choose(request.policy)
        responses = self._engine.answer(request, done)
        for name in ("start_seconds", "sync_seconds", "origin"):
            setattr(self, name, getattr(self._engine, name))
        return responses

    def close(self) -> None:
        if self._engine is not None:
            self._engine.close()

    def _choose(self, policy: Policy) -> Sampler:
        about = {"has_vllm": is_installed(), "sharded": is_sharded(policy), "mergeable": policy.is_mergeable}
        name, why = fastest(policy.device.type, **about)
        if current_ranks().rank == 0:
            log.info("sampler=auto samples with %s: %s.", name, why)
        own = {f.name: getattr(self, f.name) for f in fields(Sampler) if f.init}
        if name == "generate":
            return Generate(**own)
        engine = Vllm(max_prompt_tokens=self.max_prompt_tokens, **own)
        if self._expected is not None:
            engine.expect(self._expected)
        return engine
