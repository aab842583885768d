"""The field notes: their number and form, and PDFs with the same text and the same bytes always."""

import difflib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from pypdf import PdfReader

from stages.embedded import notes_pdf

ROOT = Path(__file__).resolve().parents[1]
NOTES = sorted(notes_pdf.NOTES.glob("*.md"))
CLASSES = [
    "Bare Land",
    "Crop Land",
    "Cultivated Vegetation",
    "Natural Vegetation",
    "Snow Ice",
    "Water Body",
    "Woody Vegetation",
]


def words(text: str) -> list[str]:
    """The words of a text in lower case, with hyphenated ones joined."""
    return re.findall(r"[a-z0-9]+", re.sub(r"-\s*", "", text.lower()))


@pytest.fixture(scope="module")
def pdfs(tmp_path_factory) -> list[Path]:
    return notes_pdf.render_all(tmp_path_factory.mktemp("notes"))


def test_notes_are_many_long_and_about_every_class():
    texts = [note.read_text("ascii") for note in NOTES]
    assert len(texts) >= 20
    assert sum(len(text.split()) for text in texts) >= 15_000
    for name in CLASSES:
        assert sum(text.lower().count(name.lower()) >= 5 for text in texts) >= 2, (
            f"fewer than two notes on {name}"
        )


def test_notes_do_not_repeat_each_other():
    bodies = [note.read_text("ascii").split("## References")[0] for note in NOTES]
    sentences = [s for body in bodies for s in re.split(r"(?<=\.)\s+", body) if len(s.split()) >= 8]
    assert len(sentences) == len(set(sentences))


@pytest.mark.parametrize("note", NOTES, ids=lambda note: note.stem)
def test_note_has_title_sections_and_references(note):
    text = note.read_text("ascii")
    assert text.startswith("# ")
    assert text.count("\n## ") >= 4
    _, references = text.split("\n## References\n")
    entries = references.strip().split("\n\n")
    assert 3 <= len(entries) <= 5
    assert all(re.search(r"\((19|20)\d\d\)", entry) for entry in entries)


def test_pdfs_keep_every_heading_and_word(pdfs):
    assert [pdf.stem for pdf in pdfs] == [note.stem for note in NOTES]
    for note, pdf in zip(NOTES, pdfs):
        pages = [page.extract_text() for page in PdfReader(pdf).pages]
        text = note.read_text("ascii")
        title, *sections = re.findall(r"^#+ (.+)$", text, re.M)

        # Every page: the running header first, the page's number last.
        assert len(pages) >= 2
        lines = []
        for number, page in enumerate(pages, 1):
            head, *body, foot = page.strip().splitlines()
            assert (head, foot) == (title, str(number)), pdf.name
            lines += body

        assert lines[0] == title
        assert [line for line in lines if line in sections] == sections, pdf.name

        expected = words(text)
        matcher = difflib.SequenceMatcher(None, expected, words("\n".join(lines)), autojunk=False)
        kept = sum(block.size for block in matcher.get_matching_blocks())
        assert kept >= 0.98 * len(expected), (pdf.name, kept, len(expected))


def test_some_words_are_hyphenated_at_line_ends(pdfs):
    """So that cleaning has hyphens to join, as in real papers."""
    text = "\n".join(page.extract_text() for pdf in pdfs for page in PdfReader(pdf).pages)
    assert len(re.findall(r"[a-z]-\n[a-z]", text)) >= 10


LATER = """
import datetime, sys, time
class Later(datetime.datetime):
    now = classmethod(lambda cls, tz=None: cls(2031, 2, 3, 4, 5, 6, tzinfo=tz))
datetime.datetime = Later
time.time = lambda: 2e9
sys.path.insert(0, sys.argv[1])
from stages.embedded.notes_pdf import render_all
render_all(sys.argv[2])
assert "torch" not in sys.modules
"""


def test_bytes_do_not_depend_on_time_or_folder(pdfs, tmp_path):
    env = {**os.environ, "TZ": "Asia/Tokyo", "PYTHONHASHSEED": "7"}
    subprocess.run(
        [sys.executable, "-c", LATER, str(ROOT), "a/b"],
        cwd=tmp_path,
        env=env,
        check=True,
        timeout=600,
    )
    later = sorted((tmp_path / "a/b").iterdir())
    assert [pdf.name for pdf in later] == [pdf.name for pdf in pdfs]
    for one, other in zip(pdfs, later):
        assert one.read_bytes() == other.read_bytes(), one.name


def test_note_without_a_title_is_refused(tmp_path):
    (tmp_path / "note.md").write_text("Words only.\n")
    with pytest.raises(ValueError, match="note.md"):
        notes_pdf.render(tmp_path / "note.md", tmp_path / "note.pdf")
