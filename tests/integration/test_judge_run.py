"""Whole runs with a judge on loopback: typed as a user types them, against one that misbehaves and one that is real."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from faulty_judge import Asked, FaultyJudge
from hydra.errors import InstantiationException
from tiny import ROOT, command, contents, labels, summary, typed

from choosy.main import compose, train

KEY = "sk-topsecret-0123456789abcdef"
PASSING = ["500", "503", "429", "cut", "cut in the middle", "malformed", "no choices", "html"]


def prefers_more_vowels(asked: Asked) -> str:
    """A mind of its own, that also tells what it was sent."""
    one, other = (sum(map(text.count, "aeiou")) * 1000 + len(text) for text in (asked.first, asked.second))
    header = f"You sent {asked.headers.get('Authorization')}.\n"
    return header + asked.verdict("tie" if one == other else "first" if one > other else "second")


@pytest.fixture
def lines(tmp_path: Path, tiny_policy_dir: Path, prompts_file: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setenv("JUDGE_KEY", KEY)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")  # a stack tells more than a sentence, and must not tell the key
    given = [line for line in typed(tmp_path, tiny_policy_dir, prompts_file) if "labeler" not in line]
    return [
        *given,
        "name=judged",
        "labeler=judge",
        "labeler.model=toy",
        "labeler.key_env=JUDGE_KEY",
        "labeler.endpoint.retries.first_wait=0.01",
        "labeler.endpoint.prices.prompt=2.0",
        "labeler.endpoint.prices.completion=10.0",
        "selector=none",
        "weighting=uniform",
    ]


def test_single_responses_are_trained_on_as_a_judge_calls_them(
    lines: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """KTO on the policy's own responses: the ledger has a score of 1 or -1 of each, and no other item is trained on."""
    monkeypatch.chdir(tmp_path)

    def mind(asked: Asked) -> str:
        return asked.verdict("good" if sum(map(ord, asked.texts["response"])) % 2 else "bad")

    given = [line for line in lines if not line.startswith(("labeler=", "name=", "data.responses", "data.heldout"))]
    single = ["labeler=thumbs_judge", "loss=kto", "data.responses=1", "data.heldout=null", "rounds=1"]
    with FaultyJudge(mind) as server:
        run = train(compose([*given, *single, f"labeler.base_url={server.url}"]), tmp_path / "thumbs").datamodule.run
    bought = labels(tmp_path / "thumbs" / "ledger.sqlite")
    assert {*bought["score"]} == {1.0, -1.0}
    good = dict(zip(bought["response_first"], bought["score"] > 0, strict=True))
    items = [run._items(0)[n] for n in range(len(run._items(0)))]
    texts = {c.prompt.id: c.responses[0].text for c in run.pool.candidates()}
    assert [item.good for item in items] == [good[texts[item.prompt_id]] for item in items]
    assert len(items) == len(texts) == 8


def keyless(folder: Path, *outputs: str) -> None:
    """The key is in no file below the folder, and in none of these outputs."""
    assert not [name for name, held in contents(folder).items() if KEY.encode() in held]
    assert KEY not in "".join(outputs)


def test_a_run_with_a_judge_that_misbehaves(lines: list[str], tmp_path: Path) -> None:
    lines = [*lines, "hydra.verbose=true"]  # whatever is logged at all
    chance = random.Random(0)
    lock = threading.Lock()

    def fault(asked: Asked) -> str | None:
        with lock:
            return chance.choice(PASSING) if chance.random() < 0.3 else None

    with FaultyJudge(prefers_more_vowels, fault) as server:
        done = command(ROOT / "train.py", *lines, f"labeler.base_url={server.url}", folder=tmp_path, timeout=1200)
    assert done.returncode == 0, done.stderr
    assert {asked.headers["Authorization"] for asked in server.asked} == {f"Bearer {KEY}"}
    run = tmp_path / "runs" / "judged"
    keyless(tmp_path, done.stdout, done.stderr)
    assert {"config.yaml", "metrics.csv", "ledger.sqlite", "summary.json"} <= contents(run).keys()
    assert list(run.glob("checkpoints/*.ckpt"))
    assert "key_env: JUDGE_KEY" in (run / "config.yaml").read_text()

    bought = labels(run / "ledger.sqlite")
    assert bought["key"].is_unique
    assert server.done["answered"] == 2 * len(bought), "nothing is lost, nothing is paid twice"
    assert set(bought["verdict"]) <= {"first", "second", "tie"}
    assert bought["raw"].str.contains(r"You sent Bearer \[key\]", regex=True).all()
    paid = server.done["answered"] * (100 * 2 + 10 * 10) / 1e6
    reported = server.done["no choices"] * 100 * 2 / 1e6
    assert bought["cost"].sum() == pytest.approx(paid + reported)
    assert summary(run)["labels"]["spent"] + summary(run)["labels"]["evaluation"] == 2 * len(bought)


def test_a_judge_that_goes_down_stops_the_run_and_a_resume_pays_nothing_twice(lines: list[str], tmp_path: Path) -> None:
    run = tmp_path / "run"
    down = threading.Event()

    def fault(asked: Asked) -> str | None:
        return "503" if down.is_set() or (asked.number == 7 and not down.set()) else None

    with FaultyJudge(prefers_more_vowels, fault) as server:
        few = ["labeler.endpoint.retries.count=1", "labeler.endpoint.concurrency=2", "rounds=1", "data.heldout=null"]
        typed = [*lines, *few, f"labeler.base_url={server.url}"]
        with pytest.raises(ValueError, match=r"status 503.* of the 8 questions were answered, and"):
            train(compose(typed), run)
        before = labels(run / "ledger.sqlite")
        assert len(before) >= 2
        down.clear()
        train(compose([*typed, "ckpt_path=last"]), run)
    after = labels(run / "ledger.sqlite")
    assert after.merge(before).shape == before.shape, "a label was bought twice or lost"
    halves = server.done["answered"] - 2 * len(after)
    assert 0 <= halves <= 2, "of a pair that was under way, the first order may be asked about again"
    keyless(tmp_path)


def test_a_key_that_is_not_set_is_told_before_anything_is_sampled(lines: list[str], tmp_path: Path) -> None:
    lines = [line.replace("=JUDGE_KEY", "=NO_SUCH_KEY") for line in lines]
    refused = pytest.raises(InstantiationException, match=r"labeler\.key_env must be the name of an environment")
    with FaultyJudge() as server, refused:
        train(compose([*lines, f"labeler.base_url={server.url}"]), tmp_path / "run")
    assert not list(tmp_path.glob("run/rounds/*"))


# -- a real server ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def served() -> Iterator[tuple[str, str]]:
    """`transformers serve` with the demo's model: its address, and the model's name."""
    pytest.importorskip("fastapi", reason="needs transformers serve: pip install -e '.[serve]'")
    from choosy.models.locate import resolve_model

    model = resolve_model("demo:smollm2")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = ["serve", model, "--device", "cpu", "--host", "127.0.0.1", "--port", str(port)]
    server = subprocess.Popen(
        [sys.executable, "-m", "transformers.cli.transformers", *words],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        for _ in range(1200):
            assert server.poll() is None, "transformers serve ended by itself"
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2).close()
                break
            except OSError:
                time.sleep(0.5)
        else:
            pytest.fail("transformers serve did not come up within ten minutes")
        yield f"http://127.0.0.1:{port}/v1", model
    finally:
        server.send_signal(signal.SIGTERM)
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


@pytest.mark.slow
@pytest.mark.demo
@pytest.mark.timeout(1800)
def test_a_run_judged_by_a_real_server(served: tuple[str, str], lines: list[str], tmp_path: Path) -> None:
    """A model of 135M parameters is no judge, so most verdicts are invalid: what counts is that all are counted.

    Its own template asks for as little as can be asked, and shows that a real reply can pass.
    """
    url, model = served
    template = tmp_path / "short.txt"
    template.write_text(
        "Prompt ($fence): $prompt\nFirst: $first\nSecond: $second\n"
        "Repeat this line and write nothing else:\nVerdict $code: first\n"
    )
    lines = [line for line in lines if not line.startswith(("name=", "rounds=", "labeler.model="))]
    done = command(
        ROOT / "train.py",
        *lines,
        "name=real",
        "rounds=1",
        "data.limit=4",
        "data.heldout=null",
        f"labeler.model={model}",
        f"labeler.base_url={url}",
        f"labeler.template={template}",
        "labeler.request.max_tokens=32",
        "labeler.endpoint.concurrency=2",
        folder=tmp_path,
        timeout=1200,
    )
    bought = labels(tmp_path / "runs" / "real" / "ledger.sqlite")
    assert len(bought) == 4, done.stderr
    assert set(bought["verdict"]) <= {"first", "second", "tie", "invalid"}
    assert (bought["cost"] > 0).all(), "the server reports its tokens"
    for raw in bought["raw"]:
        assert len(json.loads(raw)) == 2
    trained = bought["verdict"].isin(["first", "second"]).sum()
    if trained:
        assert done.returncode == 0, done.stderr
        assert summary(tmp_path / "runs" / "real")["pairs_trained"] == trained
    else:
        assert "made no pair" in done.stderr
    keyless(tmp_path, done.stdout, done.stderr)


def test_a_cap_without_prices_is_refused_before_a_model_is_loaded(
    lines: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = [line for line in lines if "prices" not in line]
    monkeypatch.setattr("choosy.models.policy.Policy.load", lambda *_, **__: pytest.fail("a model is loaded"))
    refused = pytest.raises(Exception, match=r"budget_money=0.05 limits nothing.*labeler.endpoint.prices.prompt")
    with FaultyJudge() as server, refused:
        train(compose([*lines, f"labeler.base_url={server.url}", "labels.budget_money=0.05"]), tmp_path / "run")
