"""Renders `RunData` into one HTML page that needs no network.

What stands in logs must never run. Three layers see to that: jinja2 escapes every value; figures are JSON data blocks
with `<`, `>` and `&` escaped; and the page's own policy lets only two scripts run, named by their hashes.
Nothing in the page depends on the clock or on chance: the same data gives the same bytes.
"""

from __future__ import annotations

import base64
import hashlib
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from celr_ray.errors import CelrRayError
from celr_ray.report.data import Histogram, RunData
from celr_ray.report.flow import plural
from celr_ray.report.plots import plot_histogram, plot_judge_scores, plot_pairs_per_task
from celr_ray.report.statistics import Estimate

MISSING = "unknown"


def render_report(data: RunData) -> bytes:
    """Render the page.

    Returns:
        UTF-8 bytes; what UTF-8 cannot hold (lone surrogates of a damaged log) becomes `?`.
    """
    return render_page("run.html.j2", run=data, figures=make_figures(data))


def render_page(template: str, **values: Any) -> bytes:
    """Render one of this folder's pages with its two scripts.

    Args:
        template: file name.
        values: what the template shows.

    Returns:
        UTF-8 bytes; what UTF-8 cannot hold (lone surrogates of a damaged log) becomes `?`.
    """
    environment = _make_environment()
    plotly_script, page_script = _make_script(get_plotlyjs()), _make_script(_read_source(environment, "script.html.j2"))
    page = environment.get_template(template).render(
        **values,
        plotly_script=plotly_script,
        page_script=page_script,
        script_hashes=[_hash_script(plotly_script), _hash_script(page_script)],
    )
    return page.encode("utf-8", errors="replace")


def make_figures(data: RunData) -> dict[str, dict[str, Any]]:
    """Draw the figures that have anything to show, by the id of their place in the page."""
    figures = {histogram.name: plot_histogram(histogram) for histogram in data.scores if histogram.n}
    if data.judge is not None and data.judge.histogram.n:
        figures["judge_score"] = plot_judge_scores(data.judge)
    if data.pairs is not None and data.pairs.n_pairs:
        figures["pairs_per_task"] = plot_pairs_per_task(data.pairs)
    return figures


def _make_environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("celr_ray.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        count=lambda n: MISSING if n is None else f"{n:,}",
        plural=plural,
        percent=format_percent,
        interval=format_interval,
        usd=format_usd,
        score=lambda value: MISSING if value is None else f"{value:.3f}",
        size=format_size,
        describe=describe_histogram,
        label=lambda name: name.replace("_", " "),
    )
    return environment


def _read_source(environment: Environment, name: str) -> str:
    assert environment.loader is not None
    return environment.loader.get_source(environment, name)[0]


def _make_script(source: str) -> Markup:
    """Make a text safe to stand between script tags, unchanged, so that its hash is known.

    Raises:
        CelrRayError: it holds a closing tag, which would end the script early.
    """
    source = source.replace("\r\n", "\n")
    if "</script" in source.lower() or "<!--" in source:
        raise CelrRayError("the installed plotly.js cannot be inlined: it holds a script tag; install another plotly")
    return Markup(source)


def _hash_script(source: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()


def format_percent(value: float | None) -> str:
    """Return `43.0 %`."""
    return MISSING if value is None else f"{100 * value:.1f} %"


def format_interval(estimate: Estimate, scale: float = 1) -> str:
    """Return the 95 % interval as `36.3 to 49.9` (scale 100) or `0.36 to 0.50`."""
    digits = 1 if scale == 100 else 2
    return f"{scale * estimate.ci_low:.{digits}f} to {scale * estimate.ci_high:.{digits}f}".replace("-", "−")


def format_usd(value: float | None) -> str:
    """Return `$0.0123`; small costs keep three significant digits."""
    if value is None:
        return MISSING
    return f"${value:,.2f}" if value >= 1 or value == 0 else f"${value:.3g}"


def format_size(n_bytes: int) -> str:
    """Return a file size with a unit."""
    size = float(n_bytes)
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"


def describe_histogram(histogram: Histogram) -> str:
    """Say what a histogram shows, for those who cannot see it."""
    counts = list(histogram.counts)
    top = counts.index(max(counts))
    low, high = histogram.edges[top], histogram.edges[top + 1]
    return (
        f"Histogram of {histogram.name.replace('_', ' ')}: {plural(histogram.n, 'run')}, mean {histogram.mean:.3f}, "
        f"most between {low:.2f} and {high:.2f} ({plural(counts[top], 'run')})."
    )
