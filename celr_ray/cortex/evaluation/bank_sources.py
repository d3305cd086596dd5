"""Importers of public results into outcome banks: RouteLLM's responses, independent runs in any log format, Reflexion.

None of these sources has all that a bank wants; what is assumed instead stands in the bank's notes, never only here.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa

from celr_ray import storage
from celr_ray.core.episodes import hash_text
from celr_ray.cortex.evaluation.bank import BankTier
from celr_ray.cortex.evaluation.bank_rows import (
    CHARACTERS_PER_TOKEN,
    BankParts,
    TaskFacts,
    estimate_tokens,
    make_attempt,
)
from celr_ray.errors import ConfigError, InputError, RecordError
from celr_ray.logs.base import ParsedRun, SourceContext
from celr_ray.logs.framing import FileRange, LineCounter, iter_values
from celr_ray.logs.planning import find_files, take_task_definitions
from celr_ray.logs.registry import RecordReader
from celr_ray.schema import QuarantineRow

__all__ = ["PUBLISHED_PRICES", "import_reflexion", "import_routellm", "import_runs", "reject_value"]

Prices = Mapping[str, tuple[float, float]]

PUBLISHED_PRICES: Prices = {
    "mistralai/Mixtral-8x7B-Instruct-v0.1": (0.60, 0.60),
    "gpt-4-1106-preview": (10.0, 30.0),
}
"""US$ per million prompt and generated tokens: Together AI's list price of Mixtral-8x7B-Instruct of January 2024, and
OpenAI's of GPT-4 Turbo of November 2023."""

_RESPONSE = "_response"
_MAX_RECORD_BYTES = 256 * 2**20
_MAX_RAW = 64 * 1024


def import_routellm(uris: Sequence[str], prices: Prices | None = None) -> BankParts:
    """Read RouteLLM's evaluation responses: a row for each question, `NAME` = the model NAME is right.

    Each model is a tier with one fresh attempt; the cheaper one comes first. Tokens are estimated from the texts (four
    characters each): the question, and the response where the file has it, else one token (a letter). The few-shot
    examples that the original prompts may have had are not in the files and not counted. Times are not recorded: 0.

    Args:
        uris: Parquet files.
        prices: US$ per million prompt and generated tokens, by model; None = `PUBLISHED_PRICES`.

    Raises:
        InputError: a file cannot be read or has other columns.
        ConfigError: the price of a model is not known.
    """
    prices = {**PUBLISHED_PRICES, **(prices or {})}
    parts = BankParts(tiers=[])
    for uri in uris:
        table = storage.read_parquet(uri)
        models = [field.name for field in table.schema if pa.types.is_boolean(field.type)]
        if "prompt" not in table.column_names or not models:
            raise InputError(
                f"{uri} is not RouteLLM's file of responses: it must have the columns prompt and NAME (true or false) "
                f"for each model NAME, has {', '.join(table.column_names)}"
            )
        _check_prices(models, prices)
        name = uri.rsplit("/", 1)[-1].removesuffix(".parquet").removesuffix("_responses")
        for index, row in enumerate(table.to_pylist()):
            parts.rows_in += 1
            _read_question(parts, name, index, row, models, prices)
        known = {tier.name for tier in parts.tiers}
        parts.tiers += [BankTier(m, m, *prices[m]) for m in models if m not in known]
    parts.tiers.sort(key=lambda tier: tier.output_usd_per_mtok or 0.0)
    parts.notes = {
        "origin": "lm-sys/RouteLLM, evaluation responses",
        "licence": "Apache-2.0",
        "prices": "published list prices per token; see tiers",
        "tokens": f"estimated: {CHARACTERS_PER_TOKEN} characters a token, of the question and, where the file has it, "
        "of the response; else one token. Few-shot examples are not counted",
        "seconds": "not recorded: 0",
    }
    return parts


def _check_prices(models: Sequence[str], prices: Prices) -> None:
    unknown = [model for model in models if model not in prices]
    if unknown:
        raise ConfigError(
            f"no price is known of {unknown[0]}: give --bank.prices '{{\"{unknown[0]}\": [INPUT, OUTPUT]}}', US$ per "
            "million tokens"
        )


def _read_question(
    parts: BankParts, name: str, index: int, row: Mapping[str, Any], models: Sequence[str], prices: Prices
) -> None:
    if not row["prompt"] or any(row[model] is None for model in models):
        parts.exclude("the question's text or an outcome is missing")
        return
    task_id = f"routellm/{name}/{index:0{4 if name == 'gsm8k' else 5}d}"
    parts.tasks[task_id] = TaskFacts(domain=name, level=row.get("subject"), text=row["prompt"])
    for model in models:
        response = row.get(f"{model}{_RESPONSE}")
        prompt_tokens, output_tokens = estimate_tokens(row["prompt"]), estimate_tokens(response or "A")
        cost = (prompt_tokens * prices[model][0] + output_tokens * prices[model][1]) / 1e6
        key = {} if response is None else {"answer_key": hash_text(response.strip())}
        if response is not None:
            parts.answers[len(parts.attempts)] = response
        parts.attempts.append(
            make_attempt(
                task_id,
                model,
                success=row[model],
                cost_usd=cost,
                source="routellm",
                prompt_tokens=prompt_tokens,
                output_tokens=output_tokens,
                **key,
            )
        )


def reject_value(
    uri: str, offset: int, line: int, index: int | None, reason: str, raw: bytes | memoryview
) -> QuarantineRow:
    """Return the quarantine row of a record, its text cut to 64 KiB."""
    text = bytes(raw[:_MAX_RAW]).decode("utf-8", "backslashreplace")
    return QuarantineRow(file=uri, offset=offset, line=line, index=index, reason=reason, raw=text, raw_bytes=len(raw))


def _read_runs(uris: Sequence[str], parts: BankParts) -> Iterator[tuple[ParsedRun, str, bytes]]:
    """Yield every run of log files in any known format, with its file's URI and the record's bytes."""
    files, texts, _ = take_task_definitions(find_files(uris), _MAX_RECORD_BYTES)
    for file in files:
        reader = RecordReader("auto")
        context = SourceContext(file.uri.rsplit("/", 1)[-1], texts)
        counter = LineCounter()
        for value in iter_values(FileRange(file.uri), _MAX_RECORD_BYTES, counter):
            try:
                items = [] if value.damage else reader.read(value.raw, context)
                error = value.damage
            except RecordError as problem:
                items, error = [], str(problem)
            parts.rows_in += max(len(items), 1)
            if error is not None:
                parts.rejected.append(reject_value(file.uri, value.offset, counter.line, None, error, value.raw))
            for _, item in items:
                if isinstance(item.result, RecordError):
                    at = value.offset
                    parts.rejected.append(
                        reject_value(file.uri, at, counter.line, item.position, str(item.result), item.raw)
                    )
                else:
                    yield item.result, file.uri, bytes(item.raw)


def import_runs(
    uris: Sequence[str], models: Sequence[str] | None = None, *, trial_usd: float | None = None
) -> BankParts:
    """Read logs of independent runs, in any format that `celr-ray score` reads; each run is one fresh attempt.

    tau2-bench: the agent's real cost; the simulated user's is left out. tau-bench has no costs: give `trial_usd`.
    Runs whose model is not in the log count as of the file's name.

    Args:
        uris: files, folders or globs.
        models: the tiers, weak to strong; None = by mean cost, then by success. Runs of other models are left out.
        trial_usd: what a run without a cost of its own counts, US$; None = such runs are refused.

    Raises:
        InputError: no file, no usable run, or runs without costs and no `trial_usd`.
    """
    parts = BankParts(tiers=[])
    seen: dict[tuple[str, str], dict[int, int]] = defaultdict(dict)
    n_unpriced = 0
    for run, uri, raw in _read_runs(uris, parts):
        tier = run.model or uri.rsplit("/", 1)[-1].split(".", 1)[0]
        key = hash_text(raw.decode("utf-8", "backslashreplace"))
        earlier = seen[run.task_id, tier]
        if reason := _why_not(run, tier, models):
            parts.exclude(reason)
        elif key in earlier:
            parts.duplicates += 1
        elif run.cost_usd is None and trial_usd is None:
            n_unpriced += 1
        else:
            _add_run(parts, run, tier, key, earlier.setdefault(key, len(earlier)), trial_usd)
    if n_unpriced:
        raise InputError(
            f"{n_unpriced} runs have no cost in the logs: give --bank.trial-usd, what such a run counts (with 1, costs "
            "are numbers of trials)"
        )
    if not parts.attempts:
        raise InputError(f"no run with a known outcome in {', '.join(uris)}")
    parts.tiers = [BankTier(name, name) for name in models or _order_tiers(parts.attempts)]
    parts.notes = {
        "attempts": "independent runs: every one counts as fresh",
        "costs": "as recorded" if trial_usd is None else f"as recorded; US$ {trial_usd:g} for a run without one",
    }
    return parts


def _why_not(run: ParsedRun, tier: str, models: Sequence[str] | None) -> str | None:
    if models is not None and tier not in models:
        return "the run is of a model that is none of the tiers"
    return "the run's outcome is not known" if run.success is None else None


def _add_run(parts: BankParts, run: ParsedRun, tier: str, key: int, number: int, trial_usd: float | None) -> None:
    cost = trial_usd if run.cost_usd is None else run.cost_usd
    facts = parts.tasks.setdefault(run.task_id, TaskFacts(domain=run.domain, text=run.prompt))
    facts.text = facts.text or run.prompt
    reward = run.reward if run.reward is not None and 0 <= run.reward <= 1 else float(bool(run.success))
    parts.attempts.append(
        make_attempt(
            run.task_id,
            tier,
            success=bool(run.success),
            cost_usd=float(cost or 0.0),
            source="runs",
            correctness=reward,
            seconds=run.duration_s or 0.0,
            attempt=number,
            answer_key=key,
        )
    )


def _order_tiers(attempts: Sequence[Mapping[str, Any]]) -> list[str]:
    """Order models by mean cost, then by success."""
    found: dict[str, list[tuple[float, bool]]] = defaultdict(list)
    for row in attempts:
        found[row["tier"]].append((row["cost_usd"], row["success"]))
    return sorted(found, key=lambda name: (*np.mean(np.array(found[name], float), axis=0), name))


def import_reflexion(uris: Sequence[str], *, trial_usd: float = 1.0) -> BankParts:
    """Read trials of Reflexion: the first of a chain is fresh, each later one reflects on the failures before it.

    A chain ends with its first success; what is logged after it repeats it. In runs without reflection (their name
    holds "base") later trials stand there only because the earlier ones failed and are no fair sample of fresh
    attempts: only the first counts. The source has neither costs nor times.

    Args:
        uris: files or folders; a record's run is its field `_run`, else the folder of its file.
        trial_usd: what a trial counts, US$; with 1, costs are numbers of trials.

    Raises:
        InputError: no file, or no trial in it.
    """
    parts = BankParts(tiers=[BankTier("agent", "agent of the Reflexion paper")])
    chains: dict[tuple[str, str], dict[int, bool]] = defaultdict(dict)
    for file in find_files(uris):
        counter = LineCounter()
        for value in iter_values(FileRange(file.uri), _MAX_RECORD_BYTES, counter):
            _read_trial(parts, chains, file.uri, value, counter.line)
    for (task_id, run), trials in chains.items():
        parts.tasks[task_id] = TaskFacts(domain=task_id.split("/")[1])
        _add_chain(parts, task_id, run, trials, trial_usd)
    if not parts.attempts:
        raise InputError(f"no trial of Reflexion in {', '.join(uris)}")
    parts.notes = {
        "origin": "noahshinn/reflexion, trials of environments",
        "licence": "MIT",
        "costs": f"not recorded: each trial counts US$ {trial_usd:g}",
        "seconds": "not recorded: 0",
        "attempts": "a reflective attempt was made from the failures before it, which the environment had shown",
    }
    return parts


def _read_trial(parts: BankParts, chains: Any, uri: str, value: Any, line: int) -> None:
    """Put a trial into its chain."""
    parts.rows_in += 1
    reader = RecordReader("reflexion")
    try:
        if value.damage is not None:
            raise RecordError(value.damage)
        ((_, item),) = reader.read(value.raw, SourceContext(uri.rsplit("/", 1)[-1]))
        if isinstance(item.result, RecordError):
            raise item.result
        record = msgspec.json.decode(value.raw)
    except (RecordError, ValueError) as error:
        parts.rejected.append(reject_value(uri, value.offset, line, None, str(error), value.raw))
        return
    run = str(record.get("_run") or uri.rsplit("/", 2)[-2])
    trial = record.get("trial")
    trials = chains[item.result.task_id, run]
    number = len(trials) if trial is None else int(trial)
    if number in trials:
        parts.duplicates += 1
    else:
        trials[number] = bool(item.result.success)


def _add_chain(parts: BankParts, task_id: str, run: str, trials: Mapping[int, bool], trial_usd: float) -> None:
    is_base = "base" in run
    has_succeeded = False
    for depth, number in enumerate(sorted(trials)):
        if has_succeeded:
            parts.exclude("the trial repeats an earlier success")
        elif number != depth:
            parts.exclude("trials before it are missing")
        elif is_base and depth:
            parts.exclude("a retry without reflection, recorded only because the trial before it failed")
        else:
            made_from = {"kind": "reflective", "depth": depth, "prior_success": False, "prior_refuted": True}
            parts.attempts.append(
                make_attempt(
                    task_id,
                    "agent",
                    success=trials[number],
                    cost_usd=trial_usd,
                    source=run,
                    attempt=depth,
                    **(made_from if depth else {}),
                )
            )
        has_succeeded |= trials[number]
