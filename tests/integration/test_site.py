"""The documentation's site, built as `make docs` builds it: no broken link, and nothing fetched from elsewhere."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest
from tiny import ROOT

pytest.importorskip("mkdocs", reason="MkDocs is not installed, of the extra docs: make docs installs it")
pytest.importorskip("mkdocstrings", reason="mkdocstrings is not installed, of the extra docs: make docs installs it")

pytestmark = pytest.mark.slow


def test_the_site_is_whole_and_stands_alone(tmp_path):
    line = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    quiet = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(line, cwd=ROOT, env=quiet, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    pages = {path.relative_to(tmp_path / "site").as_posix(): path.read_text() for path in tmp_path.rglob("*.html")}
    assert {"index.html", "options.html", "reference/choosy.methods.html", "tutorials/first_run.html"} <= {*pages}
    assert 'id="choosy.methods.losses.SigmoidLoss"' in pages["reference/choosy.methods.html"]
    loaded = (
        r'<(?:script|img|iframe)[^>]* src="(?:https?:)?//|<link[^>]* rel="(?:stylesheet|preconnect)"[^>]* href="http'
    )
    assert [name for name, page in pages.items() if re.search(loaded, page)] == []
