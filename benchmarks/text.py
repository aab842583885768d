"""How good and how fast the text half is, on real papers and the real corpus ($RD_DATA, default ../shared/data).

    python benchmarks/text.py [scrape odd chunk index query neural packing perplexity prompts memory memory_scrape gpu]

prints a Markdown table row per measurement. Quiet machine, please: wall times are what is asked for. `cpu` is the processor
time of the process and its children, which a busy machine disturbs less. `neural` needs a sentence-transformers folder
in $RD_EMBEDDER (sentence-transformers/all-MiniLM-L6-v2), `gpu` a CUDA GPU.
"""

import csv
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
DATA = Path(os.environ.get("RD_DATA", ROOT.parent / "shared/data"))
CORPUS, PAPERS, ODD = DATA / "corpus/remote_sensing_data.txt", DATA / "papers", DATA / "odd_pdfs"
os.environ.setdefault("REMOTE_DIFFUSION_SCRATCH", tempfile.mkdtemp(prefix="scratch"))


def row(what: str, value: str, wanted: str = "") -> None:
    print(f"| {what} | {value} | {wanted} |", flush=True)


def project(source: Path, **changes) -> Path:
    """A folder with params.yaml (demo scale, this source) in which stages can run."""
    folder = Path(tempfile.mkdtemp(prefix="text"))
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    params["fetch_papers"]["source"] = f"path:{source}"
    for section, values in changes.items():
        params[section] |= values
    (folder / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    (folder / "models/base/embedder").mkdir(parents=True)
    return folder


def stage(folder: Path, name: str, cores: int | None = None) -> tuple[float, float, float]:
    """Run a stage in a folder: wall seconds, processor seconds, peak MB of its largest process."""
    limit = (
        (lambda: os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores]))
        if cores
        else None
    )
    start = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", f"stages.{name}"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        preexec_fn=limit,
        stderr=subprocess.PIPE,
        text=True,
    )
    said = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"{name} failed:\n{said[-2000:]}")
    return time.perf_counter() - start, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


def show(wall: float, cpu: float, peak: float) -> str:
    return f"{wall:.1f} s (cpu {cpu:.1f} s), {peak:.0f} MB"


def scrape() -> None:
    from pypdf import PdfReader

    from stages.text import pdf

    folder = project(PAPERS)
    stage(folder, "fetch_papers")
    one, two = (stage(folder, "scrape", cores) for cores in (1, 2))
    row("scrape 25 papers, 1 core", show(*one))
    row("scrape 25 papers, 2 cores", f"{show(*two)}; {two[0] / one[0]:.2f}x", "<= 0.6x, all read")
    lines = (folder / "data/papers_report.csv").read_text().splitlines()
    row("papers read", f"{sum(',ok,' in line for line in lines)} of {len(lines) - 1}", "25 of 25")
    same = sum(
        answer["pages"] == [page.extract_text() for page in PdfReader(path).pages]
        for path, answer in pdf.read_all(sorted(PAPERS.glob("*.pdf")))
    )
    row("papers whose text, before cleaning, is pypdf's own", f"{same} of 25", "25 of 25")


def odd() -> None:
    folder = project(ODD, scrape={"min_papers": 1, "min_test_papers": 1})
    stage(folder, "fetch_papers")
    taken = stage(folder, "scrape")
    with open(folder / "data/papers_report.csv", newline="") as file:
        lines = list(csv.reader(file))[1:]
    failed = [line for line in lines if line[3] == "failed"]
    row(
        "odd_pdfs",
        f"{show(*taken)}; {len(lines)} named, {len(failed)} failed, {sum(not line[4] for line in failed)} of them without "
        "a reason",
        "no crash, no hang, all named",
    )


def corpus_project(**changes) -> Path:
    folder = project(CORPUS, scrape={"test_fraction": 0.05, "cut_references": False}, **changes)
    for name in ("fetch_papers", "scrape"):
        stage(folder, name)
    return folder


def chunk() -> None:
    row("chunk 71,102 lines", show(*stage(corpus_project(), "chunk")), "<= 2 s")


def index() -> None:
    folder = corpus_project()
    row("index 71,102 lines, embedded embedder", show(*stage(folder, "index_rag", 2)), "<= 60 s")


def query() -> None:
    folder = corpus_project()
    stage(folder, "index_rag")
    from stages.text.retrieval import Retriever

    for what in ("first, Chroma store built", "again, store reused"):
        start = time.perf_counter(), time.process_time()
        retriever = Retriever(folder / "models/index", folder / "models/base/embedder")
        row(
            f"open the index, {what}",
            f"{time.perf_counter() - start[0]:.1f} s (cpu {time.process_time() - start[1]:.1f} s)",
        )
    times, cpu = [], time.process_time()
    for number in range(200):
        start = time.perf_counter()
        retriever.nearest(f"rows of crops and trees seen from above {number}", 3)
        times.append(1000 * (time.perf_counter() - start))
    row(
        "query, top 3, embedded embedder",
        f"p50 {statistics.median(times):.1f} ms, p95 {sorted(times)[189]:.1f} ms "
        f"(cpu {1000 * (time.process_time() - cpu) / 200:.1f} ms)",
        "p50 <= 50 ms",
    )


def neural() -> None:
    base = Path(os.environ.get("RD_EMBEDDER", ""))
    if not (base / "modules.json").exists():
        return row(
            "neural embedder",
            "not run: RD_EMBEDDER is no sentence-transformers folder",
            ">= 0.9 of its own rate",
        )
    import pyarrow.parquet as pq
    from sentence_transformers import SentenceTransformer

    folder = corpus_project()
    stage(folder, "index_rag")
    texts = pq.read_table(folder / "models/index/passages.parquet")["text"].to_pylist()[:512]
    from stages.text.embedder import Neural

    own, ours = SentenceTransformer(str(base)), Neural(base)
    own.encode(texts[:64]), ours.embed(texts[:64])
    rates = {"own": [], "ours": []}
    for _ in range(3):  # in turns: both see the same machine
        for name, run in (
            ("own", lambda: own.encode(texts, batch_size=64)),
            ("ours", lambda: ours.embed(texts)),
        ):
            start = time.process_time()
            run()
            rates[name].append(len(texts) / (time.process_time() - start))
    own_rate, our_rate = max(rates["own"]), max(rates["ours"])
    row(
        f"neural embedder ({base.parent.name})",
        f"{our_rate:.0f} passages per cpu second, its own batched rate {own_rate:.0f}: "
        f"{our_rate / own_rate:.2f}",
        ">= 0.9",
    )


def packing() -> None:
    import pyarrow.parquet as pq
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from stages.common.rng import rng
    from stages.params import load
    from stages.text import lora, tokens

    folder, language = corpus_project(), ROOT / "stages/embedded/models/language"
    stage(folder, "chunk")
    tokenizer = AutoTokenizer.from_pretrained(language)
    texts = [
        r["text"]
        for r in pq.read_table(folder / "data/chunks.parquet").to_pylist()
        if r["split"] == "train"
    ]
    ids, steps, rates = tokens.encode(texts, tokenizer), 8, {True: [], False: []}
    for turn in range(3):
        for packed in (True, False):
            p = load(folder / "params.yaml").finetune_llm.model_copy(
                update={"steps": steps, "packing": packed}
            )
            rows = (
                tokens.pack(ids, p.context, rng(0, "pack"))
                if packed
                else tokens.separate(ids, p.context)
            )
            rows = [rows[at] for at in rng(turn).permutation(len(rows))[: steps * p.batch_size]]
            model = lora.adapt(AutoModelForCausalLM.from_pretrained(language), p)
            with tempfile.TemporaryDirectory() as run:
                start = time.process_time()
                lora.train(model, rows, tokenizer.eos_token_id, p, 0, Path(run))
                rates[packed].append(sum(map(len, rows)) / (time.process_time() - start))
    lengths = rng(0).permutation([len(part) for part in tokens.separate(ids, p.context)])
    batches = [lengths[at : at + p.batch_size] for at in range(0, len(lengths), p.batch_size)]
    useful = lengths.sum() / sum(len(batch) * batch.max() for batch in batches)
    row(
        f"useful tokens in batches padded to their longest, context {p.context}",
        f"{useful:.2f} (packed: 1.00)",
        "<= 0.83",
    )
    packed, padded = max(rates[True]), max(rates[False])
    row(
        f"LoRA, demo model, context {p.context}: useful tokens per cpu second",
        f"packed {packed:.0f}, padded to the longest {padded:.0f}: {packed / padded:.2f}x",
        ">= 1.2x",
    )


def perplexity() -> None:
    import json

    folder = corpus_project(finetune_llm={"steps": 60})
    stage(folder, "chunk")
    (folder / "models/base/language").symlink_to(ROOT / "stages/embedded/models/language")
    taken = stage(folder, "finetune_llm")
    m = json.loads((folder / "metrics/llm.json").read_text())
    row(
        f"perplexity on the real corpus, demo model, 60 steps ({show(*taken)})",
        f"tuned {m['perplexity']:.1f} [{m['perplexity_lo']:.1f}, {m['perplexity_hi']:.1f}], base {m['perplexity_base']:.1f} "
        f"[{m['perplexity_base_lo']:.1f}, {m['perplexity_base_hi']:.1f}], {m['n']} documents, {m['tokens']} tokens",
        "intervals do not overlap",
    )


def prompts() -> None:
    """Papers about machine learning describe few views: what the extractive writer finds in them, and what it must compose."""
    import json

    from stages.params import LULC_CLASSES

    folder = project(PAPERS, prompt={"compare": [], "per_class": dict.fromkeys(LULC_CLASSES, 5)})
    (folder / "models/start").mkdir()
    (folder / "models/start/start.json").write_text('{"folder": "models/base/diffusion"}')
    (folder / "models/base/diffusion").symlink_to(ROOT / "stages/embedded/models/diffusion")
    (folder / "stages").symlink_to(ROOT / "stages")
    for name in ("fetch_papers", "scrape", "index_rag", "prompt"):
        taken = stage(folder, name)
    found = json.loads((folder / "metrics/prompts.json").read_text())["extractive"]["retrieval"]
    row(
        "extractive writer on 25 real papers",
        f"{found['count']} prompts, {found['composed']} of them composed of the lexicon's words "
        f"({show(*taken)})",
        "most are composed: said in the log and counted",
    )


def memory() -> None:
    for times in (1, 10):
        folder = corpus_project()
        multiply(folder / "data/corpus.parquet", times)
        row(
            f"peak memory at {71102 * times} lines",
            "; ".join(f"{name} {show(*stage(folder, name))}" for name in ("chunk", "index_rag")),
            "constant",
        )


def memory_scrape() -> None:
    for times in (1, 10):
        copies = Path(tempfile.mkdtemp(prefix="papers"))
        for path in sorted(PAPERS.glob("*.pdf")):
            for copy in range(times):
                (copies / f"{path.stem}_{copy}.pdf").symlink_to(path)
        folder = project(copies)
        stage(folder, "fetch_papers")
        row(
            f"peak memory at {25 * times} papers",
            f"scrape {show(*stage(folder, 'scrape'))}",
            "constant",
        )


def multiply(path: Path, times: int) -> None:
    """A corpus so many times as long: each copy's papers have names and words of their own."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pq.read_table(path)
    with pq.ParquetWriter(path, table.schema) as writer:
        for copy in range(times):
            papers, texts = (
                [f"{value}{tail}" for value in table[column].to_pylist()]
                for column, tail in (("paper", f"_{copy}"), ("text", f" x{copy}" if copy else ""))
            )
            writer.write_table(
                table.set_column(0, "paper", pa.array(papers)).set_column(
                    3, "text", pa.array(texts)
                ),
                4096,
            )


def gpu() -> None:
    """A randomly initialized phi-1.5-size model: QLoRA against full fine-tuning, tokens per second and peak memory."""
    import torch

    if not torch.cuda.is_available():
        return row(
            "QLoRA vs full fine-tuning, phi-1.5 size",
            "never run: no GPU here",
            "10x less memory (paper)",
        )
    from transformers import PhiConfig, PhiForCausalLM

    from stages.params import load
    from stages.text import lora

    config = PhiConfig(
        vocab_size=51200,
        hidden_size=2048,
        intermediate_size=8192,
        num_hidden_layers=24,
        num_attention_heads=32,
        max_position_embeddings=2048,
    )
    with tempfile.TemporaryDirectory() as base:
        PhiForCausalLM(config).to(torch.bfloat16).save_pretrained(base)
        p = load(ROOT / "params/paper.yaml").finetune_llm.model_copy(update={"steps": 20})
        rows = torch.randint(
            0,
            51200,
            (p.steps * p.batch_size, p.context),
            generator=torch.Generator().manual_seed(0),
        ).tolist()
        for name in ("QLoRA", "full, fp32 weights"):
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            model = lora.load_base(Path(base), "nf4" if name == "QLoRA" else "none")
            model = lora.adapt(model, p) if name == "QLoRA" else model
            with tempfile.TemporaryDirectory() as run:
                start = time.perf_counter()
                lora.train(model, rows, 50256, p, 0, Path(run))
                seconds = time.perf_counter() - start
            row(
                f"{torch.cuda.get_device_name()}, phi-1.5 size, {name}",
                f"{sum(map(len, rows)) / seconds:.0f} tokens/s, peak "
                f"{torch.cuda.max_memory_allocated() / 2**30:.1f} GiB",
                "10x less memory (paper)",
            )
            del model


if __name__ == "__main__":
    everything = {
        f.__name__: f
        for f in (
            scrape,
            odd,
            chunk,
            index,
            query,
            neural,
            packing,
            perplexity,
            prompts,
            memory,
            memory_scrape,
            gpu,
        )
    }
    wrong = [name for name in sys.argv[1:] if name not in everything]
    if wrong:
        sys.exit(f"{wrong[0]}: not one of {', '.join(everything)}")
    print("| what | measured | wanted |\n|---|---|---|")
    for name in sys.argv[1:] or everything:
        everything[name]()
