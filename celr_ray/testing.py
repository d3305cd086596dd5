"""Public test doubles: a judge that needs no model, and a tiny real model that vLLM loads in seconds.

For unit tests of logic around a judge use `FakeJudge`; for tests of the engine path use `make_tiny_llama`.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from celr_ray.training.judge_prompt import FittedPrompt, JudgeRequest
from celr_ray.training.self_reward import Completion, Failure, JudgeReply, TokenChoice, judge_requests

if TYPE_CHECKING:
    from celr_ray.core.clients import CallFailure, Generation

__all__ = ["FakeClient", "FakeJudge", "WordCodec", "make_tiny_llama"]

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


class WordCodec:
    """A tokenizer for tests: words and runs of blanks are tokens. Satisfies `judge_prompt.PromptCodec`."""

    special_tokens: Sequence[str] = ("<|im_start|>", "<|im_end|>")

    def encode_chat(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """Return one id a token of all messages, and one for each role."""
        ids = []
        for message in messages:
            ids.append(zlib.crc32(message["role"].encode()))
            content = message["content"]
            ids += [
                zlib.crc32(content[start:end].encode("utf-8", "replace")) for start, end in self.token_spans(content)
            ]
        return ids

    def token_spans(self, text: str) -> list[tuple[int, int]]:
        """Return the character range of each word and of each run of blanks."""
        return [match.span() for match in re.finditer(r"\s+|\w+|[^\w\s]", text)]


class FakeJudge:
    """A deterministic judge without a model; prompts are fitted and verdicts read as by the real engine.

    By default the ratings are a hash of task and transcript: stable, and without meaning.
    """

    def __init__(
        self, rate: Callable[[JudgeRequest], tuple[int, int, int] | str | None] | None = None, *, limit: int = 4096
    ) -> None:
        """Make a judge.

        Args:
            rate: the three digits for a request; a text stands for the completion itself, None for an engine error.
            limit: most tokens (words and blanks) of a prompt.
        """
        self.name = "fake-judge"
        self._rate = rate or _hash_ratings
        self._limit = limit
        self.requests: list[JudgeRequest] = []
        """Everything that was asked, in order."""

    def generate(self, requests: Sequence[JudgeRequest]) -> list[JudgeReply]:
        """Judge all requests."""
        self.requests += requests
        return judge_requests(requests, WordCodec(), self._limit, self._complete)

    def _complete(self, prompts: list[FittedPrompt]) -> list[Completion | Failure]:
        return [self._complete_one(prompt.request) for prompt in prompts]

    def _complete_one(self, request: JudgeRequest) -> Completion | Failure:
        rating = self._rate(request)
        if rating is None:
            return Failure("FakeJudge: engine error")
        if isinstance(rating, str):
            return Completion(rating, [TokenChoice(rating, [(rating, 0.0)])])
        tokens: list[TokenChoice] = []
        for digit in rating:
            # .8 on the rating, .05 on each other digit
            choices = [(str(other), math.log(0.8 if other == digit else 0.05)) for other in range(1, 6)]
            tokens += [TokenChoice(str(digit), choices), TokenChoice(",", [(",", 0.0)])]
        return Completion(",".join(map(str, rating)), tokens[:-1])


def _hash_ratings(request: JudgeRequest) -> tuple[int, int, int]:
    digest = hashlib.blake2b(f"{request.task}\0{request.transcript}".encode("utf-8", "replace"), digest_size=3).digest()
    return digest[0] % 5 + 1, digest[1] % 5 + 1, digest[2] % 5 + 1


class FakeClient:
    """A model without a model: what it says is a function of the conversation and the seed. Tokens are words."""

    def __init__(self, name: str, say: Callable[[Sequence[Mapping[str, str]], int], str | CallFailure]) -> None:
        """Make a model.

        Args:
            name: of the model.
            say: the answer to a conversation with a sampling seed; a `CallFailure` stands for a call that fails.
        """
        self.name = name
        self._say = say
        self.calls: list[tuple[list[dict[str, str]], int]] = []
        """Every conversation and its seed, in order."""

    def prompt_tokens(self, conversations: Sequence[Sequence[Mapping[str, str]]]) -> list[int]:
        """Count words and runs of blanks."""
        return [len(WordCodec().encode_chat(conversation)) for conversation in conversations]

    def generate(
        self,
        conversations: Sequence[Sequence[Mapping[str, str]]],
        *,
        seeds: Sequence[int],
        temperature: float | None = None,
        max_output_tokens: int | None = None,
    ) -> list[Generation | CallFailure]:
        """Answer all conversations."""
        from celr_ray.core.clients import Generation

        counts = self.prompt_tokens(conversations)
        replies: list[Generation | CallFailure] = []
        for conversation, seed, n_tokens in zip(conversations, seeds, counts, strict=True):
            self.calls.append(([dict(message) for message in conversation], seed))
            said = self._say(conversation, seed)
            if isinstance(said, str):
                n_said = len(WordCodec().token_spans(said))
                said = Generation(said, n_tokens, n_said, -0.5, 0.25, "stop")  # type: ignore[assignment]
            replies.append(said)  # type: ignore[arg-type]
        return replies

    def close(self) -> None:
        """Do nothing: there is nothing to close."""


def make_tiny_llama(folder: str | Path) -> str:
    """Write a Llama with two layers and random weights, with tokenizer and chat template; under 1 MB.

    Equal on every call (fixed seed). Its tokens are bytes and a few hundred merges; its window is 4,096 tokens.

    Returns:
        The folder, as vLLM and transformers load it.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    vocab_size = _write_tiny_tokenizer(target)
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=2,
        pad_token_id=2,
        initializer_range=0.3,  # large enough for verdicts that differ between prompts
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(target)
    return str(target)


def _write_tiny_tokenizer(folder: Path) -> int:
    """Train a byte-level BPE on this package's own prompt texts and return its vocabulary size."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    from celr_ray.training.judge_prompt import QUESTION, RUBRICS

    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=512,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([*RUBRICS.values(), QUESTION], trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": special[0],
        "eos_token": special[2],
        "pad_token": special[2],
        "model_max_length": 4096,
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")
    return int(tokenizer.get_vocab_size())
