"""Renders a gate's report into one HTML page that needs no network: verdict, criteria, cost-success plot, tables.

It shows what `gate_report.json` holds and computes nothing of its own.
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go

from celr_ray.report.plots import BLUE, GREEN, GREY, ORANGE, make_layout, to_json
from celr_ray.report.render import render_page

__all__ = ["plot_cost_success", "render_gate_page"]

_STYLES = {
    "candidate": (ORANGE, "diamond", 13),
    "champion": (BLUE, "square", 11),
    "anchor": (GREEN, "triangle-up", 11),
    "baseline": (GREY, "circle", 8),
    "ceiling": (GREY, "star-open", 10),
}
_ENDS = ("always-cheap", "always-strong")


def render_gate_page(document: Mapping[str, Any]) -> bytes:
    """Render the page.

    Args:
        document: contents of `gate_report.json`.

    Returns:
        UTF-8 bytes.
    """
    rows = document["comparison"]["rows"]
    figures = {"cost_success": plot_cost_success(rows)} if rows else {}
    return render_page("gate.html.j2", gate=document, figures=figures)


def plot_cost_success(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Draw success over cost with 95 % intervals, and the line that random mixes of cheap and strong lie on."""
    traces = [trace for role in _STYLES if (trace := _draw_role(role, rows)) is not None]
    mix = _draw_mix(rows)
    layout = make_layout(
        showlegend=True,
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0, "traceorder": "normal"},
        margin={"l": 64, "r": 24, "t": 34, "b": 52},
        xaxis={
            "title": {"text": "cost, US$ a task"},
            "range": [0, 1.2 * max((row["cost_usd"]["value"] for row in rows), default=1.0) or 1.0],
            "tickprefix": "$",
            "fixedrange": True,
            "automargin": True,
        },
        yaxis={"title": {"text": "success"}, "tickformat": ".0%", "fixedrange": True, "automargin": True},
        height=430,
    )
    return to_json(go.Figure([*([mix] if mix else []), *traces], layout))


def _draw_role(role: str, rows: Sequence[Mapping[str, Any]]) -> go.Scatter | None:
    """Draw the points of one role; those that coincide share a label."""
    own = [row for row in rows if row["role"] == role]
    if not own:
        return None
    colour, symbol, size = _STYLES[role]
    named: dict[tuple[float, float], list[str]] = {}
    for row in own:
        named.setdefault((row["cost_usd"]["value"], row["success"]["value"]), []).append(html.escape(row["name"]))
    points = [next(row for row in own if (row["cost_usd"]["value"], row["success"]["value"]) == at) for at in named]
    return go.Scatter(
        name=role,
        x=[point["cost_usd"]["value"] for point in points],
        y=[point["success"]["value"] for point in points],
        error_x=_error_bars(points, "cost_usd", colour),
        error_y=_error_bars(points, "success", colour),
        mode="markers" if role in ("champion", "anchor") else "markers+text",
        text=["<br>".join(names) for names in named.values()] if role != "candidate" else ["candidate"],
        textposition="top right" if role == "candidate" else _place_labels([x for x, _ in named]),
        textfont={"size": 11},
        marker={"color": colour, "symbol": symbol, "size": size},
        customdata=[", ".join(names) for names in named.values()],
        hovertemplate="%{customdata}: %{y:.1%} at $%{x:.4g}<extra>" + role + "</extra>",
    )


def _place_labels(costs: Sequence[float]) -> list[str]:
    """Return where labels stand: right of the cheaper half and of the dearest, else left, by turns above and below."""
    order = sorted(costs)
    middle = (order[0] + order[-1]) / 2
    left = [cost for cost in order[:-1] if cost > middle]
    sides = {cost: f"{('top', 'bottom')[number % 2]} left" for number, cost in enumerate(left)}
    return [sides.get(cost, "bottom right") for cost in costs]


def _error_bars(points: Sequence[Mapping[str, Any]], name: str, colour: str) -> dict[str, Any]:
    """Return the distances to the interval's ends; an end that is not known counts as none."""

    def distance(point: Mapping[str, Any], end: str) -> float:
        figure = point[name]
        return 0.0 if figure[end] is None else abs(figure[end] - figure["value"])

    return {
        "type": "data",
        "symmetric": False,
        "array": [distance(point, "ci_high") for point in points],
        "arrayminus": [distance(point, "ci_low") for point in points],
        "color": colour,
        "thickness": 1,
        "width": 3,
    }


def _draw_mix(rows: Sequence[Mapping[str, Any]]) -> go.Scatter | None:
    ends = [next((row for row in rows if row["name"] == name), None) for name in _ENDS]
    if None in ends:
        return None
    return go.Scatter(
        name="random mixes",
        x=[row["cost_usd"]["value"] for row in ends if row],
        y=[row["success"]["value"] for row in ends if row],
        mode="lines",
        line={"color": GREY, "dash": "dot", "width": 1.5},
        hoverinfo="skip",
    )
