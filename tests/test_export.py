"""The export stage and the front doors; row rules are in test_convert.py, the trainers in test_export_readers.py."""

import json
import random
import re
from itertools import pairwise
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from export_rows import (
    check_axolotl_row,
    check_spin_row,
    make_run,
    make_trajectory,
    reward_pair,
    runs_of,
    say,
    spin_pair,
    spin_tool_pair,
    talk_pair,
    tool_pair,
    write_run,
)
from hypothesis import given
from hypothesis import strategies as st

from celr_ray import storage
from celr_ray.config import ExportConfig, RuntimeConfig
from celr_ray.core.trainer import export_to_dpo, export_to_sharegpt, export_to_spin
from celr_ray.errors import ConservationError, InputError, RunMismatchError
from celr_ray.run_folder import plan_uri, read_manifests
from celr_ray.training import export
from celr_ray.training.export import is_test_task, rank_successes, run_export

LOOP = RuntimeConfig(executor="loop")
ORDER = re.compile(r"EHGLP(\d+)")


def run_loop(run, **settings_):
    return run_export(run, ExportConfig(**settings_), LOOP, on_ray=False)


def files_of(run) -> dict[str, bytes]:
    base = Path(run) / "exports"
    return {str(path.relative_to(base)): path.read_bytes() for path in sorted(base.rglob("*")) if path.is_file()}


def rows_of(run, pattern):
    return [row for path in sorted((Path(run) / "exports").glob(pattern)) for row in pq.read_table(path).to_pylist()]


@given(st.text(min_size=1), st.floats(0, 0.99))
def test_split_depends_on_the_task_only(task_id, fraction):
    assert is_test_task(task_id, fraction) == is_test_task(task_id, fraction)
    assert not is_test_task(task_id, 0)


def test_split_takes_about_its_fraction():
    share = sum(is_test_task(f"tau_bench/airline/{i}", 0.2) for i in range(2000)) / 2000
    assert abs(share - 0.2) < 0.03


def test_best_runs_first():
    runs = [("c", 0.5, True), ("b", 0.5, True), ("d", None, True), ("a", 0.9, False), ("e", 0.8, True)]
    rows = [{"task_id": "t", "trajectory_id": i, "composite_score": s, "success": ok} for i, s, ok in runs]
    assert rank_successes(rows) == {"t": ["e", "b", "c", "d"]}


# ---------------------------------------------------------------- the stage


def test_stage_writes_all_formats_and_counts(tmp_path):
    run = make_run(tmp_path / "run")
    report = run_loop(run, test_fraction=0.25)
    counts = report.counts
    assert counts["rows_in"] == counts["rows_out"] == 24 * 6
    assert counts["rejected"] == 0
    assert {key.removeprefix("rows."): n for key, n in counts.items() if key.startswith("rows.")} == {
        "trl_dpo": 48,
        "trl_self_reward": 24,
        "trl_spin": 48,
        "axolotl_dpo": 24,
        "axolotl_self_reward": 24,
        "axolotl_sharegpt": 24,
        "spin": 24,
        "sft": 24,
        "kto": 24,
    }
    assert counts["losses.axolotl_left_out"] == 24
    assert counts["losses.axolotl_tools_rendered"] == 24
    assert counts["losses.spin_system_folded"] == 24
    assert counts["losses.spin_left_out"] == 24
    for target in export.TARGETS.values():
        base = Path(run) / "exports" / target.folder
        assert sum(pq.read_metadata(file).num_rows for file in base.glob("*.parquet")) == counts[f"rows.{target.name}"]
    for row in rows_of(run, "spin/*.parquet"):
        check_spin_row(row)
    for row in rows_of(run, "axolotl/dpo/*.parquet"):
        check_axolotl_row(row)


def test_no_task_is_in_both_splits(tmp_path):
    run = make_run(tmp_path / "run")
    run_loop(run, test_fraction=0.3)
    tasks = {"train": set(), "test": set()}
    for split, found in tasks.items():
        for row in rows_of(run, f"**/{split}*.parquet"):
            found.update(ORDER.findall(json.dumps(row)))
    airline = {str(i) for i in range(24) if is_test_task(f"tau_bench/airline/{i}", 0.3)}
    celr = {str(i) for i in range(24) if is_test_task(f"celr/{i}", 0.3)}
    assert airline
    assert tasks["test"] == airline | celr
    for row in rows_of(run, "trl/dpo/train*.parquet"):
        assert not airline & set(ORDER.findall(json.dumps(row)))


def test_nothing_but_texts_is_exported(tmp_path):
    run = make_run(tmp_path / "run")
    run_loop(run)
    secrets = ("0.8765", "0.1234", "pairid", "chosenid", "rejectedid", "trajid", "strong-model", "weak-model", "0.4242")
    rows = rows_of(run, "**/*.parquet")
    assert rows
    text = json.dumps(rows)
    assert not [secret for secret in (*secrets, "SUCCESS", "FAILED", "tau_bench/") if secret in text]


def test_same_files_whatever_the_order_of_units(tmp_path):
    plain, shuffled = make_run(tmp_path / "a"), make_run(tmp_path / "b")
    run_loop(plain)
    config = ExportConfig()
    units = list(enumerate(export.export_plan(shuffled, config).units))
    random.Random(1).shuffle(units)
    manifests = {i: export.ExportUnit(config, len(units))({**unit, "run": shuffled, "index": i}) for i, unit in units}
    stored = read_manifests(plain, "export")
    assert {i: {"index": i, **m} for i, m in manifests.items()} == stored
    written = files_of(shuffled)
    assert written == {name: data for name, data in files_of(plain).items() if name in written}
    assert all(name.endswith((".md", ".yaml")) for name in set(files_of(plain)) - set(written))


def test_rerun_does_nothing_and_changes_nothing(tmp_path):
    run = make_run(tmp_path / "run")
    run_loop(run, test_fraction=0.25)
    before = files_of(run)
    report = run_loop(run, test_fraction=0.25)
    assert report.units_run == 0
    assert files_of(run) == before
    with pytest.raises(RunMismatchError):
        run_loop(run, test_fraction=0.5)


def test_one_test_task_becomes_the_train_split(tmp_path):
    task = next(i for i in range(1000) if is_test_task(tool_pair(i).task_id, 0.05))
    run = make_run_of_one(tmp_path / "run", tool_pair(task))
    run_loop(run, formats=["trl", "axolotl"])
    names = [Path(name).name for name in files_of(run) if name.startswith("trl/dpo/")]
    assert names == ["train-00000-of-00001.parquet"]
    assert "made the train split" in (Path(run) / "exports/trl/README.md").read_text()
    assert "test_datasets" not in (Path(run) / "exports/axolotl/dpo.yaml").read_text()
    before = files_of(run)
    storage.delete_file(f"{run}/manifests/export/part-00000.json")
    run_loop(run, formats=["trl", "axolotl"])
    assert files_of(run) == before


def make_run_of_one(run, pair, unpaired=()):
    trajectory = make_trajectory(pair.task_id, "one", pair.prompt, n_buckets=4, success=False)
    return write_run(run, [pair], list(unpaired), [trajectory])


def test_formats_without_rows_say_so(tmp_path):
    run = make_run_of_one(tmp_path / "run", reward_pair(1))
    run_loop(run, test_fraction=0)
    assert not list((Path(run) / "exports/kto").glob("*.parquet"))
    for name in ("kto", "sft", "spin"):
        assert "NO ROWS" in (Path(run) / f"exports/{name}/README.md").read_text()
    assert not (Path(run) / "exports/axolotl/dpo.yaml").exists()


def test_only_the_asked_formats_are_written_and_the_rest_is_accounted_for(tmp_path):
    run = make_run(tmp_path / "run", 6)
    report = run_loop(run, formats=["spin"])
    assert {name.split("/")[0] for name in files_of(run)} == {"spin"}
    assert report.counts["rows_out"] == 6
    assert report.counts["rejected"] == 6 * 5
    assert report.counts["losses.pairs_in_no_format"] + report.counts["losses.unpaired_in_no_format"] == 6 * 5


def test_sft_takes_the_next_best_where_the_best_is_not_usable(tmp_path):
    task, answer = "celr/1", say("assistant", "ok")
    runs = [
        make_trajectory(task, "a", [answer], n_buckets=4, composite=0.9),
        make_trajectory(task, "b", [say("user", "first"), answer], n_buckets=4, composite=0.8),
        make_trajectory(task, "c", [say("user", "second"), answer], n_buckets=4, composite=0.7),
    ]
    run = write_run(tmp_path / "run", [], [], runs)
    report = run_loop(run, test_fraction=0)
    (row,) = rows_of(run, "sft/*.parquet")
    assert json.loads(row["messages"][0]) == {"role": "user", "content": "first"}
    assert report.counts["losses.sft_no_task_text"] == 1


def test_neighbours_in_kto_files_are_of_different_tasks(tmp_path):
    rows = [reward_pair(i).model_copy(update={"pair_id": f"{i}-{k}"}) for i in range(8) for k in range(8)]
    trajectories = [make_trajectory(row.task_id, row.pair_id, row.prompt, n_buckets=1, success=False) for row in rows]
    run = write_run(tmp_path / "run", rows, [], trajectories, n_buckets=1)
    run_loop(run, test_fraction=0)
    tasks = [ORDER.search(json.dumps(row))[1] for row in rows_of(run, "trl/self_reward/*.parquet")]
    assert sum(a == b for a, b in pairwise(tasks)) < len(tasks) / 3


def test_an_unfinished_run_is_refused(tmp_path):
    run = make_run(tmp_path / "run", 2)
    storage.delete_file(plan_uri(run, "pair"))
    with pytest.raises(InputError, match="celr-ray pair"):
        run_loop(run)
    storage.write_json(plan_uri(run, "pair"), {"settings": {}, "fingerprint": "bb", "n_units": 0})
    with pytest.raises((InputError, RunMismatchError)):
        run_loop(run)


def test_a_missing_pair_file_is_an_error_not_an_empty_bucket(tmp_path):
    run = make_run(tmp_path / "run", 4)
    storage.delete_file(f"{run}/pairs/part-00000.parquet")
    with pytest.raises((InputError, ConservationError), match="missing"):
        run_loop(run)


# ---------------------------------------------------------------- front doors


@pytest.mark.parametrize("name", ["out.parquet", "out.jsonl"])
def test_front_doors_write_the_same_rows_in_both_file_types(tmp_path, name):
    path = str(tmp_path / name)
    pairs = [spin_pair(1), spin_tool_pair(2), reward_pair(3)]
    runs = [row for i in range(2) for row in runs_for(i)]
    written = {
        "real": export_to_spin(pairs, path),
        "prompt": export_to_dpo(pairs, path + "2" + Path(name).suffix),
        "conversations": export_to_sharegpt(runs, path + "3" + Path(name).suffix),
    }
    assert written == {"real": 2, "prompt": 3, "conversations": 4}
    for file, key in ((path, "real"), (path + "2" + Path(name).suffix, "prompt")):
        rows = read_file(file)
        assert len(rows) == written[key]
        assert key in rows[0]


def runs_for(i):
    best, good, bad = runs_of(i, 4)
    return best, good.model_dump(), bad


def read_file(path):
    if path.endswith(".jsonl"):
        return [json.loads(line) for line in Path(path).read_text().splitlines()]
    return pq.read_table(path).to_pylist()


def test_generator_doors_take_models(tmp_path):
    pairs = [tool_pair(1), talk_pair(1)]
    assert export.write_trl(pairs, str(tmp_path / "a.jsonl")) == 2
    assert export.write_sharegpt_dpo(pairs, str(tmp_path / "b.parquet")) == 1
