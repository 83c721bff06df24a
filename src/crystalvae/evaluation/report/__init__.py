"""The report: tables in the terminal, a JSON file, one self-contained HTML page with its plots, and crystals as CIF."""

from crystalvae.evaluation.report.tables import format_summary, format_tables
from crystalvae.evaluation.report.write import JSON_NAME, write_html_report, write_report

__all__ = ["JSON_NAME", "format_summary", "format_tables", "write_html_report", "write_report"]
