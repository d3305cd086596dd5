"""The convert stage: writes the trajectories of a run as ATIF 1.8, one JSON file each.

One file a trajectory, because that is the unit of ATIF: Harbor's validator and the models of the package `atif` take
one document, and know no JSONL. What ATIF lacks goes into `extra.celr` (defined in `logs/atif.py`), so that reading the
files again gives the same tasks, messages, outcomes, costs and counts. Scores and places are not written.

    RUN/atif/part-00000/000000.json      part as in RUN/trajectories; row in that part
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import msgspec
import pyarrow as pa

from celr_ray import storage
from celr_ray.config import RuntimeConfig
from celr_ray.errors import InputError, RecordError
from celr_ray.logs.atif import SCHEMA_VERSION, CelrCall, CelrResult, CelrRun, CelrStep
from celr_ray.run_folder import check_parts, is_complete, part_name, read_manifests, read_plan
from celr_ray.runtime import Manifest, Unit, UnitFunction, Work, uses_ray
from celr_ray.stage import StagePlan, StageReport, run_stage

FOLDER = "atif"
_COLUMNS = (*CelrRun.__struct_fields__, "trajectory_id", "model", "messages", "cost_usd")
_LARGE_ROWS = 100_000
_READ_ROWS = 256
_WRITERS = 16
_MAX_DEPTH = 64
"""Arguments nested deeper stay text: JSON readers have limits of their own, pydantic's at 200."""


class _LoggedFunction(msgspec.Struct):
    name: str
    arguments: str


class _LoggedCall(msgspec.Struct):
    id: str
    function: _LoggedFunction


_CALLS_DECODER = msgspec.json.Decoder(list[_LoggedCall])


def make_document(row: Mapping[str, Any]) -> dict[str, Any]:
    """Write one trajectory as an ATIF 1.8 document.

    Args:
        row: a row of `schema.Trajectory` as a dict; scores and places may be absent.

    Returns:
        JSON values, valid by ATIF's own models.

    Raises:
        RecordError: a message's tool calls are not the JSON text that `schema.Message` asks for.
    """
    celr = CelrRun(**{name: row[name] for name in CelrRun.__struct_fields__ if row.get(name) is not None})
    for name in ("success", "n_steps"):  # null is known to be unknown; absent, readers would work it out
        setattr(celr, name, row.get(name))
    agent = {"name": celr.source_format or "unknown", "version": "unknown", "model_name": row.get("model")}
    document = {
        "schema_version": SCHEMA_VERSION,
        "trajectory_id": row["trajectory_id"],
        "agent": {key: value for key, value in agent.items() if value is not None},
        "steps": _make_steps(row["messages"]),
    }
    if row.get("cost_usd") is not None:
        document["final_metrics"] = {"total_cost_usd": row["cost_usd"]}
    document["extra"] = {"celr": msgspec.to_builtins(celr)}
    return document


def _make_steps(messages: list[Mapping[str, Any]]) -> list[dict[str, Any]]:
    steps: list[dict[str, Any]] = []
    for message in messages:
        if message["role"] != "tool":
            steps.append(_make_step(message))
            continue
        if not steps or not _takes_results(steps[-1]):
            steps.append(_placeholder())
        step = steps[-1]
        step.setdefault("observation", {"results": []})["results"].append(_make_result(message, step))
    steps = steps or [_placeholder()]
    for number, step in enumerate(steps, 1):
        step["step_id"] = number
    return steps


def _takes_results(step: Mapping[str, Any]) -> bool:
    return step["source"] == "agent" or "is_placeholder" in step.get("extra", {}).get("celr", {})


def _placeholder() -> dict[str, Any]:
    """Return a step that stands for no message: ATIF has no steps of tools, only observations of steps."""
    return {"step_id": 0, "source": "system", "message": "", **_extra(CelrStep(is_placeholder=True))}


def _extra(celr: msgspec.Struct) -> dict[str, Any]:
    """Return `{"extra": {"celr": …}}`, or nothing if it would say nothing."""
    values = msgspec.to_builtins(celr)
    return {"extra": {"celr": values}} if values else {}


def _make_step(message: Mapping[str, Any]) -> dict[str, Any]:
    text = message["content"]
    step: dict[str, Any] = {"step_id": 0, "source": "agent" if message["role"] == "assistant" else message["role"]}
    step["message"] = text or ""
    calls = _make_calls(message["tool_calls"])
    if calls:
        step["tool_calls"] = calls
    as_read = step["message"] or (None if calls else "")
    return {**step, **(_extra(CelrStep(content=text)) if as_read != text else {})}


def _make_calls(text: str | None) -> list[dict[str, Any]]:
    if text is None:
        return []
    try:
        calls = _CALLS_DECODER.decode(text)
    except msgspec.DecodeError as error:
        raise RecordError(f"tool calls are not a JSON list of calls: {error}: {text[:80]!r}") from error
    return [_make_call(call) for call in calls]


def _make_call(call: _LoggedCall) -> dict[str, Any]:
    arguments, is_exact = _read_arguments(call.function.arguments)
    hint = CelrCall() if is_exact else CelrCall(arguments=call.function.arguments)
    return {"tool_call_id": call.id, "function_name": call.function.name, "arguments": arguments, **_extra(hint)}


def _read_arguments(text: str) -> tuple[dict[str, Any], bool]:
    """Return a call's arguments as an object, empty if they are none, and whether writing it gives the same text."""
    try:
        value = msgspec.json.decode(text, type=dict[str, Any])
        if _is_deeper(value, _MAX_DEPTH):
            return {}, False
        return value, json.dumps(value, ensure_ascii=False) == text
    except (msgspec.DecodeError, RecursionError):
        return {}, False


def _is_deeper(value: Any, depth: int) -> bool:
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return bool(items) and (depth == 0 or any(_is_deeper(item, depth - 1) for item in items))


def _make_result(message: Mapping[str, Any], step: Mapping[str, Any]) -> dict[str, Any]:
    call_id, name = message["tool_call_id"], message["name"]
    names = {call["tool_call_id"]: call["function_name"] for call in step.get("tool_calls", ())}
    result = {} if message["content"] is None else {"content": message["content"]}
    if call_id in names:
        hint = CelrResult() if names[call_id] == name else CelrResult(name=name)
        return {"source_call_id": call_id, **result, **_extra(hint)}
    return {**result, **_extra(CelrResult(role="tool", name=name, tool_call_id=call_id))}


def convert_unit(unit: Unit) -> Manifest:
    """Write the trajectories of one part; see `stage.run_stage` for the contract.

    Raises:
        InputError: a trajectory is none that ingest wrote.
    """
    run, index = unit["run"], unit["index"]
    source = storage.join(run, "trajectories", part_name(index))
    table: pa.Table = storage.read_parquet(source, _COLUMNS)
    written = 0
    with ThreadPoolExecutor(_WRITERS) as pool:  # each write waits for the disk or the network
        for batch in table.to_batches(max_chunksize=_READ_ROWS):
            documents = []
            for row in batch.to_pylist():
                try:
                    documents.append(make_document(row))
                except RecordError as error:
                    raise InputError(f"{source}, trajectory {row['trajectory_id']}: {error}") from error
            uris = [storage.join(run, _document_path(index, written + i)) for i in range(len(documents))]
            list(pool.map(storage.write_json, uris, documents))
            written += len(documents)
    return {"rows_in": table.num_rows, "rows_out": written, "rejected": 0}


def _document_path(index: int, row: int) -> str:
    return f"{FOLDER}/{part_name(index).removesuffix('.parquet')}/{row:06d}.json"


def _find_missing(manifest: Manifest, names: Collection[str]) -> list[str]:
    paths = (_document_path(manifest["index"], row) for row in range(manifest["rows_out"]))
    return [path for path in paths if path not in names]


def _make_convert_unit() -> UnitFunction:
    return convert_unit


def convert_plan(run: str) -> StagePlan:
    """List the units of the convert stage: one for each part of the trajectories.

    Raises:
        InputError: the run's ingest stage is missing or unfinished.
    """
    ingest = read_plan(run, "ingest")
    if ingest is None or not is_complete(run, "ingest"):
        raise InputError(f"{run} holds no finished ingest stage: give --logs, or finish the command that began it")
    settings = {"ingest": ingest["fingerprint"], "schema_version": SCHEMA_VERSION}
    return StagePlan("convert", settings, [{} for _ in range(ingest["n_units"])])


def run_convert(
    run: str, runtime: RuntimeConfig, *, overwrite: bool = False, on_ray: bool | None = None
) -> StageReport:
    """Write the trajectories of a run as ATIF files, or finish what was interrupted.

    Args:
        run: run folder that holds trajectories.
        runtime: where to run.
        overwrite: replace what was written from other trajectories.
        on_ray: force Ray or the loop; None = by `runtime.executor`, `auto` meaning Ray from 100,000 rows on.

    Raises:
        UsageError: there are no finished trajectories or some are lost, or files of other trajectories are there.
    """
    plan = convert_plan(run)
    check_parts(run, "ingest", "trajectories")
    n_rows = sum(int(manifest["rows_out"]) for manifest in read_manifests(run, "ingest").values())
    on_ray = uses_ray(runtime, is_large=n_rows > _LARGE_ROWS) if on_ray is None else on_ray
    return run_stage(
        run,
        plan,
        Work(_make_convert_unit),
        runtime,
        on_ray=on_ray,
        overwrite=overwrite,
        find_missing=_find_missing,
    )
