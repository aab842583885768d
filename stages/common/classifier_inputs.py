"""What classifiers were trained and tested on, in words, for the report and the cards."""


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


def describe_absent_classes(untested: list[str], unseen: list[str]) -> str:
    """Say which classes no real test tile shows, and of which there is no image; "" if of all.

    Args:
        untested: `classes_without_real` in context.json of a classifier.
        unseen: its `classes_without_images`.
    """
    text = ""
    if untested:
        text += (
            f" No test tile shows {', '.join(untested)}: "
            "the test on real tiles has the other classes only."
        )
    if unseen:
        text += f" No generated image is of {', '.join(unseen)}: the classifier never names it."
    return text
