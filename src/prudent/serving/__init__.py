"""A reward model that knows its uncertainty, for any trainer: a service, exports and adapters."""

from prudent.lazy import attach

__getattr__, __all__ = attach(
    "prudent.serving",
    exports={
        "create_app": "prudent.serving.app",
        "RewardScorer": "prudent.serving.scorer",
        "export_classifier": "prudent.serving.export",
    },
)
