"""Render the field notes as PDFs: the papers of `fetch_papers` where its source is `embedded`.

A note is simple Markdown: `# Title`, `## Section`, paragraphs and `- ` lists. It becomes a
justified A4 paper with what makes text extraction from real papers hard: a running header, page
numbers and words hyphenated at line ends. The bytes depend only on the note and on the versions of
fpdf2 and zlib: no clock, path or host name is in them.
"""

import re
from datetime import UTC, datetime
from pathlib import Path

from fpdf import FPDF

NOTES = Path(__file__).with_name("notes")
CREATION_DATE = datetime(2024, 1, 1, tzinfo=UTC)  # any fixed day: the PDF stores it
SOFT_HYPHEN = "\u00ad"
# Where a word may be hyphenated: before these endings, behind at least three letters.
HYPHENATION_POINT = re.compile(
    r"(?<=[A-Za-z]{3})(?=(?:tion|sion|ment|ness|ture|graph|shine|light|ward)[a-z]{0,4}\b)"
)


class Paper(FPDF):
    """An A4 paper with a running header and page numbers; lengths are in millimeters."""

    def __init__(self, title: str):
        super().__init__(format="A4", unit="mm")
        self.running_header = title
        self.set_title(title)
        self.set_producer("fpdf2")
        self.set_creation_date(CREATION_DATE)
        self.set_margins(left=22, top=24, right=22)
        self.set_auto_page_break(True, margin=24)
        self.add_page()

    def header(self) -> None:
        """Write the running header; fpdf2 calls this on each new page."""
        self.set_font("helvetica", "I", 9)
        self.set_y(12)
        self.cell(0, 5, self.running_header, align="C")
        self.set_y(self.t_margin)

    def footer(self) -> None:
        """Write the page number; fpdf2 calls this at the end of each page."""
        self.set_font("helvetica", "", 9)
        self.set_y(-15)
        self.cell(0, 5, str(self.page_no()), align="C")

    def write_block(
        self,
        text: str,
        style: str,
        size: float,
        line_height: float,
        space_after: float,
        align: str = "L",
    ) -> None:
        """Write a paragraph or heading; `style` is "B" for bold, `size` is in points."""
        self.set_font("times", style, size)
        self.multi_cell(0, line_height, text, align=align, new_x="LMARGIN", new_y="NEXT")
        self.ln(space_after)


def render(markdown_path: Path, pdf_path: Path) -> Path:
    """Write one note as a PDF and return its path.

    Raises:
        ValueError: the note does not start with a title.
    """
    blocks = read_blocks(Path(markdown_path))
    if not blocks or not blocks[0].startswith("# "):
        raise ValueError(f"{markdown_path}: a note starts with '# Title'")

    paper = Paper(title=blocks[0].removeprefix("# "))
    for block in blocks:
        if block.startswith("# "):
            paper.write_block(block[2:], "B", 17, line_height=8, space_after=4)
        elif block.startswith("## "):
            if paper.will_page_break(25):  # keep a heading with the lines under it
                paper.add_page()
            paper.write_block(block[3:], "B", 13, line_height=7, space_after=1)
        elif block.startswith("- "):
            text = "- " + HYPHENATION_POINT.sub(SOFT_HYPHEN, block[2:])
            paper.write_block(text, "", 11, line_height=5.2, space_after=1, align="J")
        else:
            text = HYPHENATION_POINT.sub(SOFT_HYPHEN, block)
            paper.write_block(text, "", 11, line_height=5.2, space_after=2.5, align="J")

    pdf_path = Path(pdf_path)
    pdf_path.parent.mkdir(parents=True, exist_ok=True)
    paper.output(str(pdf_path))
    return pdf_path


def read_blocks(markdown_path: Path) -> list[str]:
    """Return the headings, paragraphs and list items of a note, each as one line."""
    blocks = re.split(r"\n\s*\n|\n(?=- )", markdown_path.read_text("utf-8"))
    return [" ".join(block.split()) for block in blocks if block.strip()]


def render_all(folder: Path) -> list[Path]:
    """Write every note as `<folder>/<note>.pdf`, in the order of their names."""
    return [render(note, Path(folder) / f"{note.stem}.pdf") for note in sorted(NOTES.glob("*.md"))]
