"""Time and size of the report for many generated images, and how soon a browser can use it.

    python -m benchmarks.report [--images 5000] [--pixels 512]

The run is made up, in a temporary folder: the tests' fixture with as many synthetic images, which
are rendered scenes with noise, hence as hard to compress as texture. The time in a browser needs
Chromium.
"""

import io
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from safetensors.numpy import load_file, save_file

from stages.common.artifacts import encode_png, write_shards
from stages.runtime.process import make_parser

sys.path.append("tests")
DISTINCT = 120  # different pictures; they repeat
FEATURE_FOLDERS = {
    "data/synthetic": "synthetic",
    "data/imagery/test": "real/test",
    "data/imagery/train": "real/train",
}
NOISE = 9.0  # standard deviation in gray levels


def main() -> None:
    parser = make_parser("benchmarks.report", __doc__)
    parser.add_argument("--images", type=int, default=5000, help="synthetic images")
    parser.add_argument("--pixels", type=int, default=512, help="pixels of an image's side")
    options = parser.parse_args()

    from report_run import build

    with tempfile.TemporaryDirectory() as folder:
        root = build(Path(folder), per_scene=24)
        enlarge(root, options.images, options.pixels)
        show_full_gallery(root / "params.yaml")
        started = time.perf_counter()
        subprocess.run(
            [sys.executable, "-m", "stages.report"],
            cwd=root,
            env={**os.environ, "PYTHONPATH": str(Path.cwd())},
            check=True,
        )
        seconds = time.perf_counter() - started
        report = root / "metrics/report"
        files = [file for file in report.rglob("*") if file.is_file()]
        megabytes = sum(file.stat().st_size for file in files) / 1e6
        print(
            f"{options.images} images of {options.pixels} px: report in {seconds:.1f} s, "
            f"{megabytes:.1f} MB in {len(files)} files"
        )
        chromium = shutil.which("chromium")
        if chromium:
            usable = time_to_filter(chromium, report / "index.html")
            print(f"  the gallery is filtered after {usable:.2f} s (median of 5, from disk)")


def show_full_gallery(params: Path) -> None:
    """Set as many pictures per class as at full scale."""
    text = params.read_text(encoding="utf-8")
    params.write_text(
        text.replace("gallery_per_class: 2 ", "gallery_per_class: 24 "), encoding="utf-8"
    )


def enlarge(root: Path, count: int, pixels: int) -> None:
    """Replace the fixture's images by large ones, its features by ones of 512 dimensions.

    Args:
        root: folder of the fixture.
        count: number of synthetic images; the other folders keep their number.
        pixels: of an image's side.
    """
    generator = np.random.default_rng(0)
    for folder in (
        "data/synthetic",
        "data/samples/tuned",
        "data/imagery/test",
        "data/imagery/train",
    ):
        table = pq.read_table(root / folder)
        rows = table.to_pylist()
        n = count if folder == "data/synthetic" else len(rows)
        images = [enlarged_png(row["image"]["bytes"], pixels, generator) for row in rows[:DISTINCT]]
        enlarged = [
            rows[i % len(rows)] | {"image": {"bytes": images[i % len(images)], "path": None}}
            for i in range(n)
        ]
        schema = pa.schema([field.remove_metadata() for field in table.schema])
        shutil.rmtree(root / folder)
        write_shards(root / folder, enlarged, schema)
        if folder in FEATURE_FOLDERS:
            path = root / "data/features" / FEATURE_FOLDERS[folder] / "scene.safetensors"
            write_large_features(path, n, generator)


def enlarged_png(png: bytes, pixels: int, generator: np.random.Generator) -> bytes:
    """Scale an image to `pixels` a side, add noise, and encode it."""
    image = Image.open(io.BytesIO(png)).resize((pixels, pixels), Image.Resampling.BICUBIC)
    noisy = np.asarray(image) + generator.normal(0, NOISE, (pixels, pixels, 1))
    return encode_png(Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8)))


def write_large_features(path: Path, n: int, generator: np.random.Generator) -> None:
    """Replace a file of logits and features by one of n images."""
    logits = load_file(path)["logits"]  # [N, scenes]
    confidence = generator.random((n, 1), np.float32)
    save_file(
        {
            "logits": logits[np.arange(n) % len(logits)] * confidence,
            "features": generator.normal(size=(n, 512)).astype(np.float32),
        },
        path,
    )


def time_to_filter(chromium: str, page: Path) -> float:
    """Return seconds from opening the page to a filtered gallery, the median of five visits."""
    from playwright.sync_api import sync_playwright

    times = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=chromium, args=["--no-sandbox"] if os.geteuid() == 0 else []
        )
        for _ in range(5):
            context = browser.new_context(viewport={"width": 1440, "height": 900})
            tab = context.new_page()
            started = time.perf_counter()
            tab.goto(page.as_uri(), wait_until="commit")
            tab.locator("#filters select[name=label]").select_option("Water Body")
            tab.locator("#filters output", has_text="24 of").wait_for()
            times.append(time.perf_counter() - started)
            context.close()
        browser.close()
    return sorted(times)[2]


if __name__ == "__main__":
    main()
