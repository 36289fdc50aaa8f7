"""Weighted preference training as a LightningModule."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, Literal, cast, get_args

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor
from torch.nn import Parameter
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torchmetrics import MeanMetric

from choosy.data.batches import Batch, ItemKey
from choosy.errors import refuse_unknown
from choosy.methods.degree_aware import DegreeAwareLoss
from choosy.methods.loss_inputs import NO_STEPS_YET, Degrees, Facts, Loss, Partners, item_losses, refuse_no_loss
from choosy.methods.schedule import Schedule, share_of_lr
from choosy.models.degree_head import DegreeHead
from choosy.models.experts import Routed
from choosy.models.policy import Policy
from choosy.models.rows import Group
from choosy.parallel.ranks import current_ranks
from choosy.parallel.sharding import full_tensor, is_sharded, refuse_tensor_parallel
from choosy.reporting.metrics import StepStats, log_at_once
from choosy.reporting.tracked import log_round
from choosy.rounds.bad_losses import BadLosses, OnBadLoss
from choosy.terminal import logger

log = logger(__name__)

FILLER = [Group((0,), [(0,)])]  # the smallest forward there is

ResetPolicy = Literal["never", "each_round"]


class WeightedDPO(LightningModule):
    """Trains a policy on items of the pool, each with a weight: pairs, ranked lists, or good and bad responses.

    A batch is one optimiser step; it is computed in parts that fit the policy's token budget, so packing changes
    the speed and not the gradient.

    Args:
        loss: What an item costs (see `choosy.methods.losses`).
        optimizer: Makes the optimiser of the trainable parameters.
        warmup_steps: Steps over which the learning rate rises to its value; below 1 their share of the run, or
            of each round with `reset_policy=each_round`.
        schedule: What the learning rate does from there to the end of the run; with `reset_policy=each_round` to the
            end of each round.
        max_grad_norm: Clip the gradient to this norm; None = do not clip.
        reset_policy: `each_round` goes back to the start's weights, and a new optimiser with its warm-up, before each
            round's training, as active preference learning does; `never` trains on.
        router_aux_loss_coef: Factor on the loss that keeps the experts of a mixture-of-experts model equally busy, over
            all tokens of a step; it takes one more forward pass. 0 = without it.
        on_bad_loss: What a loss or a gradient that is nan or infinite does: `stop` ends the run, `skip` leaves those
            items out of the step. Neither lets it reach the weights.
        seed: Of the adapter's initial weights.
    """

    def __init__(
        self,
        policy: Policy,
        *,
        loss: Loss,
        optimizer: Callable[[Iterable[Parameter]], Optimizer],
        warmup_steps: float = 0,
        schedule: Schedule = "constant",
        max_grad_norm: float | None = 1.0,
        router_aux_loss_coef: float = 0.0,
        reset_policy: ResetPolicy = "never",
        on_bad_loss: OnBadLoss = "stop",
        seed: int = 0,
    ) -> None:
        super().__init__()
        refuse_no_loss(loss)
        if "degrees" in loss.needs and not isinstance(loss, DegreeAwareLoss):
            raise ValueError(
                "A DegreeAwareLoss is no part of another loss: type loss=spo, and the other one as loss.loss."
            )
        if not 0 <= router_aux_loss_coef < math.inf:
            raise ValueError(f"router_aux_loss_coef={router_aux_loss_coef} is no factor; type 0.001, or 0 for none.")
        refuse_unknown("reset_policy", reset_policy, get_args(ResetPolicy))
        refuse_unknown("schedule", schedule, get_args(Schedule))
        self.automatic_optimization = False  # a step is a batch of items, in as many parts as its tokens need
        self.strict_loading = False  # frozen weights are not in the checkpoint
        self.policy = policy
        self.loss = loss
        self.degree_head: DegreeHead | None = None
        self.optimizer = optimizer
        self.warmup_steps = warmup_steps
        self.schedule = schedule
        self.max_grad_norm = max_grad_norm
        self.router_aux_loss_coef = router_aux_loss_coef
        self.reset_policy = reset_policy
        self.bad_losses = BadLosses(on_bad_loss)
        self.seed = seed
        self.loss_epoch = MeanMetric(sync_on_compute=False)  # every rank knows the losses of all
        self.loss_epoch.persistent(True)
        self.accuracy_epoch = MeanMetric(sync_on_compute=False)  # of items that have one, before each step
        self.accuracy_epoch.persistent(True)
        self.facts = NO_STEPS_YET
        self.rounds_trained = 0.0  # with the share of the present round that is done
        self.configured_groups: list[dict[str, Any]] = []

    def setup(self, stage: str) -> None:
        """Refuse selectors that do not suit the data; Lightning calls this after the setup of all callbacks."""
        data = getattr(self.trainer, "datamodule", None)  # none where plain batches are trained on
        if data is not None:
            data.run.refuse_slots(data.responses, fresh=not data.given)

    def configure_model(self) -> None:
        strategy = self.trainer.strategy
        sharded = isinstance(strategy, ModelParallelStrategy)
        if isinstance(strategy, ModelParallelStrategy):
            refuse_tensor_parallel(strategy.device_mesh.shape, self.trainer.num_nodes)
        if sharded and "degrees" in self.loss.needs:
            raise ValueError("loss=spo trains a head that trainer=fsdp does not shard; choose trainer=ddp.")
        self.policy.load(device=strategy.root_device, seed=self.seed, sharded=sharded)
        if self.router_aux_loss_coef and not self.policy.has_routers():
            raise ValueError(
                f"router_aux_loss_coef={self.router_aux_loss_coef} balances the experts of a mixture-of-experts model, "
                f"and {self.policy.source.name} has no router of experts; type router_aux_loss_coef=0."
            )
        if isinstance(self.loss, DegreeAwareLoss) and self.degree_head is None:
            self.degree_head = DegreeHead(self.policy, self.loss.degrees)

    def trained(self) -> list[Parameter]:
        """The parameters that are trained: the policy's, and those of the head that tells degrees, if there is one."""
        head = () if self.degree_head is None else self.degree_head.parameters()
        return [*(p for _, p in self.policy.trainable()), *head]

    def configure_optimizers(self) -> Any:
        optimizer = self.optimizer(self.trained())
        self.configured_groups = [{k: v for k, v in g.items() if k != "params"} for g in optimizer.param_groups]
        warmup = LambdaLR(optimizer, self.share_of_lr)
        return {"optimizer": optimizer, "lr_scheduler": warmup}

    def share_of_lr(self, step: int) -> float:
        """The share of the learning rate that a step of the optimiser has now."""
        rounds, trained = self.trainer.max_epochs or 1, self.rounds_trained
        if self.reset_policy == "each_round":
            rounds, trained = 1, trained % 1
        progress, after = (
            min(max(x / rounds, 0.0), 1.0) for x in (trained, trained + 1 / self.trainer.num_training_batches)
        )
        return share_of_lr(self.schedule, step=step, warmup_steps=self.warmup_steps, progress=progress, after=after)

    def on_train_start(self) -> None:
        """Give the optimiser the configured settings: a checkpoint has brought back those of an earlier command."""
        optimizer, warmup = self.optimizer_and_warmup()
        warmup.base_lrs = [group["lr"] for group in self.configured_groups]
        for group, configured in zip(optimizer.param_groups, self.configured_groups, strict=True):
            group.update(configured, initial_lr=configured["lr"])
        self.set_lr()

    def set_lr(self) -> None:
        """Give the optimiser the learning rate of its next step, which goes by the steps that its round has."""
        optimizer, warmup = self.optimizer_and_warmup()
        for group, lr, share in zip(optimizer.param_groups, warmup.base_lrs, warmup.lr_lambdas, strict=True):
            group["lr"] = lr * share(warmup.last_epoch)

    def optimizer_and_warmup(self) -> tuple[Optimizer, LambdaLR]:
        optimizer, warmup = self.optimizers(use_pl_optimizer=False), self.lr_schedulers()
        assert isinstance(optimizer, Optimizer)
        assert isinstance(warmup, LambdaLR)
        return optimizer, warmup

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        return batch  # each part moves when it is its turn

    def on_train_epoch_start(self) -> None:
        """Active preference learning trains from the start's weights on all labels bought so far (Alg. 1)."""
        self.loss_epoch.reset()
        self.accuracy_epoch.reset()
        self.rounds_trained = float(self.current_epoch)
        self.warn_of_endless_warmup()
        if self.reset_policy == "each_round" and self.current_epoch > 0:
            self.policy.states.restore_start()
            if self.degree_head is not None:
                self.degree_head.reset()
            optimizer, warmup = self.optimizer_and_warmup()
            optimizer.state.clear()
            warmup.last_epoch = 0  # the first step of the round has the learning rate of the first step of the run
        self.set_lr()
        if self.policy.states.is_reference():
            self.facts = NO_STEPS_YET

    def warn_of_endless_warmup(self) -> None:
        """Warn once where the learning rate does not reach its value, by the steps of the first round."""
        rounds = 1 if self.reset_policy == "each_round" else self.trainer.max_epochs or 1
        steps = int(self.trainer.num_training_batches) * rounds
        if self.current_epoch == 0 and self.warmup_steps >= steps > 0:
            log.warning(
                "warmup_steps=%d, and this run has about %d steps: the learning rate never reaches its value. Type a "
                "smaller warmup_steps.",
                self.warmup_steps,
                steps,
            )

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """One optimiser step on the mean over the batch's items of weight x loss."""
        if batch.total:
            partners = self.find_partners(batch) if "step" in self.loss.needs else None
            load = self.find_load(batch) if self.router_aux_loss_coef else None
            stats = self.accumulate_gradients(batch, partial(self.part_loss, partners=partners, load=load))
            lr = float(self.optimizer_and_warmup()[0].param_groups[0]["lr"])
            self.rounds_trained = self.current_epoch + (batch_idx + 1) / self.trainer.num_training_batches
            norm = self.take_step(stats)
            self.log_step(stats, norm, batch.total, lr, load)

    def part_loss(
        self, part: Batch, partners: Mapping[ItemKey, Sequence[float]] | None = None, load: Routed | None = None
    ) -> tuple[Tensor, StepStats]:
        """What a part of a step adds to the mean over the step's items of weight x loss, and to the experts' loss."""
        routed: list[Routed] | None = None if load is None else []
        logp_T = self.policy.token_logps(part.groups, collisions="collision" in self.loss.needs, routed=routed)
        s = part.loss_inputs(logp_T, self.facts, partners)
        s.degrees = self.predict_degrees(part.groups)
        loss_B = part.weight_B.to(s.logp_R.device) * item_losses(self.loss, s, len(part.weight_B))
        loss = loss_B.sum() / part.total
        if load and routed:
            loss = loss + self.router_aux_loss_coef * load.balance_loss(Routed.sum(routed))
        bad = [part.items[n].key for n in (~torch.isfinite(loss_B)).nonzero().flatten().tolist()]
        return loss, StepStats.of(s, loss, self.loss.rewards(s), bad)

    def predict_degrees(self, groups: Sequence[Group]) -> Degrees | None:
        """What the head says of the groups' best responses at all degrees; None for a loss that has no head."""
        if self.degree_head is None:
            return None
        assert isinstance(self.loss, DegreeAwareLoss)
        variants = [
            {}
            if any(map(any, group.masks[:1]))
            else self.loss.variants(self.policy.tokens.decode(group.response_ids[0]))
            for group in groups
        ]  # an answer of several turns stays as it is
        degrees: Degrees = self.degree_head(self.policy, groups, variants)
        return degrees

    def accumulate_gradients(self, batch: Batch, part_loss: Callable[[Batch], tuple[Tensor, StepStats]]) -> StepStats:
        """Accumulate the step's gradients without items whose loss is not finite, and return the stats of all ranks."""
        left_out: tuple[ItemKey, ...] = ()
        while (stats := self._pass(batch.without(left_out), part_loss)).bad:
            self.bad_losses.report_items(stats.bad)
            left_out += stats.bad
        return stats

    @torch.no_grad()
    def find_partners(self, batch: Batch) -> dict[ItemKey, list[float]]:
        """What each pair is compared with among all pairs of the step, of all ranks (see `Partners`).

        Of equal numbers the pairs are ordered by their keys.
        """
        mine: list[tuple[ItemKey, list[float]]] = []
        for part in self._parts(batch):
            if not part.items:
                self.no_loss()  # a forward pass beside those of the other ranks
                continue
            s = part.loss_inputs(self.policy.token_logps(part.groups))
            logps = torch.cat([s.logp_R.view(-1, 2), s.ref_R.view(-1, 2)], dim=1)
            mine += zip([item.key for item in part.items], logps.tolist(), strict=True)
        everybody = sorted(current_ranks().gather(mine))
        logp_B4 = torch.tensor([logps for _, logps in everybody])
        partners_B3 = torch.stack(Partners.of(logp_B4[:, :2], logp_B4[:, 2:]), dim=1)
        return dict(zip((key for key, _ in everybody), partners_B3.tolist(), strict=True))

    @torch.no_grad()
    def find_load(self, batch: Batch) -> Routed:
        """What the routers do with all tokens of the step, of all ranks: the loss of a part is not known without it."""
        mine: list[Routed] = []
        for part in self._parts(batch):
            if part.items:
                self.policy.token_logps(part.groups, routed=mine)
            else:
                self.no_loss()  # a forward pass beside those of the other ranks
        return Routed.sum(current_ranks().gather([routed.on_cpu() for routed in mine]))

    def _parts(self, batch: Batch) -> list[Batch]:
        """The parts of this rank's share of a step, one at least."""
        parts = list(batch.parts(self.policy.compute.tokens_per_step, one_row=self.policy.one_row))
        # where weights are gathered layer by layer, all ranks run as many parts as the busiest
        most = max(current_ranks().gather([len(parts)])) if is_sharded(self.policy) else len(parts)
        return parts + [batch.some(())] * (max(most, 1) - len(parts))

    def _pass(self, batch: Batch, part_loss: Callable[[Batch], tuple[Tensor, StepStats]]) -> StepStats:
        """Forward and backward of every part; where some rank's loss is not finite, the last backward is left out.

        The ranks learn of each other's losses before the last backward, which would wait for all of them.
        """
        ranks = current_ranks()
        optimizer, _ = self.optimizer_and_warmup()
        optimizer.zero_grad()
        parts = self._parts(batch)
        mine: list[StepStats] = []
        explain_oom = partial(self.policy.compute.explain_oom, self.device, sharded=is_sharded(self.policy))
        for number, part in enumerate(parts, start=1):
            last = number == len(parts)
            with explain_oom(part.named_groups):
                loss, stats = part_loss(part) if part.items else self.no_loss()
            mine.append(stats)
            if last:
                everybody = StepStats.sum(ranks.gather([StepStats.sum(mine)]))
                if everybody.bad:
                    return everybody
            with nullcontext() if last else self.no_sync(), explain_oom(part.named_groups):
                self.manual_backward(loss * self.trainer.world_size)  # ranks average their gradients
        return everybody

    def no_loss(self) -> tuple[Tensor, StepStats]:
        """A loss of 0 that has gradients, for a rank without an item of the step."""
        degrees = self.predict_degrees(FILLER)
        nothing = self.policy.token_logps(FILLER).sum() * 0
        return nothing if degrees is None else nothing + degrees.logits_VC.sum(), StepStats.sum([])

    def no_sync(self) -> AbstractContextManager[Any]:
        """Leave out the averaging over ranks: they may cut a step into different numbers of parts."""
        wrapped = self.trainer.strategy.model
        return wrapped.no_sync() if isinstance(wrapped, DistributedDataParallel) else nullcontext()

    def take_step(self, stats: StepStats) -> Tensor:
        """Clip the gradient, step unless it is not finite, and give its norm."""
        optimizer, warmup = self.optimizer_and_warmup()
        norm = full_tensor(torch.nn.utils.clip_grad_norm_(self.trained(), self.max_grad_norm or torch.inf))
        if not torch.isfinite(norm):
            self.bad_losses.report_gradient(self.trainer.global_step, norm.item())
        if not torch.isfinite(norm) or not len(stats.first_R):  # gradients of 0 would still move the momentum
            optimizer.zero_grad()
        cast(Optimizer, self.optimizers()).step()  # of Lightning's wrapper, which counts the steps
        warmup.step()
        return norm

    def log_step(self, stats: StepStats, norm: Tensor, items: int, lr: float, load: Routed | None) -> None:
        """Log the step, and with the last step of an epoch the epoch's mean loss."""
        if len(stats.reward_R):
            self.facts = self.facts.after(kl=stats.kl, reward=stats.reward_R.mean().item())
        self.loss_epoch.update(stats.loss, weight=items)
        metrics: dict[str, float | Tensor] = {"loss_step": stats.loss, "lr": lr, **stats.metrics()}
        if "rewards/accuracies" in metrics:
            self.accuracy_epoch.update(metrics["rewards/accuracies"], weight=items)
        if load is not None:
            metrics["aux_loss"] = load.balance_loss(load)
        if self.max_grad_norm is not None:
            metrics["grad_norm"] = norm
        if self.trainer.is_last_batch:
            metrics["loss_epoch"] = self.loss_epoch.compute()
        log_at_once(self, metrics, step=self.global_step - 1)

    def on_train_epoch_end(self) -> None:
        """End the round; Lightning calls this after the callbacks that evaluate it, and before those that save it."""
        data = getattr(self.trainer, "datamodule", None)  # none where plain batches are trained on
        if data is not None:
            trained = {"train_loss": self.loss_epoch, "train_accuracy": self.accuracy_epoch}
            means = {name: mean.compute().item() for name, mean in trained.items() if float(mean.weight)}
            log_at_once(self, data.run.end_round(means), step=self.global_step - 1)
            log_round(self.trainer.loggers, data.run.pool, data.run.record.heldout_rows, step=self.global_step - 1)

    # -- checkpoints hold what is trained, and what cannot be loaded again -------------------------------------

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]  # torch has overloads
        full = super().state_dict(*args, **kwargs)
        loaded = self.policy.model is not None
        trained = {f"policy.model.{name}" for name, _ in self.policy.trainable()} if loaded else set()
        return {name: value for name, value in full.items() if name in trained or name.startswith("degree_head.")}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        start, reference = self.policy.states.to_save(with_start=self.policy.lora is not None)
        checkpoint["choosy"] = {
            "initial": start,
            "reference": reference,
            "loss_epoch": self.loss_epoch.state_dict(),
            "accuracy_epoch": self.accuracy_epoch.state_dict(),
            "facts": tuple(self.facts),
        }
        checkpoint["choosy"]["rounds_trained"] = self.rounds_trained

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        states: Mapping[str, Any] = checkpoint["choosy"]
        self.configure_model()
        self.loss_epoch.load_state_dict(states["loss_epoch"])
        self.accuracy_epoch.load_state_dict(states.get("accuracy_epoch", {}), strict=False)  # older ones have none
        self.facts = Facts(*states.get("facts", [states.get("kl", 0.0)]))  # older checkpoints have kl alone
        self.rounds_trained = states.get("rounds_trained", 0.0)  # which older checkpoints do not have
        self.policy.states.load(states["initial"], states["reference"])
