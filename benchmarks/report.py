"""How long the report takes for a run of many generated images, how large it is and how soon a browser is done with it.

    python -m benchmarks.report [images] [pixels]      5000 images of 512 px unless said otherwise; in a temporary folder

The run is made up: the tests' fixture with as many synthetic images (noise on rendered scenes, which packs as badly as texture
does). Needs Chromium for the second half.
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

sys.path.append("tests")
DIFFERENT = 120  # pictures drawn; they repeat
FEATURES = {
    "data/synthetic": "synthetic",
    "data/imagery/test": "real/test",
    "data/imagery/train": "real/train",
}


def main(count: int = 5000, pixels: int = 512) -> None:
    from report_run import build

    with tempfile.TemporaryDirectory() as folder:
        root = build(Path(folder), per_scene=24)
        grow(root, int(count), int(pixels))
        params = root / "params.yaml"  # as many pictures as at full scale
        params.write_text(
            params.read_text().replace("gallery_per_class: 2 ", "gallery_per_class: 24 ")
        )
        repository = Path.cwd()
        started = time.perf_counter()
        subprocess.run(
            [sys.executable, "-m", "stages.report"],
            cwd=root,
            env={**os.environ, "PYTHONPATH": str(repository)},
            check=True,
        )
        taken = time.perf_counter() - started
        report = root / "metrics/report"
        size = sum(file.stat().st_size for file in report.rglob("*") if file.is_file())
        print(
            f"{count} images of {pixels} px: report in {taken:.1f} s, {size / 1e6:.1f} MB in {len(list(report.rglob('*.*')))} files"
        )
        if chromium := shutil.which("chromium"):
            print(
                f"  interactive after {interactive(chromium, report / 'index.html'):.2f} s (median of 5, from disk)"
            )


def grow(root: Path, count: int, pixels: int) -> None:
    """Replace the fixture's images by many large ones, its features by as many of 512 dimensions."""
    draws = np.random.default_rng(0)
    for place in (
        "data/synthetic",
        "data/samples/tuned",
        "data/imagery/test",
        "data/imagery/train",
    ):
        table = pq.read_table(root / place)
        rows = table.to_pylist()
        small = [Image.open(io.BytesIO(row["image"]["bytes"])) for row in rows[:DIFFERENT]]
        wanted = count if place == "data/synthetic" else len(rows)
        files = [
            encode_png(
                Image.fromarray(
                    np.clip(
                        np.asarray(
                            image.resize((pixels, pixels), Image.Resampling.BICUBIC), np.int16
                        )
                        + draws.normal(0, 9, (pixels, pixels, 1)),
                        0,
                        255,
                    ).astype(np.uint8)
                )
            )
            for image in (small * DIFFERENT)[:DIFFERENT]
        ]
        shutil.rmtree(root / place)
        many = (
            rows[i % len(rows)] | {"image": {"bytes": files[i % len(files)], "path": None}}
            for i in range(wanted)
        )
        write_shards(
            root / place, many, pa.schema([field.remove_metadata() for field in table.schema])
        )
        if place in FEATURES:
            path = root / "data/features" / FEATURES[place] / "scene.safetensors"
            logits = load_file(path)["logits"]
            save_file(
                {
                    "logits": logits[np.arange(wanted) % len(logits)]
                    * draws.random((wanted, 1), np.float32),
                    "features": draws.normal(size=(wanted, 512)).astype(np.float32),
                },
                path,
            )


def interactive(chromium: str, page: Path) -> float:
    """Seconds from opening the page until a click on a filter has filtered, in a fresh browser context."""
    from playwright.sync_api import sync_playwright

    times = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=chromium, args=["--no-sandbox"] if os.geteuid() == 0 else []
        )
        for _ in range(5):
            tab = browser.new_context(viewport={"width": 1440, "height": 900}).new_page()
            started = time.perf_counter()
            tab.goto(page.as_uri(), wait_until="commit")
            tab.locator("#filters select[name=label]").select_option("Water Body")
            tab.locator("#filters output", has_text="24 of").wait_for()
            times.append(time.perf_counter() - started)
            tab.context.close()
        browser.close()
    return sorted(times)[2]


if __name__ == "__main__":
    main(*sys.argv[1:])
