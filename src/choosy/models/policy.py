"""The policy and its reference: a causal language model with its tokenizer, LoRA or full, and its states.

The reference is a *state of the trainable weights*, not another model: switching to it swaps pointers. Sampling
swaps in merged weights in the same way, so the exact weights are back afterwards.
"""

from __future__ import annotations

import logging
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal, cast

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.helpers import disable_input_dtype_casting
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as hf_logging

from choosy.models.fast import tree_attention as grouped
from choosy.models.fast.fused import fuse
from choosy.models.fast.memory import free_memory, keep_freed_memory
from choosy.models.locate import resolve_model
from choosy.models.logprobs import (
    can_share_prompt,
    last_hidden,
    padded_token_logps,
    score_groups,
    sum_by_response,
    takes_one_row,
    token_logps,
)
from choosy.models.rows import Group, Ids, share_prompt
from choosy.parallel.ranks import current_ranks
from choosy.parallel.sharding import full_tensor, gathered, is_sharded, local, lockstep, placed_like, shard_weights
from choosy.types import Candidates, Prompt, Response

log = logging.getLogger(__name__)

Dtype = Literal["auto", "bfloat16", "float32"]
Gather = Literal["auto", "always", "never"]


@dataclass(frozen=True)
class Lora:
    """Low-rank adapters, in fp32 on frozen weights.

    Args:
        r: Rank.
        alpha: Scale; the update is multiplied by alpha / r.
        targets: Which layers: `all-linear`, or names.
    """

    r: int = 16
    alpha: int = 32
    targets: str | list[str] = "all-linear"


def auto_dtype(device: torch.device) -> torch.dtype:
    """bf16 where the hardware multiplies it, else fp32."""
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    cpu = torch.backends.cpu.get_cpu_capability() if device.type == "cpu" else ""
    fast = cpu.startswith("AVX512") and torch.ops.mkldnn._is_mkldnn_bf16_supported() and _multiplies_bf16()
    return torch.bfloat16 if fast else torch.float32


def _multiplies_bf16() -> bool:
    known = (getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
    return any(has() for has in known if has is not None)


class Policy(nn.Module):
    """A language model that can be sampled, scored, trained, and compared with the reference it started as.

    Args:
        name: Hub id or folder of a causal language model, or `demo:smollm2`.
        lora: Adapters to train; None trains all weights, kept in fp32.
        adapter: Folder of a trained adapter to go on from; the reference is then *this* state.
        dtype: Precision of the forward pass; auto = bf16 where the hardware multiplies it.
        attention: Attention implementation of transformers, or `grouped`; auto = grouped on a CPU, if the model takes
            it, else what transformers chooses: sdpa where it can.
        share_prompt: Compute a prompt once for all its responses, where the architecture allows it.
        tokens_per_step: Tokens of a forward pass, padding included.
        gradient_checkpointing: Recompute activations in the backward: less memory, more time.
        fused: Layers that do the same in fewer passes over memory, where they give equal values; not of weights that
            are sharded (trainer=fsdp).
        gather: Whether sharded weights (trainer=fsdp) are gathered once for a whole phase of sampling or scoring:
            `auto` = if they fit into half of the free memory; else each forward gathers them layer by layer.
        chat_template: Jinja text that replaces the tokenizer's chat template.
        revision: Git revision of a hub model.
        trust_remote_code: Run code that comes with a hub model.
    """

    def __init__(
        self,
        name: str,
        *,
        lora: Lora | None = None,
        adapter: str | None = None,
        dtype: Dtype = "auto",
        attention: str = "auto",
        share_prompt: bool = True,
        tokens_per_step: int = 2048,
        gradient_checkpointing: bool = False,
        fused: bool = True,
        gather: Gather = "auto",
        chat_template: str | None = None,
        revision: str | None = None,
        trust_remote_code: bool = False,
    ) -> None:
        super().__init__()
        if tokens_per_step < 1:
            raise ValueError(f"batching.tokens_per_step={tokens_per_step} holds no token; choose at least 1.")
        if gather not in ("auto", "always", "never"):
            raise ValueError(f"model.gather={gather} is none of auto, always, never.")
        if adapter is not None and lora is None:
            raise ValueError(f"model.adapter={adapter} continues an adapter, but model.lora is null; set model.lora.")
        self.name = name
        self.lora = lora
        self.adapter = adapter
        self.dtype = dtype
        self.attention = attention
        self.share_prompt = share_prompt
        self.tokens_per_step = tokens_per_step
        self.gradient_checkpointing = gradient_checkpointing
        self.fused = fused
        self.gather: Gather = gather
        self.chat_template = chat_template
        self.revision = revision
        self.trust_remote_code = trust_remote_code
        self.model: PreTrainedModel | PeftModel | None = None
        self.initial: dict[str, Tensor] = {}
        self.reference_state: dict[str, Tensor] = {}
        self.is_gathered = True  # whether a forward needs no other rank
        self._encoded: dict[Prompt, array[int]] = {}  # four bytes a token; a tuple has 36

    # -- text and tokens ---------------------------------------------------------------------------------------

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer, loaded at first use."""
        hf_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
        where = resolve_model(self.name)
        try:
            tokenizer = AutoTokenizer.from_pretrained(
                where, revision=self.revision, trust_remote_code=self.trust_remote_code
            )
        except OSError as error:
            raise ValueError(f"model.name={self.name} does not load: {error}") from error
        if self.chat_template is not None:
            tokenizer.chat_template = self.chat_template
        if tokenizer.eos_token_id is None:
            raise ValueError(f"The tokenizer of {self.name} has no end-of-sequence token, so no response could end.")
        return tokenizer

    @cached_property
    def stop_ids(self) -> frozenset[int]:
        """Tokens that end a response."""
        stops = {self.tokenizer.eos_token_id}
        if self.model is not None:
            configured = self.causal_lm.generation_config.eos_token_id if self.causal_lm.generation_config else None
            stops |= set(configured if isinstance(configured, list) else [configured]) - {None}
        return frozenset(stops)

    def encode_prompt(self, prompt: Prompt) -> tuple[int, ...]:
        """The prompt's token ids: a conversation through the chat template, a plain prompt as it stands.

        A beginning-of-sequence token appears at most once, an end-of-sequence token never at the end. A prompt is
        tokenised once, however many rounds ask it.

        Raises:
            ValueError: A conversation, but no chat template.
        """
        if prompt not in self._encoded:
            self._encoded[prompt] = array("i", self._tokenised(prompt))
        return tuple(self._encoded[prompt])

    def _tokenised(self, prompt: Prompt) -> Sequence[int]:
        if prompt.messages:
            if not self.tokenizer.chat_template:
                raise ValueError(
                    f"Prompt {prompt.id} is a conversation, but the tokenizer of {self.name} has no chat template; "
                    "give one as model.chat_template, or use plain prompts with data.reader.as_chat=false."
                )
            turns = [{"role": m.role, "content": m.content} for m in prompt.messages]
            ids: list[int] = self.tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)  # type: ignore[assignment]
        else:
            ids = self.tokenizer(prompt.text).input_ids
            if ids and ids[-1] == self.tokenizer.eos_token_id:
                ids = ids[:-1]
        bos = self.tokenizer.bos_token_id
        while len(ids) > 1 and bos is not None and bos != self.tokenizer.eos_token_id and ids[0] == ids[1] == bos:
            ids = ids[1:]
        return ids

    def encode_response(self, text: str) -> tuple[int, ...]:
        """A given response's token ids, ended as the policy would end it."""
        ids = self.tokenizer(text, add_special_tokens=False).input_ids
        return (*ids, self.tokenizer.eos_token_id) if not ids or ids[-1] != self.tokenizer.eos_token_id else tuple(ids)

    def decode(self, ids: Ids) -> str:
        """Text of response ids, without special tokens."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True))

    # -- weights -----------------------------------------------------------------------------------------------

    def load(self, *, device: torch.device, seed: int, sharded: bool = False) -> None:
        """Load the weights, add the adapter, and remember this state as the start and the reference.

        Args:
            device: Where the weights go.
            seed: Of the adapter.
            sharded: Leave each rank its share of the weights only.
        """
        if self.model is not None:
            return
        hf_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
        grouped.register()
        if device.type == "cpu":
            keep_freed_memory()
        self.compute_dtype = auto_dtype(device) if self.dtype == "auto" else getattr(torch, self.dtype)
        model = self._pretrained(device)
        switch_off_dropout(model)
        # a slice of hidden states is not contiguous, and torch would copy the whole head once for each row
        head: nn.Module = model.get_output_embeddings()  # type: ignore[no-untyped-call]
        head.register_forward_pre_hook(lambda _, args: (args[0].contiguous(),))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.model = self._with_adapter(model)
        if self.gradient_checkpointing:
            self.causal_lm.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            if self.lora:
                self.causal_lm.enable_input_require_grads()  # type: ignore[no-untyped-call]
        if sharded:
            self._shard(device)
        nn.Module.to(self.model, device)
        if self.fused and not sharded:  # whose layers hold shares outside of a forward
            fuse(self.model)
        self.initial = {name: p.detach().clone() for name, p in self.trainable()}
        self.reference_state = self.initial
        self.__dict__.pop("stop_ids", None)

    def _pretrained(self, device: torch.device) -> PreTrainedModel:
        def of(attention: str | None) -> PreTrainedModel:
            model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
                resolve_model(self.name),
                dtype=self.compute_dtype if self.lora else torch.float32,  # full fine-tuning: fp32 master weights
                attn_implementation=attention,
                revision=self.revision,
                trust_remote_code=self.trust_remote_code,
            )
            return model

        if self.attention != "auto":
            return of(self.attention)
        if device.type != "cpu":
            return of(None)
        try:
            return of("grouped")
        except KeyError as error:
            if error.args != ("grouped",):
                raise
            log.info("%s takes no attention but its own.", self.name)
            return of(None)

    def _shard(self, device: torch.device) -> None:
        names = set(getattr(self.causal_lm, "_no_split_modules", None) or ())
        layers = [module for module in self.causal_lm.modules() if type(module).__name__ in names]
        if not layers:
            raise ValueError(f"{self.name} does not say which of its layers may be sharded; choose trainer=ddp.")
        # frozen weights and fp32 adapters are gathered as they are, full fine-tuning's master weights as `dtype`
        shard_weights(self, layers, device=device, compute=None if self.lora else self.compute_dtype)
        self.is_gathered = False
        with torch.no_grad():
            self(self._idle)  # the first forward tells torch which modules belong together
        with self.weights_gathered():
            _ = self.shares_prompts  # found out here, where all ranks are

    def _idle(self) -> Tensor:
        ids_11 = torch.zeros(1, 1, dtype=torch.long, device=self.device)
        hidden_11D: Tensor = self._decoder(input_ids=ids_11, use_cache=False).last_hidden_state
        return hidden_11D

    def _with_adapter(self, model: PreTrainedModel) -> PreTrainedModel | PeftModel:
        if self.lora is None:
            return model
        if self.adapter is not None:
            return PeftModel.from_pretrained(model, self.adapter, is_trainable=True, autocast_adapter_dtype=True)
        config = LoraConfig(
            r=self.lora.r, lora_alpha=self.lora.alpha, target_modules=self.lora.targets, task_type="CAUSAL_LM"
        )
        return get_peft_model(model, config, autocast_adapter_dtype=True)

    @property
    def causal_lm(self) -> PreTrainedModel:
        """The transformers model, adapters injected."""
        assert self.model is not None, "load() comes first"
        if isinstance(self.model, PeftModel):
            return cast(PreTrainedModel, self.model.get_base_model())
        return self.model

    @property
    def _decoder(self) -> nn.Module:
        decoder: nn.Module = self.causal_lm.get_decoder()  # type: ignore[no-untyped-call]
        return decoder

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.causal_lm.parameters()).device

    def trainable(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Names and parameters of what is trained."""
        assert self.model is not None, "load() comes first"
        return ((name, p) for name, p in self.model.named_parameters() if p.requires_grad)

    @torch.no_grad()
    def restore_start(self) -> None:
        """Put the weights back to the start of the run."""
        for name, p in self.trainable():
            p.copy_(self.initial[name].to(p.device))

    def states(self) -> tuple[dict[str, Tensor] | None, dict[str, Tensor] | None]:
        """The start of adapters, and the reference if it has moved, for rank 0 to keep; every rank must ask.

        The start of a model of which all weights are trained is in its own files.
        """
        moved = self.reference_state is not self.initial
        start = on_rank_0(self.initial) if self.lora else None
        return start, on_rank_0(self.reference_state) if moved else None

    def load_states(self, start: Mapping[str, Tensor] | None, reference: Mapping[str, Tensor] | None) -> None:
        """Put back what `states` gave; None leaves the start as it is, or makes it the reference."""
        now = dict(self.trainable())
        if start is not None:
            self.initial = self.reference_state = {k: placed_like(v, now[k]) for k, v in start.items()}
        if reference is not None:
            self.reference_state = {k: placed_like(v, now[k]) for k, v in reference.items()}

    def refer_to_current(self) -> None:
        """Make the present weights the reference from now on."""
        self.reference_state = {name: p.detach().clone() for name, p in self.trainable()}

    def is_reference(self) -> bool:
        """Whether the present weights are the reference's; every rank must ask."""
        pairs = ((local(p), local(self.reference_state[name]).to(p.device)) for name, p in self.trainable())
        return all(current_ranks().gather([all(torch.equal(now, then) for now, then in pairs)]))

    @contextmanager
    def _in_state(self, state: Mapping[str, Tensor]) -> Iterator[None]:
        """The trainable weights in another state within the block."""
        pairs = [(p, state[name].to(p.device)) for name, p in self.trainable()]
        if not is_sharded(self):
            with swapped_in(pairs):
                yield
            return
        assert not self.is_gathered, "a state is entered before its weights are gathered"
        with torch.no_grad():  # gathering reads the shards themselves, so that pointers would not do
            kept = [p.detach().clone() for p, _ in pairs]
            try:
                for p, data in pairs:
                    p.copy_(data)
                yield
            finally:
                for (p, _), data in zip(pairs, kept, strict=True):
                    p.copy_(data)

    def as_reference(self) -> AbstractContextManager[None]:
        """The reference's weights within the block, the policy's own again after it."""
        return self._in_state(self.reference_state)

    def as_start(self) -> AbstractContextManager[None]:
        """The weights of the start of the run within the block, the policy's own again after it."""
        return self._in_state(self.initial)

    @contextmanager
    def weights_gathered(self) -> Iterator[None]:
        """Within the block each rank may run as many forwards without gradient as it likes; all ranks must enter.

        Sharded weights are gathered once, if they fit; else every forward gathers them layer by layer, and ranks
        that are done go on with the others (see `lockstep`).
        """
        if self.is_gathered:
            yield
        elif self._fits():
            with torch.no_grad(), gathered(self):
                self.is_gathered = True
                try:
                    yield
                finally:
                    self.is_gathered = False
        else:
            with torch.no_grad(), lockstep(self, self._decoder, self._idle, current_ranks()):
                yield

    def _fits(self) -> bool:
        ranks = current_ranks()
        if self.gather == "auto":
            width = None if self.lora else self.compute_dtype.itemsize
            needed = sum(p.numel() * (width or p.element_size()) for p in self.parameters())
            free = free_memory(self.device) // (ranks.size if self.device.type == "cpu" else 1)
            return all(ranks.gather([2 * needed <= free]))
        return self.gather == "always"

    @contextmanager
    def for_sampling(self) -> Iterator[None]:
        """Weights that sample fast within the block: adapter merged, all in the forward's precision."""
        was_training = self.training
        with ExitStack() as stack:
            stack.callback(self.train, was_training)
            self.eval()
            stack.enter_context(self.weights_gathered())
            if not self.is_gathered:  # what passes by layer by layer cannot be merged
                stack.enter_context(self.precision())
                yield
                return
            stack.enter_context(torch.inference_mode())
            if is_sharded(self):
                for weight, merged in self._sampling_weights():
                    weight.copy_(merged)  # a gathered copy, which ends with the block
            else:
                stack.enter_context(swapped_in(list(self._sampling_weights())))
            if isinstance(self.model, PeftModel):
                stack.enter_context(self.model.disable_adapter())
            yield

    def _sampling_weights(self) -> Iterator[tuple[nn.Parameter, Tensor]]:
        if isinstance(self.model, PeftModel):
            layers: list[Any] = [m for m in self.model.modules() if isinstance(m, LoraLayer)]
            yield from ((m.base_layer.weight, _merged(m)) for m in layers)  # one after the other: a delta is fp32
        elif not is_sharded(self):  # gathering has cast them
            yield from ((p, p.detach().to(self.compute_dtype)) for p in self.causal_lm.parameters())

    def sampling_weights(self) -> Iterator[tuple[str, Tensor]]:
        """The weights under the names of a checkpoint, for an engine that keeps its own; inside `for_sampling`."""
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

    @cached_property
    def shares_prompts(self) -> bool:
        """Whether rows share prompts: wanted, and found equal to the padded path on this model."""
        if not self.share_prompt:
            return False
        with self.precision():
            shares = can_share_prompt(self.causal_lm, len(self.tokenizer))
        if not shares:
            log.warning("%s cannot share a prompt between responses; taking the padded path (slower).", self.name)
        return shares

    def _fits_window(self, groups: Sequence[Group]) -> bool:
        config = self.causal_lm.config
        windows = [getattr(config, name, None) for name in ("sliding_window", "window_size", "attention_chunk_size")]
        longest = max(group.tokens for group in groups)
        return all(longest <= window for window in windows if isinstance(window, int) and window)

    def takes_tree(self, groups: Sequence[Group]) -> bool:
        """Whether these groups may lie one behind the other in one row."""
        return self.one_row and self._fits_window(groups)

    @property
    def one_row(self) -> bool:
        """Whether the groups of a pass lie one behind the other, without padding."""
        return self.shares_prompts and takes_one_row(self.causal_lm)

    def forward(self, compute: Callable[[], Tensor]) -> Tensor:
        """Compute something with gradients; torch hangs the gathering of sharded weights on this call."""
        return compute()

    def token_logps(self, groups: Sequence[Group]) -> Tensor:
        """Log-probability (T,) of every response token, response by response, with gradients."""
        logp_T: Tensor = self(lambda: self._token_logps(groups))
        return logp_T

    def _token_logps(self, groups: Sequence[Group]) -> Tensor:
        with self.precision():
            if self.shares_prompts and self._fits_window(groups):
                rows = share_prompt(groups, one_row=takes_one_row(self.causal_lm))
                return token_logps(self.causal_lm, rows.to(self.device))
            return padded_token_logps(self.causal_lm, groups)

    def score(
        self, candidates: Sequence[Candidates], tick: Callable[[int], None] = lambda n: None
    ) -> list[list[float]]:
        """Summed log-probability of each response of each candidate, in their order, without gradients."""
        scored: list[list[float]] = [[] for _ in candidates]
        for n, logps, _ in self._scored(candidates, tick):
            scored[n] = logps
        return scored

    def score_reference(
        self,
        candidates: Sequence[Candidates],
        tick: Callable[[int], None] = lambda n: None,
        *,
        tokens: bool = False,
    ) -> list[Candidates]:
        """The candidates with each response's log-probability under the reference.

        Args:
            candidates: Prompts with responses.
            tick: Called with the number of candidates that have been scored.
            tokens: Whether the log-probabilities of single tokens are kept too.
        """
        result = list(candidates)
        with self.as_reference():
            for n, logps, logp_T_of in self._scored(candidates, tick):
                of_tokens = [tuple(logp_T.tolist()) if tokens else () for logp_T in logp_T_of]
                scored = zip(candidates[n].responses, logps, of_tokens, strict=True)
                responses = tuple(replace(r, logp_ref=logp, token_logps_ref=each) for r, logp, each in scored)
                result[n] = replace(candidates[n], responses=responses)
        return result

    def _scored(
        self, candidates: Sequence[Candidates], tick: Callable[[int], None]
    ) -> Iterator[tuple[int, list[float], Sequence[Tensor]]]:
        """Position of each candidate, log-probabilities of its responses, and of each response's tokens."""
        groups = [Group(c.prompt_ids, [r.ids for r in c.responses]) for c in candidates]
        was_training = self.training
        self.eval()
        with self.weights_gathered():
            share = bool(groups) and self.shares_prompts and self._fits_window(groups)
            for positions, logp_T in score_groups(
                self.causal_lm,
                groups,
                share=share,
                tokens_per_step=self.tokens_per_step,
                precision=self.precision,
            ):
                chosen = [groups[n] for n in positions]
                logps = iter(sum_by_response(logp_T, chosen).tolist())
                of_tokens = iter(torch.split(logp_T, [len(ids) for group in chosen for ids in group.response_ids]))
                for n, group in zip(positions, chosen, strict=True):
                    yield n, [next(logps) for _ in group.response_ids], [next(of_tokens) for _ in group.response_ids]
                tick(len(positions))
        self.train(was_training)

    @torch.no_grad()
    def embed(self, responses: Sequence[Response]) -> Tensor:
        """What each response means to the reference: (N, D), last layer, mean over the response's own tokens."""
        # the response alone, without its prompt, as REAL's code does (METHODS.md 3.1)
        with self.as_reference(), self.weights_gathered(), self.precision():
            if not responses:
                return torch.zeros(0, self.causal_lm.config.hidden_size)
            rows = share_prompt([Group(r.ids or (self.tokenizer.eos_token_id,), []) for r in responses]).to(self.device)
            hidden_NLD = last_hidden(self.causal_lm, rows)
        length_N = torch.tensor([max(len(r.ids), 1) for r in responses], device=self.device)
        own_NL = torch.arange(hidden_NLD.shape[1], device=self.device)[None] < length_N[:, None]
        mean_ND: Tensor = (hidden_NLD.float() * own_NL[..., None]).sum(1) / length_N[:, None]
        return mean_ND.cpu()

    # -- what is left behind -----------------------------------------------------------------------------------

    def save(self, folder: str) -> None:
        """The adapter, or the whole model, with its tokenizer, in Hugging Face format; rank 0 writes it."""
        assert self.model is not None, "load() comes first"
        state = self._whole_state()  # of sharded weights, and so on every rank
        if current_ranks().rank > 0:
            return
        if isinstance(self.model, PeftModel):
            self.model.save_pretrained(folder, state_dict=state)
        else:
            self.model.save_pretrained(folder, state_dict={k: v.to(self.compute_dtype) for k, v in state.items()})
        self.tokenizer.save_pretrained(folder)

    def _whole_state(self) -> dict[str, Tensor]:
        assert self.model is not None, "load() comes first"
        state: dict[str, Tensor] = self.model.state_dict()
        if not is_sharded(self):
            return state
        wanted = {name for name, _ in self.trainable()} if self.lora else state.keys()
        return on_rank_0({name: tensor for name, tensor in state.items() if name in wanted})


def on_rank_0(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Whole tensors in rank 0's memory, gathered one by one; nothing on the other ranks, which must ask, too."""
    rank = current_ranks().rank
    tensors = ((name, full_tensor(tensor)) for name, tensor in state.items())
    return {name: tensor.detach().cpu() for name, tensor in tensors if rank == 0}


@contextmanager
def swapped_in(weights: Sequence[tuple[nn.Parameter, Tensor]]) -> Iterator[None]:
    """Let parameters point to other tensors within the block."""
    before = [(p, p.data) for p, _ in weights]
    try:
        for p, data in weights:
            p.data = data
        yield
    finally:
        for p, data in before:
            p.data = data


def _merged(layer: Any) -> Tensor:
    """A layer's weight with its adapter, in the weight's precision."""
    weight, delta = layer.base_layer.weight, layer.get_delta_weight(layer.active_adapters[0])
    return cast(Tensor, (weight.float() + delta.float()).to(weight.dtype))


def switch_off_dropout(model: nn.Module) -> None:
    """Set every dropout of the model to 0: log-probs of policy and reference are compared, noise is not."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name in ("attention_dropout", "dropout_p", "attn_dropout_p"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)
