"""Distances between sets of features, against closed forms and the field's own implementations."""

import re
from functools import partial
from itertools import product

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import save_file

from benchmarks import coverage
from stages.evaluation import protocols
from stages.evaluation.caption_agreement import class_agreement, clip_score
from stages.evaluation.compression_artifacts import (
    compare_compression_artifacts,
    match_class_mix,
)
from stages.evaluation.extractors import THUMBNAIL_SIDE
from stages.evaluation.frechet import fid, fid_curve, fit_fid_line, fit_gaussian, frechet_distance
from stages.evaluation.intervals import (
    draw_halvings,
    root_scale_interval,
    share_interval_of_margin,
    smooth_variance,
    wilson_interval,
)
from stages.evaluation.kernel import cmmd, kid
from stages.evaluation.memorization import (
    CLOSEST_PAIRS,
    compare_with_training_images,
    describe_near_copies,
    draw_class_mix,
    memorization_scores,
    nearest_neighbors,
    nearest_neighbors_dihedral,
)
from stages.evaluation.pairing import Pairing
from stages.evaluation.prdc import compute_prdc, draw_rows
from stages.evaluation.protocols import (
    compared_sets,
    compute_distances,
    curve_rows,
    fid_curves,
    paper_protocol,
    standard_protocol,
)
from stages.evaluation.sinkhorn import sinkhorn_divergence
from stages.evaluation.sites import describe_sites
from stages.fid import (
    FEATURES,
    SETS,
    compare_sets,
    measure_clip_score,
    read_finite,
    read_image_rows,
)
from stages.params import Fid


def gaussian_sample(n, d, seed, shift=0.0, scale=1.0):
    """float32 [n, d] of independent Gaussians."""
    return (np.random.default_rng(seed).normal(size=(n, d)) * scale + shift).astype(np.float32)


def test_frechet_distance_of_gaussians_has_its_closed_form():
    """Diagonal covariances: the sum over dimensions of (m_a - m_b)^2 + (s_a - s_b)^2."""
    rng = np.random.default_rng(0)
    means = rng.normal(size=(2, 6))
    deviations = rng.uniform(0.1, 3, size=(2, 6))
    rotation = np.linalg.qr(rng.normal(size=(6, 6)))[0]  # of the space, which changes nothing
    a, b = (
        (mean @ rotation, np.diag(deviation) @ rotation)
        for mean, deviation in zip(means, deviations)
    )
    truth = ((means[0] - means[1]) ** 2).sum() + ((deviations[0] - deviations[1]) ** 2).sum()
    assert frechet_distance(a, b) == pytest.approx(truth, rel=1e-9)


def test_fitted_gaussian_has_the_mean_and_covariance_of_numpy():
    for n in (5, 200):  # singular, and not
        x = gaussian_sample(n, 20, 1, shift=3)
        mean, root = fit_gaussian(x)
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

    real = gaussian_sample(n, d, 0)
    fake = gaussian_sample(n, d, 1, shift=0.3, scale=1.4)
    metric = FrechetInceptionDistance(Features(), normalize=True).set_dtype(torch.float64)
    metric.update(torch.from_numpy(real), real=True)
    metric.update(torch.from_numpy(fake), real=False)
    assert fid(real, fake) == pytest.approx(float(metric.compute()), rel=1e-4)


def test_fid_of_a_set_with_itself_is_zero_and_that_of_one_repeated_image_is_finite():
    x = gaussian_sample(50, 8, 0)
    assert fid(x, x) == pytest.approx(0, abs=1e-9)
    assert np.isfinite(fid(x, np.repeat(x[:1], 50, 0)))  # mode collapse: a covariance of zeros


def test_kid_is_torchmetrics_polynomial_mmd():
    import torch
    from torchmetrics.image.kid import poly_mmd

    real = gaussian_sample(120, 16, 0)
    fake = gaussian_sample(120, 16, 1, shift=0.2)
    truth = poly_mmd(torch.from_numpy(real).double(), torch.from_numpy(fake).double())
    assert kid(real, fake) == pytest.approx(float(truth), rel=1e-9)


@pytest.mark.parametrize("paired", [False, True])
def test_kid_does_not_depend_on_the_block_size(monkeypatch, paired):
    real = gaussian_sample(70, 8, 0)
    fake = gaussian_sample(50, 8, 1)
    in_one_block = kid(real, fake, paired)
    monkeypatch.setattr("stages.evaluation.kernel.BLOCK", 16)
    assert kid(real, fake, paired) == pytest.approx(in_one_block, rel=1e-9)


def test_kid_is_unbiased_at_few_images():
    """Zero on average for one distribution, where FID grows as N shrinks."""
    values = [
        kid(gaussian_sample(30, 8, 2 * i), gaussian_sample(40, 8, 2 * i + 1)) for i in range(200)
    ]
    assert abs(np.mean(values)) < 3 * np.std(values) / np.sqrt(len(values))
    assert min(values) < 0


@pytest.mark.parametrize("n", [40, 55])  # real tiles; 40 of them have an image
def test_kid_of_pairs_leaves_out_an_image_with_its_own_tile(n):
    """Gretton et al. 2012, eq. 4: all three means are over i != j."""
    real, fake = gaussian_sample(n, 8, 0), gaussian_sample(40, 8, 1, shift=0.5)

    def mean_kernel(x, y):
        kernel = (x.astype(np.float64) @ y.T / 8 + 1) ** 3
        return kernel[~np.eye(*kernel.shape, dtype=bool)].mean()

    truth = mean_kernel(real, real) + mean_kernel(fake, fake) - 2 * mean_kernel(real, fake)
    assert kid(real, fake, paired=True) == pytest.approx(truth, rel=1e-9)


@pytest.mark.parametrize("kind", ["perfect", "off", "wrong scenes"])
def test_kid_of_pairs_is_that_of_infinitely_many_images(kind):
    """Images of the scenes of just these tiles are as alike as their number is small."""
    rng = np.random.default_rng(0)
    truth = coverage.pairs_truths(kind)["kid_x1000"]
    values = []
    unpaired = []
    for _ in range(200):
        sets = coverage.draw_pairs(30, kind, rng)
        values.append(1000 * kid(*sets, paired=True))
        unpaired.append(1000 * kid(*sets))
    error = np.std(values) / np.sqrt(len(values))
    assert abs(np.mean(values) - truth) < 3 * error
    assert np.mean(unpaired) < truth - 10 * error


def test_precision_and_recall_agree_with_torch_fidelity():
    import torch
    from torch_fidelity.metric_prc import prc_features_to_metric

    real = gaussian_sample(200, 10, 0)
    fake = gaussian_sample(150, 10, 1, shift=0.4, scale=0.8)
    theirs = prc_features_to_metric(
        torch.from_numpy(fake).double(),
        torch.from_numpy(real).double(),
        prc_neighborhood=3,
        prc_batch_size=10000,
        save_cpu_ram=False,
        verbose=False,
    )
    ours = compute_prdc(real, fake)
    assert ours["precision"] == pytest.approx(theirs["precision"], abs=1e-6)
    assert ours["recall"] == pytest.approx(theirs["recall"], abs=1e-6)


def test_density_and_coverage_by_hand():
    """Naeem et al., eqs. 5 and 6, image by image."""
    real = gaussian_sample(40, 4, 0)
    fake = gaussian_sample(30, 4, 1, shift=0.5)
    radii = np.sort(np.linalg.norm(real[:, None] - real[None], axis=2), 1)[:, 5]
    inside = np.linalg.norm(fake[:, None] - real[None], axis=2) <= radii
    metrics = compute_prdc(real, fake)
    assert metrics["density"] == pytest.approx(inside.sum() / (5 * 30))
    assert metrics["coverage"] == pytest.approx(inside.any(0).mean())


def test_prdc_of_equal_far_and_collapsed_sets(monkeypatch):
    real = gaussian_sample(60, 6, 0, shift=100)  # far from the origin: digits must not be lost
    same = compute_prdc(real, real)
    assert same["precision"] == same["recall"] == same["coverage"] == 1
    far = compute_prdc(real, real + 50)
    assert far["precision"] == far["recall"] == far["density"] == far["coverage"] == 0
    collapsed = compute_prdc(real, np.repeat(real[:1], 60, 0))
    assert collapsed["precision"] == 1 and collapsed["recall"] < 0.1
    fake = gaussian_sample(50, 6, 1, shift=100)
    in_one_block = compute_prdc(real, fake)
    monkeypatch.setattr("stages.evaluation.prdc.BLOCK", 7)
    assert compute_prdc(real, fake) == in_one_block
    monkeypatch.setattr("stages.evaluation.prdc.BLOCK_DISTANCES", 100)
    assert compute_prdc(real, fake) == in_one_block


def test_prdc_of_tiny_sets_is_finite():
    metrics = compute_prdc(gaussian_sample(3, 4, 0), gaussian_sample(2, 4, 1))
    assert np.isfinite(list(metrics.values())).all()


def test_halves_draw_without_replacement():
    for (a, b), (c, d) in draw_halvings(11, 8, 5, np.random.default_rng(0)):
        assert len(a) == len(c) == 5 and len(set(a) | set(c)) == 10
        assert len(b) == len(d) == 4 and len(set(b) | set(d)) == 8


def test_halves_of_pairs_hold_both_rows_of_each():
    """Of 11 real tiles, 8 have an image; the other three are split, too."""
    for halves in draw_halvings(11, 8, 5, np.random.default_rng(0), paired=True):
        for real, fake in halves:
            assert len(real) == 5 and len(fake) == 4
            assert set(real[real < 8]) == set(fake)
        assert len({row for real, _ in halves for row in real}) == 10


def test_halves_of_sites_hold_whole_ones():
    sites = np.array([0, 0, 0, 0, 1, 1, 2, 2, 3, 4, 4])
    for paired in (False, True):
        halvings = draw_halvings(11, 8, 20, np.random.default_rng(0), paired, sites)
        for (a, b), (c, d) in halvings:
            assert sorted([*a, *c]) == list(range(11)) and sorted([*b, *d]) == list(range(8))
            assert not set(sites[a]) & set(sites[c])
            counted = (b, d) if paired else (a, c)  # of 8 rows of four sites, or of all 11 of five
            assert min(map(len, counted)) >= 2
            assert not paired or (set(a[a < 8]) == set(b) and set(c[c < 8]) == set(d))


def test_variance_of_a_mean_of_sites():
    """It is s^2 / 12 for 12 sites, however many tiles each has."""
    variances = []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        x, sites = np.repeat(rng.normal(size=12), 20), np.repeat(np.arange(12), 20)
        pairs = draw_halvings(240, 240, 20, rng, sites=sites)
        means = np.array([[x[a].mean() for a, _ in halves] for halves in pairs])
        variances.append(smooth_variance(means))
    assert np.mean(variances) == pytest.approx(1 / 12, rel=0.15)


def test_variance_of_a_mean_and_of_a_mean_over_pairs():
    """Halves give s^2 / n for a mean of n numbers, and 1.5 times the variance of its square, which
    is 2 s^4 / n^2 where the mean is 0."""
    of_mean = []
    of_square = []
    for i in range(60):
        rng = np.random.default_rng(i)
        x, y = rng.normal(size=(2, 200))
        pairs = list(draw_halvings(200, 200, 40, rng))
        means = np.array([[x[a].mean() for a, _ in halves] for halves in pairs])
        gaps = np.array([[x[a].mean() - y[b].mean() for a, b in halves] for halves in pairs])
        of_mean.append(smooth_variance(means))
        of_square.append(smooth_variance(gaps**2))
    assert np.mean(of_mean) == pytest.approx(1 / 200, rel=0.1)
    assert np.mean(of_square) / (2 * (2 / 200) ** 2) == pytest.approx(1.5, rel=0.2)


def test_interval_of_a_distance_is_that_of_its_square_root():
    low, high = root_scale_interval(100, 20)  # (10 - 1)^2, (10 + 1)^2
    assert (low, high) == pytest.approx((81, 121))
    low, high = root_scale_interval(0, 4)  # identical sets: finite, and not of zero width
    assert low <= 0 < high < 8


def test_share_interval_is_wilsons_of_the_effective_number():
    for share, n, effective in ((0.3, 100, 25), (0.5, 1000, 500)):
        margin = 1.96 * np.sqrt(share * (1 - share) / effective)
        wilson = wilson_interval(share * effective, effective)
        assert share_interval_of_margin(share, margin, n) == pytest.approx(wilson, abs=0.01)
    for share in (0.0, 1.0):  # of constant halves
        assert share_interval_of_margin(share, 0.0, 50) == wilson_interval(50 * share, 50)


@pytest.mark.parametrize("distance", [0.0, 0.2])  # near the floor, and far from it
def test_intervals_hold_the_truth_and_are_no_wider(distance):
    """A fast version of benchmarks.coverage, which has the sizes of the demo and of RSICD.

    It fails on the variance of plain random halves, and on intervals 0.7 times as wide.
    """
    scales = coverage.gaussian_scales(16, "power law", distance)
    scenario = coverage.Scenario(
        "Gaussians",
        100,
        partial(coverage.draw_gaussians, 100, scales),
        partial(coverage.gaussian_truths, scales),
    )
    draws = coverage.simulate(scenario, range(60), coverage.compute_all)
    for metric, drawn in draws.items():
        found = coverage.summarize(scenario, metric, drawn)
        assert found.held >= 0.88, metric
        assert found.width <= 1.4, metric
        assert 0.91 <= found.predicted <= 0.985, metric
    for metric in ("fid", "kid_x1000"):
        assert coverage.summarize(scenario, metric, draws[metric], shrink=0.7).predicted < 0.91


def test_a_perfect_generator_that_follows_captions_has_fid_infinity_0():
    """Features are clustered by scene, and each image shows the scene of its test tile.

    Subsets of tiles and images of different captions match less well than the whole sets do.
    """
    scenario = coverage.Scenario(
        "pairs",
        100,
        partial(coverage.draw_pairs, 100, "perfect"),
        partial(coverage.pairs_truths, "perfect"),
        paired=True,
    )
    draws, unpaired = (
        coverage.simulate(
            scenario._replace(paired=paired),
            range(30),
            partial(compute_distances, extractor="scene", paired=paired),
        )
        for paired in (True, False)
    )
    infinite = draws["fid_infinity"]
    assert abs(infinite.values.mean()) < 0.5 < 5 < -unpaired["fid_infinity"].values.mean()
    for metric in ("fid_infinity", "kid_x1000"):
        assert coverage.summarize(scenario, metric, draws[metric]).held >= 0.9
    for metric, drawn in draws.items():
        found = coverage.summarize(scenario, metric, drawn)
        assert found.held >= 0.8, metric
        assert found.width <= 2.5, metric
    assert coverage.summarize(scenario, "fid", unpaired["fid"]).width > 2.5


def test_wilson_interval():
    assert wilson_interval(0, 0) == (0, 1)
    from_statsmodels = (0.4902, 0.9433)
    assert wilson_interval(8, 10) == pytest.approx(from_statsmodels, abs=1e-3)
    for n in range(1, 60):
        for successes in range(n + 1):
            low, high = wilson_interval(successes, n)
            assert 0 <= low <= successes / n <= high <= 1
    assert wilson_interval(10, 10)[1] == 1 and wilson_interval(0, 3)[0] == 0


def test_fid_infinity_is_the_closed_form_that_fid_exceeds():
    """Gaussians of one covariance at a distance of 1: FID at 400 images is above 1.2."""
    deviations = np.arange(1, 65) ** -0.5
    rng = np.random.default_rng(0)
    plain = []
    infinite = []
    for _ in range(8):
        real, fake = rng.normal(size=(2, 400, 64)) * deviations
        points = fid_curve(real, fake + np.eye(64)[0], rng)
        plain.append(points[0][1])
        infinite.append(fit_fid_line(points, 64)[1])
    assert [size for size, _ in points] == [400, 200, 133, 100]
    assert np.mean(plain) > 1.2
    assert np.mean(infinite) == pytest.approx(1, abs=0.1)
    assert fit_fid_line([(n, 2 + 30 / n) for n in (10, 20, 40)], 8) == pytest.approx((30, 2))
    # Fewer images than dimensions: FID isn't straight in 1/N there.
    assert fit_fid_line([(40, 5), (20, 8), (10, 9)], 16)[1] == pytest.approx(2)


def test_fid_curve_draws_as_many_of_the_larger_set():
    real = gaussian_sample(90, 4, 0)
    fake = gaussian_sample(40, 4, 1)
    points = fid_curve(real, fake, np.random.default_rng(0))
    assert [size for size, _ in points] == [40, 20, 13, 10]


def test_the_plotted_line_ends_at_fid_infinity_of_the_same_partitions():
    sets = {"test": gaussian_sample(64, 6, 0), "tuned": gaussian_sample(64, 6, 1, shift=0.5)}
    sets["base"] = gaussian_sample(64, 6, 2, shift=2)
    sets["train"] = gaussian_sample(90, 6, 3)
    config = Fid(standard_min_n=8, paper_n=60, paper_draws=2, subsets=3)
    curves = fid_curves(sets, 7)
    metrics = standard_protocol(sets, curves, config, 7, "scene")
    *points, end = curve_rows(curves, 6)
    assert [row["images"] for row in points] == [64, 32, 21, 16] and end["images"] == ""
    assert end["one_over_n"] == 0
    assert end["tuned_line"] == metrics["fid_infinity"]
    assert end["floor_line"] == metrics["fid_infinity_floor"]
    assert points[0]["tuned"] == pytest.approx(metrics["fid"])
    slopes = np.diff([row["base_line"] for row in points]) / np.diff(
        [row["one_over_n"] for row in points]
    )
    assert slopes == pytest.approx(slopes[0])  # straight, through points that are not
    alone = {name: sets[name] for name in ("test", "tuned")}
    of_two_sets = standard_protocol(alone, fid_curves(alone, 7), config, 7, "scene")
    assert of_two_sets.items() <= metrics.items()  # the same to the digit


def test_nan_among_features_is_named(tmp_path):
    features = gaussian_sample(5, 3, 0)
    save_file({"features": features}, tmp_path / "scene.safetensors")
    assert (read_finite(tmp_path / "scene.safetensors")["features"] == features).all()
    features[3, 1] = np.nan
    features[4, 2] = np.inf
    save_file({"features": features}, tmp_path / "scene.safetensors")
    with pytest.raises(SystemExit, match="^error: .*scene.safetensors: features .* 2 of 5 .* 3"):
        read_finite(tmp_path / "scene.safetensors")


def test_sinkhorn_divergence_of_moved_sets_has_its_closed_form():
    """A set moved by t costs |t|^2 / 2, divided by the mean square distance from its mean."""
    x = gaussian_sample(60, 5, 0, shift=7, scale=3)
    move = np.array([1, 2, 0, 0, 2], np.float32)
    mean_square = ((x - x.mean(0)) ** 2).sum(1).mean()
    cost = 9 / 2 / mean_square
    assert sinkhorn_divergence(x, x) == pytest.approx(0, abs=1e-5)
    assert sinkhorn_divergence(x, x + move) == pytest.approx(cost, rel=1e-3)
    assert sinkhorn_divergence(10 * x, 10 * (x + move)) == pytest.approx(cost, rel=1e-3)
    alike = gaussian_sample(60, 5, 1, shift=7, scale=3)
    wider = gaussian_sample(60, 5, 1, shift=7, scale=6)
    assert sinkhorn_divergence(x, alike) < sinkhorn_divergence(x, wider)


def test_sinkhorn_divergence_of_large_sets_is_not_of_their_first_rows(monkeypatch):
    """Images of a folder are sorted by scene."""
    monkeypatch.setattr("stages.evaluation.sinkhorn.MAX_ROWS", 200)
    centers = np.repeat(5 * gaussian_sample(10, 8, 0), 60, 0)  # sorted
    real = centers + gaussian_sample(600, 8, 1)
    fake = centers[::3] + gaussian_sample(200, 8, 2)  # of all scenes, and not cut
    other = real[:200]  # of a third of the scenes
    assert sinkhorn_divergence(real, fake) < sinkhorn_divergence(real, other) / 2


def test_metrics_of_pairs_are_of_so_many_rows_and_fid_of_all(monkeypatch):
    """The time of the former grows with the square of the rows."""
    monkeypatch.setattr("stages.evaluation.protocols.MAX_PAIRED", 100)
    real, fake = gaussian_sample(400, 8, 0), gaussian_sample(300, 8, 1)
    distances = compute_distances(real, fake, "scene")
    some_real, some_fake = draw_rows(real, 100), draw_rows(fake, 100)
    assert len(some_real) == len(np.unique(some_real, axis=0)) == len(some_fake) == 100
    assert distances["fid"] == fid(real, fake)
    assert distances["kid_x1000"] == 1000 * kid(some_real, some_fake)
    assert distances["recall"] == compute_prdc(some_real, some_fake)["recall"]

    # Pairs stay together, whatever the number of real tiles without an image.
    pairs = (draw_rows(real[:300], 100), some_fake)
    assert compute_distances(real, fake, "scene", True)["kid_x1000"] == 1000 * kid(*pairs, True)
    few = (np.concatenate([real[:60], draw_rows(real[60:], 40)]), fake[:60])
    assert compute_distances(real, fake[:60], "scene", True)["kid_x1000"] == 1000 * kid(*few, True)


def test_the_variance_of_fid_is_that_of_all_rows_of_which_some_are_halved(monkeypatch):
    """It falls as 1/n; FID infinity errs as FID does."""
    monkeypatch.setattr(protocols, "MAX_HALVED", 20)
    monkeypatch.setattr(protocols, "variance_of", lambda *_: 1.0)
    real, fake = gaussian_sample(100, 3, 0), gaussian_sample(80, 3, 1)
    draws = np.random.default_rng(0)
    variances = protocols.estimate_variances(real, fake, "scene", 2, draws, "tuned")
    assert variances["fid"] == variances["fid_infinity"] == 20 / 80
    assert variances["kid_x1000"] == 1


def test_real_vs_real_is_of_as_many_images_as_were_generated():
    sets = {name: gaussian_sample(n, 4, n) for name, n in (("test", 50), ("train", 90))}
    sets["tuned"] = gaussian_sample(20, 4, 0)
    compared = compared_sets(sets, 0)
    assert {name: len(rows) for name, rows in compared.items()} == {"tuned": 20, "floor": 20}


def test_pairs_are_compared_together_in_any_order():
    """Each image is its own test tile, so halves and subsets of both sets are equal, too."""
    test = gaussian_sample(60, 5, 0)
    order = np.random.default_rng(0).permutation(60)
    scenes = np.repeat("lake", 60)
    config = Fid(standard_min_n=8, paper_n=40, paper_draws=2, subsets=4)
    sets = {"test": test, "train": test, "tuned": test[order], "base": test[order]}
    pairing = Pairing(order, scenes, scenes)
    metrics = standard_protocol(sets, fid_curves(sets, 0, pairing), config, 0, "scene", pairing)
    for key in ("fid", "fid_hi", "fid_infinity", "fid_infinity_lo", "sinkhorn"):
        assert metrics[key] == pytest.approx(0, abs=1e-5), key
    assert metrics["recall"] == metrics["coverage"] == 1
    assert paper_protocol(sets, pairing, config, 0)["fid"] < 1e-6

    # Some tiles have no image.
    sets["tuned"] = sets["base"] = test[order[:48]]
    pairing = Pairing(order[:48], scenes, scenes)
    curves = fid_curves(sets, 0, pairing)
    assert [value for _, value in curves["tuned"]] == pytest.approx([0] * 4, abs=1e-6)
    metrics = standard_protocol(sets, curves, config, 0, "scene", pairing)
    assert metrics["fid_lo"] <= metrics["fid"] < metrics["fid_hi"] and metrics["fid"] > 0.01
    assert (metrics["n"], metrics["n_real"]) == (48, 60)


def test_real_vs_real_has_the_scenes_of_the_test_tiles(capsys):
    """A training split of another mix of scenes would be far from any test tiles."""
    scenes = np.array(["lake", "park", "road"])
    of_test = np.repeat([0, 1, 2, 2], 10)
    of_train = np.repeat([0, 1, 2], [300, 40, 30])
    centers = 50 * np.eye(3)
    sets = {
        "test": centers[of_test] + gaussian_sample(40, 3, 0),
        "train": centers[of_train] + gaussian_sample(370, 3, 1),
        "tuned": centers[of_test] + gaussian_sample(40, 3, 2),
    }
    sets["base"] = sets["tuned"]
    pairing = Pairing(np.random.default_rng(0).permutation(40), scenes[of_test], scenes[of_train])
    floor = compared_sets(sets, 0, pairing)["floor"]
    assert (floor.argmax(1) == of_test[pairing.real_indices]).all()
    assert len(np.unique(floor, axis=0)) == 40
    config = Fid(standard_min_n=8, paper_n=30, paper_draws=2, subsets=4)

    def measure(pairing: Pairing | None) -> dict[str, float]:
        curves = fid_curves(sets, 0, pairing)
        return standard_protocol(sets, curves, config, 0, "scene", pairing)

    metrics = measure(pairing)
    assert metrics == measure(pairing)
    assert metrics["n_floor_other_scene"] == 0
    assert metrics["fid_floor_hi"] < 3 and measure(None)["fid_floor"] > 100
    paper = paper_protocol(sets, pairing, config, 0)
    assert paper["fid_floor"] < 3 and paper["n_floor_other_scene"] == 0
    assert "another scene" not in capsys.readouterr().err

    # Too few roads in training: other tiles stand in for them, which is said.
    few = {name: rows[:353] if name == "train" else rows for name, rows in sets.items()}
    pairing = pairing._replace(train_scenes=pairing.train_scenes[:353])
    metrics = standard_protocol(few, fid_curves(few, 0, pairing), config, 0, "scene", pairing)
    assert metrics["n_floor"] == 40 and metrics["n_floor_other_scene"] == 7
    assert "7 of 40 training tiles" in capsys.readouterr().err
    unknown = pairing._replace(test_scenes=np.repeat("", 40), train_scenes=np.repeat("", 353))
    assert paper_protocol(few, unknown, config, 0)["n_floor_other_scene"] == 30


def test_no_tile_is_drawn_twice_where_its_scene_has_too_few():
    scenes, wanted = np.repeat(["lake", "road"], 20), np.repeat("road", 30)
    drawn = protocols.draw_in_scenes(scenes, wanted, np.random.default_rng(0))
    assert len(np.unique(drawn)) == 30 and (scenes[drawn] == "road").sum() == 20


def test_fewer_training_tiles_than_images_give_no_floor(capsys):
    """Their FID would be that of fewer images: higher, for no fault of theirs."""
    sizes = {"test": 64, "tuned": 64, "base": 64, "train": 30}
    sets = {name: gaussian_sample(n, 6, seed) for seed, (name, n) in enumerate(sizes.items())}
    sets["base"] = sets["base"] + 3
    config = Fid(standard_min_n=8, paper_n=30, paper_draws=2, subsets=3)
    curves = fid_curves(sets, 0)
    metrics = standard_protocol(sets, curves, config, 0, "scene")
    assert "fid_base" in metrics and not [key for key in metrics if "floor" in key]
    assert "30 training tiles are fewer than 64" in capsys.readouterr().err
    *points, end = curve_rows(curves, 6)
    assert all(row["floor"] == row["floor_line"] == "" for row in (*points, end))
    assert [row["images"] for row in points] == [64, 32, 21, 16]
    # The paper's FID is of fewer images: 30 have a floor, 31 have not.
    pairing = Pairing(np.arange(64), np.repeat("lake", 64), np.repeat("lake", 30))
    of_30 = paper_protocol(sets, pairing, config, 0)
    of_31 = paper_protocol(sets, pairing, config.model_copy(update={"paper_n": 31}), 0)
    assert "fid_floor" in of_30 and "fid_floor" not in of_31
    assert 0 < of_31["fid"] < of_31["fid_base"] / 10


def test_draws_that_share_most_images_have_no_standard_deviation():
    """They hardly differ, however much draws of other images would."""
    fake = gaussian_sample(64, 3, 1, shift=0.5)
    sets = {"test": gaussian_sample(64, 3, 0), "train": fake, "tuned": fake, "base": fake}
    pairing = Pairing(np.arange(64), np.repeat("lake", 64), np.repeat("lake", 64))

    def measure(n: int, draws: int) -> dict[str, float]:
        config = Fid(standard_min_n=8, paper_n=n, paper_draws=draws, subsets=3)
        return paper_protocol(sets, pairing, config, 0)

    assert "fid_std" not in measure(33, 5) and "fid_std" not in measure(32, 1)
    fids = [measure(32, draws)["fid"] for draws in (1, 2)]
    other = 2 * fids[1] - fids[0]  # of the second draw
    assert measure(32, 2)["fid_std"] == pytest.approx(np.std([fids[0], other], ddof=1))


def test_intervals_count_the_sites_that_tiles_were_cut_from():
    of_site = np.repeat(gaussian_sample(8, 4, 0), 8, 0)
    sets = {"test": of_site + gaussian_sample(64, 4, 1), "tuned": gaussian_sample(64, 4, 2)}
    sets["train"] = gaussian_sample(90, 4, 3)
    config = Fid(standard_min_n=8, paper_n=30, paper_draws=2, subsets=4)
    order = np.random.default_rng(0).permutation(64)
    pairing = Pairing(order, np.repeat("lake", 64), np.repeat("lake", 90))
    curves = fid_curves(sets, 0, pairing)

    def measure(sites: list[str] | None) -> dict[str, float]:
        return standard_protocol(sets, curves, config, 0, "scene", pairing, sites)

    of_tiles = measure(None)
    assert measure([f"{i}.tif" for i in range(64)]) == of_tiles
    assert describe_sites(of_tiles) == ""
    of_sites = measure([f"{i // 8}.tif" for i in range(64)])
    assert of_sites["n_sites"] == 8
    assert of_sites.keys() - {"n_sites"} == {key for key in of_tiles if "_floor_" not in key} | {
        "n_floor_other_scene"
    }
    for key in ("fid", "kid_x1000"):
        wide, narrow = (m[f"{key}_hi"] - m[f"{key}_lo"] for m in (of_sites, of_tiles))
        assert of_sites[key] == of_tiles[key] and wide > 1.5 * narrow
    assert "64 test tiles were cut from 8 site(s), which" in describe_sites(of_sites)
    # Three sites, or most tiles of one, don't tell how much sites differ.
    for numbers in (np.arange(64) % 3, np.maximum(np.arange(64) - 35, 0)):
        metrics = measure([str(number) for number in numbers])
        assert not [key for key in metrics if key.endswith("_lo")]
        assert metrics["recall_floor"] == of_tiles["recall_floor"]
        assert "too few, or most" in describe_sites(metrics)


def test_sites_of_tiles_are_counted_in_the_order_of_the_images():
    order = np.random.default_rng(0).permutation(64)
    sites = [f"{i // 8}.tif" for i in range(64)]
    lake = np.repeat("lake", 64)
    shared, names, freedom = protocols.count_sites(sites, Pairing(order, lake, lake), 64, 40)
    assert (shared == order // 8).all() and names == ["tuned"] and freedom == 7
    of_two_sites = Pairing(np.arange(16), lake, lake)
    assert protocols.count_sites(sites, of_two_sites, 16, 40)[1] == []


def test_sites_of_the_test_tiles_are_told_by_their_file_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = [f"{i // 8}_r{i}_c0.tif" for i in range(64)]
    for folder in SETS.values():
        (FEATURES / folder).mkdir(parents=True)
        rows = pa.table({"filename": names, "scene": ["lake"] * 64})
        pq.write_table(rows, FEATURES / folder / "rows.parquet")
    sets = {name: gaussian_sample(64, 4, seed) for seed, name in enumerate(SETS)}
    config = Fid(standard_min_n=8, paper_n=30, paper_draws=2, subsets=2)
    metrics, _ = compare_sets(sets, read_image_rows(), np.arange(64), "scene", config, 0)
    assert metrics["standard"]["n_sites"] == 8


def test_a_floor_of_few_real_tiles_says_what_other_few_would_give():
    """A share of the real tiles is one of so few, however many training tiles there are."""
    sizes = {"test": 40, "tuned": 800, "train": 800}
    sets = {name: gaussian_sample(n, 4, seed) for seed, (name, n) in enumerate(sizes.items())}
    config = Fid(standard_min_n=8, paper_n=30, paper_draws=2, subsets=4)
    metrics = standard_protocol(sets, fid_curves(sets, 0), config, 0, "scene")
    assert metrics["coverage_floor"] == 1
    for key in ("coverage", "coverage_floor"):
        assert metrics[f"{key}_lo"] < 0.95  # of 40, two may be missed


def test_features_of_one_point_have_metrics():
    """Of images that all are of one color."""
    one = np.ones((40, 5), np.float32)
    config = Fid(standard_min_n=8, paper_n=20, paper_draws=2, subsets=3)
    for fake in (one, 2 * one, gaussian_sample(40, 5, 0)):
        sets = {"test": one, "train": one, "tuned": fake}
        metrics = standard_protocol(sets, fid_curves(sets, 0), config, 0, "scene")
        assert np.isfinite(list(metrics.values())).all()
        for key in metrics:
            if f"{key}_lo" in metrics:
                assert metrics[f"{key}_lo"] <= metrics[key] <= metrics[f"{key}_hi"]
                assert metrics[f"{key}_lo"] < metrics[f"{key}_hi"], key
        # The real tiles don't differ: no halves of them tell the spread of a distance.
        with_intervals = {key for key in metrics if f"{key}_lo" in metrics}
        assert {"precision", "recall", "coverage"} <= with_intervals
        assert not {"fid_floor", "kid_x1000_floor", "sinkhorn_floor"} & with_intervals
        assert ("fid" in with_intervals) == (fake.std() > 0)
    assert sinkhorn_divergence(one, one) == 0
    # Two points: the cost is the half squared distance.
    assert sinkhorn_divergence(one, 2 * one) == pytest.approx(5 / 2, rel=1e-3)


def test_flat_real_tiles_have_no_detail_to_compare():
    flat = {"blocking": np.ones(3), "detail": np.array([0, 0, 1.0])}
    for detail in (0.0, 0.5):
        fake = {"blocking": np.ones(3), "detail": np.full(3, detail)}
        assert compare_compression_artifacts(flat, fake, "tuned") == {
            "blocking": 1,
            "blocking_real": 1,
            "warned": 0,
        }


@pytest.mark.parametrize(
    "blocking, detail, warned",
    [(1.2, 1.3, 1), (1.2, 0.7, 1), (1.0, 1, 1), (1.4, 1, 1), (1.25, 1.1, 0)],
)
def test_more_and_less_of_an_artifact_are_warned_of(blocking, detail, warned):
    real = {"blocking": np.full(3, 1.2), "detail": np.ones(3)}
    fake = {"blocking": np.full(3, blocking), "detail": np.full(3, detail)}
    assert compare_compression_artifacts(real, fake, "tuned")["warned"] == warned


def test_detail_is_compared_with_real_tiles_in_the_synthetic_mix_of_classes(capsys):
    """A set of lakes has less detail than a test set of towns; that is no blur."""
    detail = np.repeat([1.0, 0.5], [300, 100])
    real = {"blocking": np.ones(400), "detail": detail}
    labels = {"test": ["Town"] * 300 + ["Water"] * 100, "synthetic": ["Water"] * 30}
    fake = {"blocking": np.ones(30), "detail": np.full(30, 0.5)}
    in_mix, has_class_mix = match_class_mix(real, labels, 0)
    assert has_class_mix and capsys.readouterr().err == ""
    assert compare_compression_artifacts(in_mix, fake, "synthetic")["detail_ratio"] == 1
    # Too few test tiles show the class: all are compared.
    labels["test"] = ["Town"] * 390 + ["Water"] * 10
    in_mix, has_class_mix = match_class_mix(real, labels, 0)
    assert not has_class_mix and "compared with all test tiles" in capsys.readouterr().err
    assert compare_compression_artifacts(in_mix, fake, "synthetic")["detail_ratio"] == 0.5


def test_classes_that_the_judge_does_not_know_are_left_out_of_the_agreement():
    logits = np.eye(2)[[0] * 10 + [1] * 10 + [0] * 10]
    labels = ["Forest"] * 10 + ["Water"] * 10 + ["Ice"] * 10
    classes = {"Forest": ["forest"], "Water": ["lake"], "Ice": []}
    agreement = class_agreement(logits, labels, list(range(30)), ["forest", "lake"], classes)
    assert agreement["class_agreement"] == 1
    assert agreement["class_agreement_n"] == agreement["class_agreement_prompts"] == 20
    assert agreement["class_agreement_n_unknown"] == 10
    assert class_agreement(logits[20:], labels[20:], list(range(10)), ["x", "y"], classes) == {}


def test_sinkhorn_divergence_sees_more_than_mean_and_covariance():
    """Two clusters against a Gaussian of their mean and covariance, and against two clusters."""
    clusters = two_clusters(seed=0)
    mean, root = fit_gaussian(clusters)
    one_gaussian = mean + np.random.default_rng(1).normal(size=(400, 2)) @ root
    one_gaussian = one_gaussian.astype(np.float32)
    assert fid(clusters, one_gaussian) < 0.02
    alike = sinkhorn_divergence(clusters, two_clusters(seed=5))
    divergence = sinkhorn_divergence(clusters, one_gaussian)
    assert divergence > 10 * alike
    assert divergence == pytest.approx(0.0629, rel=0.02)  # with geomloss's default blur


def two_clusters(seed: int) -> np.ndarray:
    """float32 [400, 2], half of it around (1, 0) and half around (-1, 0)."""
    x = gaussian_sample(400, 2, seed, scale=0.1)
    x[::2, 0] += 1
    x[1::2, 0] -= 1
    return x


def test_cmmd_is_the_authors_formula(monkeypatch):
    """1000 x MMD of embeddings at unit length, Gaussian kernel of sigma 10, over all pairs."""
    real = gaussian_sample(50, 8, 0)
    fake = gaussian_sample(40, 8, 1, shift=0.5)
    x = real / np.linalg.norm(real, axis=1, keepdims=True)
    y = fake / np.linalg.norm(fake, axis=1, keepdims=True)

    def kernel(a, b):
        return np.exp(-((a[:, None] - b[None]) ** 2).sum(2) / (2 * 10**2)).mean()

    truth = 1000 * (kernel(x, x) + kernel(y, y) - 2 * kernel(x, y))
    assert cmmd(real, fake) == pytest.approx(truth, rel=1e-4)
    monkeypatch.setattr("stages.evaluation.kernel.BLOCK", 7)
    assert cmmd(3 * real, fake) == pytest.approx(truth, rel=1e-4)
    assert cmmd(real, real) == pytest.approx(0, abs=1e-9)


def test_nearest_training_image_by_hand(monkeypatch):
    train = gaussian_sample(30, 6, 0, shift=50)
    x = gaussian_sample(20, 6, 1, shift=50)
    full = np.linalg.norm(x[:, None].astype(np.float64) - train[None], axis=2)
    for block in (1024, 7):
        monkeypatch.setattr("stages.evaluation.prdc.BLOCK", block)
        distances, neighbors = nearest_neighbors(x, train)
        assert np.allclose(distances, full.min(1))
        assert (neighbors == full.argmin(1)).all()


def test_the_nearest_of_images_closer_than_rounding_is_found():
    # Around each of 5 points far apart lie 8 images whose distances float32 can't tell apart.
    rng = np.random.default_rng(0)
    points = rng.normal(0, 3000, (5, 600))
    near = np.arange(1, 9)[:, None] * rng.normal(0, 1e-3, (8, 600))
    train = (points[:, None] + near).reshape(40, 600)
    full = np.linalg.norm(points[:, None] - train[None], axis=2)
    distances, neighbors = nearest_neighbors(points, train)
    assert np.allclose(distances, full.min(1), rtol=1e-9)
    assert (neighbors == full.argmin(1)).all()
    assert (nearest_neighbors(train, train)[0] == 0).all()


def test_a_rotated_or_mirrored_copy_is_found():
    rng = np.random.default_rng(0)
    train = rng.integers(0, 256, (12, 3, THUMBNAIL_SIDE, THUMBNAIL_SIDE)).astype(np.float32)
    for k, mirrored in product(range(4), (False, True)):
        copies = np.rot90(train[..., ::-1] if mirrored else train, k, (2, 3))
        distances, neighbors = nearest_neighbors_dihedral(
            copies.reshape(12, -1) + 1,  # one gray level brighter
            train.reshape(12, -1),
        )
        assert np.allclose(distances, 1)
        assert (neighbors == np.arange(12)).all()


def test_a_copying_generator_is_caught_and_a_fair_one_is_not():
    train = gaussian_sample(400, 8, 0)
    held_out = gaussian_sample(200, 8, 1)
    real, _ = nearest_neighbors(held_out, train)
    rng = np.random.default_rng(2)
    copies = train[rng.integers(0, 400, 150)] + 0.01 * rng.normal(size=(150, 8))
    assert memorization_scores(nearest_neighbors(copies, train)[0], real)["memorized"] > 0.9
    fair = memorization_scores(nearest_neighbors(gaussian_sample(150, 8, 3), train)[0], real)
    assert fair["memorized"] < 0.06 and fair["memorized_lo"] <= 0.01 <= fair["memorized_hi"]
    # Where held-out images are in the training set, only exact copies count.
    real[:20] = 0
    assert memorization_scores(np.array([0, 0.5, 1]), real)["memorized"] == pytest.approx(1 / 3)


def test_copies_are_warned_of_in_words_that_hold_for_images_of_little_variety_too():
    """Images nearer to the mean of the data are nearer to every training tile: they copy nothing.

    Features have numbers, but no warning.
    """
    train, held_out, fresh = (gaussian_sample(n, 64, n) for n in (1000, 256, 250))
    real, _ = nearest_neighbors(held_out, train)
    warnings = {}
    for name, generated in {
        "honest": fresh,
        "copies": train[:250] + 0.01 * fresh,
        "collapsed": 0.5 * fresh,
    }.items():
        scores = memorization_scores(nearest_neighbors(generated, train)[0], real)
        assert (scores["memorized"] > 0.9) == (name != "honest")
        assert describe_near_copies({"pixels": {}, "scene": {"tuned": scores}}) == {}
        warnings[name] = describe_near_copies({"pixels": {"tuned": scores}})
    assert warnings["honest"] == {}
    assert warnings["copies"] == warnings["collapsed"]
    assert re.search("copies, or .*variety", warnings["collapsed"]["tuned"])


def test_of_large_sets_a_sample_is_compared(monkeypatch):
    monkeypatch.setattr("stages.evaluation.memorization.COMPARED", 40)
    train = gaussian_sample(400, 8, 0)
    sets = {
        "train": train,
        "test": gaussian_sample(200, 8, 1),
        "tuned": train[100:300] + 0.01 * gaussian_sample(200, 8, 2),  # copies
        "synthetic": gaussian_sample(120, 8, 3),
    }
    prompts = [number // 4 for number in range(120)]
    labels = {"test": ["Water"] * 200, "synthetic": ["Water"] * 120}
    sites = [str(i) for i in range(200)]
    scores, pairs = compare_with_training_images(
        sets, prompts, labels, sites, nearest_neighbors, seed=0
    )
    assert scores["tuned"]["n"] == scores["synthetic"]["n"] == 40
    assert scores["tuned"]["memorized"] > 0.9 and scores["synthetic"]["memorized"] < 0.2
    assert scores["tuned"]["median"] < 0.1 < scores["tuned"]["median_real"]
    assert all(pair["training"] == 100 + pair["generated"] for pair in pairs)
    assert [pair["real_percentile"] for pair in pairs] == [0] * CLOSEST_PAIRS


def test_near_copies_in_a_sample_are_counted_by_their_prompts(monkeypatch):
    monkeypatch.setattr("stages.evaluation.memorization.COMPARED", 100)
    train, test = gaussian_sample(400, 8, 0), gaussian_sample(200, 8, 1)
    prompts = np.arange(200) % 50  # of 25 of them no image is a copy, of the others all are
    fake = train[prompts] + 9 * (prompts < 25)[:, None] + 0.01 * gaussian_sample(200, 8, 2)
    sets = {"train": train, "test": test, "tuned": train[:30], "synthetic": fake}
    labels = {"test": ["Water"] * 200, "synthetic": ["Water"] * 200}
    sites = [str(i) for i in range(200)]
    scores, _ = compare_with_training_images(
        sets, prompts.tolist(), labels, sites, nearest_neighbors, 0
    )
    of_prompts = scores["synthetic"]["memorized_hi"] - scores["synthetic"]["memorized_lo"]
    assert of_prompts > 0.3  # counting images: 0.2


def sample_classes(counts: dict[str, int], seed: int) -> tuple[np.ndarray, list[str]]:
    """Features [N, 2] of a dense class and of a sparse one, and the class of each."""
    scales = {"Water": 0.2, "City": 2.0}
    labels = [name for name, count in counts.items() for _ in range(count)]
    deviations = np.array([[scales[name]] for name in labels])
    return gaussian_sample(len(labels), 2, seed) * deviations, labels


def test_synthetic_images_are_judged_by_real_ones_in_their_mix_of_classes():
    """Perfect images of each class, in another mix: near-copies are as many as expected."""
    near, plain = [], []
    for seed in range(0, 75, 3):
        train, _ = sample_classes({"Water": 100, "City": 100}, seed)
        test, test_labels = sample_classes({"Water": 50, "City": 450}, seed + 1)
        fake, fake_labels = sample_classes({"Water": 300, "City": 300}, seed + 2)
        sets = {"train": train, "test": test, "tuned": test, "synthetic": fake}
        labels = {"test": test_labels, "synthetic": fake_labels}
        sites = [str(i) for i in range(500)]
        scores, _ = compare_with_training_images(
            sets, list(range(600)), labels, sites, nearest_neighbors, seed
        )
        near.append(scores["synthetic"]["memorized"])
        expected = scores["synthetic"]["memorized_expected"]
        distances, held_out = (nearest_neighbors(x, train)[0] for x in (fake, test))
        plain.append((distances < np.percentile(held_out, 1)).mean())
    assert expected == pytest.approx(1.99 / 101)  # of 50 + 50 held-out images
    assert np.mean(near) == pytest.approx(expected, abs=0.008)
    assert np.mean(plain) > 2 * 0.012  # the expected share with 500 held-out images


def test_too_few_real_images_in_the_mix_tell_no_expected_share():
    train, _ = sample_classes({"Water": 50, "City": 50}, 0)
    test, test_labels = sample_classes({"Water": 12, "City": 88}, 1)
    fake, fake_labels = sample_classes({"Water": 30, "City": 30}, 2)
    sets = {"train": train, "test": test, "tuned": test, "synthetic": fake}
    labels = {"test": test_labels, "synthetic": fake_labels}
    prompts, sites = list(range(60)), [str(i) for i in range(100)]
    scores, _ = compare_with_training_images(sets, prompts, labels, sites, nearest_neighbors, 0)
    assert "memorized_expected" not in scores["synthetic"]
    assert scores["synthetic"]["limit"] == scores["tuned"]["limit"]
    assert "memorized_expected" in scores["tuned"]


def test_real_tiles_of_the_training_scenes_are_not_said_to_be_copies():
    """Tiles of other scenes are farther from the training tiles, however good the generator is."""
    of_training = gaussian_sample(20, 6, 0)
    train, fake = (
        np.repeat(of_training, n, 0) + 0.3 * gaussian_sample(20 * n, 6, n) for n in (50, 10)
    )
    test = np.repeat(gaussian_sample(4, 6, 1), 50, 0) + 0.3 * gaussian_sample(200, 6, 2)
    sets = {"train": train, "test": test, "tuned": fake, "synthetic": fake}
    labels = {"test": ["Water"] * 200, "synthetic": ["Water"] * 200}
    warnings = {}
    for site_count in (200, 4):
        sites = [str(i * site_count // 200) for i in range(200)]
        scores, _ = compare_with_training_images(
            sets, list(range(200)), labels, sites, nearest_neighbors, 0
        )
        warnings[site_count] = describe_near_copies({"pixels": scores})
    assert list(warnings[200]) == ["tuned", "synthetic"]  # taken for tiles of as many scenes
    assert warnings[4] == {} and scores["tuned"]["memorized"] > 0
    assert not scores["tuned"].keys() & {"memorized_expected", "memorized_lo", "memorized_hi"}


@pytest.mark.parametrize(
    "counts, wanted, drawn",
    [
        ({"a": 30, "b": 90}, {"a": 10, "b": 10}, {"a": 30, "b": 30}),
        ({"a": 30, "b": 90}, {"a": 10, "b": 60}, {"a": 15, "b": 90}),
        ({"a": 30, "b": 90, "c": 7}, {"a": 1, "b": 1}, {"a": 30, "b": 30}),
        ({"a": 30}, {"a": 10, "b": 10}, {}),
    ],
)
def test_a_mix_of_classes_is_as_large_as_its_rarest_class_allows(counts, wanted, drawn):
    labels, others = (
        np.array([name for name, count in given.items() for _ in range(count)])
        for given in (counts, wanted)
    )
    rows = draw_class_mix(labels, others, np.random.default_rng(0))
    assert len(np.unique(rows)) == len(rows)
    names, numbers = np.unique(labels[rows], return_counts=True)
    assert dict(zip(names, numbers)) == drawn


def test_mode_collapse_is_caught():
    """Of 20 classes the generator draws one: recall and coverage fall, precision does not."""
    centers = 6 * gaussian_sample(20, 16, 0)
    real = np.repeat(centers, 15, 0) + gaussian_sample(300, 16, 1)
    good = np.repeat(centers, 15, 0) + gaussian_sample(300, 16, 2)
    collapsed = centers[:1] + gaussian_sample(300, 16, 3)
    metrics = compute_prdc(real, collapsed)
    assert metrics["recall"] < 0.1 and metrics["coverage"] < 0.1 and metrics["precision"] > 0.5
    metrics = compute_prdc(real, good)
    assert metrics["recall"] > 0.5 and metrics["coverage"] > 0.5
    assert fid(real, collapsed) > 10 * fid(real, good)


def test_clip_score_lies_between_that_of_other_captions_and_100():
    rng = np.random.default_rng(0)
    captions = rng.normal(size=(200, 32)).astype(np.float32)
    images = {
        "tuned": captions + 0.5 * rng.normal(size=captions.shape),
        "base": rng.normal(size=captions.shape),
        "real": 3 * captions,
    }
    scores = clip_score(images, captions, rng)
    assert scores["clip_score_real"] == pytest.approx(100, rel=1e-5)
    assert scores["clip_score_lo"] < scores["clip_score"] < scores["clip_score_hi"] < 100
    assert scores["clip_score_null"] == pytest.approx(scores["clip_score_base"], abs=2)
    assert scores["clip_score"] > 80


def test_the_clip_score_of_other_captions_is_not_of_the_same_text():
    """Class folders without captions: one text for each class."""
    rng = np.random.default_rng(0)
    texts = np.eye(2, 8, dtype=np.float32)
    captions = texts[np.repeat([0, 1], [150, 50])] + np.float32(1e-6) * gaussian_sample(200, 8, 0)
    images = dict.fromkeys(("tuned", "base", "real"), captions)
    assert clip_score(images, captions, rng)["clip_score_null"] == pytest.approx(0, abs=0.01)
    images = dict.fromkeys(images, captions[:150])
    assert "clip_score_null" not in clip_score(images, captions[:150], rng)


def test_the_clip_score_of_real_tiles_is_that_of_the_captions_own_tiles(tmp_path, monkeypatch):
    """The features of the test tiles lie in another order than those of the captions."""
    monkeypatch.chdir(tmp_path)
    captions = gaussian_sample(5, 8, 0)
    order = np.array([3, 0, 4, 1, 2])
    features = {"test": captions[np.argsort(order)], "base": -captions}
    for name, folder in SETS.items():
        (FEATURES / folder).mkdir(parents=True)
        arrays = {"features": features.get(name, captions), "captions": captions}
        save_file(arrays, FEATURES / folder / "clip.safetensors")
    scores = measure_clip_score(order, 0)
    found = [scores[f"clip_score{suffix}"] for suffix in ("", "_base", "_real")]
    assert found == pytest.approx([100, 0, 100])
