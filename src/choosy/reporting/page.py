"""Writes the pages of a run and of a sweep, which need no other file and no network."""

from __future__ import annotations

import base64
import csv
import json
import math
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined

from choosy.files import replacing
from choosy.reporting.curves import curves
from choosy.reporting.display import duration
from choosy.reporting.phases import PHASES
from choosy.reporting.summary import HEADINGS, RunSummary, as_text

COLORS = dict(zip(PHASES, ("#2563eb", "#0891b2", "#7c3aed", "#db2777", "#d97706", "#65a30d"), strict=True))
INDEX_COLUMNS = ("job", "overrides", "reward_initial", "reward_final", "win_rate", "labels", "tokens", "seconds")


def write_report(run: RunSummary) -> None:
    """Write `curves.png` and `report.html` into the folder of a run."""
    drawing, seconds = curves(run), run.phase_seconds()
    with replacing(run.folder / "curves.png") as unfinished:
        unfinished.write_bytes(drawing)
    _write(
        "report.html.j2",
        run.folder / "report.html",
        run=run,
        title=f"Choosy run {run.folder.resolve().name}",
        headings=HEADINGS,
        curves=base64.b64encode(drawing).decode(),
        seconds=seconds,
        total=math.fsum(seconds.values()),
        colors=COLORS,
    )


def write_index(sweep_dir: str | Path) -> Path:
    """Write `index.html` and the returned `index.csv` for a sweep: a line for each finished run below the folder."""
    folder = Path(sweep_dir)
    if not folder.is_dir():
        raise ValueError(f"Wanted the folder of a sweep; there is no folder {folder}.")
    files = sorted(folder.rglob("summary.json"), key=lambda path: _by_number(path.parent.name))
    jobs = [_job(path.parent, folder) for path in files]
    with replacing(folder / "index.csv") as unfinished, unfinished.open("w", newline="") as file:
        writer = csv.DictWriter(file, INDEX_COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(jobs)
    _write("index.html.j2", folder / "index.html", title=f"Choosy sweep {folder.resolve().name}", jobs=jobs)
    return folder / "index.csv"


def _write(template: str, path: str | Path, **values: Any) -> None:
    pages = Environment(
        loader=PackageLoader("choosy.reporting"),
        autoescape=True,  # whatever a model wrote stays text
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    pages.filters.update(as_text=as_text, duration=duration)
    with replacing(path) as unfinished:
        unfinished.write_text(pages.get_template(template).render(values), encoding="utf-8")


def _job(run_dir: Path, sweep_dir: Path) -> dict[str, Any]:
    numbers = json.loads((run_dir / "summary.json").read_text())
    typed = run_dir / ".hydra" / "overrides.yaml"
    return {
        "job": run_dir.relative_to(sweep_dir).as_posix(),
        "overrides": " ".join(yaml.safe_load(typed.read_text()) or ()) if typed.exists() else "",
        "reward_initial": numbers["reward"]["initial"],
        "reward_final": numbers["reward"]["final"],
        "win_rate": numbers["win_rate"],
        "labels": numbers["labels"]["spent"],
        "tokens": numbers["tokens_generated"],
        "seconds": numbers["seconds"]["total"],
    }


def _by_number(name: str) -> tuple[float, str]:
    return (int(name) if name.isdigit() else math.inf, name)
