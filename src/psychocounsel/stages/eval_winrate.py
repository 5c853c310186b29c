"""eval-winrate: a policy and a reference answer held-out speeches, and a judge compares them in both orders."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from psychocounsel.config.corpus import CleaningConfig
from psychocounsel.config.schema import SIDES, EvalWinrateConfig, LaunchConfig, WinrateSide
from psychocounsel.corpus.text import is_foreign
from psychocounsel.errors import DataQualityError, StoreError
from psychocounsel.evaluation.judge_audit import vote_metrics
from psychocounsel.evaluation.probes import kl_estimates
from psychocounsel.evaluation.winrate import BothOrders, Compared, Unanswered, sample_speeches, winrate_metrics
from psychocounsel.judging.judge import (
    ComparisonTask,
    compare_in_both_orders,
    count_failed,
    require_judged,
    same_family,
)
from psychocounsel.judging.judges import judge_spending, judge_status, open_judge
from psychocounsel.llm.endpoints import keep_restricted_text_here, require_usable
from psychocounsel.llm.session import PendingCalls, Session, open_session
from psychocounsel.reporting.console import progress
from psychocounsel.stages.estimate import note_estimate
from psychocounsel.stages.jobs import Jobs
from psychocounsel.stages.leakage import count_leakage, leakage_warning, training_answers
from psychocounsel.stages.respond import Responder, data_classes, file_classes, ids_by_key, write_answers
from psychocounsel.store.artifacts import Artifact, ArtifactSpec, ArtifactWriter
from psychocounsel.store.files import digest_of
from psychocounsel.store.references import POLICY_KINDS, labelling_judges, models_behind, resolve, resolve_model
from psychocounsel.store.schemas import OrderedComparison, read_candidates, speeches_in, write_comparisons
from psychocounsel.store.store import Store, note_failed, retry_spec
from psychocounsel.types import OVERALL, Candidate, SampledAnswer, Speech

VERSION = 11
STAGE = "eval-winrate"
DRIFT_ANSWERS = 64
"""The KL divergence is estimated on the first answers to so many speeches."""


class WinrateSpecs(NamedTuple):
    """What the stage makes, in order."""

    policy: ArtifactSpec
    reference: ArtifactSpec
    comparisons: ArtifactSpec


def specs(config: EvalWinrateConfig, store: Store) -> WinrateSpecs:
    """Return what a config makes.

    Raises:
        ConfigError: a reference matches nothing, restricted text would reach a remote judge or responder, or one is
            remote and the run offline.
    """
    return _Evaluation(config, Session(store)).specs


def eval_winrate(config: EvalWinrateConfig, store: Store, calls: list[PendingCalls] | None = None) -> Artifact:
    """Measure the win rate of a config, or return it if it exists.

    In a dry run, `store` is an overlay and `calls` receives the calls that a run would make.

    Raises:
        ConfigError: an endpoint cannot be used.
        IncompleteError: an endpoint does not answer; completed requests are in the journal.
        DataQualityError: the split is empty, a model was trained on its speeches, or too many answers or comparisons
            failed.
        Preempted: SIGINT or SIGTERM came; completed requests are in the journal.
    """
    with open_session(store, calls) as session:
        return _Evaluation(config, session).run()


class _Evaluation:
    """One run of the stage. The judge and both sides connect when they are first asked."""

    def __init__(self, config: EvalWinrateConfig, session: Session) -> None:
        self.config, self.session, self.store = config, session, session.store
        self.speeches = resolve(self.store, config.speeches, "speeches")
        self._keep_restricted_text_here()
        self.sides = {side: Responder(config.responder(side), session, "model") for side in SIDES}
        share = config.judge.max_missing_share
        self.judge = open_judge(config.judge, session, "comparing answers", may_wait=True, max_missing_share=share)
        self.specs = self._specs()

    def _keep_restricted_text_here(self) -> None:
        config = self.config
        endpoints = (*config.judge.endpoints, config.policy.endpoint, config.reference.endpoint)
        classes = data_classes(self.speeches) | file_classes((config.policy, config.reference))
        keep_restricted_text_here(endpoints, classes)

    def _specs(self) -> WinrateSpecs:
        config, judge = self.config, self.judge
        policy, reference = (self._answer_spec(side) for side in SIDES)
        settings: dict[str, Any] = {
            "judge": judge.fingerprint,
            "draws": config.draws,
            "constraint": self._constraint,
            "confidence": config.confidence,
            "seed": config.seed,
            "labelled_by": config.labelled_by,
        }
        answers = (policy.as_parent("policy answers"), reference.as_parent("reference answers"))
        parents = (*answers, self.speeches.as_parent("speeches"))
        made = ArtifactSpec("comparisons", config.name, STAGE, VERSION, settings, parents, judge.warnings)
        return WinrateSpecs(policy, reference, retry_spec(made, self.store, again=config.retry_failed))

    def _answer_spec(self, side: WinrateSide) -> ArtifactSpec:
        config, responder = self.config, self.sides[side]
        settings = {
            "responder": responder.fingerprint,
            "split": config.split,
            "max_speeches": config.max_speeches,
            "draws": responder.distinct_draws(config.draws),
            "seed": config.seed,
        }
        parents = (self.speeches.as_parent("speeches"), *responder.parents)
        made = ArtifactSpec("candidates", f"{config.name}-{side}", STAGE, VERSION, settings, parents)
        return retry_spec(made, self.store, again=config.retry_failed)

    @property
    def _constraint(self) -> dict[str, Any] | None:
        return self.config.constraint.fingerprint() if self.config.constraint else None

    def run(self) -> Artifact:
        session, store, specs = self.session, self.store, self.specs
        if isinstance(self.speeches, ArtifactSpec):
            session.stop_counting(
                f"counted once {self.speeches.ref} exists; run the recipe until the step that makes it"
            )
        self.held_out = self._held_out(self.speeches)
        if session.is_dry_run:
            note_estimate(self.speeches, session)
        else:
            self._require_usable()
        if store.find(specs.comparisons) is None:
            parents = [parent for side in self.sides.values() for parent in side.parents]
            models = [store.open(parent) for parent in parents if parent.id not in store.planned]
            counted = count_leakage(store, self.held_out, self.speeches, models, self.config.allow_leakage)
            self.leakage = counted if counted["leaked"] or self.sides["policy"].parents else None
        store.make(specs.policy, lambda writer: self._answer(writer, "policy"))
        session.cancel.raise_if_cancelled(specs.policy.ref)
        store.make(specs.reference, lambda writer: self._answer(writer, "reference"))
        session.cancel.raise_if_cancelled(specs.reference.ref)
        if session.is_dry_run and not self.config.judge.endpoints:
            session.stop_counting()
        return store.make(specs.comparisons, self._compare)

    def _held_out(self, speeches: Artifact) -> list[Speech]:
        config = self.config
        of_split = speeches_in(speeches, config.split)
        if not of_split:
            raise DataQualityError(
                f"the split {config.split} has no speeches", where=config.speeches, remedy="choose another split"
            )
        return sample_speeches(of_split, config.max_speeches, config.seed)

    def _require_usable(self) -> None:
        """Check the endpoints of everything pending before the first of them is paid."""
        config, store, specs = self.config, self.store, self.specs
        sides = zip(SIDES, specs[:2], (config.policy, config.reference), strict=True)
        pending = {str(side): each.endpoint for side, spec, each in sides if store.find(spec) is None}
        require_usable(pending, store, None if store.find(specs.comparisons) else config.judge.named_endpoints)

    def _answer(self, writer: ArtifactWriter, side: WinrateSide) -> None:
        corpus = self.store.open(writer.parent("speeches"))
        write_answers(writer, self.sides[side], self.held_out, lambda: ids_by_key(corpus))

    def _compare(self, writer: ArtifactWriter) -> None:
        config, judge = self.config, self.judge
        answers = {side: self.store.open(writer.parent(f"{side} answers")) for side in SIDES}
        policy, reference = (read_candidates(answers[side]) for side in SIDES)
        speeches = {each.id: each for each in self.held_out}
        drawn = [(speech, draw) for speech in speeches for draw in range(config.draws)]
        ours, theirs = (self._by_draw(side, found) for side, found in zip(SIDES, (policy, reference), strict=True))
        answered = [at for at in drawn if at in ours and at in theirs]
        tasks = [ComparisonTask(speeches[at[0]], ours[at], theirs[at]) for at in answered]
        with progress("comparing answers, both orders", 2 * len(tasks), lambda: judge_status(judge)) as advance:
            forward, backward = compare_in_both_orders(judge, tasks, advance)
        if self.session.is_dry_run:
            return  # placeholders measure nothing
        spend = judge_spending(judge)
        writer.notes["judge"] = judge.name
        comparisons = [*forward, *backward]
        require_judged(comparisons, "comparisons", config.judge.max_missing_share)
        note_failed(writer, count_failed(comparisons))
        orders = [(order, draw) for order in ("forward", "backward") for _, draw in answered]
        ordered = [OrderedComparison(each, *order) for each, order in zip(comparisons, orders, strict=True)]
        write_comparisons(writer, ordered, (OVERALL, *judge.principles))
        self._warn(writer, answers.values())
        compared: list[Compared] = [BothOrders(*pair) for pair in zip(forward, backward, strict=True)]
        compared += [Unanswered(at[0]) for at in drawn if at not in ours or at not in theirs]
        trained_on, foreign = training_answers(self.store, answers["policy"]), self._is_foreign(writer)
        writer.write_metrics(
            {
                "speeches": len(speeches),
                "draws": config.draws,
                "constraint": self._constraint,
                **winrate_metrics(compared, speeches, policy, reference, config.confidence, trained_on, foreign),
                "kl": self._drift(writer, policy),
                "judges": self._judges(answers),
                "answered_by_both": len(tasks),
                **vote_metrics(comparisons),
                **spend,
                "missing_answers": {side: answers[side].metrics["failed"] for side in SIDES},
                "leakage": self.leakage,
            }
        )

    def _warn(self, writer: ArtifactWriter, answers: Iterable[Artifact]) -> None:
        if others := self._with_other_seeds(writer.spec.settings, answers):
            writer.warnings.append(
                f"Earlier results in the store differ from this one in the seed alone ({', '.join(others)}): the best "
                "of several seeds flatters the policy, so cite all of them."
            )
        if self.leakage and self.leakage["leaked"]:
            writer.warnings.append(leakage_warning(self.leakage))

    def _is_foreign(self, writer: ArtifactWriter) -> Callable[[str], bool] | None:
        """Return what says whether a text is in another language than the corpus may have; None if it may have all."""
        kept = self.store.open(writer.parent("speeches")).manifest["settings"].get("cleaning", {})
        languages = kept.get("languages", CleaningConfig().languages)
        return partial(is_foreign, languages=languages) if languages else None

    def _with_other_seeds(self, settings: Mapping[str, Any], answers: Iterable[Artifact]) -> list[str]:
        """Return the refs of results with other seeds: of the same speeches, sides and judge, under whatever name."""

        def apart_from_seed(own: Mapping[str, Any], answered: Iterable[Artifact]) -> str:
            every = [own, *(each.manifest["settings"] for each in answered)]
            models = [[parent.id for parent in each.parents] for each in answered]
            return digest_of(
                [[{name: each[name] for name in each.keys() - {"seed", "retried_from"}} for each in every], models]
            )

        this, found = apart_from_seed(settings, answers), list[str]()
        for each in self.store.artifacts("comparisons"):
            own = each.manifest["settings"]
            if each.manifest["stage"] != STAGE or own["seed"] == settings["seed"]:
                continue
            try:
                answered = [self.store.open(each.parent(f"{side} answers")) for side in SIDES]
            except StoreError:
                continue
            if apart_from_seed(own, answered) == this:
                found.append(each.ref)
        return found

    def _drift(self, writer: ArtifactWriter, policy: Sequence[Candidate]) -> dict[str, float] | None:
        """Return estimates of the policy's KL divergence from the reference, from the texts of some answers.

        None unless both are weights on this machine with one tokenizer.
        """
        sides = [self.config.responder(side) for side in SIDES]
        models = [resolve_model(self.store, each.model, POLICY_KINDS) for each in sides if each.model is not None]
        try:
            policies = [model.policy(self.store) for model in models]
        except StoreError:  # answers outlive weights that were dropped
            return None
        first = [each for each in policy if each.draw == 0 and each.text.strip()][:DRIFT_ANSWERS]
        if len(policies) < len(sides) or not first:
            return None
        from psychocounsel.training.drift import token_statistics  # imports torch

        speeches = {each.id: each for each in self.held_out}
        asked = [(speeches[each.speech_id], SampledAnswer(each, None)) for each in first]
        jobs = Jobs(LaunchConfig(), writer, self.session.cancel)
        shared = {"answers": asked, "chat": sides[0].chat, "batch_size": sides[0].sampling.batch_size}
        logps: list[list[list[float]]] = []
        for each in policies:
            found = jobs.run("measuring drift", token_statistics, "answers", policy=each, **shared)
            logps.append([of_answer.logps for of_answer in found])
        lengths = [[len(of_answer) for of_answer in side] for side in logps]
        return kl_estimates(*logps) if sum(lengths[0]) and lengths[0] == lengths[1] else None

    def _by_draw(self, side: WinrateSide, found: Sequence[Candidate]) -> dict[tuple[str, int], Candidate]:
        """Return a side's answers by speech and draw; one that always answers the same has one answer for all draws."""
        if self.sides[side].config.varies:
            return {(each.speech_id, each.draw): each for each in found}
        return {(each.speech_id, draw): each for each in found for draw in range(self.config.draws)}

    def _judges(self, answers: Mapping[WinrateSide, Artifact]) -> dict[str, Any]:
        """Name the judges of the training labels and of this result, the compared models, and shared families."""
        named = [] if self.config.labelled_by is None else [self.config.labelled_by]
        labels = list(dict.fromkeys([*labelling_judges(self.store, answers["policy"]), *named]))
        judged = {side: list(models_behind(self.store, answers[side])) for side in SIDES}
        name = self.judge.name
        return {
            "labels": labels,
            "evaluation": name,
            "same_family": any(same_family(name, each) for each in labels),
            "judged": judged,
            "own_family": [side for side, models in judged.items() if any(same_family(name, each) for each in models)],
        }
