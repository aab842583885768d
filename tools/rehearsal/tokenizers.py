"""Tokenizers of the published kinds and sizes, trained on a text file and filled up.

A token that training doesn't reach is named `unused<number>`, so that every embedding of a model
has its token.
"""

import json
import string
from pathlib import Path
from typing import Any

from stages.common.artifacts import write_json


def write_clip_tokenizer(folder: Path, text: Path, fast: bool) -> None:
    """CLIP's 49,408 tokens: vocab.json and merges.txt; tokenizer.json, too, where `fast`."""
    from transformers import CLIPTokenizer
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    size = 49408
    letters = list(bytes_to_unicode().values())
    special = ["<|startoftext|>", "<|endoftext|>"]
    merges = word_merges(text, size - 2 * len(letters) - len(special))
    tokens = [*letters, *(letter + "</w>" for letter in letters)]
    tokens = list(dict.fromkeys([*tokens, *("".join(merge) for merge in merges)]))
    tokens += [f"unused{number}</w>" for number in range(size - len(special) - len(tokens))]
    vocabulary = {token: number for number, token in enumerate([*tokens, *special])}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    lines = ["#version: 0.2", *map(" ".join, merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    if fast:
        tokenizer = CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"))
        tokenizer.backend_tokenizer.save(str(folder / "tokenizer.json"))


def write_phi_tokenizer(folder: Path, text: Path) -> None:
    """GPT-2's kind of byte-level BPE: 50,257 tokens, and Phi's 38 of blanks and tabs."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

    size = 50257
    end = "<|endoftext|>"
    added = [" " * count for count in range(31, 1, -1)]
    added += ["\t" * count for count in range(9, 1, -1)]
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    letters = byte_level.alphabet()
    vocabulary, merges = train_bpe(text, size - 1, byte_level, initial_alphabet=letters)
    filling = [f"Ġunused{number}" for number in range(size - 1 - len(vocabulary))]
    for token in [*filling, end]:
        vocabulary[token] = len(vocabulary)

    tokenizer = Tokenizer(models.BPE(vocabulary, merges))
    tokenizer.pre_tokenizer = byte_level
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    tokenizer.add_special_tokens([end])
    tokenizer.add_tokens([AddedToken(token, normalized=True) for token in added])
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.model.save(str(folder))
    tokenizer.save(str(folder / "tokenizer.json"))
    numbers = {token: size + number for number, token in enumerate(added)}
    write_json(folder / "added_tokens.json", numbers)


def write_mistral_tokenizer(folder: Path, text: Path, sentences: list[str]) -> dict[str, Any]:
    """Llama's kind of BPE with byte fallback, 32,000 tokens; the last ones are whole sentences.

    No text is encoded as one of these. Returns the numbers of the sentences and of the tokens
    after which an answer begins, a line ends, and an answer ends.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    size = 32000
    special = ["<unk>", "<s>", "</s>"]
    _, merges = train_bpe(text, 12000, pre_tokenizers.Metaspace())
    letters = [*string.printable.strip()]
    letters += [letter for merge in merges for piece in merge for letter in piece]
    tokens = [*special, *(f"<0x{number:02X}>" for number in range(256)), *letters]
    tokens = list(dict.fromkeys([*tokens, *("".join(merge) for merge in merges)]))
    tokens += [f"▁unused{number}" for number in range(size - len(sentences) - len(tokens))]
    tokens += [sentence.replace(" ", "▁") for sentence in sentences]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    model = models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    tokenizer = Tokenizer(model)
    spaces = [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    tokenizer.normalizer = normalizers.Sequence(spaces)
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
    )
    tokenizer.add_special_tokens(special)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    return {
        "sentences": list(range(size - len(sentences), size)),
        "begin": vocabulary["]"],  # the last token of a request
        "line": vocabulary["<0x0A>"],
        "end": vocabulary["</s>"],
    }


def write_bert_tokenizer(folder: Path, text: Path) -> None:
    """BERT's uncased WordPiece, 30,522 tokens: vocab.txt and tokenizer.json."""
    from tokenizers import BertWordPieceTokenizer

    size = 30522
    trained = BertWordPieceTokenizer(lowercase=True)
    trained.train([str(text)], vocab_size=size, show_progress=False)
    numbers = trained.get_vocab()
    tokens = sorted(numbers, key=numbers.__getitem__)
    tokens += [f"[unused{number}]" for number in range(size - len(tokens))]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(tokens) + "\n", encoding="utf-8")
    tokenizer = BertWordPieceTokenizer(str(folder / "vocab.txt"), lowercase=True)
    tokenizer.enable_truncation(128)
    tokenizer.enable_padding(length=128)
    tokenizer.save(str(folder / "tokenizer.json"))


def word_merges(text: Path, count: int) -> list[tuple[str, str]]:
    """At most so many merges of a BPE over lower-case words of ASCII that end in </w>."""
    from tokenizers import Regex, normalizers, pre_tokenizers

    only_ascii = normalizers.Replace(Regex("[^ -~]"), " ")
    normalizer = normalizers.Sequence([normalizers.Lowercase(), only_ascii])
    words = pre_tokenizers.Whitespace()
    _, merges = train_bpe(text, count, words, normalizer, end_of_word_suffix="</w>")
    return merges


def train_bpe(
    text: Path, size: int, pre_tokenizer: Any, normalizer: Any = None, **options: Any
) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Vocabulary, of at most `size` tokens, and merges of a BPE. options: of its trainer."""
    from tokenizers import Tokenizer, models
    from tokenizers.trainers import BpeTrainer

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.normalizer = normalizer
    tokenizer.train([str(text)], BpeTrainer(vocab_size=size, show_progress=False, **options))
    model = json.loads(tokenizer.to_str())["model"]
    return model["vocab"], [tuple(merge) for merge in model["merges"]]
