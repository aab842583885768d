"""Training from scratch interrupted: the next run resumes and ends with the same bytes."""

import os
import shutil
import signal
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import REPOSITORY, replace_in_params
from safetensors.torch import load_file
from tiny_diffusion import make_imagery, make_pipeline, resume_key, run, write_params

from stages import train_base
from stages.common.artifacts import decode_image, digest, read_json, read_rows, write_json
from stages.diffusion import checkpoints, from_scratch, models, resumable, train_decoder
from stages.diffusion.clip_tokenizer import train_tokenizer
from stages.embedded import train_diffusion, train_models
from stages.embedded.scenes import render
from stages.imagery.base_domain import UNSEEN_SCENES

STEPS = 8
SCRATCH = {
    "source": "scratch",
    "vae_channels": [8, 16],
    "vae_steps": STEPS,
    "text_width": 32,
    "text_layers": 1,
    "text_steps": STEPS,
    "unet_channels": [16, 32],
    "batch_size": 4,
    "lr": 1.0e-3,
}


def checkpoint_every_step(kill_part=None, kill_step=0):
    """Checkpoint at every step; die in place of writing one step's checkpoint of a part."""
    resumable.SECONDS = 0
    save_step = checkpoints.save_step

    def save_step_or_kill(folder, tensors, state, keep):
        if (folder.name, state.step) == (kill_part, kill_step):
            os.kill(os.getpid(), signal.SIGKILL)
        save_step(folder, tensors, state, keep)

    checkpoints.save_step = save_step_or_kill


def interrupted_train_base(part, step):
    checkpoint_every_step(part, step)
    train_base.main()


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """The digest of models/start, trained without a stop or a checkpoint on the way."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    make_imagery(folder / "data/imagery", {"train": 12})
    write_params(folder, train_base=SCRATCH)
    code, log = run(folder, train_base.main)
    assert code == 0 and "resuming" not in log, log
    assert not list((folder / "scratch/train_base").glob("*/"))  # it leaves no checkpoints
    return digest(folder / "models/start")


@pytest.mark.parametrize(
    "kills",
    [
        [("text_encoder", 5)],
        [("vae", 1)],
        [("text_encoder", 2), ("text_encoder", STEPS), ("vae", 6), ("vae", STEPS)],
    ],
)
def test_a_killed_train_base_resumes_and_ends_with_the_same_bytes(uninterrupted, tmp_path, kills):
    make_imagery(tmp_path / "data/imagery", {"train": 12})
    write_params(tmp_path, train_base=SCRATCH)
    names = {"text_encoder": "text encoder", "vae": "VAE"}
    for part, step in kills:
        assert run(tmp_path, interrupted_train_base, part, step)[0] == -signal.SIGKILL
        assert not (tmp_path / "models/start").exists()
    code, log = run(tmp_path, train_base.main)
    assert code == 0, log
    last_part, last_step = kills[-1]
    resumed = f"{names[last_part]}: resuming from step {last_step - 1}\n"
    assert (resumed in log) == (last_step > 1)
    if last_part == "vae":  # what was finished is not trained again
        assert f"text encoder: resuming from step {STEPS}\n" in log
    assert digest(tmp_path / "models/start") == uninterrupted


def test_other_params_train_from_the_beginning(tmp_path):
    make_imagery(tmp_path / "data/imagery", {"train": 12})
    write_params(tmp_path, train_base=SCRATCH)
    assert run(tmp_path, interrupted_train_base, "vae", 5)[0] == -signal.SIGKILL
    write_params(tmp_path, train_base=SCRATCH | {"lr": 2.0e-3})
    code, log = run(tmp_path, train_base.main)
    assert code == 0 and "resuming" not in log, log


ADAPT = {
    "source": "adapt",
    "vae_steps": STEPS,
    "decoder_steps": STEPS,
    "text_layers": 1,
    "text_steps": STEPS,
    "batch_size": 4,
    "lr": 1.0e-3,
}
PARTS = ["model_index.json", "scheduler", "text_encoder", "tokenizer", "unet", "vae"]


def make_adapt_workspace(folder, **changed):
    """A fetched model, read-only as the hub's links are, and tiles to adapt it to."""
    make_imagery(folder / "data/imagery", {"train": 12})
    base = make_pipeline(folder / "models/base/diffusion")
    config_file = base / "unet/config.json"
    config = read_json(config_file) | {"cross_attention_dim": [16] * 3}  # one for each level
    write_json(config_file, config)
    config_file.chmod(0o444)
    write_params(folder, train_base=ADAPT | changed, encode={"base_domain": "none"})
    return base


def same_parts(base, start):
    """The parts of the start model that have the bytes of the fetched model's."""
    assert sorted(path.name for path in start.iterdir()) == sorted([*PARTS, "start.json"])
    return [part for part in PARTS if digest(start / part) == digest(base / part)]


def test_a_killed_adaptation_resumes_and_ends_with_the_same_bytes(tmp_path):
    base = make_adapt_workspace(tmp_path / "one")
    code, log = run(tmp_path / "one", train_base.main)
    assert code == 0, log
    start = tmp_path / "one/models/start"
    assert same_parts(base, start) == ["model_index.json", "scheduler", "unet"]
    assert read_json(start / "text_encoder/config.json")["hidden_size"] == 16  # as the UNet reads
    names = load_file(start / "text_encoder/model.safetensors")
    assert all(name.startswith("text_model.") for name in names)  # as in every Stable Diffusion
    assert read_json(start / "start.json") == {
        "folder": "models/start",
        "base": "models/base/diffusion",
        "trained": ["vae", "decoder", "text_encoder"],
    }
    assert os.access(start / "unet/config.json", os.W_OK)

    make_adapt_workspace(tmp_path / "two")
    for part in ("text_encoder", "vae", "decoder"):
        code, _ = run(tmp_path / "two", interrupted_train_base, part, STEPS)
        assert code == -signal.SIGKILL
    code, log = run(tmp_path / "two", train_base.main)
    assert code == 0 and f"decoder: resuming from step {STEPS - 1}\n" in log, log
    assert digest(tmp_path / "two/models/start") == digest(start)


def test_adaptation_leaves_the_parts_of_no_steps_as_they_are(tmp_path):
    base = make_adapt_workspace(tmp_path, text_steps=0, vae_steps=0)
    code, log = run(tmp_path, train_base.main)
    assert code == 0, log
    start = tmp_path / "models/start"
    assert same_parts(base, start) == [part for part in PARTS if part != "vae"]
    before, after = (
        load_file(folder / "vae/diffusion_pytorch_model.safetensors") for folder in (base, start)
    )
    changed = {name.split(".")[0] for name in before if not before[name].equal(after[name])}
    assert changed == {"decoder", "post_quant_conv"}


def test_parts_of_other_inputs_are_not_resumed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_adapt_workspace(tmp_path)
    keys = [resume_key(monkeypatch, train_base, train_base.main)]
    for folder in (train_base.IMAGERY, train_base.FETCHED):
        (folder / "other").touch()
        keys.append(resume_key(monkeypatch, train_base, train_base.main))
    replace_in_params(tmp_path, "seed: 0\n", "seed: 1\n")
    keys.append(resume_key(monkeypatch, train_base, train_base.main))
    assert len(set(keys)) == 4


def test_each_caption_is_contrasted_with_its_image(tmp_path, monkeypatch):
    """Image i has the gray value i and the caption "i"."""
    captions = [[f"{i}"] for i in range(10)]
    images = np.full((10, 16, 16, 3), np.arange(10).reshape(10, 1, 1, 1), np.uint8)
    train_tokenizer([text for (text,) in captions], tmp_path / "tokenizer")
    read, seen = [], []
    tokenize, normalize_pixels = from_scratch.tokenize, from_scratch.normalize_pixels

    def note_texts(tokenizer, texts):
        read.append([int(text) for text in texts])
        return tokenize(tokenizer, texts)

    def note_images(batch):
        seen.append(batch[:, 0, 0, 0].tolist())
        return normalize_pixels(batch)

    monkeypatch.setattr(from_scratch, "tokenize", note_texts)
    monkeypatch.setattr(from_scratch, "normalize_pixels", note_images)
    tokenizer = models.load_tokenizer(tmp_path)
    from_scratch.train_text_encoder(
        tokenizer, images, captions, 32, 1, 3, batch_size=4, lr=1e-3, seed=0, cache=tmp_path
    )
    assert read[:3] == seen
    assert len({image for batch in seen for image in batch}) > 4


def test_scaled_latents_have_unit_deviation(tmp_path):
    torch.manual_seed(0)
    images = np.random.default_rng(0).integers(0, 256, (40, 32, 32, 3), dtype=np.uint8)
    vae = from_scratch.make_vae([8, 16], 4, 32)
    vae.quant_conv.weight.data[:4] *= 20  # the means'
    vae = from_scratch.train_vae(vae, images, 0, 4, 1e-3, 0, tmp_path)
    with torch.no_grad():
        latents = vae.encode(from_scratch.normalize_pixels(images)).latent_dist.sample()
    assert abs(latents.std() - 1) > 0.2
    assert (latents * vae.config.scaling_factor).std().item() == pytest.approx(1, rel=0.02)


def test_crops_are_of_every_place():
    images = np.arange(32 * 32).reshape(1, 32, 32, 1)
    generator = np.random.default_rng(0)
    corners = [from_scratch.random_crop(images, generator, 4)[0, 0, 0, 0] for _ in range(300)]
    rows, columns = np.divmod(corners, 32)
    assert set(rows) == set(columns) == set(range(17))


def exhaust_memory():
    def train_vae(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 40.00 GiB")

    from_scratch.train_vae = train_vae
    train_base.main()


def test_out_of_memory_names_the_batch_size(tmp_path):
    make_adapt_workspace(tmp_path, text_steps=0)
    code, log = run(tmp_path, exhaust_memory)
    (line,) = [line for line in log.splitlines() if line.startswith("error: ")]
    assert code == 1 and "train_base.batch_size: 4 images" in line and "Traceback" not in log


def test_decoded_tiles_are_not_held_in_memory(tmp_path, monkeypatch):
    make_imagery(tmp_path / "train", {"": 300}, size=64)
    monkeypatch.setattr(train_base, "IMAGERY", tmp_path / "train")
    tracemalloc.start()
    try:
        images, captions = train_base.decode_tiles(tmp_path / "images")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert images.shape == (300, 64, 64, 3) and len(captions) == 300
    rows = read_rows(tmp_path / "train")
    assert np.array_equal(images[-1], decode_image(rows[-1]["image"]))
    assert peak < images.nbytes


AMOUNTS = train_diffusion.Amounts(
    both_looks_tiles=24,
    vae_steps=4,
    decoder_tiles=24,
    decoder_steps=4,
    text_steps=4,
    unet_tiles=30,
    unet_steps=7,
    unet_batch=4,
)


def train_shipped_base(kill_part=None, kill_step=0, parts=train_models.PARTS):
    """The shipped base's training, much smaller, in `model`."""
    checkpoint_every_step(kill_part, kill_step)
    train_diffusion.VAE_CHANNELS = [8, 8, 8]
    train_diffusion.UNET_CHANNELS = [16, 16, 16]
    for name in ("VAE_BATCH", "TEXT_BATCH", "HELD_OUT_TILES"):
        setattr(train_diffusion, name, 4)
    train_diffusion.SHARD_TILES = 15
    train_diffusion.MEASURE_STEPS = 3
    train_decoder.LR = 0.01  # in fp16, a few small steps would change nothing
    train_diffusion.read_notes = lambda: ["of rivers and roads"]  # few words have few merges
    train_diffusion.main(Path("model"), parts, AMOUNTS)


@pytest.fixture(scope="module")
def shipped_base(tmp_path_factory):
    """The digest of a base that was trained without a stop."""
    folder = tmp_path_factory.mktemp("shipped")
    (folder / "stages").symlink_to(REPOSITORY / "stages")
    code, log = run(folder, train_shipped_base)
    assert code == 0, log
    assert not list((folder / "scratch/embedded_diffusion").glob("*/"))
    return folder / "model"


def test_the_shipped_bases_training_resumes_and_ends_with_the_same_bytes(shipped_base, tmp_path):
    (tmp_path / "stages").symlink_to(REPOSITORY / "stages")
    for part, step in (
        ("text_encoder", 3),
        ("vae", 3),
        ("perceptual", 3),
        ("decoder", 3),
        ("unet", 6),
    ):
        assert run(tmp_path, train_shipped_base, part, step)[0] == -signal.SIGKILL
    # A whole model on the way, which says how far it is.
    assert models.load(tmp_path / "model", "unet")
    assert "| 6 of 7 | 24 | 30 in " in (tmp_path / "model/README.md").read_text()
    code, log = run(tmp_path, train_shipped_base)
    assert code == 0 and "UNet: resuming from step 5\n" in log, log
    assert digest(tmp_path / "model") == digest(shipped_base)


def test_a_decoder_that_is_trained_further_keeps_its_encoder_and_resumes(shipped_base, tmp_path):
    """Killed when the decoder is in its place already."""
    parts = ["decoder", "unet"]
    vaes = []
    for name in ("once", "killed"):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "stages").symlink_to(REPOSITORY / "stages")
        shutil.copytree(shipped_base, folder / "model")
        if name == "killed":
            assert run(folder, train_shipped_base, "unet", 2, parts)[0] == -signal.SIGKILL
        code, log = run(folder, train_shipped_base, None, 0, parts)
        assert code == 0, log
        vaes.append(load_file(folder / "model/vae/diffusion_pytorch_model.safetensors"))
    before = load_file(shipped_base / "vae/diffusion_pytorch_model.safetensors")
    assert all(torch.equal(vaes[0][name], vaes[1][name]) for name in before)
    changed = {name for name in before if not torch.equal(before[name], vaes[0][name])}
    assert changed and all(name.startswith(("decoder.", "post_quant_conv.")) for name in changed)


def test_a_base_says_what_it_was_trained_with(shipped_base):
    notes = read_json(shipped_base / "training.json")
    assert {part: note["steps"] for part, note in notes.items()} == {
        "text_encoder": 4,
        "vae": 4,
        "decoder": 4,
        "unet": 7,
    }
    assert notes["unet"]["images"] == 28 and notes["unet"]["measured"]["loss"] > 0
    assert 5 < notes["vae"]["measured"]["psnr"] < 40
    readme = (shipped_base / "README.md").read_text()
    assert str(notes["vae"]["measured"]["psnr"]) in readme


def test_the_unet_never_sees_the_domain_look_or_an_unseen_scene():
    images, captions = train_diffusion.render_unet_tiles((0, 20))
    assert len(captions) == 20
    seen = [scene for scene in train_diffusion.SCENES if scene not in UNSEEN_SCENES]
    for index, image in enumerate(images):
        scene = seen[index % len(seen)]
        expected, _ = render(scene, train_diffusion.SEED + 1, index, 64, "base")
        assert np.array_equal(image, expected)
