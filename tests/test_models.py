"""The ladder of tiers: what a YAML file may say, what its errors say, and what calls cost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from celr_ray.core.models import Tier, TierLadder, load_tiers
from celr_ray.errors import ConfigError, InputError

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
TIER: dict[str, Any] = {
    "name": "cheap",
    "engine": "vllm",
    "model": "smollm2",
    "input_usd_per_mtok": 0.5,
    "output_usd_per_mtok": 2.0,
    "context_window": 1000,
    "max_output_tokens": 100,
}
ENDPOINT = {**TIER, "engine": "openai", "base_url": "http://127.0.0.1:1/v1"}
counts = st.integers(0, 10**9)
prices = st.floats(0, 1000)


def write(folder: Path, *tiers: Any) -> str:
    path = folder / "tiers.yaml"
    path.write_text(yaml.safe_dump({"tiers": list(tiers)}))
    return str(path)


def test_the_examples_are_ladders() -> None:
    ladder = load_tiers(str(EXAMPLES / "tiers.yaml"))
    assert [tier.model for tier in ladder.tiers] == ["smollm2", "qwen2.5-coder-1.5b"]
    assert ladder.warnings() == []
    endpoint = load_tiers(str(EXAMPLES / "tiers-endpoint.yaml"))
    assert {tier.engine for tier in endpoint.tiers} == {"openai"}
    assert endpoint.warnings() == []


def test_a_ladder_knows_its_tiers(tmp_path: Path) -> None:
    ladder = load_tiers(write(tmp_path, TIER, {**TIER, "name": "strong", "input_usd_per_mtok": 3}))
    assert (ladder.n_tiers, ladder.index("strong")) == (2, 1)
    assert TierLadder.model_validate(ladder.model_dump()) == ladder
    with pytest.raises(ConfigError, match="no tier is called 'huge': the ladder has cheap, strong"):
        ladder.index("huge")


def test_what_is_likely_not_meant_is_a_warning() -> None:
    one = TierLadder(tiers=(Tier(**TIER),))
    assert one.warnings() == ["the ladder has one tier (cheap): ESCALATE is never valid"]
    two = TierLadder(tiers=(Tier(**TIER), Tier(**{**TIER, "name": "strong", "output_usd_per_mtok": 0.1})))
    assert "strong is cheaper than cheap" in two.warnings()[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"input_usd_per_mtok": -1}, r"tier 'cheap': input_usd_per_mtok is -1: .*greater than or equal to 0"),
        ({"output_usd_per_mtok": float("nan")}, r"tier 'cheap': output_usd_per_mtok is nan: .*finite"),
        ({"output_usd_per_mtok": "free"}, r"output_usd_per_mtok is 'free': .*number"),
        ({"engine": "ollama"}, r"tier 'cheap': engine is 'ollama': .*'vllm' or 'openai'"),
        ({"engine": "openai"}, r"tier 'cheap': base_url is missing"),
        (
            {"max_output_token": 5},
            r"tier 'cheap': there is no field max_output_token: did you mean max_output_tokens\?",
        ),
        ({"zzz": 5}, r"there is no field zzz: remove it"),
        ({"max_output_tokens": 1000}, r"max_output_tokens \(1000\) leaves no room .* make it smaller"),
        ({"num_gpus": 1.5}, r"num_gpus must be a whole number above 1"),
        ({"temperature": 3}, r"temperature is 3: .*less than or equal to 2 \(0 = greedy\)"),
        ({"base_url": "http://a/v1"}, r"base_url means nothing for engine vllm: remove it"),
        ({"engine": "openai", "base_url": "localhost:8000"}, r"base_url is 'localhost:8000'"),
        ({**ENDPOINT, "num_gpus": 1}, r"num_gpus means nothing for engine openai: remove it"),
        (
            {**ENDPOINT, "engine_kwargs": {"max_tokens": 101}},
            r"engine_kwargs\.max_tokens is 101, .* max_output_tokens \(100\): set that one",
        ),
        ({**ENDPOINT, "engine_kwargs": {"max_completion_tokens": "many"}}, r"max_completion_tokens is 'many'"),
        ({**ENDPOINT, "engine_kwargs": {"n": 4}}, r"tier 'cheap': engine_kwargs\.n must be 1: .* remove it"),
        ({**ENDPOINT, "engine_kwargs": {"stream": True}}, r"engine_kwargs\.stream must be False"),
        ({"name": ""}, r"tier number 1: name is '': .*at least 1 character"),
        ({"name": 7}, r"tier 7: name is 7: .*string"),
    ],
)
def test_an_error_names_file_tier_field_value_and_cure(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    path = write(tmp_path, {**TIER, **change})
    with pytest.raises(ConfigError, match=message) as caught:
        load_tiers(path)
    assert str(caught.value).startswith(f"{path}: ")


def test_a_missing_field_says_what_it_is(tmp_path: Path) -> None:
    tier = {name: value for name, value in TIER.items() if name != "input_usd_per_mtok"}
    with pytest.raises(ConfigError, match=r"input_usd_per_mtok is missing: add it \(price of a million prompt tokens"):
        load_tiers(write(tmp_path, tier))


def test_all_errors_are_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"tier 'cheap': top_p .*; tier 'b': engine ") as caught:
        load_tiers(write(tmp_path, {**TIER, "top_p": 0}, {**TIER, "name": "b", "engine": "x"}))
    assert "at least 1 item" not in str(caught.value)


@pytest.mark.parametrize("field", ["api_key", "api_key_env"])
def test_a_key_in_the_file_is_refused_and_not_repeated(tmp_path: Path, field: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_tiers(write(tmp_path, {**ENDPOINT, field: "sk-very-secret"}))
    assert "secret" not in str(caught.value)
    assert "api_key_env" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tiers: [", "is no YAML"),
        ("tiers: {}", "has no list `tiers:`"),
        ("- a", "has no list `tiers:`"),
        ("", "has no list `tiers:`"),
        ("tiers: []", "tiers is .*at least 1 item"),
        ("tiers: [a]", "tier number 1: "),
        ("tiers: []\nprices: 1", "there is no field prices"),
    ],
)
def test_files_of_another_form_are_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "x.yaml").write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_tiers(str(tmp_path / "x.yaml"))


def test_names_are_unique_and_files_exist(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="two tiers are called 'cheap': give each its own name"):
        load_tiers(write(tmp_path, TIER, TIER))
    with pytest.raises(InputError, match="nothing-here"):
        load_tiers(str(tmp_path / "nothing-here.yaml"))


def test_a_server_may_call_the_limit_otherwise() -> None:
    kwargs = {"max_tokens": None, "max_completion_tokens": 100, "n": 1, "stream": False}
    assert Tier(**{**ENDPOINT, "engine_kwargs": kwargs}).engine_kwargs == kwargs


def test_prices_are_per_million_tokens() -> None:
    tier = Tier(**TIER)
    assert tier.price_usd(1_000_000, 0) == 0.5
    assert tier.price_usd(0, 1_000_000) == 2.0
    assert tier.worst_case_usd(1000) == pytest.approx((1000 * 0.5 + 100 * 2) / 1e6, rel=1e-12)


@given(st.lists(st.tuples(counts, counts), min_size=1, max_size=20), prices, prices)
def test_arrays_cost_what_their_elements_cost(pairs: list[tuple[int, int]], price_in: float, price_out: float) -> None:
    tier = Tier(**{**TIER, "input_usd_per_mtok": price_in, "output_usd_per_mtok": price_out})
    prompt, output = np.array(pairs, dtype=np.int64).T
    assert tier.price_usd(prompt, output).tolist() == [tier.price_usd(*pair) for pair in pairs]
    assert tier.worst_case_usd(prompt).tolist() == [tier.worst_case_usd(n) for n, _ in pairs]


@given(counts, st.integers(0, 100), prices, prices)
def test_no_answer_within_the_limit_costs_more_than_the_worst_case(
    prompt: int, output: int, price_in: float, price_out: float
) -> None:
    tier = Tier(**{**TIER, "input_usd_per_mtok": price_in, "output_usd_per_mtok": price_out})
    assert 0 <= tier.price_usd(prompt, output) <= tier.worst_case_usd(prompt)
    assert tier.price_usd(prompt, output) <= tier.price_usd(prompt + 1, output)
