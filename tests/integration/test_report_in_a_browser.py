"""The report of a run at the widths of a phone, a tablet and a desk, in light and dark."""

from __future__ import annotations

import json
import os
from typing import Any

import pytest
from test_human_page_in_a_browser import Page, page, pytestmark

__all__ = ["page", "pytestmark"]  # the fixture, and the skip where there is no browser

MEASURE = """
const boxes = (selector) => [...document.querySelectorAll(selector)].map((found) => found.getBoundingClientRect());
const lines = (found) => found.offsetHeight / parseFloat(getComputedStyle(found).lineHeight);
return {
  window: document.documentElement.clientWidth, scroll: document.documentElement.scrollWidth,
  lines: [...document.querySelectorAll(".tiles b")].map(lines),
  outside: [...document.querySelectorAll(".tiles div")].filter((tile) => tile.scrollWidth > tile.clientWidth).length,
  picture: boxes("img")[0].width, body: boxes("h1")[0].width,
  bar: boxes(".bar div").reduce((sum, part) => sum + part.width, 0),
}
"""


def test_the_report_is_legible_at_any_width(play: Any, tmp_path: Any, page: Page) -> None:
    """Pictures of each width and scheme go to the folder that CHOOSY_PICTURES names."""
    rows = [{"prompt": f"Day {n}?", "chosen": "Good and long.", "rejected": "Bad!"} for n in range(6)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = ["data=offline", "labeler=dataset"]
    given += [f"data.{name}={tmp_path}/pairs.jsonl" for name in ("train", "heldout_pairs")]
    run = play(*given, "data.heldout=null", "rounds=1").run_dir
    for scheme in ("light", "dark"):
        feature = {"name": "prefers-color-scheme", "value": scheme}
        page.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
        for width in (400, 800, 1100, 1600):
            size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
            page.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
            page.open(f"file://{run}/report.html")
            found = page.driver.execute_script(MEASURE)
            if folder := os.environ.get("CHOOSY_PICTURES"):
                page.driver.save_screenshot(f"{folder}/report-{width}-{scheme}.png")
            assert found["scroll"] <= found["window"], "the page itself is never moved sideways"
            assert len(found["lines"]) >= 5
            assert found["lines"] == [pytest.approx(1, abs=0.1)] * len(found["lines"]), "a number takes one line"
            assert found["outside"] == 0
            assert found["picture"] >= 440, "the writing in the picture can be read"
            assert found["bar"] == pytest.approx(found["body"], abs=2)
