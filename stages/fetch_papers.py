"""Collect the papers: render the field notes, copy a folder or file, or download from hub or arXiv.

    python -m stages.fetch_papers

reads   fetch_papers; stages/embedded/notes (embedded)
writes  data/papers/: PDFs or text files; SOURCE.json (what the source resolved to, hashes of the
        files); from arXiv also arxiv.csv (which papers were downloaded, and why others were not)

From here on, the stem of a file's name is the paper's name.
"""

import os
import shutil
from collections.abc import Container
from pathlib import Path
from typing import Any

from stages.common import sources
from stages.params import load
from stages.runtime.atomic import atomic_folder
from stages.runtime.errors import exit_with_error
from stages.runtime.process import run_stage
from stages.runtime.progress import log

OUT = Path("data/papers")
KEY = "fetch_papers.source"
SUFFIXES = (".pdf", ".txt")
MAX_STEM_BYTES = 200  # no file system takes a name of more than 255 bytes


def main() -> None:
    params = load()
    source = params.fetch_papers.source
    with atomic_folder(OUT) as out:
        files, resolved = fetch(source, out)
        if not files:
            exit_with_error(f"{KEY}: {source}: no PDF or text file")
        sources.write_source_json(out, source, **resolved, files=sources.file_hashes(files))
    log(f"fetch_papers: {len(files)} file(s) in {OUT}")


def fetch(source: str, out: Path) -> tuple[list[Path], dict]:
    """Write the papers of a source into `out`; return the files and what the source resolved to."""
    match sources.kind(source):
        case "embedded":
            from stages.embedded.notes_pdf import render_all

            return render_all(out), {}
        case "path":
            return copy_papers(sources.local_path(source, KEY), out), {}
        case "hub":
            patterns = ["*.parquet", "*.txt"]
            folder, resolved = sources.download_from_hub(source, KEY, "dataset", patterns)
            return write_corpus(folder, out), resolved
        case "arxiv":
            from stages.text.arxiv import download

            files, failed = download(sources.local_path(source, KEY), out)
            if not files:
                paper, reason = next(iter(failed.items()))
                exit_with_error(
                    f"{KEY}: {source}: none of {len(failed)} papers could be downloaded; "
                    f"{paper}: {reason}"
                )
            return files, {"failed": failed}
        case other:
            exit_with_error(
                f"{KEY}: {other} provides no papers; write embedded, path:, hub: or arxiv:"
            )


def copy_papers(origin: Path, out: Path) -> list[Path]:
    """Copy one file, or the PDFs and text files of a folder and its subfolders.

    A copy is named for its path below `origin`. The name is changed where another one differs only
    in case or suffix, or where it is not UTF-8: papers are told apart by their names, on any disk.

    Raises:
        SystemExit: `origin` is a file that is neither a PDF nor a text file.
    """
    if origin.is_file() and origin.suffix.lower() not in SUFFIXES:
        exit_with_error(f"{KEY}: {origin.name} is neither a .pdf nor a .txt file")
    files = [origin] if origin.is_file() else sorted(sources.visible_files(origin, KEY))
    copies: dict[str, Path] = {}  # by stem in lower case
    for file in files:
        if file.suffix.lower() not in SUFFIXES or not file.is_file():
            continue
        name = "__".join(file.relative_to(origin).parts) or file.name
        stem = unused_stem(Path(name).stem, copies)
        copy = out / (stem + file.suffix)
        shutil.copyfile(file, copy)
        copies[stem.lower()] = copy
        if copy.name != name:
            log(f"fetch_papers: {name!a} is stored as {copy.name}")
    return list(copies.values())


def unused_stem(stem: str, used: Container[str]) -> str:
    """Return a stem in UTF-8, of at most `MAX_STEM_BYTES` and a number, that is not used yet.

    Args:
        stem: the stem asked for.
        used: the used stems in lower case.
    """
    stem = os.fsencode(stem)[:MAX_STEM_BYTES].decode(errors="replace")
    unused = stem
    number = 1
    while unused.lower() in used:
        number += 1
        unused = f"{stem}_{number}"
    return unused


def write_corpus(folder: Path, out: Path) -> list[Path]:
    """Write the text lines of a hub data set (.txt, then Parquet files, by name) as `corpus.txt`.

    Raises:
        SystemExit: a Parquet file has no column of strings.
    """
    import pyarrow.parquet as pq

    corpus = out / "corpus.txt"
    with open(corpus, "w", encoding="utf-8") as file:
        for path in sorted(folder.rglob("*.txt")):
            text = path.read_text(encoding="utf-8", errors="replace")
            file.write(text.rstrip("\n") + "\n")
        for path in sorted(folder.rglob("*.parquet")):
            parquet = pq.ParquetFile(path)
            column = text_column(parquet.schema_arrow)
            if column is None:
                exit_with_error(f"{KEY}: {path.name} has no text column")
            for batch in parquet.iter_batches(columns=[column]):
                file.writelines(f"{line}\n" for line in batch.column(0).to_pylist() if line)
    return [corpus] if corpus.stat().st_size else []


def text_column(schema: Any) -> str | None:
    """Return `text` where the `pa.Schema` has this column, else its first column of strings."""
    import pyarrow as pa

    columns = [
        field.name
        for field in schema
        if pa.types.is_string(field.type) or pa.types.is_large_string(field.type)
    ]
    if "text" in columns:
        return "text"
    return columns[0] if columns else None


if __name__ == "__main__":
    run_stage(main, __doc__)
