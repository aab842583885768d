"""GPU memory that the large scales need, counted without a GPU, weights or computation.

    python -m benchmarks.gpu_memory        prints the tables of benchmarks/results/gpu_memory.md

The code that trains and samples runs on fake tensors, which have a shape and no data; what their
storages would hold is added up, in the blocks of 512 bytes that CUDA's allocator hands out. Not
counted: the CUDA context, workspaces of cuDNN and cuBLAS, fragmentation. `HEADROOM` stands for
them, and `ENCODING` and `SAMPLING` for the workspaces of large images' convolutions, as far as they
were measured (benchmarks/results/gpu_memory.md).
"""

import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_

from benchmarks.workspace import REPOSITORY, build_part
from stages.common.artifacts import read_json
from stages.diffusion import models, normalization, schedulers
from stages.params import Encode, FinetuneLLM, FinetuneSD, Sampling
from stages.runtime.process import make_parser
from tools.rehearsal.models import CONFIGS
from tools.scale import compose

CARDS = (8, 12, 16, 24, 40, 80)  # GB, as cards are named; each holds at least 10^9 bytes per GB
HEADROOM = 0.15  # share of a card that is left to what is not counted
# Peak measured on an H200 over the one counted: 16 images of 512 px.
ENCODING = 10.1 / 7.9
SAMPLING = 17.5 / 13.1
BLOCK = 512  # bytes, the unit of CUDA's allocator
# Names the tokenizer and the noise schedule of the models, which take no GPU memory.
EMBEDDED_MODEL = REPOSITORY / "stages/embedded/models/diffusion"
# config.json of SmolLM2-135M, where it differs from the defaults.
SMOLLM = {
    "model_type": "llama",
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
}
LANGUAGE_MODELS: dict[str, dict[str, Any]] = {
    "Phi-1.5": read_json(CONFIGS / "phi-1_5/config.json"),
    "SmolLM2-135M": SMOLLM,
    "Mistral-7B": read_json(CONFIGS / "Mistral-7B-Instruct-v0.2/config.json"),
}
# What to set where a batch of one doesn't fit, in the order of docs/scale.md.
SAVINGS: dict[str, dict[str, Any]] = {
    "full": {},
    "full, checkpointing": {"gradient_checkpointing": True},
    "full, checkpointing, 8-bit AdamW": {
        "gradient_checkpointing": True,
        "optimizer": "adamw8bit",
    },
    "LoRA": {"method": "lora"},
    "LoRA, checkpointing": {"method": "lora", "gradient_checkpointing": True},
}
SCALES = ("paper", "recommended")
# Of the hosted writer: at most ten requests for descriptions of a class at once, with passages.
WRITER_REQUESTS = 10
WRITER_TOKENS = 2048  # of a request and its answer


@dataclass(frozen=True)
class Memory:
    """Bytes of GPU memory that a training step takes.

    Attributes:
        weights: of the model, frozen ones included.
        average: the moving average of the trained weights.
        gradients: of the trained weights.
        optimizer: its state.
        activations: what one forward pass keeps for the backward pass, 16-bit copies of the weights
            included.
        peak: the most that is held at once. Less than the sum where gradients are freed between the
            steps.
    """

    weights: int
    average: int
    gradients: int
    optimizer: int
    activations: int
    peak: int

    @property
    def kept(self) -> int:
        """What is held between the steps."""
        return self.weights + self.average + self.optimizer

    @property
    def without_activations(self) -> int:
        """What every batch needs."""
        return self.kept + self.gradients


def main() -> None:
    make_parser("benchmarks.gpu_memory", __doc__).parse_args()
    print_language_models()
    print_cards()


def print_language_models() -> None:
    """What fine-tuning a language model takes at the paper's batch, by method."""
    config = compose(["paper"], REPOSITORY)[1].finetune_llm
    unquantized = config.model_copy(update={"quantization": "none"})
    print("| model | method | weights | gradients | optimizer | activations | peak |")
    print("|---|---|---|---|---|---|---|")
    for name in ("SmolLM2-135M", "Phi-1.5"):
        counts = {
            "full, float32": count_finetune_llm(name, unquantized, full=True),
            "LoRA, float32": count_finetune_llm(name, unquantized),
            "LoRA, bfloat16": count_finetune_llm(name, unquantized, dtype=torch.bfloat16),
            "QLoRA, NF4": count_finetune_llm(name, config, dtype=torch.bfloat16),
        }
        for method, count in counts.items():
            kept = count.weights, count.gradients, count.optimizer, count.activations, count.peak
            cells = " | ".join(f"{size / 1e9:.2f}" for size in kept)
            print(f"| {name} | {method} | {cells} |")
        full, tuned = counts["full, float32"], counts["QLoRA, NF4"]
        without = full.without_activations / tuned.without_activations
        print(f"| {name} | full / QLoRA | without activations: {without:.1f} | | | ", end="")
        print(f"| {full.peak / tuned.peak:.1f} |", flush=True)


def print_cards() -> None:
    """What fits each card: batch x accumulation and method, or the batch size."""
    columns = [fitting_finetune_sd(scale) for scale in SCALES]
    paper, recommended = (compose([scale], REPOSITORY)[1] for scale in SCALES)
    for title, params in (("paper", paper), ("recommended", recommended)):
        size = count_finetune_llm("Phi-1.5", params.finetune_llm, dtype=torch.bfloat16).peak
        print(f"\nfinetune_llm, {title}: {size / 1e9:.1f} GB")
        columns.append({card: "yes" if fits(size, card) else "no" for card in CARDS})
    sampling = paper.sampling
    sizes = {
        n: SAMPLING * count_sampling(sampling.model_copy(update={"batch_size": n}))
        for n in (16, 8, 4, 2)
    }
    print(f"sampling: {format_sizes(sizes)}")
    columns.append(
        {card: next((str(n) for n in sizes if fits(sizes[n], card)), "no") for card in CARDS}
    )
    encoding = {
        n: ENCODING * count_encoding(recommended.encode.model_copy(update={"batch_size": n}), 512)
        for n in (16, 8, 4)
    }
    print(f"encode at 512 px: {format_sizes(encoding)}")
    columns.append(
        {card: next((str(n) for n in encoding if fits(encoding[n], card)), "no") for card in CARDS}
    )
    writing = count_writing("Mistral-7B", WRITER_REQUESTS, WRITER_TOKENS)
    print(f"prompt, Mistral-7B: {writing / 1e9:.1f} GB\n")
    columns.append({card: "yes" if fits(writing, card) else "no" for card in CARDS})
    for card in CARDS:
        print(f"| {card} GB | {' | '.join(column[card] for column in columns)} |")


def fitting_finetune_sd(scale: str) -> dict[int, str]:
    """The batch and the method of `finetune_sd` that fit each card, by the card's GB.

    The batch is halved, and the accumulation doubled, before anything else is changed. Memory grows
    by the same for each image of a batch, so two sizes are counted.
    """
    params = compose([scale], REPOSITORY)[1]
    config = params.finetune_sd
    resolution = params.fetch_imagery.resolution
    grid = count_grid(resolution)
    batches = [config.batch_size >> halvings for halvings in range(config.batch_size.bit_length())]
    answers: dict[int, str] = {}
    for name, saving in SAVINGS.items():
        most, least = (
            count_checkpointed_step(config, saving, batch, resolution, grid)
            for batch in (config.batch_size, 1)
        )
        per_image = (most - least) / (config.batch_size - 1)
        sizes = {batch: least + int(per_image * (batch - 1)) for batch in batches}
        print(f"finetune_sd, {scale}, {name}: {format_sizes(sizes)}", flush=True)
        for card in CARDS:
            largest = next((batch for batch in batches if fits(sizes[batch], card)), None)
            if largest and card not in answers:
                images = config.batch_size * config.gradient_accumulation
                answers[card] = f"{largest} x {images // largest}, {name}"
    return {card: answers.get(card, "no") for card in CARDS}


def count_checkpointed_step(
    config: FinetuneSD, saving: dict[str, Any], batch: int, resolution: int, grid: int
) -> int:
    """The peak of a step of `batch` images, and of a checkpoint that decodes an image after it."""
    changes = saving | {"batch_size": batch, "gradient_accumulation": 2}
    count = count_finetune_sd(config.model_copy(update=changes), resolution)
    return max(count.peak, count.kept + grid)


def fits(size: float, card: int) -> bool:
    """Whether this many bytes fit a card of this many GB."""
    return size <= (1 - HEADROOM) * card * 1e9


def format_sizes(sizes: Mapping[int, float]) -> str:
    """GB by batch size."""
    return ", ".join(f"{size / 1e9:.1f} GB at {batch}" for batch, size in sizes.items())


# Counting


class ByteCounter(TorchDispatchMode):
    """Adds up the storages that operations make within the block.

    Attributes:
        live: bytes held now.
        peak: the most bytes held at once.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = 0
        self.peak = 0
        self._sizes: dict[int, int] = {}  # by the address of the storage

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        tree_map_(self._add, result)
        return result

    def _add(self, value: Any) -> None:
        if not isinstance(value, torch.Tensor):
            return
        storage = value.untyped_storage()
        address = storage._cdata
        if address in self._sizes:  # a view, or an operation in place
            return
        size = -(-storage.nbytes() // BLOCK) * BLOCK
        self._sizes[address] = size
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._remove, address)

    def _remove(self, address: int) -> None:
        self.live -= self._sizes.pop(address)


@contextmanager
def fake_gpu() -> Iterator[ByteCounter]:
    """Within the block tensors are fake, and models have the sizes of their configurations.

    torch runs no backward pass of CUDA tensors without a GPU, so the tensors are the CPU's. What
    autocast does to norms on a GPU, where they read and write float32, is done here by hand.
    """
    import bitsandbytes
    from torch._subclasses.fake_tensor import FakeTensorMode

    counter = ByteCounter()
    with ExitStack() as stack:
        for module in (models, normalization):
            stack.enter_context(patch.object(module, "load", load_part))
        stack.enter_context(patch.object(torch.nn.Module, "to", cast_module))
        # bitsandbytes computes its tables of 256 values in Python, which needs data.
        make_table = patch.object(bitsandbytes.functional, "create_dynamic_map", dynamic_map)
        stack.enter_context(make_table)
        # It keeps them for the process, which is not to find fake ones after the block.
        stack.enter_context(patch.dict(bitsandbytes.functional.name2qmap, clear=True))
        for name in ("group_norm", "layer_norm"):
            norm = in_float32(getattr(functional, name))
            stack.enter_context(patch.object(functional, name, norm))
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        stack.enter_context(counter)
        yield counter


def create_accelerator(mixed_precision: str) -> Accelerator:
    """One process. accelerate keeps the precision of the first in the process, if it is let."""
    AcceleratorState._reset_state()
    return Accelerator(mixed_precision=mixed_precision, cpu=True)


def in_float32(function: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """The function on a float32 copy of its input, under autocast."""

    def call(x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        return function(x.float() if torch.is_autocast_enabled("cpu") else x, *args, **kwargs)

    return call


def dynamic_map(*_: Any, **__: Any) -> torch.Tensor:
    """The size of bitsandbytes' table of 8-bit values."""
    return torch.empty(256)


def cast_module(module: torch.nn.Module, *args: Any, **kwargs: Any) -> torch.nn.Module:
    """`Module.to` for fake tensors, which torch cannot swap; there is one device only."""
    dtype = torch._C._nn._parse_to(*args, **kwargs)[1]
    casts: dict[int, torch.nn.Parameter] = {}  # a weight that two layers share stays one
    for child in module.modules() if dtype else ():
        for name, weight in child._parameters.items():
            if weight is None:
                continue
            if id(weight) not in casts:
                cast = weight.detach().to(dtype)
                casts[id(weight)] = torch.nn.Parameter(cast, weight.requires_grad)
            child._parameters[name] = casts[id(weight)]
    return module


def load_part(folder: str | Path, part: str) -> Any:
    """A part of Stable Diffusion v1.5, in place of `models.load`."""
    return build_part(part).eval().requires_grad_(False)


def bytes_of(tensors: Iterator[torch.Tensor]) -> int:
    """What tensors take, each in whole blocks."""
    return sum(-(-tensor.nbytes // BLOCK) * BLOCK for tensor in tensors)


# Fine-tuning the diffusion model


def count_finetune_sd(config: FinetuneSD, resolution: int) -> Memory:
    """The memory of an optimizer step of `finetune_sd`, on images of `resolution` pixels.

    16-bit precisions take the same memory, so float16, which trains on a GPU only, is counted as
    bfloat16.
    """
    from stages.diffusion.trainer import Trainer
    from stages.finetune_sd import train_step

    accelerator = create_accelerator("no" if config.precision == "fp32" else "bf16")
    with fake_gpu() as counter:
        trainer = Trainer(EMBEDDED_MODEL, config, 0, accelerator)
        trainer.chunked = False  # a GPU computes a batch at once
        weights = bytes_of(trainer.unet.parameters())
        average = bytes_of(iter(trainer.ema.values()))
        batch = make_batch(config.batch_size, resolution)

        before = counter.live
        losses = trainer.losses(trainer.model, batch)
        activations = counter.live - before
        del losses

        trained = list(trainer.weights.values())
        make_optimizer_state(trainer.unwrapped_optimizer, trained)
        if config.gradient_accumulation == 1:
            # Else the gradients of other micro-batches are there.
            trainer.unwrapped_optimizer.zero_grad()
        train_step(trainer, [batch], config.lr)
        trainer.update_ema(0)
        return Memory(
            weights=weights,
            average=average,
            gradients=bytes_of(iter(trained)),
            optimizer=optimizer_bytes(trainer.unwrapped_optimizer),
            activations=activations,
            peak=counter.peak,
        )


def count_grid(resolution: int) -> int:
    """The memory that decoding an image of the sample grid takes at a checkpoint, VAE included."""
    with fake_gpu() as counter, torch.no_grad():
        vae = build_part("vae")
        vae.decode(torch.empty(1, 4, resolution // 8, resolution // 8), return_dict=False)
        return counter.peak


def make_batch(images: int, resolution: int) -> dict[str, torch.Tensor]:
    """A micro-batch of Stable Diffusion v1.5's shapes."""
    size = resolution // 8
    return {
        "latents": torch.empty(images, 4, size, size),
        "noise": torch.empty(images, 4, size, size),
        "timesteps": torch.zeros(images, dtype=torch.long),
        "text": torch.empty(images, 77, 768),
    }


def make_optimizer_state(
    optimizer: torch.optim.Optimizer, weights: list[torch.nn.Parameter]
) -> None:
    """Take a step, which makes the optimizer's state. The gradients are left."""
    for weight in weights:
        weight.grad = torch.empty_like(weight)
    optimizer.step()


def optimizer_bytes(optimizer: torch.optim.Optimizer) -> int:
    """What the state of an optimizer takes; a tensor that weights share counts once."""
    storages = {}
    for state in optimizer.state.values():
        for value in state.values():
            if isinstance(value, torch.Tensor):
                storages[value.untyped_storage()._cdata] = value
    return bytes_of(iter(storages.values()))


# Fine-tuning the language model


def count_finetune_llm(
    name: str, config: FinetuneLLM, full: bool = False, dtype: torch.dtype = torch.float32
) -> Memory:
    """The memory of an optimizer step of `finetune_llm`, as `transformers.Trainer` takes it.

    Args:
        name: a key of `LANGUAGE_MODELS`.
        config: batch size, context, quantization and LoRA.
        full: train all weights in float32, without LoRA and autocast.
        dtype: of the weights that are not quantized.
    """
    from stages.text import lora

    accelerator = create_accelerator("no" if full else "bf16")
    with fake_gpu() as counter:
        model = build_language_model(name, dtype)
        if config.quantization == "nf4":
            quantize(model)
        model = model.requires_grad_(True) if full else lora.add_lora(model, config)
        trained = [weight for weight in model.parameters() if weight.requires_grad]
        adamw = torch.optim.AdamW(trained, fused=True)
        model, optimizer = accelerator.prepare(model.train(), adamw)
        weights = counter.peak = counter.live  # weights are loaded in their last dtype
        ids = torch.zeros(config.batch_size, config.context, dtype=torch.long)
        batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}

        before = counter.live
        outputs = model(**batch)
        activations = counter.live - before
        del outputs

        make_optimizer_state(adamw, trained)
        adamw.zero_grad()
        accelerator.backward(model(**batch).loss)
        accelerator.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        return Memory(
            weights=weights,
            average=0,
            gradients=bytes_of(iter(trained)),
            optimizer=optimizer_bytes(adamw),
            activations=activations,
            peak=counter.peak,
        )


def build_language_model(name: str, dtype: torch.dtype) -> Any:
    """A causal language model of a published size."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(**LANGUAGE_MODELS[name])
    return AutoModelForCausalLM.from_config(config).to(dtype)


def quantize(model: Any) -> None:
    """Replace the linear layers but the last by bitsandbytes' 4-bit ones, as transformers does."""
    import bitsandbytes as bnb

    for name, module in list(model.named_modules()):
        if not isinstance(module, torch.nn.Linear) or name == "lm_head":
            continue
        # bitsandbytes' own class of parameters can't hold fake tensors.
        with patch.object(bnb.nn.modules, "Params4bit", lambda data, **_: torch.nn.Parameter(data)):
            layer = bnb.nn.Linear4bit(
                module.in_features,
                module.out_features,
                bias=module.bias is not None,
                compute_dtype=torch.bfloat16,
            )
        packed, state = bnb.functional.quantize_4bit(
            module.weight.detach(), compress_statistics=True, quant_type="nf4"
        )
        weight: Any = torch.nn.Parameter(packed, requires_grad=False)
        weight.quant_state = state
        weight.compress_statistics = True  # read by peft, as the next
        weight.quant_type = "nf4"
        layer.weight = weight
        layer.support_avx512bf16_for_cpu = False
        if layer.bias is not None:
            layer.bias = module.bias
        model.set_submodule(name, layer)
    model.is_loaded_in_4bit = True


# Sampling, encoding and writing prompts


class OneStep:
    """A noise schedule of one step, in place of those that compute with the timestep's value."""

    init_noise_sigma = 1.0
    timesteps = (torch.zeros((), dtype=torch.long),)

    def set_timesteps(self, steps: int, device: torch.device) -> None:
        pass

    def scale_model_input(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return x

    def step(
        self, prediction: torch.Tensor, t: torch.Tensor, x: torch.Tensor, return_dict: bool
    ) -> tuple[torch.Tensor]:
        return (x + prediction,)


def count_sampling(sampling: Sampling) -> int:
    """The peak memory of `sample` and `generate`: a group of images, denoised and decoded."""
    from stages.diffusion.sampler import Sampler

    precision = "fp32" if sampling.precision == "fp32" else "bf16"
    # Timesteps are numbers that steps are checked by; fake tensors have none.
    with fake_gpu() as counter, patch.object(schedulers, "check_steps", lambda *arguments: None):
        sampler = Sampler(EMBEDDED_MODEL, sampling.model_copy(update={"precision": precision}))
        sampler.scheduler = OneStep()
        sampler.latent_shape = (4, sampling.resolution // 8, sampling.resolution // 8)
        counter.peak = counter.live  # weights are cast before they are moved to the GPU
        sampler.try_group_size(sampling.batch_size)
        return counter.peak


def count_encoding(config: Encode, resolution: int) -> int:
    """The peak memory of `encode`: the VAE's encoder on a group of images."""
    from stages.diffusion.encoding import VaeEncoder
    from stages.diffusion.normalization import VAE_NORMALIZATION

    precision = "fp32" if config.precision == "fp32" else "bf16"
    with fake_gpu() as counter:
        encoder = VaeEncoder(EMBEDDED_MODEL, VAE_NORMALIZATION, precision, torch.device("cpu"))
        counter.peak = counter.live
        encoder.posterior(np.zeros((config.batch_size, resolution, resolution, 3), np.uint8), 0)
        return counter.peak


def count_writing(name: str, requests: int, tokens: int) -> int:
    """The peak memory of a language model in bfloat16 that answers `requests` at once.

    All tokens of request and answer are read in one pass: the keys and values that are kept are
    those at the end of the answers.
    """
    with fake_gpu() as counter, torch.no_grad():
        model = build_language_model(name, torch.bfloat16)
        counter.peak = counter.live
        ids = torch.zeros(requests, tokens, dtype=torch.long)
        mask = torch.ones_like(ids)
        model(input_ids=ids, attention_mask=mask, use_cache=True, logits_to_keep=1)
        return counter.peak


if __name__ == "__main__":
    main()
