"""The system's memory: pages of logs that were read, and what Arrow's allocator is told."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from celr_ray.allocator import SETTINGS
from celr_ray.config import IngestConfig, RuntimeConfig, ScoreConfig
from celr_ray.logs.ingest import run_ingest
from celr_ray.page_cache import forget_pages

SIZE = 40 * 2**20


def is_cached(path: Path, offset: int) -> bool:
    """Tell whether a page of a file can be read without waiting for the disk."""
    file = os.open(path, os.O_RDONLY)
    try:
        return os.preadv(file, [bytearray(4096)], offset, os.RWF_NOWAIT) > 0
    except BlockingIOError:
        return False
    finally:
        os.close(file)


def write_on_disk(path: Path, data: bytes) -> Path:
    with path.open("wb") as file:
        file.write(data)
        os.fsync(file.fileno())
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder on a file system whose pages can be dropped."""
    control = write_on_disk(tmp_path / "control", bytes(SIZE))
    with control.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    if is_cached(control, SIZE // 2):
        pytest.skip("this file system keeps its files in memory")
    return tmp_path


def test_a_large_range_leaves_the_page_cache_and_its_neighbours_stay(folder: Path) -> None:
    path = write_on_disk(folder / "logs", bytes(2 * SIZE))
    forget_pages(str(path), 0, SIZE)
    assert not is_cached(path, SIZE // 2)
    assert is_cached(path, SIZE + SIZE // 2)
    forget_pages(f"file://{path}", SIZE)
    assert not is_cached(path, SIZE + SIZE // 2)


def test_small_ranges_stay_and_missing_files_are_no_error(folder: Path) -> None:
    path = write_on_disk(folder / "logs", bytes(2**20))
    forget_pages(str(path))
    forget_pages(str(path), 0, 2**20)
    forget_pages(str(folder / "gone"))
    assert is_cached(path, 2**19)


def test_ingest_keeps_no_large_log_in_the_page_cache(folder: Path) -> None:
    record = b'{"task_id":"t","original_request":"r","final_status":"SUCCESS","plan":[]}'
    path = write_on_disk(folder / "logs.jsonl", (record + b" " * 2**20 + b"\n") * 40)
    assert is_cached(path, SIZE // 2)
    run_ingest([str(path)], str(folder / "run"), IngestConfig(), ScoreConfig(), RuntimeConfig(executor="loop"))
    assert not is_cached(path, SIZE // 2)


def run_python(code: str, **own: str) -> list[str]:
    """Run code in a Python without the allocator's settings, but for one's own."""
    environment = {name: value for name, value in os.environ.items() if name not in SETTINGS}
    command = [sys.executable, "-c", code]
    return subprocess.run(command, env=environment | own, capture_output=True, text=True, check=True).stdout.split()


@pytest.mark.parametrize(
    ("module", "own", "found"),
    [
        ("celr_ray.cli", {}, SETTINGS),
        ("celr_ray.cli", {"JE_ARROW_MALLOC_CONF": "abort:false"}, {**SETTINGS, "JE_ARROW_MALLOC_CONF": "abort:false"}),
        ("celr_ray", {}, dict.fromkeys(SETTINGS)),
    ],
)
def test_only_the_command_line_chooses_the_allocator(
    module: str, own: dict[str, str], found: dict[str, str | None]
) -> None:
    code = f"import os, {module}\nfor name in {list(SETTINGS)}: print(os.environ.get(name))"
    assert run_python(code, **own) == [str(found[name]) for name in SETTINGS]


def test_arrow_takes_the_choice_of_the_command_line() -> None:
    code = "import {}, pyarrow; print(pyarrow.default_memory_pool().backend_name)"
    assert run_python(code.format("celr_ray.cli")) == ["jemalloc"]
    assert run_python(code.format("celr_ray.cli"), ARROW_DEFAULT_MEMORY_POOL="system") == ["system"]
    assert run_python(code.format("celr_ray")) == ["mimalloc"]


def test_freed_memory_serves_requests_of_any_size() -> None:
    code = """
import resource, celr_ray.cli, pyarrow

def fill(number, size):
    held = [pyarrow.allocate_buffer(size) for _ in range(number)]
    for buffer in held:
        memoryview(buffer).cast("B")[:] = bytes(size)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)

fill(32, 2**23)
fill(2**13, 2**15)
"""
    before, after = map(int, run_python(code))
    assert after - before < 64  # of 256 MB that had been freed
