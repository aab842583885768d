"""Scale an image to the size of a tile and crop it to a square."""

from PIL import Image, ImageOps

from stages.imagery.unusable_image import OUT_OF_MEMORY, UnusableImage


def scale_and_crop(image: Image.Image, size: int) -> Image.Image:
    """Scale the shorter side to `size` pixels (Lanczos, antialiased) and crop the center square.

    Raises:
        UnusableImage: it is too large for the memory.
    """
    try:
        return ImageOps.fit(image, (size, size), Image.Resampling.LANCZOS)
    except MemoryError:
        raise UnusableImage(OUT_OF_MEMORY) from None
