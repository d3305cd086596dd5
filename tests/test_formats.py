"""The readers of SWE-agent, mini-swe-agent, InterCode, Reflexion and OpenAI chat logs, on real samples."""

import gzip
import json
import random
import re

import msgspec
import pytest
from conftest import ROOT
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from runs import ingest, pair, quarantine, read_rows

from celr_ray.config import IngestConfig
from celr_ray.errors import RecordError
from celr_ray.logs.api import normalise_record
from celr_ray.logs.base import SingleRecordReader, SourceContext
from celr_ray.logs.registry import READERS, RecordReader
from celr_ray.schema import Trajectory

SAMPLES = {"swe_agent": 3, "mini_swe_agent": 2, "intercode": 10, "reflexion": 10}
OUTCOME_TEXT = re.compile(r"Exit due to|EXCEEDED MAX TURNS|exit_cost|instance_cost|max_reward|is_success")


def read_sample(data, name):
    with gzip.open(data / f"{name}.jsonl.gz") as source:
        return [json.loads(line) for line in source]


@pytest.fixture(scope="module")
def rows(tmp_path_factory, data):
    """All samples in one run, in file order."""
    run = tmp_path_factory.mktemp("run")
    report = ingest(run, *(data / f"{name}.jsonl.gz" for name in SAMPLES))
    assert report.counts["rejected"] == 0
    found = sorted(read_rows(run), key=lambda row: (row["source_uri"], row["source_offset"]))
    return {name: [row for row in found if row["source_format"] == name] for name in SAMPLES}


def roles(row):
    return [message["role"] for message in row["messages"]]


def texts(row):
    return [message["content"] for message in row["messages"]]


def test_every_sample_row_is_read_by_its_own_reader(rows):
    assert {name: len(found) for name, found in rows.items()} == SAMPLES
    for row in (row for found in rows.values() for row in found):
        Trajectory.model_validate(row)
        assert not any(OUTCOME_TEXT.search(text or "") for text in texts(row))


@pytest.mark.parametrize("name", SAMPLES)
def test_what_a_format_lacks_is_null(rows, name):
    for row in rows[name]:
        assert all(row[column] is None for column in READERS[name].lacks)


def test_every_format_is_named_in_the_settings_and_described():
    text = (ROOT / "docs" / "data_formats.md").read_text()
    assert set(IngestConfig.model_json_schema()["properties"]["format"]["enum"]) == {"auto", *READERS}
    for name, reader in READERS.items():
        section = text.split(f"(`{name}`)")[1].split("\n## ")[0]
        for field in reader.unmapped:
            assert field.split(" ")[0].split("[].")[-1].split(".")[-1] in section, (name, field)


def test_formats_mixed_in_one_file_are_told_apart(tmp_path, data, demo_logs):
    lines = [json.dumps(record) for name in SAMPLES for record in read_sample(data, name)]
    lines += (demo_logs / "celr_benchmark.jsonl").read_text().splitlines()[:5]
    lines += [json.dumps({"messages": [{"role": "user", "content": f"{i}"}, {"role": "assistant"}]}) for i in range(5)]
    random.Random(0).shuffle(lines)
    (tmp_path / "mixed.jsonl").write_text("\n".join(lines))
    counts = ingest(tmp_path / "run", tmp_path / "mixed.jsonl").counts
    found = {key.removeprefix("formats."): n for key, n in counts.items() if key.startswith("formats.")}
    assert found == {**SAMPLES, "celr_benchmark": 5, "chat": 5}


def test_what_passes_for_a_record_of_a_format_is_recognised_as_one():
    """Else the format of a record would depend on the record before it, and so on where a file is cut."""
    for name, reader in READERS.items():
        if not reader.shares_keys and isinstance(reader.read, SingleRecordReader):
            required = {field.encode_name for field in msgspec.structs.fields(reader.read.record) if field.required}
            for others in ({"else"}, {"messages"}, {"history"}, {"id", "info", "model"}):
                keys = frozenset(required | others)
                assert next(other for other in READERS if READERS[other].matches(keys)) == name


def test_a_chat_log_with_a_history_is_one_behind_any_record(data):
    chat = {"messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": "!"}], "history": []}
    chat["history"] = [{"role": "user", "content": "before"}, {"role": "assistant", "content": "then"}]
    raw = json.dumps(chat).encode()
    alone = RecordReader("auto").read(raw, SourceContext("a.jsonl"))
    for name in SAMPLES:
        reader = RecordReader("auto")
        reader.read(json.dumps(read_sample(data, name)[0]).encode(), SourceContext("a.jsonl"))
        assert reader.read(raw, SourceContext("a.jsonl")) == alone
    assert alone[0][0] == "chat"


def test_swe_agent_tool_calls_written_as_python_text(rows, data):
    source = read_sample(data, "swe_agent")
    row = rows["swe_agent"][2]
    assert row["task_id"] == "swe_agent/function_calling_simple"
    assert texts(row) == [message["content"] for message in source[2]["history"]]
    assert isinstance(source[2]["history"][2]["tool_calls"], list | str)
    calls = [call for m in row["messages"] if m["tool_calls"] for call in json.loads(m["tool_calls"])]
    assert [call["function"]["name"] for call in calls] == ["find_file", "open", "edit", "bash", "submit"]
    answers = [m for m in row["messages"] if m["role"] == "tool"]
    assert [m["tool_call_id"] for m in answers] == [call["id"] for call in calls]
    assert [m["name"] for m in answers] == [call["function"]["name"] for call in calls]

    as_text = {"history": [dict(m) for m in source[2]["history"]]}
    for message in as_text["history"]:
        for key in {"tool_calls", "tool_call_ids"} & set(message):
            message[key] = str(message[key])
    assert normalise_record(as_text)["messages"] == row["messages"]


def test_swe_agent_settings_cost_and_last_step(rows, data):
    source = read_sample(data, "swe_agent")[0]
    row = rows["swe_agent"][0]
    assert row["task_id"] == "swe_agent/SWE-agent__test-repo-i1"
    assert (row["model"], row["budget_limit_usd"]) == ("gpt-4o", 3.0)
    assert row["cost_usd"] == source["info"]["model_stats"]["instance_cost"]
    assert (row["success"], row["status"]) == (None, "UNKNOWN")
    assert len(source["trajectory"]) == sum(m["role"] == "assistant" for m in source["history"]) + 1
    assert texts(row)[-1] == source["trajectory"][-1]["response"]
    assert row["n_steps"] == len(source["trajectory"]) == 5


def test_swe_agent_demonstrations_are_left_out(rows, data):
    source = read_sample(data, "swe_agent")[1]
    row = rows["swe_agent"][1]
    assert row["task_id"] == "swe_agent/swe-agent__test-repo-i1"
    assert texts(row) == [m["content"] for m in source["history"] if not m.get("is_demo")]
    assert row["n_hidden_messages"] == sum(bool(m.get("is_demo")) for m in source["history"]) == 1


def make_swe(**fields):
    history = [
        {"role": "system", "content": "Be good."},
        {"role": "user", "content": [{"type": "text", "text": "Fix it."}]},
        {"role": "assistant", "content": "Looking.\n```\nls\n```"},
        {"role": "user", "content": "a.py"},
    ]
    return {"history": history, "trajectory": [], "info": {}, **fields}


def test_swe_agent_texts_of_the_program_are_cut():
    record = make_swe(info={"exit_status": "submitted (exit_cost)", "model_stats": {"instance_cost": 3.1}})
    record["history"] += [
        {"role": "assistant", "content": "Exit due to cost limit"},
        {"role": "user", "content": "Exited (autosubmitted)"},
    ]
    row = normalise_record(record)
    assert texts(row) == ["Be good.", "Fix it.", "Looking.\n```\nls\n```", "a.py"]
    assert (row["n_hidden_messages"], row["status"], row["cost_usd"]) == (2, "UNKNOWN", 3.1)
    assert row["task_id"].startswith("swe_agent/prompt-")


@pytest.mark.parametrize(
    ("stats", "cost"),
    [
        ({"instance_cost": 0, "tokens_sent": 0, "api_calls": 11}, None),
        ({"instance_cost": 0, "tokens_sent": 900, "api_calls": 11}, 0),
        ({"instance_cost": 0.5}, 0.5),
        ({}, None),
    ],
)
def test_swe_agent_cost_that_nobody_metered_is_null(stats, cost):
    row = normalise_record(make_swe(info={"exit_status": "exit_context", "model_stats": stats}))
    assert (row["cost_usd"], row["status"], row["success"]) == (cost, "STUCK", None)


def test_swe_agent_settings_may_be_json_text():
    settings = {"agent": {"model": {"name": "m", "per_instance_cost_limit": 0}}, "problem_statement": {"id": "i"}}
    row = normalise_record(make_swe(replay_config=json.dumps(settings)))
    assert (row["task_id"], row["model"], row["budget_limit_usd"]) == ("swe_agent/i", "m", None)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"tool_calls": "[{'function': 1"}, "tool_calls is text that holds no list"),
        ({"tool_calls": "[{'function': {'name': '\\ud800'}}]"}, "holds no list"),
        ({"tool_calls": "[1]"}, "tool_calls"),
        ({"tool_calls": "(" * 5000}, "holds no list"),
        ({"role": "wizard"}, "unknown message role"),
        ({"role": "user"}, "no message of the agent"),
    ],
)
def test_unusable_swe_agent_records(change, reason):
    record = make_swe()
    record["history"][2].update(change)
    with pytest.raises(RecordError, match=re.escape(reason)):
        normalise_record(record)


def test_mini_swe_agent_mapping(rows, data):
    source = read_sample(data, "mini_swe_agent")
    issue, local = rows["mini_swe_agent"]
    assert texts(issue) == [m["content"] for m in source[0]["messages"]]
    assert texts(local) == [m["content"] for m in source[1]["messages"][:-1]]  # the last is empty
    assert (issue["n_hidden_messages"], local["n_hidden_messages"]) == (0, 1)
    assert issue["task_id"] != local["task_id"]


def test_mini_swe_agent_full_form():
    config = {"agent": {"cost_limit": 2.0}, "model": {"model_name": "m"}}
    stats = {"instance_cost": 0.25, "api_calls": 1}
    record = {
        "info": {"exit_status": "LimitsExceeded", "submission": "", "model_stats": stats, "config": config},
        "messages": [
            {"role": "user", "content": "Fix it."},
            {"role": "assistant", "content": None, "tool_calls": [{"id": "x", "function": {"name": "bash"}}]},
            {"role": "tool", "content": "ok", "tool_call_id": "x", "extra": {"raw_output": "ok"}},
            {"role": "exit", "content": "LimitsExceeded", "extra": {"exit_status": "LimitsExceeded"}},
        ],
        "trajectory_format": "mini-swe-agent-1.1",
        "instance_id": "org__repo-1",
    }
    row = normalise_record(record)
    assert row["source_format"] == "mini_swe_agent"
    assert (row["task_id"], row["model"], row["status"]) == ("mini_swe_agent/org__repo-1", "m", "STUCK")
    assert (row["cost_usd"], row["budget_limit_usd"], row["n_hidden_messages"]) == (0.25, 2.0, 1)
    assert roles(row) == ["user", "assistant", "tool"]
    assert row["messages"][2]["tool_call_id"] == "call_1"


def test_intercode_mapping(rows, data):
    for row, record in zip(rows["intercode"], read_sample(data, "intercode"), strict=True):
        dataset = record["dataset"].rsplit("/", 1)[-1].removesuffix(".json")
        assert row["task_id"] == f"intercode/bash/{dataset}/{record['task_id']}"
        assert row["model"] == record["_file"].split("/")[3]
        assert row["reward"] == row["success_score"] == record["summary"]["max_reward"]
        assert row["success"] is (record["summary"]["max_reward"] == 1.0)
        assert row["prompt"] == texts(row)[0] == record["query"]
        said = [text for text, role in zip(texts(row), roles(row), strict=True) if role == "assistant"]
        assert all(a.endswith(b) for a, b in zip(said, record["turn_history"]["actions"], strict=False))
    assert len({row["task_id"] for row in rows["intercode"]}) == 3
    assert len({row["model"] for row in rows["intercode"]}) == 6


def test_intercode_texts_of_the_program_are_left_out(rows, data):
    source = read_sample(data, "intercode")
    blocked = next(i for i, r in enumerate(source) if r["turn_history"]["actions"][-1] == "blocked")
    assert rows["intercode"][blocked]["n_steps"] == len(source[blocked]["turn_history"]["actions"]) - 1
    assert rows["intercode"][blocked]["n_hidden_messages"] == 1
    forced = next(
        i for i, r in enumerate(source) if r["turn_history"].get("thoughts", [""])[-1].startswith("EXCEEDED MAX TURNS")
    )
    assert rows["intercode"][forced]["n_hidden_messages"] == 2
    assert rows["intercode"][forced]["status"] == "STUCK"
    assert rows["intercode"][forced]["n_steps"] == source[forced]["summary"]["turns_taken"] == 10


def test_intercode_file_of_many_episodes(tmp_path, data):
    source = read_sample(data, "intercode")[:3]
    for record in source:
        del record["_file"]
    broken = {**source[2], "summary": {"max_reward": "high"}}
    path = tmp_path / "ic_bash_multiturn_gpt-4_10_turns_fs_1.json"
    path.write_text(json.dumps({"0": source[0], "1": source[1], "2": broken}, indent=1))
    counts = ingest(tmp_path / "run", path).counts
    assert (counts["rows_in"], counts["rows_out"], counts["rejected"]) == (3, 2, 1)
    assert {row["model"] for row in read_rows(tmp_path / "run")} == {"gpt-4"}
    (row,) = quarantine(tmp_path / "run")
    assert (row.index, "max_reward" in row.reason) == (2, True)


def test_intercode_graded_rewards_make_pairs(tmp_path, data):
    ingest(tmp_path, data / "intercode.jsonl.gz")
    pair(tmp_path)
    pairs = read_rows(tmp_path, "pairs")
    assert pairs
    assert all(p["chosen"] and p["rejected"] for p in pairs)


def test_reflexion_mapping(rows, data):
    for row, record in zip(rows["reflexion"], read_sample(data, "reflexion"), strict=True):
        assert row["task_id"] == f"reflexion/{record['_domain'].removesuffix('_runs')}/{record['name']}"
        assert row["success"] is record["is_success"]
        assert row["messages"] == []
        is_repeat = record["is_success"] and record["trial"] > len(record["memory"])
        assert row["n_retries"] == (None if is_repeat else record["trial"])
    assert {row["n_retries"] for row in rows["reflexion"]} == {None, 0, 1, 2, 3}


def test_reflexion_runs_have_no_text_and_make_no_training_data(tmp_path, data):
    ingest(tmp_path, data / "reflexion.jsonl.gz")
    counts = pair(tmp_path).counts
    assert (counts["pairs"], counts["kto_rows"]) == (0, 0)


def test_reflexion_domain_and_trial_from_the_file_name(tmp_path):
    trial = [{"name": "env_0", "memory": ["I failed."], "is_success": False}]
    (tmp_path / "alfworld_env_results_trial_4.json").write_text(json.dumps(trial))
    (tmp_path / "env_results_trial_4.json").write_text(json.dumps(trial))
    ingest(tmp_path / "run", tmp_path / "alfworld_env_results_trial_4.json", tmp_path / "env_results_trial_4.json")
    (row,) = read_rows(tmp_path / "run")
    assert (row["task_id"], row["n_retries"]) == ("reflexion/alfworld/env_0", 4)
    assert "no domain" in quarantine(tmp_path / "run")[0].reason


def test_reflexion_runs_as_its_program_leaves_them(tmp_path):
    """Folders name the domain, files the trial; an environment may leave the same record in several of them."""
    folder = tmp_path / "webshop-study" / "alfworld_runs" / "root" / "base_run"
    folder.mkdir(parents=True)
    records = [{"name": f"env_{i}", "memory": [], "is_success": False} for i in range(2)]
    for trial in range(3):
        (folder / f"env_results_trial_{trial}.json").write_text(json.dumps(records))
    ingest(tmp_path / "run", tmp_path / "webshop-study")
    assert sorted((row["task_id"], row["n_retries"]) for row in read_rows(tmp_path / "run")) == [
        (f"reflexion/alfworld/env_{i}", trial) for i in range(2) for trial in range(3)
    ]
    assert pair(tmp_path / "run").counts["duplicates"] == 0


def test_several_documents_in_a_file_are_told_as_such(tmp_path):
    (tmp_path / "a.json").write_text('{\n"a": 1\n}\n{\n"a": 2\n}\n')
    ingest(tmp_path / "run", tmp_path / "a.json")
    assert "several documents, write one a line" in quarantine(tmp_path / "run")[0].reason


def make_chat(*messages, **fields):
    start = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    return {"messages": [*start, *messages], **fields}


def test_chat_mapping():
    full = normalise_record(
        make_chat(task_id=7, domain="shop", model="m", prompt="Greet.", reward=0.5, cost_usd=0.1, n_retries=2)
    )
    assert (full["source_format"], full["task_id"], full["domain"]) == ("chat", "chat/shop/7", "shop")
    assert (full["success"], full["status"], full["reward"]) == (False, "FAILED", 0.5)
    assert (full["model"], full["prompt"], full["cost_usd"], full["n_retries"]) == ("m", "Greet.", 0.1, 2)
    bare = normalise_record(make_chat())
    assert (bare["success"], bare["status"], bare["cost_usd"]) == (None, "UNKNOWN", None)
    assert bare["task_id"] == normalise_record(make_chat(success=True))["task_id"]
    assert re.fullmatch(r"chat/prompt-[0-9a-f]{16}", bare["task_id"])


def test_chat_message_shapes():
    image = {"type": "image_url", "image_url": {"url": "data:…"}}
    row = normalise_record(
        make_chat(
            {"role": "developer", "content": "Rules"},
            {"role": "user", "content": [{"type": "text", "text": "See"}, image]},
            {"role": "assistant", "tool_calls": [{"id": "abc", "function": {"name": "f", "arguments": {"a": "é"}}}]},
            {"role": "tool", "tool_call_id": "abc", "content": "1"},
            {"role": "assistant", "function_call": {"name": "g", "arguments": "{}"}},
            {"role": "function", "name": "g", "content": "2"},
            {"role": "assistant", "content": None, "refusal": "No."},
        )
    )
    assert roles(row)[2:] == ["system", "user", "assistant", "tool", "assistant", "tool", "assistant"]
    assert texts(row)[2:] == ["Rules", "See\n[image_url]", None, "1", None, "2", "No."]
    assert row["n_hidden_messages"] == 1
    call = json.loads(row["messages"][4]["tool_calls"])[0]
    assert call == {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": '{"a": "é"}'}}
    assert [m["name"] for m in row["messages"] if m["role"] == "tool"] == ["f", "g"]


def test_anthropic_parts_are_calls_and_tool_messages():
    use = {"type": "tool_use", "id": "toolu_1", "name": "look", "input": {"at": "é", "n": 1.5}}
    result = {"type": "tool_result", "tool_use_id": "toolu_1", "content": [{"type": "text", "text": "found"}]}
    thought = {"type": "thinking", "thinking": "I guess it failed", "signature": "x"}
    run = normalise_record(
        {
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": "Where?"}]},
                {"role": "assistant", "content": [thought, {"type": "text", "text": "Let me see"}, use]},
                {"role": "user", "content": [result, {"type": "text", "text": "And now?"}]},
                {"role": "assistant", "content": [thought]},
                {"role": "assistant", "content": [{**use, "id": "toolu_2", "name": "end", "input": {}}]},
                {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "toolu_2"}]},
                {"role": "assistant", "content": "There."},
            ]
        }
    )
    told = [(m["role"], m["content"], m["name"], m["tool_call_id"]) for m in run["messages"]]
    assert told == [
        ("user", "Where?", None, None),
        ("assistant", "Let me see", None, None),
        ("tool", "found", "look", "call_1"),
        ("user", "And now?", None, None),
        ("assistant", None, None, None),
        ("tool", None, "end", "call_2"),
        ("assistant", "There.", None, None),
    ]
    calls = [json.loads(m["tool_calls"])[0] for m in run["messages"] if m["tool_calls"]]
    assert [(call["id"], call["function"]["name"]) for call in calls] == [("call_1", "look"), ("call_2", "end")]
    assert json.loads(calls[0]["function"]["arguments"]) == {"at": "é", "n": 1.5}
    assert (run["n_hidden_messages"], run["n_steps"]) == (2, 3)
    for parts, reason in (([{"type": "tool_use"}], "without the name"), ([{**result, "content": 5}], "tool_result")):
        with pytest.raises(RecordError, match=reason):
            normalise_record(make_chat({"role": "user", "content": parts}))


def test_attempts_of_swe_agent_are_runs_of_their_own(tmp_path, data):
    source = read_sample(data, "swe_agent")[0]
    settings = source.pop("replay_config")
    attempts = [{**source, "info": {"exit_status": status}} for status in ("submitted", "exit_cost")]
    broken = {"trajectory": []}
    best = {**attempts[0], "attempts": [*attempts, broken], "replay_config": settings}
    (tmp_path / "a.traj").write_text(json.dumps(best))
    (tmp_path / "b.traj").write_text(json.dumps({"attempts": attempts}))
    counts = ingest(tmp_path / "run", tmp_path / "a.traj", tmp_path / "b.traj").counts
    assert (counts["rows_in"], counts["rows_out"], counts["rejected"]) == (5, 4, 1)
    rows = read_rows(tmp_path / "run")
    assert {row["source_format"] for row in rows} == {"swe_agent"}
    assert sorted((row["status"], row["source_index"]) for row in rows) == [("STUCK", 1)] * 2 + [("UNKNOWN", 0)] * 2
    (row,) = quarantine(tmp_path / "run")
    assert (row.index, "history" in row.reason) == (2, True)
    single = ingest(tmp_path / "single", data / "swe_agent.jsonl.gz")
    assert single.counts["rows_out"] == 3


def test_real_conversations_as_chat(demo_logs, tmp_path):
    """The messages of tau-bench are OpenAI's own: read as chat, they are the same."""
    with gzip.open(demo_logs / "gpt-4o-airline.json.gz") as source:
        runs = json.load(source)[:6]
    lines = [json.dumps({"messages": r["traj"], "task_id": r["task_id"], "reward": r["reward"]}) for r in runs]
    (tmp_path / "chat.jsonl").write_text("\n".join(lines))
    ingest(tmp_path / "chat", tmp_path / "chat.jsonl", format="chat")
    (tmp_path / "tau.json").write_text(json.dumps(runs))
    ingest(tmp_path / "tau", tmp_path / "tau.json")

    def content(run):
        rows = sorted(read_rows(tmp_path / run), key=lambda row: (row["source_offset"], row["source_index"]))
        return [(r["task_id"].split("/")[-1], r["messages"], r["success"], r["reward"], r["n_steps"]) for r in rows]

    assert content("chat") == content("tau")


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"messages": []}, "no message of the agent"),
        ({"messages": [{"role": "assistant", "content": "Hi"}]}, "no task id and no user message"),
        (make_chat(task_id=" "), "task id is empty"),
        (make_chat(cost_usd=-1), "$.cost_usd"),
        (make_chat({"role": "narrator", "content": ""}), "unknown message role 'narrator'"),
        (make_chat({"role": "user", "content": 3}), "$.messages[2].content"),
    ],
)
def test_unusable_chat_records(record, reason):
    with pytest.raises(RecordError, match=re.escape(reason)):
        normalise_record(record)


@pytest.fixture(scope="module")
def fuzz_sources(data) -> dict[str, bytes]:
    """Real bytes of each format, short enough to be changed many times."""
    swe, mini = read_sample(data, "swe_agent"), read_sample(data, "mini_swe_agent")
    for record in swe:
        record["history"] = [{**m, "content": m["content"][:200]} for m in record["history"][:7]]
        record["trajectory"] = [{"response": s["response"]} for s in record.get("trajectory", [])[:3]]
        record.pop("replay_config", None)
    as_text = [{**m, "tool_calls": str(m.get("tool_calls"))} for m in swe[2]["history"]]
    episodes = read_sample(data, "intercode")[:3]
    chat = [make_chat({"role": "assistant", "tool_calls": [{"id": "a", "function": {"name": "f"}}]}, reward=1.0)]
    groups = {
        "swe.jsonl": [*swe, {"history": as_text}],
        "mini.jsonl": [{**mini[1], "info": {"exit_status": "Submitted", "model_stats": {"api_calls": 2}}}],
        "intercode.jsonl": episodes,
        "reflexion.jsonl": read_sample(data, "reflexion")[:4],
        "chat.jsonl": chat * 3,
    }
    sources = {name: b"\n".join(json.dumps(r).encode() for r in group) for name, group in groups.items()}
    sources["episodes.json"] = json.dumps({str(i): episode for i, episode in enumerate(episodes)}).encode()
    return sources


@settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))
@given(choice=st.data())
def test_changed_bytes_never_crash_and_no_row_is_lost(tmp_path_factory, fuzz_sources, choice):
    name = choice.draw(st.sampled_from(sorted(fuzz_sources)))
    raw = bytearray(fuzz_sources[name])
    for _ in range(choice.draw(st.integers(1, 4))):
        at = choice.draw(st.integers(0, max(len(raw) - 1, 0)))
        kind = choice.draw(st.sampled_from(["replace", "insert", "delete", "cut"]))
        if kind == "replace" and raw:
            raw[at] = choice.draw(st.integers(0, 255))
        elif kind == "insert":
            raw[at:at] = choice.draw(st.one_of(st.binary(min_size=1, max_size=8), st.sampled_from([b"{", b'"', b"'"])))
        elif kind == "delete":
            del raw[at : at + choice.draw(st.integers(1, 40))]
        else:
            del raw[at:]
    folder = tmp_path_factory.mktemp("fuzz")
    (folder / name).write_bytes(bytes(raw))
    format_name = choice.draw(st.sampled_from(["auto", *SAMPLES, "chat", "atif"]))
    counts = ingest(folder / "run", folder / name, format=format_name).counts
    assert counts["rows_in"] == counts["rows_out"] + counts["rejected"]
    assert len(read_rows(folder / "run")) == counts["rows_out"]
    assert len(quarantine(folder / "run")) == counts["rejected"]
