"""Captioned imagery as the world stores it: Parquet, class folders, folders with `metadata.jsonl`; odd images made RGB.

A reader turns a source into `Item`s, in a fixed order, one at a time; `Item.check` and `tile` say what is wrong with a
bad one, so that the stage can skip, name and count it.
"""

import hashlib
import io
import json
import struct
import warnings
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageOps

from stages.common.artefacts import IMAGE, png
from stages.common.fail import fail

SCHEMA = pa.schema([("image", IMAGE), ("captions", pa.list_(pa.string())), ("scene", pa.string()),
                    ("filename", pa.string())])
SUFFIXES = {".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".gif", ".webp", ".jp2"}
SPLIT_NAMES = {"train", "training", "valid", "val", "validation", "test", "testing"}
SMALLEST = 16  # pixels of the shorter side: fewer show no scene
# What Pillow raises on broken files (its plugins parse bytes with struct, zlib and indexing).
BROKEN = (OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, OverflowError, struct.error, zlib.error,
          Image.DecompressionBombError)


@dataclass(frozen=True)
class Item:
    """One image of a source as found: nothing about it is checked yet."""
    split: str | None                # the source's own name of its split
    name: str                        # file name
    captions: object = None          # whatever the source holds; None where there is no caption field
    scene: str | None = None         # the class the source gives; None: read it off the file name
    image: object = None             # encoded bytes, a path, or what `draw` of the stage takes
    fault: str | None = None         # why the reader could not read it


class Origin(NamedTuple):
    """An opened source."""
    files: list[Path]                # tables and metadata, for SOURCE.json
    items: Callable[[bool], Iterator[Item]]   # items(with_images): the same items in the same order each time
    captioned: bool                  # has a caption field at all


def scene_of(item: Item) -> str:
    """The scene the source gives, else the file name up to its last `_` (RSICD: rsicd_images/airport_1.jpg -> airport)."""
    return item.scene if item.scene is not None else PurePosixPath(item.name).stem.rpartition("_")[0]


def sentences(found) -> tuple[list[str], str]:
    """The usable captions among what a source holds, and, where there is none, why not."""
    values = [found] if isinstance(found, str) else list(found) if isinstance(found, (list, tuple)) else [found]
    texts = [value for value in values if isinstance(value, str)]
    kept = [" ".join(printable(text).split()) for text in texts if any(letter.isalpha() for letter in text)]
    if kept:
        return kept, ""
    if all(value is None or isinstance(value, str) and not value.strip() for value in values):
        return [], "no captions" if found is None or values == [] else "blank captions"
    return [], "captions are not text"


def printable(text: str) -> str:
    """Without what UTF-8 cannot hold (lone surrogates of broken JSON) and without NUL."""
    return text.encode(errors="ignore").decode().replace("\0", "")


# Readers ---------------------------------------------------------------------------------------------------------------

def open_origin(path: Path, key: str) -> Origin:
    """Find out what a file or folder is, and open it. `key` is the params key that named it, for messages."""
    if path.is_file():
        if path.suffix != ".parquet":
            fail(f"{key}: {path.name} is not a .parquet file (or give a folder)")
        return parquet([path], path.parent, key)
    if tables := visible(path, "*.parquet"):
        return parquet(tables, path, key)
    if lists := visible(path, "metadata.jsonl"):
        return image_folder(lists, path, key)
    images = [file for file in visible(path, "*") if file.suffix.lower() in SUFFIXES]
    if not images:
        fail(f"{key}: {path.name}: no images in it (looked for *.parquet, metadata.jsonl and {' '.join(sorted(SUFFIXES))})")
    return class_folders(images, path)


def visible(folder: Path, pattern: str) -> list[Path]:
    """Files below a folder, sorted, without hidden ones (.git, .DS_Store)."""
    return sorted(file for file in folder.rglob(pattern) if file.is_file()
                  and not any(part.startswith(".") for part in file.relative_to(folder).parts))


def parquet(files: list[Path], root: Path, key: str) -> Origin:
    """Tables with `image` ({bytes, path} or bytes) and, by any of these names, captions, a file name, a scene."""
    tables = []
    for file in files:
        try:
            schema = pq.read_schema(file)
        except (pa.ArrowException, OSError) as fault:
            fail(f"{key}: {file.name} cannot be read: {str(fault).splitlines()[0]}")
        column = {role: next((name for name in names if name in schema.names), None) for role, names in {
            "image": ("image",), "captions": ("captions", "caption", "text"), "name": ("filename", "file_name"),
            "scene": ("scene", "label")}.items()}
        if column["image"] is None:
            fail(f"{key}: {file.name} has no column `image`; it has {', '.join(schema.names)}")
        tables.append((file, split_of(file, root, alone=len(files) == 1), column, label_names(schema, column["scene"])))

    def items(images: bool) -> Iterator[Item]:
        for file, split, column, labels in tables:
            kind = pq.read_schema(file).field(column["image"]).type
            wanted = [name for role, name in column.items() if name and role != "image"]
            wanted += [column["image"]] if images else [column["image"] + ".path"] if pa.types.is_struct(kind) else []
            number = 0
            for batch in pq.ParquetFile(file).iter_batches(64 if images else 4096, columns=wanted):
                for row in batch.to_pylist() if wanted else [{}] * len(batch):
                    cell = row.get(column["image"])
                    cell = cell if isinstance(cell, dict) else {"bytes": cell}
                    name = row.get(column["name"]) or cell.get("path") or f"{file.stem}-{number:07d}"
                    scene = row.get(column["scene"])
                    scene = labels[scene] if isinstance(scene, int) and 0 <= scene < len(labels) else scene
                    yield Item(split, printable(str(name)), row.get(column["captions"]),
                               None if scene is None else printable(str(scene)), cell.get("bytes"))
                    number += 1

    return Origin(files, items, any(column["captions"] for _, _, column, _ in tables))


def split_of(table: Path, root: Path, alone: bool) -> str | None:
    """train.parquet, data/train-00000-of-00002.parquet and train/00000.parquet are all of split `train`."""
    name = table.stem.partition("-")[0]
    if name.isdigit():
        parents = table.relative_to(root).parts[:-1]
        return parents[-1] if parents else None
    return None if alone and name not in SPLIT_NAMES else name


def label_names(schema: pa.Schema, column: str | None) -> list[str]:
    """The names behind an integer label column, which `datasets` writes into the schema (ClassLabel)."""
    features = json.loads((schema.metadata or {}).get(b"huggingface", b"{}")).get("info", {}).get("features", {})
    feature = features.get(column)
    return feature.get("names") or [] if isinstance(feature, dict) else []


def class_folders(images: list[Path], root: Path) -> Origin:
    """class/image.jpg or split/class/image.jpg. No captions: the stage writes one from the class name."""
    def items(_: bool) -> Iterator[Item]:
        for file in images:
            parts = file.relative_to(root).parts
            split = parts[0] if len(parts) > 2 and parts[0] in SPLIT_NAMES else None
            scene = parts[-2] if len(parts) > 1 else None
            yield Item(split, printable("/".join(parts)), None, scene and printable(scene), file)

    return Origin([], items, captioned=False)


def image_folder(lists: list[Path], root: Path, key: str) -> Origin:
    """`metadata.jsonl` rows {file_name, text or captions[, scene][, split]}, in the root or one per split folder."""
    def items(_: bool) -> Iterator[Item]:
        listed = set()
        for path in lists:
            place = path.parent.relative_to(root)
            folder_split = place.parts[0] if place.parts else None
            with open(path, encoding="utf-8-sig", errors="replace") as lines:
                for number, line in enumerate(lines, 1):
                    if not line.strip():
                        continue
                    row, label = parse(line), (place / f"metadata.jsonl:{number}").as_posix()
                    name = row.get("file_name")
                    if not isinstance(name, str) or not name.strip():
                        yield Item(folder_split, label, fault="metadata line without a file_name")
                        continue
                    file = path.parent / printable(name)
                    shown, inside = (place / printable(name)).as_posix(), ".." not in PurePosixPath(name).parts
                    if not inside or PurePosixPath(name).is_absolute():
                        yield Item(folder_split, label, fault="file_name outside the folder")
                        continue
                    listed.add(shown)
                    captions = next((row[field] for field in ("captions", "text", "caption") if field in row), None)
                    scene = next((str(row[field]) for field in ("scene", "label") if row.get(field) is not None), None)
                    split = row["split"] if isinstance(row.get("split"), str) else folder_split
                    yield Item(split, shown, captions, scene and printable(scene), file,
                               None if file.is_file() else "listed file is missing")
        for file in visible(root, "*"):
            if file.suffix.lower() in SUFFIXES and (name := file.relative_to(root).as_posix()) not in listed:
                yield Item(None, printable(name), fault="not in metadata.jsonl")

    return Origin(lists, items, captioned=True)


def parse(line: str) -> dict:
    """A JSON object, or {} where the line is none."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return row if isinstance(row, dict) else {}


# Images ----------------------------------------------------------------------------------------------------------------

class Tile(NamedTuple):
    """A stored tile and what near-duplicates are found by."""
    png: bytes
    dhash: int                       # 64 bits
    thumb: bytes                     # 16 x 16 grey
    mode: str                        # Pillow mode the image came in
    sha256: str                      # of the encoded image, "" for a drawn one
    captions: list[str] | None = None  # of a drawn tile


def tile(source: bytes | Path | None, resolution: int) -> Tile | str:
    """Decode, make RGB, scale the shorter side to `resolution` (antialiased) and centre-crop; or a word on what is wrong."""
    if source is None or source == b"":
        return "image is empty"
    try:
        content = source.read_bytes() if isinstance(source, Path) else source
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of large or slightly broken files it then reads
            with Image.open(io.BytesIO(content)) as image:
                image.load()
                if min(image.size) < SMALLEST:
                    return f"smaller than {SMALLEST} pixels"
                picture = ImageOps.fit(rgb(image), (resolution, resolution), Image.Resampling.LANCZOS)
                return finish(picture, image.mode, hashlib.sha256(content).hexdigest())
    except BROKEN:
        return "image is unreadable or truncated"


def finish(picture: Image.Image, mode: str = "RGB", sha256: str = "") -> Tile:
    """Encode an RGB tile and take its fingerprints."""
    grey = picture.convert("L")
    small = np.asarray(grey.resize((9, 8), Image.Resampling.BOX), np.int16)
    bits = np.packbits(small[:, 1:] > small[:, :-1])  # difference hash: does brightness rise to the right? 8 x 8
    thumb = grey.resize((16, 16), Image.Resampling.BOX).tobytes()
    return Tile(png(picture), int.from_bytes(bits.tobytes(), "big"), thumb, mode, sha256)


def rgb(image: Image.Image) -> Image.Image:
    """8-bit RGB of any mode: transparent parts turn black (no data), deep greys are scaled by their bit depth."""
    if image.mode[0] in "IF":
        return deep(np.asarray(image, np.float64)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "black"), image).convert("RGB")
    return image.convert("RGB")


def deep(values: np.ndarray) -> Image.Image:
    """16-bit, 32-bit or float grey [H,W] to 8 bits; white is 1 for fractions, else the least 2^k - 1 >= maximum, k >= 8."""
    values = np.nan_to_num(values, nan=0, posinf=0, neginf=0).clip(min=0)
    top = values.max()
    white = 1.0 if top <= 1 else 2.0 ** max(8, np.ceil(np.log2(top + 1))) - 1
    return Image.fromarray(np.rint(values / white * 255).astype(np.uint8))
