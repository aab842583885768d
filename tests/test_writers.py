"""What a language model answers becomes prompts, or is refused: thoughts, JSON, lists, talk."""

import json
import time
from collections import Counter
from pathlib import Path

import pytest

from stages.params import load
from stages.text import checks
from stages.text.class_words import ClassLexicon, complete_words
from stages.text.writers.answers import Answer, find_candidates

PARAMS = load(Path(__file__).parents[1] / "params/demo.yaml")
CLASSES = ClassLexicon(complete_words(PARAMS.classes, PARAMS.prompt.words))
A = "pale desert with long tracks across it, dark and narrow"
B = "brown desert with a curved edge beside a road, wide and bright"
C = "yellow desert with scattered rocks along the border, green and rough"
THOUGHTS = (
    "Okay, so the class is Bare Land and it has to look like desert.\n"
    "A desert could be brown or pale, maybe with a road beside it, hmm.\n"
    "Thinking about texture, the desert would probably be rough or smooth, not sure which.\n"
    "Another idea is the season, so a desert in winter versus summer, perhaps both at on"
)
# Thoughts that are no worse than descriptions.
FINE = (
    "The desert is pale in summer on dry soil.\nA green desert with rough brown edges is another."
)
PLAIN = f"{A}\n{B}\n{C}"
QUOTED = f'"{A}",\n"{B}",\n"{C}"'
NUMBERED = f"1. {A}.\n2. {B}.\n3. {C}."
SUB_ITEM = "   - "
SUB_ITEMS = f"\n{SUB_ITEM}Color: pale desert tones with brown\n\t* rough desert with long lines"
LABELLED = f"Description 1: {A}.\nDescription 2: {B}.\nDescription 3: {C}."
OBJECTS = json.dumps({"items": [{"id": 1, "note": "seen in spring", "text": t} for t in (A, B, C)]})
NAMED = json.dumps({"thoughts": "a desert is a wide dry place of sand", "descriptions": [A, B, C]})


@pytest.mark.parametrize(
    "text",
    [
        PLAIN,
        PLAIN.replace("\n", "\r\n\r\n"),
        NUMBERED,
        NUMBERED.replace(".", ")", 1),
        f"({1}) {A}\n(2) {B}\n(3) {C}",
        f"[1] {A}\n[2] {B}\n[3] {C}",
        f"1\\. {A}\n2\\. {B}\n3\\. {C}",
        f"1- {A}\n2– {B}\n3 . {C}",
        f"<ul>\n<li>{A}.</li>\n<li>{B}.</li>\n<li>{C}.</li>\n</ul>",
        f"<ol><li>{A}</li><li>{B}</li><li>{C}</li></ol>",
        f"<p>{A}</p><p class='a'>{B}</p><p>{C}</p>",
        f"{A}<br>{B}<br/>{C}",
        PLAIN.replace(" across", "<br>across").replace(", ", ", <br /> "),
        f"| 1 | {A} |\n| 2 | {B} |\n| 3 | {C} |".replace(", ", ",<br>"),
        json.dumps([f"<p>{A}</p>", f"<p>{B}</p>", f"<p>{C}</p>"]),
        f"\\begin{{itemize}}\n\\item {A}\n\\item {B}\n\\item {C}\n\\end{{itemize}}",
        f"{A}.\\\n{B}.\\\n{C}.",
        f"[Bare Land] {A}\n[In summer] {B}\n[9 words] {C}",
        f"a) {A}.\nb) {B}.\nc) {C}.",
        f"i. {A}\nii. {B}\niii. {C}",
        f"- {A}\n• {B}\n* {C}",
        f"1. **{A}.**\n2. **{B}.**\n3. **{C}.**",
        f"**{A}**\n**{B}**\n**{C}**",
        f"**Dunes:** {A}\n**Plain:** {B}\n**Rocks:** {C}",
        f"1. **Golden dunes**\n   {A}\n2. **Plain**\n   {B}\n3. **Rocks**\n   {C}",
        NUMBERED.replace("\n", f"{SUB_ITEMS}\n") + SUB_ITEMS,
        f"- **Summer**\n{SUB_ITEM}{A}.\n{SUB_ITEM}{B}.\n- **Winter**\n{SUB_ITEM}{C}.",
        NUMBERED.replace("\n", "\n   "),  # a server has stripped the answer
        NUMBERED.replace(" across", "\n   across"),  # wrapped lines
        NUMBERED.replace(", ", ",\n   "),
        QUOTED,
        f"“{A}.”\n“{B}.”\n“{C}.”",
        QUOTED.replace("\n", " "),
        NUMBERED.replace("\n", " "),
        f"{A.capitalize()}. {B.capitalize()}. {C.capitalize()}.",
        f"Sure! {A.capitalize()}. {B.capitalize()}. {C.capitalize()}. Let me know what you think.",
        str([A, B, C]),
        f"Here is the list:\n```python\ndescriptions = {[A, B, C]}\n```",
        str({"thoughts": "a desert is a wide dry place of sand", "descriptions": [A, B, C]}),
        str([{"text": A}, {"text": B}, {"text": C}]),
        f"“{A}.”,“{B}.”; “{C}.”",
        LABELLED,
        LABELLED.replace(".\n", ". The desert looks rough and wide from above.\n"),
        "\n".join(f"{text.capitalize()}. It looks rough in winter." for text in (A, B, C)),
        "\n".join(f"- **Summer desert.** {text.capitalize()}." for text in (A, B, C)),
        f"Option A - {A}\nOption B - {B}\nOption C - {C}",
        f"Bare Land: {A}\nBare Land: {B}\nBare Land: {C}",
        f"| # | description |\n|---|---|\n| 1 | {A} |\n| 2 | {B} |\n| 3 | {C} |",
        json.dumps([A, B, C]),
        json.dumps(
            [f"{text.capitalize()}. The desert looks rough and wide." for text in (A, B, C)]
        ),
        f"```json\n{json.dumps([A, B, C], indent=2)}\n```",
        f"Here they are:\n\n```\n{PLAIN}\n```\nAll of them show the desert in the dry season.",
        f"Here is the list:\n{json.dumps([A, B, C])}\nThese capture the desert in summer.",
        OBJECTS,
        json.dumps(json.loads(OBJECTS), indent=2),
        "\n".join(json.dumps({"text": text}) for text in (A, B, C)),
        json.dumps({"1": A, "2": B, "3": C}),
        json.dumps({"descriptions": PLAIN}),
        json.dumps({"Bare Land": [A, B, C]}),
        json.dumps({"Steppe": [A, B], "Plantation": [C]}),
        NAMED,
        f'[\n"{A}",\n"{B}",\n"{C}",\n]',
        f"Here are 3 descriptions of the desert:\n\n{PLAIN}",
        f"Sure! Wide views of the desert from above, dry and bright.\n\n{NUMBERED}",
        f"{NUMBERED}\n\nEach view shows the varied colors of a desert across seasons.",
        f"### Aerial views of the desert, dry and bright\n{PLAIN}",
        f"**Aerial views of the desert, dry and bright**\n{PLAIN}",
        f"<think>\n{THOUGHTS}\n</think>\n\n{PLAIN}",
        f"{THOUGHTS}\n</think>\n{PLAIN}",
        f"[THINK]{THOUGHTS}[/THINK]{PLAIN}",
        f"<|channel|>analysis<|message|>{THOUGHTS}<|end|><|start|>assistant"
        f"<|channel|>final<|message|>{PLAIN}<|return|>",
        f"<answer>\n{PLAIN}\n</answer></s>",
        f"{PLAIN}\n<thinking>{THOUGHTS}",
        f"analysis{FINE}assistantfinal{PLAIN}",  # a server that removes the tags of gpt-oss
        f'<details type="reasoning" done="true">\n{FINE}\n</details>\n{PLAIN}',
        f"<chain_of_thought>{FINE}</chain_of_thought>{PLAIN}",
        f"<思考>\n{FINE}\n</思考>\n\n{PLAIN}",
        f"<plan>\r\n{FINE}\r\n</plan>\r\n<answer>\n{PLAIN}\n</answer>",
        f"<思考>\n{FINE}\n</思考>\n<回答>\n{PLAIN}\n</回答>",
        f"<descriptions>\n{PLAIN}\n</descriptions>\n\nI hope that these help.\nGoodbye.",
        f"<desert>\n{PLAIN}\n</desert>\nI hope that these help.\nGoodbye.",
        "\n".join(f"<view_{i}>\n{text}\n</view_{i}>" for i, text in enumerate((A, B, C))),
        "\n".join(f"<view_of_land>\n{text}\n</view_of_land>" for text in (A, B, C)),
        "\n".join(f"<description>{text}.</description>" for text in (A, B, C)),
        f"<prompt id='1'>{A}</prompt>\n<caption_2>\n{B}\n</caption_2>\n<item>{C}</item>",
        f"&lt;think&gt;{FINE}&lt;/think&gt;\n{PLAIN}",
        f"**Thinking:**\n{FINE}\n\n**Final answer:**\n{PLAIN}",
        f"{PLAIN}\n\nUser: {FINE}",  # a model that does not stop
        f"{PLAIN}\n### Instruction:\n{FINE}",
        f"{PLAIN}<|im_end|>\n<|im_start|>user\n{FINE}",
        json.dumps({"features": FINE.splitlines(), "descriptions": [A, B, C]}),
        json.dumps({"descriptions": [A, B, C], "rejected": FINE.splitlines()}, indent=1),
        json.dumps([{"id": 1, "view": A}, {"id": 2, "view": B}, {"id": 3, "view": C}]),
        json.dumps({"descriptions": json.dumps([A, B, C])}),
        f"Here is the JSON: {json.dumps([A, B, C])[:-1]},]",
        f"```json {json.dumps([A, B, C])} ```",
        f"1、{A}\n2、{B}\n3、{C}",
        f"１．{A}\n２．{B}\n３．{C}",
        f"1️⃣ {A}\n2️⃣ {B}\n3️⃣ {C}",
        f"➊ {A}\n🌵 {B}\n‣{C}",
        f"- [ ] {A}\n\\- {B}\n3 of 3: {C}",
        f"First, {A}.\nSecond, {B}.\nThird, {C}.",
        f"「{A}」\n『{B}』\n‹{C}›",
        f"\ufeff{A}\n\u200b{B}\n{C}\x00",
        f"{A} (12 words)\n{B} - 12 words\n{C} [12 words]",
        f"{A}, as described in excerpt 2.\n{B} (excerpt 3).\n{C} according to the excerpts.",
        f"{A}, as excerpts 1, 2, and 3 say.\n{B}. As seen in excerpt 2, it is wide.\n{C}.",
        PLAIN.replace(", ", ", consistent with excerpts 1 and 2, "),
        f"Excerpt 1: {A}\n[Excerpt 2] {B}\nAs noted in excerpts 1 and 3, {C}",
        f"{A} [5].\n{B}. [1, 3]\n{C} [Smith et al., 2020].",
        f"The desert lies wide and dry below the plane.\n\n{PLAIN}\n\nSo much for the dry desert.",
        f"The desert lies wide and dry below the plane.\n{PLAIN}",
        f"{FINE}\nAnswer:\n{PLAIN}\nThese are the descriptions.\nI hope you like the descriptions.",
        f"{PLAIN}\nThese are the descriptions.\nI hope you like the descriptions.",
        f"{PLAIN}\nThese are the descriptions.\nLet me know.\nI hope you like the descriptions.",
        f"{PLAIN}\n\nThese match the descriptions.\nEnjoy!\nEnd of response",
        f"{PLAIN}\n\nThese capture the desert from above.\n\nNote: the desert varies with light.",
    ],
)
def test_the_descriptions_of_an_answer_are_found(text):
    assert kept_prompts(Answer(text, False)) == [A, B, C]


@pytest.mark.parametrize(
    "answer, expected",
    [
        (Answer(PLAIN[:-6], True), [A, B]),
        (Answer(NUMBERED[:-20], False), [A, B]),  # a server that does not say that it was cut
        (Answer(json.dumps([A, B, C])[:-9], True), [A, B]),
        (Answer(json.dumps({"descriptions": [A, B, C]}, indent=1)[:-20], True), [A, B]),
        (Answer(f"<think>{THOUGHTS}", True), []),
        (Answer(THOUGHTS, True), []),  # the template wrote the tag
        (Answer(NAMED[:50], True), []),
        (Answer("", False), []),
        (Answer("I'm sorry, but I can't help with that request.", False), []),
        (Answer(f"['{A}', '{B}", False), []),
        (Answer(f"{A.capitalize()}. {B.capitalize()}. {C.capitalize()[:-5]}", True), [A, B]),
        (Answer(f"The image shows {A}. It is {B}.", False), []),
        (Answer(f'{{"text": "{A}', False), []),
        (Answer(f'"text": "{A}",\n"note": "{B}"', False), []),
        (Answer(f"analysis{FINE}", True), []),
        (Answer(f'{{\n"thoughts":\n["{A}"],\n"descriptions": ["{B}', True), []),
        (Answer(f"1 {A}\n2 {B}", False), []),
        (Answer(f"{A} / {B}", False), []),
        (Answer(f"{A.capitalize()}. It looks rough.\n{B.capitalize()}. It looks wide.", False), []),
        # Paragraphs about the class are no descriptions of an image.
        (Answer("\n\n".join(f"{t.capitalize()}. It is dry." for t in (A, B, C)), False), []),
        (Answer(f"{A}\n{B}\nThe excerpts speak of a pale desert in the dry season", False), [A, B]),
        (Answer("As a language model, no desert can be seen from above.", False), []),
    ],
)
def test_half_sentences_thoughts_and_broken_markup_are_refused(answer, expected):
    assert kept_prompts(answer) == expected


DEGENERATE = [
    *"[-—_'*`|=\"\n",
    *("- ", "1. ", "desert ", " *a", "**a ", '{"a":', "[\n", "|--|\n", "#\n", "\n ", "== "),
    *("['", "{'a':", "<think>", "<think>a</think>", "</think>", "<a", "<li ", "```\n", "a\n"),
    "<br>a",
]


@pytest.mark.parametrize("technique", ["zero_shot", "chain_of_thought"])
@pytest.mark.parametrize("unit", DEGENERATE)
def test_a_model_that_repeats_itself_is_read_fast(unit, technique):
    """In less than 50 times the time of a plain answer of equal length; some took minutes."""
    length = 20_000
    repeated = (unit * length)[:length]
    started = time.process_time()
    kept_prompts(Answer((PLAIN + "\n") * (length // len(PLAIN)), False), technique)
    limit = max(0.02, time.process_time() - started) * 50
    for text in (repeated, f"{repeated}x", f"<plan{repeated}", f"{PLAIN}{repeated}x"):
        started = time.process_time()
        kept_prompts(Answer(text, False), technique)
        assert time.process_time() - started < limit


@pytest.mark.parametrize("bold", ["**", ""])
def test_descriptions_below_titles_that_name_the_class_are_found(bold):
    titles = ["golden desert dunes in summer", "brown desert beside a road"]
    rows = [f"- {bold}{titles[0].capitalize()}{bold}", f"{SUB_ITEM}{A}", f"{SUB_ITEM}{B}"]
    rows += [f"- {bold}{titles[1].capitalize()}{bold}", f"{SUB_ITEM}{C}"]
    assert kept_prompts(Answer("\n".join(rows), False)) == [titles[0], A, B, titles[1], C]


@pytest.mark.parametrize(
    "text",
    [
        "10- to 20-meter wide strips of pale desert lie along a road",
        "pale desert with boats as they enter the passage between narrow dunes",
        "pale desert with narrow tracks consistent with the paper trail of brown dunes",
    ],
)
def test_a_range_of_numbers_is_no_marker_and_a_passage_between_dunes_no_source(text):
    found = find_candidates([Answer(text, False)], "Bare Land", "zero_shot", CLASSES, [], Counter())
    assert [candidate.text for candidate in found] == [text]


def test_a_dash_in_a_sentence_ends_no_title():
    text = "Golden dunes — sculpted by wind — stretch across the desert in long lines"
    assert kept_prompts(Answer(text, False)) == [text[0].lower() + text[1:]]


@pytest.mark.parametrize(
    "text",
    [
        "Es tut mir leid, dabei kann ich nicht helfen.",
        "Lo siento, no puedo ayudar con eso.",
        "Désolé, je ne peux pas répondre à cette demande.",
        "Przepraszam, nie mogę w tym pomóc.",
        "Desculpe, não posso ajudar com isso.",
        "抱歉，我无法帮助您。",
    ],
)
def test_a_refusal_in_another_language_is_named_so(text):
    assert checks.rejection_reason(text, "Bare Land", CLASSES, [], 20) == "not_english"


def test_of_a_chain_of_thought_only_what_follows_the_heading_counts():
    found = f"The desert is a wide dry place of pale sand.\n**Descriptions:**\n{PLAIN}"
    assert kept_prompts(Answer(found, False), "chain_of_thought") == [A, B, C]
    in_line = found.replace("**Descriptions:**\n", "**Descriptions:** ")
    assert kept_prompts(Answer(in_line, False), "chain_of_thought") == [A, B, C]
    each = f"{FINE}\nDESCRIPTIONS: {A}\nDESCRIPTIONS: {B}\nDESCRIPTIONS: {C}"
    assert kept_prompts(Answer(each, False), "chain_of_thought") == [A, B, C]
    for closing in (
        "Descriptions: all are seen from above.",
        f"Descriptions for summer\nI see {A}",
    ):
        closed = f"{FINE}\nDESCRIPTIONS\n{NUMBERED}\n\n{closing}"
        assert kept_prompts(Answer(closed, False), "chain_of_thought") == [A, B, C]
    assert kept_prompts(Answer(PLAIN, False), "chain_of_thought") == []
    assert kept_prompts(Answer(NAMED, False), "chain_of_thought") == [A, B, C]
    for heading in (
        "Final Descriptions:",
        "Here are the DESCRIPTIONS:",
        "2. DESCRIPTIONS",
        "Final answer:",
        "Step 2: DESCRIPTIONS",
        "DESCRIPTIONS (Bare Land):",
        "DESCRIPTIONS of Bare Land",
    ):
        headed = f"{FINE}\n**{heading}**\n\n{PLAIN}\nI hope you like these descriptions."
        assert kept_prompts(Answer(headed, False), "chain_of_thought") == [A, B, C], heading
    tagged = f"{FINE}\n<descriptions>\n{PLAIN}\n</descriptions>\n\nGoodbye."
    assert kept_prompts(Answer(tagged, False), "chain_of_thought") == [A, B, C]


@pytest.mark.parametrize("is_cut, refusal", [(False, "no_heading"), (True, "cut")])
def test_a_chain_of_thought_without_a_heading_is_refused(is_cut, refusal):
    answers = [Answer(PLAIN, is_cut), Answer("", False)]
    found = find_candidates(answers, "Bare Land", "chain_of_thought", CLASSES, [], Counter())
    assert [(candidate.text, candidate.refusal) for candidate in found] == [(A, refusal)]


def test_answers_are_counted():
    counts: Counter[str] = Counter()
    answers = [Answer(json.dumps([A]), False), Answer("<think>" + THOUGHTS, True), Answer(B, False)]
    find_candidates(answers, "Bare Land", "zero_shot", CLASSES, [], counts)
    assert counts == {"answers": 3, "answers_json": 1, "answers_cut": 1, "answers_empty": 1}


def kept_prompts(answer: Answer, technique: str = "zero_shot") -> list[str]:
    """The texts of an answer that the writer and the checks let through."""
    kept: list[str] = []
    label = "Bare Land"
    for text, _, refusal in find_candidates([answer], label, technique, CLASSES, [], Counter()):
        if not refusal and not checks.rejection_reason(text, label, CLASSES, kept, 20):
            kept.append(text)
    return kept
