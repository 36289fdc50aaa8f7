"""Kill 100 runs with -9, each at another moment of its life, and let them go on: python benchmarks/kill.py --kills 100

The life of a run, from its folder to its end, is cut into as many slices as there are kills; kill k strikes at random
within slice k, so that starting, sampling, labeling, training, evaluation, every kind of writing and the ending are
all struck. The killed run then goes on until it is done, and is compared with one that nobody killed, to the bit.

Every run is a process of its own, forked from one that has imported torch already and done nothing else, so that a
kill costs seconds and not the ten of a start; two run at a time. A run's seconds are those since its start less those
in which it waited for a processor, so that a busy machine kills at the same places as an idle one.

Written to benchmarks/results/kill.json: what the runs were doing when the kill struck, how many ended as the one never
killed, labels lost, labels paid twice, and rounds sampled twice. A label is lost if the labeler's answer was followed
by another question and is not in the ledger, or was there at the kill and is not at the end. It is paid twice if it
was in the ledger at the kill and the labeler is asked again. Apart from these stand the two windows that a local
function leaves, of one call each: a call that the kill cut off, and an answer that was being written.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import functools
import json
import multiprocessing
import os
import random
import shutil
import signal
import sqlite3
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("OMP_NUM_THREADS", "1")

import peft  # noqa: F401  # here, so that no run has to import it
import pyarrow.parquet as pq
import torch
from safetensors.torch import load_file

import choosy.data.pool
from callbacks.report import Report
from choosy.labeling.ledger import Ledger
from choosy.main import compose, train
from choosy.models.policy import Policy
from choosy.reporting.display import Phases
from choosy.resume.checkpoints import WholeFiles
from choosy.rounds.sample import FreshResponses
from choosy.sealed import read_json

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "kill.json"
THINGS = ("tea", "rain", "bread", "snow", "music", "chess", "soup", "maps", "tides", "owls", "ink", "kites")
PAID = """
import json, os, time
def note(*words):
    with open(os.environ["BILL"], "a") as bill:  # one short line, which the system appends whole
        bill.write(json.dumps(words) + "\\n")
def vowels(prompt, response):
    note("asked", prompt, response)
    time.sleep(0.01)  # a labeler takes its time
    score = float(sum(map(ord, response)) % 7)
    note("answered", prompt, response)
    return score
"""
TRIES = 5  # a run that is done before its kill is started again so often


def tiny_policy(folder: Path) -> Path:
    """A random two-layer Llama with a byte tokenizer."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={char: i for i, char in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    template = (
        "{% for m in messages %}{{ m['role'] + '\\n' + m['content'] + eos_token + '\\n' }}{% endfor %}assistant\n"
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|bos|>",
        eos_token="<|end|>",
        pad_token="<|pad|>",
        chat_template=template,
    )
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(fast),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.2,
        eos_token_id=fast.eos_token_id,
        pad_token_id=fast.pad_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder


def prepare(folder: Path) -> list[str]:
    """The lines of a run, and what they name."""
    rows = [{"id": f"p{n:02d}", "prompt": f"Tell me about {thing}."} for n, thing in enumerate(THINGS)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "paid.py").write_text(PAID)
    sys.path.insert(0, str(folder))
    return [
        "trainer=cpu",
        f"model.name={tiny_policy(folder / 'policy')}",
        "model.dtype=float32",
        f"data.train={folder}/prompts.jsonl",
        f"data.heldout={folder}/prompts.jsonl",
        "data.heldout_limit=4",
        "data.responses=3",
        "weighting=wdpo",
        "selector=optune_certainty",
        "labeler=function",
        "labeler.path=paid.vowels",
        "rounds=4",
        "sampler.max_new_tokens=8",
        "batching.batch_size=2",
        "callbacks.checkpoint.every_n_steps=1",
        "callbacks.report.console=false",
        "logger=default",
        "~logger.tensorboard",
    ]


# -- what a run is doing -------------------------------------------------------------------------------------------


class Diary:
    """What a run is doing at the moment, in a file that outlives a kill."""

    def __init__(self, file: Path) -> None:
        self._file = os.open(file, os.O_WRONLY | os.O_CREAT)
        self._doing = ["starting"]
        self._write()

    def _write(self) -> None:
        os.pwrite(self._file, ": ".join((self._doing[1:] or self._doing)[-2:]).ljust(100).encode(), 0)

    @contextlib.contextmanager
    def during(self, what: str) -> Iterator[None]:
        """Say so as long as the block lasts."""
        self._doing[0] = "between two phases"
        self._doing.append(what)
        self._write()
        try:
            yield
        finally:
            self._doing.pop()
            self._write()

    def observe(self, owner: Any, name: str, what: str) -> None:
        """Say so whenever this is called."""
        act = getattr(owner, name)

        @functools.wraps(act)
        def observed(*args: Any, **kwargs: Any) -> Any:
            with self.during(what):
                return act(*args, **kwargs)

        setattr(owner, name, observed)


def keep_diary(run_dir: Path) -> None:
    """Note what this process does, and in which order it samples and labels."""
    diary = Diary(run_dir.with_suffix(".doing"))
    diary.observe(WholeFiles, "save_checkpoint", "writing a checkpoint")
    diary.observe(Ledger, "insert", "writing a label")
    diary.observe(Ledger, "copy", "copying the ledger")
    diary.observe(Policy, "save", "writing the adapter")
    diary.observe(Report, "teardown", "writing the report")
    write_table = choosy.data.pool.write_table
    ours = [module for name, module in sys.modules.items() if name.startswith("choosy")]
    for module in [module for module in ours if vars(module).get("write_table") is write_table]:
        diary.observe(module, "write_table", "writing a Parquet file")
    enter, sample = Phases.__call__, FreshResponses.__call__

    @contextlib.contextmanager
    def phase(self: Phases, name: str, **about: Any) -> Iterator[Callable[[int], None]]:
        if name == "label":
            note("label")
        with diary.during(name), enter(self, name, **about) as tick:
            yield tick

    def sampled(self: FreshResponses, at: Any, chosen: Any, *, begun: Any, **how: Any) -> Any:
        if any(prompt.id not in begun for prompt, _ in chosen):
            note("sample", at.number)
        return sample(self, at, chosen, begun=begun, **how)

    def note(*words: Any) -> None:
        with run_dir.with_suffix(".order").open("a") as file:
            file.write(json.dumps(words) + "\n")

    Phases.__call__, FreshResponses.__call__ = phase, sampled  # type: ignore[method-assign]


def lines_of(file: Path) -> list[tuple[Any, ...]]:
    """The lines of a bill or of an order, as far as they were written."""
    return [tuple(json.loads(line)) for line in file.read_text().splitlines()] if file.exists() else []


def sampled_twice(order: list[tuple[Any, ...]]) -> list[int]:
    """Rounds that were sampled though their labeling had begun.

    Example:
        >>> sampled_twice([("sample", 0), ("sample", 0), ("label",), ("label",), ("sample", 1), ("label",)])
        []
        >>> sampled_twice([("sample", 0), ("label",), ("sample", 0), ("label",)])
        [0]
    """
    done: set[int] = set()
    twice, last = [], -1
    for event, *number in order:
        if event == "label":
            done.add(last)
            continue
        (last,) = number
        if last in done:
            twice.append(last)
    return twice


# -- runs ----------------------------------------------------------------------------------------------------------


def started(lines: list[str], run_dir: Path) -> int:
    """Start or go on with the run in a process of its own; its id."""
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        torch.set_num_threads(1)
        os.environ["BILL"] = str(run_dir.with_suffix(".bill"))
        with (run_dir.with_suffix(".log")).open("a") as typed:
            os.dup2(typed.fileno(), 1)
            os.dup2(typed.fileno(), 2)
            keep_diary(run_dir)
            train(compose([*lines, "ckpt_path=auto"]), run_dir)
        status = 0
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        os._exit(status)


def waited(pid: int) -> float:
    """Seconds in which a process could have run and had no processor."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[1]) / 1e9


def play(lines: list[str], run_dir: Path, *, kill_at: float | None = None) -> float | None:
    """Play the run until it is done, or killed so many seconds after its folder was there.

    Returns:
        The seconds that it took; None if it was killed.
    """
    began, pid = time.monotonic(), started(lines, run_dir)
    folder_at = None
    while True:
        now = time.monotonic() - began - waited(pid)
        if folder_at is None and run_dir.is_dir():
            folder_at = now
        done, status = os.waitpid(pid, os.WNOHANG)
        if done and status:
            raise RuntimeError(f"the run failed:\n{run_dir.with_suffix('.log').read_text()[-4000:]}")
        if done:
            assert folder_at is not None
            return now - folder_at
        if kill_at is not None and folder_at is not None and now - folder_at >= kill_at:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return None
        time.sleep(0.002)


def labels(run_dir: Path) -> dict[str, tuple[Any, ...]]:
    """The labels of a run's ledger by key, read from a copy: reading tidies up what a kill has left."""
    with tempfile.TemporaryDirectory() as copy:
        for file in run_dir.glob("ledger.sqlite*"):
            if file.suffix in (".sqlite", ".sqlite-wal"):
                shutil.copy(file, copy)
        if not (Path(copy) / "ledger.sqlite").exists():
            return {}
        with contextlib.closing(sqlite3.connect(Path(copy) / "ledger.sqlite")) as db:
            try:
                rows = db.execute("SELECT key, prompt, response_first, score, purpose, time FROM labels")
                return {row[0]: row[1:] for row in rows}
            except sqlite3.OperationalError:  # killed before its tables were there
                return {}


def ending(run_dir: Path) -> dict[str, Any]:
    """All that two runs from one seed must agree on, to the bit."""
    summary = read_json(run_dir / "summary.json")
    del summary["seconds"]
    with (run_dir / "metrics.csv").open(newline="") as file:
        metrics = [{k: v for k, v in row.items() if not k.startswith("seconds/")} for row in csv.DictReader(file)]
    adapter = load_file(run_dir / "adapter" / "adapter_model.safetensors")
    return {
        "weights": {name: weight.tolist() for name, weight in adapter.items()},
        "pool": {path.name: pq.read_table(path).to_pylist() for path in sorted(run_dir.glob("rounds/*.parquet"))},
        "ledger": {key: row[:-1] for key, row in sorted(labels(run_dir).items())},
        "metrics": metrics,
        "summary": summary,
    }


# -- a kill --------------------------------------------------------------------------------------------------------


class Job(NamedTuple):
    """A kill to be made."""

    lines: list[str]
    folder: Path
    slice: int
    slices: int
    life: float  # seconds of a whole run
    seed: int
    wanted: dict[str, Any]


class Outcome(NamedTuple):
    """What a kill led to."""

    slice: int
    at: float
    doing: str
    unequal: list[str]
    lost: int
    paid_twice: int
    calls_cut_off: int
    answers_cut_off: int
    not_asked: int
    sampled_twice: int
    rounds_begun_again: int
    too_late: int  # runs that were done before their kill


def killed_once(job: Job) -> Outcome:
    """Kill a run within a slice of its life, and let it go on until it is done."""
    draw = random.Random(f"{job.seed}/{job.slice}")
    life = job.life
    for attempt in range(TRIES):
        at = life * (job.slice + draw.random()) / job.slices
        run = job.folder / f"run{job.slice:03d}-{attempt}"
        took = play(job.lines, run, kill_at=at)
        if took is None:
            break
        life = min(life, took)  # the machine has become faster
    else:
        raise RuntimeError(f"{TRIES} runs were done before second {at:.2f}, at which they should have been killed")
    doing = run.with_suffix(".doing").read_text().strip()
    held, before = labels(run), lines_of(run.with_suffix(".bill"))
    play(job.lines, run)
    ended, bill = ending(run), lines_of(run.with_suffix(".bill"))
    asked, answered = ({line[1:] for line in before if line[0] == word} for word in ("asked", "answered"))
    again = Counter(line[1:] for line in bill[len(before) :] if line[0] == "asked")
    in_ledger = {row[:2] for row in held.values()}
    followed = {line[1:] for line in before[:-1] if line[0] == "answered"}
    final = labels(run)
    order = lines_of(run.with_suffix(".order"))
    begun = [event for event in order if event[0] == "sample"]
    return Outcome(
        job.slice,
        at,
        doing,
        [part for part in job.wanted if ended[part] != job.wanted[part]],
        len(followed - in_ledger) + sum(final.get(key, ())[:3] != row[:3] for key, row in held.items()),
        sum(n for question, n in again.items() if question in in_ledger),
        sum(n for question, n in again.items() if question in asked - answered),
        sum(n for question, n in again.items() if question in answered - in_ledger),
        len(final) - len({line[1:] for line in bill if line[0] == "answered"}),
        len(sampled_twice(order)),
        len(begun) - len(set(begun)),
        attempt,
    )


def life_of(job: tuple[list[str], Path]) -> float:
    """Seconds of a run that nobody kills."""
    took = play(*job)
    assert took is not None
    return took


def main() -> None:
    """Play runs whole, then kill as many as asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--at-once", type=int, default=2, help="runs at a time")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULTS)
    asked = parser.parse_args()
    began = time.monotonic()
    found: list[Outcome] = []
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        lines = prepare(folder)
        workers = stack.enter_context(multiprocessing.get_context("fork").Pool(asked.at_once))
        life_of_all = workers.map(life_of, [(lines, folder / f"whole{n}") for n in range(2 * asked.at_once)], 1)
        life, wanted = min(life_of_all), ending(folder / "whole0")
        print(f"a whole run takes {life:.2f} s and buys {len(wanted['ledger'])} labels", flush=True)
        jobs = [Job(lines, folder, k, asked.kills, life, asked.seed, wanted) for k in range(asked.kills)]
        killing = time.monotonic()
        for outcome in workers.imap_unordered(killed_once, jobs):
            found.append(outcome)
            left = (time.monotonic() - killing) / len(found) * (asked.kills - len(found))
            how = ", ".join(outcome.unequal) or "equal"
            where = f"at {outcome.at:.2f} s, {outcome.doing}"
            print(f"{len(found)}/{asked.kills}: {where}: {how}; {left / 60:.1f} minutes left", flush=True)
    where = Counter(outcome.doing for outcome in found)
    result = {
        "kills": len(found),
        "runs": len(found),
        "equal endings": sum(not outcome.unequal for outcome in found),
        "unequal in": dict(Counter(part for outcome in found for part in outcome.unequal)),
        "labels lost": sum(outcome.lost for outcome in found),
        "labels paid twice": sum(outcome.paid_twice for outcome in found),
        "calls of the labeler that the kill cut off, made again": sum(outcome.calls_cut_off for outcome in found),
        "answers that the kill cut off on their way to the ledger, asked for again": sum(
            outcome.answers_cut_off for outcome in found
        ),
        "labels in the ledger that nobody was asked for": sum(outcome.not_asked for outcome in found),
        "rounds sampled again though their labeling had begun": sum(outcome.sampled_twice for outcome in found),
        "rounds whose sampling the kill cut off, begun again": sum(outcome.rounds_begun_again for outcome in found),
        "where": dict(where.most_common()),
        "runs that were done before their kill and were started again": sum(outcome.too_late for outcome in found),
        "seconds of a whole run": round(life, 2),
        "labels of a whole run": len(wanted["ledger"]),
        "seconds": round(time.monotonic() - began, 1),
        "seed": asked.seed,
    }
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    asked.out.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))
    if any(o.unequal or o.lost or o.paid_twice or o.sampled_twice for o in found):
        sys.exit("some ending differs, or something was lost or done twice")


if __name__ == "__main__":
    main()
