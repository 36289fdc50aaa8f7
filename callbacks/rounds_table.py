"""Keeps each round as a table that people can open, and its costs in the loggers."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback

from choosy.reporting.metrics import log_at_once
from choosy.rounds.run import labels_metrics


class RoundsTable(Callback):
    """Writes rounds/round_NNN.parquet when a round is over, held-out rows included; name it after `WinRate`."""

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        run = trainer.datamodule.run
        run.counts["pairs_trained"] += run.pairs_this_round
        about = run.ranks.on_rank_zero(run.about)
        costs = {
            **labels_metrics(about),
            **{k: about[k] for k in ("tokens_generated", "prompts_sampled", "pairs_trained")},
            **{f"responses/{k}": about[f"responses_{k}"] for k in ("cut", "empty")},
            "seconds/sync": about["sync_milliseconds"] / 1000,
            **{f"seconds/{phase}": seconds for phase, seconds in about["seconds"].items()},
        }
        log_at_once(pl_module, costs, step=trainer.global_step - 1)
        run.write()
