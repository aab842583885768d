"""The pictures of the report: each stored once, all of them within a budget of bytes, with thumbnails of the large ones."""

import io
from pathlib import Path

from PIL import Image

from stages.reporting.grids import pictures
from stages.runtime.errors import exit_with_error

LARGEST = 512  # pixels of a picture's longer side
EXACT = 128  # pixels up to which a picture is lossless and its own thumbnail
THUMB = 128  # pixels of a thumbnail
BUDGET = (
    9 * 10**6
)  # bytes of all pictures; the grids and the page come on top, 15 MB is the limit of the whole
QUALITIES = (88, 80, 72, 64, 56)


class Album:
    """Name pictures with `add`, `write` them all at the end; both say where a picture is, relative to the page."""

    def __init__(self):
        self.wanted: dict[tuple[str, int], None] = {}
        self.folders: dict[str, Path] = {}
        self.thumbs: set[str] = set()

    def add(self, name: str, folder: Path, place: int) -> str:
        """The address of the image in row `place` of a folder of shards, which the page calls `name`."""
        self.folders[name] = folder
        self.wanted[name, place] = None
        return f"pictures/{name}-{place:06d}.webp"

    def write(self, out: Path) -> None:
        """Store them below `out`: the best quality at which they fit the budget; small ones lossless."""
        images = {
            (name, place): picture
            for name, folder in self.folders.items()
            for place, picture in pictures(
                folder, {place for other, place in self.wanted if other == name}, LARGEST
            ).items()
        }
        small = {
            key: webp(image, lossless=True)
            for key, image in images.items()
            if max(image.size) <= EXACT
        }
        large = {key: image for key, image in images.items() if key not in small}
        thumbs = {key: webp(thumbnail(image), quality=75) for key, image in large.items()}
        for quality in QUALITIES:
            files = small | {key: webp(image, quality=quality) for key, image in large.items()}
            total = sum(map(len, [*files.values(), *thumbs.values()]))
            if total <= BUDGET:
                break
        else:
            exit_with_error(
                f"report.gallery_per_class: {len(images)} pictures come to {total / 1e6:.0f} MB, more than {BUDGET / 1e6:.0f}: show fewer"
            )
        for folder, stored in (("pictures", files), ("thumbs", thumbs)):
            (out / folder).mkdir()
            for (name, place), content in stored.items():
                (out / folder / f"{name}-{place:06d}.webp").write_bytes(content)
        self.thumbs = {f"pictures/{name}-{place:06d}.webp" for name, place in thumbs}

    def thumb(self, address: str) -> str:
        """Where the thumbnail of a picture is, once written: a small one is its own."""
        return address.replace("pictures/", "thumbs/") if address in self.thumbs else address


def thumbnail(image: Image.Image) -> Image.Image:
    copy = image.copy()
    copy.thumbnail((THUMB, THUMB), Image.Resampling.LANCZOS)
    return copy


def webp(image: Image.Image, **settings) -> bytes:
    sink = io.BytesIO()
    image.save(sink, "WEBP", **settings)
    return sink.getvalue()
