"""Artefacts of policies: equal bytes for equal policies, and one clear error for whatever was changed or does harm."""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from policies import play, random_network, sample_artefact, sample_support

from celr_ray import storage
from celr_ray.core.escalation import EscalationConfig, HeuristicPolicy
from celr_ray.cortex.arrays import pack_arrays, unpack_arrays
from celr_ray.cortex.artefact import Artefact, load_artefact, make_artefact, make_heuristic_artefact, save_artefact
from celr_ray.cortex.learned import load_artefact_policy, make_policy
from celr_ray.cortex.manifest import Manifest, hash_bytes
from celr_ray.cortex.network import Network
from celr_ray.cortex.policy import MetaPolicy, load_policy
from celr_ray.cortex.support import Support, fit_support
from celr_ray.errors import PolicyError


@pytest.fixture
def stored(tmp_path):
    folder = str(tmp_path / "policy")
    save_artefact(folder, sample_artefact(1, training={"seed": 3, "auc": float("nan")}))
    return folder


def read_files(folder):
    return {file.uri.rsplit("/", 1)[1]: storage.read_bytes(file.uri) for file in storage.list_files(folder)}


def test_what_was_saved_is_loaded(stored):
    made, loaded = sample_artefact(1, training={"seed": 3, "auc": None}), load_artefact(stored)
    assert loaded.manifest == made.manifest
    obs, mask = play(2, 1000)
    expected = make_policy(made).probabilities(obs, mask)
    assert np.array_equal(load_artefact_policy(stored).probabilities(obs, mask), expected)
    assert np.array_equal(load_policy(stored).probabilities(obs, mask), expected)
    assert MetaPolicy(stored).policy.content_hash == made.content_hash


def test_equal_policies_have_equal_bytes(stored, tmp_path):
    save_artefact(str(tmp_path / "again"), sample_artefact(1, training={"auc": float("nan"), "seed": np.int64(3)}))
    assert read_files(stored) == read_files(str(tmp_path / "again"))
    resaved = str(tmp_path / "resaved")
    save_artefact(resaved, load_artefact(stored))
    assert read_files(stored) == read_files(resaved)


def test_the_content_hash_is_of_what_decides():
    base = sample_artefact(1)
    same = sample_artefact(1, name="other", data_hash="x", training={"seed": 4}, parent="p")
    assert same.content_hash == base.content_hash
    assert same.manifest.manifest_hash != base.manifest.manifest_hash
    others = [
        sample_artefact(2),
        sample_artefact(1, decision="greedy"),
        sample_artefact(1, start_tier=-1),
        sample_artefact(1, escalation=EscalationConfig(abort_budget=0.1)),
        make_artefact(
            random_network(1), fit_support(play(1, 100)[0]), name="sample", algorithm="iql", decision="softmax"
        ),
    ]
    assert len({artefact.content_hash for artefact in [base, *others]}) == 6


def test_the_heuristic_is_an_artefact_too(tmp_path):
    escalation = EscalationConfig(abort_budget=0.2)
    save_artefact(str(tmp_path / "h"), make_heuristic_artefact(escalation))
    policy = load_policy(str(tmp_path / "h"))
    assert isinstance(policy, HeuristicPolicy)
    assert policy.config == escalation
    assert (
        policy.content_hash
        == HeuristicPolicy(escalation).content_hash
        == load_artefact(str(tmp_path / "h")).content_hash
    )


def rehash(folder, **changes):
    """Write a manifest that is consistent in itself, but says something else."""
    document = {**json.loads(storage.read_bytes(f"{folder}/manifest.json")), **changes}
    storage.write_bytes(f"{folder}/manifest.json", Manifest.model_validate(document).with_hashes().to_json())


def replace_weights(folder, data):
    """Put other bytes in place of the weights, under a manifest that names them."""
    storage.write_bytes(f"{folder}/policy.npz", data)
    rehash(folder, weights_hash=hash_bytes(data))


def edit(folder, **changes):
    document = {**json.loads(storage.read_bytes(f"{folder}/manifest.json")), **changes}
    storage.write_json(f"{folder}/manifest.json", document)


def flip_a_weight(folder):
    data = bytearray(storage.read_bytes(f"{folder}/policy.npz"))
    data[len(data) // 2] ^= 1
    storage.write_bytes(f"{folder}/policy.npz", bytes(data))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (flip_a_weight, r"policy\.npz was changed since it was written"),
        (lambda f: edit(f, start_tier=-1), r"manifest\.json was changed since it was written: its content hash"),
        (lambda f: edit(f, training={"value": 0.99}), "its manifest hash is"),
        (lambda f: edit(f, weights_hash="0" * 32), "was changed since it was written"),
        (lambda f: edit(f, version=2), "has version 2, this package reads 1"),
        (lambda f: edit(f, format="other"), "is no manifest of a policy"),
        (lambda f: edit(f, more=1), "more: Extra inputs"),
        (lambda f: edit(f, features=None), "features: Input should be a valid list"),
        (lambda f: storage.write_bytes(f"{f}/manifest.json", b"{"), "is no JSON"),
        (lambda f: storage.write_bytes(f"{f}/manifest.json", b"\xff\xfe"), "is no JSON"),
        (lambda f: storage.delete_file(f"{f}/manifest.json"), "no policy in"),
        (lambda f: storage.delete_file(f"{f}/policy.npz"), "has no weights"),
        (lambda f: storage.write_bytes(f"{f}/policy.npz", b""), "was changed"),
        (lambda f: rehash(f, schema_hash="0" * 16), "is of a policy with other features"),
        (lambda f: rehash(f, features=["a"]), "is of a policy with other features"),
        (lambda f: rehash(f, mask_version=99), "trained under other masks: version 99"),
        (lambda f: rehash(f, actions=["STOP"]), "trained under other masks"),
        (lambda f: rehash(f, decision=None), "does not say how"),
    ],
)
def test_a_changed_or_foreign_artefact_is_one_clear_error(stored, damage, message):
    damage(stored)
    with pytest.raises(PolicyError, match=message):
        load_policy(stored)


def named_arrays(artefact: Artefact):
    support = {f"support.{name}": array for name, array in artefact.support.to_arrays().items()}
    return {**artefact.network.to_arrays(), **support}


def zip_of(members, **options):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", **options) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def npy(array, **options):
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, array, **options)
    return buffer.getvalue()


def promise_terabytes():
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": "<f4", "fortran_order": False, "shape": (10**6, 10**6)})
    return zip_of({"mean.npy": buffer.getvalue()})


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (lambda: b"PK no zip", "holds no arrays of a policy"),
        (lambda: zip_of({"mean.npy": npy(np.array([{}], dtype=object))}), "type object"),
        (lambda: zip_of({"mean.npy": pickle.dumps({"a": 1})}), "holds no arrays of a policy"),
        (lambda: zip_of({"mean.npy": npy(np.zeros(10**7))}, compression=zipfile.ZIP_DEFLATED), "is compressed"),
        (promise_terabytes, "an array of shape"),
        (lambda: zip_of({"mean.npy": npy(np.zeros(4)) + b"more"}), "an array of shape"),
        (lambda: zip_of({"../mean.txt": b""}), "its members are"),
        (lambda: pack_arrays({**named_arrays(sample_artefact(1)), "extra": np.zeros(2)}), "a network has the arrays"),
        (lambda: pack_arrays(random_network(1).to_arrays()), "a support has the arrays"),
        (
            lambda: pack_arrays({**named_arrays(sample_artefact(1)), "mean": np.full(33, np.nan, np.float32)}),
            "not finite",
        ),
        (lambda: pack_arrays({**named_arrays(sample_artefact(1)), "mean": np.zeros(3, np.float32)}), "3 means"),
        (lambda: pack_arrays({**named_arrays(sample_artefact(1)), "support.low": np.zeros(3)}), "support"),
        (lambda: pack_arrays({**named_arrays(sample_artefact(1)), "support.low": np.full(33, np.nan)}), "finite"),
    ],
)
def test_weights_that_do_harm_or_do_not_fit_are_one_clear_error(stored, data, message):
    replace_weights(stored, data())
    with pytest.raises(PolicyError, match=message):
        load_policy(stored)


def test_a_network_of_another_size_is_refused():
    network = Network.from_mlp(np.zeros(4), np.ones(4), [(np.zeros((3, 4)), np.zeros(3))])
    with pytest.raises(PolicyError, match=r"takes 4 features and scores 3 actions.*a state has 33, and there are 6"):
        make_artefact(network, sample_support(), name="toy", algorithm="bc", decision="softmax")


def test_a_stale_manifest_never_stands_over_new_weights(stored, monkeypatch):
    def fail(uri, data):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(storage, "write_bytes", fail)
        with pytest.raises(KeyboardInterrupt):
            save_artefact(stored, sample_artefact(2))
    with pytest.raises(PolicyError, match="no policy in"):
        load_artefact(stored)


@given(st.dictionaries(st.text("abc.0", min_size=1, max_size=5), st.integers(0, 3), max_size=4))
def test_arrays_come_back_as_they_were(sizes):
    arrays = {name: np.arange(size, dtype=np.float32) for name, size in sizes.items()}
    back = unpack_arrays(pack_arrays(arrays), "x")
    assert list(back) == sorted(arrays)
    assert all(np.array_equal(back[name], array) for name, array in arrays.items())


def test_a_support_of_wrong_arrays_is_refused():
    arrays = sample_support().to_arrays()
    with pytest.raises(PolicyError, match="names features that there are not"):
        Support.from_arrays({**arrays, "level_feature": arrays["level_feature"] + 100})
    with pytest.raises(PolicyError, match="unseen of the support"):
        replace(sample_support(), unseen=np.zeros((1, 1)))


def test_no_policy_of_that_name_says_where_to_look():
    with pytest.raises(PolicyError, match=r"no policy 'bestest'; there are heuristic.*policy list"):
        load_policy("bestest")
    with pytest.raises(PolicyError, match="no policy in"):
        load_policy("./nowhere/policy")
