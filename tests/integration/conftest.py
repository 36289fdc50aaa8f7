"""A whole run in a call: the real menu on a tiny policy, and what it leaves behind."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from lightning.pytorch import Callback, Trainer

import choosy.main
from choosy.module import WeightedDPO

TOY_REWARD = "def toy(prompt, response):\n    return sum(map(ord, response)) % 7\n"


@dataclass(frozen=True)
class Finished:
    """A run that is over (or was interrupted): its folder and its parts as they were at the end."""

    run_dir: Path
    trainer: Trainer
    module: WeightedDPO
    data: Any

    @property
    def summary(self) -> dict[str, Any]:
        return json.loads((self.run_dir / "summary.json").read_text())

    @property
    def weights(self) -> dict[str, torch.Tensor]:
        """What was trained, by name."""
        return {name: p.detach() for name, p in self.module.policy.trainable()}

    @property
    def losses(self) -> list[float]:
        """The loss of each optimiser step."""
        return pd.read_csv(self.run_dir / "metrics.csv")["loss_step"].dropna().tolist()

    def round(self, number: int, split: str = "train") -> pd.DataFrame:
        """A round's table."""
        table = pd.read_parquet(self.run_dir / "rounds" / f"round_{number:03d}.parquet")
        return table[table["split"] == split].reset_index(drop=True)

    @property
    def pool(self) -> pd.DataFrame:
        """The last round's table."""
        return self.round(len(list(self.run_dir.glob("rounds/round_*.parquet"))) - 1)


Play = Callable[..., Finished]


@pytest.fixture
def play(tmp_path: Path, tiny_policy_dir: Path, prompts_file: Path, monkeypatch: pytest.MonkeyPatch) -> Play:
    """Play a run: `play("selector=certainty", name="one")`; later overrides win over these."""
    (tmp_path / "toy_rewards.py").write_text(TOY_REWARD)
    monkeypatch.syspath_prepend(tmp_path)

    def played(*overrides: str, name: str = "run", callbacks: Sequence[Callback] = ()) -> Finished:
        built: list[Any] = []

        def instantiate(*args: Any, **kwargs: Any) -> Any:
            built.append(choosy_instantiate(*args, **kwargs))
            if isinstance(built[-1], Trainer):
                built[-1].callbacks[:0] = callbacks
            return built[-1]

        choosy_instantiate = choosy.main.instantiate
        cfg = choosy.main.compose([*defaults, *overrides])
        with monkeypatch.context() as patched:
            patched.setattr(choosy.main, "instantiate", instantiate)
            choosy.main.train(cfg, tmp_path / name)
        data, module, trainer = built
        return Finished(tmp_path / name, trainer, module, data)

    defaults = [
        f"model.name={tiny_policy_dir}",
        "model.dtype=float32",
        f"data.train={prompts_file}",
        "trainer=cpu",
        "labeler=function",
        "labeler.labeler.path=toy_rewards.toy",
        "selector=none",
        "weighting=uniform",
        "rounds=2",
        "batching.batch_size=4",
        "sampler.max_new_tokens=8",
        "callbacks.report.console=false",
    ]
    return played
