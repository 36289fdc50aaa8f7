"""Reweighted DPO as a LightningModule."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule
from torch import Tensor
from torch.nn import Parameter
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from choosy.batching import Batch
from choosy.losses import PreferenceLoss, log_ratio_difference, weighted_dpo_loss
from choosy.metrics import log_at_once
from choosy.policy import Policy

ResetPolicy = Literal["never", "each_round"]


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
        reset_policy: `each_round` goes back to the start's weights before each round's training, as active
            preference learning does; `never` trains on.
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
        seed: int = 0,
    ) -> None:
        super().__init__()
        if reset_policy not in ("never", "each_round"):
            raise ValueError(f"reset_policy={reset_policy} is none of never, each_round.")
        self.automatic_optimization = False  # a step is a batch of pairs, in as many parts as its tokens need
        self.strict_loading = False  # frozen weights are not in the checkpoint
        self.policy = policy
        self.loss = loss
        self.optimizer = optimizer
        self.warmup_steps = warmup_steps
        self.max_grad_norm = max_grad_norm
        self.reset_policy = reset_policy
        self.seed = seed
        self.losses: list[tuple[float, int]] = []  # of this epoch's steps, with their pairs
        self.told: list[dict[str, Any]] = []

    def configure_model(self) -> None:
        self.policy.load(device=self.trainer.strategy.root_device, seed=self.seed)

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
            optimizer = self.optimizers(use_pl_optimizer=False)
            assert isinstance(optimizer, Optimizer)
            optimizer.state.clear()

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        optimizer = self.optimizers()
        optimizer.zero_grad()  # type: ignore[union-attr]
        rewards: list[Tensor] = []
        total_loss = torch.zeros(())
        parts = list(batch.parts(self.policy.tokens_per_step))
        for number, part in enumerate(parts, start=1):
            logp_b2 = self.policy.logps(part.groups).view(-1, 2)
            ref_b2 = part.logp_ref_B2.to(logp_b2.device)
            delta_b = log_ratio_difference(logp_b2[:, 0], logp_b2[:, 1], ref_b2[:, 0], ref_b2[:, 1])
            loss_b = weighted_dpo_loss(delta_b, part.weight_B.to(delta_b.device), self.loss)
            refuse_non_finite(loss_b, part)
            loss = loss_b.sum() * self.trainer.world_size / batch.total  # ranks average their gradients
            with self.apart() if number < len(parts) else nullcontext():
                self.manual_backward(loss)
            total_loss = total_loss + loss.detach().cpu()
            rewards.append(torch.cat([logp_b2.detach(), ref_b2], dim=1).cpu())
        if batch.total == 0:
            return
        if not batch.pairs:  # this rank's share of a short batch is empty, and the others wait for its gradient
            self.manual_backward(torch.stack([(p * 0).sum() for _, p in self.policy.trainable()]).sum())
        metrics: dict[str, float | Tensor] = {}
        if self.max_grad_norm is not None:
            trainable = [p for _, p in self.policy.trainable()]
            metrics["grad_norm"] = torch.nn.utils.clip_grad_norm_(trainable, self.max_grad_norm)
        optimizer.step()  # type: ignore[union-attr]
        self.lr_schedulers().step()  # type: ignore[union-attr]
        loss = self.trainer.strategy.reduce(total_loss.to(self.device), reduce_op="mean")
        self.losses.append((float(loss), batch.total))
        metrics["loss_step"] = loss
        if self.trainer.is_last_batch:
            metrics["loss_epoch"] = sum(x * n for x, n in self.losses) / sum(n for _, n in self.losses)
        if rewards:
            metrics.update(preference_metrics(torch.cat(rewards), self.loss.beta))
        log_at_once(self, metrics, step=self.global_step - 1)

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
        adapters = self.policy.lora is not None
        moved = self.policy.reference_state is not self.policy.initial
        checkpoint["choosy"] = {
            "initial": self.policy.initial if adapters else None,  # of full weights: the model's own files
            "reference": self.policy.reference_state if moved else None,
            "losses": self.losses,
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        states: Mapping[str, Any] = checkpoint["choosy"]
        self.policy.load(device=self.trainer.strategy.root_device, seed=self.seed)
        self.losses = list(states.get("losses", []))
        if states["initial"] is not None:
            self.policy.initial = states["initial"]
            self.policy.reference_state = self.policy.initial
        if states["reference"] is not None:
            self.policy.reference_state = states["reference"]


def refuse_non_finite(loss_b: Tensor, part: Batch) -> None:
    """Stop before a loss that is nan or infinite reaches the weights, and name its pairs."""
    bad = (~torch.isfinite(loss_b)).nonzero().flatten().tolist()
    if bad:
        names = ", ".join(part.pairs[i].prompt_id for i in bad[:5])
        raise ValueError(
            f"The loss of {len(bad)} pairs is not finite (prompts {names}); the last checkpoint is good. "
            "Lower lr, or raise loss.beta, or check those prompts' responses."
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
