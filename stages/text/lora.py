"""Low-rank adaptation of a causal language model, on a 4-bit base where asked (QLoRA, Dettmers et al. 2023)."""

import math
import sys
from functools import partial
from pathlib import Path

from stages.params import FinetuneLLM
from stages.runtime.errors import exit_with_error
from stages.runtime.pretrained import load_pretrained
from stages.runtime.progress import log
from stages.text import tokens

CHECKPOINTS = 10  # per run


def load_base(folder: Path, quantization: str):
    """The base model on the GPU where there is one; its linear layers in 4 bits for `nf4`."""
    if quantization == "nf4":
        try:
            import bitsandbytes
        except (ImportError, OSError) as fault:
            exit_with_error(
                f"finetune_llm.quantization: nf4 needs bitsandbytes, which does not load on this machine ({fault}); write none"
            )
    import torch
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    gpu = torch.cuda.is_available()
    if quantization == "none":
        return load_pretrained(AutoModelForCausalLM, folder, dtype=torch.float32).to(
            "cuda" if gpu else "cpu"
        )
    if ("cuda" if gpu else "cpu") not in bitsandbytes.supported_torch_devices:
        exit_with_error(
            f"finetune_llm.quantization: bitsandbytes {bitsandbytes.__version__} has no nf4 for this machine's "
            f"{'GPU' if gpu else 'CPU'}; write none"
        )
    compute = torch.bfloat16 if gpu else torch.float32
    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute,
    )
    model = load_pretrained(
        AutoModelForCausalLM,
        folder,
        quantization_config=config,
        dtype=compute,
        device_map={"": 0 if gpu else "cpu"},
    )
    for module in model.modules():
        # Else, on CPUs with AVX512-BF16, an evaluation repacks the weights and the next training step fails.
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    return model


def adapt(model, p: FinetuneLLM):
    """Wrap the model in LoRA (Hu et al. 2022)."""
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training

    names = {
        name.rpartition(".")[2]
        for name, module in model.named_modules()
        if (weight := getattr(module, "weight", None)) is not None and weight.dim() == 2
    }
    if missing := [name for name in p.target_modules if name not in names]:
        exit_with_error(
            f"finetune_llm.target_modules: the base model has no {missing[0]} to adapt; it has {', '.join(sorted(names))}"
        )
    if p.quantization == "nf4":
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    return get_peft_model(
        model,
        LoraConfig(
            r=p.rank,
            lora_alpha=p.alpha,
            lora_dropout=p.dropout,
            task_type="CAUSAL_LM",
            target_modules=sorted(p.target_modules),
        ),
    )


def train(
    model, rows: list[list[int]], pad: int, p: FinetuneLLM, seed: int, folder: Path
) -> list[dict]:
    """Run `transformers.Trainer` in `folder`; returns its log, a {step, loss} per logged step."""
    import torch
    from dvclive import Live
    from transformers import Trainer, TrainerCallback, TrainingArguments
    from transformers.integrations import DVCLiveCallback
    from transformers.trainer_utils import get_last_checkpoint

    class Watch(TrainerCallback):
        def on_log(self, args, state, control, logs=None, **rest):
            if not math.isfinite(logs.get("loss", 0.0)):
                exit_with_error(
                    f"finetune_llm.lr: the loss is no number by step {state.global_step}. Try a lower lr than {p.lr}"
                )

    gpu = torch.cuda.is_available()
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=p.steps,
        per_device_train_batch_size=p.batch_size,
        learning_rate=p.lr,
        weight_decay=p.weight_decay,
        seed=seed,
        data_seed=seed,
        full_determinism=False,
        use_cpu=not gpu,
        bf16=gpu,
        logging_steps=max(1, p.steps // 50),
        save_steps=max(1, p.steps // CHECKPOINTS),
        save_total_limit=2,
        report_to="none",
        logging_nan_inf_filter=False,
        remove_unused_columns=False,
        disable_tqdm=not sys.stderr.isatty(),
        dataloader_pin_memory=gpu,
    )
    folder.mkdir(parents=True, exist_ok=True)
    last = get_last_checkpoint(str(folder))
    # To be watched while it trains, where finetune_sd's curves are (stages/runtime/tracking.py): git and the pipeline ignore it.
    Path("dvclive/finetune_llm/metrics.json").unlink(
        missing_ok=True
    )  # its summary: a kill may have torn it
    live = Live("dvclive/finetune_llm", resume=bool(last), save_dvc_exp=False, dvcyaml=None)
    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=[{"input_ids": ids} for ids in rows],
        data_collator=partial(tokens.collate, pad=pad),
        callbacks=[Watch(), DVCLiveCallback(live)],
    )
    if last:
        log(f"finetune_llm: goes on from {Path(last).name}")
    trainer.train(resume_from_checkpoint=last)
    return [
        {"step": entry["step"], "loss": entry["loss"]}
        for entry in trainer.state.log_history
        if "loss" in entry
    ]
