"""How much detail and color images hold, to measure what an autoencoder or a generator loses.

Images are uint8 [N, H, W, 3], H = W a power of two, at least 32.
"""

import numpy as np

from stages.diffusion.train_decoder import LUMA

OCTAVES = ((2, 4), (4, 8), (8, 16), (16, 32))  # cycles per image side, from coarse to fine


def mean_psnr(images: np.ndarray, reconstructions: np.ndarray) -> float:
    """The mean over images of the peak signal-to-noise ratio in dB; at most 100 for each."""
    errors = images.astype(np.float64) - reconstructions
    mean_squares = (errors**2).mean((1, 2, 3))  # [N]
    return float((10 * np.log10(255**2 / np.maximum(mean_squares, 255**2 / 1e10))).mean())


def octave_powers(images: np.ndarray) -> np.ndarray:
    """The mean power [4] of the brightness of images in each of `OCTAVES`.

    The power is taken from the windowed Fourier transform (Hann): without a window, the steps
    between opposite borders would pass for fine detail.
    """
    side = images.shape[1]
    window = np.hanning(side + 2)[1:-1]
    frequencies = np.fft.fftfreq(side, 1 / side)  # cycles per side
    radius = np.hypot(frequencies[:, None], frequencies)  # [H, W]
    bands = np.stack([(low <= radius) & (radius < high) for low, high in OCTAVES])  # [4, H, W]
    power = np.zeros((side, side))
    for image in images:
        luma = image @ LUMA
        power += np.abs(np.fft.fft2((luma - luma.mean()) * np.outer(window, window))) ** 2
    return (bands * power).sum((1, 2)) / len(images)


def chroma(images: np.ndarray) -> float:
    """How much color varies within images: the root mean square of blue and red minus brightness,
    each less its mean over the image."""
    squares = []
    for image in images:
        differences = image[..., ::2] - (image @ LUMA)[..., None]  # [H, W, 2]
        squares.append(differences.var((0, 1)).mean())
    return float(np.sqrt(np.mean(squares)))


def relative_detail(images: np.ndarray, real: np.ndarray) -> dict[str, float]:
    """Octaves' powers and chroma of images, each divided by the real images': 1 where none is lost.

    Keys: octave_2_4, octave_4_8, octave_8_16, octave_16_32, chroma.
    """
    ratios = octave_powers(images) / octave_powers(real)
    detail = {f"octave_{low}_{high}": float(r) for (low, high), r in zip(OCTAVES, ratios)}
    return detail | {"chroma": chroma(images) / chroma(real)}
