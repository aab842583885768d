"""benchmarks/generator.py and what it measures: detail and color of images, relative numbers."""

import numpy as np
import pytest

from benchmarks import generator
from stages.common.artifacts import write_json
from stages.embedded.image_detail import OCTAVES, mean_psnr, octave_powers, relative_detail

CYCLES = (3, 6, 12, 24)  # of waves inside each octave


def waves(cycles: float, amplitude: float) -> np.ndarray:
    """A gray image [1, 64, 64, 3] with a wave of so many cycles per side."""
    x = np.arange(64) / 64
    row = 128 + amplitude * np.sin(2 * np.pi * cycles * x)
    return np.broadcast_to(row[None, None, :, None], (1, 64, 64, 3)).round().astype(np.uint8)


@pytest.mark.parametrize("octave", range(4))
def test_a_wave_has_its_power_in_its_octave(octave):
    powers = octave_powers(waves(CYCLES[octave], 60))
    # The window moves a third of a wave's power to the neighboring frequencies, 2 and 4 of 3.
    assert powers[octave] > 0.8 * powers.sum()
    low, high = OCTAVES[octave]
    assert low < CYCLES[octave] < high


def test_half_the_amplitude_has_a_quarter_of_the_power():
    strong = np.concatenate([waves(cycles, 80) for cycles in CYCLES])
    weak = np.concatenate([waves(cycles, 40) for cycles in CYCLES])
    ratios = octave_powers(weak) / octave_powers(strong)
    assert ratios == pytest.approx([0.25] * 4, rel=0.02)


def test_images_have_all_of_their_own_detail_and_gray_ones_no_color():
    images = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    assert set(relative_detail(images, images).values()) == {1.0}
    gray = np.repeat(images[..., :1], 3, axis=3)
    assert relative_detail(gray, images)["chroma"] == pytest.approx(0, abs=1e-6)


def test_psnr_of_an_error_of_one_gray_level():
    images = np.full((2, 32, 32, 3), 100, np.uint8)
    assert mean_psnr(images, images + 1) == pytest.approx(20 * np.log10(255))
    assert mean_psnr(images, images) == 100


REAL = {
    "scene.fid": 1.0,
    "scene.recall": 0.8,
    "efficientnet.fid": 5.0,
    "agreement": 0.9,
    "agreement.lake": 1.0,
    "agreement.desert": 0.8,
    "octave_2_4": 1.0,
    "land_cover": 0.8,
}
TUNED = REAL | {
    "scene.fid": 4.0,
    "scene.recall": 0.4,
    "agreement": 0.45,
    "agreement.desert": 0.4,
    "octave_2_4": 0.7,
    "land_cover": 0.6,
}


def test_values_are_relative_to_real_vs_real():
    values = generator.add_worst(generator.relative(TUNED, REAL))
    assert values["scene.fid"] == 3 and values["efficientnet.fid"] == 0
    assert values["scene.recall"] == values["agreement"] == values["worst_agreement"] == 0.5
    assert values["weak_scenes"] == 1 and values["octave_2_4"] == 0.7
    assert values["land_cover"] == pytest.approx(0.75)


def test_the_table_has_what_is_measured_so_far(tmp_path):
    write_json(tmp_path / "real_0.json", REAL)
    write_json(tmp_path / "tuned_0.json", TUNED)
    write_json(tmp_path / "real_1.json", REAL)
    lines = list(generator.format_table("shipped", 256, [0, 1], tmp_path))
    assert "| | real vs. real | tuned |" in lines
    assert "| FID, judge | 1 ± 0 | 3 |" in lines
    assert "| caption agreement, worst scene | 0.8 ± 0 | 0.5 |" in lines


def test_the_interval_of_three_seeds_is_students():
    assert generator.format_cell([1.0, 2.0, 3.0]) == "2 ± 2.5"  # 4.303 / sqrt(3)
    assert generator.format_cell([0.5]) == "0.5" and not generator.format_cell([])
