"""Test the labeling page in a real browser."""

from __future__ import annotations

import json
import os
import shutil
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd
import pytest
from tiny import ROOT, labels, summary, typed

pytest.importorskip("uvicorn", reason="the page for labeling is an extra: pip install 'choosy-tuning[human]'")
pytest.importorskip("selenium", reason="needs selenium, of the extra dev")

from selenium import webdriver
from selenium.webdriver.chrome.remote_connection import ChromeRemoteConnection
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.client_config import ClientConfig

from choosy.labeling.buyer import LabelBuyer
from choosy.labeling.human.labeler import Human
from choosy.types import Prompt, Response

T = TypeVar("T")
BROWSER, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
PATIENCE = 180  # seconds, on a machine that others use
TOKEN = "a-token-that-only-the-tests-know"
QUIET = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-dev-shm-usage"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--window-size=1280,900"),
]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (BROWSER and DRIVER), reason="needs chromium and chromedriver: apt-get install chromium-driver"
    ),
]


def until(look: Callable[[], T], what: str, seconds: float = PATIENCE) -> T:
    """What look finds, once it finds something."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := look():
            return found
        time.sleep(0.05)
    raise AssertionError(f"after {seconds} seconds there is still no {what}")


class Page:
    """A person's browser with the page in it."""

    def __init__(self, profile: Path) -> None:
        options = webdriver.ChromeOptions()
        options.binary_location = str(BROWSER)
        for flag in (*QUIET, f"--user-data-dir={profile}"):
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
        self.service = webdriver.ChromeService(str(DRIVER))
        self.service.start()
        patient = ClientConfig(self.service.service_url, timeout=PATIENCE)
        connection = ChromeRemoteConnection(self.service.service_url, client_config=patient)
        self.driver = webdriver.Remote(command_executor=connection, options=options)
        self.requested: list[str] = []

    def open(self, address: str) -> None:
        self.driver.get("about:blank")
        self.log("performance")  # what the browser's own first page has asked for
        self.driver.get(address)

    def log(self, kind: str) -> list[dict[str, Any]]:
        """What the browser has noted since the last call."""
        return list(self.driver.execute("getLog", {"type": kind})["value"])

    def close(self) -> None:
        self.driver.quit()
        self.service.stop()

    def enter(self, name: str) -> None:
        until(lambda: self.visible("#name"), "name field")
        self.all("#name")[0].send_keys(name, Keys.ENTER)
        until(lambda: self.visible("#question"), "question")

    def widen(self, width: int) -> None:
        sizes = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", sizes)

    def all(self, selector: str) -> list[Any]:
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def visible(self, selector: str) -> bool:
        return any(element.is_displayed() for element in self.all(selector))

    def text(self, selector: str) -> str:
        return str(
            self.driver.execute_script(f"return document.querySelector('{selector}')?.textContent ?? ''")
        ).strip()

    def field(self, name: str) -> str:
        return str(self.driver.execute_script(f"return document.querySelector('#{name} .text').textContent"))

    def shown(self) -> tuple[str, str, str]:
        until(lambda: self.visible("#question"), "question")
        return self.field("prompt"), self.field("left"), self.field("right")

    def press(self, key: str, then: str) -> None:
        """Press a key and wait until the page has counted it."""
        time.sleep(0.3)  # a key sooner after a new pair counts as a bounce
        self.driver.find_element(By.TAG_NAME, "body").send_keys(key)
        until(lambda: self.text("#facts").startswith(then), f"'{then}' after pressing {key}")

    def elsewhere(self, home: str) -> list[str]:
        """Addresses that the page has asked anybody else for."""
        for entry in self.log("performance"):
            message = json.loads(entry["message"])["message"]
            if message["method"] in ("Network.requestWillBeSent", "Network.webSocketCreated"):
                self.requested.append(message["params"].get("request", message["params"])["url"])
        assert any(address.startswith(home) for address in self.requested)
        return [address for address in self.requested if not address.startswith((home, "data:", "about:"))]


@pytest.fixture
def page(tmp_path: Path) -> Iterator[Page]:
    opened = Page(tmp_path / "profile")
    yield opened
    opened.close()


@pytest.fixture
def port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


class Running:
    """A run in a process of its own, and what it has said so far."""

    def __init__(self, words: list[str], folder: Path) -> None:
        environ = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(folder), "CHOOSY_LABELING_TOKEN": TOKEN}
        self.log = folder / f"said-{time.monotonic_ns()}.txt"
        with self.log.open("w") as said:
            self.process = subprocess.Popen(
                [sys.executable, str(ROOT / "train.py"), *words], cwd=folder, env=environ, stdout=said, stderr=said
            )

    def says(self, words: str) -> None:
        until(lambda: words in self.log.read_text() or self.process.poll() is not None, f"'{words}'")
        assert words in self.log.read_text(), self.log.read_text()


@pytest.fixture
def run(tmp_path, tiny_policy_dir, prompts_file, port) -> Iterator[Callable[..., Running]]:
    lines = [
        line for line in typed(tmp_path, tiny_policy_dir, prompts_file) if not line.startswith(("labeler", "data.l"))
    ]
    lines += ["labeler=human", f"labeler.port={port}", "labeler.grace=1", "labels.budget=50"]
    lines += ["selector=none", "weighting=uniform", "rounds=1", "name=labeled"]
    started: list[Running] = []

    def start(*more: str) -> Running:
        started.append(Running([*lines, *more], tmp_path))
        return started[-1]

    yield start
    for running in started:
        running.process.kill()
        running.process.wait()


def test_ten_pairs_a_kill_and_the_rest(run, page, port, tmp_path):
    home, folder = f"http://127.0.0.1:{port}/", tmp_path / "runs" / "labeled"
    first = run()
    first.says(f"12 pairs to label at {home}?token={TOKEN} (training waits)")
    page.open(f"{home}?token={TOKEN}")
    page.enter("Ada")
    said: dict[str, tuple[str, str, str]] = {}  # of each prompt: what stood left and right, and what was said

    def judge(key: str, side: str, done: int) -> None:
        prompt, left, right = page.shown()
        page.press(key, f"{done} of 12")
        assert len(labels(folder / "ledger.sqlite")) == done, "the page counts what the ledger has not got"
        said[prompt] = (left, right, side)

    assert page.text("#facts") == "0 of 12 judged · 50 labels left"
    keys = [(Keys.ARROW_LEFT, "left"), (Keys.ARROW_RIGHT, "right"), ("t", "tie"), ("s", "skip"), ("1", "left")]
    for done, (key, side) in enumerate(keys, start=1):
        judge(key, side, done)
    again = page.shown()
    before = labels(folder / "ledger.sqlite")
    page.press("u", "4 of 12")
    assert set(before["key"]) - set(labels(folder / "ledger.sqlite")["key"]) == {before["key"].iloc[-1]}
    assert page.shown() != again, "the question whose label was taken back is there again"
    for done, key in enumerate(["2", "2", "2", "1", "1", "1"], start=5):
        judge(key, "right" if key == "2" else "left", done)
    first.process.kill()
    first.process.wait()
    assert len(labels(folder / "ledger.sqlite")) == 10
    until(lambda: page.visible("#gone"), "message that the run is gone")
    assert page.text("#gone").startswith("The run has ended or was stopped")

    second = run("ckpt_path=last")
    second.says("2 pairs to label at")
    until(lambda: not page.visible("#gone"), "end of that message")
    page.driver.refresh()
    page.shown()
    assert page.text("#facts") == "0 of 2 judged · 40 labels left"
    for done in (1, 2):
        prompt, left, right = page.shown()
        assert prompt not in said
        page.press(Keys.ARROW_LEFT, f"{done} of 2")
        said[prompt] = (left, right, "left")
    assert second.process.wait(PATIENCE) == 0, second.log.read_text()

    found = labels(folder / "ledger.sqlite").set_index("prompt")
    assert set(found.index) == set(said)
    assert set(found["annotator"]) == {"Ada"}
    for prompt, (left, right, side) in said.items():
        row = found.loc[prompt]
        first_text, second_text = (row[f"response_{place}"] for place in ("first", "second"))
        assert {first_text, second_text} == {left, right}
        stood = "first" if first_text == left else "second"
        expected = {"left": stood, "right": "second" if stood == "first" else "first", "tie": "tie", "skip": "invalid"}
        assert row["verdict"] == expected[side], prompt
        assert json.loads(row["raw"]) == [{"annotator": "Ada", "clicked": side, "left": stood}]
    assert {json.loads(raw)[0]["left"] for raw in found["raw"]} == {"first", "second"}
    assert sorted(clicks(folder)) == [*sorted((verdict, 0) for verdict in found["verdict"]), ("undone", 1)]
    trained = pd.read_parquet(folder / "rounds" / "round_000.parquet").query("split == 'train'")
    assert trained["chosen"].notna().sum() == sum(found["verdict"].isin(["first", "second"]))
    assert summary(folder)["labels"]["spent"] == 12
    assert summary(folder)["labels"]["evaluation"] == 0, "people judge held-out answers only if the settings say so"
    assert summary(folder)["win_rate"] is None
    assert (folder / "report.html").exists()
    assert page.elsewhere(home) == []
    assert all(TOKEN not in path.read_text(errors="replace") for path in folder.rglob("*") if path.is_file())


def test_thumbs_on_single_answers_are_what_kto_trains_on(run, page, port, tmp_path):
    """A picture of each width goes to the folder that CHOOSY_PICTURES names."""
    home, folder = f"http://127.0.0.1:{port}/", tmp_path / "runs" / "labeled"
    single = ["loss=kto", "loss.reference_point=zero", "data.responses=1", "data.limit=5", "data.heldout=null"]
    running = run("labeler=thumbs_human", *single)
    running.says(f"5 responses to label at {home}?token={TOKEN} (training waits)")
    page.open(f"{home}?token={TOKEN}")
    page.enter("Ada")
    for width in (400, 1200):
        page.widen(width)
        assert page.visible("#response")
        found = page.driver.execute_script(FITS)
        assert found["scroll"] <= found["window"], "nothing is cut off at the right"
        assert found["response"] == found["prompt"] == found["nav"]
        assert all(found["buttons"])
        if pictures := os.environ.get("CHOOSY_PICTURES"):
            page.driver.save_screenshot(f"{pictures}/thumbs-{width}.png")
    said: dict[str, tuple[str, float]] = {}  # of each prompt: the answer, and its score

    def judge(key: str, score: float) -> None:
        until(lambda: page.visible("#question"), "question")
        said[page.field("prompt")] = page.field("response"), score
        page.press(key, f"{len(said)} of 5")

    judge(Keys.ARROW_RIGHT, -1.0)
    page.press("u", "0 of 5")
    said.clear()
    for key, score in ((Keys.ARROW_LEFT, 1.0), (Keys.ARROW_RIGHT, -1.0), ("s", 0.0), ("g", 1.0), ("2", -1.0)):
        judge(key, score)
    assert running.process.wait(PATIENCE) == 0, running.log.read_text()
    found = labels(folder / "ledger.sqlite").set_index("prompt")
    assert {prompt: (row["response_first"], row["score"]) for prompt, row in found.iterrows()} == said
    assert set(found["annotator"]) == {"Ada"}
    trained = pd.read_parquet(folder / "rounds" / "round_000.parquet")
    assert sorted(reward for of_prompt in trained["rewards"] for reward in of_prompt) == [-1.0, -1.0, 0.0, 1.0, 1.0]
    assert "4 single responses to train on" in running.log.read_text(), "a skipped answer trains nothing"


def clicks(folder: Path) -> list[tuple[str, int]]:
    with closing(sqlite3.connect(folder / "clicks.sqlite")) as db:
        rows = db.execute("SELECT verdict, undone FROM clicks").fetchall()
    return [("undone", 1) if undone else (verdict, 0) for verdict, undone in rows]


EVIL = [
    "<script>window.ran = 1</script><b>bold</b>",
    '<img src="x" onerror="window.ran = 1">',
    "[a link](javascript:window.ran=1) ![pixel](https://example.com/pixel.png) **stars**",
    "data:text/html,<script>window.ran=1</script>",
    "</textarea></script><script>window.ran = 1</script>",
    "{{ 7 * 7 }} ${window.ran = 1} $$x^2$$ `code`",
    '<iframe srcdoc="<script>parent.ran = 1</script>"></iframe><svg onload="window.ran = 1">',
    "&lt;b&gt; stays as it is, \u202e and so does this",
]


def test_what_a_model_wrote_is_text_and_nothing_else(page, port, tmp_path):
    human = Human(str(tmp_path), port=port, grace=0)
    buyer = LabelBuyer(human, ledger=str(tmp_path / "ledger.sqlite"))
    buyer.open("run")
    asked = [(Prompt(f"p{i}", f"{i} {text}"), Response(text), Response(f"not {text}")) for i, text in enumerate(EVIL)]
    verdicts: list[Any] = []
    thread = threading.Thread(target=lambda: verdicts.extend(buyer.compare(asked)), daemon=True)
    thread.start()
    home = f"http://127.0.0.1:{port}/"
    until(lambda: human.sitting and listens(port), "page")
    page.open(f"{home}?token={human.token}")
    page.enter("<b>Eve</b>")
    for i, text in enumerate(EVIL):
        prompt, left, right = page.shown()
        assert prompt == f"{i} {text}"
        assert {left, right} == {text, f"not {text}"}, "letter by letter"
        assert page.all("#question .text *, #work b, #work img, #work a, #work iframe, #work svg") == []
        assert page.text("#rename") == "<b>Eve</b>"
        time.sleep(0.3)  # a key sooner after a new pair counts as a bounce
        page.driver.find_element(By.TAG_NAME, "body").send_keys("s")
        if i + 1 < len(EVIL):
            until(lambda i=i: page.field("prompt").startswith(f"{i + 1} "), "next question")
    thread.join(PATIENCE)
    assert verdicts == ["invalid"] * len(EVIL)
    assert page.driver.execute_script("return window.ran") is None
    assert page.elsewhere(home) == []
    assert not [entry for entry in page.log("browser") if "Content Security Policy" in entry["message"]]


FITS = """
const width = (selector) => document.querySelector(selector).getBoundingClientRect().width;
return {
  window: document.documentElement.clientWidth, scroll: document.documentElement.scrollWidth,
  prompt: width("#prompt"), response: width("#response"), nav: width("nav"),
  buttons: [...document.querySelectorAll("nav button")].map((button) => button.scrollWidth <= button.clientWidth),
}
"""
WIDTHS, WORDS = (400, 800, 1200, 1920), (1, 100, 5000)
MEASURE = """
const box = (selector) => document.querySelector(selector).getBoundingClientRect();
const [question, prompt, left, right, nav] = ["#question", "#prompt", "#left", "#right", "nav"].map(box);
return {
  window: document.documentElement.clientWidth, scroll: document.documentElement.scrollWidth,
  blank: [question.left, document.documentElement.clientWidth - question.right],
  question: question.width, prompt: prompt.width, left: left.width, right: right.width, gap: right.left - left.right,
  below: right.top >= left.bottom, nav: nav.width, navBottom: nav.bottom, height: innerHeight,
  buttons: [...document.querySelectorAll("nav button")].map(
    (button) => [button.scrollWidth <= button.clientWidth, button.getBoundingClientRect().bottom]),
}
"""


def test_the_page_fills_its_width_whatever_the_answers(page, port, tmp_path):
    """Pictures of each width and length go to the folder that CHOOSY_PICTURES names."""
    human = Human(str(tmp_path), port=port, grace=0)
    buyer = LabelBuyer(human, ledger=str(tmp_path / "ledger.sqlite"))
    buyer.open("run")
    asked = [
        (Prompt(f"p{n}", f"What of {n}?"), Response(" ".join(["word"] * n)), Response(" ".join(["answer"] * n)))
        for n in WORDS
    ]
    threading.Thread(target=lambda: buyer.compare(asked), daemon=True).start()
    until(lambda: human.sitting and listens(port), "page")
    page.open(f"http://127.0.0.1:{port}/?token={human.token}")
    page.enter("Ada")
    for done, words in enumerate(WORDS):
        prompt, left, _ = page.shown()
        assert len(left.split()) == words == int(prompt.removeprefix("What of ").rstrip("?"))
        for width in WIDTHS:
            page.widen(width)
            found = until(lambda: page.driver.execute_script(MEASURE), "measure")
            if folder := os.environ.get("CHOOSY_PICTURES"):
                page.driver.save_screenshot(f"{folder}/{words:04d}-words-{width}.png")
            assert found["scroll"] <= found["window"], "nothing is cut off at the right"
            assert found["blank"][0] == pytest.approx(found["blank"][1], abs=1)
            assert found["blank"][0] <= max(12, 0.03 * width) + 1, "no blank beside the question"
            assert found["prompt"] == found["nav"] == found["question"]
            assert found["left"] == pytest.approx(found["right"], abs=1)
            beside = found["left"] + found["right"] + found["gap"]
            assert found["below"] == (width < 736)
            assert (found["left"] if found["below"] else beside) == pytest.approx(found["question"], abs=1)
            assert found["navBottom"] <= found["height"] + 1, "the buttons are in sight, however long the answers"
            assert all(whole and bottom <= found["height"] for whole, bottom in found["buttons"])
        if done + 1 < len(WORDS):
            page.press("s", f"{done + 1} of 3")


def test_what_was_said_of_a_pair_is_gone_when_others_are_asked_about(page, port, tmp_path):
    human = Human(str(tmp_path), port=port, grace=0)
    buyer = LabelBuyer(human, ledger=str(tmp_path / "ledger.sqlite"))
    buyer.open("run")

    def compare() -> None:
        for name in ("p", "q"):
            buyer.compare([(Prompt(name, name), Response("one"), Response("two"))])

    threading.Thread(target=compare, daemon=True).start()
    until(lambda: human.sitting and listens(port), "page")
    page.open(f"http://127.0.0.1:{port}/?token={human.token}")
    page.enter("Ada")
    assert page.shown()[0] == "p"
    time.sleep(0.3)
    page.driver.find_element(By.TAG_NAME, "body").send_keys("s")
    until(lambda: page.field("prompt") == "q" and page.visible("#question"), "second pair")
    assert page.text("#facts").startswith("0 of 1 judged")
    assert page.text("#note") == ""


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
