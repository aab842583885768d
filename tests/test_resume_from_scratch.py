"""Training from scratch interrupted: the next run resumes and ends with the same bytes."""

import os
import signal

import pytest
from tiny_diffusion import make_imagery, run, write_params

from stages import train_base
from stages.common.artifacts import digest
from stages.diffusion import checkpoints, resumable

STEPS = 8
SCRATCH = {
    "source": "scratch",
    "vae_channels": [8, 16],
    "vae_steps": STEPS,
    "text_width": 32,
    "text_layers": 1,
    "text_steps": STEPS,
    "unet_channels": [16, 32],
    "batch_size": 4,
    "lr": 1.0e-3,
}


def checkpoint_every_step(kill_part=None, kill_step=0):
    """Checkpoint at every step; die in place of writing one step's checkpoint of a part."""
    resumable.SECONDS = 0
    save_step = checkpoints.save_step

    def save_step_or_kill(folder, tensors, state, keep):
        if (folder.name, state.step) == (kill_part, kill_step):
            os.kill(os.getpid(), signal.SIGKILL)
        save_step(folder, tensors, state, keep)

    checkpoints.save_step = save_step_or_kill


def interrupted_train_base(part, step):
    checkpoint_every_step(part, step)
    train_base.main()


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """The digest of models/start, trained without a stop or a checkpoint on the way."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    make_imagery(folder / "data/imagery", {"train": 12})
    write_params(folder, train_base=SCRATCH)
    code, log = run(folder, train_base.main)
    assert code == 0 and "resuming" not in log, log
    assert not list((folder / "scratch/train_base").glob("*/"))  # it leaves no checkpoints
    return digest(folder / "models/start")


@pytest.mark.parametrize(
    "kills",
    [
        [("text_encoder", 5)],
        [("vae", 1)],
        [("text_encoder", 2), ("text_encoder", STEPS), ("vae", 6), ("vae", STEPS)],
    ],
)
def test_a_killed_train_base_resumes_and_ends_with_the_same_bytes(uninterrupted, tmp_path, kills):
    make_imagery(tmp_path / "data/imagery", {"train": 12})
    write_params(tmp_path, train_base=SCRATCH)
    names = {"text_encoder": "text encoder", "vae": "VAE"}
    for part, step in kills:
        assert run(tmp_path, interrupted_train_base, part, step)[0] == -signal.SIGKILL
        assert not (tmp_path / "models/start").exists()
    code, log = run(tmp_path, train_base.main)
    assert code == 0, log
    last_part, last_step = kills[-1]
    resumed = f"{names[last_part]}: resuming from step {last_step - 1}\n"
    assert (resumed in log) == (last_step > 1)
    if last_part == "vae":  # what was finished is not trained again
        assert f"text encoder: resuming from step {STEPS}\n" in log
    assert digest(tmp_path / "models/start") == uninterrupted


def test_other_params_train_from_the_beginning(tmp_path):
    make_imagery(tmp_path / "data/imagery", {"train": 12})
    write_params(tmp_path, train_base=SCRATCH)
    assert run(tmp_path, interrupted_train_base, "vae", 5)[0] == -signal.SIGKILL
    write_params(tmp_path, train_base=SCRATCH | {"lr": 2.0e-3})
    code, log = run(tmp_path, train_base.main)
    assert code == 0 and "resuming" not in log, log
