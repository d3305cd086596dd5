"""Runs on an object store: against a real S3 server, its failures included."""

import gzip
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from policies import sample_artefact
from runs import ingest
from s3_server import READER_KEY, READER_SECRET, CuttingProxy, S3Server, aws_environment

from celr_ray import lock as lock_module
from celr_ray import owner as owner_module
from celr_ray import s3, storage
from celr_ray.cli import main
from celr_ray.cortex.artefact import load_artefact, save_artefact
from celr_ray.cortex.policy import load_policy
from celr_ray.errors import ConfigError, InputError, OutputError, PolicyError
from celr_ray.lock import LOCK_NAME, run_lock
from celr_ray.logs.ingest import read_quarantine
from celr_ray.owner import encode_owner, forget_owner, make_owner

BUCKET = "celr-test"
FOLDERS = ("trajectories", "pairs", "unpaired", "tasks")
LOOP = ("--runtime.executor", "loop")
UNITS = ("--ingest.files-per-unit", "1", "--ingest.n-buckets", "4")


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    """One server with one bucket, for the whole session."""
    one = S3Server(tmp_path_factory.mktemp("s3"))
    one.start()
    try:
        one.client().create_bucket(Bucket=BUCKET)
        yield one
    finally:
        one.kill()


@pytest.fixture(autouse=True)
def environment(server, monkeypatch):
    """The AWS settings that lead to the server, and no others."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in aws_environment(server.port).items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def place(request) -> str:
    """A folder in the bucket that only one test uses."""
    return f"s3://{BUCKET}/{request.node.name.replace('[', '-').replace(']', '')}"


@pytest.fixture(scope="module")
def logs(tmp_path_factory, demo_logs):
    """The demo's logs and a file with one damaged line, on disk."""
    folder = tmp_path_factory.mktemp("logs")
    for path in sorted(demo_logs.iterdir()):
        (folder / path.name).write_bytes(path.read_bytes())
    (folder / "bad.jsonl").write_bytes(b'{"broken\n')
    return folder


@pytest.fixture(scope="module")
def local_run(tmp_path_factory, logs):
    """The same logs, run on disk."""
    out = tmp_path_factory.mktemp("local") / "run"
    assert main(["pipeline", "--logs", str(logs), "--out", str(out), *UNITS, *LOOP]) == 0
    return str(out)


def upload(folder, uri) -> None:
    for path in folder.iterdir():
        storage.write_bytes(storage.join(uri, path.name), path.read_bytes())


def read_rows(run, folder):
    """All rows of one table without where they came from, in a fixed order."""
    files = storage.list_files(storage.join(run, folder))
    rows = pa.concat_tables([storage.read_parquet(file.uri) for file in files]).to_pylist()
    return sorted(json.dumps({**row, "source_uri": None}, sort_keys=True, default=str) for row in rows)


def rejected(run):
    return [(row.file.rsplit("/", 1)[-1], row.offset, row.reason) for row in read_quarantine(run)]


def list_keys(server, uri) -> list[str]:
    """What boto3 sees below a URI."""
    pages = server.client().get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=uri.split("/", 3)[3])
    return [found["Key"] for page in pages for found in page.get("Contents", [])]


def assert_all_whole(run) -> None:
    for file in storage.list_files(run, recursive=True, with_hidden=True):
        if file.uri.endswith(".parquet"):
            with storage.open_input(file.uri) as source:
                pq.ParquetFile(source).read()
        elif file.uri.endswith(".json"):
            storage.read_json(file.uri)


def run_cli(*words) -> int:
    return main([str(word) for word in words])


def test_the_pipeline_gives_the_rows_of_the_run_on_disk(server, place, logs, local_run, capsys):
    upload(logs, f"{place}/logs")
    command = ("pipeline", "--logs", f"{place}/logs", "--out", f"{place}/run", *UNITS, *LOOP)
    assert run_cli(*command) == 0
    for folder in FOLDERS:
        assert read_rows(f"{place}/run", folder) == read_rows(local_run, folder)
    assert rejected(f"{place}/run") == rejected(local_run)
    assert len(rejected(local_run)) == 1
    assert storage.read_bytes(f"{place}/run/report/index.html").startswith(b"<!")
    exported = [file.uri.removeprefix(place) for file in storage.list_files(f"{place}/run/exports", recursive=True)]
    assert len(exported) == len(storage.list_files(f"{local_run}/exports", recursive=True))
    assert not [key for key in list_keys(server, place) if ".tmp-" in key or LOCK_NAME in key]

    capsys.readouterr()
    before = storage.list_files(f"{place}/run/trajectories")
    assert run_cli(*command) == 0
    assert "0 of 7 units run now" in capsys.readouterr().err
    assert storage.list_files(f"{place}/run/trajectories") == before


def test_changed_input_is_noticed(place, demo_logs, capsys):
    logs = f"{place}/logs.jsonl"
    data = (demo_logs / "celr_benchmark.jsonl").read_bytes()
    storage.write_bytes(logs, data)
    assert run_cli("score", "--logs", logs, "--run", f"{place}/run", *LOOP) == 0
    storage.write_bytes(logs, data + b"{}\n")
    assert run_cli("score", "--logs", logs, "--run", f"{place}/run", *LOOP) == 2
    assert logs in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["gz", "zst", "ranges"])
def test_compressed_objects_and_ranges_give_the_same_rows(place, tmp_path, demo_logs, kind):
    data = (demo_logs / "celr_benchmark.jsonl").read_bytes() * 5
    (tmp_path / "all.jsonl").write_bytes(data)
    ingest(tmp_path / "run", tmp_path / "all.jsonl", n_buckets=4)
    packed = {"gz": gzip.compress, "zst": lambda data: pa.compress(data, "zstd", asbytes=True), "ranges": bytes}[kind]
    logs = f"{place}/all.jsonl" + (f".{kind}" if kind != "ranges" else "")
    storage.write_bytes(logs, packed(data))
    report = ingest(f"{place}/run", logs, n_buckets=4, **({"split_bytes": 5000} if kind == "ranges" else {}))
    assert report.units > 20 or kind != "ranges"
    assert read_rows(f"{place}/run", "trajectories") == read_rows(str(tmp_path / "run"), "trajectories")


def test_ray_workers_write_and_read(server, place, logs, local_run):
    upload(logs, f"{place}/logs")
    script = f"""
from celr_ray import read_pairs, read_trajectories
from celr_ray.cli import main
flags = {[*UNITS, "--runtime.executor", "ray", "--runtime.num-cpus", "2"]}
assert main(["pipeline", "--logs", "{place}/logs", "--out", "{place}/run", *flags]) == 0
print(read_trajectories("{place}/run").count(), len(read_pairs("{place}/run/pairs").take_all()))
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 0, result.stderr
    counts = [len(read_rows(local_run, folder)) for folder in ("trajectories", "pairs")]
    assert [int(word) for word in result.stdout.split()[-2:]] == counts
    for folder in FOLDERS:
        assert read_rows(f"{place}/run", folder) == read_rows(local_run, folder)


def test_a_server_that_dies_in_mid_run_is_one_clear_error_and_the_same_command_ends_the_run(
    server, place, logs, local_run, capsys, monkeypatch
):
    upload(logs, f"{place}/logs")
    command = ("pipeline", "--logs", f"{place}/logs", "--out", f"{place}/run", *UNITS, *LOOP)
    write_json = storage.write_json

    def write_and_kill(uri, value):
        write_json(uri, value)
        if "manifests/ingest/part-00001" in uri:
            server.kill()

    monkeypatch.setattr(storage, "write_json", write_and_kill)
    assert run_cli(*command) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert f"{place}/" in error
    assert f"the object store at http://127.0.0.1:{server.port} does not answer" in error
    assert run_cli(*command) == 2

    server.start()
    assert_all_whole(f"{place}/run")
    assert len(storage.list_files(f"{place}/run/manifests/ingest")) == 2
    assert run_cli(*command) == 0
    assert "5 of 7 units run now" in capsys.readouterr().err
    for folder in FOLDERS:
        assert read_rows(f"{place}/run", folder) == read_rows(local_run, folder)
    assert not [key for key in list_keys(server, place) if LOCK_NAME in key]


@pytest.mark.parametrize(
    ("size", "after"), [(4_000_000, 1_000_000), (40_000_000, 15_000_000), (40_000_000, 39_000_000)]
)
def test_an_upload_that_breaks_off_leaves_nothing_or_the_old_object(server, place, monkeypatch, size, after):
    uri = f"{place}/object"
    proxy = CuttingProxy(server.port)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{proxy.port}")
    proxy.cut(after)
    with pytest.raises(OutputError, match="does not answer"):
        storage.write_bytes(uri, os.urandom(size))
    proxy.cut(None)
    assert list_keys(server, place) == []
    storage.write_bytes(uri, b"old")
    proxy.cut(after)
    with pytest.raises(OutputError, match="does not answer"):
        storage.write_bytes(uri, os.urandom(size))
    proxy.cut(None)
    assert storage.read_bytes(uri) == b"old"
    proxy.close()


def test_a_value_that_is_no_bytes_leaves_nothing(server, place):
    with pytest.raises(TypeError):
        storage.write_bytes(f"{place}/object", object())  # type: ignore[arg-type]
    assert list_keys(server, place) == []


@pytest.mark.parametrize("name", ["logs.jsonl", "logs.jsonl.gz", "logs.jsonl.zst"])
def test_a_download_that_breaks_off_is_an_error_and_no_damaged_log(server, place, tmp_path, monkeypatch, name):
    lines = b"".join(b'{"noise": "%s"}\n' % os.urandom(500).hex().encode() for _ in range(20_000))
    pack = {"gz": gzip.compress, "zst": lambda data: pa.compress(data, "zstd", asbytes=True)}
    data = pack.get(name.rsplit(".", 1)[-1], bytes)(lines)
    storage.write_bytes(f"{place}/{name}", data)
    proxy = CuttingProxy(server.port)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{proxy.port}")
    proxy.cut(len(data) // 2)
    with pytest.raises(InputError, match=f"cannot read .*{name}: the object store at .* does not answer"):
        ingest(tmp_path / "run", f"{place}/{name}")
    assert storage.list_files(str(tmp_path / "run" / "quarantine")) == []
    proxy.close()


def test_parquet_reads_that_break_off_are_input_errors(server, place, monkeypatch):
    uri = f"{place}/part.parquet"
    storage.write_parquet(uri, pa.table({"a": [os.urandom(3_000_000)], "b": [1]}))
    proxy = CuttingProxy(server.port)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{proxy.port}")
    proxy.cut(1_000_000)
    with pytest.raises(InputError, match="does not answer"):
        storage.read_parquet(uri)
    proxy.cut(None)
    with storage.open_input(uri) as source:
        file = pq.ParquetFile(source)
        proxy.cut(1_000_000)
        with pytest.raises(InputError, match="does not answer"):
            file.read_row_groups([0])
    proxy.close()


def test_more_than_a_thousand_keys(server, place):
    client = server.client()
    prefix = place.split("/", 3)[3]
    with ThreadPoolExecutor(8) as pool:
        list(
            pool.map(
                lambda i: client.put_object(Bucket=BUCKET, Key=f"{prefix}/many/{i % 3}/{i:05d}.json", Body=b"{}"),
                range(2_300),
            )
        )
    assert len(storage.list_files(f"{place}/many", recursive=True)) == 2_300
    assert len(storage.expand(f"{place}/many/*/*.json")) == 2_300
    assert len(storage.expand(f"{place}/many/1/00?0?.json")) == 33
    storage.delete_directory(f"{place}/many")
    assert not [key for key in list_keys(server, f"{place}/many") if not key.endswith("/")]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*.jsonl", ["a.jsonl"]),
        ("**/*.jsonl", ["a.jsonl", "x/b.jsonl", "x/y/c.jsonl"]),
        ("x/?/c.jsonl", ["x/y/c.jsonl"]),
        ("x", ["x/b.jsonl", "x/note.txt", "x/y/c.jsonl"]),
        ("x/", ["x/b.jsonl", "x/note.txt", "x/y/c.jsonl"]),
    ],
)
def test_globs_and_hidden_names_are_as_on_disk(server, pattern, expected):
    place = f"s3://{BUCKET}/globs"
    for name in ("a.jsonl", "x/b.jsonl", "x/y/c.jsonl", "x/.hidden.jsonl", "x/note.txt", ".git/d.jsonl", "_t/e.jsonl"):
        storage.write_bytes(f"{place}/{name}", b"{}")
    assert [file.uri.removeprefix(f"{place}/") for file in storage.expand(f"{place}/{pattern}")] == expected


@pytest.mark.parametrize("name", ["a.gz", "a.zst", "a.json", "a.parquet"])
def test_bytes_are_stored_as_they_are_whatever_the_name(server, place, name):
    data = b"hello " * 1000
    storage.write_bytes(f"{place}/{name}", data)
    (key,) = list_keys(server, place)
    assert server.client().get_object(Bucket=BUCKET, Key=key)["Body"].read() == data
    assert storage.read_bytes(f"{place}/{name}") == data


def test_folders_empty_objects_and_odd_names(place):
    assert not storage.is_directory(f"{place}/folder")
    storage.write_bytes(f"{place}/folder/empty", b"")
    assert storage.is_directory(f"{place}/folder")
    assert storage.is_directory(f"s3://{BUCKET}")
    assert storage.stat(f"{place}/folder") is None
    empty = storage.stat(f"{place}/folder/empty")
    assert empty is not None
    assert (empty.size_bytes, empty.modified_ns > 1_600_000_000 * 10**9) == (0, True)
    assert storage.read_bytes(f"{place}/folder/empty") == b""
    odd = f"{place}/folder/a b#c%20é+&[1].json"
    storage.write_bytes(odd, b"odd")
    assert [storage.read_bytes(file.uri) for file in storage.expand(odd)] == [b"odd"]
    assert [file.uri for file in storage.list_files(f"{place}/folder/")] == [odd, f"{place}/folder/empty"]
    storage.check_writable(f"{place}/new")
    storage.delete_file(f"{place}/folder/nothing")
    storage.delete_directory(f"{place}/nothing")


def test_reads_of_any_size_and_order_give_the_same_bytes(place):
    data = os.urandom(9_000_000)
    storage.write_bytes(f"{place}/object", data)
    with storage.open_input(f"{place}/object") as source:
        for start, size in ((0, 10), (10, 70_000), (8_999_990, 100), (4_194_300, 20), (5, 5_000_000), (5_000_005, 1)):
            source.seek(start)
            assert source.read(size) == data[start : start + size]
        source.seek(0)
        assert b"".join(iter(lambda: source.read(65_536), b"")) == data
        assert source.size() == len(data)


def test_errors_name_the_uri_and_what_to_do_and_exit_with_2(server, place, demo_logs, capsys, monkeypatch):
    storage.write_bytes(f"{place}/logs.jsonl", (demo_logs / "celr_benchmark.jsonl").read_bytes())
    good = {"logs": f"{place}/logs.jsonl", "out": f"{place}/run"}
    nobody = aws_environment(server.port, "nobody", "secret")
    wrong = aws_environment(server.port, secret="wrong-secret")
    reader = aws_environment(server.port, READER_KEY, READER_SECRET)
    away = {"AWS_ENDPOINT_URL": "http://127.0.0.1:1"}
    cases = [
        ({"logs": "s3://no-such-bucket/logs"}, {}, "s3://no-such-bucket/logs: there is no bucket 'no-such-bucket'"),
        ({"logs": "s3://no-such-bucket/*.json"}, {}, "there is no bucket 'no-such-bucket'"),
        ({"out": "s3://no-such-bucket/run"}, {}, "there is no bucket 'no-such-bucket'"),
        ({"logs": f"{place}/missing"}, {}, f"no such file or folder: {place}/missing"),
        ({"logs": f"{place}/missing/*.json"}, {}, f"no such folder: {place}/missing"),
        ({"out": good["logs"]}, {}, "is a file; give a folder"),
        ({}, nobody, "access denied"),
        ({}, wrong, "Check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"),
        ({"logs": str(demo_logs)}, wrong, place),
        ({}, reader, f"cannot write {place}/run"),
        ({}, away, "the object store at http://127.0.0.1:1 does not answer"),
        ({"logs": str(demo_logs)}, away, "does not answer"),
        ({}, {"AWS_ENDPOINT_URL": "127.0.0.1:1"}, "must be http://HOST:PORT"),
        ({}, {"AWS_MAX_ATTEMPTS": "x"}, "AWS_MAX_ATTEMPTS is 'x'"),
        ({"logs": "s3:/bucket/x"}, {}, "two slashes"),
        ({"logs": "s3:///x"}, {}, "s3://BUCKET/KEY"),
        ({"logs": "s3://key:hidden@bucket/x"}, {}, "no bucket has such a name"),
    ]
    for words, settings, message in cases:
        with monkeypatch.context() as patch:
            for name, value in settings.items():
                patch.setenv(name, value)
            call = {**good, **words}
            assert run_cli("pipeline", "--logs", call["logs"], "--out", call["out"], *LOOP) == 2, (words, message)
            error = capsys.readouterr().err.strip()
            assert message in error, (words, error)
            assert "hidden" not in error
            assert "\n" not in error
    assert not storage.list_files(f"{place}/run", recursive=True)


def test_endpoint_region_and_credentials_of_a_profile(server, place, tmp_path, monkeypatch):
    storage.write_bytes(f"{place}/object", b"x")
    settings = aws_environment(server.port)
    for name in ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION"):
        monkeypatch.delenv(name)
    (tmp_path / "config").write_text(
        f"[profile lab]\nregion = eu-lab-1\nendpoint_url = {settings['AWS_ENDPOINT_URL']}\n[default]\nregion = eu-one\n"
    )
    (tmp_path / "credentials").write_text(
        f"[lab]\naws_access_key_id = {settings['AWS_ACCESS_KEY_ID']}\n"
        f"aws_secret_access_key = {settings['AWS_SECRET_ACCESS_KEY']}\n"
    )
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    assert s3.read_settings().region == "eu-one"
    monkeypatch.setenv("AWS_PROFILE", "lab")
    assert storage.read_bytes(f"{place}/object") == b"x"
    assert s3.open_s3(BUCKET).region == "eu-lab-1"


def test_settings_of_the_environment_and_their_order(monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "https://store:9000/")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "later")
    settings = s3.read_settings()
    assert (settings.endpoint, settings.scheme, settings.region) == ("store:9000", "https", "us-east-1")
    monkeypatch.delenv("AWS_REGION")
    assert s3.read_settings().region == "later"
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "0")
    with pytest.raises(ConfigError, match="AWS_MAX_ATTEMPTS"):
        s3.read_settings()


def test_one_file_system_a_setting_and_no_secret_in_its_pickle(server, monkeypatch):
    import pickle

    first = s3.open_s3(BUCKET)
    assert s3.open_s3("another") is first
    assert b"writer-secret" not in pickle.dumps(first)
    assert pickle.loads(pickle.dumps(first)).get_file_info(BUCKET).type.name == "Directory"
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "other")
    assert s3.open_s3(BUCKET) is not first


HOLD = """
import sys, time
from celr_ray.lock import run_lock
with run_lock(sys.argv[1]):
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_second_run_is_refused_and_a_killed_one_is_taken_over(server, place, demo_logs, capsys):
    command = ("score", "--logs", demo_logs, "--run", f"{place}/run", *LOOP)
    with subprocess.Popen([sys.executable, "-c", HOLD, f"{place}/run"], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "held\n"
        assert run_cli(*command) == 2
        assert f"{place}/run is in use by process {holder.pid} on host " in capsys.readouterr().err
        holder.kill()
    assert any(LOCK_NAME in key for key in list_keys(server, place))
    assert run_cli(*command) == 0
    assert f"took over from process {holder.pid}" in capsys.readouterr().err
    assert not [key for key in list_keys(server, place) if LOCK_NAME in key]


def test_a_claim_from_elsewhere_is_taken_over_when_it_is_no_longer_touched(place, monkeypatch, capsys):
    monkeypatch.setattr(owner_module, "STALE_S", 2.0)
    monkeypatch.setattr(lock_module, "HEARTBEAT_S", 0.1)
    far = replace(make_owner(), machine="boot/1", host="far")
    claim = f"{place}/run/{LOCK_NAME}-{far.token}"
    storage.write_bytes(claim, encode_owner(far))
    with pytest.raises(OutputError, match=f"on host far.*delete {claim}"), run_lock(f"{place}/run"):
        pass
    time.sleep(4)
    with run_lock(f"{place}/run") as lock:
        assert "took over from process" in capsys.readouterr().err
        assert storage.stat(claim) is None
        (own,) = storage.list_files(f"{place}/run", with_hidden=True)
        time.sleep(2.5)
        (touched,) = storage.list_files(f"{place}/run", with_hidden=True)
        assert touched.modified_ns > own.modified_ns
        lock.check()
        storage.delete_file(own.uri)
        time.sleep(1)
        with pytest.raises(OutputError, match="no longer ours"):
            lock.check()
    forget_owner(far)


def test_of_many_that_start_at_once_one_at_a_time_holds_the_lock(place):
    holders, met = [], []

    def take(_):
        try:
            with run_lock(f"{place}/run"):
                holders.append(1)
                met.append(len(holders))
                storage.stat(f"{place}/run/x")
                holders.pop()
        except OutputError:
            pass

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(take, range(8)))
    assert met
    assert set(met) == {1}


def test_a_policy_lives_in_a_bucket(place):
    made = save_artefact(place, sample_artefact(1))
    assert load_artefact(place).manifest == made
    assert load_policy(place).content_hash == made.content_hash
    storage.write_bytes(f"{place}/policy.npz", b"other")
    with pytest.raises(PolicyError, match="was changed since it was written"):
        load_policy(place)
    with pytest.raises(PolicyError, match="no policy in"):
        load_policy(f"{place}-none")
