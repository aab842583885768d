"""Traces of compression and resizing that a generated set has and the real one has not, or the other way round.

A distance between the sets measures them as much as the model (Parmar et al. 2022, "On aliased resizing").
"""

import numpy as np

from stages.runtime.progress import log

# Of the medians, measured on RSICD and on rendered tiles at 64 px: halves of one set differ by <= 0.01 (blocking) and 3 %
# (detail); JPEG at quality 75 moves blocking by 0.13 to 0.26; a trip to 75 % of the size and back takes 27 to 31 % of detail.
BLOCKING, DETAIL = 0.1, 0.8


def compression_artifacts(
    real: dict[str, np.ndarray], fake: dict[str, np.ndarray], what: str
) -> dict[str, float]:
    """Compare `blocking` and `detail`, each [N], of real and generated images; warn where they differ. 0/1: `warned`."""
    blocking, blocking_real = float(np.median(fake["blocking"])), float(np.median(real["blocking"]))
    ratio = float(np.median(fake["detail"]) / np.median(real["detail"]))
    jpeg = abs(blocking - blocking_real) > BLOCKING
    blurred = not DETAIL <= ratio <= 1 / DETAIL
    if jpeg:
        log(
            f"fid: {what}: warning: compressed or resized otherwise than the real tiles: steps at the borders of 8 x 8 blocks are "
            f"{blocking:.2f} times those elsewhere, in real tiles {blocking_real:.2f}"
        )
    if blurred:
        log(
            f"fid: {what}: warning: {ratio:.2f} times the real tiles' finest detail: one of the sets was resized or blurred "
            "(a VAE does that, too); the distances measure this as well"
        )
    return {
        "blocking": blocking,
        "blocking_real": blocking_real,
        "detail_ratio": ratio,
        "warned": int(jpeg or blurred),
    }
