"""Read papers that are not PDFs with pandoc: Markdown, LaTeX, HTML, Word, OpenDocument, EPUB.

Tables, code, displayed formulas, pictures and a page's navigation are left out; captions and table
cells that hold prose stay.
"""

import html
import json
import re
import subprocess
import textwrap
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pypandoc
import yaml

from stages.text.clean import normalize
from stages.text.hyphens import SUSPENDED
from stages.text.language import find_words
from stages.text.paper_files import HTML, PANDOC_FORMATS, ZIP_SUFFIXES, decode

SECONDS = 60  # per file
MEGABYTES = 1024  # of memory per file
INLINE_FORMULAS = Path(__file__).with_name("inline_formulas.lua")
# Inside "satel- lite", but not in "pre- and post-processing", "micro- as well as macro-scale" and
# "long- medium- and short-term".
NOT_IN_WORDS = SUSPENDED | frozenset("as but rather than bis".split())
OLD_LINE_END = re.compile(
    rf"(?<=[^\W\d_]-) (?=[a-z])(?!(?:{'|'.join(sorted(NOT_IN_WORDS))})(?![\w-])|[^\W\d_]+-\s)"
)
LINE_CHARACTERS = 90  # about a line of a PDF: papers are held out by their number of lines
# A file with fewer is an empty page or a form; a table's cell with fewer, data.
MIN_PROSE_WORDS = 20
# YAML or TOML. Text may start with a rule of hyphens, but no text with a key right behind it.
FRONT_MATTER = re.compile(
    r"\A\s*(---(?=[ \t]*\n(?:#[^\n]*\n)*[\"']?[\w.-]+[\"']?[ \t]*:\s)|\+\+\+)[ \t]*\n"
    r"(.*?\n)\1[ \t]*\n",
    re.DOTALL,
)
# "[@smith2019, p. 3; -@jones]" of pandoc, Quarto and R Markdown; not the text of a link.
MARKDOWN_CITATION = re.compile(r" ?\[[^\[\]@]{0,80}(?<!\w)@\w[^\[\]]{0,300}\](?![(\[:{])")
# The encoding that an HTML or LaTeX file declares.
ENCODING = re.compile(rb"(?:charset|encoding)=[\"']?([\w-]+)|\[([\w-]+)\]\{inputenc\}")
BLANKS = " \u00a0"
# What LaTeX's \cref and \autoref write before the number, by the label: "fig:map".
REFERENCES = {
    "sec": "Section",
    "app": "Appendix",
    "fig": "Figure",
    "tab": "Table",
    "eq": "Equation",
    "alg": "Algorithm",
}
EMPTY_PARENTHESES = re.compile(rf"[{BLANKS}]\(\)")  # of a reference or citation without text
MISSING_FILE = re.compile(r"Could not load include file (.+) at line")
# Commands that pandoc doesn't know, whose text it would leave out: revisions, a paper's first
# letter, chemistry, degrees, CVPR's abbreviations.
LATEX_COMMANDS = {
    "added": r"\newcommand{\added}[2][]{#2}",
    "replaced": r"\newcommand{\replaced}[3][]{#2}",
    "revised": r"\newcommand{\revised}[2][]{#2}",
    "rev": r"\newcommand{\rev}[2][]{#2}",
    "highlight": r"\newcommand{\highlight}[2][]{#2}",
    "IEEEPARstart": r"\newcommand{\IEEEPARstart}[2]{#1#2}",
    "ce": r"\newcommand{\ce}[1]{#1}",
    "chem": r"\newcommand{\chem}[1]{\ensuremath{\mathrm{#1}}}",
    "textpercent": r"\newcommand{\textpercent}{\%}",
    "degree": r"\newcommand{\degree}{\ensuremath{^\circ}}",
    "eg": r"\newcommand{\eg}{e.g.\xspace}",
    "ie": r"\newcommand{\ie}{i.e.\xspace}",
    "etal": r"\newcommand{\etal}{et al.\xspace}",
    "onedot": r"\newcommand{\onedot}{.\xspace}",
    # The title of ICML, and the abstracts of others, stand over both columns.
    "twocolumn": r"\newcommand{\twocolumn}[1][]{#1}",
    "icmltitle": r"\newcommand{\icmltitle}[1]{\title{#1}}",
    "IEEEtitleabstractindextext": r"\newcommand{\IEEEtitleabstractindextext}[1]{#1}",
    # \abstract may stand before \begin{document}, where pandoc reads only the commands of a title
    # page; of their text only a footnote may have paragraphs.
    "paperabstract": r"\newcommand{\paperabstract}[1]{\extratitle{\footnote{#1}}}",
}
# Formulas \(x\) and \[x\] and tables of LaTeX, as Nougat, Mathpix and olmOCR write into Markdown.
MARKDOWN_FORMULA = re.compile(
    r"(?<!\\)\\\(((?:\\[^()\n]|[^\\\n])+)\\\)|"
    r"^ *\\\[((?:\\[^\[\]\n]|[^\\\n]|\n(?!\n))+)\\\] *$",
    re.MULTILINE,
)
# Converters that escape each sign of Markdown write prose as \(see Smith et al\., 2019\).
TEX_COMMAND = re.compile(r"\\[A-Za-z{|,;:% \\]")
PROSE_INSIDE = re.compile(r"\\[-+.]|[A-Za-z]{2},? | [A-Za-z]{2}")
# Of a table without its end, as of one longer than Nougat's limit, the next one is no part.
MARKDOWN_TABLE = re.compile(
    r"\\begin\{(table\*?|tabular)\}(?:(?!\\begin\{\1\}).)*?\\end\{\1\}", re.DOTALL
)
# Displayed formulas that pages for MathJax and notebooks write without dollars or brackets around
# them. What the first two groups match is a formula already, or code. None has empty lines.
BARE_FORMULA = re.compile(
    r"(\$\$(?:(?!\$\$|\n\s*\n).)+\$\$|\\\[(?:(?!\\[\[\]]|\n\s*\n).)+\\\])|"
    r"((?:\$|\\[\[(]|`|/x-tex[^<>]*>)\s*)?"
    r"\\begin\{(equation|align|alignat|flalign|gather|multline|eqnarray|subequations)(\*?)\}"
    r"(?:(?!\\begin\{\3\*?\}|\n\s*\n|`|</?(?!br\b)[a-z]).)*?\\end\{\3\4\}",
    re.DOTALL | re.IGNORECASE,
)
# Environments that pandoc doesn't know: it would read their arguments as text, and lose captions.
LATEX_ENVIRONMENTS = r"""
\newenvironment{multicols}[1]{\par}{\par}
\newenvironment{spacing}[1]{\par}{\par}
\newenvironment{adjustwidth}[2]{\par}{\par}
\newenvironment{adjustbox}[1]{}{}
\newenvironment{wrapfigure}[3][]{\begin{figure}}{\end{figure}}
\newenvironment{wraptable}[3][]{\begin{table}}{\end{table}}
\newenvironment{SCfigure}[1][]{\begin{figure}}{\end{figure}}
\newenvironment{teaserfigure}{\begin{figure}}{\end{figure}}
\newenvironment{sidewaysfigure}{\begin{figure}}{\end{figure}}
\newenvironment{sidewaystable}{\begin{table}}{\end{table}}
\newenvironment{IEEEeqnarray}[1]{\begin{align}}{\end{align}}
"""
# LaTeX's own form of \newcommand since 2020: \NewDocumentCommand{\two}{O{x} m}{...}.
DOCUMENT_COMMAND = re.compile(
    r"\\(?:New|Renew|Provide|Declare)DocumentCommand\s*\{?\s*(\\[A-Za-z]+)\s*\}?"
    r"\s*\{\s*(?:\+?(o)|\+?O\s*\{([^{}]*)\})?((?:\s*\+?m)*)\s*\}"
)
STARRED = re.compile(r"(\\(?:begin|end){(?:multicols|sideways\w+|IEEEeqnarray))\*}")
ACM_CONCEPTS = re.compile(r"\\begin\{CCSXML\}.*?\\end\{CCSXML\}", re.DOTALL)  # XML
# What stands around the text of a page. Of a page with <main>, pandoc reads no more than that.
TAGS_AROUND = "script|style|nav|footer|aside|button|select|noscript|template|iframe"
AROUND_TEXT = re.compile(
    rf"<!--.*?-->|<({TAGS_AROUND})(?![\w-]).*?</\1\s*>", re.DOTALL | re.IGNORECASE
)
# In XHTML, a tag may close itself; in HTML, the slash means nothing.
SELF_CLOSING = re.compile(rf"<({TAGS_AROUND})(?![\w-])[^<>]*/>", re.IGNORECASE)
TABLE_OR_TAG = re.compile(r"<table(?![\w-]).*?</table\s*>|<[^>]+>", re.DOTALL | re.IGNORECASE)


def read(path: Path) -> tuple[list[str], str]:
    """Return the normalized lines of a file with a suffix of `PANDOC_FORMATS`, and what is missing.

    An unreadable file has no lines; the second value is then the reason.
    """
    content = path.read_bytes()
    if not content.strip():
        return [], "empty file"
    suffix = path.suffix.lower()
    if suffix not in ZIP_SUFFIXES:
        # pandoc would take other encodings for Latin-1.
        text, reason = _decode_as_declared(content)
        if reason:
            return [], reason
        if suffix in (".md", ".markdown"):
            text = MARKDOWN_TABLE.sub("", FRONT_MATTER.sub(_title_and_abstract, text))
            text = MARKDOWN_CITATION.sub("", text)
            text = MARKDOWN_FORMULA.sub(_with_dollars, BARE_FORMULA.sub(_as_display, text))
        elif suffix == ".tex":
            text = _define_commands(text)
        elif PANDOC_FORMATS[suffix] == HTML:
            text = SELF_CLOSING.sub("", text) if suffix == ".xhtml" else text
            text = BARE_FORMULA.sub(_as_display, AROUND_TEXT.sub("", text))
        content = text.encode()
    # In the sandbox, a file cannot make pandoc read other files.
    command = [pypandoc.get_pandoc_path(), "+RTS", f"-M{MEGABYTES}m", "-RTS", "--sandbox"]
    command += ["--from", PANDOC_FORMATS[suffix], "--to", "json"]
    command.append(f"--lua-filter={INLINE_FORMULAS}")
    try:
        done = subprocess.run(command, input=content, capture_output=True, timeout=SECONDS)
    except subprocess.TimeoutExpired:
        return [], f"took more than {SECONDS} s"
    message = done.stderr.decode(errors="replace")
    if done.returncode:
        return [], f"broken: {' '.join(message.split())}"[:200]
    try:
        document = json.loads(done.stdout)
        paragraphs = list(map(normalize, _document_texts(document["meta"], document["blocks"])))
    except RecursionError:
        return [], "nested too deeply"
    lines = [line for paragraph in paragraphs for line in wrap(paragraph)]
    if len(find_words(" ".join(lines))) < MIN_PROSE_WORDS:
        return [], f"fewer than {MIN_PROSE_WORDS} words"
    missing = MISSING_FILE.findall(message)
    return lines, f"without {', '.join(missing)}"[:200] if missing else ""


def _title_and_abstract(front_matter: re.Match) -> str:
    """Return the title, subtitle and abstract of a front matter as paragraphs."""
    marks, source = front_matter.groups()
    try:
        fields = yaml.load(source, yaml.BaseLoader) if marks == "---" else tomllib.loads(source)
    except (yaml.YAMLError, tomllib.TOMLDecodeError):
        return ""
    texts = [fields.get(key) for key in ("title", "subtitle", "abstract")]
    return "".join(f"{text}\n\n" for text in texts if isinstance(text, str))


def _as_display(formula: re.Match) -> str:
    """Return a stand-in for a `BARE_FORMULA`: pandoc reads a displayed formula, to be left out."""
    return formula[0] if formula[1] or formula[2] else "$$x$$"


def _with_dollars(formula: re.Match) -> str:
    """Return a formula in dollars; prose in escaped parentheses or brackets stays as it is."""
    inline, display = formula.groups()
    tex = (inline or display).strip()
    is_tex = re.search(r"(?<!\\)[\^_=]", tex) or (
        inline and not re.search(r"[A-Za-z]{2}|[\\\s]", tex)
    )
    dollars = "$" if inline else "$$"
    if TEX_COMMAND.search(tex) or (is_tex and not PROSE_INSIDE.search(tex)):
        return f"{dollars}{tex}{dollars}"
    return formula[0]


def _define_commands(text: str) -> str:
    """Return a LaTeX file behind `LATEX_ENVIRONMENTS` and those `LATEX_COMMANDS` it lacks."""
    definitions = LATEX_ENVIRONMENTS
    for name, definition in LATEX_COMMANDS.items():
        command = r"\\(?:(?:re)?newcommand|providecommand|def)\*?\s*\{?\\" + name
        if not re.search(rf"{command}\b", text):
            definitions += definition
    text = re.sub(r"^\\degree(?={\w)", r"\\thesisdegree", text, flags=re.MULTILINE)  # a thesis
    text = DOCUMENT_COMMAND.sub(_newcommand, text)
    text = STARRED.sub(r"\1}", text)
    text = ACM_CONCEPTS.sub("", text)
    # pandoc leaves out the title and the abstract of MDPI and Springer.
    text = text.replace(r"\Title{", r"\title{").replace(r"\abstract{", r"\paperabstract{")
    return definitions + text


def _newcommand(match: re.Match) -> str:
    """Return the start of a \\NewDocumentCommand as that of a \\newcommand."""
    name, optional, default, arguments = match.groups()
    first = f"[{default or ''}]" if optional or default is not None else ""
    return rf"\newcommand{{{name}}}[{arguments.count('m') + bool(first)}]{first}"


def wrap(paragraph: str) -> list[str]:
    """Return a paragraph as lines of about the length of a PDF's; old line ends in words stay."""
    lines: list[str] = []
    for part in OLD_LINE_END.split(paragraph):
        lines += textwrap.wrap(
            part, LINE_CHARACTERS, break_long_words=False, break_on_hyphens=False
        )
    return lines


def _decode_as_declared(content: bytes) -> tuple[str, str]:
    """Return the result of `decode`, or the text in the encoding that the file declares."""
    text, reason = decode(content)
    declared = ENCODING.search(content)
    if reason and declared:
        try:
            return content.decode((declared[1] or declared[2]).decode()), ""
        except (LookupError, UnicodeDecodeError):
            pass
    return text, reason


# pandoc's syntax tree: https://hackage.haskell.org/package/pandoc-types/docs/Text-Pandoc-Definition.html


def _document_texts(meta: dict[str, Any], blocks: list[dict]) -> Iterator[str]:
    """Yield the title and subtitle, the paragraphs of the abstract and those of the text."""
    for key in ("title", "subtitle", "abstract", "extratitle"):
        value = meta.get(key, {})
        if value.get("t") == "MetaInlines":
            yield from _block_texts([{"t": "Para", "c": value["c"]}])
        elif value.get("t") == "MetaBlocks":
            yield from _block_texts(value["c"])
    yield from _block_texts(blocks)


def _block_texts(blocks: list[dict]) -> Iterator[str]:
    """Yield headings and paragraphs; a footnote follows its paragraph."""
    for block in blocks:
        yield from _texts_of(block)


def _texts_of(block: dict) -> Iterator[str]:
    """Yield the texts of `_block_texts` of one block."""
    match block:
        case {"t": "Para" | "Plain", "c": inlines} | {"t": "Header", "c": [_, _, inlines]}:
            notes: list[dict] = []
            text = EMPTY_PARENTHESES.sub("", _inline_text(inlines, notes))
            yield from text.split("\n")
            yield from _block_texts(notes)
        case {"t": "LineBlock", "c": lines}:
            yield from _block_texts([{"t": "Para", "c": line} for line in lines])
        case {"t": "Div", "c": [[_, classes, _], inner]}:
            if "thebibliography" in classes:  # LaTeX writes its heading itself
                yield "References"
            yield from _block_texts(inner)
        case {"t": "BlockQuote", "c": inner}:
            yield from _block_texts(inner)
        case {"t": "BulletList", "c": items} | {"t": "OrderedList", "c": [_, items]}:
            for item in items:
                yield from _block_texts(item)
        case {"t": "DefinitionList", "c": entries}:
            for term, definitions in entries:
                yield from _block_texts([{"t": "Para", "c": term}, *sum(definitions, [])])
        case {"t": "RawBlock", "c": ["html", page]}:  # in Markdown
            yield html.unescape(TABLE_OR_TAG.sub(" ", AROUND_TEXT.sub("", page)))
        case {"t": "Figure", "c": [_, [_, caption], _]}:
            yield from _block_texts(caption)
        case {"t": "Table", "c": [_, [_, caption], _, [_, head], bodies, [_, foot]]}:
            yield from _block_texts(caption)
            body = [row for _, _, *parts in bodies for rows in parts for row in rows]
            yield from _prose_cells([*head, *body, *foot])


def _prose_cells(rows: list[list]) -> Iterator[str]:
    """Yield the texts in cells of `MIN_PROSE_WORDS` or more: tables also lay out a page."""
    for _, cells in rows:
        for _, _, _, _, blocks in cells:
            texts = list(_block_texts(blocks))
            if len(find_words(" ".join(texts))) >= MIN_PROSE_WORDS:
                yield from texts


def _inline_text(inlines: list[dict], notes: list[dict]) -> str:
    """Return the text of a paragraph, with its line breaks; append its footnotes to `notes`."""
    text = ""
    for inline in inlines:
        match inline:
            case {"t": "Str", "c": word}:
                text += word
            case {"t": "Space" | "SoftBreak"}:
                text += " "
            case {"t": "LineBreak"}:
                text += "\n"
            case {"t": "Code", "c": [_, code]}:
                text += code.replace("\n", " ")
            case {"t": "Quoted", "c": [_, inner]}:
                text += f"“{_inline_text(inner, notes)}”"
            # In arXiv's HTML, a footnote is its mark and, in a span, its mark, number and text.
            case {"t": "Span", "c": [[_, ["ltx_note", *_], _], [{"t": "Superscript"}, *inner]]}:
                text = text.rstrip(BLANKS) + _inline_text(inner, notes)
            case {"t": "Span", "c": [[_, ["ltx_note_content"], _], [_, *inner]]}:
                notes.append({"t": "Para", "c": inner})
            case {"t": "Span", "c": [[_, ["ltx_tag", "ltx_tag_note" | "ltx_tag_item"], _], _]}:
                pass
            # In a page that was saved after MathJax 2 ran, a formula is drawn, and again as MathML.
            case {"t": "Span", "c": [[_, ["MathJax", *_], _], [drawn, *formula]]}:
                text += _inline_text(formula or [drawn], notes)
            case {"t": "Link", "c": [[_, _, [[_, kind], ["reference", label]]], inner, _]}:
                reference = _reference(kind, label, _inline_text(inner, notes))
                text = text + reference if reference else text.rstrip(BLANKS)
            case {"t": "Link" | "Span", "c": [_, inner, *_]}:
                text += _inline_text(inner, notes)
            case {"t": "Cite", "c": [[{"citationMode": mode}, *_], inner]}:
                citation = _inline_text(inner, notes) or _citation(mode["t"], text)
                text = text + citation if citation else text.rstrip(BLANKS)
            case {"t": "Note", "c": blocks}:
                notes += blocks
                text = text.rstrip(BLANKS)
            case {"t": "RawInline" | "Image" | "Math"}:  # inline formulas are text by now
                pass
            case {"c": inner}:  # Emph, Strong, Superscript, ...
                text += _inline_text(inner, notes)
    return text


def _citation(mode: str, before: str) -> str:
    """Return what stands for a citation of LaTeX after the text `before`; "" if nothing has to.

    pandoc doesn't know its text. Only that of `\\citet` is a part of the sentence.
    """
    if mode != "AuthorInText":
        return ""
    return "the authors" if before[-2:].strip(" .") else "The authors"


def _reference(kind: str, label: str, number: str) -> str:
    """Return what LaTeX prints for a reference: "3", or "Section 3" for `\\cref`.

    pandoc knows the numbers of sections, figures and tables; its text of another is "[label]".
    """
    word = REFERENCES.get(label.partition(":")[0], "") if kind.lower() == "ref+label" else ""
    number = "" if number == f"[{label}]" else number
    return f"{word} {number}".strip()
