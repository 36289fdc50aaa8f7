"""The losses of TRL's trainers, with their gradients, for log-probs of tokens that are given; runs in .venv-trl.

It reads a list of cases from its standard input and prints a list of {values, gradients}, both pair by pair. The
trainers' own methods compute everything; only the model is a stand-in that returns the log-probs.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from types import SimpleNamespace

import torch
from torch import nn
from trl import DPOTrainer, KTOTrainer
from trl.experimental.cpo import CPOTrainer
from trl.experimental.orpo import ORPOTrainer

DPO = {
    **{"beta": 0.1, "label_smoothing": 0.0, "ld_alpha": None, "use_weighting": False, "loss_weights": [1.0]},
    **{"f_divergence_type": "reverse_kl", "f_alpha_divergence_coef": 0.5, "discopop_tau": 0.05},
}
CPO = {"beta": 0.1, "label_smoothing": 0.0, "alpha": 0.0, "simpo_gamma": 0.5, "cpo_alpha": 0.0}
KTO = {"beta": 0.1, "desirable_weight": 1.0, "undesirable_weight": 1.0, "kl": 0.0}


class Given(nn.Module):
    """A model whose log-probs are given, and log sum p^2 if it is needed: (B, L) padded with 0."""

    is_gradient_checkpointing = False

    def __init__(self, logp_BL: torch.Tensor, collision_BL: torch.Tensor | None = None) -> None:
        super().__init__()
        self.logp_BL = logp_BL
        self.collision_BL = collision_BL

    def forward(self, **_):
        nothing_BL = torch.zeros_like(self.logp_BL)
        others = dict.fromkeys(("entropy", "mean_logits"), nothing_BL)
        return SimpleNamespace(
            log_probs=self.logp_BL, log_sum_sq_probs=self.collision_BL, is_top1=nothing_BL.bool(), **others
        )


def trainer_of(kind: type, **settings) -> object:
    """A trainer without data or weights: what `_compute_loss` reads of it."""

    def same(x: object) -> object:
        return x

    trainer = kind.__new__(kind)
    accelerator = SimpleNamespace(device=torch.device("cpu"), gather=same, gather_for_metrics=same, unwrap_model=same)
    known = {"aux_loss_enabled": False, "precompute_ref_logps": False, "_total_train_tokens": 0, "_tp_size": 1}
    args = SimpleNamespace(gradient_checkpointing_kwargs=None, discopop_tau=settings.get("discopop_tau"))
    trainer.__dict__ |= {**known, "accelerator": accelerator, "args": args, **settings}
    trainer._metrics = {mode: defaultdict(list) for mode in ("train", "eval")}
    return trainer


def padded(rows: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens (B, L) behind a prompt of one token, and which of L + 1 places they fill."""
    logp_BL = nn.utils.rnn.pad_sequence(rows, batch_first=True)
    there_BL = nn.utils.rnn.pad_sequence([torch.ones(len(row), dtype=torch.long) for row in rows], batch_first=True)
    return logp_BL, nn.functional.pad(there_BL, (1, 0))


def dpo(rows, refs, collisions, types, settings):
    """`DPOTrainer._compute_loss` of the rows: all chosen, then all rejected."""
    share = settings.pop("log_sum_sq_probs", 1)
    trainer = trainer_of(DPOTrainer, loss_types=types, **{**DPO, **settings})
    logp_BL, mask_BL = padded(rows)
    trainer.model, trainer.ref_model = Given(logp_BL, share * padded(collisions)[0]), Given(padded(refs)[0])
    batch = {"input_ids": mask_BL, "attention_mask": mask_BL, "completion_mask": mask_BL}
    return trainer._compute_loss(trainer.model, batch, return_outputs=False)


def kto(rows, refs, collisions, types, settings):
    """`KTOTrainer._compute_loss` of a good and a bad response, summed."""
    given = {**KTO, **settings}
    trainer = trainer_of(KTOTrainer, loss_type=types[0], calculate_KL=types[0] == "kto", **given)
    logp_BL, mask_BL = padded(rows)
    trainer.model, trainer.ref_model = Given(logp_BL), Given(padded(refs)[0])
    kl = torch.tensor([given["kl"]], dtype=logp_BL.dtype)
    trainer._compute_kl_logps = lambda model, batch: kl if model is trainer.model else torch.zeros_like(kl)
    batch = {"input_ids": mask_BL, "attention_mask": mask_BL, "completion_mask": mask_BL}
    return 2 * trainer._compute_loss(trainer.model, {**batch, "label": torch.tensor([True, False])}, False)


def cpo(rows, refs, collisions, types, settings):
    """`CPOTrainer.cpo_loss`, on means for SimPO, with the response's NLL as the trainer adds it."""
    given = {**CPO, **settings}
    trainer = trainer_of(CPOTrainer, loss_type=types[0], **given)
    sums = [row.mean() if types[0] == "simpo" else row.sum() for row in rows]
    losses, _, _ = trainer.cpo_loss(sums[0][None], sums[1][None])
    return losses.mean() - given["cpo_alpha"] * rows[0].mean()


def orpo(rows, refs, collisions, types, settings):
    """`ORPOTrainer.odds_ratio_loss` on means, with the response's NLL as the trainer adds it."""
    trainer = trainer_of(ORPOTrainer, **{"beta": 0.1, **settings})
    losses, *_ = trainer.odds_ratio_loss(rows[0].mean()[None], rows[1].mean()[None])
    return -rows[0].mean() - losses.mean()


TRAINERS = {"dpo": dpo, "kto": kto, "cpo": cpo, "orpo": orpo}


def answer(case: dict) -> dict:
    """The loss of each pair, or of all together, with the gradient in the tokens, pair by pair, chosen first."""
    dtype = getattr(torch, case["dtype"])
    pairs = [[torch.tensor(row, dtype=dtype, requires_grad=True) for row in pair] for pair in case["logps"]]
    refs, collisions = (
        [[torch.tensor(row, dtype=dtype) for row in pair] for pair in case[name]] for name in ("refs", "collisions")
    )
    batches = [range(len(pairs))] if case["together"] else [[n] for n in range(len(pairs))]
    values = []
    for batch in batches:
        rows = [[of[n][side] for side in (0, 1) for n in batch] for of in (pairs, refs, collisions)]
        value = TRAINERS[case["trainer"]](*rows, case["types"], dict(case["settings"])) * len(batch)
        value.backward()
        values.append(value.item())
    return {"values": values, "gradients": [x for pair in pairs for row in pair for x in row.grad.tolist()]}


print(json.dumps([answer(case) for case in json.load(sys.stdin)]))
