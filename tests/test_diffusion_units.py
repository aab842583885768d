"""Loss, latents, checkpoints, chunks and memory errors, without running a stage."""

import errno
import os
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from stages.common.artifacts import read_json, write_json
from stages.common.dihedral import dihedral
from stages.diffusion import checkpoints, from_scratch, models
from stages.diffusion.batches import BatchLoader
from stages.diffusion.caption_embeddings import CachedEmbeddings
from stages.diffusion.checkpoints import TrainingState
from stages.diffusion.cpu_chunks import CpuChunks
from stages.diffusion.ema import update_ema
from stages.diffusion.latents import Latents, allocate, memory_map
from stages.diffusion.loss import (
    add_noise,
    denoising_loss,
    min_snr_weight,
    stratified_timesteps,
    target,
)
from stages.diffusion.trainer import check_shapes, create_optimizer
from stages.diffusion.validation import (
    GRID_GUIDANCE,
    relative_diversity,
    rms_distance,
    sample_captions,
    validation_loss,
)
from stages.finetune_sd import learning_rate
from stages.runtime import tensor_files
from stages.runtime.gpu_memory import largest_batch, report_out_of_memory

ALPHAS_CUMPROD = torch.cumprod(1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2, 0)


def random_latents(count=6):
    """Latents x, noise and timesteps of `count` images."""
    generator = torch.Generator().manual_seed(0)
    return (
        torch.randn(count, 4, 8, 8, generator=generator),
        torch.randn(count, 4, 8, 8, generator=generator),
        torch.randint(0, 1000, (count,), generator=generator),
    )


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_a_perfect_prediction_has_no_loss(prediction_type):
    x, noise, t = random_latents()
    batch = {"latents": x, "noise": noise, "timesteps": t, "text": None}

    def perfect_unet(noisy, t, text, return_dict):
        return (target(x, noise, t, ALPHAS_CUMPROD, prediction_type),)

    loss = denoising_loss(perfect_unet, batch, ALPHAS_CUMPROD, prediction_type, 5.0)
    assert loss.shape == (6,) and loss.abs().max() == 0


def test_the_velocity_gives_back_noise_and_image():
    x, noise, t = random_latents()
    alpha = ALPHAS_CUMPROD[t].sqrt()[:, None, None, None]
    sigma = (1 - ALPHAS_CUMPROD[t]).sqrt()[:, None, None, None]
    noisy = add_noise(x, noise, t, ALPHAS_CUMPROD)
    velocity = target(x, noise, t, ALPHAS_CUMPROD, "v_prediction")
    torch.testing.assert_close(alpha * noisy - sigma * velocity, x)
    torch.testing.assert_close(sigma * noisy + alpha * velocity, noise)


def test_min_snr_weights_follow_the_paper():
    t = torch.arange(1000)
    snr = ALPHAS_CUMPROD / (1 - ALPHAS_CUMPROD)
    least = torch.minimum(snr, torch.tensor(5.0))
    of_noise = min_snr_weight(t, ALPHAS_CUMPROD, "epsilon", 5.0)
    of_velocity = min_snr_weight(t, ALPHAS_CUMPROD, "v_prediction", 5.0)
    torch.testing.assert_close(of_noise, least / snr)
    torch.testing.assert_close(of_velocity, least / (snr + 1))
    assert (min_snr_weight(t, ALPHAS_CUMPROD, "epsilon", None) == 1).all()
    # Zero terminal SNR (Lin et al. 2024) stays finite.
    assert torch.isfinite(min_snr_weight(torch.tensor([0]), torch.zeros(1), "epsilon", 5.0)).all()


def test_min_snr_weighs_the_same_error_alike_for_both_predictions():
    # An error e of x0 is an error e * alpha / sigma of the noise and e / sigma of the velocity.
    t = torch.arange(0, 1000, 50)
    sigma_square = 1 - ALPHAS_CUMPROD[t]
    snr = ALPHAS_CUMPROD[t] / sigma_square
    as_noise = snr * min_snr_weight(t, ALPHAS_CUMPROD, "epsilon", 5.0)
    as_velocity = min_snr_weight(t, ALPHAS_CUMPROD, "v_prediction", 5.0) / sigma_square
    torch.testing.assert_close(as_noise, as_velocity)


def test_timesteps_are_stratified():
    assert stratified_timesteps(10, 1000).tolist() == list(range(50, 1000, 100))
    assert stratified_timesteps(3, 1000).max() < 1000


def test_the_eight_variants_are_distinct_and_form_a_group():
    image = torch.arange(2 * 9.0).reshape(2, 3, 3)
    variants = [dihedral(image, variant) for variant in range(8)]
    assert len({tuple(variant.flatten().tolist()) for variant in variants}) == 8
    assert torch.equal(variants[0], image) and torch.equal(variants[1], image.flip(-1))
    for variant in range(8):
        # A quarter turn is undone by three of them, all others by themselves.
        inverse = {4: 6, 6: 4}.get(variant, variant)
        assert torch.equal(dihedral(dihedral(image, variant), inverse), image)


@pytest.fixture
def data(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    shape = (10, 8, 4, 2, 2)  # [N, V, C, h, w]
    allocate(tmp_path / "train.safetensors", {"mean": shape, "logvar": shape})
    mean = memory_map(tmp_path / "train.safetensors", "r+")["mean"]
    mean[:] = np.arange(80).reshape(10, 8, 1, 1, 1)
    allocate(tmp_path / "captions.safetensors", {"embeddings": (3, 77, 5)})
    embeddings = memory_map(tmp_path / "captions.safetensors", "r+")["embeddings"]
    embeddings[:] = np.arange(3).reshape(3, 1, 1)
    pq.write_table(pa.table({"caption_ids": [[1, 2]] * 10}), tmp_path / "rows_train.parquet")
    return Latents(tmp_path, "train", 0.5, CachedEmbeddings(tmp_path))


@pytest.mark.parametrize(
    "width, read", [([16, 16], None), (..., " 1280"), ([16, 24], "24"), (24, " 24")]
)
def test_the_width_of_text_is_a_number_or_one_for_each_level(tmp_path, width, read):
    config = {"in_channels": 4, "cross_attention_dim": width}
    write_json(
        tmp_path / "unet/config.json",
        {name: value for name, value in config.items() if value is not ...},
    )
    train = SimpleNamespace(shape=(4, 8, 8))
    if read is None:
        check_shapes(train, 16, tmp_path)
        return
    with pytest.raises(SystemExit) as stopped:
        check_shapes(train, 16, tmp_path)
    assert read in str(stopped.value)


def test_latents_are_memory_mapped_and_readable_by_safetensors(data, tmp_path):
    assert isinstance(data.mean, np.memmap)
    assert load_file(tmp_path / "train.safetensors")["mean"][3, 2, 0, 0, 0] == 26


def test_an_epoch_is_every_image_once_in_one_of_its_variants(data):
    examples = [data.training_batch([position], 0, 1000, 0.0, False) for position in range(20)]
    values = [int(example["latents"][0, 0, 0, 0] / 0.5) for example in examples]
    rows = [value // 8 for value in values]
    assert sorted(rows[:10]) == sorted(rows[10:]) == list(range(10))
    assert rows[:10] != rows[10:] and len({value % 8 for value in values}) > 3
    # The same numbers at any batch size, others with another seed.
    batch = data.training_batch(range(20), 0, 1000, 0.0, False)
    for name in batch:
        assert torch.equal(batch[name], torch.cat([example[name] for example in examples]))
    other_seed = data.training_batch(range(20), 1, 1000, 0.0, False)
    assert not torch.equal(batch["noise"], other_seed["noise"])


def test_captions_are_dropped_at_the_given_rate(data):
    text = data.training_batch(range(1000), 0, 1000, 0.3, False)["text"][:, 0, 0]
    assert 0.25 < (text == 0).float().mean() < 0.35
    assert (text == 1).any() and (text == 2).any()


def test_each_image_has_its_own_captions(data):
    data.caption_ids, data.caption_begins = np.arange(20), np.arange(0, 21, 2)
    data.text_embeddings = torch.tensor
    batch = data.training_batch(range(20), 0, 1000, 0.0, False)
    rows = (batch["latents"][:, 0, 0, 0] / 0.5).int() // 8
    assert torch.equal(batch["text"].int() // 2, rows)


def test_the_posterior_is_sampled(data):
    data.logvar = np.full(data.logvar.shape, np.log(4), np.float16)
    batch = data.training_batch(range(1000), 0, 1000, 0.0, True)
    sampled = batch["latents"]
    mean = data.training_batch(range(1000), 0, 1000, 0.0, False)["latents"]
    # A logvar of log 4 is a standard deviation of 2, which is scaled by 0.5.
    assert abs((sampled - mean).std() - 1) < 0.04
    # Its noise is not the diffusion's, which is the target of the training.
    both = torch.stack([(sampled - mean).flatten(), batch["noise"].flatten()])
    assert abs(torch.corrcoef(both)[0, 1]) < 0.05


def test_all_timesteps_are_trained(data):
    timesteps = data.training_batch(range(1000), 0, 1000, 0.0, False)["timesteps"]
    assert torch.histc(timesteps.float(), 10, 0, 1000).min() > 60  # of 100 expected


@pytest.mark.parametrize("caption_dropout, latent", [(0.0, "mean"), (1.0, "sample")])
def test_batches_follow_the_params(data, caption_dropout, latent):
    config = SimpleNamespace(batch_size=20, caption_dropout=caption_dropout, latent=latent)
    process = SimpleNamespace(num_processes=2, process_index=1)
    batch = BatchLoader(data, config, 7, 1000, process).batch(3)
    # The second half of the fourth micro-batch.
    expected = data.training_batch(range(70, 80), 7, 1000, caption_dropout, latent == "sample")
    assert all(torch.equal(batch[name], expected[name]) for name in expected)


@pytest.mark.parametrize("optimizer", ["adamw", "adamw8bit", "muon"])
def test_weights_decay(optimizer):
    weight = torch.nn.Parameter(torch.ones(4, 4))
    weight.grad = torch.zeros(4, 4)
    config = SimpleNamespace(optimizer=optimizer, lr=0.1, weight_decay=0.3)
    create_optimizer({"w": weight}, config).step()
    torch.testing.assert_close(weight.detach(), torch.full((4, 4), 1 - 0.1 * 0.3))


@pytest.mark.parametrize(
    "schedule, rates", [("cosine", [0.5, 1, 1, 0.5, 0.0381]), ("constant", [0.5, 1, 1, 1, 1])]
)
def test_the_learning_rate_is_warmed_up_and_falls_to_zero(schedule, rates):
    config = SimpleNamespace(lr=1.0, warmup_steps=2, lr_schedule=schedule)
    computed = [learning_rate(step, 10, config) for step in (0, 1, 2, 6, 9)]
    assert computed == pytest.approx(rates, abs=1e-4)


@pytest.mark.parametrize("step, moved", [(0, 0.9), (10**6, 0.001)])
def test_the_average_follows_the_weights_faster_at_first(step, moved):
    ema = {"w": torch.zeros(1)}
    update_ema(ema, {"w": torch.ones(1)}, step, decay=0.999)
    assert ema["w"].item() == pytest.approx(moved, rel=1e-3)


def test_validation_is_of_all_timesteps_with_the_first_captions(data):
    one_process = SimpleNamespace(
        device="cpu", num_processes=1, process_index=0, reduce=lambda tensor, _: tensor
    )
    trainer = SimpleNamespace(accelerator=one_process, batch_size=2, alphas_cumprod=ALPHAS_CUMPROD)
    data.scale = 0.0  # what is noisy is the noise, scaled by sigma
    sigma = (1 - ALPHAS_CUMPROD).sqrt()[:, None, None, None]
    seen = []

    def predict_noise_plus_one(noisy, timesteps, text, return_dict):
        seen.append((timesteps, text))
        return (noisy / sigma[timesteps] + 1,)

    loss = validation_loss(trainer, predict_noise_plus_one, data, 5, "epsilon")
    assert loss == pytest.approx(1, rel=1e-5)  # whatever params weigh in training
    timesteps, text = map(torch.cat, zip(*seen))
    assert sorted(timesteps.tolist()) == [100, 300, 500, 700, 900]
    assert text.shape == (5, 77, 5) and (text == 1).all()


def test_the_grid_is_guided_away_from_the_empty_caption(data):
    from diffusers import DDIMScheduler

    def predict_image(noisy, timestep, text, return_dict):
        return (text[:, :1, :1, None].expand(noisy.shape),)  # 0 for the empty caption, else 1

    scheduler = DDIMScheduler(prediction_type="sample", clip_sample=False)
    (latents,) = sample_captions(predict_image, data, 1, 1, scheduler, torch.device("cpu"))
    assert latents.shape == (4, 4, 2, 2) and (latents == GRID_GUIDANCE).all()


def test_checkpoints_are_safetensors_of_any_type(tmp_path):
    tensors = {
        "bytes": torch.arange(7, dtype=torch.uint8),
        "count": torch.tensor(3),
        "half": torch.randn(5).half(),
        "brain": torch.randn(5).bfloat16(),
        "image": torch.randn(2, 3, 4, 4),
        "channels_last": torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last),
        "part": torch.randn(4, 4)[:, 1:3],
        "none": torch.zeros(0, 2),
    }
    tensor_files.save(tmp_path / "a.safetensors", tensors, {"step": 1})
    loaded = load_file(tmp_path / "a.safetensors")
    assert loaded.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert torch.equal(loaded[name], tensor) and loaded[name].dtype == tensor.dtype
    assert tensor_files.load(tmp_path / "a.safetensors")[1] == {"step": 1}


SAVE_LARGE = """
import re, sys
from pathlib import Path
import torch
from stages.runtime import tensor_files

def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) / 1000

# 24 tensors of 16 MB, none of which lies in memory as in the file.
tensors = {
    f"weight.{number}": torch.ones(256, 256, 8, 8).to(memory_format=torch.channels_last)
    for number in range(24)
}
before = peak()
tensor_files.save(Path(sys.argv[1]) / "a.safetensors", tensors, {"step": 1})
print(peak() - before)
"""


def test_writing_a_checkpoint_takes_less_memory_than_a_copy(tmp_path):
    command = [sys.executable, "-c", SAVE_LARGE, tmp_path]
    megabytes = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert float(megabytes) < 200  # of 400


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_a_checkpoint_restores_weights_average_and_optimizer(tmp_path, memory_format):
    def make_training(seed):
        torch.manual_seed(seed)
        convolution = torch.nn.Conv2d(3, 4, 3).to(memory_format=memory_format)
        weights = dict(convolution.named_parameters())
        ema = {name: weight.detach() + 1 for name, weight in weights.items()}
        return convolution, weights, ema, torch.optim.AdamW(weights.values())

    convolution, weights, ema, adamw = make_training(seed=0)
    convolution(torch.ones(1, 3, 4, 4)).sum().backward()
    adamw.step()
    tensors = checkpoints.copy_tensors(checkpoints.training_tensors(weights, ema, adamw))
    checkpoints.save_step(tmp_path, tensors, TrainingState(step=1), keep=1)

    convolution, restored_weights, restored_ema, restored_adamw = make_training(seed=1)
    tensors, state = checkpoints.load_latest(tmp_path)
    checkpoints.load_state_dict(tensors, restored_weights, restored_ema, restored_adamw)
    assert state == TrainingState(step=1)
    assert convolution.weight.is_contiguous(memory_format=memory_format)
    for name, weight in weights.items():
        assert torch.equal(restored_weights[name], weight)
        assert torch.equal(restored_ema[name], ema[name])
        moments = restored_adamw.state[restored_weights[name]]
        for key, value in adamw.state[weight].items():
            assert torch.equal(moments[key], value)


def test_an_incomplete_checkpoint_is_never_loaded(tmp_path, capsys):
    (tmp_path / "step_00000002.part").write_bytes(b"left by a kill while it was written")
    for step in (3, 6, 9):
        tensors = {"weight.w": torch.full((100,), float(step))}
        state = TrainingState(step, best_step=3, best_loss=0.1 + 0.2)
        checkpoints.save_step(tmp_path, tensors, state, keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "best.safetensors",
        "step_00000006.safetensors",
        "step_00000009.safetensors",
    ]
    assert (tensor_files.load(tmp_path / "best.safetensors")[0]["w"] == 3).all()
    last = tmp_path / "step_00000009.safetensors"
    last.write_bytes(last.read_bytes()[:-7])
    tensors, state = checkpoints.load_latest(tmp_path)
    assert state == TrainingState(6, best_step=3, best_loss=0.1 + 0.2)
    assert (tensors["weight.w"] == 6).all()
    assert "step_00000009.safetensors" in capsys.readouterr().err
    (tmp_path / "step_00000006.safetensors").write_bytes(b"")
    assert checkpoints.load_latest(tmp_path) is None


def test_a_full_disk_is_one_line_and_keeps_the_checkpoint_before(tmp_path, monkeypatch):
    tensors = {"w": torch.ones(3)}
    checkpoints.save_step(tmp_path, tensors, TrainingState(step=1), keep=1)

    def write_safetensors(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(tensor_files, "write_safetensors", write_safetensors)
    with pytest.raises(SystemExit, match="Errno 28.*REMOTE_DIFFUSION_SCRATCH"):
        checkpoints.save_step(tmp_path, tensors, TrainingState(step=2), keep=1)
    assert [path.name for path in tmp_path.iterdir()] == ["step_00000001.safetensors"]


def gpu_with_memory_for(images: int):
    """A `try_batch` on a GPU with memory for a number of images."""

    def try_batch(count: int) -> None:
        if count > images:
            raise torch.OutOfMemoryError("CUDA out of memory")

    return try_batch


@pytest.mark.parametrize("images, largest", [(9, 8), (8, 8), (1, 1), (0, 0), (100, 16)])
def test_the_largest_batch_that_fits_is_found(images, largest):
    assert largest_batch(gpu_with_memory_for(images), 32) == largest


@pytest.mark.parametrize(
    "try_batch, advice",
    [
        (gpu_with_memory_for(9), r"32 .*\b8; or less"),
        (gpu_with_memory_for(0), "32 [^0-9]*; or less$"),
        (None, "32 .*half.*; or less"),
    ],
)
def test_out_of_memory_is_one_line_that_names_a_batch_that_fits(try_batch, advice):
    with pytest.raises(SystemExit, match=f"error: sampling.batch_size: {advice}"):
        with report_out_of_memory("sampling.batch_size", 32, try_batch, "; or less"):
            gpu_with_memory_for(31)(32)
    with pytest.raises(ZeroDivisionError):  # other errors pass
        with report_out_of_memory("sampling.batch_size", 32, try_batch):
            raise ZeroDivisionError


@pytest.mark.parametrize("count, sizes", [(1, [1]), (16, [16]), (17, [9, 8]), (64, [16] * 4)])
def test_a_batch_is_split_evenly_on_a_cpu_and_not_on_a_gpu(count, sizes):
    images = torch.arange(count)
    on_cpu = CpuChunks(count, torch.device("cpu"))
    assert [len(images[chunk]) for chunk in on_cpu.chunks] == sizes
    assert torch.equal(torch.cat(on_cpu.map(lambda chunk: images[chunk])), images)
    assert CpuChunks(count, torch.device("cuda")).chunks == [slice(0, count)]


def test_gradients_of_chunks_add_up_to_those_of_the_batch(four_threads):
    torch.manual_seed(0)
    network = torch.nn.Sequential(
        torch.nn.Conv2d(4, 8, 3), torch.nn.SiLU(), torch.nn.Conv2d(8, 4, 3)
    )
    images, _, _ = random_latents(40)
    unused = torch.nn.Parameter(torch.ones(3))
    weights = [*network.parameters(), unused]

    def loss(chunk):
        return network(images[chunk]).square().sum() / len(images)

    def backward_without_chunks():
        total = loss(slice(None))
        (total / 2).backward()
        return total

    def loss_and_gradients(backward) -> list[torch.Tensor]:
        for weight in weights:
            weight.grad = torch.ones_like(weight)  # of an earlier micro-batch
        total = backward()
        return [total.detach(), *(weight.grad for weight in weights)]

    chunks = CpuChunks(len(images), torch.device("cpu"))
    assert len(chunks.chunks) == 3
    results = [loss_and_gradients(lambda: chunks.backward(loss, weights, 1 / 2)) for _ in range(5)]
    torch.testing.assert_close(results[0], loss_and_gradients(backward_without_chunks))
    assert torch.equal(unused.grad, torch.ones(3))
    for again in results[1:]:  # the same bytes in any order of the chunks
        assert all(map(torch.equal, again, results[0]))


@pytest.fixture
def four_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


def test_dropout_of_the_base_is_off_in_training(tmp_path):
    unet = from_scratch.make_unet([32, 64], 4, 8, 16)
    unet.save_pretrained(tmp_path / "unet")
    config = read_json(tmp_path / "unet/config.json")
    write_json(tmp_path / "unet/config.json", config | {"dropout": 0.5})
    unet = models.load_trainable_unet(tmp_path, "full", 0)
    x, text = torch.randn(1, 4, 8, 8), torch.randn(1, 5, 16)
    with torch.no_grad():
        first, second = (unet(x, torch.tensor([500]), text).sample for _ in range(2))
    assert unet.training and torch.equal(first, second)


def test_the_rms_distance_of_latents_is_that_of_random_pairs():
    latents = torch.randn(2000, 4, 2, 2, generator=torch.Generator().manual_seed(0)) * 3
    distances = (latents[:1000] - latents[1000:]).square().mean((1, 2, 3))
    assert rms_distance(latents) == pytest.approx(distances.mean().sqrt().item(), rel=0.02)
    assert rms_distance(latents[:1].repeat(5, 1, 1, 1)) == 0


def test_diversity_is_relative_to_that_of_real_tiles_and_unknown_where_they_are_one(data):
    """`data` holds tiles of different constant values."""
    real = data.latents(np.arange(10), 0, None)
    assert relative_diversity([real, real], data) == pytest.approx(1)
    assert relative_diversity([real, real / 2], data) == pytest.approx(0.75)
    samples = [torch.randn(4, 4, 2, 2, generator=torch.Generator().manual_seed(0))]
    assert relative_diversity([samples[0] * float("inf")], data) is None
    data.mean = np.repeat(data.mean[:1], 10, axis=0)
    # The same tile may round otherwise in another place of a batch.
    data.mean[3, 0, 0, 0] += np.float16(2**-10)
    assert relative_diversity(samples, data) is None


@pytest.mark.parametrize("steps", [1, 9, 10, 11])
def test_a_vae_trains_for_any_number_of_steps(steps, tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (8, 16, 16, 3), dtype=np.uint8)
    vae = from_scratch.make_vae([8, 8], 4, 16)
    vae = from_scratch.train_vae(vae, images, steps, batch_size=4, lr=1e-3, seed=0, cache=tmp_path)
    assert all(torch.isfinite(weight).all() for weight in vae.parameters())


@pytest.mark.parametrize("size, batches", [(32, [64, 6]), (64, [64, 6]), (128, [16] * 4 + [6])])
def test_large_images_are_measured_few_at_a_time(size, batches, tmp_path):
    """Of 64 at 512 px, the activations of Stable Diffusion's VAE take 40 GiB."""
    images = np.zeros((70, size, size, 3), np.uint8)
    images[:, ::2] = 255
    vae = from_scratch.make_vae([8, 8], 4, size)
    counts = []
    vae.encoder.register_forward_hook(lambda _, inputs, __: counts.append(len(inputs[0])))
    from_scratch.train_vae(vae, images, 0, batch_size=4, lr=1e-3, seed=0, cache=tmp_path)
    assert counts == batches


def test_a_vae_that_diverges_is_one_line(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (8, 16, 16, 3), dtype=np.uint8)
    vae = from_scratch.make_vae([8, 8], 4, 16)
    with pytest.raises(SystemExit, match="error: train_base.lr: .* VAE "):
        from_scratch.train_vae(vae, images, 1, batch_size=4, lr=1e30, seed=0, cache=tmp_path)
