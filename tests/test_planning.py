"""Which files count as logs: names that are left out are told, one file under two names is one, runs are no logs."""

import gzip
import json
import os

import pytest
from runs import ingest, read_rows

from celr_ray.errors import InputError
from celr_ray.logs.planning import find_files


def write(folder, *names, text="{}\n"):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def names_of(folder, *uris):
    return [os.path.relpath(file.uri, folder) for file in find_files([str(uri) for uri in uris or (folder,)])]


def test_what_is_left_out_is_told_once(tmp_path, capsys):
    write(tmp_path, "app.jsonl", "a.txt", "b.txt", "arch.jsonl.bz2", "_under.jsonl", "_tmp/c.json", ".hidden.json")
    assert names_of(tmp_path) == ["app.jsonl"]
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("5 files left out: ")
    assert line.count(str(tmp_path)) == 3
    assert ", … (extensions read: .json, .jsonl, .ndjson, .log, .traj or none, also with .gz or .zst" in line
    assert ".hidden" not in line


def test_nothing_is_told_of_a_folder_of_logs_or_of_what_is_named_itself(tmp_path, capsys):
    write(tmp_path, "app.jsonl", "a.txt", "_under.jsonl")
    assert names_of(tmp_path, tmp_path / "a.txt", tmp_path / "_under.jsonl") == ["_under.jsonl", "a.txt"]
    assert capsys.readouterr().err == ""
    assert names_of(tmp_path, tmp_path / "*") == ["app.jsonl"]
    assert "2 files left out" in capsys.readouterr().err
    assert names_of(tmp_path, tmp_path / "*", tmp_path / "a.txt", tmp_path / "_under.jsonl") == [
        "_under.jsonl",
        "a.txt",
        "app.jsonl",
    ]
    assert capsys.readouterr().err == ""


def test_only_left_out_files_are_an_error_that_names_them(tmp_path, capsys):
    write(tmp_path, "a.txt")
    with pytest.raises(InputError, match="no log files"):
        find_files([str(tmp_path)])
    assert "1 file left out" in capsys.readouterr().err


def test_rotated_logs_are_read(tmp_path, capsys):
    write(tmp_path, "app.log.1", "app.jsonl.1", "app.jsonl.2.gz", "run-v1.2", "day.2026.01.02", "notes.txt.1")
    expected = ["app.jsonl.1", "app.jsonl.2.gz", "app.log.1", "day.2026.01.02", "run-v1.2"]
    assert names_of(tmp_path) == expected
    assert "1 file left out" in capsys.readouterr().err


def test_a_rotated_file_gives_the_rows_of_the_file(tmp_path, demo_logs):
    data = (demo_logs / "celr_benchmark.jsonl").read_bytes()
    for name, content in (
        ("plain/app.jsonl", data),
        ("old/app.jsonl.1", data),
        ("gz/app.jsonl.1.gz", gzip.compress(data)),
    ):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes(content)
    ids = []
    for name in ("plain", "old", "gz"):
        assert ingest(tmp_path / f"run-{name}", tmp_path / name).counts["rejected"] == 0
        ids.append({row["trajectory_id"] for row in read_rows(tmp_path / f"run-{name}")})
    assert len(ids[0]) == 46
    assert ids[0] == ids[1] == ids[2]


def test_one_file_under_several_names_is_read_once(tmp_path):
    write(tmp_path, "in/a.jsonl", "in/deep/b.jsonl")
    (tmp_path / "in" / "self").symlink_to(".")
    (tmp_path / "in" / "another-name.jsonl").symlink_to("a.jsonl")
    folder = tmp_path / "in"
    assert names_of(folder, folder, folder.as_uri(), f"{folder}/*.jsonl") == ["a.jsonl", "deep/b.jsonl"]
    assert names_of(folder, folder / "deep", folder / "deep" / "b.jsonl") == ["deep/b.jsonl"]


def test_of_a_run_folder_only_its_logs_are_logs(tmp_path, capsys):
    for stage in ("execute", "gate"):
        write(tmp_path, f"{stage}/plans/{stage}.json", f"{stage}/manifests/{stage}/part-00000.json")
        write(tmp_path, f"{stage}/run.json", f"{stage}/summary.json", f"{stage}/episodes/part-00000.parquet")
    write(tmp_path, "execute/logs/part-00000.jsonl", "execute/rejected/part-00000.jsonl")
    write(tmp_path, "gate/live/candidate/replay-0/logs/part-00000.jsonl")
    assert names_of(tmp_path, tmp_path / "execute") == ["execute/logs/part-00000.jsonl"]
    assert names_of(tmp_path) == [
        "execute/logs/part-00000.jsonl",
        "gate/live/candidate/replay-0/logs/part-00000.jsonl",
    ]
    assert capsys.readouterr().err == ""


def test_a_folder_of_logs_that_happens_to_be_called_plans_is_read(tmp_path):
    write(tmp_path, "plans/report.json", "plans/monday.json", "a.jsonl", text=json.dumps({}))
    assert names_of(tmp_path) == ["a.jsonl", "plans/monday.json", "plans/report.json"]
