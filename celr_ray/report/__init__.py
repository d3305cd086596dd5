"""The report of a run: one self-contained HTML file with counts, plots and a pair browser."""

from celr_ray.report.run import run_report

__all__ = ["run_report"]
