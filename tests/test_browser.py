"""The pages in a browser (Debian's Chromium), from disk and over HTTP, with only their folder."""

import csv
import json
import os
import re
import shutil
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from accessibility import violations
from playwright.sync_api import Browser, Locator, Page, Request, Response, expect, sync_playwright
from report_run import CLASSES, build
from review_run import ODD_NAMES, make_classes

from stages import report, review, review_page
from tools import review as review_tool

CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(
    not CHROMIUM,
    reason="no Chromium on PATH: `apt-get install chromium` installs the one used here",
)
expect.set_options(timeout=60_000)  # ms; a busy machine is slow
SECTIONS = (
    "images",
    "gallery",
    "extremes",
    "copies",
    "tables",
    "charts",
    "prompts",
    "experts",
    "stages",
    "run",
    "numbers",
)


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A repository in which the report and the review page were made."""
    root = build(tmp_path_factory.mktemp("browser"), per_scene=3, size=16, per_class=6)
    params = root / "params.yaml"
    text = params.read_text()
    params.write_text(text.replace("gallery_per_class: 2 ", "gallery_per_class: 4 "))
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
    """A page that fails the test where it logs, throws, misses a file or leaves its folder."""
    failures = []

    def check_request(request: Request) -> None:
        if not request.url.startswith((base, "data:", "blob:")):
            failures.append(f"outside the folder: {request.url}")

    def check_response(response: Response) -> None:
        if response.status >= 400:
            failures.append(f"{response.status}: {response.url}")

    def check_failure(request: Request) -> None:
        # The browser aborts what a page still loads when the page is left, reloaded or closed.
        if request.failure != "net::ERR_ABORTED":
            failures.append(f"{request.failure}: {request.url}")

    context = browser.new_context(viewport={"width": 1280, "height": 900}, accept_downloads=True)
    opened = context.new_page()
    opened.set_default_timeout(60_000)
    opened.on("console", lambda message: failures.append(f"console: {message.text}"))
    opened.on("pageerror", lambda error: failures.append(f"error: {error}"))
    opened.on("request", check_request)
    opened.on("response", check_response)
    opened.on("requestfailed", check_failure)
    yield opened
    context.close()
    assert not failures


def low_contrast(page: Page) -> list[str]:
    """Texts whose contrast to their background is below WCAG AA (4.5, large text 3)."""
    return page.evaluate(CONTRAST)


def natural_width(image: Locator) -> int:
    """Width of the loaded picture in pixels."""
    return image.evaluate("image => image.decode().then(() => image.naturalWidth)")


CONTRAST = """() => {
  const canvas = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
  const rgba = color => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = color;
    canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const light = color => {
    const linear = v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4;
    const [r, g, b] = color.map(v => linear(v / 255));
    return .2126 * r + .7152 * g + .0722 * b;
  };
  const behind = e => {
    const color = rgba(getComputedStyle(e).backgroundColor);
    return color[3] === 255 || !e.parentElement ? color : behind(e.parentElement);
  };
  const found = new Set();
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const text = walker.currentNode.data.trim(), e = walker.currentNode.parentElement;
    if (!text || !e.checkVisibility()) continue;
    if (e.closest("svg, script, option, button:disabled, .hidden")) continue;
    const style = getComputedStyle(e), size = parseFloat(style.fontSize);
    const large = size >= 24 || size >= 18.66 && style.fontWeight >= 700;
    const [a, b] = [light(rgba(style.color)), light(behind(e))].sort((x, y) => y - x);
    const ratio = (a + .05) / (b + .05);
    if (ratio < (large ? 3 : 4.5)) found.add(`${ratio.toFixed(2)}: ${text.slice(0, 40)}`);
  }
  return [...found];
}"""


# The report --------------------------------------------------------------------------------------


def test_every_section_renders(page, base):
    page.goto(f"{base}/report/index.html")
    for name in SECTIONS:
        section = page.locator(f"section#{name}")
        expect(section.locator("h2")).to_be_visible()
        assert section.bounding_box()["height"] > 60, name
    # Every picture and chart loads once it is scrolled to.
    for summary in page.locator("summary").all():
        summary.click()
    for image in page.locator("main img").all():
        image.scroll_into_view_if_needed()
        expect(image).to_have_js_property("complete", True)
        assert natural_width(image) > 0
    assert page.locator(".charts svg").count() >= 7
    assert page.locator("#stages [data-stage]").count() >= 18
    expect(page.locator("#stages [data-stage=features]")).to_contain_text("64 s")
    expect(page.locator("#stages [data-stage=features]")).to_contain_text("sample, select")
    expect(page.locator("#machine")).to_contain_text("torch")
    expect(page.locator("#params")).to_contain_text("gallery_per_class: 4")
    expect(page.locator(".without-run").first).to_be_hidden()


def test_what_numbers_and_pictures_mean_stands_beside_them(page, base):
    page.goto(f"{base}/report/index.html")
    cards = page.locator(".cards").inner_text()
    notes = page.locator(".cards + .note").inner_text()
    for name in ("real vs. real", "base model", "chance", "trained on real tiles"):
        assert name in cards and f"{name}:" in notes
    assert "floor" in notes and "ceiling" in notes
    # The captions of the tiles in this run have no word of these two.
    figure = page.locator("#images figure", has_text="Figure 4: Bare Land")
    expect(figure.locator(".tile")).to_have_count(4)
    expect(figure.locator("figcaption")).to_contain_text("In no training caption: ")
    expect(figure.locator(".unseen")).to_contain_text("canyon")
    expect(figure.locator(".unseen")).not_to_contain_text(" a,")
    before_and_after = page.locator("#images figure", has_text="lake").first
    expect(before_and_after).to_contain_text(re.compile("real.*base.*tuned.*lake", re.S))
    confusion = page.locator(".charts figure", has_text="Land cover: confusion matrix")
    expect(confusion).to_contain_text(re.compile(r"the \d+ classifiers trained on generated"))


def test_the_report_tells_no_times_of_another_run(page, base, made):
    """Such as where an experiment's outputs were checked out."""
    run = (made / "metrics/run.js").read_text()
    own = json.loads(run.removeprefix("const run = ").removesuffix(";\n"))["report"]
    page.route(
        "**/run.js",
        lambda route: route.fulfill(
            body=run.replace(own, "another"), content_type="text/javascript"
        ),
    )
    page.goto(f"{base}/report/index.html")
    expect(page.locator("#stages .without-run")).to_be_visible()
    expect(page.locator("#stages table")).to_be_hidden()
    expect(page.locator("#machine")).to_be_hidden()


def test_filters_choose_images(page, base):
    page.goto(f"{base}/report/index.html")
    gallery = page.locator("#gallery")
    count = page.locator("#filters output")
    expect(count).to_contain_text("28 of 28")
    page.locator("[name=label]").select_option("Water Body")
    expect(count).to_contain_text("4 of 28")
    expect(gallery.locator(".class:visible h3")).to_have_text(["Water Body"])
    page.locator("[name=agrees]").select_option("false")
    expect(count).to_contain_text("1 of 28")
    real_tiles = gallery.locator("[data-side=real] .tile:visible")
    assert real_tiles.count() == 4, "filters of generated images leave real tiles"
    expect(gallery.locator("[data-side=generated] .tile:visible")).to_have_class("tile differs")
    page.locator("[name=writer]").select_option("extractive, retrieval")
    expect(count).to_contain_text("1 of 28")
    page.locator("#filters [type=reset]").click()
    expect(count).to_contain_text("28 of 28")


def test_the_viewer_works_by_keyboard(page, base):
    """Open a picture, go through the section, close, and be back at the picture."""
    page.goto(f"{base}/report/index.html")
    tile = page.locator("#gallery [data-side=generated] .tile").nth(1)
    tile.focus()
    page.keyboard.press("Enter")
    viewer = page.locator("#viewer")
    expect(viewer).to_be_visible()
    expect(viewer).to_have_accessible_name('satellite image, bare land "1" <b>')
    for text in ("seed7", "schedulerpndm", "writerextractive, retrieval"):
        expect(viewer.locator("#facts")).to_contain_text(text)
    passages = viewer.locator("#sources li")
    expect(passages).to_have_text("Fields <i>from</i> above (03_fields), page 1")
    expect(viewer.locator("#near")).to_contain_text("distance")
    picture = viewer.locator("#picture")
    assert natural_width(picture) == 16
    assert natural_width(viewer.locator("#near img")) == 16
    first = picture.get_attribute("src")
    page.keyboard.press("ArrowLeft")
    expect(picture).not_to_have_attribute("src", first)
    expect(passages).not_to_contain_text("Fields")
    page.keyboard.press("ArrowRight")
    expect(picture).to_have_attribute("src", first)
    page.keyboard.press("Escape")
    expect(viewer).to_be_hidden()
    expect(tile).to_be_focused()


@pytest.mark.parametrize(("scheme", "width"), [("light", 390), ("dark", 1440)])
def test_pages_can_be_read(browser, made, scheme, width):
    """No text is below AA contrast, no page is wider than the screen, no rule of axe is broken."""
    context = browser.new_context(viewport={"width": width, "height": 844}, color_scheme=scheme)
    page = context.new_page()

    def check() -> None:
        assert low_contrast(page) == []
        assert violations(page) == []
        assert page.evaluate("document.documentElement.scrollWidth") <= width

    page.goto((made / "metrics/report/index.html").as_uri())
    check()
    page.locator(".tile").first.click()
    check()
    page.goto((made / "metrics/review/index.html").as_uri())
    check()
    page.fill("#rater", "Ada")
    page.keyboard.press("Enter")
    page.keyboard.press("g")
    check()
    page.click("#to-end")
    check()
    page.click("#again")
    page.click("#change")
    check()
    context.close()


# The blind review --------------------------------------------------------------------------------

KEYS = dict(zip(CLASSES, review_page.class_keys(len(CLASSES))))


def rate_wrongly_by_mouse(page: Page, answer: dict[str, str]) -> None:
    """Rate the tile on the screen. answer: its row of the key."""
    wrong = "real" if answer["truth"] == "generated" else "generated"
    for value in (wrong, "5", answer["label"], "wrong scale"):
        page.locator(f"#form input[value='{value}']").check()
    page.get_by_label("Comment").fill('too "soft", I think;\nno shadows: rg5')
    page.locator("#next").click()


def rate_rightly_by_keys(page: Page, answer: dict[str, str]) -> None:
    """Rate the tile on the screen, a real one with 4, a generated one with 2."""
    page.keyboard.press(answer["truth"][0])
    page.keyboard.press("4" if answer["truth"] == "real" else "2")
    page.keyboard.press(KEYS[answer["label"]])


def check_that_answers_survive(page: Page, answer: dict[str, str]) -> None:
    """Open the page in another tab and reload it, at the rated tile 12 of 20."""
    other = page.context.new_page()
    other.goto(page.url)
    other.get_by_role("button", name="Continue as Ada, L. (12 of 20)").click()
    expect(other.locator("#position")).to_have_text("Tile 12 of 20")
    expect(other.locator("#progress")).to_have_js_property("value", 12)
    other.close()
    page.reload()
    expect(page.locator("#position")).to_have_text("Tile 12 of 20")
    expect(page.locator(f"input[value={answer['truth']}]")).to_be_checked()
    page.keyboard.press("Backspace")
    expect(page.locator("#position")).to_have_text("Tile 11 of 20")
    page.keyboard.press("Enter")


def save_ratings(page: Page, folder: Path) -> Path:
    with page.expect_download() as download:
        page.locator("#save").click()
    path = folder / download.value.suggested_filename
    download.value.save_as(path)
    return path


def test_a_review_from_the_first_click_to_the_metrics(page, base, made, tmp_path, monkeypatch):
    """20 tiles: the first by mouse and wrong, the others by keys and right."""
    # A copy of the repository each: both protocols file the same rater's ratings.
    shutil.copytree(made, tmp_path / "run")
    monkeypatch.chdir(tmp_path / "run")
    key = list(csv.DictReader(open("metrics/review_key.csv")))
    page.goto(f"{base}/review/index.html")
    page.get_by_label("Your name or initials").fill("Ada, L.")
    page.keyboard.press("Enter")
    for number, answer in enumerate(key, 1):
        expect(page.locator("#rate")).to_have_accessible_name(f"Tile {number} of 20")
        assert natural_width(page.locator("#tile")) == 16
        assert answer["tile"] in page.locator("#tile").get_attribute("src")
        if number == 1:
            rate_wrongly_by_mouse(page, answer)
            continue
        rate_rightly_by_keys(page, answer)
        if number == 5:
            page.keyboard.press("i")  # blur
        if number == 12:
            check_that_answers_survive(page, answer)
        page.keyboard.press("Enter")
    expect(page.locator("#unrated li")).to_have_count(0)
    saved = save_ratings(page, tmp_path)
    assert saved.name == f"ratings-{key[0]['run']}-ada-l-.csv"

    review_tool.add(saved)
    review.main()
    metrics = json.loads(Path("metrics/review.json").read_text())
    assert metrics["ratings"] == 20
    assert metrics["experts"] == 1
    assert metrics["detection_accuracy"] == 0.95
    assert metrics["class_agreement_real"] == metrics["class_agreement_generated"] == 1
    for truth, realism in (("real", 4), ("generated", 2)):
        expected = (9 * realism + 5) / 10 if truth == key[0]["truth"] else realism
        assert metrics[f"realism_{truth}"] == pytest.approx(expected)
    (file,) = Path("data/reviews").glob("*.csv")
    filed = list(csv.DictReader(file.open(newline="", encoding="utf-8")))
    assert filed[0]["comment"] == 'too "soft", I think; no shadows: rg5'
    assert [row["artifacts"] for row in filed[:5]] == ["wrong scale", "", "", "", "blur"]
    report.main()
    text = Path("metrics/report/index.html").read_text()
    assert re.search(r"\b20 ratings\D*\b1\b", text)


def start_as(page: Page, name: str) -> None:
    page.get_by_label("Your name or initials").fill(name)
    page.keyboard.press("Enter")


def test_a_second_expert_has_a_review_of_their_own(page, base, tmp_path):
    page.goto(f"{base}/review/index.html")
    start_as(page, "Ada")
    expect(page.locator(".whose")).to_contain_text("Review of Ada")
    choose_by_keys(page, "r3z")
    page.get_by_role("button", name="Another expert").click()
    start_as(page, " ADA ")
    expect(page.get_by_role("alert")).to_contain_text("a review of that name")
    start_as(page, "\u674e")
    expect(page.locator(".whose")).to_contain_text("Review of \u674e")
    expect(page.locator("#form :checked")).to_have_count(0)
    choose_by_keys(page, "g4x")
    page.keyboard.press("Enter")
    choose_by_keys(page, "g4x")
    page.locator("#to-end").click()
    saved = [save_ratings(page, tmp_path)]
    page.reload()
    expect(page.locator(".whose")).to_contain_text("\u674e")
    page.get_by_role("button", name="Another expert").click()
    expect(page.locator("#reviews button")).to_have_text(
        ["Continue as Ada (1 of 20)", "Continue as \u674e (2 of 20)"]
    )
    page.get_by_role("button", name="Continue as Ada").click()
    expect(page.locator("#form input[value=real]")).to_be_checked()
    page.locator("#to-end").click()
    saved.append(save_ratings(page, tmp_path))
    assert len({path.name for path in saved}) == 2
    rows = [
        (row["rater"], row["answer"])
        for path in saved
        for row in csv.DictReader(open(path, encoding="utf-8-sig", newline=""))
    ]
    assert rows == [("\u674e", "generated"), ("\u674e", "generated"), ("Ada", "real")]


def test_two_tabs_of_one_review_overwrite_nothing(page, base):
    page.goto(f"{base}/review/index.html")
    start_as(page, "Ada")
    choose_by_keys(page, "r3z")
    other = page.context.new_page()
    other.goto(page.url)
    other.get_by_role("button", name="Continue as Ada").click()
    expect(other.locator("#form input[value=real]")).to_be_checked()
    other.keyboard.press("Enter")
    choose_by_keys(other, "g2x")
    expect(page.locator("#progress")).to_have_js_property("value", 2)
    # The first tab is still at its tile, and answers differently.
    choose_by_keys(page, "g")
    page.keyboard.press("Enter")
    expect(page.locator("#form input[value=generated]")).to_be_checked()
    other.keyboard.press("Backspace")
    expect(other.locator("#form input[value=generated]")).to_be_checked()
    expect(other.locator("#progress")).to_have_js_property("value", 2)


def test_cannot_tell_is_an_answer_that_is_neither_right_nor_wrong(
    page, base, made, tmp_path, monkeypatch
):
    shutil.copytree(made, tmp_path / "run")
    monkeypatch.chdir(tmp_path / "run")
    key = list(csv.DictReader(open("metrics/review_key.csv")))
    page.goto(f"{base}/review/index.html")
    start_as(page, "Ada")
    for number, answer in enumerate(key):
        if number < 5:
            choose_by_keys(page, "039")
        else:
            rate_rightly_by_keys(page, answer)
        page.keyboard.press("Enter")
    expect(page.locator("#unrated li")).to_have_count(0)
    review_tool.add(save_ratings(page, tmp_path))
    review.main()
    metrics = json.loads(Path("metrics/review.json").read_text())
    assert metrics["ratings"] == 20 and metrics["undecided"] == 0.25
    assert metrics["undecided_lo"] < 0.25 < metrics["undecided_hi"] < 0.6
    assert (metrics["detection_accuracy"], metrics["detection_accuracy_n"]) == (1, 15)
    of_class = [metrics[f"class_agreement_{truth}"] for truth in ("real", "generated")]
    counts = [metrics[f"class_agreement_{truth}_n"] for truth in ("real", "generated")]
    assert of_class == [1, 1] and sum(counts) == 15
    report.main()
    text = re.sub(r"<[^>]+>|\s+", " ", Path("metrics/report/index.html").read_text())
    assert re.search(r"can(&#39;|')t tell real from generated +0\.250", text)


def test_unrated_tiles_are_listed_and_not_saved(page, base, tmp_path):
    page.goto(f"{base}/review/index.html")
    page.locator("#rater").fill("Bob")
    page.keyboard.press("Enter")
    page.locator("#to-end").click()
    unrated = page.locator("#unrated button")
    expect(unrated).to_have_count(20)
    expect(page.locator("#save")).to_be_disabled()
    unrated.nth(6).click()
    expect(page.locator("#position")).to_have_text("Tile 7 of 20")
    for key in "r3z":
        page.keyboard.press(key)
    page.locator("#to-end").click()
    expect(unrated).to_have_count(19)
    saved = save_ratings(page, tmp_path)
    (row,) = csv.DictReader(open(saved, encoding="utf-8-sig", newline=""))
    assert row["tile"] == "t007"
    assert row["rater"] == "Bob"
    assert row["answer"] == "real"
    assert row["realism"] == "3"
    assert row["label_answer"] == "Bare Land"


def choose_by_keys(page: Page, keys: str) -> None:
    for key in keys:
        page.keyboard.press(key)


def find_class(page: Page, text: str) -> None:
    """Type a part of a class's name, with the cursor nowhere before and after it."""
    page.keyboard.press("/")
    page.keyboard.type(text)
    expect(page.locator("#classes label:visible")).not_to_have_count(92)
    page.keyboard.press("Enter")
    expect(page.locator("#classes label:visible")).to_have_count(92)
    expect(page.locator("#find")).not_to_be_focused()


def test_a_hundred_classes_are_chosen_by_keys_by_name_and_by_mouse(browser, tmp_path, monkeypatch):
    """Their names reach the ratings as params have them; nothing is wider than a phone."""
    monkeypatch.chdir(tmp_path)
    names = [*ODD_NAMES, *(f"Zone {number}" for number in range(100))][:92]
    make_classes(tmp_path, names, 8, names)
    review_page.main()
    keys = dict(zip(names, review_page.class_keys(92)))
    context = browser.new_context(viewport={"width": 390, "height": 844}, accept_downloads=True)
    page = context.new_page()
    page.goto((tmp_path / "metrics/review/index.html").as_uri())
    page.fill("#rater", "Ada")
    page.keyboard.press("Enter")

    def chosen() -> str:
        return page.locator("#classes :checked").get_attribute("value")

    by_keys = ["Zone 84", *ODD_NAMES[:2]]
    by_name = [ODD_NAMES[3], ODD_NAMES[4], "Zone 1"]  # and Zone 10, Zone 11, ...
    by_mouse = [ODD_NAMES[2], ODD_NAMES[6]]
    for name in [*by_keys, *by_name, *by_mouse]:
        page.keyboard.press("r")
        page.keyboard.press("3")
        if name in by_keys:
            choose_by_keys(page, keys[name])
        elif name in by_name:
            find_class(page, name.upper().replace("\u00ca", "e"))
        else:
            page.get_by_role("radio", name=name, exact=True).check()
        assert chosen() == name
        expect(page.locator("#classes label:has(:checked)")).to_be_in_viewport()
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        if name == by_keys[0]:
            assert low_contrast(page) == []
            choose_by_keys(page, "m4")  # no class has these; nor are they the answer 4
            assert chosen() == name
        page.keyboard.press("Enter")
    saved = save_ratings(page, tmp_path)
    context.close()
    Path("data/reviews").mkdir()
    review_tool.add(saved)
    (file,) = Path("data/reviews").glob("*.csv")
    filed = list(csv.DictReader(file.open(newline="", encoding="utf-8")))
    assert [row["label_answer"] for row in filed] == [*by_keys, *by_name, *by_mouse]
    assert {row["realism"] for row in filed} == {"3"}
