"""Training on a CPU is reproducible on any number of threads; a full disk is an unfinished run."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from preference_runs import optimisation, output_in, reward_config, run_reward, same_weights, weights_of
from safetensors import SafetensorError

from psychocounsel.errors import ExitCode, IncompleteError
from psychocounsel.training.reward import BradleyTerryTrainer
from psychocounsel.training.runtime import prepare_cpu, saving


@pytest.fixture
def two_threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    was_deterministic = torch.are_deterministic_algorithms_enabled()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(was_deterministic, warn_only=True)


@pytest.mark.usefixtures("two_threads")
def test_gradients_are_the_same_every_time_on_two_threads() -> None:
    prepare_cpu()
    torch.manual_seed(0)
    rows = torch.randn(50, 64, requires_grad=True)
    picked = torch.randint(0, 50, (40_000,))
    weights = torch.randn(40_000, 64)

    def gradient() -> torch.Tensor:
        return torch.autograd.grad((rows[picked] * weights).sum(), rows)[0]

    first = gradient()
    assert all(torch.equal(gradient(), first) for _ in range(5))


RUST = "I/O error: No space left on device (os error 28)"
TORCH = "[enforce fail at inline_container.cc:659] . unexpected pos 128 vs 22\nframe #0: c10::ThrowEnforceNotMet"
GIB = 1 << 30


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Return a function that sets how many bytes every disk has free."""

    def leave(free_bytes: int) -> None:
        total = 100 * GIB
        usage = type(shutil.disk_usage("/"))(total, total - free_bytes, free_bytes)
        monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)

    return leave


def fail_in(folder: Path, fault: Exception) -> None:
    with saving(folder):
        raise fault


@pytest.mark.parametrize(
    ("fault", "free_bytes"),
    [
        (SafetensorError(RUST), GIB),  # another process may have freed some meanwhile
        (SafetensorError("I/O error: Disk quota exceeded (os error 122)"), GIB),
        (RuntimeError(TORCH), 4096),
    ],
)
def test_full_disk_is_an_unfinished_run(
    tmp_path: Path, disk: Callable[[int], None], fault: Exception, free_bytes: int
) -> None:
    disk(free_bytes)
    with pytest.raises(IncompleteError, match="could not write: ") as caught:
        fail_in(tmp_path, fault)
    assert caught.value.exit_code is ExitCode.INCOMPLETE
    assert caught.value.where == str(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "fault",
    [
        RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
        RuntimeError(TORCH),  # with room on the disk it is something else
        KeyError("weight"),
    ],
)
def test_other_errors_pass(tmp_path: Path, disk: Callable[[int], None], fault: Exception) -> None:
    disk(GIB)
    with pytest.raises(type(fault)) as caught:
        fail_in(tmp_path, fault)
    assert caught.value is fault


def test_disk_that_fills_at_a_checkpoint_keeps_the_previous_one(
    tmp_path: Path, tiny_model_folder: Path, disk: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = reward_config(optimisation(save_every_steps=2), epochs=2)
    output, whole = output_in(tmp_path / "filled"), output_in(tmp_path / "whole")
    save = BradleyTerryTrainer._save_optimizer_and_scheduler

    def fill(self: Any, folder: str) -> None:
        if self.state.global_step == 4:
            raise RuntimeError(TORCH)
        save(self, folder)

    disk(0)
    with monkeypatch.context() as patched:
        patched.setattr(BradleyTerryTrainer, "_save_optimizer_and_scheduler", fill)
        with pytest.raises(IncompleteError, match="could not write"):
            run_reward(tiny_model_folder, output, config)
    disk(GIB)
    run_reward(tiny_model_folder, output, config)
    run_reward(tiny_model_folder, whole, config)
    assert same_weights(weights_of(output.folder), weights_of(whole.folder))
