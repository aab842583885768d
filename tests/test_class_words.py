"""The words of any label set: derived, found in texts, and never a fault of their own prompts."""

import random
import time
import unicodedata

import pytest

from stages.params import Words
from stages.text import checks
from stages.text.class_words import (
    LOOKS,
    PARTS,
    ClassLexicon,
    TrainingCaptions,
    complete_words,
    terms_in,
)
from stages.text.writers.extractive import compose_candidates, score_sentence
from stages.text.writers.instructions import FEW_SHOT_EXAMPLES, few_shot_examples, format_request
from stages.text.writers.one_by_one import format_dialogues

ODD_NAMES = [
    "Forêt / Wald",
    "🌲 Spruce St. stand",
    'Lake "Ω" #1, big',
    "C# & D's plot: 50 %",
    "Cars",
    "Fish ponds",
    "Parking lot",
    "Ignored system",
    "水体",
    "ทะเลสาบ",
    "नदी",
    "غابة",
    "農地ダム",
    "Zürich 1999 et al.",
    "Land principally occupied by agriculture, with significant areas of natural vegetation",
]


def lexicon_of(*names: str, **words: Words) -> ClassLexicon:
    """The words of classes without scenes."""
    return ClassLexicon(complete_words({name: [] for name in names}, words))


def composed_prompts(lexicon: ClassLexicon, label: str) -> list[str]:
    """The composed prompts of a class that pass the checks."""
    kept: list[str] = []
    for text, *_ in compose_candidates(lexicon.words[label], lexicon.words[label].names, []):
        if not checks.rejection_reason(text, label, lexicon, kept, 20):
            kept.append(text)
    return kept


def test_words_are_derived_of_names_and_scenes():
    classes = {"AnnualCrop": ["AnnualCrop"], "Built up": ["denseresidential", "rail_way"]}
    words = complete_words(classes, {})
    assert words["AnnualCrop"] == (("annual crop",), (), "annual crop", LOOKS, PARTS, (), ())
    assert words["Built up"].names == ("built up", "denseresidential", "rail way")
    assert words["Built up"].description == "built up, denseresidential, rail way"


def test_derived_names_that_no_caption_holds_are_kinds():
    classes = {"Wald": ["Nadelwald", "Laubwald"], "Open water": ["See"], "Heide": ["Moor"]}
    terms = ClassLexicon(complete_words(classes, {})).terms
    held = terms_in("dark nadelwald. a see beside open water. a moor", terms)
    assert held == {"nadelwald", "see", "open water", "moor"}
    training = TrainingCaptions(frozenset(held), {})
    words = complete_words(classes, {"Heide": Words(names=["heide"])}, training)
    assert words["Wald"][:3] == (("nadelwald",), ("wald", "laubwald"), "wald, nadelwald, laubwald")
    assert words["Open water"][:2] == (("open water", "see"), ())
    assert words["Heide"][:2] == (("heide",), ())
    assert not any(said.captions for said in words.values())


def test_given_words_replace_derived_ones_one_by_one():
    given = Words(names=["wadi", "dry  river"], looks=["sandy", "stony"])
    words = complete_words({"Wadi": ["w1"], "Oasis": []}, {"Wadi": given})["Wadi"]
    assert words == (
        ("wadi", "dry river"),
        (),
        "wadi, dry river",
        ("sandy", "stony"),
        PARTS,
        (),
        (),
    )


def test_derived_looks_and_parts_name_no_class():
    words = complete_words({"Roads": [], "Dense forest": [], "Green": []}, {})
    for label in words:
        assert not {"roads", "green"} & {*words[label].looks, *words[label].parts}
    assert "dense" in words["Roads"].looks and "dense" not in words["Dense forest"].looks


@pytest.mark.parametrize(
    "text, counts",
    [
        ("an evergreen forest beside evergreen-forests", {"Evergreen Forest": 2}),
        ("the forest of an Evergreen Forest", {"Forest": 1, "Evergreen Forest": 1}),
        ("sea ice drifts on the sea", {"Ice": 1, "Sea": 1}),
        ("ForestS, deforestation, EvergreenForest", {"Forest": 1, "Evergreen Forest": 1}),
        ("old cities and a city", {"City": 2}),
        ("a mangrove among mangroves", {"Mangroves": 2}),
        ("prairie beside prairies", {"Prairies": 2}),
        ("an avalanche, avalanches", {"Avalanches": 2}),
        ("a bus, two buses", {"Buses": 2}),
        ("a volcano, volcanoes", {"Volcanoes": 2}),
        ("a house, houses", {"Houses": 2}),
        ("a box and a rose: boxes, roses", {"Boxes": 2, "Roses": 2}),
        ("a seasonal iceberg, glacial icing, busy housing", {}),
        ("从空中看，水体旁边有forest和稻田", {"水": 1, "Forest": 1}),
        ("绿色的水面", {"水": 1}),
        ("เห็นทะเลสาบใหญ่", {"ทะเลสาบ": 1}),
        (unicodedata.normalize("NFD", "une FORÊT NOIRE"), {"Forêt noire": 1}),
        ("a foret noire", {}),
        ("non-forest and non forest beside a canon forest", {"Forest": 1}),
        ("non-cities and a non city around a city", {"Non-city": 2, "City": 1}),
    ],
)
def test_the_longest_name_counts(text, counts):
    lexicon = lexicon_of(
        *("Forest", "Evergreen Forest", "Sea", "Ice", "City", "Mangroves", "Prairies"),
        "Non-city",
        *("Avalanches", "Buses", "Volcanoes", "Houses", "Boxes", "Roses"),
        *("水", "ทะเลสาบ", "Forêt noire"),
        Ice=Words(names=["ice"], kinds=["sea ice"]),
        水=Words(names=["水", "水体"]),
    )
    assert lexicon.count_class_names(text) == counts


def test_a_rarer_name_that_holds_a_plain_one_is_plain():
    lexicon = lexicon_of(
        "Forest", "Sea", Forest=Words(names=["forest"], kinds=["pine forest", "copse"])
    )
    assert lexicon.has_plain_name("a dark pine forest", "Forest")
    assert not lexicon.has_plain_name("a copse by the sea", "Forest")
    assert lexicon.words_before_name("by the deep sea a copse", "Forest") == 5
    assert lexicon.words_before_name("by the deep sea", "Forest") > 1000
    assert lexicon.dominant_class("Of Seas", "forest forest") == "Sea"
    assert lexicon.dominant_class("Notes", "forest, copse, sea") == "Forest"
    assert lexicon.dominant_class("Notes", "forest and sea") is None


@pytest.mark.parametrize("name", ODD_NAMES)
def test_any_name_gives_ten_prompts(name):
    lexicon = lexicon_of(*ODD_NAMES)
    assert len(composed_prompts(lexicon, name)) >= 10


@pytest.mark.parametrize(
    "look, name, opening, place",
    [
        ("green", "solar panels", "green solar panels", "solar panels"),
        ("uniform", "meadow", "a uniform meadow", "a meadow"),
        ("unirrigated", "field", "an unirrigated field", "a field"),
        ("unidentified", "one-way road", "an unidentified one-way road", "a one-way road"),
        ("used", "orchard", "a used orchard", "an orchard"),
        ("even", "meadow", "an even meadow", "a meadow"),
        ("dark", "residential", "a dark residential area", "a residential area"),
        ("green", "agricultural", "a green agricultural area", "an agricultural area"),
        ("dark", "built up", "a dark built up area", "a built up area"),
    ],
)
def test_names_are_nouns_behind_their_article(look, name, opening, place):
    """In composed prompts and in requests to small models."""
    lexicon = lexicon_of("Own", Own=Words(names=[name], looks=[look, "x", "y"], parts=["z"]))
    prompts = [
        prompt
        for prompt, *_ in compose_candidates(lexicon.words["Own"], lexicon.words["Own"].names, [])
    ]
    assert any(prompt.startswith(f"{opening} with") for prompt in prompts)
    dialogue = format_dialogues("Own", lexicon.words["Own"].names, "zero_shot", lexicon, [], 1, 0)[
        0
    ]
    assert dialogue.opening == opening
    assert f"Describe {place}, seen" in dialogue.messages[0]["content"]


def test_a_composed_prompt_repeats_no_word():
    """Not in another form either, as "a patchy desert with stony stones"."""
    words = Words(looks=["stony", "dry", "patchy"], parts=["stones", "wide dunes", "patches"])
    of_class = lexicon_of("Desert", Desert=words).words["Desert"]
    of_class = of_class._replace(captions=("a desert",))
    assert [text for text, *_ in compose_candidates(of_class, of_class.names, [])] == [
        "a desert with dry wide dunes",
        "a dry desert with stony wide dunes",
        "a stony desert with patchy wide dunes",
        "a dry desert with patchy stones",
        "a patchy desert with dry wide dunes",
    ]


def test_names_that_are_nearly_alike_give_prompts_of_their_own():
    names = [f"Zone {letter} land" for letter in "bcdfghjk"]
    lexicon = lexicon_of(*names)
    assert all(len(composed_prompts(lexicon, name)) >= 60 for name in names)


@pytest.mark.parametrize(
    "text, label, reason",
    [
        ("a grey parking lot with a white car", "Parking lot", "close_up"),
        ("a grey car park with a white car", "Cars", None),
        ("a green fish pond with fish between its edges", "Fish ponds", None),
        ("a green fish pond with ducks between its edges", "Fish ponds", "close_up"),
        ("green fish ponds beside rows of car parks", "Fish ponds", "other_class"),
        ("a pale ignored system with a wide system of tracks", "Ignored system", None),
        ("a pale ignored system: please print green tracks", "Ignored system", "instruction"),
        ("从空中看，水体旁边有一条弯曲的小路", "水体", "not_english"),
        ("a dark 水体 with shadows along its edges", "水体", None),
        ("a dark pond with shadows along its edges", "水体", "no_class"),
    ],
)
def test_the_words_of_a_class_are_no_fault_of_its_prompts(text, label, reason):
    lexicon = lexicon_of(*ODD_NAMES, Cars=Words(names=["car park"]))
    assert checks.rejection_reason(text, label, lexicon, [], 20) == reason


@pytest.mark.parametrize(
    "text, reason",
    [
        ("sea ice and lake ice Sea ice is a white sheet with cracks", "not_one_sentence"),
        ("sea ice is a white sheet with cracks", None),
        ("In winter, Sea Ice is a white sheet with cracks", None),
        ("the wide view of Sea Ice is white and grey", None),
        ("a white Sea ice with cracks along its edges", None),
    ],
)
def test_a_heading_that_runs_into_the_name_of_a_class_is_found(text, reason):
    lexicon = lexicon_of("Sea", "Ice", Ice=Words(names=["ice"], kinds=["sea ice", "lake ice"]))
    assert checks.rejection_reason(text, "Ice", lexicon, [], 20) == reason


def test_a_detail_of_a_class_is_no_close_up():
    words = Words(names=["parking lot"], parts=["white cars", "trees"])
    lexicon = lexicon_of("Parking", "Road", Parking=words)
    text = "a grey parking lot with rows of white cars"
    assert checks.rejection_reason(text, "Parking", lexicon, [], 20) is None
    assert checks.rejection_reason(text.replace("lot", "lot and road"), "Road", lexicon, [], 20)


def test_words_of_any_language_make_prompts():
    words = Words(looks=["绿色的", "深色的", "宽阔的"], parts=["阴影", "边缘", "เส้น"])
    lexicon = lexicon_of("水体", "农田", 水体=words)
    assert composed_prompts(lexicon, "水体")
    assert not {"水体", "绿色的"} & set(lexicon.hide_words("a 绿色的水体", "水体").split())


def test_a_sentence_of_a_class_that_sounds_of_measurement_is_found():
    lexicon = lexicon_of("Mapped fields", "River")
    sentence = "The mapped fields are green and brown, with straight edges."
    assert score_sentence(sentence, "Mapped fields", lexicon) > 2
    assert score_sentence("The mapped river is green and brown.", "River", lexicon) == 0


def test_a_request_names_the_class_as_its_prompts_have_to():
    lexicon = lexicon_of("AnnualCrop", "Airport")
    request = format_request(
        "AnnualCrop", lexicon.words["AnnualCrop"].names, "few_shot", lexicon, [], 3, 0
    )
    assert "(annual crop)" in request and FEW_SHOT_EXAMPLES[0] in request
    assert few_shot_examples("Airport", lexicon) == list(FEW_SHOT_EXAMPLES[1:])


def test_a_hundred_classes_are_found_in_no_time():
    draw = random.Random(0)
    vocabulary = [f"word{number}" for number in range(3000)]
    names = [f"Class{number} name" for number in range(100)]
    words = {name: Words(kinds=draw.sample(vocabulary, 10)) for name in names}
    lexicon = ClassLexicon(complete_words({name: [] for name in names}, words))
    sentences = [" ".join(draw.choices(vocabulary, k=20)) for _ in range(1000)]
    start = time.process_time()
    found = sum(sum(lexicon.count_class_names(sentence).values()) for sentence in sentences)
    assert time.process_time() - start < 3
    known = {kind for each in words.values() for kind in each.kinds}
    assert found == sum(word in known for sentence in sentences for word in sentence.split())
