"""Serve the page on which people label."""

from __future__ import annotations

import hmac
import json
import socket
import sqlite3
import threading
from collections.abc import Callable, Collection
from concurrent.futures import CancelledError
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import uvicorn
from jinja2 import Template
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware, RequestResponseEndpoint
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from choosy.labeling.human.questions import Question
from choosy.labeling.human.sitting import Screen, Sitting

SittingNow = Callable[[], Sitting | None]  # None before the first sitting

FOLDER = Path(__file__).parent
LONGEST_NAME = 40
LARGEST_BODY = 4096  # bytes of a click
LOOPBACK = ("127.0.0.1", "localhost", "::1")
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
    "X-Frame-Options": "DENY",
    "X-Content-Type-Options": "nosniff",
}


@dataclass(frozen=True)
class Served:
    """A page that is served in a thread of this process.

    Attributes:
        address: With the token.
    """

    address: str
    server: uvicorn.Server
    thread: threading.Thread

    @property
    def is_open(self) -> bool:
        """Whether it still listens."""
        return self.thread.is_alive() and not self.server.should_exit

    def close(self) -> None:
        """Stop to listen."""
        self.server.should_exit = True
        self.thread.join()


SERVED: dict[tuple[str, int], Served] = {}  # by host and port; another labeler's page takes the place of one before


def serve(instruction: str, kind: type[Question], sitting: SittingNow, *, token: str, host: str, port: int) -> Served:
    """Serve the page in a thread of this process, in the place of one that it has served at this port before."""
    if before := SERVED.pop((host, port), None):
        before.close()
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listening = socket.create_server((host, port), family=family)
    except OSError as error:
        raise ValueError(
            f"The page for labeling cannot listen on {host} port {port} ({error.strerror}); "
            "type another port, such as labeler.port=0 for any that is free"
        ) from error
    wanted, port = port, listening.getsockname()[1]
    app = application(instruction, kind, sitting, token=token, host=host)
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, name="labeling page", daemon=True)
    thread.start()
    name = socket.gethostname() if host in ("0.0.0.0", "::") else host
    address = f"http://{f'[{name}]' if ':' in name else name}:{port}/?token={quote(token, safe='')}"
    served = Served(address, server, thread)
    if wanted:  # with port 0 each page has a port of its own
        SERVED[host, wanted] = served
    return served


def application(instruction: str, kind: type[Question], sitting: SittingNow, *, token: str, host: str) -> Starlette:
    """Build the web application: the page, its two files, and the requests that its script sends."""
    template = Template((FOLDER / "page.html.j2").read_text(encoding="utf-8"), autoescape=True)
    page = template.render(instruction=instruction, form=kind.form, token=token)

    def screen(request: Request) -> Response:
        annotator = cleaned(request.query_params.get("annotator", ""))
        return JSONResponse(screen_data(sitting(), annotator, None))

    async def act(request: Request) -> Response:
        if request.headers.get("content-type") != "application/json":  # which no other site's form can send
            raise HTTPException(415, "Wanted JSON.")
        try:
            asked = json.loads(await body_of(request))
        except (ValueError, RecursionError):
            asked = None
        match asked:
            case {"annotator": str(name), "question": str(question), "action": str(action)}:
                if action == "undo" or action in kind.actions:
                    return JSONResponse(await run_in_threadpool(act_for, sitting(), cleaned(name), question, action))
        raise HTTPException(400, "Wanted an annotator, a question and an action.")

    return Starlette(
        routes=[
            Route("/", lambda request: HTMLResponse(page)),
            Route("/page.js", lambda request: FileResponse(FOLDER / "page.js", media_type="text/javascript")),
            Route("/page.css", lambda request: FileResponse(FOLDER / "page.css", media_type="text/css")),
            Route("/screen", screen),
            Route("/act", act, methods=["POST"]),
        ],
        middleware=[Middleware(Guard, token=token, names=names_of(host))],
    )


class Guard(BaseHTTPMiddleware):
    """Answers only requests that carry the token, to this server by its own name, and from its own page.

    The token is in the address, or in a header where the page's script asks. No cookie has it: the browser would send
    that to whatever else listens on this machine, and with the requests of other sites.

    Args:
        app: What answers them.
        token: The token.
        names: What the server may be called in an address; None = anything.
    """

    def __init__(self, app: Any, *, token: str, names: Collection[str] | None) -> None:
        super().__init__(app)
        self.token = token
        self.names = names

    async def dispatch(self, request: Request, call_next: RequestResponseEndpoint) -> Response:
        response = self.refusal(request) or await call_next(request)
        response.headers.update(HEADERS)
        return response

    def refusal(self, request: Request) -> Response | None:
        """Return the answer to a request that is refused; None for one that is not."""
        called, origin = request.headers.get("host", ""), request.headers.get("origin")
        if self.names is not None and hostname(called) not in self.names:
            return PlainTextResponse("Open the address that the run prints, as it is.\n", 421)
        if origin is not None and origin not in (f"http://{called}", f"https://{called}"):
            return PlainTextResponse("Only the page itself may ask.\n", 403)
        given = [*request.query_params.getlist("token"), request.headers.get("x-choosy-token", "")]
        if not any(same(each, self.token) for each in given):
            return PlainTextResponse("Open the address that the run prints, with its token.\n", 401)
        return None


def names_of(host: str) -> Collection[str] | None:
    """Return the names by which a server on this host is asked; None if they cannot be known.

    A site of others may give its own name the address of this machine, to read what is here: then the name is theirs.
    """
    return LOOPBACK if host in LOOPBACK else None


def hostname(called: str) -> str:
    """Return the name in a Host header, without its port; "" if it has none.

    Example:
        >>> hostname("localhost:7860"), hostname("[::1]:7860"), hostname("evil.com"), hostname("[")
        ('localhost', '::1', 'evil.com', '')
    """
    try:
        return urlsplit(f"//{called}").hostname or ""
    except ValueError:
        return ""


async def body_of(request: Request) -> bytes:
    """Read a request's body, and refuse a long one before it fills the memory."""
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > LARGEST_BODY:
            raise HTTPException(413, f"Wanted {LARGEST_BODY} bytes at most.")
    return body


def same(given: str, token: str) -> bool:
    """Compare in constant time, so that the time taken says nothing about the token."""
    return hmac.compare_digest(given.encode(), token.encode())


def cleaned(name: str) -> str:
    """Return a name with single spaces and no control characters, cut to its greatest length; refuse an empty one."""
    name = "".join(letter if letter.isprintable() else " " for letter in name)
    if name := " ".join(name.split())[:LONGEST_NAME].rstrip():
        return name
    raise HTTPException(400, "Wanted a name.")


def act_for(sitting: Sitting | None, annotator: str, question: str, action: str) -> dict[str, Any]:
    """Do what an annotator clicked; the note says that it is saved only once it is on the disk."""
    try:
        if action == "undo":
            note = "Undone; judge it again." if sitting and sitting.undo(annotator) else "Nothing to undo."
        elif sitting and sitting.click(annotator, question, action):
            note = "Skipped and saved." if action == "skip" else "Saved."
        else:
            note = ""
    except CancelledError:
        note = "The run is stopping. Your click is on the disk and counts when the run is resumed."
    except sqlite3.Error as error:
        note = f"Not saved: {error}. Is the disk full?"
    return screen_data(sitting, annotator, note)


def screen_data(sitting: Sitting | None, annotator: str, note: str | None) -> dict[str, Any]:
    """Return an annotator's screen for the page's script; a note of None leaves the page's last one."""
    screen = sitting.screen(annotator) if sitting else Screen()
    lines = {"facts": facts_line(screen), "waiting": waiting_line(screen), "note": note}
    return {**asdict(screen), **lines, "annotator": annotator}


def facts_line(screen: Screen) -> str:
    """Return progress, purpose and budget in one line."""
    if screen.purpose is None:
        return ""
    facts = [f"{screen.done} of {screen.asked} judged"]
    if screen.purpose == "evaluate":
        facts.append("held-out answers: they measure progress and are not trained on")
    elif screen.budget_left is not None:
        facts.append(f"{screen.budget_left} labels left")
    return " · ".join(facts)


def waiting_line(screen: Screen) -> str:
    """Return what to tell an annotator who has nothing to judge."""
    if screen.closing_in is not None:
        return (
            f"All judged, thank you. The run continues in {screen.closing_in:.0f} s; "
            "until then the last click can be undone. More may be asked for to replace ties and skipped ones: keep "
            "this page open."
        )
    if screen.purpose is not None:
        return "Other people are judging what is left. This page updates itself."
    return "The model is at work. This page updates itself when there is something to judge."
