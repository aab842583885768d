"""Scale an image to the size of a tile and crop it to a square."""

from PIL import Image, ImageOps


def scale_and_crop(image: Image.Image, size: int) -> Image.Image:
    """Scale the shorter side to `size` pixels (Lanczos, antialiased) and crop the center square."""
    return ImageOps.fit(image, (size, size), Image.Resampling.LANCZOS)
