"""Jobs in processes of their own: results, progress, stopping, errors, and processes that die."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import launched
import pytest
from accelerate.utils.other import get_free_port
from preference_runs import output_in, watched

from psychocounsel.config.components import recipes_folder
from psychocounsel.config.schema import LaunchConfig
from psychocounsel.errors import ConfigError, DataQualityError, ExitCode, IncompleteError, Preempted
from psychocounsel.llm.cancel import CancelToken
from psychocounsel.training.launch import Launch, Started, launch_of
from running import ENVIRONMENT, Cli, await_until

TESTS = Path(__file__).parents[1]
FOLDERS = os.pathsep.join([ENVIRONMENT["PYTHONPATH"], str(TESTS / "training"), str(TESTS)])

SILENT = ("ddp", "single")


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the processes of a launch import the jobs of this folder."""
    monkeypatch.setenv("PYTHONPATH", FOLDERS)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def two(accelerate: str | None = None) -> Launch:
    return launch_of(LaunchConfig(num_processes=2, accelerate=accelerate))


@pytest.mark.parametrize("processes", [None, 2])
def test_shards_are_merged_in_order_and_their_progress_is_summed(tmp_path: Path, processes: int | None) -> None:
    launch = launch_of(LaunchConfig(num_processes=processes))
    seen: list[tuple[int, int]] = []
    shards = [{"numbers": list(part)} for part in launch.split(range(7))]
    assert len(shards) == (processes or 1)
    doubled = launch.run_shards(
        launched.double, shards, work=tmp_path, cancel=CancelToken(), progress=lambda *step: seen.append(step)
    )
    assert doubled == list(range(0, 14, 2))
    assert seen[-1] == (7, 7)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("visible", "seen"), [(None, "0"), ("3,5", "3"), ("", ""), ("-1", "-1")])
def test_a_training_in_one_process_sees_one_device_unless_all_are_hidden(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, visible: str | None, seen: str
) -> None:
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    launch = launch_of(LaunchConfig(num_processes=1))
    assert launch.train(launched.visible_devices, output_in(tmp_path)) == seen


def test_processes_on_a_cpu_may_be_more_than_the_devices_that_the_environment_names(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    commands = Started("a job", two(), None).commands(Path("folder"), 0)
    assert [environment["CUDA_VISIBLE_DEVICES"] for _, environment in commands] == ["0", "0"]


@pytest.mark.slow
def test_processes_wait_for_a_first_one_that_writes_a_large_model(tmp_path: Path) -> None:
    assert two().train(launched.collective_timeout, output_in(tmp_path)) > 3600


@pytest.mark.parametrize(
    ("ending", "fault", "words"),
    [
        ("error", DataQualityError, "here: too few pairs; add some"),
        pytest.param("bug", RuntimeError, "KeyError: 'a bug'", marks=pytest.mark.slow),
        ("killed", IncompleteError, "SIGKILL"),
    ],
)
def test_what_ends_one_process_is_raised_and_ends_the_others(
    tmp_path: Path, ending: str, fault: type[Exception], words: str
) -> None:
    with pytest.raises(fault, match=words):
        two().train(launched.training, output_in(tmp_path), ending=ending)


def test_a_cancelled_run_stops_in_all_processes(tmp_path: Path) -> None:
    output, seen = watched(output_in(tmp_path))
    cancel = output.cancel

    def stop(done: int, total: int) -> None:
        output.progress(done, total)
        cancel.cancel()

    with pytest.raises(Preempted, match="after step 3 of 9"):
        two().train(launched.training, replace(output, progress=stop), ending="cancelled")
    assert seen[0] == (1, 9)


def test_processes_end_with_their_parent(tmp_path: Path) -> None:
    program = f"""
from pathlib import Path
import launched
from psychocounsel.config.components import recipes_folder
from psychocounsel.config.schema import LaunchConfig
from psychocounsel.llm.cancel import CancelToken
from psychocounsel.training.launch import launch_of
pids = Path({str(tmp_path)!r})
shards = [{{"pids": pids}}] * 2
launch = launch_of(LaunchConfig(num_processes=2))
launch.run_shards(launched.endless, shards, work=pids / "work", cancel=CancelToken(), progress=lambda *_: None)
"""
    with subprocess.Popen([sys.executable, "-c", program]) as parent:
        try:
            await_until(lambda: sum(each.name.isdecimal() for each in tmp_path.iterdir()) == 2)
        finally:
            parent.kill()
    children = [int(each.name) for each in tmp_path.iterdir() if each.name.isdecimal()]
    await_until(lambda: not any(is_running(pid) for pid in children))


def is_running(pid: int) -> bool:
    """Return whether a process exists and has not ended; here nobody may collect its exit code."""
    try:
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.parametrize("accelerate", ["fsdp2", *(pytest.param(each, marks=pytest.mark.slow) for each in SILENT)])
def test_a_launch_that_becomes_another_is_refused(tmp_path: Path, accelerate: str) -> None:
    with pytest.raises(ConfigError, match="the launch asks for") as raised:
        two(accelerate).train(launched.training, output_in(tmp_path), ending="cancelled")
    assert raised.value.exit_code == ExitCode.USER_ERROR


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("distributed_type: FSDP\nno_such_key: 1\n", "no_such_key"),
        ("num_processes: 2\n", "distributed_type"),
        ("distributed_type: MULTI_CPU\nuse_cpu: true\nnum_machines: 2\nnum_processes: 3\n", "2 machines"),
        ("distributed_type: FSDP\nfsdp_config: {fsdp_version: 1}\nnum_processes: 2\n", "fsdp_version: 2"),
        ("distributed_type: FSDP\nfsdp_config: {}\nnum_processes: 2\n", "fsdp_version: 2"),  # accelerate's default
        (None, "no such accelerate config"),
    ],
)
def test_a_broken_accelerate_config_is_named(tmp_path: Path, text: str | None, words: str) -> None:
    path = tmp_path / "mine.yaml"
    if text is not None:
        path.write_text(f"compute_environment: LOCAL_MACHINE\nmixed_precision: 'no'\n{text}", encoding="utf-8")
    with pytest.raises(ConfigError, match=words) as raised:
        launch_of(LaunchConfig(accelerate=str(path)))
    assert "mine.yaml" in str(raised.value)


def test_a_file_says_how_many_processes_unless_the_command_does(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    text = "compute_environment: LOCAL_MACHINE\ndistributed_type: MULTI_CPU\nmixed_precision: 'no'\nnum_processes: 3\n"
    path.write_text(text + "use_cpu: true\n", encoding="utf-8")
    found = [launch_of(LaunchConfig(num_processes=n, accelerate=str(path))).processes for n in (None, 2)]
    assert found == [3, 2]


@pytest.mark.slow
def test_machines_start_their_processes_by_a_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    starter, config = tmp_path / "start.py", tmp_path / "two.yaml"
    starter.write_text(
        "import os, subprocess, sys\n"
        "numbers = [os.environ | {'SLURM_PROCID': str(number)} for number in range(int(sys.argv[1]))]\n"
        "tasks = [subprocess.Popen(sys.argv[2:], env=each) for each in numbers]\n"
        "sys.exit(max(task.wait() for task in tasks))\n",
        encoding="utf-8",
    )
    text = (recipes_folder() / "accelerate" / "cpu.yaml").read_text(encoding="utf-8")
    more = f"main_process_ip: 127.0.0.1\nmain_process_port: {get_free_port()}\n"
    config.write_text(text.replace("num_machines: 1", "num_machines: 2") + more, encoding="utf-8")
    monkeypatch.setenv("PSYCHOCOUNSEL_NODES_COMMAND", f"{sys.executable} {starter} {{machines}}")
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    launch = launch_of(LaunchConfig(num_processes=4, accelerate=str(config)))
    assert launch.train(launched.ranks, output_in(tmp_path)) == [(0, 0), (1, 1), (2, 0), (3, 1)]
    with pytest.raises(DataQualityError, match="too few pairs"):
        launch.train(launched.training, output_in(tmp_path), ending="error")


def test_several_command_lines_side_by_side_are_refused(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    ended = cli("align", "align.yaml")
    assert ended.code == ExitCode.USER_ERROR
    assert "--num-processes" in ended.err
