"""Generation: our sampler in groups against `pipe(prompt)`, one prompt at a time.

python -m benchmarks.generate                 demo size (CPU or GPU)
python -m benchmarks.generate 512             Stable Diffusion v1.5's size at 512 px, random weights (a GPU)
"""

import sys
import tempfile
import time
from pathlib import Path

import torch

from benchmarks.interleaved import compare
from benchmarks.workspace import demo, stable_diffusion
from stages.diffusion.sampler import Sampler
from stages.params import Sampling, load

ROUNDS = 5


def main(size: str = "demo") -> None:
    from diffusers import StableDiffusionPipeline

    gpu = torch.cuda.is_available()
    device = torch.cuda.get_device_name() if gpu else "CPU"
    with tempfile.TemporaryDirectory() as place:
        folder, large = Path(place), size != "demo"
        stable_diffusion(folder, 24, 512) if large else demo(folder, 48)
        model = folder / "models/base/diffusion"
        settings = load(folder / "params.yaml").sampling.model_dump()
        if large:
            settings |= {
                "resolution": int(size),
                "steps": 50,
                "batch_size": 16,
                "guidance_scale": 7.5,
                "precision": "fp16",
            }
        settings = Sampling(**settings)
        sampler = Sampler(model, settings, "cuda" if gpu else "cpu")
        prompts = [f"an aerial image of field {i}" for i in range(settings.batch_size)]

        def ours() -> float:
            began = time.perf_counter()
            sampler.draw(prompts, [""] * len(prompts), list(range(len(prompts))))
            return len(prompts) / (time.perf_counter() - began)

        def plain(dtype: torch.dtype):
            pipe = StableDiffusionPipeline.from_pretrained(
                model, torch_dtype=dtype, local_files_only=True
            ).to(sampler.device)
            pipe.set_progress_bar_config(disable=True)

            def run() -> float:
                some = prompts[:2] if large else prompts[:8]
                began = time.perf_counter()
                for prompt in some:
                    pipe(
                        prompt,
                        num_inference_steps=settings.steps,
                        guidance_scale=settings.guidance_scale,
                        height=settings.resolution,
                        width=settings.resolution,
                    )
                return len(some) / (time.perf_counter() - began)

            return run

        runs = {"pipe(prompt), fp32": plain(torch.float32)}
        if gpu:
            runs["pipe(prompt), fp16"] = plain(torch.float16)
        runs[f"ours, groups of {settings.batch_size}, {settings.precision}"] = ours
        for run in runs.values():
            run()  # kernels are chosen and loaded
        compare(f"generation, {size}, {device}", "images/s", runs, ROUNDS)


if __name__ == "__main__":
    main(*sys.argv[1:])
