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


def agreed(name: str, mine: str) -> str:
    """The first word of any process that torchrun has started, so that all take the same; alone, the own word.

    Lightning and SLURM leave no such place: the former passes the folder on, the latter needs a name.
    """
    told = os.environ
    if told.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return mine
    store = TCPStore(told["MASTER_ADDR"], int(told["MASTER_PORT"]), is_master=False, timeout=timedelta(minutes=5))
    word: bytes = store.compare_set(f"choosy/{name}/{told.get('TORCHELASTIC_RESTART_COUNT', '0')}", "", mine)
    return word.decode()


def end_with_launcher(every: float = 1.0) -> None:
    """End this process soon after the one that started it as a rank, lest it wait for ever for the others."""
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


def another_ended(error: BaseException) -> bool:
    """Whether a collective failed because a process at its other end is gone."""
    broken = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "remote process exit")
    return isinstance(error, RuntimeError) and any(words in str(error) for words in broken)
