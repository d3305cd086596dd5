"""The counts from logs to exports: the sentence to quote, the boxes of the flow picture, the sums that must hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from celr_ray.report.data import ExportData, FlowCheck, FlowStep, JudgeData, PairsData, StageState


def plural(n: int, noun: str) -> str:
    """Return `1 run`, `2 runs`, `1,000 runs`."""
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


def make_verdict(
    stages: Sequence[StageState],
    n_runs: int,
    n_tasks: int,
    n_duplicates: int,
    n_rejected: int,
    pairs: PairsData | None,
) -> str:
    """Write the one sentence that a person can quote."""
    if not any(stage.is_started for stage in stages):
        return "Nothing has run yet: this folder holds no finished stage."
    result = plural(pairs.n_pairs, "pair") if pairs is not None else "no pairs built yet"
    parts = [f"{plural(n_runs, 'run')} of {plural(n_tasks, 'task')} → {result}", f"{n_rejected:,} rejected"]
    if n_duplicates:
        parts.append(plural(n_duplicates, "exact duplicate") + " left out")
    unfinished = [stage for stage in stages if stage.is_started and not stage.is_finished]
    if unfinished:
        states = ", ".join(f"{stage.name} {stage.n_done} of {stage.n_units} units" for stage in unfinished)
        parts.append(f"unfinished: {states}")
    return "; ".join(parts)


def make_flow(
    state: Mapping[str, StageState],
    n_runs: int,
    n_duplicates: int,
    judge: JudgeData | None,
    pairs: PairsData | None,
    exports: ExportData | None,
) -> list[FlowStep]:
    """Make the five boxes: records, trajectories, judged, pairs, exports; a count is None if its stage never ran."""
    ingest = state["ingest"].counts if state["ingest"].is_started else None
    steps = [
        FlowStep("records in", None, "ingest has not run")
        if ingest is None
        else FlowStep(
            "records in", ingest.get("rows_in", 0), "found in the logs", ingest.get("rejected", 0), "rejected"
        ),
        FlowStep("trajectories", None, "ingest has not run")
        if ingest is None
        else FlowStep(
            "trajectories", ingest.get("rows_out", 0), plural(n_runs, "distinct run"), n_duplicates, "exact duplicates"
        ),
    ]
    if judge is None:
        steps.append(FlowStep("judged", None, "no judge was run"))
    else:
        n_ok = dict(judge.statuses).get("ok", 0)
        detail = f"of {plural(judge.n_rows, 'run')}"
        steps.append(FlowStep("judged", n_ok, detail, judge.n_rows - n_ok, "without a verdict"))
    if pairs is None:
        steps.append(FlowStep("pairs", None, "no pairs built yet"))
    else:
        n_none = pairs.n_tasks - pairs.n_tasks_with_pair
        detail = f"from {plural(pairs.n_tasks_with_pair, 'task')}"
        steps.append(FlowStep("pairs", pairs.n_pairs, detail, n_none, "tasks without a pair"))
    if exports is None:
        steps.append(FlowStep("exported rows", None, "nothing exported yet"))
    else:
        n_rows = sum(data_set.n_rows for data_set in exports.data_sets)
        detail = f"in {plural(len(exports.data_sets), 'data set')}"
        steps.append(
            FlowStep("exported rows", n_rows, detail, state["export"].counts.get("rejected", 0), "in no format")
        )
    return steps


def make_checks(
    state: Mapping[str, StageState], n_runs: int, n_duplicates: int, judge: JudgeData | None, n_stored: int
) -> list[FlowCheck]:
    """List the sums that show that no row was lost in silence."""
    checks = []
    ingest = state["ingest"].counts
    if "rows_in" in ingest:
        rows_in, rows_out, rejected = (ingest.get(key, 0) for key in ("rows_in", "rows_out", "rejected"))
        text = f"{plural(rows_in, 'record')} in = {rows_out:,} trajectories + {rejected:,} rejected"
        checks.append(FlowCheck(text, rows_in == rows_out + rejected))
        text = f"{rows_out:,} trajectories = {plural(n_runs, 'distinct run')} + {n_duplicates:,} exact duplicates"
        checks.append(FlowCheck(text, rows_out == n_runs + n_duplicates == n_stored))
    if judge is not None:
        counted = state["judge"].counts
        counts = " + ".join(f"{n:,} {name}" for name, n in judge.statuses)
        holds = all(counted.get(f"status.{name}", 0) == n for name, n in judge.statuses)
        checks.append(FlowCheck(f"judge: {judge.n_rows:,} judgments = {counts}", holds))
    for name in ("judge", "pair"):
        counts_of = state[name].counts
        if "rows_in" in counts_of:
            rows_in, rows_out, doubles = (counts_of.get(key, 0) for key in ("rows_in", "rows_out", "duplicates"))
            rejected = counts_of.get("rejected", 0)
            extra = f" + {rejected:,} rejected" if rejected else ""
            text = f"{name}: {rows_in:,} trajectories in = {rows_out:,} runs + {doubles:,} duplicates{extra}"
            checks.append(FlowCheck(text, rows_in == rows_out + doubles + rejected))
    export = state["export"].counts
    if "rows_in" in export:
        rows_in, rows_out, rejected = (export.get(key, 0) for key in ("rows_in", "rows_out", "rejected"))
        text = f"export: {rows_in:,} pairs and unpaired rows in = {rows_out:,} written + {rejected:,} in no format"
        checks.append(FlowCheck(text, rows_in == rows_out + rejected))
    return checks
