"""Pretrain the tiny Phi language model that ships with the repository, on the text of Python's own documentation.

    python -m stages.embedded.train_language <python3.11-doc_3.11.2-6+deb12u9_all.deb> [folder]

The text is Debian's package (`apt-get download python3.11-doc`), pinned by its SHA-256: running prose, headings and
lists of the HTML pages, without code. Writes a folder that `AutoModelForCausalLM.from_pretrained` reads (fp16
safetensors, byte-level BPE). About ten minutes on one core. One thread: the same package gives the same weights.
"""

import hashlib
import io
import json
import math
import sys
import tarfile
from html.parser import HTMLParser
from pathlib import Path

from stages.runtime.errors import exit_with_error
from stages.runtime.progress import log, progress_bar

SHA256 = "5b3594189d6ef9a6963ce0347fd307a1cc67620ad697e144db366070e2e146be"
TARGET = Path(__file__).with_name("models") / "language"
EOS = "<|endoftext|>"
VOCABULARY, WIDTH, LAYERS, HEADS, CONTEXT = 2560, 192, 3, 4, 256
STEPS, BATCH, LR, WARMUP, HELD_OUT = 1600, 8, 3e-3, 80, 20  # every 20th page is held out


class Prose(HTMLParser):
    """Paragraphs of a Sphinx page: what stands in p, li, dd and headings of the main part, without code blocks."""

    BLOCKS, SKIPPED = (
        ("p", "li", "dd", "dt", "h1", "h2", "h3", "h4"),
        ("pre", "script", "style", "table", "dt"),
    )
    VOID = ("br", "img", "hr", "input", "meta", "link", "col", "wbr")

    def __init__(self):
        super().__init__()
        self.paragraphs, self.words, self.open = [], [], []

    def handle_starttag(self, tag, attributes):
        if tag in self.BLOCKS:
            self._close()
        if tag not in self.VOID:
            attributes = dict(attributes)
            skip = tag in self.SKIPPED or "headerlink" in (attributes.get("class") or "")
            self.open.append((tag, skip, attributes.get("role") == "main"))

    def handle_endtag(self, tag):
        if tag in self.BLOCKS:
            self._close()
        while self.open and any(name == tag for name, _, _ in self.open):
            if self.open.pop()[0] == tag:
                break

    def handle_data(self, data):
        if any(main for _, _, main in self.open) and not any(skip for _, skip, _ in self.open):
            self.words.append(data)

    def _close(self):
        text = " ".join("".join(self.words).split())
        self.words = []
        if len(text) > 40:
            self.paragraphs.append(text)


def pages(package: Path) -> dict[str, str]:
    """Page path -> its prose, read out of the .deb (an `ar` archive around a `data.tar`)."""
    content = package.read_bytes()
    if hashlib.sha256(content).hexdigest() != SHA256:
        exit_with_error(f"{package}: not the pinned python3.11-doc package (SHA-256 {SHA256})")
    found, at = {}, 8
    while at < len(content):
        name, size = (
            content[at : at + 16].decode().strip().rstrip("/"),
            int(content[at + 48 : at + 58]),
        )
        if name.startswith("data.tar"):
            with tarfile.open(fileobj=io.BytesIO(content[at + 60 : at + 60 + size])) as archive:
                for member in archive:
                    path = member.name.partition("/html/")[2]
                    listing = path.startswith(("genindex", "whatsnew/changelog"))
                    if member.isfile() and path.endswith(".html") and not listing:
                        found[path] = archive.extractfile(member).read().decode("utf-8")
        at += 60 + size + size % 2
    prose = {}
    for path in sorted(found):
        parser = Prose()
        parser.feed(found[path])
        if parser.paragraphs:
            prose[path] = "\n".join(parser.paragraphs)
    return prose


def train_tokenizer(texts: list[str]):
    """A byte-level BPE tokenizer (no end-of-word suffix: with one, the merges differ between processes)."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[EOS],
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=EOS,
        bos_token=EOS,
        unk_token=EOS,
        model_max_length=CONTEXT,
    )


def main(package: str, folder: str = str(TARGET)) -> None:
    import torch
    from transformers import PhiConfig, PhiForCausalLM

    from stages.common.torch_setup import make_deterministic, torch_generator

    torch.set_num_threads(1)
    make_deterministic(0)
    prose = pages(Path(package))
    tokenizer = train_tokenizer(list(prose.values()))

    # One long stream of tokens, pages ended by EOS: [T].
    def stream(texts):
        return torch.tensor(
            [
                token
                for text in texts
                for token in (*tokenizer(text)["input_ids"], tokenizer.eos_token_id)
            ]
        )

    train = stream(text for n, text in enumerate(prose.values()) if n % HELD_OUT)
    held = stream(text for n, text in enumerate(prose.values()) if not n % HELD_OUT)
    held = held[: len(held) // CONTEXT * CONTEXT].view(-1, CONTEXT)  # [W, CONTEXT]
    log(
        f"train_language: {len(prose)} pages, {sum(map(len, prose.values()))} characters, {len(train)} tokens"
    )

    model = PhiForCausalLM(
        PhiConfig(
            vocab_size=VOCABULARY,
            hidden_size=WIDTH,
            intermediate_size=4 * WIDTH,
            num_hidden_layers=LAYERS,
            num_attention_heads=HEADS,
            max_position_embeddings=CONTEXT,
            tie_word_embeddings=True,
            bos_token_id=tokenizer.eos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )
    decay = [p for p in model.parameters() if p.ndim > 1]
    plain = [p for p in model.parameters() if p.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": decay, "weight_decay": 0.1}, {"params": plain, "weight_decay": 0.0}],
        lr=LR,
        betas=(0.9, 0.95),
    )
    generator = torch_generator(0, "windows")
    for step in progress_bar(range(STEPS), what="train_language", unit="step"):
        warm = min(1.0, (step + 1) / WARMUP)
        optimizer.param_groups[0]["lr"] = optimizer.param_groups[1]["lr"] = (
            LR * warm * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * step / STEPS)))
        )
        starts = torch.randint(len(train) - CONTEXT, (BATCH,), generator=generator)
        ids = torch.stack([train[s : s + CONTEXT] for s in starts])  # [B, CONTEXT]
        loss = model(input_ids=ids, labels=ids).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if (step + 1) % 250 == 0:
            log(f"step {step + 1}: loss {loss.item():.3f}")

    # fp16 rounds the weights: measure what ships.
    model = model.half().float().eval()
    with torch.no_grad():
        losses = [model(input_ids=part, labels=part).loss for part in held.split(16)]
    perplexity = math.exp(torch.stack(losses).mean().item())
    model.half().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    write_readme(Path(folder), model, perplexity, len(train))


def write_readme(folder: Path, model, perplexity: float, tokens: int) -> None:
    size = sum(p.numel() for p in model.parameters())
    text = f"""# A tiny Phi, pretrained on Python's documentation

{size:,} parameters ({LAYERS} layers of width {WIDTH}, {HEADS} heads, context {CONTEXT},
{VOCABULARY} byte-level BPE tokens), stored in fp16.
Made by `python -m stages.embedded.train_language` from the prose of Debian's `python3.11-doc` 3.11.2-6+deb12u9 (SHA-256
`{SHA256}`): {tokens:,} training tokens, {STEPS} steps of {BATCH} x {CONTEXT}.
Perplexity on held-out pages (one in {HELD_OUT}): {perplexity:.1f}. It knows English as manuals write it
and nothing of remote sensing.

The documentation is Copyright (c) 2001-2023 Python Software Foundation, under the PSF License Version 2
(https://docs.python.org/3.11/license.html); the weights are made available under the same license.
"""
    (folder / "README.md").write_text(text, encoding="utf-8")
    log(json.dumps({"parameters": size, "perplexity": round(perplexity, 2), "tokens": tokens}))


if __name__ == "__main__":
    main(*sys.argv[1:])
