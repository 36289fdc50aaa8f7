"""The pages of a run and of a sweep from a phone's width to a desk's, in light and dark, by mouse and by keyboard."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from selenium.webdriver.common.keys import Keys
from test_human_page_in_a_browser import Page, page, pytestmark, until

from choosy.reporting.compare import UnitPrices, compare, write_comparison
from choosy.reporting.report import write_report
from choosy.reporting.summary import read_run

__all__ = ["page", "pytestmark"]  # the fixture, and the skip where there is no browser

MEASURE = """
const boxes = (selector) => [...document.querySelectorAll(selector)].map((found) => found.getBoundingClientRect());
const lines = (found) => found.offsetHeight / parseFloat(getComputedStyle(found).lineHeight);
const drawn = document.querySelector("svg text");
return {
  window: document.documentElement.clientWidth, scroll: document.documentElement.scrollWidth,
  lines: [...document.querySelectorAll(".tiles b")].map(lines),
  outside: [...document.querySelectorAll(".tiles div")].filter((tile) => tile.scrollWidth > tile.clientWidth).length,
  writing: drawn.getBoundingClientRect().height, charts: boxes("svg").filter((box) => box.width).length,
  bar: boxes(".bar div").reduce((sum, part) => sum + part.width, 0), body: boxes("h1")[0].width,
  paper: getComputedStyle(document.body).backgroundColor, ink: getComputedStyle(drawn).fill,
}
"""
EVIL = "</script><script>document.title = 'taken'</script><img src=x onerror=\"document.title = 'taken'\">"


def emulate(page: Page, scheme: str, width: int) -> None:
    feature = {"name": "prefers-color-scheme", "value": scheme}
    page.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
    page.widen(width)


def looks(page: Page, path: Path, measure: str, widths: Sequence[int]) -> Iterator[tuple[str, Any]]:
    """What a script finds on a page in light and dark, at each width; pictures go where CHOOSY_PICTURES says."""
    for scheme, width in product(("light", "dark"), widths):
        emulate(page, scheme, width)
        page.open(f"file://{path}")
        if folder := os.environ.get("CHOOSY_PICTURES"):
            page.driver.save_screenshot(f"{folder}/{path.stem}-{width}-{scheme}.png")
        yield scheme, page.driver.execute_script(measure)


def test_the_report_is_legible_at_any_width(play: Any, tmp_path: Path, page: Page) -> None:
    """Pictures of each width and scheme go to the folder that CHOOSY_PICTURES names."""
    rows = [{"prompt": f"Day {n}?", "chosen": "Good and long.", "rejected": "Bad!"} for n in range(6)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = ["data=offline", "labeler=dataset"]
    given += [f"data.{name}={tmp_path}/pairs.jsonl" for name in ("train", "heldout_pairs")]
    run = play(*given, "data.heldout=null", "rounds=1").run_dir
    for scheme, found in looks(page, run / "report.html", MEASURE, (400, 800, 1100, 1600)):
        assert found["scroll"] <= found["window"], "the page itself is never moved sideways"
        assert len(found["lines"]) >= 5
        assert found["lines"] == [pytest.approx(1, abs=0.1)] * len(found["lines"]), "a number takes one line"
        assert found["outside"] == 0
        assert found["writing"] >= 11, "the writing in the charts can be read"
        assert found["charts"] >= 4
        assert found["bar"] == pytest.approx(found["body"], abs=2)
        paper, ink = (sum(map(int, found[name][4:-1].split(","))) for name in ("paper", "ink"))
        assert (paper < ink) == (scheme == "dark")


COMPARED = """
const bright = (color) => color.match(/\\d+/g).slice(0, 3).reduce((sum, part) => sum + Number(part), 0);
const style = (selector) => getComputedStyle(document.querySelector(selector));
const pictures = [...document.images];
return {
  window: document.documentElement.clientWidth, scroll: document.documentElement.scrollWidth,
  drawn: pictures.map((picture) => picture.complete && picture.naturalWidth > 0 && picture.width > 100),
  paper: bright(style("body").backgroundColor), ink: bright(style(".lead").color),
  turned: style("img").filter !== "none", rows: document.querySelectorAll(".arms").length,
}
"""


def test_the_comparison_is_legible_at_any_width(play: Any, tmp_path: Path, page: Page) -> None:
    for selector in ("random_pairs", "certainty"):
        for seed in (0, 1) if selector == "certainty" else (0, 1, 2):
            words = [f"selector={selector}", "data.responses=3", f"seed={seed}", "rounds=1"]
            run = play(*words, name=f"sweep/{selector}{seed}").run_dir
            (run / ".hydra").mkdir(exist_ok=True)
            more = ", callbacks.certainty.fraction=0.5, labels.budget=500" if selector == "certainty" else ""
            (run / ".hydra" / "overrides.yaml").write_text(f"[selector={selector}, seed={seed}{more}]")
    comparison = compare(tmp_path / "sweep", prices=UnitPrices(0.05, 2.0))
    written = write_comparison(comparison, tmp_path / "sweep")
    for scheme, found in looks(page, written, COMPARED, (400, 1100)):
        assert found["scroll"] <= found["window"], "the page itself is never moved sideways"
        assert found["drawn"] == [True] * 5, "labels, seconds, tokens, money, distance"
        assert found["rows"] == 5
        assert (found["paper"] < found["ink"]) == found["turned"] == (scheme == "dark")
        assert "labels.budget=500 (2 seeds)" in page.text(".key")
    assert page.log("browser") == []
    assert [*page.elsewhere("file:")] == []


def test_prompts_are_searched_ordered_and_opened_by_keyboard(play: Any, tmp_path: Path, page: Page) -> None:
    prompts = ["Tell me about tea.", f"Tell me about rain. {EVIL}", "Tell me about bread."]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps({"prompt": text}) + "\n" for text in prompts))
    given = [f"data.{name}={tmp_path}/prompts.jsonl" for name in ("train", "heldout")]
    given += ["selector=random_pairs", "callbacks.random_pairs.fraction=1.0", "data.heldout_limit=3"]
    one, two = (play(*given, f"seed={seed}", name=f"seed{seed}").run_dir for seed in (0, 1))
    write_report(read_run(one), read_run(two))
    emulate(page, "dark", 1100)
    page.open(f"file://{one}/report.html")
    driver = page.driver

    def press(*keys: str) -> None:
        driver.switch_to.active_element.send_keys(*keys)

    def shown() -> list[str]:
        return [words.text for words in page.all("#list details:not([hidden]) .words")]

    assert page.text("#count") == "6 of 6", "three that were trained on, three held out"
    press("/")
    assert driver.switch_to.active_element.get_attribute("id") == "search"
    press("RAIN tell")
    assert page.text("#count") == "2 of 6"
    assert all(words.startswith("Tell me about rain. </script>") for words in shown())
    press(Keys.ARROW_DOWN)
    press(Keys.ENTER)
    until(lambda: page.visible("#list details[open] .candidates"), "opened prompt")
    _, role, reward, *logps, _ = (cell.text for cell in page.all("#list details[open] tr:has(.chosen) td")[:6])
    assert role == "chosen"
    assert float(reward) >= 0
    assert all(float(logp) < 0 for logp in logps), "log-probs of the policy and of the reference"
    press(Keys.ENTER)
    assert not page.visible("#list details[open] .candidates")
    press(Keys.ARROW_UP)
    press(Keys.ESCAPE)
    assert page.text("#count") == "6 of 6"
    for option in page.all("#order option, #split option"):
        if option.get_attribute("value") in ("gap", "heldout"):
            option.click()
    assert page.text("#count") == "3 of 6"
    gaps = driver.execute_script("return [...document.querySelectorAll('#list details')].map((row) => row.dataset.gap)")
    known = [float(gap) for gap in gaps if gap is not None]
    assert known == sorted(known, reverse=True)
    assert gaps[len(known) :] == [None] * (len(gaps) - len(known))

    legend, *_ = page.all(".legend")
    assert legend.text.split() == [one.name, two.name]
    dashes = "return [...document.querySelectorAll('.legend polyline')].map((x) => getComputedStyle(x).strokeDasharray)"
    assert len({*driver.execute_script(dashes)}) == 2, "not by color alone"
    panels = [panel.is_displayed() for panel in page.all("[data-axis]")]
    assert panels == [True] + [False] * (len(panels) - 1)
    page.all("[name=axis]")[0].send_keys(Keys.ARROW_RIGHT)
    assert [panel.is_displayed() for panel in page.all("[data-axis]")][:2] == [False, True]
    assert driver.title.startswith("Choosy run ")
    assert page.log("browser") == []
    assert [*page.elsewhere("file:")] == []
