"""A key that a server repeats, wherever in its reply, reaches no ledger, message, log or terminal."""

from __future__ import annotations

import json
import logging
import sqlite3
from pathlib import Path
from socketserver import StreamRequestHandler, ThreadingTCPServer
from threading import Thread
from typing import Any

import pytest

from choosy import redaction
from choosy.labeling.buyer import LabelBuyer
from choosy.labeling.judge.judge import Judge
from choosy.labeling.judge.settings import EndpointSettings, Retries
from choosy.redaction import refuse_secret_words, refuse_secrets
from choosy.reporting.display import quiet
from choosy.terminal import exit_with, logger, say
from choosy.types import Prompt, Response

KEY = "sk-canary-0123456789abcdefghijklmnopqrstuvwxyz-0123456789"
START = KEY[:16]  # of which a message may have cut the rest


def reply(content: Any, kind: str = "application/json", status: str = "200 OK") -> bytes:
    body = json.dumps(content).encode()
    head = f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    return head.encode() + body


def said(**message: Any) -> dict[str, Any]:
    return {"choices": [{"message": {"role": "assistant", **message}, "finish_reason": "stop"}]}


REPLIES = {
    "words": reply(said(content=f"You sent {KEY}.")),
    "refusal": reply(said(content=None, refusal=f"I will not say {KEY}.")),
    "content type": reply({}, kind=f"text/{KEY}"),
    "long content type": reply({}, kind=f"text/{'x' * 30}{KEY}"),
    "error": reply({"error": {"message": f"bad key {KEY}"}}, status="400 Bad Request"),
    "reason": reply({}, status=f"418 {KEY}"),
    "redirect": reply({}, status=f"302 Found\r\nLocation: http://127.0.0.1/{KEY}"),
    "status line": f"{KEY} 200\r\n\r\n".encode(),
    "header line": f"HTTP/1.1 200 OK\r\n{KEY}\r\n\r\n".encode(),
}


@pytest.fixture
def variable(monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a variable that holds the key, and is not named like one."""
    monkeypatch.setattr(redaction, "NAMED", set())
    monkeypatch.setattr("choosy.labeling.judge.endpoint.NAMED", redaction.NAMED)
    monkeypatch.setenv("JUDGEACCESS", KEY)
    return "JUDGEACCESS"


@pytest.mark.parametrize("well", [0, 3], ids=["at once", "after good replies"])
@pytest.mark.parametrize("how", REPLIES)
def test_a_key_that_a_server_repeats_is_struck_out(
    how: str, well: int, variable: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    left = [well]

    class Handler(StreamRequestHandler):
        def handle(self) -> None:
            length = 0
            while (line := self.rfile.readline().strip()) != b"":
                name, _, value = line.partition(b":")
                length = int(value) if name.lower() == b"content-length" else length
            self.rfile.read(length)
            left[0] -= 1
            self.wfile.write(reply(said(content="Verdict: tie")) if left[0] >= 0 else REPLIES[how])

    caplog.set_level(logging.DEBUG, logger="choosy")
    ThreadingTCPServer.daemon_threads = True
    with ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        quick = EndpointSettings(retries=Retries(count=1, first_wait=0.01, longest_wait=0.01))
        judge = Judge(
            "toy", base_url=f"http://127.0.0.1:{server.server_address[1]}/v1", key_env=variable, endpoint=quick
        )
        buyer = LabelBuyer(judge, ledger=str(tmp_path / "ledger.sqlite"))
        buyer.open("run")
        message = ""
        try:
            buyer.compare([(Prompt(f"p{i}", f"p{i}"), Response("a"), Response("b")) for i in range(4)])
        except ValueError as error:
            message = str(error)
        server.shutdown()
    with sqlite3.connect(tmp_path / "ledger.sqlite") as db:
        kept = [*map(str, db.execute("SELECT raw FROM labels"))]
    assert message or kept
    assert START not in message + "".join(kept) + caplog.text
    assert all(START.encode() not in path.read_bytes() for path in tmp_path.iterdir())


def test_a_variable_that_a_configuration_names_is_secret_whatever_it_is_called(variable: str) -> None:
    for words in ([f"labeler.key_env={variable}", f"name={KEY}"], [f"name={KEY}", f"labeler.key_env={variable}"]):
        redaction.NAMED.clear()
        with pytest.raises(ValueError, match=r"^name holds a secret"):
            refuse_secret_words(words)
    redaction.NAMED.clear()
    with pytest.raises(ValueError, match=r"^run\.note holds a secret"):
        refuse_secrets({"run": {"note": f"with {KEY}"}, "judge": {"endpoint": {"key_env": variable}}})


def test_the_debug_lines_of_http_that_hold_headers_are_off() -> None:
    quiet()
    assert not logging.getLogger("httpcore2.http11").isEnabledFor(logging.DEBUG)


def test_no_key_is_printed_or_logged(
    variable: str, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    redaction.NAMED.add(variable)
    say(f"401: {KEY}")
    logger("choosy.of_this_test").warning("401: %s", KEY)
    with pytest.raises(SystemExit) as stop:
        exit_with(f"401: {KEY}")
    assert capsys.readouterr().out == f"401: [{variable}]\n"
    assert caplog.messages == [stop.value.code] == [f"401: [{variable}]"]


def test_an_address_loses_its_key_and_no_other_word() -> None:
    found = {name: redaction.scrub(f"http://h/?{name}=0123456789") for name in ("api_key", "apikey", "x-token", "key")}
    assert set(found.values()) == {"http://h/?[password]"}
    assert redaction.scrub("http://h/?monkey=0123456789") == "http://h/?monkey=0123456789"
