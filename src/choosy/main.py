"""Trains as Hydra composes it. The only file that imports Hydra."""

from __future__ import annotations

import json
import os
import re
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import hydra
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.errors import InstantiationException
from hydra.types import RunMode
from hydra.utils import instantiate
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig, OmegaConf

from choosy.files import replacing
from choosy.labeling.protocols import Postponed
from choosy.parallel.ranks import LOST, end_with_launcher, first_writer, is_peer_failure
from choosy.redaction import refuse_secrets, texts
from choosy.reporting.display import quiet
from choosy.reporting.report import write_index
from choosy.reporting.summary import RunSummary, read_run
from choosy.reporting.sweeps import arm_folder
from choosy.resume.config_changes import report_changes
from choosy.resume.run_folder import Start, prepare_folder
from choosy.rounds.evaluate import labels_until
from choosy.rounds.run import refuse_unknown

OmegaConf.register_new_resolver(
    "started", lambda pattern: first_writer(pattern, time.strftime(pattern)), use_cache=True, replace=True
)
OmegaConf.register_new_resolver("arm", arm_folder, replace=True)

COMMAND = list(sys.argv)  # as typed, `choosy train ...` or `python train.py ...`


@contextmanager
def in_sentences(again: Callable[[], str]) -> Iterator[None]:
    """End the process with a sentence where a mistake can be corrected, or with code 75 where the run waits for labels.

    Then `again` returns what to type when the labels are there.
    """
    end_with_launcher()
    try:
        yield
    except Postponed as postponed:
        print(f"\n{postponed}\n  {again()}", file=sys.stderr)
        sys.exit(Postponed.exit_code)
    except (ValueError, MisconfigurationException, InstantiationException) as error:
        cause = innermost(error)
        if os.environ.get("HYDRA_FULL_ERROR") == "1" or not isinstance(cause, ValueError | MisconfigurationException):
            raise
        sys.exit(f"\n{cause}")
    except RuntimeError as error:
        if not is_peer_failure(error):
            raise
        sys.exit(f"\n{LOST}")


@hydra.main(version_base="1.3", config_path="pkg://choosy.conf", config_name="train")
def main(cfg: DictConfig) -> float | None:
    """Train as configured and return the objective, for sweepers.

    A mistake that the user can correct ends the process with a sentence; HYDRA_FULL_ERROR=1 shows the stack.
    """
    sys.argv[:] = COMMAND  # Lightning repeats it to start the other processes of a run
    run_dir = Path(HydraConfig.get().runtime.output_dir)
    multirun = HydraConfig.get().mode == RunMode.MULTIRUN
    with in_sentences(lambda: same_again(cfg)):
        if not join_tasks(cfg.trainer.get("devices")):
            return None
        if multirun:
            refuse_relaunching_sweep(cfg)
        if is_finished(cfg, run_dir):
            rank_zero_only(print)(f"{run_dir} is finished: {read_run(run_dir).headline}")
        elif not train(cfg, run_dir).is_global_zero:
            return None
    if multirun:
        write_index(HydraConfig.get().sweep.dir)
    return objective(cfg, read_run(run_dir))


def train(cfg: DictConfig, run_dir: Path, *, callbacks: Sequence[Callback] = ()) -> Trainer:
    """Play all rounds of a run, and return the trainer with the tuned module and the data.

    Further callbacks are called before those of the configuration.
    """
    start = prepare(cfg, run_dir)
    seed_everything(cfg.seed, workers=True, verbose=False)
    data = instantiate(cfg.data, _convert_="all")
    module = instantiate(cfg.module, _convert_="all")
    trainer: Trainer = instantiate(cfg.trainer, _convert_="all")
    data.run.resuming = start.resuming
    trainer.callbacks[:0] = callbacks  # type: ignore[attr-defined]
    if trainer.is_global_zero:
        write_config(cfg, run_dir)
    trainer.fit(module, datamodule=data, ckpt_path=start.ckpt_path, weights_only=True)
    return trainer


def is_finished(cfg: DictConfig, run_dir: Path) -> bool:
    """Whether ckpt_path=auto finds every round of a run played, and its report written.

    Raises:
        ValueError: It was played with other data, another model or another seed.
    """
    summary = run_dir / "summary.json"
    if cfg.ckpt_path != "auto" or not summary.exists():
        return False
    report_changes(run_dir, plain(cfg))
    return bool(json.loads(summary.read_text())["rounds"] >= cfg.rounds)


def prepare(cfg: DictConfig, run_dir: Path) -> Start:
    """Refuse what cannot run before anything is spent, and choose the checkpoint that a run resumes from."""
    cfg.run_dir = os.path.relpath(run_dir) if run_dir.is_relative_to(Path.cwd()) else str(run_dir)
    refuse_blanks(cfg)
    for resolve in (False, True):  # as typed, so that the message names what was typed, then as written into the folder
        refuse_secrets(OmegaConf.to_container(cfg, resolve=resolve))
    refuse_objective(cfg)
    refuse_missing_gpu(cfg)
    quiet()
    return prepare_folder(run_dir, cfg.ckpt_path, config=plain(cfg), ledger=cfg.labels.ledger)


def objective(cfg: DictConfig, run: RunSummary) -> float | None:
    """Return the last win rate, or the labels bought until it reached the target to stay."""
    if cfg.objective == "win_rate":
        return run.last.get("win_rate")
    looks = [
        (played["labels"]["spent"], played["evaluation"]["win_rate"], int(played["evaluation"]["judged"]))
        for played in run.evaluated
        if played["evaluation"].get("win_rate") is not None
    ]
    return labels_until(looks, cfg.target_win_rate)


def refuse_objective(cfg: DictConfig) -> None:
    """Refuse an unknown objective, and one that nothing will measure."""
    refuse_unknown("objective", cfg.objective, ("win_rate", "labels_to_win_rate"))
    if cfg.objective == "labels_to_win_rate" and not (cfg.data.get("heldout") and cfg.callbacks.get("win_rate")):
        raise ValueError(
            "objective=labels_to_win_rate needs win rates: give data.heldout=... and leave callbacks.win_rate in."
        )


def join_tasks(devices: Any) -> bool:
    """Tell Lightning of the processes that submitit has started on this machine for one job on `trainer.devices`.

    Return whether this process takes part: in a job on one device only the first one does.
    """
    tasks = int(os.environ.get("SUBMITIT_LOCAL_NTASKS", 1)) if os.environ.get("SUBMITIT_EXECUTOR") == "local" else 1
    if tasks == 1:
        return True
    rank = os.environ["SUBMITIT_LOCAL_GLOBALID"]
    if devices in (1, "1"):
        return rank == "0"
    if str(devices) not in (str(tasks), "auto"):
        raise ValueError(
            f"trainer.devices={devices}, but submitit starts {tasks} processes a job; "
            f"type hydra.launcher.tasks_per_node={devices}"
        )
    port = 20000 + int(os.environ["SUBMITIT_LOCAL_JOB_ID"]) % 40000
    where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "NODE_RANK": "0"}
    os.environ.update(where, RANK=rank, LOCAL_RANK=rank, WORLD_SIZE=str(tasks))
    return True


def plain(cfg: DictConfig) -> Any:
    """Return the resolved configuration as dicts and lists."""
    return OmegaConf.to_container(cfg, resolve=True)


def same_again(cfg: DictConfig) -> str:
    """Return the command that resumes this run."""
    program = ["choosy", "train"] if COMMAND[1:2] == ["train"] else ["python", "train.py"]
    replaced = ("name=", "run_dir=", "ckpt_path=")
    typed = [word for word in HydraConfig.get().overrides.task if not word.startswith(replaced)]
    return shlex.join([*program, *typed, f"run_dir={quoted(cfg.run_dir)}", "ckpt_path=last"])


def quoted(value: str) -> str:
    """Return a text as Hydra's command line takes it.

    Example:
        >>> print(quoted("runs/demo"), quoted("runs/a b [1]"), quoted("it's"))
        runs/demo 'runs/a b [1]' 'it\\'s'
    """
    if re.fullmatch(r"[\w/.+-]+", value, re.ASCII):
        return value
    return "'" + re.sub(r"(\\*)'", r"\1\1\\'", value) + "'"


def write_config(cfg: DictConfig, run_dir: Path) -> None:
    """Write the resolved configuration, and the overrides that made it, into the run's folder."""
    with replacing(run_dir / "config.yaml") as unfinished:  # other processes of a resumed run may be reading it
        unfinished.write_text(OmegaConf.to_yaml(cfg, resolve=True))
    if HydraConfig.initialized():
        with replacing(run_dir / ".hydra" / "overrides.yaml") as unfinished:
            unfinished.write_text(OmegaConf.to_yaml(HydraConfig.get().overrides.task))


def refuse_blanks(cfg: DictConfig) -> None:
    """Refuse a configuration with values that only the user can give."""
    if found := blanks(OmegaConf.to_container(cfg, resolve=False)):
        raise ValueError(f"{' and '.join(found)} must be given; type {' '.join(f'{name}=...' for name in found)}")


def blanks(config: Any) -> list[str]:
    """Return the names of all values that are ???.

    Example:
        >>> blanks({"data": {"train": "???", "limit": None}})
        ['data.train']
    """
    return [name for name, value in texts(config) if value == "???"]


def refuse_relaunching_sweep(cfg: DictConfig) -> None:
    """Refuse a sweep over a strategy that launches processes: each of them would run the whole sweep again."""
    launches = cfg.trainer.get("devices") not in (1, "1") or cfg.trainer.get("num_nodes", 1) != 1
    from_outside = any(name in os.environ for name in ("LOCAL_RANK", "SLURM_PROCID", "PMI_RANK"))
    if launches and not from_outside:
        raise ValueError(
            "-m with several devices: every process that the strategy starts would run the whole sweep again. "
            "Start each job's processes from outside: hydra/launcher=submitit_local or submitit_slurm with "
            f"hydra.launcher.tasks_per_node={cfg.trainer.get('devices')}, or torchrun or srun without -m; "
            "or sweep over one device with trainer.devices=1."
        )


def refuse_missing_gpu(cfg: DictConfig) -> None:
    """Refuse trainer.accelerator=gpu where there is no GPU."""
    if cfg.trainer.get("accelerator") in ("gpu", "cuda") and not torch.cuda.is_available():
        raise ValueError(
            "trainer.accelerator=gpu, but torch finds no GPU; choose trainer=cpu, or install a CUDA build of torch."
        )


def innermost(error: BaseException) -> BaseException:
    """Return the error that Hydra wrapped when it built an object."""
    while isinstance(error, InstantiationException) and error.__cause__ is not None:
        error = error.__cause__
    return error


def compose(overrides: list[str]) -> Any:
    """Return the configuration that these overrides give, for tools and tests."""
    with hydra.initialize_config_module("choosy.conf", version_base="1.3"):
        return hydra.compose("train", overrides=overrides)
