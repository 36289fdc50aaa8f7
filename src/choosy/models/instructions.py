"""Instructions that precede a prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

from choosy.models.tokens import TemplateRefusal, Tokens
from choosy.types import Message, Prompt

Place = Literal["system", "user"]


@dataclass(frozen=True)
class Instructions:
    """Instructions under which the policy samples; it is trained on the prompts without them (DLMA, 2402.11907).

    Args:
        texts: The instructions. Of n, each has an equal share of a prompt's responses: the first, the n+1-th and so on
            are sampled under the first.
        place: Where they are put (see `instructed`).
    """

    texts: list[str]
    place: Place = "system"

    def __post_init__(self) -> None:
        if not self.texts or not all(text.strip() for text in self.texts):
            raise ValueError("data.instructions.texts needs a text or several, none of them empty.")
        if self.place not in get_args(Place):
            raise ValueError(f"data.instructions.place={self.place} is unknown; type system or user")

    def encode(self, tokens: Tokens, prompts: Sequence[Prompt]) -> list[list[tuple[int, ...]]]:
        """Token ids of the prompts under each instruction."""
        option = "data.instructions.place"
        return [[encode_instructed(tokens, p, text, self.place, option) for p in prompts] for text in self.texts]


def encode_instructed(tokens: Tokens, prompt: Prompt, instruction: str, place: Place, option: str) -> tuple[int, ...]:
    """Encode a prompt behind an instruction; where the chat template refuses its place, name the option to type."""
    try:
        return tokens.encode_prompt(instructed(prompt, instruction, place=place))
    except TemplateRefusal as error:
        other = "user" if place == "system" else "system"
        raise ValueError(
            f"the chat template of {tokens.source.name} refuses an instruction in a {place} turn ({error.__cause__}); "
            f"type {option}={other}"
        ) from error


def instructed(prompt: Prompt, instruction: str, *, place: Place) -> Prompt:
    """Put an instruction at the beginning of a prompt: of its system turn, its first user turn, or its text.

    Example:
        >>> chat = Prompt("p", "Hi", (Message("user", "Hi"),))
        >>> [m.role for m in instructed(chat, "Be kind.", place="system").messages]
        ['system', 'user']
        >>> instructed(chat, "Be kind.", place="user").messages[0].content
        'Be kind.\\n\\nHi'
        >>> instructed(Prompt("p", "Once"), "Be kind.", place="system").text
        'Be kind.\\n\\nOnce'
    """
    turns = list(prompt.messages)
    if not turns:
        return replace(prompt, text=f"{instruction}\n\n{prompt.text}")
    roles = [turn.role for turn in turns]
    if place in roles:
        at = roles.index(place)
        turns[at] = replace(turns[at], content=f"{instruction}\n\n{turns[at].content}")
    else:
        turns.insert(0, Message(place, instruction))
    return replace(prompt, messages=tuple(turns))
