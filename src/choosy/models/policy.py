"""The policy: the causal language model that is trained.

The reference is a *state of the trainable weights*, not another model: switching to it swaps pointers. Sampling
swaps in merged weights in the same way, so the exact weights are back afterwards.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import replace
from functools import cached_property, partial
from itertools import islice, tee
from typing import Any, cast, get_args

import torch
from peft import PeftModel
from peft.helpers import disable_input_dtype_casting
from torch import Tensor, nn
from transformers import PreTrainedModel

from choosy.errors import refuse_unknown
from choosy.models.adapters import Lora, starting_point, with_tokenizer
from choosy.models.compute import Compute, keep_freed_memory
from choosy.models.experts import Routed, experts_per_token, recorded, routed_by, say_what_is_frozen
from choosy.models.fast.fused import fuse
from choosy.models.fast.recompute import recompute_layers
from choosy.models.loading import (
    Dtype,
    add_adapter,
    auto_dtype,
    give_contiguous_states,
    keep_differentiable,
    load_weights,
    refuse_nf4,
    switch_off_dropout,
)
from choosy.models.locate import ModelSource
from choosy.models.logprobs import (
    can_share_prompt,
    final_states,
    fits_window,
    group_logps,
    sum_by_response,
    takes_one_row,
)
from choosy.models.optimizers import mark_vocabulary
from choosy.models.rows import Group, cut, deduplicated, packed
from choosy.models.saving import write_policy
from choosy.models.states import States, can_merge, computing_in, merged, swapped_in, trainable, unadapted
from choosy.models.tokens import Tokens
from choosy.parallel.ranks import current_ranks
from choosy.parallel.sharding import gathered, is_sharded, lockstep, shard_weights
from choosy.terminal import logger
from choosy.types import Candidates

log = logger(__name__)

Pieces = Iterable[Sequence[Candidates]]
Scored = tuple[float, tuple[float, ...]]  # log-probability of a response, and of its tokens if wanted
Tick = Callable[[int], None]  # is given the number of candidates that have been scored since the last call


class Policy(nn.Module):
    """A language model that can be sampled, scored, trained, and compared with the reference it started as.

    Args:
        name: Hub id or folder of a causal language model, of a run or of an adapter, or `demo:smollm2`.
        lora: Adapters to train; None trains all weights, kept in fp32.
        adapter: Folder of a trained adapter or of its run, that training continues; the reference is then *this* state.
            A tokenizer in that folder, with its chat template, takes the place of the model's.
        dtype: Precision of the forward pass; auto = bf16 where the hardware multiplies it; nf4 = the same, with frozen
            weights kept in 4 bits.
        chat_template: Jinja text, or a file of it, that replaces the tokenizer's chat template.
        chat_template_kwargs: What the chat template is given beside the conversation, such as `enable_thinking`.
        revision: Git revision of a hub model.
        trust_remote_code: Run code that comes with a hub model.
    """

    states: States  # from load() on
    compute_dtype: torch.dtype  # from load() on

    def __init__(
        self,
        name: str,
        *,
        lora: Lora | None = None,
        adapter: str | None = None,
        dtype: Dtype = "auto",
        chat_template: str | None = None,
        chat_template_kwargs: dict[str, Any] | None = None,
        revision: str | None = None,
        trust_remote_code: bool = False,
        compute: Compute = Compute(),
    ) -> None:
        super().__init__()
        refuse_unknown("model.dtype", dtype, get_args(Dtype))
        if dtype == "nf4":
            refuse_nf4(lora=lora is not None)
        name, adapter = starting_point(name, adapter, lora)
        if adapter is not None and lora is None:
            raise ValueError(
                f"{adapter} is an adapter, which model.lora=null does not train; leave model.lora=null out."
            )
        self.source = ModelSource(name, revision, trust_remote_code)
        self.tokens = Tokens(self.source, chat_template, chat_template_kwargs, own=with_tokenizer(adapter))
        self.lora = lora
        self.adapter = adapter
        self.dtype = dtype
        self.compute = compute
        self.model: PreTrainedModel | PeftModel | None = None
        self.is_gathered = True  # whether this rank holds all weights, so that a forward needs no other rank

    # -- weights -----------------------------------------------------------------------------------------------

    def load(self, *, device: torch.device, seed: int, sharded: bool = False) -> None:
        """Load the weights, add an adapter of this seed, and keep this state as the start and the reference.

        If `sharded`, each rank keeps its share of the weights only.
        """
        if self.model is not None:
            return
        if self.compute.keep_freed_memory and device.type == "cpu":
            keep_freed_memory()
        nf4 = self.dtype == "nf4"
        if sharded:
            self.compute.refuse_sharded(nf4=nf4)
        self.compute_dtype = auto_dtype(device) if self.dtype in ("auto", "nf4") else getattr(torch, self.dtype)
        own_dtype = self.compute_dtype if self.lora else torch.float32  # full fine-tuning: fp32 master weights
        model = load_weights(self.source, dtype=own_dtype, attention=self.compute.attention, device=device, nf4=nf4)
        if nf4:
            keep_differentiable(model)
        self.tokens.fit(model)
        give_contiguous_states(model)
        self.model = add_adapter(model, self.lora, self.adapter, seed=seed) if self.lora else model
        switch_off_dropout(self.model)
        say_what_is_frozen(self.model, self.source.name)
        if self.compute.gradient_checkpointing:
            recompute_layers(self.causal_lm, frozen=self.lora is not None)
        if sharded:
            self._shard(device)
        nn.Module.to(self.model, device)
        if self.compute.fused and not sharded and not nf4:  # shards hold shares outside of a forward, nf4 no matrices
            fuse(self.model)
        mark_vocabulary(self.causal_lm)  # last, as adapters copy weights and shards take their place
        self.states = States(self.model, sharded=sharded)

    def _shard(self, device: torch.device) -> None:
        names = set(getattr(self.causal_lm, "_no_split_modules", None) or ())
        layers = [module for module in self.causal_lm.modules() if type(module).__name__ in names]
        if not layers:
            raise ValueError(f"{self.source.name} does not say which of its layers may be sharded; choose trainer=ddp.")
        if not self.is_mergeable:
            raise ValueError(f"trainer=fsdp shards plain LoRA only, which {self.adapter} is not; choose trainer=ddp.")
        # frozen weights and fp32 adapters are gathered as they are, full fine-tuning's master weights as `dtype`
        shard_weights(self, layers, device=device, compute=None if self.lora else self.compute_dtype)
        self.is_gathered = False
        with torch.no_grad():
            self(self._idle)  # in the first forward torch finds which modules belong together
        with self.weights_gathered():
            _ = self.shares_prompts  # computed here, where all ranks are

    def _idle(self) -> Tensor:
        ids_11 = torch.zeros(1, 1, dtype=torch.long, device=self.device)
        return cast(Tensor, self._decoder(input_ids=ids_11, use_cache=False).last_hidden_state)

    @property
    def causal_lm(self) -> PreTrainedModel:
        """The transformers model, adapters injected."""
        assert self.model is not None, "load() comes first"
        if isinstance(self.model, PeftModel):
            return cast(PreTrainedModel, self.model.get_base_model())
        return self.model

    @property
    def _decoder(self) -> nn.Module:
        return cast(nn.Module, self.causal_lm.get_decoder())  # type: ignore[no-untyped-call]  # transformers gives it no type

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.causal_lm.parameters()).device

    def trainable(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Names and parameters of what is trained."""
        assert self.model is not None, "load() comes first"
        return trainable(self.model)

    @contextmanager
    def weights_gathered(self) -> Iterator[None]:
        """Let each rank run as many forwards without gradient within the block as it likes; all ranks must enter.

        Sharded weights are gathered once, if they fit; else by every forward, layer by layer (see `lockstep`).
        """
        if self.is_gathered:
            yield
        elif self._fits():
            with torch.no_grad(), gathered(self, self._idle):
                self.is_gathered = True
                try:
                    yield
                finally:
                    self.is_gathered = False
        else:
            with torch.no_grad(), lockstep(self, self._decoder, self._idle, current_ranks()):
                yield

    def _fits(self) -> bool:
        width = None if self.lora else self.compute_dtype.itemsize
        needed = sum(p.numel() * (width or p.element_size()) for p in self.parameters())
        return self.compute.gathers(needed, self.device, current_ranks())

    @contextmanager
    def for_sampling(self) -> Iterator[None]:
        """Weights that sample fast within the block: the adapter merged, if it can be, in the forward's precision."""
        with ExitStack() as stack:
            stack.callback(self.train, self.training)
            self.eval()
            stack.enter_context(self.weights_gathered())
            if self.is_gathered:
                stack.enter_context(torch.inference_mode())
            if not self.is_gathered or not self.is_mergeable:  # weights gathered layer by layer cannot be merged
                stack.enter_context(self.precision())
            elif is_sharded(self):
                for weight, other in self._weights_that_sample():
                    weight.copy_(other)  # a gathered copy, which ends with the block
            else:
                stack.enter_context(swapped_in(list(self._weights_that_sample())))
            if self.is_gathered and self.is_mergeable and isinstance(self.model, PeftModel):
                stack.enter_context(self.model.disable_adapter())
            yield

    @cached_property
    def is_mergeable(self) -> bool:
        """Whether the policy is one set of weights: it has no adapter, or one that can be merged."""
        return not isinstance(self.model, PeftModel) or can_merge(self.model)

    def _weights_that_sample(self) -> Iterator[tuple[nn.Parameter, Tensor]]:
        if isinstance(self.model, PeftModel):
            return merged(self.model)
        return ((p, p.detach().to(self.compute_dtype)) for p in self.causal_lm.parameters())

    def sampling_weights(self) -> Iterator[tuple[str, Tensor]]:
        """The weights under the names of a checkpoint, for an engine that keeps its own; inside `for_sampling`."""
        if self.dtype == "nf4":
            raise ValueError("sampler=vllm takes no weights in 4 bits (model.dtype=nf4); choose sampler=generate.")
        for name, p in self.causal_lm.named_parameters():
            if ".lora_" not in name:
                yield name.replace(".base_layer.", "."), p.detach()

    # -- log-probabilities -------------------------------------------------------------------------------------

    def precision(self) -> AbstractContextManager[Any]:
        """The forward's precision: adapters and master weights are fp32, the products in `dtype`."""
        if self.compute_dtype == torch.float32:
            return nullcontext()
        stack = ExitStack()
        stack.enter_context(torch.autocast(self.device.type, dtype=self.compute_dtype))
        if isinstance(self.model, PeftModel):
            stack.enter_context(disable_input_dtype_casting(self.model))  # autocast casts the adapter instead
        return stack

    @contextmanager
    def in_fp32(self) -> Iterator[None]:
        """Compute in fp32 within the block, with the same weights, of which copies in fp32 are kept meanwhile."""
        if is_sharded(self) and self.compute_dtype != torch.float32:
            raise ValueError("Sharded weights (trainer=fsdp) have one precision; set model.dtype=float32.")
        coarse = [p for p in self.parameters() if p.is_floating_point() and p.dtype != torch.float32]
        casting = [m for m in self.modules() if getattr(m, "compute_dtype", None) == self.compute_dtype]  # 4 bits too
        with swapped_in([(p, p.data.float()) for p in coarse]), computing_in(casting, torch.float32):
            yield

    @cached_property
    def shares_prompts(self) -> bool:
        """Whether rows share prompts: wanted, and found equal to the padded path on this model."""
        if not self.compute.share_prompt:
            return False
        with self.precision():
            shares = can_share_prompt(self.causal_lm, len(self.tokens.tokenizer))
        if not shares:
            log.warning("%s cannot share prompts between responses; it takes the slower padded path.", self.source.name)
        return shares

    def shares(self, groups: Sequence[Group]) -> bool:
        """Whether these groups share their prompts: each fits into the attention's window, if it has one."""
        if not groups or not self.shares_prompts:
            return False
        return fits_window(self.causal_lm, max(group.tokens for group in groups))

    @property
    def one_row(self) -> bool:
        """Whether the groups of a pass lie one behind the other, without padding."""
        return self.shares_prompts and takes_one_row(self.causal_lm)

    def forward(self, compute: Callable[[], Tensor]) -> Tensor:
        """Compute something with gradients; torch hangs the gathering of sharded weights on this call."""
        return compute()

    def token_logps(
        self, groups: Sequence[Group], *, collisions: bool = False, routed: list[Routed] | None = None
    ) -> Tensor:
        """Log-probability (T,) of every token that the assistant says, response by response, with gradients.

        With `collisions` it is (2, T), with log sum p^2 over the vocabulary at each token's place below it. What the
        routers of a mixture of experts did with the tokens is added to `routed`, if it is given.
        """
        return cast(Tensor, self(lambda: self._token_logps(groups, collisions, routed)))

    def _token_logps(self, groups: Sequence[Group], collisions: bool, routed: list[Routed] | None) -> Tensor:
        distinct, place_T = deduplicated(groups)
        pieces, parts = self.compute.pieces(distinct), []
        logps = partial(group_logps, self.causal_lm, collisions=collisions)
        for number, piece in enumerate(pieces, start=1):
            share = self.shares(piece)
            recompute = number < len(pieces)  # the backward starts with the last, and ends each before the one before
            with self.precision(), recorded(self.causal_lm, wanted=routed is not None) as logits:
                parts.append(logps(piece, share=share, recompute=recompute))
            if routed is not None:
                routed.append(routed_by(self.causal_lm, logits, piece, groups, share=share, one_row=self.one_row))
        return torch.cat(parts, dim=-1)[..., place_T.to(self.device)]

    def has_routers(self) -> bool:
        """Whether there are routers of experts, whose loads can be balanced."""
        with torch.no_grad(), recorded(self.causal_lm) as logits:
            self(self._idle)
        return bool(logits and experts_per_token(self.causal_lm))

    def final_states(self, groups: Sequence[Group]) -> Tensor:
        """Last hidden state (S, D) of every response at the place that predicts its last token, with gradients."""
        return cast(Tensor, self(lambda: self._final_states(groups)))

    def _final_states(self, groups: Sequence[Group]) -> Tensor:
        with self.precision():
            return final_states(self.causal_lm, groups, share=self.shares(groups))

    def score(self, candidates: Sequence[Candidates], tick: Tick = lambda n: None) -> list[list[float]]:
        """Summed log-probability of each response of each candidate, in their order, without gradients."""
        (scored,) = self._scored([candidates], tick, tokens=False)
        return [[logp for logp, _ in of_candidate] for of_candidate in scored]

    def score_reference(
        self, candidates: Sequence[Candidates], tick: Tick = lambda n: None, *, tokens: bool = False
    ) -> list[Candidates]:
        """The candidates with each response's log-probability under the reference, and of its tokens if wanted."""
        (scored,) = self.reference_scores([candidates], tick, tokens=tokens)
        return scored

    def reference_scores(self, pieces: Pieces, tick: Tick, *, tokens: bool) -> Iterator[list[Candidates]]:
        """What `score_reference` gives for each of some pieces; sharded weights are gathered once for all of them."""
        pieces, asked = tee(pieces)
        with self.states.as_reference(), nullcontext() if is_sharded(self) else unadapted(self.model):
            for candidates, scored in zip(pieces, self._scored(asked, tick, tokens=tokens), strict=True):
                found = (zip(c.responses, of, strict=True) for c, of in zip(candidates, scored, strict=True))
                known = ([replace(r, logp_ref=logp, token_logps_ref=each) for r, (logp, each) in of] for of in found)
                yield [replace(c, responses=tuple(of)) for c, of in zip(candidates, known, strict=True)]

    def _scored(self, pieces: Pieces, tick: Tick, *, tokens: bool) -> Iterator[list[list[Scored]]]:
        """What is found for each response of each piece's candidates."""
        was_training = self.training
        self.eval()
        with self.weights_gathered():
            for candidates in pieces:
                every = ((c.prompt_ids, c.responses) for c in candidates)
                groups = [Group(ids, [r.ids for r in of], [r.mask for r in of]) for ids, of in every]
                self.tokens.refuse_beyond_window(max((group.longest for group in groups), default=0))
                share = self.shares(groups)
                laid = groups if share else [piece for group in groups for piece in cut(group, 0)]  # a response each
                group_of = range(len(groups)) if share else [g for g, of in enumerate(groups) for _ in of.response_ids]
                left = Counter(group_of)
                scored: list[list[Scored]] = [[] for _ in laid]
                for batch in packed(laid, self.compute.tokens_per_step, one_row=share and self.one_row):
                    chosen = [laid[n] for n in batch]
                    with torch.no_grad(), self.precision():
                        logp_T = group_logps(self.causal_lm, chosen, share=share).cpu()
                    logp_T_of = torch.split(logp_T, [len(places) for group in chosen for places in group.places])
                    of_tokens = (tuple(each.tolist()) if tokens else () for each in logp_T_of)
                    found = zip(sum_by_response(logp_T, chosen).tolist(), of_tokens, strict=True)
                    for n, group in zip(batch, chosen, strict=True):
                        scored[n] = [*islice(found, len(group.response_ids))]
                    left.subtract(touched := [group_of[n] for n in batch])
                    tick(sum(left[g] == 0 for g in set(touched)))
                in_order = (one for of in scored for one in of)
                yield [[*islice(in_order, len(group.response_ids))] for group in groups]
        self.train(was_training)

    def write_adapter(self, folder: str) -> None:
        """Write the adapter as it is now in PEFT's format, for an engine of this rank; inside `weights_gathered`."""
        assert isinstance(self.model, PeftModel), "only LoRA has one"
        state = {name: p.detach().clone() for name, p in self.trainable()}  # state_dict() would shard them again
        self.model.save_pretrained(folder, state_dict=state, save_embedding_layers=False)

    # -- the files of the trained policy -----------------------------------------------------------------------

    def save(self, folder: str) -> None:
        """Write the adapter, or the whole model, with its tokenizer, in Hugging Face format, on rank 0."""
        assert self.model is not None, "load() comes first"
        shared = None
        if is_sharded(self):
            shared = {name for name, _ in self.trainable()} if self.lora else self.model.state_dict().keys()
        write_policy(folder, self.model, self.tokens, dtype=self.compute_dtype, shared=shared)
