"""finetune_sd interrupted: killed, on a full disk, with an incomplete checkpoint, sharded.

The next run, or one that waited meanwhile, resumes and ends with the same bytes.
"""

import errno
import os
import re
import shutil
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from conftest import wait_until
from safetensors.torch import load_file
from tiny_diffusion import run, write_params

from stages import finetune_sd
from stages.common.artifacts import digest, read_json
from stages.diffusion import checkpoints


def outputs(folder):
    """The digest of each output of finetune_sd."""
    paths = (
        "models/diffusion",
        "metrics/diffusion.json",
        "metrics/plots/diffusion_loss.csv",
        "metrics/plots/diffusion_grid",
    )
    return {path: digest(folder / path) for path in paths}


def resumed_step(log):
    """The step from which a run resumes, by its log; None where it starts from the base model."""
    match = re.search(r"^finetune_sd: .* from step (\d+)$", log, re.MULTILINE)
    return int(match[1]) if match else None


def kill_at(step):
    """finetune_sd, killed as by a power cut when an optimizer step begins.

    The checkpoint before that step is on disk.
    """
    learning_rate = finetune_sd.learning_rate

    def learning_rate_or_kill(current_step, *rest):
        if current_step == step:
            checkpoint = f"*/step_{step // 3 * 3:08d}.safetensors"
            while step >= 3 and not list(Path("scratch/finetune_sd").glob(checkpoint)):
                time.sleep(0.02)
            os.kill(os.getpid(), signal.SIGKILL)
        return learning_rate(current_step, *rest)

    finetune_sd.learning_rate = learning_rate_or_kill
    finetune_sd.main()


def kill_while_writing(step):
    """finetune_sd, killed when a checkpoint is written, but not yet under its name."""
    fsync = os.fsync
    save_step = checkpoints.save_step

    def save_step_and_kill(folder, tensors, state, keep):
        if state.step == step:
            checkpoints.os.fsync = lambda _: os.kill(os.getpid(), signal.SIGKILL)
        save_step(folder, tensors, state, keep)
        checkpoints.os.fsync = fsync

    checkpoints.save_step = save_step_and_kill
    finetune_sd.main()


@pytest.mark.parametrize(
    "kill, step, resumed", [(kill_at, 8, 6), (kill_while_writing, 9, 6), (kill_at, 1, None)]
)
def test_a_killed_run_resumes_and_ends_with_the_same_bytes(trained, workspace, kill, step, resumed):
    assert run(workspace, kill, step)[0] == -signal.SIGKILL
    assert not (workspace / "models/diffusion").exists()
    if resumed:
        # The kill may leave an incomplete summary.
        (workspace / "dvclive/finetune_sd/metrics.json").write_text("")
    code, log = run(workspace, finetune_sd.main)
    assert code == 0 and resumed_step(log) == resumed
    assert outputs(workspace) == outputs(trained)


def test_an_incomplete_checkpoint_costs_steps_but_changes_nothing(trained, workspace):
    assert run(workspace, kill_at, 8)[0] == -signal.SIGKILL
    last = sorted((workspace / "scratch/finetune_sd").glob("*/step_*.safetensors"))[-1]
    last.write_bytes(last.read_bytes()[:1000])
    (last.parent / ".tmpAbCdEf").write_bytes(b"left by a kill while the file was written")
    code, log = run(workspace, finetune_sd.main)
    assert code == 0 and last.name in log and resumed_step(log) == 3
    assert outputs(workspace) == outputs(trained)


def test_a_disk_that_fills_up_at_the_end_costs_nothing(trained, workspace):
    (workspace / "metrics/plots").mkdir(parents=True)
    full = workspace / "metrics/plots/diffusion_loss.csv.part"
    full.symlink_to("/dev/full")
    code, log = run(workspace, finetune_sd.main)
    assert code == 1 and os.strerror(errno.ENOSPC) in log and "Traceback" not in log
    (cache,) = (workspace / "scratch/finetune_sd").glob("*/")
    assert str(cache) in log
    full.unlink()
    code, log = run(workspace, finetune_sd.main)
    assert code == 0 and resumed_step(log) == 10
    assert outputs(workspace) == outputs(trained)


def run_out_of_disk():
    """finetune_sd on a disk that is full at the first checkpoint, after step 3.

    It leaves a file `step_6_began` if it begins step 6.
    """
    learning_rate = finetune_sd.learning_rate

    def fsync(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def slow_learning_rate(current_step, *rest):
        if current_step == 4:
            time.sleep(2)  # meanwhile the checkpoint is written in a thread
        if current_step == 5:
            Path("step_6_began").touch()
        return learning_rate(current_step, *rest)

    checkpoints.os.fsync = fsync
    finetune_sd.learning_rate = slow_learning_rate
    finetune_sd.main()


def test_a_full_disk_ends_the_step_after_the_checkpoint(workspace):
    code, log = run(workspace, run_out_of_disk)
    assert code == 1 and os.strerror(errno.ENOSPC) in log and "Traceback" not in log
    assert "REMOTE_DIFFUSION_SCRATCH" in log
    assert not (workspace / "step_6_began").exists()


def test_a_run_with_other_params_starts_from_the_base_model(workspace):
    assert run(workspace, kill_at, 8)[0] == -signal.SIGKILL
    write_params(workspace, finetune_sd={"lr": 2.0e-3})
    code, log = run(workspace, finetune_sd.main)
    assert code == 0 and resumed_step(log) is None
    # One folder, of the killed run, is counted in the folder of all runs of the stage.
    assert re.search(rf"\b1 .*{re.escape(str(workspace / 'scratch/finetune_sd'))}(?!/)", log)


def test_options_that_save_memory_learn_and_resume_too(workspace, tmp_path):
    options = {"epochs": 2, "optimizer": "adamw8bit", "gradient_checkpointing": True}
    write_params(workspace, finetune_sd=options)
    copy = shutil.copytree(workspace, tmp_path / "copy")
    assert run(workspace, finetune_sd.main)[0] == 0
    assert run(copy, kill_at, 4)[0] == -signal.SIGKILL
    code, log = run(copy, finetune_sd.main)
    assert code == 0 and resumed_step(log) == 3
    assert outputs(copy) == outputs(workspace)
    metrics = read_json(copy / "metrics/diffusion.json")
    assert metrics["validation_loss"] < metrics["validation_loss_base"]


def hold_at_step_5():
    """finetune_sd, which stops before step 5 until a file `go` exists."""
    learning_rate = finetune_sd.learning_rate

    def learning_rate_after_hold(step, *rest):
        while step == 5 and not Path("go").exists():
            time.sleep(0.02)
        return learning_rate(step, *rest)

    finetune_sd.learning_rate = learning_rate_after_hold
    finetune_sd.main()


def test_two_processes_wait_together_and_publish_the_bytes_of_the_first_run(
    trained, workspace, tmp_path
):
    """Two processes sum gradients in another order: equal bytes were taken, not trained."""
    second = shutil.copytree(workspace, tmp_path / "second")
    (workspace / "scratch").mkdir(exist_ok=True)
    (second / "scratch").symlink_to(workspace / "scratch")
    log = second / "stderr0.txt"
    with ThreadPoolExecutor() as pool:
        first_run = pool.submit(run, workspace, hold_at_step_5)
        wait_until(lambda: list((workspace / "scratch/finetune_sd").glob("*/step_*3.safetensors")))
        second_run = pool.submit(run, second, finetune_sd.main, processes=2)
        wait_until(lambda: log.exists() and "waits for process" in log.read_text())
        (workspace / "go").touch()
    assert first_run.result()[0] == 0, first_run.result()[1]
    assert second_run.result()[0] == 0, second_run.result()[1]
    assert outputs(second) == outputs(workspace) == outputs(trained)
    assert not list((workspace / "scratch/finetune_sd").glob("*/"))


def sharded_checkpoint(workspace):
    """Two steps of a model sharded by FSDP2; then the second one again from a checkpoint."""
    from torch.distributed.fsdp import fully_shard

    torch.distributed.init_process_group("gloo")
    results = []
    for resumed in (False, True):
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.ReLU(), torch.nn.Linear(6, 2))
        fully_shard(model, mesh=torch.distributed.init_device_mesh("cpu", (2,)))
        weights = dict(model.named_parameters())
        adamw = torch.optim.AdamW(weights.values(), lr=0.1)
        ema = {name: weight.detach().clone() for name, weight in weights.items()}
        if resumed:
            tensors, _ = checkpoints.load_latest(workspace / "sharded")
            checkpoints.load_state_dict(tensors, weights, ema, adamw)
        for step in range(1 if resumed else 0, 2):
            model(torch.full((3, 4), 1.0 + step)).square().sum().backward()
            adamw.step()
            adamw.zero_grad()
            detached = [weight.detach() for weight in weights.values()]
            torch._foreach_lerp_(list(ema.values()), detached, 0.5)
            if step > 0:
                continue
            tensors = checkpoints.state_dict(weights, ema, adamw)
            state = checkpoints.TrainingState(step=1)
            if torch.distributed.get_rank() == 0:
                checkpoints.save_step(workspace / "sharded", tensors, state, keep=2)
            torch.distributed.barrier()
        tensors = [*weights.values(), *ema.values()]
        results.append([checkpoints.full_tensor(tensor.detach()) for tensor in tensors])
    assert all(torch.equal(straight, again) for straight, again in zip(*results))


def test_a_checkpoint_of_a_sharded_model_has_full_tensors(tmp_path):
    (tmp_path / "sharded").mkdir()
    code, log = run(tmp_path, sharded_checkpoint, tmp_path, processes=2)
    assert code == 0, log
    tensors = load_file(tmp_path / "sharded/step_00000001.safetensors")
    assert tensors["weight.0.weight"].shape == (6, 4)
