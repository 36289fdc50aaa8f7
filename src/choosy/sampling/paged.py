"""Sampling in this process by transformers' continuous batching: a paged cache, and a new request for each that ends.

The engine runs the policy's own model, so no weights are copied. It draws tokens for the whole batch from one stream,
which would make a response depend on its neighbours; a logits processor of ours chooses each token from the response's
own stream instead, and leaves the engine nothing but that token to take.

Axes: R rows (requests that get a token in this step), V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor
from transformers import ContinuousBatchingConfig, GenerationConfig, LogitsProcessorList, PreTrainedModel
from transformers.generation.continuous_batching.cb_logits_processors import (
    ContinuousBatchingLogitsProcessor,
    ContinuousBatchingLogitsProcessorList,
)
from transformers.generation.continuous_batching.requests import FutureRequestState

from choosy.models.logprobs import Ids
from choosy.models.policy import Policy
from choosy.sampling.generate import choose_token, uniforms
from choosy.sampling.protocol import Done, as_response, refuse_settings
from choosy.types import Response

Shape = tuple[float, float, int]  # temperature, top_p, top_k


class Paged:
    """Samples with transformers' continuous batching and the policy's own weights.

    Args:
        temperature: 1 samples the policy itself; smaller is sharper; 0 takes the likeliest token.
        top_p: Smallest share of probability that the candidate tokens must reach; 1 = all tokens.
        top_k: Most candidate tokens; 0 = all.
        max_new_tokens: Longest response, end-of-sequence token included.
        batch_size: Responses in flight at once.
        page_size: Tokens of one page of the cache; responses to one prompt share its whole pages.
    """

    def __init__(
        self,
        *,
        temperature: float = 1.0,
        top_p: float = 1.0,
        top_k: int = 0,
        max_new_tokens: int = 256,
        batch_size: int = 64,
        page_size: int = 32,
    ) -> None:
        refuse_settings(
            temperature=temperature, top_p=top_p, top_k=top_k, max_new_tokens=max_new_tokens, batch_size=batch_size
        )
        if page_size < 4:
            raise ValueError(f"sampler.page_size={page_size} is too small for a page of the cache; choose >= 4.")
        self.temperature = temperature
        self.top_p = top_p
        self.top_k = top_k
        self.max_new_tokens = max_new_tokens
        self.batch_size = batch_size
        self.page_size = page_size
        self.sync_seconds = 0.0  # the policy itself is sampled

    def close(self) -> None: ...

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
        responses: list[list[Response]] = [[Response("")] * len(of_prompt) for of_prompt in seeds]
        order = sorted(
            range(len(prompts)), key=lambda p: -len(prompts[p])
        )  # the longest first: none is left at the end
        wanted = [(p, n) for p in order for n in range(len(seeds[p]))]
        draw = Draw((1.0, 1.0, 0) if plain else (self.temperature, self.top_p, self.top_k), self.max_new_tokens)
        left = [len(of_prompt) for of_prompt in seeds]

        def ended(name: str, ids: Sequence[int], logp: float) -> None:
            p, n = map(int, name.split("."))
            responses[p][n] = as_response(policy, ids, logp)
            left[p] -= 1
            if not left[p]:
                done({p: responses[p]})

        with policy.for_sampling(), pageable(policy.causal_lm):
            if wanted:  # a rank with nothing to sample meets the others all the same
                self._run(policy, {f"{p}.{n}": (prompts[p], seeds[p][n]) for p, n in wanted}, draw, ended)
        return responses

    def _run(
        self,
        policy: Policy,
        requests: Mapping[str, tuple[Ids, int]],
        draw: Draw,
        ended: Callable[[str, Sequence[int], float], None],
    ) -> None:
        longest = max(len(ids) for ids, _ in requests.values())
        in_flight = min(self.batch_size, len(requests))
        pages = math.ceil((longest + self.max_new_tokens) / self.page_size) + 1
        model: Any = policy.causal_lm  # transformers mixes the method in where no type shows it
        manager = model.init_continuous_batching(
            generation_config=GenerationConfig(  # type: ignore[no-untyped-call]
                do_sample=False,  # the likeliest token is the one that Draw has left
                max_new_tokens=self.max_new_tokens,
                eos_token_id=sorted(policy.stop_ids),
                pad_token_id=policy.tokenizer.pad_token_id,
            ),
            continuous_batching_config=ContinuousBatchingConfig(
                page_size=self.page_size,
                num_blocks=in_flight * pages,
                max_batch_tokens=max(in_flight, 512),
                max_requests_per_batch=in_flight,
                use_cuda_graph=False,  # Draw is Python that runs in every step
                use_async_batching=False,  # and reads a step's log-probs before the next one begins
            ),
        )
        manager.logit_processor = draw.alone()
        manager.start()
        try:
            for name, (ids, seed) in requests.items():
                manager.add_request(list(ids), request_id=name, eos_token_id=sorted(policy.stop_ids), seed=seed)
            left, sampled = len(requests), dict[str, Sequence[int]]()
            while left:
                output = manager.get_result(timeout=1.0)
                if output is None:
                    if not manager.is_running():
                        fatal = manager.background_thread_status.fatal_error
                        raise RuntimeError(f"continuous batching stopped before its last response: {fatal}")
                elif output.error is not None:
                    raise RuntimeError(f"continuous batching could not sample a response: {output.error}")
                elif output.is_finished():
                    sampled[output.request_id] = output.generated_tokens
                    left -= 1
                for name in filter(draw.knows, tuple(sampled)):
                    ended(name, sampled.pop(name), draw.logps[name])
        finally:
            manager.stop(block=True, hard_stop=True)
            manager.destroy()
        draw.collect()
        for name, ids in sampled.items():
            ended(name, ids, draw.logps[name])


@contextmanager
def pageable(model: PreTrainedModel) -> Iterator[None]:
    """The model with an attention that reads a paged cache within the block, its own again after it."""
    own = model.config._attn_implementation
    try:
        if own != "sdpa" and not own.startswith("flash"):
            model.set_attn_implementation("sdpa")
        yield
    finally:
        model.set_attn_implementation(own)


class Draw(ContinuousBatchingLogitsProcessor):
    """Chooses each request's next token with the request's own draws, and sums the policy's log-probs of the tokens.

    Args:
        shape: Temperature, top_p and top_k.
        max_new_tokens: The most draws that a request needs.

    Attributes:
        logps: The policy's log-prob of each request's tokens; without the last step's until that is collected.
    """

    def __init__(self, shape: Shape, max_new_tokens: int) -> None:
        self.shape = shape
        self.max_new_tokens = max_new_tokens
        self.supported_kwargs = {"seed": int}  # what a request may bring, and what it may bring in vain
        self.ignored_kwargs = ()
        self._draws: dict[str, list[float]] = {}
        self.logps: dict[str, float] = {}
        self._in_step: list[str] = []
        self._logp_R: Tensor | None = None  # of the last step: written on the device, read when the next one begins

    def alone(self) -> ContinuousBatchingLogitsProcessorList:
        """The list of processors of a manager, with this one and no other."""
        processors = ContinuousBatchingLogitsProcessorList(LogitsProcessorList([self]))
        processors.tensors_required = 1
        return processors

    def knows(self, name: str) -> bool:
        """Whether the log-prob of a request that has ended is all there; asked while the manager goes on."""
        return self._logp_R is None or name not in self._in_step

    def fill_defaults(self, int32_tensor: Tensor) -> None:
        int32_tensor.zero_()

    def prepare_tensor_args(self, requests_with_new_token: list[FutureRequestState]) -> Tensor:
        """Each request's next draw, as the bits of a float, which is how the manager moves arguments."""
        self.collect()
        self._in_step = [request.state.request_id for request in requests_with_new_token]
        draws = [self._next_draw(request) for request in requests_with_new_token]
        return torch.tensor(draws, dtype=torch.float32).view(torch.int32)

    def _next_draw(self, request: FutureRequestState) -> float:
        state = request.state
        if state.request_id not in self._draws:
            seed = state.logit_processor_kwargs["seed"]
            self._draws[state.request_id] = uniforms(seed, self.max_new_tokens)
            self.logps[state.request_id] = 0.0
        # a request that had to make room comes back with its tokens behind its prompt
        earlier = len(state.initial_tokens) - state._true_initial_tokens if state._true_initial_tokens else 0
        return self._draws[state.request_id][earlier + state.generated_len()]

    def __call__(self, scores: Tensor, tensor_arg: Tensor) -> torch.FloatTensor:
        """Scores in which the chosen tokens stand out."""
        draw_R = tensor_arg[: len(scores)].view(torch.float32)
        token_R1 = choose_token(scores, draw_R, *self.shape)[:, None]
        self._logp_R = (scores.gather(-1, token_R1) - scores.logsumexp(-1, keepdim=True)).squeeze(-1)
        return cast(torch.FloatTensor, torch.zeros_like(scores).scatter_(-1, token_R1, 1.0))

    def collect(self) -> None:
        """Add the last step's log-probs, once it is over."""
        if self._logp_R is not None:
            for name, logp in zip(self._in_step, self._logp_R.tolist(), strict=False):
                self.logps[name] += logp
            self._logp_R = None
