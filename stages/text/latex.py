r"""Join a LaTeX paper whose sections lie in files of their own (\input, \include, \subfile)."""

import os
import re
from pathlib import Path

# The comment of a line, or a command that reads a file: \input{a}, \input a, \import{folder}{a}.
COMMENT_OR_INPUT = re.compile(
    r"(?<!\\)%.*|\\(?:input|include|subfile)\s*\{([^}]+)\}|\\input\s+([^\s{}\\%]+)|"
    r"\\(?:sub)?import\s*\{([^}]*)\}\s*\{([^}]+)\}"
)
BODY = re.compile(r"\\begin\s*\{document\}(.*?)\\end\s*\{document\}", re.DOTALL)


def join_papers(files: list[Path]) -> dict[Path, tuple[bytes, list[Path]]]:
    """Join the LaTeX files among `files` to papers.

    A file that another one reads is part of that one. Files outside of `files` are never read.

    Returns:
        For each paper its main file -> its whole source, and the other files in it.
    """
    paths = sorted(path for path in files if path.suffix.lower() == ".tex" and path.is_file())
    sources = {os.path.normpath(path): path for path in paths}
    joined = {path: _join(path, sources) for path in paths}
    parts = {
        part
        for main, (_, inner) in joined.items()
        for part in inner
        if main not in joined[part][1] or main < part  # of two that read each other, the first
    }
    return {path: joined[path] for path in joined if path not in parts}


def _join(main: Path, sources: dict[str, Path]) -> tuple[bytes, list[Path]]:
    """Return the source of a file with each file that it reads put in once, and these files.

    Args:
        main: the file.
        sources: normalized path -> each file that it may read.
    """
    parts: list[Path] = []

    def insert(match: re.Match) -> str:
        name = match[1] or match[2] or os.path.join(match[3] or "", match[4] or "")
        part = _find(main.parent, name, sources)
        if not part:
            return rf"\input{{{name}}}" if name else match[0]
        if part in (main, *parts):
            return ""
        parts.append(part)
        return COMMENT_OR_INPUT.sub(insert, _read_body(part))

    # Latin-1 keeps every byte of any encoding.
    return COMMENT_OR_INPUT.sub(insert, _read(main)).encode("latin-1"), parts


def _find(folder: Path, name: str, sources: dict[str, Path]) -> Path | None:
    """Return the file that a command of a paper in `folder` names, if it is one of `sources`."""
    if not name:  # a comment
        return None
    path = os.path.normpath(folder / name.strip())
    return sources.get(path) or sources.get(f"{path}.tex")


def _read(path: Path) -> str:
    return path.read_bytes().decode("latin-1")


def _read_body(path: Path) -> str:
    r"""Return the source of a file without the preamble that a \subfile has."""
    text = _read(path)
    body = BODY.search(text)
    return body[1] if body else text
