"""A whole run in a call: the real menu on a tiny policy, and what it leaves behind."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from subprocess import STDOUT, Popen
from typing import Any

import httpx2
import pandas as pd
import pytest
import torch
from lightning.pytorch import Callback, Trainer
from programs import free_port
from tiny import PLAIN, on_top, skip_without_vllm

from choosy.main import compose, train
from choosy.models.adapters import Lora
from choosy.models.policy import Policy
from choosy.module import WeightedDPO
from choosy.sealed import read_json

State = dict[str, torch.Tensor]

TOY_REWARDS = '''
def toy(prompt, response):
    return sum(map(ord, response)) % 7

class Longer:
    """A labeler that only compares, for labeler._target_=toy_rewards.Longer; it takes the settings of any other."""

    name = "longer"

    def __init__(self, **given):
        pass

    def compare(self, items):
        return ["first" if len(a.text) > len(b.text) else "second" for _, a, b in items]
'''


class Witness(Callback):
    """Copies the weights at the start and before each round's first step, and lists the items of every step."""

    def __init__(self) -> None:
        self.start: State = {}
        self.frozen: State = {}
        self.before_round: list[State] = []
        self.pairs: list[list[tuple[Any, ...]]] = []  # of each round: prompt id, then the responses' tokens

    def on_fit_start(self, trainer: Trainer, pl_module: Any) -> None:
        self.start, self.frozen = trained(pl_module.policy), untrained(pl_module.policy)

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == 0:
            self.before_round.append(trained(pl_module.policy))
            self.pairs.append([])
        if self.pairs:
            self.pairs[-1] += [(x.prompt_id, *map(tuple, x.response_ids)) for x in batch.items]


def trained(policy: Policy) -> State:
    return {name: p.detach().clone() for name, p in policy.trainable()}


def untrained(policy: Policy) -> State:
    return {n: p.detach().clone() for n, p in policy.model.named_parameters() if not p.requires_grad}


@dataclass(frozen=True)
class Finished:
    """A run that is over: its folder, its parts as they were at the end, and what a callback saw."""

    run_dir: Path
    policy: Policy
    data: Any
    witness: Witness

    @property
    def summary(self) -> dict[str, Any]:
        return read_json(self.run_dir / "summary.json")

    @property
    def weights(self) -> State:
        return trained(self.policy)

    @property
    def frozen(self) -> State:
        return untrained(self.policy)

    @property
    def losses(self) -> list[float]:
        """The loss of each optimiser step."""
        return pd.read_csv(self.run_dir / "metrics.csv")["loss_step"].dropna().tolist()

    def round(self, number: int, split: str = "train") -> pd.DataFrame:
        """The table of a round."""
        table = pd.read_parquet(self.run_dir / "rounds" / f"round_{number:03d}.parquet")
        return table[table["split"] == split].reset_index(drop=True)

    @property
    def pool(self) -> pd.DataFrame:
        """The table of the last round."""
        return self.round(self.summary["rounds"] - 1)


Play = Callable[..., Finished]


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """So small a model is faster without a second thread, and repeats itself to the bit."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def play(tmp_path: Path, tiny_policy_dir: Path, prompts_file: Path, monkeypatch: pytest.MonkeyPatch) -> Play:
    """Play a run, `play("selector=certainty", name="one")`: two rounds on the twelve prompts, in fp32."""
    (tmp_path / "toy_rewards.py").write_text(TOY_REWARDS)
    monkeypatch.syspath_prepend(tmp_path)
    defaults = [
        "trainer=cpu",
        f"model.name={tiny_policy_dir}",
        "model.dtype=float32",
        f"data.train={prompts_file}",
        f"data.heldout={prompts_file}",
        "data.heldout_limit=2",
        *PLAIN,
        "selector=none",
        "weighting=uniform",
        "rounds=2",
        "batching.batch_size=4",
        "sampler.max_new_tokens=8",
        "callbacks.report.console=false",
    ]
    function = ["labeler=function", "labeler.path=toy_rewards.toy"]

    def played(*overrides: str, name: str = "run", callbacks: Sequence[Callback] = ()) -> Finished:
        witness = Witness()
        labeler = [] if any(line.startswith("labeler=") for line in overrides) else function
        trainer = train(
            compose(on_top([*defaults, *labeler], overrides)), tmp_path / name, callbacks=[witness, *callbacks]
        )
        assert isinstance(trainer.lightning_module, WeightedDPO)
        return Finished(tmp_path / name, trainer.lightning_module.policy, trainer.datamodule, witness)

    return played


@pytest.fixture(scope="session")
def vllm_servers(wide_policy_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Popen[bytes]]]:
    """Two servers of the wide policy on loopback, by their addresses."""
    skip_without_vllm()
    folder = tmp_path_factory.mktemp("servers")
    own = {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1"}
    own |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1"}
    shape = "--dtype float32 --enforce-eager --max-model-len 192 --max-num-seqs 32 --enable-lora --max-lora-rank 16"
    started: dict[str, Popen[bytes]] = {}
    for port in (free_port(), free_port()):
        where = ["--model", str(wide_policy_dir), "--host", "127.0.0.1", "--port", str(port), *shape.split()]
        started[f"http://127.0.0.1:{port}"] = Popen(
            [sys.executable, "-m", "vllm.entrypoints.openai.api_server", *where],
            cwd=folder,
            env={**os.environ, **own},
            stdout=(folder / f"{port}.log").open("wb"),
            stderr=STDOUT,
            start_new_session=True,
        )
    try:
        for address, process in started.items():
            while not answers(address):
                log = folder / f"{address.rpartition(':')[2]}.log"
                assert process.poll() is None, log.read_text(errors="replace")[-3000:]
                time.sleep(0.5)
        yield started
    finally:
        for process in started.values():
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def answers(address: str) -> bool:
    with suppress(httpx2.RequestError):
        return httpx2.get(f"{address}/health", trust_env=False).status_code == 200
    return False


@pytest.fixture
def load_policy(tiny_policy_dir: Path) -> Callable[..., Policy]:
    """Load the tiny policy, or another folder's, with an adapter that has been moved away from zero."""

    def load(folder: Path = tiny_policy_dir, *, lora: bool = True) -> Policy:
        policy = Policy(str(folder), lora=Lora(r=4) if lora else None, dtype="float32")
        policy.load(device=torch.device("cpu"), seed=0)
        noise = torch.Generator().manual_seed(1)
        for name, p in policy.trainable():
            if "lora_B" in name:
                p.data.normal_(0, 0.05, generator=noise)
        return policy

    return load
