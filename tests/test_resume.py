"""finetune_sd interrupted: killed, on a full disk, with an incomplete checkpoint, sharded.

The next run, or one that waited meanwhile, resumes and ends with the same bytes.
"""

import csv
import errno
import os
import random
import re
import shutil
import signal
import time
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

import pytest
import torch
from conftest import replace_in_params, wait_until
from safetensors.torch import load_file
from tiny_diffusion import run, save_scheduler, save_unet, write_params

from stages import finetune_sd
from stages.common.artifacts import digest, read_json
from stages.diffusion import checkpoints
from stages.runtime import tensor_files
from stages.runtime.parallel import BackgroundWriter


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
    sync_to_disk = tensor_files.sync_to_disk
    save_step = checkpoints.save_step

    def save_step_and_kill(folder, tensors, state, keep):
        if state.step == step:
            tensor_files.sync_to_disk = lambda _: os.kill(os.getpid(), signal.SIGKILL)
        save_step(folder, tensors, state, keep)
        tensor_files.sync_to_disk = sync_to_disk

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
    assert f" {resumed or 0}/10 [00:00<?" in log  # the bar's rate leaves out what was resumed
    assert outputs(workspace) == outputs(trained)


def test_an_incomplete_checkpoint_costs_steps_but_changes_nothing(trained, workspace):
    assert run(workspace, kill_at, 8)[0] == -signal.SIGKILL
    last = sorted((workspace / "scratch/finetune_sd").glob("*/step_*.safetensors"))[-1]
    last.write_bytes(last.read_bytes()[:1000])
    (last.parent / "step_00000007.part").write_bytes(b"left by a kill while it was written")
    code, log = run(workspace, finetune_sd.main)
    assert code == 0 and last.name in log and resumed_step(log) == 3
    assert outputs(workspace) == outputs(trained)


def write_three(folder, first):
    """Write three checkpoints, each with its step in its tensors."""
    for step in range(first, first + 3):
        tensors = {"weight.w": torch.full((50_000,), float(step))}
        state = checkpoints.TrainingState(step=step, best_step=step)
        checkpoints.save_step(folder, tensors, state, keep=2)


def kill_while_checkpoints_are_written(folder):
    """Fifty times, at random moments; what is left can be loaded, and is never older."""
    moments = random.Random(0)
    started = time.monotonic()
    write_three(folder, first=1)
    seconds = time.monotonic() - started
    last = 3
    for _ in range(50):
        child = os.fork()
        if child == 0:
            write_three(folder, last + 1)
            os._exit(0)
        time.sleep(moments.uniform(0, seconds))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        tensors, state = checkpoints.load_latest(folder)
        assert (tensors["weight.w"] == state.step).all() and state.step >= last
        last = state.step


def test_fifty_kills_and_damage_to_any_file_leave_a_checkpoint_to_resume(tmp_path, capfd):
    code, log = run(tmp_path, kill_while_checkpoints_are_written, tmp_path)
    assert code == 0 and "damaged" not in log, log
    folder = tmp_path / "whole"
    folder.mkdir()
    for step in (1, 2):
        tensors = {"weight.w": torch.full((50,), float(step))}
        state = checkpoints.TrainingState(step=step, best_step=step)
        checkpoints.save_step(folder, tensors, state, keep=2)
    last = folder / "step_00000002.safetensors"
    content = last.read_bytes()
    # Cut, empty, and with one other byte: in the state, in the header, in the tensors.
    damaged = [content[: len(content) // 2], b""]
    for place in (content.index(b"best_step") + 14, content.index(b"F32"), len(content) - 2):
        damaged.append(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
    for kept in damaged:
        last.write_bytes(kept)
        assert checkpoints.load_latest(folder)[1].step == 1
        assert last.name in capfd.readouterr().err
    last.write_bytes(content)
    assert checkpoints.load_latest(folder)[1].step == 2


def save_steps(folder, *steps):
    """Write the checkpoint of each (step, best step), with the step in its weights."""
    folder.mkdir(exist_ok=True)
    for step, best_step in steps:
        tensors = {"weight.w": torch.full((50,), float(step))}
        state = checkpoints.TrainingState(step=step, best_step=best_step)
        checkpoints.save_step(folder, tensors, state, keep=2)


def latest_step(folder):
    """The step to resume from; None for none. The best weights are those of its best step."""
    checkpoint = checkpoints.load_latest(folder)
    if checkpoint is None:
        return None
    weights, best = tensor_files.load(folder / "best.safetensors")
    assert best["step"] == weights["w"][0] == checkpoint[1].best_step
    return checkpoint[1].step


def test_checkpoints_that_cannot_be_used_do_not_get_in_the_way(tmp_path, capfd):
    # The last two are damaged: training starts again, and what it writes is kept.
    folder = tmp_path / "both"
    save_steps(folder, (3, 3), (6, 6), (9, 9))
    for file in folder.glob("step_*"):
        file.write_bytes(b"")
    assert latest_step(folder) is None
    assert f"{folder}: no checkpoint can be used" in capfd.readouterr().err
    save_steps(folder, (3, 3))
    assert latest_step(folder) == 3
    # The best weights are damaged, those of the last step: its checkpoint has them.
    best = folder / "best.safetensors"
    best.write_bytes(best.read_bytes()[:-1])
    assert latest_step(folder) == 3 and best.name in capfd.readouterr().err
    # Those of the step before: its checkpoint has them.
    save_steps(folder, (6, 6), (9, 6))
    best.unlink()
    assert latest_step(folder) == 6
    # Those of a step without a checkpoint: a run that starts again must not save its first best
    # weights under the name of a later step.
    save_steps(folder, (9, 6), (12, 6))
    best.unlink()
    assert latest_step(folder) is None
    save_steps(folder, (3, 3))
    assert latest_step(folder) == 3


def test_where_the_best_weights_are_gone_the_best_that_are_kept_are_saved(tmp_path, capfd):
    """`best.safetensors` of a killed run may be of a step that the run after it never measures."""
    folder = tmp_path / "checkpoints"
    save_steps(folder, (9, 9), (4, 4), (8, 4))
    (folder / "best.safetensors").unlink()
    losses = {0: 1.0, 2: 0.3, 4: 0.4, 8: 0.5}
    curve = [{"step": step, "validation_loss": loss} for step, loss in losses.items()]
    state = checkpoints.TrainingState(step=8, best_step=2, best_loss=0.3, curve=curve)
    assert checkpoints.load_best(folder, state)["w"][0] == 4
    assert (state.best_step, state.best_loss) == (4, 0.4)
    assert "best step, 2, are gone: those of step 4" in capfd.readouterr().err
    for file in folder.glob("step_*"):
        file.write_bytes(b"")
    with pytest.raises(SystemExit, match=f"error: {folder}: .* step, 4, are gone"):
        checkpoints.load_best(folder, state)


def test_a_damaged_sample_grid_is_left_out_and_named(trained, workspace):
    assert run(workspace, kill_at, 8)[0] == -signal.SIGKILL
    (picture,) = (workspace / "scratch/finetune_sd").glob("*/grid/00000003.png")
    picture.write_bytes(picture.read_bytes()[:-100])
    code, log = run(workspace, finetune_sd.main)
    assert code == 0 and picture.name in log
    grids = "metrics/plots/diffusion_grid"
    assert set(os.listdir(trained / grids)) - set(os.listdir(workspace / grids)) == {picture.name}
    assert digest(workspace / "models/diffusion") == digest(trained / "models/diffusion")


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


def run_without_free_memory(step):
    """finetune_sd where no copy of the training state fits the memory, killed at a step."""
    checkpoints.available_memory = lambda: 0
    kill_at(step)


def test_without_memory_for_a_copy_a_checkpoint_is_written_from_the_weights(trained, workspace):
    code, log = run(workspace, run_without_free_memory, 8)
    assert code == -signal.SIGKILL and log.count("training waits for its checkpoint") == 2
    code, log = run(workspace, finetune_sd.main)
    assert code == 0 and resumed_step(log) == 6
    assert outputs(workspace) == outputs(trained)


def run_out_of_disk():
    """finetune_sd on a disk that is full at the first checkpoint, after step 3.

    Its thread has failed when step 4 ends. It leaves a file `step_6_began` if it begins step 6.
    """
    learning_rate = finetune_sd.learning_rate
    raise_if_failed = BackgroundWriter.raise_if_failed

    def sync_to_disk(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def note_step_6(current_step, *rest):
        if current_step == 5:
            Path("step_6_began").touch()
        return learning_rate(current_step, *rest)

    def raise_once_done(writer):
        wait([writer.pending] if writer.pending else [])
        raise_if_failed(writer)

    tensor_files.sync_to_disk = sync_to_disk
    finetune_sd.learning_rate = note_step_6
    BackgroundWriter.raise_if_failed = raise_once_done
    finetune_sd.main()


def test_a_full_disk_ends_the_step_after_the_checkpoint(workspace):
    code, log = run(workspace, run_out_of_disk)
    assert code == 1 and os.strerror(errno.ENOSPC) in log and "Traceback" not in log
    assert "REMOTE_DIFFUSION_SCRATCH" in log
    assert not (workspace / "step_6_began").exists()


def kill_at_the_start():
    """finetune_sd, killed where it measures the base model, which a run that resumes does not."""
    finetune_sd.measure_base = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
    finetune_sd.main()


def test_a_run_of_other_params_or_inputs_starts_from_the_base_model(workspace):
    assert run(workspace, kill_at, 4)[0] == -signal.SIGKILL
    base = workspace / "models/base/diffusion"
    changes = (
        lambda: write_params(workspace, finetune_sd={"lr": 2.0e-3}),
        lambda: replace_in_params(workspace, "seed: 0\n", "seed: 1\n"),
        lambda: (workspace / "data/latents/other").touch(),
        lambda: save_scheduler(base / "scheduler", "epsilon"),
        lambda: save_unet(base / "unet", (8, 16, 16), 16, 8),  # other random weights
    )
    for killed_runs, change in enumerate(changes, 1):
        write_params(workspace)
        change()
        code, log = run(workspace, kill_at_the_start)
        assert code == -signal.SIGKILL and resumed_step(log) is None
        # The folders of the killed runs are counted in the folder of all runs of the stage.
        folder = re.escape(str(workspace / "scratch/finetune_sd"))
        assert re.search(rf"\b{killed_runs} .*{folder}(?!/)", log)


def test_a_run_goes_on_on_another_disk_and_under_params_that_change_no_weight(trained, workspace):
    assert run(workspace, kill_at, 8)[0] == -signal.SIGKILL
    (workspace / "scratch").rename(workspace / "other disk")
    (workspace / "scratch").symlink_to(workspace / "other disk")
    saving = {"keep_checkpoints": 1, "gradient_checkpointing": True}
    write_params(workspace, finetune_sd=saving)
    code, log = run(workspace, finetune_sd.main)
    assert code == 0 and resumed_step(log) == 6
    assert outputs(workspace) == outputs(trained)


def test_a_run_goes_on_where_other_steps_and_grids_are_measured_and_says_so(trained, workspace):
    assert run(workspace, kill_at, 8)[0] == -signal.SIGKILL
    write_params(workspace, finetune_sd={"checkpoint_steps": 4, "grid_captions": 1})
    code, log = run(workspace, finetune_sd.main)
    assert code == 0 and resumed_step(log) == 6
    measured = "until step 6, with checkpoint_steps 3, grid_captions 2, grid_steps 4, is kept"
    assert measured in log
    grids = sorted(os.listdir(workspace / "metrics/plots/diffusion_grid"))
    assert [int(grid[:8]) for grid in grids] == [0, 3, 6, 8, 10]
    last = "validation_loss_last"
    one, two = (
        read_json(folder / "metrics/diffusion.json")[last] for folder in (trained, workspace)
    )
    assert one == two  # of the same weights
    # The diversity of other grids is not known.
    with open(workspace / "metrics/plots/diffusion_loss.csv", newline="") as file:
        diversity = {int(row["step"]): row["diversity"] for row in csv.DictReader(file)}
    assert {step: bool(cell) for step, cell in diversity.items()} == {
        0: False,
        3: False,
        6: False,
        8: True,
        10: True,
    }
    metrics = read_json(workspace / "metrics/diffusion.json")
    assert metrics["diversity_last"] == float(diversity[10]) and "diversity_base" not in metrics


def test_a_finished_run_does_not_hand_over_the_diversity_of_other_grids(workspace):
    assert run(workspace, stop_at_saving)[0] == -signal.SIGKILL
    write_params(workspace, finetune_sd={"grid_steps": 2})
    code, log = run(workspace, finetune_sd.main)
    assert code == 0 and resumed_step(log) == 10 and "but for the diversity" in log
    metrics = read_json(workspace / "metrics/diffusion.json")
    assert not [name for name in metrics if name.startswith("diversity")]
    assert metrics["validation_loss"] > 0


def stop_at_saving():
    finetune_sd.save_model = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
    finetune_sd.main()


def test_damaged_best_weights_are_written_again(trained, workspace):
    """Each time, where a run ends before it saves the model."""
    for _ in range(2):
        assert run(workspace, stop_at_saving)[0] == -signal.SIGKILL
        (best,) = (workspace / "scratch/finetune_sd").glob("*/best.safetensors")
        best.write_bytes(best.read_bytes()[:1000])
    code, log = run(workspace, finetune_sd.main)
    assert code == 0 and best.name in log
    assert outputs(workspace) == outputs(trained)


@pytest.mark.parametrize(
    "options", [{"optimizer": "adamw8bit", "gradient_checkpointing": True}, {"optimizer": "muon"}]
)
def test_other_optimizers_learn_and_resume_too(workspace, tmp_path, options):
    write_params(workspace, finetune_sd=options | {"epochs": 2})
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


def test_two_processes_wait_together_and_save_the_bytes_of_the_first_run(
    trained, workspace, tmp_path
):
    """Two processes sum gradients in another order: equal bytes were taken, not trained."""
    second = shutil.copytree(workspace, tmp_path / "second")
    (workspace / "scratch").mkdir(exist_ok=True)
    shutil.rmtree(second / "scratch", ignore_errors=True)
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
            tensors = checkpoints.copy_tensors(checkpoints.training_tensors(weights, ema, adamw))
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
