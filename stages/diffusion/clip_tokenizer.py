"""Learn CLIP's tokenizer from texts, and use it."""

import unicodedata
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

TEXT_TOKENS = 77  # CLIP's context length


def train_tokenizer(
    texts: list[str], folder: Path, letters: Sequence[str] | None = None, merges: int = 1500
) -> None:
    """Learn CLIP's byte-pair encoding (Sennrich et al. 2016) and save it as a CLIPTokenizer.

    Text is lower case, and words end in `</w>`. The `tokenizers` library cannot be used: with such
    a suffix, its trainer breaks ties differently in every process.

    Args:
        texts: to learn from.
        folder: to save to.
        letters: of the vocabulary. None: one for each byte, as CLIP has it, so that there is a
            token for any text. Words with another letter are ignored here, and dropped later.
        merges: the largest number of tokens of several letters.
    """
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import CLIPTokenizer

    letters = sorted(ByteLevel.alphabet()) if letters is None else letters
    word_counts = Counter(
        word for text in texts for word in unicodedata.normalize("NFC", text).lower().split()
    )
    # A letter stands for each byte of a word: its own in ASCII, `æ²³` for 河.
    to_bytes = ByteLevel(add_prefix_space=False, use_regex=False)
    byte_counts = {to_bytes.pre_tokenize_str(word)[0][0]: n for word, n in word_counts.items()}
    learned: Any = _learn_merges(byte_counts, letters, merges)
    tokens = [
        *letters,
        *(letter + "</w>" for letter in letters),
        *("".join(pair) for pair in learned),
        "<|startoftext|>",
        "<|endoftext|>",
    ]
    vocabulary = {token: i for i, token in enumerate(dict.fromkeys(tokens))}
    tokenizer = CLIPTokenizer(
        vocab=vocabulary, merges=learned, model_max_length=TEXT_TOKENS, pad_token="<|endoftext|>"
    )
    tokenizer.save_pretrained(folder)
    # vocab.json and merges.txt: CLIPTokenizer reads nothing else in transformers 4.
    tokenizer.backend_tokenizer.model.save(str(folder))


def _learn_merges(
    word_counts: dict[str, int], letters: Sequence[str], merges: int
) -> list[tuple[str, str]]:
    """The pairs of tokens to merge, most frequent first; alphabetical order breaks ties.

    Words with a character outside `letters` are ignored.
    """
    tokens_of_word = {
        word: [*word[:-1], word[-1] + "</w>"]
        for word in word_counts
        if all(letter in letters for letter in word)
    }
    learned: list[tuple[str, str]] = []
    while len(learned) < merges:
        pair_counts: Counter[tuple[str, str]] = Counter()
        for word, tokens in tokens_of_word.items():
            for pair in zip(tokens, tokens[1:]):
                pair_counts[pair] += word_counts[word]
        if not pair_counts:
            break
        best = min(pair_counts, key=lambda pair: (-pair_counts[pair], pair))
        learned.append(best)
        for tokens in tokens_of_word.values():
            _merge_pair(tokens, best)
    return learned


def _merge_pair(tokens: list[str], pair: tuple[str, str]) -> None:
    """Merge each occurrence of a pair of neighboring tokens, in place."""
    i = 0
    while i < len(tokens) - 1:
        if (tokens[i], tokens[i + 1]) == pair:
            tokens[i : i + 2] = ["".join(pair)]
        i += 1


def tokenize(tokenizer: Any, texts: list[str]) -> torch.Tensor:
    """Token ids [B, 77], padded and truncated as CLIP does."""
    return tokenizer(
        texts, padding="max_length", truncation=True, max_length=TEXT_TOKENS, return_tensors="pt"
    ).input_ids
