"""The system's memory: pages of logs that were read, and what Arrow's allocator is told."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

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


@pytest.mark.parametrize(
    ("module", "own", "found"), [("celr_ray.cli", None, "-1"), ("celr_ray.cli", "7", "7"), ("celr_ray", None, "None")]
)
def test_only_the_command_line_tells_the_allocator_to_keep_memory(module: str, own: str | None, found: str) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "MIMALLOC_PURGE_DELAY"}
    code = f"import os, {module}; print(os.environ.get('MIMALLOC_PURGE_DELAY'))"
    environment |= {} if own is None else {"MIMALLOC_PURGE_DELAY": own}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == found


def test_the_command_line_tells_it_before_arrow_is_loaded() -> None:
    code = (
        "import sys, os\n"
        "class Watch:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'pyarrow': print(os.environ.get('MIMALLOC_PURGE_DELAY'))\n"
        "sys.meta_path.insert(0, Watch())\n"
        "import celr_ray.cli\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != "MIMALLOC_PURGE_DELAY"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["-1"]
