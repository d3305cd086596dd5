"""Where units of work run: in this process, or on Ray Data; and what a person sees meanwhile.

`run_units` is the only place of the package that starts or attaches to Ray for batch work. Only unit
descriptions and manifests (small JSON) travel through Ray; workers read and write the data themselves, so
the object store stays empty. It knows nothing of what a unit does.
"""

from __future__ import annotations

import json
import logging
import os
import pickle
import socket
import sys
import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from celr_ray.config import RuntimeConfig
from celr_ray.errors import CelrRayError, ConfigError

Unit = dict[str, Any]
"""Description of one piece of work: JSON values only."""

Manifest = dict[str, Any]
"""What a unit did: JSON values only."""

UnitFunction = Callable[[Unit], Manifest]

_MAX_RETRIES = 10
"""How often a unit is tried again whose actor died of it, or died by chance meanwhile; Ray Data's own limit is none."""


@dataclass(frozen=True)
class Work:
    """How to run the units of a stage.

    Attributes:
        factory: makes the function that runs a unit; called once a worker, so it may load a model.
        is_stateful: the function is expensive to make (an engine): Ray keeps it in actors, else it uses tasks.
        concurrency: number of actors; used only if stateful.
        num_cpus: CPUs Ray reserves for a worker.
        num_gpus: GPUs Ray reserves for a worker.
        env: environment variables of the worker; in a loop only those that are not set yet.
    """

    factory: Callable[[], UnitFunction]
    is_stateful: bool = False
    concurrency: int = 1
    num_cpus: float = 1
    num_gpus: float = 0
    env: dict[str, str] = field(default_factory=dict)


class _Worker:
    """A Ray Data actor that keeps one unit function: a batch of units in, their manifests out.

    An error of ours travels as a row and is raised again by the driver: raised here, Ray would wrap it into an error
    of its own (or, in the constructor, into the death of an actor), and its message and exit code would be lost.
    """

    def __init__(self, factory: Callable[[], UnitFunction]) -> None:
        self._error: CelrRayError | None = None
        try:
            self._run_unit = factory()
        except CelrRayError as error:
            self._error = error

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        return {"manifest": [self._run(unit) for unit in batch["unit"]]}

    def _run(self, unit: str) -> bytes:
        try:
            if self._error is not None:
                raise self._error
            return pickle.dumps(self._run_unit(json.loads(unit)))
        except CelrRayError as error:
            return pickle.dumps(error)


def _run_batch(batch: dict[str, Any], factory: Callable[[], UnitFunction]) -> dict[str, Any]:
    """Do the same in a Ray Data task, for unit functions that are cheap to make."""
    return _Worker(factory)(batch)


def _is_on_cluster(config: RuntimeConfig) -> bool:
    if config.address is not None or "RAY_ADDRESS" in os.environ:
        return True
    ray = sys.modules.get("ray")
    return ray is not None and bool(ray.is_initialized())


def uses_ray(config: RuntimeConfig, *, is_large: bool) -> bool:
    """Decide between Ray and a plain loop (Ray's first job costs tens of seconds, a small loop fractions)."""
    if config.executor == "auto":
        return is_large or _is_on_cluster(config)
    return config.executor == "ray"


def connect(config: RuntimeConfig) -> None:
    """Attach to the configured Ray cluster, or start an embedded one on 127.0.0.1.

    An address must be given to join a cluster: `ray.init()` alone joins any cluster it happens to find.

    Raises:
        ConfigError: the cluster cannot be reached.
    """
    address = config.address or os.environ.get("RAY_ADDRESS")
    if not address:
        # Ray reads this while it is imported: without it an embedded Ray listens on all interfaces, not on 127.0.0.1.
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    import ray

    if ray.is_initialized():
        return
    try:
        if address:
            _check_reachable(address)
            ray.init(address=address, logging_level=logging.WARNING)
            return
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        ray.init(
            address="local",
            num_cpus=config.num_cpus,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            _node_ip_address="127.0.0.1",
        )
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise ConfigError(f"cannot start or reach Ray (address {address or 'local'}): {error}") from error


def _check_reachable(address: str) -> None:
    """Ask a `host:port` for a connection; Ray itself would go on trying for minutes.

    Raises:
        ConnectionError: nothing answers there.
    """
    host, separator, port = address.rpartition(":")
    if "://" in address or not separator or not port.isdecimal():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    except OSError as error:
        raise ConnectionError(f"nothing answers: {error}") from error


def run_units(
    units: Sequence[Unit], work: Work, config: RuntimeConfig, *, on_ray: bool
) -> Generator[Manifest, None, None]:
    """Run every unit once and yield its manifest as it finishes, in any order.

    Closing the generator cancels what is under way.

    Raises:
        CelrRayError: the process of an actor died at each retry of a unit.
        Exception: whatever a unit raises; units that had finished stay finished.
    """
    if not units:
        return
    if not on_ray:
        os.environ.update({name: value for name, value in work.env.items() if name not in os.environ})
        run_unit = work.factory()
        for unit in units:
            yield run_unit(unit)
        return
    yield from _run_on_ray(units, work, config)


def _run_on_ray(units: Sequence[Unit], work: Work, config: RuntimeConfig) -> Iterator[Manifest]:
    import ray

    connect(config)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    options: dict[str, Any] = {"batch_size": 1, "num_cpus": work.num_cpus}
    if work.num_gpus:
        options["num_gpus"] = work.num_gpus
    if work.env:
        options["runtime_env"] = {"env_vars": work.env}
    dataset = ray.data.from_items([{"unit": json.dumps(unit)} for unit in units], override_num_blocks=len(units))
    # Ray Data reserves memory for each operator and starts tasks reluctantly; unit descriptions need none. Measured on
    # two CPUs: 1.82 times a plain loop without the reservation, 1.35 with it.
    dataset.context.op_resource_reservation_enabled = False
    if work.is_stateful:
        options |= {
            "fn_constructor_args": [work.factory],
            "compute": ray.data.ActorPoolStrategy(size=min(work.concurrency, len(units))),
            "max_task_retries": _MAX_RETRIES,
        }
        with warnings.catch_warnings():  # Ray 2.60 calls max_task_retries deprecated and has nothing in its place
            warnings.simplefilter("ignore", ray.util.annotations.RayDeprecationWarning)
            dataset = dataset.map_batches(_Worker, **options)
    else:
        dataset = dataset.map_batches(_run_batch, fn_kwargs={"factory": work.factory}, **options)
    try:
        for row in dataset.iter_rows():
            result = pickle.loads(row["manifest"])
            if isinstance(result, CelrRayError):
                raise result
            yield result
    except ray.exceptions.RayActorError as error:
        raise CelrRayError(
            f"a worker process died, and again at each of {_MAX_RETRIES} retries of its unit: {error}. What is "
            "finished is kept: run the same command again when the cause is mended."
        ) from error


@contextmanager
def progress(title: str, total: int, *, done: int = 0) -> Iterator[Callable[[Manifest], None]]:
    """Show a bar on a terminal and nothing elsewhere; the yielded function takes each manifest."""
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("units, {task.fields[rows]:,} rows"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as bar:
        task = bar.add_task(title, total=total, completed=done, rows=0)
        rows = 0

        def advance(manifest: Manifest) -> None:
            nonlocal rows
            rows += int(manifest.get("rows_in", 0))
            bar.update(task, advance=1, rows=rows)

        yield advance
