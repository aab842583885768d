"""The tokenizer that is trained with a text encoder, on captions in any script."""

import unicodedata

import numpy as np
import pyarrow as pa


def test_the_tokenizer_from_scratch_takes_any_text(tmp_path, capsys):
    from transformers import CLIPTokenizer

    from stages.diffusion.clip_tokenizer import train_tokenizer
    from stages.diffusion.unread_text import log_dropped_words

    texts = ["many buildings near a river", "一条河穿过许多建筑物", "ein Fluß, Études 🌲"]
    ascii_letters = [chr(code) for code in range(33, 127)]
    folders = {name: tmp_path / name for name in ("bytes", "ascii", "english")}
    for folder in folders.values():
        folder.mkdir()
    train_tokenizer(texts, folders["bytes"])
    train_tokenizer(texts[:1], folders["ascii"], ascii_letters)
    train_tokenizer(texts[:1], folders["english"])
    tokenizers = {name: CLIPTokenizer.from_pretrained(path) for name, path in folders.items()}
    # Of transformers 4, which does not read tokenizer.json.
    (folders["bytes"] / "tokenizer.json").unlink()
    of_two_files = CLIPTokenizer.from_pretrained(folders["bytes"])

    rng = np.random.default_rng(0)
    codes = [code for code in range(33, 0x2FFFF) if not 0xD800 <= code < 0xE000]
    for text in [*texts, *("".join(map(chr, rng.choice(codes, 8))) for _ in range(200))]:
        ids = tokenizers["bytes"](text, add_special_tokens=False).input_ids
        assert tokenizers["bytes"].unk_token_id not in ids
        assert of_two_files(text, add_special_tokens=False).input_ids == ids
        normal = unicodedata.normalize("NFC", text).lower()
        decoded = tokenizers["bytes"].decode(ids)
        assert "".join(decoded.split()) == "".join(normal.split())
    # Words of another language are learned as those of English are.
    assert len(tokenizers["bytes"]("一条河穿过许多建筑物", add_special_tokens=False).input_ids) == 1

    # Of English text, both alphabets learn the same words.
    for word in ("buildings", "river", "rivers"):
        pieces = [tokenizers[name].tokenize(word) for name in ("ascii", "english")]
        assert pieces[0] == pieces[1]

    captions = pa.array(["", "many buildings", "一条河", "a river 🌲", "river, 一"])
    log_dropped_words("t", "captions", captions, tokenizers["ascii"])
    assert "in 3 of 4 captions; 1 of these have no other words" in capsys.readouterr().err
    log_dropped_words("t", "captions", captions, tokenizers["bytes"])
    assert not capsys.readouterr().err
