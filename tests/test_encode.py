"""encode on a tiny untrained model: every run is a process of its own."""

import json
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.torch import load_file
from tiny_diffusion import make_imagery, on_threads, run, write_params

from stages import encode, finetune_sd
from stages.common.artifacts import decode_image, digest, read_json, read_rows
from stages.diffusion import models
from stages.diffusion.latents import dihedral


def test_encoding_once_equals_encoding_directly(encoded):
    start = encoded / "models/base/diffusion"
    vae = models.load(start, "vae")
    found = load_file(encoded / "data/latents/train.safetensors")
    assert found["mean"].shape == (20, 8, 4, 8, 8) and found["mean"].dtype == torch.float16
    assert load_file(encoded / "data/latents/valid.safetensors")["mean"].shape == (6, 1, 4, 8, 8)
    row = read_rows(encoded / "data/imagery/train")[17]
    x = (
        torch.from_numpy(np.asarray(decode_image(row["image"])).copy()).permute(2, 0, 1)[None]
        / 127.5
        - 1
    )
    for variant in range(8):
        posterior = vae.encode(dihedral(x, variant)).latent_dist
        torch.testing.assert_close(
            found["mean"][17, variant].float(), posterior.mean[0], atol=2e-3, rtol=2e-3
        )
        torch.testing.assert_close(
            found["logvar"][17, variant].float(), posterior.logvar[0], atol=2e-2, rtol=2e-3
        )
    captions = pq.read_table(encoded / "data/latents/captions.parquet").to_pylist()
    assert captions[0] == {"id": 0, "caption": "", "truncated": False}
    rows = pq.read_table(encoded / "data/latents/rows_train.parquet").to_pylist()
    assert [captions[i]["caption"] for i in rows[17]["caption_ids"]] == row["captions"]
    direct = models.embed(
        models.load_tokenizer(start), models.load(start, "text_encoder"), [row["captions"][1]]
    )
    embeddings = load_file(encoded / "data/latents/captions.safetensors")["embeddings"]
    torch.testing.assert_close(
        embeddings[rows[17]["caption_ids"][1]].float(), direct[0], atol=2e-3, rtol=2e-3
    )


def test_the_bases_own_domain_comes_from_any_source(encoded, workspace):
    def captions(folder):
        texts = pq.read_table(folder / "data/latents/captions.parquet")["caption"].to_pylist()
        return [
            texts[row[0]]
            for row in pq.read_table(folder / "data/latents/rows_base.parquet")[
                "caption_ids"
            ].to_pylist()
        ]

    assert (
        len(captions(encoded)) == 4
        and read_json(encoded / "data/latents/SOURCE_base.json")["source"] == "embedded"
    )
    make_imagery(workspace / "photographs", {"test": 9}, size=50)
    write_params(workspace, encode={"base_domain": "path:photographs"})
    code, log = run(workspace, encode.main)
    assert code == 0, log
    assert captions(workspace) == [f"a field number {i}" for i in range(4)]
    assert load_file(workspace / "data/latents/base.safetensors")["mean"].shape == (4, 1, 4, 8, 8)
    assert not (workspace / "data/latents/base_images").exists()
    assert "encode.base_domain: 4 images; skipped: none" in log


def test_what_is_skipped_of_the_bases_own_domain_is_named_and_counted(workspace):
    folder = make_imagery(workspace / "tiles", {"test": 7}, size=50) / "test"
    rows = [row["image"]["bytes"] for row in read_rows(folder)]
    shutil.rmtree(folder.parent)
    (workspace / "photographs").mkdir()
    for i, content in enumerate(rows):
        (workspace / f"photographs/{i}.png").write_bytes(content if i != 1 else content[:99])
    texts = [
        ("0.png", "a field"),
        ("1.png", "broken"),
        ("0.png", "again"),
        ("2.png", ""),
        ("gone.png", "x"),
        *((f"{i}.png", f"field {i}") for i in range(3, 7)),
    ]
    (workspace / "photographs/metadata.jsonl").write_text(
        "".join(json.dumps({"file_name": name, "text": text}) + "\n" for name, text in texts)
    )
    write_params(workspace, encode={"base_domain": "path:photographs"})
    code, log = run(workspace, encode.main)
    assert code == 0, log
    assert (
        "encode.base_domain: 4 images; skipped: 1 image is unreadable or truncated (1.png ...); 1 duplicate file name (0.png ...); "
        "1 blank captions (2.png ...); 1 listed file is missing (gone.png ...)"
    ) in log
    (workspace / "photographs/metadata.jsonl").write_text(
        '{"file_name": "1.png", "text": "broken"}\n'
    )
    code, log = run(workspace, encode.main)
    assert (
        code == 1
        and "no usable image with a caption; skipped: 1 image is unreadable or truncated (1.png ...); 6 not in"
        in log
    )


def test_encoding_by_two_processes_gives_the_same_bytes(encoded, workspace):
    assert run(workspace, encode.main, processes=2)[0] == 0
    assert digest(workspace / "data/latents") == digest(encoded / "data/latents")


def test_encoding_on_more_cores_gives_the_same_bytes(workspace):
    write_params(
        workspace, encode={"batch_size": 32}
    )  # two slices; the last is all padding in valid
    outputs = []
    for threads in (1, 2):
        code, log = run(workspace, on_threads, threads, encode.main)
        assert code == 0, log
        outputs.append(digest(workspace / "data/latents"))
    assert outputs[0] == outputs[1]


def test_long_captions_are_counted_and_images_without_any_are_kept(workspace):
    shutil.rmtree(workspace / "data/imagery/valid")
    make_imagery(workspace / "data/imagery", {"valid": 3})
    path = workspace / "data/imagery/valid/00000.parquet"
    table = pq.read_table(path)
    captions = pa.array([["long " * 40, "long"], [], ["short"]], pa.list_(pa.string()))
    pq.write_table(
        table.set_column(table.schema.get_field_index("captions"), "captions", captions), path
    )
    code, log = run(workspace, encode.main)
    assert code == 0 and "1 of" in log and "longer than 77 tokens" in log
    assert pq.read_table(workspace / "data/latents/rows_valid.parquet")["caption_ids"].to_pylist()[
        1
    ] == [0]
    write_params(workspace, finetune_sd={"epochs": 0})
    assert run(workspace, finetune_sd.main)[0] == 0
    assert read_json(workspace / "metrics/diffusion.json")["truncated_captions"] == 1


def test_the_data_sets_own_normalization_is_undone_when_drawing(workspace):
    write_params(workspace, encode={"normalization": "dataset"}, finetune_sd={"epochs": 0.5})
    assert run(workspace, encode.main)[0] == 0
    statistics = read_json(workspace / "data/latents/normalization.json")
    pixels = (
        np.stack(
            [
                np.asarray(decode_image(row["image"]))
                for row in read_rows(workspace / "data/imagery/train")
            ]
        )
        / 255
    )
    np.testing.assert_allclose(statistics["mean"], pixels.mean((0, 1, 2)))
    np.testing.assert_allclose(statistics["std"], pixels.std((0, 1, 2)))
    x = ((pixels[0] - statistics["mean"]) / statistics["std"]).transpose(2, 0, 1)[None]
    assert np.array_equal(
        models.to_pixels(x.astype(np.float32), statistics)[0], np.round(pixels[0] * 255)
    )
    assert run(workspace, finetune_sd.main)[0] == 0
    assert models.pixel_statistics(workspace / "models/diffusion") == statistics
