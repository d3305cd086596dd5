"""The peers' side of the benchmarks: DuckDB, Polars and `datasets` doing the same jobs, each as its manual advises.

Run in the peers' environment by benchmarks/ingest.py and benchmarks/pairing.py; imports nothing of celr_ray. One thread
each (CPU seconds are compared, and threads that share a core inflate them), zstd level 1 where it can be chosen.

What the peers do not do, in ingest: content hashes as ids (they get none), file and byte offset of each row, order by
task bucket, quarantine with reasons, bounds of values, recognition of formats, atomic commit and resume. In pairing:
the cut where two runs part, margins, ties by id in all cases, the reasons why a task has no pair, duplicates.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from measure import timed

_WEIGHTS = {"success": 0.6, "efficiency": 0.15, "cost": 0.15, "completion": 0.1}

_DUCKDB_INGEST = """
COPY (
  WITH logs AS (
    SELECT 'celr/' || task_id AS task_id, filename AS source_uri, original_request AS prompt, final_status AS status,
      CASE final_status WHEN 'SUCCESS' THEN true WHEN 'FAILED' THEN false END AS success,
      total_cost AS cost_usd, budget_limit_usd, len(plan) AS n_steps,
      len(list_filter(plan, lambda s: s.status = 'COMPLETED')) AS n_steps_completed,
      list_sum(list_transform(plan, lambda s: s.retry_count)) AS n_retries,
      array_to_string(list_transform(plan, lambda s: s.description || chr(10) || chr(10) || s.output),
        chr(10) || chr(10)) AS answer
    FROM read_json('{logs}/*.jsonl*', format = 'newline_delimited', filename = true, ignore_errors = true,
      columns = {{task_id: 'VARCHAR', original_request: 'VARCHAR', final_status: 'VARCHAR', total_cost: 'DOUBLE',
        budget_limit_usd: 'DOUBLE', plan: 'STRUCT(description VARCHAR, status VARCHAR, output VARCHAR,
        retry_count BIGINT)[]'}})
  ), scored AS (
    SELECT *, success::DOUBLE AS success_score, 1 / (1 + n_retries) AS efficiency_score,
      greatest(0, least(1, 1 - cost_usd / budget_limit_usd)) AS cost_score,
      n_steps_completed / n_steps AS completion_score
    FROM logs
  )
  SELECT * EXCLUDE (answer),
    [{{'role': 'user', 'content': prompt, 'name': NULL::VARCHAR, 'tool_call_id': NULL::VARCHAR,
       'tool_calls': NULL::VARCHAR}},
     {{'role': 'assistant', 'content': answer, 'name': NULL::VARCHAR, 'tool_call_id': NULL::VARCHAR,
       'tool_calls': NULL::VARCHAR}}] AS messages,
    0.6 * success_score + 0.15 * efficiency_score + 0.15 * cost_score + 0.1 * completion_score AS composite_score
  FROM scored
) TO '{out}/out.parquet' (FORMAT parquet, COMPRESSION zstd, COMPRESSION_LEVEL 1)
"""

_DUCKDB_PAIRING = """
CREATE TEMP TABLE light AS
  SELECT task_id, trajectory_id, success, composite_score,
    row_number() OVER (PARTITION BY task_id ORDER BY success_score DESC, composite_score DESC, trajectory_id) AS best,
    row_number() OVER (PARTITION BY task_id ORDER BY success_score, composite_score, trajectory_id) AS worst
  FROM read_parquet('{logs}/*.parquet') WHERE success IS NOT NULL;
CREATE TEMP TABLE tasks AS
  SELECT task_id, count(*) AS n_runs, count(*) FILTER (success) AS n_success, count(*) FILTER (NOT success) AS n_failure
  FROM light GROUP BY task_id;
COPY tasks TO '{out}/tasks.parquet' (FORMAT parquet, COMPRESSION zstd, COMPRESSION_LEVEL 1);
CREATE TEMP TABLE chosen AS
  SELECT task_id, b.trajectory_id AS chosen_id, w.trajectory_id AS rejected_id, b.composite_score AS chosen_score,
    w.composite_score AS rejected_score
  FROM light b JOIN light w USING (task_id) JOIN tasks USING (task_id)
  WHERE b.best = 1 AND w.worst = 1 AND b.trajectory_id <> w.trajectory_id
    AND (n_success > 0 AND n_failure > 0 OR n_failure = 0 AND b.composite_score - w.composite_score >= 0.05);
CREATE TEMP TABLE unpaired AS
  SELECT trajectory_id FROM light JOIN tasks USING (task_id)
  WHERE n_success = 0 OR n_failure = 0
  QUALIFY row_number() OVER (PARTITION BY task_id ORDER BY trajectory_id) <= 16;
CREATE TEMP TABLE texts AS
  SELECT trajectory_id, prompt, messages FROM read_parquet('{logs}/*.parquet')
  WHERE trajectory_id IN (SELECT chosen_id FROM chosen UNION ALL SELECT rejected_id FROM chosen
    UNION ALL SELECT trajectory_id FROM unpaired);
COPY (
  SELECT task_id, [c.messages[1]] AS prompt, c.messages[2:] AS chosen, r.messages[2:] AS rejected, chosen_id,
    rejected_id, chosen_score, rejected_score
  FROM chosen JOIN texts c ON c.trajectory_id = chosen_id JOIN texts r ON r.trajectory_id = rejected_id
) TO '{out}/pairs.parquet' (FORMAT parquet, COMPRESSION zstd, COMPRESSION_LEVEL 1);
COPY (
  SELECT trajectory_id, task_id, [messages[1]] AS prompt, messages[2:] AS completion, success AS label
  FROM unpaired JOIN light USING (trajectory_id) JOIN texts USING (trajectory_id)
) TO '{out}/unpaired.parquet' (FORMAT parquet, COMPRESSION zstd, COMPRESSION_LEVEL 1);
"""


def _connect() -> Any:
    import duckdb

    connection = duckdb.connect()
    connection.execute("SET threads = 1")
    return connection


def ingest_duckdb(logs: Path, out: Path) -> dict[str, Any]:
    """`ignore_errors`, without which the first damaged line ends the job; damaged rows come out as rows of nulls."""
    connection = _connect()
    connection.execute(_DUCKDB_INGEST.format(logs=logs, out=out))
    return {"rows_out": connection.execute(f"SELECT count(*) FROM '{out}/out.parquet'").fetchall()[0][0]}


def pair_duckdb(logs: Path, out: Path) -> dict[str, Any]:
    """Window functions over the light columns, then the texts of the chosen rows only."""
    connection = _connect()
    for statement in _DUCKDB_PAIRING.format(logs=logs, out=out).split(";\n"):
        if statement.strip():
            connection.execute(statement)
    count = "SELECT (SELECT count(*) FROM '{0}/pairs.parquet'), (SELECT count(*) FROM '{0}/unpaired.parquet')"
    pairs, unpaired = connection.execute(count.format(out)).fetchall()[0]
    return {"pairs": pairs, "kto_rows": unpaired}


def ingest_polars(logs: Path, out: Path) -> dict[str, Any]:
    """Lazy scan, streaming sink. It needs undamaged logs: one line of wrong encoding fails the job."""
    import polars as pl

    step = pl.Struct({"description": pl.String, "status": pl.String, "output": pl.String, "retry_count": pl.Int64})
    schema = {
        "task_id": pl.String,
        "original_request": pl.String,
        "final_status": pl.String,
        "total_cost": pl.Float64,
        "budget_limit_usd": pl.Float64,
        "plan": pl.List(step),
    }
    element, success = pl.element().struct.field, pl.col("final_status")
    text = pl.concat_str(element("description"), element("output"), separator="\n\n")
    empty = [pl.lit(None, pl.String).alias(name) for name in ("name", "tool_call_id", "tool_calls")]

    def message(role: str, content: Any) -> Any:
        return pl.struct(pl.lit(role).alias("role"), content.alias("content"), *empty)

    plan = (
        pl.scan_ndjson(f"{logs}/*.jsonl*", schema=schema, ignore_errors=True, include_file_paths="source_uri")
        .with_columns(
            ("celr/" + pl.col("task_id")).alias("task_id"),
            pl.when(success == "SUCCESS").then(True).when(success == "FAILED").then(False).alias("success"),
            pl.col("plan").list.len().alias("n_steps"),
            pl.col("plan").list.eval(element("status") == "COMPLETED").list.sum().alias("n_steps_completed"),
            pl.col("plan").list.eval(element("retry_count")).list.sum().alias("n_retries"),
            pl.col("plan").list.eval(text).list.join("\n\n").alias("answer"),
        )
        .with_columns(
            pl.col("success").cast(pl.Float64).alias("success_score"),
            (1 / (1 + pl.col("n_retries"))).alias("efficiency_score"),
            (1 - pl.col("total_cost") / pl.col("budget_limit_usd")).clip(0, 1).alias("cost_score"),
            (pl.col("n_steps_completed") / pl.col("n_steps")).alias("completion_score"),
            pl.concat_list(message("user", pl.col("original_request")), message("assistant", pl.col("answer"))).alias(
                "messages"
            ),
        )
        .with_columns(sum(w * pl.col(f"{name}_score") for name, w in _WEIGHTS.items()).alias("composite_score"))
        .drop("plan", "answer")
        .rename({"original_request": "prompt", "final_status": "status", "total_cost": "cost_usd"})
    )
    plan.sink_parquet(out / "out.parquet", compression="zstd", compression_level=1)
    return {"rows_out": pl.scan_parquet(out / "out.parquet").select(pl.len()).collect().item()}


def pair_polars(logs: Path, out: Path) -> dict[str, Any]:
    """Sort and group the light columns, then the texts of the chosen rows only, by semi-join."""
    import polars as pl

    files = f"{logs}/*.parquet"
    light = (
        pl.scan_parquet(files)
        .select("task_id", "trajectory_id", "success", "success_score", "composite_score")
        .filter(pl.col("success").is_not_null())
        .collect()
        .sort("task_id", "success_score", "composite_score", "trajectory_id")
    )
    tasks = light.group_by("task_id", maintain_order=True).agg(
        pl.len().alias("n_runs"),
        pl.col("success").sum().alias("n_success"),
        (~pl.col("success")).sum().alias("n_failure"),
        pl.col("trajectory_id").last().alias("chosen_id"),
        pl.col("trajectory_id").first().alias("rejected_id"),
        pl.col("composite_score").last().alias("chosen_score"),
        pl.col("composite_score").first().alias("rejected_score"),
    )
    is_mixed = (pl.col("n_success") > 0) & (pl.col("n_failure") > 0)
    is_apart = (pl.col("n_failure") == 0) & (pl.col("chosen_score") - pl.col("rejected_score") >= 0.05)
    pairs = tasks.filter((pl.col("n_runs") > 1) & (is_mixed | is_apart))
    unpaired = light.join(tasks.filter(~is_mixed).select("task_id"), on="task_id", how="semi")
    unpaired = unpaired.sort("task_id", "trajectory_id").filter(pl.int_range(pl.len()).over("task_id") < 16)
    wanted = pl.concat([pairs["chosen_id"], pairs["rejected_id"], unpaired["trajectory_id"]]).unique()
    texts = (
        pl.scan_parquet(files)
        .select("trajectory_id", "messages")
        .join(wanted.to_frame("trajectory_id").lazy(), on="trajectory_id", how="semi")
        .collect(engine="streaming")
    )
    first, rest = pl.col("messages").list.slice(0, 1), pl.col("messages").list.slice(1)
    chosen = texts.select(chosen_id="trajectory_id", prompt=first, chosen=rest)
    rejected = texts.select(rejected_id="trajectory_id", rejected=rest)
    completions = texts.select("trajectory_id", prompt=first, completion=rest)
    for name, table in (
        ("tasks", tasks),
        ("pairs", pairs.join(chosen, on="chosen_id").join(rejected, on="rejected_id")),
        ("unpaired", unpaired.join(completions, on="trajectory_id")),
    ):
        table.write_parquet(out / f"{name}.parquet", compression="zstd", compression_level=1)
    return {"pairs": len(pairs), "kto_rows": len(unpaired)}


def ingest_datasets(logs: Path, out: Path) -> dict[str, Any]:
    """load_dataset, batched map, to_parquet. It needs undamaged logs; its writer chooses the compression itself."""
    from datasets import disable_progress_bars, load_dataset

    disable_progress_bars()

    def score(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        columns = zip(batch["plan"], batch["final_status"], batch["total_cost"], batch["budget_limit_usd"], strict=True)
        scores: dict[str, list[float]] = {f"{name}_score": [] for name in _WEIGHTS}
        for plan, status, cost, budget in columns:
            scores["success_score"].append(float(status == "SUCCESS"))
            scores["efficiency_score"].append(1 / (1 + sum(step["retry_count"] for step in plan)))
            scores["cost_score"].append(min(max(1 - cost / budget, 0), 1))
            scores["completion_score"].append(sum(step["status"] == "COMPLETED" for step in plan) / len(plan))
        answers = ["\n\n".join(f"{step['description']}\n\n{step['output']}" for step in plan) for plan in batch["plan"]]
        empty = {"name": None, "tool_call_id": None, "tool_calls": None}
        return {
            "messages": [
                [{"role": "user", "content": request, **empty}, {"role": "assistant", "content": answer, **empty}]
                for request, answer in zip(batch["original_request"], answers, strict=True)
            ],
            **scores,
            "composite_score": [
                sum(w * s for w, s in zip(_WEIGHTS.values(), row, strict=True))
                for row in zip(*scores.values(), strict=True)
            ],
        }

    files = [str(path) for path in sorted(logs.glob("*.jsonl*"))]
    data = load_dataset("json", data_files=files, split="train", cache_dir=str(out / "cache"))
    data = data.map(score, batched=True, remove_columns=["plan", "execution_log"], load_from_cache_file=False)
    data.to_parquet(str(out / "out.parquet"))
    return {"rows_out": len(data)}


JOBS = {
    ("ingest", "duckdb"): ingest_duckdb,
    ("ingest", "polars"): ingest_polars,
    ("ingest", "datasets"): ingest_datasets,
    ("pair", "duckdb"): pair_duckdb,
    ("pair", "polars"): pair_polars,
}


def main() -> None:
    """Run one peer: first on a small input, so that its imports are not counted, then measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("job", choices=["ingest", "pair"])
    parser.add_argument("peer", choices=["duckdb", "polars", "datasets"])
    parser.add_argument("--input", type=Path, required=True, help="folder of logs (ingest) or trajectories (pair)")
    parser.add_argument("--warm", type=Path, required=True, help="small folder of the same kind")
    parser.add_argument("--out", type=Path, required=True, help="empty folder")
    options = parser.parse_args()
    os.environ.setdefault("POLARS_MAX_THREADS", "1")
    run = JOBS[options.job, options.peer]
    for name in ("warm", "timed"):
        (options.out / name).mkdir()
    run(options.warm, options.out / "warm")
    timed(lambda: run(options.input, options.out / "timed"))


if __name__ == "__main__":
    main()
