"""What the autoencoder of a run alone loses: its reconstructions of the test tiles.

    python -m benchmarks.autoencoder path/to/repository

The folder is a repository in which the stages fetch_imagery, fetch_model, train_scene and
finetune_sd have run. Prints a Markdown table: FID and recall of the reconstructions against the
test tiles themselves, in the features of the run's judge and of its ImageNet network; the share in
which the judge sees the tile's scene; PSNR; power and chroma relative to the test tiles'.
"""

from pathlib import Path

import numpy as np

from benchmarks.generator import ROWS, Tiles, make_measure, reconstruct
from stages.common.artifacts import decode_image, stream_rows
from stages.embedded.image_detail import mean_psnr
from stages.runtime.process import make_parser, start_process


def main() -> None:
    parser = make_parser("benchmarks.autoencoder", __doc__)
    parser.add_argument("folder", type=Path, help="of the run")
    folder = parser.parse_args().folder
    start_process()
    tiles = read_test_tiles(folder / "data/imagery/test")
    measure = make_measure(folder / "models/scene", folder / "models/base/vision", tiles)
    real = measure(tiles.images)
    reconstructed = reconstruct(folder / "models/diffusion", tiles.images)
    values = measure(reconstructed)
    values["psnr"] = mean_psnr(tiles.images, reconstructed)
    print(f"| {len(tiles.images):,} test tiles | reconstructed | themselves |")
    print("|---|---:|---:|")
    for title, key in ROWS.items():
        if key in values:
            itself = f"{real[key]:.3g}" if key in real else ""
            print(f"| {title} | {values[key]:.3g} | {itself} |")


def read_test_tiles(folder: Path) -> Tiles:
    """The test tiles of a run, each with its first caption."""
    rows = list(stream_rows(folder, ["image", "captions", "scene"]))
    return Tiles(
        images=np.stack([np.asarray(decode_image(row["image"])) for row in rows]),
        captions=[row["captions"][0] for row in rows],
        scenes=[row["scene"] for row in rows],
    )


if __name__ == "__main__":
    main()
