"""The distances between sets of features, against closed forms and against the field's own implementations."""

import numpy as np
import pytest

from stages.evaluation.frechet import distance, fid, gaussian
from stages.evaluation.intervals import around, halves, wilson
from stages.evaluation.kernel import kid
from stages.evaluation.manifold import manifold


def draws(n, d, seed, shift=0.0, scale=1.0):
    return (np.random.default_rng(seed).normal(size=(n, d)) * scale + shift).astype(np.float32)


def test_frechet_of_gaussians_has_the_closed_form():
    """Diagonal covariances: the sum over dimensions of (difference of means)^2 + (difference of deviations)^2."""
    rng = np.random.default_rng(0)
    means, deviations = rng.normal(size=(2, 6)), rng.uniform(0.1, 3, size=(2, 6))
    turned = np.linalg.qr(rng.normal(size=(6, 6)))[0]  # a rotation of the space changes nothing
    a, b = ((mean @ turned, np.diag(deviation) @ turned) for mean, deviation in zip(means, deviations))
    truth = ((means[0] - means[1]) ** 2).sum() + ((deviations[0] - deviations[1]) ** 2).sum()
    assert distance(a, b) == pytest.approx(truth, rel=1e-9)


def test_gaussian_has_numpys_mean_and_covariance():
    for n in (5, 200):  # singular, and not
        x = draws(n, 20, 1, shift=3)
        mean, root = gaussian(x)
        assert np.allclose(mean, x.astype(np.float64).mean(0))
        assert np.allclose(root.T @ root, np.cov(x.astype(np.float64), rowvar=False))


@pytest.mark.parametrize("n, d", [(300, 24), (40, 64)])  # more images than dimensions, and fewer
def test_fid_agrees_with_torchmetrics(n, d):
    import torch
    from torchmetrics.image.fid import FrechetInceptionDistance

    class Features(torch.nn.Module):
        num_features = d

        def forward(self, x):
            return x

    real, fake = draws(n, d, 0), draws(n, d, 1, shift=0.3, scale=1.4)
    metric = FrechetInceptionDistance(Features(), normalize=True).set_dtype(torch.float64)
    metric.update(torch.from_numpy(real), real=True)
    metric.update(torch.from_numpy(fake), real=False)
    assert fid(real, fake) == pytest.approx(float(metric.compute()), rel=1e-4)


def test_fid_of_a_set_with_itself_is_zero_and_a_copied_row_is_no_trouble():
    x = draws(50, 8, 0)
    assert fid(x, x) == pytest.approx(0, abs=1e-9)
    assert np.isfinite(fid(x, np.repeat(x[:1], 50, 0)))  # mode collapse: a covariance of zeros


def test_kid_is_torchmetrics_polynomial_mmd():
    import torch
    from torchmetrics.image.kid import poly_mmd

    real, fake = draws(120, 16, 0), draws(120, 16, 1, shift=0.2)
    truth = poly_mmd(torch.from_numpy(real).double(), torch.from_numpy(fake).double())
    assert kid(real, fake) == pytest.approx(float(truth), rel=1e-9)


def test_kid_does_not_depend_on_the_block(monkeypatch):
    real, fake = draws(70, 8, 0), draws(50, 8, 1)
    whole = kid(real, fake)
    monkeypatch.setattr("stages.evaluation.kernel.BLOCK", 16)
    assert kid(real, fake) == pytest.approx(whole, rel=1e-9)


def test_kid_is_unbiased_at_few_images():
    """Zero on average for one distribution, where FID grows as N shrinks."""
    values = [kid(draws(30, 8, 2 * i), draws(40, 8, 2 * i + 1)) for i in range(200)]
    assert abs(np.mean(values)) < 3 * np.std(values) / np.sqrt(len(values))
    assert min(values) < 0


def test_precision_and_recall_are_torch_fidelitys():
    import torch
    from torch_fidelity.metric_prc import prc_features_to_metric

    real, fake = draws(200, 10, 0), draws(150, 10, 1, shift=0.4, scale=0.8)
    theirs = prc_features_to_metric(torch.from_numpy(fake).double(), torch.from_numpy(real).double(), prc_neighborhood=3,
                                    prc_batch_size=10000, save_cpu_ram=False, verbose=False)
    ours = manifold(real, fake)
    assert ours["precision"] == pytest.approx(theirs["precision"], abs=1e-6)
    assert ours["recall"] == pytest.approx(theirs["recall"], abs=1e-6)


def test_density_and_coverage_by_hand():
    """Naeem et al., eqs. 5 and 6, image by image."""
    real, fake = draws(40, 4, 0), draws(30, 4, 1, shift=0.5)
    to_real = np.sort(np.linalg.norm(real[:, None] - real[None], axis=2), 1)[:, 5]
    inside = np.linalg.norm(fake[:, None] - real[None], axis=2) <= to_real
    found = manifold(real, fake)
    assert found["density"] == pytest.approx(inside.sum() / (5 * 30))
    assert found["coverage"] == pytest.approx(inside.any(0).mean())


def test_manifold_of_equal_far_and_collapsed_sets(monkeypatch):
    real = draws(60, 6, 0, shift=100)  # far from the origin: digits must not be lost
    same = manifold(real, real)
    assert same["precision"] == same["recall"] == same["coverage"] == 1
    far = manifold(real, real + 50)
    assert far["precision"] == far["recall"] == far["density"] == far["coverage"] == 0
    collapsed = manifold(real, np.repeat(real[:1], 60, 0))
    assert collapsed["precision"] == 1 and collapsed["recall"] < 0.1
    whole = manifold(real, draws(50, 6, 1, shift=100))
    monkeypatch.setattr("stages.evaluation.manifold.BLOCK", 7)
    assert manifold(real, draws(50, 6, 1, shift=100)) == whole


def test_tiny_sets_are_measured():
    assert all(np.isfinite(list(manifold(draws(3, 4, 0), draws(2, 4, 1)).values())))


def test_interval_from_halves_contains_the_truth():
    """The mean of 200 numbers, whose standard error is known: 95 % of the intervals contain it, and they are no wider."""
    hits, widths = 0, []
    for i in range(200):
        rng = np.random.default_rng(i)
        x = rng.normal(size=200)
        lo, hi = around(x.mean(), [x[half].mean() for half in halves(200, 30, rng)], 200)
        hits += lo <= 0 <= hi
        widths.append(hi - lo)
    assert hits >= 180
    assert np.mean(widths) == pytest.approx(2 * 2.045 / np.sqrt(200), rel=0.15)


def test_halves_draw_without_replacement():
    for half in halves(11, 5, np.random.default_rng(0)):
        assert len(half) == len(set(half.tolist())) == 5


def test_floor_of_random_halvings_lies_in_the_interval():
    """Two halves of one set: the interval of the first halving contains what 20 others give, at least 18 times."""
    x = draws(1000, 12, 0)
    rng = np.random.default_rng(1)
    values = []
    for number in range(21):
        order = rng.permutation(len(x))
        a, b = x[order[:500]], x[order[500:]]
        values.append(fid(a, b))
        if number == 0:
            spread = [fid(a[i], b[j]) for i, j in zip(halves(500, 20, rng), halves(500, 20, rng))]
            lo, hi = around(values[0], spread, 500, low=0)
    assert sum(lo <= value <= hi for value in values[1:]) >= 18


def test_wilson():
    assert wilson(0, 0) == (0, 1)
    lo, hi = wilson(8, 10)
    assert (lo, hi) == pytest.approx((0.4902, 0.9433), abs=1e-3)  # Wilson 1927, as statsmodels gives it
    assert wilson(10, 10)[1] == pytest.approx(1)
