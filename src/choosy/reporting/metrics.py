"""The numbers of a run for its loggers."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor

from choosy.appended_file import AppendedFile
from choosy.data.batches import ItemKey
from choosy.foreign import csv_text, from_cell
from choosy.labeling.statistics import shares
from choosy.methods.loss_inputs import LossInputs
from choosy.terminal import logger

log = logger(__name__)

MEANS = ("importance", "learned_reward", "labeler", "parts", "sources")  # of a round, by names of their own


def log_at_once(module: LightningModule, metrics: Mapping[str, float | torch.Tensor], *, step: int) -> None:
    """Give the loggers a row now, and Lightning's callbacks its values.

    Lightning would log the row after it has written the checkpoint of the same moment. A run that is killed between
    the two would resume after a row that was never logged.
    """
    values = {name: float(value) for name, value in metrics.items()}
    module.log_dict(values, logger=False, rank_zero_only=True)
    for each in module.trainer.loggers:
        each.log_metrics({**values, "epoch": module.current_epoch}, step=step)


def cost_metrics(about: Mapping[str, Any]) -> dict[str, float]:
    """Return what a run has cost and what the labels of its last round were like, under the loggers' names."""
    labels = {**about["labels"], "ahead": about["labeled_ahead"], "money": about["money"]["spent"]}
    labels |= shares(about["judged"]["round"])
    cut_share = about["responses_cut_share"]
    return {
        **{f"labels/{name}": float(value) for name, value in labels.items() if value is not None},
        **{name: about[name] for name in ("tokens_generated", "prompts_sampled", "pairs_trained")},
        **{f"responses/{name}": about[f"responses_{name}"] for name in ("cut", "empty")},
        **({} if cut_share is None else {"responses/cut_share": cut_share}),
        **{f"seconds/{name}": about[f"{name}_milliseconds"] / 1000 for name in ("sync", "hidden")},
        **{f"{of}/{name}": value for of in MEANS for name, value in about[of].items()},
        **{f"seconds/{phase}": seconds for phase, seconds in about["seconds"].items()},
    }


@dataclass(frozen=True)
class StepStats:
    """The forwards of a step as one rank, or all of them together, computed them.

    Attributes:
        loss: The step's loss: the weighted losses, summed and divided by the items of the step.
        reward_R: Implicit reward of every response, item after item.
        logp_R: Summed log-probability of every response.
        first_R: Whether a response is the first of its item.
        good_R: Whether it is preferred: the first of a pair or a list, a single response that is good.
        own_log_ratio_K: Log-ratios of policy and reference of the policy's own samples.
        bad: The items whose loss is not finite.
    """

    loss: float
    reward_R: Tensor
    logp_R: Tensor
    first_R: Tensor
    good_R: Tensor
    own_log_ratio_K: Tensor
    bad: tuple[ItemKey, ...] = ()

    @classmethod
    def of(cls, s: LossInputs, loss: Tensor, reward_R: Tensor, bad: Sequence[ItemKey] = ()) -> StepStats:
        """The stats of one part of a step."""
        own_K = (s.own_K.detach() - s.own_ref_K).cpu()
        logp_R, first_R, good_R = s.logp_R.detach().cpu(), (s.rank_R == 0).cpu(), s.good_R.cpu()
        return cls(loss.item(), reward_R.cpu(), logp_R, first_R, good_R, own_K, tuple(bad))

    @classmethod
    def sum(cls, parts: Sequence[StepStats]) -> StepStats:
        """The stats of several parts of one step."""
        none, no = torch.empty(0), torch.empty(0, dtype=torch.bool)
        return cls(
            sum(part.loss for part in parts),
            torch.cat([none, *(part.reward_R for part in parts)]),
            torch.cat([none, *(part.logp_R for part in parts)]),
            torch.cat([no, *(part.first_R for part in parts)]),
            torch.cat([no, *(part.good_R for part in parts)]),
            torch.cat([none, *(part.own_log_ratio_K for part in parts)]),
            tuple(key for part in parts for key in part.bad),
        )

    def metrics(self) -> dict[str, float]:
        """Rewards, accuracies, margins and log-probs under TRL's names; nothing of a step without items.

        Of a list, `rejected` is every response but the best, and an accuracy is how many of these the best one beats.
        Single responses are `chosen` if they are good and `rejected` if they are bad, and have no accuracy.

        Example:
            >>> s = LossInputs(torch.tensor([-3.0, -4.0]), torch.tensor([-3.0, -3.0]), sizes=[2])
            >>> metrics = StepStats.of(s, torch.tensor(0.5), torch.tensor([2.0, -1.0])).metrics()
            >>> {name: value for name, value in metrics.items() if name.startswith("rewards")}
            {'rewards/chosen': 2.0, 'rewards/rejected': -1.0, 'rewards/accuracies': 1.0, 'rewards/margins': 3.0}
        """
        found: dict[str, Tensor] = {}
        for name, of_R in (("chosen", self.good_R), ("rejected", ~self.good_R)):
            if of_R.any():
                found |= {f"rewards/{name}": self.reward_R[of_R].mean(), f"logps/{name}": self.logp_R[of_R].mean()}
        item_R = self.first_R.cumsum(0) - 1
        margin_R = (self.reward_R[self.first_R][item_R] - self.reward_R)[~self.first_R]
        if len(margin_R):
            found |= {"rewards/accuracies": (margin_R > 0).float().mean(), "rewards/margins": margin_R.mean()}
        elif {"rewards/chosen", "rewards/rejected"} <= found.keys():
            found["rewards/margins"] = found["rewards/chosen"] - found["rewards/rejected"]
        if (kl := self.kl) is not None:
            found["kl"] = torch.tensor(kl)
        return {name: value.item() for name, value in found.items()}

    @property
    def kl(self) -> float | None:
        """KL divergence of the policy from the reference as its own samples of this step estimate it; None of none."""
        return self.own_log_ratio_K.mean().item() if len(self.own_log_ratio_K) else None


class MetricsFile(Logger):
    """Writes metrics.csv in the run's folder: a row for every step and every round's end, appended at once.

    A resumed run continues the file; rows of steps that it trains again replace the old ones. A checksum of what is
    written lies beside it in metrics.csv.sha256, since a row is appended without the others being read; a file that is
    not as it was written is put aside, and a new one is begun.
    """

    name = version = ""

    def __init__(self, run_dir: str) -> None:
        super().__init__()
        self._file = Path(run_dir) / "metrics.csv"
        self._columns: list[str] = []  # none before the first row of this process
        self._written = AppendedFile(self._file)

    @property
    def save_dir(self) -> str:
        return str(self._file.parent)

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Log nothing: they are in config.yaml."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        step = step or 0
        row = {**metrics, "step": step}
        if row.keys() <= set(self._columns):
            self._written.append(csv_text(self._columns, [row], header=False))
            return
        now = (step, row.get("epoch", 0))  # a round with nothing to train on takes no step
        rows = [old for old in self._read() if self._columns or (old["step"], old["epoch"]) < now]
        self._columns = sorted(set(row).union(*rows))
        self._written.replace(csv_text(self._columns, [*rows, row]))

    def _read(self) -> list[dict[str, float]]:
        try:
            return self._rows(self._written.read())
        except ValueError as error:
            aside = self._file.with_name("metrics.damaged.csv")
            log.warning("%s. It is put aside as %s, and the metrics before this step are missing.", error, aside.name)
            self._file.rename(aside)
            return []

    def _rows(self, text: str) -> list[dict[str, float]]:
        """Read the rows of the file; a ValueError that names it for one that `log_metrics` has not written."""
        lines = io.StringIO(text, newline="")
        whole = [line for line in lines if line.endswith("\n")]  # the last one may have been cut short
        try:
            header, *lists = [list(map(from_cell, cells)) for cells in csv.reader(whole)] or [[]]
            rows = [
                {name: _number(value) for name, value in zip(header, cells, strict=True) if value} for cells in lists
            ]
            if lacking := [row for row in rows if not {"step", "epoch"} <= row.keys()]:
                raise ValueError(f"a row has no step and no epoch, {lacking[0]}")
        except (ValueError, csv.Error) as error:
            raise ValueError(f"{self._file} is damaged ({error})") from error
        return rows


def _number(text: str) -> float:
    """Read a number; a whole one as it was written, without a point."""
    return int(text) if text.isdigit() else float(text)
