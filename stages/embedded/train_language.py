"""Pretrain the tiny Phi language model that ships with the repository, on Python's documentation.

    python -m stages.embedded.train_models language PACKAGE

PACKAGE is Debian's python3.11-doc_3.11.2-6+deb12u9_all.deb (`apt-get download python3.11-doc`),
pinned by its SHA-256. The text is the prose, headings and lists of its HTML pages, without code.
Writes a model that `AutoModelForCausalLM.from_pretrained` reads (fp16 safetensors, byte-level BPE)
to `models/language`. It takes about ten minutes on one core, and one thread, so that the same
package gives the same weights.
"""

import hashlib
import io
import json
import math
import tarfile
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.runtime.errors import exit_with_error
from stages.runtime.file_modes import follow_umask
from stages.runtime.progress import log, progress_bar

if TYPE_CHECKING:
    import torch
    from transformers import PhiForCausalLM

PACKAGE_SHA256 = "5b3594189d6ef9a6963ce0347fd307a1cc67620ad697e144db366070e2e146be"
MODEL_FOLDER = Path(__file__).with_name("models") / "language"
END_OF_TEXT = "<|endoftext|>"
# The model.
VOCABULARY = 2560  # tokens
WIDTH = 192
LAYERS = 3
HEADS = 4
CONTEXT = 256  # tokens
# Training.
STEPS = 1600
BATCH = 8  # windows of CONTEXT tokens per step
PEAK_LR = 3e-3
WARMUP_STEPS = 80
HELD_OUT_EVERY = 20  # every 20th page is held out
MIN_PARAGRAPH = 40  # characters; what is not longer is no prose
# Sizes in an `ar` archive.
AR_MAGIC_BYTES = 8
AR_HEADER_BYTES = 60


def main(package: str | Path) -> None:
    """Train on the text of a package and write the model, its tokenizer and its README."""
    import torch

    from stages.common.torch_setup import make_deterministic

    torch.set_num_threads(1)
    make_deterministic(0)

    pages = list(read_pages(Path(package)).values())
    tokenizer = train_tokenizer(pages)
    train_pages = [page for number, page in enumerate(pages) if number % HELD_OUT_EVERY]
    held_out_pages = [page for number, page in enumerate(pages) if not number % HELD_OUT_EVERY]
    train_tokens = concatenate_tokens(train_pages, tokenizer)  # [N]
    held_out_tokens = concatenate_tokens(held_out_pages, tokenizer)  # [M]
    log(
        f"train_language: {len(pages)} pages, {sum(map(len, pages))} characters, "
        f"{len(train_tokens)} tokens"
    )

    model = make_model(tokenizer.eos_token_id)
    train_model(model, train_tokens)
    model = model.half().float().eval()  # fp16 rounds the weights: measure what ships
    perplexity = measure_perplexity(model, held_out_tokens)
    model.half().save_pretrained(MODEL_FOLDER)
    follow_umask(MODEL_FOLDER)
    tokenizer.save_pretrained(MODEL_FOLDER)
    write_readme(model, perplexity, len(train_tokens))


class ProseParser(HTMLParser):
    """Collects the paragraphs, list items and headings of a Sphinx page, without code blocks."""

    BLOCKS = ("p", "li", "dd", "dt", "h1", "h2", "h3", "h4")
    SKIPPED = ("pre", "script", "style", "table", "dt")
    VOID = ("br", "img", "hr", "input", "meta", "link", "col", "wbr")

    def __init__(self) -> None:
        super().__init__()
        self.paragraphs: list[str] = []
        self._words: list[str] = []  # of the paragraph being read
        self._open: list[tuple[str, bool, bool]] = []  # (tag, is skipped, is the main part)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in self.BLOCKS:
            self._end_paragraph()
        if tag not in self.VOID:
            attributes = dict(attrs)
            is_skipped = tag in self.SKIPPED or "headerlink" in (attributes.get("class") or "")
            self._open.append((tag, is_skipped, attributes.get("role") == "main"))

    def handle_endtag(self, tag: str) -> None:
        if tag in self.BLOCKS:
            self._end_paragraph()
        if any(name == tag for name, _, _ in self._open):
            while self._open.pop()[0] != tag:
                pass

    def handle_data(self, data: str) -> None:
        in_main_part = any(is_main for _, _, is_main in self._open)
        in_skipped = any(is_skipped for _, is_skipped, _ in self._open)
        if in_main_part and not in_skipped:
            self._words.append(data)

    def _end_paragraph(self) -> None:
        text = " ".join("".join(self._words).split())
        self._words = []
        if len(text) > MIN_PARAGRAPH:
            self.paragraphs.append(text)


def read_pages(package: Path) -> dict[str, str]:
    """Return the prose of each page of the documentation by its path, in the order of the paths.

    Raises:
        SystemExit: the file is not the pinned package.
    """
    content = package.read_bytes()
    if hashlib.sha256(content).hexdigest() != PACKAGE_SHA256:
        exit_with_error(
            f"{package}: not the pinned python3.11-doc package (SHA-256 {PACKAGE_SHA256})"
        )
    html_pages = read_html(content)
    prose = {}
    for path in sorted(html_pages):
        parser = ProseParser()
        parser.feed(html_pages[path])
        if parser.paragraphs:
            prose[path] = "\n".join(parser.paragraphs)
    return prose


def read_html(package: bytes) -> dict[str, str]:
    """Return the HTML pages of a .deb, an `ar` archive (see `man 5 ar`) around a `data.tar`."""
    pages: dict[str, str] = {}
    offset = AR_MAGIC_BYTES
    while offset < len(package):
        name = package[offset : offset + 16].decode().strip().rstrip("/")
        size = int(package[offset + 48 : offset + 58])
        start = offset + AR_HEADER_BYTES
        if name.startswith("data.tar"):
            pages |= read_html_from_tar(package[start : start + size])
        offset = start + size + size % 2
    return pages


def read_html_from_tar(content: bytes) -> dict[str, str]:
    """Return the HTML pages below `html/` in a tar archive, without the index and the changelog."""
    pages = {}
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        for member in archive:
            path = member.name.partition("/html/")[2]
            is_listing = path.startswith(("genindex", "whatsnew/changelog"))
            file = archive.extractfile(member) if member.isfile() else None
            if file and path.endswith(".html") and not is_listing:
                pages[path] = file.read().decode("utf-8")
    return pages


def train_tokenizer(texts: list[str]) -> Any:
    """Train a byte-level BPE tokenizer.

    It has no end-of-word suffix: with one, the merges differ between processes.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[END_OF_TEXT],
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END_OF_TEXT,
        bos_token=END_OF_TEXT,
        unk_token=END_OF_TEXT,
        model_max_length=CONTEXT,
    )


def concatenate_tokens(texts: list[str], tokenizer: Any) -> "torch.Tensor":
    """Return the tokens of all texts, each text ended by the end-of-text token: [N] int64."""
    import torch

    ids: list[int] = []
    for text in texts:
        ids += tokenizer(text)["input_ids"]
        ids.append(tokenizer.eos_token_id)
    return torch.tensor(ids)


def make_model(end_of_text: int) -> "PhiForCausalLM":
    """Return the untrained model; `end_of_text` is the id of the end-of-text token."""
    from transformers import PhiConfig, PhiForCausalLM

    return PhiForCausalLM(
        PhiConfig(
            vocab_size=VOCABULARY,
            hidden_size=WIDTH,
            intermediate_size=4 * WIDTH,
            num_hidden_layers=LAYERS,
            num_attention_heads=HEADS,
            max_position_embeddings=CONTEXT,
            tie_word_embeddings=True,
            bos_token_id=end_of_text,
            eos_token_id=end_of_text,
        )
    )


def train_model(model: "PhiForCausalLM", tokens: "torch.Tensor") -> None:
    """Train with AdamW on random windows of the tokens ([N]), with warm-up and cosine decay."""
    import torch

    from stages.common.torch_setup import torch_generator

    parameters = list(model.parameters())
    optimizer = torch.optim.AdamW(
        [
            {"params": [weight for weight in parameters if weight.ndim > 1], "weight_decay": 0.1},
            {"params": [weight for weight in parameters if weight.ndim <= 1], "weight_decay": 0.0},
        ],
        lr=PEAK_LR,
        betas=(0.9, 0.95),
    )
    generator = torch_generator(0, "windows")
    for step in progress_bar(range(STEPS), desc="train_language", unit="step"):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step)
        starts = torch.randint(len(tokens) - CONTEXT, (BATCH,), generator=generator)
        ids = torch.stack([tokens[start : start + CONTEXT] for start in starts])  # [B, CONTEXT]
        loss = model(input_ids=ids, labels=ids).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if (step + 1) % 250 == 0:
            log(f"step {step + 1}: loss {loss.item():.3f}")


def learning_rate(step: int) -> float:
    """Return the learning rate of a step: linear warm-up, cosine decay to 5 % of the peak."""
    warmup = min(1.0, (step + 1) / WARMUP_STEPS)
    decay = 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * step / STEPS))
    return PEAK_LR * warmup * decay


def measure_perplexity(model: "PhiForCausalLM", tokens: "torch.Tensor") -> float:
    """Return the perplexity on the tokens ([M]), cut into windows of `CONTEXT`."""
    import torch

    windows = tokens[: len(tokens) // CONTEXT * CONTEXT].view(-1, CONTEXT)  # [W, CONTEXT]
    with torch.no_grad():
        losses = [model(input_ids=batch, labels=batch).loss for batch in windows.split(16)]
    return math.exp(torch.stack(losses).mean().item())


def write_readme(model: "PhiForCausalLM", perplexity: float, tokens: int) -> None:
    """Write what the model is, how it was made and its license; `tokens` is the training size."""
    size = sum(weight.numel() for weight in model.parameters())
    text = f"""# A tiny Phi, pretrained on Python's documentation

{size:,} parameters ({LAYERS} layers of width {WIDTH}, {HEADS} heads, context {CONTEXT},
{VOCABULARY} byte-level BPE tokens), stored in fp16.
Made by `python -m stages.embedded.train_models language` from the prose of Debian's \
`python3.11-doc` 3.11.2-6+deb12u9 (SHA-256
`{PACKAGE_SHA256}`): {tokens:,} training tokens, {STEPS} steps of {BATCH} x {CONTEXT}.
Perplexity on held-out pages (one in {HELD_OUT_EVERY}): {perplexity:.1f}. \
It knows English as manuals write it
and nothing of remote sensing.

The documentation is Copyright (c) 2001-2023 Python Software Foundation, \
under the PSF License Version 2
(https://docs.python.org/3.11/license.html); the weights are made available under the same license.
"""
    (MODEL_FOLDER / "README.md").write_text(text, encoding="utf-8")
    log(json.dumps({"parameters": size, "perplexity": round(perplexity, 2), "tokens": tokens}))
