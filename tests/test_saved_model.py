"""What others draw from the saved folder is what our sampler draws."""

import shutil
import warnings
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file, save_file
from tiny_diffusion import make_pipeline

from stages.common.artifacts import read_json, write_json
from stages.diffusion import models
from stages.diffusion.encoding import VaeEncoder
from stages.diffusion.normalization import VAE_NORMALIZATION, load_folded_vae, read_folded
from stages.diffusion.sampler import Sampler
from stages.diffusion.saved_model import save_finetuned
from stages.fetching.model_folder import copy_model
from stages.params import Sampling

# A data set of dark, greenish tiles of little contrast.
DATASET = {"normalization": "dataset", "mean": [0.31, 0.36, 0.27], "std": [0.14, 0.11, 0.12]}
PROMPTS = ["a field", "a bright lake"]
SEEDS = [3, 4]
SIZE = 48  # pixels; the base model's own default is 32


@pytest.fixture(scope="module")
def bases(tmp_path_factory) -> dict[str, Path]:
    """Base models by prediction type; their images have contrast."""
    folders = {}
    for prediction_type in ("epsilon", "v_prediction"):
        folder = tmp_path_factory.mktemp("bases") / prediction_type
        make_pipeline(folder, prediction_type=prediction_type)
        weights_file = folder / "vae/diffusion_pytorch_model.safetensors"
        weights = load_file(weights_file)
        weights["decoder.conv_out.weight"] *= 4
        save_file(weights, weights_file, {"format": "pt"})
        # As old as SD v1.5's: diffusers replaces a sample_size below 64 in such a file.
        config_file = folder / "unet/config.json"
        write_json(config_file, read_json(config_file) | {"_diffusers_version": "0.6.0"})
        # A scheduler's file says little where its class has Stable Diffusion's values as defaults.
        config_file = folder / "scheduler/scheduler_config.json"
        scheduler = read_json(config_file)
        del scheduler["set_alpha_to_one"], scheduler["steps_offset"]
        write_json(config_file, scheduler)
        folders[prediction_type] = folder
    return folders


def save(base: Path, target: Path, normalization: dict, zero_terminal_snr: bool = False) -> Path:
    """The base's UNet as if it had been fine-tuned on latents of these pixels."""
    unet = {name: value * 1.01 for name, value in models.load(base, "unet").state_dict().items()}
    save_finetuned(base, target, unet, normalization, SIZE // 4, zero_terminal_snr)
    return target


def draw(folder: Path, scheduler: str) -> np.ndarray:
    """Images of our sampler, int [N, H, W, 3]."""
    sampling = Sampling(
        scheduler=scheduler,
        steps=5,
        guidance_scale=3.0,
        resolution=SIZE,
        batch_size=len(PROMPTS),
        precision="fp32",
    )
    return Sampler(folder, sampling).generate_images(PROMPTS, ["blurry"] * 2, SEEDS).astype(int)


def load_pipeline(folder: Path) -> StableDiffusionPipeline:
    """diffusers' pipeline, without warnings about what the folder holds."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)  # that it replaces a sample size
        pipeline = StableDiffusionPipeline.from_pretrained(folder, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def draw_with_diffusers(pipeline: StableDiffusionPipeline) -> np.ndarray:
    """Images of the pipeline from the same noise and at its default size, int [N, H, W, 3]."""
    images = []
    for prompt, seed in zip(PROMPTS, SEEDS):
        drawn = pipeline(
            prompt,
            negative_prompt="blurry",
            num_inference_steps=5,
            guidance_scale=3.0,
            generator=torch.Generator().manual_seed(seed),
        )
        images.append(np.asarray(drawn.images[0]))
    return np.stack(images).astype(int)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("normalization", [VAE_NORMALIZATION, DATASET], ids=["vae", "dataset"])
def test_diffusers_draws_what_the_sampler_draws(
    bases, tmp_path, caplog, normalization, prediction_type
):
    diffusers.utils.logging.enable_propagation()
    folder = save(bases[prediction_type], tmp_path / "saved", normalization)
    pipeline = load_pipeline(folder)
    own = pipeline.scheduler
    ddim = diffusers.DDIMScheduler.from_config(own.config)
    dpm = diffusers.DPMSolverMultistepScheduler.from_config(own.config, timestep_spacing="trailing")
    schedulers = [own, ddim, dpm]
    for name, pipeline.scheduler in zip(("pndm", "ddim", "dpm"), schedulers):
        ours = draw(folder, name)
        assert ours.std() > 5
        assert np.abs(ours - draw_with_diffusers(pipeline)).max() <= 1, name
    assert "not expected" not in caplog.text


def test_diffusers_draws_the_same_on_a_zero_terminal_snr_schedule(bases, tmp_path):
    base = bases["v_prediction"]
    folder = save(base, tmp_path / "saved", DATASET, zero_terminal_snr=True)
    pipeline = load_pipeline(folder)
    assert np.abs(draw(folder, "ddim") - draw_with_diffusers(pipeline)).max() <= 1
    dpm = diffusers.DPMSolverMultistepScheduler
    pipeline.scheduler = dpm.from_config(pipeline.scheduler.config)
    assert np.abs(draw(folder, "dpm") - draw_with_diffusers(pipeline)).max() <= 1


@pytest.mark.parametrize("base_prefix", ["", "text_model."])
def test_the_text_encoder_has_the_names_of_every_stable_diffusion(bases, tmp_path, base_prefix):
    """transformers 4 reads no others; 5 writes them without the prefix."""
    base = shutil.copytree(bases["epsilon"], tmp_path / "base")
    file = "text_encoder/model.safetensors"
    weights = {name.removeprefix("text_model."): w for name, w in load_file(base / file).items()}
    save_file({base_prefix + name: w for name, w in weights.items()}, base / file, {"format": "pt"})
    saved = load_file(save(base, tmp_path / "saved", DATASET) / file)
    assert saved.keys() == {f"text_model.{name}" for name in weights}
    assert all(torch.equal(weight, saved[f"text_model.{n}"]) for n, weight in weights.items())


def test_a_base_with_dpm_solver_and_attention_outputs_is_saved(bases, tmp_path):
    """diffusers writes -Infinity for the one; transformers saves no config with the other."""
    base = shutil.copytree(bases["epsilon"], tmp_path / "base")
    dpm = diffusers.DPMSolverMultistepScheduler
    dpm.from_pretrained(base / "scheduler").save_pretrained(base / "scheduler")
    assert "-Infinity" in (base / "scheduler/scheduler_config.json").read_text()
    for name, values in (
        ("model_index.json", {"scheduler": ["diffusers", dpm.__name__]}),
        ("text_encoder/config.json", {"output_attentions": True}),
    ):
        write_json(base / name, read_json(base / name) | values)
    folder = save(base, tmp_path / "saved", DATASET)
    pipeline = load_pipeline(folder)
    assert isinstance(pipeline.scheduler, dpm)
    pipeline.scheduler = dpm.from_config(pipeline.scheduler.config, timestep_spacing="trailing")
    assert np.abs(draw(folder, "dpm") - draw_with_diffusers(pipeline)).max() <= 1


def test_the_saved_model_keeps_its_colors_as_the_next_base(bases, tmp_path):
    saved = save(bases["epsilon"], tmp_path / "saved", DATASET)
    fetched = tmp_path / "fetched"
    copy_model("diffusion", saved, fetched, "fetch_model.diffusion")
    assert np.array_equal(draw(fetched, "ddim"), draw(saved, "ddim"))
    assert not np.allclose(draw(fetched, "ddim"), draw(bases["epsilon"], "ddim"), atol=20)
    # It was trained on latents of this normalization: to say so again folds nothing twice.
    tiles = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    latents = [
        VaeEncoder(folder, normalization, "fp32", torch.device("cpu")).posteriors(tiles, 1)["mean"]
        for folder, normalization in (
            (bases["epsilon"], DATASET),
            (fetched, DATASET),
            (fetched, read_folded(fetched)),
        )
    ]
    np.testing.assert_array_equal(latents[1], latents[0])
    np.testing.assert_array_equal(latents[2], latents[0])


def test_a_folded_vae_is_the_vae_around_an_affine_map(bases):
    vae = models.load(bases["epsilon"], "vae")
    folded = load_folded_vae(bases["epsilon"], DATASET)
    mean, std = (torch.tensor(DATASET[key])[:, None, None] for key in ("mean", "std"))  # [3, 1, 1]
    pixels = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    normalized = (pixels / 2 + 0.5 - mean) / std
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    decoded = vae.decode(latents).sample * std + mean  # in [0, 1]
    torch.testing.assert_close(folded.decode(latents).sample / 2 + 0.5, decoded)
    # The first convolution, which pads with zeros, is the same inside and not at the border.
    first = vae.encoder.conv_in(normalized)
    folded_first = folded.encoder.conv_in(pixels)
    inside = (..., slice(1, -1), slice(1, -1))
    torch.testing.assert_close(folded_first[inside], first[inside])
    assert not torch.allclose(folded_first, first)


def test_one_normalization_replaces_another(bases, tmp_path):
    other = DATASET | {"mean": [0.5, 0.4, 0.4], "std": [0.2, 0.3, 0.25]}
    saved = save(bases["epsilon"], tmp_path / "saved", DATASET)
    twice = load_folded_vae(saved, other).state_dict()
    once = load_folded_vae(bases["epsilon"], other).state_dict()
    for name, weight in once.items():
        torch.testing.assert_close(twice[name], weight)
    plain = load_folded_vae(saved, VAE_NORMALIZATION).state_dict()
    for name, weight in models.load(bases["epsilon"], "vae").state_dict().items():
        torch.testing.assert_close(plain[name], weight)
