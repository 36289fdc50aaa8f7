"""Fills the templates of pages."""

from __future__ import annotations

import base64
from hashlib import sha256
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from choosy.files import replacing
from choosy.reporting.display import duration
from choosy.reporting.summary import as_text


def filled(template: str, **values: Any) -> str:
    """Fill a template in `templates/`."""
    pages = Environment(
        loader=PackageLoader("choosy.reporting"),
        autoescape=True,  # whatever a model wrote stays text
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    pages.filters["script_hash"] = lambda name: script_hash(pages.get_template(name).render())
    pages.filters.update(as_text=as_text, duration=duration, base64=lambda data: base64.b64encode(data).decode())
    return pages.get_template(template).render(values)


def script_hash(source: str) -> str:
    """Return what the policy of a page names its script by, so that no other script runs in it."""
    return f"sha256-{base64.b64encode(sha256(source.encode()).digest()).decode()}"


def write_page(template: str, path: str | Path, **values: Any) -> None:
    """Fill a template in `templates/`, and write the page."""
    with replacing(path, private=True) as unfinished:
        unfinished.write_text(filled(template, **values), encoding="utf-8")
