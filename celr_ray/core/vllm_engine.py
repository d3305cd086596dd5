"""`vllm.LLM` for several models in one process, safe for prompts that it fails on: token ids in, outputs out.

On CPU an engine runs in this process, where vLLM keeps the forward context, torch's settings and the process groups in
globals. So engines there compute one at a time, and they are shut down together, when the last is closed: the first
shutdown takes the groups away from the others, whose next call would fail.
"""

from __future__ import annotations

import gc
import logging
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

from celr_ray.core.chat_encoder import ChatEncoder
from celr_ray.errors import ModelError
from celr_ray.small_models import resolve_model
from celr_ray.training.engine import engine_arguments, engine_environment
from celr_ray.training.engine_watchdog import watch_engine_core
from celr_ray.vllm_process import abort_unfinished, force_eager, set_threads

__all__ = ["VllmEngine"]

_logger = logging.getLogger(__name__)

_LOAD_ERRORS = (OSError, ValueError, TypeError, RuntimeError, AssertionError)
_KV_CACHE_VARIABLE = "VLLM_CPU_KVCACHE_SPACE"


class _InProcess:
    """The engines of this process that share vLLM's globals."""

    lock = threading.RLock()
    n_open = 0
    closed: ClassVar[list[Any]] = []
    """`vllm.LLM` objects to shut down with the last."""


class VllmEngine:
    """One loaded model."""

    def __init__(
        self,
        model: str,
        *,
        max_model_len: int,
        num_gpus: float = 0,
        num_threads: int | None = None,
        engine_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        """Load a model.

        Args:
            model: name or folder that vLLM can load, or a name in `small_models`.
            max_model_len: context window to use, tokens.
            num_gpus: GPUs of this engine; 0 = CPU.
            num_threads: compute threads on CPU; None = all CPUs that this process may use. The first engine of a
                process decides: vLLM allows no change afterwards.
            engine_kwargs: arguments of `vllm.LLM`, which win over the defaults; `chat_template_kwargs` goes to the chat
                template.

        Raises:
            ModelError: vLLM is not installed, it cannot load the model, or the model has no chat template.
        """
        kwargs = dict(engine_kwargs or {})
        template_kwargs = kwargs.pop("chat_template_kwargs", None)
        arguments = engine_arguments(
            resolve_model(model),
            max_model_len=max_model_len,
            num_gpus=num_gpus,
            engine_kwargs={**_engine_defaults(num_gpus), **kwargs},
        )
        self.name = model
        """The model as it was asked for."""
        self._is_in_process = num_gpus == 0
        self._is_eager = num_gpus == 0 and bool(arguments["enforce_eager"])
        self._lock = _InProcess.lock if self._is_in_process else threading.RLock()
        with self._lock:
            self._llm: Any = _load(model, arguments, num_gpus, num_threads)
            _InProcess.n_open += self._is_in_process
        try:
            watch_engine_core(self._llm.llm_engine.engine_core)
            self.encoder = ChatEncoder(self._llm.get_tokenizer(), self._llm.chat_template, template_kwargs)
        except ModelError:
            self.close()
            raise
        self.window: int = self._llm.llm_engine.model_config.max_model_len
        """Most tokens of prompt and answer together."""

    def run(self, prompts: Sequence[list[int]], sampling: Sequence[Any]) -> list[Any]:
        """Complete all prompts in one batch.

        A batch that fails is cleared and halved until the bad prompt stands alone.

        Args:
            prompts: N prompts, token ids.
            sampling: [N] `vllm.SamplingParams`.

        Returns:
            [N] `vllm.RequestOutput`, or the exception that a prompt leads to.

        Raises:
            ModelError: the engine is dead, closed, or fails on every prompt.
        """
        if not prompts:
            return []
        with self._lock:
            try:
                return self._generate(prompts, sampling)
            except Exception as error:  # noqa: BLE001 - vLLM raises what its parts raise; the row records it
                self._check_dead(error)
                abort_unfinished(self._llm)
                if len(prompts) == 1:
                    self._check_alive(error, sampling[0])
                    return [error]
            _logger.warning("a batch of %d prompts failed, halving it", len(prompts))
            middle = len(prompts) // 2
            return self.run(prompts[:middle], sampling[:middle]) + self.run(prompts[middle:], sampling[middle:])

    def close(self) -> None:
        """Stop the engine; memory on CPU comes back when the last engine of the process is closed."""
        with self._lock:
            if self._llm is None:
                return
            closed = _InProcess.closed if self._is_in_process else []
            closed.append(self._llm)
            self._llm = None
            if self._is_in_process:
                _InProcess.n_open -= 1
                if _InProcess.n_open:
                    return
            while closed:
                closed.pop().llm_engine.engine_core.shutdown()
            gc.collect()

    def _generate(self, prompts: Sequence[list[int]], sampling: Sequence[Any]) -> list[Any]:
        """Call vLLM once.

        Raises:
            Exception: whatever vLLM raises, or RuntimeError if it lost or doubled a request.
        """
        if self._llm is None:
            raise ModelError(f"the engine of {self.name} is closed")
        with force_eager(self._is_eager):
            outputs: list[Any] = self._llm.generate(
                [{"prompt_token_ids": ids} for ids in prompts], list(sampling), use_tqdm=False
            )
        if len(outputs) != len(prompts):
            raise RuntimeError(f"vLLM returned {len(outputs)} outputs for {len(prompts)} prompts")
        return outputs

    def _check_dead(self, error: Exception) -> None:
        from vllm.v1.engine.exceptions import EngineDeadError

        if isinstance(error, ModelError):
            raise error
        if isinstance(error, EngineDeadError):
            raise ModelError(f"the engine of {self.name} died: {error}") from error

    def _check_alive(self, cause: Exception, sampling: Any) -> None:
        """Tell a bad prompt from a broken engine.

        Raises:
            ModelError: the engine fails on a harmless prompt too.
        """
        hello = self.encoder.encode([{"role": "user", "content": "Hello"}])
        if isinstance(hello, str):
            return
        try:
            self._generate([hello], [sampling])
        except Exception as error:
            raise ModelError(f"the engine of {self.name} fails on every prompt: {cause}") from error


def _engine_defaults(num_gpus: float) -> dict[str, Any]:
    """Return what an executor's engine needs beyond the common arguments.

    The statistics hold each request's latency. On CPU a prompt is read in one piece: between the pieces vLLM 0.29 turns
    back the random generator of a seeded request, which a CPU generator cannot do, and the whole batch fails.
    """
    chunks = {} if num_gpus else {"enable_chunked_prefill": False}
    return {"disable_log_stats": False, **chunks}


def _load(model: str, arguments: Mapping[str, Any], num_gpus: float, num_threads: int | None) -> Any:
    """Return `vllm.LLM(**arguments)`.

    Raises:
        ModelError: vLLM is not installed, or it cannot load the model.
    """
    os.environ.update(engine_environment(num_gpus))
    if num_gpus == 0:
        set_threads(num_threads or len(os.sched_getaffinity(0)))
    try:
        import vllm
    except ImportError as error:
        raise ModelError(
            f"engine vllm needs vLLM ({error}): pip install 'celr-ray[cpu]', or 'celr-ray[gpu]' with GPUs"
        ) from error
    try:
        with _kv_cache_space("kv_cache_memory_bytes" in arguments):
            return vllm.LLM(**arguments)
    except _LOAD_ERRORS as error:
        raise ModelError(f"vLLM cannot load {model!r} with {dict(arguments)}: {error}") from error


@contextmanager
def _kv_cache_space(is_argument: bool) -> Iterator[None]:
    """Hide the variable for the KV cache's size while an engine has it as an argument: for vLLM the variable wins."""
    value = os.environ.pop(_KV_CACHE_VARIABLE, None) if is_argument else None
    try:
        yield
    finally:
        if value is not None:
            os.environ[_KV_CACHE_VARIABLE] = value
