"""The distances between sets of features, against closed forms and against the field's own implementations."""

import numpy as np
import pytest

from stages.evaluation.caption_agreement import clip_agreement
from stages.evaluation.frechet import at_infinity, curve, distance, fid, gaussian
from stages.evaluation.intervals import confidence_interval, half_subsamples, wilson
from stages.evaluation.kernel import cmmd, kid
from stages.evaluation.manifold import manifold
from stages.evaluation.memorization import (
    SIDE,
    memorized,
    nearest_neighbors,
    nearest_neighbors_dihedral,
)
from stages.evaluation.sinkhorn import sinkhorn


def draws(n, d, seed, shift=0.0, scale=1.0):
    return (np.random.default_rng(seed).normal(size=(n, d)) * scale + shift).astype(np.float32)


def test_frechet_of_gaussians_has_the_closed_form():
    """Diagonal covariances: the sum over dimensions of (difference of means)^2 + (difference of deviations)^2."""
    rng = np.random.default_rng(0)
    means, deviations = rng.normal(size=(2, 6)), rng.uniform(0.1, 3, size=(2, 6))
    turned = np.linalg.qr(rng.normal(size=(6, 6)))[0]  # a rotation of the space changes nothing
    a, b = (
        (mean @ turned, np.diag(deviation) @ turned) for mean, deviation in zip(means, deviations)
    )
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
    theirs = prc_features_to_metric(
        torch.from_numpy(fake).double(),
        torch.from_numpy(real).double(),
        prc_neighborhood=3,
        prc_batch_size=10000,
        save_cpu_ram=False,
        verbose=False,
    )
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
        lo, hi = confidence_interval(
            x.mean(), [x[half].mean() for half in half_subsamples(200, 30, rng)], 200
        )
        hits += lo <= 0 <= hi
        widths.append(hi - lo)
    assert hits >= 180
    assert np.mean(widths) == pytest.approx(2 * 2.045 / np.sqrt(200), rel=0.15)


def test_halves_draw_without_replacement():
    for half in half_subsamples(11, 5, np.random.default_rng(0)):
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
            spread = [
                fid(a[i], b[j])
                for i, j in zip(half_subsamples(500, 20, rng), half_subsamples(500, 20, rng))
            ]
            lo, hi = confidence_interval(values[0], spread, 500, low=0, again=True)
    assert sum(lo <= value <= hi for value in values[1:]) >= 18


def test_interval_of_a_repetition_holds_what_another_sample_gives():
    """Means of 200 numbers, twice each: 95 % of the first one's intervals hold the second, fewer of those that hold the truth."""
    hits, narrow = 0, 0
    for i in range(300):
        rng = np.random.default_rng(i)
        x, other = rng.normal(size=(2, 200))
        means = [x[half].mean() for half in half_subsamples(200, 30, rng)]
        for again in (True, False):
            lo, hi = confidence_interval(x.mean(), means, 200, again=again)
            hits += again and lo <= other.mean() <= hi
            narrow += not again and lo <= other.mean() <= hi
    assert 0.92 < hits / 300 < 0.98 and narrow / 300 < 0.9


def test_wilson():
    assert wilson(0, 0) == (0, 1)
    lo, hi = wilson(8, 10)
    assert (lo, hi) == pytest.approx(
        (0.4902, 0.9433), abs=1e-3
    )  # Wilson 1927, as statsmodels gives it
    assert wilson(10, 10)[1] == pytest.approx(1)


def test_fid_at_infinity_is_the_closed_form_that_fid_misses():
    """Two Gaussians at a distance of 1 with one covariance: FID at 400 images is half as large again."""
    deviations, rng = np.arange(1, 65) ** -0.5, np.random.default_rng(0)
    plain, infinite = [], []
    for _ in range(8):
        real, fake = rng.normal(size=(2, 400, 64)) * deviations
        points = curve(real, fake + np.eye(64)[0], rng)
        plain.append(points[0][1])
        infinite.append(at_infinity(points))
    assert [size for size, _ in points] == [400, 200, 133, 100]
    assert np.mean(plain) > 1.2
    assert np.mean(infinite) == pytest.approx(1, abs=0.1)
    assert at_infinity([(n, 2 + 30 / n) for n in (10, 20, 40)]) == pytest.approx(2)


def test_curve_draws_as_many_of_the_larger_set():
    points = curve(draws(90, 4, 0), draws(40, 4, 1), np.random.default_rng(0))
    assert [size for size, _ in points] == [40, 20, 13, 10]


def test_sinkhorn_of_moved_sets_has_the_closed_form():
    """A set moved by t costs |t|^2 / 2, in units of the real set's root mean square distance from its mean."""
    x = draws(60, 5, 0, shift=7, scale=3)
    move = np.array([1, 2, 0, 0, 2], np.float32)
    unit = ((x - x.mean(0)) ** 2).sum(1).mean()
    assert sinkhorn(x, x) == pytest.approx(0, abs=1e-5)
    assert sinkhorn(x, x + move) == pytest.approx(9 / 2 / unit, rel=1e-3)
    assert sinkhorn(10 * x, 10 * (x + move)) == pytest.approx(9 / 2 / unit, rel=1e-3)
    assert sinkhorn(x, draws(60, 5, 1, shift=7, scale=3)) < sinkhorn(
        x, draws(60, 5, 1, shift=7, scale=6)
    )


def test_sinkhorn_sees_what_mean_and_covariance_do_not():
    """Two clusters against a Gaussian of their mean and covariance."""
    clusters = draws(400, 2, 0, scale=0.1)
    clusters[::2, 0] += 1
    clusters[1::2, 0] -= 1
    mean, root = gaussian(clusters)
    same = (mean + np.random.default_rng(1).normal(size=(400, 2)) @ root).astype(np.float32)
    again = draws(400, 2, 5, scale=0.1)
    again[::2, 0] += 1
    again[1::2, 0] -= 1
    assert fid(clusters, same) < 0.02 and sinkhorn(clusters, same) > 10 * sinkhorn(clusters, again)


def test_cmmd_is_the_authors_formula(monkeypatch):
    """Their mmd in full: Gaussian kernel of sigma 10 of embeddings at unit length, means over all pairs, x 1000."""
    real, fake = draws(50, 8, 0), draws(40, 8, 1, shift=0.5)
    x, y = (each / np.linalg.norm(each, axis=1, keepdims=True) for each in (real, fake))

    def kernel(a, b):
        return np.exp(-((a[:, None] - b[None]) ** 2).sum(2) / (2 * 10**2)).mean()

    truth = 1000 * (kernel(x, x) + kernel(y, y) - 2 * kernel(x, y))
    assert cmmd(real, fake) == pytest.approx(truth, rel=1e-4)
    monkeypatch.setattr("stages.evaluation.kernel.BLOCK", 7)
    assert cmmd(3 * real, fake) == pytest.approx(truth, rel=1e-4)
    assert cmmd(real, real) == pytest.approx(0, abs=1e-9)


def test_nearest_training_image_by_hand(monkeypatch):
    train, x = draws(30, 6, 0, shift=50), draws(20, 6, 1, shift=50)
    full = np.linalg.norm(x[:, None].astype(np.float64) - train[None], axis=2)
    for block in (1024, 7):
        monkeypatch.setattr("stages.evaluation.memorization.BLOCK", block)
        distances, places = nearest_neighbors(x, train)
        assert np.allclose(distances, full.min(1)) and (places == full.argmin(1)).all()


def test_a_turned_or_mirrored_copy_is_found():
    rng = np.random.default_rng(0)
    train = rng.integers(0, 256, (12, 3, SIDE, SIDE)).astype(np.float32)
    for k, mirrored in ((0, False), (1, False), (3, True)):
        copies = (
            np.rot90(train[..., ::-1] if mirrored else train, k, (2, 3)) + 1
        )  # a grey level off
        distances, places = nearest_neighbors_dihedral(
            copies.reshape(12, -1), train.reshape(12, -1)
        )
        assert np.allclose(distances, 1, atol=1e-3) and (places == np.arange(12)).all()


def test_a_copying_generator_is_caught_and_a_fair_one_is_not():
    train, held_out = draws(400, 8, 0), draws(200, 8, 1)
    real, _ = nearest_neighbors(held_out, train)
    rng = np.random.default_rng(2)
    copies = train[rng.integers(0, 400, 150)] + 0.01 * rng.normal(size=(150, 8))
    assert memorized(nearest_neighbors(copies, train)[0], real)["memorized"] > 0.9
    fair = memorized(nearest_neighbors(draws(150, 8, 3), train)[0], real)
    assert fair["memorized"] < 0.06 and fair["memorized_lo"] <= 0.01 <= fair["memorized_hi"]
    # The test set itself holds copies of training images: only exact ones count then.
    real[:20] = 0
    assert memorized(np.array([0, 0.5, 1]), real)["memorized"] == pytest.approx(1 / 3)


def test_mode_collapse_is_caught():
    """Twenty classes; the generator draws one: recall and coverage fall below 0.1, precision does not."""
    centers = 6 * draws(20, 16, 0)
    real, good = (np.repeat(centers, 15, 0) + draws(300, 16, seed) for seed in (1, 2))
    collapsed = centers[:1] + draws(300, 16, 3)
    found = manifold(real, collapsed)
    assert found["recall"] < 0.1 and found["coverage"] < 0.1 and found["precision"] > 0.5
    assert min(manifold(real, good)[name] for name in ("recall", "coverage")) > 0.5
    assert fid(real, collapsed) > 10 * fid(real, good)


def test_clip_score_stands_between_null_and_one():
    rng = np.random.default_rng(0)
    captions = rng.normal(size=(200, 32)).astype(np.float32)
    images = {
        "tuned": captions + 0.5 * rng.normal(size=captions.shape),
        "base": rng.normal(size=captions.shape),
        "real": 3 * captions,
    }
    found = clip_agreement(images, captions, rng)
    assert found["clip_score_real"] == pytest.approx(100, rel=1e-5)
    assert found["clip_score_lo"] < found["clip_score"] < found["clip_score_hi"] < 100
    assert (
        found["clip_score_null"] == pytest.approx(found["clip_score_base"], abs=2)
        and found["clip_score"] > 80
    )
