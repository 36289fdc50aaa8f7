"""Sampling with vLLM in the processes of a run, each with an engine of its own or with its share of one.

The engine starts once and takes each round's weights by vLLM's own update call, from the policy's tensors, without a
file. Its first response after a start is scored by the policy: an engine that samples another model is refused.

Engines of several ranks start together, because vLLM makes groups of processes for them, and sharded weights are
gathered together. Between that and the end of the call a rank waits for those only that share its engine. They give it
the same requests in the same order, those of all of them, so that it takes the same steps on each.
"""

from __future__ import annotations

import gc
import os
import platform
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass, field
from importlib.util import find_spec
from itertools import chain
from tempfile import TemporaryDirectory
from typing import Any, get_args
from unittest.mock import patch

import torch
from lightning.pytorch.utilities.seed import isolate_rng

from choosy.errors import refuse_unknown
from choosy.models.compute import free_memory
from choosy.models.policy import Policy
from choosy.models.rows import Ids
from choosy.models.trust import loaded
from choosy.parallel.ranks import OneRank, Ranks, current_ranks, shares_of
from choosy.sampling.protocol import OnComplete, Request, Sampler, as_response, check_engine
from choosy.sampling.settings import SamplingSettings
from choosy.sampling.vllm_refusals import (
    Sync,
    engine_rank,
    refuse_device,
    refuse_group,
    refuse_place,
    refuse_ranks,
    refuse_shares,
    refuse_sync,
)
from choosy.types import Response

HOW_TO_INSTALL = (
    "sampler=vllm needs vLLM 0.32, which is not installed. On a GPU: pip install 'vllm==0.32.*'. On a CPU: "
    "make test-vllm builds .venv-vllm, which has it (pip install --no-deps -r requirements-vllm.txt, see there). "
    "Or choose sampler=generate."
)


Asked = tuple[Ids, int]  # one response: to which prompt, by which seed

CPU_BLOCK = 128  # tokens of a block of vLLM's cache on a CPU


def is_installed() -> bool:
    """Whether vLLM can be imported; imports nothing."""
    return find_spec("vllm") is not None


@dataclass(kw_only=True, eq=False)
class Vllm(Sampler):
    """Samples with a vLLM engine that is started once and follows the policy by weight updates.

    Args:
        max_prompt_tokens: Longest prompt; with `max_new_tokens` the longest sequence the engine is built for.
        sync: How the engine gets the policy's weights in each call: LoRA `merged` into all of them, or as an `adapter`
            on the engine's own copy of the model.
        tensor_parallel: Processes that share an engine: each holds a part of every layer, and samples with the others.
        sleep: Let the engine give its memory on a GPU free between the calls.
        cache_gib: Memory of each engine's cache on a CPU, in GiB; None = what `batch_size` of the longest sequences
            fill, and at most half of what is free, shared among the processes of the machine.
        gpu_memory: Share of the memory that is free on a GPU, the policy loaded, for the engine's weights and cache;
            training needs the rest.
        compiled: Let vLLM compile the model and capture graphs: a slower start, faster steps.
    """

    max_prompt_tokens: int = 512
    sync: Sync = "merged"
    tensor_parallel: int = 1
    sleep: bool = False
    cache_gib: float | None = None
    gpu_memory: float = 0.5
    compiled: bool = True
    origin: str = field(default="sampler=vllm", init=False)
    _llm: Any = field(default=None, init=False, repr=False)
    _adapter: Any = field(default=None, init=False, repr=False)  # vLLM's name of the one in force
    _adapters: int = field(default=0, init=False, repr=False)  # handed over so far
    _checked: bool = field(default=False, init=False, repr=False)
    _longest: int = field(default=0, init=False, repr=False)  # response that the engine is built for
    _in_group: bool = field(default=False, init=False, repr=False)  # of the run's, which the engine did not make

    def __post_init__(self) -> None:
        super().__post_init__()
        self._longest = self.max_new_tokens
        refuse_unknown("sampler.sync", self.sync, get_args(Sync))
        if self.tensor_parallel < 1:
            raise ValueError(f"sampler.tensor_parallel={self.tensor_parallel} makes no engine; choose >= 1.")
        if self.tensor_parallel > 1 and self.ahead:
            raise ValueError(
                f"sampler.tensor_parallel={self.tensor_parallel} has processes of the run share an engine, and "
                "sampler.ahead=1 gives each of them a process of its own that samples; choose one of the two."
            )
        if self.tensor_parallel > 1:
            self.origin += f" (engines of {self.tensor_parallel} processes)"
        if self.cache_gib is not None and self.cache_gib <= 0:
            raise ValueError(f"sampler.cache_gib={self.cache_gib} holds no cache; choose above 0, or null.")
        if not 0 < self.gpu_memory <= 1:
            raise ValueError(f"sampler.gpu_memory={self.gpu_memory} is no share of a GPU's memory; choose in (0, 1].")
        if not is_installed():
            raise ValueError(HOW_TO_INSTALL)

    def refuse_ranks(self, ranks: int) -> None:
        refuse_ranks(self.tensor_parallel, ranks)

    def expect(self, settings: SamplingSettings) -> None:
        self._longest = max(self.max_new_tokens, settings.max_new_tokens)

    def answer(self, request: Request, done: OnComplete) -> list[list[Response]]:
        policy, prompts, seeds, settings = request
        for name, tokens, most in (
            ("max_prompt_tokens", max(map(len, prompts), default=0), self.max_prompt_tokens),
            ("max_new_tokens", settings.max_new_tokens, self._longest),
        ):
            if tokens > most:
                raise ValueError(
                    f"{name}={tokens} is wanted and the engine is built for sampler.{name}={most}; type "
                    f"sampler.{name}={tokens} or more."
                )
        ranks = current_ranks()
        refuse_group(policy, self.tensor_parallel, ranks.size)
        first = [(p, s[0]) for p, s in zip(prompts, seeds, strict=True) if s][:1]
        firsts = ranks.gather(first)
        if not firsts:
            return request.blank
        with policy.for_sampling() if self.sync == "merged" else policy.weights_gathered():
            refuse_shares(policy)
            if self._llm is None:
                began = time.perf_counter()
                self._llm = self._start(policy, ranks)
                self.start_seconds += time.perf_counter() - began
            self._hand_over(policy)
        if not self._checked:
            prompt, seed = firsts[0]  # a rank without prompts checks its engine, too
            brief = SamplingSettings(max_new_tokens=min(settings.max_new_tokens, 16))
            ((response,),) = self._sample(Request(policy, [prompt], [[seed]], brief), done=lambda ended: None)
            check_engine("vllm", policy, prompt, response)
            self._checked = True
        responses = self._sample(request, done)
        if self.sleep:  # merged weights are handed over anew, and those under an adapter are kept in the CPU's memory
            self._llm.sleep(level=2 if self.sync == "merged" else 1)
        return responses

    def _sample(self, request: Request, done: OnComplete) -> list[list[Response]]:
        policy, prompts, seeds, settings = request
        wanted = [(p, n) for p in range(len(prompts)) for n in range(len(seeds[p]))]
        shares, mine = self._shares([(prompts[p], seeds[p][n]) for p, n in wanted])
        every = [*chain(*shares)]
        queued = self._llm.enqueue(
            [{"prompt_token_ids": list(prompt)} for prompt, _ in every],
            [sampling_params(policy, seed, settings) for _, seed in every],
            lora_request=self._adapter,
            use_tqdm=False,
        )
        names = [name.partition("-")[0] for name in queued]  # an output has its name without what the engine adds
        before = sum(map(len, shares[:mine]))
        place_of = dict(zip(names[before : before + len(wanted)], wanted, strict=True))
        responses = request.blank
        left = [len(of_prompt) for of_prompt in seeds]
        with closing(self._ended(names)) as ended:
            for output in ended:
                if output.request_id not in place_of:
                    continue  # another rank's, which has it from its own part of the engine
                (p, n), sampled = place_of[output.request_id], output.outputs[0]
                responses[p][n] = as_response(policy, sampled.token_ids, float(sampled.cumulative_logprob))
                left[p] -= 1
                if not left[p]:
                    done({p: responses[p]})
        return responses

    def _shares(self, mine: list[Asked]) -> tuple[list[list[Asked]], int]:
        """Return what each rank asks of the engine that it shares, and this rank's place among them."""
        if self.tensor_parallel == 1:
            return [mine], 0
        from vllm.distributed import get_tp_group

        group = get_tp_group()
        return shares_of(group.cpu_group, mine), group.rank_in_group

    def close(self) -> None:
        if self._llm is None:
            return
        # vLLM would destroy the processes' group, which is the run's own where it was there before the engine
        with patch("vllm.v1.engine.core.cleanup_dist_env_and_memory") if self._in_group else nullcontext():
            self._llm.llm_engine.engine_core.shutdown()
        self._llm, self._adapter, self._checked = None, None, False
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

    def _start(self, policy: Policy, ranks: Ranks) -> Any:
        device, place = policy.device, {}
        self._in_group = not isinstance(ranks, OneRank)
        refuse_sync(policy, self.sync)
        refuse_place(device, ranks.size)
        if self.sleep and device.type == "cpu":
            raise ValueError(
                "sampler.sleep=true gives a GPU's memory free between the calls, and the policy is on the CPU, where "
                "an engine cannot; leave it out."
            )
        options: dict[str, Any] = {"enable_sleep_mode": True} if self.sleep else {}
        if self.sync == "adapter":
            assert policy.lora is not None
            options |= {"enable_lora": True, "max_lora_rank": engine_rank(policy.lora.r)}
        if ranks.size > 1:  # the run has launched the processes
            options["distributed_executor_backend"] = "external_launcher"
            options["tensor_parallel_size"] = self.tensor_parallel
            place = {"RANK": str(ranks.rank), "LOCAL_RANK": str(device.index or 0)}
        tokens = min(self.max_prompt_tokens + self._longest, policy.tokens.window or 1 << 30)
        if device.type == "cpu":
            options["kv_cache_memory_bytes"] = self._cache_bytes(policy, tokens, ranks)
        else:
            free, total = torch.cuda.mem_get_info(device)
            options["gpu_memory_utilization"] = self.gpu_memory * free / total
        with undisturbed(**place), by_sockets():
            from vllm import LLM
            from vllm.platforms import current_platform

            refuse_device(device.type, current_platform.device_type)
            return loaded(
                LLM,
                policy.source.resolved,
                trusted=policy.source.trust_remote_code,
                option="model.trust_remote_code",
                revision=policy.source.revision,
                dtype=str(policy.compute_dtype).removeprefix("torch."),
                max_model_len=tokens,
                max_num_seqs=self.batch_size,
                skip_tokenizer_init=True,  # token ids in, token ids out
                enforce_eager=not self.compiled,
                **options,
            )

    def _cache_bytes(self, policy: Policy, tokens: int, ranks: Ranks) -> int:
        if self.cache_gib is not None:
            return int(self.cache_gib * 2**30)
        here = ranks.gather([platform.node()]).count(platform.node())
        blocks = self.batch_size * -(-tokens // CPU_BLOCK) + 1  # vLLM keeps one empty
        wanted = blocks * CPU_BLOCK * token_bytes(policy, self.tensor_parallel)
        return min(wanted, free_memory(policy.device) // (2 * here))

    def _hand_over(self, policy: Policy) -> None:
        begun = time.perf_counter()
        if asleep := self._llm.llm_engine.is_sleeping():
            torch.cuda.empty_cache()  # the engine takes its memory from the driver, and not of what torch holds
            self._llm.wake_up(tags=["weights"])
        if self.sync == "adapter":
            self._load_adapter(policy)
        else:
            weights = list(policy.sampling_weights())
            self._llm.collective_rpc("reload_weights", kwargs={"weights_iterator": weights})
        self._llm.reset_prefix_cache()  # what was computed with the old weights
        if asleep:
            torch.cuda.empty_cache()
            self._llm.wake_up(tags=["kv_cache"])
        self.sync_seconds += time.perf_counter() - begun

    def _load_adapter(self, policy: Policy) -> None:
        """Load the policy's adapter in the place of the one before; vLLM reads adapters from files only."""
        from vllm.lora.request import LoRARequest

        with TemporaryDirectory() as folder:
            policy.write_adapter(folder)
            self._adapters += 1
            self._adapter = LoRARequest(f"round-{self._adapters}", self._adapters, folder)
            self._llm.llm_engine.add_lora(self._adapter)


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


def token_bytes(policy: Policy, processes: int) -> int:
    """Bytes of a token's keys and values in all layers on each process of an engine, in the forward's precision."""
    config = policy.causal_lm.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return int(2 * config.num_hidden_layers * -(-heads // processes) * width * policy.compute_dtype.itemsize)


@contextmanager
def by_sockets() -> Iterator[None]:
    """Let processes that share an engine, started within the block, talk by torch.distributed.

    On a CPU vLLM would have them talk by shared memory, whose name is that of every other run's on the machine, is left
    behind by a run that is killed, and stops the next one; and in which they would wait without end for one that has
    died. On every device it would make a queue in shared memory, too, which processes of a run never use.
    """
    from vllm.distributed.device_communicators.cpu_communicator import CpuCommunicator
    from vllm.distributed.device_communicators.shm_broadcast import MessageQueue

    with (
        patch.object(CpuCommunicator, "_all_group_ranks_share_shm_group_name", lambda self: False),
        patch.object(MessageQueue, "create_from_process_group", lambda *given: None),
    ):
        yield


@contextmanager
def undisturbed(**settings: str) -> Iterator[None]:
    """Start an engine within the block, with these environment variables, and leave the process as it was.

    vLLM leaves variables in the environment, seeds every random generator, and replaces `torch.set_num_threads`. Its
    engine runs in this process, so that nothing of it outlives the run. The user's own variables win, but for these.
    """
    wanted = {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # the training's threads are these threads
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_LEVEL": "ERROR",
    }
    environ, set_num_threads = dict(os.environ), torch.set_num_threads
    os.environ.update({**wanted, **environ, **settings})
    try:
        with isolate_rng():
            yield
    finally:
        os.environ.clear()
        os.environ.update(environ)
        torch.set_num_threads = set_num_threads
