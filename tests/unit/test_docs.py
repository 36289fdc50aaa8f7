"""The documentation's site: every page is in its navigation, its links lead somewhere, its messages are ours."""

from __future__ import annotations

import ast
import importlib.util
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from choosy.options.menu import about, conf_text, menu
from choosy.options.names import ELSEWHERE, NONE

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
SITE = yaml.safe_load((ROOT / "mkdocs.yml").read_text())


def load_hook() -> Any:
    spec = importlib.util.spec_from_file_location("pages", DOCS / "pages.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


pages = load_hook()
MADE = pages.made()
WRITTEN = {path.relative_to(DOCS).as_posix(): path.read_text() for path in sorted(DOCS.rglob("*.md"))}


def in_navigation(nav: Any) -> Iterator[str]:
    if isinstance(nav, str):
        yield nav
    else:
        for part in nav.values() if isinstance(nav, dict) else nav:
            yield from in_navigation(part)


def test_every_page_is_in_the_navigation_once() -> None:
    listed = [page for page in in_navigation(SITE["nav"]) if page != "reference/"]
    made = {page for page in MADE if not page.startswith("reference/")}
    assert sorted(listed) == sorted({*WRITTEN, *made})


def slug(heading: str) -> str:
    """The anchor of a heading, as mkdocs makes it."""
    plain = re.sub(r"\{.*\}|\[([^\]]*)\]\([^)]*\)", r"\1", heading)
    return re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", plain).strip().lower())


def anchors(text: str) -> set[str]:
    outside = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    return {slug(heading) for heading in re.findall(r"^#+ (.*)$", outside, re.MULTILINE)}


@pytest.mark.parametrize("page", [*WRITTEN, *pages.OF_THE_ROOT.values()])
def test_the_links_of_a_page_lead_somewhere(page: str) -> None:
    text = WRITTEN.get(page) or MADE[page]
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)):
        if re.match(r"\w+:", link):
            continue
        target, _, anchor = link.partition("#")
        there = posixpath.normpath(posixpath.join(posixpath.dirname(page), pages.link_on_the_site(target, page)))
        there = page if not target else there
        of_it = WRITTEN.get(there) or MADE.get(there)
        if not (of_it or (DOCS / there).is_file()) or (anchor and of_it and anchor not in anchors(of_it)):
            broken.append(link)
    assert broken == []


def test_the_options_are_all_there_with_their_comments() -> None:
    text = MADE["options.md"]
    assert "| `batching.batch_size` | `16` | items of one optimiser step, over all ranks |" in text
    assert "| `callbacks.certainty.fraction` | `0.5` |" in text
    assert "| `labeler.request.max_tokens` | `512` | of a reply |" in text
    assert f"| `trainer=ddp` | {about(conf_text('trainer', 'ddp'))} |" in text
    assert "| `hydra.sweeper.allowed_loss` | `0.1` |" in text
    for group in {*(name.partition("@")[0] for name in menu()["defaults"]), "hydra/launcher", "hydra/sweeper"}:
        for path in (ROOT / "conf" / group).glob("*.yaml"):
            assert f"| `{group}={path.stem}` |" in text
    for comment in re.findall(r"^\w.*?  # (.*)$", conf_text("train").partition("\n\n")[2], re.MULTILINE):
        assert comment.startswith("what holds") or pages.cell(comment) in text


def test_every_module_has_a_place_in_the_reference() -> None:
    listed = {name for text in MADE.values() for name in re.findall(r"^::: (\S+)$", text, re.MULTILINE)}
    modules = {
        ".".join((top, *path.relative_to(folder).with_suffix("").parts)).removesuffix(".__init__")
        for top, folder in pages.PLACES.items()
        for path in folder.rglob("*.py")
    }
    assert listed == modules


def test_every_name_of_trl_is_answered() -> None:
    text = "\n".join(table() for table in pages.TABLES.values())
    for known in (*ELSEWHERE.values(), *NONE.values(), *pages.TRL.values()):
        assert all(f"`{name}`" in text for name in known.split())
    assert "| `gradient_accumulation_steps` | Gradients accumulate by themselves" in text
    assert set(re.findall(r"^<!-- .* -->$", WRITTEN["coming_from_trl.md"], re.MULTILINE)) == set(pages.TABLES)


def test_commands_are_shown_as_commands() -> None:
    text = WRITTEN["tutorials/own_reward.md"]
    found = [command[1] for command in pages.COMMANDS.finditer(text)]
    assert found == ["choosy"] * 3, "opening fences alone"


def texts() -> Iterator[str]:
    """The texts in the sources; what is filled in is `...`."""
    for folder in pages.PLACES.values():
        for path in sorted(folder.rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.JoinedStr):
                    parts = [str(part.value) if isinstance(part, ast.Constant) else "..." for part in node.values]
                    yield "".join(parts)
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    yield re.sub(r"%[sd]|\{\w*\}", "...", node.value)


def test_the_messages_of_troubleshooting_are_ours() -> None:
    said = "\n".join(texts())
    quoted = re.findall(r"^\| `([^`]+)` \|", WRITTEN["troubleshooting.md"], re.MULTILINE)
    assert len(quoted) > 30
    missing = [message for message in quoted if any(part.strip(" .,;") not in said for part in message.split("..."))]
    assert missing == []
