"""The page on which people label: what it looks like, what it asks of the run, and who may open it."""

from __future__ import annotations

import secrets
import socket
import sqlite3
import threading
from collections.abc import Awaitable, Callable, MutableMapping
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import parse_qs

import gradio as gr
import uvicorn
from fastapi import FastAPI
from fastapi.responses import PlainTextResponse, Response

from choosy.labeling.human.human import LOOPBACK, Closed, Human, Screen, same, tell

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

BUTTONS = {"left": "A is better", "tie": "Tie", "right": "B is better", "skip": "Skip", "undo": "Undo"}
CLOSED_PATHS = (*(f"/gradio_api/{name}" for name in ("upload", "proxy", "file", "deep_link")), "/monitoring")

STYLE = """
:root, .dark { --paper: #f7f6f3; --card: #ffffff; --ink: #23262b; --dim: #6b6f76; --line: #e3e1dc; --accent: #3457b2;
  --accent-ink: #ffffff; --soft: #eef1f9 }
@media (prefers-color-scheme: dark) { :root, .dark { --paper: #16181c; --card: #1f2227; --ink: #e6e4df; --dim: #9a9da4;
  --line: #33373e; --accent: #8fabf5; --accent-ink: #10141f; --soft: #262c3a } }
body, gradio-app, .gradio-container { background: var(--paper) !important; color: var(--ink) }
.gradio-container { font: 16px/1.55 system-ui, -apple-system, "Segoe UI", sans-serif !important }
.gradio-container main { max-width: 72rem !important; margin: 0 auto; padding: 1.1rem 1rem !important }
.gradio-container main .wrap, .gradio-container main > .contain { padding: 0 }
.gradio-container .column, .gradio-container .row, .gradio-container .form { gap: .9rem; background: none; border: 0 }
footer, .toast-wrap { display: none !important }
#head { align-items: center; flex-wrap: nowrap }
#facts p, #note p { color: var(--dim); margin: 0; font-size: .92rem }
#note { text-align: right; min-height: 1.5rem }
#head { position: relative; padding-bottom: .7rem }
#head::before, #head::after { content: ""; position: absolute; left: 0; bottom: 0; height: 4px; width: 100%;
  border-radius: 2px; background: var(--line) }
#head::after { width: calc(100% * var(--done, 0)); background: var(--accent); transition: width .2s }
#rename { flex: none; width: auto; min-width: 0; background: none; border: 0; color: var(--dim); padding: .2rem .4rem;
  font: inherit; font-size: .92rem; text-decoration: underline; text-underline-offset: 3px; box-shadow: none }
#instruction p { font-size: 1.3rem; font-weight: 650; color: var(--ink); margin: 0 }
#work .text { background: var(--card) !important; border: 1px solid var(--line) !important;
  border-radius: 14px !important; padding: .95rem 1.15rem !important; box-shadow: 0 1px 2px rgb(0 0 0 / .04);
  overflow: visible !important }
#work .text label > span { color: var(--dim); background: none; border: 0; padding: 0; margin: 0 0 .4rem;
  font-size: .8rem; font-weight: 650; letter-spacing: .04em; text-transform: uppercase }
#work .text textarea { all: unset; display: block; width: 100%; box-sizing: border-box; field-sizing: content;
  min-height: 1.6em; overflow-y: auto; white-space: pre-wrap; overflow-wrap: anywhere; font: inherit;
  font-size: 1.05rem;
  color: var(--ink) !important; -webkit-text-fill-color: var(--ink); opacity: 1; unicode-bidi: plaintext; cursor: text }
@supports (field-sizing: content) { #work .text textarea { height: auto !important; max-height: none !important } }
#work #prompt { background: var(--soft) !important; box-shadow: none }
#work #left textarea, #work #right textarea { min-height: 7rem }
#answers { align-items: stretch }
#choices, #others { flex-wrap: nowrap }
#choices button, #others button { white-space: nowrap }
#choices #choose-tie { flex: .55 1 0 }
#choices button, #others button, #start { border: 1px solid var(--line); border-radius: 12px; background: var(--card);
  color: var(--ink); font: inherit; font-weight: 600; min-height: 3.3rem; min-width: 0; padding: .3rem .6rem;
  box-shadow: none; transition: background .12s, border-color .12s }
#choices button:hover, #others button:hover { background: var(--soft); border-color: var(--accent) }
#choose-left, #choose-right, #start { background: var(--accent) !important; color: var(--accent-ink) !important;
  border-color: var(--accent) !important }
#choose-left:hover, #choose-right:hover { filter: brightness(1.08) }
#others button { min-height: 2.5rem; font-weight: 500; color: var(--dim) }
button:focus-visible { outline: 3px solid var(--accent); outline-offset: 2px }
#choices button::after, #others button::after { margin-left: .55rem; padding: 0 .4rem; border-radius: 5px;
  border: 1px solid currentColor; opacity: .65; font-size: .78rem; line-height: 1.35rem }
#choose-left::after { content: "←" } #choose-right::after { content: "→" } #choose-tie::after { content: "T" }
#choose-skip::after { content: "S" } #choose-undo::after { content: "U" }
button:disabled { opacity: .4 }
#waiting { text-align: center; padding: 4rem 1rem } #waiting p { font-size: 1.15rem }
#who { max-width: 26rem; margin: 12vh auto 0 }
#who input { background: var(--card); border: 1px solid var(--line); border-radius: 10px; font-size: 1.05rem;
  color: var(--ink) }
#gone { position: fixed; inset: auto 0 0 0; padding: .9rem 1rem; background: var(--ink); color: var(--paper);
  text-align: center; z-index: 99 }
@media (max-width: 46rem) {
  .gradio-container main { padding: .5rem .3rem !important }
  #answers { flex-direction: column }
  #work #left textarea, #work #right textarea { min-height: 3rem }
  #deck { position: fixed; inset: auto 0 0 0; background: var(--paper); border-top: 1px solid var(--line);
    padding: .6rem 1rem .7rem; gap: .5rem; z-index: 9 }
  #work { padding-bottom: 8.5rem }
  #choices button, #others button { font-size: .95rem }
  #choices button::after, #others button::after { display: none }
}
@media (pointer: coarse) { #choices button::after, #others button::after { display: none } }
@media (prefers-reduced-motion: reduce) { * { transition: none !important } }
"""

SCRIPT = """
const keys = { ArrowLeft: "left", 1: "left", ArrowRight: "right", 2: "right", 3: "tie", t: "tie", s: "skip",
  u: "undo" };
let last = 0;
addEventListener("keydown", (event) => {
  const side = keys[event.key.length === 1 ? event.key.toLowerCase() : event.key];
  const typing = event.target.matches?.("input, textarea:not([disabled]), select");
  if (!side || typing || event.repeat || event.ctrlKey || event.metaKey || event.altKey || event.isComposing) return;
  const button = document.getElementById("choose-" + side);
  if (!button || button.disabled || !button.offsetParent) return;
  event.preventDefault();
  if (event.timeStamp - last < 250) return; // a key that bounces must not judge a pair that nobody has read
  last = event.timeStamp;
  button.click();
});
setInterval(() => {
  const [, done, asked] = document.getElementById("facts")?.textContent.match(/([0-9]+) of ([0-9]+)/) ?? [];
  document.documentElement.style.setProperty("--done", asked ? done / asked : 0);
}, 200);
setInterval(async () => {
  document.getElementById("note")?.setAttribute("aria-live", "polite");
  const alive = await fetch("alive", { cache: "no-store" }).then((answer) => answer.ok, () => false);
  const told = document.getElementById("gone");
  if (alive) return told?.remove();
  if (told) return;
  const line = document.createElement("div");
  line.id = "gone";
  line.role = "status";
  line.textContent = "The run has ended or was stopped; what you have labeled is saved. "
    + "When it goes on, open the address that it prints.";
  document.body.append(line);
}, 3000);
"""


def serve(human: Human) -> str:
    """Open the page in threads of this process, and return its address, token included.

    Raises:
        ValueError: Nothing can listen on that host and port.
    """
    try:
        family = socket.AF_INET6 if ":" in human.host else socket.AF_INET
        listening = socket.create_server((human.host, human.port), family=family)
    except OSError as error:
        raise ValueError(
            f"The page for labeling cannot listen on {human.host} port {human.port} ({error.strerror}); "
            "type another port, such as labeler.port=0 for any that is free"
        ) from error
    port = listening.getsockname()[1]
    if human.host not in LOOPBACK:
        tell(
            f"The page listens on {human.host}, not only on this machine, and sends texts and its token unencrypted; "
            f"safer is the default with a tunnel: ssh -L {port}:127.0.0.1:{port} THIS_MACHINE"
        )
    server = uvicorn.Server(uvicorn.Config(application(human, port), log_level="warning", access_log=False))
    threading.Thread(target=server.run, kwargs={"sockets": [listening]}, name="labeling page", daemon=True).start()
    host = socket.gethostname() if human.host in ("0.0.0.0", "::") else human.host
    return f"http://{f'[{host}]' if ':' in host else host}:{port}/?token={human.token}"


def application(human: Human, port: int) -> Guard:
    """The page behind its guard."""
    app = FastAPI(openapi_url=None)

    @app.get("/labeling.js")
    def script() -> Response:
        return Response(SCRIPT, media_type="text/javascript")

    @app.get("/labeling.css")
    def style() -> Response:
        return Response(STYLE, media_type="text/css")

    @app.get("/alive")
    def alive() -> Response:
        return PlainTextResponse("yes")

    mounted = gr.mount_gradio_app(
        app,
        blocks(human),
        "/",
        footer_links=[],
        show_error=False,
        ssr_mode=False,
        pwa=False,
        mcp_server=False,
        enable_monitoring=False,
        theme=gr.themes.Base(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
    )
    return Guard(mounted, token=human.token, cookie=f"choosy_labeling_{port}")


class Guard:
    """Lets in who knows the token, and tells their browser to load nothing from elsewhere and run no foreign script.

    The token is in the address of the first visit, then in a cookie.
    """

    def __init__(self, app: Any, *, token: str, cookie: str) -> None:
        self.app = app
        self.token = token
        self.cookie = cookie

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
        elif scope["type"] != "http" or not (given := self.given(scope)):
            await refuse(scope, receive, send, 401, "Open the address that the run prints, with its token.")
        elif scope["path"].startswith(CLOSED_PATHS):
            await refuse(scope, receive, send, 404, "Nothing here.")
        else:
            cookie = f"{self.cookie}={self.token}; Path=/; HttpOnly; SameSite=Lax" if given == "address" else None
            nonce = secrets.token_urlsafe(16)
            plain = [(name, value) for name, value in scope["headers"] if name != b"accept-encoding"]
            await self.app({**scope, "headers": plain}, receive, Sealed(send, nonce, cookie))

    def given(self, scope: Scope) -> str | None:
        """Where the request has the token: in its `address` or a `cookie`; None if it has not."""
        if any(same(told, self.token) for told in parse_qs(scope["query_string"].decode("latin-1")).get("token", [])):
            return "address"
        for name, value in scope["headers"]:
            if name == b"cookie":
                try:
                    morsel = SimpleCookie(value.decode("latin-1")).get(self.cookie)
                except CookieError:
                    continue
                if morsel and same(morsel.value, self.token):
                    return "cookie"
        return None


class Sealed:
    """Sends an answer with the headers that keep the page to itself; its own inline scripts get the nonce."""

    def __init__(self, send: Send, nonce: str, cookie: str | None) -> None:
        self.send = send
        self.nonce = nonce
        self.cookie = cookie
        self.start: MutableMapping[str, Any] | None = None
        self.page = b""

    async def __call__(self, message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            headers = {**dict(message["headers"]), **self.headers()}
            message = {**message, "headers": list(headers.items())}
            if headers.get(b"content-type", b"").startswith(b"text/html"):
                self.start = message  # its length is known once it is whole
                return
        elif self.start is not None:
            self.page += message.get("body", b"")
            if message.get("more_body"):
                return
            message = {**message, "body": self.marked(self.page)}
            length = (b"content-length", str(len(message["body"])).encode())
            kept = [(name, value) for name, value in self.start["headers"] if name != length[0]]
            await self.send({**self.start, "headers": [*kept, length]})
        await self.send(message)

    def marked(self, page: bytes) -> bytes:
        """The page with the nonce on every script that Gradio's template has, and ours added."""
        ours = f'<script nonce="{self.nonce}" src="labeling.js" defer></script>'
        own = f'<link rel="stylesheet" href="labeling.css">{ours}</head>'.encode()
        page = page.replace(b'<link rel="manifest" href="/manifest.json" />', b"")  # it is asked for without the cookie
        return page.replace(b"<script", f'<script nonce="{self.nonce}"'.encode()).replace(b"</head>", own, 1)

    def headers(self) -> dict[bytes, bytes]:
        """What every answer carries."""
        policy = (
            f"default-src 'none'; script-src 'self' 'nonce-{self.nonce}'; style-src 'self' 'unsafe-inline'; "
            "img-src 'self' data:; font-src 'self'; connect-src 'self'; manifest-src 'self'; base-uri 'self'; "
            "form-action 'none'; frame-ancestors 'none'"
        )
        told = {"content-security-policy": policy, "referrer-policy": "no-referrer", "cache-control": "no-store"}
        told |= {"x-content-type-options": "nosniff"} | ({"set-cookie": self.cookie} if self.cookie else {})
        return {name.encode(): value.encode() for name, value in told.items()}


async def refuse(scope: Scope, receive: Receive, send: Send, status: int, why: str) -> None:
    """Answer a request that is not let through; a websocket is closed before it opens."""
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008})
    else:
        await PlainTextResponse(f"{why}\n", status)(scope, receive, send)


def blocks(human: Human) -> gr.Blocks:
    """The page. Texts of a model are only ever the value of a text field, which shows them letter by letter."""
    page = gr.Blocks(analytics_enabled=False, title="Choosy · labeling", fill_width=True)
    with page:
        who, question = gr.Textbox(visible=False), gr.Textbox(visible=False)
        remembered = gr.BrowserState("", storage_key="choosy-annotator", secret="no secret")
        with gr.Column(elem_id="who", visible=False) as door:
            gr.Markdown("### Who is labeling?\nYour name is kept with your labels.")
            name = gr.Textbox(label="Name", max_length=40, autofocus=True)
            enter = gr.Button("Start", elem_id="start")
        with gr.Column(elem_id="work", visible=False) as work:
            with gr.Row(elem_id="head"):
                facts, note = gr.Markdown(elem_id="facts"), gr.Markdown(elem_id="note")
                rename = gr.Button(elem_id="rename")
            with gr.Column(visible=False) as asked:
                gr.Markdown(escaped(human.instruction), elem_id="instruction")
                prompt = text_field("Prompt", "prompt")
                with gr.Row(elem_id="answers"):
                    left, right = text_field("A", "left"), text_field("B", "right")
            waiting = gr.Markdown(elem_id="waiting", visible=False)
            with gr.Column(elem_id="deck"):
                with gr.Row(elem_id="choices") as choices:
                    buttons = {side: button(side) for side in ("left", "tie", "right")}
                with gr.Row(elem_id="others"):
                    buttons |= {side: button(side) for side in ("skip", "undo")}
        parts = [who, door, work, question, asked, prompt, left, right, waiting, choices, buttons["skip"]]
        parts += [buttons["undo"], facts, note, rename]
        draw = Draw(human)
        quiet: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
        page.load(draw.entered, [remembered], [remembered, *parts], **quiet)
        gr.on([enter.click, name.submit], draw.entered, [name], [remembered, *parts], **quiet)
        rename.click(lambda: [gr.update(visible=True), gr.update(visible=False)], None, [door, work], **quiet)
        for side, pressed in buttons.items():
            act = draw.undone if side == "undo" else draw.clicked(side)
            pressed.click(act, [who, question], parts, trigger_mode="once", **quiet)
        gr.Timer(1.5).tick(draw.looked_again, [who, question], parts, **quiet)
    return page


def text_field(label: str, name: str) -> gr.Textbox:
    """A card with a text that is shown as it is: a text field knows no HTML, Markdown or links."""
    return gr.Textbox(label=label, interactive=False, lines=1, max_lines=10_000, elem_id=name, elem_classes="text")


def button(side: str) -> gr.Button:
    """A button that a key presses as well."""
    return gr.Button(BUTTONS[side], elem_id=f"choose-{side}")


def escaped(text: str) -> str:
    """Markdown that shows the text letter by letter."""
    return "".join(f"&#{ord(letter)};" if not letter.isalnum() and letter != " " else letter for letter in text)


class Draw:
    """What the page's events do: each returns the page's parts as they shall be."""

    def __init__(self, human: Human) -> None:
        self.human = human

    def entered(self, name: str) -> list[Any]:
        """Somebody has come, by a name that is typed or remembered."""
        who = " ".join((name or "").split())[:40]
        return [who, *self.parts(who, "", "")]

    def clicked(self, side: str) -> Callable[[str, str], list[Any]]:
        """Somebody has judged the question on their screen."""

        def act(who: str, question: str) -> list[Any]:
            saved = "Skipped and saved." if side == "skip" else "Saved."
            return self.after(who, lambda sitting: sitting.click(who, question, side), saved, "")

        return act

    def undone(self, who: str, question: str) -> list[Any]:
        """Somebody takes back their last click."""
        return self.after(who, lambda sitting: sitting.undo(who), "Taken back; judge it again.", "Nothing to undo.")

    def looked_again(self, who: str, question: str) -> list[Any]:
        """Time has passed."""
        return self.parts(who, question, None)

    def after(self, who: str, act: Callable[[Any], bool], done: str, not_done: str) -> list[Any]:
        """Act, and tell how it went only when it is on the disk."""
        sitting = self.human.sitting
        try:
            told = done if sitting and act(sitting) else not_done
        except Closed:
            told = "The run is stopping. Your click is on the disk, and counts when the run goes on."
        except sqlite3.Error as error:
            told = f"Not saved: {error}. Is the disk full?"
        return self.parts(who, None, told)

    def parts(self, who: str, seen: str | None, told: str | None) -> list[Any]:
        """The page's parts for an annotator; texts stay where the question on the screen is still theirs."""
        if not who:
            return ["", gr.update(visible=True), gr.update(visible=False), *[gr.skip()] * 12]
        screen = self.human.screen(who)
        same_question = seen is not None and seen == screen.question
        texts = [gr.skip()] * 3 if same_question else [screen.prompt, screen.left, screen.right]
        asks = bool(screen.question)
        return [
            who,
            gr.update(visible=False),
            gr.update(visible=True),
            screen.question,
            gr.update(visible=asks),
            *texts,
            gr.update(visible=not asks, value=waiting_line(screen)),
            gr.update(visible=asks),
            gr.update(interactive=asks),
            gr.update(interactive=screen.can_undo),
            facts_line(screen),
            gr.skip() if told is None else told,
            gr.update(value=who),
        ]


def facts_line(screen: Screen) -> str:
    """Progress, what it is for, and the budget, in one line."""
    if screen.purpose is None:
        return ""
    facts = [f"**{screen.done} of {screen.asked}** judged"]
    if screen.purpose == "evaluate":
        facts.append("held-out answers: they measure progress and are not trained on")
    elif screen.budget_left is not None:
        facts.append(f"{screen.budget_left} labels left")
    return " · ".join(facts)


def waiting_line(screen: Screen) -> str:
    """What to tell somebody who has nothing to judge."""
    if screen.closing_in is not None:
        return (
            f"All judged, thank you. It goes on in {screen.closing_in:.0f} s; until then the last click can be undone."
        )
    if screen.purpose is not None:
        return "What is left is on other people's screens. This page goes on by itself."
    return "The model is at work. This page goes on by itself when there is something to judge."
