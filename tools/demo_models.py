"""The models behind the page of the live demo, and the requests that they serve."""

import html
import math
import os
import shutil
import threading
import time
from collections import Counter
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp
from typing import Any
from urllib.parse import urlencode

import gradio as gr
import numpy as np

from stages import fetch_model, train_base
from stages.common.artifacts import read_json
from stages.common.torch_setup import device_type
from stages.diffusion.cpu_chunks import CpuChunks
from stages.diffusion.marked_png import encode_marked_png
from stages.diffusion.models import context_length, model_digest
from stages.diffusion.sampler import Sampler
from stages.imagery.untrusted_text import valid_utf8
from stages.params import Params, Writer, read
from stages.prompt import TRAIN, read_training_captions
from stages.runtime.dvc_lock import has_params
from stages.runtime.errors import exit_with_error
from stages.runtime.gpu_memory import report_out_of_memory
from stages.runtime.parallel import batched
from stages.runtime.progress import log
from stages.text.checks import ClipTokenCounter
from stages.text.class_words import NO_CAPTIONS, ClassLexicon, complete_words
from stages.text.embedder import is_neural
from stages.text.prompt_writing import ImagePrompt, PromptCollector, describe_rejections
from stages.text.retrieval import EMBEDDER, INDEX, Retriever
from stages.text.writers import ADAPTER, INSTRUCTED, LANGUAGE, make_writer
from stages.text.writers.answer_cache import AnswerCache
from tools.demo_fields import (
    LINK_FIELDS,
    MAX_SEED,
    Refusal,
    check_number,
    format_passages,
    largest_numbers,
    parse_seed,
    read_setting,
    shorten,
)

TUNED = Path("models/diffusion")
# The stages whose params decide on what the fine-tuned model is.
TUNED_BY = ("fetch_imagery", "fetch_model@diffusion", "train_base", "encode", "finetune_sd")
BASE_NOTE = "the base model, not fine-tuned: `make` fine-tunes it"
OTHER_PARAMS_NOTE = "a model of other params than params.yaml has: `dvc repro` makes that of these"


class RequestCanceled(Exception):
    """The visitor canceled the request, or closed the page."""


class DemoModels:
    """The sampler and the prompt writer, used by one request at a time."""

    def __init__(self, params: Params):
        self.params = params
        self.largest = largest_numbers(params.sampling)
        self.lock = threading.Lock()
        self.stop = threading.Event()  # ends the request that is being served
        self.stops: dict[str | None, threading.Event] = {}  # that of each visitor's last request
        self.folder = choose_model(params)
        self.note = note_model(self.folder)
        if self.note:
            log(f"demo: images are drawn with {self.note}")
        self.sampler = Sampler(self.folder, params.sampling, device_type())
        self.sampler.unet.register_forward_pre_hook(self.before_step)
        self.progress = gr.Progress()
        self.started = 0.0  # seconds on the monotonic clock
        self.steps_done = 0
        self.steps_total = 0
        # The same request for a prompt is not paid twice.
        own = os.environ.get("GRADIO_TEMP_DIR")  # removed when the demo ends
        if own:
            os.makedirs(own, exist_ok=True)  # Gradio removes it when a server is closed
        self.answers = TemporaryDirectory(dir=own)
        self.images = TemporaryDirectory(dir=own)
        self.folders: dict[str | None, str] = {}  # in it, of the last images of each visitor
        self.given: dict[str | None, list[ImagePrompt]] = {}  # prompts, to each visitor
        self.model_digest = model_digest(self.folder)

    @cached_property
    def collector(self) -> PromptCollector:
        """The collector of the pipeline's own prompts.

        It is made at the first request for a prompt: a language model may take a minute to load.
        """
        prompt = self.params.prompt
        labels = self.params.classes
        training = NO_CAPTIONS
        if TRAIN.is_dir():
            training = read_training_captions(labels, prompt.words)
        classes = ClassLexicon(complete_words(labels, prompt.words, training))
        return PromptCollector(
            make_writer(
                prompt,
                prompt.writer,
                prompt.technique,
                classes,
                self.params.seed,
                AnswerCache(Path(self.answers.name)),
            ),
            prompt.technique,
            classes,
            Retriever(INDEX, EMBEDDER),
            ClipTokenCounter(self.folder / "tokenizer"),
            prompt,
        )

    def before_step(self, *_: Any) -> None:
        """Report progress before each denoising step; end a canceled request.

        Raises:
            RequestCanceled: the request was canceled.
        """
        if self.stop.is_set():
            raise RequestCanceled
        seconds = time.monotonic() - self.started
        description = "starting"
        if self.steps_done:
            left = seconds / self.steps_done * (self.steps_total - self.steps_done)
            description = f"about {math.ceil(left)} s left"
        self.steps_done += 1
        self.progress((self.steps_done, self.steps_total), description, unit="steps")

    def generate_images(
        self,
        prompt: str,
        negative_prompt: str,
        steps: int,
        guidance: float,
        seed: str,
        count: int,
        request: gr.Request,
        progress: gr.Progress = gr.Progress(),  # noqa: B008  Gradio looks for it here
    ) -> tuple[Any, Any]:
        """Return (images, their seeds with what else there is to say) for the page.

        Raises:
            Refusal: there is no prompt, or none that the model can read, a setting is out of
                range, the seed is no whole number, or the images are NaN or inf.
        """
        prompt, negative_prompt = valid_utf8(prompt or ""), valid_utf8(negative_prompt or "")
        if not prompt.strip():
            raise Refusal("Write a prompt first, or let one be written.")
        steps = check_number("Steps", steps, self.largest["steps"], whole=True)
        guidance = check_number("Guidance", guidance, self.largest["guidance"], whole=False)
        guidance = float(guidance)
        count = check_number("Images", count, self.largest["images"], whole=True)
        notes = self.describe_reading(prompt, "prompt")
        notes += self.describe_reading(negative_prompt, "negative prompt")
        first_seed = parse_seed(seed)
        seeds = [(first_seed + i) % (MAX_SEED + 1) for i in range(count)]
        stop = self.stops[request.session_hash] = threading.Event()
        # A canceled request holds the lock until its last step ends.
        with self.lock:
            self.stop = stop
            self.progress = progress
            self.set_sampling(steps, guidance, count)
            try:
                images = self.draw(prompt, negative_prompt, seeds)
            except RequestCanceled:
                return gr.skip(), gr.skip()
            except SystemExit as error:  # from `exit_with_error`
                raise Refusal(str(error)) from None
            described = self.describe_images(prompt, negative_prompt)
        self.forget_images(request)
        folder = self.folders[request.session_hash] = mkdtemp(dir=self.images.name)
        gallery = [
            save_image(image, image_seed, described, Path(folder))
            for image, image_seed in zip(images, seeds)
        ]
        values = (prompt, negative_prompt, steps, guidance, first_seed, count)
        link = urlencode(dict(zip(LINK_FIELDS, values)))
        link = f"[Link to these settings](?{link})"
        return gallery, "\n\n".join([f"Seeds: {', '.join(map(str, seeds))}", *notes, link])

    def draw(self, prompt: str, negative_prompt: str, seeds: list[int]) -> list[np.ndarray]:
        """Return an image for each seed: uint8 [H, W, 3].

        Raises:
            RequestCanceled: the request was canceled, perhaps while it waited for its turn.
            SystemExit: the images are NaN or inf, or don't fit into the GPU's memory.
        """
        images: list[np.ndarray] = []
        group_size = self.sampler.sampling.batch_size
        for group in batched(seeds, group_size):
            if self.stop.is_set():
                raise RequestCanceled
            with report_out_of_memory("sampling.batch_size", group_size, None):
                images += list(
                    self.sampler.generate_images(
                        [prompt] * len(group), [negative_prompt] * len(group), group
                    )
                )
        if self.stop.is_set():
            raise RequestCanceled
        return images

    def describe_images(self, prompt: str, negative_prompt: str) -> dict[str, Any]:
        """What a file says of its image, as in data/synthetic, but for the seed."""
        sampling = self.sampler.sampling
        return {
            "prompt": prompt,
            "negative_prompt": negative_prompt,
            "scheduler": sampling.scheduler,
            "steps": sampling.steps,
            "guidance_scale": sampling.guidance_scale,
            "model": self.model_digest,
        }

    def describe_reading(self, text: str, name: str) -> list[str]:
        """Say what the model doesn't read of a prompt: characters it has no token for, and the end.

        Raises:
            Refusal: it has no token for any of the text.
        """
        tokenizer = self.sampler.tokenizer
        tokens = tokenizer(
            text, add_special_tokens=False, return_offsets_mapping=True, verbose=False
        )
        spans = tokens["offset_mapping"]  # of each token, in characters
        # Two positions are for the start and end tokens.
        limit = context_length(tokenizer, self.sampler.text_encoder) - 2
        pairs = zip(tokens["input_ids"], spans)
        unknown = dict.fromkeys(span for token, span in pairs if token == tokenizer.unk_token_id)
        characters = "".join(text[start:end] for start, end in unknown)
        if spans and len(unknown) == len(set(spans)):
            raise Refusal(f"The model can read nothing of the {name}: {shorten(characters)}")
        notes = []
        if characters:
            notes.append(f"Not in the model's vocabulary, of the {name}: {shorten(characters)}")
        if len(spans) > limit:
            rest = shorten(text[spans[limit][0] :])
            notes.append(f"The model reads {limit} tokens of the {name}. It didn't read: {rest}")
        return notes

    def set_sampling(self, steps: int, guidance: float, count: int) -> None:
        """Set the sampler to a request's steps, guidance scale and number of images."""
        group_size = min(count, self.params.sampling.batch_size)
        self.sampler.sampling = self.params.sampling.model_copy(
            update={"steps": steps, "guidance_scale": guidance, "batch_size": group_size}
        )
        # Count the scheduler's own timesteps: PNDM takes one more than it is asked for.
        scheduler = self.sampler.scheduler
        scheduler.set_timesteps(steps)
        chunks = CpuChunks(group_size, self.sampler.device).chunks
        groups = math.ceil(count / group_size)
        self.started = time.monotonic()
        self.steps_done = 0
        self.steps_total = len(scheduler.timesteps) * len(chunks) * groups

    def restore_settings(self, request: gr.Request) -> list[Any]:
        """Return what the page's address holds: the values of the fields, in their order."""
        query = request.query_params
        return [read_setting(name, query, self.largest) for name in LINK_FIELDS]

    def cancel(self, request: gr.Request) -> None:
        """Stop the request of this visitor; a request of another visitor goes on."""
        if request.session_hash in self.stops:
            self.stops[request.session_hash].set()

    def leave(self, request: gr.Request) -> None:
        """Stop the request of a visitor who has closed the page, and forget what they got."""
        self.cancel(request)
        self.stops.pop(request.session_hash, None)
        self.given.pop(request.session_hash, None)
        self.forget_images(request)

    def forget_images(self, request: gr.Request) -> None:
        """Remove the images of a visitor's last request; Gradio has copied them to serve them."""
        folder = self.folders.pop(request.session_hash, None)
        if folder:
            shutil.rmtree(folder, ignore_errors=True)

    def write_prompt(self, label: str, request: gr.Request) -> tuple[str, str]:
        """Return the next prompt for a class, and the passages that it rests on as HTML.

        Raises:
            Refusal: there is no such class, the writer cannot be used, or none of its candidates
                passes the checks.
        """
        if label not in self.params.used_classes():
            raise Refusal("There is no such class.")
        with self.lock:
            try:
                # Every visitor gets all that the papers give.
                self.collector.kept = self.given.setdefault(request.session_hash, [])
                kept, rejections = self.collect_prompt(label)
            except SystemExit as error:  # from `exit_with_error`
                raise Refusal(str(error)) from None
        if not kept:
            reasons = describe_rejections(rejections, self.collector.examples)
            raise Refusal(html.escape(f"No prompt for {label} passes the checks ({reasons})."))
        return kept[0].prompt, format_passages(kept[0].passages)

    def collect_prompt(self, label: str) -> tuple[list[ImagePrompt], Counter[str]]:
        """Return the next prompt for a class, in a list that may be empty, and rejections.

        Where the visitor has seen all that the papers give of the class, they begin again.
        """
        attempts = self.params.prompt.attempts
        kept, rejections = self.collector.collect(label, 1, attempts)
        of_others = [prompt for prompt in self.collector.kept if prompt.label != label]
        if not kept and len(of_others) < len(self.collector.kept):
            self.collector.kept[:] = of_others
            kept, rejections = self.collector.collect(label, 1, attempts)
        return kept, rejections


def choose_model(params: Params) -> Path:
    """Return the folder of the fine-tuned model or, before fine-tuning, of the base model.

    Raises:
        SystemExit: the fine-tuned model is incomplete, or there is neither of the two.
    """
    source = params.fetch_model.diffusion
    if TUNED.exists():
        if not (TUNED / "model_index.json").is_file():
            exit_with_error(
                f"{TUNED}/model_index.json: missing, the model is incomplete; "
                f"`dvc checkout {TUNED}` or `dvc repro finetune_sd` makes it whole"
            )
        return TUNED
    if params.train_base.source == "scratch":
        exit_with_error(
            f"{TUNED}: missing, and train_base.source is scratch, so that no base model can draw; "
            "`dvc repro finetune_sd` trains it"
        )
    if source == "embedded":
        return fetch_model.EMBEDDED / "diffusion"
    record = train_base.FETCHED / "SOURCE.json"
    if not record.is_file() or read_json(record)["source"] != source:
        exit_with_error(
            f"{train_base.FETCHED}: {source} of fetch_model.diffusion is not fetched; "
            "`dvc repro fetch_model@diffusion` fetches it, `dvc repro finetune_sd` fine-tunes it"
        )
    return train_base.FETCHED


def note_model(folder: Path) -> str:
    """Describe a model that is not the one of params.yaml; "" if it is."""
    if folder != TUNED:
        return BASE_NOTE
    if not Path("dvc.lock").is_file():
        return ""
    locked, params = read("dvc.lock")["stages"], read()
    is_of_params = all(has_params(locked.get(stage, {}), params) for stage in TUNED_BY)
    return "" if is_of_params else OTHER_PARAMS_NOTE


def can_write_prompts(writer: Writer) -> bool:
    """Return whether the index of the papers and the models of the prompt writer are there."""
    needed = [INDEX / "passages.parquet"]
    if not is_neural(EMBEDDER):
        needed.append(INDEX / "embedder.json")
    if writer == "domain":
        needed += [LANGUAGE / "config.json", ADAPTER / "adapter_config.json"]
    if writer == "huggingface":
        needed.append(INSTRUCTED / "config.json")
    return all(path.is_file() for path in needed)


def save_image(image: Any, seed: int, described: dict[str, Any], folder: Path) -> str:
    """Save an image uint8 [H, W, 3] as a PNG that says how it was made; returns its path."""
    path = folder / f"seed-{seed}.png"
    path.write_bytes(encode_marked_png(image, {**described, "seed": seed}))
    return str(path)
