"""Plotly figures of the report, as JSON for the page. Only bins and counts go in, never raw rows.

Text colours, grid and background are set in the page, so that they follow its light or dark theme. Bar
colours are of Okabe and Ito's kind: distinguishable for colour-blind people, and readable on both themes.
"""

from __future__ import annotations

import html
import itertools
from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go

from celr_ray.report.data import Histogram, JudgeData, PairsData, TaskBar

BLUE, ORANGE, GREEN, GREY = "#2b83ba", "#d9791f", "#1f9e77", "#8b929b"
TYPE_COLOURS = {"dpo": BLUE, "self_reward": ORANGE, "spin": GREEN}
_OUTCOME_COLOURS = {"run succeeded": BLUE, "run failed": ORANGE, "outcome unknown": GREY}
_MAX_LABEL = 26


def make_layout(**settings: Any) -> go.Layout:
    """Return the layout that all figures share, with some settings of its own."""
    base = {
        "template": "none",
        "margin": {"l": 56, "r": 12, "t": 10, "b": 46},
        "bargap": 0.04,
        "showlegend": False,
        "font": {"size": 13},
        "hoverlabel": {"font": {"size": 13}},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
    }
    return go.Layout(**{**base, **settings})


def _score_axis(title: str) -> dict[str, Any]:
    return {"title": {"text": title}, "range": [-0.02, 1.02], "dtick": 0.2, "tickformat": ".1f", "fixedrange": True}


def _count_axis(title: str) -> dict[str, Any]:
    return {"title": {"text": title}, "rangemode": "tozero", "fixedrange": True, "automargin": True, "nticks": 6}


def _whole_ticks(top: float) -> dict[str, Any]:
    """Keep half pairs off an axis of few."""
    return {"dtick": 1} if top <= 6 else {}


def _bins(edges: Sequence[float]) -> tuple[list[float], list[float], list[str]]:
    """Return centres, widths and labels of bins."""
    limits = list(itertools.pairwise(edges))
    labels = [f"{low:.2f}–{high:.2f}" for low, high in limits]
    return [round((low + high) / 2, 6) for low, high in limits], [round(high - low, 6) for low, high in limits], labels


def plot_histogram(histogram: Histogram) -> dict[str, Any]:
    """Draw the counts of one score."""
    centres, widths, labels = _bins(histogram.edges)
    bar = go.Bar(
        x=centres,
        y=list(histogram.counts),
        width=widths,
        customdata=labels,
        marker={"color": BLUE},
        hovertemplate="score %{customdata}: %{y} runs<extra></extra>",
    )
    layout = make_layout(xaxis=_score_axis("score, 0 to 1"), yaxis=_count_axis("runs"))
    return to_json(go.Figure([bar], layout))


def plot_judge_scores(judge: JudgeData) -> dict[str, Any]:
    """Draw the judge's scores, stacked by what is known of the run's outcome."""
    centres, widths, labels = _bins(judge.histogram.edges)
    bars = [
        go.Bar(
            name=name,
            x=centres,
            y=list(counts),
            width=widths,
            customdata=labels,
            marker={"color": _OUTCOME_COLOURS[name]},
            hovertemplate="judge score %{customdata}: %{y} runs<extra>" + name + "</extra>",
        )
        for name, counts in judge.by_outcome
    ]
    layout = make_layout(
        barmode="stack",
        showlegend=True,
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0, "traceorder": "normal"},
        margin={"l": 56, "r": 12, "t": 34, "b": 46},
        xaxis=_score_axis("judge score, 0 to 1"),
        yaxis=_count_axis("runs"),
    )
    return to_json(go.Figure(bars, layout))


def plot_pairs_per_task(pairs: PairsData) -> dict[str, Any]:
    """Draw the pairs of the tasks that have most, and the mean of all others; the height follows the labels."""
    bars = [*pairs.top_tasks, *([pairs.rest] if pairs.rest else [])]
    prefix, labels = shorten_labels([bar.task_id for bar in pairs.top_tasks])
    if pairs.rest:
        labels.append("rest")
    kinds = [kind for kind, _ in pairs.by_type if any(kind in bar.counts for bar in bars)]
    traces = [_task_trace(kind, bars) for kind in kinds]
    longest = max(map(len, labels), default=0)
    title = f"task ({html.escape(prefix)}…)" if prefix else "task"
    ticks = {
        "tickmode": "array",
        "tickvals": list(range(len(bars))),
        "ticktext": [html.escape(text) for text in labels],
    }
    layout = make_layout(
        barmode="stack",
        bargap=0.25,
        showlegend=True,
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0, "traceorder": "normal"},
        margin={"l": 56, "r": 12, "t": 34, "b": 60},
        xaxis={
            "title": {"text": title, "standoff": 12},
            **ticks,
            "tickangle": 0 if longest <= 4 else -60,
            "tickfont": {"size": 12},
            "fixedrange": True,
            "automargin": True,
            "range": [-0.6, max(len(bars), 12) - 0.4],
        },
        height=260 if longest <= 4 else 270 + 6 * longest,
        yaxis={**_count_axis("pairs"), **_whole_ticks(max(sum(bar.counts.values()) for bar in bars))},
    )
    return to_json(go.Figure(traces, layout))


def _task_trace(kind: str, bars: Sequence[TaskBar]) -> go.Bar:
    return go.Bar(
        name=kind,
        x=list(range(len(bars))),
        y=[round(bar.counts.get(kind, 0), 3) for bar in bars],
        customdata=[html.escape(bar.task_id[:200]) for bar in bars],
        marker={"color": TYPE_COLOURS[kind]},
        hovertemplate="%{customdata}: %{y} pairs<extra>" + kind + "</extra>",
    )


def shorten_labels(task_ids: Sequence[str]) -> tuple[str, list[str]]:
    """Take off the folders that all task ids share, and cut the middle out of long labels.

    Returns:
        The shared beginning (ending in `/`, or empty), and one label a task.
    """
    prefix = ""
    if len(task_ids) > 1:
        parts = [task.split("/")[:-1] for task in task_ids]
        shared = next(
            (i for i, level in enumerate(zip(*parts, strict=False)) if len({*level}) > 1), min(map(len, parts))
        )
        prefix = "/".join(parts[0][:shared]) + "/" if shared else ""
    labels = [task[len(prefix) :] for task in task_ids]
    half = _MAX_LABEL // 2 - 1
    return prefix, [text if len(text) <= _MAX_LABEL else f"{text[:half]}…{text[-half:]}" for text in labels]


def to_json(figure: go.Figure) -> dict[str, Any]:
    """Return the figure as the page's script takes it."""
    found: dict[str, Any] = figure.to_plotly_json()
    return found
