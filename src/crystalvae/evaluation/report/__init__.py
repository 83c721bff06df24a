"""The report: one self-contained HTML page, its plots as PNG and its crystals as CIF."""

from crystalvae.evaluation.report.write import write_html_report

__all__ = ["write_html_report"]
