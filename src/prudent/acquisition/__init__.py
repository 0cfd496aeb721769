"""Which pairs to label next, and how many labels until the risk is low enough."""

from prudent.lazy import attach

__getattr__, __all__ = attach(
    "prudent.acquisition",
    exports={
        "acquire": "prudent.acquisition.pick",
        "AcquireSettings": "prudent.acquisition.pick",
        "ForecastSettings": "prudent.acquisition.forecast",
        "forecast_risk": "prudent.acquisition.forecast",
        "LabelModel": "prudent.acquisition.information",
        "RULES": "prudent.acquisition.rules",
    },
)
