"""Test the labeling page over HTTP."""

from __future__ import annotations

import http.client
import json
import random
import re
import socket
import sqlite3
import threading
import time
from concurrent.futures import CancelledError
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

pytest.importorskip("uvicorn", reason="the page for labeling is an extra: pip install 'choosy-tuning[human]'")

from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from choosy.labeling.human.labeler import Human, ThumbsHuman
from choosy.labeling.human.page import application, facts_line, serve, waiting_line
from choosy.labeling.human.questions import PairQuestion, ResponseQuestion
from choosy.labeling.human.sitting import Clicks, Screen, Sitting
from choosy.types import Prompt, Response

PATHS = ("/", "/page.js", "/page.css", "/screen", "/screen?annotator=ann", "/act", "/nothing", "/docs", "/openapi.json")
MORE = ("/page.html.j2", "/../labeler.py", "/static/x", "/%2e%2e/labeler.py")


@pytest.fixture
def human(tmp_path: Path) -> Human:
    human = Human(str(tmp_path), instruction="Which is <b>safer</b>?")
    questions = [PairQuestion(f"q{i}", f"prompt {i}", f"first {i}", f"second {i}") for i in range(2)]
    human.sitting = Sitting(questions, Clicks(tmp_path / "clicks.sqlite", "human"), overlap=2, hold=60, grace=1)
    return human


@pytest.fixture
def stranger(human: Human) -> TestClient:
    app = application(human.instruction, human.asks, lambda: human.sitting, token=human.token, host="127.0.0.1")
    return TestClient(app, base_url="http://127.0.0.1:7860", raise_server_exceptions=False)


@pytest.fixture
def client(stranger: TestClient, human: Human) -> TestClient:
    """The script of the page, which has the token of the address."""
    stranger.headers["X-Choosy-Token"] = human.token
    return stranger


def act(client: TestClient, action: str, question: str = "q0", annotator: str = "ann") -> dict[str, Any]:
    answer = client.post("/act", json={"annotator": annotator, "question": question, "action": action})
    assert answer.status_code == 200
    return answer.json()


# -- who may open it -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [*PATHS, *MORE])
def test_every_request_without_the_token_is_refused(path, stranger, human):
    join = "&" if "?" in path else "?"
    for query in ("", "token=", "token=wrong", f"token={human.token[:-1]}", f"token={human.token}x"):
        for method in ("get", "post", "put", "delete", "head", "options"):
            answer = getattr(stranger, method)(path + join + query)
            assert answer.status_code == 401, (method, path, query)
            assert human.token not in answer.text
            assert "set-cookie" not in answer.headers
    assert stranger.get(path, headers={"x-choosy-token": "wrong"}).status_code == 401
    assert stranger.get(path, headers={"x-choosy-token": b"\xff"}).status_code == 401
    assert stranger.get(path, headers={"cookie": f"choosy_labeling_7860={human.token}"}).status_code == 401


def test_no_websocket_opens(stranger, human):
    for query in ("", f"?token={human.token}"):
        with pytest.raises(WebSocketDisconnect), stranger.websocket_connect(f"/{query}"):
            pass


def test_the_address_opens_the_page_and_no_cookie_is_set(stranger, human):
    page = stranger.get(f"/?token={human.token}")
    assert page.status_code == 200
    assert "set-cookie" not in page.headers
    loads = re.findall(r'(?:src|href)="([^":]+)"', page.text)
    assert set(loads) == {f"page.css?token={human.token}", f"page.js?token={human.token}"}
    for path in loads:
        assert stranger.get(f"/{path}").status_code == 200
    header = {"X-Choosy-Token": human.token}
    assert stranger.get("/screen?annotator=ann", headers=header).json()["question"] == "q0"


@pytest.mark.parametrize("host", ["evil.com", "evil.com:7860", "127.0.0.1.evil.com", "127.0.0.2", "", "["])
def test_another_name_of_the_server_is_refused(host, client):
    """As of a site of others that has given its own name the address of this machine."""
    assert client.get("/screen?annotator=ann", headers={"host": host}).status_code == 421


@pytest.mark.parametrize("host", ["127.0.0.1:7860", "localhost:9000", "LOCALHOST", "[::1]:7860"])
def test_the_names_of_this_machine_are_answered(host, client):
    assert client.get("/screen?annotator=ann", headers={"host": host}).status_code == 200


def test_a_server_for_others_is_called_by_any_name(human):
    app = application("", human.asks, lambda: human.sitting, token=human.token, host="0.0.0.0")
    assert TestClient(app, base_url="http://labels.example").get(f"/?token={human.token}").status_code == 200


@pytest.mark.parametrize(
    "origin", ["http://evil.com", "null", "http://127.0.0.1:9999", "http://localhost:7860", "http://127.0.0.1", ""]
)
def test_no_other_page_may_ask(origin, client):
    ask = {"annotator": "ann", "question": "q0", "action": "left"}
    assert client.post("/act", json=ask, headers={"origin": origin}).status_code == 403
    assert client.get("/screen?annotator=ann", headers={"origin": origin}).status_code == 403
    assert client.post("/act", json=ask, headers={"origin": "http://127.0.0.1:7860"}).json()["note"] == "Saved."


def test_the_page_loads_nothing_from_elsewhere_and_runs_only_its_own_script(client):
    for path in ("/", "/screen?annotator=ann", "/nothing"):
        answer = client.get(path)
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "script-src 'self';" in policy
        assert not re.search("unsafe|https?:", policy)
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert answer.headers["cache-control"] == "no-store"
    page = client.get("/").text
    assert [re.sub(r"\?token=[\w-]+", "", tag) for tag in re.findall(r"<script[^>]*>[^<]*", page)] == [
        '<script src="page.js" defer>'
    ]
    assert not re.search(r"\bon\w+=|\bstyle=|<style", page)


def test_the_instruction_is_escaped(client):
    page = client.get("/").text
    assert "<b>safer</b>" not in page
    assert "&lt;b&gt;safer&lt;/b&gt;" in page


@pytest.mark.parametrize("path", ["/nothing", *MORE, "/upload", "/docs"])
def test_there_is_nothing_else_even_with_the_token(path, client):
    assert client.get(path).status_code == 404


def test_a_taken_port_is_named_with_what_to_type(human):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ValueError, match=rf"127.0.0.1 port {port} .*labeler.port=0 for any that is free"):
            serve("", PairQuestion, lambda: None, token=human.token, host="127.0.0.1", port=port)


def test_a_second_page_of_a_process_takes_the_place_of_the_first(human):
    """As of the next run of a sweep, or of another member of a crowd."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    first, second = (
        serve("", PairQuestion, lambda: None, token=human.token, host="127.0.0.1", port=port) for _ in range(2)
    )
    try:
        assert (first.is_open, second.is_open) == (False, True)
    finally:
        second.close()


# -- requests of the page's script -----------------------------------------------------------------------------


def test_a_name_is_cleaned_and_required(client):
    assert client.get("/screen", params={"annotator": "  Ada   Lovelace "}).json()["annotator"] == "Ada Lovelace"
    assert len(client.get("/screen", params={"annotator": "x" * 99}).json()["annotator"]) == 40
    assert client.get("/screen", params={"annotator": "  "}).status_code == 400
    assert client.get("/screen").status_code == 400


def test_a_name_has_no_control_characters(client):
    shown = client.get("/screen", params={"annotator": "A\x1b]52;c\x07da\u202e"}).json()["annotator"]
    assert shown == "A ]52;c da"


def test_the_address_opens_whatever_the_token_holds():
    token = "q+R/abc&def;ghi#jkl"
    address = serve("", PairQuestion, lambda: None, token=token, host="127.0.0.1", port=0).address
    assert parse_qs(urlsplit(address).query) == {"token": [token]}


def test_no_page_of_another_site_frames_it(client):
    for path in ("/", "/nothing"):
        answer = client.get(path)
        assert answer.headers["X-Frame-Options"] == "DENY"
        assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]


def test_a_long_body_is_refused_before_it_is_read(client, human):
    sent = 0

    def endless():
        nonlocal sent
        for _ in range(100_000):
            sent += 1
            yield b" " * 1024

    answer = client.post("/act", content=endless(), headers={"content-type": "application/json"})
    assert answer.status_code == 413
    for content in ("[" * 4000, '{"annotator":' * 300, "\x00", "\ud800".encode("utf-8", "surrogatepass")):
        answer = client.post("/act", content=content, headers={"content-type": "application/json"})
        assert answer.status_code == 400
    assert human.sitting.screen("ann").done == 0


def test_a_name_is_cleaned_where_a_click_brings_it(client, tmp_path):
    name = "A\x1b]52;c\x07da\n" + "x" * 99
    assert act(client, "left", annotator=name)["annotator"] == "A ]52;c da " + "x" * 29
    assert [click.annotator for click in Clicks(tmp_path / "clicks.sqlite", "human").standing()] == [
        "A ]52;c da " + "x" * 29
    ]
    for empty in ("", " \x1b\n", "\u202e"):
        ask = {"annotator": empty, "question": "q1", "action": "left"}
        assert client.post("/act", json=ask).status_code == 400


@pytest.mark.parametrize("clicks", [400, pytest.param(10_000, marks=pytest.mark.slow)])
def test_rapid_clicks_from_eight_tabs_make_one_label_a_pair(clicks, tmp_path):
    """Against the real server: eight tabs click all pairs again and again, each way."""
    pairs, tabs = 40, 8
    human = Human(str(tmp_path), port=0, grace=0)
    items = [(Prompt(f"p{i}", f"prompt {i}"), Response(f"a {i}", (1,)), Response(f"b {i}", (2,))) for i in range(pairs)]
    labels = []
    run = threading.Thread(target=lambda: labels.extend(human.compare(items)), daemon=True)
    run.start()
    while human.sitting is None or human._served is None:
        time.sleep(0.01)
    address = urlsplit(human._served.address)
    headers = {"X-Choosy-Token": human.token, "Content-Type": "application/json"}
    questions = [question.id for question in (PairQuestion.of(*item) for item in items)]
    statuses = []

    def tab(number):
        draw = random.Random(number)
        with closing(http.client.HTTPConnection(address.hostname, address.port, timeout=60)) as browser:
            for _ in range(clicks // tabs):
                ask = {"annotator": f"tab {number % 4}", "action": draw.choice(["left", "right", "tie"])}
                browser.request("POST", "/act", json.dumps({**ask, "question": draw.choice(questions)}), headers)
                answer = browser.getresponse()
                answer.read()
                statuses.append(answer.status)

    threads = [threading.Thread(target=tab, args=(number,)) for number in range(tabs)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    run.join(60)
    assert statuses == [200] * clicks
    assert not run.is_alive()
    assert sorted(answer.at for answer in labels) == list(range(pairs))
    assert len(Clicks(tmp_path / "clicks.sqlite", human.name).standing()) == pairs


def test_a_click_judges_the_question_that_was_on_the_screen(client, human):
    after = act(client, "left")
    assert (after["question"], after["note"]) == ("q1", "Saved.")
    twice = act(client, "left")
    assert (twice["question"], twice["note"]) == ("q1", ""), "the second of two quick clicks judges nothing unseen"
    assert human.sitting.screen("ann").question == "q1"
    back = act(client, "undo", "q1")
    assert (back["question"], back["note"]) == ("q0", "Undone; judge it again.")
    assert act(client, "undo")["note"] == "Nothing to undo."
    assert act(client, "skip")["note"] == "Skipped and saved."


@pytest.mark.parametrize(
    ("status", "request_"),
    [
        (400, {"json": {"annotator": "ann", "question": "q0", "action": "explode"}}),
        (400, {"json": {"annotator": "ann", "question": "q0"}}),
        (400, {"json": {"annotator": " ", "question": "q0", "action": "left"}}),
        (400, {"json": ["ann"]}),
        (415, {"data": {"annotator": "ann", "question": "q0", "action": "left"}}),
        (415, {"content": '{"annotator": "ann", "question": "q0", "action": "left"}'}),
        (400, {"content": "{", "headers": {"content-type": "application/json"}}),
    ],
)
def test_a_malformed_request_is_refused_and_judges_nothing(status, request_, client, human):
    assert client.post("/act", **request_).status_code == status
    assert client.get("/act").status_code == 405
    assert not human.sitting.screen("ann").can_undo


def test_a_page_for_single_answers_takes_thumbs_and_no_sides(tmp_path):
    human = ThumbsHuman(str(tmp_path))
    asked = ResponseQuestion.of(Prompt("p", "How was it?"), Response("Good fun."))
    human.sitting = Sitting([asked], Clicks(tmp_path / "clicks.sqlite", "human"), overlap=2, hold=60, grace=1)
    app = application(human.instruction, human.asks, lambda: human.sitting, token=human.token, host=human.host)
    client = TestClient(app, base_url="http://127.0.0.1:7860", headers={"X-Choosy-Token": human.token})
    page = client.get("/").text
    assert re.findall(r'data-action="(\w+)"', page) == ["good", "bad", "skip", "undo"]
    assert re.findall(r'<article id="(\w+)"', page) == ["prompt", "response"]
    assert client.get("/screen?annotator=ann").json()["texts"] == {"prompt": "How was it?", "response": "Good fun."}
    refused = client.post("/act", json={"annotator": "ann", "question": asked.id, "action": "left"})
    assert refused.status_code == 400
    assert act(client, "good", asked.id)["note"] == "Saved."


@pytest.mark.parametrize(
    ("error", "note"),
    [(CancelledError(), "counts when the run is resumed"), (sqlite3.OperationalError("full"), "Not saved: full")],
)
def test_the_note_says_when_a_click_was_not_written(error, note):
    class Failing:
        def screen(self, annotator: str) -> Screen:
            return Screen()

        def click(self, annotator: str, question: str, side: str) -> bool:
            raise error

        def undo(self, annotator: str) -> bool:
            raise error

    app = application("", PairQuestion, Failing, token="t" * 16, host="127.0.0.1")
    client = TestClient(app, base_url="http://127.0.0.1:7860", headers={"X-Choosy-Token": "t" * 16})
    assert note in act(client, "left")["note"]
    assert note in act(client, "undo")["note"]


def test_facts_line():
    assert facts_line(Screen()) == ""
    assert facts_line(Screen(done=1, asked=3, purpose="train", budget_left=9)) == "1 of 3 judged · 9 labels left"
    assert "not trained on" in facts_line(Screen(done=1, asked=3, purpose="evaluate"))


def test_waiting_line():
    judged = waiting_line(Screen(closing_in=3.2, purpose="train"))
    assert "until then the last click can be undone" in judged
    assert "More may be asked for to replace ties and skipped ones: keep this page open" in judged
    assert "Other people" in waiting_line(Screen(purpose="train"))
    assert "model is at work" in waiting_line(Screen())
