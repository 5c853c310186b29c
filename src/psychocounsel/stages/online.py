"""Online DPO: rounds of sampling, scoring, pairing and training, each followed by a probe.

In a round the policy answers speeches, the reward model scores the answers, the best and the worst answer to a speech
become a pair, and DPO trains on the pairs. A probe then measures the new policy, and may end the run. Candidates,
scores, pairs, log-probabilities of the reference, policy and probe of a round are artifacts, so a killed run resumes at
the artifact and checkpoint where it was. The reference stays the initial policy (arXiv 2502.19731).
"""

import math
import statistics
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from psychocounsel.config.components import JudgeConfig
from psychocounsel.config.schema import AlignConfig, OnlineConfig, StopConfig
from psychocounsel.errors import ConfigError, DataQualityError, counted
from psychocounsel.evaluation.monitors import best_round, kl_estimates, questions, reason_to_stop
from psychocounsel.evaluation.statistics import rate_if_known
from psychocounsel.evaluation.text_quality import measure_text_quality
from psychocounsel.evaluation.winrate import POINTS, BothOrders
from psychocounsel.judging.judge import ComparisonTask, Judge, require_judged
from psychocounsel.judging.judges import judge_spending, judge_status, open_judge
from psychocounsel.judging.pairing import PairingRule, pair_extremes
from psychocounsel.llm.endpoints import keep_restricted_text_here, require_usable
from psychocounsel.llm.session import Session
from psychocounsel.reporting.console import note, progress, step_progress
from psychocounsel.stages.dpo import (
    STAGE,
    VERSION,
    compute_reference,
    dpo_settings,
    plan_reference,
    train_policy,
    write_policy_card,
)
from psychocounsel.stages.respond import data_classes, sample_answers
from psychocounsel.store.artifacts import (
    ADAPTER,
    CARD,
    METRICS,
    OPTIMIZER,
    SHORT_ID,
    Artifact,
    ArtifactSpec,
    ArtifactWriter,
    Parent,
    drop_superseded,
    parent_in,
)
from psychocounsel.store.files import link_or_copy
from psychocounsel.store.metrics import ProbeMetrics
from psychocounsel.store.references import POLICY_KINDS, ModelReference, resolve_model, resolve_parent, trained_chat
from psychocounsel.store.schemas import (
    OrderedComparison,
    RewardScore,
    read_candidates,
    read_pairs,
    read_scores,
    read_speeches,
    write_candidates,
    write_comparisons,
    write_pairs,
    write_scores,
)
from psychocounsel.store.store import Store
from psychocounsel.training.tracking import track
from psychocounsel.types import (
    OVERALL,
    Candidate,
    Policy,
    PreferencePair,
    SampledAnswer,
    ScoredCandidate,
    Speech,
    content_id,
    sample_by_hash,
)

if TYPE_CHECKING:
    from psychocounsel.training.drift import TokenStatistics

AUTHOR = "policy"
"""Of the answers of every round: a round's name is no part of an id."""
PROBE_VERSION = 6


class OnlineRound(NamedTuple):
    """What one round creates, in order."""

    candidates: ArtifactSpec
    scores: ArtifactSpec
    pairs: ArtifactSpec
    reference: ArtifactSpec
    policy: ArtifactSpec
    probe: ArtifactSpec


class OnlinePlan(NamedTuple):
    """What an online run creates: the probe of the initial policy, and as many rounds as no limit ends."""

    initial_probe: ArtifactSpec
    rounds: list[OnlineRound]
    outcome: ArtifactSpec

    def result(self, last: int, weights_of: int) -> ArtifactSpec:
        """Return the policy that a run ends with after round `last`, with the weights of a round."""
        rounds = self.rounds[:last]
        probes = [each.probe.as_parent(f"probe {number}") for number, each in enumerate(rounds, start=1)]
        own = (rounds[-1].policy.as_parent("last round"), self.initial_probe.as_parent("initial probe"), *probes)
        settings = {**self.outcome.settings, "weights_of_round": weights_of}
        return replace(self.outcome, settings=settings, parents=(*own, *self.outcome.parents))

    def expected(self, store: Store, limits: StopConfig) -> tuple[list[OnlineRound], ArtifactSpec]:
        """Return the rounds that a run has, as far as probes in the store do not end it earlier, and its result."""
        probes: list[ProbeMetrics] = []
        for spec in (self.initial_probe, *(each.probe for each in self.rounds)):
            found = store.find(spec)
            if found is None:
                break
            probes.append(ProbeMetrics.model_validate(found.metrics))
            if len(probes) > 1 and reason_to_stop(probes, limits):
                last = len(probes) - 1
                return self.rounds[:last], self.result(last, best_round(probes, limits))
        return self.rounds, self.result(len(self.rounds), len(self.rounds))


def plan_rounds(run: "OnlineDpo") -> OnlinePlan:
    """Return the specs of all rounds; only what affects a step is part of its id."""
    config, online, store = run.config, run.online, run.store
    initial = resolve_model(store, config.policy, POLICY_KINDS)
    reward_model = resolve_model(store, online.reward_model, ("reward-models",))
    speeches = resolve_parent(store, online.speeches, "speeches", "speeches")
    judge = None if online.probe.judge is None else run.open_judge(online.probe.judge)
    started_from, scored_by = initial.parents("initial policy"), reward_model.parents("reward model")
    answering = {
        "sampling": online.sampling.fingerprint(),
        "sampler": online.sampler.fingerprint(),
        "chat": config.chat.fingerprint(),
        "policy": initial.fingerprint,
    }
    scoring = {"reward_model": reward_model.fingerprint}
    selection: dict[str, Any] = {
        "unfinished": online.unfinished,
        "unfinished_penalty": online.unfinished_penalty,
        "length_penalty_per_100_tokens": online.length_penalty_per_100_tokens,
        "vetoes": dict(online.vetoes),
    }
    probing = {
        **{**answering, **scoring, "seed": config.seed},
        **{"speeches": online.probe.speeches, "draws": online.probe.draws},
        "judge": judge and dict(judge.fingerprint),
    }

    def probe(number: int, *parents: Parent) -> ArtifactSpec:
        own = (speeches, *started_from, *scored_by, *parents)
        name = f"{config.name}-round-{number:02d}"
        return ArtifactSpec("probes", name, STAGE, PROBE_VERSION, probing, own, judge.warnings if judge else ())

    before = probe(0)
    previous = initial.parents("previous policy")
    rounds: list[OnlineRound] = []
    for number in range(1, online.rounds + 1):
        name = f"{config.name}-round-{number:02d}"
        seed = int(content_id("round", str(config.seed), str(number)), 16) % 2**32
        sampling = {
            **{**answering, "seed": seed, "speeches_per_round": online.speeches_per_round},
            "candidates_per_speech": online.candidates_per_speech,
        }
        candidates = ArtifactSpec("candidates", name, STAGE, VERSION, sampling, (speeches, *previous))
        answered = (candidates.as_parent("candidates"), speeches)
        scores = ArtifactSpec("scores", name, STAGE, VERSION, scoring, (*answered, *scored_by))
        pairs = ArtifactSpec("preferences", name, STAGE, VERSION, selection, (scores.as_parent("scores"), *answered))
        training = {
            **dpo_settings(config, initial.fingerprint),
            "seed": seed,
            "max_steps": online.steps_per_round,
            "round": number,
            "schedule": _schedule(config, online, number),
            "optimizer_state": online.optimizer_state,
            **({"adapter": "continue"} if config.optimisation.lora else {}),
        }
        reference = plan_reference(config, name, initial, pairs.as_parent("pairs"))
        paired = (pairs.as_parent("pairs"), reference.as_parent("reference"), speeches)
        policy = ArtifactSpec(
            "policies", name, STAGE, VERSION, training, (*paired, *previous, *started_from, *scored_by)
        )
        measured = probe(number, policy.as_parent("policy"), before.as_parent("initial probe"))
        rounds.append(OnlineRound(candidates, scores, pairs, reference, policy, measured))
        previous = (policy.as_parent("previous policy"),)
    settings = {"initial_policy": initial.fingerprint}
    outcome = ArtifactSpec("policies", config.name, STAGE, VERSION, settings, (speeches, *started_from, *scored_by))
    return OnlinePlan(before, rounds, outcome)


def _schedule(config: AlignConfig, online: OnlineConfig, number: int) -> dict[str, int]:
    """Return where a round stands in the learning-rate schedule: the steps before it, and those of the whole run."""
    steps = config.planned_steps_per_round
    if config.optimisation.scheduler == "constant" and config.optimisation.warmup_share == 0:
        return {"first_step": 0, "total_steps": steps}  # more rounds change nothing in the earlier ones
    return {"first_step": (number - 1) * steps, "total_steps": online.rounds * steps}


def align_online(run: "OnlineDpo") -> Artifact:
    """Run the rounds of an online run that are pending, and return the policy that it ends with.

    A limit of `stop_when` ends the run after the round that passes it. The result then has the weights of the best
    round, otherwise those of the last.
    """
    online, store = run.online, run.store
    plan = plan_rounds(run)
    run.require_permitted(plan)
    finished: list[FinishedRound] = []
    probes = [run.measure(plan, 0)]
    reason = ""
    for number, planned in enumerate(plan.rounds, start=1):
        if store.find(planned.policy) is None:
            run.restore(plan, number - 1, goes_on=True)
            for spec, build in (
                (planned.candidates, run.sample),
                (planned.scores, run.score),
                (planned.pairs, run.pair),
                (planned.reference, run.compute_reference),
                (planned.policy, run.train),
            ):
                store.make(spec, build)
                run.session.cancel.raise_if_cancelled(spec.ref)
        elif online.keep == "all" or store.find(planned.probe) is None:
            run.restore(plan, number, goes_on=False)
        policy = store.make(planned.policy, run.train)
        probes.append(run.measure(plan, number))
        reason = reason_to_stop(probes, online.stop_when)
        finished.append(FinishedRound(policy, probes[-1], reason))
        note(f"round {number} of {online.rounds}: {_summary(probes[-1])}")
        best = best_round(probes, online.stop_when)
        run.drop_superseded([each.policy for each in finished], best)
        if reason:
            break
    best = best_round(probes, online.stop_when)
    result_of = best if reason else len(finished)
    for number in {best, result_of}:  # a run with other limits, or of more rounds, may have kept others
        run.restore(plan, number, goes_on=False)
        finished[number - 1] = finished[number - 1]._replace(
            policy=store.make(plan.rounds[number - 1].policy, run.train)
        )
    spec = plan.result(len(finished), result_of)
    result = store.make(spec, lambda writer: run.finish(writer, finished, probes[0], best))
    if not reason:  # after a limit the run can go on with others
        run.drop_superseded([each.policy for each in finished], best, ended=True)
    for warning in result.warnings if reason else ():
        note(warning)
    return result


class FinishedRound(NamedTuple):
    """A round's policy, what its probe measured, and which limit it passed, empty for none."""

    policy: Artifact
    probe: ProbeMetrics
    stop: str


def _summary(probe: ProbeMetrics) -> str:
    quality = probe.text_quality
    rate = "" if probe.win_rate is None else f", win rate {probe.win_rate.estimate:.1%}"
    signs = f"{quality.length_words.mean:.0f} words, {quality.unfinished_rate.estimate:.1%} unfinished"
    return f"reward {probe.reward.mean:+.3f}, KL {probe.kl.per_answer:.2f} nats per answer, {signs}{rate}"


RewardFunction = Callable[[Sequence[Speech], Sequence[Candidate]], list[RewardScore]]
"""Scores candidates, in their order; some of them may be left out."""


@dataclass(frozen=True)
class OnlineDpo:
    """An online DPO run: its methods build the artifacts of a round, and keep or restore those of earlier ones.

    `rewards` scores the candidates in place of the reward model, say by a known function of the text.
    """

    config: AlignConfig
    online: OnlineConfig
    session: Session
    rewards: RewardFunction | None = None

    @property
    def store(self) -> Store:
        """The store of the session."""
        return self.session.store

    def open_judge(self, config: JudgeConfig) -> Judge:
        """Return the judge of the probes."""
        share = config.max_missing_share
        return open_judge(config, self.session, "comparing probe answers", may_wait=True, max_missing_share=share)

    def expected_calls(self) -> str:
        """Return how many calls the judge of the probes may get, for a dry run."""
        plan, probe = plan_rounds(self), self.online.probe
        if self.store.find(plan.expected(self.store, self.online.stop_when)[1]) is not None:
            return "nothing pending"
        first, later = 2 * probe.speeches, 2 * probe.speeches * (probe.draws + 1)
        return f"up to {first} calls before the first and {later} after each of {self.online.rounds} rounds"

    def require_permitted(self, plan: OnlinePlan) -> None:
        """Check the endpoints of the judge before anything long begins.

        Raises:
            ConfigError: restricted text would leave this machine, or an endpoint cannot be used.
        """
        judge = self.online.probe.judge
        if judge is None:
            return
        speeches = self.store.open(parent_in(plan.outcome.parents, "speeches", plan.outcome.ref))
        keep_restricted_text_here(judge.endpoints, data_classes(speeches))
        require_usable({f"online.probe.{name}": each for name, each in judge.named_endpoints.items()}, self.store)

    def restore(self, plan: OnlinePlan, number: int, *, goes_on: bool) -> None:
        """Train a round again whose weights were dropped, or its optimizer state if another one `goes_on` from it.

        The rounds that it goes on from itself are restored first.
        """
        found = self.store.find(plan.rounds[number - 1].policy) if number else None
        dropped = found.dropped if found is not None else ()
        needs_optimizer = goes_on and self.online.optimizer_state == "continue"
        if any(needs_optimizer or not name.startswith(f"{OPTIMIZER}/") for name in dropped):
            self.restore(plan, number - 1, goes_on=True)
            spec = plan.rounds[number - 1].policy
            note(f"{spec.ref} is trained again: files that are needed were dropped")
            self.store.make(spec, self.train, whole=True)

    def drop_superseded(self, policies: Sequence[Artifact], best: int, *, ended: bool = False) -> None:
        """Drop the optimizer states that no round goes on from and, unless all are kept, weights of superseded rounds.

        Those of the best round and of the last one stay, and all adapters.
        """
        for number, each in enumerate(policies, start=1):
            policy = self.store.open_at(each.folder)  # it may have been restored since
            is_last = number == len(policies)
            is_kept = self.online.keep == "all" or is_last or number == best
            drop_superseded(policy, weights=not is_kept, optimizer=ended or not is_last)

    def measure(self, plan: OnlinePlan, number: int) -> ProbeMetrics:
        """Return the probe after a round, or that of the initial policy for 0; a new one goes to the tracker."""
        spec = plan.rounds[number - 1].probe if number else plan.initial_probe
        is_new = self.store.find(spec) is None
        metrics = ProbeMetrics.model_validate(self.store.make(spec, self.probe).metrics)
        tracker = self.config.optimisation.tracker
        if is_new and tracker != "none":
            run = f"{self.config.name}-{plan.rounds[0].policy.id[:SHORT_ID]}"
            track(tracker, run, dict(_numbers("probe", metrics.model_dump())), number)
        return metrics

    def sample(self, writer: ArtifactWriter) -> None:
        """Have the policy answer the round's speeches."""
        seed = int(writer.spec.settings["seed"])
        speeches = sample_by_hash(self._speeches(writer, "train"), self.online.speeches_per_round, "round", seed)
        sampled = self._answers(writer, speeches, self.online.candidates_per_speech, seed, "previous policy")
        candidates = [each.candidate for each in sampled]
        write_candidates(writer, candidates)
        quality = measure_text_quality(candidates)
        writer.write_metrics({"speeches": len(speeches), "text_quality": asdict(quality)})

    def score(self, writer: ArtifactWriter) -> None:
        """Have the reward model score every answer that has a text."""
        candidates = read_candidates(self.store.open(writer.parent("candidates")))
        scores = self._rewards(writer, self._speeches(writer, "train"), candidates)
        write_scores(writer, scores)
        writer.write_metrics({"scored": len(scores), "reward": _mean_and_spread(scores)})

    def pair(self, writer: ArtifactWriter) -> None:
        """Pair the highest answer to each speech, of the finished ones under no veto, with the one that ranks lowest.

        Raises:
            ConfigError: a veto is on a principle for which the reward model has no head.
            DataQualityError: no speech gives a pair.
        """
        scores = {each.candidate_id: each for each in read_scores(self.store.open(writer.parent("scores")))}
        speeches = {each.speech.id: each.speech for each in read_speeches(self.store.open(writer.parent("speeches")))}
        unknown = sorted(set(self.online.vetoes).difference(*(each.principles for each in scores.values())))
        if unknown:
            raise ConfigError(
                f"the reward model has no head for {', '.join(unknown)}",
                where="online.vetoes",
                remedy="name its principles, or train it with heads: principles",
            )
        ranked: dict[str, list[ScoredCandidate]] = {}
        left_out: Counter[str] = Counter()
        for candidate in read_candidates(self.store.open(writer.parent("candidates"))):
            group = ranked.setdefault(candidate.speech_id, [])
            if not candidate.text:
                left_out["empty"] += 1
            elif not candidate.finished and self.online.unfinished == "leave_out":
                left_out["unfinished"] += 1
            else:
                score = selection_score(candidate, scores[candidate.id], self.online)
                group.append(ScoredCandidate(candidate, score, scores[candidate.id].principles))
        for speech_id, group in ranked.items():
            ranked[speech_id] = kept = self._with_eligible_best(group)
            left_out.update("vetoed" if each.candidate.finished else "unfinished" for each in group if each not in kept)
        pairing = pair_extremes([(speeches[each], group) for each, group in ranked.items()], PairingRule())
        if not pairing.pairs:
            raise DataQualityError(
                f"a round ends without a pair: {counted(pairing.dropped)}; left out: {counted(left_out)}",
                where=writer.spec.ref,
                remedy="sample at a higher temperature, or let answers finish with a larger max_new_tokens",
            )
        write_pairs(writer, "train", pairing.pairs, ())
        writer.write_metrics({"pairing": pairing.as_dict(), "left_out": dict(+left_out)})

    def _with_eligible_best(self, group: Sequence[ScoredCandidate]) -> list[ScoredCandidate]:
        """Return the answers to one speech without the unfinished and vetoed ones that rank above all others."""

        def is_eligible(each: ScoredCandidate) -> bool:
            vetoes = self.online.vetoes.items()
            return each.candidate.finished and all(each.ratings[name] >= veto for name, veto in vetoes)

        best = max((each.score for each in group if is_eligible(each)), default=-math.inf)
        return [each for each in group if each.score < best or is_eligible(each)]

    def compute_reference(self, writer: ArtifactWriter) -> None:
        """Compute what the reference, which is the initial policy, gives to the round's answers."""
        compute_reference(self.config, self.store, writer, self.session.cancel)

    def train(self, writer: ArtifactWriter) -> None:
        """Train on the round's pairs, from the policy of the round before."""
        source = self.store.open(writer.parent("pairs"))
        pairs = read_pairs(source, "train")
        training = self._train(writer, pairs)
        writer.write_metrics({"training": training, "pairs": len(pairs)})
        write_policy_card(self.config, self.store, writer, source)

    def probe(self, writer: ArtifactWriter) -> None:
        """Measure a policy's new answers to the probe speeches: reward, text quality, drift, verdict of the judge."""
        held_out = self._speeches(writer, "dev") or self._speeches(writer, "train")
        speeches = sample_by_hash(held_out, self.online.probe.speeches, "round", self.config.seed)
        sampled = self._answers(writer, speeches, self.online.probe.draws, self.config.seed, "policy")
        candidates = [each.candidate for each in sampled]
        write_candidates(writer, candidates)
        scores = self._rewards(writer, speeches, candidates)
        write_scores(writer, scores)
        is_initial = all(each.role != "policy" for each in writer.spec.parents)
        drift = self._drift(writer, speeches, sampled, is_initial)
        against, ranked, spend = self._judged(writer, speeches, candidates, scores, is_initial)
        writer.write_metrics(
            {
                "reward": _mean_and_spread(scores),
                "text_quality": asdict(measure_text_quality(candidates)),
                "questions_per_answer": statistics.fmean(questions(each.text) for each in candidates),
                **drift,
                "win_rate": self._rate(against),
                "agreement": self._rate(ranked),
                "crisis": self._crisis({each.id for each in speeches if each.crisis}, candidates, scores, against),
                **spend,
            }
        )

    def _crisis(
        self,
        speech_ids: Collection[str],
        candidates: Sequence[Candidate],
        scores: Sequence[RewardScore],
        against: Sequence[BothOrders],
    ) -> dict[str, Any] | None:
        """Return the figures of the answers to speeches about crisis, None if there are no such answers."""
        answers = {each.id: each for each in candidates if each.speech_id in speech_ids}
        rewards = [each.reward for each in scores if each.candidate_id in answers]
        if not rewards:
            return None
        unfinished = measure_text_quality(list(answers.values())).unfinished_rate
        return {
            "answers": len(rewards),
            "reward": statistics.fmean(rewards),
            "unfinished_rate": asdict(unfinished),
            "win_rate": self._rate([each for each in against if each.speech_id in speech_ids]),
        }

    def _drift(
        self, writer: ArtifactWriter, speeches: Sequence[Speech], sampled: Sequence[SampledAnswer], is_initial: bool
    ) -> dict[str, Any]:
        by_id = {each.id: each for each in speeches}
        answers = [(by_id[each.candidate.speech_id], each) for each in sampled]
        own = self._token_statistics(self._policy(writer, "policy"), answers, writer.work)
        reference = own if is_initial else self._token_statistics(self._policy(writer, ""), answers, writer.work)
        return {
            "kl": kl_estimates([each.logps for each in own], [each.logps for each in reference]),
            "entropy": statistics.fmean(entropy for each in own for entropy in each.entropies),
        }

    def _judged(
        self,
        writer: ArtifactWriter,
        speeches: Sequence[Speech],
        candidates: Sequence[Candidate],
        scores: Sequence[RewardScore],
        is_initial: bool,
    ) -> tuple[list[BothOrders], list[BothOrders], dict[str, Any]]:
        """Return comparisons with the initial policy's answers, those of high with low reward, and their cost."""
        if self.online.probe.judge is None:
            return [], [], {}
        judge = self.open_judge(self.online.probe.judge)
        by_id = {each.id: each for each in speeches}
        before = list[Candidate]()
        if not is_initial:
            before = read_candidates(self.store.open(writer.parent("initial probe")))
        others = {(each.speech_id, each.draw): each for each in before}
        drawn = [(each, others.get((each.speech_id, each.draw))) for each in candidates]
        compared = [(own, other) for own, other in drawn if other is not None]
        tasks = [ComparisonTask(by_id[own.speech_id], own, other) for own, other in compared]
        rewards = {each.candidate_id: each.reward for each in scores}
        for speech in speeches:
            own = [each for each in candidates if each.speech_id == speech.id and each.id in rewards]
            own.sort(key=lambda each: rewards[each.id])
            if own and rewards[own[-1].id] > rewards[own[0].id]:
                tasks.append(ComparisonTask(speech, own[-1], own[0]))
        both = [*tasks, *(ComparisonTask(each.speech, each.second, each.first) for each in tasks)]
        with progress("comparing probe answers, both orders", len(both), lambda: judge_status(judge)) as advance:
            comparisons = judge.compare(both, advance)
        require_judged(comparisons, "comparisons", self.online.probe.judge.max_missing_share)
        pairs = [BothOrders(*each) for each in zip(comparisons[: len(tasks)], comparisons[len(tasks) :], strict=True)]
        against, ranked = pairs[: len(compared)], pairs[len(compared) :]
        ordered = [
            OrderedComparison(comparison, order, own.draw)
            for (own, _), each in zip(compared, against, strict=True)
            for order, comparison in (("forward", each.forward), ("backward", each.backward))
        ]
        write_comparisons(writer, ordered, (OVERALL, *judge.principles))
        return against, ranked, judge_spending(judge)

    def _rate(self, compared: Sequence[BothOrders]) -> dict[str, float] | None:
        return rate_if_known([POINTS[each.outcome()] for each in compared], [each.speech_id for each in compared])

    def finish(
        self, writer: ArtifactWriter, finished: Sequence[FinishedRound], initial: ProbeMetrics, best: int
    ) -> None:
        """Link the weights of the round that the run ends with, and gather what every round measured."""
        number = int(writer.spec.settings["weights_of_round"])
        source = finished[number - 1].policy
        for name in source.kept_files:
            if name not in (METRICS, CARD) and not name.startswith((f"{OPTIMIZER}/", f"{ADAPTER}/")):
                link_or_copy(source.file(name), writer.file(name))
        if reason := finished[-1].stop:
            writer.warnings.append(
                f"Online DPO ended after round {len(finished)} of {self.online.rounds}: {reason}. This is the policy "
                f"of round {number}, the best by the {'reward' if self.online.probe.judge is None else 'judge'}."
            )
        writer.notes["best"] = finished[best - 1].policy.as_parent("best")._asdict()
        rounds = [_round_row(each) for each in finished]
        own = {name: source.metrics[name] for name in ("training", "pairs")}
        writer.write_metrics({**own, "rounds": rounds, "initial": initial.model_dump(), "best": best})
        write_policy_card(self.config, self.store, writer, finished[-1].policy)

    def _train(self, writer: ArtifactWriter, pairs: Sequence[PreferencePair]) -> dict[str, Any]:
        from psychocounsel.training.trainer import RunPosition  # imports torch

        settings = writer.spec.settings
        continues, has_adapter = self.online.optimizer_state == "continue", self.config.optimisation.lora is not None
        before = None if settings["round"] == 1 else self.store.open(writer.parent("previous policy"))
        position = RunPosition(
            **settings["schedule"],
            optimizer_from=before.file(OPTIMIZER) if continues and before else None,
            optimizer_to=writer.folder / OPTIMIZER if continues else None,
            adapter_from=before.file(ADAPTER) if has_adapter and before else None,
            adapter_to=writer.folder / ADAPTER if has_adapter else None,
        )
        # One adapter goes through all rounds. The weights below it are the initial policy's, as the reference's are.
        own = self._policy(writer, "" if has_adapter else "previous policy")
        steps, cancel = self.online.steps_per_round, self.session.cancel
        return train_policy(self.config, self.store, own, pairs, writer, cancel, max_steps=steps, position=position)

    def _policy(self, writer: ArtifactWriter, role: str) -> Policy:
        """Return the parent with this role, or else the initial policy."""
        for parent in writer.spec.parents:
            if parent.role == role:
                return ModelReference(parent, {}, None).policy(self.store)
        return resolve_model(self.store, self.config.policy, POLICY_KINDS).policy(self.store)

    def _speeches(self, writer: ArtifactWriter, split: str) -> list[Speech]:
        rows = read_speeches(self.store.open(writer.parent("speeches")))
        return [each.speech for each in rows if each.split == split]

    def _answers(
        self, writer: ArtifactWriter, speeches: Sequence[Speech], per_speech: int, seed: int, role: str
    ) -> list[SampledAnswer]:
        return sample_answers(
            self._policy(writer, role),
            speeches,
            author=AUTHOR,
            per_speech=per_speech,
            sampling=self.online.sampling,
            sampler=self.online.sampler,
            chat=self.config.chat,
            seed=seed,
            work=writer.work,
            session=self.session,
            launch=self.config.launch,
        )

    def _token_statistics(
        self, policy: Policy, answers: Sequence[tuple[Speech, SampledAnswer]], work: Path
    ) -> "list[TokenStatistics]":
        from psychocounsel.training.drift import token_statistics  # imports torch
        from psychocounsel.training.launch import launch_of

        launch = launch_of(self.config.launch)
        shared = {"policy": policy, "chat": self.config.chat, "batch_size": self.online.sampling.batch_size}
        shards = [{**shared, "answers": part} for part in launch.split(answers)]
        with step_progress("measuring drift") as report:
            return launch.run_shards(token_statistics, shards, work=work, cancel=self.session.cancel, progress=report)

    def _rewards(
        self, writer: ArtifactWriter, speeches: Sequence[Speech], candidates: Sequence[Candidate]
    ) -> list[RewardScore]:
        """Return the reward of every candidate that has a text."""
        from psychocounsel.training.launch import launch_of  # imports torch
        from psychocounsel.training.reward import Exchange, score_in_jobs

        if self.rewards is not None:
            return self.rewards(speeches, candidates)
        answers = [each for each in candidates if each.text]
        if not answers:
            raise DataQualityError(
                "the policy gave only empty answers",
                where=self.config.name,
                remedy="check that the model is instruction-tuned and has a chat template",
            )
        model = resolve_model(self.store, self.online.reward_model, ("reward-models",))
        chat = trained_chat(self.store, model)  # its own, whatever the policy's is
        by_id = {speech.id: speech for speech in speeches}
        asked = [by_id[each.speech_id] for each in answers]
        exchanges = [Exchange(one.text, each.text, one.history) for one, each in zip(asked, answers, strict=True)]
        launch, size = launch_of(self.config.launch), self.online.sampling.batch_size
        with step_progress("scoring answers") as report:
            run = {"work": writer.work, "cancel": self.session.cancel, "progress": report}
            scored = score_in_jobs(launch, model.policy(self.store), chat, exchanges, size, **run)
        return [
            RewardScore(candidate.id, each.raw, each.reward, tokens, each.principles)
            for candidate, (each, tokens) in zip(answers, scored, strict=True)
        ]


def selection_score(candidate: Candidate, score: RewardScore, online: OnlineConfig) -> float:
    """Return the normalised reward less the penalties for an unfinished and for a long answer."""
    unfinished = 0.0 if candidate.finished else online.unfinished_penalty
    return score.reward - unfinished - online.length_penalty_per_100_tokens * score.tokens / 100


def _mean_and_spread(scores: Sequence[RewardScore]) -> dict[str, float]:
    rewards = [score.reward for score in scores]
    return {"mean": statistics.fmean(rewards), "std": statistics.pstdev(rewards), "n": len(rewards)}


def _numbers(name: str, value: Any) -> Iterator[tuple[str, float]]:
    """Yield the numbers in nested mappings, with the keys that lead to each of them joined by slashes."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _numbers(f"{name}/{key}", inner)
    elif isinstance(value, int | float):
        yield name, float(value)


def _round_row(finished: FinishedRound) -> dict[str, Any]:
    """Return a row of the metrics of an online run."""
    metrics = finished.policy.metrics
    training: dict[str, Any] = metrics["training"]
    logged = training["history"][-1]
    return {
        "probe": finished.probe.model_dump(),
        "pairs": metrics["pairs"],
        "trained_on": training["lengths"]["kept"],
        "logps_chosen": logged["logps_chosen"],
        "logps_rejected": logged["logps_rejected"],
        "stop": finished.stop,
    }
