"""The page of the live demo: its fields, and what they call (see tools/demo.py)."""

from dataclasses import dataclass
from typing import Any

import gradio as gr

from stages.params import Params
from tools.demo_fields import MAX_IMAGES, largest_numbers
from tools.demo_models import DemoModels, can_write_prompts

# Colors and parts of Gradio that people with poor sight, or a screen reader, can't use as they are.
STYLE = """
button.primary, button.primary:hover { background: #b3410a; color: #fff; }
button.stop, button.stop:hover { background: #b91c1c; color: #fff; }
[data-testid=min-value], [data-testid=max-value] { color: var(--body-text-color); }
.empty { visibility: hidden; }
"""
LAUNCH: dict[str, Any] = {"footer_links": [], "ssr_mode": False, "css": STYLE}
CACHE_SECONDS = 3600  # after which Gradio removes files that it served


@dataclass(frozen=True)
class Fields:
    """The fields and buttons of the page."""

    label: gr.Dropdown
    write: gr.Button
    prompt: gr.Textbox
    negative_prompt: gr.Textbox
    steps: gr.Slider
    guidance: gr.Slider
    seed: gr.Textbox
    count: gr.Slider
    draw: gr.Button
    cancel: gr.Button


def build_page(models: DemoModels) -> gr.Blocks:
    """Build the page: fields and buttons to the left, images to the right, passages below."""
    with gr.Blocks(
        title="Remote Diffusion",
        analytics_enabled=False,
        delete_cache=(CACHE_SECONDS, CACHE_SECONDS),
    ) as blocks:
        model = models.note or "the model of this run"
        gr.Markdown(f"# Remote Diffusion\nAerial images from words, by {model}.")
        with gr.Row():
            with gr.Column(scale=2):
                fields = add_fields(models.params)
            with gr.Column(scale=3):
                gallery = gr.Gallery(
                    label="Images",
                    columns=3,
                    format="png",
                    object_fit="contain",
                    buttons=["download", "download_all", "fullscreen"],
                )
                seeds = gr.Markdown()
        passages = gr.HTML()

        one_at_a_time: dict[str, Any] = {"concurrency_limit": 1, "concurrency_id": "models"}
        fields.write.click(
            models.write_prompt, fields.label, [fields.prompt, passages], **one_at_a_time
        )
        settings: list[Any] = [
            fields.prompt,
            fields.negative_prompt,
            fields.steps,
            fields.guidance,
            fields.seed,
            fields.count,
        ]
        drawing = gr.on(
            [fields.draw.click, fields.prompt.submit],
            models.generate_images,
            settings,
            [gallery, seeds],
            **one_at_a_time,
        )
        fields.cancel.click(models.cancel, queue=False, cancels=[drawing])
        blocks.load(models.restore_settings, None, settings, show_progress="hidden")
    blocks.unload(models.leave)
    return blocks.queue()


def add_fields(params: Params) -> Fields:
    """Add the fields and buttons to the part of the page that is being built."""
    sampling = params.sampling
    largest = largest_numbers(sampling)
    can_write = can_write_prompts(params.prompt.writer)
    with gr.Row(equal_height=True):
        classes = list(params.used_classes())
        label = gr.Dropdown(classes, value=classes[0], label="Class")
        write = gr.Button("Write me a prompt", interactive=can_write)
    if not can_write:
        gr.Markdown(
            "Prompts are written from papers, which no stage has read yet: run `dvc repro prompt`, "
            "then start the demo again."
        )
    prompt = gr.Textbox(
        label="Prompt", lines=3, placeholder="such as: a blue lake with a pale sandy shore"
    )
    negative_prompt = gr.Textbox(label="Negative prompt", value=params.prompt.negative_prompt)
    with gr.Row():
        steps = gr.Slider(1, largest["steps"], sampling.steps, step=1, label="Steps")
        guidance = gr.Slider(
            1, largest["guidance"], sampling.guidance_scale, step=0.5, label="Guidance"
        )
    with gr.Row():
        seed = gr.Textbox(label="Seed", placeholder="random", max_lines=1)
        count = gr.Slider(1, MAX_IMAGES, 4, step=1, label="Images")
    with gr.Row():
        draw = gr.Button("Draw", variant="primary")
        cancel = gr.Button("Cancel", variant="stop")
    return Fields(label, write, prompt, negative_prompt, steps, guidance, seed, count, draw, cancel)
