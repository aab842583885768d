"""Can a number of one run be set beside the same number of another? By what metrics/context.json says that each is."""

# What a run is free to change: everything else that differs makes a number another number.
STUDIED = {"metric", "paper", "comparable", "generator", "start", "best_step", "n_train"}


def differences(ours: dict, theirs: dict) -> dict[str, str]:
    """Metric key -> why its values in two contexts (metrics/context.json, parsed) don't compare; those that do are left out.

    Two numbers compare when protocol, number of images, imagery, extractor with its weights, resolution and whatever
    else makes up their identity are equal. The generator may differ: that is what is being compared.
    """
    found = {}
    for key in [
        *ours["numbers"],
        *(key for key in theirs["numbers"] if key not in ours["numbers"]),
    ]:
        a, b = ours["numbers"].get(key), theirs["numbers"].get(key)
        if a is None or b is None:
            found[key] = f"only in {'the first' if b is None else 'the second'} run"
            continue
        fields = [name for name in {**a, **b} if name not in STUDIED and a.get(name) != b.get(name)]
        if fields:
            found[key] = "; ".join(
                f"{name}: {a.get(name, 'none')} and {b.get(name, 'none')}" for name in fields
            )
    return found
