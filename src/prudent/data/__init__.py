"""Reading, checking and cleaning preference data, and candidate pools."""

from prudent.lazy import attach

__getattr__, __all__ = attach(
    "prudent.data",
    exports={
        "read_preferences": "prudent.data.preferences",
        "read_preferences_with_report": "prudent.data.preferences",
        "split_by_prompt": "prudent.data.preferences",
        "training_columns": "prudent.data.preferences",
        "data_hash": "prudent.data.preferences",
        "read_ratings": "prudent.data.ratings",
        "Pool": "prudent.data.pools",
        "read_pool": "prudent.data.pools",
        "write_pool": "prudent.data.pools",
    },
    rooms=("files", "formats", "preferences", "pools", "ratings", "votes", "rules", "cleaning"),
)
