"""Sampling with vLLM in this process.

The engine starts once and takes each round's weights by vLLM's own update call, from the policy's tensors, without a
file. Its first response after a start is scored by the policy: an engine that samples another model is refused.
"""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

import torch
from lightning.pytorch.utilities.seed import isolate_rng

from choosy.models.policy import Policy
from choosy.models.trust import loaded
from choosy.parallel.ranks import current_ranks
from choosy.sampling.protocol import OnComplete, Request, Sampler, as_response, check_engine
from choosy.sampling.settings import SamplingSettings
from choosy.types import Response

HOW_TO_INSTALL = (
    "sampler=vllm needs vLLM 0.32, which is not installed. On a GPU: pip install 'vllm==0.32.*'. On a CPU: "
    "make test-vllm builds .venv-vllm, which has it (pip install --no-deps -r requirements-vllm.txt, see there). "
    "Or choose sampler=generate."
)


def is_installed() -> bool:
    """Whether vLLM can be imported; imports nothing."""
    return find_spec("vllm") is not None


@dataclass(kw_only=True, eq=False)
class Vllm(Sampler):
    """Samples with a vLLM engine that is started once and follows the policy by weight updates.

    Args:
        max_prompt_tokens: Longest prompt; with `max_new_tokens` the longest sequence the engine is built for.
        cache_gib: Memory of the engine's cache on a CPU, in GiB.
        gpu_memory: Share of a GPU's memory for the engine's weights and cache; training needs the rest.
        compiled: Let vLLM compile the model and capture graphs: a slower start, faster steps.
    """

    max_prompt_tokens: int = 512
    cache_gib: int = 1
    gpu_memory: float = 0.4
    compiled: bool = True
    _llm: Any = field(default=None, init=False, repr=False)
    _checked: bool = field(default=False, init=False, repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.cache_gib < 1:
            raise ValueError(f"sampler.cache_gib={self.cache_gib} holds no cache; choose at least 1.")
        if not 0 < self.gpu_memory <= 1:
            raise ValueError(f"sampler.gpu_memory={self.gpu_memory} is no share of a GPU's memory; choose in (0, 1].")
        if not is_installed():
            raise ValueError(HOW_TO_INSTALL)

    def answer(self, request: Request, done: OnComplete) -> list[list[Response]]:
        policy, prompts, seeds, settings = request
        for name, tokens in (
            ("max_prompt_tokens", max(map(len, prompts), default=0)),
            ("max_new_tokens", settings.max_new_tokens),
        ):
            if tokens > (most := getattr(self, name)):
                raise ValueError(
                    f"{name}={tokens} is wanted and the engine is built for sampler.{name}={most}; type "
                    f"sampler.{name}={tokens} or more."
                )
        wanted = [(p, n) for p in range(len(prompts)) for n in range(len(seeds[p]))]
        if not wanted:
            return [[] for _ in prompts]
        with policy.for_sampling():
            if self._llm is None:
                self._llm = self._start(policy)
            self._hand_over(policy)
        queued = self._llm.enqueue(
            [{"prompt_token_ids": list(prompts[p])} for p, _ in wanted],
            [sampling_params(policy, seeds[p][n], settings) for p, n in wanted],
            use_tqdm=False,
        )
        names = [name.partition("-")[0] for name in queued]  # an output has its name without what the engine adds
        place_of = dict(zip(names, wanted, strict=True))
        responses = request.blank
        left = [len(of_prompt) for of_prompt in seeds]
        with closing(self._ended(names)) as ended:
            for output in ended:
                (p, n), sampled = place_of[output.request_id], output.outputs[0]
                responses[p][n] = as_response(policy, sampled.token_ids, float(sampled.cumulative_logprob))
                if not self._checked:
                    check_engine("vllm", policy, prompts[p], responses[p][n])
                    self._checked = True
                left[p] -= 1
                if not left[p]:
                    done({p: responses[p]})
        return responses

    def close(self) -> None:
        if self._llm is None:
            return
        from vllm.distributed import cleanup_dist_env_and_memory

        self._llm.llm_engine.engine_core.shutdown()
        self._llm, self._checked = None, False
        cleanup_dist_env_and_memory()
        gc.collect()

    def _ended(self, names: Sequence[str]) -> Generator[Any]:
        """Yield requests as they end; the rest is aborted if the caller stops early."""
        engine, left = self._llm.llm_engine, set(names)
        try:
            while left:
                for output in engine.step():
                    if output.finished:
                        left.remove(output.request_id)
                        yield output
        finally:
            if left:
                engine.abort_request(sorted(left))

    def _start(self, policy: Policy) -> Any:
        refuse_ranks(current_ranks().size)
        if not policy.is_mergeable:
            raise ValueError(
                f"sampler=vllm samples merged weights, and the adapter {policy.adapter} cannot be merged exactly; "
                "choose sampler=generate, or a plain LoRA adapter."
            )
        with undisturbed(VLLM_CPU_KVCACHE_SPACE=str(self.cache_gib)):
            from vllm import LLM
            from vllm.platforms import current_platform

            refuse_device(policy.device.type, current_platform.device_type)
            options = {} if current_platform.is_cpu() else {"gpu_memory_utilization": self.gpu_memory}
            return loaded(
                LLM,
                policy.source.resolved,
                trusted=policy.source.trust_remote_code,
                option="model.trust_remote_code",
                revision=policy.source.revision,
                dtype=str(policy.compute_dtype).removeprefix("torch."),
                max_model_len=min(self.max_prompt_tokens + self.max_new_tokens, policy.tokens.window or 1 << 30),
                max_num_seqs=self.batch_size,
                skip_tokenizer_init=True,  # token ids in, token ids out
                enforce_eager=not self.compiled,
                **options,
            )

    def _hand_over(self, policy: Policy) -> None:
        begun = time.perf_counter()
        weights = list(policy.sampling_weights())
        self._llm.collective_rpc("reload_weights", kwargs={"weights_iterator": weights})
        self._llm.reset_prefix_cache()  # what was computed with the old weights
        self.sync_seconds += time.perf_counter() - begun


def sampling_params(policy: Policy, seed: int, settings: SamplingSettings) -> Any:
    """The settings of one response as vLLM takes them."""
    from vllm import SamplingParams

    return SamplingParams(
        temperature=settings.temperature,
        top_p=settings.top_p,
        top_k=settings.top_k,
        max_tokens=settings.max_new_tokens,
        seed=seed,
        stop_token_ids=sorted(policy.tokens.stop_ids),
        ignore_eos=True,  # stop_token_ids has it
        logprobs=0,  # of the sampled token alone, before temperature and cuts
        detokenize=False,
    )


def refuse_ranks(ranks: int) -> None:
    """Raise a ValueError for a run of several processes: an engine belongs to one."""
    if ranks > 1:
        raise ValueError(
            f"sampler=vllm runs one engine in one process, and this run has {ranks}; "
            "choose sampler=generate, or trainer.devices=1."
        )


def refuse_device(policy_on: str, built_for: str) -> None:
    """Raise a ValueError where the installed vLLM is built for another device than the policy's."""
    if policy_on != built_for:
        raise ValueError(
            f"The policy is on {policy_on} and the installed vLLM is built for {built_for}; choose "
            f"trainer={'cpu' if built_for == 'cpu' else 'gpu'}, or sampler=generate."
        )


@contextmanager
def undisturbed(**settings: str) -> Iterator[None]:
    """Start an engine within the block, with these environment variables, and leave the process as it was.

    vLLM leaves variables in the environment, seeds every random generator, and replaces `torch.set_num_threads`. Its
    engine runs in this process, so that nothing of it outlives the run. The user's own variables win.
    """
    wanted = {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # the training's threads are these threads
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_LEVEL": "ERROR",
        **settings,
    }
    environ, set_num_threads = dict(os.environ), torch.set_num_threads
    os.environ.update({name: value for name, value in wanted.items() if name not in environ})
    try:
        with isolate_rng():
            yield
    finally:
        os.environ.clear()
        os.environ.update(environ)
        torch.set_num_threads = set_num_threads
