"""What every vLLM engine inside a process of ours needs: compute threads, no compilation on CPU, a clean queue."""

from __future__ import annotations

import os
import sys
from contextlib import AbstractContextManager, nullcontext
from typing import Any

__all__ = ["abort_unfinished", "force_eager", "set_threads"]


def set_threads(n: int) -> None:
    """Set the compute threads; Ray gives an actor one for each CPU it reserves, by OMP_NUM_THREADS.

    The variable counts only while torch is not loaded, the call only in the thread that makes it: both are needed.
    """
    if "torch" not in sys.modules:
        os.environ["OMP_NUM_THREADS"] = str(n)
    import torch

    torch.set_num_threads(n)


def force_eager(is_eager: bool) -> AbstractContextManager[Any]:
    """Keep torch from compiling vLLM's sampler on CPU: 17 s on a first call, no gain later."""
    if not is_eager:
        return nullcontext()
    import torch

    stance: AbstractContextManager[Any] = torch.compiler.set_stance("force_eager")
    return stance


def abort_unfinished(llm: Any) -> None:
    """Drop the requests that a failed call left queued: the next call would run them and return them as its own."""
    engine = llm.llm_engine
    unfinished = list(engine.output_processor.request_states)
    if unfinished:
        engine.abort_request(unfinished, internal=True)
