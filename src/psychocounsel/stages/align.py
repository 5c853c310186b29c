"""align: DPO on a preference dataset, or online DPO with a reward model."""

from psychocounsel.config.schema import AlignConfig
from psychocounsel.llm.session import PendingCalls, Session, open_session
from psychocounsel.stages.dpo import align_offline, plan_dpo
from psychocounsel.stages.online import OnlineDpo, align_online
from psychocounsel.stages.preflight import require_launchable, require_suitable
from psychocounsel.store.artifacts import Artifact, ArtifactSpec
from psychocounsel.store.references import POLICY_KINDS, resolve_model
from psychocounsel.store.store import Store
from psychocounsel.training.tracking import prepare_tracker


def specs(config: AlignConfig, store: Store) -> list[ArtifactSpec]:
    """Return what the stage would create, in order; the final policy is the last."""
    if config.online is None:
        return list(plan_dpo(config, store))
    plan = OnlineDpo(config, config.online, Session(store)).plan
    rounds, last = plan.expected(store, config.online.stop_when)
    return [plan.initial_probe, *(spec for planned in rounds for spec in planned), last]


def align(config: AlignConfig, store: Store, calls: list[PendingCalls] | None = None) -> Artifact:
    """Align the policy of a config, or return it if it exists.

    In a dry run, `store` is an overlay and `calls` receives the calls that a judge of probes would get.

    Raises:
        ConfigError: the training needs more memory than a device has, or a setting cannot be met here, such as a
            tracker without its package.
        DataQualityError: a round ends without a pair, or too many pairs do not fit.
        Preempted: SIGINT or SIGTERM came; finished rounds and the checkpoint are kept.
    """
    prepare_tracker(config.optimisation.tracker, store)
    with open_session(store, calls) as session:
        run = OnlineDpo(config, config.online, session) if config.online is not None else None
        if session.is_dry_run:
            if run is not None:
                from psychocounsel.stages.estimate import count_probes  # with all that reads a corpus

                count_probes(run)
            session.stop_counting()
        if store.find(specs(config, store)[-1]) is None:
            require_suitable(config, store)
            require_launchable(config, resolve_model(store, config.policy, POLICY_KINDS).policy(store))
        if run is not None:
            return align_online(run)
        return align_offline(config, store, session.cancel)
