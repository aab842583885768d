"""The flips and rotations of a square image: the dihedral group of order 8."""

import torch


def dihedral(images: torch.Tensor, variant: int) -> torch.Tensor:
    """One of the 8 flips and rotations of square images [..., H, W]. An aerial image has no up.

    0 to 3 are quarter turns; 4 to 7 are the same turns of the mirrored image.
    """
    if variant >= 4:
        images = images.flip(-1)
    return torch.rot90(images, variant % 4, (-2, -1))
