"""The pictures of the report: each stored once, with thumbnails, within a budget of bytes."""

import io
from pathlib import Path

from PIL import Image

from stages.reporting.grids import load_scaled_images
from stages.runtime.errors import exit_with_error

MAX_SIDE = 512  # pixels of a picture's longer side
SMALL_SIDE = 128  # pixels up to which a picture needs no thumbnail
THUMBNAIL_SIDE = 128  # pixels
# Bytes of all pictures. The grids and the page come on top; 15 MB is the limit of all together.
BUDGET = 8 * 10**6
LOSSLESS = 101  # instead of a quality
# Tried in this order: the longer side, in pixels, and the quality of WebP of the larger pictures;
# the quality of the small ones.
ENCODINGS = (
    *((MAX_SIDE, quality, LOSSLESS) for quality in (88, 80, 72, 64, 56)),
    (MAX_SIDE, 56, 88),
    (256, 72, 80),
    (256, 56, 64),
)


class Album:
    """Collect pictures with `add`; write them all with `write`.

    Addresses are relative to the page.
    """

    def __init__(self) -> None:
        self.folders: dict[str, Path] = {}  # collection -> its folder of shards
        self.rows: dict[str, set[int]] = {}  # collection -> row numbers of its pictures
        self.thumbnails: set[str] = set()  # names of the pictures that have one

    def add(self, collection: str, folder: Path, row: int) -> str:
        """Add the image in a row of a folder of shards; return its address.

        Args:
            collection: the name of the folder in addresses.
            folder: holds Parquet shards with an `image` column.
            row: number over all shards.
        """
        self.folders[collection] = folder
        self.rows.setdefault(collection, set()).add(row)
        return f"pictures/{picture_name(collection, row)}"

    def write(self, out: Path) -> None:
        """Write all pictures below `out`, in the best quality at which they fit the budget.

        Raises:
            SystemExit: where they fit in none.
        """
        images = {
            picture_name(collection, row): image
            for collection, folder in self.folders.items()
            for row, image in load_scaled_images(folder, self.rows[collection], MAX_SIDE).items()
        }
        large = {name for name, image in images.items() if max(image.size) > SMALL_SIDE}
        thumbnails = {name: encode_webp(images[name], THUMBNAIL_SIDE, 75) for name in large}
        small = {name: image for name, image in images.items() if name not in large}
        pictures: dict[str, bytes] = {}
        encoded_at = 0  # quality of the small pictures so far
        for side, quality, small_quality in ENCODINGS:
            for name in large:
                pictures[name] = encode_webp(images[name], side, quality)
            if small_quality != encoded_at:
                encoded = (encode_webp(i, SMALL_SIDE, small_quality) for i in small.values())
                pictures.update(zip(small, encoded))
                encoded_at = small_quality
            size = sum(map(len, [*pictures.values(), *thumbnails.values()]))
            if size <= BUDGET:
                break
        else:
            exit_with_error(
                f"report.gallery_per_class: {len(images)} pictures come to {size / 1e6:.0f} MB, "
                f"more than {BUDGET / 1e6:.0f}: show fewer"
            )
        for folder_name, files in (("pictures", pictures), ("thumbs", thumbnails)):
            (out / folder_name).mkdir()
            for name, content in files.items():
                (out / folder_name / name).write_bytes(content)
        self.thumbnails = large

    def thumbnail_address(self, address: str) -> str:
        """Return the address of a picture's thumbnail, once written; a small picture is its own."""
        name = Path(address).name
        return f"thumbs/{name}" if name in self.thumbnails else address


def picture_name(collection: str, row: int) -> str:
    return f"{collection}-{row:06d}.webp"


def encode_webp(image: Image.Image, side: int, quality: int) -> bytes:
    """Encode an image as WebP, scaled down to `side` pixels if its longer side has more."""
    if max(image.size) > side:
        image = image.copy()
        image.thumbnail((side, side), Image.Resampling.LANCZOS)
    sink = io.BytesIO()
    if quality == LOSSLESS:
        image.save(sink, "WEBP", lossless=True)
    else:
        image.save(sink, "WEBP", quality=quality)
    return sink.getvalue()
