"""Artifacts of compression and resizing that one of two sets of images has and the other has not.

A distance between the sets measures them as much as the generator (Parmar et al. 2022, "On Aliased
Resizing and Surprising Subtleties in GAN Evaluation").
"""

import numpy as np

from stages.common.rng import rng
from stages.evaluation.memorization import MIN_HELD_OUT, draw_class_mix
from stages.runtime.progress import log

# Limits on the medians, measured on RSICD and on rendered tiles at 64 px.
# Halves of one set differ by <= 0.01; JPEG at quality 75 moves it by 0.13 to 0.26.
MAX_BLOCKING_DIFFERENCE = 0.1
# Halves of one set differ by 3 %; resizing to 75 % and back takes 27 to 31 % of the detail.
MIN_DETAIL_RATIO = 0.8


def match_class_mix(
    real: dict[str, np.ndarray], labels: dict[str, list[str]], seed: int
) -> tuple[dict[str, np.ndarray], bool]:
    """Draw test tiles in the synthetic images' mix of classes: some classes have less detail.

    Args:
        real: measures [N] of the test tiles.
        labels: class of each image of `test` and of `synthetic`.
        seed: of the drawing.

    Returns:
        Measures [M] of the tiles to compare with: of those drawn or, where too few test tiles show
        the synthetic images' classes, of all; whether they are in the mix of classes.
    """
    of_test, of_synthetic = (np.array(labels[name]) for name in ("test", "synthetic"))
    drawn = draw_class_mix(of_test, of_synthetic, rng(seed, "compression mix"))
    if len(drawn) < MIN_HELD_OUT:
        log(
            f"fid: {len(drawn)} test tiles are in the synthetic images' mix of classes, fewer than "
            f"{MIN_HELD_OUT}: compression and detail are compared with all test tiles"
        )
        return real, False
    return {name: values[drawn] for name, values in real.items()}, True


def compare_compression_artifacts(
    real: dict[str, np.ndarray], fake: dict[str, np.ndarray], name: str
) -> dict[str, float]:
    """Compare the medians of `PixelExtractor`'s measures; warn where they differ.

    Args:
        real: `blocking` [N] and `detail` [N] of real images.
        fake: the same of generated images.
        name: of the generated set, for the warning.

    Returns:
        blocking, blocking_real, detail_ratio (generated / real; left out where most real images
        are of one color each, without any detail), warned (0 or 1).
    """
    blocking = float(np.median(fake["blocking"]))
    blocking_real = float(np.median(real["blocking"]))
    detail = float(np.median(fake["detail"]))
    detail_real = float(np.median(real["detail"]))
    result = {"blocking": blocking, "blocking_real": blocking_real}
    if detail_real > 0:
        result["detail_ratio"] = detail / detail_real
    blocking_differs = abs(blocking - blocking_real) > MAX_BLOCKING_DIFFERENCE
    detail_differs = not MIN_DETAIL_RATIO <= result.get("detail_ratio", 1) <= 1 / MIN_DETAIL_RATIO
    if blocking_differs:
        log(
            f"fid: {name}: warning: brightness steps at the borders of 8 x 8 blocks differ (JPEG, "
            f"or the VAE's grid): {blocking:.2f} times those elsewhere, in real tiles "
            f"{blocking_real:.2f} times"
        )
    if detail_differs:
        log(
            f"fid: {name}: warning: {result['detail_ratio']:.2f} times the finest detail of the "
            "real tiles: one of the two sets was resized or blurred (as a VAE does); the distances "
            "measure this as well"
        )
    return result | {"warned": int(blocking_differs or detail_differs)}
