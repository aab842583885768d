"""The flips and rotations of a square image: the dihedral group of order 8."""

import torch

QUARTER_TURNS = (0, 2, 1, 3)


def dihedral(images: torch.Tensor, variant: int) -> torch.Tensor:
    """One of the 8 flips and rotations of square images [..., H, W]. An aerial image has no up.

    Variant 0 is the image itself. Odd variants are mirrored, left to right; 2 and 3 are turned by
    half, 4 to 7 by a quarter. So shadows fall to the same side, up or down, in the first two.
    """
    if variant % 2:
        images = images.flip(-1)
    return torch.rot90(images, QUARTER_TURNS[variant // 2], (-2, -1))
