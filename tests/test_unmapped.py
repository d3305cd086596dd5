"""What a log holds and no reader reads is named: in the counts, on stderr, at any depth."""

from __future__ import annotations

import json

import pytest

from celr_ray.config import IngestConfig, RuntimeConfig, ScoreConfig
from celr_ray.logs import unmapped
from celr_ray.logs.ingest import run_ingest
from celr_ray.logs.registry import READERS
from celr_ray.logs.unmapped import UnmappedFields, tell_unmapped
from celr_ray.report.collect import collect_run
from celr_ray.report.render import render_report

LOOP = RuntimeConfig(executor="loop")


def make_run(number: int, **more) -> dict:
    said = {"role": "assistant", "content": f"answer {number}", "annotations": [1], "thinking": None}
    return {"messages": [{"role": "user", "content": "?"}, said], "task_id": number, **more}


def test_fields_that_no_column_takes_are_counted_and_told(tmp_path, capsys):
    runs = [make_run(i, cost=0.5, usage={"tokens": 3}, labels=None) for i in range(3)] + [make_run(3, cost_usd=0.5)]
    (tmp_path / "runs.jsonl").write_text("".join(json.dumps(run) + "\n" for run in runs))
    report = run_ingest([str(tmp_path / "runs.jsonl")], str(tmp_path / "run"), IngestConfig(), ScoreConfig(), LOOP)
    found = {key: n for key, n in report.counts.items() if key.startswith(("unmapped.", "sampled."))}
    assert found == {
        "sampled.chat": 4,
        "unmapped.chat.cost": 3,
        "unmapped.chat.usage": 3,
        "unmapped.chat.messages[].annotations": 4,
    }
    told = "fields that went into no column: chat: cost, messages[].annotations, usage."
    assert told in capsys.readouterr().err
    again = run_ingest([str(tmp_path / "runs.jsonl")], str(tmp_path / "run"), IngestConfig(), ScoreConfig(), LOOP)
    assert again.counts == report.counts
    assert told not in capsys.readouterr().err


@pytest.mark.parametrize("name", list(READERS))
def test_every_reader_says_what_it_reads(name):
    assert READERS[name].record_type is not None


def test_only_the_first_records_and_so_many_names_are_looked_at(monkeypatch):
    monkeypatch.setattr(unmapped, "SAMPLE_ROWS", 2)
    monkeypatch.setattr(unmapped, "MAX_FIELDS", 3)
    fields = UnmappedFields()
    for number in range(5):
        fields.look(READERS["chat"], json.dumps(make_run(number, **{f"{number}-{k}": 1 for k in range(4)})).encode())
    assert fields.describe() == {
        "sampled": {"chat": 2},
        "unmapped": {"chat.0-0": 1, "chat.0-1": 1, "chat.0-2": 1},
    }


def test_damage_where_no_reader_looks_is_no_error():
    fields = UnmappedFields()
    fields.look(READERS["chat"], b'{"messages": [], "x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}")
    assert fields.describe()["unmapped"] == {}


def test_logs_without_such_fields_are_told_nothing():
    assert tell_unmapped({"rows_in": 3, "sampled.chat": 3}) is None


def test_the_report_shows_them(tmp_path):
    (tmp_path / "runs.jsonl").write_text(json.dumps(make_run(0, cost=0.5)) + "\n" + json.dumps(make_run(1)) + "\n")
    run = str(tmp_path / "run")
    run_ingest([str(tmp_path / "runs.jsonl")], run, IngestConfig(), ScoreConfig(), LOOP)
    data = collect_run(run)
    found = [(row.source_format, row.field, row.n_found, row.n_sampled) for row in data.unmapped.rows]
    assert found == [("chat", "messages[].annotations", 2, 2), ("chat", "cost", 1, 2)]
    assert b"2 fields of the logs in no column" in render_report(data)
