"""benchmarks/gpu_memory.py: the counts against real allocations, and the cards that scales name."""

import gc
import re
from unittest.mock import patch

import pytest
import torch
from torch.nn import functional
from torch.profiler import ProfilerActivity, profile

from benchmarks import gpu_memory
from stages.diffusion import models
from stages.diffusion.trainer import Trainer
from stages.finetune_sd import train_step
from tools.scale import compose

GROUP_NORM = functional.group_norm
LAYER_NORM = functional.layer_norm


def train_once(precision: str, method: str) -> Trainer:
    """An optimizer step of the demo's UNet, in one chunk as on a GPU."""
    changes = {"batch_size": 8, "method": method, "precision": precision, "ema_decay": 0.9}
    config = compose(["demo"])[1].finetune_sd.model_copy(update=changes)
    accelerator = gpu_memory.create_accelerator("no" if precision == "fp32" else precision)
    trainer = Trainer(gpu_memory.EMBEDDED_MODEL, config, 0, accelerator)
    trainer.chunked = False
    gc.collect()  # what is in cycles is freed at no fixed time
    batch = {
        "latents": torch.zeros(8, 4, 16, 16),
        "noise": torch.zeros(8, 4, 16, 16),
        "timesteps": torch.zeros(8, dtype=torch.long),
        "text": torch.zeros(8, 77, trainer.unet.config.cross_attention_dim),
    }
    gpu_memory.make_optimizer_state(trainer.unwrapped_optimizer, list(trainer.weights.values()))
    trainer.unwrapped_optimizer.zero_grad()
    train_step(trainer, [batch], 1e-4)
    trainer.update_ema(0)
    gc.collect()
    return trainer


def build_unet(folder, part):
    from diffusers import UNet2DConditionModel

    config = models.read_config(folder, part)
    return UNet2DConditionModel.from_config(config).eval().requires_grad_(False)


@pytest.mark.parametrize(
    "precision, method", [("fp32", "full"), ("bf16", "full"), ("fp32", "lora")]
)
def test_counts_are_what_a_real_step_allocates(precision, method):
    """The allocations of torch's profiler; the norms are the CPU's own in both."""
    with (
        gpu_memory.fake_gpu() as counter,
        patch.object(models, "load", build_unet),
        patch.object(functional, "group_norm", GROUP_NORM),
        patch.object(functional, "layer_norm", LAYER_NORM),
    ):
        fake = train_once(precision, method)
        kept = counter.live
        named = dict(fake.weights)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        real = train_once(precision, method)
    events = profiled.profiler.kineto_results.events()
    allocations = [event for event in events if event.name() == "[memory]"]
    live = peak = 0
    for event in sorted(allocations, key=lambda event: event.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    assert set(named) == set(real.weights)
    assert kept == pytest.approx(live, rel=0.01)
    assert counter.peak == pytest.approx(peak, rel=0.07)


@pytest.fixture(scope="module")
def writing() -> int:
    """The peak of the stage `prompt`, which all scales run alike."""
    return gpu_memory.count_writing(
        "Mistral-7B", gpu_memory.WRITER_REQUESTS, gpu_memory.WRITER_TOKENS
    )


@pytest.mark.parametrize("scale", gpu_memory.SCALES)
def test_a_scale_fits_the_card_of_its_header(scale, writing):
    params = compose([scale])[1]
    text = (gpu_memory.REPOSITORY / f"params/{scale}.yaml").read_text(encoding="utf-8")
    header = " ".join(text[: text.index("\n\n")].replace("\n#", "").split())
    card = int(re.search(r"[Oo]ne GPU of (\d+) GB", header)[1])
    resolution = params.fetch_imagery.resolution
    training = gpu_memory.count_finetune_sd(params.finetune_sd, resolution)
    if scale == "paper":
        # Full fine-tuning: four bytes a weight, as many of its gradient, twice as many of AdamW.
        weights = 859_520_964
        assert training.weights == pytest.approx(4 * weights, rel=1e-3)
        assert training.gradients == pytest.approx(4 * weights, rel=1e-3)
        assert training.optimizer == pytest.approx(8 * weights, rel=1e-3)
    qlora = gpu_memory.count_finetune_llm("Phi-1.5", params.finetune_llm, dtype=torch.bfloat16)
    peaks = {
        "encode": gpu_memory.ENCODING * gpu_memory.count_encoding(params.encode, resolution),
        "finetune_sd": training.peak,
        "finetune_llm": qlora.peak,
        "sample": gpu_memory.SAMPLING * gpu_memory.count_sampling(params.sampling),
        "prompt": writing,
    }
    assert not {stage: peak for stage, peak in peaks.items() if not gpu_memory.fits(peak, card)}
