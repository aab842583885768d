"""95 % intervals of shares, scores, perplexity and ratings hold the truth, and are no wider."""

import numpy as np
import pytest

from benchmarks.coverage_shares import Scenario, measure, scenarios
from stages.evaluation.caption_agreement import caption_agreement, clip_score
from stages.evaluation.intervals import share_interval, wilson_interval
from stages.evaluation.memorization import memorization_scores

PROMPTS = "class agreement, 70 prompts x 5 images, correlation 0.5"
COPIES = "near-copies, 256 images, 12 held out, 5% copied"
DOCUMENTS = "log perplexity, 5 documents, sd of log length 0.5"
# Title of a row of the benchmark's table -> repetitions: fewer where one takes milliseconds.
FAST = {
    "caption agreement, 256 images": 400,
    PROMPTS: 400,
    "class agreement, 10 prompts x 5 images, correlation 0.5": 400,
    COPIES: 150,
    DOCUMENTS: 400,
    "log perplexity, 50 documents, sd of log length 0.5": 400,
    "average_accuracy, 3 seeds of sd 0.1, 100 tiles": 80,
    "share of ceiling, 5 seeds of sd 0.3, 100 tiles": 50,
    "detection accuracy, 3 experts of sd 0.0 x 40 tiles": 200,
    "realism, 5 experts of sd 0.3 x 40 tiles": 200,
}


def find(title: str) -> Scenario:
    return next(scenario for scenario in scenarios() if scenario.title == title)


@pytest.mark.parametrize("title", FAST)
def test_intervals_hold_the_truth_and_are_no_wider_than_they_must(title, monkeypatch):
    monkeypatch.setattr("stages.evaluation.scores.BOOTSTRAP_SAMPLES", 100)
    scenario = find(title)
    found = measure(scenario, FAST[title])
    assert found.held > 0.895  # 0.95 less two or three standard deviations
    if scenario.units < 10:
        assert found.width_by_t < 1.15
    else:
        assert found.width < 1.4


@pytest.mark.parametrize("title", [PROMPTS, DOCUMENTS, "caption agreement, 256 images"])
def test_narrower_intervals_would_not_pass(title):
    assert measure(find(title), 400, shrink=0.7).held < 0.895


def test_counting_images_or_forgetting_the_noise_of_the_limit_would_not_pass(monkeypatch):
    def count_images(successes: np.ndarray, _: np.ndarray) -> tuple[float, float]:
        return wilson_interval(successes.sum(), len(successes))

    def forget_limit(copies: float, n: float, *_: float) -> tuple[float, float]:
        return wilson_interval(copies, n)

    monkeypatch.setattr("stages.evaluation.caption_agreement.share_interval", count_images)
    monkeypatch.setattr("stages.evaluation.memorization.near_copy_interval", forget_limit)
    assert measure(find(PROMPTS), 400).held < 0.85
    assert measure(find(COPIES), 400).held < 0.85


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


def test_agreement_by_scene_has_intervals_and_the_synthetic_set_counts_prompts():
    scenes = ["forest", "lake"]
    wanted = {"tuned": ["forest"] * 6 + ["lake"] * 4, "base": scenes, "test": scenes * 5}
    wanted["synthetic"] = ["Woody Vegetation"] * 30
    logits = {name: np.eye(2)[np.zeros(len(values), int)] for name, values in wanted.items()}
    logits["synthetic"][:10] = [0, 1]
    prompts = np.repeat(np.arange(6), 5).tolist()
    classes = {"Woody Vegetation": ["forest"], "Water Body": ["lake"]}
    metrics, table = caption_agreement(logits, wanted, prompts, scenes, classes)
    low, high = wilson_interval(6, 6)
    assert metrics["per_scene"]["forest"] == 1
    assert (metrics["per_scene_lo"]["forest"], metrics["per_scene_hi"]["forest"]) == (low, high)
    assert (table[0]["tuned_lo"], table[0]["tuned_hi"], table[0]["n"]) == (low, high, 6)
    assert metrics["class_agreement_prompts"] == 6
    assert metrics["class_agreement_lo"] < wilson_interval(4, 6)[0] + 0.02


def test_clip_score_of_equal_images_has_no_interval():
    captions = np.ones((5, 4))
    images = dict.fromkeys(("tuned", "base", "real"), np.ones((5, 4)))
    scores = clip_score(images, captions, np.random.default_rng(0))
    assert scores["clip_score"] == pytest.approx(100)
    assert "clip_score_lo" not in scores
