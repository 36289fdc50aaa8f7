"""The order of Lightning's hooks, on which a round depends: the day Lightning changes it, this test says so."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from lightning.pytorch import Callback

from choosy.module import WeightedDPO
from data_modules.on_policy import OnPolicyData

HOOKS_OF_DATA = ("setup", "load_state_dict", "train_dataloader", "state_dict")
ONE_ROUND = ["callback.on_train_epoch_start", "step", "step", "step", "callback.on_train_epoch_end", "data.state_dict"]


class Recorder(Callback):
    """Appends the names of the hooks of a callback to a list."""

    def __init__(self, events: list[str]) -> None:
        self.events = events

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        self.events.append("callback.setup")

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.events.append("callback.load_state_dict")

    def state_dict(self) -> dict[str, Any]:
        return {"some": "state"}  # without any, load_state_dict is not called

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        self.events.append("callback.on_fit_start")

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self.events.append("callback.on_train_start")

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        self.events.append("callback.on_train_epoch_start")

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.events.append("step")

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        self.events.append("callback.on_train_epoch_end")


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The hooks of the data module and of the module in the order in which Lightning calls them."""
    found: list[str] = []

    def record(owner: type, hook: str, name: str) -> None:
        original = getattr(owner, hook)

        def recorded(self: Any, *args: Any, **kwargs: Any) -> Any:
            training = f" with module.training={self.trainer.lightning_module.training}" if "loader" in hook else ""
            found.append(name + training)
            return original(self, *args, **kwargs)

        monkeypatch.setattr(owner, hook, recorded)

    for hook in HOOKS_OF_DATA:
        record(OnPolicyData, hook, f"data.{hook}")
    record(WeightedDPO, "configure_optimizers", "module.configure_optimizers")
    return found


ROUND = ["data.train_dataloader with module.training=True"]


def test_a_run(play: Callable[..., Any], events: list[str]) -> None:
    """`train_dataloader`, which plays the round, comes after every set-up and before `on_train_epoch_start`."""
    play("callbacks.checkpoint.every_n_steps=0", callbacks=[Recorder(events)])
    assert events == [
        "data.setup",
        "callback.setup",  # a selector introduces itself here
        "module.configure_optimizers",
        "callback.on_fit_start",
        *ROUND,
        "callback.on_train_start",
        *ONE_ROUND,
        *ROUND,
        *ONE_ROUND,
    ]


def test_a_run_that_resumes_after_a_round(play: Callable[..., Any], events: list[str]) -> None:
    """States are loaded between the callbacks' set-up and the first round, which is asked for twice."""
    play("callbacks.checkpoint.every_n_steps=0", "rounds=1", callbacks=[Recorder(events)])
    events.clear()
    play("callbacks.checkpoint.every_n_steps=0", "ckpt_path=last", callbacks=[Recorder(events)])
    assert events[:8] == [
        "data.setup",
        "callback.setup",
        "data.load_state_dict",
        "callback.load_state_dict",
        "module.configure_optimizers",
        "callback.on_fit_start",
        *ROUND,  # of the round that is over: the pool has it already
        "callback.on_train_start",
    ]
    assert events[8:] == [*ROUND, *ONE_ROUND]
