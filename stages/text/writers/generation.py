"""Text generation with local causal language models."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.common.rng import rng
from stages.runtime.errors import exit_with_error
from stages.runtime.pretrained import load_pretrained

if TYPE_CHECKING:
    import torch

TEMPERATURE = 0.7
TOP_P = 0.9


def load_language_model(folder: Path, adapter: Path | None = None) -> tuple[Any, Any]:
    """Load a causal language model, with its LoRA adapter merged in, and its tokenizer.

    Returns:
        A `transformers.PreTrainedModel` on the GPU (bfloat16) or else the CPU (float32), and a
        `transformers.PreTrainedTokenizerBase` that pads on the left.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    has_gpu = torch.cuda.is_available()
    dtype = torch.bfloat16 if has_gpu else torch.float32
    model = load_pretrained(AutoModelForCausalLM, folder, dtype=dtype)
    if adapter:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, adapter).merge_and_unload()
    # A continuation follows the last token, so the padding goes to the left.
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return model.to("cuda" if has_gpu else "cpu").eval(), tokenizer


def generate(
    model: Any,
    tokenizer: Any,
    inputs: Mapping[str, "torch.Tensor"],
    max_new_tokens: int,
    seed: int,
    label: str,
    attempt: int,
) -> list[str]:
    """Sample one continuation for each row of `inputs`.

    Args:
        model: a causal language model.
        tokenizer: its tokenizer.
        inputs: what the tokenizer returns: input_ids and attention_mask, [B, T] each.
        max_new_tokens: the maximum length of a continuation.
        seed: the run's seed. The random numbers depend on it, the class and the attempt only.
        label: the class.
        attempt: the number of the attempt for this class.
    """
    import torch

    torch.manual_seed(int(rng(seed, "writer", label, attempt).integers(2**31)))
    length = inputs["input_ids"].shape[1]
    max_length = getattr(model.config, "max_position_embeddings", 4096) - max_new_tokens
    if length > max_length:
        exit_with_error(
            f"prompt.top_k: the request has {length} tokens, the writer's context allows "
            f"{max_length}"
        )
    with torch.no_grad():
        ids = model.generate(
            **{
                name: tensor.to(model.device)
                for name, tensor in inputs.items()
                if name != "token_type_ids"
            },
            max_new_tokens=max_new_tokens,
            do_sample=True,
            temperature=TEMPERATURE,
            top_p=TOP_P,
            pad_token_id=tokenizer.pad_token_id,
        )  # [B, T + new tokens]
    return tokenizer.batch_decode(ids[:, length:], skip_special_tokens=True)
