"""The HTML report: its numbers, its safety against what stands in logs, partial runs, and a real browser."""

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from runs import ingest, pair, read_rows
from scipy import stats

from celr_ray import TrainingPipeline, storage
from celr_ray.errors import OutputError
from celr_ray.report import run_report
from celr_ray.report.collect import collect_run
from celr_ray.report.statistics import estimate_auc, estimate_proportion
from celr_ray.stage import read_manifests
from celr_ray.testing import FakeJudge

ATTACK = '</script><script>document.title="owned"</script><img src=x onerror=document.title="owned">'


class Page(HTMLParser):
    """Gathers what a browser would load, the ids, and checks that tags are closed in order."""

    VOID = frozenset(("meta", "br", "img", "line", "circle", "link", "hr", "input", "path", "rect", "use"))

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.ids: list[str] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        if tag in ("script", "img", "iframe", "source", "embed") and values.get("src"):
            self.loads.append(values["src"])
        if tag == "link" and values.get("href"):
            self.loads.append(values["href"])
        if values.get("id"):
            self.ids.append(values["id"])
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        pass

    def handle_endtag(self, tag):
        if tag in self.open:
            while self.open.pop() != tag:
                pass


def read_report(run) -> str:
    return Path(run_report(str(run))).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def finished(tmp_path_factory, demo_logs):
    """A whole run over the demo logs, with two damaged lines and texts that attack the page."""
    folder = tmp_path_factory.mktemp("report")
    logs = folder / "logs"
    shutil.copytree(demo_logs, logs)
    lines = [json.loads(line) for line in (demo_logs / "celr_benchmark.jsonl").read_text().splitlines()]
    for line in lines[:6]:
        line["task_id"] = "aaa_attack"
        line["prompt"] += ATTACK
        line["output"] += ATTACK
    attack = [json.dumps(line) for line in lines[:6]] + ['{"broken": ' + ATTACK, "{}"]
    (logs / "attack.jsonl").write_text("\n".join(attack))
    job = {"logs": [str(logs)], "out": str(folder / "run"), "runtime": {"executor": "loop"}}
    TrainingPipeline(job, FakeJudge()).run()
    return folder / "run"


def test_numbers_equal_the_tables(finished):
    data = collect_run(str(finished))
    runs, pairs = read_rows(finished), read_rows(finished, "pairs")
    assert data.n_runs == len(runs) == 98
    assert data.n_tasks == len({row["task_id"] for row in runs}) == 24
    assert data.quarantine.n_rejected == data.quarantine.n_counted == 2
    assert all(check.holds for check in data.checks)
    assert data.verdict == f"98 runs of 24 tasks → {len(pairs)} pairs; 2 rejected"
    known = [row["success"] for row in runs if row["success"] is not None]
    assert data.total.success_rate.value == pytest.approx(sum(known) / len(known))
    assert sum(row.n_runs for row in data.sources.rows) == 98
    for histogram in data.scores:
        values = [row[histogram.name] for row in runs if row[histogram.name] is not None]
        assert list(histogram.counts) == np.histogram(values, bins=len(histogram.counts), range=(0, 1))[0].tolist()


def test_wilson_interval_equals_scipy():
    for hits, n in ((0, 5), (3, 7), (45, 92), (5, 5)):
        ours = estimate_proportion(hits, n)
        theirs = stats.binomtest(hits, n).proportion_ci(method="wilson")
        assert (ours.ci_low, ours.ci_high) == pytest.approx((theirs.low, theirs.high), abs=1e-9)


def test_auc_equals_mann_whitney():
    rng = np.random.default_rng(0)
    scores, labels = np.round(rng.random(60), 1), rng.random(60) < 0.4
    u = stats.mannwhitneyu(scores[labels], scores[~labels]).statistic
    ours = estimate_auc(scores, labels, np.arange(60))
    assert ours.value == pytest.approx(u / (labels.sum() * (~labels).sum()))
    assert ours.ci_low < ours.value < ours.ci_high


def test_page_is_whole_self_contained_and_has_every_section(finished):
    page = Page(read_report(finished))
    assert page.loads == []
    assert page.open in ([], ["html"])
    assert len(page.ids) == len(set(page.ids))
    assert {"flow", "sources", "scores", "judge", "pairs", "read", "quarantine", "exports", "settings"} <= set(page.ids)


def test_nothing_in_a_log_becomes_markup(finished):
    text = read_report(finished)
    assert "owned" in text
    assert '<script>document.title="owned"' not in text
    assert "<img src=x" not in text
    scripts = re.findall(r"<script[^>]*>", text)
    assert all("application/json" in script or script == "<script>" for script in scripts)
    assert "default-src 'none'" in text


def test_at_most_ten_pairs_spread_over_types(finished):
    data = collect_run(str(finished))
    assert len(data.pairs.samples) == 10
    assert {view.pair_type for view in data.pairs.samples} == {"dpo", "self_reward"}


def test_same_run_gives_the_same_bytes(finished):
    assert read_report(finished) == read_report(finished)


def test_partial_runs(tmp_path, demo_logs):
    ingest(tmp_path / "run", demo_logs)
    text = read_report(tmp_path / "run")
    assert "no judge was run" in text.lower()
    assert Page(text).loads == []
    pair(tmp_path / "run")
    assert "19 pairs" in read_report(tmp_path / "run")


def test_a_run_in_which_everything_was_rejected(tmp_path):
    (tmp_path / "bad.jsonl").write_text("nothing\nat all\n")
    ingest(tmp_path / "run", tmp_path / "bad.jsonl")
    assert sum(m["rejected"] for m in read_manifests(str(tmp_path / "run"), "ingest").values()) == 2
    assert "2 rejected" in read_report(tmp_path / "run")


def test_no_run_is_an_error(tmp_path):
    with pytest.raises(OutputError, match="holds no run"):
        run_report(str(tmp_path))


@pytest.mark.skipif(shutil.which("chromium") is None, reason="chromium is not installed (apt-get install chromium)")
def test_a_real_browser_draws_every_plot_and_runs_nothing_of_the_logs(finished, tmp_path):
    uri = run_report(str(finished))
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"]
    flags += ["--disable-background-networking", "--disable-component-update", f"--user-data-dir={tmp_path}"]
    command = [
        "chromium",
        *flags,
        "--enable-logging=stderr",
        "--virtual-time-budget=20000",
        "--dump-dom",
        f"file://{uri}",
    ]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert 'data-plots="drawn"' in result.stdout
    assert result.stdout.count("main-svg") >= 6
    assert "<title>owned" not in result.stdout
    console = [line for line in result.stderr.splitlines() if "CONSOLE" in line]
    assert console == []


def test_storage_of_the_report_is_one_file(finished):
    run_report(str(finished))
    assert [file.uri.rsplit("/", 1)[-1] for file in storage.list_files(str(finished / "report"))] == ["index.html"]
