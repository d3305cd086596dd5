"""P(an answer is right): arithmetic is recomputed, features hold for any text, estimates never saw their outcome."""

from __future__ import annotations

import numpy as np
import pytest
from banks import add_fresh, make_parts
from hypothesis import given, settings
from hypothesis import strategies as st

from celr_ray.config import BankConfig
from celr_ray.cortex.answer_confidence import estimate_out_of_fold, load_confidence, train_confidence
from celr_ray.cortex.answer_features import ANSWER_FEATURES, Arithmetic, answer_features, check_arithmetic
from celr_ray.cortex.evaluation.bank_build import assemble_bank
from celr_ray.errors import ConfigError, InputError, ModelError
from celr_ray.report.statistics import estimate_auc


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("She has 16 - 3 = 13 eggs left.", (1, 0, 0)),
        ("5 + 3 = 9", (0, 1, 0)),
        ("<<2*3=6>> and <<2*3=7>>", (1, 1, 0)),
        ("2 x 3 = 6, 2 × 3 = 6, 6 ÷ 3 = 2", (3, 0, 0)),
        ("10/3 = 3.33", (1, 0, 0)),
        ("2/3 of it: <<40/60=2/3>>", (1, 0, 0)),
        ("$2 x 1,000 = $2,000.00", (1, 0, 0)),
        ("(2+3)*4 = 20", (1, 0, 0)),
        ("x = 5", (0, 0, 0)),
        ("1/0 = 0", (0, 0, 1)),
        ("<<9**9**9=1>> <<__import__('os').getcwd()=1>>", (0, 0, 2)),
        ("it breaks off: <<36*68/1", (0, 0, 0)),
    ],
)
def test_calculations_are_recomputed(text, expected):
    assert check_arithmetic(text) == expected


@given(
    st.integers(0, 9999),
    st.sampled_from(["+", "-", "*", "/"]),
    st.integers(1, 999),
    st.integers(-50, 50),
    st.booleans(),
)
def test_a_result_is_right_exactly_if_it_is_near(a, sign, b, off, is_annotated):
    value = {"+": a + b, "-": a - b, "*": a * b, "/": a / b}[sign]
    written = round(value, 2) + off
    text = f"<<{a}{sign}{b}={written}>>" if is_annotated else f"that is {a} {sign} {b} = {written} apples"
    slack = 0.006 * max(abs(value), abs(written), 1)
    if abs(value - written) < slack * 0.99 or off == 0:
        assert check_arithmetic(text) == Arithmetic(1, 0, 0)
    elif abs(value - written) > slack * 1.01:
        assert check_arithmetic(text) == Arithmetic(0, 1, 0)


@settings(max_examples=150)
@given(st.text(max_size=200), st.text(alphabet="0123456789+-*/=.,$<>#()x \n", max_size=300))
def test_features_are_finite_for_any_text(question, answer):
    features = answer_features(question, answer)
    assert features.shape == (len(ANSWER_FEATURES),)
    assert np.isfinite(features).all()


def test_features_of_long_and_empty_texts():
    assert np.isfinite(answer_features("", "")).all()
    assert np.isfinite(answer_features("9" * 50_000, "1" * 400 + " = " + "9" * 100_000)).all()
    assert np.isfinite(answer_features("q", "((" * 5_000 + "1 + 1 = 2")).all()


def test_features_say_what_they_are_named():
    question = "Tom has 12 apples and eats 5. How many are left?"
    good = dict(zip(ANSWER_FEATURES, answer_features(question, "12 - 5 = <<12-5=7>>7 apples.\n#### 7"), strict=True))
    cut = dict(zip(ANSWER_FEATURES, answer_features(question, "12 - 5 = <<12-"), strict=True))
    names = ("is_marked", "is_marked_clean", "is_final_last", "n_wrong", "share_used", "is_broken_off")
    assert [good[name] for name in names] == [1, 1, 1, 0, 1, 0]
    assert [cut[name] for name in ("is_marked", "is_broken_off")] == [0, 1]


def _make_answers(seed, n, noise):
    """Questions with answers whose sums are wrong in about half; right outcomes follow them but for some noise."""
    random = np.random.default_rng(seed)
    questions, answers, right = [], [], []
    for i in range(n):
        a, b = random.integers(2, 90, size=2)
        is_sound = bool(random.random() < 0.5)
        total = a + b + (0 if is_sound else random.integers(1, 9))
        questions.append(f"{i}: Ann has {a} nuts and finds {b}. How many has she?")
        answers.append(f"She has {a} + {b} = {total} nuts.\n#### {total}")
        right.append(is_sound != bool(random.random() < noise))
    return questions, answers, np.array(right)


def test_known_probabilities_are_found():
    questions, answers, right = _make_answers(0, 800, noise=0.15)
    model, report = train_confidence(questions, answers, right, seed=0)
    fresh_questions, fresh_answers, _ = _make_answers(1, 400, noise=0.15)
    estimates = model.predict(fresh_questions, fresh_answers)
    sound = np.array([check_arithmetic(answer).wrong == 0 for answer in fresh_answers])
    assert estimates[sound].mean() == pytest.approx(0.85, abs=0.05)
    assert estimates[~sound].mean() == pytest.approx(0.15, abs=0.05)
    assert report.auc.ci_low < 0.85 < report.auc.ci_high + 0.02
    assert report.brier.value == pytest.approx(0.85 * 0.15, abs=0.03)
    assert report.ece.value < 0.06


def test_nothing_is_found_where_nothing_is():
    questions, answers, _ = _make_answers(2, 400, noise=0.1)
    right = np.random.default_rng(3).random(400) < 0.7
    model, report = train_confidence(questions, answers, right, seed=0)
    assert report.auc.ci_low < 0.5 + 0.05
    assert np.abs(model.predict(questions, answers) - 0.7).max() < 0.2


def test_an_estimate_has_not_seen_its_own_outcome():
    questions, answers, right = _make_answers(4, 300, noise=0.2)
    folds = np.arange(300) % 3
    before = estimate_out_of_fold(questions, answers, right, folds, seed=0)
    after = estimate_out_of_fold(questions, answers, np.where(folds == 1, ~right, right), folds, seed=0)
    np.testing.assert_array_equal(before[folds == 1], after[folds == 1])
    assert np.abs(before[folds != 1] - after[folds != 1]).max() > 0.1
    assert estimate_auc(before, right, np.arange(300)).value > 0.7


def test_a_saved_model_estimates_the_same_and_a_changed_one_is_refused(tmp_path):
    questions, answers, right = _make_answers(5, 200, noise=0.2)
    model, _ = train_confidence(questions, answers, right, seed=0)
    again, _ = train_confidence(questions, answers, right, seed=0)
    uri = str(tmp_path / "model.json")
    model.save(uri)
    loaded = load_confidence(uri)
    assert loaded.content_hash == model.content_hash == again.content_hash
    np.testing.assert_array_equal(loaded.predict(questions, answers), model.predict(questions, answers))
    text = (tmp_path / "model.json").read_text()
    (tmp_path / "model.json").write_text(text.replace('"intercept": ', '"intercept": 1'))
    with pytest.raises(ModelError, match="was changed"):
        load_confidence(uri)
    (tmp_path / "model.json").write_text("[]")
    with pytest.raises(ModelError, match="is no"):
        load_confidence(uri)


def test_too_little_to_learn_from_is_refused():
    questions, answers, right = _make_answers(6, 40, noise=0.1)
    with pytest.raises(InputError, match="40 questions"):
        train_confidence(questions, answers, right, seed=0)
    with pytest.raises(InputError, match="with a wrong one"):
        train_confidence(questions * 3, answers * 3, np.ones(120, dtype=bool), seed=0)
    with pytest.raises(InputError, match="as many"):
        train_confidence(questions, answers[:-1], right, seed=0)


def _make_bank_parts(seed):
    parts = make_parts(2)
    questions, answers, right = _make_answers(seed, 260, noise=0.15)
    for i, (question, answer, is_right) in enumerate(zip(questions, answers, right, strict=True)):
        parts.answers[len(parts.attempts)] = answer
        add_fresh(parts, f"task/{i}", 0, [int(is_right)])
        add_fresh(parts, f"task/{i}", 1, [1], cost=5.0)
        parts.tasks[f"task/{i}"].text = question
    return parts


def test_a_bank_learns_confidence_from_training_tasks_alone():
    parts = _make_bank_parts(7)
    config = BankConfig(confidence="train")
    bank = assemble_bank(parts, config)
    split = dict(zip(bank.task_ids, bank.tasks["split"].to_pylist(), strict=True))
    rows = bank.attempts.to_pylist()
    assert all((row["confidence"] is None) == (row["tier"] == "tier1") for row in rows)
    for name in ("train", "validation", "gate"):
        own = [row for row in rows if row["tier"] == "tier0" and split[row["task_id"]] == name]
        confidence, success = (np.array([row[key] for row in own]) for key in ("confidence", "success"))
        assert estimate_auc(confidence, success, np.arange(len(own))).value > 0.7, name
    for row in parts.attempts:
        if split[row["task_id"]] != "train" and row["tier"] == "tier0":
            row["success"] = not row["success"]
    again = assemble_bank(parts, config).attempts["confidence"].to_pylist()
    assert again == [row["confidence"] for row in rows], "held-out outcomes are not seen"
    assert all(row["confidence"] is None for row in assemble_bank(parts, BankConfig()).attempts.to_pylist())


def test_given_splits_are_taken():
    parts = _make_bank_parts(8)
    splits = {f"task/{i}": ("gate" if i < 60 else "train") for i in range(260)}
    bank = assemble_bank(parts, BankConfig(), splits=splits)
    assert dict(zip(bank.task_ids, bank.tasks["split"].to_pylist(), strict=True)) == splits
    assert bank.notes["split_seed"] == "given"


def test_a_source_without_answers_cannot_have_confidence():
    parts = make_parts(1)
    add_fresh(parts, "task/0", 0, [1])
    with pytest.raises(ConfigError, match="texts of questions and answers"):
        assemble_bank(parts, BankConfig(confidence="train"))
