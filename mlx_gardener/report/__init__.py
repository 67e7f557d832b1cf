"""What people look at: the live view, tables in the terminal, the model card, the HTML report, the notebook's display."""

from mlx_gardener.report.html import render_report_html
from mlx_gardener.report.model_card import render_model_card

__all__ = ["render_model_card", "render_report_html"]
