"""Papers as they come: other formats and scripts, copies, equal names, small collections."""

import csv
import importlib
import os
import random
import resource
import shutil
import textwrap
import time
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pypandoc
import pytest
import yaml
from conftest import REPOSITORY
from test_text_papers import make_pdf

from stages import chunk, fetch_papers
from stages.common.artifacts import read_json
from stages.text import clean, duplicates, formats, latex, sentences, tokens
from stages.text.paper_files import unused_name
from stages.text.references import reference_lists

WORDS = "river field forest town road coast cloud snow sensor image pixel class map".split()
NOTES = sorted((REPOSITORY / "stages/embedded/notes").glob("*.md"))


@pytest.fixture
def collect(tmp_path, monkeypatch, capsys):
    """collect(**scrape): fetch, scrape and chunk the folder `papers`.

    -> the rows of papers_report.csv by name, and the log; or the error and the log.
    """
    monkeypatch.chdir(tmp_path)
    os.mkdir("papers")

    def run(**scrape) -> tuple[dict[str, dict] | str, str]:
        params = yaml.safe_load((REPOSITORY / "params/demo.yaml").read_text())
        params["fetch_papers"]["source"] = "path:papers"
        params["scrape"] |= scrape
        Path("params.yaml").write_text(yaml.safe_dump(params))
        try:
            for stage in ("fetch_papers", "scrape", "chunk"):
                importlib.import_module(f"stages.{stage}").main()
        except SystemExit as error:
            return str(error), capsys.readouterr().err
        with open("data/papers_report.csv", newline="", encoding="utf-8") as file:
            rows = {row["paper"]: row for row in csv.DictReader(file)}
        return rows, capsys.readouterr().err

    return run


def note(number: int) -> str:
    """The text of a field note: English, two pages, unlike the others."""
    return NOTES[number].read_text()


def note_pdf(path: Path | str, number: int) -> None:
    """Write a field note as a PDF."""
    text = note(number).replace("#", "").encode("latin-1", "ignore").decode("latin-1")
    make_pdf(Path(path), [text[:2500], text[2500:]])


def corpus_text() -> dict[str, str]:
    """The text of each paper in the corpus."""
    texts: dict[str, str] = {}
    for row in pq.read_table("data/corpus.parquet").to_pylist():
        texts[row["paper"]] = texts.get(row["paper"], "") + row["text"] + " "
    return texts


def with_pandoc(source: str, target: Path | str, form: str) -> None:
    pypandoc.convert_text(source, form, format="commonmark", outputfile=str(target))


PAGE = """<!DOCTYPE html><html><head><title>Land</title><script>scriptword = 1;</script></head>
<body><nav><a href="/">Home</a> Login</nav><main><h1>Fields from above</h1>
<p>The fields of this <b>page</b> are green &amp; wide, and rows of trees stand between them in the
long summer of the north.</p><table><tr><td>cellone</td></tr></table><pre>codeword</pre>
<h2>References</h2><p>A. Smith. Listedword title. 2020.</p><p>B. Jones. Other. 2021.</p></main>
<footer>Imprint</footer></body></html>"""
MAIN = r"""\documentclass{article}\newcommand{\sat}{Sentinel}\title{A LaTeX paper}
\begin{document}\maketitle\begin{abstract}Summary of the joined paper.\end{abstract}
\input{sections/intro} % \input{sections/old}
\begin{tabular}{l}cellone\end{tabular}\begin{equation}codeword = 1\end{equation}
\end{document}"""


def test_every_file_of_a_folder_is_read_or_named(collect):
    for folder in ("papers/deep", "papers/tex/sections"):
        os.makedirs(folder)
    for number in range(6):
        note_pdf(f"papers/note{number}.pdf", number)
    note_pdf("papers/2405.04717", 6)
    note_pdf("papers/deep/really_a.txt", 7)
    Path("papers/really_html.txt").write_text(f"<!DOCTYPE html><title>T</title><p>{note(11)}")
    Path("papers/front.md").write_text(f'---\ntitle: "open\n---\n{note(8)}\n\n| cellone |\n|-|\n')
    Path("papers/page.html").write_text(PAGE)
    with_pandoc(note(9), "papers/word.docx", "docx")
    with_pandoc(note(10), "papers/book.epub", "epub")
    Path("papers/tex/main.tex").write_text(MAIN)
    intro = "\\section{Start}\nThe \\sat{} images show ``bare'' land" + ", and more land" * 9 + "."
    Path("papers/tex/sections/intro.tex").write_text(intro)
    Path("papers/tex/sections/old.tex").write_text("An old section. " * 20)
    # No papers, and papers that cannot be read.
    with zipfile.ZipFile("papers/more.zip", "w") as archive:
        archive.writestr("a.txt", "packedword")
    Path("papers/slides.pptx").write_bytes(b"PK")
    Path("papers/gone.pdf").symlink_to("nowhere.pdf")
    Path("papers/broken.docx").write_bytes(b"PK\x03\x04 broken")
    Path("papers/open.tex").write_text("\\begin{document}\\begin{center}")
    Path("papers/saved.pdf").write_text(PAGE)
    rows, log = collect()

    status = {name: row["status"] for name, row in rows.items()}
    others = ("more.zip", "slides.pptx", "gone.pdf")
    for name in (*others, "tex__sections__intro.tex", "tex__sections__old.tex"):
        assert status.pop(name) == "skipped" and name in str(rows)
    assert rows["tex__sections__intro.tex"]["reason"] == "part of main.tex"
    assert rows["tex__sections__old.tex"]["reason"] == "not read by a main file"
    assert ".zip" in log and ".pptx" in log
    failed = {name for name in status if status[name] == "failed"}
    assert failed == {"broken", "open", "saved"} and all(rows[name]["reason"] for name in failed)
    texts = corpus_text()
    assert set(texts) == set(status) - failed
    assert set(texts) == {
        *(f"note{number}" for number in range(6)),
        *("2405.04717", "deep__really_a", "really_html", "front", "page", "word", "book"),
        "tex__main",
    }
    counts = read_json("metrics/corpus.json")
    assert (counts["papers"], counts["papers_failed"], counts["files_skipped"]) == (14, 3, 5)

    # The text of each format, without what is no prose.
    assert "The fields of this page are green & wide, and rows" in texts["page"]
    assert (
        "Summary of the joined paper. Start The Sentinel images show “bare” land"
        in (texts["tex__main"])
    )
    for number, name in ((8, "front"), (9, "word"), (10, "book")):
        paragraph = next(part for part in note(number).split("\n\n") if part[0] != "#")
        assert " ".join(paragraph.split())[:80] in texts[name]
    everything = " ".join(texts.values())
    for word in (
        "scriptword",
        "Login",
        "Imprint",
        "cellone",
        "codeword",
        "packedword",
        "title:",
        "Listedword",
    ):
        assert word not in everything
    with open("data/papers_report.csv", encoding="utf-8") as first:
        before = first.read(), texts
    assert collect()[0] == rows and before == (Path("data/papers_report.csv").read_text(), texts)


@pytest.mark.parametrize(
    "name, source, encoding",
    [
        ("a.html", "<meta charset='gbk'><p>{}</p>", "gbk"),
        ("a.xhtml", '<?xml version="1.0" encoding="windows-1251"?><p>{}</p>', "windows-1251"),
        (
            "a.tex",
            "\\usepackage[latin1]{{inputenc}}\\begin{{document}}{}\\end{{document}}",
            "latin1",
        ),
    ],
)
def test_declared_encoding_is_read(tmp_path, name, source, encoding):
    words = {"gbk": "沙丘弯曲", "windows-1251": "пустыня", "latin1": "Wüste"}[encoding]
    (tmp_path / name).write_bytes(source.format(f"{words} " * 30).encode(encoding))
    lines, reason = formats.read(tmp_path / name)
    assert not reason and " ".join(lines) == " ".join([words] * 30)


PROSE = "The fields of the north are green and wide, and rows of trees stand between them. " * 2
TABULAR = r"\begin{tabular}{c}cell\end{tabular}"
WHOLE = f"<p>{PROSE}</p>"


@pytest.mark.parametrize(
    "name, content, reason",
    [
        ("a.html", WHOLE.replace("e", "é").encode("latin-1"), "UTF-8"),
        ("a.html", b"<meta charset='nonsense'>" + b"\xc9\xff " * 30, "UTF-8"),
        ("a.md", PROSE.encode("utf-16"), "UTF-8"),
        ("a.tex", PROSE.encode("utf-16-be"), "control"),
        ("a.md", b"PK\x03\x04\x00\xff", "UTF-8"),
        ("a.html", ("<div>" * 400 + PROSE).encode(), "nested"),
    ],
)
def test_other_encodings_and_deep_nesting_are_named(tmp_path, name, content, reason):
    """pandoc itself takes every other encoding for Latin-1."""
    (tmp_path / name).write_bytes(content)
    lines, message = formats.read(tmp_path / name)
    assert not lines and reason in message


@pytest.mark.parametrize(
    "name, source, kept, dropped",
    [
        (
            "a.html",
            f"<nav>menuword</nav>{WHOLE}<aside>asideword</aside><!-- <p> --><p>lastword</p>"
            "<script>'<nav>'</script><select><option>optionword</select><footer>footword</footer>",
            ["lastword"],
            ["menuword", "asideword", "optionword", "footword"],
        ),
        (
            "a.html",
            f"<nav-bar>menu</nav-bar>{WHOLE}<style-sheet/><p>midword</p><nav>asideword</nav>"
            "<style>codeword</style><p>lastword</p>",
            ["rows of trees", "midword", "lastword"],
            ["asideword", "codeword"],
        ),
        (
            "a.html",
            f"<table><tr><td>menuword</td><td><h1>titleword</h1>{WHOLE}</td></tr></table>",
            ["titleword", "rows of trees"],
            ["menuword"],
        ),
        (
            "a.html",
            f"{WHOLE}<p>For <span class='MathJax_Preview'></span><span class='MathJax'><nobr><span "
            "class='math'>R2</span></nobr><span class='MJX_Assistive_MathML'><math><msup><mi>R</mi>"
            "<mn>2</mn></msup></math></span></span><script type='math/tex'>R^2</script> it costs "
            "$5 and $6. <span class='mathjax-tex'>$$\\mathcal{L}=x$$</span></p>",
            ["For R2 it costs $5 and $6."],
            ["R2R2", "mathcal"],
        ),
        (
            "a.html",
            f"{WHOLE}<p>Of <tex-math>\\begin{{align}} hidden \\end{{align}}</tex-math> <code>"
            "\\begin{equation}</code> and \\[\\begin{equation} hidden \\end{equation}\\] <math "
            "display='block'><semantics><mi>E</mi><annotation encoding='application/x-tex'>"
            "\\begin{align} hidden \\end{align}</annotation></semantics></math> all.</p>",
            [r"Of \begin{equation} and all."],
            ["hidden", "$"],
        ),
        (
            "a.md",
            f'<div align="center">\nfirstword &amp; x\n</div>\n\n{PROSE}\n\n'
            "<table><tr><td>cellword</td></tr></table>\n\n<!-- noteword -->\n",
            ["firstword & x"],
            ["cellword", "noteword", "<"],
        ),
        (
            "a.md",
            f"\ufeff+++\ntitle = 'Titleword'\ndraft = false\n+++\n{PROSE}",
            ["Titleword The fields"],
            ["draft", "+"],
        ),
        (
            "a.md",
            "---\n# a comment\ntitle: 2024\nabstract: |\n  Maps are *pale*.\n\n  Two.\ntags:\n- x\n"
            f"date: 2024-13-45\n---\n{PROSE} Paths [see @smith2019, p. 3; -@jones] are, [@me](a.b) "
            "or [me@a.org], wide [@all].",
            ["2024 Maps are pale. Two. The fields", "Paths are, @me or [me@a.org], wide."],
            ["tags", "comment", "date"],
        ),
        (
            "a.md",
            f"---\ntitle: a: headword\n---\n{PROSE}",
            ["rows of trees"],
            ["headword"],
        ),
        (
            "a.md",
            f"---\n\n# firstword\n\n{PROSE}\n\n---\n\nlastword",
            ["firstword", "lastword"],
            [],
        ),
        ("a.md", f"---\n# firstword\n\n{PROSE}\n\n---\n\nlastword", ["firstword", "lastword"], []),
        (
            "a.tex",
            rf"\newcommand{{\rev}}[1]{{own #1}}\begin{{document}}{PROSE}\rev{{words}}. "
            r"Roads~\cite{a}, lakes \citep[p. 1]{b} and paths \label{c}exist "
            r"\footnote{A note.}. \added{New \emph{words} \cite{d}}; \replaced[id=1]{here}{gone}."
            r"\IEEEPARstart{T}{hen} \begin{multicols*}{2}columns\end{multicols*}"
            r"\begin{spacing}{1.5}spaced\end{spacing} \begin{adjustwidth}{2cm}{2cm}adjusted"
            r"\end{adjustwidth} \begin{IEEEeqnarray*}{rCl}a &=& b\end{IEEEeqnarray*}"
            r"\begin{wrapfigure}[12]{r}{2cm}\caption{A wrapped figure.}\end{wrapfigure}"
            rf"\begin{{wraptable}}{{r}}{{2cm}}\caption{{A wrapped one.}}{TABULAR}\end{{wraptable}}"
            rf"\begin{{sidewaystable}}[t]\caption{{A turned one.}}{TABULAR}\end{{sidewaystable}}"
            r"\newcommand{\highlight}[1]{late #1} \highlight{word}\end{document}",
            ["Roads, lakes and paths exist. New words; here.", "own words", "Then", "A note."]
            + ["late word", "spaced", "adjusted"]
            + ["A wrapped figure.", "A wrapped one.", "A turned one."],
            ["gone", "2", "1.5", "rCl", "&", "cell"],
        ),
        (
            "a.tex",
            r"\Title{Our \ce{CO2}}\abstract{We say little.}\newcommand{\ie}{own}\begin{document}"
            r"\IEEEtitleabstractindextext{\begin{abstract}We tell more.\end{abstract}}"
            "\\begin{CCSXML}\n<concept>hidden</concept>\n\\end{CCSXML}"
            rf"{PROSE} At 30\degree C and $5\degree$ lakes \etal freeze, \eg, \ie. "
            r"\NewDocumentCommand\three{O{a} m +m}{#1-#2-#3}"
            r"\DeclareDocumentCommand{\cf}{}{c.f\onedot} \three{b}{c}, \cf \three[d]{e}{f}."
            r"\end{document}",
            ["Our CO2 We tell more. We say little. The fields", "a-b-c, c.f. d-e-f."]
            + ["At 30°C and 5° lakes et al. freeze, e.g., own."],
            ["hidden"],
        ),
        (
            "a.tex",
            r"\begin{document}\twocolumn[\icmltitle{Our \textbf{maps}}\begin{abstract}We say it."
            rf"\end{{abstract}}\vskip 1in] {PROSE} Of \chem{{H_2O}}, 5\textpercent{{}} is here."
            r" \twocolumn The end.\end{document}",
            ["Our maps We say it. The fields", "them. Of H2O, 5% is here. The end."],
            [],
        ),
        (
            "a.tex",
            "\\documentclass{sn-jnl}\\title{Land}\\subtitle{A study}\\abstract{\\textbf{Aim:} Maps."
            "\n\n\\begin{itemize}\\item Methods\\end{itemize}}\n\\begin{document}\\maketitle\n"
            f"{PROSE}\\end{{document}}",
            ["Land A study Aim: Maps. Methods The fields"],
            [],
        ),
        (
            "a.tex",
            f"\\begin{{document}}\\abstract{{Maps.\n\nMethods.}}\n\\degree{{Doctor}}\n{PROSE}"
            "\\end{document}",
            ["Maps. Methods. The fields"],
            ["°", "Doctor"],
        ),
        (
            "a.tex",
            rf"\begin{{document}}\section{{A}}\label{{sec:a}} {PROSE} We see in \Cref{{sec:a}}, "
            r"Sec.~\ref{sec:a}, \autoref{eq:b}, Eq.~(\ref{eq:b}) and roads (\citealp{c}), as "
            r"\citet{d} say. \citet{d} are right.\end{document}",
            ["in Section 1, Sec. 1, Equation, Eq. and roads, as the authors say. The authors are"],
            ["eq:b", "("],
        ),
        (
            "a.xhtml",
            f'<script src="a.js"/><p>firstword</p>{WHOLE}<script>codeword</script><p>lastword</p>',
            ["firstword", "lastword"],
            ["codeword"],
        ),
        (
            "a.html",
            f'{WHOLE}<p>Code is online <span class="ltx_note ltx_role_footnote"><sup>7</sup>'
            '<span class="ltx_note_outer"><span class="ltx_note_content"><sup>7</sup>'
            '<span class="ltx_tag ltx_tag_note">7</span>A note.</span></span></span>, as data are.'
            '</p><ul><li><span class="ltx_tag ltx_tag_item">•</span><p>An item.</p></li></ul>',
            ["Code is online, as data are. A note. An item."],
            ["7", "•"],
        ),
    ],
)
def test_text_of_a_page_and_nothing_around_it(tmp_path, name, source, kept, dropped):
    (tmp_path / name).write_text(source, encoding="utf-8")
    text = " ".join(formats.read(tmp_path / name)[0])
    assert all(word in text for word in kept) and not any(word in text for word in dropped)


@pytest.mark.parametrize(
    "suffix, formulas",
    [
        ("tex", ""),
        ("md", ""),
        ("docx", "--mathml"),
        ("html", "--mathml"),
        ("html", "--mathjax"),
        ("epub", "--mathml"),
    ],
)
def test_inline_formulas_are_text_as_in_a_pdf(tmp_path, suffix, formulas):
    paper = tmp_path / f"paper.{suffix}"
    source = (
        r"Of 300 km$^2$ at $10\,$m about $\sim$30\% at $45^{\circ}$N have $3\times3$ windows, "
        r"NO$_2$, $R^2 = 0.83$, $\mu_{x} < \alpha$, $\mathcal{L}_{\text{CE}}$ and $\sqrt{2}$, "
        r"$$y = hidden.$$ "
    )
    if suffix in ("tex", "md"):
        paper.write_text(source + PROSE)
    else:
        options = [formulas, "--quiet"]
        pypandoc.convert_text(source + PROSE, suffix, "latex", options, outputfile=str(paper))
    text = " ".join(formats.read(paper)[0])
    assert "Of 300 km2 at 10 m about ∼30% at 45°N have 3 × 3 windows, NO2, R2 = 0.83, μx < " in text
    assert "< α, LCE and" in text and "sqrt" in text and "hidden" not in text


def test_formulas_and_tables_of_pdf_converters_in_markdown(tmp_path):
    """Nougat, Mathpix and olmOCR write LaTeX; others escape parentheses and brackets of prose."""
    table = "\\begin{table}\n\\begin{tabular}{c c}\n hidden & 2 \\\\\n\\end{tabular}\n\\end{table}"
    paragraphs = [
        r"Of \(10\,\mathrm{m}\), \( R^2=0.8 \), \(n\), \(\text{CO}_2\) \(as before\) [\[3\]](#a).",
        "\\[\n\\mathcal{L}=hidden\\tag{1}\n\\]",
        "Here\n\\begin{align*}\nhidden &= b \\\\\nc &= d\n\\end{align*}\nis",
        "$$\n\\begin{equation} hidden \\end{equation}\n$$",
        "$$\n\\tag{1} \\begin{align} hidden \\end{align}\n$$",
        "`\\begin{gather}` and\n\nthe `\\end{gather}`.",
        f"{table}\nTable 1: Lakes.",
        f"{PROSE}\n",
        *(r"\[Drawn by hand\]", r"\[1\] A. Smith. Lakes.", r"\[2\]"),
    ]
    (tmp_path / "a.md").write_text("\n\n".join(paragraphs))
    lines, _ = formats.read(tmp_path / "a.md")
    text = " ".join(lines)
    assert text.startswith("Of 10 m, R2 = 0.8, n, CO2 (as before) [3]. Here is ")
    assert r" is \begin{gather} and the \end{gather}. Table 1: Lakes. The fields" in text
    assert text.endswith(" [Drawn by hand] [1] A. Smith. Lakes. [2]") and "hidden" not in text


def test_prose_in_escaped_parentheses_of_markdown_is_no_formula(tmp_path):
    """As converters write that escape each sign, such as mammoth of .docx."""
    source = (
        r"\(NDVI\) \(see Smith et al\., 2019\) \(10\-m pixels\) \(mixed\-forest\) \(Sentinel-2\) "
        r"\(p=0\.05\) \(with N=20 samples\) \(a\_map\) but \(16\) \(100\%\) \(\{a, b\}\) \(f(x)\)."
    )
    (tmp_path / "a.md").write_text(f"{source}\n\n\\[A\\_map\\]\n\n{PROSE}")
    text = " ".join(formats.read(tmp_path / "a.md")[0])
    assert text.startswith(
        "(NDVI) (see Smith et al., 2019) (10-m pixels) (mixed-forest) (Sentinel-2) "
        "(p=0.05) (with N=20 samples) (a_map) but 16 100% {a, b} f(x). [A_map] "
    )


def test_a_table_of_markdown_without_its_end_takes_no_prose_with_it(tmp_path):
    torn = "\\begin{table}\n\\begin{tabular}{c c}\n1 & 2 \\\\ 1"  # cut off by Nougat's limit
    table = "\\begin{table}\n\\begin{tabular}{c}\n hidden \\\\\n\\end{tabular}\n\\end{table}"
    paragraphs = ["# Lakes", torn, "## Results", "Lakes are dark.", table, "Table 2: Lakes.", PROSE]
    (tmp_path / "a.md").write_text("\n\n".join(paragraphs))
    text = " ".join(formats.read(tmp_path / "a.md")[0])
    assert "Results Lakes are dark. Table 2: Lakes." in text and "hidden" not in text


@pytest.mark.parametrize("unit", [r"\( a ", "\\[ a\n", "\\begin{table}\n", r"\begin{align}"])
def test_markdown_with_thousands_of_open_formulas_or_tables_is_read_fast(tmp_path, unit):
    """Where the end of each was sought in all the text, one took 13 s of CPU time."""
    (tmp_path / "a.md").write_text(PROSE + "\n\n" + unit * (50_000 // len(unit)))
    started = time.process_time()
    formats.read(tmp_path / "a.md")
    assert time.process_time() - started < 3


def test_thousands_of_formulas_are_read_fast_and_stand_where_they_belong(tmp_path):
    """In less than half of the CPU time that pandoc takes where it writes each on its own."""
    numbers = [number % 200 for number in range(3000)]
    (tmp_path / "a.tex").write_text(" ".join(f"land$_{{{number}}}$" for number in numbers) + PROSE)
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    lines, _ = formats.read(tmp_path / "a.tex")
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before < 2
    assert " ".join(lines).startswith(" ".join(f"land{number}" for number in numbers))


def test_lines_of_a_page_that_end_in_breaks_have_a_reference_list(tmp_path):
    entries = [
        f"[{n}] A. Smith. Lakes from above. IEEE, vol. {n}, pp. 9-18, 201{n}." for n in (1, 2, 3)
    ]
    (tmp_path / "a.html").write_text(
        f"<p>{PROSE}<br><b>References</b><br>{'<br>'.join(entries)}</p>"
    )
    lines, _ = formats.read(tmp_path / "a.html")
    assert lines[-4:] == ["References", *entries]
    assert reference_lists(lines) == [(len(lines) - 4, len(lines))]


def test_file_that_pandoc_reads_for_too_long_is_named(tmp_path, monkeypatch):
    (tmp_path / "long.md").write_text("A line about land.\n\n" * 1000)
    monkeypatch.setattr(formats, "SECONDS", 0.001)
    assert formats.read(tmp_path / "long.md") == ([], "took more than 0.001 s")


def test_latex_files_that_read_each_other_or_others(tmp_path):
    secret = tmp_path / "secret.tex"
    secret.write_text("SECRET")
    folder = tmp_path / "paper"
    folder.mkdir()
    contents = {
        "a.tex": 'A \\input{b} \\input"b" 50\\% \\input{../secret} \\input missing',
        "b.tex": "B \\include{a}\n\\subfileinclude{c}",
        "c.tex": "\\documentclass{subfiles}\\begin{document}C \\input d\n\\end{document}",
        "d.tex": 'D \\subimport*{sub/}{e} \\InputIfFileExists{"sub/../f.tex"}',
        "sub/e.tex": "E% a comment\n",
        "f.tex": "F",
        "sub.tex": "% \\usepackage{g}\nanother paper \\usepackage[x]{g, none}\n\\usepackage{g}",
        "g.sty": (
            "% \\def\\a{old}\n\\newcommand\\a{New\\xspace} % a\n\\def\\b#1{{\\bf #1}\\,\\{}"
            "\\author{B}\\def\\c{\\c@a}\\NewDocumentCommand{\\d}{O{x} m}{D}\n"
            "\\newcommand*{\\e}[2][]{E}\n"
            # LaTeX's own commands stay as pandoc knows them.
            "\\def\\abstract{\\begin{center}}\n\\def\\endabstract\n{\\par}\n"
            "\\providecommand{\\section}{}\\newcommand { \\subparagraph}{}"
        ),
    }
    for name, text in contents.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    folder = folder / "sub/.."  # as a person may write it
    papers = latex.join_papers(sorted(folder.rglob("*.*")))
    assert list(papers) == [folder / "a.tex", folder / "sub.tex"]
    source, parts = papers[folder / "a.tex"]
    assert source == b"A B \nC D E% a comment\n F\n  50\\% \\input{../secret} \\input{missing}"
    assert {part.name for part in parts} == {"b.tex", "c.tex", "d.tex", "e.tex", "f.tex"}
    # Of a package, the commands of a text are put in.
    other, parts = papers[folder / "sub.tex"]
    commands = [
        "\\newcommand\\a{New\\xspace}",
        "\\def\\b#1{{\\bf #1}\\,\\{}",
        "\\NewDocumentCommand{\\d}{O{x} m}{D}",
        "\\newcommand*{\\e}[2][]{E}",
    ]
    assert [part.name for part in parts] == ["g.sty"]
    assert other.decode().splitlines()[2:6] == commands and other.count(b"xspace") == 1
    # Beside or below a paper with a class, a file without one is a leftover.
    (folder / "main.tex").write_text("% \\documentclass{a}\n\\input preamble")
    (folder / "sub/preamble.tex").write_text("\\documentclass{subfiles}")
    assert folder / "sub.tex" in latex.join_papers(sorted(folder.rglob("*.*")))
    (folder / "preamble.tex").write_text("\\documentclass[a4paper]{article}")
    assert list(latex.join_papers(sorted(folder.rglob("*.*")))) == [folder / "main.tex"]
    # But not one with a body of its own, or beside a paper of which a part is not found.
    (folder / "x.tex").write_text("\\input macros\n\\begin{document}")
    whole = [folder / "main.tex", folder / "x.tex"]
    assert list(latex.join_papers(sorted(folder.rglob("*.*")))) == whole
    (folder / "main.tex").write_text("\\input preamble \\newcommand\\chap[1]{\\input{ch#1}}")
    assert folder / "sub.tex" in latex.join_papers(sorted(folder.rglob("*.*")))
    # What is not there is named.
    (folder / "a.tex").write_bytes(source + b" land and water" * 10)
    lines, reason = formats.read(folder / "a.tex")
    assert lines and "missing.tex" in reason


def test_one_paper_counts_once(collect):
    """Of 8 papers, three come twice or more: as equal files, in two versions, in two formats."""
    for number in range(8):
        note_pdf(f"papers/note{number}.pdf", number)
    shutil.copy("papers/note0.pdf", "papers/again.pdf")
    os.rename("papers/note1.pdf", "papers/2405.04717v1.pdf")
    revised = note(1) + "\n\nAnother section of the revision.\n\n" + note(15)
    Path("papers/2405.04717v2.md").write_text(revised)
    Path("papers/note2 (draft).md").write_text(note(2))
    rows, log = collect(min_test_papers=3)
    copies = {name: row["reason"] for name, row in rows.items() if row["status"] == "copy"}
    assert set(copies) >= {"2405.04717v1"} and len(copies) == 3
    assert len(copies.keys() & {"note0", "again"}) == 1
    assert len(copies.keys() & {"note2", "note2 (draft)"}) == 1
    assert "2405.04717v2" in copies["2405.04717v1"]
    assert all(f"{name} left out" in log for name in copies)
    counts = read_json("metrics/corpus.json")
    assert (counts["papers"], counts["papers_copies"]) == (8, 3)
    assert counts["papers_test"] == 3 and not copies.keys() & corpus_text().keys()
    # Which papers are held out is decided without the copies, and so is how many can be.
    error, _ = collect(min_test_papers=5)
    assert error.startswith("error: scrape.min_test_papers: 5 ") and "of 8 (3 copies" in error
    error, _ = collect(min_papers=9)
    assert error.startswith("error: scrape.min_papers: 8 of 11 ") and "text of 2405" in error


def test_resemblance_is_the_jaccard_similarity_of_shingles():
    words = [f"word{number}" for number in range(3000)]
    first, second = (duplicates.sketch(" ".join(part)) for part in (words[:2000], words[1000:]))
    assert duplicates.resemblance(first, first) == 1
    assert duplicates.resemblance(first, second) == pytest.approx(1 / 3, abs=0.12)
    other = duplicates.sketch(" ".join(words[2500:]))
    assert duplicates.resemblance(first, other) == 0
    # Two papers whose names end in a number as versions do.
    sketches = {"yolov3": first, "yolov4": other, "longer": duplicates.sketch("a b c d e f")}
    assert duplicates.find_copies(sketches, dict.fromkeys(sketches, 1)) == {}


def copies(**texts: str) -> dict[str, str]:
    """`find_copies` of texts by their names."""
    sketches = {name: duplicates.sketch(text) for name, text in texts.items()}
    return duplicates.find_copies(sketches, {name: len(text) for name, text in texts.items()})


def test_a_license_in_every_text_makes_no_copies_and_takes_no_time():
    license = " ".join(f"license{number}" for number in range(20))
    texts = {}
    for paper in range(1500):
        words = " ".join(f"p{paper}w{number}" for number in range(40))
        texts[f"paper{paper}"] = f"{license} {words}"
    started = time.process_time()
    assert copies(**texts) == {}
    assert time.process_time() - started < 10  # minutes when all pairs were compared
    # The text is most of the license: pairs beyond the rarest hashes are found.
    assert copies(one=license + " one", two=license + " two", **texts) == {"two": "one"}


def test_find_copies_misses_no_pair():
    random = np.random.default_rng(0)
    words = [f"word{number}" for number in range(150)]
    texts = {}
    for number in range(120):
        start, count = random.integers(0, 100), random.integers(5, 150)
        texts[f"text{number:03d}"] = " ".join(words[start : start + count])
    found = copies(**texts)
    stay = texts.keys() - found.keys()
    sketches = {name: duplicates.sketch(text) for name, text in texts.items()}
    pairs = [(a, b) for a in stay for b in stay if a < b]
    same_text = duplicates.SAME_TEXT
    assert all(duplicates.resemblance(sketches[a], sketches[b]) < same_text for a, b in pairs)
    assert all(
        duplicates.resemblance(sketches[a], sketches[b]) >= same_text for a, b in found.items()
    )


@pytest.mark.parametrize(
    "first, second, is_version",
    [
        ("2405.04717v1", "2405.04717v2", True),
        ("survey_v1", "survey_v2", True),
        ("survey version 2", "survey version 3", True),
        ("thesisv1", "thesisv2", True),
        ("survey_nov_2019", "survey_nov_2020", False),
        ("report_v_2019", "report_v_2020", False),
        ("uav_1", "uav_2", False),
    ],
)
def test_names_that_end_in_a_version(first, second, is_version):
    """Of two texts that share a sixth, the older version is left out, and no other report."""
    shared = " ".join(f"shared{number}" for number in range(30))
    texts = {
        name: f"{shared} " + " ".join(f"{letter}{number}" for number in range(60))
        for letter, name in zip("ab", (first, second))
    }
    assert copies(**texts) == ({first: second} if is_version else {})


def test_of_two_copies_the_longer_text_stays(collect):
    """However many lines it has."""
    for number in range(5):
        note_pdf(f"papers/note{number}.pdf", number)
    text = "More words. " * 20 + "\n" + note(0).replace("#", "")
    lines = [part for line in text.splitlines() for part in textwrap.wrap(line, 190)]
    Path("papers/whole.txt").write_text("\n".join(lines))
    rows, _ = collect(min_test_papers=1)
    assert rows["note0"]["status"] == "copy" and rows["whole"]["status"] == "ok"
    assert int(rows["note0"]["lines"]) > int(rows["whole"]["lines"])


def test_papers_of_one_name_stay_apart(collect):
    for name, number in (("survey", 0), ("SURVEY_2", 1), ("x", 2)):
        note_pdf(f"papers/{name}.pdf", number)
    Path("papers/survey.txt").write_text("\n".join(f"Line {n} about land." for n in range(1500)))
    Path("papers/x_2.txt").write_text(note(4))
    rows, _ = collect(min_test_papers=1)
    assert list(rows) == ["SURVEY_2", "survey", "x", "survey_3", "x_2"]
    assert set(corpus_text()) == set(rows) and read_json("metrics/corpus.json")["papers"] == 5
    assert corpus_text()["survey_3"].startswith("Line 0 about land.")
    # Composed and decomposed letters are one name on some disks.
    assert unused_name("re\u0301sume\u0301", {"r\u00e9sum\u00e9"}) == "re\u0301sume\u0301_2"


@pytest.mark.parametrize(
    "lists, names",
    [
        ([0], ["file0_001", "file0_002"]),
        ([0, 2, 0], ["file0", "file1", "file2"]),
        ([3, 0], ["file0_001", "file0_002", "file0_003", "file0_004", "file1"]),
    ],
)
def test_a_text_file_of_several_reference_lists_or_alone_is_cut_into_papers(collect, lists, names):
    """lists: the number of reference lists of each file."""
    for number, count in enumerate(lists):
        drawn = random.Random(number)
        lines = [f"{' '.join(drawn.choices(WORDS, k=7))} of land." for _ in range(1200)]
        for chapter in range(count):
            lines[400 * chapter + 300 : 400 * chapter + 302] = ["References", "[1] A. Smith. 2020."]
        Path(f"papers/file{number}.txt").write_text("\n".join(lines))
    rows, _ = collect(min_papers=3, min_test_papers=1)
    assert list(rows) == names
    table = pq.read_table("data/corpus.parquet")
    papers = set(zip(table["paper"].to_pylist(), table["split"].to_pylist()))
    assert sorted(name for name, _ in papers) == names  # each in one split


def test_too_few_text_files_are_refused(collect):
    Path("papers/many.txt").write_text("A line about land.\n" * 1200)
    Path("papers/readme.txt").write_text("These papers are about land.\n" * 10)
    error, _ = collect()
    assert error.startswith("error: scrape.min_papers: 2 of 2 ") and "only file" in error


@pytest.mark.parametrize("count, is_readable", [(3, True), (1, False)])
def test_too_few_pdfs_are_refused_with_both_params_that_can_be_lowered(collect, count, is_readable):
    """None of them where no paper can be read."""
    for number in range(count):
        note_pdf(f"papers/note{number}.pdf", number)
        if not is_readable:
            Path(f"papers/note{number}.pdf").write_bytes(b"%PDF-1.4")
    error, _ = collect()
    assert "only file" not in error and error.rstrip().endswith("add papers")
    assert ("scrape.min_test_papers" in error) == is_readable


@pytest.mark.parametrize("count, held_out", [(1, 0), (2, 1), (3, 1), (7, 3)])
def test_small_collections_run(collect, count, held_out):
    for number in range(count):
        note_pdf(f"papers/note{number}.pdf", number)
    rows, _ = collect(min_papers=count, min_test_papers=held_out)
    assert len(rows) == count and read_json("metrics/corpus.json")["papers_test"] >= held_out
    splits = set(pq.read_table("data/chunks.parquet")["split"].to_pylist())
    assert splits == ({"train", "test"} if held_out else {"train"})
    error, _ = collect(min_papers=count, min_test_papers=5)
    assert error.startswith("error: scrape.min_test_papers: 5 ") and f" of {count}; " in error


def test_texts_of_a_hub_data_set(tmp_path):
    hub = tmp_path / "hub"
    (hub / "b").mkdir(parents=True)

    def write(texts: pa.Array) -> dict[str, str]:
        pq.write_table(pa.table({"n": range(len(texts)), "body": texts}), hub / "b/train.parquet")
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        out = tmp_path / "out"
        out.mkdir()
        files = fetch_papers.write_corpus(hub, "body", out)
        assert sorted(files) == sorted(out.iterdir())
        return {file.name: file.read_text() for file in files}

    # As pandas and Polars write strings, too. Rows are lines, or papers if most are longer.
    rows = pa.array(["First.", None, "Two\nlines.", "", "Third."])
    for column in (rows, rows.dictionary_encode(), rows.cast(pa.string_view())):
        assert write(column) == {"corpus.txt": "First.\nTwo\nlines.\nThird.\n"}
    papers = ["First. " * 300, "Second\n" * 300, "short"]
    names = [f"b__train_0000{number}.txt" for number in (1, 2, 3)]
    assert write(pa.array(papers)) == dict(zip(names, papers))
    # Text files beside Parquet files are none of the corpus.
    (hub / "a.txt").write_text("A text.")
    assert write(pa.array(["First."])) == {"corpus.txt": "First.\n"}
    error = "^error: fetch_papers.text_column: train.parquet .*named text; it has body$"
    with pytest.raises(SystemExit, match=error):
        fetch_papers.write_corpus(hub, "text", tmp_path)


def test_texts_of_a_copy_of_a_hub_data_set(tmp_path):
    """The folder, and one of its tables; the card is no paper."""
    table = tmp_path / "copy/data/train.parquet"
    table.parent.mkdir(parents=True)
    (tmp_path / "copy/.cache").mkdir()
    (tmp_path / "copy/.cache/old.parquet").write_bytes(b"")
    (tmp_path / "copy/README.md").write_text("A card.\n" * 100)
    papers = ["First. " * 300, "Second\n" * 300]
    pq.write_table(pa.table({"text": papers}), table)
    skipped = {"skipped": {"README.md": "not read: beside Parquet files"}}
    for path, stem, resolved in ((tmp_path / "copy", "data__train", skipped), (table, "train", {})):
        files, also = fetch_papers.fetch(f"path:{path}", "text", tmp_path)
        assert [file.name for file in files] == [f"{stem}_00001.txt", f"{stem}_00002.txt"]
        assert [file.read_text() for file in files] == papers and also == resolved
    # Papers with a table of them are no such copy.
    (tmp_path / "copy/a.pdf").write_bytes(b"%PDF-1.7")
    files, also = fetch_papers.fetch(f"path:{tmp_path}/copy", "text", tmp_path)
    assert [file.name for file in files] == ["README.md", "a.pdf"]
    assert list(also["skipped"]) == ["data__train.parquet"]
    table.write_text("PAR1")
    with pytest.raises(SystemExit, match="^error: fetch_papers.source: train.parquet cannot be"):
        fetch_papers.fetch(f"path:{table}", "text", tmp_path)
    for file in (table, tmp_path / "copy/a.pdf"):
        file.write_text("version https://git-lfs.github.com/spec/v1\n")
        with pytest.raises(SystemExit, match="1 file.* Git LFS pointers, such as .*git lfs pull"):
            fetch_papers.fetch(f"path:{file}", "text", tmp_path)


def test_text_files_of_a_hub_data_set_are_papers_if_there_are_many(tmp_path):
    hub = tmp_path / "hub"
    hub.mkdir()
    (hub / "a.txt").write_bytes(b"\xef\xbb\xbfA\r\ntext.\n")
    (hub / "b.txt").write_text("B.")
    (corpus,) = fetch_papers.write_corpus(hub, "text", tmp_path)
    assert corpus == tmp_path / "corpus.txt" and corpus.read_text() == "A\ntext.\nB.\n"
    (hub / "c.txt").write_bytes(b"\xff")
    with pytest.raises(SystemExit, match="^error: fetch_papers.source: c.txt: not UTF-8 text"):
        fetch_papers.write_corpus(hub, "text", tmp_path)
    for number in range(7):
        (hub / f"{number}.txt").write_text("More.")
    papers = fetch_papers.write_corpus(hub, "text", tmp_path)
    assert [file.name for file in papers] == sorted(file.name for file in hub.iterdir())


@pytest.mark.parametrize(
    "text, count",
    [
        ("这片沙漠呈现淡黄色，沙丘弯曲。农田呈长方形！湖泊的水面？呈深蓝色", 4),
        ("他说：“好。”然后走了。", 2),
        ("砂漠は黄色い。畑は緑だ。", 2),
        ("这是图.农田呈长方形.", 2),
        ("هذه صحراء. هل هي جافة؟ نعم هي كذلك.", 3),
        ("یہ صحرا ہے۔ یہ خشک ہے۔", 2),
        ("བྱེ་ཐང་སེར་པོ་རེད།ནགས་ཚལ་ལྗང་ཁུ་རེད།", 2),
        ("यह रेगिस्तान है। यह 3.5 मीटर ऊँचा है। क्या यह बड़ा है?", 3),
    ],
)
def test_sentence_ends_of_other_scripts(text, count):
    assert len(sentences.split_sentences(text)) == count
    assert "".join(sentences.split_losslessly(text)) == text


def test_lines_of_other_scripts():
    joined = sentences.join_lines(
        ["这片沙漠呈现淡黄色,沙", "丘弯曲。农田", "of maize 是绿色", "的。"]
    )
    assert joined == "这片沙漠呈现淡黄色,沙丘弯曲。农田 of maize 是绿色的。"
    assert sentences.join_lines(["森は深い緑だ", "。」湖"]) == "森は深い緑だ。」湖"
    assert sentences.join_lines(["བྱེ་ཐ", "ང་སེར་པོ"]) == "བྱེ་ཐང་སེར་པོ"
    assert clean.normalize("สีน้ำเงิน ນ້ຳ") == "สีน้ำเงิน ນ້ຳ"  # the vowel am is one letter
    assert (
        clean.normalize("می\u200cخواهم क्\u200dष of\u200cfice\u200d")
        == "می\u200cخواهم क्\u200dष office"
    )


@pytest.mark.parametrize(
    "text",
    ["字" * 5000, "a" * 9000, "word " * 3000, "沙丘弯曲表面有波纹。" * 300, "𠀀" * 3000, "ق. " * 5],
)
def test_chunks_are_bounded_whatever_the_text(text):
    """In bytes: no tokenizer makes more tokens of a text than it has bytes."""
    chunks = chunk.split_into_chunks(text.strip(), 500)
    assert "".join(chunks).replace(" ", "") == text.replace(" ", "")
    assert max(len(part.encode()) for part in chunks) <= 2000
    assert chunk.split_into_chunks("A green field lies by a lake. " * 3, 10)[0].endswith("lake.")


def test_persian_and_a_word_without_end_are_read(collect):
    """One character in nine of the Persian text is a zero-width non-joiner."""
    for number in range(3):
        note_pdf(f"papers/note{number}.pdf", number)
    Path("papers/fa.txt").write_text("می‌خواهم زمین‌ها را ببینم‌شان.\n" * 40)
    Path("papers/word.txt").write_text("field " * 20 + "a" * 100_000 + "-\nb")
    Path("papers/error.txt").write_text("error")
    started = time.process_time()
    rows, log = collect(min_test_papers=1)
    assert rows["fa"]["status"] == rows["word"]["status"] == "ok"
    assert rows["error"]["status"] == "failed"
    assert rows["error"]["reason"] == "fewer than 20 words"
    assert "scrape: error.txt skipped: fewer than" in log
    assert "می‌خواهم" in corpus_text()["fa"]
    assert time.process_time() - started < 60  # ten minutes when it was quadratic


def test_papers_that_are_not_english_are_named(collect):
    for number in range(3):
        note_pdf(f"papers/note{number}.pdf", number)
    lines = [
        f"这片沙漠呈现淡黄色，沙丘{number}弯曲，表面{number * 7}有波纹。" for number in range(80)
    ]
    Path("papers/zh.md").write_text("\n\n".join(lines))
    rows, log = collect(min_papers=4, min_test_papers=1)
    assert rows["zh"]["status"] == "ok" and "not in English" in rows["zh"]["reason"]
    assert not rows["note0"]["reason"] and "1 papers not in English" in log


def test_special_tokens_in_a_paper_are_text():
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(REPOSITORY / "stages/embedded/models/language")
    text = f"GPT-2 puts {tokenizer.eos_token} behind a text."
    ids = tokens.encode([text], tokenizer)[0].tolist()
    assert ids.index(tokenizer.eos_token_id) == len(ids) - 1
    assert tokenizer.decode(ids[:-1]) == text


def test_pandoc_does_not_read_other_files(tmp_path):
    """A paper of a stranger names a file of this machine."""
    (tmp_path / "secret.tex").write_text("SECRET " * 30)
    (tmp_path / "paper.tex").write_text("Land and water. " * 20 + f"\\input{{{tmp_path}/secret}}")
    lines, reason = formats.read(tmp_path / "paper.tex")
    assert lines and "secret.tex" in reason and "SECRET" not in str(lines)
