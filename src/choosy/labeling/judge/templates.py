"""What judges ask: templates with blanks for the texts to judge."""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Set
from pathlib import Path
from string import Template

from choosy.labeling.judge.endpoint import Endpoint
from choosy.labeling.judge.settings import Prices
from choosy.labeling.protocols import ALL, Terms
from choosy.types import Prompt, content_id


def read_template(path: str | None, own: Path, ending: str, blanks: Set[str]) -> dict[str, str]:
    """Read the text below the line [system], if there is one, and the text below [user], by role.

    Args:
        path: The user's template; None takes our own.
        own: Our own.
        ending: What the template has to ask the reply for, for error messages.
        blanks: The names that the template has to hold.
    """
    place = Path(path).expanduser() if path else own
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
    texts = {role: part.strip("\n") for role, part in zip(parts[::2], parts[1::2], strict=True)}
    whole = Template("\n".join(texts.values()))
    if before.strip() or parts[::2] not in (["user"], ["system", "user"]):
        raise ValueError(f"{place}: wanted one line [user], with at most a line [system] and its text before it")
    if not whole.is_valid():
        raise ValueError(f"{place}: a dollar that begins no blank is written twice, as in $$5")
    if (found := set(whole.get_identifiers())) != blanks:
        wrong = [f"lacks ${name}" for name in sorted(blanks - found)] + [f"has ${name}" for name in found - blanks]
        raise ValueError(
            f"{place} {' and '.join(wrong)}; its blanks are ${', $'.join(sorted(blanks))}: {ending}, and "
            "marks with $fence enclose the texts"
        )
    return texts


def filled(template: dict[str, str], **texts: str) -> tuple[str, list[dict[str, str]]]:
    """Fill in a template's blanks; return the code that the verdict must carry, and the messages to send."""
    code = random_word(*texts.values())
    texts |= {"code": code, "fence": random_word(*texts.values(), code)}
    return code, [{"role": role, "content": Template(text).substitute(texts)} for role, text in template.items()]


def random_word(*texts: str) -> str:
    """Return a short random word that occurs in none of the texts."""
    word = secrets.token_hex(4)
    while any(word in text for text in texts):
        word = secrets.token_hex(4)
    return word


def terms_by(
    template: dict[str, str],
    endpoint: Endpoint,
    price: float | None,
    *,
    of: str,
    settings: str = "",
    labels: int = 1,
    neutral: float | None = None,
) -> Terms:
    """Return what a labeler declares that sends such requests.

    Args:
        template: What is asked.
        endpoint: Who is asked.
        price: The most that one answer may cost; None = unknown, or nothing where no prices are given.
        of: What an answer is about, for error messages.
        settings: What else the answers depend on.
        labels: How many labels of a budget one answer takes.
        neutral: The score that says nothing.
    """
    if price is not None and not price > 0:
        raise ValueError(f"labeler.price={price}: type the most that one {of} may cost, or null")
    fields = json.dumps(endpoint.request.fields(endpoint.model), sort_keys=True)
    return Terms(
        fingerprint=content_id(*template.values(), fields, *([settings] if settings else [])),
        price=0.0 if price is None and endpoint.settings.prices == Prices() else price,
        labels_per_answer=labels,
        at_once=ALL,
        runs_remotely=True,
        neutral=neutral,
    )


def estimated_cost(template: dict[str, str], endpoint: Endpoint, prompt: Prompt, response_tokens: int) -> float:
    """Return about what a request costs, at four characters a token and a reply as long as it may be."""
    asked = sum(map(len, [*template.values(), prompt.text])) // 4 + response_tokens
    return endpoint.settings.prices.cost(asked, endpoint.request.max_tokens)
