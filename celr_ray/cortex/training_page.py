"""A training to look at: the curves of all trials, and what held-out tasks say of each; one self-contained page."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

from celr_ray import storage

__all__ = ["write_training_page"]

_STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#222}"
    "table{border-collapse:collapse;width:100%}td,th{padding:.3rem .6rem;text-align:right;border-bottom:1px solid #ddd}"
    "td:first-child,th:first-child{text-align:left}tr.taken{background:#e8f3ee;font-weight:600}"
)

_SIGNS = {"alpha": "α", "expectile": "τ", "beta": "β"}
_CAUTION = (
    "<p>Values are raw rewards in budgets of a task: a success earns about 2, a failure about −{penalty:g}. The best "
    "of many estimates is too high by chance: these figures choose, they prove nothing. A gate on other tasks does.</p>"
)


def write_training_page(uri: str, record: Mapping[str, Any]) -> None:
    """Write the page; without plotly, the tables alone."""
    trials = record["trials"]
    caution = _CAUTION.format(penalty=record["failure_penalty"])
    title = f"Training of {html.escape(record['name'])}"
    parts = [
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{title}</title><style>{_STYLE}</style>",
        f"{_load_plotly()}<main>",
        f"<h1>{title}</h1><p>Taken: <b>{html.escape(_name(trials[record['taken']]))}</b>, policy "
        f"{record['content_hash']}. Why: {html.escape(record['reason'])}.</p>",
    ]
    if record["is_cold_start"]:
        parts.append("<p><b>Cold start:</b> too few logs to learn from; this policy is a clone of the heuristic.</p>")
    else:
        parts += ["<h2>On held-out tasks</h2>", caution, _plot_scores(record), _make_table(record)]
    parts += [_list_metrics(record["metrics"]), "<h2>Losses</h2>", *_plot_all_curves(trials), "</main></html>"]
    storage.write_bytes(uri, "\n".join(parts).encode())


def _name(trial: Mapping[str, Any]) -> str:
    inner = trial["trial"]
    what = "BC of the heuristic" if inner["of_heuristic"] else inner["algorithm"].upper()
    params = ", ".join(f"{_SIGNS[key]} {value:g}" for key, value in inner["params"].items())
    return " ".join(part for part in (what, params, f"seed {inner['seed']}") if part)


def _list_metrics(metrics: Mapping[str, float]) -> str:
    cells = "".join(f"<tr><td>{html.escape(name.replace('_', ' '))}<td>{value:.4g}" for name, value in metrics.items())
    return f"<h2>The policy that was taken</h2><table>{cells}</table>"


def _make_table(record: Mapping[str, Any]) -> str:
    rows = [
        _make_row(_name(trial), trial["score"], is_taken=n == record["taken"])
        for n, trial in enumerate(record["trials"])
    ]
    rows.append(_make_row("static heuristic", record["heuristic"], is_taken=False))
    head = "<tr><th>policy<th>doubly robust value<th>95 % interval<th>effective episodes<th>"
    return f"<table>{head}{''.join(rows)}</table>"


def _make_row(name: str, score: Mapping[str, Any], *, is_taken: bool) -> str:
    value, low, high = (_show(score[key]) for key in ("value", "ci_low", "ci_high"))
    cells = f"<td>{html.escape(name)}<td>{value}<td>{low} to {high}<td>{score['ess']:.1f}<td>"
    return f"<tr{' class=taken' if is_taken else ''}>{cells}{html.escape(score['problem'])}</tr>"


def _show(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _plot_scores(record: Mapping[str, Any]) -> str:
    scored = [(_name(trial), trial["score"]) for trial in record["trials"]] + [("heuristic", record["heuristic"])]
    shown = [(name, score) for name, score in scored if None not in (score["value"], score["ci_low"])]
    if not shown:
        return "<p>No trial can be evaluated on these logs.</p>"
    names, values = [name for name, _ in shown], [score["value"] for _, score in shown]
    above = [score["ci_high"] - score["value"] for _, score in shown]
    below = [score["value"] - score["ci_low"] for _, score in shown]
    error = {"type": "data", "symmetric": False, "array": above, "arrayminus": below}
    trace = {"type": "scatter", "mode": "markers", "x": values, "y": names, "error_x": error, "marker": {"size": 9}}
    return _draw([trace], "doubly robust value, raw reward", "", height=120 + 26 * len(names))


def _plot_all_curves(trials: Sequence[Mapping[str, Any]]) -> list[str]:
    """Draw one plot for each algorithm, since losses of different ones cannot be compared."""
    algorithms = dict.fromkeys(trial["trial"]["algorithm"] for trial in trials)
    return [
        f"<h3>{name.upper()}</h3>{_plot_curves([t for t in trials if t['trial']['algorithm'] == name])}"
        for name in algorithms
    ]


def _plot_curves(trials: Sequence[Mapping[str, Any]]) -> str:
    traces = [
        {
            "type": "scatter",
            "mode": "lines",
            "name": _name(trial),
            "x": [point["step"] for point in trial["curve"]],
            "y": [point["total"] for point in trial["curve"]],
        }
        for trial in trials
    ]
    return _draw(traces, "gradient steps", "total loss", height=320)


def _draw(traces: list[dict[str, Any]], x: str, y: str, *, height: int) -> str:
    try:
        import plotly.graph_objects as go
    except ImportError:
        return "<p>(plots need plotly: pip install 'celr-ray[report]')</p>"
    layout = {
        "template": "plotly_white",
        "height": height,
        "showlegend": len(traces) > 1,
        "margin": {"l": 60 if y else 200, "r": 20, "t": 10, "b": 50},
        "xaxis": {"title": {"text": x}},
        "yaxis": {"title": {"text": y}, "autorange": True if y else "reversed"},
    }
    page: str = go.Figure({"data": traces, "layout": layout}).to_html(
        full_html=False, include_plotlyjs=False, config={"displayModeBar": False}
    )
    return page


def _load_plotly() -> str:
    """Return the script that draws, to be put into the page once."""
    try:
        from plotly.offline import get_plotlyjs
    except ImportError:
        return ""
    return f"<script>{get_plotlyjs()}</script>"
