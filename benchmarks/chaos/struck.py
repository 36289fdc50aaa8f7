"""A command that is killed, stopped or left without disk at a moment: python struck.py MOMENT train.py|choosy WORDS

A moment is JSON, the COUNTth time that something of its KIND happens: a file below the current folder is opened to be
written, renamed or removed (`file`), one is flushed to the disk (`flush`), a statement of SQL begins (`sql`), a label
is paid for (`paid`), a response is decoded (`decode`), or the optimizer makes a step (`step`). Then the process gets a
signal (`how`), or from then on no file may grow beyond `room` bytes: a write that would is refused (`full`), or kills
the process when the file has grown so far (`cut`).

Without a kind nothing happens; what there is to count is written into the file that `counts` names.
"""

from __future__ import annotations

import atexit
import json
import os
import resource
import signal
import sqlite3
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate", "shutil.rmtree")
WRITES = os.O_WRONLY | os.O_RDWR
SIGNALS = {
    "kill": (signal.SIGKILL,),
    "interrupt": (signal.SIGINT,),
    "terminate": (signal.SIGTERM,),
    "terminate twice": (signal.SIGTERM, signal.SIGTERM),  # as `timeout` does
}


class Moment:
    """Counts what happens in this process, and strikes when its moment has come."""

    def __init__(self, moment: dict[str, Any], folder: Path) -> None:
        self.moment = moment
        self.folder = str(folder)
        self.happened: Counter[str] = Counter()

    def note(self, kind: str) -> None:
        """Count something, and strike if it is what was waited for."""
        self.happened[kind] += 1
        if kind == self.moment.get("kind") and self.happened[kind] == self.moment["count"]:
            self.strike()

    def strike(self) -> None:
        """Do to this process what the moment says."""
        how = self.moment["how"]
        if how in SIGNALS:
            for each in SIGNALS[how]:
                os.kill(os.getpid(), each)
            return
        _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (self.moment["room"], most))

    def watch(self) -> None:
        """Note from now on what happens."""
        from torch.optim import AdamW

        from choosy.models.tokens import Tokens

        sys.addaudithook(self.hear)
        for owner, name, kind in ((os, "fsync", "flush"), (Tokens, "decode", "decode"), (AdamW, "step", "step")):
            setattr(owner, name, self.noting(getattr(owner, name), kind))
        connect = sqlite3.connect

        def connected(*args: Any, **kwargs: Any) -> sqlite3.Connection:
            connection = connect(*args, **kwargs)
            connection.set_trace_callback(lambda _: self.note("sql"))
            return connection

        sqlite3.connect = connected  # type: ignore[assignment]
        if self.moment.get("how") == "cut":
            signal.signal(signal.SIGXFSZ, signal.SIG_DFL)

    def noting(self, act: Callable[..., Any], kind: str) -> Callable[..., Any]:
        """A function that is noted before it is called."""

        def noted(*args: Any, **kwargs: Any) -> Any:
            self.note(kind)
            return act(*args, **kwargs)

        return noted

    def hear(self, event: str, args: tuple[Any, ...]) -> None:
        """Note an event of the interpreter; a function that `sys.addaudithook` takes."""
        if event == "open" and isinstance(args[2], int) and args[2] & WRITES and self.is_below(args[0]):
            self.note("paid" if str(args[0]).endswith("paid.jsonl") else "file")
        elif event in CHANGES and self.is_below(args[0]):
            self.note("file")

    def is_below(self, path: Any) -> bool:
        """Whether a path leads into the folder of the runs."""
        return isinstance(path, str | os.PathLike) and os.path.abspath(os.fspath(path)).startswith(self.folder)


def main() -> None:
    """Play the command, struck at its moment."""
    moment, *words = json.loads(sys.argv[1]), *sys.argv[2:]
    if moment.get("parts"):  # of a round that is being sampled, after each prompt
        import choosy.resume.partial_rounds

        choosy.resume.partial_rounds.EVERY = choosy.resume.partial_rounds.SHARE = 0.0
    if moment:
        watched = Moment(moment, Path.cwd())
        watched.watch()
        if counts := moment.get("counts"):
            atexit.register(lambda: Path(counts).write_text(json.dumps(watched.happened)))
    sys.argv = words
    if words[0] == "choosy":
        from choosy.__main__ import main as command
    else:
        from choosy.main import main as command
    command()


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    main()
