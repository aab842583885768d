"""Write the image prompts of the synthetic data set, as many per class as params ask for.

    python -m stages.runtime.launch prompt

reads   classes, prompt, seed; models/index, models/base/{embedder,writer,language}, models/llm, the
        tokenizer of models/start, the captions of data/imagery/train,
        stages/embedded/notes_questions.csv; $OPENAI_API_KEY (writer openai)
writes  data/prompts.parquet     row, label, prompt (with the cues), negative_prompt, writer,
                                 technique, passages, tokens
        metrics/prompts.json     {writer: {technique: the metrics of stages/text/prompt_metrics.py}}

A prompt that a writer proposes is kept when it passes `stages.text.checks`. Too few prompts of a
class are an error.
"""

from pathlib import Path

import pyarrow as pa

from stages.common.artifacts import stream_rows, write_json, write_table
from stages.diffusion.models import start_folder
from stages.imagery.captions import caption_from_scene
from stages.params import Prompt, Technique, Words, Writer, load
from stages.runtime.errors import exit_with_error
from stages.runtime.parallel import batched
from stages.runtime.process import run_stage
from stages.runtime.progress import log, progress_bar
from stages.text import checks, lexicon, prompt_metrics
from stages.text.class_words import ClassLexicon, TrainingCaptions, complete_words, terms_in
from stages.text.prompt_advice import (
    describe_answers,
    log_left_out_captions,
    log_left_out_scenes,
    log_trained_captions,
    log_unread_names,
)
from stages.text.prompt_writing import PromptCollector, describe_rejections
from stages.text.retrieval import EMBEDDER, INDEX, Retriever
from stages.text.writers import INSTRUCTED, make_writer
from stages.text.writers.answer_cache import open_answer_cache

TRAIN = Path("data/imagery/train")
TILES_BATCH = 1000  # whose captions are searched together
SCHEMA = pa.schema(
    [
        ("row", pa.int32()),
        ("label", pa.string()),
        ("prompt", pa.string()),
        ("negative_prompt", pa.string()),
        ("writer", pa.string()),
        ("technique", pa.string()),
        ("passages", pa.list_(pa.struct([("paper", pa.string()), ("page", pa.int32())]))),
        ("tokens", pa.int32()),
    ]
)


def main() -> None:
    params = load()
    prompt = params.prompt
    training = read_training_captions(params.classes, prompt.words)
    classes = ClassLexicon(complete_words(params.classes, prompt.words, training))
    counts = {label: count for label, count in params.prompts_per_class().items() if count}
    retriever = Retriever(INDEX, EMBEDDER)
    count_tokens = checks.ClipTokenCounter(start_folder() / "tokenizer")
    check_negative_prompt(prompt.negative_prompt, count_tokens)
    check_positive_cues(prompt.positive_cues)

    with open_answer_cache(prompt, params.seed, INSTRUCTED) as answers:

        def make_collector(name: Writer, technique: Technique) -> PromptCollector:
            writer = make_writer(prompt, name, technique, classes, params.seed, answers)
            return PromptCollector(writer, technique, classes, retriever, count_tokens, prompt)

        # The prompts of the data set.
        collector = make_collector(prompt.writer, prompt.technique)
        collect_data_set(collector, prompt, counts)
        metrics = {
            prompt.writer: {
                prompt.technique: {
                    **prompt_metrics.evaluate_prompts(collector, list(counts)),
                    **prompt_metrics.evaluate_retrieval(retriever, classes, list(counts)),
                }
            }
        }

        # Further writers and techniques, whose prompts are measured but not used.
        for pair in prompt.compare:
            compared = make_collector(pair.writer, pair.technique)
            for label in counts:
                compared.collect(label, prompt.compare_count, attempts=1)
            writer_metrics = metrics.setdefault(pair.writer, {})
            writer_metrics[pair.technique] = prompt_metrics.evaluate_prompts(compared, list(counts))

        write_prompts(collector, prompt)
        write_json("metrics/prompts.json", metrics)
    line = f"prompt: {len(collector.kept)} prompts"
    if collector.rejections:
        line += f"; rejected: {describe_rejections(collector.rejections, collector.examples)}"
    log(line)
    log_unread_names(collector, classes, params.classes, training)
    log_left_out_scenes(collector, classes)
    if training.of_scenes:
        log_trained_captions(collector, params.classes, counts, training)
    if prompt.writer == "extractive":
        log_left_out_captions(collector, classes, counts)


def read_training_captions(
    classes: dict[str, list[str]], words: dict[str, Words]
) -> TrainingCaptions:
    """Read what the captions of the training tiles say of the classes."""
    terms = ClassLexicon(complete_words(classes, words)).terms
    held: set[str] = set()
    of_scenes: dict[str, str] = {}
    from_names = True
    for batch in batched(stream_rows(TRAIN, ["captions", "scene"]), TILES_BATCH):
        text = ". ".join(dict.fromkeys(text for tile in batch for text in tile["captions"]))
        held |= terms_in(text, terms - held)
        for tile in batch:
            scene = tile["scene"]
            of_scenes[scene] = of_scenes.get(scene) or caption_from_scene(scene)
            from_names = from_names and tile["captions"] == [of_scenes[scene]]
    return TrainingCaptions(frozenset(held), of_scenes if from_names else {}, frozenset(of_scenes))


def check_negative_prompt(text: str, count_tokens: checks.ClipTokenCounter) -> None:
    """Exit with an error where CLIP would cut the negative prompt."""
    tokens = count_tokens(text)
    if tokens > checks.MAX_TOKENS:
        exit_with_error(
            f"prompt.negative_prompt: {tokens} CLIP tokens, more than {checks.MAX_TOKENS}"
        )


def check_positive_cues(cues: str) -> None:
    """Exit with an error where the cues lack a viewpoint or a scale; an empty text is allowed."""
    required = (
        ("viewpoint", lexicon.VIEWPOINT, "satellite image, aerial view"),
        ("scale", lexicon.SCALE, "high resolution, 10 m resolution, wide view"),
    )
    for cue, pattern, examples in required:
        if cues and not pattern.search(cues):
            exit_with_error(
                f"prompt.positive_cues: name the {cue} ({examples}, ...), without which a model "
                'may draw a close-up; or write "" for a model that knows few words'
            )


def collect_data_set(collector: PromptCollector, prompt: Prompt, counts: dict[str, int]) -> None:
    """Collect so many prompts of each class; exit with an error where a class has too few."""
    for label, count in progress_bar(counts.items(), desc="prompt", unit="class"):
        kept, rejections = collector.collect(label, count, prompt.attempts)
        if len(kept) < count:
            remedy = "raise prompt.attempts or prompt.top_k, or add papers"
            if prompt.writer == "extractive":  # also composes prompts, and ran out of words
                remedy = "or give the class more `looks`, `parts` or `names` in prompt.words"
            exit_with_error(
                f"prompt.per_class: {label}: {len(kept)} of {count} prompts after "
                f"{prompt.attempts} attempts "
                f"(rejected: {describe_rejections(rejections, collector.examples)}"
                f"{describe_answers(collector.writer.counts, prompt)}); ask for fewer, {remedy}"
            )
    composed = sum(kept.text in collector.writer.composed for kept in collector.kept)
    if composed:
        log(
            f"prompt: {composed} of {len(collector.kept)} prompts are composed of the classes' "
            "words: too few sentences of the passages describe a class from above"
        )


def write_prompts(collector: PromptCollector, prompt: Prompt) -> None:
    """Write data/prompts.parquet."""
    rows = [
        {
            "row": row,
            "label": kept.label,
            "prompt": kept.prompt,
            "negative_prompt": prompt.negative_prompt,
            "writer": prompt.writer,
            "technique": prompt.technique,
            "passages": kept.citations(),
            "tokens": kept.tokens,
        }
        for row, kept in enumerate(collector.kept)
    ]
    write_table("data/prompts.parquet", pa.Table.from_pylist(rows, SCHEMA))


if __name__ == "__main__":
    run_stage(main, __doc__)
