"""The HTML report: its numbers, its safety against what stands in logs, partial runs, and a real browser."""

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from runs import ingest, pair, read_rows
from scipy import stats

from celr_ray import TrainingPipeline, storage
from celr_ray.errors import OutputError
from celr_ray.report import run_report
from celr_ray.report.collect import collect_run
from celr_ray.report.excerpts import MAX_CHARACTERS, mark_differences, parse_tool_calls, show_message
from celr_ray.report.plots import shorten_labels
from celr_ray.report.statistics import estimate_auc, estimate_kappa, estimate_proportion
from celr_ray.run_folder import manifest_uri, part_name, plan_uri, read_manifests
from celr_ray.schema import JUDGMENT_SCHEMA, KTO_SCHEMA, PAIR_SCHEMA, TASK_SCHEMA, TRAJECTORY_SCHEMA
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


def test_secrets_of_rejected_records_are_not_shown(tmp_path):
    key = "AKIA" + "Q7WERTYUIOPASDFG"
    (tmp_path / "bad.jsonl").write_text(json.dumps({key: 1, "note": f"use {key}"}))
    ingest(tmp_path / "run", tmp_path / "bad.jsonl")
    text = read_report(tmp_path / "run")
    assert key not in text
    assert text.count("[REDACTED AWS Access Key]") >= 3


def test_no_run_is_an_error(tmp_path):
    with pytest.raises(OutputError, match="holds no run"):
        run_report(str(tmp_path))


def commit(run, stage, index=0, n_units=1, settings=None, **manifest):
    """Write a stage's plan and one manifest by hand."""
    storage.write_json(plan_uri(run, stage), {"settings": settings or {}, "fingerprint": "0", "n_units": n_units})
    storage.write_json(manifest_uri(run, stage, index), {"index": index, **manifest})


def write_part(run, folder, rows, schema):
    """Write part 0 of a table; columns that a row lacks are null, empty or zero."""
    blank = {field.name: None if field.nullable else _blank(field.type) for field in schema}
    table = pa.Table.from_pylist([{**blank, **row} for row in rows], schema=schema)
    storage.write_parquet(storage.join(run, folder, part_name(0)), table)


def _blank(kind):
    if pa.types.is_list(kind):
        return []
    return "" if pa.types.is_string(kind) else False if pa.types.is_boolean(kind) else 0


def trajectory(number, **columns):
    return {"trajectory_id": f"run-{number}", "task_id": f"s/d/{number % 2}", "source_format": "f", **columns}


@pytest.fixture
def by_hand(tmp_path):
    """Four distinct runs of two tasks, one of them twice, and one rejected record."""
    run = str(tmp_path / "by_hand")
    rows = [
        trajectory(0, model="m", success=True, cost_usd=0.5, budget_limit_usd=1.0, success_score=1.0),
        trajectory(1, model="m", success=False, cost_usd=1.5, success_score=0.0),
        trajectory(2, model="m", success=None, n_retries=0, efficiency_score=1.0),
        trajectory(3, success=True, success_score=1.0),
        trajectory(3, success=True, success_score=1.0),
    ]
    write_part(run, "trajectories", rows, TRAJECTORY_SCHEMA)
    line = {
        "file": "a.jsonl",
        "offset": 7,
        "line": 2,
        "index": None,
        "reason": "no: \ud800",
        "raw": "<i>",
        "raw_bytes": 3,
    }
    storage.write_bytes(storage.join(run, "quarantine", part_name(0, "jsonl")), json.dumps(line).encode() + b"\n")
    settings = {"judge": {"hf_token": "hidden-value", "model_source": "shown-value"}}
    commit(run, "ingest", settings=settings, rows_in=6, rows_out=5, rejected=1, row_groups=[[0, 5]])
    return run


def test_numbers_of_a_run_made_by_hand(by_hand):
    data = collect_run(by_hand)
    assert data.verdict == "4 runs of 2 tasks → no pairs built yet; 1 rejected; 1 exact duplicate left out"
    assert [(check.text, check.holds) for check in data.checks] == [
        ("6 records in = 5 trajectories + 1 rejected", True),
        ("5 trajectories = 4 distinct runs + 1 exact duplicates", True),
    ]
    first, second = data.sources.rows
    assert (first.model, first.n_runs, first.n_success, first.success_rate.n) == ("m", 3, 1, 2)
    assert (first.mean_cost_usd, first.n_cost) == (1.0, 2)
    assert (first.n_no_budget, first.n_no_cost, first.n_no_retries, first.n_no_outcome) == (2, 1, 2, 1)
    assert (second.model, second.n_runs, second.mean_cost_usd) == (None, 1, None)
    assert data.total.n_runs == 4
    counted = {histogram.name: (histogram.n, histogram.n_null) for histogram in data.scores}
    assert counted["success_score"] == (3, 1)
    assert counted["efficiency_score"] == (1, 3)
    assert counted["cost_score"] == (0, 4)


def test_what_the_page_says_of_a_run_made_by_hand(by_hand):
    text = read_report(by_hand)
    assert "null in all 4 runs, so there is nothing to plot" in text
    assert "&lt;i&gt;" in text
    assert "<i>" not in text
    assert "shown-value" in text
    assert "hidden-value" not in text
    assert "No judge was run." in text


def test_a_sum_that_does_not_hold_and_an_unfinished_stage_are_said(by_hand):
    commit(by_hand, "ingest", n_units=3, rows_in=9, rows_out=5, rejected=1, row_groups=[[0, 5]])
    data = collect_run(by_hand)
    assert [check.holds for check in data.checks] == [False, True]
    assert data.verdict.endswith("unfinished: ingest 1 of 3 units")
    assert 'class="broken"' in read_report(by_hand)


def test_agreement_of_the_judge(by_hand):
    scores = {0: 0.9, 1: 0.2, 2: 0.7, 3: None}
    rows = [
        {
            "trajectory_id": f"run-{i}",
            "status": "ok" if score else "garbled",
            "judge_score": score,
            "cut_tokens": 10 * i,
        }
        for i, score in scores.items()
    ]
    write_part(by_hand, "judgments", rows, JUDGMENT_SCHEMA)
    commit(by_hand, "judge", rows_in=5, rows_out=4, duplicates=1, status={"ok": 3, "garbled": 1})
    data = collect_run(by_hand)
    judge = data.judge
    assert dict(judge.statuses) == {"ok": 3, "garbled": 1, "too_long": 0, "empty": 0, "engine_error": 0}
    assert (judge.n_cut, judge.cut_tokens, judge.max_cut_tokens) == (3, 60, 30)
    assert (judge.auc.value, judge.auc.n, judge.kappa.value) == (1.0, 2, 1.0)
    assert judge.auc.ci_low < 0.5
    assert judge.meaning.startswith("No better than chance")
    assert {name: sum(counts) for name, counts in judge.by_outcome} == {
        "run succeeded": 1,
        "run failed": 1,
        "outcome unknown": 1,
    }
    assert all(check.holds for check in data.checks)


def test_many_pairs_are_sampled_capped_and_not_embedded(by_hand):
    def size_with(n_tasks):
        pairs = [
            {"pair_id": f"{i:06}", "task_id": f"s/d/{i}", "pair_type": ("dpo", "spin")[i % 2], "level": "step"}
            for i in range(n_tasks)
        ]
        write_part(by_hand, "pairs", pairs, PAIR_SCHEMA)
        write_part(by_hand, "tasks", [{"task_id": pair["task_id"]} for pair in pairs], TASK_SCHEMA)
        write_part(by_hand, "unpaired", [], KTO_SCHEMA)
        commit(by_hand, "pair", rows_in=5, rows_out=4, duplicates=1)
        return len(read_report(by_hand))

    small, large = size_with(200), size_with(20_000)
    assert abs(large - small) < 2_000
    pairs = collect_run(by_hand).pairs
    assert (pairs.n_pairs, len(pairs.top_tasks), pairs.n_rest_tasks, pairs.n_rest_pairs) == (20_000, 40, 19_960, 19_960)
    assert sum(pairs.rest.counts.values()) == pytest.approx(1)
    assert [view.pair_type for view in pairs.samples] == ["dpo", "spin"] * 5
    assert len({view.task_id for view in pairs.samples}) == 10


def test_auc_interval_covers_where_runs_of_a_task_are_alike():
    """400 simulated logs of 40 tasks with 4 runs each; intervals over runs as independent cover 72 %."""
    rng = np.random.default_rng(1)
    tasks = np.repeat(np.arange(40), 4)
    n_covered = 0
    for _ in range(400):
        labels = np.repeat(rng.random(40) < 0.5, 4)
        scores = np.repeat(rng.normal(size=40), 4) + 0.5 * rng.normal(size=160) + labels
        estimate = estimate_auc(scores, labels, tasks)
        n_covered += estimate.ci_low <= stats.norm.cdf(1 / np.sqrt(2 * 1.25)) <= estimate.ci_high
    assert n_covered / 400 > 0.92


def test_kappa_by_hand():
    predicted = np.array([1] * 20 + [1] * 5 + [0] * 10 + [0] * 15, dtype=bool)
    actual = np.array([1] * 20 + [0] * 5 + [1] * 10 + [0] * 15, dtype=bool)
    kappa = estimate_kappa(predicted, actual, np.arange(50))
    assert kappa.value == pytest.approx((0.7 - 0.5) / (1 - 0.5))
    assert kappa.ci_low < 0.4 < kappa.ci_high
    assert estimate_kappa(np.ones(3, dtype=bool), np.ones(3, dtype=bool), np.arange(3)) is None


WORDS = st.lists(st.sampled_from(["a", "b", " ", "\n", "long-word"]), max_size=30).map("".join)


@given(a=WORDS, b=WORDS)
def test_marks_lose_no_text(a, b):
    marks = mark_differences(a, b)
    if marks is not None:
        assert ["".join(segment.text for segment in side) for side in marks] == [a, b]


def test_a_long_message_shows_its_first_difference():
    same = "word " * 2000
    marks, _ = mark_differences(same + "left" + same, same + "right" + same)
    message = {"role": "user", "content": "", "name": None, "tool_call_id": None, "tool_calls": None}
    view = show_message(message, marks)
    shown = "".join(segment.text for segment in view.segments)
    assert len(shown) == MAX_CHARACTERS
    assert any(segment.is_changed for segment in view.segments)
    assert view.n_before + len(shown) + view.n_after == 2 * len(same) + 4


@pytest.mark.parametrize("text", ["{", "null", "3", '["x"]', '[{"function": {}}]', "[" * 5000])
def test_tool_calls_of_another_shape_are_shown_as_they_stand(text):
    assert parse_tool_calls(text)[0].arguments == text[:MAX_CHARACTERS]


def test_labels_drop_what_all_tasks_share():
    assert shorten_labels(["s/d/1", "s/d/22"]) == ("s/d/", ["1", "22"])
    assert shorten_labels(["s/d/1", "t/d/1"]) == ("", ["s/d/1", "t/d/1"])
    assert shorten_labels(["x" * 60])[1] == ["xxxxxxxxxxxx…xxxxxxxxxxxx"]


def open_in_browser(uri, profile):
    """Return the page after its scripts ran, and what they wrote to the console."""
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"]
    flags += ["--disable-background-networking", "--disable-component-update", f"--user-data-dir={profile}"]
    flags += ["--enable-logging=stderr", "--virtual-time-budget=20000", "--dump-dom"]
    command = ["chromium", *flags, f"file://{uri}"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return result.stdout, [line for line in result.stderr.splitlines() if "CONSOLE" in line]


needs_browser = pytest.mark.skipif(
    shutil.which("chromium") is None, reason="chromium is not installed (apt-get install chromium)"
)


@needs_browser
def test_a_real_browser_draws_every_plot_and_runs_nothing_of_the_logs(finished, tmp_path):
    uri = run_report(str(finished))
    page, console = open_in_browser(uri, tmp_path / "profile")
    n_figures = Path(uri).read_text(encoding="utf-8").count("data-figure=")
    assert 'data-plots="drawn"' in page
    assert n_figures >= 5
    assert len(re.findall(r'<svg class="main-svg"[^>]*width="[1-9]', page)) >= n_figures
    assert "<title>owned" not in page
    assert console == []


@needs_browser
def test_the_browser_check_notices_errors_and_the_policy_stops_foreign_scripts(finished, tmp_path):
    text = Path(run_report(str(finished))).read_text(encoding="utf-8")
    foreign = tmp_path / "foreign.html"
    foreign.write_text(text.replace("</main>", "<script>document.title = 'owned'</script></main>"), encoding="utf-8")
    page, console = open_in_browser(foreign, tmp_path / "profile")
    assert "<title>owned" not in page
    assert any("Content Security Policy" in line for line in console)


def test_storage_of_the_report_is_one_file(finished):
    run_report(str(finished))
    assert [file.uri.rsplit("/", 1)[-1] for file in storage.list_files(str(finished / "report"))] == ["index.html"]
