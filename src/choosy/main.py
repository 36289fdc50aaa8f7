"""From a composed configuration to a run. The only file that imports Hydra."""

from __future__ import annotations

import logging
import math
import os
import shlex
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hydra
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.errors import InstantiationException
from hydra.types import RunMode
from hydra.utils import instantiate
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import seed_everything
from omegaconf import DictConfig, OmegaConf

from choosy.files import replacing
from choosy.labeling.protocols import Postponed
from choosy.parallel.launch import LOST, end_with_launcher, first_writer, is_peer_failure
from choosy.redaction import refuse_secrets
from choosy.reporting import summary as report
from choosy.resume.config_changes import tell_changes
from choosy.resume.run_folder import (
    auto_resume,
    checkpoint,
    refuse_lost_ledger,
    refuse_unwritable,
    refuse_used_folder,
)

OmegaConf.register_new_resolver(
    "started", lambda pattern: first_writer(pattern, time.strftime(pattern)), use_cache=True, replace=True
)

PROCESSES_FROM_OUTSIDE = ("LOCAL_RANK", "SLURM_PROCID", "PMI_RANK")


@hydra.main(version_base="1.3", config_path="pkg://choosy.conf", config_name="train")
def main(cfg: DictConfig) -> float | None:
    """Train as configured; what the user can mend is told in a sentence (HYDRA_FULL_ERROR=1 shows the stack).

    A run that waits for labels of another day leaves with exit code 75.
    """
    end_with_launcher()
    try:
        return train(
            cfg, Path(HydraConfig.get().runtime.output_dir), multirun=HydraConfig.get().mode == RunMode.MULTIRUN
        )
    except Postponed as postponed:
        print(f"\n{postponed}\n  {same_again(cfg)}", file=sys.stderr)
        sys.exit(Postponed.exit_code)
    except (ValueError, MisconfigurationException, InstantiationException) as error:
        told = innermost(error)
        if os.environ.get("HYDRA_FULL_ERROR") == "1" or not isinstance(told, ValueError | MisconfigurationException):
            raise
        sys.exit(f"\n{told}")
    except RuntimeError as error:
        if not is_peer_failure(error):
            raise
        sys.exit(f"\n{LOST}")


def train(cfg: DictConfig, run_dir: Path, *, multirun: bool = False) -> float | None:
    """Play all rounds and return the objective, for sweepers."""
    cfg.run_dir = os.path.relpath(run_dir) if run_dir.is_relative_to(Path.cwd()) else str(run_dir)
    refuse_blanks(cfg)
    for resolve in (False, True):  # as it was typed, so that its name is told, then as it is written down
        refuse_secrets(OmegaConf.to_container(cfg, resolve=resolve))
    refuse_objective(cfg)
    if not join_tasks(cfg.trainer.get("devices")):
        return None
    refuse_relaunching_sweep(cfg, multirun)
    refuse_missing_gpu(cfg)
    wanted = auto_resume(cfg.ckpt_path, run_dir)
    resuming = wanted is not None
    refuse_used_folder(run_dir, resuming=resuming)
    ckpt_path = checkpoint(wanted, run_dir)
    refuse_unwritable(run_dir)
    if resuming:
        tell_changes(run_dir, plain(cfg))
    quiet()
    seed_everything(cfg.seed, workers=True, verbose=False)

    data = instantiate(cfg.data, _convert_="all")
    module = instantiate(cfg.module, _convert_="all")
    trainer = instantiate(cfg.trainer, _convert_="all")
    data.resuming = resuming
    if resuming:
        refuse_lost_ledger(run_dir, data.run.labels.ledger.path)
    if trainer.is_global_zero:
        write_config(cfg, run_dir)
    trainer.fit(module, datamodule=data, ckpt_path=ckpt_path, weights_only=True)

    if multirun and trainer.is_global_zero:
        report.index(run_dir.parent)
    return objective(cfg, run_dir) if trainer.is_global_zero else None


def objective(cfg: DictConfig, run_dir: Path) -> float | None:
    """What the run has come to: its last win rate, or the labels it took to reach the wanted one (else infinity)."""
    played = report.read_run(run_dir)
    if cfg.objective == "win_rate":
        return played.last.get("win_rate")
    reached = (r.labels["spent"] for r in played.evaluated if (r.evaluation or {})["win_rate"] >= cfg.target_win_rate)
    return float(next(reached, math.inf))


def refuse_objective(cfg: DictConfig) -> None:
    """An objective that is none, or that nothing will measure."""
    if cfg.objective not in ("win_rate", "labels_to_win_rate"):
        raise ValueError(f"objective={cfg.objective} is none of win_rate, labels_to_win_rate.")
    if cfg.objective == "labels_to_win_rate" and not (cfg.data.get("heldout") and cfg.callbacks.get("win_rate")):
        raise ValueError(
            "objective=labels_to_win_rate needs win rates: give data.heldout=... and leave callbacks.win_rate in."
        )


def join_tasks(devices: Any) -> bool:
    """Where submitit has started a job's processes on this machine, say so in the words that Lightning knows.

    Returns:
        Whether this process has something to do: a job on one device leaves the others nothing.
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


def plain(cfg: DictConfig) -> dict[str, Any]:
    """The resolved configuration as dicts and lists."""
    composed: Any = OmegaConf.to_container(cfg, resolve=True)
    return dict(composed)


def same_again(cfg: DictConfig) -> str:
    """The command that goes on with this run."""
    replaced = ("name=", "run_dir=", "ckpt_path=")
    typed = [word for word in HydraConfig.get().overrides.task if not word.startswith(replaced)]
    return shlex.join(["python", "train.py", *typed, f"run_dir={cfg.run_dir}", "ckpt_path=last"])


def write_config(cfg: DictConfig, run_dir: Path) -> None:
    """Keep the resolved configuration, and the overrides that made it, with the run."""
    with replacing(run_dir / "config.yaml") as unfinished:  # other processes of a resumed run may be reading it
        unfinished.write_text(OmegaConf.to_yaml(cfg, resolve=True))
    if HydraConfig.initialized():
        with replacing(run_dir / ".hydra" / "overrides.yaml") as unfinished:
            unfinished.write_text(OmegaConf.to_yaml(HydraConfig.get().overrides.task))


def refuse_blanks(cfg: DictConfig) -> None:
    """A value that only the user can know is missing."""
    if found := list(blanks(OmegaConf.to_container(cfg, resolve=False))):
        raise ValueError(f"{' and '.join(found)} must be given; type {' '.join(f'{name}=...' for name in found)}")


def blanks(node: Any, name: str = "") -> Iterator[str]:
    """The names of all values that are ???.

    Example:
        >>> list(blanks({"data": {"train": "???", "limit": None}}))
        ['data.train']
    """
    if isinstance(node, dict):
        for key, value in node.items():
            yield from blanks(value, f"{name}.{key}" if name else key)
    elif node == "???":
        yield name


def refuse_relaunching_sweep(cfg: DictConfig, multirun: bool) -> None:
    """Each process that a strategy launches by itself would run the whole sweep again."""
    launches = cfg.trainer.get("devices") not in (1, "1") or cfg.trainer.get("num_nodes", 1) != 1
    from_outside = any(name in os.environ for name in PROCESSES_FROM_OUTSIDE)
    if multirun and launches and not from_outside:
        raise ValueError(
            "-m with several devices: every process that the strategy starts would run the whole sweep again. "
            "Start each job's processes from outside: hydra/launcher=submitit_local or submitit_slurm with "
            f"hydra.launcher.tasks_per_node={cfg.trainer.get('devices')}, or torchrun or srun without -m; "
            "or sweep over one device with trainer.devices=1."
        )


def refuse_missing_gpu(cfg: DictConfig) -> None:
    """A GPU was asked for and there is none."""
    if cfg.trainer.get("accelerator") in ("gpu", "cuda") and not torch.cuda.is_available():
        raise ValueError(
            "trainer.accelerator=gpu, but torch finds no GPU; choose trainer=cpu, or install a CUDA build of torch."
        )


def innermost(error: BaseException) -> BaseException:
    """The error that Hydra wrapped when it built an object."""
    while isinstance(error, InstantiationException) and error.__cause__ is not None:
        error = error.__cause__
    return error


def quiet() -> None:
    """Leave the terminal to the run: no banners, no advice that does not apply."""
    for name in ("lightning.pytorch", "lightning.fabric", "pytorch_lightning", "httpx2"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in (
        ".*Experiment logs directory.*exists and is not empty.*",
        ".*Checkpoint directory.*exists and is not empty.*",
        ".*You have overridden `transfer_batch_to_device`.*",
        ".*It is recommended to use `self.log.*sync_dist=True.*",
        ".*LeafSpec.*",
        ".*isinstance.treespec.*",
        ".*`lr_scheduler.step.*",
        ".*Found .* module.s. in eval mode.*",
    ):
        warnings.filterwarnings("ignore", message=message)


def compose(overrides: list[str]) -> Any:
    """The configuration that these overrides give, for tools and tests."""
    with hydra.initialize_config_module("choosy.conf", version_base="1.3"):
        return hydra.compose("train", overrides=overrides)
