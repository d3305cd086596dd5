"""Tasks: what a line must hold, what is rejected and why, units, and the tasks of RouteLLM's GSM8K file."""

import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from celr_ray.core.checks import AgreementCheck, NumericCheck
from celr_ray.core.tasks import ANSWER_RULE, Task, gsm8k_tasks, plan_task_units, read_tasks
from celr_ray.core.verifier import run_check
from celr_ray.errors import InputError

NUMBER = {"kind": "numeric", "answer": 7}
GOOD = {"task_id": "a", "prompt": "3 + 4?", "checker": NUMBER}
FULL = {
    **GOOD,
    "verifier": {"kind": "agreement", "n_samples": 5},
    "difficulty": 0.25,
    "domain": "arithmetic",
    "budget_usd": 0.01,
    "time_limit_s": 30,
    "level": 2,
}


def write(path, *lines):
    """Write lines (dicts, texts or bytes) and return the path as text."""
    raw = [
        line if isinstance(line, bytes) else (line if isinstance(line, str) else json.dumps(line)).encode()
        for line in lines
    ]
    path.write_bytes(b"".join(line + b"\n" for line in raw))
    return str(path)


def reject_one(tmp_path, line):
    """Return the one rejected row of a file with a good line and a bad one."""
    tasks, rejected = read_tasks(write(tmp_path / "tasks.jsonl", {**GOOD, "task_id": "good"}, line))
    assert [task.task_id for task in tasks] == ["good"]
    assert len(rejected) == 1
    return rejected[0]


def test_all_fields_are_read(tmp_path):
    (task,), rejected = read_tasks(write(tmp_path / "tasks.jsonl", FULL))
    assert rejected == []
    assert task.checker == NumericCheck(kind="numeric", answer=7)
    assert task.verifier == AgreementCheck(kind="agreement", n_samples=5)
    assert (task.difficulty, task.domain, task.budget_usd, task.time_limit_s, task.level) == (
        0.25,
        "arithmetic",
        0.01,
        30.0,
        2,
    )


def test_only_id_and_prompt_are_needed():
    task = Task(task_id="a", prompt="b")
    assert set(task.model_dump(exclude_none=True)) == {"task_id", "prompt"}


def test_a_task_cannot_be_changed():
    with pytest.raises(ValidationError):
        Task(**GOOD).prompt = "other"


@pytest.mark.parametrize(
    "checker",
    [
        NUMBER,
        {"kind": "choice", "answer": "B", "options": ["A", "B"]},
        {"kind": "json_schema", "schema": {"type": "object"}},
        {"kind": "python_tests", "tests": "assert f(1) == 1", "entry_point": "f"},
    ],
)
def test_a_task_is_the_same_after_a_round_trip(checker):
    task = Task(**{**GOOD, "checker": checker})
    assert Task.model_validate_json(task.model_dump_json(by_alias=True)) == task


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"task_id": ""}, "task_id: String should have at least 1 character, is ''; correct or delete it"),
        ({"prompt": 5}, "prompt: Input should be a valid string, is 5"),
        ({"difficulty": 1.5}, "difficulty: Input should be less than or equal to 1, is 1.5"),
        ({"difficulty": "0.5"}, "difficulty: Input should be a valid number, is '0.5'"),
        ({"budget_usd": 0}, "budget_usd: Input should be greater than 0, is 0"),
        ({"time_limit_s": -1}, "time_limit_s: Input should be greater than 0"),
        ({"answer": "7"}, "answer: unknown; delete it or correct its spelling (of a task: task_id, prompt,"),
        ({"checker": {"kind": "numeric"}}, "checker.numeric.answer: missing; add it"),
        (
            {"checker": {"kind": "numbers", "answer": 7}},
            "checker: no kind 'numbers' here; use one of 'exact', 'numeric'",
        ),
        ({"checker": {"kind": "model"}}, "checker: no kind 'model' here; use one of 'exact'"),
        ({"checker": {"kind": "agreement"}}, "checker: no kind 'agreement' here"),
        ({"verifier": {"kind": "regex", "pattern": "("}}, "verifier.regex.pattern: "),
    ],
)
def test_a_bad_field_is_named_with_its_value_and_what_to_do(tmp_path, change, reason):
    row = reject_one(tmp_path, {**GOOD, **change})
    assert row.reason.startswith(reason)
    assert (row.file, row.line) == (str(tmp_path / "tasks.jsonl"), 2)
    assert json.loads(row.raw) == {**GOOD, **change}
    assert row.raw_bytes == len(row.raw)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"task_id": "a", "prompt": ', "not valid JSON"),
        (b'{"task_id": "\xff", "prompt": "x"}', "not valid JSON"),
        ('["task_id", "prompt"]', "['task_id', 'prompt'] is no task; each line must be one JSON object"),
        ("null", "None is no task"),
        ('{"task_id": "a", "prompt": "x", "budget_usd": Infinity}', "budget_usd: "),
        ('{"prompt": "x"}', "task_id: missing; add it"),
        ({"a": 1, "b": 2, "c": 3}, "task_id: missing; add it; prompt: missing; add it; a: unknown"),
    ],
)
def test_a_line_that_is_no_task_is_rejected(tmp_path, line, reason):
    assert reject_one(tmp_path, line).reason.startswith(reason)


def test_many_faults_of_a_line_are_counted(tmp_path):
    assert reject_one(tmp_path, {"a": 1, "b": 2, "c": 3}).reason.endswith("; and 2 more")


def test_a_repeated_id_names_the_first_line(tmp_path):
    lines = [GOOD, "", {**GOOD, "task_id": "b"}, {**GOOD, "prompt": "another"}]
    tasks, (row,) = read_tasks(write(tmp_path / "tasks.jsonl", *lines))
    assert [task.prompt for task in tasks] == ["3 + 4?", "3 + 4?"]
    assert row.line == 4
    assert row.reason == "task_id: 'a' is the task of line 1 already; rename or delete one of them"


def test_the_id_of_a_rejected_line_is_free(tmp_path):
    tasks, (row,) = read_tasks(write(tmp_path / "tasks.jsonl", {**GOOD, "difficulty": 2}, GOOD))
    assert [task.task_id for task in tasks] == ["a"]
    assert row.line == 1


@pytest.mark.parametrize("content", [b"", b"\n \n\n"])
def test_an_empty_file_is_an_error(tmp_path, content):
    (tmp_path / "tasks.jsonl").write_bytes(content)
    with pytest.raises(InputError, match=r"no usable task in .*tasks\.jsonl: line 1: the file is empty"):
        read_tasks(str(tmp_path / "tasks.jsonl"))


def test_a_file_of_bad_lines_is_an_error_that_shows_the_first(tmp_path):
    uri = write(tmp_path / "tasks.jsonl", *[{"task_id": "a"}] * 5)
    with pytest.raises(InputError, match=r"line 1: prompt: missing; add it; line 2: .*; line 3: .*; and 2 more lines"):
        read_tasks(uri)


def test_a_missing_file_is_an_error(tmp_path):
    with pytest.raises(InputError, match=r"nowhere\.jsonl"):
        read_tasks(str(tmp_path / "nowhere.jsonl"))


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_packed_files_hold_the_same_tasks(tmp_path, suffix):
    uri = write(tmp_path / "tasks.jsonl", GOOD, "{", {**FULL, "task_id": "b"})
    raw = (tmp_path / "tasks.jsonl").read_bytes()
    packed = {"": bytes, ".gz": gzip.compress, ".zst": lambda data: pa.compress(data, "zstd", asbytes=True)}
    (tmp_path / f"packed.jsonl{suffix}").write_bytes(packed[suffix](raw))
    plain, other = read_tasks(uri), read_tasks(str(tmp_path / f"packed.jsonl{suffix}"))
    assert other.tasks == plain.tasks
    assert [(row.line, row.offset, row.reason) for row in other.rejected] == [
        (2, len(json.dumps(GOOD)) + 1, plain.rejected[0].reason)
    ]


def test_a_broken_gz_file_keeps_its_whole_lines(tmp_path):
    lines = [{**GOOD, "task_id": str(index), "prompt": f"{index * 7919 % 10007} again"} for index in range(500)]
    packed = gzip.compress(b"".join(json.dumps(line).encode() + b"\n" for line in lines))
    (tmp_path / "tasks.jsonl.gz").write_bytes(packed[: len(packed) // 2])
    tasks, rejected = read_tasks(str(tmp_path / "tasks.jsonl.gz"))
    assert 0 < len(tasks) < 500
    assert [task.task_id for task in tasks] == [str(index) for index in range(len(tasks))]
    assert "damaged compressed file" in rejected[-1].reason


LINES = st.one_of(
    st.builds(lambda name, level: {**GOOD, "task_id": name, "level": level}, st.sampled_from("abcdef"), st.integers()),
    st.builds(lambda difficulty: {**GOOD, "difficulty": difficulty}, st.floats()),
    st.dictionaries(st.sampled_from(list(FULL)), st.none() | st.text(max_size=3) | st.integers(-2, 2)),
    st.text(st.characters(exclude_characters="\n\r", exclude_categories=["Cs"]), max_size=20),
    st.recursive(st.none() | st.booleans() | st.integers(), lambda inner: st.lists(inner, max_size=3), max_leaves=5),
)


@given(st.lists(LINES, max_size=12))
def test_lines_in_are_tasks_and_rejected_rows(tmp_path_factory, lines):
    path = tmp_path_factory.mktemp("lines") / "tasks.jsonl"
    uri = write(path, {**GOOD, "task_id": "first"}, *lines)
    n_lines = sum(not line.isspace() and line != b"" for line in path.read_bytes().split(b"\n"))
    tasks, rejected = read_tasks(uri)
    assert len(tasks) + len(rejected) == n_lines
    assert len({task.task_id for task in tasks}) == len(tasks)
    assert all(row.reason and 1 <= row.line <= len(lines) + 1 for row in rejected)
    assert read_tasks(uri) == (tasks, rejected)


@given(st.integers(0, 300), st.integers(1, 400))
def test_units_cover_each_task_once(n_tasks, rows_per_unit):
    tasks = [Task(task_id="a", prompt="b")] * n_tasks
    units = plan_task_units(tasks, rows_per_unit)
    assert [index for unit in units for index in range(unit["start"], unit["stop"])] == list(range(n_tasks))
    assert all(0 < unit["stop"] - unit["start"] <= rows_per_unit for unit in units)
    assert len(units) == -(-n_tasks // rows_per_unit)


def write_responses(path, *rows):
    """Write a file such as RouteLLM's: (prompt, cheap right, its response, strong right, its response)."""
    names = ("prompt", "cheap/8x7b", "cheap/8x7b_response", "strong", "strong_response")
    pq.write_table(pa.table({name: [row[i] for row in rows] for i, name in enumerate(names)}), path)
    return str(path)


def test_gsm8k_answers_come_from_right_responses(tmp_path):
    rows = [
        ("Q0", True, "3*6 = <<3*6=18>>18.\n#### 18", True, "so 9 * $2 = $18 every day."),
        (" Q1\n", False, "#### 5", True, "The net proceeds are $118,000."),
        ("Q2", True, "#### -4 degrees", False, "#### 9"),
        ("Q3", True, "in 2 days: 1,080.00 tiles", False, ""),
    ]
    tasks, rejected = gsm8k_tasks(write_responses(tmp_path / "g.parquet", *rows))
    assert rejected == []
    assert [task.checker.answer for task in tasks] == [18, 118_000, -4, 1080]
    assert [task.task_id for task in tasks] == [f"routellm/gsm8k/000{index}" for index in range(4)]
    assert tasks[1].prompt == f"Q1 {ANSWER_RULE}"
    assert all(task.difficulty is None and task.verifier is None for task in tasks)
    assert run_check(tasks[1].checker, "It is a lot.\nAnswer: 118000").passed


def test_gsm8k_questions_without_a_sure_answer_are_rejected(tmp_path):
    rows = [
        ("Q0", False, "#### 1", False, "#### 1"),
        ("Q1", True, "#### 0.84", True, "#### 84"),
        ("Q2", True, "about 3.5", False, ""),
        ("Q3", True, "no number", False, ""),
        ("", True, "#### 3", True, "#### 3"),
        (None, True, "#### 3", True, "#### 3"),
        ("Q6", True, None, False, None),
        ("Q7", True, "#### 3", True, "#### 3"),
    ]
    tasks, rejected = gsm8k_tasks(write_responses(tmp_path / "g.parquet", *rows))
    assert [task.task_id for task in tasks] == ["routellm/gsm8k/0007"]
    assert [row.line for row in rejected] == [1, 2, 3, 4, 5, 6, 7]
    assert "no model's response is right" in rejected[0].reason
    assert "0.84, 84.0: not one whole number" in rejected[1].reason
    assert rejected[4].reason == rejected[5].reason == "prompt: missing"


def test_another_parquet_file_is_an_error_that_names_the_columns(tmp_path):
    pq.write_table(pa.table({"prompt": ["a"], "answer": ["b"]}), tmp_path / "g.parquet")
    with pytest.raises(InputError, match=r"must have the columns prompt, NAME and NAME_response, has prompt, answer"):
        gsm8k_tasks(str(tmp_path / "g.parquet"))


def test_responses_without_any_right_one_are_an_error(tmp_path):
    uri = write_responses(tmp_path / "g.parquet", ("Q0", False, "#### 1", False, "#### 1"))
    with pytest.raises(InputError, match=r"no usable task in .*line 1: no model's response is right"):
        gsm8k_tasks(uri)
