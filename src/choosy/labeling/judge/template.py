"""Write the judge's instructions, in which a random code marks the verdict."""

from __future__ import annotations

import re
import secrets
from pathlib import Path
from string import Template
from typing import cast

from choosy.types import Verdict

TEMPLATE = Path(__file__).with_name("template.txt")
BLANKS = {"prompt", "first", "second", "fence", "code"}


def read_template(path: str | None) -> dict[str, str]:
    """Read the text below the line [system], if there is one, and the text below [user], by role."""
    place = Path(path).expanduser() if path else TEMPLATE
    try:
        text = place.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(
            f"labeler.template={path!r} cannot be read ({error}); type a text file, "
            "or null for the template that comes with Choosy"
        ) from error
    if not re.search(r"^\[(system|user)\]$", text, re.MULTILINE):
        text = f"[user]\n{text}"
    before, *parts = re.split(r"^\[(system|user)\]\n", text, flags=re.MULTILINE)
    template = {role: part.strip("\n") for role, part in zip(parts[::2], parts[1::2], strict=True)}
    whole = Template("\n".join(template.values()))
    if before.strip() or parts[::2] not in (["user"], ["system", "user"]):
        raise ValueError(f"{place}: wanted one line [user], with at most a line [system] and its text before it")
    if not whole.is_valid():
        raise ValueError(f"{place}: a dollar that begins no blank is written twice, as in $$5")
    if (found := set(whole.get_identifiers())) != BLANKS:
        wrong = [f"lacks ${name}" for name in sorted(BLANKS - found)] + [f"has ${name}" for name in found - BLANKS]
        raise ValueError(
            f"{place} {' and '.join(wrong)}; its blanks are ${', $'.join(sorted(BLANKS))}: the last line of the "
            "judge's reply must be 'Verdict $code: first', second or tie, and marks with $fence enclose the texts"
        )
    return template


def filled(template: dict[str, str], prompt: str, first: str, second: str) -> tuple[str, list[dict[str, str]]]:
    """Fill in a template's blanks; return the code that the verdict must carry, and the messages to send."""
    code = random_word(prompt, first, second)
    fence = random_word(prompt, first, second, code)
    texts = {"prompt": prompt, "first": first, "second": second, "code": code, "fence": fence}
    return code, [{"role": role, "content": Template(text).substitute(texts)} for role, text in template.items()]


def random_word(*texts: str) -> str:
    """Return a short random word that occurs in none of the texts."""
    word = secrets.token_hex(4)
    while any(word in text for text in texts):
        word = secrets.token_hex(4)
    return word


def parse_verdict(reply: str, code: str) -> Verdict:
    """Return the verdict in the last line of a reply; anything but the exact line is invalid.

    Example:
        >>> parse_verdict("The first is rude.\\nVerdict 1f00: second\\n", "1f00")
        'second'
        >>> parse_verdict("Verdict 1f00: second, I think", "1f00")
        'invalid'
    """
    last = reply.rstrip(" \t\r\n").rpartition("\n")[2]
    found = re.fullmatch(f"Verdict {re.escape(code)}: (first|second|tie)", last)
    return cast(Verdict, found[1]) if found else "invalid"
