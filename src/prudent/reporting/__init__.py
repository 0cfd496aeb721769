"""What a person sees: charts with one look, and reports that are one offline HTML file."""

from prudent.lazy import attach

__getattr__, __all__ = attach(
    "prudent.reporting", exports={"Report": "prudent.reporting.report"}, rooms=("charts", "report", "style")
)
