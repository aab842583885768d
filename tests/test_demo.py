"""The live demo in a real browser: a prompt with its sources, images with their seeds, and a canceled request that stops."""

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
from stages.text.embedder import LatentSemantic
from tools import demo

CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(
    not CHROMIUM,
    reason="no Chromium on PATH: `apt-get install chromium` brings the one driven here",
)
expect.set_options(timeout=60_000)  # a machine that does much else is slow, not wrong
PASSAGES = [
    "An orchard is a regular grid of dark green crowns on pale grass. Rows run north. <img src=x onerror=alert(1)>",
    "The desert is a yellow plain of narrow dunes with long dark shadows. Tracks cross it.",
    "A lake is a smooth dark blue surface with a pale sandy shore and green reeds.",
]


@pytest.fixture(scope="module")
def studio(tmp_path_factory) -> Iterator[demo.Studio]:
    """A tiny untrained model and an index of three passages; counts the denoising steps, each made to take a while."""
    root = tmp_path_factory.mktemp("demo")
    make_pipeline(root / "models/diffusion")
    write_json(root / "models/start/start.json", {"folder": "models/diffusion"})
    embedder = LatentSemantic.fit(PASSAGES, 2, 0)
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
        made = demo.Studio(load())
        made.steps = []
        made.sampler.unet.register_forward_pre_hook(
            lambda *_: (made.steps.append(1), time.sleep(0.02)) and None
        )
        yield made


@pytest.fixture(scope="module")
def address(studio) -> Iterator[str]:
    blocks = demo.page(studio)
    _, local, _ = blocks.launch(
        prevent_thread_lock=True, quiet=True, footer_links=[], ssr_mode=False
    )
    yield local
    blocks.close()


@pytest.fixture
def page(address) -> Iterator[Page]:
    outside = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox"] if os.geteuid() == 0 else []
        )
        found = browser.new_page()
        found.set_default_timeout(60_000)
        found.on(
            "request",
            lambda request: (
                None
                if request.url.startswith((address, "data:", "blob:"))
                else outside.append(request.url)
            ),
        )
        found.goto(address)
        found.get_by_role("button", name="Draw").wait_for()
        yield found
        browser.close()
    assert not outside


def steps(page: Page, count: int) -> None:
    box = page.get_by_label("number input for Steps")
    box.fill(str(count))
    box.blur()


def start_a_long_one(page: Page, studio) -> None:
    """Ask for 100 steps; back when the first few are done."""
    page.get_by_label("Prompt", exact=True).fill("a lake")
    steps(page, 100)
    studio.steps.clear()
    page.get_by_role("button", name="Draw").click()
    while len(studio.steps) < 3:
        page.wait_for_timeout(20)


def test_it_is_for_this_machine_alone(address):
    assert address.startswith("http://127.0.0.1:")


def test_a_prompt_is_written_with_its_sources(page):
    page.get_by_label("Class", exact=True).click()
    page.get_by_role("option", name="Cultivated Vegetation").click()
    page.get_by_role("button", name="Write me a prompt").click()
    written = "satellite image, wide view, an orchard is a regular grid of dark green crowns on pale grass"
    expect(page.get_by_label("Prompt", exact=True)).to_have_value(written)
    expect(page.locator("summary")).to_have_text("Fields <b>from</b> above (p), page 1")
    expect(page.locator("blockquote")).to_contain_text(
        "<img src=x onerror=alert(1)>"
    )  # what papers say is text


def test_images_are_drawn_and_can_be_taken_along(page, studio):
    page.get_by_label("Prompt", exact=True).fill("a lake")
    page.get_by_label("Seed").fill("7")
    steps(page, 3)
    page.get_by_role("button", name="Draw").click()
    expect(page.get_by_text("First seed: 7")).to_be_visible()
    expect(page.get_by_text("seed 10", exact=True)).to_be_visible()  # four images, a seed each
    studio.sampler.settings = studio.p.sampling.model_copy(update={"steps": 3, "batch_size": 4})
    drawn = studio.sampler.draw(
        ["a lake"] * 4, [studio.p.prompt.negative_prompt] * 4, [7, 8, 9, 10]
    )
    page.get_by_text("seed 7", exact=True).click()
    with page.expect_download() as download:
        page.get_by_label("Download", exact=False).first.click()
    shown = np.asarray(Image.open(Path(download.value.path())).convert("RGB"))
    assert np.array_equal(shown, drawn[0]), "what the pipeline's sampler draws from that seed"


def test_a_cancelled_request_stops_computing_and_the_next_one_works(page, studio):
    start_a_long_one(page, studio)
    page.get_by_role("button", name="Cancel").click()
    deadline = time.monotonic() + 60
    while studio.lock.locked() and time.monotonic() < deadline:
        page.wait_for_timeout(20)
    made = len(studio.steps)
    page.wait_for_timeout(500)
    assert not studio.lock.locked() and len(studio.steps) == made < 100
    steps(page, 2)
    page.get_by_label("Seed").fill("3")
    page.get_by_role("button", name="Draw").click()
    expect(page.get_by_text("First seed: 3")).to_be_visible()


def test_a_closed_tab_stops_computing(page, studio):
    start_a_long_one(page, studio)
    page.context.close()
    deadline = time.monotonic() + 60
    while studio.lock.locked() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not studio.lock.locked() and len(studio.steps) < 100


def test_bad_input_is_said_and_draws_nothing(page, studio):
    studio.steps.clear()
    page.get_by_role("button", name="Draw").click()
    expect(page.get_by_text("Write a prompt first")).to_be_visible()
    page.get_by_label("Prompt", exact=True).fill("a lake")
    page.get_by_label("Seed").fill("-1")
    page.get_by_role("button", name="Draw").click()
    expect(page.get_by_text("The seed is a whole number")).to_be_visible()
    assert not studio.steps
