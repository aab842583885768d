"""What a ceiling was trained on, in words, for the report and the cards."""


def describe_real_tiles(scores: dict, ceiling: dict) -> str:
    """Say on how many real tiles a ceiling was trained.

    They are fewer than the generated images where the imagery has too few, and more where
    `select` keeps fewer images than were planned.

    Args:
        scores: metrics/classify_<label set>.json.
        ceiling: metrics/ceiling_<label set>.json, of the same label set.
    """
    if ceiling["n_tiles"] == ceiling["n_wanted"]:
        return "as many real tiles"
    return f"{ceiling['n_train']} real tiles instead of {scores['n_train']} generated images"
