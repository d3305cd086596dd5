"""Atomic writes, listings, globs."""

import os

import pytest

from celr_ray import storage
from celr_ray.errors import InputError, OutputError


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


def test_file_uri_is_the_same_as_its_path(tmp_path):
    storage.write_bytes(str(tmp_path / "a.json"), b"{}")
    (file,) = storage.expand(f"file://{tmp_path}")
    assert file.uri == f"file://{tmp_path}/a.json"
    assert storage.read_bytes(file.uri) == b"{}"
