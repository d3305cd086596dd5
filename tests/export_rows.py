"""Realistic rows for the export tests, and a run folder built of them by hand.

Every task has its own order number in its texts, so that tests can tell the task of an exported row.
"""

import json

import pyarrow as pa

from celr_ray import storage
from celr_ray.buckets import assign_bucket
from celr_ray.run_folder import manifest_uri, part_name, plan_uri
from celr_ray.schema import KTO_SCHEMA, PAIR_SCHEMA, TRAJECTORY_SCHEMA, KtoRow, Message, PreferencePair, Trajectory

POLICY = "# Airline Agent Policy\nYou may cancel a flight within 24 hours of booking. Deny all else."


def call(name, arguments, number=1, content=None):
    """Return an assistant message that calls one tool."""
    text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    function = {"name": name, "arguments": text}
    calls = json.dumps([{"id": f"call_{number}", "type": "function", "function": function}], ensure_ascii=False)
    return Message(role="assistant", content=content, tool_calls=calls)


def result(content, number=1, name="get_reservation"):
    """Return the tool message that answers a call."""
    return Message(role="tool", content=content, name=name, tool_call_id=f"call_{number}")


def say(role, content):
    """Return a plain message."""
    return Message(role=role, content=content)


def make_pair(task_id, prompt, chosen, rejected, *, pair_type="dpo", level="step", name="p"):
    """Return a pair whose ids and scores would be easy to find in a text."""
    return PreferencePair(
        pair_id=f"pairid-{name}-{task_id}",
        task_id=task_id,
        pair_type=pair_type,
        level=level,
        prompt=prompt,
        chosen=chosen,
        rejected=rejected,
        chosen_id=f"chosenid-{task_id}",
        rejected_id=f"rejectedid-{task_id}",
        chosen_score=0.87654321,
        rejected_score=0.12345678,
        chosen_model="strong-model-x",
        rejected_model="weak-model-y",
    )


def tool_pair(i):
    """A step pair of two agents with tools that part at the first call."""
    prompt = [say("system", POLICY), say("user", f"Please cancel my reservation EHGLP{i}.")]
    chosen = [
        call("get_reservation", {"id": f"EHGLP{i}", "with": ["price", "bags"], "limit": 2.5}),
        result(f'{{"id": "EHGLP{i}", "booked": "2024-05-14", "price": 512}}'),
        say("assistant", f"EHGLP{i} was booked two days ago, so I cannot cancel it."),
    ]
    rejected = [
        call("cancel_reservation", {"id": f"EHGLP{i}"}, content="I will cancel it."),
        result("cancelled", name="cancel_reservation"),
        say("assistant", "Done."),
    ]
    return make_pair(f"tau_bench/airline/{i}", prompt, chosen, rejected, name="tool")


def talk_pair(i):
    """A trajectory pair of one task: the simulated user opened differently."""
    prompt = [say("system", POLICY), say("user", f"Change the passenger of EHGLP{i}.")]
    chosen = [
        say("user", f"Hi, I am Mia. Reservation EHGLP{i} please."),
        say("assistant", "What shall I change?"),
        say("user", "The passenger."),
        call("update_passenger", {"id": f"EHGLP{i}"}),
        result("Error: not allowed", name="update_passenger"),
        say("assistant", "That is not possible."),
    ]
    rejected = [say("user", f"Hello! EHGLP{i}."), say("assistant", "I changed the passenger – done ✓")]
    return make_pair(f"tau_bench/airline/{i}", prompt, chosen, rejected, level="trajectory", name="talk")


def reward_pair(i):
    """A single-turn pair chosen by a judge."""
    prompt = [say("user", f"EHGLP{i}: add 2 and 3, then name the capital of Peru.")]
    sides = [say("assistant", f"5, Lima. (EHGLP{i})")], [say("assistant", "6, Quito.")]
    return make_pair(f"celr/{i}", prompt, *sides, pair_type="self_reward", name="judge")


def spin_pair(i):
    """SFT response against a run's answer, with a system text."""
    prompt = [say("system", "Answer in one line."), say("user", f"What is the status of EHGLP{i}?")]
    sides = [say("assistant", f"EHGLP{i} is confirmed.")], [say("assistant", f"I think EHGLP{i} may be okay.")]
    return make_pair(f"celr/{i}", prompt, *sides, pair_type="spin", level="step", name="spin")


def spin_tool_pair(i):
    """A spin pair that SPIN cannot hold: the run's answer used a tool."""
    pair = tool_pair(i)
    return pair.model_copy(update={"pair_type": "spin", "pair_id": f"pairid-spintool-{i}"})


def kto_row(i):
    """A run of a task whose outcomes are all alike."""
    pair = tool_pair(i)
    return KtoRow(
        trajectory_id=f"trajid-kto-{i}",
        task_id=pair.task_id,
        prompt=pair.prompt,
        completion=pair.chosen,
        label=i % 2 == 0,
    )


def make_trajectory(task_id, name, messages, *, n_buckets, success=True, composite=0.5, prompt=None):
    """Return a run."""
    return Trajectory(
        trajectory_id=f"trajid-{name}",
        task_id=task_id,
        source_uri="logs.json",
        source_format="tau_bench",
        source_offset=0,
        source_index=0,
        messages=messages,
        prompt=prompt,
        status="SUCCESS" if success else "FAILED",
        success=success,
        bucket=assign_bucket(task_id, n_buckets),
        success_score=float(success),
        composite_score=composite,
        cost_usd=0.4242,
    )


def runs_of(i, n_buckets):
    """Three runs of one task: the best, a good one, a failed one."""
    pair = tool_pair(i)
    task = pair.task_id
    good, bad = [*pair.prompt, *pair.chosen], [*pair.prompt, *pair.rejected]
    return [
        make_trajectory(task, f"{i}-good", [*good, say("user", "Thanks, bye.")], n_buckets=n_buckets, composite=0.7),
        make_trajectory(task, f"{i}-best", good, n_buckets=n_buckets, composite=0.9),
        make_trajectory(task, f"{i}-bad", bad, n_buckets=n_buckets, success=False, composite=0.99),
    ]


def write_table(uri, models, schema):
    """Write models as one part."""
    storage.write_parquet(uri, pa.Table.from_pylist([model.model_dump() for model in models], schema=schema))


def write_run(run, pairs, unpaired, trajectories, *, n_buckets=4):
    """Write what ingest and the pair stage leave: two trajectory parts, one pair part a bucket."""
    run = str(run)
    occupied = {row.bucket for row in trajectories}
    for part in range(2):
        own = sorted(trajectories[part::2], key=lambda row: (row.bucket, row.task_id))
        sizes = [(b, sum(row.bucket == b for row in own)) for b in sorted({row.bucket for row in own})]
        table = pa.Table.from_pylist([row.model_dump() for row in own], schema=TRAJECTORY_SCHEMA)
        storage.write_parquet(f"{run}/trajectories/{part_name(part)}", table, [size for _, size in sizes])
        counts = {"rows_in": len(own), "rows_out": len(own), "rejected": 0, "row_groups": sizes, "score": {}}
        storage.write_json(manifest_uri(run, "ingest", part), {"index": part, **counts})
    storage.write_json(plan_uri(run, "ingest"), {"settings": {}, "fingerprint": "aa", "n_units": 2})
    for index, bucket in enumerate(sorted(occupied)):
        for folder, rows, schema in (("pairs", pairs, PAIR_SCHEMA), ("unpaired", unpaired, KTO_SCHEMA)):
            own = [row for row in rows if assign_bucket(row.task_id, n_buckets) == bucket]
            write_table(f"{run}/{folder}/{part_name(index)}", own, schema)
        storage.write_json(manifest_uri(run, "pair", index), {"index": index})
    storage.write_json(
        plan_uri(run, "pair"), {"settings": {"score": [{}]}, "fingerprint": "bb", "n_units": len(occupied)}
    )
    return run


def make_run(run, n_tasks=24, *, n_buckets=4):
    """Write a run with every kind of row for each task."""
    tasks = range(n_tasks)
    kinds = (tool_pair, talk_pair, reward_pair, spin_pair, spin_tool_pair)
    trajectories = [row for i in tasks for row in runs_of(i, n_buckets)]
    trajectories += [  # so that the buckets of the celr tasks exist too
        make_trajectory(f"celr/{i}", f"celr-{i}", [say("assistant", "ok")], n_buckets=n_buckets, success=False)
        for i in tasks
    ]
    return write_run(run, [k(i) for k in kinds for i in tasks], [kto_row(i) for i in tasks], trajectories)


def check_axolotl_row(row, *, messages="messages", role="role", content="content", roles=None):
    """The rules of Axolotl's `chat_template.default`: mapped roles, texts, one assistant message a side."""
    roles = roles or {"system": "system", "user": "user", "assistant": "assistant", "tool": "tool"}
    assert row[messages]
    for message in row[messages]:
        assert message[role] in roles
        assert isinstance(message[content], str)
    for side in (row["chosen"], row["rejected"]):
        assert roles[side[role]] == "assistant"
        assert side[content]
        assert side[content] == side[content].strip()
    assert row["chosen"] != row["rejected"]


def check_spin_row(row):
    """What SPIN's loader relies on: the first message is the user's, all after it is the completion."""
    for side in (row["real"], row["generated"]):
        assert [message["role"] for message in side] == ["user", "assistant"]
        assert all(message["content"].strip() for message in side)
    assert row["real"][0] == row["generated"][0]
    assert row["real"][1] != row["generated"][1]
