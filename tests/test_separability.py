"""How well a classifier tells generated images from real ones (evaluation/separability.py)."""

import numpy as np
import pytest
from scipy.special import ndtr

from stages.evaluation import separability
from stages.evaluation.intervals import share_interval, wilson_interval
from stages.evaluation.pairing import Pairing

DIMENSIONS = 8


def own_sites(count: int) -> list[str]:
    """Sites of tiles that were not cut from larger images."""
    return [f"{i}.png" for i in range(count)]


def pair(real_indices: np.ndarray, test: int, train: int) -> Pairing:
    """A pairing with so many test and training tiles, which all show lakes."""
    return Pairing(real_indices, np.repeat("lake", test), np.repeat("lake", train))


def draw(shift: float, count: int, generator: np.random.Generator) -> np.ndarray:
    """Features [N, D] of a Gaussian whose mean is `shift` in the first dimension."""
    features = generator.normal(size=(count, DIMENSIONS))
    features[:, 0] += shift
    return features


@pytest.mark.parametrize("shift, accuracy", [(0.0, 0.5), (2.0, ndtr(1.0)), (20.0, 1.0)])
def test_accuracy_is_that_of_the_best_classifier(shift, accuracy):
    """Of two Gaussians at a distance d, the best classifier is right in Phi(d / 2)."""
    generator = np.random.default_rng(0)
    real, fake = draw(0.0, 8000, generator), draw(shift, 8000, generator)
    told = separability.separability(real, fake, own_sites(8000), seed=1)
    assert told["accuracy"] == pytest.approx(accuracy, abs=0.012) and told["n"] == 8000
    assert told["accuracy_lo"] < told["accuracy"] <= told["accuracy_hi"] + 1e-9
    assert told == separability.separability(real, fake, own_sites(8000), seed=1)


def test_the_interval_holds_the_classifiers_accuracy():
    """Its accuracy on other images is known by drawing many of them."""
    generator = np.random.default_rng(1)
    new_real, new_fake = draw(0.0, 20_000, generator), draw(1.0, 20_000, generator)
    held = 0
    repetitions = 300
    for _ in range(repetitions):
        real, fake = draw(0.0, 128, generator), draw(1.0, 128, generator)
        trained = (real[:64], fake[:64])
        correct = separability.classify_pairs(*trained, real[64:], fake[64:])
        low, high = share_interval(correct.ravel(), np.repeat(np.arange(64), 2))
        truth = separability.classify_pairs(*trained, new_real, new_fake).mean()
        held += low <= truth <= high
    # 300 times 0.95 varies by 0.0126.
    assert held / repetitions == pytest.approx(0.95, abs=0.04)


def test_images_of_one_caption_count_once_and_few_are_not_measured():
    generator = np.random.default_rng(2)
    sets = {name: draw(0.0, 100, generator) for name in ("test", "train")}
    sets |= {"tuned": draw(3.0, 300, generator), "base": draw(9.0, 300, generator)}
    sites = {name: own_sites(100) for name in ("test", "train")}
    pairing = pair(np.repeat(np.arange(100), 3), 100, 100)
    told = separability.compare_separability(sets, sites, pairing, seed=0)
    assert told["n"] == 100
    assert told["accuracy_floor"] < 0.8 < told["accuracy"] < told["accuracy_base"]
    seven = pairing._replace(real_indices=np.repeat(np.arange(7), 3))
    assert separability.compare_separability(sets, sites, seven, seed=0) == {}


def test_few_training_tiles_are_compared_with_test_tiles_of_all_scenes():
    """Test tiles may be sorted by scene: the first ones would be of other scenes."""
    generator = np.random.default_rng(3)
    scenes = np.repeat(np.arange(4.0), 200)  # of the test tiles
    test, tuned = (draw(0.0, 800, generator) for _ in range(2))
    test[:, 0] += 3 * scenes
    train = draw(0.0, 200, generator)
    train[:, 0] += 3 * np.repeat(np.arange(4.0), 50)
    sets = {"test": test, "train": train, "tuned": tuned, "base": tuned}
    sites = {"test": own_sites(800), "train": own_sites(200)}
    told = separability.compare_separability(sets, sites, pair(np.arange(800), 800, 200), seed=0)
    assert told["accuracy_floor"] == pytest.approx(0.5, abs=0.12)
    alone = separability.separability(test[:200], train, own_sites(200), 0)
    assert alone["accuracy"] > 0.75


def test_real_vs_real_has_the_test_tiles_mix_of_scenes():
    """Balanced test tiles of unbalanced training tiles, and a perfect generator."""
    generator = np.random.default_rng(5)
    of_test = np.repeat(np.arange(3), 100)
    of_train = np.repeat(np.arange(3), [1600, 250, 150])
    centers = 3 * np.eye(3, DIMENSIONS)
    test, tuned, train = (
        centers[scenes] + draw(0.0, len(scenes), generator)
        for scenes in (of_test, of_test, of_train)
    )
    sets = {"test": test, "train": train, "tuned": tuned, "base": tuned}
    sites = {"test": own_sites(300), "train": own_sites(2000)}
    names = np.array(["lake", "park", "road"])
    pairing = Pairing(np.arange(300), names[of_test], names[of_train])
    unknown = pairing._replace(test_scenes=np.repeat("", 300), train_scenes=np.repeat("", 2000))
    floors, of_any_scenes = (
        [
            separability.compare_separability(sets, sites, known, seed)["accuracy_floor"]
            for seed in range(6)
        ]
        for known in (pairing, unknown)
    )
    assert np.mean(floors) == pytest.approx(0.5, abs=0.03)
    assert np.mean(of_any_scenes) > 0.6


def draw_scenes(count: int, per_scene: int, generator: np.random.Generator) -> np.ndarray:
    """Features [count * per_scene, D] of tiles, which within a scene are alike."""
    scenes = generator.normal(size=(count, 1, 32))
    tiles = scenes + 0.5 * generator.normal(size=(count, per_scene, 32))
    return tiles.reshape(-1, 32)


def test_the_interval_counts_the_sites_of_the_tiles():
    """Half of 8 sites are tested, and all of their tiles are told from the images."""
    generator = np.random.default_rng(6)
    real, fake = draw(0.0, 64, generator), draw(20.0, 64, generator)
    told = separability.separability(real, fake, [str(i // 8) for i in range(64)], seed=0)
    assert told["accuracy"] == 1
    assert (told["accuracy_lo"], told["accuracy_hi"]) == wilson_interval(4, 4)


def test_tiles_of_one_scene_do_not_tell_it_from_a_perfect_generators_images():
    """Tiles of one scene in both halves would: a classifier learns the scenes by heart."""
    generator = np.random.default_rng(4)
    count, per_scene = 12, 20
    sites = {
        split: [f"{split}{i}.tif" for i in range(count) for _ in range(per_scene)]
        for split in ("test", "train")
    }
    every = pair(np.arange(count * per_scene), count * per_scene, count * per_scene)
    told = []
    for seed in range(20):
        real, train = (draw_scenes(count, per_scene, generator) for _ in range(2))
        perfect = draw_scenes(count * per_scene, 1, generator)  # each image of a scene of its own
        sets = {"test": real, "train": train, "tuned": perfect, "base": perfect}
        told.append(separability.compare_separability(sets, sites, every, seed))
    for key in ("accuracy", "accuracy_base", "accuracy_floor"):
        assert np.mean([each[key] for each in told]) == pytest.approx(0.5, abs=0.04)
    held = sum(each["accuracy_lo"] <= 0.5 <= each["accuracy_hi"] for each in told)
    assert held >= 17
    # Tiles of three scenes can't be halved so that an interval follows.
    few = every._replace(real_indices=np.arange(3 * per_scene))
    assert separability.compare_separability(sets, sites, few, seed=0) == {}
