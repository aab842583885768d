"""Speed, memory and quality of the text stages, on real papers and the paper's own corpus.

    RD_DATA=... RD_EMBEDDER=... python -m benchmarks.text [NAME ...]

prints a row of a Markdown table per measurement. NAME is one or more of

    scrape          time on one core and on two; the extracted text against pypdf's own
    odd             PDFs that break parsers
    chunk, index    time on the corpus
    query           time to open the index and to query it
    neural          a neural embedder against its library
    packing         packed sequences against padded ones, in fine-tuning
    perplexity      of the demo model, before and after fine-tuning on the corpus
    prompts         what the extractive writer finds in papers about methods
    memory          of chunk and index_rag, on the corpus and on ten times the corpus
    memory_scrape   of scrape, on 25 papers and on 250
    gpu             QLoRA against full fine-tuning, at the size of phi-1.5 (needs a CUDA GPU)

$RD_DATA (default ../shared/data) holds corpus/, papers/ and odd_pdfs/; $RD_EMBEDDER is a folder of
sentence-transformers/all-MiniLM-L6-v2. Nothing else should run on the machine: most measurements
are wall times. `cpu` is the processor time of the process and its children, which a busy machine
affects less.
"""

import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from benchmarks.workspace import REPOSITORY, run_stage
from stages.common.artifacts import read_json
from stages.common.csv_files import read_csv
from stages.runtime.process import make_parser
from tools.scale import compose

LANGUAGE_MODEL = REPOSITORY / "stages/embedded/models/language"
DATA = Path(os.environ.get("RD_DATA", REPOSITORY.parent / "shared/data"))
CORPUS = DATA / "corpus/remote_sensing_data.txt"
CORPUS_LINES = 71_102
PAPERS = DATA / "papers"
ODD_PDFS = DATA / "odd_pdfs"


def main() -> None:
    benchmarks: dict[str, Callable[[], None]] = {
        "scrape": benchmark_scrape,
        "odd": benchmark_odd_pdfs,
        "chunk": benchmark_chunk,
        "index": benchmark_index,
        "query": benchmark_query,
        "neural": benchmark_neural_embedder,
        "packing": benchmark_packing,
        "perplexity": benchmark_perplexity,
        "prompts": benchmark_prompts,
        "memory": benchmark_memory,
        "memory_scrape": benchmark_scrape_memory,
        "gpu": benchmark_qlora,
    }
    parser = make_parser("benchmarks.text", __doc__)
    parser.add_argument("names", metavar="NAME", nargs="*", help="what to measure; none: all")
    names = parser.parse_args().names or list(benchmarks)
    for name in names:
        if name not in benchmarks:
            parser.error(f"{name}: not one of {', '.join(benchmarks)}")

    os.environ.setdefault("REMOTE_DIFFUSION_SCRATCH", tempfile.mkdtemp(prefix="scratch"))
    print("| what | measured | wanted |\n|---|---|---|")
    for name in names:
        benchmarks[name]()


def print_row(what: str, measured: object, wanted: str = "") -> None:
    print(f"| {what} | {measured} | {wanted} |", flush=True)


def make_project(source: str, scale: str = "demo", /, **changes: dict) -> Path:
    """Make a folder in which stages can run on papers: params.yaml at a scale, with changes."""
    folder = Path(tempfile.mkdtemp(prefix="text"))
    params = yaml.safe_load(compose([scale], REPOSITORY)[0])
    params["fetch_papers"]["source"] = source
    for section, values in changes.items():
        params[section] |= values
    (folder / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False), encoding="utf-8")
    (folder / "stages").symlink_to(REPOSITORY / "stages")
    (folder / "models/base/embedder").mkdir(parents=True)
    return folder


def make_corpus_project(scale: str = "demo", /, **changes: dict) -> Path:
    """Make a folder with the paper's own corpus, after `scrape`."""
    scrape = {"test_fraction": 0.05, "cut_references": False}
    folder = make_project(f"path:{CORPUS}", scale, scrape=scrape, **changes)
    run_stage(folder, "fetch_papers")
    run_stage(folder, "scrape")
    return folder


def benchmark_scrape() -> None:
    from pypdf import PdfReader

    from stages.text import pdf

    folder = make_project(f"path:{PAPERS}")
    run_stage(folder, "fetch_papers")
    one_core = run_stage(folder, "scrape", cores=1)
    two_cores = run_stage(folder, "scrape", cores=2)
    print_row("scrape 25 papers, 1 core", one_core)
    print_row(
        "scrape 25 papers, 2 cores",
        f"{two_cores}; {two_cores.wall / one_core.wall:.2f}x",
        "<= 0.6x, all read",
    )
    rows = read_csv(folder / "data/papers_report.csv")
    readable = sum(row["status"] == "ok" for row in rows)
    print_row("papers read", f"{readable} of {len(rows)}", "25 of 25")
    same = 0
    for path, result in pdf.read_all(sorted(PAPERS.glob("*.pdf"))):
        same += result["pages"] == [page.extract_text() for page in PdfReader(path).pages]
    print_row("papers whose text, before cleaning, is pypdf's own", f"{same} of 25", "25 of 25")


def benchmark_odd_pdfs() -> None:
    folder = make_project(f"path:{ODD_PDFS}", scrape={"min_papers": 1, "min_test_papers": 1})
    run_stage(folder, "fetch_papers")
    usage = run_stage(folder, "scrape")
    rows = read_csv(folder / "data/papers_report.csv")
    failed = [row for row in rows if row["status"] == "failed"]
    without_reason = sum(not row["reason"] for row in failed)
    print_row(
        "odd_pdfs",
        f"{usage}; {len(rows)} named, {len(failed)} failed, {without_reason} of them without a "
        "reason",
        "no crash, no hang, all named",
    )


def benchmark_chunk() -> None:
    usage = run_stage(make_corpus_project(), "chunk")
    print_row(f"chunk {CORPUS_LINES:,} lines", usage, "<= 2 s")


def benchmark_index() -> None:
    usage = run_stage(make_corpus_project(), "index_rag", cores=2)
    print_row(f"index {CORPUS_LINES:,} lines, embedded embedder", usage, "<= 60 s")


def benchmark_query() -> None:
    from stages.text.retrieval import Retriever

    folder = make_corpus_project()
    run_stage(folder, "index_rag")
    for case in ("first, Chroma store built", "again, store reused"):
        wall = time.perf_counter()
        cpu = time.process_time()
        retriever = Retriever(folder / "models/index", folder / "models/base/embedder")
        wall = time.perf_counter() - wall
        cpu = time.process_time() - cpu
        print_row(f"open the index, {case}", f"{wall:.1f} s (cpu {cpu:.1f} s)")

    queries = 200
    milliseconds = []
    cpu = time.process_time()
    for number in range(queries):
        start = time.perf_counter()
        retriever.nearest(f"rows of crops and trees seen from above {number}", 3)
        milliseconds.append(1000 * (time.perf_counter() - start))
    cpu = time.process_time() - cpu
    print_row(
        "query, top 3, embedded embedder",
        f"p50 {statistics.median(milliseconds):.1f} ms, p95 {sorted(milliseconds)[189]:.1f} ms "
        f"(cpu {1000 * cpu / queries:.1f} ms)",
        "p50 <= 50 ms",
    )


def benchmark_neural_embedder() -> None:
    wanted = ">= 0.9 of its own rate"
    base = Path(os.environ.get("RD_EMBEDDER", ""))
    if not (base / "modules.json").exists():
        print_row("neural embedder", "not run: no model in $RD_EMBEDDER", wanted)
        return
    import pyarrow.parquet as pq
    from sentence_transformers import SentenceTransformer

    from stages.text.embedder import NeuralEmbedder

    folder = make_corpus_project()
    run_stage(folder, "index_rag")
    texts = pq.read_table(folder / "models/index/passages.parquet")["text"].to_pylist()[:512]
    library = SentenceTransformer(str(base))
    embedder = NeuralEmbedder(base)
    library.encode(texts[:64])
    embedder.embed(texts[:64])
    # Runs alternate, so that both see the same machine; the best of three counts.
    library_seconds = []
    embedder_seconds = []
    for _ in range(3):
        library_seconds.append(cpu_seconds(library.encode, texts, batch_size=64))
        embedder_seconds.append(cpu_seconds(embedder.embed, texts))
    library_rate = len(texts) / min(library_seconds)
    embedder_rate = len(texts) / min(embedder_seconds)
    print_row(
        f"neural embedder ({base.parent.name})",
        f"{embedder_rate:.0f} passages per cpu second, its own batched rate {library_rate:.0f}: "
        f"{embedder_rate / library_rate:.2f}",
        wanted,
    )


def cpu_seconds(function: Callable, *args: Any, **kwargs: Any) -> float:
    """Return the processor seconds of a call."""
    start = time.process_time()
    function(*args, **kwargs)
    return time.process_time() - start


def benchmark_packing() -> None:
    import pyarrow.parquet as pq
    from transformers import AutoTokenizer

    from stages.common.rng import rng
    from stages.params import load
    from stages.text import tokens

    folder = make_corpus_project()
    run_stage(folder, "chunk")
    params = load(folder / "params.yaml")
    config = params.finetune_llm.model_copy(update={"steps": 8})
    tokenizer = AutoTokenizer.from_pretrained(LANGUAGE_MODEL)
    chunks = pq.read_table(folder / "data/chunks.parquet").to_pylist()
    ids = tokens.encode([row["text"] for row in chunks if row["split"] == "train"], tokenizer)
    padded = tokens.split_long_texts(ids, config.context)
    packed = tokens.pack(ids, config.context, rng(0, "pack"))

    lengths = rng(0).permutation([len(sequence) for sequence in padded])
    starts = range(0, len(lengths), config.batch_size)
    batches = [lengths[start : start + config.batch_size] for start in starts]
    useful = lengths.sum() / sum(len(batch) * batch.max() for batch in batches)
    print_row(
        f"useful tokens in batches padded to their longest, context {config.context}",
        f"{useful:.2f} (packed: 1.00)",
        "<= 0.83",
    )

    # Runs alternate, so that both see the same machine; the best of three counts.
    packed_rates = []
    padded_rates = []
    for turn in range(3):
        packed_rates.append(training_rate(packed, config, tokenizer.eos_token_id, turn))
        padded_rates.append(training_rate(padded, config, tokenizer.eos_token_id, turn))
    packed_rate = max(packed_rates)
    padded_rate = max(padded_rates)
    print_row(
        f"LoRA, demo model, context {config.context}: useful tokens per cpu second",
        f"packed {packed_rate:.0f}, padded to the longest {padded_rate:.0f}: "
        f"{packed_rate / padded_rate:.2f}x",
        ">= 1.2x",
    )


def training_rate(sequences: list[Any], config: Any, pad: int, seed: int) -> float:
    """Return tokens per processor second of LoRA steps on randomly chosen sequences."""
    from transformers import AutoModelForCausalLM

    from stages.common.rng import rng
    from stages.text import lora

    order = rng(seed).permutation(len(sequences))
    chosen = [sequences[index] for index in order[: config.steps * config.batch_size]]
    model = lora.add_lora(AutoModelForCausalLM.from_pretrained(LANGUAGE_MODEL), config)
    with tempfile.TemporaryDirectory() as folder:
        seconds = cpu_seconds(lora.train, model, chosen, pad, config, 0, Path(folder))
    return sum(map(len, chosen)) / seconds


def benchmark_perplexity() -> None:
    folder = make_corpus_project(finetune_llm={"steps": 60})
    run_stage(folder, "chunk")
    (folder / "models/base/language").symlink_to(LANGUAGE_MODEL)
    usage = run_stage(folder, "finetune_llm")
    metrics = read_json(folder / "metrics/llm.json")

    def with_interval(key: str) -> str:
        return f"{metrics[key]:.1f} [{metrics[key + '_lo']:.1f}, {metrics[key + '_hi']:.1f}]"

    print_row(
        f"perplexity on the real corpus, demo model, 60 steps ({usage})",
        f"tuned {with_interval('perplexity')}, base {with_interval('perplexity_base')}, "
        f"{metrics['n']} documents, {metrics['tokens']} tokens",
        "intervals do not overlap",
    )


def benchmark_prompts() -> None:
    """Papers about methods describe few views from above: the writer must compose its prompts."""
    folder = make_project(f"path:{PAPERS}", prompt={"compare": [], "per_class": 5})
    (folder / "models/start").mkdir()
    (folder / "models/start/start.json").write_text('{"folder": "models/base/diffusion"}', "utf-8")
    (folder / "models/base/diffusion").symlink_to(REPOSITORY / "stages/embedded/models/diffusion")
    for name in ("fetch_papers", "scrape", "index_rag"):
        run_stage(folder, name)
    usage = run_stage(folder, "prompt")
    metrics = read_json(folder / "metrics/prompts.json")["extractive"]["retrieval"]
    print_row(
        "extractive writer on 25 real papers",
        f"{metrics['count']} prompts, {metrics['composed']} of them composed of the classes' "
        f"words ({usage})",
        "most are composed: said in the log and counted",
    )


def benchmark_memory() -> None:
    for times in (1, 10):
        folder = make_corpus_project()
        multiply_corpus(folder / "data/corpus.parquet", times)
        chunk = run_stage(folder, "chunk")
        index = run_stage(folder, "index_rag")
        print_row(
            f"peak memory at {CORPUS_LINES * times} lines",
            f"chunk {chunk}; index_rag {index}",
            "constant",
        )


def multiply_corpus(path: Path, times: int) -> None:
    """Repeat a corpus; the papers of each copy have other names and words."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pq.read_table(path)
    with pq.ParquetWriter(path, table.schema) as writer:
        for copy in range(times):
            text_suffix = f" x{copy}" if copy else ""
            papers = [f"{name}_{copy}" for name in table["paper"].to_pylist()]
            texts = [f"{text}{text_suffix}" for text in table["text"].to_pylist()]
            columns = table.set_column(0, "paper", pa.array(papers))
            columns = columns.set_column(3, "text", pa.array(texts))
            writer.write_table(columns, 4096)


def benchmark_scrape_memory() -> None:
    for times in (1, 10):
        papers = Path(tempfile.mkdtemp(prefix="papers"))
        for path in sorted(PAPERS.glob("*.pdf")):
            for copy in range(times):
                (papers / f"{path.stem}_{copy}.pdf").symlink_to(path)
        folder = make_project(f"path:{papers}")
        run_stage(folder, "fetch_papers")
        usage = run_stage(folder, "scrape")
        print_row(f"peak memory at {25 * times} papers", f"scrape {usage}", "constant")


def benchmark_qlora() -> None:
    """Fine-tune a randomly initialized model of phi-1.5's size: tokens per second, peak memory."""
    import torch

    wanted = "10x less memory (paper)"
    if not torch.cuda.is_available():
        print_row("QLoRA vs full fine-tuning, phi-1.5 size", "not run: no GPU", wanted)
        return
    from stages.text import lora

    _, params = compose(["paper"], REPOSITORY)
    config = params.finetune_llm.model_copy(update={"steps": 20})
    shape = (config.steps * config.batch_size, config.context)
    generator = torch.Generator().manual_seed(0)
    sequences = torch.randint(0, 51200, shape, generator=generator).tolist()
    with tempfile.TemporaryDirectory() as base:
        write_phi(Path(base))
        for name in ("QLoRA", "full, fp32 weights"):
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            if name == "QLoRA":
                model = lora.add_lora(lora.load_base(Path(base), "nf4"), config)
            else:
                model = lora.load_base(Path(base), "none")
            with tempfile.TemporaryDirectory() as folder:
                start = time.perf_counter()
                lora.train(model, sequences, 50256, config, 0, Path(folder))
                seconds = time.perf_counter() - start
            del model
            print_row(
                f"{torch.cuda.get_device_name()}, phi-1.5 size, {name}",
                f"{sum(map(len, sequences)) / seconds:.0f} tokens/s, peak "
                f"{torch.cuda.max_memory_allocated() / 2**30:.1f} GiB",
                wanted,
            )


def write_phi(folder: Path) -> None:
    """Write a randomly initialized model with the config of microsoft/phi-1_5, in bfloat16."""
    from transformers import PhiConfig, PhiForCausalLM

    from tools.rehearsal.models import CONFIGS

    config = PhiConfig.from_pretrained(CONFIGS / "phi-1_5")
    PhiForCausalLM(config).bfloat16().save_pretrained(folder)


if __name__ == "__main__":
    main()
