"""Whether numbers of two runs compare, by their descriptions in each run's metrics/context.json."""

# What two runs may differ in and still compare: the description, and what is being studied.
MAY_DIFFER = {"metric", "paper", "comparable", "generator", "start", "best_step", "n_train"}


def differences(first: dict, second: dict) -> dict[str, str]:
    """Return metric key -> why its values don't compare, for the metrics where they don't.

    Two numbers compare when the protocol, the number of images, the imagery, the feature extractor
    with its weights, the resolution and all else that identifies them are equal. The generator
    may differ: it is what two runs compare.

    Args:
        first: the parsed metrics/context.json of one run.
        second: that of another.
    """
    reasons = {}
    # dict.fromkeys: the keys of both runs, in order, each once.
    for key in dict.fromkeys([*first["numbers"], *second["numbers"]]):
        if key not in second["numbers"]:
            reasons[key] = "only in the first run"
            continue
        if key not in first["numbers"]:
            reasons[key] = "only in the second run"
            continue
        one = first["numbers"][key]
        other = second["numbers"][key]
        unequal = [
            f"{name}: {one.get(name, 'none')} and {other.get(name, 'none')}"
            for name in one | other
            if name not in MAY_DIFFER and one.get(name) != other.get(name)
        ]
        if unequal:
            reasons[key] = "; ".join(unequal)
    return reasons
