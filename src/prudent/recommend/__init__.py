"""Recommendation by aleatoric uncertainty (AUR): a backbone, and how noisy each of its missing labels is."""

from prudent.lazy import attach

__getattr__, __all__ = attach(
    "prudent.recommend",
    exports={
        "read_interactions": "prudent.recommend.interactions",
        "split": "prudent.recommend.splits",
        "Settings": "prudent.recommend.pipeline",
        "fit": "prudent.recommend.pipeline",
        "top": "prudent.recommend.pipeline",
        "compare": "prudent.recommend.comparison",
        "load": "prudent.recommend.artefact",
        "save": "prudent.recommend.artefact",
        "aleatoric_loss": "prudent.recommend.uncertainty",
        "list_metrics": "prudent.recommend.metrics",
    },
    rooms=("interactions", "splits", "models", "baselines", "uncertainty", "ranking", "metrics", "pipeline", "planted"),
)
