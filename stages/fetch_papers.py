"""Collect the papers: render the field notes, copy a folder or file, or download from hub or arXiv.

    python -m stages.fetch_papers

reads   fetch_papers; stages/embedded/notes (embedded)
writes  data/papers/: PDFs, text files and what pandoc reads (Markdown, LaTeX, HTML, ...);
        SOURCE.json (what the source resolved to, hashes of the files, files of other formats);
        from arXiv also arxiv.csv (which papers were downloaded, and why others were not)

From here on, the stem of a file's name is the paper's name. A PDF is known by its first bytes.
"""

import os
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from stages.common import sources
from stages.params import load
from stages.runtime.atomic import atomic_folder
from stages.runtime.errors import exit_with_error
from stages.runtime.process import run_stage
from stages.runtime.progress import log
from stages.text import latex
from stages.text.paper_files import SUFFIXES, decode, name_key, unused_name

OUT = Path("data/papers")
KEY = "fetch_papers.source"
MAX_LINE_CHARACTERS = 2000  # a longer row of a hub data set is a paper
MIN_TEXT_PAPERS = 10  # fewer .txt files of a hub data set may be the splits of one
MAX_STEM_BYTES = 200  # no file system takes a name of more than 255 bytes


def main() -> None:
    params = load()
    source = params.fetch_papers.source
    with atomic_folder(OUT) as out:
        files, resolved = fetch(source, params.fetch_papers.text_column, out)
        skipped = describe(resolved.get("skipped", {}))
        if not files:
            also = f", only {skipped}" if skipped else ""
            suffixes = " ".join(SUFFIXES[1:])
            exit_with_error(
                f"{KEY}: {source}: no PDF, file of {suffixes} or text in a .parquet file{also}"
            )
        if skipped:
            log(f"fetch_papers: {skipped} not read (data/papers_report.csv)")
        sources.write_source_json(out, source, **resolved, files=sources.file_hashes(files))
    log(f"fetch_papers: {len(files)} file(s) in {OUT}")


def fetch(source: str, text_column: str, out: Path) -> tuple[list[Path], dict]:
    """Write the papers of a source into `out`; return the files and what the source resolved to."""
    match sources.kind(source):
        case "embedded":
            from stages.embedded.notes_pdf import render_all

            return render_all(out), {}
        case "path":
            files, skipped = copy_local(sources.local_path(source, KEY), text_column, out)
            return files, {"skipped": skipped} if skipped else {}
        case "hub":
            patterns = ["*.parquet", "*.txt"]
            folder, resolved, _ = sources.download_from_hub(source, KEY, "dataset", patterns)
            files = write_corpus(folder, text_column, out)
            if not files:
                exit_with_error(f"{KEY}: {source}: no text in its Parquet and .txt files, if any")
            return files, resolved
        case _:  # arxiv
            from stages.text.arxiv import download

            files, failed, unanswered = download(sources.local_path(source, KEY), out)
            if not files:
                paper, reason = next(iter(failed.items()))
                exit_with_error(
                    f"{KEY}: {source}: none of {len(failed)} papers could be downloaded; "
                    f"{paper}: {reason}"
                )
            if unanswered:
                exit_with_error(
                    f"{KEY}: {source}: {len(unanswered)} papers got no answer "
                    f"({unanswered[0]}: {failed[unanswered[0]]}); what came is kept: run "
                    "`dvc repro` again, or take them off the list"
                )
            return files, {"failed": failed}


def copy_local(origin: Path, text_column: str, out: Path) -> tuple[list[Path], dict[str, str]]:
    """Copy one file, or the papers of a folder and its subfolders, or write the texts of tables.

    A copy of a hub data set has Parquet files and few others, such as its card: no papers.

    Returns:
        The papers, and {file: why it is no paper} of all other files, but not of hidden ones.
    """
    files = [origin] if origin.is_file() else sorted(sources.visible_files(origin, KEY))
    tables = [file for file in files if file.suffix.lower() == ".parquet"]
    suffix_of_paper = {file: suffix for file in files if (suffix := paper_suffix(file))}
    sources.refuse_lfs_pointers([*suffix_of_paper, *tables], KEY)
    suffixes = list(suffix_of_paper.values())
    is_of_papers = len(suffixes) >= MIN_TEXT_PAPERS or not {".md", ".txt"}.issuperset(suffixes)
    if not tables or is_of_papers:
        return copy_papers(files, origin, out)
    others = sorted(set(files) - set(tables))
    skipped = {utf8(flat_name(file, origin)): "not read: beside Parquet files" for file in others}
    return write_rows(tables, origin, text_column, out), skipped


def copy_papers(files: list[Path], origin: Path, out: Path) -> tuple[list[Path], dict[str, str]]:
    """Copy those of some files that are papers.

    A copy is named for its path below `origin`. The name is changed where another one differs only
    in case or suffix, or where it is not UTF-8: papers are told apart by their names, on any disk.
    A LaTeX file is copied together with the files that it reads.

    Returns:
        The copies, and {file: why it is no paper} of all other files.
    """
    latex_papers = latex.join_papers(files)
    main_files = {part: main for main, (_, parts) in latex_papers.items() for part in parts}
    copies: dict[str, Path] = {}  # by `name_key` of the stem
    skipped = {}
    for file in files:
        name = flat_name(file, origin)
        suffix = paper_suffix(file)
        if file in main_files and file not in latex_papers:
            skipped[utf8(name)] = f"part of {utf8(main_files[file].name)}"
        elif not suffix:
            kind = utf8(file.suffix) or "a file without a suffix"
            skipped[utf8(name)] = f"not read: {kind}" if file.is_file() else "not read: not a file"
        elif suffix.lower() == ".tex" and file not in latex_papers:
            skipped[utf8(name)] = "not read by a main file"
        else:
            stem = Path(name).stem if file.suffix.lower() in SUFFIXES else name
            stem = os.fsencode(stem)[:MAX_STEM_BYTES].decode(errors="replace")
            stem = unused_name(stem, copies)
            copy = out / (stem + suffix)
            if file in latex_papers:
                copy.write_bytes(latex_papers[file][0])
            else:
                shutil.copyfile(file, copy)
            copies[name_key(stem)] = copy
            if copy.name != name:
                log(f"fetch_papers: {name!a} is stored as {copy.name}")
    return list(copies.values()), skipped


def flat_name(file: Path, origin: Path) -> str:
    """Return the path of a file below `origin`, which may be the file, as one name."""
    return "__".join(file.relative_to(origin).parts) or file.name


def paper_suffix(file: Path) -> str | None:
    """Return the suffix of a paper's format, or None for no paper.

    PDF, and HTML in a file named .txt, are known by their first bytes.
    """
    if not file.is_file():
        return None
    with open(file, "rb") as stream:
        start = stream.read(1024).lstrip(b"\xef\xbb\xbf\r\n\t ")
    suffix = file.suffix.lower()
    if start.startswith(b"%PDF-"):
        return file.suffix if suffix == ".pdf" else ".pdf"
    if suffix == ".txt" and start.lower().startswith((b"<!doctype html", b"<html")):
        return ".html"
    return file.suffix if suffix in SUFFIXES else None


def utf8(name: str) -> str:
    """Return a file's name as text that JSON and CSV can hold."""
    return os.fsencode(name).decode(errors="replace")


def describe(skipped: dict[str, str]) -> str:
    """Count files by why they are no papers, each with an example: `2 .pptx (a.pptx, ...)`."""
    examples: dict[str, str] = {}
    for name, reason in skipped.items():
        examples.setdefault(reason, name)
    counts = Counter(skipped.values())
    return "; ".join(
        f"{count} {reason.removeprefix('not read: ')} ({examples[reason]}{', ...' * (count > 1)})"
        for reason, count in counts.items()
    )


def write_corpus(folder: Path, text_column: str, out: Path) -> list[Path]:
    """Write the texts of a hub data set: those of its Parquet files, else its .txt files.

    Raises:
        SystemExit: a Parquet file cannot be read or has no column of strings with the name
            `text_column`, or one of few .txt files is no text.
    """
    tables = sorted(folder.rglob("*.parquet"))
    return write_rows(tables, folder, text_column, out) if tables else write_texts(folder, out)


def write_rows(tables: list[Path], origin: Path, text_column: str, out: Path) -> list[Path]:
    """Write the texts of Parquet files below `origin`.

    A row is a paper, a file of its own, if most rows of its Parquet file are longer than
    `MAX_LINE_CHARACTERS`. Else it is a line of `corpus.txt`.

    Raises:
        SystemExit: a file cannot be read, or has no column of strings named `text_column`.
    """
    files = []
    for path in tables:
        counts = Counter(len(text) > MAX_LINE_CHARACTERS for text in read_texts(path, text_column))
        if counts[True] > counts[False]:
            stem = Path(flat_name(path, origin)).stem
            for number, text in enumerate(read_texts(path, text_column), 1):
                files.append(out / f"{stem}_{number:05d}.txt")
                files[-1].write_text(text, encoding="utf-8")
        elif counts:
            corpus = out / "corpus.txt"
            with open(corpus, "a", encoding="utf-8") as file:
                file.writelines(f"{line}\n" for line in read_texts(path, text_column))
            files += [] if corpus in files else [corpus]
    return files


def write_texts(folder: Path, out: Path) -> list[Path]:
    """Write the .txt files of a folder: many as they are, few, such as splits, as `corpus.txt`.

    Raises:
        SystemExit: one of few files is no text.
    """
    paths = sorted(folder.rglob("*.txt"))
    if len(paths) >= MIN_TEXT_PAPERS:
        copies = [out / flat_name(path, folder) for path in paths]
        for path, copy in zip(paths, copies):
            shutil.copyfile(path, copy)
        return copies
    corpus = out / "corpus.txt"
    for path in paths:
        text, fault = decode(path.read_bytes())
        if fault:
            exit_with_error(f"{KEY}: {path.name}: {fault}")
        with open(corpus, "a", encoding="utf-8") as file:
            file.write(text.rstrip("\n") + "\n")
    return [corpus] if paths else []


def read_texts(path: Path, text_column: str) -> Iterator[str]:
    """Yield the texts of a Parquet file that are not empty.

    Raises:
        SystemExit: the file cannot be read, or no column of strings has the name `text_column`.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        parquet = pq.ParquetFile(path)
    except (pa.ArrowException, OSError, ValueError) as error:  # as of Git LFS, or of no UTF-8 name
        exit_with_error(f"{KEY}: {utf8(path.name)} cannot be read: {str(error).splitlines()[0]}")
    columns = string_columns(parquet.schema_arrow)
    if text_column not in columns:
        exit_with_error(
            f"fetch_papers.text_column: {path.name} has no column of strings named "
            f"{text_column}; it has {', '.join(columns) or 'none of strings'}"
        )
    for batch in parquet.iter_batches(columns=[text_column]):
        yield from filter(None, batch.column(0).to_pylist())


def string_columns(schema: Any) -> list[str]:
    """Return the names of the columns of strings of a `pa.Schema`."""
    import pyarrow as pa

    is_string = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
    columns = []
    for field in schema:
        of_values = field.type.value_type if pa.types.is_dictionary(field.type) else field.type
        if any(check(of_values) for check in is_string):
            columns.append(field.name)
    return columns


if __name__ == "__main__":
    run_stage(main, __doc__)
