"""The live demo in a real browser.

It shows a prompt with its passages and images with their seeds, and a canceled request stops.
"""

import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import REPOSITORY
from PIL import Image
from playwright.sync_api import Page, expect, sync_playwright
from tiny_diffusion import make_pipeline

from stages.common.artifacts import write_json
from stages.params import load
from stages.text.embedder import LatentSemanticEmbedder
from tools import demo_page

CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(
    not CHROMIUM,
    reason="no Chromium on PATH: `apt-get install chromium` brings the one driven here",
)
expect.set_options(timeout=60_000)  # ms, for busy machines
PASSAGES = [
    "An orchard is a regular grid of dark green crowns on pale grass. Rows run north. "
    "<img src=x onerror=alert(1)>",
    "The desert is a yellow plain of narrow dunes with long dark shadows. Tracks cross it.",
    "A lake is a smooth dark blue surface with a pale sandy shore and green reeds.",
]


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Iterator[demo_page.DemoModels]:
    """A tiny untrained model and an index of three passages.

    Each denoising step is slowed down, and noted in `denoising_steps`.
    """
    root = tmp_path_factory.mktemp("demo")
    make_pipeline(root / "models/diffusion")
    write_json(root / "models/start/start.json", {"folder": "models/diffusion"})
    embedder = LatentSemanticEmbedder.fit(PASSAGES, 2, 0)
    (root / "models/index").mkdir()
    embedder.save(root / "models/index")
    pq.write_table(
        pa.table(
            {
                "id": [f"p#{i}" for i in range(3)],
                "paper": ["p"] * 3,
                "title": ["Fields <b>from</b> above"] * 3,
                "page": pa.array([1, 2, 3], pa.int32()),
                "text": PASSAGES,
                "vector": [list(map(float, row)) for row in embedder.embed(PASSAGES)],
            }
        ),
        root / "models/index/passages.parquet",
    )
    shutil.copyfile(REPOSITORY / "tests/params.yaml", root / "params.yaml")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setenv("REMOTE_DIFFUSION_SCRATCH", str(root / "scratch"))
        models = demo_page.DemoModels(load())
        models.denoising_steps = []

        def slow_down(*_) -> None:
            models.denoising_steps.append(1)
            time.sleep(0.02)

        models.sampler.unet.register_forward_pre_hook(slow_down)
        yield models


@pytest.fixture(scope="module")
def address(models) -> Iterator[str]:
    blocks = demo_page.build_page(models)
    _, local, _ = blocks.launch(
        prevent_thread_lock=True, quiet=True, footer_links=[], ssr_mode=False
    )
    yield local
    blocks.close()


@pytest.fixture
def page(address) -> Iterator[Page]:
    """The demo in a new browser; the test fails if it asks any other host."""
    outside = []

    def note_outside(request) -> None:
        if not request.url.startswith((address, "data:", "blob:")):
            outside.append(request.url)

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox"] if os.geteuid() == 0 else []
        )
        tab = browser.new_page()
        tab.set_default_timeout(60_000)
        tab.on("request", note_outside)
        tab.goto(address)
        tab.get_by_role("button", name="Draw").wait_for()
        yield tab
        browser.close()
    assert not outside


def set_steps(page: Page, count: int) -> None:
    box = page.get_by_label("number input for Steps")
    box.fill(str(count))
    box.blur()


def start_long_request(page: Page, models) -> None:
    """Ask for images with 100 steps each; return after the first few steps."""
    page.get_by_label("Prompt", exact=True).fill("a lake")
    set_steps(page, 100)
    models.denoising_steps.clear()
    page.get_by_role("button", name="Draw").click()
    while len(models.denoising_steps) < 3:
        page.wait_for_timeout(20)


def test_the_demo_listens_on_this_machine_only(address):
    assert address.startswith("http://127.0.0.1:")


def test_a_prompt_is_shown_with_its_passages(page):
    page.get_by_label("Class", exact=True).click()
    page.get_by_role("option", name="Cultivated Vegetation").click()
    page.get_by_role("button", name="Write me a prompt").click()
    written = (
        "satellite image, wide view, "
        "an orchard is a regular grid of dark green crowns on pale grass"
    )
    expect(page.get_by_label("Prompt", exact=True)).to_have_value(written)
    expect(page.locator("summary")).to_have_text("Fields <b>from</b> above (p), page 1")
    # Markup in a passage is shown as text.
    expect(page.locator("blockquote")).to_contain_text("<img src=x onerror=alert(1)>")


def test_images_are_those_of_the_sampler_and_can_be_downloaded(page, models):
    page.get_by_label("Prompt", exact=True).fill("a lake")
    page.get_by_label("Seed").fill("7")
    set_steps(page, 3)
    page.get_by_role("button", name="Draw").click()
    expect(page.get_by_text("First seed: 7")).to_be_visible()
    expect(page.get_by_text("seed 10", exact=True)).to_be_visible()  # four images, a seed each
    models.sampler.sampling = models.params.sampling.model_copy(
        update={"steps": 3, "batch_size": 4}
    )
    expected = models.sampler.generate_images(
        ["a lake"] * 4, [models.params.prompt.negative_prompt] * 4, [7, 8, 9, 10]
    )
    page.get_by_text("seed 7", exact=True).click()
    with page.expect_download() as download:
        page.get_by_label("Download", exact=False).first.click()
    downloaded = np.asarray(Image.open(Path(download.value.path())).convert("RGB"))
    assert np.array_equal(downloaded, expected[0])


def test_a_canceled_request_stops_and_the_next_one_works(page, models):
    start_long_request(page, models)
    page.get_by_role("button", name="Cancel").click()
    deadline = time.monotonic() + 60
    while models.lock.locked() and time.monotonic() < deadline:
        page.wait_for_timeout(20)
    steps_done = len(models.denoising_steps)
    page.wait_for_timeout(500)
    assert not models.lock.locked()
    assert len(models.denoising_steps) == steps_done < 100
    set_steps(page, 2)
    page.get_by_label("Seed").fill("3")
    page.get_by_role("button", name="Draw").click()
    expect(page.get_by_text("First seed: 3")).to_be_visible()


def test_closing_the_page_stops_the_request(page, models):
    start_long_request(page, models)
    page.context.close()
    deadline = time.monotonic() + 60
    while models.lock.locked() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not models.lock.locked() and len(models.denoising_steps) < 100


def test_bad_input_is_reported_and_generates_nothing(page, models):
    models.denoising_steps.clear()
    page.get_by_role("button", name="Draw").click()
    expect(page.get_by_test_id("toast-body").last).to_contain_text("prompt")
    page.get_by_label("Prompt", exact=True).fill("a lake")
    page.get_by_label("Seed").fill("-1")
    page.get_by_role("button", name="Draw").click()
    expect(page.get_by_test_id("toast-body").last).to_contain_text(str(demo_page.MAX_SEED))
    assert not models.denoising_steps
