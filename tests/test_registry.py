"""The registry on real MLflow with SQLite, and on a real MLflow server: what is deployed always loads."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.request

import numpy as np
import pytest
from conftest import ROOT
from policies import play, sample_artefact
from test_execute import decisions, make_tasks
from test_execute import run as execute

from celr_ray import storage
from celr_ray.cli import main
from celr_ray.core.escalation import EscalationConfig, HeuristicPolicy
from celr_ray.cortex.artefact import save_artefact
from celr_ray.cortex.evidence import check_evidence, hash_evidence
from celr_ray.cortex.learned import LearnedPolicy
from celr_ray.cortex.policy import MetaPolicy, load_policy
from celr_ray.cortex.registry import PolicyRegistry
from celr_ray.cortex.registry_lock import claim_policy
from celr_ray.cortex.registry_place import find_registry
from celr_ray.cortex.registry_store import Store
from celr_ray.errors import PolicyError, RunMismatchError


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """One embedded registry for all tests: making one takes seconds. Each test has a policy name of its own."""
    folder = tmp_path_factory.mktemp("registry")
    PolicyRegistry(str(folder)).register_heuristic("first")
    return str(folder)


@pytest.fixture
def registry(place):
    return PolicyRegistry(place)


@pytest.fixture
def name(request):
    return "p." + request.node.name.removeprefix("test_")[:90]


def train(registry, name, tmp_path, seed=0, **settings):
    """Store a policy and register it, as a training does."""
    folder = str(tmp_path / f"policy-{seed}")
    save_artefact(folder, sample_artefact(seed, **settings))
    return registry.log_training(
        name,
        folder,
        params={"algorithm": {"alpha": 0.1}, "seed": seed},
        metrics={"value": 0.5},
        curves={"loss": [3.0, 2.0, 1.0]},
        tags={"note": "test"},
    )


def passing(candidate, champion, **changes):
    """Return a gate's report that lets a candidate pass."""
    return {
        "verdict": "PASS",
        "candidate": {"content_hash": candidate.content_hash},
        "champion": {"content_hash": champion.content_hash},
        **changes,
    }


def promote(registry, name, candidate):
    champion = registry.resolve(f"{name}@champion")
    return registry.promote(
        name, candidate.version, expected_champion=champion.content_hash, evidence=passing(candidate, champion)
    )


def version_of(registry, name, alias):
    aliases = registry.list()[name]
    return aliases[alias].version if alias in aliases else None


# Reading and adding


def test_a_policy_begins_with_the_heuristic_as_anchor_and_champion(registry, name, tmp_path):
    escalation = EscalationConfig(abort_budget=0.2)
    made = train(registry, name, tmp_path, escalation=escalation)
    assert (made.version, made.aliases) == (2, ("challenger",))
    for alias in ("anchor", "champion"):
        policy = registry.load(f"{name}@{alias}")
        assert isinstance(policy, HeuristicPolicy)
        assert policy.content_hash == HeuristicPolicy(escalation).content_hash
    assert registry.register_heuristic(name).version == 1
    assert [event.event for event in registry.history(name).events] == ["register"]


def test_a_training_is_a_run_with_parameters_curves_and_the_artefact(registry, name, tmp_path):
    made = train(registry, name, tmp_path)
    client = registry._open().client
    run = client.get_run(made.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params == {"algorithm.alpha": "0.1", "seed": "0"}
    assert run.data.metrics == {"value": 0.5, "loss": 1.0}
    assert [point.value for point in client.get_metric_history(made.run_id, "loss")] == [3.0, 2.0, 1.0]
    assert made.tags["celr.data_hash"] == "d" * 32
    assert made.tags["note"] == run.data.tags["note"] == "test"
    assert sorted(file.path for file in client.list_artifacts(made.run_id, "policy")) == [
        "policy/manifest.json",
        "policy/policy.npz",
    ]


def test_what_was_registered_decides_as_what_was_trained(registry, place, name, tmp_path):
    train(registry, name, tmp_path)
    obs, mask = play(2, 1000)
    expected = LearnedPolicy(sample_artefact(0)).probabilities(obs, mask)
    for reference in (f"{name}@challenger", f"{name}@2"):
        policy = load_policy(reference, registry=place)
        assert np.array_equal(policy.probabilities(obs, mask), expected)
    meta = MetaPolicy(f"{name}@challenger", registry=place)
    assert np.array_equal(meta.decide_batch(obs, mask), expected.argmax(axis=1))


def test_the_environment_names_the_registry(place, monkeypatch, tmp_path):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{place}/mlflow.db")
    assert load_policy("first@anchor").name == "heuristic"
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    monkeypatch.chdir(tmp_path)
    assert find_registry(None) == f"sqlite:///{tmp_path}/mlflow.db"
    assert find_registry("sqlite:///a.db") == f"sqlite:///{tmp_path}/a.db"
    assert find_registry("http://host:5000") == "http://host:5000"


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("nobody@champion", "no policy 'nobody' in the registry .*; there are: .*first"),
        ("first@best", "first has no alias 'best' .*; it has: anchor, champion"),
        ("first@99", "first has no version 99"),
        ("first@", "is no NAME@ALIAS"),
        ("@champion", "is no name of a policy"),
        ("first'; drop@champion", "is no name of a policy"),
    ],
)
def test_what_is_not_there_is_one_clear_error(registry, reference, message):
    with pytest.raises(PolicyError, match=message):
        registry.load(reference)


def test_a_missing_registry_is_one_clear_error_and_is_not_made(tmp_path):
    with pytest.raises(PolicyError, match=r"no registry at .*mlflow\.db.*--registry or MLFLOW_TRACKING_URI"):
        load_policy("router@champion", registry=str(tmp_path / "none"))
    assert not (tmp_path / "none").exists()
    (tmp_path / "text.db").write_text("this is no database, but long enough")
    with pytest.raises(PolicyError, match="not an SQLite file"):
        PolicyRegistry(str(tmp_path / "text.db")).list()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(PolicyError, match=f"no MLflow server answers at http://127.0.0.1:{port}"):
        PolicyRegistry(f"http://127.0.0.1:{port}").list()


def test_other_models_of_a_shared_mlflow_are_left_alone(registry, name, tmp_path):
    registry._open().client.create_registered_model(name)
    assert name not in registry.list()
    with pytest.raises(PolicyError, match="no policy"):
        registry.resolve(f"{name}@1")
    with pytest.raises(PolicyError, match=r"a model .* that is no policy"):
        train(registry, name, tmp_path)


def artefact_folder(registry, version):
    return registry._open().client.get_run(version.run_id).info.artifact_uri + "/policy"


def test_a_tampered_artefact_is_refused_and_the_champion_untouched(registry, name, tmp_path):
    changed, swapped = train(registry, name, tmp_path, 1), train(registry, name, tmp_path, 2)
    weights = f"{artefact_folder(registry, changed)}/policy.npz"
    data = bytearray(storage.read_bytes(weights))
    data[-200] ^= 1
    storage.write_bytes(weights, bytes(data))
    save_artefact(artefact_folder(registry, swapped), sample_artefact(3))  # sound in itself, but another policy
    for version, message in (
        (changed, f"{weights} was changed since it was written"),
        (swapped, "is not what was registered"),
    ):
        with pytest.raises(PolicyError, match=message) as caught:
            registry.load(f"{name}@{version.version}")
        assert "celr-ray-policy-" not in str(caught.value), "the copy in a temporary folder, which is gone by now"
        with pytest.raises(PolicyError, match=message):
            promote(registry, name, version)
    assert registry.load(f"{name}@champion").name == "heuristic"
    assert version_of(registry, name, "champion") == 1


def test_a_lost_artefact_is_one_clear_error(registry, name, tmp_path):
    made = train(registry, name, tmp_path)
    storage.delete_directory(artefact_folder(registry, made))
    with pytest.raises(PolicyError, match=f"{name}@2"):
        registry.load(f"{name}@2")


# Promotion and rollback


def test_a_promotion_moves_champion_and_previous_and_is_written_down(registry, name, tmp_path):
    candidate = train(registry, name, tmp_path)
    before = registry.resolve(f"{name}@champion")
    report = passing(candidate, before)
    assert promote(registry, name, candidate).aliases == ("challenger", "champion")
    assert (version_of(registry, name, "previous"), version_of(registry, name, "anchor")) == (1, 1)
    event = registry.history(name).events[-1]
    assert (event.event, event.candidate_hash, event.champion_hash, event.evidence_hash) == (
        "promote",
        candidate.content_hash,
        before.content_hash,
        hash_evidence(report),
    )


def test_rollback_goes_back_step_by_step_and_no_further(registry, name, tmp_path):
    versions = [train(registry, name, tmp_path, seed) for seed in (1, 2)]
    for version in versions:
        promote(registry, name, version)
    assert registry.rollback(name, reason="worse").version == 2
    assert version_of(registry, name, "previous") == 1
    assert registry.rollback(name).version == 1
    assert version_of(registry, name, "previous") is None
    with pytest.raises(PolicyError, match="no champion before"):
        registry.rollback(name)
    assert promote(registry, name, versions[1]).version == 3
    assert version_of(registry, name, "previous") == 1
    events = registry.history(name).events
    assert [event.event for event in events] == ["register", "promote", "promote", "rollback", "rollback", "promote"]
    assert events[3].details["reason"] == "worse"


def test_a_promotion_against_another_champion_is_refused(registry, name, tmp_path):
    first, second = (train(registry, name, tmp_path, seed) for seed in (1, 2))
    anchor = registry.resolve(f"{name}@anchor")
    promote(registry, name, first)
    with pytest.raises(PolicyError, match=f"not promoted: the champion of {name} is {name}@2 .* by now"):
        registry.promote(name, second.version, expected_champion=anchor.content_hash, evidence=passing(second, anchor))
    assert version_of(registry, name, "champion") == 2


def test_an_equal_policy_is_not_promoted(registry, name, tmp_path):
    promote(registry, name, train(registry, name, tmp_path))
    with pytest.raises(PolicyError, match="decides as the champion"):
        promote(registry, name, train(registry, name, tmp_path, training={"seed": 9}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"verdict": "FAIL"}, "verdict is 'FAIL': only PASS"),
        ({"verdict": "INCONCLUSIVE"}, "only PASS"),
        ({"verdict": None}, "only PASS"),
        ({"candidate": {"content_hash": "other"}}, "of another candidate"),
        ({"champion": {"content_hash": "other"}}, "of another champion"),
        ({"candidate": "text"}, "of another candidate"),
        ({"champion": None}, "of another champion"),
        ({"anchor": {"content_hash": "other"}}, "of another anchor"),
    ],
)
def test_reports_that_are_no_evidence(changes, message):
    report = {
        "verdict": "PASS",
        "candidate": {"content_hash": "a"},
        "champion": {"content_hash": "b"},
        "anchor": {"content_hash": "c"},
    }
    check_evidence(report, candidate_hash="a", champion_hash="b", anchor_hash="c")
    with pytest.raises(PolicyError, match=message):
        check_evidence({**report, **changes}, candidate_hash="a", champion_hash="b", anchor_hash="c")
    with pytest.raises(PolicyError, match="there is none"):
        check_evidence(report, candidate_hash="a", champion_hash=None)


def test_a_promotion_needs_evidence_or_a_reason(registry, name, tmp_path):
    candidate = train(registry, name, tmp_path)
    champion = registry.resolve(f"{name}@champion")
    for options in ({}, {"force": ""}, {"evidence": passing(candidate, champion), "force": "both"}):
        with pytest.raises(PolicyError, match="needs the gate's report"):
            registry.promote(name, 2, expected_champion=champion.content_hash, **options)
    registry.promote(name, 2, expected_champion=champion.content_hash, force="a demo")
    assert registry.history(name).events[-1].details["forced"] == "a demo"


def test_other_events_are_written_down_with_their_evidence(registry, name, tmp_path):
    candidate = train(registry, name, tmp_path)
    event = registry.record_event(
        name, "gate", candidate_hash=candidate.content_hash, evidence={"verdict": "FAIL"}, details={"verdict": "FAIL"}
    )
    assert registry.history(name).events[-1] == event


def test_a_champion_set_by_hand_is_taken_as_it_stands(registry, name, tmp_path):
    made = train(registry, name, tmp_path)
    other = train(registry, name, tmp_path, 2)
    client = registry._open().client
    client.set_registered_model_alias(name, "champion", str(made.version))
    promote(registry, name, other)
    assert registry.rollback(name).version == made.version
    assert "found" in [event.event for event in registry.history(name).events]
    client.delete_registered_model_alias(name, "champion")
    assert registry.rollback(name).version == 1
    assert version_of(registry, name, "champion") == 1


def test_an_execution_follows_the_version_that_the_alias_meant_when_it_began(registry, place, name, tmp_path):
    first = train(registry, name, tmp_path)
    settings = {"policy": f"{name}@challenger", "registry": place}
    logs, _, report = execute(tmp_path, make_tasks(6), **settings)
    assert {log["extra"]["celr"]["episode"]["policy_hash"] for log in logs} == {first.content_hash}
    assert 0 <= report.counts["fallbacks"] <= sum(len(decisions(log)) for log in logs)
    train(registry, name, tmp_path, 2)
    with pytest.raises(RunMismatchError):
        execute(tmp_path, make_tasks(6), **settings)
    again, _, _ = execute(tmp_path, make_tasks(6), **{**settings, "policy": f"{name}@{first.version}"})
    assert again == logs


# What can go wrong in between


class Crash(BaseException):
    """Stands for the death of the process: nothing catches it."""


WRITES = ("set_tag", "delete_tag", "set_alias", "delete_alias", "add_event")


def crash_at(monkeypatch, number):
    """Let the process die at the given write to the registry, and at all after it."""
    count = [0]

    def wrap(write):
        def counted(*arguments, **options):
            count[0] += 1
            if count[0] >= number:
                raise Crash
            return write(*arguments, **options)

        return counted

    for method in WRITES:
        monkeypatch.setattr(Store, method, wrap(getattr(Store, method)))


def some_slow(numbers, quick):
    return [number if number in quick else pytest.param(number, marks=pytest.mark.slow) for number in numbers]


@pytest.fixture(scope="module")
def pair(place, tmp_path_factory):
    """Two trained versions; every test that uses them goes back to the anchor at its end."""
    registry = PolicyRegistry(place)
    return [train(registry, "pair", tmp_path_factory.mktemp("pair"), seed) for seed in (1, 2)]


def count_events(registry, *since):
    events = [event.event for event in registry.history("pair").events]
    return events[len(since[0]) :] if since else events


@pytest.mark.parametrize("number", some_slow(range(1, 8), (3, 4, 6)))
def test_a_death_between_any_two_writes_leaves_a_champion_and_a_way_back(place, pair, monkeypatch, number):
    """Promotion: claim, journal, champion, previous, audit log, journal, claim."""
    registry = PolicyRegistry(place)
    first, second = pair
    promote(registry, "pair", first)
    before = count_events(registry)
    with monkeypatch.context() as patch:
        crash_at(patch, number)
        with pytest.raises(Crash):
            promote(registry, "pair", second)
    again = PolicyRegistry(place)
    champion = again.resolve("pair@champion")
    assert champion.version == (first.version if number <= 3 else second.version)
    assert isinstance(again.load(champion), LearnedPolicy)
    if champion.version == first.version:
        promote(again, "pair", second)
    assert again.rollback("pair").version == first.version
    assert again.rollback("pair").version == 1
    assert count_events(again, before) == ["promote", "rollback", "rollback"]


@pytest.mark.parametrize("number", some_slow(range(1, 8), (3, 4)))
def test_a_death_in_a_rollback_is_finished_by_the_next_command(place, pair, monkeypatch, number):
    registry = PolicyRegistry(place)
    promote(registry, "pair", pair[0])
    promote(registry, "pair", pair[1])
    before = count_events(registry)
    with monkeypatch.context() as patch:
        crash_at(patch, number)
        with pytest.raises(Crash):
            registry.rollback("pair")
    again = PolicyRegistry(place)
    expected = pair[1].version if number <= 3 else pair[0].version
    assert again.resolve("pair@champion").version == expected
    while (back := again.rollback("pair").version) != 1:
        assert back == pair[0].version
    assert count_events(again, before) == ["rollback", "rollback"]


def test_a_killed_process_leaves_no_lock(registry, place, name, tmp_path):
    candidate = train(registry, name, tmp_path)
    code = f"""
import os
from celr_ray.cortex.registry import PolicyRegistry
from celr_ray.cortex.registry_store import Store
Store.set_alias = lambda *_: os._exit(9)
PolicyRegistry({place!r}).promote({name!r}, 2, expected_champion={HeuristicPolicy().content_hash!r}, force="x")
"""
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 9
    tags = registry._open().read(name)[1]
    assert any(tag.startswith("celr.lock.") for tag in tags)
    assert version_of(registry, name, "champion") == 1
    promote(registry, name, candidate)
    assert not any(tag.startswith("celr.lock.") for tag in registry._open().read(name)[1])


def test_of_two_promotions_at_once_one_wins(registry, place, name, tmp_path):
    candidates = [train(registry, name, tmp_path, seed) for seed in (1, 2)]
    champion = registry.resolve(f"{name}@champion")
    barrier, outcomes = threading.Barrier(2), {}

    def attempt(candidate):
        own = PolicyRegistry(place)
        own.resolve(f"{name}@champion")
        barrier.wait()
        try:
            own.promote(
                name,
                candidate.version,
                expected_champion=champion.content_hash,
                evidence=passing(candidate, champion),
            )
            outcomes[candidate.version] = "promoted"
        except PolicyError as error:
            outcomes[candidate.version] = str(error)

    threads = [threading.Thread(target=attempt, args=(candidate,)) for candidate in candidates]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcome == "promoted" for outcome in outcomes.values()) == [False, True], outcomes
    lost = next(outcome for outcome in outcomes.values() if outcome != "promoted")
    assert "by now, not the expected" in lost
    winner = next(version for version, outcome in outcomes.items() if outcome == "promoted")
    assert registry.resolve(f"{name}@champion").version == winner
    assert version_of(registry, name, "previous") == 1


def test_a_writer_that_stays_is_named(registry, name, tmp_path):
    candidate = train(registry, name, tmp_path)
    with (
        claim_policy(registry._open(), name),
        pytest.raises(PolicyError, match=f"is being changed by process {os.getpid()}"),
    ):
        registry.promote(
            name,
            candidate.version,
            expected_champion=registry.resolve(f"{name}@champion").content_hash,
            force="x",
            wait_s=0.2,
        )


# The command line


def run_cli(*words):
    try:
        return main([str(word) for word in words])
    except SystemExit as stop:
        return int(stop.code or 0)


def test_the_commands_list_show_promote_and_roll_back(registry, place, name, tmp_path, capsys):
    candidate = train(registry, name, tmp_path)
    champion = registry.resolve(f"{name}@champion")
    assert run_cli("policy", "list", "--registry", place) == 0
    assert f"{name}  " in capsys.readouterr().out
    assert run_cli("policy", "show", f"{name}@challenger", "--registry", place) == 0
    assert json.loads(capsys.readouterr().out.split("\n", 2)[2])["content_hash"] == candidate.content_hash

    report = tmp_path / "gate_report.json"
    report.write_text(json.dumps(passing(candidate, champion, verdict="FAIL")))
    promote_it = ("policy", "promote", f"{name}@challenger", "--registry", place)
    assert run_cli(*promote_it) == 2
    assert "--evidence: give the gate_report.json" in capsys.readouterr().err
    assert run_cli(*promote_it, "--evidence", report) == 2
    assert "only PASS promotes" in capsys.readouterr().err
    assert run_cli(*promote_it, "--evidence", tmp_path / "none.json") == 2
    assert "no evidence" in capsys.readouterr().err
    assert version_of(registry, name, "champion") == 1
    report.write_text(json.dumps(passing(candidate, champion)))
    assert run_cli(*promote_it, "--evidence", report) == 0
    assert f"champion of {name}: {name}@2" in capsys.readouterr().out
    assert run_cli(*promote_it, "--evidence", report) == 2
    assert run_cli("policy", "show", name, "--registry", place) == 0
    out = capsys.readouterr().out
    assert "challenger, champion" in out
    assert "promote" in out
    assert run_cli("policy", "rollback", name, "--registry", place) == 0
    assert f"champion of {name}: {name}@1" in capsys.readouterr().out
    assert run_cli("policy", "rollback", name, "--registry", place) == 2


def test_the_group_teaches_its_commands(capsys):
    assert run_cli("policy", "--help") == 0
    out = capsys.readouterr().out
    assert all(f"celr-ray policy {word}" in out for word in ("list", "show", "promote", "rollback"))
    assert "celr-ray score" not in out
    assert run_cli("policy") == 2
    assert run_cli("policy", "dance") == 2
    assert run_cli("policy", "list", "--registry", "/nonexistent/registry") == 2


def test_everything_but_the_registry_works_without_mlflow(tmp_path):
    save_artefact(str(tmp_path / "policy"), sample_artefact(0))
    code = f"""
import sys
sys.modules["mlflow"] = None
from celr_ray.cortex.policy import MetaPolicy, load_policy
from celr_ray.errors import PolicyError, RunMismatchError
print(MetaPolicy("heuristic").decide({{"budget_left": 0.9, "difficulty": 0.2}}, ["RECURSE", "ABORT"]).name)
print(load_policy({str(tmp_path / "policy")!r}).name)
open({str(tmp_path / "mlflow.db")!r}, "w").close()
try:
    load_policy("router@champion", registry={str(tmp_path)!r})
except PolicyError as error:
    print(error)
"""
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    assert out.startswith("RECURSE\nsample\nthe registry needs MLflow: pip install 'celr-ray[tracking]'")


# A server


@pytest.fixture
def server(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true"}
    database = f"sqlite:///{tmp_path}/server.db"
    words = ["server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1", "--backend-store-uri", database]
    command = [sys.executable, "-m", "mlflow", *words, "--artifacts-destination", str(tmp_path / "served")]
    with open(tmp_path / "server.log", "wb") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=log, env=environment, cwd=tmp_path, start_new_session=True
        )
    try:
        yield _wait_for(f"http://127.0.0.1:{port}", process, tmp_path / "server.log")
    finally:
        os.killpg(process.pid, 15)
        process.wait(30)


def _wait_for(uri, process, log):
    for _ in range(240):
        assert process.poll() is None, log.read_text()
        try:
            with urllib.request.urlopen(f"{uri}/health", timeout=2):
                return uri
        except OSError:
            time.sleep(0.5)
    raise AssertionError(log.read_text())


@pytest.mark.slow
def test_a_server_keeps_the_same_promises(server, tmp_path):
    registry = PolicyRegistry(server)
    first, second = (train(registry, "router", tmp_path, seed) for seed in (1, 2))
    promote(registry, "router", first)
    promote(registry, "router", second)
    obs, mask = play(2, 1000)
    expected = LearnedPolicy(sample_artefact(2)).probabilities(obs, mask)
    assert np.array_equal(load_policy("router@champion", registry=server).probabilities(obs, mask), expected)
    assert registry.rollback("router").version == first.version
    with pytest.raises(PolicyError, match="no alias"):
        registry.resolve("router@nothing")
    with pytest.raises(PolicyError, match="no policy"):
        registry.resolve("nobody@champion")
    events = [event.event for event in registry.history("router").events]
    assert events == ["register", "promote", "promote", "rollback"]
    test_of_two_promotions_at_once_one_wins(registry, server, "pair", tmp_path)
