"""The live demo in a real browser, and what can be drawn before anything has run.

It shows a prompt with its passages and images with their seeds, and a canceled request stops.
"""

import io
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import gradio as gr
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from accessibility import violations
from conftest import REPOSITORY, heed_signals, replace_in_params, wait_until, write_smoke_params
from gradio_client import Client
from gradio_client.exceptions import AppError
from PIL import Image
from playwright.sync_api import Browser, Page, expect, sync_playwright
from review_run import ODD_NAMES, write_params
from tiny_diffusion import make_pipeline

from stages.common.artifacts import decode_image, read_rows, write_json
from stages.params import load, read
from stages.text.embedder import LatentSemanticEmbedder
from tools import demo_fields, demo_models, demo_page

CHROMIUM = shutil.which("chromium")
VISITOR = SimpleNamespace(session_hash="visitor")
LEFT_OUT = {"Zone 5": 0}  # class -> prompts
expect.set_options(timeout=60_000)  # ms, for busy machines
PASSAGES = [
    "An orchard is a regular grid of dark green crowns on pale grass. Rows run north. "
    "<img src=x onerror=alert(1)>",
    "The desert is a yellow plain of narrow dunes with long dark shadows. Tracks cross it.",
    "A lake is a smooth dark blue surface with a pale sandy shore and green reeds.",
]


def make_index(folder: Path) -> None:
    """Write an index of the three passages, with an embedder fitted on them."""
    embedder = LatentSemanticEmbedder.fit(PASSAGES, 2, 0)
    folder.mkdir(parents=True)
    embedder.save(folder)
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
        folder / "passages.parquet",
    )


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Iterator[demo_models.DemoModels]:
    """A tiny untrained model and an index of three passages.

    Each denoising step takes `step_seconds` longer, and is noted in `denoising_steps`.
    """
    root = tmp_path_factory.mktemp("demo")
    make_pipeline(root / "models/diffusion")
    make_index(root / "models/index")
    write_smoke_params(root)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setenv("REMOTE_DIFFUSION_SCRATCH", str(root / "scratch"))
        models = demo_models.DemoModels(load())
        models.denoising_steps = []
        models.step_seconds = 0.02

        def slow_down(*_) -> None:
            models.denoising_steps.append(1)
            time.sleep(models.step_seconds)

        models.sampler.unet.register_forward_pre_hook(slow_down)
        yield models


@contextmanager
def serve(models: demo_models.DemoModels) -> Iterator[str]:
    """Serve the demo; yield its address."""
    blocks = demo_page.build_page(models)
    _, local, _ = blocks.launch(prevent_thread_lock=True, quiet=True, **demo_page.LAUNCH)
    yield local
    blocks.close()


@pytest.fixture(scope="module", autouse=True)
def served_folder(tmp_path_factory) -> Iterator[None]:
    """A server that is closed deletes what it served: not what other processes of the tests do."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(tmp_path_factory.mktemp("gradio") / "served"))
        yield


def connect(address: str) -> Client:
    """A new visitor, whose downloads stay when the server is closed."""
    downloads = Path(os.environ["GRADIO_TEMP_DIR"]).with_name("downloads")
    return Client(address, verbose=False, download_files=downloads)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if not CHROMIUM:
        pytest.skip("no Chromium on PATH: `apt-get install chromium` brings the one driven here")
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox"] if os.geteuid() == 0 else []
        )
        yield started
        started.close()


@contextmanager
def open_page(browser: Browser, address: str) -> Iterator[Page]:
    """Yield the demo as a new visitor sees it; the test fails if it asks any other host."""
    outside = []

    def note_outside(request) -> None:
        if not request.url.startswith((address, "data:", "blob:")):
            outside.append(request.url)

    tab = browser.new_page()
    try:
        tab.set_default_timeout(60_000)
        tab.on("request", note_outside)
        tab.goto(address)
        tab.get_by_role("button", name="Draw").wait_for()
        yield tab
    finally:
        tab.context.close()
    assert not outside


@pytest.fixture(scope="module")
def address(models) -> Iterator[str]:
    with serve(models) as local:
        yield local


@pytest.fixture
def page(browser, address) -> Iterator[Page]:
    with open_page(browser, address) as tab:
        yield tab


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
    deadline = time.monotonic() + 300
    while len(models.denoising_steps) < 3:
        assert time.monotonic() < deadline
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
    expect(page.get_by_text("Seeds: 7, 8, 9, 10")).to_be_visible()  # four images, a seed each
    models.sampler.sampling = models.params.sampling.model_copy(
        update={"steps": 3, "batch_size": 4}
    )
    expected = models.sampler.generate_images(
        ["a lake"] * 4, [models.params.prompt.negative_prompt] * 4, [7, 8, 9, 10]
    )
    page.get_by_role("button", name="Thumbnail 1 of 4").click()
    with page.expect_download() as download:
        page.get_by_label("Download", exact=False).first.click()
    downloaded = np.asarray(Image.open(Path(download.value.path())).convert("RGB"))
    assert np.array_equal(downloaded, expected[0])


def test_a_canceled_request_stops_and_the_next_one_works(page, models, monkeypatch):
    monkeypatch.setattr(models, "step_seconds", 0.5)  # a click takes seconds on a busy machine
    start_long_request(page, models)
    page.get_by_role("button", name="Cancel").click()
    deadline = time.monotonic() + 60
    while models.lock.locked() and time.monotonic() < deadline:
        page.wait_for_timeout(20)
    steps_done = len(models.denoising_steps)
    page.wait_for_timeout(500)
    assert not models.lock.locked()
    assert len(models.denoising_steps) == steps_done < 100
    monkeypatch.undo()
    set_steps(page, 2)
    page.get_by_label("Seed").fill("3")
    page.get_by_role("button", name="Draw").click()
    expect(page.get_by_text("Seeds: 3, 4, 5, 6")).to_be_visible()


def test_who_waits_sees_the_time_left_and_the_position_in_the_queue(
    browser, page, models, monkeypatch
):
    with open_page(browser, page.url) as other:
        other.get_by_label("Prompt", exact=True).fill("a lake")
        monkeypatch.setattr(models, "step_seconds", 0.5)
        start_long_request(page, models)
        expect(page.get_by_text(re.compile(r"about \d+ s left")).first).to_be_visible()
        other.get_by_role("button", name="Draw").click()
        expect(other.get_by_text("queue: 1/1").first).to_be_visible()
        # The other visitor's turn comes.
        monkeypatch.undo()
        page.get_by_role("button", name="Cancel").click()
        expect(other.get_by_text("Seeds: ")).to_be_visible()


def test_a_link_gives_the_images_again(page, address):
    page.get_by_label("Prompt", exact=True).fill('a lake, 100 % (blue) & "wide" #1 [x]\nat noon')
    page.get_by_label("Negative prompt").fill("")
    page.get_by_label("number input for Guidance").fill("2.5")
    page.get_by_label("number input for Images").fill("2")
    set_steps(page, 3)
    page.get_by_role("button", name="Draw").click()  # with a random seed
    link = page.get_by_role("link", name="Link to these settings").get_attribute("href")
    images = page.locator(".gallery-item img, .thumbnail-item img")
    expect(images).to_have_count(2)
    drawn = [page.request.get(image.get_attribute("src")).body() for image in images.all()]
    page.goto(f"{address}{link}")
    expect(page.get_by_label("number input for Images")).to_have_value("2")
    expect(page.get_by_label("Negative prompt")).to_have_value("")
    page.get_by_role("button", name="Draw").click()
    expect(images).to_have_count(2)
    assert [page.request.get(image.get_attribute("src")).body() for image in images.all()] == drawn


def test_a_wrong_link_is_said(page, address):
    messages = {
        "steps=1e400": "Steps is a whole number",
        "images=2.5": "Images is a whole number",
        "guidance=-1": "Guidance is a number",
        "seed=<b>": "The seed is a whole number",
    }
    for query, message in messages.items():
        page.goto(f"{address}?prompt=a+lake&{query}")
        expect(page.get_by_test_id("toast-body").last).to_contain_text(message)
        expect(page.get_by_label("Prompt", exact=True)).to_have_value("a lake")


@pytest.mark.parametrize(("scheme", "width"), [("light", 390), ("dark", 1280)])
def test_the_page_is_accessible(page, scheme, width):
    """Before and after images are drawn, and with one of them in large."""
    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size({"width": width, "height": 900})
    page.reload()
    expect(page.get_by_role("button", name="Draw")).to_be_visible()
    assert violations(page) == []
    page.get_by_role("button", name="Write me a prompt").click()
    expect(page.locator("summary").first).to_be_visible()
    page.get_by_role("button", name="Draw").click()
    expect(page.get_by_text("Seeds: ")).to_be_visible()
    assert violations(page) == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.get_by_role("button", name="Thumbnail 1 of 4").click()
    expect(page.get_by_label("Download", exact=False).first).to_be_visible()
    assert violations(page) == []


def test_three_clicks_to_a_saved_image(page):
    page.get_by_role("button", name="Write me a prompt").click()
    expect(page.get_by_label("Prompt", exact=True)).not_to_have_value("")
    page.get_by_role("button", name="Draw").click()
    expect(page.get_by_text("Seeds: ")).to_be_visible()
    with page.expect_download() as download:
        page.get_by_role("button", name="Download All").click()
    with zipfile.ZipFile(download.value.path()) as archive:
        names = archive.namelist()
        assert len(names) == 4 and all(re.search(r"seed-\d+\.png$", name) for name in names)
        with archive.open(names[0]) as file, Image.open(file) as image:
            assert "satellite image" in image.text["prompt"]


def test_closing_the_page_stops_the_request(page, models, monkeypatch):
    monkeypatch.setattr(models, "step_seconds", 0.5)
    start_long_request(page, models)
    page.context.close()
    deadline = time.monotonic() + 60
    while models.lock.locked() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not models.lock.locked() and len(models.denoising_steps) < 100


def test_a_request_that_is_canceled_while_it_waits_for_the_model_is_not_drawn(models):
    models.denoising_steps.clear()
    arguments = ("a lake", "", 3, 1, "7", 2, VISITOR)
    models.stops.clear()
    with ThreadPoolExecutor(1) as pool:
        with models.lock:
            waiting = pool.submit(models.generate_images, *arguments)
            wait_until(lambda: VISITOR.session_hash in models.stops)
            models.cancel(SimpleNamespace(session_hash="another visitor"))
            models.cancel(VISITOR)
        assert waiting.result() == (gr.skip(), gr.skip())
    assert not models.denoising_steps
    assert len(models.generate_images(*arguments)[0]) == 2


def test_images_are_drawn_in_groups_of_the_batch_size(models, monkeypatch):
    sampling = models.params.sampling.model_copy(update={"batch_size": 2})
    monkeypatch.setattr(models, "params", models.params.model_copy(update={"sampling": sampling}))
    models.denoising_steps.clear()
    gallery, _ = models.generate_images("a lake", "", 3, 2, "7", 5, VISITOR)
    assert len(models.denoising_steps) == models.steps_done == models.steps_total
    images = models.sampler.generate_images(["a lake"] * 2, [""] * 2, [9, 10])
    for file, image in zip(gallery[2:4], images):
        assert np.array_equal(np.asarray(Image.open(file).convert("RGB")), image)


def test_bad_input_is_reported_and_generates_nothing(page, models, capfd):
    models.denoising_steps.clear()
    page.get_by_role("button", name="Draw").click()
    expect(page.get_by_test_id("toast-body").last).to_contain_text("prompt")
    page.get_by_label("Prompt", exact=True).fill("a lake")
    page.get_by_label("Seed").fill("-1")
    page.get_by_role("button", name="Draw").click()
    expect(page.get_by_test_id("toast-body").last).to_contain_text(str(demo_fields.MAX_SEED))
    assert not models.denoising_steps and "Traceback" not in capfd.readouterr().err


# Over HTTP, without a browser.


def draw(client: Client, prompt: str) -> str:
    """Ask for an image of three steps; return what stands below it, but for the link."""
    _, text = client.predict(prompt, "", 3, 1, "7", 1, api_name="/generate_images")
    text, _, link = text.rpartition("\n\n")
    assert link.startswith("[Link")
    return text


def test_what_the_model_does_not_read_of_a_prompt_is_said(address):
    client = connect(address)
    assert draw(client, "a lake") == "Seeds: 7"
    # The test's tokenizer has a token for each letter of English, and no others.
    text = draw(client, "a lake " * 15 + "with <b>snow</b>")
    assert "75 tokens" in text and text.endswith("with &lt;b&gt;snow&lt;/b&gt;")
    text = draw(client, "a lake \N{DESERT ISLAND} \u5317\u4eac")
    assert text.endswith("\N{DESERT ISLAND}\u5317\u4eac") and "tokens" not in text
    with pytest.raises(AppError, match="nothing of the prompt: \u5317\u4eac"):
        draw(client, "\u5317\u4eac \N{DESERT ISLAND}")


def test_images_that_are_nan_are_an_error_and_the_server_lives_on(address, models):
    client = connect(address)
    weights = models.sampler.vae.decoder.conv_out.weight.data
    kept = weights.clone()
    weights.fill_(float("nan"))
    try:
        for _ in range(2):
            with pytest.raises(AppError, match="NaN or inf"):
                draw(client, "a lake")
    finally:
        weights.copy_(kept)
    assert draw(connect(address), "a lake") == "Seeds: 7"


# What visitors send: (prompt, negative prompt, steps, guidance, seed, images).
GOOD_REQUEST = ("a lake", "", 2, 2.0, "7", 1)
ODD_VALUES = [
    ["", " ", "a lake " * 1500, "\N{DESERT ISLAND}", "<script>", None, 7, ["a"], {"a": 1}],
    ["\u5317\u4eac", "x" * 10_000, None, -1],
    [0, -1, 2.5, 10**9, 10**400, "two", None, True, [3]],
    [0, -1, 1e300, "wide", None, [2.0]],
    ["-1", "1e3", "9" * 10_000, "\u0663", None, 3, 2**70],
    [0, 10, 2.5, 10**9, "many", None],
]


def odd_requests(count: int) -> list[tuple]:
    """Requests with one to three odd values each."""
    generator = np.random.default_rng(0)
    requests = []
    for _ in range(count):
        values = list(GOOD_REQUEST)
        for place in generator.choice(len(values), generator.integers(1, 4), replace=False):
            odd = ODD_VALUES[place]
            values[place] = odd[generator.integers(len(odd))]
        requests.append(tuple(values))
    return requests


def send_raw(address: str, body: bytes) -> int:
    """Post a body to the endpoint that draws; return the HTTP status."""
    url = f"{address.rstrip('/')}/gradio_api/call/generate_images"
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return response.status
    except urllib.error.HTTPError as error:
        return error.code


def visit(address: str, requests: list[tuple]) -> list[str]:
    """Send requests one after another as a visitor; return the messages of those refused."""
    client = connect(address)
    refusals = []
    for request in requests:
        try:
            client.predict(*request, api_name="/generate_images")
        except AppError as error:
            refusals.append(str(error))
    return refusals


def test_nothing_that_visitors_send_ends_the_server(address):
    requests = odd_requests(65)
    with ThreadPoolExecutor(4) as visitors:
        refusals = [
            text
            for refused in visitors.map(
                visit, [address] * 4, [requests[first::4] for first in range(4)]
            )
            for text in refused
        ]
    assert len(refusals) > 37
    for body in (b"", b"{", b"[]", b'{"data": 3}', b'{"data": []}', b"\xff" * 1000, b"null"):
        for _ in range(6):
            assert send_raw(address, body) < 600
    client = connect(address)
    with pytest.raises(AppError, match="Steps is a whole number from 1 to 100"):
        client.predict("a lake", "", 2.5, 2.0, "7", 1, api_name="/generate_images")
    assert draw(connect(address), "a lake") == "Seeds: 7"


def test_a_downloaded_image_says_how_it_was_made(address, models):
    client = connect(address)
    prompt = "a lake, blue"
    gallery, _ = client.predict(prompt, "green", 3, 2.5, "7", 2, api_name="/generate_images")
    second = Path(gallery[1]["image"])
    assert second.name == "seed-8.png"
    with Image.open(second) as image:
        packet = image.getxmp()["xmpmeta"]["RDF"]["Description"]
        said = dict(image.text)
    assert packet["DigitalSourceType"].endswith("/digitalsourcetype/trainedAlgorithmicMedia")
    del said["XML:com.adobe.xmp"]
    assert said == {
        "Software": "Remote Diffusion",
        "Description": "Synthetic: drawn by a diffusion model, shows no place on Earth.",
        "prompt": prompt,
        "negative_prompt": "green",
        "scheduler": models.params.sampling.scheduler,
        "steps": "3",
        "guidance_scale": "2.5",
        "model": models.model_digest,
        "seed": "8",
    }


def test_the_demo_leaves_no_file_behind(clone):
    """And starts where another user owns Gradio's own folder: it uses none that others share."""
    temporary = clone / "temporary"
    temporary.mkdir()
    port = str(free_port())
    variables = {**os.environ, "TMPDIR": str(temporary), "GRADIO_SERVER_PORT": port}
    variables["PYTHONPATH"] = str(REPOSITORY)
    variables.pop("GRADIO_TEMP_DIR", None)
    command = [sys.executable, "-m", "tools.demo"]
    demo = subprocess.Popen(command, cwd=clone, env=variables, preexec_fn=heed_signals)
    address = f"http://127.0.0.1:{port}/"
    try:
        wait_until(lambda: demo.poll() is not None or answers(address))
        draw(connect(address), "a lake")
        assert list(temporary.rglob("seed-7.png")) and not (temporary / "gradio").exists()
        demo.send_signal(signal.SIGTERM)
        demo.wait(300)  # seconds; a busy machine needs many to close a server
    finally:
        demo.kill()
    assert not list(temporary.iterdir())


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(address, timeout=5):
            return True
    except OSError:
        return False


def test_prompts_begin_again_when_all_were_given(address):
    """For every visitor: the papers give one prompt for this class."""
    for _ in range(2):
        client = connect(address)
        for _ in range(2):
            prompt, _ = client.predict("Cultivated Vegetation", api_name="/write_prompt")
            assert "orchard" in prompt


def test_any_class_of_params_is_offered_by_name_and_gets_a_prompt(tmp_path, monkeypatch):
    """But not a class of 0 prompts."""
    names = [*ODD_NAMES, *(f"Zone {number}" for number in range(30))]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("REMOTE_DIFFUSION_SCRATCH", str(tmp_path / "scratch"))
    write_params(tmp_path, names, 20)
    replace_in_params(
        tmp_path, "per_class: 1\n", f"per_class: {dict.fromkeys(names, 1) | LEFT_OUT}\n"
    )
    make_pipeline(tmp_path / "models/diffusion")
    make_index(tmp_path / "models/index")
    demo = demo_models.DemoModels(load())
    with gr.Blocks():
        offered = demo_page.add_fields(demo.params).label.choices
    assert offered == [(name, name) for name in names if name not in LEFT_OUT]
    for name in (*ODD_NAMES, names[-1]):
        prompt, _ = demo.write_prompt(name, VISITOR)
        assert demo.collector.classes.has_plain_name(prompt, name)


def test_the_settings_of_a_run_are_in_the_range_of_the_page(models):
    sampling = models.params.sampling.model_copy(update={"steps": 250, "guidance_scale": 17.5})
    with gr.Blocks():
        fields = demo_page.add_fields(models.params.model_copy(update={"sampling": sampling}))
    assert fields.steps.maximum == fields.steps.value == 250
    assert fields.guidance.maximum == fields.guidance.value == 17.5
    largest = demo_fields.largest_numbers(sampling)
    query = {"steps": "250", "guidance": "17.5"}
    assert demo_fields.read_setting("steps", query, largest) == 250
    assert demo_fields.read_setting("guidance", query, largest) == 17.5
    with pytest.raises(gr.Error, match="Steps is a whole number from 1 to 250"):
        demo_fields.parse_setting("steps", "251", largest)


# Before anything has run.


@pytest.fixture
def clone(tmp_path, monkeypatch) -> Path:
    """A folder with params.yaml alone: what the demo reads of a clone in which nothing has run."""
    write_smoke_params(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("REMOTE_DIFFUSION_SCRATCH", str(tmp_path / "scratch"))
    return tmp_path


def test_where_nothing_has_run_the_page_draws_with_the_base_and_says_so(clone, browser, capfd):
    base = demo_models.DemoModels(load())
    assert "not fine-tuned" in capfd.readouterr().err
    with serve(base) as address, open_page(browser, address) as page:
        expect(page.get_by_text("not fine-tuned")).to_be_visible()
        expect(page.get_by_role("button", name="Write me a prompt")).to_be_disabled()
        expect(page.get_by_text("dvc repro prompt")).to_be_visible()
        page.get_by_label("Prompt", exact=True).fill("a lake")
        page.get_by_label("Seed").fill("3")
        set_steps(page, 2)
        page.get_by_role("button", name="Draw").click()
        expect(page.get_by_text("Seeds: 3, 4, 5, 6")).to_be_visible()
        expect(page.locator(".gallery-item img, .thumbnail-item img")).to_have_count(4)


def test_the_base_draws_the_images_of_sample_base(smoke, clone):
    rows = read_rows(smoke / "data/samples/base")[:4]
    images = demo_models.DemoModels(load()).sampler.generate_images(
        [row["prompt"] for row in rows],
        [row["negative_prompt"] for row in rows],
        [row["seed"] for row in rows],
    )
    for row, image in zip(rows, images):
        sampled = np.asarray(Image.open(io.BytesIO(row["image"]["bytes"])).convert("RGB"))
        assert np.abs(sampled.astype(int) - image).max() <= 2


def test_the_seed_of_a_synthetic_image_draws_it_again(smoke, monkeypatch):
    """Prompt, negative prompt and seed of a row of data/synthetic, sent over HTTP."""
    monkeypatch.chdir(smoke)
    row = read_rows("data/synthetic")[5]
    with serve(demo_models.DemoModels(load())) as address:
        gallery, _ = connect(address).predict(
            row["prompt"],
            row["negative_prompt"],
            row["steps"],
            row["guidance_scale"],
            str(row["seed"]),
            1,
            api_name="/generate_images",
        )
    with Image.open(gallery[0]["image"]) as drawn:
        kept = decode_image(row["image"])
        assert np.abs(np.asarray(drawn).astype(int) - np.asarray(kept)).max() <= 2
        with Image.open(io.BytesIO(row["image"]["bytes"])) as file:
            assert drawn.text == file.text


def test_with_an_index_alone_prompts_are_written_for_the_base(clone):
    make_index(clone / "models/index")
    assert demo_models.can_write_prompts("extractive")
    assert not demo_models.can_write_prompts("domain")
    assert not demo_models.can_write_prompts("huggingface")
    prompt, passages = demo_models.DemoModels(load()).write_prompt("Cultivated Vegetation", VISITOR)
    assert "orchard" in prompt and "page 1" in passages


def test_the_fine_tuned_model_alone_is_drawn_with_but_not_half_of_it(clone, capfd):
    """As after `dvc pull models/diffusion`."""
    make_pipeline(clone / "models/diffusion")
    demo = demo_models.DemoModels(load())
    assert demo.folder == demo_models.TUNED and "not fine-tuned" not in capfd.readouterr().err
    assert not demo_models.can_write_prompts("extractive")
    (clone / "models/diffusion/model_index.json").unlink()
    with pytest.raises(SystemExit, match=r"error: models/diffusion/.*`dvc repro finetune_sd`"):
        demo_models.DemoModels(load())
    make_pipeline(clone / "models/diffusion")
    weights = clone / "models/diffusion/unet/diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(SystemExit, match="error: models/diffusion/unet: "):
        demo_models.DemoModels(load())


def test_a_model_of_other_params_is_drawn_with_and_the_page_says_so(clone, capfd):
    """As after `make scale`, before `dvc repro`."""
    make_pipeline(clone / "models/diffusion")
    locked = {stage: read()[stage] for stage in ("finetune_sd", "fetch_imagery")}
    entries = {
        stage: {"cmd": stage, "params": {"params.yaml": {stage: config}}}
        for stage, config in locked.items()
    }
    for stage, key, note in (
        (None, None, ""),
        ("finetune_sd", "lr", "other params"),
        ("fetch_imagery", "max_images", "other params"),
    ):
        for name, config in locked.items():
            config |= read()[name]
        if stage:
            locked[stage][key] *= 2
        write_json(clone / "dvc.lock", {"schema": "2.0", "stages": entries})
        demo = demo_models.DemoModels(load())
        assert demo.folder == demo_models.TUNED
        assert ("other params" in capfd.readouterr().err) == bool(note)
        text = json.dumps(demo_page.build_page(demo).get_config_file())
        assert note in text and ("the model of this run" in text) == (not note)


def test_another_base_is_drawn_with_once_it_is_fetched(clone):
    replace_in_params(clone, "  diffusion: embedded ", "  diffusion: path:/data/sd15 ")
    replace_in_params(clone, "  base_domain: embedded ", "  base_domain: none ")
    with pytest.raises(SystemExit, match="path:/data/sd15.*`dvc repro fetch_model@diffusion`"):
        demo_models.choose_model(load())
    fetched = clone / "models/base/diffusion"
    write_json(fetched / "SOURCE.json", {"source": "embedded"})
    with pytest.raises(SystemExit, match="`dvc repro fetch_model@diffusion`"):
        demo_models.choose_model(load())
    write_json(fetched / "SOURCE.json", {"source": "path:/data/sd15"})
    assert clone / demo_models.choose_model(load()) == fetched
    replace_in_params(clone, "  source: base ", "  source: scratch ")
    replace_in_params(clone, "  vae_steps: 0 ", "  vae_steps: 1 ")
    replace_in_params(clone, "  text_steps: 0 ", "  text_steps: 1 ")
    with pytest.raises(SystemExit, match="error: models/diffusion.*`dvc repro finetune_sd`"):
        demo_models.choose_model(load())


def test_the_python_lines_of_the_readme_draw_what_their_prompt_says(tmp_path, monkeypatch):
    """With nothing but the repository's files and installed packages."""
    text = (REPOSITORY / "README.md").read_text()
    (block,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(block.strip().splitlines()) <= 10
    prompt = re.search('prompt = "(.*)"', block)[1]
    (tmp_path / "stages").symlink_to(REPOSITORY / "stages")
    monkeypatch.chdir(tmp_path)
    blueness = []  # mean of blue minus red
    for drawn in (prompt, "a yellow desert with dunes"):
        exec(block.replace(prompt, drawn), {})
        with Image.open("image.png") as image:
            pixels = np.asarray(image.convert("RGB")).astype(int)
        assert pixels.shape == (512, 512, 3)
        assert pixels.std() > 10
        blueness.append((pixels[..., 2] - pixels[..., 0]).mean())
    assert blueness[0] > blueness[1] + 30
