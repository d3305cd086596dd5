"""Difficulty: known truth, the vectors of scikit-learn, no leak from outcome or answer, and artefacts that hold."""

import json
import math
import sys

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from runs import ingest, read_table
from sklearn.feature_extraction.text import TfidfVectorizer

from celr_ray.cortex import difficulty
from celr_ray.cortex.difficulty import (
    MIN_TASKS,
    DifficultyModel,
    cheap_signals,
    difficulty_rows,
    load_difficulty,
    rows_from_trajectories,
    train_difficulty,
)
from celr_ray.cortex.difficulty_model import Calibration, TermBlock
from celr_ray.cortex.embedding import load_embedder
from celr_ray.cortex.reliability import estimate_difficulty_error, make_reliability
from celr_ray.cortex.text_features import MAX_CHARS, TERM_FAMILIES, plain_features
from celr_ray.errors import InputError, ModelError
from celr_ray.report.statistics import estimate_auc
from celr_ray.schema import TRAJECTORY_SCHEMA

HARD = ("prove", "integral", "theorem", "derive", "eigenvalue")
EASY = ("add", "count", "apples", "name", "colour")
ODD_TEXTS = [
    "",
    " \n\t",
    "\x00\x01\x1b[0m",
    "a",
    "\ud800 lone",
    "ﬁ İ ſ 😀 数学 ٣٤",
    "x" * 1_000_000,
    "9 + " * 250_000,
    "\n" * 1_000_000,
]


def make_data(n_tasks=400, n_runs=2, seed=0):
    """Return texts, outcomes and task ids: the share of hard words sets P(failed), and so the truth is known."""
    random = np.random.default_rng(seed)
    texts, failed, groups, truth = [], [], [], []
    for task in range(n_tasks):
        n_hard = int(random.integers(0, 6))
        words = [*random.choice(HARD, n_hard), *random.choice(EASY, 5 - n_hard)]
        random.shuffle(words)
        text = f"Please {' '.join(words)} {int(random.integers(100))} times."
        probability = 0.1 + 0.16 * n_hard
        for _ in range(n_runs):
            texts.append(text)
            failed.append(bool(random.random() < probability))
            groups.append(f"toy/words/{task}")
            truth.append(probability)
    return texts, np.array(failed), groups, np.array(truth)


@pytest.fixture(scope="module")
def trained():
    """One model on the toy tasks, with its report."""
    texts, failed, groups, _ = make_data()
    return train_difficulty(texts, failed, groups, seed=0)


def test_learns_what_can_be_learned(trained):
    model, report = trained
    texts, failed, groups, truth = make_data(n_tasks=500, seed=1)
    predicted = model.predict(texts)
    assert np.abs(predicted - truth).mean() < 0.08
    tasks = np.unique(groups, return_inverse=True)[1]
    best = estimate_auc(truth, failed, tasks).value
    assert estimate_auc(predicted, failed, tasks).value > best - 0.04
    assert report.auc.ci_low > 0.5
    assert report.brier.value < report.brier_constant


def test_report_says_what_was_held_out(trained):
    model, report = trained
    assert report.n + report.n_train == 800
    assert report.n_tasks + report.n_train_tasks == 400
    assert (report.calibration, report.seed, report.model_hash) == ("platt", 0, model.content_hash)
    assert sum(b.n for b in report.reliability) == report.n
    for estimate in (report.auc, report.brier, report.ece):
        assert 0 <= estimate.ci_low <= estimate.value <= estimate.ci_high <= 1
        assert estimate.n == report.n
    assert json.loads(json.dumps(report.to_dict()))["auc"]["value"] == report.auc.value


def test_same_seed_same_model(trained):
    texts, failed, groups, _ = make_data()
    model, report = train_difficulty(texts, failed, groups, seed=0)
    assert model.content_hash == trained[0].content_hash
    assert report == trained[1]


def test_isotonic_where_there_are_rows_enough(monkeypatch):
    monkeypatch.setattr(difficulty, "_ISOTONIC_ROWS", 100)
    texts, failed, groups, _ = make_data(n_tasks=150)
    model, report = train_difficulty(texts, failed, groups, seed=0)
    assert report.calibration == "isotonic"
    predicted = model.predict([*texts, *ODD_TEXTS])
    assert predicted.min() > 0
    assert predicted.max() < 1
    assert np.all(np.diff(model.calibration.y) >= 0)
    assert report.ece.value < 0.2


@pytest.mark.parametrize("family", TERM_FAMILIES)
def test_vectors_are_those_of_scikit_learn(family):
    texts = [*make_data(50)[0], *ODD_TEXTS[:6], "Größe: x² + y² = 12,5 m\u00b2 — “ok”?", "words " * 40]
    vectoriser = TfidfVectorizer(analyzer=TERM_FAMILIES[family], sublinear_tf=True, min_df=2)
    vectoriser.fit(texts[::2])
    terms = tuple(vectoriser.get_feature_names_out())
    block = TermBlock(family, terms, vectoriser.idf_, np.zeros(len(terms)))
    for text, expected in zip(texts, vectoriser.transform(texts), strict=True):
        columns, values = block.transform(text)
        np.testing.assert_array_equal(columns, expected.indices)
        np.testing.assert_allclose(values, expected.data, rtol=1e-15)


def test_prediction_is_that_of_the_fitted_regression():
    texts, failed, _, _ = make_data()
    identity = Calibration("platt", np.ones(1), np.zeros(1))
    data = difficulty._check_data(texts, failed, texts, None)
    model = difficulty._fit(data, 0.3, identity, {})
    features = difficulty._Features(texts, None)
    regression = difficulty._fit_regression(features.vectors, data.failed, 0.3)
    others = [*make_data(seed=3)[0][:40], *ODD_TEXTS]
    expected = regression.predict_proba(features.transform(others))[:, 1]
    np.testing.assert_allclose(model.predict(others), expected, rtol=1e-9)


def test_odd_texts_get_numbers(trained):
    predicted = trained[0].predict(ODD_TEXTS)
    assert predicted.shape == (len(ODD_TEXTS),)
    assert predicted.dtype == np.float64
    assert np.isfinite(predicted).all()
    assert ((predicted >= 0) & (predicted <= 1)).all()


@settings(max_examples=50, deadline=None)
@given(texts=st.lists(st.text(st.characters()), max_size=5))
def test_no_batch_changes_a_value(trained, texts):
    together = trained[0].predict(texts)
    alone = [trained[0].predict([text])[0] for text in texts]
    np.testing.assert_array_equal(together, alone)
    np.testing.assert_array_equal(trained[0].predict(texts[::-1]), together[::-1])
    assert ((together >= 0) & (together <= 1)).all()


def test_a_long_text_counts_at_both_ends(trained):
    middle = "filler " * MAX_CHARS
    easy, hard = trained[0].predict([f"{middle} add apples", f"{middle} prove the theorem integral"])
    assert hard > easy
    assert len(plain_features(middle)) == len(plain_features(""))


# ---------------------------------------------------------------- leaks


def test_tasks_do_not_cross_a_split():
    """Each text names its task and each task has one outcome by lot: only a task on both sides could be known."""
    random = np.random.default_rng(0)
    words = ["".join(random.choice(list("abcdefghij"), 8)) for _ in range(200)]
    texts = [f"{word} {word} {run}x" for word in words for run in "abcd"]
    failed = np.repeat(random.random(200) < 0.5, 4)
    groups = [word for word in words for _ in range(4)]
    aucs = [train_difficulty(texts, failed, groups, seed=seed)[1].auc for seed in range(3)]
    assert all(auc.ci_low < 0.5 for auc in aucs)
    assert np.mean([auc.value for auc in aucs]) < 0.65


def test_shuffled_outcomes_teach_nothing():
    texts, failed, groups, _ = make_data(n_tasks=400, n_runs=1)
    shuffled = np.random.default_rng(1).permutation(failed)
    report = train_difficulty(texts, shuffled, groups, seed=0)[1]
    assert report.auc.ci_low < 0.5 < report.auc.ci_high


def make_rows(rows):
    """Return a trajectory table; absent columns take plain values."""
    plain = {
        "source_uri": "",
        "source_format": "toy",
        "source_offset": 0,
        "source_index": 0,
        "status": "UNKNOWN",
        "n_hidden_messages": 0,
        "bucket": 0,
        "missing_scores": [],
        "model": "cheap",
        "messages": [],
        "success": True,
    }
    rows = [{"trajectory_id": str(n), "task_id": f"toy/a/{n}", **plain, **row} for n, row in enumerate(rows)]
    return pa.Table.from_pylist(rows, schema=TRAJECTORY_SCHEMA)


def say(role, content):
    return {"role": role, "content": content}


def test_rows_are_first_attempts_of_one_model():
    table = make_rows(
        [
            {"prompt": "one", "success": False, "n_retries": 0},
            {"prompt": "two", "model": "strong"},
            {"prompt": "three", "success": None},
            {"prompt": "four", "n_retries": 2},
            {"prompt": "five", "trajectory_id": "0"},
            {"messages": [say("system", "be good"), say("user", "six"), say("assistant", "no"), say("user", "more")]},
            {"messages": [say("assistant", "hello"), say("user", "an answer to hello")]},
            {"prompt": " "},
        ]
    )
    rows = rows_from_trajectories(table, "cheap")
    assert (rows.texts, rows.failed, rows.groups) == (["one", "six"], [True, False], ["toy/a/0", "toy/a/5"])
    assert rows.excluded == {"other_model": 1, "no_outcome": 1, "retried": 1, "duplicate": 1, "no_text": 2}
    assert len(rows.texts) + rows.excluded.total() == table.num_rows


def test_what_comes_after_the_task_text_does_not_enter(tmp_path, demo_logs):
    ingest(tmp_path / "run", demo_logs)
    table = read_table(tmp_path / "run", "trajectories")
    model = "gpt-4o"
    before = difficulty_rows(str(tmp_path / "run"), model)
    assert len(before.texts) > 10
    changed = []
    for row in table.to_pylist():
        later = [m | {"content": "ALL CORRECT reward 1", "tool_calls": None} for m in row["messages"][2:]]
        scores = dict.fromkeys(("reward", "cost_usd", "composite_score", "n_steps", "duration_s"), 1)
        flipped = None if row["success"] is None else not row["success"]
        later = {"messages": row["messages"][:2] + later, "status": "UNKNOWN", "success": flipped}
        changed.append(row | scores | later)
    after = rows_from_trajectories(pa.Table.from_pylist(changed, schema=TRAJECTORY_SCHEMA), model)
    assert after.texts == before.texts
    assert after.groups == before.groups
    assert after.failed == [not failed for failed in before.failed]


def test_a_run_without_the_model_is_an_error(tmp_path, demo_logs):
    ingest(tmp_path / "run", demo_logs)
    with pytest.raises(InputError, match="no runs of the model 'nobody', but of: "):
        difficulty_rows(str(tmp_path / "run"), "nobody")
    with pytest.raises(InputError, match="no trajectories in"):
        difficulty_rows(str(tmp_path), "nobody")


# ---------------------------------------------------------------- too little data


def test_too_few_tasks_are_refused():
    texts, failed, groups, _ = make_data(n_tasks=MIN_TASKS - 1)
    with pytest.raises(InputError, match="49 tasks"):
        train_difficulty(texts, failed, groups, seed=0)


def test_one_outcome_is_refused():
    texts, _, groups, _ = make_data()
    with pytest.raises(InputError, match="0 with a failed and 400 with a successful run"):
        train_difficulty(texts, [False] * len(texts), groups, seed=0)


def test_lengths_must_agree():
    with pytest.raises(InputError, match="1 texts, 2 outcomes and 1 task ids"):
        train_difficulty(["a"], [True, False], ["t"], seed=0)


def test_texts_without_common_terms_are_refused():
    failed = [n % 2 == 0 for n in range(100)]
    with pytest.raises(InputError, match="nothing in common"):
        train_difficulty([""] * 100, failed, [str(n) for n in range(100)], seed=0)


def test_a_script_without_spaces_is_learned_by_its_characters():
    random = np.random.default_rng(0)
    failed = random.random(120) < 0.5
    letters = [chr(0x4E00 + n) for n in range(40)]
    texts = ["".join(random.choice(letters, 12)) + ("証明" if f else "足算") + f"{n:x}" for n, f in enumerate(failed)]
    model, report = train_difficulty(texts, failed, texts, seed=0)
    assert "char" in {block.family for block in model.blocks}
    assert report.auc.value > 0.9


def test_training_without_scikit_learn_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(ModelError, match=r"celr-ray\[cortex\]"):
        train_difficulty([], [], [], seed=0)


def test_neutral_is_flagged():
    neutral = DifficultyModel.neutral()
    assert not neutral.is_trained
    np.testing.assert_array_equal(neutral.predict(["a", ""]), [0.5, 0.5])
    assert neutral.predict([]).shape == (0,)


# ---------------------------------------------------------------- artefact


def test_saved_and_loaded_is_the_same(trained, tmp_path):
    model = trained[0]
    model.save(str(tmp_path / "model.json"))
    loaded = load_difficulty(str(tmp_path / "model.json"))
    texts = [*make_data(seed=5)[0], *ODD_TEXTS[:6]]
    np.testing.assert_array_equal(loaded.predict(texts), model.predict(texts))
    assert loaded.content_hash == model.content_hash
    assert loaded.trained_on == {"n": 640, "n_tasks": 320, "seed": 0, "share_failed": model.trained_on["share_failed"]}
    loaded.save(str(tmp_path / "again.json"))
    assert (tmp_path / "again.json").read_bytes() == (tmp_path / "model.json").read_bytes()


def test_neutral_can_be_saved(tmp_path):
    DifficultyModel.neutral().save(str(tmp_path / "model.json"))
    loaded = load_difficulty(str(tmp_path / "model.json"))
    assert not loaded.is_trained
    assert loaded.content_hash == DifficultyModel.neutral().content_hash


def edit(document, *path, value):
    for part in path[:-1]:
        document = document[part]
    document[path[-1]] = value


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("model", "intercept"), 3.0, "was changed since it was saved"),
        (("model", "blocks", 0, "coef", 0), 9.0, "was changed since it was saved"),
        (("model", "coef", 0), math.nan, "damaged difficulty model"),
        (("content_hash",), "0" * 16, "was changed since it was saved"),
        (("version",), 2, "version 2, this package reads 1"),
        (("format",), "something else", "version None"),
    ],
)
def test_a_changed_artefact_is_one_clear_error(trained, tmp_path, path, value, message):
    file = tmp_path / "model.json"
    trained[0].save(str(file))
    document = json.loads(file.read_text())
    edit(document, *path, value=value)
    file.write_text(json.dumps(document))
    with pytest.raises(ModelError, match=message) as error:
        load_difficulty(str(file))
    assert str(file) in str(error.value)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("mean",), [0.0]),
        (("blocks", 0, "idf"), [1.0]),
        (("blocks", 0, "family"), "bytes"),
        (("calibration", "method"), "magic"),
        (("calibration", "x"), []),
        (("calibration",), None),
    ],
)
def test_parts_that_do_not_fit_are_refused_even_with_their_hash(trained, tmp_path, path, value):
    file = tmp_path / "model.json"
    trained[0].save(str(file))
    document = json.loads(file.read_text())
    edit(document["model"], *path, value=value)
    from celr_ray.cortex.difficulty_model import _hash

    document["content_hash"] = _hash(document["model"])
    file.write_text(json.dumps(document))
    with pytest.raises(ModelError, match="damaged difficulty model"):
        load_difficulty(str(file))


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"3", b"\xff\xfe", b"{}", b"\x80\x04K\x01."])
def test_what_is_no_artefact_is_one_clear_error(tmp_path, data):
    (tmp_path / "model.json").write_bytes(data)
    with pytest.raises(ModelError, match="no difficulty model"):
        load_difficulty(str(tmp_path / "model.json"))


def test_a_missing_artefact_is_an_input_error(tmp_path):
    with pytest.raises(InputError, match="cannot open"):
        load_difficulty(str(tmp_path / "none.json"))


# ---------------------------------------------------------------- embeddings


class LengthEmbedder:
    """A vector of two numbers, from the text's letters."""

    name = "toy-lengths"

    def embed(self, text):
        return np.array([text.count("e"), text.count("prove")], dtype=float)


def test_an_embedder_is_part_of_the_model(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    texts, failed, groups, _ = make_data(n_tasks=100)
    model, _ = train_difficulty(texts, failed, groups, seed=0, embedder=LengthEmbedder())
    assert len(model.coef) == len(plain_features("")) + 2
    assert np.isfinite(model.predict(ODD_TEXTS)).all()
    model.save(str(tmp_path / "model.json"))
    with pytest.raises(ModelError, match="'toy-lengths' needs the package sentence-transformers"):
        load_difficulty(str(tmp_path / "model.json"))


def test_an_embedder_that_returns_no_numbers_is_an_error(monkeypatch):
    monkeypatch.setattr(LengthEmbedder, "embed", lambda self, text: np.array([np.nan]))
    texts, failed, groups, _ = make_data()
    with pytest.raises(ModelError, match="toy-lengths returned no finite vector"):
        train_difficulty(texts, failed, groups, seed=0, embedder=LengthEmbedder())


def test_embeddings_without_their_package_are_a_clear_error(monkeypatch):
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(ModelError, match="pip install sentence-transformers"):
        load_embedder("some-model")


# ---------------------------------------------------------------- figures


def test_figures_by_hand():
    predicted = np.repeat([0.2, 0.8], 50)
    failed = np.array([True] * 20 + [False] * 30 + [True] * 40 + [False] * 10)
    error = estimate_difficulty_error(predicted, failed, np.arange(100), seed=0)
    assert [(b.n, b.mean_predicted, b.share_failed) for b in error.reliability] == [
        (50, pytest.approx(0.2), 0.4),
        (50, pytest.approx(0.8), 0.8),
    ]
    assert error.ece.value == pytest.approx(0.5 * 0.2)
    assert error.brier.value == pytest.approx((20 * 0.64 + 30 * 0.04 + 40 * 0.04 + 10 * 0.64) / 100)
    closed = estimate_auc(predicted, failed, np.arange(100))
    assert error.auc.value == closed.value
    assert error.auc.ci_low <= closed.ci_low
    assert error.auc.ci_high >= closed.ci_high


def test_intervals_count_tasks_not_runs():
    random = np.random.default_rng(0)
    predicted, failed = random.random(60), random.random(60) < 0.5
    once = estimate_difficulty_error(predicted, failed, np.arange(60), seed=0).brier
    copies = estimate_difficulty_error(np.repeat(predicted, 9), np.repeat(failed, 9), np.repeat(np.arange(60), 9), 0)
    assert copies.brier.value == pytest.approx(once.value)
    assert copies.brier.ci_high - copies.brier.ci_low == pytest.approx(once.ci_high - once.ci_low, rel=0.2)


def test_one_outcome_has_no_auc():
    error = estimate_difficulty_error(np.full(30, 0.3), np.zeros(30, dtype=bool), np.arange(30), seed=0)
    assert error.auc is None
    assert error.brier.value == pytest.approx(0.09)


def test_equal_estimates_share_a_bin():
    bins = make_reliability(np.full(40, 0.5), np.arange(40) % 2 == 0)
    assert [(b.n, b.share_failed) for b in bins] == [(40, 0.5)]


# ---------------------------------------------------------------- signals of the cheap model


@pytest.mark.parametrize(
    ("kind", "answers", "agreement"),
    [
        ("numeric", ["So 3 + 2.\nAnswer: 5", "Answer: 5.0"], 1),
        ("numeric", ["Answer: 5", "Answer: 6"], 0),
        ("numeric", ["I do not know", "I do not know"], 0),
        ("numeric", ["Answer: 5", "Answer: 5", "Answer: 6"], 1 / 3),
        ("text", ["Answer: Paris.", "The capital is asked.\nAnswer: paris"], 1),
        ("choice", ["Answer: B", "Answer: C"], 0),
        ("python_tests", ["```python\nx = 1\n```", "Here:\n```python\nx = 1\n```"], 1),
    ],
)
def test_agreement_compares_extracted_answers(kind, answers, agreement):
    assert cheap_signals(answers, [None] * len(answers), kind)[0] == pytest.approx(agreement)


def test_confidence_is_the_mean_token_probability():
    assert cheap_signals(["a", "b"], [math.log(0.5), math.log(0.5)])[1] == pytest.approx(0.5)
    assert cheap_signals(["a", "b"], [None, -1.0])[1] == pytest.approx(math.exp(-1))
    assert cheap_signals(["a"], [1e-9])[1] == 1
    agreement, confidence = cheap_signals(["a"], [None])
    assert math.isnan(agreement)
    assert math.isnan(confidence)
