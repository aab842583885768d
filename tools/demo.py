"""The live demo: draw with the current models, from your own prompt or one that is written for a class from the papers.

    python -m tools.demo      on this machine only; GRADIO_SERVER_NAME=0.0.0.0 opens it to the network (there is no password)

reads   sampling, prompt, seed; models/diffusion, models/start, models/index and what the prompt writer needs

The same sampler, retriever, writer and checks as the pipeline's: a prompt, its negative prompt, seed, steps and guidance give
the image of the report (to rounding). One request at a time; a canceled one stops before its next denoising step.
"""

import html
import secrets
import sys
import threading
from pathlib import Path

import gradio as gr
import torch
from PIL import Image

from stages.diffusion.cpu_chunks import CpuChunks
from stages.diffusion.models import start_folder
from stages.diffusion.sampler import Sampler
from stages.params import LULC_CLASSES, Params, load
from stages.prompt import BASE, INDEX, make_writer
from stages.runtime.errors import exit_with_error
from stages.text import checks
from stages.text.prompt_writing import Asking
from stages.text.retrieval import Retriever

MODEL = Path("models/diffusion")
MOST = 9  # images of one request


class Stopped(Exception):
    """The visitor who asked has canceled, or left."""


class Studio:
    """The models, used by one request at a time."""

    def __init__(self, p: Params):
        self.p, self.lock, self.asking = p, threading.Lock(), None
        self.visitor, self.stop = None, threading.Event()
        self.sampler = Sampler(MODEL, p.sampling, "cuda" if torch.cuda.is_available() else "cpu")
        self.sampler.unet.register_forward_pre_hook(self.step)

    def step(self, *_) -> None:
        """Before each denoising step."""
        if self.stop.is_set():
            raise Stopped
        self.done += 1
        self.progress((self.done, self.total), unit="steps")

    def draw(
        self,
        prompt: str,
        negative: str,
        steps: int,
        guidance: float,
        seed: str,
        count: int,
        request: gr.Request,
        progress=gr.Progress(),
    ):  # noqa: B008  where Gradio looks for it
        """(images with their seeds, the first seed), for the gallery."""
        if not prompt.strip():
            raise gr.Error("Write a prompt first, or let one be written.")
        seed = seed.strip() or str(secrets.randbelow(2**31))
        if not seed.isdecimal() or int(seed) >= 2**63:
            raise gr.Error(
                f"The seed is a whole number from 0 to {2**63 - 1}, or nothing for a random one."
            )
        seeds = [(int(seed) + i) % 2**63 for i in range(count)]
        with self.lock:  # a canceled request may still be in its last step
            self.visitor, self.done, self.progress = request.session_hash, 0, progress
            self.stop.clear()
            self.sampler.settings = self.p.sampling.model_copy(
                update={"steps": steps, "guidance_scale": guidance, "batch_size": count}
            )
            self.sampler.scheduler.set_timesteps(steps)  # PNDM takes one more than it is asked for
            self.total = len(self.sampler.scheduler.timesteps) * len(
                CpuChunks(count, self.sampler.device).slices
            )
            try:
                images = self.sampler.draw([prompt] * count, [negative] * count, seeds)
            except Stopped:
                return gr.skip(), gr.skip()
            finally:
                self.visitor = None
        return [
            (Image.fromarray(image), f"seed {each}") for image, each in zip(images, seeds)
        ], f"First seed: {seed}"

    def cancel(self, request: gr.Request) -> None:
        """Stop what this visitor has running; another's goes on."""
        if request.session_hash == self.visitor:
            self.stop.set()

    def write(self, label: str) -> tuple[str, str]:
        """A further prompt for a class, and the passages that it rests on as HTML."""
        p = self.p.prompt
        with self.lock:
            try:
                if (
                    self.asking is None
                ):  # built when first asked for: a language model may take a minute to load
                    tokens, retriever = (
                        checks.Counter(start_folder() / "tokenizer"),
                        Retriever(INDEX, BASE / "embedder"),
                    )
                    writer = make_writer(p, p.writer, p.technique, self.p.seed)
                    self.asking = Asking(
                        writer, p.technique, retriever, tokens, p.positive_cues, p.top_k
                    )
                rows, refused = self.asking.ask(label, 1, p.attempts)
            except SystemExit as end:  # how a stage says what is wrong
                raise gr.Error(str(end)) from None
        if not rows:
            why = (
                ", ".join(f"{count} {reason}" for reason, count in refused.most_common())
                or "none was offered"
            )
            raise gr.Error(f"No further prompt for {label} passes the checks ({why}).")
        return rows[0]["prompt"], sources(rows[0]["source"])


def sources(passages: list[dict]) -> str:
    """The passages as HTML. What papers say is text, never markup."""
    passages = list({each["id"]: each for each in passages}.values())
    if not passages:
        return "<p>No passage: the writer used none for this prompt.</p>"
    return "<h3>Where this prompt comes from</h3>" + "".join(
        f"<details open><summary>{html.escape(each['title'])} ({html.escape(each['paper'])}), page {each['page']}</summary>"
        f"<blockquote>{html.escape(each['text'])}</blockquote></details>"
        for each in passages
    )


def page(studio: Studio) -> gr.Blocks:
    s, alone = studio.p.sampling, {"concurrency_limit": 1, "concurrency_id": "models"}
    with gr.Blocks(title="Remote Diffusion", analytics_enabled=False) as blocks:
        gr.Markdown("# Remote Diffusion\nAerial images from words, by the model of this run.")
        with gr.Row():
            with gr.Column(scale=2):
                with gr.Row(equal_height=True):
                    label = gr.Dropdown(list(LULC_CLASSES), value=LULC_CLASSES[0], label="Class")
                    write = gr.Button("Write me a prompt")
                prompt = gr.Textbox(label="Prompt", lines=3)
                negative = gr.Textbox(
                    label="Negative prompt", value=studio.p.prompt.negative_prompt
                )
                with gr.Row():
                    steps = gr.Slider(1, 100, s.steps, step=1, label="Steps")
                    guidance = gr.Slider(1, 15, s.guidance_scale, step=0.5, label="Guidance")
                with gr.Row():
                    seed = gr.Textbox(label="Seed", placeholder="random", max_lines=1)
                    count = gr.Slider(1, MOST, 4, step=1, label="Images")
                with gr.Row():
                    draw = gr.Button("Draw", variant="primary")
                    cancel = gr.Button("Cancel", variant="stop")
            with gr.Column(scale=3):
                images = gr.Gallery(
                    label="Images",
                    columns=3,
                    format="png",
                    object_fit="contain",
                    buttons=["download", "download_all", "fullscreen"],
                )
                told = gr.Markdown()
        passages = gr.HTML()
        write.click(studio.write, label, [prompt, passages], **alone)
        asked = [prompt, negative, steps, guidance, seed, count]
        drawing = gr.on([draw.click, prompt.submit], studio.draw, asked, [images, told], **alone)
        cancel.click(studio.cancel, queue=False, cancels=[drawing])
    blocks.unload(studio.cancel)
    return blocks.queue()


def main() -> None:
    for path in (MODEL / "unet", INDEX / "passages.parquet"):
        if not path.exists():
            exit_with_error(
                f"{path}: missing; `dvc repro prompt finetune_sd` makes it, `dvc pull models` fetches it"
            )
    page(Studio(load())).launch(footer_links=[], ssr_mode=False)


if __name__ == "__main__":
    main(*sys.argv[1:])
