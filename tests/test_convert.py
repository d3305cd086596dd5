"""Tool calls in messages, and the row rules of each training format."""

import json
import re

import pytest
from export_rows import (
    POLICY,
    call,
    check_axolotl_row,
    check_spin_row,
    make_pair,
    make_trajectory,
    result,
    reward_pair,
    say,
    spin_pair,
    spin_tool_pair,
    talk_pair,
    tool_pair,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from celr_ray.schema import Message
from celr_ray.training import convert, export, render

# ---------------------------------------------------------------- tool calls


def test_tool_text_can_be_read_back():
    calls = [{"name": "f", "arguments": {"a": "</tool_call> é", "b": [1, None]}}, {"name": "g", "arguments": "{broken"}]
    text = json.dumps([{"function": {**c, "arguments": c["arguments"]}} for c in calls])
    rendered = render.render_content({"content": "Look:", "tool_calls": text})
    assert rendered.startswith("Look:\n<tool_call>\n")
    read = [json.loads(body) for body in re.findall(r"<tool_call>\n(.*?)\n</tool_call>", rendered, re.DOTALL)]
    assert read == calls


def test_native_messages_have_no_empty_keys():
    assert render.to_native_message(say("user", "hi").model_dump()) == {"role": "user", "content": "hi"}
    native = render.to_native_message(call("f", {"x": 1}).model_dump())
    function = {"name": "f", "arguments": {"x": 1}}
    tool_calls = [{"id": "call_1", "type": "function", "function": function}]
    assert native == {"role": "assistant", "content": "", "tool_calls": tool_calls}


@pytest.mark.parametrize(
    "arguments",
    [
        "{broken",
        "[1]",
        '{"a": NaN}',
        '{"a": 1e999}',
        f'{{"a": {2**64}}}',
        '{"a": "\\ud800"}',
        '{"a":' * 300 + "1" + "}" * 300,
    ],
)
def test_arguments_that_no_reader_takes_stay_text(arguments):
    (read,) = render.read_tool_calls(call("f", arguments).tool_calls)
    assert isinstance(read.arguments, str)
    json.dumps(render.to_native_message(call("f", arguments).model_dump()), ensure_ascii=False).encode()


@pytest.mark.parametrize("text", ["not json", "{}", '[{"function": {}}]', "[1]", "[" * 5000])
def test_calls_that_are_no_calls_are_kept_as_text(text):
    message = {"role": "assistant", "content": "Hm.", "tool_calls": text}
    assert text in render.to_native_message(message)["content"]
    assert text in render.render_content(message)


# ---------------------------------------------------------------- converters


def test_trl_leaves_out_and_counts():
    pair = reward_pair(1).model_dump()
    assert convert.to_trl({**pair, "prompt": []}) == (None, ("trl_no_prompt",))
    assert convert.to_trl({**pair, "chosen": [say("user", "x").model_dump()]}) == (None, ("trl_no_answer",))
    alike = [say("assistant", " 5, Lima. (EHGLP1)\n").model_dump()]
    assert convert.to_trl({**pair, "rejected": alike}) == (None, ("trl_identical",))
    no_user = convert.to_trl({**pair, "prompt": [say("system", POLICY).model_dump()]})
    assert no_user.row
    assert no_user.losses == ("trl_prompt_without_user",)


def test_a_repeated_prompt_is_not_doubled():
    pair = talk_pair(1)
    whole = pair.model_copy(update={"chosen": [pair.prompt[0], *pair.chosen]}).model_dump()
    assert convert.to_trl(whole).row == convert.to_trl(pair.model_dump()).row
    whole = pair.model_copy(update={"chosen": [*pair.prompt, *pair.chosen]}).model_dump()
    assert convert.to_trl(whole).row == convert.to_trl(pair.model_dump()).row


def test_pairs_that_truncation_makes_equal_are_counted():
    long = say("assistant", "Let me think. " * 2000)
    pair = make_pair("t", [say("user", "q")], [long, say("assistant", "a")], [long, say("assistant", "b")])
    assert "trl_identical_after_truncation_risk" in convert.to_trl(pair.model_dump()).losses
    assert "trl_identical_after_truncation_risk" not in convert.to_trl(tool_pair(1).model_dump()).losses


def test_axolotl_takes_the_move_on_which_runs_part():
    row, losses = convert.to_axolotl(tool_pair(3).model_dump())
    check_axolotl_row(row)
    assert losses == ("axolotl_tools_rendered", "axolotl_followup_dropped")
    assert row["rejected"]["content"].startswith("I will cancel it.\n<tool_call>\n{")
    assert convert.to_axolotl(reward_pair(1).model_dump()).losses == ()
    assert convert.to_axolotl(talk_pair(1).model_dump()) == (None, ("axolotl_left_out",))


def test_sharegpt_dpo_says_the_same_in_other_words():
    row = convert.to_sharegpt_dpo(tool_pair(3).model_dump()).row
    roles = {"human": "user", "gpt": "assistant", "system": "system", "tool": "tool"}
    check_axolotl_row(row, messages="conversations", role="from", content="value", roles=roles)


def test_spin_folds_the_system_text_and_leaves_tool_runs_out():
    row, losses = convert.to_spin(spin_pair(2).model_dump())
    check_spin_row(row)
    assert losses == ("spin_system_folded",)
    assert row["real"][0]["content"] == "Answer in one line.\n\nWhat is the status of EHGLP2?"
    assert row["real"][1]["content"] == "EHGLP2 is confirmed."
    assert convert.to_spin(spin_tool_pair(2).model_dump()) == (None, ("spin_left_out",))


def test_spin_folds_earlier_turns_into_the_user_text():
    pair = spin_pair(2)
    prompt = [say("user", "Hi"), call("look", {}), result("fine"), say("user", "And now?")]
    row, losses = convert.to_spin(pair.model_copy(update={"prompt": prompt}).model_dump())
    check_spin_row(row)
    assert losses == ("spin_turns_folded", "spin_tools_rendered")
    assert row["real"][0]["content"].startswith("User: Hi\n\nAssistant: <tool_call>")
    assert row["real"][0]["content"].endswith("Tool: fine\n\nUser: And now?")


def test_sft_adds_a_missing_task_or_leaves_the_run_out():
    def convert_run(messages, prompt=None):
        return convert.to_sft(make_trajectory("t", "x", messages, n_buckets=1, prompt=prompt).model_dump())

    silent = [say("system", POLICY), say("assistant", "Done.")]
    assert convert_run(silent) == (None, ("sft_no_task_text",))
    assert convert_run([say("user", "hi"), say("assistant", " ")]) == (None, ("sft_no_answer",))
    row, losses = convert_run(silent, "Cancel it.")
    assert [message["role"] for message in row["messages"]] == ["system", "user", "assistant"]
    assert losses == ("sft_task_text_added",)


# ---------------------------------------------------------------- properties

TEXT = st.text(max_size=40)
CALLS = st.one_of(
    st.none(),
    TEXT,
    st.lists(st.tuples(TEXT, st.one_of(TEXT, st.dictionaries(TEXT, st.floats(), max_size=2).map(json.dumps)))).map(
        lambda calls: json.dumps([{"function": {"name": n, "arguments": a}} for n, a in calls])
    ),
)
MESSAGE = st.builds(
    Message,
    role=st.sampled_from(["system", "user", "assistant", "tool"]),
    content=st.one_of(st.none(), TEXT),
    name=st.one_of(st.none(), TEXT),
    tool_calls=CALLS,
)
MESSAGE_LISTS = st.lists(MESSAGE, max_size=4)
PAIRS = st.builds(
    make_pair,
    st.just("t"),
    MESSAGE_LISTS,
    MESSAGE_LISTS,
    MESSAGE_LISTS,
    pair_type=st.sampled_from(["dpo", "spin", "self_reward"]),
    level=st.sampled_from(["step", "trajectory"]),
)
SCHEMAS = {
    convert.to_trl: export.TRL_SCHEMA,
    convert.to_axolotl: export.AXOLOTL_SCHEMA,
    convert.to_sharegpt_dpo: export.SHAREGPT_DPO_SCHEMA,
    convert.to_spin: export.SPIN_SCHEMA,
}


@settings(max_examples=300, deadline=None)
@given(PAIRS)
def test_converting_never_crashes_and_keeps_the_texts(pair):
    for converter, schema in SCHEMAS.items():
        row, losses = converter(pair.model_dump())
        assert row is not None or losses
        assert export.build_table([row] if row else [], schema).num_rows == (row is not None)
    row = convert.to_trl(pair.model_dump()).row
    if row is not None and pair.level == "step":
        for side in ("prompt", "chosen", "rejected"):
            texts = [message["content"] for message in row[side]]
            sources = [message.content or "" for message in getattr(pair, side)]
            assert all(text.startswith(source) for text, source in zip(texts, sources, strict=True))
    spin, axolotl = convert.to_spin(pair.model_dump()).row, convert.to_axolotl(pair.model_dump()).row
    if spin is not None:
        check_spin_row(spin)
        assert all((m.content or "") in spin["real"][0]["content"] for m in pair.prompt)
    if axolotl is not None:
        check_axolotl_row(axolotl)


@settings(max_examples=100, deadline=None)
@given(MESSAGE_LISTS)
def test_native_rows_survive_parquet(messages):
    rows = [{"messages": [render.to_native_message(m.model_dump()) for m in messages]}]
    table = export.build_table(rows, export.SFT_SCHEMA)
    assert [json.loads(text) for text in table["messages"].to_pylist()[0]] == rows[0]["messages"]
