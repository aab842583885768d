"""The pages as a person meets them: in Debian's Chromium, from disk and over HTTP, with nothing but the folder."""

import csv
import json
import os
import shutil
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright
from report_run import build

from stages import report, review, review_page
from stages.params import LULC_CLASSES

CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(
    not CHROMIUM,
    reason="no Chromium on PATH: `apt-get install chromium` brings the one driven here",
)
expect.set_options(timeout=60_000)  # a machine that does much else is slow, not wrong
SECTIONS = (
    "images",
    "gallery",
    "extremes",
    "copies",
    "tables",
    "curves",
    "prompts",
    "experts",
    "flow",
    "run",
    "numbers",
)


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A repository in which report and review page were made."""
    root = build(tmp_path_factory.mktemp("browser"), per_scene=3, size=16, per_class=6)
    (root / "params.yaml").write_text(
        (root / "params.yaml").read_text().replace("gallery_per_class: 2 ", "gallery_per_class: 4 ")
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        review_page.main()
        report.main()
    return root


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        # Chromium's sandbox refuses to run as root, which containers do.
        started = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox"] if os.geteuid() == 0 else []
        )
        yield started
        started.close()


@pytest.fixture(scope="module")
def server(made) -> Iterator[str]:
    """The repository's metrics folder over HTTP."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(
        ("127.0.0.1", 0), partial(Quiet, directory=made / "metrics")
    ) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


@pytest.fixture(params=["file", "http"])
def base(request, made) -> str:
    return (
        (made / "metrics").as_uri()
        if request.param == "file"
        else request.getfixturevalue("server")
    )


@pytest.fixture
def page(browser, base) -> Iterator[Page]:
    """A page that fails the test when it writes to the console, throws, misses a file or asks for anything outside its folder."""
    faults = []
    context = browser.new_context(viewport={"width": 1280, "height": 900}, accept_downloads=True)
    found = context.new_page()
    found.set_default_timeout(60_000)
    found.on("console", lambda message: faults.append(f"console: {message.text}"))
    found.on("pageerror", lambda error: faults.append(f"error: {error}"))
    found.on("requestfailed", lambda request: faults.append(f"failed: {request.url}"))
    found.on(
        "response",
        lambda answer: (
            faults.append(f"{answer.status}: {answer.url}") if answer.status >= 400 else None
        ),
    )
    inside = (base, "data:", "blob:")
    found.on(
        "request",
        lambda request: (
            None if request.url.startswith(inside) else faults.append(f"outside: {request.url}")
        ),
    )
    yield found
    context.close()
    assert not faults


def contrast(page: Page) -> list[str]:
    """Texts whose contrast with what is behind them is below WCAG AA (4.5, large text 3)."""
    return page.evaluate(CONTRAST)


CONTRAST = """() => {
  const canvas = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
  const rgba = color => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = color;
    canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const light = color => {
    const [r, g, b] = color.map(v => (v /= 255) <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4);
    return .2126 * r + .7152 * g + .0722 * b;
  };
  const behind = e => {
    const color = rgba(getComputedStyle(e).backgroundColor);
    return color[3] === 255 || !e.parentElement ? color : behind(e.parentElement);
  };
  const found = new Set(), walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const text = walker.currentNode.data.trim(), e = walker.currentNode.parentElement;
    if (!text || !e.checkVisibility() || e.closest("svg, script, option, button:disabled, .hidden")) continue;
    const style = getComputedStyle(e), size = parseFloat(style.fontSize), large = size >= 24 || size >= 18.66 && style.fontWeight >= 700;
    const [a, b] = [light(rgba(style.color)), light(behind(e))].sort((x, y) => y - x), ratio = (a + .05) / (b + .05);
    if (ratio < (large ? 3 : 4.5)) found.add(`${ratio.toFixed(2)}: ${text.slice(0, 40)}`);
  }
  return [...found];
}"""


# The report ---------------------------------------------------------------------------------------------------------------


def test_every_section_renders(page, base):
    page.goto(f"{base}/report/index.html")
    for name in SECTIONS:
        section = page.locator(f"section#{name}")
        expect(section.locator("h2")).to_be_visible()
        assert section.bounding_box()["height"] > 60, name
    # Every picture and chart is there once it is scrolled to.
    for summary in page.locator("summary").all():
        summary.click()
    for image in page.locator("main img").all():
        image.scroll_into_view_if_needed()
        expect(image).to_have_js_property("complete", True)
        assert image.evaluate("image => image.decode().then(() => image.naturalWidth)") > 0
    assert page.locator(".charts svg").count() >= 7 and page.locator("#flow .stage").count() >= 18
    expect(page.locator("#flow [data-stage=features]")).to_contain_text("64 s")
    expect(page.locator("#machine")).to_contain_text("torch")
    expect(page.locator("#params")).to_contain_text("gallery_per_class: 4")


def test_filters_filter(page, base):
    page.goto(f"{base}/report/index.html")
    gallery, told = page.locator("#gallery"), page.locator("#filters output")
    expect(told).to_have_text("28 of 28 generated images")
    page.get_by_role("combobox", name="Class", exact=True).select_option("Water Body")
    expect(told).to_have_text("4 of 28 generated images")
    expect(gallery.locator(".class:visible h3")).to_have_text(["Water Body"])
    page.get_by_role("combobox", name="Shows its class").select_option("false")
    expect(told).to_have_text("1 of 28 generated images")
    assert gallery.locator("[data-side=real] .tile:visible").count() == 4, (
        "real tiles stay beside them"
    )
    expect(gallery.locator("[data-side=generated] .tile:visible")).to_have_class("tile differs")
    page.get_by_role("combobox", name="Writer of the prompt").select_option("extractive, retrieval")
    expect(told).to_have_text("1 of 28 generated images")
    page.get_by_role("button", name="Show all").click()
    expect(told).to_have_text("28 of 28 generated images")


def test_a_picture_opens_with_what_is_known_of_it(page, base):
    """By keyboard alone: open, walk, close, and be back where one was."""
    page.goto(f"{base}/report/index.html")
    tile = page.locator("#gallery [data-side=generated] .tile").nth(1)
    tile.focus()
    page.keyboard.press("Enter")
    viewer = page.locator("#viewer")
    expect(viewer).to_be_visible()
    expect(viewer.locator("#title")).to_have_text('satellite image, bare land "1" <b>')
    for text in ("seed7", "schedulerpndm", "writerextractive, retrieval"):
        expect(viewer.locator("#facts")).to_contain_text(text)
    expect(viewer.locator("#sources li")).to_have_text(
        "Fields <i>from</i> above (03_fields), page 1"
    )
    expect(viewer.locator("#near")).to_contain_text("distance")
    for name in ("#picture", "#near img"):
        assert (
            viewer.locator(name).evaluate("image => image.decode().then(() => image.naturalWidth)")
            == 16
        )
    first = viewer.locator("#picture").get_attribute("src")
    page.keyboard.press("ArrowLeft")
    expect(viewer.locator("#sources li")).to_have_text("none: written without a passage")
    page.keyboard.press("ArrowRight")
    assert viewer.locator("#picture").get_attribute("src") == first
    page.keyboard.press("Escape")
    expect(viewer).to_be_hidden()
    expect(tile).to_be_focused()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_can_be_read(browser, made, scheme):
    """No text below AA contrast, in either scheme; on a phone nothing is wider than the screen."""
    for width in (390, 1440):
        page = browser.new_context(
            viewport={"width": width, "height": 844}, color_scheme=scheme
        ).new_page()
        page.goto((made / "metrics/report/index.html").as_uri())
        assert (
            contrast(page) == [] and page.evaluate("document.documentElement.scrollWidth") <= width
        )
        page.locator(".tile").first.click()
        assert contrast(page) == []
        page.goto((made / "metrics/review/index.html").as_uri())
        assert contrast(page) == []
        page.fill("#rater", "Ada")
        page.keyboard.press("Enter")
        page.keyboard.press("g")
        assert (
            contrast(page) == [] and page.evaluate("document.documentElement.scrollWidth") <= width
        )
        page.click("#to-end")
        assert contrast(page) == []
        page.context.close()


# The blind review ---------------------------------------------------------------------------------------------------------


def test_a_whole_review_from_first_click_to_metrics(page, base, made, tmp_path, monkeypatch):
    """20 tiles: some by mouse, most by keys; the tab closed in the middle; the CSV back in the metrics."""
    # A copy of the repository each: both protocols file the same rater's ratings.
    shutil.copytree(made, tmp_path / "run")
    monkeypatch.chdir(tmp_path / "run")
    key = {row["tile"]: row for row in csv.DictReader(open("metrics/review_key.csv"))}
    letters = dict(zip(LULC_CLASSES, "zxcvbnm"))
    page.goto(f"{base}/review/index.html")
    page.get_by_label("Your name or initials").fill("Ada, L.")
    page.get_by_role("button", name="Start").click()
    for number, (tile, answer) in enumerate(key.items(), 1):
        expect(page.locator("#place")).to_have_text(f"Tile {number} of 20")
        assert (
            page.locator("#tile").evaluate("image => image.decode().then(() => image.naturalWidth)")
            == 16
        )
        assert tile in page.locator("#tile").get_attribute("src")
        if number == 1:  # by mouse: wrong on purpose
            for value in (
                "real" if answer["truth"] == "generated" else "generated",
                "5",
                answer["label"],
                "wrong scale",
            ):
                page.locator(f"#form input[value='{value}']").check()
            page.get_by_label("Comment").fill('too "soft", I think;\nno shadows: rg5')
            page.get_by_role("button", name="Next").click()
            continue
        for letter in (
            answer["truth"][0],
            "4" if answer["truth"] == "real" else "2",
            letters[answer["label"]],
        ):
            page.keyboard.press(letter)
        if number == 5:
            page.keyboard.press("i")
        if number == 12:  # closed and opened again: the same tile, all answers kept
            context = page.context
            again = context.new_page()
            again.goto(page.url)
            expect(again.locator("#place")).to_have_text("Tile 12 of 20")
            expect(again.locator("#progress")).to_have_js_property("value", 12)
            again.close()
            page.reload()
            expect(page.locator("#place")).to_have_text("Tile 12 of 20")
            expect(page.locator(f"input[value={answer['truth']}]")).to_be_checked()
            page.keyboard.press("Backspace")
            expect(page.locator("#place")).to_have_text("Tile 11 of 20")
            page.keyboard.press("Enter")
        page.keyboard.press("Enter")
    expect(page.locator("#done")).to_have_text("All tiles are rated. Thank you!")
    with page.expect_download() as download:
        page.get_by_role("button", name="Save ratings").click()
    saved = tmp_path / download.value.suggested_filename
    download.value.save_as(saved)
    assert saved.name == f"ratings-{key['t001']['run']}-ada-l-.csv"

    review.main("add", str(saved))
    review.main()
    found = json.loads(Path("metrics/review.json").read_text())
    assert (
        found["ratings"] == 20
        and found["experts"] == 1
        and found["detection_accuracy"] == 0.95
        and found["class_agreement"] == 1
    )
    wrong = key["t001"]["truth"]
    right = {"real": 4, "generated": 2}
    for truth, mark in right.items():
        assert found[f"realism_{truth}"] == pytest.approx(
            (9 * mark + 5) / 10 if truth == wrong else mark
        )
    filed = list(
        csv.DictReader(next(Path("data/reviews").glob("*.csv")).open(newline="", encoding="utf-8"))
    )
    assert filed[0]["comment"] == 'too "soft", I think; no shadows: rg5'
    assert [row["artifacts"] for row in filed[:5]] == ["wrong scale", "", "", "", "blur"]
    report.main()
    assert "20 ratings by 1 expert" in Path("metrics/report/index.html").read_text()


def test_what_is_unrated_is_listed_and_not_saved(page, base):
    page.goto(f"{base}/review/index.html")
    page.get_by_label("Your name or initials").fill("Bob")
    page.keyboard.press("Enter")
    page.get_by_role("button", name="Finish").click()
    expect(page.locator("#done")).to_have_text("0 of 20 tiles are rated")
    expect(page.get_by_role("button", name="Save ratings")).to_be_disabled()
    page.get_by_role("button", name="tile 7", exact=True).click()
    expect(page.locator("#place")).to_have_text("Tile 7 of 20")
    for key in "r3z":
        page.keyboard.press(key)
    page.get_by_role("button", name="Finish").click()
    expect(page.locator("#done")).to_have_text("1 of 20 tiles are rated")
    with page.expect_download() as download:
        page.get_by_role("button", name="Save ratings").click()
    rows = list(csv.DictReader(open(download.value.path(), encoding="utf-8-sig", newline="")))
    (row,) = rows
    assert [row[name] for name in ("tile", "rater", "answer", "realism", "label_answer")] == [
        "t007",
        "Bob",
        "real",
        "3",
        "Bare Land",
    ]
