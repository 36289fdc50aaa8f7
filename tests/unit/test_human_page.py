"""Who may open the page for labeling, what it tells a browser, and what its events give back."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("gradio", reason="the page for labeling is an extra: pip install 'choosy[human]'")

from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from choosy.labeling.human.assignment import Question
from choosy.labeling.human.clicks import Clicks
from choosy.labeling.human.human import Human, Plan, Screen, Sitting
from choosy.labeling.human.page import Draw, application, facts_line, serve, waiting_line

PATHS = [
    *("/", "/config", "/info", "/theme.css", "/manifest.json", "/labeling.js", "/labeling.css", "/alive", "/nothing"),
    *("/gradio_api/info", "/gradio_api/queue/data", "/gradio_api/file=/etc/passwd", "/gradio_api/heartbeat/x"),
    *("/static/img/logo.svg", "/login_check", "/monitoring", "/docs", "/openapi.json", "/mcp"),
]


@pytest.fixture(scope="module")
def human(tmp_path_factory: pytest.TempPathFactory) -> Human:
    return Human(str(tmp_path_factory.mktemp("run")), instruction="Which is <b>safer</b>?")


@pytest.fixture(scope="module")
def app(human: Human) -> Any:
    return application(human, 7860)


@pytest.fixture
def client(app: Any) -> TestClient:
    return TestClient(app, base_url="http://127.0.0.1:7860", raise_server_exceptions=False)


@pytest.mark.parametrize("path", PATHS)
def test_nobody_gets_anything_without_the_token(path, client, human):
    for query in ("", "?token=", "?token=wrong", f"?token={human.token[:-1]}", f"?token={human.token}x"):
        for method in ("get", "post", "put", "delete", "head", "options"):
            answer = getattr(client, method)(path + query)
            assert answer.status_code == 401, (method, path + query)
            assert human.token not in answer.text
    assert client.get(path, headers={"cookie": "choosy_labeling_7860=wrong"}).status_code == 401


def test_no_websocket_opens(client, human):
    with pytest.raises(WebSocketDisconnect), client.websocket_connect(f"/ws?token={human.token}"):
        pass


def test_the_address_opens_the_page_and_the_cookie_the_rest(client, human):
    page = client.get(f"/?token={human.token}")
    assert page.status_code == 200
    cookie = page.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=Lax" in cookie
    assert "labeling.css" in page.text
    assert client.get("/labeling.js").status_code == 200
    assert client.get("/alive").text == "yes"
    for asset in re.findall(r'(?:src|href)="\./(assets/[^"]+)"', page.text):
        assert client.get("/" + asset).status_code == 200


def test_the_page_may_load_nothing_from_elsewhere_and_run_no_script_but_its_own(client, human):
    page = client.get(f"/?token={human.token}")
    policy = page.headers["content-security-policy"]
    nonce = re.search(r"script-src 'self' 'nonce-([^']+)';", policy).group(1)
    assert "default-src 'none'" in policy
    assert "unsafe-eval" not in policy
    assert "http:" not in policy
    assert "https:" not in policy
    assert page.headers["referrer-policy"] == "no-referrer"
    scripts = re.findall(r"<script[^>]*>", page.text)
    assert len(scripts) > 3
    assert all(f'nonce="{nonce}"' in script for script in scripts)
    assert client.get("/").headers["content-security-policy"] != policy, "a nonce is used once"
    assert "<b>safer</b>" not in page.text


@pytest.mark.parametrize("path", ["upload", "file=/etc/passwd", "proxy=http://127.0.0.1", "deep_link"])
def test_what_the_page_does_not_need_is_not_there_even_with_the_token(path, client, human):
    assert client.post(f"/gradio_api/{path}?token={human.token}").status_code == 404


def test_a_port_that_is_taken_is_told_with_what_to_type(tmp_path):
    import socket

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ValueError, match=f"127.0.0.1 port {port} .*labeler.port=0 for any that is free"):
            serve(Human(str(tmp_path), port=port))


# -- events ----------------------------------------------------------------------------------------------------


@pytest.fixture
def draw(tmp_path: Path) -> Draw:
    human = Human(str(tmp_path))
    questions = [Question(f"q{i}", f"prompt {i}", f"first {i}", f"second {i}") for i in range(2)]
    clicks = Clicks(tmp_path / "clicks.sqlite", "human")
    human.sitting = Sitting(questions, clicks, plan=Plan(), overlap=2, hold=60, grace=1)
    return Draw(human)


def question(parts: list[Any]) -> Any:
    return parts[3]


def note(parts: list[Any]) -> Any:
    return parts[-2]


def test_a_name_is_asked_for_first_and_cleaned(draw):
    assert draw.entered("")[0] == ""
    assert draw.entered("  Ada   Lovelace ")[0] == "Ada Lovelace"
    assert len(draw.entered("x" * 99)[0]) == 40


def test_a_click_is_of_the_question_that_was_on_the_screen(draw):
    press = draw.clicked("left")
    after = press("ann", "q0")
    assert (question(after), note(after)) == ("q1", "Saved.")
    twice = press("ann", "q0")
    assert (question(twice), note(twice)) == ("q1", ""), "the second of two quick clicks judges nothing unseen"
    assert draw.human.sitting.screen("ann").question == "q1"
    back = draw.undone("ann", "q1")
    assert (question(back), note(back)) == ("q0", "Taken back; judge it again.")
    assert note(draw.undone("ann", "q0")) == "Nothing to undo."


def test_looking_again_leaves_the_texts_of_the_same_question_alone(draw):
    first = draw.looked_again("ann", "")
    assert first[5] == "prompt 0"
    assert draw.looked_again("ann", "q0")[5] != "prompt 0"
    assert len(first) == len(draw.parts("", "", "")) == 15


def test_lines():
    assert facts_line(Screen()) == ""
    assert facts_line(Screen(done=1, asked=3, purpose="train", budget_left=9)) == "**1 of 3** judged · 9 labels left"
    assert "not trained on" in facts_line(Screen(done=1, asked=3, purpose="evaluate"))
    assert "until then the last click can be undone" in waiting_line(Screen(closing_in=3.2, purpose="train"))
    assert "other people" in waiting_line(Screen(purpose="train"))
    assert "model is at work" in waiting_line(Screen())
