"""Text generation with local causal language models."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.common.rng import rng
from stages.params import Prompt
from stages.runtime.errors import exit_with_error
from stages.runtime.pretrained import (
    check_vocabulary,
    load_pretrained,
    load_tokenizer,
    max_context,
)
from stages.text.writers.answers import Answer

if TYPE_CHECKING:
    import torch

BATCH = 32  # texts that are continued at once


def sampling_options(prompt: Prompt) -> dict[str, float]:
    """Return `temperature` and `top_p` of params, each only if it is not null."""
    options = {"temperature": prompt.temperature, "top_p": prompt.top_p}
    return {name: value for name, value in options.items() if value is not None}


def load_language_model(folder: Path, adapter: Path | None = None) -> tuple[Any, Any]:
    """Load a causal language model, with its LoRA adapter merged in, and its tokenizer.

    Returns:
        A `transformers.PreTrainedModel` on the GPU (bfloat16) or else the CPU (float32), one that
        bitsandbytes quantized in its own dtype, and a `transformers.PreTrainedTokenizerBase` that
        pads on the left.
    """
    import torch
    from transformers import AutoModelForCausalLM

    has_gpu = torch.cuda.is_available()
    dtype = torch.bfloat16 if has_gpu else torch.float32
    model = load_pretrained(AutoModelForCausalLM, folder, dtype=dtype)
    if adapter:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, adapter).merge_and_unload()
    # A continuation follows the last token, so the padding goes to the left.
    tokenizer = load_tokenizer(folder, padding_side="left")
    check_vocabulary(folder, tokenizer, model)
    if tokenizer.pad_token_id is None:
        # Any token will do: padding is masked.
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.convert_ids_to_tokens(0)
    return model.to("cuda" if has_gpu else "cpu").eval(), tokenizer


def generate(
    model: Any,
    tokenizer: Any,
    inputs: Mapping[str, "torch.Tensor"],
    max_new_tokens: int,
    sampling: Mapping[str, float],
    key: tuple[int, str, int, int],
) -> list[Answer]:
    """Sample one continuation for each row of `inputs`.

    Args:
        model: a causal language model.
        tokenizer: its tokenizer.
        inputs: what the tokenizer returns: input_ids and attention_mask, [B, T] each.
        max_new_tokens: the maximum length of a continuation.
        sampling: the options of `sampling_options`; a temperature of 0 takes the likeliest token.
        key: the run's seed, the class, the number of the attempt for it and that of the batch:
            what the random numbers depend on.

    Raises:
        SystemExit: a row is too long for the model, or has a token without an embedding.
    """
    import torch

    seed, label, attempt, batch = key
    torch.manual_seed(int(rng(seed, "writer", label, attempt).integers(2**31, size=batch + 1)[-1]))
    length = inputs["input_ids"].shape[1]
    max_length = max_context(model) - max_new_tokens
    if length > max_length:
        exit_with_error(
            f"prompt.top_k: the request has {length} tokens, the writer's context allows "
            f"{max_length} beside {max_new_tokens} of the answer (prompt.max_tokens)"
        )
    largest = int(inputs["input_ids"].max())
    if largest >= model.get_input_embeddings().weight.shape[0]:
        exit_with_error(
            f"prompt.writer: the request has the token {tokenizer.convert_ids_to_tokens(largest)}, "
            "of which the model has no embedding"
        )
    stops = model.generation_config.eos_token_id
    # Phi-1.5's configuration names no token that ends a text, and its tokenizer does.
    stop_ids = {*(stops if isinstance(stops, list) else [stops]), tokenizer.eos_token_id} - {None}
    is_random = sampling.get("temperature") != 0
    with torch.no_grad():
        ids = model.generate(
            **{
                name: tensor.to(model.device)
                for name, tensor in inputs.items()
                if name != "token_type_ids"
            },
            max_new_tokens=max_new_tokens,
            **({"do_sample": True, **sampling} if is_random else {"do_sample": False}),
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=sorted(stop_ids) or None,
        )  # [B, T + new tokens]
    return [read_tokens(tokenizer, row[:length], row[length:], stop_ids) for row in ids.tolist()]


def read_tokens(tokenizer: Any, given: list[int], ids: list[int], stop_ids: set[int]) -> Answer:
    """Decode tokens up to the first that stops an answer; without one it was cut off.

    Other special tokens stay: some are the tags of thoughts. The tokens are decoded behind those
    that were given: a decoder of SentencePiece drops the space before a text's first word.
    """
    stops = [position for position, id in enumerate(ids) if id in stop_ids]
    if stops:
        ids = ids[: stops[0]]
    text = tokenizer.decode([*given, *ids])[len(tokenizer.decode(given)) :]
    return Answer(text, is_cut=not stops)
