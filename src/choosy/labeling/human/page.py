"""Serve the page on which people label."""

from __future__ import annotations

import hmac
import socket
import sqlite3
import threading
from collections.abc import Callable
from concurrent.futures import CancelledError
from dataclasses import asdict
from pathlib import Path
from typing import Any
from urllib.parse import quote

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


def serve(instruction: str, kind: type[Question], sitting: SittingNow, *, token: str, host: str, port: int) -> str:
    """Serve the page in a thread of this process, and return its address, token included."""
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listening = socket.create_server((host, port), family=family)
    except OSError as error:
        raise ValueError(
            f"The page for labeling cannot listen on {host} port {port} ({error.strerror}); "
            "type another port, such as labeler.port=0 for any that is free"
        ) from error
    port = listening.getsockname()[1]
    app = application(instruction, kind, sitting, token=token, port=port)
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False))
    threading.Thread(target=server.run, kwargs={"sockets": [listening]}, name="labeling page", daemon=True).start()
    name = socket.gethostname() if host in ("0.0.0.0", "::") else host
    return f"http://{f'[{name}]' if ':' in name else name}:{port}/?token={quote(token, safe='')}"


def application(instruction: str, kind: type[Question], sitting: SittingNow, *, token: str, port: int) -> Starlette:
    """Build the web application: the page, its two files, and the requests that its script sends."""
    template = Template((FOLDER / "page.html.j2").read_text(encoding="utf-8"), autoescape=True)
    page = template.render(instruction=instruction, form=kind.form)

    def screen(request: Request) -> Response:
        annotator = cleaned(request.query_params.get("annotator", ""))
        return JSONResponse(screen_data(sitting(), annotator, None))

    async def act(request: Request) -> Response:
        if request.headers.get("content-type") != "application/json":  # which no other site's form can send
            raise HTTPException(415, "Wanted JSON.")
        try:
            asked = await request.json()
        except ValueError:
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
        middleware=[Middleware(Guard, token=token, cookie=f"choosy_labeling_{port}")],
    )


class Guard(BaseHTTPMiddleware):
    """Answers only requests that carry the token: in the address of the first visit, in a cookie afterwards."""

    def __init__(self, app: Any, *, token: str, cookie: str) -> None:
        super().__init__(app)
        self.token = token
        self.cookie = cookie

    async def dispatch(self, request: Request, call_next: RequestResponseEndpoint) -> Response:
        in_address = any(same(given, self.token) for given in request.query_params.getlist("token"))
        if in_address or same(request.cookies.get(self.cookie, ""), self.token):
            response = await call_next(request)
        else:
            response = PlainTextResponse("Open the address that the run prints, with its token.\n", 401)
        if in_address:
            response.set_cookie(self.cookie, self.token, httponly=True, samesite="lax")
        response.headers.update(HEADERS)
        return response


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
            "until then the last click can be undone."
        )
    if screen.purpose is not None:
        return "Other people are judging what is left. This page updates itself."
    return "The model is at work. This page updates itself when there is something to judge."
