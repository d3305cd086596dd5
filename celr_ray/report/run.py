"""Writes the report of a run folder."""

from __future__ import annotations

from celr_ray import storage
from celr_ray.errors import ConfigError
from celr_ray.report.collect import collect_run
from celr_ray.run_folder import check_run_folder


def run_report(run: str) -> str:
    """Write `RUN/report/index.html`; works on a run in any state.

    Returns:
        The URI of the report.

    Raises:
        OutputError: there is no run at `run`, or the report cannot be written.
        ConfigError: plotly or jinja2 is not installed.
    """
    check_run_folder(run, must_exist=True)
    try:
        from celr_ray.report.render import render_report
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] not in ("plotly", "jinja2", "markupsafe"):
            raise
        raise ConfigError(f"the report needs {error.name}: pip install 'celr-ray[report]'") from error
    uri = storage.join(run, "report", "index.html")
    storage.write_bytes(uri, render_report(collect_run(run)))
    return uri
