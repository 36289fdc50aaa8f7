"""A judge or an editor that takes no connection is noticed before a run."""

from __future__ import annotations

import logging
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from choosy.labeling.judge.reachable import refuse_silent_endpoints


@pytest.fixture
def listening() -> Iterator[str]:
    """The address of a server that takes connections and never answers a request."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}/v1"


@pytest.fixture
def silent() -> str:
    """An address at which nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return f"http://127.0.0.1:{server.getsockname()[1]}/v1"


def config(ledger: Path, **labels: Any) -> dict[str, Any]:
    return {"data": {"run": {"labels": {"ledger": str(ledger), "editor": None, **labels}}}}


def test_an_endpoint_that_takes_a_connection_is_sent_nothing_and_taken(listening, tmp_path):
    refuse_silent_endpoints(config(tmp_path / "ledger", labeler={"base_url": listening}))
    refuse_silent_endpoints(config(tmp_path / "ledger", labeler={"_target_": "choosy.labeling.vader.Vader"}))


@pytest.mark.parametrize(
    ("place", "named"),
    [
        ("labeler", "labeler.base_url"),
        ("editor", "editor.base_url"),
        ("evaluation", "labels.evaluation.base_url"),
    ],
)
def test_one_that_takes_none_is_refused_by_what_is_typed(place, named, silent, tmp_path):
    with pytest.raises(ValueError, match=rf"^{silent} of {named} takes no connection \(connection refused\): start"):
        refuse_silent_endpoints(config(tmp_path / "ledger", **{place: {"base_url": silent}}))


def test_each_labeler_inside_a_labeler_is_asked(listening, silent, tmp_path):
    members = [{"base_url": listening}, {"wrapped": {"base_url": silent}}]
    with pytest.raises(ValueError, match=r"of labeler\.members\.1\.wrapped\.base_url takes no connection"):
        refuse_silent_endpoints(config(tmp_path / "ledger", labeler={"members": members}))


def test_a_proxy_is_asked_in_place_of_the_address(listening, silent, tmp_path):
    through = {"base_url": "http://judge.invalid/v1", "endpoint": {"proxy": listening}}
    refuse_silent_endpoints(config(tmp_path / "ledger", labeler=through))
    through["endpoint"] = {"proxy": silent}
    with pytest.raises(ValueError, match=r"the proxy http\S+ of labeler\.endpoint\.proxy takes no connection"):
        refuse_silent_endpoints(config(tmp_path / "ledger", labeler=through))


def test_a_run_whose_ledger_may_hold_the_labels_is_warned(silent, tmp_path, caplog):
    (tmp_path / "ledger").touch()
    with caplog.at_level(logging.WARNING):
        refuse_silent_endpoints(config(tmp_path / "ledger", labeler={"base_url": silent}))
    assert "takes no connection" in caplog.text
