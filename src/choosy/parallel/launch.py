"""The processes of a run before they meet, or after one of them has died."""

from __future__ import annotations

import os
import sys
import threading
import time
from datetime import timedelta

from torch.distributed import TCPStore  # type: ignore[attr-defined]  # it is there, but not in __all__

LOST = (
    "another process of this run has ended, so this one ends too. The error of the first to fail stands above; "
    "if there is none, it was killed from outside, perhaps for its memory. Go on with ckpt_path=last."
)


def first_writer(name: str, mine: str) -> str:
    """Return the value that the first of torchrun's processes published, or `mine` where torchrun is not used.

    Other launchers offer no store for this: Lightning passes the folder on, and on SLURM the run needs a name.
    """
    env = os.environ
    if env.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return mine
    store = TCPStore(env["MASTER_ADDR"], int(env["MASTER_PORT"]), is_master=False, timeout=timedelta(minutes=5))
    first: bytes = store.compare_set(f"choosy/{name}/{env.get('TORCHELASTIC_RESTART_COUNT', '0')}", "", mine)
    return first.decode()


def end_with_launcher(every: float = 1.0) -> None:
    """End this process soon after its launcher, if it is a rank; else it would wait for the other ranks without end."""
    launched = "TORCHELASTIC_RUN_ID" in os.environ or os.environ.get("LOCAL_RANK", "0") != "0"
    launcher = os.getppid()
    if not launched or launcher == 1:
        return

    def watch() -> None:
        while os.getppid() == launcher:
            time.sleep(every)
        print(f"\nRank {os.environ.get('RANK', os.environ.get('LOCAL_RANK'))}: {LOST}", file=sys.stderr, flush=True)
        os._exit(1)  # the main thread may hang in a collective, which no exception would reach

    threading.Thread(target=watch, daemon=True, name="end-with-launcher").start()


def is_peer_failure(error: BaseException) -> bool:
    """Whether an error means that another process of the run is gone."""
    broken = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "remote process exit")
    return isinstance(error, RuntimeError) and any(words in str(error) for words in broken)
