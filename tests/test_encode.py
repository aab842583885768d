"""encode on a tiny untrained model: every run is a new process."""

import json
import math
import os
import re
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import REPOSITORY, shell
from safetensors.torch import load_file
from tiny_diffusion import make_imagery, on_threads, resume_key, run, write_params

from stages import encode, finetune_sd
from stages.common.artifacts import decode_image, digest, read_json, read_rows
from stages.common.dihedral import dihedral
from stages.diffusion import encoding, grouped_arrays, models
from stages.diffusion.normalization import read_folded


def pixels(row: dict) -> np.ndarray:
    """The image of a row, uint8 [H, W, 3]."""
    return np.asarray(decode_image(row["image"]))


def test_encoding_once_equals_encoding_directly(encoded):
    latents = encoded / "data/latents"
    start = encoded / "models/base/diffusion"
    vae = models.load(start, "vae")
    train = load_file(latents / "train.safetensors")
    assert train["mean"].shape == (20, 8, 4, 8, 8) and train["mean"].dtype == torch.float16
    assert load_file(latents / "valid.safetensors")["mean"].shape == (6, 1, 4, 8, 8)
    image = read_rows(encoded / "data/imagery/train")[17]
    x = torch.from_numpy(pixels(image).copy()).permute(2, 0, 1)[None] / 127.5 - 1  # [1, 3, H, W]
    for variant in range(8):
        posterior = vae.encode(dihedral(x, variant)).latent_dist
        mean = train["mean"][17, variant].float()
        logvar = train["logvar"][17, variant].float()
        torch.testing.assert_close(mean, posterior.mean[0], atol=2e-3, rtol=2e-3)
        torch.testing.assert_close(logvar, posterior.logvar[0], atol=2e-2, rtol=2e-3)
    captions = pq.read_table(latents / "captions.parquet").to_pylist()
    assert captions[0] == {"id": 0, "caption": "", "truncated": False}
    caption_ids = pq.read_table(latents / "rows_train.parquet").to_pylist()[17]["caption_ids"]
    assert [captions[i]["caption"] for i in caption_ids] == image["captions"]
    tokenizer = models.load_tokenizer(start)
    text_encoder = models.load(start, "text_encoder")
    direct = models.embed_text(tokenizer, text_encoder, [image["captions"][1]])[0]  # [L, D]
    embeddings = load_file(latents / "captions.safetensors")["embeddings"]
    torch.testing.assert_close(embeddings[caption_ids[1]].float(), direct, atol=2e-3, rtol=2e-3)


def first_captions_of_base_domain(folder: Path) -> list[str]:
    """The first caption of each image of the base model's own domain."""
    captions = pq.read_table(folder / "data/latents/captions.parquet")["caption"].to_pylist()
    rows = pq.read_table(folder / "data/latents/rows_base.parquet").to_pylist()
    return [captions[row["caption_ids"][0]] for row in rows]


def test_the_base_domain_comes_from_any_source(encoded, workspace):
    assert len(first_captions_of_base_domain(encoded)) == 4
    assert read_json(encoded / "data/latents/SOURCE_base.json")["source"] == "embedded"
    make_imagery(workspace / "photographs", {"test": 9}, size=50)
    write_params(workspace, encode={"base_domain": "path:photographs"})
    code, log = run(workspace, encode.main)
    assert code == 0, log
    captions = first_captions_of_base_domain(workspace)
    assert captions == [f"a field number {i}" for i in range(4)]
    assert load_file(workspace / "data/latents/base.safetensors")["mean"].shape == (4, 1, 4, 8, 8)
    assert not (workspace / "data/latents/base_images").exists()
    assert "encode.base_domain: 4 " in log


def test_skipped_images_of_the_base_domain_are_named_and_counted(workspace):
    folder = make_imagery(workspace / "tiles", {"test": 7}, size=50) / "test"
    images = [row["image"]["bytes"] for row in read_rows(folder)]
    shutil.rmtree(folder.parent)
    photographs = workspace / "photographs"
    photographs.mkdir()
    for i, content in enumerate(images):
        (photographs / f"{i}.png").write_bytes(content if i != 1 else content[:99])
    texts = [
        ("0.png", "a field"),
        ("1.png", "broken"),
        ("0.png", "again"),
        ("2.png", ""),
        ("gone.png", "x"),
        *((f"{i}.png", f"field {i}") for i in range(3, 7)),
    ]
    metadata = photographs / "metadata.jsonl"
    lines = [json.dumps({"file_name": name, "text": text}) + "\n" for name, text in texts]
    metadata.write_text("".join(lines))
    write_params(workspace, encode={"base_domain": "path:photographs"})
    code, log = run(workspace, encode.main)
    assert code == 0, log
    (line,) = re.findall("encode.base_domain: 4 .*", log)
    for name in ("1.png", "0.png", "2.png", "gone.png"):
        assert re.search(rf"\b1 [^;]*\({re.escape(name)} ", line), f"{name}: {line}"

    metadata.write_text('{"file_name": "1.png", "text": "broken"}\n')
    code, log = run(workspace, encode.main)
    assert code == 1 and "Traceback" not in log
    (line,) = re.findall("error: encode.base_domain: .*", log)
    assert re.search(r"\b1 [^;]*\(1.png ", line) and re.search(r"\b6 ", line), line


def test_the_first_variants_are_cached(encoded, workspace):
    write_params(workspace, encode={"variants": 3})
    assert run(workspace, encode.main)[0] == 0
    of_three = load_file(workspace / "data/latents/train.safetensors")
    of_eight = load_file(encoded / "data/latents/train.safetensors")
    for name in ("mean", "logvar"):
        assert torch.equal(of_three[name], of_eight[name][:, :3])


def test_a_cache_that_is_too_small_names_the_variants_that_fit(workspace):
    image_bytes = 2 * 2 * 4 * 8 * 8  # mean and logvar in float16
    before = digest(workspace / "data/latents")
    for gigabytes, sizes in (((20 * 2 + 6 + 4) * image_bytes / 1e9, "1 .* 2 "), (1e-6, "1 ")):
        # Sampling at twice the size of the tiles is allowed, and told.
        write_params(workspace, encode={"cache_gb": gigabytes}, sampling={"resolution": 64})
        code, log = run(workspace, encode.main)
        assert code == 1 and "Traceback" not in log
        assert re.search("^sampling.resolution: images of 64 px .* tiles of 32 px", log, re.M)
        (line,) = re.findall("error: encode.cache_gb: .*", log)
        assert re.search(f"encode.variants 8 .*; .*{sizes}", line) and "3 take" not in line
    assert digest(workspace / "data/latents") == before


def test_encoding_by_two_processes_gives_the_same_bytes(encoded, workspace):
    assert run(workspace, encode.main, processes=2)[0] == 0
    assert digest(workspace / "data/latents") == digest(encoded / "data/latents")


def encode_until(groups: int) -> None:
    """Run encode; the process ends without a word behind so many groups."""
    write = grouped_arrays.GroupedArrays.write
    written = []

    def write_and_count(self, begin, values):
        write(self, begin, values)
        written.append(begin)
        if len(written) == groups:
            os._exit(9)

    grouped_arrays.GroupedArrays.write = write_and_count
    grouped_arrays.FLUSH_SECONDS = 0
    encode.main()


def count_vae_calls() -> None:
    """Run encode; the log's last line says how often the VAE was called."""
    calls = []
    posterior = encoding.VaeEncoder.posterior
    encoding.VaeEncoder.posterior = lambda *arguments: calls.append(0) or posterior(*arguments)
    encode.main()
    print(f"{len(calls)} calls", file=sys.stderr)


def test_a_killed_run_goes_on_and_writes_the_same_bytes(workspace):
    write_params(workspace, encode={"batch_size": 4, "variants": 3, "base_domain": "none"})
    assert run(workspace, encode.main)[0] == 0
    whole = digest(workspace / "data/latents")
    # It ends behind the captions and 3 of the 5 groups of training images.
    captions = pq.read_metadata(workspace / "data/latents/captions.parquet").num_rows
    assert run(workspace, encode_until, math.ceil(captions / 4) + 3)[0] == 9
    code, log = run(workspace, count_vae_calls)
    assert code == 0 and digest(workspace / "data/latents") == whole, log
    # Missing: 2 groups of 3 variants, 2 of validation images.
    assert "8 calls" in log
    # Several processes go on with what one left, too.
    assert run(workspace, encode_until, 6)[0] == 9
    assert run(workspace, encode.main, processes=2)[0] == 0
    assert digest(workspace / "data/latents") == whole


def test_what_was_encoded_of_other_inputs_is_not_used(workspace, monkeypatch):
    monkeypatch.chdir(workspace)
    start = models.start_folder()
    inputs = [encode.TRAIN, encode.VALID]
    inputs += [start / part for part in ("vae", "tokenizer", "text_encoder")]
    keys = [resume_key(monkeypatch, encode, encode.main)]
    for folder in inputs:
        (folder / "other").touch()
        keys.append(resume_key(monkeypatch, encode, encode.main))
    write_params(workspace, encode={"base_domain": "path:photographs"})
    for size in (40, 50):
        make_imagery(workspace / "photographs", {"test": 9}, size=size)
        keys.append(resume_key(monkeypatch, encode, encode.main))
    assert len(set(keys)) == len(inputs) + 3


def overwrite_another_group() -> None:
    """Run encode; as over NFS, the second process writes old bytes over those of the first."""
    flush = grouped_arrays.GroupedArrays.flush

    def flush_page(self):
        flush(self)
        self.state.wait_for_everyone()
        if self.state.process_index == 1 and "mean" in self.arrays:
            self.arrays["mean"][0] = 0

    grouped_arrays.GroupedArrays.flush = flush_page
    grouped_arrays.FLUSH_SECONDS = math.inf
    encode.main()


def test_what_another_machine_has_overwritten_is_one_line(workspace):
    code, log = run(workspace, overwrite_another_group, processes=2)
    (line,) = [line for line in log.splitlines() if line.startswith("error: ")]
    assert code == 1 and "train.safetensors: 1 of 3 groups" in line and "NFS" in line
    code, log = run(workspace, encode.main)  # only that group is encoded again
    assert code == 0 and "1 of 3 groups damaged" in log


def open_arrays(path: Path) -> grouped_arrays.GroupedArrays:
    """Arrays of three groups, filled by this process alone."""
    state = SimpleNamespace(
        is_main_process=True, num_processes=1, process_index=0, wait_for_everyone=lambda: None
    )
    return grouped_arrays.GroupedArrays(path, {"mean": (5, 2), "logvar": (5, 2)}, 2, state)


def missing_groups(arrays: grouped_arrays.GroupedArrays) -> list[int]:
    return [begin // 2 for begin in (0, 2, 4) if arrays.is_mine(begin)]


def write_groups(path: Path, groups: list[int]) -> None:
    """Fill these of the three groups."""
    arrays = open_arrays(path)
    for group in groups:
        rows = np.full((1 if group == 2 else 2, 2), group + 1, np.float16)
        arrays.write(group * 2, {"mean": rows, "logvar": -rows})
    arrays.flush()


def test_notes_of_arrays_that_are_gone_are_not_believed(tmp_path):
    path = tmp_path / "train.safetensors"
    for _ in range(2):
        assert missing_groups(open_arrays(path)) == [0, 1, 2]
        write_groups(path, [2])
        again = open_arrays(path)
        assert missing_groups(again) == [0, 1] and again.arrays["mean"][4, 1] == 3
        path.unlink()


@pytest.mark.parametrize("share", [0, 0.3, 0.99])
@pytest.mark.parametrize("name", ["train.safetensors", "train.npy"])
def test_a_truncated_file_is_written_again(tmp_path, capsys, name, share):
    path = tmp_path / "train.safetensors"
    write_groups(path, [0, 2])
    damaged = tmp_path / name
    os.truncate(damaged, int(damaged.stat().st_size * share))
    assert missing_groups(open_arrays(path)) == [0, 1, 2]
    assert f"{damaged}: damaged" in capsys.readouterr().err
    assert not load_file(path)["mean"].any()


def test_a_group_of_other_bytes_is_encoded_again(tmp_path, capsys):
    path = tmp_path / "train.safetensors"
    write_groups(path, [0, 2])
    assert missing_groups(open_arrays(path)) == [1]
    content = bytearray(path.read_bytes())
    content[-1] ^= 1  # of the last row of one array
    path.write_bytes(content)
    assert missing_groups(open_arrays(path)) == [1, 2]
    assert "1 of 2 groups damaged" in capsys.readouterr().err
    write_groups(path, [1, 2])
    assert missing_groups(open_arrays(path)) == []
    assert load_file(path)["logvar"][:, 0].tolist() == [-1, -1, -2, -2, -3]


def encode_until_copied(files: int) -> None:
    """Run encode; the process ends without a word when so many files are in the output folder."""
    copied = []

    def link_and_count(source, target):
        os.link(source, target)
        copied.append(target)
        if len(copied) == files:
            os._exit(9)

    encode.link_or_copy = link_and_count
    encode.main()


def test_a_kill_among_the_last_copies_loses_no_work(workspace):
    whole = digest(workspace / "data/latents")
    assert run(workspace, encode_until_copied, 3)[0] == 9
    assert digest(workspace / "data/latents") != whole
    code, log = run(workspace, count_vae_calls)
    assert code == 0 and digest(workspace / "data/latents") == whole, log
    assert "0 calls" in log.splitlines()[-1]
    assert not list((workspace / "scratch/encode").glob("*/"))


def test_a_truncated_cache_is_encoded_again(workspace):
    write_params(workspace, encode={"variants": 1, "base_domain": "none"})
    assert run(workspace, encode.main)[0] == 0
    whole = digest(workspace / "data/latents")
    for name in ("train.safetensors", "captions.safetensors"):
        assert run(workspace, encode_until_copied, 3)[0] == 9
        (cached,) = (workspace / "scratch/encode").glob(f"*/{name}")
        os.truncate(cached, cached.stat().st_size // 2)
        os.truncate(cached.with_name("normalization.json"), 9)
        code, log = run(workspace, encode.main)
        assert code == 0 and f"{name}: damaged" in log
        assert digest(workspace / "data/latents") == whole


def test_encoding_on_more_cores_gives_the_same_bytes(workspace):
    # Two chunks; for the validation images the second is all padding.
    write_params(workspace, encode={"batch_size": 32})
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
    column = table.schema.get_field_index("captions")
    pq.write_table(table.set_column(column, "captions", captions), path)
    code, log = run(workspace, encode.main)
    assert code == 0 and re.search(r"\b1 of .*\b77\b", log)
    rows = pq.read_table(workspace / "data/latents/rows_valid.parquet").to_pylist()
    assert rows[1]["caption_ids"] == [0]
    write_params(workspace, finetune_sd={"epochs": 0})
    assert run(workspace, finetune_sd.main)[0] == 0
    assert read_json(workspace / "metrics/diffusion.json")["truncated_captions"] == 1


def test_the_normalization_of_the_data_set_is_saved_in_the_vae(workspace, warm_environment):
    write_params(workspace, encode={"normalization": "dataset"}, finetune_sd={"epochs": 0.5})
    # As dvc.yaml does: worker processes must find what they are to run.
    command = ("python", "-m", "stages.runtime.launch", "encode")
    environment = {**warm_environment, "PYTHONPATH": str(REPOSITORY)}
    done = shell(*command, cwd=workspace, env=environment)
    assert done.returncode == 0, done.stderr
    normalization = read_json(workspace / "data/latents/normalization.json")
    rows = read_rows(workspace / "data/imagery/train")
    images = np.stack([pixels(row) for row in rows]) / 255  # [N, H, W, 3]
    np.testing.assert_allclose(normalization["mean"], images.mean((0, 1, 2)))
    np.testing.assert_allclose(normalization["std"], images.std((0, 1, 2)))
    assert run(workspace, finetune_sd.main)[0] == 0
    saved = workspace / "models/diffusion"
    assert read_folded(saved) == normalization
    # The VAE that encoded the training tiles is the one that is saved.
    x = torch.from_numpy(images[:1] * 2 - 1).float().permute(0, 3, 1, 2)  # [1, 3, H, W]
    posterior = models.load(saved, "vae").encode(x).latent_dist
    latents = load_file(workspace / "data/latents/train.safetensors")["mean"][0, :1].float()
    torch.testing.assert_close(latents, posterior.mean, atol=5e-3, rtol=2e-3)
