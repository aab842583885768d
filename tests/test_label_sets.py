"""The label sets of params/: each fits each scale, and its words tell its classes apart."""

import re
import textwrap
from functools import cache

import pytest
from conftest import REPOSITORY
from test_label_set_runs import EUROSAT

from stages.imagery.captions import caption_from_scene
from stages.imagery.splits import match_splits
from stages.params import Params, read
from stages.text.checks import rejection_reason
from stages.text.class_words import ClassLexicon, TrainingCaptions, complete_words, terms_in
from stages.text.writers.extractive import compose_candidates
from tools.scale import compose

LABEL_SETS = {"seven": 7, "eurosat": 10, "rsicd30": 30, "worldcover": 11}
DERIVED_NAMES = ["eurosat", "worldcover"]  # those of captions, which are written from the labels
SCALES = ["demo", "paper", "recommended", "rsicd", "rsicd_cpu", "small"]


@cache
def params_of(scale: str) -> Params:
    return compose([scale], REPOSITORY)[1]


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("name", LABEL_SETS)
def test_a_label_set_fits_every_scale(scale, name):
    """It brings its classes and their words, and leaves everything but `prompt` as it is."""
    text, params = compose([scale, name], REPOSITORY)
    given = read(REPOSITORY / f"params/{name}.yaml")
    before = params_of(scale).model_dump()
    after = params.model_dump()
    assert len(params.classes) == LABEL_SETS[name] and params.classes == given["classes"]
    assert params.prompt.model_dump(exclude_unset=True)["words"] == given["prompt"]["words"]
    assert list(params.prompts_per_class()) == list(params.used_classes()) == list(params.classes)
    changed = {key for key in after if after[key] != before[key]}
    assert changed <= {"classes", "prompt"}
    assert text.startswith(f"# Scale: {name if scale == 'demo' else f'{scale} {name}'}\n")


def test_of_two_label_sets_the_later_one_counts():
    assert compose(["eurosat", "seven"], REPOSITORY)[1] == params_of("seven")


def test_the_seven_are_the_demos():
    demo = read(REPOSITORY / "params/demo.yaml")
    seven = read(REPOSITORY / "params/seven.yaml")
    assert seven == {"classes": demo["classes"], "prompt": {"words": demo["prompt"]["words"]}}


@pytest.mark.parametrize("name", LABEL_SETS)
def test_what_is_said_of_a_class_names_no_other(name):
    """Descriptions, looks and parts go into requests and prompts, which name one class."""
    params = params_of(name)
    words = complete_words(params.classes, params.prompt.words)
    derived = {"names"} if name in DERIVED_NAMES else set()
    for given in params.prompt.words.values():
        assert {key for key, value in given.model_dump().items() if not value} == derived
    lexicon = ClassLexicon(words)
    for label, said in words.items():
        for text in (*said.names, said.description, *said.looks, *said.parts):
            assert set(lexicon.count_class_names(text)) <= {label}, text
        for term in said.names + said.kinds:
            assert set(lexicon.count_class_names(term)) == {label}, term
        assert all(lexicon.has_plain_name(plain, label) for plain in said.names)
        assert lexicon.has_plain_name(said.description, label)


@pytest.mark.parametrize("name", LABEL_SETS)
def test_the_words_of_a_class_make_ten_prompts_without_a_paper(name):
    params = params_of(name)
    words = complete_words(params.classes, params.prompt.words)
    lexicon = ClassLexicon(words)
    for label, said in words.items():
        kept: list[str] = []
        for candidate in compose_candidates(said, said.names, []):
            if not rejection_reason(candidate.text, label, lexicon, kept, tokens=20):
                kept.append(candidate.text)
        assert len(kept) >= 10, label


@pytest.mark.parametrize("name", DERIVED_NAMES)
def test_prompts_name_a_class_as_the_captions_that_are_written_from_its_label(name):
    params = params_of(name)
    scenes = [scene for of_class in params.classes.values() for scene in of_class]
    captions = {scene: caption_from_scene(scene) for scene in scenes}
    terms = ClassLexicon(complete_words(params.classes, params.prompt.words)).terms
    held = frozenset(terms_in(". ".join(captions.values()), terms))
    training = TrainingCaptions(held, captions)
    for said in complete_words(params.classes, params.prompt.words, training).values():
        assert said.captions and terms_in(said.captions[0], said.names) == {*said.names}


@pytest.mark.parametrize("scales", [[], ["rsicd"]])
@pytest.mark.parametrize("name", DERIVED_NAMES)
def test_the_tiles_that_a_label_set_names_show_its_classes(name, scales, tmp_path):
    """The lines of params/mine.yaml in its header, alone and after a scale."""
    header = (REPOSITORY / f"params/{name}.yaml").read_text().partition("\n\n")[0]
    lines = [line.removeprefix("# ") for line in header.splitlines() if line.startswith("#   ")]
    (tmp_path / "mine.yaml").write_text(textwrap.dedent("\n".join(lines)))
    scales = [*scales, name, str(tmp_path / "mine.yaml")]
    params = compose(scales, REPOSITORY)[1]
    config = params.fetch_imagery
    assert config.max_images is None and params.train_scene.source == "scratch"
    if name == "worldcover":
        shown = [*config.labels.classes.values()]
        assert config.valid + config.test < 1  # counts may leave no tile to train on
    else:
        import torchgeo.datasets

        dataset = getattr(torchgeo.datasets, config.source.removeprefix("torchgeo:"))
        splits = dict.fromkeys(dataset.splits, 1)
        matched, carved = match_splits(splits, config.splits.model_dump(), "splits")
        assert matched == {"train": "train", "val": "valid", "test": "test"} and not carved
        shown = EUROSAT
    assert sorted(shown) == sorted(scene for scenes in params.classes.values() for scene in scenes)


@pytest.mark.parametrize("page", ["README.md", "docs/data.md"])
def test_the_label_sets_of_the_docs_are_complete(page, tmp_path):
    """As a user copies them: nothing else is needed to write params.yaml."""
    text = (REPOSITORY / page).read_text()
    blocks = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    (block,) = [block for block in blocks if re.search("^classes:", block, re.M)]
    (tmp_path / "mine.yaml").write_text(block)
    params = compose([str(tmp_path / "mine.yaml")], REPOSITORY)[1]
    assert params.classes == read(tmp_path / "mine.yaml")["classes"] and not params.prompt.words
    lexicon = ClassLexicon(complete_words(params.classes, {}))
    for label, said in lexicon.words.items():
        assert lexicon.has_plain_name(said.description, label)
        assert lexicon.count_class_names(said.description).keys() == {label}
