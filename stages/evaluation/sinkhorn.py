"""Sinkhorn divergence of two sets of features: debiased, entropy-regularized optimal transport.

Feydy et al. 2019, "Interpolating between Optimal Transport and MMD using Sinkhorn Divergences".
"""

import numpy as np

from stages.evaluation.prdc import draw_rows

MAX_ROWS = 2000  # of each set: every pair is in memory
BLUR = 0.05  # square root of the regularization, in scaled units (geomloss's default)


def sinkhorn_divergence(real: np.ndarray, fake: np.ndarray) -> float:
    """Divergence of features [N, D], [M, D] at cost |x - y|^2 / 2; 0 for equal sets.

    Of more than 2,000 rows, 2,000 random ones count. Features are scaled so that the real ones lie
    at a root mean square distance of 1 from their mean: the number doesn't depend on the
    extractor's units. Unlike the Frechet distance it sees more than mean and covariance.
    Of images that all look alike, the features are one point: 0.
    """
    import torch
    from geomloss import SamplesLoss

    real = draw_rows(real, MAX_ROWS).astype(np.float64)
    fake = draw_rows(fake, MAX_ROWS).astype(np.float64)
    center = real.mean(0)
    scale = np.sqrt(((real - center) ** 2).sum(1).mean()) or 1.0
    x = torch.from_numpy((real - center) / scale).float()
    y = torch.from_numpy((fake - center) / scale).float()
    if (torch.cat([x, y]) == x[0]).all():  # geomloss needs a diameter
        return 0.0
    divergence = SamplesLoss("sinkhorn", p=2, blur=BLUR, backend="tensorized")
    return float(divergence(x, y))
