"""The gate's paired run as a resumable stage: a unit is some tasks of the preset order, run by every role.

    OUT/results/part-00000.parquet   rows of unit 0, `results.RESULT_SCHEMA`
    OUT/live/ROLE/…                  live suites: logs of the runs

Results are evaluated as the prefix of finished units grows; at a verdict the units that remain are cancelled. What a
killed driver had finished counts at the next call, in the same way.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa

from celr_ray import storage
from celr_ray.config import RuntimeConfig
from celr_ray.cortex.gate.monitor import GateMonitor
from celr_ray.cortex.gate.plan import GatePlan
from celr_ray.cortex.gate.results import Role
from celr_ray.cortex.gate.settings import GateConfig
from celr_ray.cortex.gate.suites import Suite
from celr_ray.cortex.policy import Policy
from celr_ray.errors import InputError
from celr_ray.run_folder import part_name
from celr_ray.runtime import Manifest, Unit, UnitFunction, Work, uses_ray
from celr_ray.stage import StagePlan, StageReport, hash_json, run_stage

__all__ = ["Workers", "hash_gate_config", "make_stage_plan", "run_gate_stage"]


@dataclass(frozen=True)
class Workers:
    """How many run the units, and what each takes.

    Attributes:
        concurrency: workers at the same time.
        num_cpus: CPUs that Ray reserves for each.
        num_gpus: GPUs that Ray reserves for each.
        env: environment variables of each.
    """

    concurrency: int = 1
    num_cpus: float = 1
    num_gpus: float = 0
    env: Mapping[str, str] | None = None


def hash_gate_config(config: GateConfig) -> str:
    """Return the hash of all settings that decide a verdict."""
    return hash_json(config.model_dump(mode="json"))


def make_stage_plan(suite: Suite, policies: Mapping[Role, Policy], plan: GatePlan, config: GateConfig) -> StagePlan:
    """Return the units, and all that their results depend on."""
    facts = suite.facts
    settings: dict[str, Any] = {
        "suite": facts.content_hash,
        "order": plan.content_hash,
        "config": hash_gate_config(config),
        "prices": facts.prices["content_hash"],
        **{role: policy.content_hash for role, policy in policies.items()},
    }
    units: list[Unit] = [{"start": start, "stop": stop} for start, stop in plan.units]
    return StagePlan("gate", settings, units)


def run_gate_stage(
    out: str,
    stage_plan: StagePlan,
    suite: Suite,
    policies: Mapping[Role, Policy],
    runtime: RuntimeConfig,
    workers: Workers,
    monitor: GateMonitor,
) -> StageReport:
    """Run units until the monitor has decided, or all are done; the plan must have been opened.

    Raises:
        InputError: a worker finds another suite than the one the gate was planned for.
        PolicyError: champion or anchor cannot decide.
    """
    is_large = workers.concurrency > 1 or workers.num_gpus > 0
    on_ray = not suite.is_local and uses_ray(runtime, is_large=is_large)
    work = Work(
        factory=_GateFactory(
            _strip(suite) if on_ray else suite, suite.facts.content_hash, policies, monitor.plan.task_ids
        ),
        is_stateful=True,
        concurrency=workers.concurrency,
        num_cpus=workers.num_cpus,
        num_gpus=workers.num_gpus,
        env=dict(workers.env or {}),
    )

    def is_enough(manifest: Manifest) -> bool:
        return monitor.add(manifest["index"], _read_part(out, manifest["index"]))

    return run_stage(out, stage_plan, work, runtime, on_ray=on_ray, is_enough=is_enough)


def _strip(suite: Suite) -> Suite:
    """Return the suite without what it has loaded, to be sent to workers."""
    stripped: Any = replace(suite)  # type: ignore[type-var]
    return stripped  # type: ignore[no-any-return]


def _part_uri(out: str, index: int) -> str:
    return storage.join(out, "results", part_name(index))


def _read_part(out: str, index: int) -> pa.Table:
    return storage.read_parquet(_part_uri(out, index))


@dataclass(frozen=True)
class _GateFactory:
    """Makes the function that runs a unit; what is heavy is loaded only where it is called."""

    suite: Suite
    suite_hash: str
    policies: Mapping[Role, Policy]
    task_ids: tuple[str, ...]

    def __call__(self) -> UnitFunction:
        """Load the suite and check that it is the planned one."""
        run_role = self.suite.open()
        if self.suite.facts.content_hash != self.suite_hash:
            raise InputError("this worker finds another suite than the one the gate was planned for: was it changed?")

        def run_unit(unit: Unit) -> Manifest:
            out, index = unit["run"], unit["index"]
            task_ids = self.task_ids[unit["start"] : unit["stop"]]
            parts = [
                run_role(role, policy, task_ids, storage.join(out, "live", role), index)
                for role, policy in self.policies.items()
            ]
            table = pa.concat_tables(parts)
            storage.write_parquet(_part_uri(out, index), table)
            return {"rows_in": len(task_ids), "rows_out": len(task_ids), "episodes": table.num_rows}

        return run_unit
