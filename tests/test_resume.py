"""finetune_sd cut off: killed, on a full disk, with a torn checkpoint, in shards. It goes on and ends with the same bytes."""

import errno
import os
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_diffusion import run, write_params

from stages import finetune_sd
from stages.common.artifacts import digest, read_json
from stages.diffusion import checkpoints


def outputs(folder):
    paths = (
        "models/diffusion",
        "metrics/diffusion.json",
        "metrics/plots/diffusion_loss.csv",
        "metrics/plots/diffusion_grid",
    )
    return {path: digest(folder / path) for path in paths}


def kill_at(step):
    """finetune_sd, killed as the power would at the beginning of an optimizer step, the checkpoint before it being on disk."""
    rate = finetune_sd.learning_rate

    def learning_rate(now, *rest):
        if now == step:
            while step >= 3 and not list(
                Path("scratch/finetune_sd").glob(f"*/step_{step // 3 * 3:08d}.safetensors")
            ):
                time.sleep(0.02)
            os.kill(os.getpid(), signal.SIGKILL)
        return rate(now, *rest)

    finetune_sd.learning_rate = learning_rate
    finetune_sd.main()


def kill_while_writing(step):
    """finetune_sd, killed when the checkpoint is on disk but not yet in its place."""
    sync = os.fsync
    save = checkpoints.save_step

    def save_step(folder, tensors, state, keep):
        if state["step"] == step:
            checkpoints.os.fsync = lambda _: os.kill(os.getpid(), signal.SIGKILL)
        save(folder, tensors, state, keep)
        checkpoints.os.fsync = sync

    checkpoints.save_step = save_step
    finetune_sd.main()


@pytest.mark.parametrize(
    "how, step, resumed", [(kill_at, 8, 6), (kill_while_writing, 9, 6), (kill_at, 1, None)]
)
def test_a_killed_run_goes_on_and_ends_bit_for_bit_the_same(trained, workspace, how, step, resumed):
    assert run(workspace, how, step)[0] == -signal.SIGKILL
    assert not (workspace / "models/diffusion").exists()
    if resumed:
        (workspace / "dvclive/finetune_sd/metrics.json").write_text("")  # torn by the kill
    code, log = run(workspace, finetune_sd.main)
    assert code == 0 and (f"going on from step {resumed}" in log) == (resumed is not None)
    assert outputs(workspace) == outputs(trained)


def test_a_torn_checkpoint_costs_steps_but_changes_nothing(trained, workspace):
    assert run(workspace, kill_at, 8)[0] == -signal.SIGKILL
    last = sorted((workspace / "scratch/finetune_sd").glob("*/step_*.safetensors"))[-1]
    last.write_bytes(last.read_bytes()[:1000])
    code, log = run(workspace, finetune_sd.main)
    assert code == 0 and "torn" in log and "going on from step 3" in log
    assert outputs(workspace) == outputs(trained)


def test_a_disk_that_fills_up_at_the_end_costs_nothing(trained, workspace):
    (workspace / "metrics/plots").mkdir(parents=True)
    full = workspace / "metrics/plots/diffusion_loss.csv.part"
    full.symlink_to("/dev/full")
    code, log = run(workspace, finetune_sd.main)
    assert code == 1 and "No space left" in log and "is kept in" in log and "Traceback" not in log
    full.unlink()
    code, log = run(workspace, finetune_sd.main)
    assert code == 0 and "going on from step 10" in log
    assert outputs(workspace) == outputs(trained)


def run_out_of_disk():
    """finetune_sd on a disk that is full at the first checkpoint, after step 3; it leaves a mark if it begins step 6."""
    rate = finetune_sd.learning_rate

    def fsync(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    def learning_rate(now, *rest):
        if now == 4:
            time.sleep(2)  # the checkpoint is written beside the training
        if now == 5:
            Path("went_on").touch()
        return rate(now, *rest)

    checkpoints.os.fsync, finetune_sd.learning_rate = fsync, learning_rate
    finetune_sd.main()


def test_a_disk_that_is_full_ends_the_step_after(workspace):
    code, log = run(workspace, run_out_of_disk)
    assert (
        code == 1
        and "the checkpoint cannot be written" in log
        and "No space left" in log
        and "Traceback" not in log
    )
    assert not (workspace / "went_on").exists()


def test_another_param_never_resumes_a_stale_checkpoint(workspace):
    assert run(workspace, kill_at, 8)[0] == -signal.SIGKILL
    write_params(workspace, finetune_sd={"lr": 2.0e-3})
    code, log = run(workspace, finetune_sd.main)
    assert code == 0 and "going on" not in log and "unused" in log


def test_small_memory_options_learn_and_resume_too(workspace, tmp_path):
    options = {"epochs": 2, "optimizer": "adamw8bit", "gradient_checkpointing": True}
    write_params(workspace, finetune_sd=options)
    copy = shutil.copytree(workspace, tmp_path / "copy")
    assert run(workspace, finetune_sd.main)[0] == 0
    assert run(copy, kill_at, 4)[0] == -signal.SIGKILL
    code, log = run(copy, finetune_sd.main)
    assert code == 0 and "going on from step 3" in log
    assert outputs(copy) == outputs(workspace)
    metrics = read_json(copy / "metrics/diffusion.json")
    assert metrics["validation_loss"] < metrics["validation_loss_base"]


def sharded_checkpoint(workspace):
    """Two steps of a model sharded by FSDP2, its checkpoint taken after the first, then taken up by another."""
    from torch.distributed.fsdp import fully_shard

    torch.distributed.init_process_group("gloo")
    results = []
    for resumed in (False, True):
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.ReLU(), torch.nn.Linear(6, 2))
        fully_shard(model, mesh=torch.distributed.init_device_mesh("cpu", (2,)))
        names, weights = zip(*model.named_parameters())
        adamw = torch.optim.AdamW(weights, lr=0.1)
        ema = [w.detach().clone() for w in weights]
        if resumed:
            checkpoints.unpack(
                checkpoints.load_latest(workspace / "sharded")[0], names, weights, ema, adamw
            )
        for step in range(1 if resumed else 0, 2):
            model(torch.full((3, 4), 1.0 + step)).square().sum().backward()
            adamw.step()
            adamw.zero_grad()
            torch._foreach_lerp_(ema, [w.detach() for w in weights], 0.5)
            if step == 0:
                tensors = checkpoints.pack(names, weights, ema, adamw)
                if torch.distributed.get_rank() == 0:
                    checkpoints.save_step(
                        workspace / "sharded", tensors, {"step": 1, "best_step": 0}, 2
                    )
                torch.distributed.barrier()
        results.append([checkpoints.whole(w.detach()) for w in [*weights, *ema]])
    assert all(torch.equal(a, b) for a, b in zip(*results))


def test_a_sharded_model_is_checkpointed_whole(tmp_path):
    (tmp_path / "sharded").mkdir()
    code, log = run(tmp_path, sharded_checkpoint, tmp_path, processes=2)
    assert code == 0, log
    assert load_file(tmp_path / "sharded/step_00000001.safetensors")["weight.0.weight"].shape == (
        6,
        4,
    )
