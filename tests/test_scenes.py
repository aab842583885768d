"""The scene renderer: reproducible tiles, true captions, two clearly different looks."""

import hashlib
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest

from stages.embedded.scenes import SCENE_NAMES, SCENES, render, render_tiles

ROOT = Path(__file__).resolve().parents[1]


def digest(seed: int, index: int) -> str:
    """Hash of the bytes and captions of one tile of each scene."""
    h = hashlib.sha256()
    for scene in SCENES:
        for look in ("domain", "base"):
            image, text = render(scene, seed, index, 48, look)
            h.update(image.tobytes() + "|".join(text).encode())
    return h.hexdigest()


def test_same_bytes_again_and_in_a_fresh_process():
    here = digest(11, 5)
    assert digest(11, 5) == here
    code = (
        "import sys; sys.path[:0] = ['.', 'tests']; "
        "from test_scenes import digest; print(digest(11, 5))"
    )
    out = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert out.stdout.strip() == here


def test_order_does_not_matter():
    alone = render("lake", 2, 7, 32, "domain")[0]
    for index in range(7):
        render("coast", 2, index, 32, "domain")
    assert np.array_equal(render("lake", 2, 7, 32, "domain")[0], alone)


@pytest.mark.parametrize("scene", SCENES)
def test_index_and_seed_change_the_tile(scene):
    one = render(scene, 0, 0, 32, "domain")[0].astype(int)
    assert np.abs(one - render(scene, 0, 1, 32, "domain")[0]).mean() > 3
    assert np.abs(one - render(scene, 1, 0, 32, "domain")[0]).mean() > 3


@pytest.mark.parametrize("size", [16, 50, 64, 96])
def test_any_size(size):
    for tile in render_tiles(0, 0, 12, size, "domain"):
        assert tile["image"].shape == (size, size, 3) and tile["image"].dtype == np.uint8
        assert tile["image"].std() > 2, tile["scene"]


def test_one_layout_at_every_size():
    # averaged down, a large tile resembles the small one: the layout is in tile units
    for scene in ("lake", "coast", "farmland", "residential", "airport"):
        small = render(scene, 4, 1, 32, "base")[0].astype(float)
        large = (
            render(scene, 4, 1, 128, "base")[0].astype(float).reshape(32, 4, 32, 4, 3).mean((1, 3))
        )
        assert np.corrcoef(small.ravel(), large.ravel())[0, 1] > 0.85, scene


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="moon"):
        render("moon", 0, 0, 64, "domain")
    with pytest.raises(ValueError, match="photo"):
        render("lake", 0, 0, 64, "photo")
    with pytest.raises(ValueError, match=r"\b8\b"):
        render("lake", 0, 0, 8, "domain")


def test_tiles_cycle_through_scenes():
    got = list(render_tiles(0, 3, 8, 16, "base", ("lake", "coast")))
    assert [(t["index"], t["scene"]) for t in got] == [
        (3, "coast"),
        (4, "lake"),
        (5, "coast"),
        (6, "lake"),
        (7, "coast"),
    ]


def test_captions_name_their_scene():
    vocabulary = set()
    for tile in render_tiles(1, 0, 600, 16, "domain"):
        assert len(tile["captions"]) == 5
        for text in tile["captions"]:
            words = text.split()
            vocabulary.update(words)
            assert words[-1] == "." and 4 <= len(words) <= 25, text
            assert any(name in text for name in SCENE_NAMES[tile["scene"]]), (tile["scene"], text)
    assert len(vocabulary) < 300


def test_both_looks_share_captions_and_layout_but_not_color():
    gap = []
    for index in range(120):
        scene = SCENES[index % 12]
        domain, words = render(scene, 5, index, 32, "domain")
        base, same = render(scene, 5, index, 32, "base")
        assert words == same
        gap.append(np.abs(domain.astype(float) - base).mean())
    assert np.mean(gap) > 30


def mean_colors(scene, pick, count=80):
    """Mean RGB [3] of the domain tiles with a caption that `pick` accepts, and of the others."""
    matching = []
    others = []
    for index in range(count):
        image, captions = render(scene, 9, index, 32, "domain")
        group = matching if any(pick(caption) for caption in captions) else others
        group.append(image.reshape(-1, 3).mean(0))
    assert len(matching) > 3 and len(others) > 3
    return np.mean(matching, 0), np.mean(others, 0)


def test_captions_are_true():
    def warm(rgb):
        return rgb[0] / rgb[1]

    yes, no = mean_colors("meadow", lambda text: "dark green" in text)
    assert yes.mean() < no.mean()
    yes, no = mean_colors("forest", lambda text: "in autumn" in text)
    assert warm(yes) > warm(no) + 0.1
    yes, no = mean_colors("bareland", lambda text: "red" in text.split())
    assert warm(yes) > warm(no) + 0.05
    yes, no = mean_colors("parking", lambda text: "dark" in text)
    assert yes.mean() < no.mean() - 10
    yes, no = mean_colors("lake", lambda text: "blue" in text.split())
    assert yes[2] - yes[0] > no[2] - no[0]
    winter = np.mean([render("snowfield", 9, i, 32, "domain")[0].mean() for i in range(30)])
    meadow = np.mean([render("meadow", 9, i, 32, "domain")[0].mean() for i in range(30)])
    assert winter > meadow + 25


def test_pixels_alone_do_not_give_the_class_away():
    linear_model = pytest.importorskip("sklearn.linear_model")
    threadpoolctl = pytest.importorskip("threadpoolctl")  # comes with scikit-learn

    def pixels(start, stop):
        rows = []
        labels = []
        for tile in render_tiles(3, start, stop, 32, "domain"):
            rows.append(
                tile["image"].astype(np.float32).reshape(8, 4, 8, 4, 3).mean((1, 3)).ravel() / 255
            )
            labels.append(SCENES.index(tile["scene"]))
        return np.array(rows), np.array(labels)

    x, y = pixels(0, 900)
    model = linear_model.LogisticRegression(C=0.1, max_iter=30)
    # threads only wait for each other on a problem this small
    with warnings.catch_warnings(), threadpoolctl.threadpool_limits(1):
        warnings.simplefilter("ignore")  # thirty steps are enough for the bound
        model.fit(x, y)
    assert model.score(*pixels(900, 1300)) < 0.7
