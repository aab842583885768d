"""Write the image prompts of the synthetic data set: so many per class, each checked before it is kept.

    python -m stages.prompt

reads   prompt, seed; models/index, models/base/{embedder,writer,language}, models/llm, the tokenizer of models/start,
        stages/embedded/notes_questions.csv; $OPENAI_API_KEY (writer openai)
writes  data/prompts.parquet     row, label, prompt (cues included), negative_prompt, writer, technique, passages, tokens
        metrics/prompts.json     {writer: {technique: what stages/text/prompt_metrics.py lists}}

What a writer offers is kept when `stages.text.checks` finds no fault. A class that stays short of its count is an error.
"""

from pathlib import Path

import pyarrow as pa

from stages.common.artifacts import write_json, write_table
from stages.diffusion.models import start_folder
from stages.params import Prompt, load
from stages.runtime.errors import exit_with_error
from stages.runtime.process import run_stage
from stages.runtime.progress import log, progress_bar
from stages.text import checks, lexicon, prompt_metrics, writers
from stages.text.prompt_writing import Asking
from stages.text.retrieval import Retriever

INDEX, BASE, LLM = Path("models/index"), Path("models/base"), Path("models/llm")
QUESTIONS = Path("stages/embedded/notes_questions.csv")
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


def make_writer(p: Prompt, writer: str, technique: str, seed: int):
    match writer:
        case "extractive":
            return writers.Extractive()
        case "domain":
            return writers.Domain(BASE / "language", LLM, technique, seed)
        case "openai":
            return writers.Hosted(p.openai_base_url, p.openai_model, technique, seed)
        case "huggingface":
            return writers.Instructed(BASE / "writer", technique, seed)


def main() -> None:
    params = load()
    p, seed = params.prompt, params.seed
    retriever, tokens = (
        Retriever(INDEX, BASE / "embedder"),
        checks.Counter(start_folder() / "tokenizer"),
    )
    negative = tokens(p.negative_prompt)
    if negative > checks.LIMIT:
        exit_with_error(f"prompt.negative_prompt: {negative} CLIP tokens, more than {checks.LIMIT}")
    for cue, words, such in (
        ("viewpoint", lexicon.VIEWPOINT, "satellite image, aerial view"),
        ("scale", lexicon.SCALE, "high resolution, 10 m resolution, wide view"),
    ):
        if p.positive_cues and not words.search(p.positive_cues):
            exit_with_error(
                f"prompt.positive_cues: name the {cue} ({such}, ...), or a pumpkin field is a heap of pumpkins; "
                'or write "" where the model\'s words are few'
            )

    # The data set.
    asking = Asking(
        make_writer(p, p.writer, p.technique, seed),
        p.technique,
        retriever,
        tokens,
        p.positive_cues,
        p.top_k,
    )
    for label, wanted in progress_bar(p.per_class.items(), what="prompt", unit="class"):
        rows, refused = asking.ask(label, wanted, p.attempts)
        if len(rows) < wanted:
            why = (
                ", ".join(f"{count} {reason}" for reason, count in refused.most_common())
                or "none was offered"
            )
            exit_with_error(
                f"prompt.per_class.{label}: {len(rows)} of {wanted} prompts after {p.attempts} attempts (refused: {why}); "
                "ask for fewer, raise prompt.attempts or prompt.top_k, or bring more papers"
            )
    if composed := sum(row["text"] in asking.write.composed for row in asking.kept):
        log(
            f"prompt: {composed} of {len(asking.kept)} prompts are composed of the lexicon's words: too few sentences of the "
            "passages describe a class from above"
        )
    metrics = {
        p.writer: {
            p.technique: {
                **prompt_metrics.of_prompts(asking),
                **prompt_metrics.of_retrieval(retriever, QUESTIONS),
            }
        }
    }

    # The comparison: measured, not used.
    for pair in p.compare:
        if pair.technique in metrics.get(pair.writer, {}):
            exit_with_error(f"prompt.compare: {pair.writer} with {pair.technique} stands twice")
        other = Asking(
            make_writer(p, pair.writer, pair.technique, seed),
            pair.technique,
            retriever,
            tokens,
            p.positive_cues,
            p.top_k,
        )
        for label in p.per_class:
            other.ask(label, p.compare_count, 1)
        metrics.setdefault(pair.writer, {})[pair.technique] = prompt_metrics.of_prompts(other)

    shared = {"negative_prompt": p.negative_prompt, "writer": p.writer, "technique": p.technique}
    rows = [
        {
            "row": number,
            **shared,
            **{name: row[name] for name in ("label", "prompt", "passages", "tokens")},
        }
        for number, row in enumerate(asking.kept)
    ]
    write_table("data/prompts.parquet", pa.Table.from_pylist(rows, SCHEMA))
    write_json("metrics/prompts.json", metrics)
    log(
        f"prompt: {len(asking.kept)} prompts, {asking.rejected.total()} candidates refused {dict(asking.rejected)}"
    )


if __name__ == "__main__":
    run_stage(main, __doc__)
