"""How many images each class, and each prompt of it, gets."""

import math
from fractions import Fraction


def share_among_classes(
    balance: str | dict[str, int | str] | None,
    prompts: dict[str, int],
    images_per_prompt: int,
    real: dict[str, int],
) -> dict[str, int]:
    """The number of images of each class that has prompts.

    Args:
        balance: None: `images_per_prompt` for each prompt; "equal": as many for each class as the
            largest one has then; {"to": N}: N for each class; {"like": "real"}: the total is that
            of None, and the classes share it in proportion to their real tiles (by the largest
            remainders; of two that are equal, the first class's counts as larger).
        prompts: the number of prompts of each class.
        images_per_prompt: before balancing.
        real: the number of real training tiles of each class.

    Raises:
        ValueError: {"like": "real"}, and no class with prompts has real tiles.
    """
    unbalanced = {name: count * images_per_prompt for name, count in prompts.items() if count}
    if balance is None:
        return unbalanced
    if balance == "equal":
        return dict.fromkeys(unbalanced, max(unbalanced.values()))
    if isinstance(balance, dict) and "to" in balance:
        return dict.fromkeys(unbalanced, int(balance["to"]))
    tiles = {name: real.get(name, 0) for name in unbalanced}
    if not any(tiles.values()):
        raise ValueError("like: real: no training tile shows a class that has prompts")
    total = sum(unbalanced.values())
    exact = {name: Fraction(total * count, sum(tiles.values())) for name, count in tiles.items()}
    shares = {name: math.floor(share) for name, share in exact.items()}
    by_remainder = sorted(exact, key=lambda name: shares[name] - exact[name])  # largest first
    for name in by_remainder[: total - sum(shares.values())]:
        shares[name] += 1
    return shares


def share_among_prompts(images: int, prompts: int) -> list[int]:
    """The number of images of each of a class's prompts: even, the first prompts have one more."""
    each, rest = divmod(images, prompts)
    return [each + (i < rest) for i in range(prompts)]
