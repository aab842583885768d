"""95 % intervals of shares, scores, perplexity and ratings hold the truth, and are no wider."""

import numpy as np
import pytest
from scipy.special import ndtri

from benchmarks.classifier_variances import estimate_model, shared_difficulty
from benchmarks.coverage_shares import Scenario, measure, scenarios
from stages.evaluation.caption_agreement import (
    caption_agreement,
    class_agreement,
    clip_score,
    clip_score_with_interval,
)
from stages.evaluation.intervals import share_interval, wilson_interval
from stages.evaluation.memorization import memorization_scores

PROMPTS = "70 prompts x 5 images, correlation 0.5"
COPIES = "256 images, 12 held out, 5% copied"
DOCUMENTS = "5 documents, sd of log length 1.0"
# Title of the benchmark's rows -> repetitions: fewer where one takes milliseconds.
FAST = {
    "256 images": 400,
    PROMPTS: 400,
    "10 prompts x 5 images, correlation 0.5": 400,
    "30 captions x 10 images": 400,
    COPIES: 150,
    DOCUMENTS: 400,
    "10 documents, sd of log length 1.0": 400,
    "3 classifiers, 49 tiles of a class": 200,
    "3 classifiers, 186 tiles": 80,
    "5 classifiers of each kind, 186 tiles": 50,
    "2 experts of sd 0.3 x 40 tiles": 200,
    "3 experts of sd 0.0 x 40 tiles": 200,
    "5 experts of sd 0.3 x 40 tiles": 200,
}


def find(title: str) -> list[Scenario]:
    return [scenario for scenario in scenarios() if scenario.title == title]


def held(title: str, shrink: float = 1.0) -> float:
    """Coverage of the first estimate of this title."""
    return next(iter(measure(find(title)[0], 400, shrink).values())).held


@pytest.mark.parametrize("title", FAST)
def test_intervals_hold_the_truth_and_are_no_wider_than_they_must(title, monkeypatch):
    monkeypatch.setattr("stages.evaluation.scores.BOOTSTRAP_SAMPLES", 100)
    for scenario in find(title):
        for name, found in measure(scenario, FAST[title]).items():
            assert found.held > 0.895, name  # 0.95 less two or three standard deviations
            if scenario.units < 10:
                assert found.width_by_t < 1.1, name
            else:
                assert found.width < 1.4, name


@pytest.mark.parametrize("title", [PROMPTS, DOCUMENTS, "256 images"])
def test_narrower_intervals_would_not_pass(title):
    assert held(title, shrink=0.7) < 0.895


def test_counting_images_or_forgetting_the_noise_of_the_limit_would_not_pass(monkeypatch):
    def count_images(successes: np.ndarray, *_: np.ndarray) -> tuple[float, float]:
        return wilson_interval(successes.sum(), len(successes))

    def forget_limit(copies: float, n: float, *_: float) -> tuple[float, float]:
        return wilson_interval(copies, n)

    monkeypatch.setattr("stages.evaluation.intervals.share_interval", count_images)
    monkeypatch.setattr("stages.evaluation.memorization.near_copy_interval", forget_limit)
    assert held(PROMPTS) < 0.85
    assert held(COPIES) < 0.85


def test_variances_of_classifiers_are_found_again():
    """Those of the benchmark's model, from 20 seeds and 1,400 images of 7 classes."""
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(7), 200)
    thresholds = ndtri(np.linspace(0.5, 0.9, 7))[labels] * np.sqrt(1 + 0.2**2 + 0.3**2 + 1.2**2)
    image = rng.normal(size=(3, 1, 1400))  # common to both kinds of classifiers, and their own
    correct = []
    for own in (1, 2):
        seed = 0.2 * rng.normal(size=(20, 1)) + 0.3 * rng.normal(size=(20, 7))[:, labels]
        difficulty = 1.2 * (image[0] + image[own]) / np.sqrt(2)
        correct.append(thresholds + seed + difficulty + rng.normal(size=(20, 1400)) > 0)
    found = estimate_model(correct[0], labels)
    assert found["seed_sd"] == pytest.approx(0.2, abs=0.1)
    assert found["seed_class_sd"] == pytest.approx(0.3, abs=0.06)
    assert found["image_sd"] == pytest.approx(1.2, abs=0.1)
    assert shared_difficulty(*correct, labels) == pytest.approx(0.5, abs=0.12)


@pytest.mark.parametrize("held_out", [256, 50, 12])
def test_a_generator_that_copies_nothing_is_rarely_flagged(held_out):
    """Its expected score depends on the number of held-out images: 0.0138 at 256, 0.085 at 12."""
    rng = np.random.default_rng(0)
    expected = (1 + 0.01 * (held_out - 1)) / (held_out + 1)
    flagged = 0
    shares = []
    for _ in range(100):
        found = memorization_scores(rng.uniform(size=256), rng.uniform(size=held_out))
        assert found["memorized_expected"] == pytest.approx(expected)
        flagged += found["memorized_lo"] > expected
        shares.append(found["memorized"])
    assert flagged <= 8  # 2.5 % on average; 20, 49 and 79 % with Wilson's interval
    assert np.mean(shares) == pytest.approx(expected, abs=3 * np.std(shares) / np.sqrt(100))
    copied = memorization_scores(np.where(np.arange(256) < 128, 0, 1.0), 1 + rng.uniform(size=50))
    assert copied["memorized_lo"] > copied["memorized_expected"]


def test_near_copies_of_one_prompt_count_as_one():
    held_out = np.linspace(1, 2, 256)
    generated = np.repeat(np.where(np.arange(70) < 3, 0.5, 2.0), 5)
    alone = memorization_scores(generated, held_out)
    clustered = memorization_scores(generated, held_out, np.repeat(np.arange(70), 5))
    assert alone["memorized"] == clustered["memorized"] == pytest.approx(3 / 70)
    ratio = (clustered["memorized_hi"] - clustered["memorized_lo"]) / (
        alone["memorized_hi"] - alone["memorized_lo"]
    )
    assert 1.5 < ratio < 3
    # Held-out images that are training images: as many of the generated are expected to be.
    assert memorization_scores(generated, np.zeros(9))["memorized_expected"] == pytest.approx(0.9)


def test_share_of_units_that_agree_within():
    """The demo's 350 images of 70 prompts, by the number right of 5: [0.646, 0.811] by prompts."""
    right = np.repeat(np.arange(6), [6, 6, 6, 6, 6, 40])  # of each prompt
    successes = (np.arange(5) < right[:, None]).ravel()
    units = np.repeat(np.arange(70), 5)
    assert share_interval(successes, units) == pytest.approx((0.646, 0.811), abs=0.01)
    each = np.arange(350)
    assert share_interval(successes, each) == pytest.approx(wilson_interval(260, 350))
    # All right: nothing tells how alike images of one prompt are.
    assert share_interval(np.ones(350, bool), units) == pytest.approx(wilson_interval(70, 70))
    assert share_interval(successes, np.zeros(350)) == (0, 1)
    # Values that alternate within units say no more than independent ones.
    alternating, pairs = np.tile([True, False], 20), np.repeat(np.arange(20), 2)
    assert share_interval(alternating, pairs) == pytest.approx(wilson_interval(20, 40))


@pytest.mark.parametrize("sizes", [[100, 50, 25, 12, 6, 3], [80, 5, 5, 5, 5], [150] + [1] * 50])
def test_units_of_unequal_sizes_count_as_fewer(sizes):
    """Counted alike, they would hold the truth in 0.84, 0.61 and 0.42."""
    rng = np.random.default_rng(0)
    units = np.repeat(np.arange(len(sizes)), sizes)
    held = 0
    for _ in range(400):
        share = rng.beta(0.8 / 0.3 * 0.7, 0.2 / 0.3 * 0.7, len(sizes))  # correlation 0.3
        low, high = share_interval(rng.uniform(size=len(units)) < share[units], units)
        held += low <= 0.8 <= high
    assert held > 0.92 * 400


def test_agreement_by_scene_has_intervals_and_the_synthetic_set_counts_prompts():
    scenes = ["forest", "lake"]
    wanted = {"tuned": ["forest"] * 6 + ["lake"] * 4, "base": scenes, "test": scenes * 5}
    logits = {name: np.eye(2)[np.zeros(len(values), int)] for name, values in wanted.items()}
    files = [f"{number}.png" for number in range(10)]
    metrics, table = caption_agreement(logits, wanted, scenes, files)
    assert (metrics["ceiling_lo"], metrics["ceiling_hi"]) == wilson_interval(5, 10)
    of_one_site, _ = caption_agreement(logits, wanted, scenes, ["a.png"] * 10)
    assert (of_one_site["ceiling_lo"], of_one_site["ceiling_hi"]) == (0, 1)
    low, high = wilson_interval(6, 6)
    assert metrics["per_scene"]["forest"] == 1
    assert (metrics["per_scene_lo"]["forest"], metrics["per_scene_hi"]["forest"]) == (low, high)
    assert (table[0]["tuned_lo"], table[0]["tuned_hi"], table[0]["n"]) == (low, high, 6)

    synthetic_logits = np.eye(2)[np.zeros(30, int)]
    synthetic_logits[:10] = [0, 1]
    prompts = np.repeat(np.arange(6), 5).tolist()
    classes = {"Woody Vegetation": ["forest"], "Water Body": ["lake"]}
    labels = ["Woody Vegetation"] * 30
    metrics = class_agreement(synthetic_logits, labels, prompts, scenes, classes)
    assert metrics["class_agreement_prompts"] == 6
    assert metrics["class_agreement_lo"] < wilson_interval(4, 6)[0] + 0.02


def test_images_of_unknown_scenes_are_left_out_with_their_sites_and_prompts():
    """Those that are known are of one site, and of one prompt: they have no interval."""
    scenes = ["forest", "lake"]
    real = ["snow"] * 5 + ["forest"] * 5
    wanted = {"tuned": ["snow", "forest"], "base": ["forest", "forest"], "test": real}
    logits = {name: np.eye(2)[[0] * len(values)] for name, values in wanted.items()}
    metrics, _ = caption_agreement(logits, wanted, scenes, [*"abcde", *["f"] * 5])
    assert metrics["n_unknown_scene"] == 1
    assert (metrics["ceiling_lo"], metrics["ceiling_hi"]) == (0, 1)

    classes = {"Woody": ["forest"], "Ice": ["snow"]}
    labels, prompts = ["Ice"] * 5 + ["Woody"] * 5, [*range(5), *[5] * 5]
    metrics = class_agreement(np.eye(2)[[0] * 10], labels, prompts, scenes, classes)
    assert metrics["class_agreement_prompts"] == 1
    assert (metrics["class_agreement_lo"], metrics["class_agreement_hi"]) == (0, 1)


def test_chance_of_agreement_is_that_of_guessing_among_the_scenes():
    scenes = ["forest", "lake", "river"]
    wanted = {name: scenes for name in ("tuned", "base", "test")}
    logits = dict.fromkeys(wanted, np.eye(3))
    metrics, _ = caption_agreement(logits, wanted, scenes, scenes)
    assert metrics["caption_agreement_chance"] == pytest.approx(1 / 3)
    classes = {"Woody": ["forest"], "Water": ["lake", "river"], "Ice": ["snow"]}
    labels = ["Woody", "Woody", "Woody", "Water", "Ice"]  # the judge knows no snow
    metrics = class_agreement(np.eye(3)[[0] * 5], labels, [0, 1, 2, 3, 4], scenes, classes)
    assert metrics["class_agreement_chance"] == pytest.approx((3 * 1 / 3 + 2 / 3) / 4)


def test_the_clip_score_of_alike_images_counts_their_units():
    rng = np.random.default_rng(0)
    captions = np.repeat(rng.normal(size=(10, 16)), 8, 0)
    images = captions + np.repeat(rng.normal(size=(10, 16)), 8, 0)
    widths = [
        scores["clip_score_hi"] - scores["clip_score_lo"]
        for units in (None, np.repeat(np.arange(10), 8))
        if (scores := clip_score_with_interval(images, captions, units))
    ]
    assert widths[1] > 2 * widths[0]


def test_clip_score_of_equal_images_has_no_interval():
    captions = np.ones((5, 4))
    images = dict.fromkeys(("tuned", "base", "real"), np.ones((5, 4)))
    scores = clip_score(images, captions, np.random.default_rng(0))
    assert scores["clip_score"] == pytest.approx(100)
    assert "clip_score_lo" not in scores
