"""Talks to a tuned model on the terminal, with the start's answers beside its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from rich import box
from rich.live import Live
from rich.table import Table

from choosy.console import console
from choosy.options.words import Words
from choosy.terminal import say
from choosy.tuned_model import TunedModel
from choosy.types import Message, Prompt

if TYPE_CHECKING:  # functions import torch and transformers once the words of the command are read
    from choosy.models.policy import Policy
    from choosy.sampling.settings import SamplingSettings

WIDEST = 132  # characters of two columns
LONGEST = 1024  # tokens of an answer
ALONE = "each line is continued by itself, for the model has no chat template"
HELP = """/system TEXT  instruct the model; without TEXT no more
/undo         take back your last words and the answer
/clear        begin another conversation
An empty line ends the chat, Ctrl-C an answer."""


def chat(words: list[str]) -> None:
    """Talk to the tuned model, and to the start, which is told the tuned model's answers as its own."""
    parser = Words("choosy chat", description="Talk to a tuned model and its start; an empty line ends it.")
    parser.add_argument("run_dir", metavar="RUN", help="the folder of the run, or of the model that choosy merge wrote")
    parser.add_argument("--alone", action="store_true", help="without the start's answers: half the memory and time")
    parser.add_argument("--temperature", type=float, default=0.7, help="0 = the likeliest token (default: 0.7)")
    parser.add_argument("--top-p", type=float, default=0.9, help="share of probability sampled from (default: 0.9)")
    typed = parser.parse_args(words)
    run = TunedModel.open(typed.run_dir)
    from choosy.reporting.display import quiet
    from choosy.sampling.settings import SamplingSettings

    quiet()
    start = None if typed.alone or run.start is None else run.load(run.start)
    policy = run.load(run.tuned)
    settings = SamplingSettings(temperature=typed.temperature, top_p=typed.top_p)
    policies = {"start": start, "tuned": policy} if start else {"tuned": policy}
    turns: list[Message] = []
    whom = "the tuned model and the start" if start else "the tuned model"
    talks = policy.tokens.chat is not None
    more = "/help lists what else there is" if talks else ALONE
    say(f"Type to {whom}; an empty line ends it, {more}.")
    with ExitStack() as sampling:
        for one in policies.values():
            sampling.enter_context(one.for_sampling())
        while text := read_line():
            if text.startswith("/"):
                say(command(text, turns) if talks else f"It is not done: {ALONE}.")
                continue
            try:
                said = (in_columns if start else in_lines)(policies, settings, turns, text)
                turns[:] = [*turns, Message("user", text), Message("assistant", said)]
            except ValueError as error:  # the template refuses the turns, or the window is full
                say(error)


def read_line() -> str:
    """Read a line from the terminal; "" at the end of the input."""
    try:
        return input("> ").strip()
    except (EOFError, KeyboardInterrupt):
        say()
        return ""


def command(text: str, turns: list[Message]) -> str:
    """Do what a line with a slash says to the turns so far, and return what is said of it.

    Example:
        >>> turns = [Message("user", "Hello"), Message("assistant", "Hi")]
        >>> command("/system Be brief.", turns), [turn.role for turn in turns]
        ('The model is instructed.', ['system', 'user', 'assistant'])
        >>> command("/undo", turns), [turn.role for turn in turns]
        ('Taken back.', ['system'])
    """
    word, _, rest = text.partition(" ")
    said = [turn for turn in turns if turn.role != "system"]
    match word:
        case "/system":
            turns[:] = [*([Message("system", rest.strip())] if rest.strip() else []), *said]
            return "The model is instructed." if rest.strip() else "The model is not instructed."
        case "/undo" if said:
            del turns[-2:]
            return "Taken back."
        case "/clear":
            turns[:] = [turn for turn in turns if turn.role == "system"]
            return "Another conversation."
    return HELP


def in_lines(policies: Mapping[str, Policy], settings: SamplingSettings, turns: list[Message], text: str) -> str:
    """Print the tuned model's answer while it is made, and return it."""
    return answer(policies["tuned"], settings, turns, text, lambda piece, ended: say(piece, end="\n" if ended else ""))


def in_columns(policies: Mapping[str, Policy], settings: SamplingSettings, turns: list[Message], text: str) -> str:
    """Print the answers beside each other while they are made, one after the other, and return the tuned model's."""
    said, out = dict.fromkeys(policies, ""), console()

    def columns() -> Table:
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, width=min(out.width, WIDEST))
        for name in said:
            table.add_column(name, ratio=1, overflow="fold")
        table.add_row(*map(str.strip, said.values()))
        return table

    with Live(console=out, get_renderable=columns):
        for name, policy in policies.items():

            def show(piece: str, ended: bool, name: str = name) -> None:
                said[name] += piece

            said[name] = answer(policy, settings, turns, text, show)
    return said["tuned"]


def answer(
    policy: Policy, settings: SamplingSettings, turns: list[Message], text: str, show: Callable[[str, bool], None]
) -> str:
    """Show the answer to the turns while it is made, and return it; Ctrl-C ends it.

    Args:
        policy: Who answers.
        settings: How.
        turns: The conversation so far.
        text: What is said to it now.
        show: Is given each piece of the answer, and whether it is the last.

    Raises:
        ValueError: The chat template refuses the turns, or they fill the context window.
    """
    import torch
    from transformers import GenerationConfig, TextStreamer

    class Printed(TextStreamer):
        """Shows each word when it is whole, and keeps it."""

        said = ""

        def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
            self.said += text
            show(text, stream_end)

    tokens = policy.tokens
    asked = (*turns, Message("user", text)) if tokens.chat else ()
    ids = tokens.encode_prompt(Prompt(f"of turn {len(turns) // 2 + 1}", text, asked))
    room = min(LONGEST, (tokens.window or len(ids) + LONGEST) - len(ids))
    if room < 1:
        raise ValueError(f"The conversation fills the context window of {tokens.window} tokens; type /undo or /clear.")
    how: dict[str, Any] = {"do_sample": settings.temperature > 0}
    if settings.temperature > 0:
        how |= {"temperature": settings.temperature, "top_p": settings.top_p, "top_k": settings.top_k}
    config = GenerationConfig(  # type: ignore[no-untyped-call]  # transformers gives it no type
        max_new_tokens=room, eos_token_id=sorted(tokens.stop_ids), pad_token_id=min(tokens.stop_ids), **how
    )
    shown = Printed(tokens.tokenizer, skip_prompt=True, skip_special_tokens=True)
    generate: Any = policy.causal_lm.generate
    ids_1L = torch.tensor([ids], device=policy.device)
    try:
        generate(ids_1L, attention_mask=torch.ones_like(ids_1L), generation_config=config, streamer=shown)
    except KeyboardInterrupt:
        shown.end()  # type: ignore[no-untyped-call]  # transformers gives it no type
    return shown.said.strip()
