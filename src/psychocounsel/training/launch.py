"""Jobs: functions that run in processes of their own, so that the memory of a phase is free for the next.

The arguments and the result of a job are plain and travel as JSON, by the types of its signature. Besides them it has a
`TrainingOutput`, or `progress`, called with what is done and the total. On a CPU it is called in this process. Else the
processes are started as `accelerate launch` would start them, with the environment that accelerate makes of its config
file. They are not started by torchrun, which kills its workers 30 seconds after SIGTERM: a step and a checkpoint of a
large model take longer.

A job's processes hear from their parent through stdin: a line means "stop", its end that the parent is gone.
"""

import importlib
import importlib.util
import json
import logging
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from datetime import timedelta
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar, get_type_hints

import torch
from accelerate import Accelerator
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import InitProcessGroupKwargs
from accelerate.utils.launch import (
    prepare_deepspeed_cmd_env,
    prepare_multi_gpu_env,
    prepare_simple_launcher_cmd_env,
)
from pydantic import TypeAdapter

from psychocounsel import errors
from psychocounsel.config.components import recipes_folder
from psychocounsel.config.schema import LaunchConfig
from psychocounsel.errors import (
    VERBOSE,
    ConfigError,
    ExitCode,
    IncompleteError,
    Preempted,
    PsychoCounselError,
    did_you_mean,
)
from psychocounsel.llm.cancel import CancelToken, cancelled_by_signals, interruptible

if TYPE_CHECKING:
    from psychocounsel.training.trainer import TrainingOutput

T = TypeVar("T")
Progress = Callable[[int, int], None]

NODES_COMMAND = "PSYCHOCOUNSEL_NODES_COMMAND"
"""The variable with the command that starts one process per machine; `{machines}` stands for their number."""
SRUN = "srun --nodes={machines} --ntasks={machines} --ntasks-per-node=1 --kill-on-bad-exit=1"
NODE_NUMBERS = ("SLURM_PROCID", "OMPI_COMM_WORLD_RANK", "PMI_RANK")
POLL_SECONDS = 0.05
HIDDEN_DEVICES = ("", "-1")
PROCESS, NODE = "process", "node"
COLLECTIVE_TIMEOUT = timedelta(hours=2)
"""How long a process waits for the others. NCCL's ten minutes are too short while the first one writes or verifies the
checkpoints of a large model on a slow disk; a process that ended is noticed at once, by its parent."""
FAILED = 1
"""The exit code of a process that a bug ended."""


@dataclass(frozen=True)
class Launch:
    """Where jobs run: in this process if `environment` is None, else in `processes` on `machines`.

    `distributed_type` is accelerate's name, and `environment` holds the variables that it adds.
    """

    processes: int = 1
    machines: int = 1
    distributed_type: str = "NO"
    environment: Mapping[str, str] | None = None
    main_address: str = "127.0.0.1"
    main_port: int = 0

    @property
    def zero_stage(self) -> str | None:
        """The number of the ZeRO stage with which DeepSpeed shards, if it does."""
        return (self.environment or {}).get("ACCELERATE_DEEPSPEED_ZERO_STAGE")

    def train(self, job: Callable[..., T], output: "TrainingOutput", **arguments: Any) -> T:
        """Return what `job`, a function with an `output`, returns in the first of the processes that train together.

        Raises:
            ConfigError: accelerate cannot compute here as its config file says.
            IncompleteError: a process was killed.
            PsychoCounselError: what the job raises, in any process.
        """
        if self.environment is None:
            return job(output=output, **arguments)
        paths = {"folder": str(output.folder), "work": str(output.work), "run_id": output.run_id}
        return self._run(job, [arguments], paths, output.work, output.cancel, output.progress)[0]

    def run_shards(
        self,
        job: Callable[..., list[T]],
        shards: Sequence[Mapping[str, Any]],
        *,
        work: Path,
        cancel: CancelToken,
        progress: Progress,
        log: Path | None = None,
    ) -> list[T]:
        """Return what `job`, a function with a `progress`, returns for the arguments of each shard, joined in order.

        Each shard has a process and a device of its own; there are at most as many shards as processes. `progress` is
        called with what is done and the total, and in the job ends it when the token is cancelled; errors are those of
        `train`. What the processes print is added to the file `log`, if there is one; with `--verbose` it is shown.
        """
        if self.environment is None:
            watched = interruptible(progress, cancel, str(work))
            results = [job(**each, progress=watched) for each in shards]
        else:
            results = self._run(job, shards, None, work, cancel, progress, log)
        return list(chain.from_iterable(results))

    def split(self, items: Sequence[T], multiple: int = 1) -> list[Sequence[T]]:
        """Return contiguous parts of nearly equal size for `run_shards`, all but the last a multiple of a number."""
        size = max(1, -(-len(items) // (self.processes * multiple))) * multiple
        return [items[start : start + size] for start in range(0, len(items), size)]

    def _run(
        self,
        job: Callable[..., T],
        arguments: Sequence[Mapping[str, Any]],
        output: dict[str, str] | None,
        work: Path,
        cancel: CancelToken,
        progress: Progress,
        log: Path | None = None,
    ) -> list[T]:
        types = get_type_hints(job)
        folder = work / f"job-{job.__name__}"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for index, each in enumerate(arguments):
            plain = {name: TypeAdapter(types[name]).dump_python(value, mode="json") for name, value in each.items()}
            (folder / f"arguments-{index}.json").write_text(json.dumps(plain), encoding="utf-8")
        is_together = output is not None
        launch = self if is_together else Launch(len(arguments), min(self.machines, len(arguments)), environment={})
        started = Started(f"{job.__module__}:{job.__qualname__}", launch, output)
        (folder / "job.json").write_text(json.dumps(asdict(started)), encoding="utf-8")
        if launch.machines > 1:
            command = os.environ.get(NODES_COMMAND, SRUN).format(machines=launch.machines)
            commands = [([*shlex.split(command), *_python(folder, NODE)], dict(os.environ))]
        else:
            commands = started.commands(folder, 0)
        log = None if os.environ.get(VERBOSE) else log

        def report() -> None:
            if not is_together and launch.machines == 1:
                # A shard saves nothing half-way, and may be loading a model for minutes: it is not waited for.
                cancel.raise_if_cancelled(str(folder))
            _show_progress(folder, is_together, progress)

        codes = watch(commands, cancel, report, log)
        raise_fault(codes, folder, log)
        _show_progress(folder, is_together, progress)
        reader: TypeAdapter[T] = TypeAdapter(types["return"])
        results = [reader.validate_json((folder / f"result-{i}.json").read_bytes()) for i in range(len(arguments))]
        shutil.rmtree(folder)
        return results


def launch_of(config: LaunchConfig) -> Launch:
    """Return where the jobs of a stage run.

    Raises:
        ConfigError: the accelerate file is missing or not valid, or asks for more than this machine has.
    """
    has_accelerator = torch.accelerator.is_available()
    if config == LaunchConfig() and not has_accelerator:
        return Launch()
    several = "ddp" if has_accelerator else "cpu"
    path = accelerate_file(config.accelerate or ("single" if config.num_processes in (None, 1) else several))
    where = f"accelerate file {path}"
    try:
        file: Any = load_config_from_file(str(path))
        machines: int = file.num_machines
        devices = torch.accelerator.device_count() if has_accelerator else 1
        processes: int = config.num_processes or file.num_processes
        processes = devices * machines if processes == -1 else processes
        threads = int(os.environ.get("OMP_NUM_THREADS") or max(1, (os.cpu_count() or 1) * machines // processes))
        options = {"config_file": path, "num_processes": processes, "num_cpu_threads_per_process": threads}
        words = [f"--{name}={value}" for name, value in options.items()]
        parsed, _, _ = _validate_launch_command(launch_command_parser().parse_args([*words, __name__]))
        parsed.main_process_port = parsed.main_process_port or (29500 if machines > 1 else 0)
        environment = _environment(parsed, file)
    except (ValueError, TypeError, KeyError, AttributeError, ImportError, AssertionError, OSError) as fault:
        remedy = "compare it with those in configs/accelerate"
        raise ConfigError(f"cannot be used: {fault}", where=where, remedy=remedy) from fault
    if processes % machines:
        raise ConfigError(f"{processes} processes cannot be spread over {machines} machines", where=where)
    kind = file.distributed_type.value
    if kind == "DEEPSPEED" and importlib.util.find_spec("deepspeed") is None:
        raise ConfigError("DeepSpeed is not installed", where=where, remedy="pip install deepspeed, or take fsdp2")
    if kind == "FSDP" and str(parsed.fsdp_version) != "2":
        raise ConfigError("FSDP 1 cannot train here", where=where, remedy="set fsdp_version: 2 in its fsdp_config")
    if has_accelerator and not file.use_cpu and processes > devices * machines:
        raise ConfigError(
            f"{processes} processes need as many devices, and there are {devices * machines}",
            where=where,
            remedy=f"start with --num-processes {devices * machines}",
        )
    address = parsed.main_process_ip or (socket.gethostname() if machines > 1 else "127.0.0.1")
    return Launch(processes, machines, kind, environment, address, parsed.main_process_port)


def one_per_device(config: LaunchConfig) -> Launch:
    """Return a launch whose shards have a process of their own each, by default as many as there are devices.

    Raises:
        ConfigError: there are fewer devices than processes.
    """
    devices = torch.accelerator.device_count()
    if devices and (config.num_processes or 1) > devices:
        raise ConfigError(
            f"{config.num_processes} processes need a device each, and this machine shows {devices}",
            where="launch.num_processes",
            remedy="ask for fewer processes, or make more devices visible (CUDA_VISIBLE_DEVICES)",
        )
    return Launch(config.num_processes or max(1, devices), environment={})


def accelerate_file(name: str) -> Path:
    """Return the config file of accelerate with this path, or with this name in `configs/accelerate`.

    Raises:
        ConfigError: there is none.
    """
    bundled = recipes_folder() / "accelerate"
    for path in (Path(name), bundled / f"{name}.yaml"):
        if path.is_file():
            return path
    known = sorted(path.stem for path in bundled.glob("*.yaml"))
    raise ConfigError("there is no such accelerate config", where=name, remedy=did_you_mean(name, known))


def _environment(parsed: Any, file: Any) -> dict[str, str]:
    """Return the variables that `accelerate launch` would add to ours; its choice of a port goes to `parsed`."""
    if parsed.use_deepspeed:
        parsed.deepspeed_fields_from_accelerate_config = ",".join(file.deepspeed_config)
        parsed.deepspeed_multinode_launcher = "standard"
        _, environment = prepare_deepspeed_cmd_env(parsed)
    elif parsed.use_fsdp or parsed.multi_gpu or parsed.num_processes > 1:
        environment = prepare_multi_gpu_env(parsed)
    else:
        _, environment = prepare_simple_launcher_cmd_env(parsed)
    environment["ACCELERATE_USE_CPU"] = str(parsed.use_cpu)
    environment["ACCELERATE_MIXED_PRECISION"] = "no"  # a config's `precision` says it: a launch changes no result
    if parsed.num_machines == 1 and sys.platform == "linux":
        environment.setdefault("GLOO_SOCKET_IFNAME", "lo")
    return {name: value for name, value in environment.items() if os.environ.get(name) != value}


@dataclass(frozen=True)
class Started:
    """A job with where it runs, as its processes read it.

    They train together if there is an `output` to train for: its paths and run id. Else each has a shard and a device.
    """

    job: str
    launch: Launch
    output: dict[str, str] | None

    @classmethod
    def read(cls, folder: Path) -> "Started":
        """Return the job in a folder."""
        return TypeAdapter(cls).validate_json((folder / "job.json").read_bytes())

    def commands(self, folder: Path, node: int) -> list[tuple[list[str], dict[str, str]]]:
        """Return words and environment of the processes of one machine."""
        launch = self.launch
        of_machine = -(-launch.processes // launch.machines)
        numbers = range(node * of_machine, min((node + 1) * of_machine, launch.processes))
        commands: list[tuple[list[str], dict[str, str]]] = []
        for local, number in enumerate(numbers):
            environment = dict(os.environ) | dict(launch.environment or {})
            if self.output is None or launch.distributed_type == "NO":
                # A trainer alone sees one device too: else it would use all of them, and multiply its batch by them.
                visible = environment.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(len(numbers)))))
                devices = visible.split(",")
                # Processes on a CPU may be more than the devices that the variable names.
                if visible not in HIDDEN_DEVICES and local < len(devices):
                    environment["CUDA_VISIBLE_DEVICES"] = devices[local]
            else:
                environment |= {
                    "RANK": str(number),
                    "LOCAL_RANK": str(local),
                    "WORLD_SIZE": str(launch.processes),
                    "LOCAL_WORLD_SIZE": str(len(numbers)),
                    "MASTER_ADDR": launch.main_address,
                    "MASTER_PORT": str(launch.main_port),
                }
            commands.append((_python(folder, PROCESS, number), environment))
        return commands


def _python(folder: Path, *words: object) -> list[str]:
    return [sys.executable, "-m", "psychocounsel.training.launch", str(folder), *map(str, words)]


def watch(
    commands: Sequence[tuple[list[str], dict[str, str]]],
    cancel: CancelToken,
    report: Callable[[], None],
    log: Path | None = None,
) -> list[int]:
    """Run commands side by side and return their exit codes; what they print goes to stderr, or is added to a file.

    A cancelled token reaches them as a line on stdin. When one fails, the others, which may wait for it, are killed;
    one that was preempted has saved what it must, so the others end by themselves.
    """
    with nullcontext(2) if log is None else log.open("ab") as output:
        # Sessions of their own: Ctrl-C reaches this process, and the others hear of it once.
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": output, "stderr": output}
        processes: list[subprocess.Popen[bytes]] = [
            subprocess.Popen(words, env=environment, start_new_session=True, **pipes)  # noqa: S603
            for words, environment in commands
        ]
    is_told = False
    try:
        while None in (codes := [each.poll() for each in processes]):
            if not {*codes} <= {None, ExitCode.DONE, ExitCode.PREEMPTED}:
                break
            if cancel.is_cancelled() and not is_told:
                is_told = True
                for each in processes:
                    _tell(each)
            report()
            time.sleep(POLL_SECONDS)
        return [code for each in processes if (code := each.poll()) is not None]
    finally:
        for each in processes:
            each.kill()
            each.wait()
            if each.stdin is not None:
                each.stdin.close()


def _tell(process: subprocess.Popen[bytes]) -> None:
    if process.stdin is not None and process.poll() is None:
        try:
            process.stdin.write(b"stop\n")
            process.stdin.flush()
        except BrokenPipeError:  # it ended meanwhile
            return


def _show_progress(folder: Path, is_together: bool, progress: Progress) -> None:
    """Report what the first process has done, or the sum over shards."""
    done = total = 0
    for path in [folder / "progress-0"] if is_together else folder.glob("progress-*"):
        words = path.read_text(encoding="ascii").split() if path.exists() else []
        if len(words) == 2:  # else it is being written
            done, total = done + int(words[0]), total + int(words[1])
    if total:
        progress(done, total)


def raise_fault(codes: Sequence[int], folder: Path, log: Path | None = None) -> None:
    """Raise what ended the processes of a job, if it was not success.

    The first of: an error that a process reports, a signal that killed one, a bug, a preemption. The others often
    follow from it, as when a process loses the one that it computes with.
    """
    if not any(codes):
        return
    says_more = f"{log} says" if log else "the messages above say"
    reports = [json.loads(path.read_bytes()) for path in sorted(folder.glob("error-*.json"))]
    faults = [_fault_of(report) for report in reports if "kind" in report]
    for fault in faults:
        if not isinstance(fault, Preempted):
            raise fault
    for code in codes:
        if code < 0:
            name = signal.Signals(-code).name
            raise IncompleteError(
                f"a process of the job was ended by {name}",
                where=str(folder),
                remedy="run the same command again to resume; "
                + (
                    "if the machine ran out of memory, lower optimisation.per_device_batch_size or shard the model, "
                    "as with --accelerate fsdp2"
                    if -code == signal.SIGKILL
                    else f"if it recurs, {says_more} more"
                ),
            )
    for report in reports:
        if "traceback" in report:
            raise RuntimeError(f"a process of the job failed:\n{report['traceback']}")
    for fault in faults:
        raise fault
    raise IncompleteError(
        f"the processes of the job ended with {list(codes)}", where=str(folder), remedy=f"{says_more} more"
    )


def _fault_of(report: Mapping[str, str]) -> PsychoCounselError:
    kind: type[PsychoCounselError] = getattr(errors, report["kind"])
    return kind(report["what"], where=report["where"], remedy=report["remedy"])


def main(folder: Path, role: str, number: int) -> NoReturn:
    """Run one process of a job, or all of one machine, and exit with the code of its error.

    Results and errors are written to the job's folder.
    """
    _show_log(number)
    code: int = ExitCode.DONE
    report: dict[str, str] = {}
    try:
        with cancelled_by_signals() as cancel:
            threading.Thread(target=_listen, args=(cancel,), daemon=True).start()
            started = Started.read(folder)
            if role == NODE:
                raise_fault(watch(started.commands(folder, number), cancel, lambda: None), folder)
            else:
                _run_process(started, folder, number, cancel)
    except PsychoCounselError as fault:
        kind = next(each.__name__ for each in type(fault).__mro__ if each.__module__ == errors.__name__)
        code, report = fault.exit_code, {"kind": kind, "what": fault.what, "where": fault.where, "remedy": fault.remedy}
    except torch.OutOfMemoryError as fault:
        code = ExitCode.INCOMPLETE
        remedy = (
            "in training, lower optimisation.per_device_batch_size or shard the model, as with --accelerate fsdp2; "
            "else lower sampling.batch_size; then run again"
        )
        report = {"kind": IncompleteError.__name__, "what": str(fault).split(". ")[0], "where": "", "remedy": remedy}
    except Exception:  # noqa: BLE001 (the parent raises it)
        code, report = FAILED, {"traceback": traceback.format_exc()}
    if report:
        path = folder / f"error-{role}-{number}.json"
        path.with_suffix(".partial").write_text(json.dumps(report), encoding="utf-8")
        path.with_suffix(".partial").replace(path)
    sys.stdout.flush()
    sys.stderr.flush()
    # Without the libraries' farewell: they would wait for processes that ended first.
    os._exit(code)


def _run_process(started: Started, folder: Path, number: int, cancel: CancelToken) -> None:
    module, _, name = started.job.partition(":")
    job = getattr(importlib.import_module(module), name)
    types = get_type_hints(job)
    index = number if started.output is None else 0
    plain: dict[str, Any] = json.loads((folder / f"arguments-{index}.json").read_bytes())

    def progress(done: int, total: int) -> None:
        (folder / f"progress-{number}").write_text(f"{done} {total}", encoding="ascii")

    arguments = {each: TypeAdapter(types[each]).validate_json(json.dumps(value)) for each, value in plain.items()}
    if started.output is None:
        result = job(**arguments, progress=interruptible(progress, cancel, str(folder)))
    else:
        require_launch(started.launch)
        paths = {name: Path(started.output[name]) for name in ("folder", "work")}
        output = types["output"](**paths, run_id=started.output["run_id"], cancel=cancel, progress=progress)
        result = job(**arguments, output=output)
    (folder / f"result-{number}.json").write_bytes(TypeAdapter(types["return"]).dump_json(result))


def require_launch(launch: Launch) -> None:
    """Raise ConfigError unless accelerate computes in this process as its config file says.

    It does not say so itself where it falls back: sharding on a CPU becomes plain data parallelism, and without its
    devices every process trains alone.
    """
    patient = InitProcessGroupKwargs(timeout=COLLECTIVE_TIMEOUT)
    found = Accelerator(cpu=not torch.accelerator.is_available(), kwargs_handlers=[patient])
    if (found.distributed_type.value, found.num_processes) != (launch.distributed_type, launch.processes):
        raise ConfigError(
            f"the processes run as {found.distributed_type.value} with {found.num_processes} in all, where the "
            f"launch asks for {launch.distributed_type} with {launch.processes}",
            where="--accelerate",
            remedy="choose a config that this machine can run: without a GPU, that is cpu",
        )


def _listen(cancel: CancelToken) -> None:
    """Cancel the token at the parent's line; end the process at once when the parent is gone."""
    while os.read(0, 64):
        cancel.cancel()
    os._exit(ExitCode.PREEMPTED)


def _show_log(number: int) -> None:
    """Print what the first process logs as the parent would."""
    logger = logging.getLogger("psychocounsel")
    handler: logging.Handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("  %(message)s"))
    logger.handlers, logger.propagate = [handler], False
    logger.setLevel(logging.INFO if number == 0 else logging.ERROR)
    if number == 0 and os.environ.get(VERBOSE):
        logging.basicConfig(level=logging.INFO, format="  %(name)s: %(message)s", force=True)


if __name__ == "__main__":
    given = sys.argv[3:] or [next(os.environ[name] for name in NODE_NUMBERS if name in os.environ)]
    main(Path(sys.argv[1]), sys.argv[2], int(given[0]))
