"""From PDFs and text files to clean lines, splits and chunks: fetch_papers, scrape, chunk."""

import importlib
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stages import chunk
from stages.common.artifacts import digest
from stages.text import duplicates, papers, parquet_writer, pdf, sentences

WORDS = (
    "the farmland shows green rows on brown soil beside a straight road and a narrow canal".split()
)


def make_pdf(path: Path, pages: list[str], title: str = "Published at a Workshop") -> Path:
    from fpdf import FPDF

    paper = FPDF()
    for number, text in enumerate(pages, 1):
        paper.add_page()
        paper.set_font("helvetica", size=11)
        paper.cell(0, 6, title, new_x="LMARGIN", new_y="NEXT")
        paper.multi_cell(0, 6, text, new_x="LMARGIN", new_y="NEXT")
        paper.cell(0, 6, str(number))
    paper.output(str(path))
    return path


@pytest.mark.parametrize(
    "text, count",
    [
        ("It rains. The field is wet.", 2),
        ("Trees, e.g. Oak and Beech, are green.", 1),
        ("See Fig. 2 and Eq. 3 for it. Then stop.", 2),
        ("Smith et al. The second author is missing.", 1),
        ("The value is 3.5 m. It grew.", 2),
        ("J. Smith and A. B. Jones wrote it.", 1),
        ("Is it green? Yes! It is.", 3),
        ('He said "it is wet." Then he left.', 2),
        ("It ends at 2. Next one.", 2),
        ("no stop at all", 1),
        # Without capitals, as some corpora are.
        ("it rains . the field is wet .", 2),
        ("a river about 200 m. wide with boats, etc. on it", 1),
        ("it is , as smith et al . saw in fig . 2 there , e.g. an oak . why ? so .", 3),
        ("The value of v. it grew. Then it fell.", 2),
    ],
)
def test_sentence_ends(text, count):
    assert len(sentences.split_sentences(text)) == count
    assert "".join(sentences.split_losslessly(text)) == text


@pytest.mark.parametrize(
    "cited, text",
    [
        ("The dunes are pale.1,2 The forest", "The dunes are pale. The forest"),
        ("The dunes are pale.¹⁻³ “A forest", "The dunes are pale. “A forest"),
        ("They show NDVI (Fig. 2).[3][note 4] The", "They show NDVI (Fig. 2). The"),
        ("It is, he said, “pale.”12–14", "It is, he said, “pale.”"),
        ("See Fig.2 The sum of 3.5 in a.2 The rest, approx.3", None),
        ("Deserts of 2019.3 The file v2.csv.10 has them", None),
        ("Table.1 The results of Alg.2 See a.org/page.12", None),
        ("They write an algorithm.2 The rest", "They write an algorithm. The rest"),
    ],
)
def test_citation_behind_a_full_stop_is_dropped(tmp_path, cited, text):
    (tmp_path / "a.txt").write_text("All of these fields are green and wide. " * 20 + f"\n{cited}")
    (paper,) = papers.read_papers([tmp_path / "a.txt"], True)
    assert paper.lines[-1][1] == (text or cited)


def test_headings_are_separate_sentences():
    lines = [
        "Bare Land",
        "Ground on which nothing grows and nothing was ever built is called",
        "bare, and it is brown.",
        "The look",
        "From above it is a smooth surface with soft edges and few shadows, or a",
        "rough one.",
    ]
    found = sentences.split_sentences(sentences.join_lines(lines))
    assert found[0] == "Bare Land" and "The look" in found


def test_chunks_end_at_full_stops():
    text = " ".join(f"{' '.join(WORDS)} number {n}, e.g. this one." for n in range(40))
    text = text.replace("the farmland", "The farmland")
    chunks = chunk.split_into_chunks(text, 500)
    assert " ".join(chunks) == text
    assert all(len(part) >= 500 and part.endswith("this one.") for part in chunks)
    assert chunk.split_into_chunks("A short paper.", 500) == ["A short paper."]


def test_held_out_text_that_repeats_the_training_text_is_dropped(tmp_path, monkeypatch, capsys):
    """Two sentences in three of one held-out paper are a training paper's, of another one."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(Path(__file__).parents[1] / "params/demo.yaml", "params.yaml")
    numbers = {"training": range(20), "copy": (3, 4, 31), "own": (5, 32, 33), "new": range(40, 43)}
    rows = [
        {
            "paper": paper,
            "text": " ".join(f"Word{n}x{i}" for i in range(20)) + ".",
            "split": "train" if paper == "training" else "test",
        }
        for paper, sentence_numbers in numbers.items()
        for n in sentence_numbers
    ]
    Path("data").mkdir()
    pq.write_table(pa.Table.from_pylist(rows), "data/corpus.parquet")
    chunk.main()
    chunks = pq.read_table("data/chunks.parquet").to_pylist()
    assert {row["paper"] for row in chunks if row["split"] == "test"} == {"own", "new"}
    assert " 1 near-duplicate" in capsys.readouterr().err


def test_shingles_find_copies_only():
    known = duplicates.shingles(" ".join(f"word{n}" for n in range(200)))
    copy = duplicates.shingles(" ".join(f"Word{n}," for n in range(50, 90)))
    other = duplicates.shingles(" ".join(f"other{n}," for n in range(50, 90)))
    assert np.array_equal(known[duplicates.positions_in(copy, known)], copy)
    assert len(duplicates.positions_in(other, known)) == 0


@pytest.fixture
def odd(tmp_path):
    """A folder with a good paper and one of every kind of unreadable one."""
    from pypdf import PdfReader, PdfWriter

    good = make_pdf(tmp_path / "good.pdf", [" ".join(WORDS * 5)] * 2)
    writer = PdfWriter(clone_from=PdfReader(good))
    writer.encrypt("secret", algorithm="AES-256")
    writer.write(tmp_path / "locked.pdf")
    blank = PdfWriter()
    blank.add_blank_page(200, 200)
    blank.write(tmp_path / "blank.pdf")
    (tmp_path / "empty.pdf").write_bytes(b"")
    (tmp_path / "cut.pdf").write_bytes(good.read_bytes()[:600])
    (tmp_path / "page.pdf").write_text("<html><body>not found</body></html>")
    return tmp_path


def test_unreadable_pdf_does_not_stop_the_others(odd):
    results = {path.stem: result for path, result in pdf.read_all(sorted(odd.glob("*.pdf")))}
    assert "farmland" in results["good"]["pages"][0]
    reasons = {name: result["reason"] for name, result in results.items() if "reason" in result}
    assert "encrypted" in reasons["locked"] and "empty" in reasons["empty"]
    assert "PDF" in reasons["page"] and "words" in reasons["blank"]
    assert set(reasons) == {"locked", "blank", "empty", "cut", "page"}


def test_extracted_text_is_what_pypdf_returns(odd):
    from pypdf import PdfReader

    ((_, result),) = pdf.read_all([odd / "good.pdf"])
    assert result["pages"] == [page.extract_text() for page in PdfReader(odd / "good.pdf").pages]


def test_zip_bomb_and_hang_do_not_stop_the_others(tmp_path, monkeypatch):
    """A page that unpacks to 300 MB, and a file that takes longer than it may."""
    import zlib

    bomb = zlib.compress(b"BT (" + b"a" * (300 << 20) + b") Tj ET", 9)
    body = (
        b"%%PDF-1.4\n1 0 obj<</Type/Catalog/Pages 2 0 R>>endobj\n"
        b"2 0 obj<</Type/Pages/Kids[3 0 R]/Count 1>>endobj\n"
        b"3 0 obj<</Type/Page/Parent 2 0 R/MediaBox[0 0 9 9]/Resources<<>>/Contents 4 0 R>>endobj\n"
        b"4 0 obj<</Length %d/Filter/FlateDecode>>stream\n"
        % len(bomb)
        + bomb
        + b"\nendstream endobj\n"
        b"trailer<</Root 1 0 R>>\n"
    )
    (tmp_path / "bomb.pdf").write_bytes(body)
    good = make_pdf(tmp_path / "good.pdf", [" ".join(WORDS * 5)])
    monkeypatch.setattr(pdf, "Worker", partial(pdf.Worker, seconds=5, megabytes=600))
    (_, first), (_, second) = pdf.read_all([tmp_path / "bomb.pdf", good])
    assert "reason" in first and "pages" in second
    worker = pdf.Worker(seconds=0.01)  # less time than the interpreter takes to start
    assert "0.01 s" in worker.read(good)["reason"]
    worker.close()


def test_held_out_papers_are_whole_and_leave_half_of_the_lines():
    lines = {f"paper{n}": 100 for n in range(20)}
    test = papers.choose_test_papers(lines, 0.3, 2)
    assert len(test) == 6 and len(papers.choose_test_papers(lines, 0.1, 4)) == 4
    assert test == papers.choose_test_papers(dict(reversed(lines.items())), 0.3, 2)
    book = {**{f"leaflet{n}": 1 for n in range(10)}, "book": 1000}
    assert "book" not in papers.choose_test_papers(book, 0.2, 4)


def run(stage: str) -> None:
    importlib.import_module(f"stages.{stage}").main()


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A working folder with a params.yaml and an empty folder of papers."""
    root = Path(__file__).parents[1]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "papers").mkdir()
    text = (root / "params/demo.yaml").read_text()
    text = text.replace(
        "fetch_papers:\n  source: embedded ", "fetch_papers:\n  source: path:papers "
    )
    assert "path:papers" in text
    (tmp_path / "params.yaml").write_text(text)
    return tmp_path


def test_papers_to_chunks(project, odd):
    for n in range(12):
        text = " ".join(f"The {word} of paper {n} is {k}." for k, word in enumerate(WORDS * 5))
        make_pdf(project / "papers" / f"paper{n}.pdf", [text] * 2)
    shutil.copy(odd / "locked.pdf", project / "papers")
    for stage in ("fetch_papers", "scrape", "chunk"):
        run(stage)
    outputs = ("data/corpus.parquet", "data/chunks.parquet")
    first = [digest(path) for path in outputs]
    assert [pq.ParquetFile(path).num_row_groups for path in outputs] == [1, 1]  # of 12 papers
    report = (project / "data/papers_report.csv").read_text()
    assert "locked,0,0,failed,encrypted" in report
    rows = pq.read_table(project / "data/chunks.parquet").to_pylist()
    assert {row["split"] for row in rows} == {"train", "test"}
    for stage in ("scrape", "chunk"):
        run(stage)
    assert [digest(path) for path in outputs] == first


def test_row_groups_gather_many_papers(tmp_path, monkeypatch):
    schema = pa.schema([("paper", pa.string())])
    tables = [pa.table({"paper": [f"paper{n:04d}"]}, schema) for n in range(5000)]

    def write() -> list[int]:
        with parquet_writer.parquet_writer(tmp_path / "papers.parquet", schema) as writer:
            for table in tables:
                writer.write_table(table)
        file = pq.ParquetFile(tmp_path / "papers.parquet")
        assert file.read().equals(pa.concat_tables(tables))
        return [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]

    assert write() == [4096, 904]
    monkeypatch.setattr(parquet_writer, "GROUP_BYTES", 2000 * tables[0].nbytes)
    assert write() == [2000, 2000, 1000]


def test_folder_without_readable_papers_is_refused(project, odd):
    with pytest.raises(SystemExit, match="^error: fetch_papers.source: path:papers"):
        run("fetch_papers")
    shutil.copy(odd / "locked.pdf", project / "papers")
    run("fetch_papers")
    with pytest.raises(SystemExit, match="^error: scrape.min_papers: 0 .*locked.*encrypted"):
        run("scrape")


def test_text_file_is_cut_behind_its_reference_lists(tmp_path):
    text = []
    headings = ("References", "A last line.REFERENCES", "And another one . References")
    for n, heading in enumerate([*headings, "8 Bibliography"]):
        text += [f"A line about the fields of paper {n}."] * 30
        text += [heading, "[1] A. Smith. Fields. 2020."]
    (tmp_path / "corpus.txt").write_text("\n".join(text))
    parts = papers.read_text_file(tmp_path / "corpus.txt", True, True)
    assert [part.name for part in parts] == [f"corpus_{n:03d}" for n in (1, 2, 3, 4)]
    assert [part.cuts.references for part in parts] == [2] * 4
    assert [part.lines[-1][1] for part in parts[1:3]] == ["A last line.", "And another one."]
    assert all("Smith" not in line for part in parts for _, line in part.lines)


@pytest.mark.parametrize("ending, cut", [("\n", 11), (" ", 5)])
def test_text_file_of_long_lines_is_read_as_one_with_short_lines(tmp_path, ending, cut):
    """Of paragraphs or whole papers. A year in each paragraph is no entry of the list before it."""
    text = kept = ""
    for n in range(4):
        fields = f"Fields of paper {n} are green and wide in the north. " * 9
        fields += "Since 2015 satel- lites see them all, pre- and post-war. References [3] say so. "
        fields += "References Smith (2019) and Jones do on long- medium- and micro- as macro-scale."
        section = ending.join(["1 A section", fields, "2 A section", fields])
        heading = ("References", "REFERENCES", "R EFERENCES", "Bibliography")[n]
        entries = [f"[{i}] A. Smith. Fields. 20{i}." for i in range(10, 20)]
        text += ending.join([section, heading, *entries]) + "\n"
        kept += " ".join(section.replace("l- l", "ll").split()) + " "
    (tmp_path / "corpus.txt").write_text(text)
    parts = list(papers.read_papers([tmp_path / "corpus.txt"], True))
    assert [part.cuts.references for part in parts] == [cut] * 4
    assert " ".join(line for part in parts for _, line in part.lines) == kept.strip()
    assert max(len(line) for part in parts for _, line in part.lines) <= 90
