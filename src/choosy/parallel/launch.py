"""Processes of one run that something else than Lightning starts."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from glob import glob
from typing import Any


def may_have_gpu() -> bool:
    """Whether a driver may have given this machine a GPU, without an import of torch.

    On Linux a driver makes device files: NVIDIA's (also Jetson's), WSL's dxg, AMD's kfd.
    """
    names = ("nvidia*", "nvgpu*", "nvhost*", "nvmap", "dxg", "kfd")
    return sys.platform != "linux" or any(glob(f"/dev/{name}") for name in names)


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


def refuse_relaunching_sweep(trainer: Mapping[str, Any]) -> None:
    """Refuse a sweep over a strategy that launches processes: each of them would run the whole sweep again."""
    launches = trainer.get("devices") not in (1, "1") or trainer.get("num_nodes", 1) != 1
    from_outside = any(name in os.environ for name in ("LOCAL_RANK", "SLURM_PROCID", "PMI_RANK"))
    if launches and not from_outside:
        raise ValueError(
            "-m with several devices: every process that the strategy starts would run the whole sweep again. "
            "Start each job's processes from outside: hydra/launcher=submitit_local or submitit_slurm with "
            f"hydra.launcher.tasks_per_node={trainer.get('devices')}, or torchrun or srun without -m; "
            "or sweep over one device with trainer.devices=1."
        )
