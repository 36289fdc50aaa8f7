"""An engine that is chosen by the device, among those installed."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Literal

from choosy.parallel.ranks import current_ranks
from choosy.sampling.generate import Generate
from choosy.sampling.protocol import OnComplete, Request, Sampler
from choosy.sampling.vllm import Vllm, is_installed
from choosy.terminal import logger
from choosy.types import Response

log = logger(__name__)

Engine = Literal["generate", "vllm"]


def fastest(device: str, *, has_vllm: bool, ranks: int) -> tuple[Engine, str]:
    """Name the engine that samples fastest, with the reason.

    On a CPU vLLM was measured at 1.3 to 1.5 times the speed of `generate`, once it had started (a minute;
    benchmarks/engines.py); on a GPU its kernels and captured graphs are made for this, but it was not measured.

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


@dataclass(kw_only=True, eq=False)
class Auto(Sampler):
    """Chooses an engine by the device and by what is installed when it first samples, and logs which.

    Args:
        max_prompt_tokens: Longest prompt.
    """

    max_prompt_tokens: int = 512
    _engine: Sampler | None = field(default=None, init=False, repr=False)

    def answer(self, request: Request, done: OnComplete) -> list[list[Response]]:
        if self._engine is None:
            self._engine = self._choose(request.policy.device.type)
        responses = self._engine.answer(request, done)
        self.sync_seconds = self._engine.sync_seconds
        return responses

    def close(self) -> None:
        if self._engine is not None:
            self._engine.close()

    def _choose(self, device: str) -> Sampler:
        ranks = current_ranks()
        name, why = fastest(device, has_vllm=is_installed(), ranks=ranks.size)
        if ranks.rank == 0:
            log.info("sampler=auto samples with %s: %s.", name, why)
        own = {f.name: getattr(self, f.name) for f in fields(Sampler) if f.init}
        return Vllm(max_prompt_tokens=self.max_prompt_tokens, **own) if name == "vllm" else Generate(**own)
