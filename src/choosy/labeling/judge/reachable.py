"""Finds out before a run whether the endpoints of its labelers take a connection."""

from __future__ import annotations

import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from choosy.errors import name_typed_keys
from choosy.terminal import logger

log = logger(__name__)

CONNECT_SECONDS = 5.0


def refuse_silent_endpoints(config: Mapping[str, Any]) -> None:
    """Refuse a run whose judge or editor takes no connection, before anything is sampled; it sends no request.

    A run whose ledger is there is only warned: the ledger may hold all the labels that the run wants.

    Args:
        config: The resolved configuration, as Hydra composes it.
    """
    labels = config["data"]["run"]["labels"]
    known = Path(labels["ledger"]).exists()
    for place, endpoint in _endpoints(labels, "data.run.labels"):
        url = endpoint["base_url"]
        through = (endpoint.get("endpoint") or {}).get("proxy")
        if (why := _fault(through or url)) is None:
            continue
        what = f"the proxy {through} of labeler.endpoint.proxy" if through else f"{url} of labeler.base_url"
        error = ValueError(f"{what} takes no connection ({why}): start the server, or correct the address.")
        name_typed_keys(error, place)
        if not known:
            raise error
        log.warning("%s Until then only labels that are in %s can be used.", error, labels["ledger"])


def _endpoints(node: Any, place: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the parts of a configuration that name an address, each with its place."""
    if isinstance(node, Mapping) and isinstance(node.get("base_url"), str):
        yield place, node
    inside = node.items() if isinstance(node, Mapping) else enumerate(node) if isinstance(node, list) else ()
    for name, below in inside:
        yield from _endpoints(below, f"{place}.{name}")


def _fault(url: str) -> str | None:
    """Return why an address takes no connection; None if it takes one."""
    parts = urlsplit(url)
    try:
        port = parts.port or (443 if parts.scheme == "https" else 80)
        socket.create_connection((parts.hostname or "", port), CONNECT_SECONDS).close()
    except TimeoutError:
        return f"no answer within {CONNECT_SECONDS:g} s"
    except (OSError, ValueError) as error:
        return (getattr(error, "strerror", None) or str(error)).lower()
    return None
