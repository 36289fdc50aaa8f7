"""Any text comes back from CSV, and no text is a formula in it."""

from __future__ import annotations

import csv
import io

from hypothesis import given, settings
from hypothesis import strategies as st

from choosy.labeling.exchange.rows import from_csv, to_csv

TEXT = st.text(st.sampled_from("=+-@'\"\r\n\t,; a\x00\x1b\u2028"), min_size=1) | st.text(
    st.characters(exclude_categories=["Cs"]), min_size=1
)


@settings(max_examples=10_000, deadline=None, database=None)
@given(TEXT.filter(lambda text: "\x00" not in text))
def test_any_text_comes_back_and_is_no_formula(text: str) -> None:
    written = to_csv([{"prompt": text, "messages": []}], ("prompt", "messages"))
    ((_, read),) = from_csv(written)
    assert read()["prompt"] == text
    cell = list(csv.reader(io.StringIO(written, newline="")))[1][0]
    assert not cell.startswith(("=", "+", "-", "@", "\t", "\r"))
