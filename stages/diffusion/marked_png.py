"""PNG files of generated images that say that they are synthetic, and how they were made."""

import io
from typing import Any

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

DESCRIPTION = "Synthetic: drawn by a diffusion model, shows no place on Earth."
# What made an image, by the IPTC's vocabulary for digital sources.
SOURCE_TYPE = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
# The XMP packet in which image search engines and exiftool look for it (IPTC Photo Metadata 2025).
XMP = (
    '<x:xmpmeta xmlns:x="adobe:ns:meta/">'
    '<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    '<rdf:Description rdf:about="" '
    'xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/" '
    f'Iptc4xmpExt:DigitalSourceType="{SOURCE_TYPE}"/></rdf:RDF></x:xmpmeta>'
)
# What a file says of how its image was made: columns of data/synthetic.
SETTINGS = (
    "prompt",
    "negative_prompt",
    "seed",
    "scheduler",
    "steps",
    "guidance_scale",
    "model",  # its digest
)


def encode_marked_png(image: np.ndarray, row: dict[str, Any]) -> bytes:
    """Encode a generated image as a PNG with its settings and its origin in text chunks.

    The same image and row give the same bytes.

    Args:
        image: uint8 [H, W, 3].
        row: with the keys of `SETTINGS`; others are left out.
    """
    text = PngInfo()
    text.add_itxt("Software", "Remote Diffusion")
    text.add_itxt("Description", DESCRIPTION)
    for keyword in SETTINGS:
        text.add_itxt(keyword, str(row[keyword]))
    text.add_itxt("XML:com.adobe.xmp", XMP)
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG", pnginfo=text)
    return buffer.getvalue()
