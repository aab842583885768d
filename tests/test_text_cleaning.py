"""What is no prose goes out of a paper and is counted; a paper that can't be read is named."""

import re
import textwrap
import unicodedata
from collections import Counter
from pathlib import Path

import pytest
from conftest import REPOSITORY

from stages.text import clean, legibility, papers
from stages.text.hyphens import join_hyphens, word_counts
from stages.text.line_numbers import strip_line_numbers
from stages.text.reading_order import read_page, split_columns
from stages.text.references import reference_lists
from stages.text.running_lines import find_running_lines

NOTES = sorted((REPOSITORY / "stages/embedded/notes").glob("*.md"))


def prose(number: int, width: int = 80) -> list[str]:
    """The lines of a field note, without its reference list."""
    text = re.sub(r"[^\x20-\x7e]+|[#*`]", " ", NOTES[number].read_text().split("## References")[0])
    return textwrap.wrap(" ".join(text.split()), width, break_on_hyphens=False)


# ---------------------------------------------------------------------------------------------
# Line numbers


def number_lines(pages: list[list[str]], side: str, step: int, restart: bool) -> list[list[str]]:
    """Write every `step`-th line number at the left, the right or both ends of its line."""
    numbered = []
    number = 0
    for page in pages:
        number = 0 if restart else number
        lines = []
        for line in page:
            number += 1
            left = f"{number} " if side in ("left", "both") and number % step == 0 else ""
            right = f" {number}" if side in ("right", "both") and number % step == 0 else ""
            lines.append(left + line + right)
        numbered.append(lines)
    return numbered


@pytest.mark.parametrize("side", ["left", "right", "both"])
@pytest.mark.parametrize("step, restart", [(1, False), (1, True), (5, False), (10, False)])
def test_line_numbers_are_removed(side, step, restart):
    lines = prose(0)
    pages = [lines[:40], lines[40:80], lines[80:83]]  # the last page has few lines
    numbered = number_lines(pages, side, step, restart)
    stripped, removed = strip_line_numbers(numbered)
    assert stripped == pages
    assert removed == sum(a != b for a, b in zip(sum(numbered, []), sum(pages, []))) * (
        2 if side == "both" else 1
    )


def test_line_numbers_that_are_drawn_before_the_text():
    lines = prose(0)[:50]
    numbers = [f"{n:03d}" for n in range(50)]
    assert strip_line_numbers([numbers + lines]) == ([[""] * 50 + lines], 50)
    columns = [f"{n} {line}" for n, line in enumerate(lines[:25], 1)] * 2  # anew in each column
    assert strip_line_numbers([columns]) == ([lines[:25] * 2], 50)


@pytest.mark.parametrize(
    "page",
    [
        [f"{n} Station {n} stands by the lake and measures rain" for n in range(1, 40)],
        [*prose(0)[:30], *(f"{n}. an item of a list" for n in range(1, 12))],
        [*prose(0)[:30], "first step 1", "second step 2", "third step 3", "fourth step 4"],
        [*prose(0)[:30], "2010", "2011", "2012", "2013", "2014", "Year"],
        [f"in {1960 + n} the lake had {n * 7 % 90} boats" for n in range(40)],
    ],
)
def test_numbers_of_lists_and_charts_stay(page):
    assert strip_line_numbers([page]) == ([page], 0)


# ---------------------------------------------------------------------------------------------
# Running lines


def strip_running_lines(pages: list[list[str]], heights: bool = False) -> list[list[str]]:
    of_pages: list[list[float | None]] = [
        [800 - 12.0 * n if heights else None for n in range(len(page))] for page in pages
    ]
    found = find_running_lines(pages, of_pages)
    return [
        [line for index, line in enumerate(page) if index not in indices]
        for page, indices in zip(pages, found)
    ]


def bodies(count: int, size: int = 6) -> list[list[str]]:
    lines = prose(1) + prose(2)
    return [lines[n * size : (n + 1) * size] for n in range(count)]


SECTIONS = ["1 Introduction", "2 Deserts", "3 Rivers and Lakes", "4 Cropland", "5 Summary"]


@pytest.mark.parametrize(
    "header, footer",
    [
        (lambda n: ["A Workshop 2023"], lambda n: [f"{n}"]),
        # Sections of two pages, and one of a single page at the height of the other headers.
        (lambda n: [SECTIONS[(n - 1) // 2]], lambda n: [f"Page {n} of 10"]),
        (lambda n: [SECTIONS[min(4, n // 2)]], lambda n: []),
        # Left and right pages; the page's number makes each line differ.
        (
            lambda n: [f"{n} | A. Smith and B. Jones" if n % 2 else f"{SECTIONS[n // 2 - 1]} {n}"],
            lambda n: [],
        ),
        (lambda n: [], lambda n: [f"line {'abcdefghijkl'[k]} of the license" for k in range(12)]),
        (lambda n: [], lambda n: [f"Vol. 12, No. 3, Page {n + 30}", "doi:10.1/abc"]),
        (lambda n: [], lambda n: ["i ii iii iv v vi vii viii ix x".split()[n - 1]]),
    ],
)
def test_headers_and_footers_are_dropped(header, footer):
    text = bodies(10)
    pages = [[*header(n), *body, *footer(n)] for n, body in enumerate(text, 1)]
    assert strip_running_lines(pages, heights=True) == text


@pytest.mark.parametrize(
    "stamp",
    [
        "arXiv:2301.01234v2 [cs.CV] 3 Jan 2023",
        "Authorized licensed use limited to: A University. Downloaded on March 03,2024 at 10:11.",
        "This content downloaded from 128.12.1.5 on Mon, 03 Mar 2024 10:11:12 UTC",
        "2048, 2022, 3, Downloaded from https://a.org/doi/10.1 by A University, on [07/03/2024]",
        "© 2021 Association for Computing Machinery.",
        "Copyright 2020 by the authors.",
    ],
)
def test_stamps_are_dropped_wherever_they_stand(stamp):
    text = bodies(3)
    pages = [[stamp, "The Header", *text[0]], ["The Header", *text[1]], ["The Header", *text[2]]]
    assert strip_running_lines(pages) == text
    assert strip_running_lines([[*text[0][:3], stamp, *text[0][3:]]]) == text[:1]


def test_captions_and_headings_and_titles_are_no_running_lines():
    text = bodies(3)
    pages = [
        [f"Figure {n}: Tiles of the test set.", *body, "References"] for n, body in enumerate(text)
    ]
    assert strip_running_lines(pages, heights=True) == pages
    pages = [["Orchards", "Orchards", *text[0], "1"], ["Orchards", *text[1], "2"]]
    assert strip_running_lines(pages) == [["Orchards", *text[0]], text[1]]


def test_text_that_comes_back_is_no_running_line():
    page = prose(1)[:40]
    assert strip_running_lines([page, page], heights=True) == [page[2:-2]] * 2
    refrain = [[*body, "O land, O land"] for body in (prose(1)[:9], prose(2)[:13], prose(3)[:17])]
    assert strip_running_lines(refrain, heights=True) == refrain


# ---------------------------------------------------------------------------------------------
# Reference lists

NAMED = """\
A. Smith, B. Jones, and C. Doe. Fields and rivers from above: a study of the land
of the north. In Proceedings of a Conference, pp. 1-10, 2019.
F. Gray. Maps. Cambridge, 2001.
Q. Yuan, H. Shen, T. Li, Z. Li, S. Li, Y. Jiang, H. Xu, W. Tan, Q. Yang, J. Wang, J. Gao, and
L. Zhang. Deep learning in environmental remote sensing: Achievements and challenges. Remote
Sensing of Environment, 241:111716, 2020.""".splitlines()
YEARS = """\
Doe, A., & Smith, B. (2019). Fields and rivers from above: a study of land.
Journal of Things, 12(3), 4-15. https://doi.org/10.1/abc
Poe, E. A. (2020). The valley and its lakes in a long summer, with notes on birds.
Springer.
Roe, R. (1999). Ponds. Land, 3, 1-2.""".splitlines()
NUMBERED = """\
[1] A. Smith, "Fields," Journal, vol. 3, pp. 1-9, 2019.
[2] B. Jones et al., "A long title of a paper on the towns of the south and
their roofs," IEEE Trans., 2020.
[3] C. Doe, "Maps," 2001.""".splitlines()
LONG = [
    "Josh Achiam, Steven Adler, Sandhini Agarwal, Lama Ahmad, Ilge Akkaya, Florencia Aleman,"
] * 14
LONG.append("Diogo Almeida, and Sam Altman. A technical report. arXiv:2303.08774, 2023.")


@pytest.mark.parametrize(
    "heading",
    """References|REFERENCES|R E F E R E N C E S|R EFERENCES|8 | REFERENCES|8. References|
VIII. REFERENCES|Reference|References:|References and Notes|Main references|Works Cited|
WORKS CITED|Literature Cited|Bibliography|6 Bibliography|Literatur|Literaturverzeichnis|参考文献
""".replace("8 | ", "8 ¦ ")
    .replace("\n", "")
    .split("|"),
)
def test_headings_of_reference_lists(heading):
    lines = [*prose(0)[:20], heading.replace("¦", "|"), *NAMED]
    assert reference_lists(lines) == [(20, 27)]
    assert reference_lists([*lines, *prose(1)[:20]]) == [(20, 27)]


@pytest.mark.parametrize(
    "heading",
    """Methods|A Details of training|A. Details of training|Appendix|APPENDIX A: DATA|
Supporting Information|Supplementary Material|Chapter 3|3 Deserts and dry ground|Acknowledgments|
S1 Extra results|A ADDITIONAL RESULTS|Author contributions|Figure 4: Land from above
""".replace("\n", "").split("|"),
)
@pytest.mark.parametrize("entries", [NAMED, YEARS, NUMBERED, LONG])
def test_what_follows_a_reference_list_stays(heading, entries):
    lines = ["Abstract", "References", *entries, heading, *prose(1)[:20]]
    assert reference_lists(lines) == [(1, 2 + len(entries))]


def test_every_chapter_has_its_reference_list():
    chapters = [
        [f"Chapter {n + 1}", *prose(n)[:40], "References", *entries]
        for n, entries in enumerate([NAMED, YEARS, NUMBERED])
    ]
    lines = sum(chapters, [])
    kept = [
        line for i, line in enumerate(lines) if i not in clean.indices_of(reference_lists(lines))
    ]
    assert kept == sum((chapter[:41] for chapter in chapters), [])


@pytest.mark.parametrize(
    "contents",
    [
        ["1 Introduction", "References", "A Details of training", "1", "5", "14"],
        ["1 Introduction 1", "References 87", "A Details of training 90"],
        ["Introduction", "References"],
    ],
)
def test_entry_of_a_contents_page_is_no_list(contents):
    cited = [
        "as Smith et al. (2019) showed and Doe (2020) found, the fields (Roe, 2001) are",
        "green",
    ]
    assert reference_lists([*contents, *prose(0)[:20], *cited * 5]) == []


def test_list_goes_on_behind_a_figure():
    lines = ["References", *YEARS * 3, *prose(1)[:20], *YEARS * 3]
    assert reference_lists(lines) == [(0, 16), (36, 51)]


# ---------------------------------------------------------------------------------------------
# Tables, hyphens, columns


def clean_lines(pages: list[list[str]]) -> clean.CleanText:
    unknown: list[list[float | None]] = [[None] * len(page) for page in pages]
    return clean.clean_pages(["\n".join(page) for page in pages], unknown, True)


def test_pages_of_tables_are_dropped():
    row = "Method {} 0.12 0.23 0.34 0.45 0.56 0.67"
    table = [row.format(n) for n in range(30)]
    caption = "Table 3: Results of every method on the test images."
    text = prose(1)[:30]
    small = [*prose(2)[:20], *(f"Town {row}" for row in table[:10])]
    result = clean_lines([text, [caption, *table], small])
    assert [line for _, line in result.lines] == [*text, caption, *small]
    assert result.cuts == clean.Cuts(tables=30) and result.pages_read == 3


def test_hyphens_that_belong_to_a_word_stay():
    corpus = word_counts(
        [
            "near infrared bands and multispectral images, widely used",
            "a data driven non linear self",
        ]
    )
    for broken, joined in [
        ("an im-|perative need", "an imperative|need"),
        ("of multi-|spectral pixels", "of multispectral|pixels"),
        ("in near-|infrared light", "in near-infrared|light"),
        ("a Sentinel-|2 tile", "a Sentinel-2|tile"),
        ("a widely-|used model", "a widely-used|model"),
        ("state-of-the-|art models", "state-of-the-art|models"),
        ("for co-|occurrence", "for co-occurrence|"),
        ("a GAN-|based one", "a GAN-based|one"),
        ("in pre- |and post-processing", "in pre- |and post-processing"),
        ("the domi-|Figure 2: Fields", "the domi-|Figure 2: Fields"),
        ("the domi-|12", "the domi-|12"),
        ("there-|after", "thereafter|"),
    ]:
        assert "|".join(join_hyphens(broken.split("|"), corpus)) == joined
    own = ["a self-supervised model is self-", "supervised"]
    assert join_hyphens(own, Counter()) == ["a self-supervised model is self-supervised", ""]
    assert (
        clean.normalize("e\ufb03cient\x00  \ufb01elds\u200b\u00a0here") == "efficient fields here"
    )
    # LaTeX's first font encoding has accents before their letters.
    broken = (
        "Fern´andez na¨\u0131ve d'´Evry Universit`a Erd˝os Fran¸cois Koneˇcn´y Pozna´n "
        "3˚A `an apple` ˆk"
    )
    assert clean.normalize(broken) == (
        "Fernández naïve d'Évry Università Erdős François Konečný Poznań 3Å `an apple` ˆk"
    )
    # Others have them for the apostrophe, degrees, minutes and seconds.
    assert clean.normalize("it´s I´m don´t we´re 20˚C 5 ˚S 34˚15´N 12°05´30¨E 7°8´9´´E 1˝") == (
        "it's I'm don't we're 20°C 5 °S 34°15'N 12°05'30\"E 7°8'9''E 1\""
    )


def test_columns_are_put_in_order():
    left, right = prose(2, 36)[:20], prose(3, 36)[:20]
    rows = [f"{a:<40}{b}" for a, b in zip(left, right)]
    title = "A title that crosses the gap between both of the columns of this page"
    layout = "\n".join(["The header" + " " * 40 + "7", "", title, *rows])
    header, *ordered = split_columns(layout).splitlines()
    assert header.split() == ["The", "header", "7"] and ordered == [title, *left, *right]
    glossary = [f"{'albedo':<40}{b}" for b in right]
    assert split_columns("\n".join(glossary)) is None
    assert split_columns("\n".join(prose(2))) is None


# ---------------------------------------------------------------------------------------------
# PDFs


def draw(path: Path, pages: list[list[tuple[float, float, str]]]) -> Path:
    """Write a PDF with these texts at (x, y) of each page, in millimeters from the top left."""
    from fpdf import FPDF

    document = FPDF()
    document.set_font("helvetica", size=10)
    for page in pages:
        document.add_page()
        for x, y, text in page:
            document.text(x, y, text)
    document.output(str(path))
    return path


def column(lines: list[str], x: float = 20) -> list[tuple[float, float, str]]:
    return [(x, 25 + 5 * n, line) for n, line in enumerate(lines)]


def read(path: Path) -> papers.Paper:
    (paper,) = papers.read_papers([path], cut_references=True)
    return paper


def test_columns_drawn_row_by_row(tmp_path):
    left, right = prose(2, 42)[:40], prose(3, 42)[:40]
    pairs = [pair for row in zip(column(left), column(right, 110)) for pair in row]
    paper = read(draw(tmp_path / "rows.pdf", [pairs, column(prose(4)[:40])]))
    hyphens = join_hyphens([*left, *right, *prose(4)[:40]], Counter())
    assert [line for _, line in paper.lines] == [line for line in hyphens if line]
    assert paper.status == "ok" and not paper.reason


@pytest.mark.parametrize("shift", [0, 0.2])
@pytest.mark.parametrize("is_layer", [False, True])
def test_text_that_is_drawn_twice_is_read_once(tmp_path, shift, is_layer):
    """Fake bold type draws each line twice; a second OCR layer the page."""
    left, right = prose(2, 42)[:40], prose(3, 42)[:40]
    rows = [pair for row in zip(column(left), column(right, 110)) for pair in row]
    # Equal texts at other places are no repetitions.
    labels = [(20.0 + 20 * n, 250.0, "0.5") for n in range(4)]
    for page in ([*column(prose(4)[:40]), *labels], rows):
        again = [(x + shift, y, text) for x, y, text in page]
        doubled = page + again if is_layer else [pair for both in zip(page, again) for pair in both]
        once = read(draw(tmp_path / "once.pdf", [page]))
        twice = read(draw(tmp_path / "twice.pdf", [doubled]))
        assert twice.lines == once.lines and twice.status == "ok"


@pytest.mark.parametrize("family", ["helvetica", "dejavu"])
def test_double_letters_in_small_type_stay(tmp_path, family):
    """Where each letter is drawn by itself, the second of "ll" is less than a point away."""
    from fpdf import FPDF
    from pypdf import PdfReader

    document = FPDF()
    if family == "dejavu":  # whose codes have two bytes
        font = next(Path("/usr/share/fonts").rglob("DejaVuSans.ttf"), None)
        if font is None:
            pytest.skip("needs DejaVuSans.ttf")
        document.add_font(family, fname=str(font))
    document.set_font(family, size=3.4 if family == "dejavu" else 4.4)
    document.add_page()
    word = "hillside skiing"
    x = 20.0
    for letter in word:
        document.text(x, 20, letter)
        document.text(x, 20, letter)  # fake bold type
        x += document.get_string_width(letter)
    document.output(str(tmp_path / "small.pdf"))
    (page,) = PdfReader(tmp_path / "small.pdf").pages
    assert read_page(page).text.split() == word.split()


def test_unreadable_papers_are_named_with_the_share_that_was_read(tmp_path, capsys):
    from pypdf import PdfReader, PdfWriter

    cover, stamp = (
        column(prose(0)[:12]),
        (10.0, 285.0, "Downloaded from https://a.org by A on 2024"),
    )
    scan = read(draw(tmp_path / "scan.pdf", [cover, *[[stamp]] * 9]))
    few = read(
        draw(tmp_path / "few.pdf", [[(20, 100, f"Plate {n}: the blue lake")] for n in range(6)])
    )
    half = read(draw(tmp_path / "half.pdf", [cover, cover, cover[:10], [stamp], []]))
    table = [(20.0, 20.0 + 5 * n, f"Method {n} 0.12 0.23 0.34 0.45 0.56") for n in range(40)]
    numbers = read(draw(tmp_path / "table.pdf", [table]))
    shifted = "".join(
        chr((ord(c) - 94) % 26 + 97) if c.islower() else c for c in "\n".join(prose(0))
    )
    letters = read(draw(tmp_path / "letters.pdf", [column(shifted.split("\n")[:40])]))
    log = capsys.readouterr().err
    assert (scan.status, few.status, numbers.status, letters.status) == ("failed",) * 4
    assert "text on 1 of 10 pages" in scan.reason and "text on 0 of 6 pages" in few.reason
    assert "40 of tables" in numbers.reason and "letters of 1 of 1 pages" in letters.reason
    assert (half.status, half.reason, half.pages_read) == ("ok", "text on 3 of 5 pages", 3)
    assert all(f"{name}.pdf" in log for name in ("scan", "few", "half", "table", "letters"))

    # A font without a Unicode map, on one of the pages: that page is left out.
    font = next(Path("/usr/share/fonts").rglob("DejaVuSans.ttf"), None)
    if font is None:
        pytest.skip("needs DejaVuSans.ttf")
    from fpdf import FPDF

    document = FPDF()
    document.add_font("dejavu", fname=str(font))
    for family, number in (("helvetica", 0), ("helvetica", 1), ("dejavu", 2)):
        document.add_page()
        document.set_font(family, size=10)
        document.multi_cell(0, 5, "\n".join(prose(number)[:30]))
    document.output(str(tmp_path / "font.pdf"))
    writer = PdfWriter(clone_from=PdfReader(tmp_path / "font.pdf"))
    for page in writer.pages:
        for entry in page["/Resources"]["/Font"].values():
            entry.get_object().pop("/ToUnicode", None)
    writer.write(tmp_path / "font.pdf")
    paper = read(tmp_path / "font.pdf")
    assert (paper.status, paper.reason) == ("ok", "text on 2 of 3 pages")
    assert {page for page, _ in paper.lines} == {1, 2}


@pytest.mark.parametrize(
    "text",
    [
        "Ảnh vệ tinh cho thấy những cánh đồng lúa ở đồng bằng sông Hồng, nơi nước đã được thu lại",
        "Cây rừng phủ các sườn núi; mỗi mùa, những mảng đất trống lại đổi sang màu của cỏ khô",
        "Uydu görüntüsü kıyının yakınındaki yıkık yapıları ve kırsal alanları açık olarak ayırır",
    ],
)
def test_languages_with_many_accented_vowels_are_legible(text):
    assert legibility.is_legible(text)
    assert legibility.is_legible(unicodedata.normalize("NFD", text))


def test_paper_that_loses_most_of_its_lines_is_named(tmp_path, capsys):
    lines = [*prose(0)[:10], "References", *NUMBERED * 8]
    paper = read(draw(tmp_path / "list.pdf", [column(lines)]))
    assert paper.cuts.references == 33 and len(paper.lines) == 10
    assert "list: 33 of 43 lines cut out: 33 lines of reference lists" in capsys.readouterr().err


def test_pages_of_a_text_file(tmp_path):
    text = bodies(6, 20)
    pages = [["A Workshop 2023", *number_lines([body], "left", 1, True)[0]] for body in text]
    (tmp_path / "paper.txt").write_text("\f".join("\n".join(page) for page in pages))
    (paper,) = papers.read_text_file(tmp_path / "paper.txt", True, False)
    assert [line for _, line in paper.lines] == sum(text, [])
    assert paper.name == "paper" and paper.cuts == clean.Cuts(running_lines=6, line_numbers=120)


def test_columns_of_a_text_file_are_put_in_order(tmp_path):
    """As pdftotext -layout writes them."""
    columns = [prose(number, 36)[:20] for number in range(4)]
    rows = ["\n".join(f"{a:<40}{b}" for a, b in zip(*columns[page : page + 2])) for page in (0, 2)]
    (tmp_path / "paper.txt").write_text("\f".join(rows))
    (paper,) = papers.read_text_file(tmp_path / "paper.txt", True, False)
    assert [line for _, line in paper.lines] == sum(columns, [])
