"""The index: passages that their embedder reads whole, its prompts, damaged and foreign stores."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

ROOT = Path(__file__).parents[1]
WORDS = "land water forest meadow river field snow sand hill lake".split()
MAX_TOKENS = 32  # that the tiny embedder reads, special tokens and prompt included


def write_embedder(folder: Path, prompts: dict, default: str | None = None) -> Path:
    """Write a tiny sentence-transformers model, a BERT over the letters of words.

    `default` is the name of the prompt of all texts that have no other.
    """
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import Pooling, Transformer
    from transformers import BertConfig, BertModel, BertTokenizerFast

    folder.mkdir(parents=True)
    letters = "abcdefghijklmnopqrstuvwxyz.:"
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, *letters]
    vocabulary += [f"##{letter}" for letter in letters]
    (folder / "vocab.txt").write_text("\n".join(vocabulary))
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2}
    config = BertConfig(vocab_size=len(vocabulary), num_hidden_layers=1, **sizes)
    BertModel(config).save_pretrained(folder / "encoder")
    BertTokenizerFast(vocab=str(folder / "vocab.txt")).save_pretrained(folder / "encoder")
    transformer = Transformer(str(folder / "encoder"), max_seq_length=MAX_TOKENS)
    model = SentenceTransformer(modules=[transformer, Pooling(16)], device="cpu")
    model.save(str(folder / "model"))
    file = folder / "model/config_sentence_transformers.json"
    settings = {"prompts": prompts, "default_prompt_name": default}
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))
    return folder / "model"


def write_corpus() -> None:
    """Write data/corpus.parquet: two papers of sentences, whose rarer words are many tokens."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = []
    for paper in ("a", "bcd"):
        for line in range(40):
            words = [WORDS[(line * line + i * len(paper)) % 10] for i in range(3 + line % 5)]
            text = f"The {' '.join(words)} of {paper} lies near the {WORDS[line % 10]}."
            rows.append({"paper": paper, "page": line // 10 + 1, "text": text})
        rows.append({"paper": paper, "page": 5, "text": " "})
    Path("data").mkdir(exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), "data/corpus.parquet")


@pytest.fixture
def workspace(tmp_path, monkeypatch):
    """A folder with a corpus, the demo's params and a new cache."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("REMOTE_DIFFUSION_SCRATCH", str(tmp_path / "scratch"))
    write_params()
    write_corpus()
    Path("models/base").mkdir(parents=True)
    return tmp_path


def write_params(**changed) -> None:
    values = yaml.safe_load((ROOT / "params/demo.yaml").read_text())
    values["index_rag"] |= {"overlap_tokens": 6} | changed
    Path("params.yaml").write_text(yaml.safe_dump(values, sort_keys=False))


def use_embedder(folder: Path) -> None:
    shutil.rmtree("models/base/embedder", ignore_errors=True)
    shutil.copytree(folder, "models/base/embedder")


def refused(function, *args) -> str:
    with pytest.raises(SystemExit) as stopped:
        function(*args)
    return str(stopped.value)


E5 = {"query": "query: ", "passage": "passage: "}
NOMIC = {"search_query": "query: ", "search_document": "passage: "}
FOR_ALL = {"instruct": "passage: "}


@pytest.mark.parametrize(
    "prompts, default, prompt, query_prompt",
    [
        (E5, "query", "passage: ", "query: "),
        (NOMIC, None, "passage: ", "query: "),
        (FOR_ALL, "instruct", "passage: ", "passage: "),
        ({}, None, "", ""),
    ],
)
def test_an_embedder_reads_passages_whole_and_after_its_prompts(
    workspace, capfd, prompts, default, prompt, query_prompt
):
    import pyarrow.parquet as pq

    from stages import index_rag
    from stages.text.embedder import NeuralEmbedder

    use_embedder(write_embedder(workspace / "tiny", prompts, default))
    index_rag.main()
    log = capfd.readouterr().err
    embedder = NeuralEmbedder(Path("models/base/embedder"))
    table = pq.read_table("models/index/passages.parquet")
    texts = table["text"].to_pylist()
    lengths = [len(embedder.model.tokenizer(prompt + text)["input_ids"]) for text in texts]
    assert max(lengths) <= MAX_TOKENS and np.median(lengths) > MAX_TOKENS / 2
    size = MAX_TOKENS - len(embedder.model.tokenizer(prompt)["input_ids"])
    assert re.search(rf"passage_tokens: {size} instead of 256", log)
    assert not prompts or f"{prompt!r}" in log and f"{query_prompt!r} before a query" in log
    # Another last word is another vector, and the prompts are in the vectors.
    options = {"prompt": "", "normalize_embeddings": True}
    raw = embedder.model.encode([prompt + text for text in texts], **options)
    assert np.allclose(raw, table["vector"].to_pylist(), atol=1e-5)
    ends = [re.sub(r"\w+\.?$", "sand lake", text) for text in texts]
    assert (np.abs(embedder.embed(ends) - raw).max(axis=1) > 1e-6).all()
    expected = embedder.model.encode([query_prompt + "a lake"], **options)
    assert np.allclose(embedder.embed_queries(["a lake"]), expected, atol=1e-5)


def test_unusable_embedders_are_refused_in_a_line(workspace):
    import pyarrow as pa
    import pyarrow.parquet as pq
    from transformers import AutoTokenizer

    from stages import index_rag
    from stages.text.retrieval import Retriever

    use_embedder(write_embedder(workspace / "tiny", {}))
    write_params(overlap_tokens=MAX_TOKENS - 2)
    assert re.match("error: index_rag.overlap_tokens: .*30 ", refused(index_rag.main))
    write_params(passage_tokens=20)
    index_rag.main()
    base = Path("models/base/embedder")
    foreign = "error: models/index: .*models/base/embedder.*index_rag"
    # An embedder of as many dimensions, then the embedded one.
    use_embedder(write_embedder(workspace / "other", {"document": "lake " * MAX_TOKENS}))
    assert re.match(foreign, refused(Retriever, Path("models/index"), base))
    assert re.match("error: models/base/embedder: .*lake lake", refused(index_rag.main))
    shutil.rmtree(base)
    base.mkdir()
    assert re.match(foreign, refused(Retriever, Path("models/index"), base))
    index_rag.main()
    assert Retriever(Path("models/index"), base).nearest("a lake", 3)
    # Passages of another index, with vectors of fewer dimensions.
    passages = Path("models/index/passages.parquet")
    table = pq.read_table(passages)
    vectors = pa.array([vector[:3] for vector in table["vector"].to_pylist()])
    pq.write_table(table.drop("vector").append_column("vector", vectors), passages)
    retriever = Retriever(Path("models/index"), base)
    assert re.match("error: models/index: .*index_rag", refused(retriever.nearest, "a lake", 3))
    use_embedder(workspace / "tiny/model")
    assert re.match(foreign, refused(Retriever, Path("models/index"), base))
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.add_tokens(["<added>"])
    tokenizer.save_pretrained(base)
    assert re.match("error: models/base/embedder: .*<added>", refused(index_rag.main))


def test_a_damaged_store_is_built_again(workspace, capfd):
    from stages import index_rag
    from stages.text.retrieval import Retriever

    base = Path("models/base/embedder")
    base.mkdir()
    index_rag.main()

    def nearest() -> list[str]:
        return [hit["id"] for hit in Retriever(Path("models/index"), base).nearest("a lake", 2)]

    first = nearest()
    assert nearest() == first and "damaged" not in capfd.readouterr().err
    (store,) = (workspace / "scratch/chroma").glob("*/")
    assert store.stat().st_mode == store.parent.stat().st_mode, "other accounts may read it, too"
    files = {file.name for file in store.rglob("*") if file.is_file()}
    assert "chroma.sqlite3" in files
    for name in sorted(files):
        (file,) = store.rglob(name)
        content = file.read_bytes()
        file.write_bytes(content[: len(content) // 2] or b"x")
        assert nearest() == first and f"{store} is damaged" in capfd.readouterr().err
    shutil.rmtree(store)
    assert nearest() == first


def test_an_old_sqlite_is_named():
    code = (
        "import sqlite3; sqlite3.sqlite_version_info = (3, 31, 1)\n"
        "sqlite3.sqlite_version = '3.31.1'\n"
        "from stages.text import retrieval; retrieval.import_chromadb()"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and re.match("error: .*SQLite 3.35 .*3.31.1", done.stderr)


def test_passages_of_a_text_without_spaces_are_bounded():
    from stages.index_rag import make_splitter
    from stages.params import IndexRag

    splitter = make_splitter(IndexRag(passage_tokens=64, overlap_tokens=4, dimensions=8), None)
    for text in ("\u7530" * 1000, "\u0e19" * 1000, "a" * 5000):
        passages = splitter.split_text(text)
        assert max(map(len, passages)) <= 64 * 40 and len(passages) > 1
