"""Reweighted DPO as a LightningModule."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor
from torch.nn import Parameter
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from choosy.data.batches import Batch
from choosy.data.pool import PairKey
from choosy.methods.losses import PreferenceLoss, log_ratio_difference, weighted_dpo_loss
from choosy.models.logprobs import Group
from choosy.models.policy import Policy
from choosy.parallel.ranks import current_ranks
from choosy.parallel.sharding import full_tensor, is_sharded
from choosy.reporting.metrics import log_at_once

log = logging.getLogger(__name__)

FILLER = [Group((0,), [(0,)])]  # the smallest forward there is

ResetPolicy = Literal["never", "each_round"]
OnBadLoss = Literal["stop", "skip"]


@dataclass(frozen=True)
class Step:
    """What one rank, or all of them, saw in the forwards of a step; `bad` are pairs whose loss is not finite."""

    loss: float
    logp_B4: Tensor  # chosen, rejected, and both under the reference
    bad: tuple[PairKey, ...]

    @classmethod
    def sum(cls, parts: Sequence[Step]) -> Step:
        """The step as seen by all."""
        logp_B4 = torch.cat([torch.empty(0, 4), *(part.logp_B4 for part in parts)])
        return cls(sum(part.loss for part in parts), logp_B4, tuple(pair for part in parts for pair in part.bad))


class WeightedDPO(LightningModule):
    """Trains a policy on pairs, each with a weight, against the reference log-probs that the pool keeps.

    A batch is one optimiser step; it is computed in parts that fit the policy's token budget, so packing changes
    the speed and not the gradient.

    Args:
        policy: What is trained.
        loss: A loss of the DPO family.
        optimizer: Makes the optimiser of the trainable parameters.
        warmup_steps: Steps over which the learning rate rises to its value.
        max_grad_norm: Clip the gradient to this norm; None = leave it.
        reset_policy: `each_round` goes back to the start's weights, and a new optimiser with its warm-up, before each
            round's training, as active preference learning does; `never` trains on.
        on_bad_loss: What a loss or a gradient that is nan or infinite does: `stop` ends the run, `skip` leaves those
            pairs out of the step. Neither lets it reach the weights.
        seed: Of the adapter's initial weights.
    """

    def __init__(
        self,
        policy: Policy,
        *,
        loss: PreferenceLoss,
        optimizer: Callable[[Iterable[Parameter]], Optimizer],
        warmup_steps: int = 0,
        max_grad_norm: float | None = 1.0,
        reset_policy: ResetPolicy = "never",
        on_bad_loss: OnBadLoss = "stop",
        seed: int = 0,
    ) -> None:
        super().__init__()
        if reset_policy not in ("never", "each_round"):
            raise ValueError(f"reset_policy={reset_policy} is none of never, each_round.")
        if on_bad_loss not in ("stop", "skip"):
            raise ValueError(f"on_bad_loss={on_bad_loss} is none of stop, skip.")
        self.automatic_optimization = False  # a step is a batch of pairs, in as many parts as its tokens need
        self.strict_loading = False  # frozen weights are not in the checkpoint
        self.policy = policy
        self.loss = loss
        self.optimizer = optimizer
        self.warmup_steps = warmup_steps
        self.max_grad_norm = max_grad_norm
        self.reset_policy = reset_policy
        self.on_bad_loss = on_bad_loss
        self.seed = seed
        self.losses: list[tuple[float, int]] = []  # of this epoch's steps, with their pairs
        self.told: list[dict[str, Any]] = []

    def configure_model(self) -> None:
        strategy = self.trainer.strategy
        if isinstance(strategy, ModelParallelStrategy):
            refuse_tensor_parallel(strategy.device_mesh.shape, self.trainer.num_nodes)
        sharded = isinstance(strategy, ModelParallelStrategy)
        self.policy.load(device=strategy.root_device, seed=self.seed, sharded=sharded)

    def configure_optimizers(self) -> Any:
        optimizer = self.optimizer([p for _, p in self.policy.trainable()])
        self.told = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
        rise = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / (self.warmup_steps + 1)))
        return {"optimizer": optimizer, "lr_scheduler": rise}

    def on_train_start(self) -> None:
        """A checkpoint brings back the optimiser's settings; what the user has told since then holds."""
        optimizer, rise = self.optimizers(use_pl_optimizer=False), self.lr_schedulers()
        assert isinstance(optimizer, Optimizer)
        assert isinstance(rise, torch.optim.lr_scheduler.LambdaLR)
        rise.base_lrs = [told["lr"] for told in self.told]
        for group, told, share in zip(optimizer.param_groups, self.told, rise.lr_lambdas, strict=True):
            group.update(told, initial_lr=told["lr"], lr=told["lr"] * share(rise.last_epoch))

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        return batch  # each part moves when it is its turn

    def on_train_epoch_start(self) -> None:
        """Active preference learning trains from the start's weights on all labels bought so far (Alg. 1)."""
        self.losses = []
        if self.reset_policy == "each_round" and self.current_epoch > 0:
            self.policy.restore_start()
            optimizer, warmup = self.optimizers(use_pl_optimizer=False), self.lr_schedulers()
            assert isinstance(optimizer, Optimizer)
            assert isinstance(warmup, torch.optim.lr_scheduler.LambdaLR)
            optimizer.state.clear()
            warmup.last_epoch = -1
            warmup.step()  # the first step of the round has the learning rate of the first step of the run

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        optimizer = self.optimizers()
        without: tuple[PairKey, ...] = ()
        seen = self.gradients(batch)
        while seen is not None and seen.bad:
            said = about_bad_loss(seen.bad)
            if self.on_bad_loss == "stop":
                raise ValueError(f"{said} the last checkpoint is good. {REMEDY}")
            log.warning("%s they are left out of this step.", said)
            without += seen.bad
            seen = self.gradients(batch, without=without)
        if seen is None:
            return
        params = [p for _, p in self.policy.trainable()]
        norm = full_tensor(torch.nn.utils.clip_grad_norm_(params, self.max_grad_norm or torch.inf))
        if not torch.isfinite(norm):
            said = f"The gradient of step {self.trainer.global_step} is {norm.item()}, though its losses are finite;"
            if self.on_bad_loss == "stop":
                raise ValueError(f"{said} the last checkpoint is good. {REMEDY}")
            log.warning("%s the step is skipped.", said)
            optimizer.zero_grad()  # type: ignore[union-attr]
        elif not len(seen.logp_B4):  # nothing is left of the step; gradients of 0 would still move the momentum
            optimizer.zero_grad()  # type: ignore[union-attr]
        optimizer.step()  # type: ignore[union-attr]
        self.lr_schedulers().step()  # type: ignore[union-attr]
        self.losses.append((seen.loss, batch.total))
        metrics: dict[str, float | Tensor] = {"loss_step": seen.loss}
        if self.max_grad_norm is not None:
            metrics["grad_norm"] = norm
        if self.trainer.is_last_batch:
            metrics["loss_epoch"] = sum(x * n for x, n in self.losses) / sum(n for _, n in self.losses)
        if len(seen.logp_B4):
            metrics.update(preference_metrics(seen.logp_B4, self.loss.beta))
        log_at_once(self, metrics, step=self.global_step - 1)

    def gradients(self, batch: Batch, without: Sequence[PairKey] = ()) -> Step | None:
        """The gradients of the step, averaged over the ranks, unless a loss is not finite; None for an empty step.

        Args:
            batch: This rank's pairs.
            without: Pairs to leave out.

        Returns:
            What all ranks saw. They learn of each other's losses before the last backward, which would wait for all.
        """
        if batch.total == 0:
            return None
        ranks = current_ranks()
        self.optimizers().zero_grad()  # type: ignore[union-attr]
        parts = list(batch.without(without).parts(self.policy.tokens_per_step, one_row=self.policy.one_row))
        # where weights are gathered layer by layer, all ranks run as many parts as the busiest
        most = max(ranks.gather([len(parts)])) if is_sharded(self.policy) else len(parts)
        parts += [batch.none()] * (max(most, 1) - len(parts))
        mine: list[Step] = []
        for number, part in enumerate(parts, start=1):
            last = number == len(parts)
            with told_of_memory(self.policy):
                loss, step = self.look(part)
            mine.append(step)
            if last:
                everybody = Step.sum(ranks.gather([Step.sum(mine)]))
                if everybody.bad:
                    return everybody
            with nullcontext() if last else self.apart(), told_of_memory(self.policy):
                self.manual_backward(loss * self.trainer.world_size)  # ranks average their gradients
        return everybody

    def look(self, part: Batch) -> tuple[Tensor, Step]:
        """A part's share of the step's loss, and what is seen of it; without pairs a loss of 0 that has gradients."""
        if not part.pairs:
            return self.policy.logps(FILLER).sum() * 0, Step.sum([])
        logp_b2 = self.policy.logps(part.groups).view(-1, 2)
        ref_b2 = part.logp_ref_B2.to(logp_b2.device)
        delta_b = log_ratio_difference(logp_b2[:, 0], logp_b2[:, 1], ref_b2[:, 0], ref_b2[:, 1])
        weight_b, gap_b = part.weight_B.to(delta_b.device), part.gap_B.to(delta_b.device)
        loss_b = weighted_dpo_loss(delta_b, weight_b, self.loss, gap_b)
        loss = loss_b.sum() / part.total
        bad = tuple(part.pairs[i].key for i in (~torch.isfinite(loss_b)).nonzero().flatten().tolist())
        return loss, Step(loss.item(), torch.cat([logp_b2.detach(), ref_b2], dim=1).cpu(), bad)

    def apart(self) -> AbstractContextManager[Any]:
        """Ranks may cut a step into different numbers of parts, so they meet at the last part only."""
        wrapped = self.trainer.strategy.model
        return wrapped.no_sync() if isinstance(wrapped, DistributedDataParallel) else nullcontext()

    # -- checkpoints hold what is trained, and what cannot be loaded again -------------------------------------

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        full = super().state_dict(*args, **kwargs)
        kept = (
            {f"policy.model.{name}" for name, _ in self.policy.trainable()} if self.policy.model is not None else set()
        )
        return {name: value for name, value in full.items() if name in kept}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        start, reference = self.policy.states()
        checkpoint["choosy"] = {
            "initial": start,
            "reference": reference,
            "losses": self.losses,
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        states: Mapping[str, Any] = checkpoint["choosy"]
        self.configure_model()
        self.losses = list(states.get("losses", []))
        self.policy.load_states(states["initial"], states["reference"])


REMEDY = "Lower lr, or raise loss.beta, or check those prompts' responses; on_bad_loss=skip goes on without them."


def about_bad_loss(bad: Sequence[PairKey]) -> str:
    """Which pairs have no finite loss."""
    more = f" and {len(bad) - 5} more" if len(bad) > 5 else ""
    names = ", ".join(prompt_id for prompt_id, *_ in bad[:5])
    return f"The loss of {len(bad)} pairs is not finite (prompts {names}{more});"


@contextmanager
def told_of_memory(policy: Policy) -> Iterator[None]:
    """Say which setting helps when a step of the training needs more memory than there is."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        halved = max(policy.tokens_per_step // 2, 1)
        advice = [f"type batching.tokens_per_step={halved}"]
        if not policy.gradient_checkpointing:
            advice.append("model.gradient_checkpointing=true")
        raise ValueError(
            f"A training step of batching.tokens_per_step={policy.tokens_per_step} does not fit into the memory of "
            f"{policy.device}; {' or '.join(advice)}, and go on with ckpt_path=last. ({error})"
        ) from error


def refuse_tensor_parallel(mesh: tuple[int, ...], nodes: int) -> None:
    """Weights are sharded over all ranks; sizes that the user gave to the strategy would have no effect."""
    if mesh[0] != nodes:
        raise ValueError(
            f"trainer.strategy asks for {mesh[0]} x {mesh[1]} data and tensor parallel ranks, and Choosy shards the "
            "weights over all ranks; leave data_parallel_size and tensor_parallel_size at auto."
        )


def preference_metrics(logp_B4: Tensor, beta: float) -> dict[str, Tensor]:
    """What the batch shows, under TRL's names; columns: chosen, rejected, and both under the reference."""
    reward_B2 = beta * (logp_B4[:, :2] - logp_B4[:, 2:])
    margin_B = reward_B2[:, 0] - reward_B2[:, 1]
    return {
        "rewards/chosen": reward_B2[:, 0].mean(),
        "rewards/rejected": reward_B2[:, 1].mean(),
        "rewards/accuracies": (margin_B > 0).float().mean(),
        "rewards/margins": margin_B.mean(),
        "logps/chosen": logp_B4[:, 0].mean(),
        "logps/rejected": logp_B4[:, 1].mean(),
    }
