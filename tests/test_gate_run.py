"""Whole gates: on banks and live, in a loop and on Ray, resumed, loopholes, from the command line to promotion."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from banks import random_bank
from calibration import load_benchmark
from gates import practice_bank
from policies import sample_artefact
from test_execute import blunder, solve
from test_report import needs_browser, open_in_browser

from celr_ray.cli import main
from celr_ray.config import ExecuteConfig, RuntimeConfig
from celr_ray.core.clients import CallFailure
from celr_ray.core.escalation import AlwaysCheap, AlwaysStrong, HeuristicPolicy
from celr_ray.cortex.actions import Action
from celr_ray.cortex.artefact import save_artefact
from celr_ray.cortex.evaluation.bank import Bank, make_bank, write_bank
from celr_ray.cortex.evaluation.baselines import RetryThenEscalate
from celr_ray.cortex.evaluation.loopholes import Broken, Insistent
from celr_ray.cortex.gate import holes as holes_module
from celr_ray.cortex.gate.criteria import GateVerdict
from celr_ray.cortex.gate.holes import check_holes
from celr_ray.cortex.gate.live import LiveSuite
from celr_ray.cortex.gate.plan import make_plan
from celr_ray.cortex.gate.results import hash_rows
from celr_ray.cortex.gate.screen import screen_candidate
from celr_ray.cortex.gate.settings import GateConfig
from celr_ray.cortex.gate.stage import Workers
from celr_ray.cortex.gate.suites import BankSuite
from celr_ray.cortex.gatekeeper import PAGE, REPORT, RESULTS, PromotionGate
from celr_ray.cortex.registry import PolicyRegistry
from celr_ray.cortex.transitions import read_dataset_record
from celr_ray.errors import InputError, PolicyError, RunMismatchError
from celr_ray.report.gate_page import render_gate_page
from celr_ray.run_folder import read_manifests
from celr_ray.testing import FakeClient

CONFIG = GateConfig(replays=4)
GSM8K = str(Path(__file__).parents[1] / "examples/banks/gsm8k")


@pytest.fixture(scope="module")
def bank_folder(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("bank")
    write_bank(str(folder), practice_bank())
    return str(folder)


@pytest.fixture(scope="module")
def passed(tmp_path_factory, bank_folder) -> Path:
    """A folder of a gate that passed, in a loop."""
    out = tmp_path_factory.mktemp("gate") / "out"
    report = PromotionGate(CONFIG, str(out), RuntimeConfig(executor="loop")).run(RetryThenEscalate(), suite=bank_folder)
    assert report.verdict is GateVerdict.PASS
    return out


def test_a_report_binds_what_it_rests_on(passed):
    report = json.loads((passed / REPORT).read_text())
    assert report["verdict"] == "PASS"
    assert report["candidate"]["content_hash"] == RetryThenEscalate().content_hash
    assert report["champion"]["content_hash"] == report["anchor"]["content_hash"] == HeuristicPolicy().content_hash
    assert report["suite"]["bank_hash"] == practice_bank().content_hash
    rows = pq.read_table(passed / RESULTS)
    assert report["results"]["rows"] == len(rows) == report["n_tasks_used"] * 2 * CONFIG.replays
    assert report["results"]["content_hash"] == hash_rows(rows)
    assert {tier["name"] for tier in report["price_table"]["tiers"]} == {"cheap", "strong"}
    names = {row["name"] for row in report["comparison"]["rows"]}
    assert {"always-cheap", "always-strong", "retry-then-escalate", "leave-one-out oracle"} <= names
    assert any(name.startswith("random-mix") for name in names)
    assert any(name.startswith("cascade") for name in names)
    assert all(row["success"]["ci_low"] <= row["success"]["value"] for row in report["comparison"]["rows"])
    assert not any(word in (passed / REPORT).read_text() for word in ("/tmp", 'seconds": 0.', "host"))


def test_a_gate_that_is_decided_runs_no_further_unit(passed):
    report = json.loads((passed / REPORT).read_text())
    assert report["is_early"]
    needed = -(-report["n_tasks_used"] // CONFIG.rows_per_unit)
    assert len(read_manifests(str(passed), "gate")) == needed < -(-report["n_tasks"] // CONFIG.rows_per_unit)


@pytest.mark.parametrize("concurrency", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_ray_gives_the_same_bytes_with_any_number_of_workers(local_ray, passed, bank_folder, tmp_path, concurrency):
    gate = PromotionGate(
        CONFIG, str(tmp_path / "out"), RuntimeConfig(executor="ray"), Workers(concurrency=concurrency, num_cpus=0.5)
    )
    gate.run(RetryThenEscalate(), suite=bank_folder)
    for name in (REPORT, RESULTS):
        assert (tmp_path / "out" / name).read_bytes() == (passed / name).read_bytes()


def test_a_gate_goes_on_where_it_was_killed(passed, bank_folder, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(passed, out)
    for name in (REPORT, RESULTS, "manifests/gate/part-00001.json", "results/part-00001.parquet"):
        (out / name).unlink()
    (out / "manifests/gate/part-00003.json").unlink()
    gate = PromotionGate(CONFIG, str(out))
    gate.run(RetryThenEscalate(), suite=bank_folder)
    assert gate.stage_report.units_run == 2
    assert (out / REPORT).read_bytes() == (passed / REPORT).read_bytes()
    again = PromotionGate(CONFIG, str(out))
    again.run(RetryThenEscalate(), suite=bank_folder)
    assert again.stage_report.units_run == 0
    assert (out / REPORT).read_bytes() == (passed / REPORT).read_bytes()


def test_another_gate_in_the_folder_is_refused_and_its_report_stays(passed, bank_folder, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(passed, out)
    with pytest.raises(RunMismatchError, match="candidate was"):
        PromotionGate(CONFIG, str(out)).run(AlwaysCheap(), suite=bank_folder)
    with pytest.raises(RunMismatchError, match="champion was"):
        PromotionGate(CONFIG, str(out)).run(RetryThenEscalate(), AlwaysStrong(), "heuristic", bank_folder)
    assert (out / REPORT).read_bytes() == (passed / REPORT).read_bytes()
    report = PromotionGate(CONFIG, str(out), overwrite=True).run(AlwaysCheap(), suite=bank_folder)
    assert report.verdict is GateVerdict.FAIL


def test_seeds_change_order_and_draws():
    config = GateConfig(max_tasks=40)
    first, second = (
        PromotionGate(config.model_copy(update={"seed": seed})).run(RetryThenEscalate(), suite=practice_bank())
        for seed in (0, 1)
    )
    assert first.document["suite"]["order_hash"] != second.document["suite"]["order_hash"]
    assert first.document["figures"] != second.document["figures"]


def test_a_candidate_that_cannot_decide_fails():
    report = PromotionGate(GateConfig(max_tasks=40)).run(Broken("nan-observations"), suite=practice_bank())
    assert report.verdict is GateVerdict.FAIL
    assert "cannot decide" in report.reasons[0]
    assert render_gate_page(report.document)


def test_a_champion_that_cannot_decide_is_an_error():
    with pytest.raises(PolicyError, match="champion cannot decide"):
        PromotionGate(GateConfig()).run(RetryThenEscalate(), Broken("masked-action"), suite=practice_bank())


def test_censored_episodes_never_help():
    config = GateConfig(exhausted="censor", max_tasks=60)
    report = PromotionGate(config).run(HeuristicPolicy(), AlwaysCheap(), "heuristic", random_suite(config))
    figures = report.document["figures"]["candidate"]
    assert figures["n_censored"] > 0
    assert report.verdict is not GateVerdict.PASS


def test_the_runtimes_caps_hold_in_replays_too(bank_folder, tmp_path):
    words = gate_words(
        tmp_path / "out", bank_folder, "heuristic", "--gate.max-tasks", "60", "--champion", "always-cheap"
    )
    assert main([*words, "--execute.limits.decisions", "2"]) in (3, 4)
    rows = pq.read_table(tmp_path / "out" / RESULTS)
    assert max(rows["n_decisions"].to_pylist()) == 2


def test_a_success_that_comes_too_late_is_none():
    bank = practice_bank()
    place = bank.tasks.schema.get_field_index("time_limit_s")
    limits = pa.array([1.05] * bank.tasks.num_rows)  # an attempt takes 1 s, a verification 0.1 s
    bank = make_bank(bank.tiers, bank.tasks.set_column(place, "time_limit_s", limits), bank.attempts)
    report = PromotionGate(GateConfig(max_tasks=60)).run(RetryThenEscalate(), AlwaysCheap(), "heuristic", bank)
    figures = report.document["figures"]
    assert report.verdict is GateVerdict.FAIL
    assert (figures["candidate"]["success"], figures["champion"]["n_timed_out"]) == (0.0, 0)
    assert figures["candidate"]["n_timed_out"] == report.document["n_tasks_used"]
    assert figures["candidate"]["cost_usd"] == report.document["suite"]["cap_usd"]
    assert report.document["comparison"]["rows"][0]["success"]["value"] == 0.0


def random_suite(config: GateConfig, seed: int = 5, n_tasks: int = 80) -> BankSuite:
    config = config.model_copy(update={"split": "all"})
    return BankSuite(random_bank(seed, n_tasks), config, HeuristicPolicy().config)


# Loopholes


def holes_of(bank: Bank, champion, config: GateConfig):
    config = config.model_copy(update={"split": "all"})
    suite = BankSuite(bank, config, HeuristicPolicy().config)
    facts = suite.facts
    own = champion.content_hash != HeuristicPolicy().content_hash
    plan = make_plan(facts.task_ids, facts.strata, config, cap_usd=facts.cap_usd, has_own_anchor=own)
    policies = {"champion": champion, "anchor": HeuristicPolicy()}
    return check_holes(suite.replay_suite, policies, plan, config)


@pytest.mark.parametrize(
    ("champion", "config"),
    [
        (HeuristicPolicy(), GateConfig()),
        (AlwaysCheap(), GateConfig()),
        (AlwaysStrong(), GateConfig(strict_point_rule=False)),
        (RetryThenEscalate(), GateConfig(strict_point_rule=False, replays=2)),
    ],
)
def test_no_loophole_passes(champion, config):
    found = holes_of(practice_bank(), champion, config)
    passed = [hole.name for hole in found if hole.verdict is GateVerdict.PASS and not hole.is_control]
    assert passed == []
    control = next(hole for hole in found if hole.is_control)
    assert control.verdict is GateVerdict.PASS, "else the judge tells nothing apart"
    wanted = {"stop-at-once", "verify-retry-cycle", "explosive-costs", "nan-success", "doubled-rows", "missing-unit"}
    assert wanted <= {hole.name for hole in found}
    lazy = [hole for hole in found if hole.name in ("stop-at-once", "abort-at-once", "verify-for-ever")]
    assert all(hole.verdict is GateVerdict.FAIL for hole in lazy)


@pytest.mark.parametrize("seed", [1, 2])
def test_no_loophole_passes_on_small_odd_banks(seed):
    found = holes_of(random_bank(seed, 60), HeuristicPolicy(), GateConfig())
    assert not any(hole.verdict is GateVerdict.PASS and not hole.is_control for hole in found)


def test_a_gate_that_lets_a_loophole_through_never_passes(monkeypatch):
    monkeypatch.setattr(holes_module, "make_loopholes", lambda champion, hard: [RetryThenEscalate()])
    report = PromotionGate(CONFIG).run(RetryThenEscalate(), suite=practice_bank())
    assert report.verdict is GateVerdict.INCONCLUSIVE
    assert "cannot be trusted" in report.reasons[0]


# The command line and the registry


def gate_words(out: Path, bank: str, candidate: str, *more: str) -> list[str]:
    words = ["gate", "--candidate", candidate, "--suite", bank, "--out", str(out)]
    return [*words, "--gate.max-tasks", "320", *more]


def test_exit_codes(bank_folder, tmp_path, capsys):
    assert main(gate_words(tmp_path / "fail", bank_folder, "always-cheap", "--gate.rows-per-unit", "16")) == 3
    assert "FAIL: success is proven lower" in capsys.readouterr().out
    assert main(gate_words(tmp_path / "open", bank_folder, "heuristic")) == 4
    assert (tmp_path / "open" / PAGE).stat().st_size > 100_000
    assert json.loads((tmp_path / "open" / "run.json").read_text())["stages"]["gate"]["rows_in"] == 320
    capsys.readouterr()
    assert main(gate_words(tmp_path / "no", bank_folder, "nobody")) == 2
    assert main(gate_words(tmp_path / "no", str(tmp_path / "nothing"), "heuristic")) == 2
    assert main(gate_words(tmp_path / "no", bank_folder, "heuristic", "--promote")) == 2
    assert "registered candidate" in capsys.readouterr().err
    assert main(gate_words(tmp_path / "no", str(tmp_path / "nothing"), "heuristic")) == 2
    assert "neither a bank nor a file of tasks" in capsys.readouterr().err
    assert not (tmp_path / "no").exists()


@needs_browser
def test_a_real_browser_draws_the_page(passed, tmp_path):
    uri = tmp_path / PAGE
    uri.write_bytes(render_gate_page(json.loads((passed / REPORT).read_text())))
    page, console = open_in_browser(uri, tmp_path / "profile")
    assert 'data-plots="drawn"' in page
    assert console == []


@pytest.fixture(scope="module")
def registry(tmp_path_factory) -> str:
    """A registry of `lost` and `won`: a random network as challenger, the heuristic as champion and anchor."""
    folder = tmp_path_factory.mktemp("registry")
    save_artefact(str(folder / "artefact"), sample_artefact())
    for name in ("lost", "won"):
        PolicyRegistry(str(folder)).log_training(name, str(folder / "artefact"))
    return str(folder)


def test_gates_of_registered_policies_are_audited_and_failures_not_promoted(registry, bank_folder, tmp_path, capsys):
    words = gate_words(tmp_path / "out", bank_folder, "lost@challenger", "--registry", registry, "--promote")
    assert main(words) in (3, 4)
    assert "not promoted" in capsys.readouterr().out
    report = json.loads((tmp_path / "out" / REPORT).read_text())
    assert report["candidate"]["reference"] == "lost@2"
    assert report["champion"]["reference"] == "lost@1"
    event = PolicyRegistry(registry).history("lost").events[-1]
    assert (event.event, event.candidate_hash) == ("gate", report["candidate"]["content_hash"])
    assert event.details["verdict"] == report["verdict"]
    assert PolicyRegistry(registry).resolve("lost@champion").version == 1
    evidence = str(tmp_path / "out" / REPORT)
    assert main(["policy", "promote", "lost@2", "--registry", registry, "--evidence", evidence]) == 2
    assert "only PASS promotes" in capsys.readouterr().err


def test_a_pass_promotes_and_is_no_evidence_against_another_champion(registry, bank_folder, tmp_path, capsys):
    """The champion is forced to be the network, so that the heuristic is a candidate that passes."""
    opened = PolicyRegistry(registry)
    opened.promote("won", 2, expected_champion=opened.resolve("won@champion").content_hash, force="test")
    words = gate_words(tmp_path / "out", bank_folder, "won@1", "--registry", registry, "--promote")
    assert main(words) == 0
    assert "promoted: champion of won is" in capsys.readouterr().out
    assert opened.resolve("won@champion").version == 1
    assert [event.event for event in opened.history("won").events][-2:] == ["gate", "promote"]
    save_artefact(str(tmp_path / "other"), sample_artefact(seed=7))
    third = opened.log_training("won", str(tmp_path / "other"))
    opened.promote("won", third.version, expected_champion=opened.resolve("won@1").content_hash, force="meanwhile")
    evidence = str(tmp_path / "out" / REPORT)
    assert main(["policy", "promote", "won@1", "--registry", registry, "--evidence", evidence]) == 2
    assert "another champion" in capsys.readouterr().err
    assert opened.resolve("won@champion").version == third.version
    opened.rollback("won")
    opened.rollback("won")
    assert opened.resolve("won@champion").version == 2
    assert main(["policy", "promote", "won@1", "--registry", registry, "--evidence", evidence]) == 0


def test_a_champion_that_changes_during_a_gate_stops_its_promotion(bank_folder, tmp_path, capsys, monkeypatch):
    registry = str(tmp_path / "registry")
    opened = PolicyRegistry(registry)
    save_artefact(str(tmp_path / "artefact"), sample_artefact())
    opened.log_training("moved", str(tmp_path / "artefact"))
    anchor = opened.resolve("moved@anchor").content_hash
    opened.promote("moved", 2, expected_champion=anchor, force="test")
    save_artefact(str(tmp_path / "other"), sample_artefact(seed=7))
    third = opened.log_training("moved", str(tmp_path / "other"))
    run = PromotionGate.run

    def run_while_another_promotes(*arguments, **more):
        report = run(*arguments, **more)
        opened.promote(
            "moved", third.version, expected_champion=opened.resolve("moved@champion").content_hash, force="meanwhile"
        )
        return report

    monkeypatch.setattr(PromotionGate, "run", run_while_another_promotes)
    words = gate_words(tmp_path / "out", bank_folder, "moved@1", "--registry", registry, "--promote")
    assert main(words) == 2
    assert "champion" in capsys.readouterr().err
    assert json.loads((tmp_path / "out" / REPORT).read_text())["verdict"] == "PASS"
    assert opened.resolve("moved@champion").version == third.version
    assert opened.history("moved").events[-1].event == "gate"


# Live


def live_suite(folder: Path, config: GateConfig, cheap=blunder, strong=solve, n_tasks: int = 40) -> LiveSuite:
    tasks, tiers = load_benchmark("sleeping_engine").write_suite(folder, "http://127.0.0.1:1/v1", n_tasks)
    clients = {"cheap": FakeClient("cheap", cheap), "strong": FakeClient("strong", strong)}
    return LiveSuite(str(tasks), str(tiers), ExecuteConfig(), config, clients)


def test_a_live_gate_runs_the_same_tasks_and_seeds_for_every_role(tmp_path):
    config = GateConfig(max_unsafe_rate=0.2, min_cost_tasks=10, rows_per_unit=16)
    suite = live_suite(tmp_path, config, cheap=solve)
    out = tmp_path / "out"
    report = PromotionGate(config, str(out)).run(AlwaysCheap(), AlwaysStrong(), "heuristic", suite)
    figures = report.document["figures"]
    assert figures["candidate"]["success"] == figures["champion"]["success"] == 1.0
    assert figures["candidate"]["cost_usd"] < 0.2 * figures["champion"]["cost_usd"]
    assert report.document["suite"]["kind"] == "live"
    assert "seconds" not in figures["candidate"]
    assert not any(hole["verdict"] == "PASS" and not hole["is_control"] for hole in report.document["loopholes"])
    assert len(list(out.glob("live/candidate/replay-0/logs/*.jsonl"))) == len(list(out.glob("results/*.parquet")))
    again = PromotionGate(config).run(AlwaysCheap(), AlwaysStrong(), "heuristic", live_suite(tmp_path, config, solve))
    assert again.to_bytes() == report.to_bytes()
    assert render_gate_page(report.document)


def test_a_live_answer_that_comes_too_late_is_none(tmp_path):
    config = GateConfig(max_tasks=20)
    suite = live_suite(tmp_path, config, cheap=solve)
    tasks = [{**json.loads(line), "time_limit_s": 1e-9} for line in Path(suite.tasks).read_text().splitlines()]
    Path(suite.tasks).write_text("".join(json.dumps(task) + "\n" for task in tasks))
    report = PromotionGate(config).run(AlwaysCheap(), AlwaysStrong(), "heuristic", suite)
    figures = report.document["figures"]["champion"]
    assert (figures["success"], figures["n_timed_out"]) == (0.0, report.document["n_tasks_used"])
    assert figures["cost_usd"] == pytest.approx(report.document["suite"]["cap_usd"])


@pytest.mark.parametrize(("kind", "is_outage"), [("server", True), ("context", False)])
def test_outages_of_a_live_provider_count_against_the_candidate_whoever_they_hit(tmp_path, kind, is_outage):
    def fail(chat, seed):
        return CallFailure("503", kind)

    config = GateConfig(max_tasks=20)
    suite = live_suite(tmp_path, config, cheap=solve, strong=fail)
    cheap, strong = (
        PromotionGate(config).run(candidate, champion, "heuristic", suite).document["figures"]
        for candidate, champion in ((AlwaysCheap(), AlwaysStrong()), (AlwaysStrong(), AlwaysCheap()))
    )
    assert (cheap["champion"]["success"], strong["candidate"]["success"]) == (float(is_outage), 0.0)
    assert (cheap["champion"]["n_censored"] > 0) is (strong["candidate"]["n_censored"] > 0) is is_outage
    assert cheap["candidate"]["n_censored"] == 0


def test_a_live_gate_fails_the_worse_and_the_broken(tmp_path):
    config = GateConfig(rows_per_unit=16)
    report = PromotionGate(config).run(AlwaysCheap(), AlwaysStrong(), "heuristic", live_suite(tmp_path, config))
    assert report.verdict is GateVerdict.FAIL
    assert report.document["is_early"]
    broken = PromotionGate(config).run(
        Broken("masked-action"), AlwaysStrong(), "heuristic", live_suite(tmp_path, config)
    )
    assert broken.verdict is GateVerdict.FAIL


def test_live_suites_that_cannot_be_gated_are_refused(tmp_path):
    suite = live_suite(tmp_path, GateConfig())
    lines = Path(suite.tasks).read_text().splitlines()
    task = json.loads(lines[0])
    del task["checker"]
    for line, text in ((json.dumps(task), "lack a checker"), ("{", "are no tasks")):
        Path(suite.tasks).write_text("\n".join([line, *lines[1:]]))
        with pytest.raises(InputError, match=text):
            PromotionGate(GateConfig()).run(AlwaysCheap(), suite=live_suite_of(suite))


def live_suite_of(suite: LiveSuite) -> LiveSuite:
    return LiveSuite(suite.tasks, suite.tiers, suite.execute, suite.config, suite.clients)


@pytest.fixture(scope="module")
def random_logs(tmp_path_factory) -> str:
    """Random decisions on the training questions of a real bank, as transitions."""
    out = str(tmp_path_factory.mktemp("logs") / "replay")
    assert main(["bank", "replay", "--bank", GSM8K, "--epsilon", "1", "--replays", "8", "--out", out]) == 0
    return out


def test_a_candidate_that_logs_prove_worse_is_rejected_before_any_task(random_logs, tmp_path):
    gate = PromotionGate(GateConfig(), str(tmp_path / "out"), transitions=random_logs)
    report = gate.run(Insistent("quitter", [Action.ABORT]), suite=GSM8K)
    screen = report.document["screen"]
    assert (report.verdict, screen["verdict"], screen["is_rejected"]) == (GateVerdict.FAIL, "REJECTED", True)
    assert report.reasons[0].startswith("screen: the candidate is worse than the champion")
    assert screen["data_hash"] == read_dataset_record(random_logs)["data_hash"]
    assert report.document["n_tasks_used"] == 0
    assert not list((tmp_path / "out" / "results").glob("*"))


def test_logs_say_nothing_of_a_policy_that_begins_on_another_tier(random_logs):
    runtime = RuntimeConfig(executor="loop")
    for candidate, champion, role in (
        (AlwaysStrong(), HeuristicPolicy(), "candidate"),
        (AlwaysCheap(), AlwaysStrong(), "champion"),
    ):
        said = screen_candidate(random_logs, candidate, champion, runtime, alpha=0.05, seed=0)
        assert (said["verdict"], said["is_rejected"]) == ("NOT_EVALUABLE", False)
        assert f"cannot evaluate the {role}: " in said["reason"]
        assert "begin on another tier" in said["reason"]
