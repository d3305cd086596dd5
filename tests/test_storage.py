"""Atomic writes, listings, globs, full disks."""

import os
import re
import shutil
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from runs import read_rows

from celr_ray import storage
from celr_ray.atomic import TEMPORARY_PREFIX
from celr_ray.cli import main
from celr_ray.errors import InputError, OutputError
from celr_ray.schema import KTO_SCHEMA


def test_write_replaces_whole_files_and_leaves_no_temporary(tmp_path):
    uri = str(tmp_path / "deep" / "file.json")
    storage.write_json(uri, {"a": 1})
    storage.write_json(uri, {"a": 2})
    assert storage.read_json(uri) == {"a": 2}
    assert os.listdir(tmp_path / "deep") == ["file.json"]


def test_failed_write_leaves_the_old_file_and_no_temporary(tmp_path):
    uri = str(tmp_path / "file.bin")
    storage.write_bytes(uri, b"old")
    with pytest.raises(TypeError):
        storage.write_bytes(uri, object())  # type: ignore[arg-type]
    assert storage.read_bytes(uri) == b"old"
    assert os.listdir(tmp_path) == ["file.bin"]


def test_a_file_in_the_way_is_one_clear_error(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match="cannot write"):
        storage.write_bytes(str(tmp_path / "file" / "inner"), b"x")


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*.jsonl", ["a.jsonl"]),
        ("**/*.jsonl", ["a.jsonl", "x/b.jsonl", "x/y/c.jsonl"]),
        ("x/*.jsonl", ["x/b.jsonl"]),
        ("x/?/c.jsonl", ["x/y/c.jsonl"]),
    ],
)
def test_globs(tmp_path, pattern, expected):
    for name in ("a.jsonl", "x/b.jsonl", "x/y/c.jsonl", "x/.hidden.jsonl", "x/note.txt"):
        storage.write_bytes(str(tmp_path / name), b"{}")
    found = [os.path.relpath(file.uri, tmp_path) for file in storage.expand(str(tmp_path / pattern))]
    assert found == expected


def test_folder_is_read_recursively_and_hidden_files_are_left_out(tmp_path):
    for name in ("b.json", "a/c.json", ".git/d.json", "_tmp/e.json"):
        storage.write_bytes(str(tmp_path / name), b"{}")
    found = [os.path.relpath(file.uri, tmp_path) for file in storage.expand(str(tmp_path))]
    assert found == ["a/c.json", "b.json"]


@pytest.mark.parametrize("uri", ["missing.json", "missing/*.json", "nothing-*.json"])
def test_missing_paths_are_named(tmp_path, uri):
    with pytest.raises(InputError, match=r"missing|matches no file"):
        storage.expand(str(tmp_path / uri))


def test_unknown_scheme_is_a_clear_error():
    with pytest.raises(InputError, match="cannot use the URI"):
        storage.expand("nowhere://bucket/key")


def test_a_file_name_with_glob_characters_is_taken_as_it_is(tmp_path):
    storage.write_bytes(str(tmp_path / "run[1].json"), b"{}")
    assert len(storage.expand(str(tmp_path / "run[1].json"))) == 1


def test_a_folder_with_brackets_in_its_name_is_no_glob(tmp_path):
    for name in ("br[1]/a.json", "br1/b.json"):
        storage.write_bytes(str(tmp_path / name), b"{}")
    found = [os.path.relpath(file.uri, tmp_path) for file in storage.expand(str(tmp_path / "br[1]"))]
    assert found == ["br[1]/a.json"]
    found = [os.path.relpath(file.uri, tmp_path) for file in storage.expand(str(tmp_path / "br[12]/*.json"))]
    assert found == ["br1/b.json"]


def test_links_are_followed_but_not_in_a_circle(tmp_path):
    storage.write_bytes(str(tmp_path / "in/a.json"), b"{}")
    storage.write_bytes(str(tmp_path / "other/b.json"), b"{}")
    for name in ("self", "again", "also"):
        (tmp_path / "in" / name).symlink_to(".")
    (tmp_path / "in" / "link").symlink_to("../other")
    (tmp_path / "other" / "back").symlink_to("../in")
    (tmp_path / "in" / "nothing.json").symlink_to("nowhere")
    for pattern in ("in", "in/**/*.json"):
        found = [os.path.relpath(file.uri, tmp_path) for file in storage.expand(str(tmp_path / pattern))]
        assert found == ["in/a.json", "in/link/b.json"]


def test_size_and_time_are_those_of_a_single_look(tmp_path):
    storage.write_bytes(str(tmp_path / "a.json"), b"{}")
    assert storage.expand(str(tmp_path)) == [storage.stat(str(tmp_path / "a.json"))]


def test_a_name_that_is_no_text_is_a_clear_error(tmp_path):
    with open(os.fsencode(tmp_path) + b"/\xff.json", "wb") as sink:
        sink.write(b"{}")
    with pytest.raises(InputError, match=r"xff\.json' is not UTF-8"):
        storage.expand(str(tmp_path))


def test_file_uri_is_the_same_as_its_path(tmp_path):
    storage.write_bytes(str(tmp_path / "a.json"), b"{}")
    (file,) = storage.expand(f"file://{tmp_path}")
    assert file.uri == f"file://{tmp_path}/a.json"
    assert storage.read_bytes(file.uri) == b"{}"


def test_file_uris_are_escaped_and_read_back(tmp_path):
    folder = tmp_path / "a b%20c"
    storage.write_bytes(str(folder / "ü [1].json"), b"{}")
    (file,) = storage.expand(folder.as_uri())
    assert file.uri == (folder / "ü [1].json").as_uri()
    assert storage.read_bytes(file.uri) == b"{}"
    assert [one.uri for one in storage.expand(f"{folder.as_uri()}/*.json")] == [file.uri]
    assert storage.is_directory(folder.as_uri().replace("file://", "file://localhost"))


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("file://folder/x", "file:///PATH"),
        ("file:/folder/x", "two slashes"),
        ("s3:/bucket/x", "two slashes"),
        ("s3://", "s3://BUCKET/KEY"),
        ("s3://bucket//x", "no part of it empty"),
        ("s3://b*/x", "no bucket has such a name"),
    ],
)
def test_incomplete_uris_are_clear_errors(uri, message):
    with pytest.raises(InputError, match=message):
        storage.expand(uri)


def test_a_damaged_parquet_file_is_named(tmp_path):
    (tmp_path / "part.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(InputError, match=r"part\.parquet: not a whole Parquet file"):
        storage.read_parquet(str(tmp_path / "part.parquet"))


def test_temporaries_of_killed_writers_are_deleted_and_nothing_else(tmp_path):
    left = tmp_path / "trajectories" / f"{TEMPORARY_PREFIX}{'0' * 32}-part-00000.parquet"
    kept = [tmp_path / ".tmp-mine", tmp_path / "trajectories" / "part-00000.parquet"]
    for path in (left, *kept):
        storage.write_bytes(str(path), b"x")
    storage.delete_temporaries(str(tmp_path))
    assert not left.exists()
    assert all(path.exists() for path in kept)


@pytest.fixture
def tiny_disk(tmp_path):
    """A file system of 192 KiB; skips where mounting is not allowed."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=192k", "tmpfs", str(place)]
    if os.geteuid() or not shutil.which("mount") or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount a tmpfs")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_full_disk_in_mid_run_is_a_clear_error_and_the_same_command_ends_the_run(
    tiny_disk, tmp_path, demo_logs, capsys
):
    flags = ["--logs", str(demo_logs), "--ingest.files-per-unit", "1", "--runtime.executor", "loop"]
    assert main(["pipeline", *flags, "--out", str(tmp_path / "whole")]) == 0
    command = ["pipeline", *flags, "--out", str(tiny_disk / "run")]
    assert main(command) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert f"cannot write {tiny_disk}/run/" in error
    assert "No space left on device" in error
    assert_all_whole(tiny_disk)
    subprocess.run(["mount", "-o", "remount,size=64m", str(tiny_disk)], check=True)
    assert main(command) == 0
    for folder in ("trajectories", "pairs", "unpaired", "tasks"):
        assert read_rows(tiny_disk / "run", folder) == read_rows(tmp_path / "whole", folder)


def test_a_file_size_limit_is_a_clear_error_and_the_same_command_ends_the_run(tmp_path, demo_logs):
    flags = ["--logs", str(demo_logs), "--ingest.files-per-unit", "1", "--runtime.executor", "loop"]
    assert main(["pipeline", *flags, "--out", str(tmp_path / "whole")]) == 0
    command = [sys.executable, "-m", "celr_ray.cli", "pipeline", *flags, "--out", str(tmp_path / "run")]
    limit = "import os, resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000)); "
    limited = [sys.executable, "-c", limit + "os.execv(sys.argv[1], sys.argv[1:])", *command]
    result = subprocess.run(limited, capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 2
    assert re.search(rf"cannot write {tmp_path}/run/\S+: .*File too large", result.stderr)
    assert_all_whole(tmp_path / "run")
    assert main(command[3:]) == 0
    for folder in ("trajectories", "pairs", "unpaired", "tasks"):
        assert read_rows(tmp_path / "run", folder) == read_rows(tmp_path / "whole", folder)


def assert_all_whole(folder):
    """Check that no temporary and no lock is left, and that what has a final name can be read."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert files
    for path in files:
        assert not path.name.startswith("."), path
        if path.suffix == ".parquet":
            storage.read_parquet(str(path))
        elif path.suffix == ".json":
            storage.read_json(str(path))


def test_texts_and_hashes_get_no_dictionary(tmp_path):
    messages = [{"role": "user", "content": "What?", "name": None, "tool_call_id": None, "tool_calls": None}]
    row = dict.fromkeys(KTO_SCHEMA.names)
    row |= {"trajectory_id": "a", "task_id": "t", "prompt": messages, "completion": messages, "label": True}
    uri = str(tmp_path / "rows.parquet")
    storage.write_parquet(uri, pa.Table.from_pylist([row], schema=KTO_SCHEMA))
    group = pq.ParquetFile(uri).metadata.row_group(0)
    columns = [group.column(i) for i in range(group.num_columns)]
    with_dictionary = {c.path_in_schema for c in columns if c.has_dictionary_page}
    assert {"task_id", "prompt.list.element.role"} <= with_dictionary
    assert not {p for p in with_dictionary if p.split(".")[-1] in ("trajectory_id", "content")}
