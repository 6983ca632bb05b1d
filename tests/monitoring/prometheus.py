"""What the tests of dashboards and alerts share."""

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MONITORING = ROOT / "k8s" / "monitoring"

needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool is not installed (Debian: prometheus)"
)
needs_prometheus = pytest.mark.skipif(
    shutil.which("prometheus") is None, reason="prometheus is not installed (Debian: prometheus)"
)


def rules() -> str:
    """The rule file, as the first lines of alerts.yaml say to make it."""
    _, _, spec = (MONITORING / "alerts.yaml").read_text().partition("\nspec:\n")
    return re.sub("^  ", "", spec, flags=re.MULTILINE)


def dashboard_queries(*, range_seconds: int = 600) -> Iterator[tuple[str, str]]:
    """Title of the panel, and query with the dashboard's variables replaced."""
    dashboard = json.loads((MONITORING / "dashboard.json").read_text())
    for panel in dashboard["panels"]:
        for target in panel.get("targets", ()):
            query = target["expr"].replace("$job", ".*").replace("$__rate_interval", "30s")
            yield panel["title"], query.replace("$__range", f"{range_seconds}s")
