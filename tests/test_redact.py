"""Redaction: planted secrets go, whatever they stand in; ordinary texts stay as they are.

No secret stands here in one piece: each is put together, so that scanners of this repository stay quiet.
"""

import json
import random
import re
import string
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from export_rows import make_pair, make_run, make_trajectory, result, say, write_run
from hypothesis import given, settings
from hypothesis import strategies as st
from runs import ingest, quarantine, read_rows

from celr_ray.config import ExportConfig, ExportJob, RuntimeConfig, ScoreJob, load_job
from celr_ray.redact import redact_messages, redact_row, redact_text
from celr_ray.redact_rules import holds, load_rules, look
from celr_ray.report.excerpts import make_pair_view
from celr_ray.schema import KtoRow, Message
from celr_ray.training.export import run_export, write_trl

LOOP = RuntimeConfig(executor="loop")
DEMO = Path(__file__).parents[1] / "examples/demo/logs"
LETTERS = "Ab3dE5gH7jK9mN1pQ3sT5vW7xY9zB2dF4hJ6kL8nP0rS2uV4wX6" * 4
KEY_LINES = [LETTERS[i : i + 64] for i in range(0, 128, 64)] + ["Zx9" * 5]
PRIVATE_KEY = "\n".join(["-----BEGIN RSA " + "PRIVATE KEY-----", *KEY_LINES, "-----END RSA " + "PRIVATE KEY-----"])
SECRETS = {
    "AWS Access Key": "AK" + "IAZ7QXR2LMPK3TWV5J",
    "Azure Storage Account access key": "Account" + "Key=" + LETTERS[:86] + "==",
    "Basic Auth Credentials": "s3cr3t" + "Pw9",
    "Discord Bot Token": "M" + LETTERS[:23] + "." + LETTERS[:6] + "." + LETTERS[:27],
    "GitHub Token": "gh" + "p_" + LETTERS[:36],
    "GitLab Token": "glp" + "at-" + LETTERS[:20],
    "JSON Web Token": "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9." + "eyJzdWIiOiIxMjM0NTY3ODkwIn0." + LETTERS[:43],
    "NPM tokens": "npm" + "_" + LETTERS[:36],
    "OpenAI Token": "sk-" + "proj-" + LETTERS[:74] + "T3Blbk" + "FJ" + LETTERS[:74],
    "Private Key": PRIVATE_KEY,
    "PyPI Token": "pypi-" + "AgEIcHlwaS5vcmc" + LETTERS[:80],
    "Secret Keyword": "hunter2" + "-correct-horse",
    "SendGrid API Key": "SG" + "." + LETTERS[:22] + "." + LETTERS[:43],
    "Slack Token": "xox" + "b-2345678901-3456789012345-" + LETTERS[:24],
    "Stripe Access Key": "sk_" + "live_" + LETTERS[:99],
    "Telegram Bot Token": "110201543" + ":AAH" + LETTERS[:32],
    "Twilio API Key": "SK" + "0123456789abcdef" * 2,
}
AROUND = {
    "Basic Auth Credentials": "postgres://admin:{}@db.example.com/orders",
    "NPM tokens": "//registry.npmjs.org/:_authToken={}",
    "Secret Keyword": '"password": "{}"',
}
"""What must stand around a secret for the detector to know it."""

TEXTS = {kind: AROUND.get(kind, "{}").format(secret) for kind, secret in SECRETS.items()}
PIECES = {piece for secret in SECRETS.values() for piece in secret.split("\n")} - {
    "-----BEGIN RSA " + "PRIVATE KEY-----",
    "-----END RSA " + "PRIVATE KEY-----",
}


def calls(arguments: str) -> str:
    return json.dumps([{"id": "call_1", "type": "function", "function": {"name": "run", "arguments": arguments}}])


def reveals(text: str) -> set[str]:
    """Return the pieces of planted secrets in a text, however it escapes line ends and slashes."""
    return {piece for piece in PIECES if piece in text}


# ---------------------------------------------------------------- texts


@pytest.mark.parametrize("kind", SECRETS)
@pytest.mark.parametrize("frame", ["{}", "my key is {} thanks", "export A={}\nls -la", '{{"out": "x", "n": 1}} {}'])
def test_a_secret_becomes_a_placeholder_of_its_kind(kind, frame):
    text = frame.format(TEXTS[kind])
    redacted, counts = redact_text(text)
    assert not reveals(redacted)
    assert redacted == frame.format(TEXTS[kind].replace(SECRETS[kind], f"[REDACTED {kind}]"))
    assert counts == {kind: 1}
    assert redact_text(redacted) == (redacted, {})


@pytest.mark.parametrize("kind", SECRETS)
@pytest.mark.parametrize("depth", [0, 1, 2, 3])
def test_quoted_json_is_looked_through_and_stays_json(kind, depth):
    arguments = json.dumps({"command": TEXTS[kind], "n": 1.50, "é": "ü", "path": "a/b"})
    for _ in range(depth):
        arguments = json.dumps({"inner": arguments})
    text = calls(arguments)
    redacted, counts = redact_text(text, is_json=True)
    assert counts == {kind: 1}
    value = json.loads(json.loads(redacted)[0]["function"]["arguments"])
    for _ in range(depth):
        value = json.loads(value["inner"])
    assert value["command"] == TEXTS[kind].replace(SECRETS[kind], f"[REDACTED {kind}]")
    assert (value["n"], value["é"], value["path"]) == (1.5, "ü", "a/b")
    assert not reveals(redacted)
    plain, _ = redact_text(text)
    assert not reveals(plain)


def test_a_password_argument_is_found_by_its_name():
    text = calls(json.dumps({"user": "mia", "password": SECRETS["Secret Keyword"]}))
    redacted, counts = redact_text(text, is_json=True)
    assert json.loads(json.loads(redacted)[0]["function"]["arguments"]) == {
        "user": "mia",
        "password": "[REDACTED Secret Keyword]",
    }
    assert counts == {"Secret Keyword": 1}


def test_escapes_hide_nothing():
    secret = SECRETS["GitHub Token"]
    escaped = "".join(f"\\u{ord(character):04x}" for character in secret)
    url = f"postgres:\\/\\/admin:{SECRETS['Basic Auth Credentials']}@db"
    redacted, counts = redact_text(f'{{"a": "{escaped}", "b": "{url}", "c": 1e400}}', is_json=True)
    assert redacted == (
        '{"a": "[REDACTED GitHub Token]", "b": "postgres://admin:[REDACTED Basic Auth Credentials]@db", "c": 1e400}'
    )
    assert counts.total() == 2


def test_numbers_and_keys_are_kept_as_they_are_written():
    text = f'{{"a": 1.10, "a": 2e3, "big": {10**30}, "key": "{SECRETS["GitHub Token"]}"}}'
    redacted, _ = redact_text(text, is_json=True)
    assert redacted == text.replace(SECRETS["GitHub Token"], "[REDACTED GitHub Token]")


def test_all_of_many_secrets_on_one_line_go():
    for kind, text in TEXTS.items():
        redacted, counts = redact_text(" ".join([text] * 20) if kind != "Secret Keyword" else ", ".join([text] * 20))
        assert not reveals(redacted), kind
        assert counts == {kind: 20}


@pytest.mark.parametrize("glue", ["", ",", "&"])
def test_nothing_of_secrets_that_touch_is_left(glue):
    for text in TEXTS.values():
        redacted, _ = redact_text(glue.join([text] * 3))
        assert not reveals(redacted)


@pytest.mark.parametrize("end", [1, 2, 3, 4])
def test_a_private_key_goes_whole_even_if_the_text_ends_in_it(end):
    lines = PRIVATE_KEY.split("\n")[: end + 1]
    for line_end in ("\n", "\r\n", "\\n"):
        redacted, counts = redact_text("cat key\n" + line_end.join(lines))
        assert redacted == "cat key\n[REDACTED Private Key]"
        assert counts == {"Private Key": 1}


def test_a_mention_of_a_private_key_is_not_one():
    begin, end = "-----BEGIN RSA " + "PRIVATE KEY-----", "-----END RSA " + "PRIVATE KEY-----"
    for text in (
        f'if text.startswith("{begin}") and text.endswith("{end}"):',
        f"The file should begin with {begin}, as the manual says; yours does not begin with that at all.",
    ):
        assert redact_text(text) == (text, {})


@pytest.mark.parametrize(
    "text",
    [
        "postgres://admin:<password>@db.example.com",
        'password = "${PASSWORD}"',
        '"password": "*****"',
        "Please enter your password: it must have 8 characters.",
        'api_key = os.environ["API_KEY"]',
        "commit 3f786850e387550fdab836ed7e6dc881de23001b by mia_li_3668, reservation EHGLP3, flight HAT204",
        "550e8400-e29b-41d4-a716-446655440000 2024-05-15T15:00:00 $1,200 192.168.0.1",
        "ghp_short, sk-learn, AKIA, eyJ.abc, xoxb-, https://example.com:8080/a@b",
    ],
)
def test_what_is_no_secret_stays(text):
    assert redact_text(text) == (text, {})


def test_the_demo_logs_stay_as_they_are(tmp_path):
    ingest(tmp_path / "run", DEMO)
    rows = read_rows(tmp_path / "run")
    assert len(rows) >= 90
    changed = [row["trajectory_id"] for row in rows if redact_row(row) != (row, {})]
    assert changed == []


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.sampled_from([*TEXTS.values(), *(f'"{text}"' for text in TEXTS.values())]),
            st.sampled_from(
                ['"', "\\", '\\"', "{", "}", ": ", ", ", "aws key ", "password = ", "[REDACTED ", "]", "\n"]
            ),
            st.text(max_size=20),
        ),
        max_size=8,
    ),
    st.booleans(),
)
def test_redacting_twice_gives_what_once_gives(parts, is_json):
    once, _ = redact_text("".join(parts), is_json=is_json)
    assert redact_text(once, is_json=is_json) == (once, {})


@settings(deadline=None)
@given(st.lists(st.text(st.characters(codec="utf-8", exclude_characters="@:="), max_size=30)))
def test_texts_without_secrets_are_kept(words):
    text = " ".join(words)
    assert redact_text(text) == (text, {})


json_values = st.recursive(
    st.one_of(
        st.none(), st.integers(), st.floats(allow_nan=False), st.text(max_size=10), st.sampled_from([*TEXTS.values()])
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.sampled_from(["password", "api_key", "x", "aws_key"]), inner, max_size=3),
        inner.map(json.dumps),
    ),
    max_leaves=8,
)


@settings(max_examples=150, deadline=None)
@given(json_values, st.booleans())
def test_json_stays_valid(value, ensure_ascii):
    redacted, _ = redact_text(json.dumps(value, ensure_ascii=ensure_ascii), is_json=True)
    json.loads(redacted)


@pytest.mark.parametrize("kind", SECRETS)
def test_no_pattern_matches_a_text_without_what_it_needs(kind):
    text = f"aws secret key, password, token: {TEXTS[kind]}"
    view = look(text)
    for rule in load_rules():
        for pattern in rule.patterns:
            if pattern.regex.search(text):
                assert holds(view, rule.needs)
                assert holds(view, pattern.needs)


def test_needs_are_read_off_all_patterns_with_literals():
    bare = {rule.kind for rule in load_rules() if rule.needs is None}
    assert bare == set()
    assert len({rule.kind for rule in load_rules()}) >= 20


@pytest.mark.parametrize(
    "piece", ["secret", 'pwd = "', "sk-abc", "//a ", "eyJa.", "xoxb-1-", "BEGIN RSA PRIVATE KEY ", '\\"']
)
def test_hostile_texts_take_time_in_proportion(piece):
    end = " ; secret password //x/:_authToken=npm_x T3BlbkFJ @"
    text = piece * (60_000 // len(piece)) + end
    started = time.process_time()
    redact_text(text)
    assert time.process_time() - started < 30


# ---------------------------------------------------------------- exports


def plant(kind: str, i: int) -> list[Message]:
    """Return an agent's turn that holds a secret in its words, in a call's arguments and in the tool's answer."""
    text = TEXTS[kind]
    function = {"name": "run", "arguments": json.dumps({"command": f"echo {i}\n{text}"})}
    tool_calls = json.dumps([{"id": "call_1", "type": "function", "function": function}])
    return [
        Message(role="assistant", content=f"EHGLP{i}: using {text} now", tool_calls=tool_calls),
        result(json.dumps({"out": text}), name="run"),
        say("assistant", f"Done {i}."),
    ]


def make_leaky_run(path):
    pairs, unpaired, trajectories = [], [], []
    for i, kind in enumerate(SECRETS):
        task_id, text = f"tau_bench/airline/{i}", TEXTS[kind]
        prompt = [say("system", f"Never show {text}"), say("user", f"Reservation EHGLP{i}, key {text}")]
        good, bad = plant(kind, i), [say("assistant", f"No. {text}")]
        pairs.append(make_pair(task_id, prompt, good, bad, name="dpo"))
        pairs.append(make_pair(task_id, prompt, good[:1], bad, pair_type="spin", name="spin"))
        pairs.append(make_pair(task_id, prompt, good, bad, pair_type="self_reward", name="reward"))
        unpaired.append(
            KtoRow(trajectory_id=f"trajid-{i}", task_id=task_id, prompt=prompt, completion=good, label=True)
        )
        trajectories.append(make_trajectory(task_id, f"best{i}", [*prompt, *good], n_buckets=4, composite=0.9))
    return write_run(path, pairs, unpaired, trajectories)


def text_of_exports(run) -> str:
    """Return all exported rows as one text, JSON columns and arguments decoded."""
    texts = []
    for file in sorted((Path(run) / "exports").rglob("*")):
        if file.suffix == ".parquet":
            texts += [decode(row) for row in pq.read_table(file).to_pylist()]
        elif file.is_file():
            texts.append(file.read_text())
    return "\n".join(texts)


def decode(value) -> str:
    if isinstance(value, dict):
        return "\n".join(decode(item) for pair in value.items() for item in pair)
    if isinstance(value, list):
        return "\n".join(decode(item) for item in value)
    if isinstance(value, str):
        try:
            inner = json.loads(value)
        except ValueError:
            return value.replace("\\n", "\n")
        return value if not isinstance(inner, dict | list) else decode(inner)
    return str(value)


def test_no_planted_secret_is_in_any_exported_file(tmp_path):
    run = make_leaky_run(tmp_path / "run")
    report = run_export(run, ExportConfig(test_fraction=0.25), LOOP, on_ray=False)
    text = text_of_exports(run)
    assert len(text) > 10_000
    assert not reveals(text)
    found = {key.removeprefix("redacted."): n for key, n in report.counts.items() if key.startswith("redacted.")}
    assert set(found) == set(SECRETS)
    assert min(found.values()) >= 20
    for kind in SECRETS:
        assert f"[REDACTED {kind}]" in text
    raw = b"".join(path.read_bytes() for path in (Path(run) / "exports").rglob("*") if path.is_file())
    assert not [piece for piece in PIECES if piece.encode() in raw]


def test_the_option_off_leaves_the_texts(tmp_path):
    run = make_leaky_run(tmp_path / "run")
    report = run_export(run, ExportConfig(redact=False), LOOP, on_ray=False)
    assert reveals(text_of_exports(run)) == PIECES
    assert not [key for key in report.counts if key.startswith("redacted.")]


def test_exports_without_secrets_are_the_same_either_way(tmp_path):
    files = []
    for redact in (False, True):
        run = make_run(tmp_path / str(redact))
        run_export(run, ExportConfig(redact=redact), LOOP, on_ray=False)
        base = Path(run) / "exports"
        files.append({str(path.relative_to(base)): path.read_bytes() for path in base.rglob("*") if path.is_file()})
    assert files[0] == files[1]


def test_a_pair_told_apart_by_a_secret_alone_is_left_out_and_counted(tmp_path):
    other = "gh" + "p_" + LETTERS[36:72]
    prompt = [say("user", "log in")]
    sides = [[say("assistant", f"token {token}")] for token in (SECRETS["GitHub Token"], other)]
    pair = make_pair("tau_bench/airline/1", prompt, *sides)
    trajectory = make_trajectory(pair.task_id, "one", prompt, n_buckets=4, success=False)
    run = write_run(tmp_path / "run", [pair], [], [trajectory])
    counts = run_export(run, ExportConfig(), LOOP, on_ray=False).counts
    assert counts["losses.trl_identical"] == 1
    assert counts["losses.axolotl_identical"] == 1
    assert counts["rows_out"] == 0
    assert write_trl([pair], str(tmp_path / "a.jsonl")) == 0
    assert write_trl([pair], str(tmp_path / "a.jsonl"), redact=False) == 1


def test_a_shared_prompt_stays_shared():
    text = TEXTS["AWS Access Key"]
    prompt = [say("system", text).model_dump(), say("user", "go").model_dump()]
    sides = [[*prompt, say("assistant", answer).model_dump()] for answer in ("yes", "no")]
    row, _ = redact_row({"prompt": prompt, "chosen": sides[0], "rejected": sides[1]})
    assert row["chosen"][:2] == row["rejected"][:2] == row["prompt"]
    assert prompt[0]["content"] == text


def test_messages_without_secrets_are_the_same_objects():
    messages = [say("user", "hello").model_dump(), say("user", TEXTS["GitHub Token"]).model_dump()]
    redacted, counts = redact_messages(messages)
    assert redacted[0] is messages[0]
    assert redacted[1] == {**messages[1], "content": "[REDACTED GitHub Token]"}
    assert counts == {"GitHub Token": 1}


def test_the_report_shows_no_secret():
    text = TEXTS["Slack Token"]
    function = {"name": "run", "arguments": json.dumps({"command": text})}
    tool_calls = json.dumps([{"id": "call_1", "type": "function", "function": function}])
    chosen = [Message(role="assistant", content=text, tool_calls=tool_calls)]
    pair = make_pair("t/d/1", [say("user", text)], chosen, [say("assistant", text + "!")])
    assert text not in repr(make_pair_view(pair.model_dump(), {}, {}))


# ---------------------------------------------------------------- ingest


def write_log(path, secret):
    """Write two runs of one task as tau-bench does, and a broken record."""
    traj = [
        {"role": "system", "content": "policy"},
        {"role": "user", "content": f"my key is {secret}"},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {"id": "x", "type": "function", "function": {"name": "f", "arguments": json.dumps({"k": secret})}}
            ],
        },
        {"role": "tool", "tool_call_id": "x", "name": "f", "content": "ok"},
        {"role": "assistant", "content": "done"},
    ]
    record = {"task_id": 1, "reward": 1.0, "info": {}, "traj": traj, "trial": 0}
    path.write_text(json.dumps(record) + "\n" + json.dumps({"what": secret, "is": "this"}) + "\n")
    return path


@pytest.mark.parametrize("redact", [False, True])
def test_ingest_can_redact_trajectories_and_quarantine(tmp_path, redact):
    secret = SECRETS["GitHub Token"]
    log = write_log(tmp_path / "gpt-4o-airline.jsonl", secret)
    report = ingest(tmp_path / "run", log, redact=redact)
    rows, rejected = read_rows(tmp_path / "run"), quarantine(tmp_path / "run")
    assert (len(rows), len(rejected)) == (1, 1)
    assert (secret in json.dumps(rows)) is (secret in rejected[0].raw) is not redact
    assert report.counts.get("redacted.GitHub Token", 0) == (3 if redact else 0)
    written = b"".join(path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file())
    assert (secret.encode() in written) is not redact


def test_redaction_keeps_ids_and_all_but_the_texts(tmp_path):
    log = write_log(tmp_path / "gpt-4o-airline.jsonl", SECRETS["GitHub Token"])
    both = []
    for redact in (False, True):
        ingest(tmp_path / str(redact), log, redact=redact)
        (row,) = read_rows(tmp_path / str(redact))
        both.append({key: value for key, value in row.items() if key not in ("prompt", "messages")})
    assert both[0] == both[1]


def test_a_secret_at_the_cut_of_a_long_rejected_record_is_not_left_in_part(tmp_path):
    secret = SECRETS["Stripe Access Key"]
    log = tmp_path / "logs.jsonl"
    log.write_text("{" + " " * (64 * 1024 - 40) + secret + "\n")
    ingest(tmp_path / "run", log, redact=True)
    (row,) = quarantine(tmp_path / "run")
    assert secret[:20] not in row.raw
    assert len(row.raw) <= 64 * 1024


# ---------------------------------------------------------------- settings


def test_flags_switch_it(tmp_path, capsys):
    assert load_job(ExportJob, ["--run", "r"], program="x").export.redact is True
    assert load_job(ExportJob, ["--run", "r", "--no-export.redact"], program="x").export.redact is False
    assert load_job(ScoreJob, ["--run", "r"], program="x").ingest.redact is False
    assert load_job(ScoreJob, ["--run", "r", "--ingest.redact"], program="x").ingest.redact is True
    with pytest.raises(SystemExit):
        load_job(ExportJob, ["--help"], program="x")
    assert re.search(r"--export\.redact, --no-export\.redact", capsys.readouterr().out)


def test_no_order_of_texts_changes_a_result():
    texts = list(TEXTS.values())
    expected = {text: redact_text(text) for text in texts}
    random.Random(1).shuffle(texts)
    assert {text: redact_text(text) for text in texts} == expected


# ---------------------------------------------------------------- keys of many forms, cut texts, quotes in passwords


@pytest.mark.parametrize("kind", ["proj", "svcacct", "admin"])
@pytest.mark.parametrize("frame", ["{}", "OPENAI_API_KEY={}\nnext", '{{"k": "{}"}}', "Authorization: Bearer {} -v"])
def test_random_openai_keys_go_whole(kind, frame):
    source = random.Random(kind)
    alphabet = string.ascii_letters + string.digits + "-_"
    for _ in range(50):
        parts = ["".join(source.choices(alphabet, k=74)) for _ in range(2)]
        redacted, counts = redact_text(frame.format("sk-" + f"{kind}-{parts[0]}" + "T3Blbk" + f"FJ{parts[1]}"))
        assert redacted == frame.format("[REDACTED OpenAI Token]")
        assert counts == {"OpenAI Token": 1}


@pytest.mark.parametrize(
    "frame",
    [
        "aws_secret_access_key = {}",
        "export AWS_SECRET_ACCESS_KEY={}",
        "AWS_SECRET_ACCESS_KEY: {}\n",
        "aws secret key {};",
    ],
)
def test_random_aws_secret_keys_go_without_quotes(frame):
    source = random.Random(1)
    for _ in range(50):
        key = "aB3" + "".join(source.choices(string.ascii_letters + string.digits + "/+", k=37))
        redacted, _ = redact_text(frame.format(key))
        assert redacted == frame.format("[REDACTED AWS Access Key]")


@pytest.mark.parametrize(
    "text",
    [
        "aws s3 cp s3://key/" + "0123456789abcdef" * 4 + " .",
        "the aws key docs are at " + "a/b/" * 10,
        "aws key commit 1234567890abcdef1234567890abcdef12345678",
    ],
)
def test_paths_and_hashes_near_the_name_of_aws_stay(text):
    assert redact_text(text) == (text, {})


@pytest.mark.parametrize("depth", [0, 1, 2])
def test_a_text_that_was_cut_anywhere_shows_no_password(depth):
    secret = SECRETS["Secret Keyword"]
    text = json.dumps({"user": "é mia", "password": secret, "note": "x\ty \\ z", "token": SECRETS["GitHub Token"]})
    for _ in range(depth):
        text = json.dumps([{"role": "tool", "content": f"out:\n{text}"}])
    begin = text.index(secret)
    for end in range(begin + 1, len(text)):
        redacted, _ = redact_text(text[:end])
        assert secret[:2] not in redacted, text[:end]
        assert redacted.startswith(text[:8])


def test_a_rejected_line_that_was_cut_shows_no_password(tmp_path):
    secret = SECRETS["Secret Keyword"]
    record = {"messages": [{"role": "tool", "content": json.dumps({"password": secret, "more": "x" * 99})}]}
    log = tmp_path / "logs.jsonl"
    log.write_text(json.dumps(record)[:-60])
    ingest(tmp_path / "run", log, redact=True)
    (row,) = quarantine(tmp_path / "run")
    assert secret not in row.raw
    assert "[REDACTED Secret Keyword]" in row.raw


@pytest.mark.parametrize("password", ['ab"cd-tail', "it's-long", 'a"b"c-end', "back\\slash", 'end\\"x'])
@pytest.mark.parametrize("depth", [0, 1, 2])
def test_quotes_in_a_password_end_it_not(password, depth):
    text = json.dumps({"password": password, "n": 1})
    for _ in range(depth):
        text = json.dumps({"arguments": text})
    redacted, counts = redact_text(text, is_json=True)
    for _ in range(depth):
        redacted = json.loads(redacted)["arguments"]
    assert json.loads(redacted) == {"password": "[REDACTED Secret Keyword]", "n": 1}
    assert counts == {"Secret Keyword": 1}
