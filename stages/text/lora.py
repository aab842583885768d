"""Low-rank adaptation (LoRA, Hu et al. 2022) of a causal language model.

The base model can be quantized to 4 bits (QLoRA, Dettmers et al. 2023).
"""

import math
import re
import shutil
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from stages.common.artifacts import digest, read_json, write_json
from stages.params import FinetuneLLM
from stages.runtime.atomic import sync_to_disk
from stages.runtime.errors import exit_with_error
from stages.runtime.pretrained import load_pretrained
from stages.runtime.progress import log, progress_bar
from stages.runtime.tracking import open_dvclive
from stages.text import tokens

CHECKPOINTS_PER_RUN = 10
KEPT_CHECKPOINTS = 2
LOGS_PER_RUN = 50
DIGESTS = "sha256.json"  # in a checkpoint: a hash of each of its files
# Modules that read images and sound. Text trains none of them.
OTHER_INPUTS = re.compile(".*(vision|visual|audio).*")


def load_base(folder: Path, quantization: str) -> Any:
    """Load the base model, on the GPU where there is one.

    Args:
        folder: of the base model.
        quantization: none: float32 weights; nf4: linear layers in 4-bit NormalFloat.

    Raises:
        SystemExit: the model can't be loaded, or bitsandbytes has no nf4 for this machine.
    """
    if quantization == "nf4":
        return _load_4bit(folder)

    import torch
    from transformers import AutoModelForCausalLM

    from stages.common.torch_setup import device_type

    model = load_pretrained(AutoModelForCausalLM, folder, dtype=torch.float32)
    return model.to(device_type())


def _load_4bit(folder: Path) -> Any:
    """Load the base in 4-bit NormalFloat, quantized doubly (Dettmers et al. 2023, section 3).

    It computes in bfloat16 on a GPU, in float32 on a CPU.
    """
    try:
        import bitsandbytes
    except (ImportError, OSError) as error:
        exit_with_error(
            "finetune_llm.quantization: nf4 needs bitsandbytes, which does not load on this "
            f"machine ({error}); write none"
        )
    import torch
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    from stages.common.torch_setup import device_type

    device = device_type()
    if device not in bitsandbytes.supported_torch_devices:
        exit_with_error(
            f"finetune_llm.quantization: bitsandbytes {bitsandbytes.__version__} has no nf4 for "
            f"this machine's {'GPU' if device == 'cuda' else 'CPU'}; write none"
        )
    compute_dtype = torch.bfloat16 if device == "cuda" else torch.float32
    model = load_pretrained(
        AutoModelForCausalLM,
        folder,
        quantization_config=BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=compute_dtype,
        ),
        dtype=compute_dtype,
        device_map={"": 0 if device == "cuda" else "cpu"},
    )
    # On CPUs with AVX512-BF16, an evaluation would repack the weights, and the next training step
    # would fail on them.
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    return model


def add_lora(model: Any, config: FinetuneLLM) -> Any:
    """Wrap a model in trainable LoRA adapters; the model's own weights are frozen.

    Of a model that reads images or sound as well, its text model alone is adapted.

    Raises:
        SystemExit: a name in `target_modules` is no layer of the text model that can be adapted.
    """
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training

    refuse_target_modules(model, config.target_modules)
    others = any(OTHER_INPUTS.fullmatch(name) for name, _ in model.named_modules())
    if config.quantization == "nf4":
        # Activations are computed again in the backward pass, as in QLoRA: the same values, in a
        # fraction of the memory (benchmarks/results/gpu_memory.md).
        model = prepare_model_for_kbit_training(
            model,
            use_gradient_checkpointing=True,
            gradient_checkpointing_kwargs={"use_reentrant": False},
        )
    lora_config = LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        task_type="CAUSAL_LM",
        target_modules=sorted(config.target_modules),
        exclude_modules=OTHER_INPUTS.pattern if others else None,
    )
    return get_peft_model(model, lora_config)


def refuse_target_modules(model: Any, names: list[str]) -> None:
    """Exit with an error where a name is none of a linear or embedding layer of the text model.

    Layers that share a weight, as embeddings and output layer often do, are refused: the update of
    one, merged into the weight, would change the other, too.
    """
    from torch.nn import Embedding, Linear
    from transformers.pytorch_utils import Conv1D

    weights = Counter(id(weight) for _, weight in model.named_parameters(remove_duplicate=False))
    adaptable, shared, unsupported = set(), set(), set()
    for path, module in model.named_modules():
        if OTHER_INPUTS.fullmatch(path):
            continue
        name = path.rpartition(".")[2]
        # Classes that are derived from Embedding read other inputs than token ids (OPT).
        if not isinstance(module, (Linear, Conv1D)) and type(module) is not Embedding:
            unsupported.add(name)
        elif weights[id(module.weight)] > 1:
            shared.add(name)
        else:
            adaptable.add(name)
    adaptable -= shared | unsupported
    for name in names:
        if name not in adaptable:
            cause = f"the base model has no {name} to adapt"
            if name in shared:
                cause = f"{name} shares its weight with another layer and can't be adapted alone"
            exit_with_error(
                f"finetune_llm.target_modules: {cause}; names to choose from: "
                f"{', '.join(sorted(adaptable))}"
            )


def train(
    model: Any,
    sequences: list[np.ndarray],
    pad: int,
    config: FinetuneLLM,
    seed: int,
    folder: Path,
) -> list[dict]:
    """Train a model with `transformers.Trainer`; resume from the last checkpoint in `folder`.

    Args:
        model: of `add_lora`; trained in place.
        sequences: token ids, at least two per sequence.
        pad: token id that fills the shorter sequences of a batch.
        config: the section `finetune_llm`.
        seed: of the order of the sequences and of dropout.
        folder: holds the checkpoints.

    Returns:
        {step, loss} for each logged step.

    Raises:
        SystemExit: the loss became NaN or inf.
    """
    from accelerate.utils import extract_model_from_parallel
    from peft import load_peft_weights, set_peft_model_state_dict
    from transformers import PrinterCallback, Trainer
    from transformers.integrations import DVCLiveCallback

    unfinished = folder / "unfinished"  # where `Trainer` writes, file by file
    shutil.rmtree(unfinished, ignore_errors=True)
    checkpoint, state = last_checkpoint(folder)
    if checkpoint and state.global_step == config.steps:  # `Trainer` would take one more step
        set_peft_model_state_dict(model, load_peft_weights(checkpoint))
        return losses_by_step(state)
    live = open_dvclive("finetune_llm", resume=bool(checkpoint))
    trainer = Trainer(
        model=model,
        args=_training_arguments(config, seed, unfinished),
        train_dataset=[{"input_ids": ids} for ids in sequences],
        data_collator=partial(tokens.collate, pad=pad),
        callbacks=[_watch_training(config, unfinished, folder), DVCLiveCallback(live)],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train(resume_from_checkpoint=checkpoint)
    # `Trainer` leaves the model in bfloat16 autocast, in which the base model was not measured.
    extract_model_from_parallel(model, keep_fp32_wrapper=False)
    return losses_by_step(trainer.state)


def _watch_training(config: FinetuneLLM, unfinished: Path, folder: Path) -> Any:
    """Return a `transformers.TrainerCallback`: a bar, the check of the loss, checkpoints.

    Args:
        config: the section `finetune_llm`.
        unfinished: where `Trainer` writes checkpoints.
        folder: where they are moved to.
    """
    from transformers import TrainerCallback

    class WatchTraining(TrainerCallback):
        def on_train_begin(self, args, state, control, **kwargs) -> None:
            self.bar = progress_bar(
                total=config.steps, initial=state.global_step, desc="finetune_llm", unit="step"
            )

        def on_step_end(self, args, state, control, **kwargs) -> None:
            self.bar.update()

        def on_log(self, args, state, control, logs=None, **kwargs) -> None:
            if "loss" not in logs:  # the means of the whole run
                return
            if not math.isfinite(logs["loss"]):
                exit_with_error(
                    f"finetune_llm.lr: the loss is NaN or inf by step {state.global_step}; "
                    f"try a lower lr than {config.lr}"
                )
            self.bar.set_postfix(loss=f"{logs['loss']:.4f}", refresh=False)

        def on_save(self, args, state, control, **kwargs) -> None:
            keep_checkpoint(unfinished / f"checkpoint-{state.global_step}", folder)

        def on_train_end(self, args, state, control, **kwargs) -> None:
            self.bar.close()

    return WatchTraining()


def keep_checkpoint(written: Path, folder: Path) -> None:
    """Move a checkpoint that `Trainer` has written to `folder`.

    A kill or a power cut leaves it out of `folder`, or complete in it. Removed are all but the last
    `KEPT_CHECKPOINTS`, and those of later steps, which were damaged.
    """
    write_json(written / DIGESTS, file_digests(written))
    for path in [*written.iterdir(), written]:
        sync_to_disk(path)
    kept = folder / written.name
    if kept.exists():  # a damaged one that `last_checkpoint` passed over
        shutil.rmtree(kept.rename(written.with_name("damaged")))
    written.rename(kept)
    sync_to_disk(folder)
    checkpoints = list_checkpoints(folder)
    end = checkpoints.index(kept) + 1
    for unused in checkpoints[:end][:-KEPT_CHECKPOINTS] + checkpoints[end:]:
        shutil.rmtree(unused.rename(written))


def file_digests(checkpoint: Path) -> dict[str, str]:
    """Return a hash of each file of a checkpoint, but of the file that holds these hashes."""
    files = sorted(path for path in checkpoint.iterdir() if path.name != DIGESTS)
    return {path.name: digest(path) for path in files}


def list_checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoints in a folder, in the order of their steps."""
    return sorted(
        folder.glob("checkpoint-*"), key=lambda path: int(path.name.removeprefix("checkpoint-"))
    )


def last_checkpoint(folder: Path) -> tuple[str | None, Any]:
    """Return the last undamaged checkpoint and its `transformers.TrainerState`; None without one.

    A damaged one is named in the log and passed over.
    """
    from transformers import TrainerState

    checkpoints = list_checkpoints(folder)
    for path in reversed(checkpoints):
        try:
            undamaged = read_json(path / DIGESTS) == file_digests(path)
        except OSError:
            undamaged = False
        if undamaged:
            log(f"finetune_llm: resumes from {path.name}")
            return str(path), TrainerState.load_from_json(str(path / "trainer_state.json"))
        log(f"finetune_llm: {path.name} is damaged and not used")
    if checkpoints:
        log(f"finetune_llm: no checkpoint in {folder} can be used; training starts again")
    return None, None


def losses_by_step(state: Any) -> list[dict]:
    """Return {step, loss} for each logged step of a `transformers.TrainerState`."""
    return [
        {"step": entry["step"], "loss": entry["loss"]}
        for entry in state.log_history
        if "loss" in entry
    ]


def _training_arguments(config: FinetuneLLM, seed: int, folder: Path) -> Any:
    """Return the `transformers.TrainingArguments`; bfloat16 on a GPU, float32 on the CPU."""
    import torch
    from transformers import TrainingArguments

    has_gpu = torch.cuda.is_available()
    # A checkpoint is saved where the loss is logged: a resumed run logs the means of a whole one.
    logging_steps = max(1, config.steps // LOGS_PER_RUN)
    save_steps = logging_steps * max(1, config.steps // (CHECKPOINTS_PER_RUN * logging_steps))
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=config.steps,
        per_device_train_batch_size=config.batch_size,
        learning_rate=config.lr,
        weight_decay=config.weight_decay,
        seed=seed,
        data_seed=seed,
        full_determinism=False,
        use_cpu=not has_gpu,
        bf16=has_gpu,
        logging_steps=logging_steps,
        save_steps=save_steps,
        report_to="none",
        logging_nan_inf_filter=False,
        remove_unused_columns=False,
        disable_tqdm=True,  # `_watch_training` has a bar for log files, too
        dataloader_pin_memory=has_gpu,
    )
    if arguments.n_gpu > 1:  # Trainer would multiply the batch by the number of GPUs
        arguments._n_gpu = 1
    return arguments
