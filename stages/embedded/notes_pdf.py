"""The field notes as PDFs: what `fetch_papers` hands on when its source is `embedded`.

    python -m stages.embedded.notes_pdf <folder>

A note is Markdown of the plainest kind: `# Title`, `## Section`, paragraphs and `- ` lists. It becomes a justified A4 paper
with what makes real papers hard to read back: a running header, page numbers and words hyphenated at line ends.
The bytes depend on the note alone (and on the fpdf2 and zlib that write them): no clock, path or name of a machine.
"""

import re
import sys
from datetime import UTC, datetime
from pathlib import Path

from fpdf import FPDF

NOTES = Path(__file__).with_name("notes")
DATED = datetime(2024, 1, 1, tzinfo=UTC)  # any fixed day: the date is part of the bytes
SOFT_HYPHEN = "\u00ad"
# Word ends before which English allows a break, with at least three letters ahead of them.
BREAK = re.compile(
    r"(?<=[A-Za-z]{3})(?=(?:tion|sion|ment|ness|ture|graph|shine|light|ward)[a-z]{0,4}\b)"
)


class Paper(FPDF):
    def __init__(self, title: str):
        super().__init__(format="A4", unit="mm")
        self.set_title(title)
        self.set_producer("fpdf2")
        self.set_creation_date(DATED)
        self.set_margins(left=22, top=24, right=22)
        self.set_auto_page_break(True, margin=24)
        self.add_page()

    def header(self) -> None:
        self.set_font("helvetica", "I", 9)
        self.set_y(12)
        self.cell(0, 5, self.title, align="C")
        self.set_y(self.t_margin)

    def footer(self) -> None:
        self.set_font("helvetica", "", 9)
        self.set_y(-15)
        self.cell(0, 5, str(self.page_no()), align="C")

    def block(
        self, text: str, style: str, size: float, line: float, after: float, align: str = "L"
    ) -> None:
        self.set_font("times", style, size)
        self.multi_cell(0, line, text, align=align, new_x="LMARGIN", new_y="NEXT")
        self.ln(after)


def render(markdown_path: Path, pdf_path: Path) -> Path:
    """Write one note as a PDF."""
    blocks = [
        " ".join(b.split())
        for b in re.split(r"\n\s*\n|\n(?=- )", Path(markdown_path).read_text("utf-8"))
        if b.strip()
    ]
    if not blocks or not blocks[0].startswith("# "):
        raise ValueError(f"{markdown_path}: a note starts with '# Title'")

    paper = Paper(title=blocks[0][2:])
    for text in blocks:
        if text.startswith("# "):
            paper.block(text[2:], "B", 17, line=8, after=4)
        elif text.startswith("## "):
            if paper.will_page_break(25):  # keep a heading with the lines under it
                paper.add_page()
            paper.block(text[3:], "B", 13, line=7, after=1)
        elif text.startswith("- "):
            paper.block(
                "- " + BREAK.sub(SOFT_HYPHEN, text[2:]), "", 11, line=5.2, after=1, align="J"
            )
        else:
            paper.block(BREAK.sub(SOFT_HYPHEN, text), "", 11, line=5.2, after=2.5, align="J")

    pdf_path = Path(pdf_path)
    pdf_path.parent.mkdir(parents=True, exist_ok=True)
    paper.output(str(pdf_path))
    return pdf_path


def render_all(folder_out: Path) -> list[Path]:
    """Write every note as `<folder_out>/<note>.pdf`, in the order of their names."""
    return [
        render(note, Path(folder_out) / f"{note.stem}.pdf") for note in sorted(NOTES.glob("*.md"))
    ]


if __name__ == "__main__":
    for pdf in render_all(Path(sys.argv[1])):
        print(pdf)
