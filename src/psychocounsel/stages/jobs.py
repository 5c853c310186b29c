"""Jobs of stages: trainings, and long computations with weights that are divided between the devices of a launch."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from psychocounsel.config.components import ChatFormat
from psychocounsel.config.schema import LaunchConfig
from psychocounsel.llm.cancel import CancelToken
from psychocounsel.reporting.console import step_progress
from psychocounsel.store.artifacts import ArtifactWriter
from psychocounsel.types import Policy, Reward

if TYPE_CHECKING:
    from psychocounsel.training.reward import Exchange

T = TypeVar("T")


class Jobs(NamedTuple):
    """Starts the jobs of an artifact, as a launch says, and shows their progress under a label.

    Errors are those of `launch_of`, and of `train` and `run_shards` of `Launch`.
    """

    launch: LaunchConfig
    writer: ArtifactWriter
    cancel: CancelToken

    def train(self, label: str, job: Callable[..., T], **arguments: Any) -> T:
        """Return what `job` returns, which trains the model of the artifact; damaged checkpoints become warnings."""
        from psychocounsel.training.checkpoints import damage_warnings  # imports torch
        from psychocounsel.training.launch import launch_of
        from psychocounsel.training.trainer import TrainingOutput

        writer = self.writer
        with step_progress(label) as report:
            output = TrainingOutput(writer.folder, writer.work, self.cancel, report, writer.spec.id)
            trained = launch_of(self.launch).train(job, output, **arguments)
        writer.warnings.extend(damage_warnings(writer.work))
        return trained

    def run(self, label: str, job: Callable[..., list[T]], divided: str, **arguments: Any) -> list[T]:
        """Return what `job` returns for all items of the argument called `divided`, which processes divide."""
        from psychocounsel.training.launch import launch_of  # imports torch

        processes = launch_of(self.launch)
        shards = [{**arguments, divided: part} for part in processes.split(arguments[divided])]
        with step_progress(label) as report:
            return processes.run_shards(job, shards, work=self.writer.work, cancel=self.cancel, progress=report)

    def score(
        self, label: str, model: Policy, chat: ChatFormat, exchanges: "Sequence[Exchange]", batch_size: int
    ) -> list[tuple[Reward, int]]:
        """Return the reward of each exchange and the length in tokens of its response, by a reward model."""
        from psychocounsel.training.reward import score_exchanges  # imports torch

        shared = {"model": model, "chat": chat, "batch_size": batch_size, "work": self.writer.work}
        return self.run(label, score_exchanges, "exchanges", exchanges=exchanges, **shared)
