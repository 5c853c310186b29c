"""run: one stage, a recipe of several, the points of a sweep, or a dry run of any of them.

Within a run of a recipe, a name means what this run makes, and not a newer artifact of that name. The points of a sweep
go through the recipe side by side, step by step: what is the same for all of them is made once, and what differs gets
names that say how.
"""

from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple, cast

from psychocounsel.config.recipe import STAGES, StageName, Step, SweepPoint
from psychocounsel.errors import ConfigError, DataQualityError, InputError, PsychoCounselError
from psychocounsel.llm.session import PendingCalls, count_calls
from psychocounsel.reporting.tables import Table
from psychocounsel.stages.preflight import preflight, require_equipped, require_suitable
from psychocounsel.store.artifacts import Artifact, ArtifactSpec
from psychocounsel.store.references import UnknownReferenceError, resolve
from psychocounsel.store.store import Store, flatten


def run_stage(stage: StageName, config: Any, store: Store) -> Artifact:
    """Run a stage and return what it made or found; the names of all that it consists of mean these from now on."""
    with _naming_key(config):
        made = _function(stage)(config, store)
    store.name_again(stage_specs(stage, config, store))
    return made


def stage_specs(stage: StageName, config: Any, store: Store) -> list[ArtifactSpec]:
    """Return what a config of a stage makes, in order."""
    with _naming_key(config):
        return _flat(_module(stage).specs(config, store))


_OF_THE_RESULT = {"name", "author"}
"""Keys that name what is made and who answers, often by the same word as what is read, and are no references."""


@contextmanager
def _naming_key(config: Any) -> Generator[None]:
    """Add the key to an error about a reference or a path that a config has."""
    try:
        yield
    except (UnknownReferenceError, InputError) as fault:
        wrong, kinds = (fault.ref, fault.kinds) if isinstance(fault, UnknownReferenceError) else (fault.where, ())
        values = flatten(config.model_dump()).items()
        last_words = {key: key.split(".")[-1] for key, value in values if value and value == wrong}
        keys = [key for key, word in last_words.items() if word not in _OF_THE_RESULT]
        if not keys:
            raise
        # One name often stands for artifacts of several kinds: the key is that which is called like the missing one.
        of_policies = dict.fromkeys(("policy", "model"), "policies")
        kind_of = {key: of_policies.get(word, word.replace("_", "-")) for key, word in last_words.items()}
        key = max(keys, key=lambda key: any(kind.startswith(kind_of[key]) for kind in kinds))
        remedy = f"{fault.remedy}; or change it with --set {key}=..."
        kind = InputError if isinstance(fault, InputError) else ConfigError
        where = ": ".join(filter(None, (f"{key} of {config.name}", fault.where)))
        raise kind(fault.what, where=where, remedy=remedy) from None


def _module(stage: StageName) -> Any:
    return import_module(f"psychocounsel.stages.{STAGES[stage].run.partition('.')[0]}")


def _function(stage: StageName) -> Callable[..., Artifact]:
    return getattr(_module(stage), STAGES[stage].run.partition(".")[2])


def _flat(specs: object) -> list[ArtifactSpec]:
    if isinstance(specs, ArtifactSpec):
        return [specs]
    nested = cast("Sequence[object]", specs if isinstance(specs, (list, tuple)) else ())
    return [each for group in nested for each in _flat(group)]


@dataclass
class PointRun:
    """A recipe at one point: the store in which a name means what this run makes, and what it made or found so far.

    `skipped` has the ids of what does not exist because its step was left out, with the name of that step. `fault` is
    why a point of a sweep has no result.
    """

    point: SweepPoint
    store: Store
    artifacts: list[Artifact] = field(default_factory=list[Artifact])
    skipped: dict[str, str] = field(default_factory=dict[str, str])
    fault: DataQualityError | None = None

    def require_parents(self, specs: Sequence[ArtifactSpec]) -> None:
        """Raise ConfigError if a step that was left out would make one of the parents, and no spec is itself that."""
        for spec in specs:
            self.skipped.pop(spec.id, None)
        order = list(self.skipped)
        missing = [parent for spec in specs for parent in spec.parents if parent.id in self.skipped]
        if missing:
            last = max(missing, key=lambda parent: order.index(parent.id))
            raise ConfigError(
                f"{last.kind} {last.ref} does not exist, and the step that makes it is left out",
                where=specs[-1].ref,
                remedy=f"run the recipe with --until {self.skipped[last.id]} first",
            )


class _Planned(NamedTuple):
    """A step of one point under names that tell it apart, its specs, and the same under the names of the recipe."""

    run: PointRun
    step: Step
    specs: list[ArtifactSpec]
    original: Step
    names: list[str]

    def pin(self, store: Store, made: Artifact | None = None) -> None:
        """Have the recipe's names mean what exists of this step in the store, or is to come if nothing was `made`."""
        named = zip(self.names, self.specs, strict=True)
        pins = [(name, found) for name, spec in named if (found := store.find(spec) or (None if made else spec))]
        if made is not None:
            own = self.original.config.name if made.name == self.step.config.name else made.name
            pins.append((own, made))
        self.run.store = self.run.store.pinned(*(_called(each, name) for name, each in reversed(pins)))

    def leave_out(self, store: Store) -> None:
        """Do not run it, and note what is therefore missing."""
        missing = (spec for spec in self.specs if store.find(spec) is None)
        self.run.skipped |= {spec.id: self.original.name for spec in missing}
        self.pin(store)


def _called(each: Artifact | ArtifactSpec, name: str) -> Artifact | ArtifactSpec:
    if isinstance(each, Artifact):
        return replace(each, manifest={**each.manifest, "name": name})
    return replace(each, name=name)


def _plan_step(runs: Sequence[PointRun], number: int) -> list[_Planned]:
    """Return what each point makes in a step, under names of its own where that differs.

    A point without a result counts as well: what it would have made differently is not what the others share.
    """
    steps = [run.point.steps[number] for run in runs]
    planned: list[_Planned] = []
    for run, step in zip(runs, steps, strict=True):
        try:
            specs = stage_specs(step.stage, step.config, run.store)
        except PsychoCounselError:
            if run.fault is None:
                raise
            specs = list[ArtifactSpec]()  # to know it takes the result that is missing
        planned.append(_Planned(run, step, specs, step, [spec.name for spec in specs]))
    if len({tuple(spec.id for spec in each.specs) for each in planned}) > 1:
        for at, each in enumerate(planned):
            if each.run.fault is not None:
                continue
            name = each.run.point.named(each.step.config.name)
            step = each.step._replace(config=each.step.config.model_copy(update={"name": name}))
            specs = stage_specs(step.stage, step.config, each.run.store)
            planned[at] = each._replace(step=step, specs=specs)
    return planned


def _is_shared(planned: Sequence[_Planned]) -> bool:
    return all(each.step is each.original for each in planned)


def run_recipe(
    points: Sequence[SweepPoint],
    chosen: Sequence[bool],
    store: Store,
    announce: Callable[[int, Step, str], None],
    ended: Callable[[Artifact], None],
) -> list[PointRun]:
    """Run the chosen steps of a recipe in order, at every point.

    `announce` gets the number of a step, the step, and what differs where it is not the same for all points; `ended`
    what a step made or found. A report is one of all points.

    Raises:
        ConfigError: a step that was left out would make what a chosen one needs.
        DataQualityError: there is one point, or a step that all have in common.
        StoreError: another process removes artifacts.
    """
    _check(points, chosen, store)
    runs = [PointRun(point, store) for point in points]
    with ExitStack() as in_use:
        for number, is_chosen in enumerate(chosen[: _last(chosen)]):
            if all(run.fault is not None for run in runs):
                break
            planned = _plan_step(runs, number)
            live = [each for each in planned if each.run.fault is None]
            if is_chosen and any(store.find(spec) is None for each in live for spec in each.specs):
                in_use.enter_context(store.in_use())  # nor may what is to be read be removed between two steps
            if not is_chosen:
                for each in planned:
                    each.leave_out(store)
            elif _is_shared(planned):
                announce(number + 1, live[0].step, "")
                for each in live:
                    each.run.require_parents(each.specs)
                made = run_stage(live[0].step.stage, live[0].step.config, live[0].run.store)
                ended(made)
                for each in planned:
                    each.run.artifacts.append(made)
                    each.pin(store, made)
            elif live[0].step.stage == "report":
                announce(number + 1, live[0].original, "")
                live[0].run.artifacts.append(run_stage("report", _report_of_all(live), store))
                ended(live[0].run.artifacts[-1])
            else:
                for each in planned:
                    made = None
                    if each.run.fault is None:
                        announce(number + 1, each.step, each.run.point.label)
                        each.run.require_parents(each.specs)
                        try:
                            made = run_stage(each.step.stage, each.step.config, each.run.store)
                            ended(made)
                            each.run.artifacts.append(made)
                        except DataQualityError as fault:  # the other points have results
                            each.run.fault = fault
                    each.pin(store, made)
    return runs


def _check(points: Sequence[SweepPoint], chosen: Sequence[bool], store: Store) -> None:
    """Raise before anything runs what is wrong in a chosen step, or if it needs what a step left out would make."""
    runs = [PointRun(point, store) for point in points]
    for number, is_chosen in enumerate(chosen[: _last(chosen)]):
        try:
            planned = _plan_step(runs, number)
        except PsychoCounselError as fault:
            if is_chosen and isinstance(fault, ConfigError | InputError):
                raise
            return  # it needs to read what does not exist yet; its turn will come
        for each in planned:
            if is_chosen:
                each.run.require_parents(each.specs)
                if _is_pending_training(each.step, each.specs, store):
                    require_suitable(each.step.config, each.run.store)
                    require_equipped(each.step.config, each.run.store)
                each.pin(store)
            else:
                each.leave_out(store)


def _last(chosen: Sequence[bool]) -> int:
    """Return the number of steps until the last chosen one."""
    return max((number for number, is_chosen in enumerate(chosen, start=1) if is_chosen), default=0)


def _report_of_all(planned: Sequence[_Planned]) -> Any:
    """Return the config of one report about what each point would report."""
    config = planned[0].original.config
    found = [resolve(each.run.store, ref) for each in planned for ref in each.original.config.artifacts]
    folders = dict.fromkeys(str(each.folder) for each in found if isinstance(each, Artifact))
    return config.model_copy(update={"name": f"{config.name}-sweep", "artifacts": tuple(folders)})


class StepPreview(NamedTuple):
    """What a dry run says of a step: the artifacts it makes, in order, the calls that are pending, and its needs.

    `label` is what differs where a step is not the same for all points of a sweep. `needs` are tables of memory, time
    and disk of a training, or why they are not known; empty for other stages.
    """

    step: Step
    label: str
    specs: list[ArtifactSpec]
    calls: list[PendingCalls]
    needs: list[Table] | str


def dry_run(points: Sequence[SweepPoint], chosen: Sequence[bool], store: Store) -> list[StepPreview]:
    """Return what each chosen step makes and asks; nothing is sent, and nothing is left in the store.

    Stages that ask endpoints run in an overlay of the store, with placeholders for replies. Of the others only the
    specs are known. Errors are those of `run_recipe`.
    """
    previews: list[StepPreview] = []
    with TemporaryDirectory() as folder:
        overlay = store.overlay(Path(folder))
        runs = [PointRun(point, overlay) for point in points]
        for number, is_chosen in enumerate(chosen[: _last(chosen)]):
            planned = _plan_step(runs, number)
            is_shared = _is_shared(planned)
            for each in planned:
                if not is_chosen:
                    each.leave_out(overlay)
                    continue
                each.run.require_parents(each.specs)
                if each.step.stage == "report" and not is_shared:
                    if each is planned[0]:  # its id follows from what the points are to make
                        previews.append(StepPreview(each.original, "one of all points", [], [], []))
                elif each is planned[0] or not is_shared:
                    label = "" if is_shared else each.run.point.label
                    earlier = [calls for preview in previews for calls in preview.calls]
                    previews.append(_preview(each.step, label, each.specs, each.run.store, earlier))
                each.pin(overlay)
    return previews


def _preview(
    step: Step, label: str, specs: list[ArtifactSpec], overlay: Store, earlier: Sequence[PendingCalls]
) -> StepPreview:
    calls: list[PendingCalls] = []
    if STAGES[step.stage].asks:
        run = _function(step.stage)
        calls = count_calls(lambda calls: run(step.config, overlay, calls), earlier)
    if not _is_pending_training(step, specs, overlay):
        return StepPreview(step, label, specs, calls, [])
    require_suitable(step.config, overlay)
    return StepPreview(step, label, specs, calls, preflight(step.config, overlay))


def _is_pending_training(step: Step, specs: Sequence[ArtifactSpec], store: Store) -> bool:
    return STAGES[step.stage].trains and store.find(specs[-1]) is None
