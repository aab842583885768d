"""Speed of generation: our sampler in groups against `pipe(prompt)`, one prompt at a time.

    python -m benchmarks.generate           demo size (CPU or GPU)
    python -m benchmarks.generate 512       Stable Diffusion v1.5's size at 512 px (GPU)

At Stable Diffusion's size the weights are random.
"""

import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.interleaved import compare
from benchmarks.workspace import make_demo, make_stable_diffusion
from stages.diffusion.sampler import Sampler
from stages.params import Sampling, load
from stages.runtime.process import make_parser


def main() -> None:
    parser = make_parser("benchmarks.generate", __doc__)
    parser.add_argument("size", nargs="?", choices=["demo", "224", "512"], default="demo")
    size = parser.parse_args().size
    with tempfile.TemporaryDirectory() as temporary:
        if size == "demo":
            folder = make_demo(Path(temporary), 48)
            large_sampling: dict[str, Any] = {}
            pipeline_prompts = 8
        else:
            folder = make_stable_diffusion(Path(temporary), 24, 512)
            large_sampling = {
                "resolution": int(size),
                "steps": 50,
                "batch_size": 16,
                "guidance_scale": 7.5,
                "precision": "fp16",
            }
            pipeline_prompts = 2
        demo_sampling = load(folder / "params.yaml").sampling.model_dump()
        sampling = Sampling(**(demo_sampling | large_sampling))
        compare_samplers(size, folder / "models/base/diffusion", sampling, pipeline_prompts)


def compare_samplers(size: str, model: Path, sampling: Sampling, pipeline_prompts: int) -> None:
    """Print images per second of diffusers' pipeline, on its first prompts, and of our sampler."""
    has_gpu = torch.cuda.is_available()
    sampler = Sampler(model, sampling, "cuda" if has_gpu else "cpu")
    prompts = [f"an aerial image of field {i}" for i in range(sampling.batch_size)]
    some_prompts = prompts[:pipeline_prompts]
    pipeline = load_pipeline(model, torch.float32, sampler.device)
    runs = {"pipe(prompt), fp32": lambda: time_pipeline(pipeline, some_prompts, sampling)}
    if has_gpu:
        half_pipeline = load_pipeline(model, torch.float16, sampler.device)
        runs["pipe(prompt), fp16"] = lambda: time_pipeline(half_pipeline, some_prompts, sampling)
    our_name = f"ours, groups of {sampling.batch_size}, {sampling.precision}"
    runs[our_name] = lambda: time_sampler(sampler, prompts)
    for run in runs.values():
        run()  # not timed: torch chooses and loads kernels
    device = torch.cuda.get_device_name() if has_gpu else "CPU"
    compare(f"generation, {size}, {device}", runs)


def load_pipeline(model: Path, dtype: torch.dtype, device: torch.device) -> Any:
    """diffusers' StableDiffusionPipeline, without its progress bar."""
    from diffusers import StableDiffusionPipeline

    pipeline: Any = StableDiffusionPipeline.from_pretrained(
        model, torch_dtype=dtype, local_files_only=True
    )
    pipeline.to(device)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def time_pipeline(pipeline: Any, prompts: list[str], sampling: Sampling) -> float:
    """Images per second of diffusers' pipeline, called once per prompt."""
    started = time.perf_counter()
    for prompt in prompts:
        pipeline(
            prompt,
            num_inference_steps=sampling.steps,
            guidance_scale=sampling.guidance_scale,
            height=sampling.resolution,
            width=sampling.resolution,
        )
    return len(prompts) / (time.perf_counter() - started)


def time_sampler(sampler: Sampler, prompts: list[str]) -> float:
    """Images per second of our sampler on one group."""
    started = time.perf_counter()
    sampler.generate_images(prompts, [""] * len(prompts), list(range(len(prompts))))
    return len(prompts) / (time.perf_counter() - started)


if __name__ == "__main__":
    main()
