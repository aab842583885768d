"""Find the descriptions in a language model's answer.

Models wrap what they were asked for: in thoughts, JSON, tables, lists, labels, quotes and bold
type, with words before and after it. Such wrapping goes. A line that is no description is refused.
"""

import ast
import html
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator
from statistics import mean
from typing import Any, NamedTuple

from pydantic_core import from_json

from stages.text.class_words import ClassLexicon
from stages.text.duplicates import trigram_similarity
from stages.text.retrieval import Passage
from stages.text.sentences import split_sentences
from stages.text.writers.cleaning import clean_sentence
from stages.text.writers.instructions import ANSWER_HEADING, few_shot_examples
from stages.text.writers.interface import Candidate

# Why a line is refused here. Its other faults are found by `stages.text.checks`.
TALK = "talk"  # it speaks of the descriptions or the task
CUT = "cut"  # the limit of tokens has cut it off
MARKUP = "markup"
NO_HEADING = "no_heading"  # above the descriptions of a chain of thought
COPY = "copy"  # of an example or of a sentence of a passage

MIN_ROWS = 3  # lines without markers that are descriptions; fewer may be prose
COPY_SIMILARITY = 0.8  # Jaccard similarity of the word trigrams

THOUGHT = (
    r"(?:\w+[:_-])?(?:think(?:ing)?|thoughts?|reason(?:ing)?|reflection|analysis|scratchpad|"
    r"monologue|details)(?:[_-]\w+)?"
)
# The tags of DeepSeek and Qwen, Mistral, Kimi, gpt-oss and Gemma. Some servers remove those of
# gpt-oss and leave the words: "analysisWe need ...assistantfinalPale ...".
THOUGHT_START = re.compile(
    rf"<\s*{THOUGHT}\b[^<>/]*>|\[{THOUGHT}\]|◁{THOUGHT}▷|<\|begin_of_thought\|>|"
    r"<\|channel\|>(?:analysis|commentary)\b[^<]*<\|message\|>|<\|channel>thought|"
    r"\A(?-i:analysis(?=\s*[A-Z]))",
    re.I,
)
THOUGHT_END = re.compile(
    rf"<\s*/\s*{THOUGHT}\s*>|\[/{THOUGHT}\]|◁/{THOUGHT}▷|<\|end_of_thought\|>|"
    r"<\|channel\|>final\b[^<]*<\|message\|>|<channel\|>|assistant\s*final",
    re.I,
)
# Thoughts in a tag that servers don't know (<思考>): a block before at least two other lines.
BLOCK = re.compile(
    r"\A\s*<([^\s<>/]+)(?=[\s/>])[^<>]*>[^\S\n]*\n[^<]*\n[^\S\n]*</\1\s*>[^\S\n]*\n"
    r"(?=\s*\S[^\n]*\n\s*\S)(?!.*<\1\b)",
    re.S,
)
THOUGHT_TAG = re.compile(
    r"plan(?:ning)?|draft|notes?|scratch|denken|思考|思维|推理|分析|考え", re.I
)
# Where a model that does not stop writes the next request.
NEXT_TURN = re.compile(
    r"<\|im_start\|>(?!assistant)|<\|start\|>user|<start_of_turn>user|\[INST\]|"
    r"^(?:#+ *(?:instruction|user|human|input)\b|(?:user|human|instruction|question):)",
    re.I | re.M,
)
# Tokens of a chat template that a server did not remove, and tags around the answer or a line.
FRAME = re.compile(
    r"<\|[\w ]+\|>|</?s>|\[/?INST\]|<(?:start|end)_of_turn>|"
    r"</?(?:answer|output|response|description|item|prompt|caption|sentence)(?![a-z])[^<>]*>",
    re.I,
)
HTML_ITEM = re.compile(r"<li(?: [^<>]*)?>", re.I)
# Of HTML within a sentence, if what follows it doesn't name the class by itself.
BREAK_INSIDE = re.compile(r"(?<![\s.!?:;>]) ?<br ?/?> ?(?=([a-z][^\n<]*))")
HTML_BREAK = re.compile(r"</?(?:p|br|div|ul|ol|li)(?:[ /][^<>]*)?>", re.I)
FENCE = re.compile(r"```\w*\n(.*?)(?:```|\Z)", re.S)
HEADING_LINE = re.compile(
    rf"^(?![^\S\n]*</)[^\w\n]*{ANSWER_HEADING}(?: (?:of|for) [^\n.]{{1,60}}| \([^()\n]*\))?"
    r"[^\w\n]*$",
    re.I | re.M,
)
HEADING_IN_LINE = re.compile(rf"^[^\w\n]*{ANSWER_HEADING}[*_]*:[*_ ]*(?=\w)", re.I | re.M)
# "Final answer:", "Here are the descriptions:", "Step 2: Descriptions"
ANSWER_LINE = re.compile(
    r"^(?![^\S\n]*</)[^\w\n]*(?:'?\w[\w']*[.:)]? ){0,6}"
    r"(?:answer|descriptions|output|response|results?)[^\w\n]*$",
    re.I | re.M,
)
MARKDOWN_HEADING = re.compile(r"#+\s+\D")
JSON_START = re.compile(r"(?=[\[{]\s*[\"\[{])")
PYTHON_START = re.compile(r"[\[{]\s*(?:[\[{]\s*)?'")
TRAILING_COMMA = re.compile(r",(?=\s*[\]}])")
# The keys whose values are descriptions: text, descriptions, prompt_2, 3, ...
DESCRIPTION_KEY = re.compile(
    r"(\w*descriptions?|\w*captions?|texts?|prompts?|sentences?|\d+)[ _-]*\d*", re.I
)
# The keys whose values are none. Those of other keys are taken where no key is known.
OTHER_KEY = re.compile(
    r"thought|reason|rational|analysis|step(?!pe)|plan(?!t)|note|comment|explan|observ|feature|"
    r"reject|bad|draft|task|request|intro|summary|message|error",
    re.I,
)
JSON_KEY = re.compile(r"[\W_]*[^\W_]\w*\"\s*:")  # of broken JSON
EMPHASIS = re.compile(r"(?<!\w)(\*\*|__|\*|_|`)(?=\S)((?:(?!\1).)+)(?<=\S)\1(?!\w)")
QUOTED_COMMA = re.compile(r"(?<=[\"”])\s*[,;]\s*(?=[\"“])")  # between descriptions on one line
QUOTES = "\"'“”„‟‘’′«»‹›`「」『』《》❝❞"
MARKERS = [
    r"(?:[-*+>\\–—]+|\\item)\s+",
    rf"[^\w\s\x00-\x7f{QUOTES}–—]+\s*",  # bullets and emoji
    r"\[[ xX]?\]\s+",  # of a list of tasks
    r"[❶-➓]\s*",
    r"No\.? ?\d{1,3}[^\w\s]*\s+",
    r"[\[(#]*\d{1,3}(?: ?(?:/|of) ?\d{1,3})?\\?[.):\]、]+\s*(?=\D)",  # "1. ", "(2) ", "3 of 6: "
    # "4 - ", "4- " but not "10- to 20-meter", "4 . ", "#5 Pale"
    r"#?\d{1,3}(?:\s*[-–—]\s+(?!(?:to|or|and)\b)|\s+\.\s+|\t\s*|\s+(?=[A-Z]))",
    r"\d{1,3}[^\w\s\x00-\x7f]+\s+",  # a digit on a key
    r"[\[(]?(?:[a-zA-Z]|[ivxIVX]{2,5})[.):\]]+\s+",  # "a) ", "iv. "
]
MARKER = re.compile("|".join(MARKERS))
# "Description 1: ", "Option B - ", "Caption: ", "First, "
LABEL = re.compile(
    r"(?:(?:image|aerial|scene) )?(?:description|prompt|caption|sentence|image|scene|view|option|"
    r"excerpt|variant|variation|version|example|candidate|answer|item|number|no\.?)\s*"
    r"(?:#?\s*(?:\d+|[a-z])\s*)?(?::|\)|\.\s|[-–—]\s)\s*|"
    r"(?:first|second|third|fourth|fifth|sixth|next|last)(?:ly)?,\s+",
    re.I,
)
ITEM_INSIDE = re.compile(r"\s\(\d{1,2}\)\s")  # of a list on one line
WORD_COUNT = re.compile(r"(?<![\s–—-])[\s–—-]*[\[(]?\b\d+ words[\])]?$")
# "[Golden dunes] ", "Golden dunes: ", "In summer - " before a capital letter
TITLE = re.compile(r"\[[^\[\]]{1,40}\]\s+|[^:]{1,40}?(?::\s*(?=[^\d\s])| [-–—] +(?=[A-Z]))")
MAX_TITLE_WORDS = 4  # of an item that is the title of the line below it
TABLE_RULE = re.compile(r"(?=.*\|)(?=.*--)[|\s:+-]+")
# What a description rests on, where a model cites it: up to a comma that no other number follows.
SOURCE = (
    r"(?:as|according|based|consistent|per)(?: \w+){0,5} "
    r"(?:excerpts?|(?<= in | on | to | by |\bper )the (?:passage|paper)s?)\b"
)
ATTRIBUTION = re.compile(
    rf"^{SOURCE}(?:[\d\s,&]|and)*, |"
    rf"(?<=[.!?]) {SOURCE}[^.!?]*|[,;]? {SOURCE}(?:[^.!?,]|,(?= ?(?:and )?\d))*|"
    r" ?[(\[][^()\[\]]{0,40}\bexcerpts?\b[^()\[\]]{0,40}[)\]]|(?<=\S) ?\[[^\[\]]*\]",
    re.I,
)
# The start of a sentence whose subject another sentence names, or the image is.
GOES_ON = re.compile(r"(its?|they|th(is|ese|ere)|the (image|picture|photo|scene))\b", re.I)
# Lines before and after the descriptions, and thoughts without tags. Lines with "I", "you",
# "please" or "should" are found by `stages.text.checks`.
TALK_WORDS = re.compile(
    r"^(sure|certainly|absolutely|of course|okay|ok|great[!,]|great question|alright|got it|"
    r"understood|no problem|happy to|here (is|are)|here's|below (is|are)|the (following|above)|"
    r"(these|those|this is|this (set|list|selection|collection|request))|hope|feel free|thanks|"
    r"want|would|each (one|captures|shows|describes|line)|each of (these|them)|"
    r"all (of )?(these|them|lines)|all (two|three|four|five|six|seven|eight|nine|ten)|together|"
    r"overall|collectively|end of|notes?:|total|sources?:|title:|land cover:|key features|"
    r"(in )?(summary|conclusion)|final answer|unable to|as an? \w+ (in|model))(?!\w)|"
    r"\b((image|picture|scene|option|view|passage) \d+|descriptions?|captions?|sentences?|"
    r"word counts?|excerpts?|"
    r"views|scenes|images|pictures|photo(graph)?s|(all|each|every|different|other) seasons?|"
    r"as requested|land cover class|the class is|other classes|the user|hmm|wait|okay|maybe|"
    r"perhaps|probably|could be|would be|might be|let's|not sure|drafts?|another idea|"
    r"thinking about|has to|have to|need to)\b",
    re.I,
)


class Answer(NamedTuple):
    """What a model answered to one request."""

    text: str
    is_cut: bool  # by the limit of tokens


class Line(NamedTuple):
    """A line of an answer, without its marker, label, quotes and emphasis."""

    text: str
    refusal: str  # why it is no description; "" if it may be one
    is_item: bool = False  # of a list or a table, or in quotes
    is_bold: bool = False
    is_alone: bool = False  # between blank lines
    indent: int = 0  # the number of blanks before it


def find_candidates(
    answers: list[Answer],
    label: str,
    technique: str,
    classes: ClassLexicon,
    passages: list[Passage],
    counts: Counter[str],
) -> list[Candidate]:
    """Return the descriptions in a model's answers, and the lines that are refused.

    Args:
        answers: to the requests of one attempt.
        label: the class that was asked for.
        technique: of a chain of thought only what follows the heading counts.
        classes: the words of all classes.
        passages: that the requests quoted.
        counts: to which are added the number of `answers`, and of those in JSON (`answers_json`),
            cut off by the limit of tokens (`answers_cut`), and without text other than thoughts
            (`answers_empty`).
    """
    sources = few_shot_examples(label, classes) if technique.startswith("few_shot") else []
    sources += [part for passage in passages for part in split_sentences(passage["text"])]
    candidates = []
    for answer in answers:
        text = remove_thoughts(answer.text)
        strings = find_json_strings(text)
        counts["answers"] += 1
        counts["answers_json"] += bool(strings)
        counts["answers_cut"] += answer.is_cut
        counts["answers_empty"] += not text.strip()
        is_cut = answer.is_cut
        if strings:
            text = "\n\n".join(strings)
            is_cut = False  # a string that was cut off is not among them
        elif technique.startswith("chain_of_thought"):
            in_lines = "".join(HEADING_IN_LINE.split(text)[1:])  # before each line, or the first
            below = text_below(HEADING_LINE, text, label, classes) or in_lines
            below = below or text_below(ANSWER_LINE, text, label, classes)
            if text.strip() and not below:
                first_line = text.strip().splitlines()[0]
                candidates.append(Candidate(first_line, passages, CUT if is_cut else NO_HEADING))
            text = below
        else:
            below = text_below(ANSWER_LINE, text, label, classes)
            text = below if label in classes.count_class_names(below) else text
        lines = read_lines(text, label, classes, is_cut)
        has_rows = sum(not line.refusal and not line.is_alone for line in lines) >= MIN_ROWS
        for line in lines:
            sentence = line.text
            if not line.refusal and (line.is_item or strings or has_rows):
                sentence = first_description(sentence, label, classes)
            sentence = sentence if line.refusal else clean_sentence(sentence)
            refusal = line.refusal or find_copy(sentence, sources)
            candidates.append(Candidate(sentence, passages, refusal))
    return candidates


def first_description(text: str, label: str, classes: ClassLexicon) -> str:
    """Return the first sentence that names the class and is no title; the text if none does."""
    for sentence in split_sentences(text):
        if may_describe(sentence, label, classes):
            return sentence
    return text


def may_describe(text: str, label: str, classes: ClassLexicon) -> bool:
    """Whether a text names the class and is no title."""
    return len(text.split()) > MAX_TITLE_WORDS and label in classes.count_class_names(text)


def find_copy(text: str, sources: list[str]) -> str:
    """Return `COPY` where a text repeats one of the texts that the model was shown, else ""."""
    is_copy = any(trigram_similarity(text, source) >= COPY_SIMILARITY for source in sources)
    return COPY if is_copy else ""


def remove_thoughts(text: str) -> str:
    """Return an answer without its thoughts, the tokens of a chat template and a next turn.

    Thoughts without an end reach to the end of the answer. Those without a start, which many chat
    templates write into the request, reach from its beginning. Full-width and other variants of
    characters become the plain ones, and invisible characters go.
    """
    text = unicodedata.normalize("NFKC", html.unescape(text))
    text = "".join(sign for sign in text if sign.isspace() or unicodedata.category(sign)[0] != "C")
    while start := THOUGHT_START.search(text):
        end = THOUGHT_END.search(text, start.end())
        text = text[: start.start()] + (text[end.end() :] if end else "")
    ends = list(THOUGHT_END.finditer(text))
    if ends:
        text = text[ends[-1].end() :]
    block = BLOCK.match(text)
    if block and THOUGHT_TAG.fullmatch(block[1]):
        text = text[block.end() :]
    return FRAME.sub(" ", NEXT_TURN.split(text, maxsplit=1)[0])


def opening_thought(request: str) -> str:
    """Return the tag of thoughts that a request, written by the chat template, ends in; else ""."""
    starts = list(THOUGHT_START.finditer(request.rstrip()))
    return starts[-1][0] if starts and starts[-1].end() == len(request.rstrip()) else ""


def text_below(heading: re.Pattern, text: str, label: str, classes: ClassLexicon) -> str:
    """Return what follows the heading of the descriptions; "" where no line is a heading.

    It is the last heading whose lines name the class at least `MIN_ROWS` times, else the last one
    whose lines name it at all, else the last one with lines: closing words look like headings, too.
    """
    headings = list(heading.finditer(text))
    ends = [found.start() for found in headings[1:]] + [len(text)]
    starts = [found.end() for found in headings]
    filled = [
        (start, text[start:end]) for start, end in zip(starts, ends) if text[start:end].strip()
    ]
    names = [(start, classes.count_class_names(below).get(label, 0)) for start, below in filled]
    for least in (MIN_ROWS, 1, 0):
        for start, count in reversed(names):
            if count >= least:
                return text[start:].strip()
    return ""


def find_json_strings(text: str) -> list[str]:
    """Return the descriptions in the JSON values of an answer; none where it holds no JSON.

    Of a value that is cut off the complete strings count.
    """
    text = TRAILING_COMMA.sub("", rewrite_python(text))
    values = []
    position = 0
    while start := JSON_START.search(text, position):
        try:
            value, position = json.JSONDecoder().raw_decode(text, start.start())
        except (ValueError, RecursionError):
            try:
                value, position = from_json(text[start.start() :], allow_partial=True), len(text)
            except ValueError:
                break
        values.append(value)
    strings = [string for value in values for string in description_strings(value)]
    if not strings:
        strings = [
            string for value in values for string in description_strings(value, any_key=True)
        ]
    # Some strings are JSON again.
    return [inner for string in strings for inner in find_json_strings(string) or [string]]


def rewrite_python(text: str) -> str:
    """Return a text with JSON in place of the list or dict of Python that it holds, if any."""
    start = PYTHON_START.search(text)
    if not start:
        return text
    end = max(text.rfind("]"), text.rfind("}")) + 1
    try:
        value = ast.literal_eval(text[start.start() : end])
        return text[: start.start()] + json.dumps(value) + text[end:]
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return text


def description_strings(
    value: Any, is_description: bool = True, any_key: bool = False
) -> Iterator[str]:
    """Yield the strings of a JSON value that are descriptions, as its keys tell.

    Args:
        value: of JSON.
        is_description: whether a string that is the value itself, or an item of it, is one.
        any_key: whether strings under keys count that are not known.
    """
    if isinstance(value, str) and is_description:
        yield value
    elif isinstance(value, list):
        for item in value:
            yield from description_strings(item, is_description, any_key)
    elif isinstance(value, dict):
        for key, item in value.items():
            is_known = DESCRIPTION_KEY.fullmatch(key) is not None
            if is_known or not OTHER_KEY.search(key):
                yield from description_strings(item, is_known or any_key, any_key)


def read_lines(text: str, label: str, classes: ClassLexicon, is_cut: bool) -> list[Line]:
    """Return the lines of a text, with the reason why they are refused.

    Where there is a list, only its items are descriptions; where lines stand together, none that
    stands alone.
    """
    text = BREAK_INSIDE.sub(
        lambda found: found[0] if label in classes.count_class_names(found[1]) else " ", text
    )
    text = HTML_BREAK.sub("\n", HTML_ITEM.sub("\n- ", text))
    lines = split_lines("\n".join(FENCE.findall(text)) or text, label, classes)
    has_list = sum(line.is_item for line in lines) >= 2
    has_plain = not all(line.is_bold for line in lines)
    has_block = not all(line.is_alone for line in lines)
    read = []
    for line in lines:
        is_heading = has_list or (line.is_bold and has_plain) or (line.is_alone and has_block)
        is_talk = line.text.endswith(":") or TALK_WORDS.search(classes.hide_names(line.text, label))
        if not line.refusal and ((is_heading and not line.is_item) or is_talk):
            line = line._replace(refusal=TALK)
        read.append(line)
    if is_cut and read:
        read[-1] = read[-1]._replace(refusal=CUT)
    return refuse_odd_ends(refuse_sub_items(read, label, classes))


def refuse_sub_items(lines: list[Line], label: str, classes: ClassLexicon) -> list[Line]:
    """Refuse what a list below a description says about it, such as its color.

    The indents of a single item tell nothing: it may be the first one, without its indent. Items
    with fewer words than those below them are titles.
    """
    items = [
        line
        for line in lines
        if line.is_item and not line.refusal and may_describe(line.text, label, classes)
    ]
    if sum(line.indent == items[0].indent for line in items) < 2:
        return lines
    limit = items[0].indent + 1  # numbers that end in one column start in two
    above = [len(line.text.split()) for line in items if line.indent <= limit]
    below = [len(line.text.split()) for line in items if line.indent > limit]
    if below and mean(below) > mean(above):
        return lines
    return [line._replace(refusal=TALK) if line.indent > limit else line for line in lines]


def refuse_odd_ends(lines: list[Line]) -> list[Line]:
    """Refuse the first or last line where it alone has a full stop, or it alone has none.

    Such a line introduces the descriptions, closes them, or was cut off by a server that does not
    say so.
    """
    read = list(lines)
    ends = [
        (i, line.text.endswith((".", "!", "?"))) for i, line in enumerate(lines) if not line.refusal
    ]
    if len(ends) > 2:
        for (i, has_stop), others in ((ends[0], ends[1:]), (ends[-1], ends[:-1])):
            if all(other != has_stop for _, other in others):
                read[i] = lines[i]._replace(refusal=TALK if has_stop else CUT)
    return read


def split_lines(text: str, label: str, classes: ClassLexicon) -> list[Line]:
    """Split a text into lines; an item that goes on in the line below it is joined.

    Of a text of one line, each sentence is a line, unless one goes on about what another shows.
    """
    lines: list[Line] = []
    follows_item = False
    rows = [""]
    written = text.strip().splitlines()
    sentences = split_sentences(text.strip()) if len(written) == 1 else []
    if sentences and not any(map(GOES_ON.match, sentences)):
        written = sentences
    for row in written:
        is_quoted = row.strip().startswith(('"', "“", "”"))
        rows += QUOTED_COMMA.split(row) if is_quoted else [row]
    rows.append("")
    for above, raw, below in zip(rows, rows[1:], rows[2:]):
        if TABLE_RULE.fullmatch(raw) and lines:
            lines.pop()  # the header of the table
        line = read_line(raw, label, classes)
        line = line._replace(is_alone=not above.strip() and not below.strip())
        if not any(letter.isalpha() for letter in line.text):
            follows_item = False
            continue
        if follows_item and not line.is_item and not line.refusal:
            item = lines[-1]
            if len(item.text.split()) <= MAX_TITLE_WORDS:
                line = line._replace(is_item=True, indent=item.indent)
                lines.pop()
            elif line.text[0].islower() and not item.text.endswith((".", "!", "?", ":")):
                comma = "," if above.rstrip().endswith(",") else ""  # `read_line` removed it
                line = item._replace(text=f"{item.text}{comma} {line.text}")
                lines.pop()
        lines.append(line)
        follows_item = line.is_item
    return lines


def read_line(raw: str, label: str, classes: ClassLexicon) -> Line:
    """Remove the marker, label, quotes and emphasis of a line."""
    text = raw.strip()
    indent = len(raw.expandtabs()) - len(raw.expandtabs().lstrip())
    if MARKDOWN_HEADING.match(text):
        return Line(text.lstrip("# "), TALK)
    if JSON_KEY.match(text):
        return Line(text, MARKUP)
    is_item = text.startswith("|")
    if is_item:
        text = max(text.split("|"), key=len).strip()
    is_bold = text.startswith("**") and text.endswith("**")
    text = WORD_COUNT.sub("", EMPHASIS.sub(r"\2", text))
    rest = ""
    while rest != text:
        rest = text
        text = text.strip(" \t,;").rstrip("\\")  # of a line break in Markdown
        is_item |= len(text) > 1 and text[0] in QUOTES and text[-1] in QUOTES
        text = text.strip(QUOTES)
        for pattern in (MARKER, LABEL):
            if match := pattern.match(text):
                is_item = True
                text = text[match.end() :]
    text = ATTRIBUTION.sub("", text)
    title = TITLE.match(text)
    # A title adds nothing where the rest names the class by itself.
    is_title = title and not TALK_WORDS.search(title[0])
    if title and is_title and label in classes.count_class_names(text[title.end() :]):
        text = text[title.end() :]
    refusal = MARKUP if ITEM_INSIDE.search(text) else ""
    return Line(text, refusal, is_item, is_bold, indent=indent)
