"""Ends the call that waits for a dead engine core.

On GPUs vLLM's engine core is a process of its own. If it is killed, `vllm.LLM` 0.29 notices
(`MPClient.start_engine_core_monitor`), marks itself dead and closes its sockets, but the thread that waits in
`SyncMPClient.get_output` for the core's next message is not woken and waits for ever. A core that ends by an exception
says so in a message; only a silent death needs this.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Sequence
from multiprocessing import connection
from multiprocessing.process import BaseProcess
from typing import Any

__all__ = ["watch_engine_core"]


def watch_engine_core(client: Any) -> None:
    """Put an `EngineDeadError` into the client's queue of outputs as soon as one of its core processes ends.

    The watching thread keeps the processes and the queue alive, not the client, so that vLLM's own clean-up works.

    Args:
        client: `llm.llm_engine.engine_core`; one that runs the core in this process needs no watch.
    """
    manager = getattr(getattr(client, "resources", None), "engine_manager", None)
    if manager is not None:
        arguments = (manager.processes, client.outputs_queue)
        threading.Thread(target=_wait_for_death, args=arguments, daemon=True, name="celr-ray-engine-watchdog").start()


def _wait_for_death(processes: Sequence[BaseProcess], outputs: queue.Queue[Any]) -> None:
    from vllm.v1.engine.exceptions import EngineDeadError

    connection.wait([process.sentinel for process in processes])
    outputs.put(EngineDeadError())
