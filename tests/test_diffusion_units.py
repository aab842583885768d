"""Loss, flips and rotations, checkpoints: closed forms and files, no stage."""

import numpy as np
import pytest
import torch

from stages.diffusion import checkpoints
from stages.diffusion.cpu_chunks import CpuChunks
from stages.diffusion.latents import Latents, allocate, arrays, dihedral
from stages.diffusion.loss import (
    add_noise,
    denoising_loss,
    min_snr_weight,
    stratified_timesteps,
    target,
)
from stages.diffusion.validation import spread
from stages.runtime.gpu_memory import largest_batch, report_out_of_memory

ALPHAS = torch.cumprod(1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2, 0)


def sample(count=6):
    generator = torch.Generator().manual_seed(0)
    return (
        torch.randn(count, 4, 8, 8, generator=generator),
        torch.randn(count, 4, 8, 8, generator=generator),
        torch.randint(0, 1000, (count,), generator=generator),
    )


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_a_perfect_prediction_has_no_loss(kind):
    x, noise, t = sample()
    batch = {"latents": x, "noise": noise, "timesteps": t, "text": None}
    loss = denoising_loss(
        lambda noisy, t, text, return_dict: (target(x, noise, t, ALPHAS, kind),),
        batch,
        ALPHAS,
        kind,
        5.0,
    )
    assert loss.shape == (6,) and loss.abs().max() == 0


def test_the_velocity_gives_back_noise_and_image():
    x, noise, t = sample()
    alpha, sigma = (
        ALPHAS[t].sqrt()[:, None, None, None],
        (1 - ALPHAS[t]).sqrt()[:, None, None, None],
    )
    noisy, v = add_noise(x, noise, t, ALPHAS), target(x, noise, t, ALPHAS, "v_prediction")
    torch.testing.assert_close(alpha * noisy - sigma * v, x)
    torch.testing.assert_close(sigma * noisy + alpha * v, noise)


def test_min_snr_weights_follow_the_paper():
    t = torch.arange(1000)
    snr = ALPHAS / (1 - ALPHAS)
    least = torch.minimum(snr, torch.tensor(5.0))
    torch.testing.assert_close(min_snr_weight(t, ALPHAS, "epsilon", 5.0), least / snr)
    torch.testing.assert_close(min_snr_weight(t, ALPHAS, "v_prediction", 5.0), least / (snr + 1))
    assert (min_snr_weight(t, ALPHAS, "epsilon", None) == 1).all()
    # Zero terminal SNR (Lin et al. 2024) stays finite.
    assert torch.isfinite(min_snr_weight(torch.tensor([0]), torch.zeros(1), "epsilon", 5.0)).all()


def test_min_snr_weighs_the_same_error_alike_for_both_predictions():
    # An error e of x0 is an error e * alpha / sigma of the noise and e / sigma of the velocity.
    t = torch.arange(0, 1000, 50)
    power = ALPHAS[t]
    as_noise = (power / (1 - power)) * min_snr_weight(t, ALPHAS, "epsilon", 5.0)
    as_velocity = (1 / (1 - power)) * min_snr_weight(t, ALPHAS, "v_prediction", 5.0)
    torch.testing.assert_close(as_noise, as_velocity)


def test_timesteps_are_stratified():
    assert stratified_timesteps(10, 1000).tolist() == list(range(50, 1000, 100))
    assert stratified_timesteps(3, 1000).max() < 1000


def test_the_eight_variants_are_distinct_and_form_a_group():
    image = torch.arange(2 * 9.0).reshape(2, 3, 3)
    all8 = [dihedral(image, v) for v in range(8)]
    assert len({tuple(v.flatten().tolist()) for v in all8}) == 8
    assert torch.equal(all8[0], image) and torch.equal(all8[4], image.flip(-1))
    for v in range(8):
        inverse = (
            v if v >= 4 else -v % 4
        )  # a mirroring undoes itself, a turn is undone by the rest of the circle
        assert torch.equal(dihedral(dihedral(image, v), inverse), image)


@pytest.fixture
def data(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    allocate(tmp_path / "train.safetensors", {"mean": (10, 8, 4, 2, 2), "logvar": (10, 8, 4, 2, 2)})
    out = arrays(tmp_path / "train.safetensors", "r+")
    out["mean"][:] = np.arange(80).reshape(10, 8, 1, 1, 1)
    allocate(tmp_path / "captions.safetensors", {"embeddings": (3, 77, 5)})
    arrays(tmp_path / "captions.safetensors", "r+")["embeddings"][:] = np.arange(3).reshape(3, 1, 1)
    pq.write_table(pa.table({"caption_ids": [[1, 2]] * 10}), tmp_path / "rows_train.parquet")
    return Latents(tmp_path, "train", 0.5)


def test_latents_are_memory_mapped_and_readable_by_safetensors(data, tmp_path):
    from safetensors.torch import load_file

    assert isinstance(data.mean, np.memmap)
    assert load_file(tmp_path / "train.safetensors")["mean"][3, 2, 0, 0, 0] == 26


def test_an_epoch_is_every_image_once_in_a_variant_of_its_own(data):
    seen = [data.visits([position], 0, 1000, 0.0, False) for position in range(20)]
    ids = [int(v["latents"][0, 0, 0, 0] / 0.5) for v in seen]
    assert sorted(i // 8 for i in ids[:10]) == sorted(i // 8 for i in ids[10:]) == list(range(10))
    assert ids[:10] != ids[10:] and len({i % 8 for i in ids}) > 3
    together = data.visits(range(20), 0, 1000, 0.0, False)  # the same numbers at any batch size
    for key in together:
        assert torch.equal(together[key], torch.cat([v[key] for v in seen]))
    assert not torch.equal(together["noise"], data.visits(range(20), 1, 1000, 0.0, False)["noise"])


def test_captions_are_dropped_at_the_rate_asked_and_the_posterior_is_sampled(data):
    text = data.visits(range(1000), 0, 1000, 0.3, False)["text"][:, 0, 0]
    assert 0.25 < (text == 0).float().mean() < 0.35
    assert (text == 1).any() and (text == 2).any()
    sampled, mean = (
        data.visits(range(1000), 0, 1000, 0.0, sample)["latents"] for sample in (True, False)
    )
    assert (
        abs((sampled - mean).std() - 0.5) < 0.02
    )  # logvar 0 is a standard deviation of 1, scaled by 0.5


def test_checkpoints_are_safetensors_of_any_type_and_layout(tmp_path):
    from safetensors.torch import load_file

    tensors = {
        "bytes": torch.arange(7, dtype=torch.uint8),
        "count": torch.tensor(3),
        "half": torch.randn(5).half(),
        "image": torch.randn(2, 3, 4, 4).contiguous(memory_format=torch.channels_last),
        "none": torch.zeros(0, 2),
    }
    checkpoints.save(tmp_path / "a.safetensors", tensors, {"step": 1})
    found = load_file(tmp_path / "a.safetensors")
    assert found.keys() == tensors.keys()
    assert all(
        torch.equal(found[name], t) and found[name].dtype == t.dtype for name, t in tensors.items()
    )
    assert checkpoints.load(tmp_path / "a.safetensors")[1] == {"step": 1}


def test_a_torn_checkpoint_is_never_loaded(tmp_path, capsys):
    for step in (3, 6, 9):
        state = {"loss": 0.1 + 0.2, "step": step, "best_step": 3}
        checkpoints.save_step(
            tmp_path, {"weight.w": torch.full((100,), float(step))}, state, keep=2
        )
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "best.safetensors",
        "step_00000006.safetensors",
        "step_00000009.safetensors",
    ]
    assert (checkpoints.load(tmp_path / "best.safetensors")[0]["w"] == 3).all()
    last = tmp_path / "step_00000009.safetensors"
    last.write_bytes(last.read_bytes()[:-7])
    tensors, state = checkpoints.load_latest(tmp_path)
    assert (
        state == {"loss": 0.1 + 0.2, "step": 6, "best_step": 3} and (tensors["weight.w"] == 6).all()
    )
    assert "step_00000009.safetensors" in capsys.readouterr().err
    (tmp_path / "step_00000006.safetensors").write_bytes(b"")
    assert checkpoints.load_latest(tmp_path) is None


def test_a_full_disk_is_one_line_and_keeps_the_checkpoint_before(tmp_path):
    checkpoints.save_step(tmp_path, {"w": torch.ones(3)}, {"step": 1, "best_step": 0}, keep=1)
    (tmp_path / "step_00000002.part").symlink_to("/dev/full")
    with pytest.raises(SystemExit, match="No space left.*kept"):
        checkpoints.save_step(tmp_path, {"w": torch.ones(3)}, {"step": 2, "best_step": 0}, keep=1)
    assert [p.name for p in tmp_path.iterdir()] == ["step_00000001.safetensors"]


def card(holds: int):
    """An attempt on a GPU whose memory holds so many images."""

    def attempt(count: int) -> None:
        if count > holds:
            raise torch.OutOfMemoryError("CUDA out of memory")

    return attempt


@pytest.mark.parametrize("holds, fits", [(9, 8), (8, 8), (1, 1), (0, 0), (100, 16)])
def test_the_batch_that_fits_is_found(holds, fits):
    assert largest_batch(card(holds), 32) == fits


@pytest.mark.parametrize(
    "attempt, line",
    [
        (card(9), "32 images at a time.*8 do: set it to 8; or less"),
        (card(0), "nor does the smallest batch"),
        (None, "try half of them"),
    ],
)
def test_out_of_memory_is_one_line_that_says_which_batch_fits(attempt, line):
    with pytest.raises(SystemExit, match=f"error: sampling.batch_size: .*{line}"):
        with report_out_of_memory("sampling.batch_size", 32, attempt, "; or less"):
            card(31)(32)
    with pytest.raises(ZeroDivisionError):  # other faults are none of its business
        with report_out_of_memory("sampling.batch_size", 32, attempt):
            raise ZeroDivisionError


@pytest.mark.parametrize("count, sizes", [(1, [1]), (16, [16]), (17, [9, 8]), (64, [16] * 4)])
def test_a_group_is_cut_evenly_on_a_cpu_and_stays_whole_on_a_gpu(count, sizes):
    images = torch.arange(count)
    assert [len(images[part]) for part in CpuChunks(count, torch.device("cpu")).slices] == sizes
    assert torch.equal(
        torch.cat(CpuChunks(count, torch.device("cpu")).map(lambda part: images[part])), images
    )
    assert CpuChunks(count, torch.device("cuda")).slices == [slice(0, count)]


def test_gradients_of_slices_add_up_to_those_of_the_whole(four_threads):
    torch.manual_seed(0)
    network, images = (
        torch.nn.Sequential(torch.nn.Conv2d(4, 8, 3), torch.nn.SiLU(), torch.nn.Conv2d(8, 4, 3)),
        sample(40)[0],
    )
    weights = [*network.parameters(), unused := torch.nn.Parameter(torch.ones(3))]

    def loss(part):
        return network(images[part]).square().sum() / len(images)

    def gradients(backward) -> list[torch.Tensor]:
        for w in weights:
            w.grad = torch.ones_like(w)  # of an earlier micro-batch
        total = backward()
        return [total.detach(), *(w.grad for w in weights)]

    whole = gradients(lambda: (total := loss(slice(None)), (total / 2).backward())[0])
    slices = CpuChunks(len(images), torch.device("cpu"))
    assert len(slices.slices) == 3
    parts = [gradients(lambda: slices.backward(loss, weights, 1 / 2)) for _ in range(5)]
    torch.testing.assert_close(parts[0], whole)
    assert torch.equal(unused.grad, torch.ones(3))
    for others in parts[1:]:  # whichever slice is done first
        assert all(map(torch.equal, others, parts[0]))


@pytest.fixture
def four_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


def test_the_spread_of_latents_is_the_distance_of_two():
    latents = torch.randn(2000, 4, 2, 2, generator=torch.Generator().manual_seed(0)) * 3
    distances = (latents[:1000] - latents[1000:]).square().mean((1, 2, 3))
    assert spread(latents) == pytest.approx(distances.mean().sqrt().item(), rel=0.02)
    assert spread(latents[:1].repeat(5, 1, 1, 1)) == 0
