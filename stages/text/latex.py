r"""Join a LaTeX paper whose sections lie in files of their own (\input, \include, \subfile)."""

import os
import re
from pathlib import Path

# The comment of a line, or a command that reads a file: \input{a}, \input a, \import{folder}{a}.
COMMENT_OR_INPUT = re.compile(
    r"(?<!\\)%.*|\\(?:input|include|subfile|subfileinclude|InputIfFileExists)\s*\{([^}]+)\}|"
    r"\\input(?:\s+|(?=\"))([^\s{}\\%]+)|"
    r"\\(?:sub)?(?:import|inputfrom|includefrom)\*?\s*\{([^}]*)\}\s*\{([^}]+)\}"
)
COMMENT_OR_PACKAGES = re.compile(r"(?<!\\)%.*|\\usepackage\s*(?:\[[^\]]*\])?\s*\{([^}]+)\}")
# The definition of a command in a package. Those with @ in them, and of LaTeX's own commands, are
# for layout: pandoc knows \section and \begin{abstract} only without them.
BRACED = r"\{(?:\\.|[^{}@\\])*\}"
for _ in range(3):
    BRACED = rf"\{{(?:\\.|[^{{}}@\\]|{BRACED})*\}}"
OWN_COMMANDS = (
    r"(?:end\w+|abstract|keywords|title|author|maketitle|thanks|thebibliography|caption|footnote|"
    r"(?:sub)*section|(?:sub)?paragraph|chapter|cite\w*)\b"
)
DEFINITION = re.compile(
    r"\\(?:def|newcommand|providecommand|DeclareRobustCommand|\w+DocumentCommand)\*?\s*"
    rf"(?!\{{?\s*\\{OWN_COMMANDS})(?:\{{\s*\\[A-Za-z]+\s*\}}|\\[A-Za-z]+)"
    rf"(?:\[[^\]@]*\]|#\d|\s)*(?:{BRACED}\s*)?{BRACED}",
    re.DOTALL,
)
COMMENT = re.compile(r"(?<!\\)%.*")
# The class of a paper, not that of one of its parts or figures.
PAPER_CLASS = re.compile(
    rb"^[^%\n]*\\document(?:class|style)\b(?!\s*(?:\[[^\]]*\]\s*)?\{(?:subfiles|standalone)\})",
    re.M,
)
BODY = re.compile(r"\\begin\s*\{document\}(.*?)\\end\s*\{document\}", re.DOTALL)


def join_papers(files: list[Path]) -> dict[Path, tuple[bytes, list[Path]]]:
    r"""Join the LaTeX files among `files` to papers.

    A file that another one reads is part of that one. Of a package (.sty), the commands that it
    defines are read. A file without a class and \begin{document}, beside or below a paper with a
    class whose parts are all found, is a leftover of that paper, and no paper. Files outside of
    `files` are never read.

    Returns:
        For each paper its main file -> its whole source, and the other files in it.
    """
    kinds = (".tex", ".sty")
    paths = sorted(path for path in files if path.suffix.lower() in kinds and path.is_file())
    sources = {os.path.normpath(path): path for path in paths}
    joined = {path: _join(path, sources) for path in paths if path.suffix.lower() == ".tex"}
    parts = {
        part
        for main, (_, inner) in joined.items()
        for part in inner
        # Of two files that read each other, the first is the main one. A package reads none.
        if main not in joined.get(part, (b"", []))[1] or main < part
    }
    papers = {path: joined[path] for path in joined if path not in parts}
    classed = {path for path, (source, _) in papers.items() if PAPER_CLASS.search(source)}
    folders = {path.parent for path in classed if not _misses_part(papers[path][0])}
    return {
        path: (source, inner)
        for path, (source, inner) in papers.items()
        if path in classed
        or (b"\\begin{document}" in source and b"\\documentclass" not in source)
        or folders.isdisjoint(path.parents)
    }


def _misses_part(source: bytes) -> bool:
    """Whether a joined paper reads a file that is not there, or whose name a command computes."""
    return any(match.lastindex for match in COMMENT_OR_INPUT.finditer(source.decode("latin-1")))


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

    def define(match: re.Match) -> str:
        definitions = match[0]
        for name in (match[1] or "").split(","):
            package = _find(main.parent, f"{name.strip()}.sty", sources)
            if package and package not in parts:
                parts.append(package)
                definitions += f"\n{_read_body(package)}"
        return definitions

    # Latin-1 keeps every byte of any encoding.
    source = COMMENT_OR_INPUT.sub(insert, _read(main))
    return COMMENT_OR_PACKAGES.sub(define, source).encode("latin-1"), parts


def _find(folder: Path, name: str, sources: dict[str, Path]) -> Path | None:
    """Return the file that a command of a paper in `folder` names, if it is one of `sources`."""
    if not name:  # a comment
        return None
    path = os.path.normpath(folder / name.strip('" \n'))
    return sources.get(path) or sources.get(f"{path}.tex")


def _read(path: Path) -> str:
    return path.read_bytes().decode("latin-1")


def _read_body(path: Path) -> str:
    r"""Return the source of a file without the preamble that a \subfile has.

    Of a package, return the definitions of commands.
    """
    text = _read(path)
    if path.suffix.lower() == ".sty":
        definitions = DEFINITION.finditer(COMMENT.sub("", text))
        return "".join(f"{definition[0]}\n" for definition in definitions)
    body = BODY.search(text)
    return body[1] if body else text
