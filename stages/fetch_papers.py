"""Bring the papers: render the field notes, copy a folder of PDFs or a text file, or fetch from the hub or arXiv.

    python -m stages.fetch_papers

reads   fetch_papers; stages/embedded/notes (embedded)
writes  data/papers/: PDFs, or text files, SOURCE.json (what the source resolved to, hashes of the files) and, from arXiv,
        arxiv.csv (which papers came and why the others did not)

The stem of a file's name is the paper's name from here on.
"""

import os
import shutil
from pathlib import Path

from stages.common import sources
from stages.params import load
from stages.runtime.atomic import atomic_folder
from stages.runtime.errors import exit_with_error
from stages.runtime.process import run_stage
from stages.runtime.progress import log

OUT = Path("data/papers")
KEY = "fetch_papers.source"


def copy(origin: Path, out: Path) -> list[Path]:
    """The PDFs and text files of a folder (its subfolders too, by their path), or one file.

    Names that differ only in case or suffix, or aren't UTF-8, are changed: papers go by them, on any disk.
    """
    if origin.is_file() and origin.suffix.lower() not in (".pdf", ".txt"):
        exit_with_error(f"{KEY}: {origin.name} is neither a .pdf nor a .txt file")
    found = [origin] if origin.is_file() else sorted(sources.visible(origin, KEY))
    copies = {}
    for file in (
        file for file in found if file.suffix.lower() in (".pdf", ".txt") and file.is_file()
    ):
        given = "__".join(file.relative_to(origin).parts) or file.name
        # No file system takes a name of more than 255 bytes.
        name = stem = os.fsencode(Path(given).stem)[:200].decode(errors="replace")
        number = 1
        while name.lower() in copies:
            number += 1
            name = f"{stem}_{number}"
        copies[name.lower()] = Path(shutil.copyfile(file, out / (name + file.suffix)))
        if copies[name.lower()].name != given:
            log(f"fetch_papers: {given!a} is stored as {copies[name.lower()].name}")
    return list(copies.values())


def corpus(folder: Path, out: Path) -> list[Path]:
    """A hub data set of text lines (Parquet or .txt, splits in the order of their names) as one `corpus.txt`."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    target = out / "corpus.txt"
    with open(target, "w", encoding="utf-8") as text:
        for path in sorted(folder.rglob("*.txt")):
            text.write(path.read_text(encoding="utf-8", errors="replace").rstrip("\n") + "\n")
        for path in sorted(folder.rglob("*.parquet")):
            file = pq.ParquetFile(path)
            strings = [
                f.name
                for f in file.schema_arrow
                if pa.types.is_string(f.type) or pa.types.is_large_string(f.type)
            ]
            if not strings:
                exit_with_error(f"{KEY}: {path.name} has no text column")
            column = "text" if "text" in strings else strings[0]
            for batch in file.iter_batches(columns=[column]):
                text.writelines(f"{line}\n" for line in batch.column(0).to_pylist() if line)
    return [target] if target.stat().st_size else []


def main() -> None:
    p = load()
    source = p.fetch_papers.source
    found = {}
    with atomic_folder(OUT) as out:
        match sources.kind(source):
            case "embedded":
                from stages.embedded.notes_pdf import render_all

                files = render_all(out)
            case "path":
                files = copy(sources.local(source, KEY), out)
            case "hub":
                folder, found = sources.hub(source, KEY, "dataset", ["*.parquet", "*.txt"])
                files = corpus(folder, out)
            case "arxiv":
                from stages.text.arxiv import download

                files, failed = download(sources.local(source, KEY), out)
                found = {"failed": failed}
            case other:
                exit_with_error(
                    f"{KEY}: {other} gives no papers; write embedded, path:, hub: or arxiv:"
                )
        if not files and "failed" in found:
            exit_with_error(
                f"{KEY}: {source}: none of {len(failed)} papers could be got; {next(iter(failed))}: {next(iter(failed.values()))}"
            )
        if not files:
            exit_with_error(f"{KEY}: {source}: no PDF or text file")
        sources.record(out, source, **found, files=sources.hashes(files))
    log(f"fetch_papers: {len(files)} file(s) in {OUT}")


if __name__ == "__main__":
    run_stage(main, __doc__)
