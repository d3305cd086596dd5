"""The log readers on real logs: what is mapped, what is null, what is left out."""

import json
import shutil

import pytest
from runs import ingest, quarantine, read_gz_json, read_rows

from celr_ray.config import IngestConfig
from celr_ray.errors import InputError
from celr_ray.logs.api import normalise_record
from celr_ray.logs.ingest import describe_lacks
from celr_ray.logs.planning import choose_split_bytes, make_plan, plan_units
from celr_ray.schema import Trajectory
from celr_ray.storage import StoredFile


@pytest.fixture(scope="module")
def demo_rows(tmp_path_factory, demo_logs):
    run = tmp_path_factory.mktemp("run")
    report = ingest(run, demo_logs)
    assert report.counts["rows_in"] == report.counts["rows_out"] == 32 + 6 + 6 + 2 + 46
    assert report.counts["rejected"] == 0
    return read_rows(run)


def of_format(rows, name):
    return [row for row in rows if row["source_format"] == name]


def test_every_row_is_a_valid_trajectory(demo_rows):
    for row in demo_rows:
        Trajectory.model_validate(row)


def test_tau_bench_mapping(demo_rows, demo_logs):
    source = read_gz_json(demo_logs / "gpt-4o-airline.json.gz")
    rows = {row["source_index"]: row for row in of_format(demo_rows, "tau_bench")}
    assert len(rows) == len(source) == 32
    for index, record in enumerate(source):
        row = rows[index]
        assert row["task_id"] == f"tau_bench/airline/{record['task_id']}"
        assert (row["domain"], row["model"]) == ("airline", "gpt-4o")
        assert row["success"] is (record["reward"] == 1.0)
        assert row["prompt"] == record["info"]["task"]["instruction"]
        assert [m["role"] for m in row["messages"]] == [m["role"] for m in record["traj"]]
        assert [m["content"] for m in row["messages"]] == [m["content"] for m in record["traj"]]
        assert row["cost_usd"] is None
        assert row["efficiency_score"] is None


def test_tool_calls_keep_their_arguments_and_get_running_ids(demo_rows, demo_logs):
    record = read_gz_json(demo_logs / "gpt-4o-airline.json.gz")[0]
    row = next(r for r in of_format(demo_rows, "tau_bench") if r["source_index"] == 0)
    expected = [c["function"] for m in record["traj"] for c in m.get("tool_calls") or []]
    calls = [c for m in row["messages"] if m["tool_calls"] for c in json.loads(m["tool_calls"])]
    assert [c["function"] for c in calls] == expected
    assert [c["id"] for c in calls] == [f"call_{i + 1}" for i in range(len(calls))]
    answered = [m["tool_call_id"] for m in row["messages"] if m["role"] == "tool"]
    assert answered == [c["id"] for c in calls]


def test_tau2_bench_mapping(demo_rows, demo_logs):
    rows = of_format(demo_rows, "tau2_bench")
    assert len({row["model"] for row in rows}) == 2
    source = read_gz_json(demo_logs / "airline_gpt-4o-2024-11-20.json.gz")
    by_id = {s["task_id"]: s for s in source["simulations"]}
    for row in rows:
        if row["model"] != source["info"]["agent_info"]["llm"]:
            continue
        simulation = by_id[row["task_id"].rsplit("/", 1)[-1]]
        assert row["cost_usd"] == simulation["agent_cost"]
        assert row["duration_s"] == simulation["duration"]
        assert row["reward"] == simulation["reward_info"]["reward"]
        assert row["budget_limit_usd"] is None


def test_the_same_task_run_by_two_models_is_one_task(demo_rows):
    rows = of_format(demo_rows, "tau2_bench")
    assert len(rows) == 12
    assert len({row["task_id"] for row in rows}) == 6


def test_task_definitions_give_the_task_text_and_are_no_logs(demo_rows, demo_logs):
    texts = {t["id"]: t["user_scenario"]["instructions"] for t in read_gz_json(demo_logs / "tasks_airline.json.gz")}
    for row in of_format(demo_rows, "tau2_bench"):
        assert texts[row["task_id"].rsplit("/", 1)[-1]]["reason_for_call"].strip() in row["prompt"]


def test_task_texts_of_another_run_are_not_used(tmp_path, demo_logs):
    runs, tasks = demo_logs / "airline_qwen2.5-7b.json.gz", demo_logs / "tasks_airline.json.gz"
    ingest(tmp_path, runs, tasks)
    assert all(row["prompt"] for row in read_rows(tmp_path))
    ingest(tmp_path, runs, overwrite=True)
    assert not any(row["prompt"] for row in read_rows(tmp_path))


def test_tau2_hidden_and_solo_messages():
    base = {"role": "assistant", "content": "Hi"}
    user_call = {"role": "user", "content": None, "tool_calls": [{"id": "x", "name": "toggle", "arguments": {}}]}
    user_tool = {"role": "tool", "id": "x", "content": "on", "requestor": "user"}
    agent_call = {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"id": "y", "name": "look", "arguments": {"a": 1}}],
    }
    agent_tool = {"role": "tool", "id": "y", "content": "found", "requestor": "assistant"}

    def record(messages):
        run = {"task_id": "7", "messages": messages, "termination_reason": "max_steps", "reward_info": {"reward": 0.0}}
        return {"info": {"environment_info": {"domain_name": "telecom"}}, "simulations": [run]}

    seen = normalise_record(
        record([base, {"role": "user", "content": "Help"}, user_call, user_tool, agent_call, agent_tool])
    )
    assert seen["task_id"] == "tau2_bench/telecom/7"
    assert seen["n_hidden_messages"] == 2
    assert [m["role"] for m in seen["messages"]] == ["assistant", "user", "assistant", "tool"]
    assert seen["status"] == "STUCK"
    solo = normalise_record(record([agent_call, agent_tool, base]))
    assert solo["task_id"] == "tau2_bench/telecom-solo/7"


def test_equal_ids_of_two_domains_are_two_tasks():
    def run(domain):
        system = {"role": "system", "content": f"# {domain} agent policy\nBe kind."}
        traj = [system, {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
        return normalise_record({"task_id": 0, "reward": 1.0, "info": {}, "traj": traj})["task_id"]

    assert (run("Airline"), run("Retail")) == ("tau_bench/airline/0", "tau_bench/retail/0")


def test_celr_plan_mapping(demo_rows, demo_logs):
    source = json.loads((demo_logs / "celr_plan_0.json").read_text())
    row = next(r for r in of_format(demo_rows, "celr_plan") if r["source_uri"].endswith("celr_plan_0.json"))
    assert row["task_id"] == "celr/demo-run-001"
    assert row["cost_usd"] == source["total_cost"]
    assert row["budget_limit_usd"] == 0.5
    assert (row["n_steps"], row["n_steps_completed"], row["n_retries"]) == (2, 2, 0)
    assert row["cost_score"] == pytest.approx(1 - source["total_cost"] / 0.5)
    assert row["completion_score"] == row["efficiency_score"] == row["success_score"] == 1
    text = row["messages"][1]["content"]
    assert all(step["output"] in text for step in source["plan"])
    assert not any(line in text for line in source["execution_log"])


def test_celr_step_mapping(tmp_path, data):
    report = ingest(tmp_path, data / "celr_step.jsonl")
    assert report.counts["rows_out"] == 3
    rows = {(row["task_id"], row["status"]): row for row in read_rows(tmp_path)}
    good = rows["celr/csv-1", "SUCCESS"]
    assert (good["n_retries"], good["n_steps"], good["n_steps_completed"]) == (1, 2, 2)
    assert good["budget_limit_usd"] is None
    assert good["cost_score"] is None
    assert good["missing_scores"] == ["cost"]
    assert rows["celr/regex-2", "STUCK"]["success"] is False
    assert report.counts["missing.celr_step.budget_limit_usd"] == 3


def test_celr_benchmark_outcome_needs_a_right_answer(demo_rows, demo_logs):
    source = [json.loads(line) for line in (demo_logs / "celr_benchmark.jsonl").read_text().splitlines()]
    rows = sorted(of_format(demo_rows, "celr_benchmark"), key=lambda row: row["source_offset"])
    assert [row["success"] for row in rows] == [r["success"] and r["accuracy"] for r in source]
    assert [row["n_retries"] for row in rows] == [r["retries"] for r in source]
    assert {row["duration_s"] for row in rows} == {r["latency_s"] for r in source}


def test_what_a_format_lacks_is_null_in_every_row(demo_rows):
    for name, columns in describe_lacks().items():
        for row in of_format(demo_rows, name):
            assert all(row[column] is None for column in columns), name


@pytest.mark.parametrize("name", ["celr_benchmark", "tau_bench"])
def test_a_named_format_refuses_others(tmp_path, demo_logs, name):
    other = demo_logs / "celr_plan_0.json"
    report = ingest(tmp_path, other, format=name)
    assert report.counts["rejected"] == report.counts["rows_in"] == 1
    assert "wrong shape" in quarantine(tmp_path)[0].reason


def test_named_and_recognised_format_give_the_same_rows(tmp_path, demo_logs):
    path = demo_logs / "gpt-4o-airline.json.gz"
    ingest(tmp_path / "a", path)
    ingest(tmp_path / "b", path, format="tau_bench")
    assert read_rows(tmp_path / "a") == read_rows(tmp_path / "b")


def test_plain_gz_and_zst_give_the_same_texts(tmp_path, demo_logs):
    import pyarrow as pa

    source = (demo_logs / "celr_benchmark.jsonl").read_bytes()
    (tmp_path / "logs").mkdir()
    shutil.copy(demo_logs / "celr_benchmark.jsonl", tmp_path / "logs" / "a.jsonl")
    for suffix, codec in ((".gz", "gzip"), (".zst", "zstd")):
        with pa.CompressedOutputStream(str(tmp_path / "logs" / f"a.jsonl{suffix}"), codec) as sink:
            sink.write(source)
    report = ingest(tmp_path / "run", tmp_path / "logs")
    assert report.counts["rows_out"] == 3 * 46
    by_file: dict[str, list] = {}
    for row in read_rows(tmp_path / "run"):
        by_file.setdefault(row["source_uri"], []).append((row["trajectory_id"], row["source_offset"]))
    first, *others = (sorted(rows) for rows in by_file.values())
    assert all(rows == first for rows in others)


@pytest.mark.parametrize("n_chars", [100, 20_000, 40_000, 400_000])
@pytest.mark.parametrize("name", ["a.json", "a.log", "a", "a.json.gz", "a.json.zst"])
def test_jsonl_is_recognised_by_its_lines_whatever_their_length_and_its_name(tmp_path, name, n_chars):
    import pyarrow as pa

    talk = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "x" * n_chars}]
    data = "\n".join(json.dumps({"task_id": i, "messages": talk}) for i in range(3)).encode()
    codec = {".gz": "gzip", ".zst": "zstd"}.get((tmp_path / name).suffix)
    (tmp_path / name).write_bytes(pa.compress(data, codec, asbytes=True) if codec else data)
    counts = ingest(tmp_path / "run", tmp_path / name).counts
    assert (counts["rows_in"], counts["rows_out"]) == (3, 3)


@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize("end", ["", "\n"])
@pytest.mark.parametrize("n_chars", [100, 100_000])
def test_documents_are_no_jsonl(tmp_path, indent, end, n_chars):
    talk = [{"role": "user", "content": "{}"}, {"role": "assistant", "content": "x" * n_chars}]
    runs = [{"task_id": i, "messages": talk} for i in range(2)]
    (tmp_path / "list.json").write_text(json.dumps(runs, indent=indent) + end)
    (tmp_path / "lines.json").write_text("[\n" + ",\n".join(json.dumps(run) for run in runs) + "\n]" + end)
    (tmp_path / "one.json").write_text(json.dumps(runs[0], indent=indent) + end)
    counts = ingest(tmp_path / "run", *(tmp_path / f"{name}.json" for name in ("list", "lines", "one"))).counts
    assert (counts["rows_in"], counts["rows_out"]) == (5, 5)


def test_one_file_named_twice_is_read_once(tmp_path, demo_logs):
    path = demo_logs / "celr_benchmark.jsonl"
    assert ingest(tmp_path, path, path, demo_logs / "celr_*.jsonl").counts["rows_out"] == 46


def test_folder_without_logs_is_an_error(tmp_path):
    (tmp_path / "notes.txt").write_text("nothing")
    with pytest.raises(InputError, match="no log files"):
        ingest(tmp_path / "run", tmp_path)


MIB = 2**20


@pytest.mark.parametrize(
    ("total_mib", "limit_mib", "unit_mib"),
    [(10, 128, 64), (1_600, 128, 64), (6_400, 128, 100), (50_000, 128, 128), (50_000, 256, 256), (10, 5, 5)],
)
def test_units_are_a_64th_of_the_input_within_bounds(total_mib, limit_mib, unit_mib):
    assert choose_split_bytes(total_mib * MIB, limit_mib * MIB) == unit_mib * MIB


def test_the_plan_names_the_size_of_its_units(tmp_path, demo_logs):
    plan, _, _ = make_plan([str(demo_logs)], IngestConfig())
    assert plan.settings["ingest"]["split_bytes"] == 64 * MIB
    files = [StoredFile(f"{tmp_path}/{name}.jsonl", 800 * MIB, 0) for name in "ab"]
    units = plan_units(files, IngestConfig(split_bytes=choose_split_bytes(1_600 * MIB, 128 * MIB)))
    assert len(units) == 26
