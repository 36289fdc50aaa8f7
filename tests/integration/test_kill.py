"""kill -9 at seven points, and what is missing or damaged when a run goes on."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path

import pytest
import torch
from tiny import ROOT, command, contents, ending, labels, typed, write_prompts

from choosy.main import compose, train

HERE = Path(__file__).parent
POINTS = {
    "sampling": ("sampling", 30),
    "between two parts of round 0": ("sampling kept", 14),
    "between two parts of round 1": ("sampling kept", 40),
    "between two labels": ("labeling", 20),
    "in a training step": ("training", 5),
    "a checkpoint half written": ("checkpoint", 3),
    "a round half written": ("table", 3),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Where the module's runs are, with their prompts and toy.py."""
    folder = tmp_path_factory.mktemp("kill")
    write_prompts(folder / "prompts.jsonl")
    return folder


@pytest.fixture(scope="module")
def lines(folder, tiny_policy_dir) -> list[str]:
    """A run that takes a checkpoint after each step, chooses prompts and pairs, and trains several steps a round."""
    steps = ["callbacks.checkpoint.every_n_steps=1", "batching.batch_size=1"]
    chooses = ["selector=optune_certainty", "data.responses=3", "sampler.batch_size=3"]
    chooses += ["labeler.fingerprint=toy"]  # also of the function that kills
    return [*typed(folder, tiny_policy_dir, folder / "prompts.jsonl"), *steps, *chooses]


@pytest.fixture(scope="module")
def whole(lines, folder) -> Path:
    """The run that was never killed, in an interpreter whose sets have another order than those of the forks."""
    run = command(ROOT / "train.py", *lines, f"run_dir={folder}/whole", folder=folder, fresh=True)
    assert run.returncode == 0, run.stderr
    return folder / "whole"


@pytest.mark.slow
@pytest.mark.parametrize(("point", "count"), POINTS.values(), ids=POINTS)
def test_a_run_killed_here_ends_as_if_never_killed(point, count, lines, whole, folder):
    run = folder / f"{point} {count}"
    killed = command(HERE / "killed.py", point, count, *lines, f"run_dir={run}", folder=folder)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    before = labels(run / "ledger.sqlite")
    assert bool(list(run.glob("rounds/sampling_*"))) == (point in ("sampling kept", "labeling", "table"))
    resumed = command(ROOT / "train.py", *lines, f"run_dir={run}", "ckpt_path=last", folder=folder)
    assert resumed.returncode == 0, resumed.stderr
    after = labels(run / "ledger.sqlite")
    assert after.merge(before).shape == before.shape, "a label was bought twice or lost"
    assert ending(run) == ending(whole)
    assert not [name for name in contents(run) if Path(name).name.startswith(".") or "sampl" in name]


@pytest.mark.slow
@pytest.mark.parametrize(("point", "count"), [("training", 4), ("table", 2)], ids=["in a step", "a round half written"])
def test_answers_of_several_turns_end_as_if_never_killed(point, count, folder, tiny_policy_dir):
    def turns(n: int, said: str) -> list[dict[str, str]]:
        words = (f"{n}?", said, "Sure?", f"Yes, {n}.")
        return [{"role": role, "content": text} for role, text in zip(("user", "assistant") * 2, words, strict=True)]

    file = folder / "turns.jsonl"
    rows = [{"chosen": turns(n, f"{n}!"), "rejected": turns(n, "No.")[: 2 + n % 2 * 2]} for n in range(6)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    others = ("labeler", "data.", "selector", "weighting", "batching")
    lines = [line for line in typed(folder, tiny_policy_dir, file) if not line.startswith(others)]
    lines += ["data=offline", f"data.train={file}", f"data.heldout_pairs={file}", "lr=1e-2", "batching.batch_size=2"]
    lines += ["callbacks.checkpoint.every_n_steps=1"]
    whole, run = folder / "turns whole", folder / f"turns {point}"
    if not whole.exists():
        done = command(ROOT / "train.py", *lines, f"run_dir='{whole}'", folder=folder)
        assert done.returncode == 0, done.stderr
    killed = command(HERE / "killed.py", point, count, *lines, f"run_dir='{run}'", folder=folder)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    resumed = command(ROOT / "train.py", *lines, f"run_dir='{run}'", "ckpt_path=last", folder=folder)
    assert resumed.returncode == 0, resumed.stderr
    assert ending(run) == ending(whole)
    trained = [row for row in ending(run)["rounds"]["round_001.parquet"] if row["split"] == "train"]
    spoken = ["".join("x" if said else " " for said in row["masks"][0]).split() for row in trained]
    assert [len(each) for each in spoken] == [2] * 6, "two turns of the assistant, and the user's between them"


# -- what is missing or damaged --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def half(lines, folder) -> Path:
    """A run that has played one of its two rounds."""
    with pytest.MonkeyPatch.context() as patched:
        patched.syspath_prepend(folder)
        train(compose([*lines, "rounds=1"]), folder / "half")
    (folder / "half" / "summary.json").unlink()
    return folder / "half"


@pytest.fixture
def stopped(half, lines, folder, tmp_path, monkeypatch) -> tuple[list[str], Path]:
    """The lines of a run that has played one of its two rounds, and a copy of its folder."""
    monkeypatch.syspath_prepend(folder)
    run = tmp_path / "run"
    shutil.copytree(half, run)
    return [*lines, "ckpt_path=last"], run


def damaged(path: Path) -> None:
    """Change some bytes in the middle."""
    data = bytearray(path.read_bytes())
    for at in range(len(data) // 2, len(data) // 2 + 128):  # more than the padding between two parts of a checkpoint
        data[at] ^= 0xFF
    path.write_bytes(data)


def refused(lines: list[str], run: Path, message: str) -> None:
    before = contents(run)
    with pytest.raises(ValueError, match=message):
        train(compose(lines), run)
    assert contents(run) == before


@pytest.mark.slow
def test_a_damaged_checkpoint_is_named_and_the_last_good_one_offered(stopped):
    lines, run = stopped
    last, of_round = (run / "checkpoints" / name for name in ("last.ckpt", "round_000.ckpt"))
    good = last.read_bytes()
    last.unlink()  # a second name of the same file
    last.write_bytes(good[: len(good) // 2])
    refused(lines, run, rf"last.ckpt is damaged \(.*for the last good one type ckpt_path={of_round}")
    last.write_bytes(good)
    damaged(last)
    damaged(of_round)
    refused(lines, run, r"last.ckpt is damaged.*no other one is whole.*type ckpt_path=start")
    before = labels(run / "ledger.sqlite")
    train(compose([*lines, "ckpt_path=start"]), run)
    after = labels(run / "ledger.sqlite")
    assert after.merge(before).shape == before.shape
    assert (run / "summary.json").exists()


@pytest.mark.slow
def test_a_missing_last_checkpoint_gives_way_to_the_round_s(stopped):
    lines, run = stopped
    (run / "checkpoints" / "last.ckpt").unlink()
    train(compose(lines), run)
    assert (run / "summary.json").exists()


@pytest.mark.slow
def test_a_damaged_round_is_named_and_played_again_from_the_start(stopped):
    lines, run = stopped
    table = run / "rounds" / "round_000.parquet"
    table.write_bytes(table.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"round_000.parquet cannot be read.*type ckpt_path=start"):
        train(compose(lines), run)
    train(compose([*lines, "ckpt_path=start"]), run)
    assert (run / "summary.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize(("state", "message"), [("missing", "is not there"), ("damaged", "is damaged")])
def test_a_lost_ledger_is_named_and_its_copy_offered(state, message, stopped):
    lines, run = stopped
    ledger = run / "ledger.sqlite"
    for path in run.glob("ledger.sqlite*"):
        path.unlink()
    if state == "damaged":
        ledger.write_bytes(b"no database" * 100)
    copy = run / "ledger.copy.sqlite"
    words = rf"{ledger} {message}.*type `cp {copy} {ledger}`"
    refused(lines, run, words)
    shutil.copy(copy, ledger)
    train(compose(lines), run)
    assert (run / "summary.json").exists()


@pytest.mark.slow
def test_a_moved_run_goes_on_with_its_budget(stopped, tmp_path):
    lines, run = stopped
    spent = len(labels(run / "ledger.sqlite").query("purpose == 'train'"))
    moved = tmp_path / "moved"
    run.rename(moved)
    train(compose([*lines, f"labels.budget={spent}"]), moved)
    assert len(labels(moved / "ledger.sqlite").query("purpose == 'train'")) == spent


@pytest.mark.slow
def test_another_learning_rate_is_taken_and_another_seed_refused(stopped):
    lines, run = stopped
    refused([*lines, "seed=1"], run, r"cannot be resumed with seed: 0 -> 1.*choose another name=")
    train(compose([*lines, "lr=0.5"]), run)
    state = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    assert [group["lr"] for group in state["optimizer_states"][0]["param_groups"]] == [0.5]


@pytest.mark.slow
def test_other_prompts_in_the_same_file_are_refused(stopped, folder):
    lines, run = stopped
    file = folder / "prompts.jsonl"
    before = file.read_text()
    file.write_text(before.replace("chess", "draughts"))
    try:
        with pytest.raises(ValueError, match=r"rows of data.train are others than when this run began"):
            train(compose(lines), run)
    finally:
        file.write_text(before)


@pytest.mark.slow
def test_other_batches_in_the_middle_of_a_round_are_refused(lines, folder):
    run = folder / "middle"
    killed = command(HERE / "killed.py", "training", 2, *lines, f"run_dir={run}", folder=folder)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    words = [*lines, "batching.batch_size=2", f"run_dir={run}", "ckpt_path=last"]
    resumed = command(ROOT / "train.py", *words, folder=folder)
    assert resumed.returncode == 1
    assert "in the middle of a round" in resumed.stderr
