"""Damaged input goes to quarantine with file, offset, line and reason; the job goes on; no row is lost."""

import contextlib
import gzip
import json

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from runs import ingest, quarantine, read_rows


@pytest.fixture(scope="module")
def good_lines(demo_logs) -> list[bytes]:
    return (demo_logs / "celr_benchmark.jsonl").read_bytes().splitlines()[:4]


def one_bad_line(tmp_path, good_lines, bad: bytes, reason: str):
    """Ingest good, good, bad, good, good and check that exactly the bad line is rejected."""
    path = tmp_path / "logs.jsonl"
    path.write_bytes(b"\n".join([*good_lines[:2], bad, *good_lines[2:]]) + b"\n")
    report = ingest(tmp_path / "run", path)
    assert (report.counts["rows_in"], report.counts["rows_out"], report.counts["rejected"]) == (5, 4, 1)
    (row,) = quarantine(tmp_path / "run")
    assert (row.file, row.line) == (str(path), 3)
    assert row.offset == sum(len(line) + 1 for line in good_lines[:2])
    assert row.raw_bytes == len(bad)
    assert reason in row.reason
    return row


def changed(line: bytes, **fields) -> bytes:
    return json.dumps({**json.loads(line), **fields}).encode()


def test_cut_line(tmp_path, good_lines):
    row = one_bad_line(tmp_path, good_lines, good_lines[0][:300], "not valid JSON")
    assert row.raw == good_lines[0][:300].decode()


def test_unknown_shape(tmp_path, good_lines):
    one_bad_line(
        tmp_path,
        good_lines,
        b'{"hello": "world", "n": 1}',
        "unknown shape: no reader knows an object with the keys hello, n",
    )


def test_not_an_object(tmp_path, good_lines):
    one_bad_line(tmp_path, good_lines, b"42", "not a JSON object")


def test_wrong_encoding(tmp_path, good_lines):
    bad = good_lines[0].replace(b'"output": "', b'"output": "caf\xe9 ')
    row = one_bad_line(tmp_path, good_lines, bad, "UTF-8")
    assert "caf\\xe9" in row.raw


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"retries": 2**40}, "$.retries"),
        ({"cost_usd": -1.0}, "$.cost_usd"),
        ({"task_id": ""}, "task id is empty"),
        ({"task_id": "   "}, "task id is empty"),
        ({"output": None}, "$.output"),
    ],
)
def test_values_out_of_bounds(tmp_path, good_lines, fields, reason):
    one_bad_line(tmp_path, good_lines, changed(good_lines[0], **fields), reason)


def test_nan_is_not_json(tmp_path, good_lines):
    one_bad_line(tmp_path, good_lines, changed(good_lines[0], cost_usd=float("nan")), "not valid JSON")


def test_deep_nesting(tmp_path, good_lines):
    one_bad_line(tmp_path, good_lines, b'{"a":' * 3000 + b"1" + b"}" * 3000, "nested too deep")


def test_overlong_line(tmp_path, good_lines):
    path = tmp_path / "logs.jsonl"
    long = b'{"task_id": "' + b"x" * 300_000 + b'"}'
    path.write_bytes(b"\n".join([good_lines[0], long, good_lines[1]]))
    report = ingest(tmp_path / "run", path, max_record_bytes=100_000)
    assert (report.counts["rows_out"], report.counts["rejected"]) == (2, 1)
    (row,) = quarantine(tmp_path / "run")
    assert (row.line, row.raw_bytes) == (2, len(long))
    assert "the limit is 100,000 bytes" in row.reason
    assert len(row.raw) == 64 * 1024


@pytest.mark.parametrize("name", ["empty.jsonl", "empty.json", "empty.json.gz", "empty.jsonl.gz"])
@pytest.mark.parametrize("content", [b"", b" \n\n"])
def test_empty_file(tmp_path, good_lines, name, content):
    (tmp_path / "a.jsonl").write_bytes(good_lines[0])
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    report = ingest(tmp_path / "run", tmp_path)
    assert (report.counts["rows_in"], report.counts["rows_out"]) == (2, 1)
    (row,) = quarantine(tmp_path / "run")
    assert (row.file, row.offset, row.line, row.reason) == (str(tmp_path / name), 0, 1, "the file is empty")


def test_utf16_file_is_rejected_once(tmp_path, good_lines):
    path = tmp_path / "wide.jsonl"
    path.write_text(b"\n".join(good_lines).decode(), encoding="utf-16")
    report = ingest(tmp_path / "run", path)
    assert (report.counts["rows_in"], report.counts["rejected"]) == (1, 1)
    assert "UTF-16 text; convert it to UTF-8" in quarantine(tmp_path / "run")[0].reason


def test_utf8_byte_order_mark_is_accepted(tmp_path, good_lines):
    (tmp_path / "bom.jsonl").write_bytes(b"\xef\xbb\xbf" + b"\n".join(good_lines))
    assert ingest(tmp_path / "run", tmp_path / "bom.jsonl").counts["rows_out"] == 4


def test_truncated_gz_keeps_its_whole_lines(tmp_path, good_lines):
    noise = [changed(good_lines[0], task_id=f"t{i}", output=str(hash((i, "x")) ** 3)) for i in range(2000)]
    packed = gzip.compress(b"\n".join(noise))
    path = tmp_path / "cut.jsonl.gz"
    path.write_bytes(packed[: len(packed) // 2])
    report = ingest(tmp_path / "run", path)
    assert 100 < report.counts["rows_out"] < 2000
    (row,) = quarantine(tmp_path / "run")
    assert "truncated or damaged compressed file" in row.reason
    assert row.line == report.counts["rows_out"] + 1
    ids = {r["task_id"] for r in read_rows(tmp_path / "run")}
    assert ids == {f"celr/t{i}" for i in range(report.counts["rows_out"])}


@pytest.mark.parametrize("codec", ["gzip", "zstd"])
@pytest.mark.parametrize("n_lines", [3, 5000])
def test_garbage_after_packed_lines_costs_none_of_them(tmp_path, good_lines, codec, n_lines):
    lines = [changed(good_lines[0], task_id=f"t{i}") for i in range(n_lines)]
    packed = pa.compress(b"\n".join(lines) + b"\n", codec=codec, asbytes=True)
    path = tmp_path / f"a.jsonl.{'gz' if codec == 'gzip' else 'zst'}"
    path.write_bytes(packed + b"no more of it")
    report = ingest(tmp_path / "run", path)
    assert (report.counts["rows_out"], report.counts["rejected"]) == (n_lines, 1)
    assert "damaged compressed file" in quarantine(tmp_path / "run")[0].reason


def test_all_that_can_be_unpacked_of_a_truncated_zst_is_kept(tmp_path, good_lines):
    noise = [changed(good_lines[0], task_id=f"t{i}", output=str(hash((i, "x")) ** 3)) for i in range(600)]
    packed = pa.compress(b"\n".join(noise), codec="zstd", asbytes=True)
    (tmp_path / "cut.jsonl.zst").write_bytes(packed[: len(packed) * 2 // 3])
    stream, text = pa.CompressedInputStream(pa.BufferReader(packed[: len(packed) * 2 // 3]), "zstd"), b""
    with contextlib.suppress(OSError):
        while piece := stream.read(1):
            text += piece
    report = ingest(tmp_path / "run", tmp_path / "cut.jsonl.zst")
    assert report.counts["rows_out"] == text.count(b"\n") > 50
    assert report.counts["rejected"] == 1


def test_truncated_gz_document_is_rejected_whole(tmp_path, demo_logs):
    packed = (demo_logs / "gpt-4o-airline.json.gz").read_bytes()
    (tmp_path / "cut.json.gz").write_bytes(packed[:-2000])
    report = ingest(tmp_path / "run", tmp_path / "cut.json.gz")
    assert (report.counts["rows_in"], report.counts["rejected"]) == (1, 1)
    assert "truncated" in quarantine(tmp_path / "run")[0].reason


@pytest.mark.parametrize("name", ["bomb.jsonl.gz", "bomb.json.gz"])
def test_a_decompression_bomb_is_cut_off(tmp_path, good_lines, name):
    packed = gzip.compress(b"\n".join(good_lines) + b"\n" + b" \n" * 80_000_000, compresslevel=9)
    (tmp_path / name).write_bytes(packed)
    report = ingest(tmp_path / "run", tmp_path / name)
    assert report.counts["rows_out"] == (4 if name == "bomb.jsonl.gz" else report.counts["rows_out"])
    (row,) = quarantine(tmp_path / "run")
    assert "looks like a decompression bomb" in row.reason


def test_a_file_that_grows_is_read_up_to_its_planned_size(tmp_path, good_lines):
    from celr_ray.logs.framing import FileRange, iter_values

    path = tmp_path / "logs.jsonl"
    path.write_bytes(b"\n".join(good_lines[:2]) + b"\n" + good_lines[2][:40])
    planned = path.stat().st_size
    with path.open("ab") as sink:
        sink.write(good_lines[2][40:] + b"\n" + good_lines[3] + b"\n")
    values = list(iter_values(FileRange(str(path), 0, planned), 10**6))
    assert [value.raw for value in values] == good_lines[:3]


def test_input_that_changes_during_the_run_is_named(tmp_path, good_lines, capsys):
    from celr_ray.logs.ingest import warn_of_changes

    path = tmp_path / "logs.jsonl"
    path.write_bytes(good_lines[0] + b"\n")
    planned = {str(path): [path.stat().st_size, path.stat().st_mtime_ns], str(tmp_path / "gone.jsonl"): [1, 1]}
    assert warn_of_changes({str(path): planned[str(path)]}) == 0
    path.write_bytes(b"\n".join(good_lines))
    assert warn_of_changes(planned) == 2
    assert str(path) in capsys.readouterr().err


def test_a_gz_name_on_a_plain_file(tmp_path, good_lines):
    (tmp_path / "plain.jsonl.gz").write_bytes(b"\n".join(good_lines))
    report = ingest(tmp_path / "run", tmp_path / "plain.jsonl.gz")
    assert (report.counts["rows_in"], report.counts["rejected"]) == (1, 1)


def test_one_bad_run_in_a_container_does_not_fail_the_others(tmp_path):
    def simulation(task, **extra):
        messages = [{"role": "user", "content": "Help"}, {"role": "assistant", "content": "Gladly"}]
        return {"task_id": task, "messages": messages, "termination_reason": "user_stop", "reward_info": None, **extra}

    runs = [simulation("1"), simulation("2", agent_cost=-3), simulation("3", messages=[]), simulation("4")]
    path = tmp_path / "tau2.json"
    path.write_text(
        json.dumps({"info": {"environment_info": {"domain_name": "retail"}}, "simulations": runs}, indent=1)
    )
    report = ingest(tmp_path / "run", path)
    assert (report.counts["rows_in"], report.counts["rows_out"], report.counts["rejected"]) == (4, 2, 2)
    first, second = quarantine(tmp_path / "run")
    assert (first.index, second.index) == (1, 2)
    assert path.read_bytes()[first.offset :].startswith(first.raw.encode()[:20])
    assert first.line == path.read_bytes()[: first.offset].count(b"\n") + 1
    assert {row["success"] for row in read_rows(tmp_path / "run")} == {None}


def test_one_bad_run_in_a_list_does_not_fail_the_others(tmp_path, good_lines):
    (tmp_path / "list.json").write_bytes(b"[" + b",\n".join([good_lines[0], b'{"x": 1}', b"7", good_lines[1]]) + b"]")
    report = ingest(tmp_path / "run", tmp_path / "list.json")
    assert (report.counts["rows_in"], report.counts["rows_out"], report.counts["rejected"]) == (4, 2, 2)
    assert [row.index for row in quarantine(tmp_path / "run")] == [1, 2]


@pytest.mark.parametrize("split_bytes", [1, 777, 5_000, 20_000, 10**9])
def test_rows_and_line_numbers_do_not_depend_on_the_splits(tmp_path, demo_logs, split_bytes):
    lines = (demo_logs / "celr_benchmark.jsonl").read_bytes().splitlines()
    lines[7], lines[30] = lines[7][:-9], b""
    path = tmp_path / "logs.jsonl"
    path.write_bytes(b"\n".join(lines))
    ingest(tmp_path / "whole", path, n_buckets=4)
    report = ingest(tmp_path / "split", path, split_bytes=max(split_bytes, 2000), n_buckets=4)
    assert report.counts["rows_in"] == 45
    assert read_rows(tmp_path / "split") == read_rows(tmp_path / "whole")
    assert quarantine(tmp_path / "split") == quarantine(tmp_path / "whole")
    assert quarantine(tmp_path / "split")[0].line == 8


def test_blank_lines_and_missing_last_newline_are_no_rows(tmp_path, good_lines):
    (tmp_path / "a.jsonl").write_bytes(b"\n\n" + b"\r\n".join(good_lines) + b"\n  \n" + good_lines[0])
    assert ingest(tmp_path / "run", tmp_path / "a.jsonl").counts["rows_in"] == 5


def describe(read: list) -> list:
    return [
        (name, item.position, bytes(item.raw), str(item.result) if isinstance(item.result, Exception) else item.result)
        for name, item in read
    ]


def read_with(reader, raw: bytes | memoryview):
    """Return what a record reader makes of a value, or the message of its error."""
    from celr_ray.errors import RecordError
    from celr_ray.logs.base import SourceContext

    try:
        return describe(reader.read(raw, SourceContext("a.jsonl")))
    except RecordError as error:
        return str(error)


@pytest.mark.parametrize("name", ["celr_benchmark", "auto"])
def test_a_reader_that_knows_the_format_reads_as_one_that_must_recognise_it(demo_logs, good_lines, name):
    from celr_ray.logs.base import SourceContext
    from celr_ray.logs.registry import RecordReader

    good = good_lines[0]
    plan = json.dumps(json.loads((demo_logs / "celr_plan_0.json").read_bytes())).encode()
    cases = [
        good,
        good[:300],
        b"42",
        b"  " + good,
        b'{"hello": "world"}',
        b"[" + good + b", 7, " + good_lines[1] + b"]",
        good.replace(b'"output": "', b'"output": "caf\xe9 '),
        changed(good, retries=2**40),
        changed(good, cost_usd=float("nan")),
        changed(good, task_id="  "),
        changed(good, output=None),
        b'{"a":' * 3000 + b"1" + b"}" * 3000,
        *([plan] if name == "auto" else []),
    ]
    for case in cases:
        knowing = RecordReader(name)
        knowing.read(good_lines[2], SourceContext())
        slow = RecordReader(name)
        slow._last = None
        assert read_with(knowing, memoryview(case)) == read_with(slow, case)


def cut_simply(data: bytes, start: int, end: int, limit: int) -> list:
    """Cut the lines that start in a range, as plainly as can be: (line number, offset, bytes kept, is damage)."""
    found, offset, number = [], 0, 0
    for line in data.splitlines(keepends=True) if data.count(b"\n") else [data]:
        if start <= offset < end:
            number += 1
            raw = line.removesuffix(b"\n")
            if len(raw) > limit:
                found.append((number, offset, raw[:limit], True))
            else:
                raw = raw.removeprefix(b"\xef\xbb\xbf") if offset == 0 else raw
                if raw.strip():
                    found.append((number, offset, raw, False))
        offset += len(line)
    return found


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    lines=st.lists(st.sampled_from([b"", b" ", b"{}", b" {} ", b'{"a": 1}', b"7\xff", b"\xef\xbb\xbf{}", b"{" * 30])),
    last=st.sampled_from([b"", b"{}", b"  "]),
    block_bytes=st.integers(1, 50),
    cuts=st.tuples(st.integers(0, 80), st.integers(0, 80)),
)
def test_lines_are_cut_the_same_wherever_blocks_and_ranges_end(
    tmp_path_factory, monkeypatch, lines, last, block_bytes, cuts
):
    from celr_ray.logs import framing

    data = b"".join(line + b"\n" for line in lines) + last
    path = tmp_path_factory.mktemp("cut") / "logs.jsonl"
    path.write_bytes(data)
    start, end = min(*cuts, len(data)), min(max(cuts), len(data)) + 1
    counter = framing.LineCounter()
    monkeypatch.setattr(framing, "BLOCK_BYTES", block_bytes)
    found = [
        (
            counter.line,
            value.offset,
            bytes(value.raw if value.damage is None else value.raw[:20]),
            value.damage is not None,
        )
        for value in framing.iter_values(framing.FileRange(str(path), start, end), 20, counter)
        if value.damage != "the file is empty"
    ]
    assert found == cut_simply(data, start, end, 20)


@pytest.fixture(scope="module")
def fuzz_sources(demo_logs) -> dict[str, bytes]:
    """Real bytes of each format, short enough to be changed a few hundred times."""
    plan = (demo_logs / "celr_plan_0.json").read_bytes()
    tau = json.loads(gzip.decompress((demo_logs / "gpt-4o-airline.json.gz").read_bytes()))
    for run in tau:
        run["traj"] = run["traj"][:6]
        run["traj"][0]["content"] = run["traj"][0]["content"][:200]
    tau2 = json.loads(gzip.decompress((demo_logs / "airline_qwen2.5-7b.json.gz").read_bytes()))
    tau2["simulations"] = [{**s, "messages": s["messages"][:5]} for s in tau2["simulations"][:2]]
    bench = (demo_logs / "celr_benchmark.jsonl").read_bytes()[:6000]
    return {
        "plan.json": plan,
        "tau.json": json.dumps(tau[:3]).encode(),
        "tau2.json": json.dumps(tau2).encode(),
        "bench.jsonl": bench,
    }


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_changed_bytes_of_real_files_never_crash_and_no_row_is_lost(tmp_path_factory, fuzz_sources, data):
    name = data.draw(st.sampled_from(sorted(fuzz_sources)))
    raw = bytearray(fuzz_sources[name])
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(raw) - 1))
        kind = data.draw(st.sampled_from(["replace", "insert", "delete", "cut"]))
        if kind == "replace":
            raw[at] = data.draw(st.integers(0, 255))
        elif kind == "insert":
            raw[at:at] = data.draw(st.binary(min_size=1, max_size=8))
        elif kind == "delete":
            del raw[at : at + data.draw(st.integers(1, 40))]
        else:
            del raw[at:]
        if not raw:
            break
    folder = tmp_path_factory.mktemp("fuzz")
    path = folder / (name + data.draw(st.sampled_from(["", ".gz"])))
    path.write_bytes(gzip.compress(bytes(raw)) if path.suffix == ".gz" else bytes(raw))
    if path.suffix == ".gz" and data.draw(st.booleans()):
        packed = path.read_bytes()
        path.write_bytes(packed[: data.draw(st.integers(0, len(packed)))])
    report = ingest(folder / "run", path)
    counts = report.counts
    assert counts["rows_in"] == counts["rows_out"] + counts["rejected"]
    assert len(read_rows(folder / "run")) == counts["rows_out"]
    assert len(quarantine(folder / "run")) == counts["rejected"]
    assert counts["rows_in"] > 0 or not bytes(raw).strip()
