"""The judge's engine: `vllm.LLM` in this process, on CPU or GPU, made safe for rows that cannot be judged.

One over-long prompt makes `LLM.generate` refuse the whole call, and an exception in the engine leaves the
other requests queued; so lengths are checked first, and a failed batch is cleared and halved until the bad
row stands alone. Prompts are queued one by one while they are fitted: where the engine core is a process of its own
(GPUs), it computes meanwhile. vLLM is imported only when an engine is made. This module knows nothing of runs or files.
"""

from __future__ import annotations

import gc
import logging
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from celr_ray.errors import ModelError
from celr_ray.small_models import resolve_model
from celr_ray.training.engine_watchdog import watch_engine_core
from celr_ray.training.judge_prompt import OWN_TAGS, FittedPrompt, JudgeRequest, TooLong, fit_prompt
from celr_ray.training.self_reward import SAMPLING, Completion, Failure, JudgeReply, TokenChoice, read_replies
from celr_ray.vllm_process import abort_unfinished, force_eager, set_threads

__all__ = ["HfPromptCodec", "VllmJudgeEngine", "engine_arguments", "engine_environment"]

_logger = logging.getLogger(__name__)

_CPU_BLOCK_SIZE = 32
"""Tokens in a block of the prefix cache. vLLM's CPU default of 128 shares only whole 128-token prefixes: hit rate
.46 against .74 on judge prompts."""

_COMMON_ENVIRONMENT = {
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
    "TORCH_CPP_LOG_LEVEL": "ERROR",
    "TOKENIZERS_PARALLELISM": "false",
}
_CPU_ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "2",  # GiB
    # The engine core as a process of its own keeps one core for scheduling and would outlive a killed worker.
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
}


def engine_environment(num_gpus: float) -> dict[str, str]:
    """Return the environment that an engine starts with; a variable that is set already keeps its value."""
    defaults = _COMMON_ENVIRONMENT if num_gpus else {**_COMMON_ENVIRONMENT, **_CPU_ENVIRONMENT}
    return {name: os.environ.get(name, value) for name, value in defaults.items()}


def engine_arguments(
    model: str, *, max_model_len: int, num_gpus: float, engine_kwargs: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the arguments of `vllm.LLM`; `engine_kwargs` win over all others.

    On CPU: float32 (bfloat16 is slower without special instructions), no compilation, small cache blocks. With
    several GPUs the model is split over them; with a part of one, it takes that part of the memory.
    """
    arguments: dict[str, Any] = {
        "model": model,
        "max_model_len": max_model_len,
        "enable_prefix_caching": True,
        "seed": 0,
        "use_tqdm_on_load": False,
    }
    if num_gpus == 0:
        arguments |= {"dtype": "float32", "enforce_eager": True, "block_size": _CPU_BLOCK_SIZE}
    elif num_gpus > 1:
        arguments["tensor_parallel_size"] = int(num_gpus)
    elif num_gpus < 1:
        arguments["gpu_memory_utilization"] = 0.9 * num_gpus
    return {**arguments, **engine_kwargs}


_MARKUP = re.compile(r"[<\[].+[>\]]")
"""Added tokens that steer chat models but are not marked as special, such as `</think>`."""


class HfPromptCodec:
    """The judge's tokenizer and chat template, as prompt fitting needs them.

    A template that refuses a system message gets it in front of the user's; a model without a template gets
    plain text.
    """

    def __init__(self, tokenizer: Any, chat_template: str | None = None) -> None:
        from jinja2 import TemplateError

        self._tokenizer = tokenizer
        self._chat_template = chat_template or getattr(tokenizer, "chat_template", None)
        self._accepts_system = True
        added = getattr(tokenizer, "added_tokens_decoder", {}).values()
        special = {token.content for token in added if token.special or _MARKUP.fullmatch(token.content)}
        self._special_tokens = sorted((special | set(tokenizer.all_special_tokens)) - OWN_TAGS)
        try:
            self.encode_chat([{"role": "system", "content": "a"}, {"role": "user", "content": "b"}])
        except TemplateError:
            self._accepts_system = False

    @property
    def special_tokens(self) -> Sequence[str]:
        """Texts of the control tokens."""
        return self._special_tokens

    def encode_chat(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """Apply the chat template, up to where the answer begins, and return token ids."""
        if self._chat_template is None:
            text = "\n\n".join(message["content"] for message in messages)
            return list(self._tokenizer.encode(f"{text}\n\nRating: "))
        chat = list(messages)
        if not self._accepts_system:
            chat = [{"role": "user", "content": "\n\n".join(message["content"] for message in messages)}]
        ids: list[int] = self._tokenizer.apply_chat_template(
            chat,
            chat_template=self._chat_template,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=False,
            enable_thinking=False,  # templates that do not know it ignore it
        )
        return list(ids)

    def token_spans(self, text: str) -> list[tuple[int, int]]:
        """Return the character range of each token; evenly spread where the tokenizer cannot tell."""
        if getattr(self._tokenizer, "is_fast", False):
            encoded = self._tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
            return [(int(start), int(end)) for start, end in encoded["offset_mapping"]]
        n = len(self._tokenizer.encode(text, add_special_tokens=False))
        return [(i * len(text) // n, (i + 1) * len(text) // n) for i in range(n)]


class VllmJudgeEngine:
    """A judge model in this process; satisfies `self_reward.JudgeLLM`."""

    def __init__(
        self,
        model_source: str,
        *,
        max_model_len: int = 4096,
        rubric: str = "additive",
        num_gpus: float = 0,
        num_threads: int | None = None,
        engine_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        """Load the model.

        Args:
            model_source: name or folder that vLLM can load; `smollm2` = the demo model.
            max_model_len: context window to use, tokens, prompt and verdict together.
            rubric: a name in `judge_prompt.RUBRICS`.
            num_gpus: GPUs of this engine; 0 = CPU.
            num_threads: compute threads on CPU; None = all CPUs that this process may use.
            engine_kwargs: arguments of `vllm.LLM`; they win over the defaults.

        Raises:
            ModelError: vLLM is not installed, or it cannot load the model.
        """
        os.environ.update(engine_environment(num_gpus))
        if num_gpus == 0:
            set_threads(num_threads or len(os.sched_getaffinity(0)))
        try:
            import vllm
            from vllm.sampling_params import StructuredOutputsParams
        except ImportError as error:
            raise ModelError(
                f"the judge needs vLLM ({error}): pip install 'celr-ray[cpu]', or 'celr-ray[gpu]' with GPUs"
            ) from error
        arguments = engine_arguments(
            resolve_model(model_source),
            max_model_len=max_model_len,
            num_gpus=num_gpus,
            engine_kwargs=engine_kwargs or {},
        )
        try:
            self._llm: Any = vllm.LLM(**arguments)
        except (OSError, ValueError, TypeError, RuntimeError, AssertionError) as error:
            raise ModelError(f"vLLM cannot load the judge {model_source!r} with {arguments}: {error}") from error
        watch_engine_core(self._llm.llm_engine.engine_core)
        self._sampling = vllm.SamplingParams(
            temperature=SAMPLING["temperature"],
            logprobs=SAMPLING["logprobs"],
            max_tokens=SAMPLING["max_tokens"],
            structured_outputs=StructuredOutputsParams(regex=SAMPLING["regex"]),
        )
        self._is_eager = num_gpus == 0 and bool(arguments["enforce_eager"])
        self._rubric = rubric
        self.name = model_source
        """The model as it was asked for."""
        self._codec = HfPromptCodec(self._llm.get_tokenizer(), _read_template(arguments.get("chat_template")))
        window: int = self._llm.llm_engine.model_config.max_model_len
        self.limit: int = window - SAMPLING["max_tokens"]
        """Most tokens that a prompt may have."""

    @property
    def codec(self) -> HfPromptCodec:
        """The tokenizer that prompts are fitted with."""
        return self._codec

    def generate(self, requests: Sequence[JudgeRequest]) -> list[JudgeReply]:
        """Judge all requests in one batch; a bad one never fails the others.

        Raises:
            ModelError: the engine itself is dead.
        """
        fitted: list[FittedPrompt | TooLong] = []
        results = self.complete(self._fit(requests, fitted))
        return read_replies(fitted, results)

    def _fit(self, requests: Sequence[JudgeRequest], fitted: list[FittedPrompt | TooLong]) -> Iterator[FittedPrompt]:
        """Fit one prompt after the other, note each in `fitted`, and yield those that can be completed."""
        for request in requests:
            prompt = fit_prompt(request, self._codec, self.limit, rubric=self._rubric)
            fitted.append(prompt)
            if isinstance(prompt, FittedPrompt):
                yield prompt

    def complete(self, prompts: Iterable[FittedPrompt]) -> list[Completion | Failure]:
        """Generate a verdict for each prompt, in order, with the probabilities at each token.

        Raises:
            ModelError: the engine itself is dead.
        """
        queued, outputs = self._run(prompts)
        if not isinstance(outputs, Exception):
            return [_read_output(output) for output in outputs]
        abort_unfinished(self._llm)
        if len(queued) == 1:
            self._check_alive(outputs)
            return [Failure(f"{type(outputs).__name__}: {outputs}"[:500])]
        _logger.warning("a batch of %d judge prompts failed, halving it: %s", len(queued), outputs)
        middle = len(queued) // 2
        return self.complete(queued[:middle]) + self.complete(queued[middle:])

    def close(self) -> None:
        """Stop the engine and give its memory back; a second call does nothing.

        An engine core in this process takes vLLM's parallel groups with it: others in the process are unusable then.
        """
        if self._llm is not None:
            self._llm.llm_engine.engine_core.shutdown()
            self._llm = None
            gc.collect()

    def _run(self, prompts: Iterable[FittedPrompt]) -> tuple[list[FittedPrompt], list[Any] | Exception]:
        """Queue the prompts in vLLM as they come and wait for all of them.

        Returns:
            The prompts, and one output each, or what vLLM raised.

        Raises:
            ModelError: the engine is dead.
        """
        queued: list[FittedPrompt] = []
        errors: list[Exception] = []
        outputs: list[Any] = []
        for prompt in prompts:  # what fitting raises is no failure of the engine
            queued.append(prompt)
            if not errors:
                with self._note_error(errors):
                    self._llm.enqueue({"prompt_token_ids": prompt.prompt_ids}, self._sampling, use_tqdm=False)
        if not errors:
            with self._note_error(errors), force_eager(self._is_eager):
                outputs = self._llm.wait_for_completion(use_tqdm=False)
                if len(outputs) != len(queued):
                    raise RuntimeError(f"vLLM returned {len(outputs)} outputs for {len(queued)} prompts")
        return queued, errors[0] if errors else outputs

    @contextmanager
    def _note_error(self, errors: list[Exception]) -> Iterator[None]:
        """Keep what vLLM raises, which may be anything its parts raise; the row records it.

        Raises:
            ModelError: the engine is dead.
        """
        from vllm.v1.engine.exceptions import EngineDeadError

        try:
            yield
        except EngineDeadError as error:
            raise ModelError(f"the judge's engine died: {error}") from error
        except Exception as error:  # noqa: BLE001
            errors.append(error)

    def _check_alive(self, cause: Exception) -> None:
        """Tell a bad row from a broken engine, which would turn every row of a run into an error.

        Raises:
            ModelError: the engine fails on a harmless prompt too.
        """
        hello = self._codec.encode_chat([{"role": "user", "content": "Hello"}])
        _, outputs = self._run([FittedPrompt(JudgeRequest("", ""), hello, 0)])
        if isinstance(outputs, Exception):
            raise ModelError(f"the judge's engine fails on every prompt: {cause}") from outputs


def _read_output(output: Any) -> Completion:
    """Translate a vLLM RequestOutput; the end token carries no text."""
    completion = output.outputs[0]
    tokens = []
    for token_id, position in zip(completion.token_ids, completion.logprobs, strict=True):
        choices = [(choice.decoded_token or "", float(choice.logprob)) for choice in position.values()]
        tokens.append(TokenChoice(position[token_id].decoded_token or "", choices))
    return Completion(completion.text, tokens, output.num_cached_tokens or 0)


def _read_template(chat_template: str | None) -> str | None:
    """Return a chat template given as text or as a file."""
    if chat_template is None or "{" in chat_template or not os.path.isfile(chat_template):
        return chat_template
    with open(chat_template, encoding="utf-8") as source:
        return source.read()
