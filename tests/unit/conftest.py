"""A ledger, and buyers on it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:  # the process that only hands tests out to workers needs no torch
    from choosy.labeling.buyer import LabelBuyer
    from choosy.labeling.protocols import Labeler


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "deep" / "ledger.sqlite"


@pytest.fixture
def buyer(path: Path) -> Callable[..., LabelBuyer]:
    """A buyer that is open: buyer(labeler, run="a", budget=3)."""
    from toy_labelers import Lengths

    from choosy.labeling.buyer import LabelBuyer

    def opened(labeler: Labeler | None = None, run: str = "a", **options: Any) -> LabelBuyer:
        buyer = LabelBuyer(labeler or Lengths(), ledger=str(path), **options)
        buyer.open(run)
        return buyer

    return opened
