"""ATIF in and out: every version is read, what is written is valid by the `atif` package and reads back the same."""

import gzip
import json
import re

import atif
import pytest
from conftest import ROOT
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from runs import LOOP, ingest, quarantine, read_rows
from test_cli import run_cli

from celr_ray import storage
from celr_ray.errors import InputError, RecordError, RunMismatchError
from celr_ray.logs.api import normalise_record
from celr_ray.logs.base import CallNumbers, ParsedMessage, dump_tool_calls, render_tool_call
from celr_ray.logs.convert import make_document, run_convert
from celr_ray.logs.registry import READERS
from celr_ray.schema import Message, Trajectory

PLACES = {"trajectory_id", "source_uri", "source_format", "source_offset", "source_index", "bucket"}


def content(row):
    """What must survive: all columns but those that say where the record lies."""
    return {name: value for name, value in row.items() if name not in PLACES}


def contents(run):
    return sorted(json.dumps(content(row), sort_keys=True) for row in read_rows(run))


def make_step(number, source, message, **fields):
    return {"step_id": number, "source": source, "message": message, **fields}


def make_call(call_id="c1", name="look", **arguments):
    return {"tool_call_id": call_id, "function_name": name, "arguments": arguments}


def make_atif(*steps, **fields):
    """Build a document of ATIF and check with the package that it is one."""
    steps = steps or (make_step(1, "user", "Hi"), make_step(2, "agent", "Hello"))
    agent = {"name": "a", "version": "1", "model_name": "m"}
    document = {"schema_version": "ATIF-v1.8", "agent": agent, "steps": list(steps), **fields}
    atif.Trajectory.model_validate(document)
    return document


def read_all(document):
    """Return every run of a document, sub-agents included."""
    from celr_ray.logs.base import SourceContext

    return [item.result for item in READERS["atif"].read(json.dumps(document).encode(), SourceContext())]


@pytest.mark.parametrize("minor", range(9))
def test_every_version_is_read(minor):
    row = normalise_record(make_atif(schema_version=f"ATIF-v1.{minor}", session_id="s-1"))
    assert row["source_format"] == "atif"
    assert [(m["role"], m["content"]) for m in row["messages"]] == [("user", "Hi"), ("assistant", "Hello")]
    assert (row["model"], row["success"], row["status"], row["cost_usd"]) == ("m", None, "UNKNOWN", None)
    assert re.fullmatch(r"atif/prompt-[0-9a-f]{16}", row["task_id"])


def test_the_task_is_the_first_user_message_and_not_the_session():
    first = normalise_record(make_atif(session_id="1", trajectory_id="1"))
    second = normalise_record(make_atif(session_id="2", trajectory_id="2"))
    other = normalise_record(make_atif(make_step(1, "user", "Bye"), make_step(2, "agent", "Hello")))
    assert first["task_id"] == second["task_id"] != other["task_id"]


def test_tool_calls_and_observations():
    steps = (
        make_step(1, "system", "Rules"),
        make_step(2, "user", "Go"),
        make_step(
            3,
            "agent",
            "",
            tool_calls=[make_call("z9", "look", at="é"), make_call("z8", "push")],
            observation={"results": [{"source_call_id": "z8", "content": "B"}, {"source_call_id": "z9"}]},
            metrics={"cost_usd": 0.25},
        ),
        make_step(4, "agent", "Now", tool_calls=[make_call("z7", "stop")], observation={"results": [{"content": "C"}]}),
        make_step(5, "agent", "ls", observation={"results": [{"content": "a.py"}]}, metrics={"cost_usd": 0.5}),
    )
    row = normalise_record(make_atif(*steps))
    shown = [(m["role"], m["content"], m["name"], m["tool_call_id"]) for m in row["messages"]]
    assert shown == [
        ("system", "Rules", None, None),
        ("user", "Go", None, None),
        ("assistant", None, None, None),
        ("tool", "B", "push", "call_2"),
        ("tool", None, "look", "call_1"),
        ("assistant", "Now", None, None),
        ("tool", "C", "stop", "call_3"),
        ("assistant", "ls", None, None),
        ("user", "a.py", None, None),
    ]
    assert json.loads(row["messages"][2]["tool_calls"])[0]["function"]["arguments"] == '{"at": "é"}'
    assert (row["cost_usd"], row["n_steps"]) == (0.75, 3)
    assert normalise_record(make_atif(*steps, final_metrics={"total_cost_usd": 2.0}))["cost_usd"] == 2.0


def test_copied_context_is_left_out_but_still_tells_the_task():
    steps = (
        make_step(1, "user", "Task", is_copied_context=True),
        make_step(
            2,
            "agent",
            "Old",
            is_copied_context=True,
            tool_calls=[make_call()],
            observation={"results": [{"source_call_id": "c1", "content": "old"}]},
            metrics={"cost_usd": 9.0},
        ),
        make_step(3, "user", "Summary"),
        make_step(4, "agent", "New", tool_calls=[make_call("c2")], metrics={"cost_usd": 1.0}),
    )
    row = normalise_record(make_atif(*steps))
    assert [m["content"] for m in row["messages"]] == ["Summary", "New"]
    assert json.loads(row["messages"][1]["tool_calls"])[0]["id"] == "call_1"
    assert (row["n_hidden_messages"], row["cost_usd"]) == (3, 1.0)
    whole = make_atif(make_step(1, "user", "Task"), make_step(2, "agent", "x"))
    assert row["task_id"] == normalise_record(whole)["task_id"]


def test_parts_that_are_no_text_become_placeholders_and_are_counted():
    parts = [
        {"type": "text", "text": "See"},
        {"type": "image", "source": {"media_type": "image/png", "path": "a.png"}},
        {"type": "audio", "source": {"media_type": "audio/wav", "path": "a.wav"}},
    ]
    refs = {"results": [{"subagent_trajectory_ref": [{"trajectory_path": "x.json"}]}]}
    row = normalise_record(make_atif(make_step(1, "user", parts), make_step(2, "agent", "ok", observation=refs)))
    assert [m["content"] for m in row["messages"]] == [
        "See\n[image: image/png]\n[audio: audio/wav]",
        "ok",
        "[sub-agent run]",
    ]
    assert row["n_hidden_messages"] == 3


def test_sub_agents_are_runs_of_their_own(tmp_path):
    def sub(name, **fields):
        return make_atif(make_step(1, "user", name), make_step(2, "agent", "done"), trajectory_id=name, **fields)

    document = make_atif(subagent_trajectories=[sub("a", subagent_trajectories=[sub("b")]), sub("c")])
    assert [run.messages[0].content for run in read_all(document)] == ["Hi", "a", "b", "c"]
    document["subagent_trajectories"][1]["steps"][1]["source"] = "nobody"
    path = tmp_path / "trajectory.json"
    path.write_text(json.dumps(document, indent=1))
    counts = ingest(tmp_path / "run", path).counts
    assert (counts["rows_in"], counts["rows_out"], counts["rejected"]) == (4, 3, 1)
    (row,) = quarantine(tmp_path / "run")
    assert (row.index, "'nobody'" in row.reason) == (3, True)
    assert sorted(r["source_index"] for r in read_rows(tmp_path / "run")) == [0, 1, 2]


def test_sub_agents_nested_without_end_are_cut_off():
    document = make_atif()
    for _ in range(40):
        document = {**make_atif(), "subagent_trajectories": [document]}
    results = read_all(document)
    assert len(results) == 17
    assert isinstance(results[-1], RecordError)


@pytest.mark.parametrize(
    ("celr", "expected"),
    [
        ({"task_id": "x/1"}, (None, None, "UNKNOWN", 1)),
        ({"task_id": "x/1", "reward": 1.0}, (True, 1.0, "SUCCESS", 1)),
        ({"task_id": "x/1", "reward": 1.0, "success": None}, (None, 1.0, "UNKNOWN", 1)),
        ({"task_id": "x/1", "success": False, "status": "STUCK", "n_steps": None}, (False, None, "STUCK", None)),
    ],
)
def test_extra_celr_says_what_atif_lacks(celr, expected):
    row = normalise_record(make_atif(extra={"celr": celr, "other": {"a": 1}}))
    assert (row["success"], row["reward"], row["status"], row["n_steps"]) == expected
    assert row["task_id"] == "x/1"


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"schema_version": "ATIF-v2.0"}, "ATIF-v1.0 to ATIF-v1.8 are known"),
        ({"steps": []}, "no steps"),
        ({"steps": [make_step(1, "user", "Hi")]}, "no message of the agent"),
        ({"steps": [make_step(1, "agent", "Hi")]}, "no task id and no user message"),
        ({"final_metrics": {"total_cost_usd": -1}}, "total_cost_usd"),
        ({"extra": {"celr": {"task_id": " "}}}, "task id is empty"),
        ({"extra": {"celr": {"task_id": "x", "status": "FINE"}}}, "$.extra.celr.status"),
        ({"extra": {"celr": {"task_id": "x", "n_retries": 2**40}}}, "$.extra.celr.n_retries"),
    ],
)
def test_unusable_documents(fields, reason):
    with pytest.raises(RecordError, match=re.escape(reason)):
        normalise_record({**make_atif(), **fields})


def convert_back(run, again):
    """Convert a run, check every file with the package, and ingest the files into another run."""
    report = run_convert(str(run), LOOP)
    files = storage.list_files(str(run / "atif"), recursive=True)
    assert len(files) == report.counts["rows_in"] == report.counts["rows_out"]
    for file in files:
        document = atif.Trajectory.model_validate_json(storage.read_bytes(file.uri))
        assert document.schema_version == "ATIF-v1.8"
    counts = ingest(again, run / "atif").counts
    assert (counts["rows_out"], counts["rejected"]) == (len(files), 0)
    assert counts["formats.atif"] == len(files)
    return files


def test_round_trip_of_all_formats(tmp_path, demo_logs, data):
    ingest(tmp_path / "run", demo_logs, data)
    files = convert_back(tmp_path / "run", tmp_path / "again")
    assert len(files) == 92 + 3 + 3 + 2 + 10 + 10
    assert contents(tmp_path / "run") == contents(tmp_path / "again")
    convert_back(tmp_path / "again", tmp_path / "third")
    assert contents(tmp_path / "run") == contents(tmp_path / "third")


arguments = st.one_of(
    st.text(st.characters(exclude_categories=("Cs",)), max_size=20),
    st.sampled_from([50, 70, 300, 900, 5000]).map(lambda depth: '{"a":' * depth + "1" + "}" * depth),
    st.sampled_from(
        ['{"a":1}', '{"a": 1}', '{"a": 1e400}', '{"a": "\\ud800"}', '{"a": NaN}', "[" * 2000, '{"a":2,"a":2}']
    ),
    st.dictionaries(st.text(max_size=3), st.one_of(st.text(max_size=5), st.integers(), st.floats(), st.none())).map(
        lambda value: json.dumps(value, ensure_ascii=False)
    ),
)
words = st.one_of(st.none(), st.text(st.characters(exclude_categories=("Cs",)), max_size=30))


@st.composite
def conversations(draw):
    """Any conversation that a reader can give: calls numbered in order, answers to any call or none."""
    numbers, made = CallNumbers(), [None]
    messages = []
    for role in draw(st.lists(st.sampled_from(["system", "user", "assistant", "tool"]), max_size=12)):
        if role == "tool":
            messages.append(ParsedMessage(role, draw(words), draw(words), draw(st.sampled_from(made))))
            continue
        calls = []
        for _ in range(draw(st.integers(0, 2)) if role == "assistant" else 0):
            made.append(numbers.assign(None))
            calls.append(render_tool_call(made[-1], draw(st.sampled_from(["f", "", "é"])), draw(arguments)))
        messages.append(ParsedMessage(role, draw(words), tool_calls=dump_tool_calls(calls)))
    return messages


def make_row(messages, **fields):
    dicts = [message._asdict() for message in messages]
    places = {"trajectory_id": "0" * 32, "source_uri": "", "source_format": "x", "source_offset": 0, "source_index": 0}
    row = {"task_id": "x/1", "status": "UNKNOWN", "bucket": 0, "messages": dicts, **places, **fields}
    return Trajectory.model_validate(row).model_dump()


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(messages=conversations())
def test_every_conversation_survives_exactly(messages):
    document = make_document(make_row(messages))
    atif.Trajectory.model_validate_json(json.dumps(document, indent=1, ensure_ascii=False))
    (run,) = read_all(document)
    assert run.messages == messages


count = st.one_of(st.none(), st.integers(0, 2**31 - 1))
figure = st.one_of(st.none(), st.floats(0, 1e12))


@settings(max_examples=200, deadline=None)
@given(
    fields=st.fixed_dictionaries(
        {
            "domain": words,
            "model": words,
            "prompt": words,
            "status": st.sampled_from(["SUCCESS", "FAILED", "STUCK", "UNKNOWN"]),
            "success": st.one_of(st.none(), st.booleans()),
            "reward": st.one_of(st.none(), st.floats(-1e12, 1e12)),
            "cost_usd": figure,
            "budget_limit_usd": figure,
            "duration_s": figure,
            "n_steps": count,
            "n_steps_completed": count,
            "n_retries": count,
            "n_hidden_messages": st.integers(0, 2**31 - 1),
        }
    )
)
def test_every_figure_survives_exactly(fields):
    row = make_row([ParsedMessage("user", "Hi")], **fields)
    document = make_document(row)
    atif.Trajectory.model_validate(document)
    (run,) = read_all(document)
    assert {name: getattr(run, name) for name in fields} == fields


def test_tool_calls_that_are_no_calls_are_an_error(tmp_path, data):
    broken = Message(role="assistant", tool_calls="[1]").model_dump()
    row = {**make_row([]), "messages": [broken]}
    with pytest.raises(RecordError, match="not a JSON list of calls"):
        make_document(row)


def test_convert_command_from_logs_then_resume_then_from_the_run(tmp_path, demo_logs, capsys):
    (tmp_path / "logs").mkdir()
    lines = (demo_logs / "celr_benchmark.jsonl").read_bytes()
    (tmp_path / "logs" / "a.jsonl").write_bytes(lines + b'{"broken\n')
    run = tmp_path / "run"
    command = ("convert", "--logs", tmp_path / "logs", "--run", run, "--runtime.executor", "loop")
    assert run_cli(*command) == 0
    first = capsys.readouterr()
    assert first.out == f"46 ATIF files in {run}/atif, 1 records rejected\n"
    assert quarantine(run)[0].line == 47
    record = json.loads((run / "run.json").read_text())["stages"]
    assert (record["ingest"]["rejected"], record["convert"]["rows_out"]) == (1, 46)

    before = {file.uri: file.modified_ns for file in storage.list_files(str(run / "atif"), recursive=True)}
    assert run_cli(*command) == 0
    assert run_cli("convert", "--run", run, "--runtime.executor", "loop") == 0
    assert "0 of 1 units run now" in capsys.readouterr().err
    assert {file.uri: file.modified_ns for file in storage.list_files(str(run / "atif"), recursive=True)} == before

    (tmp_path / "logs" / "a.jsonl").write_bytes(lines[: len(lines) // 2])
    assert run_cli(*command) == 2
    assert run_cli(*command, "--overwrite") == 0
    files = storage.list_files(str(run / "atif"), recursive=True)
    assert len(files) == len(read_rows(run)) < 46


def test_convert_refuses_what_is_no_run(tmp_path, demo_logs, capsys):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "precious.txt").write_text("mine")
    assert run_cli("convert", "--run", tmp_path / "other") == 2
    assert "holds no run" in capsys.readouterr().err
    assert run_cli("convert", "--logs", tmp_path / "none", "--run", tmp_path / "run") == 2
    assert "no such file or folder" in capsys.readouterr().err
    ingest(tmp_path / "run", demo_logs / "celr_benchmark.jsonl")
    (tmp_path / "run" / "manifests" / "ingest" / "part-00000.json").unlink()
    with pytest.raises(InputError, match="no finished ingest stage"):
        run_convert(str(tmp_path / "run"), LOOP)


def test_files_of_other_trajectories_are_not_mixed(tmp_path, demo_logs, data):
    ingest(tmp_path, demo_logs / "celr_benchmark.jsonl")
    run_convert(str(tmp_path), LOOP)
    ingest(tmp_path, data / "celr_step.jsonl", overwrite=True)
    assert not (tmp_path / "atif").exists()
    run_convert(str(tmp_path), LOOP)
    ingest(tmp_path / "again", tmp_path / "atif")
    assert len(read_rows(tmp_path / "again")) == 3
    plan = json.loads((tmp_path / "plans" / "convert.json").read_text())
    plan["settings"]["ingest"] = "other"
    (tmp_path / "plans" / "convert.json").write_text(json.dumps(plan))
    with pytest.raises(RunMismatchError):
        run_convert(str(tmp_path), LOOP)


def test_ray_and_the_loop_write_the_same_files(tmp_path, demo_logs, data, local_ray):
    for name, on_ray in (("loop", False), ("ray", True)):
        ingest(tmp_path / name, demo_logs / "celr_benchmark.jsonl", data / "intercode.jsonl.gz", files_per_unit=1)
        run_convert(str(tmp_path / name), LOOP, on_ray=on_ray)
    found = []
    for name in ("loop", "ray"):
        folder = tmp_path / name / "atif"
        found.append({str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.json")})
    assert found[0] == found[1]
    assert len(found[0]) == 56


@pytest.fixture(scope="module")
def fuzz_document():
    call = {"tool_calls": [make_call()], "observation": {"results": [{"source_call_id": "c1", "content": "x"}]}}
    steps = (make_step(1, "user", [{"type": "text", "text": "Hi"}]), make_step(2, "agent", "", **call))
    sub = make_atif(trajectory_id="s", extra={"celr": {"task_id": "x/2", "reward": 0.5}})
    return json.dumps(make_atif(*steps, subagent_trajectories=[sub], extra={"celr": {"task_id": "x/1"}})).encode()


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(choice=st.data())
def test_changed_bytes_never_crash_and_no_row_is_lost(tmp_path_factory, fuzz_document, choice):
    raw = bytearray(fuzz_document)
    for _ in range(choice.draw(st.integers(1, 3))):
        at = choice.draw(st.integers(0, max(len(raw) - 1, 0)))
        if choice.draw(st.booleans()):
            raw[at : at + choice.draw(st.integers(0, 20))] = choice.draw(st.binary(max_size=4))
        else:
            del raw[at : at + choice.draw(st.integers(1, 30))]
    folder = tmp_path_factory.mktemp("fuzz")
    path = folder / choice.draw(st.sampled_from(["t.json", "t.json.gz"]))
    path.write_bytes(gzip.compress(bytes(raw)) if path.suffix == ".gz" else bytes(raw))
    counts = ingest(folder / "run", path).counts
    assert counts["rows_in"] == counts["rows_out"] + counts["rejected"] > 0
    assert len(read_rows(folder / "run")) == counts["rows_out"]
    assert len(quarantine(folder / "run")) == counts["rejected"]


def test_the_package_is_not_needed_to_read_or_write():
    for name in ("atif", "convert"):
        source = (ROOT / "celr_ray" / "logs" / f"{name}.py").read_text()
        assert not re.search(r"^\s*(import|from) atif\b", source, re.MULTILINE)
