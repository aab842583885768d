"""Sinkhorn divergence between two sets of features: debiased, entropy-regularized optimal transport (Feydy et al. 2019)."""

import numpy as np

LARGEST = 2000  # rows of each set: every pair is in memory
BLUR = 0.05  # square root of the regularization, in the units below (geomloss's default, for data of unit size)


def sinkhorn(real: np.ndarray, fake: np.ndarray) -> float:
    """Divergence of features [N, D], [M, D] (the first 2,000 rows of each) at cost |x - y|^2 / 2; 0 for equal sets.

    Features are scaled so that the real ones lie at a root mean square distance of 1 from their mean: a number of one
    extractor doesn't depend on its units. Unlike the Frechet distance it sees more than mean and covariance.
    """
    import torch
    from geomloss import SamplesLoss

    real, fake = real[:LARGEST].astype(np.float64), fake[:LARGEST].astype(np.float64)
    center = real.mean(0)
    unit = np.sqrt(((real - center) ** 2).sum(1).mean()) or 1.0
    x, y = (torch.from_numpy((each - center) / unit).float() for each in (real, fake))
    return float(SamplesLoss("sinkhorn", p=2, blur=BLUR, backend="tensorized")(x, y))
