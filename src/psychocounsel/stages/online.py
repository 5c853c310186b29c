"""Online DPO: rounds of sampling, scoring, pairing and training, each followed by a probe.

In a round the policy answers speeches, the reward model scores the answers, the best and the worst answer to a speech
become a pair, and DPO trains on the pairs. A probe then measures the new policy, and may end the run. Candidates,
scores, pairs, log-probabilities of the reference, policy and probe of a round are artifacts, so a killed run resumes at
the artifact and checkpoint where it was. The reference stays the initial policy (arXiv 2502.19731).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

from psychocounsel.config.components import JudgeConfig, ResponderConfig
from psychocounsel.config.schema import AlignConfig, OnlineConfig, StopConfig
from psychocounsel.errors import DataQualityError, counted
from psychocounsel.evaluation.probes import best_round, reason_to_stop
from psychocounsel.evaluation.text_quality import measure_text_quality
from psychocounsel.judging.judge import Judge
from psychocounsel.judging.judges import judge_spending, open_judge
from psychocounsel.llm.endpoints import keep_restricted_text_here, require_usable
from psychocounsel.llm.session import Session
from psychocounsel.reporting.console import note
from psychocounsel.stages.dpo import (
    INITIAL_POLICY,
    STAGE,
    VERSION,
    compute_reference,
    dpo_settings,
    plan_reference,
    train_policy,
    write_policy_card,
)
from psychocounsel.stages.jobs import Jobs
from psychocounsel.stages.probe import Probe, Verdicts, mean_and_spread
from psychocounsel.stages.respond import data_classes, sample_answers
from psychocounsel.stages.selection import select_pairs, selection_settings
from psychocounsel.store.artifacts import (
    ADAPTER,
    CARD,
    METRICS,
    OPTIMIZER,
    SHORT_ID,
    Artifact,
    ArtifactSpec,
    ArtifactWriter,
    Kind,
    Parent,
    drop_superseded,
    parent_in,
)
from psychocounsel.store.files import link_or_copy
from psychocounsel.store.metrics import ProbeMetrics
from psychocounsel.store.references import POLICY_KINDS, model_of, resolve_model, resolve_parent, trained_chat
from psychocounsel.store.schemas import (
    RewardScore,
    read_candidates,
    read_pairs,
    read_scores,
    speeches_by_id,
    speeches_in,
    write_candidates,
    write_comparisons,
    write_pairs,
    write_scores,
)
from psychocounsel.store.store import Store, flatten
from psychocounsel.training.tracking import track
from psychocounsel.types import (
    OVERALL,
    Candidate,
    Policy,
    SampledAnswer,
    Speech,
    content_id,
    sample_by_hash,
)

if TYPE_CHECKING:
    from psychocounsel.training.drift import TokenStatistics

AUTHOR = "policy"
"""Of the answers of every round: a round's name is no part of an id."""
PROBE_VERSION = 6
PREVIOUS_POLICY = "previous policy"
REWARD_MODEL = "reward model"


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

    def result(self, last: int, weights_of: int, reason: str = "") -> ArtifactSpec:
        """Return the policy that a run ends with after round `last`, with the weights of a round.

        `reason` is that of a run that a limit ends, which its result states.
        """
        rounds = self.rounds[:last]
        probes = [each.probe.as_parent(f"probe {number}") for number, each in enumerate(rounds, start=1)]
        own = (rounds[-1].policy.as_parent("last round"), self.initial_probe.as_parent("initial probe"), *probes)
        settings = {**self.outcome.settings, "weights_of_round": weights_of} | ({"stop": reason} if reason else {})
        return replace(self.outcome, settings=settings, parents=(*own, *self.outcome.parents))

    def expected(self, store: Store, limits: StopConfig) -> tuple[list[OnlineRound], ArtifactSpec]:
        """Return the rounds that a run has, as far as probes in the store do not end it earlier, and its result."""
        probes: list[ProbeMetrics] = []
        for spec in (self.initial_probe, *(each.probe for each in self.rounds)):
            found = store.find(spec)
            if found is None:
                break
            probes.append(ProbeMetrics.model_validate(found.metrics))
            if len(probes) > 1 and (reason := reason_to_stop(probes, limits)):
                last = len(probes) - 1
                return self.rounds[:last], self.result(last, best_round(probes, limits), reason)
        return self.rounds, self.result(len(self.rounds), len(self.rounds))


class _Planner:
    """Plans the rounds of a run. Only what affects a step is part of its id."""

    def __init__(self, run: "OnlineDpo") -> None:
        config, online, store = run.config, run.online, run.store
        self.config, self.online = config, online
        self.initial = resolve_model(store, config.policy, POLICY_KINDS)
        reward_model = resolve_model(store, online.reward_model, ("reward-models",))
        self.speeches = resolve_parent(store, online.speeches, "speeches", "speeches")
        self.judge = None if online.probe.judge is None else run.open_judge(online.probe.judge)
        self.scored_by = reward_model.parents(REWARD_MODEL)
        self.models = (*self.initial.parents(INITIAL_POLICY), *self.scored_by)
        self.answering = {
            "sampling": online.sampling.fingerprint(),
            "sampler": online.sampler.fingerprint(),
            "chat": config.chat.fingerprint(),
            "policy": self.initial.fingerprint,
        }
        self.scoring = {"reward_model": reward_model.fingerprint}

    def plan(self) -> OnlinePlan:
        """Return the specs of all rounds."""
        before = self._probe(0)
        previous = self.initial.parents(PREVIOUS_POLICY)
        rounds: list[OnlineRound] = []
        for number in range(1, self.online.rounds + 1):
            rounds.append(self._round(number, previous, before))
            previous = (rounds[-1].policy.as_parent(PREVIOUS_POLICY),)
        settings = {"initial_policy": self.initial.fingerprint}
        outcome = self._spec("policies", self.config.name, settings, (self.speeches, *self.models))
        return OnlinePlan(before, rounds, outcome)

    def _round(self, number: int, previous: tuple[Parent, ...], before: ArtifactSpec) -> OnlineRound:
        """Return the specs of a round, after the `previous` policy; `before` is the probe of the initial one."""
        online, speeches, name = self.online, self.speeches, self._name_of(number)
        seed = int(content_id("round", str(self.config.seed), str(number)), 16) % 2**32
        sampling = {
            **{**self.answering, "seed": seed, "speeches_per_round": online.speeches_per_round},
            "candidates_per_speech": online.candidates_per_speech,
        }
        candidates = self._spec("candidates", name, sampling, (speeches, *previous))
        answered = (candidates.as_parent("candidates"), speeches)
        scores = self._spec("scores", name, self.scoring, (*answered, *self.scored_by))
        selected = (scores.as_parent("scores"), *answered)
        pairs = self._spec("preferences", name, selection_settings(online), selected)
        reference = plan_reference(self.config, name, self.initial, pairs.as_parent("pairs"))
        paired = (pairs.as_parent("pairs"), reference.as_parent("reference"), speeches)
        training = {
            **dpo_settings(self.config, self.initial.fingerprint),
            "seed": seed,
            "max_steps": online.steps_per_round,
            "round": number,
            "schedule": _schedule(self.config, online, number),
            "optimizer_state": online.optimizer_state,
            **({"adapter": "continue"} if self.config.optimisation.lora else {}),
        }
        policy = self._spec("policies", name, training, (*paired, *previous, *self.models))
        probe = self._probe(number, policy.as_parent("policy"), before.as_parent("initial probe"))
        return OnlineRound(candidates, scores, pairs, reference, policy, probe)

    def _probe(self, number: int, *parents: Parent) -> ArtifactSpec:
        online, judge = self.online, self.judge
        settings = {
            **{**self.answering, **self.scoring, "seed": self.config.seed},
            **{"speeches": online.probe.speeches, "draws": online.probe.draws},
            "judge": judge and dict(judge.fingerprint),
        }
        own = (self.speeches, *self.models, *parents)
        warnings = judge.warnings if judge else ()
        return ArtifactSpec("probes", self._name_of(number), STAGE, PROBE_VERSION, settings, own, warnings)

    def _name_of(self, number: int) -> str:
        return f"{self.config.name}-round-{number:02d}"

    def _spec(self, kind: Kind, name: str, settings: dict[str, Any], parents: tuple[Parent, ...]) -> ArtifactSpec:
        return ArtifactSpec(kind, name, STAGE, VERSION, settings, parents)


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
    plan, limits = run.plan, run.online.stop_when
    run.require_permitted()
    probes = [run.measure(0)]
    last, best, reason = 0, 0, ""
    while last < len(plan.rounds) and not reason:
        last += 1
        run.make_round(last)
        probes.append(run.measure(last))
        best, reason = best_round(probes, limits), reason_to_stop(probes, limits)
        note(f"round {last} of {len(plan.rounds)}: {_summary(probes[-1])}")
        run.drop_superseded(last, best)
    weights_of = best if reason else last
    for number in {best, weights_of}:  # a run with other limits, or of more rounds, may have kept others
        run.with_weights(number)
    spec = plan.result(last, weights_of, reason)
    result = run.store.make(spec, lambda writer: run.finish(writer, probes, best, reason))
    run.drop_superseded(last, best, ended=not reason)  # after a limit the run can go on with others
    for warning in result.warnings if reason else ():
        note(warning)
    return result


def _summary(probe: ProbeMetrics) -> str:
    quality = probe.text_quality
    rate = "" if probe.win_rate is None else f", win rate {probe.win_rate.estimate:.1%}"
    signs = f"{quality.length_words.mean:.0f} words, {quality.unfinished_rate.estimate:.1%} unfinished"
    return f"reward {probe.reward.mean:+.3f}, KL {probe.kl.per_answer:.2f} nats per answer, {signs}{rate}"


RewardFunction = Callable[[Sequence[Speech], Sequence[Candidate]], list[RewardScore]]
"""Scores candidates, in their order; some of them may be left out."""


@dataclass(frozen=True)
class OnlineDpo:
    """An online DPO run: what it plans, its phases, which build artifacts of the plan, and which weights it keeps.

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

    @cached_property
    def plan(self) -> OnlinePlan:
        """What the run creates."""
        return _Planner(self).plan()

    def open_judge(self, config: JudgeConfig) -> Judge:
        """Return the judge of the probes."""
        share = config.max_missing_share
        return open_judge(config, self.session, "comparing probe answers", may_wait=True, max_missing_share=share)

    def probe_speeches(self, corpus: Artifact) -> list[Speech]:
        """Return the held-out speeches that every probe answers: of the dev split or, where that is empty, of train."""
        held_out = speeches_in(corpus, "dev") or speeches_in(corpus, "train")
        return sample_by_hash(held_out, self.online.probe.speeches, "round", self.config.seed)

    def require_permitted(self) -> None:
        """Check the endpoints of the judge before anything long begins.

        Raises:
            ConfigError: restricted text would leave this machine, or an endpoint cannot be used.
        """
        judge, outcome = self.online.probe.judge, self.plan.outcome
        if judge is None:
            return
        speeches = self.store.open(parent_in(outcome.parents, "speeches", outcome.ref))
        keep_restricted_text_here(judge.endpoints, data_classes(speeches))
        require_usable({f"online.probe.{name}": each for name, each in judge.named_endpoints.items()}, self.store)

    def make_round(self, number: int) -> None:
        """Build the artifacts of a round that are pending, up to its policy; with `keep: all`, dropped weights too."""
        planned = self.plan.rounds[number - 1]
        if self.store.find(planned.policy) is None:
            phases = (self.sample, self.score, self.pair, self.compute_reference, self.train)
            for spec, build in zip(planned, phases, strict=False):  # the probe comes later
                self.store.make(spec, build)
                self.session.cancel.raise_if_cancelled(spec.ref)
        if self.online.keep == "all":
            self.with_weights(number)

    def measure(self, number: int) -> ProbeMetrics:
        """Return the probe after a round, or that of the initial policy for 0; a new one goes to the tracker."""
        from psychocounsel.training.runtime import free_memory  # imports torch

        spec = self.plan.rounds[number - 1].probe if number else self.plan.initial_probe
        is_new = self.store.find(spec) is None
        metrics = ProbeMetrics.model_validate(self.store.make(spec, self.probe).metrics)
        if is_new:
            free_memory()  # a judge on this machine is no longer used, and the next round needs the room
        tracker = self.config.optimisation.tracker
        if is_new and tracker != "none":
            run = f"{self.config.name}-{self.plan.rounds[0].policy.id[:SHORT_ID]}"
            figures = flatten(metrics.model_dump(), "probe").items()
            values = {name.replace(".", "/"): float(each) for name, each in figures if isinstance(each, int | float)}
            track(tracker, run, values, number)
        return metrics

    # --- Which weights are kept --------------------------------------------------------------------------------------

    def policy_of(self, number: int) -> Artifact:
        """Return the policy of a round, of which files may have been dropped."""
        return self.store.make(self.plan.rounds[number - 1].policy, self.train)

    def with_weights(self, number: int, *, with_optimizer: bool = False) -> Artifact:
        """Return the policy of a round; it is trained again if its weights, or the wanted optimizer, were dropped."""
        spec, policy = self.plan.rounds[number - 1].policy, self.policy_of(number)
        if any(with_optimizer or not name.startswith(f"{OPTIMIZER}/") for name in policy.dropped):
            note(f"{spec.ref} is trained again: files that are needed were dropped")
            policy = self.store.make(spec, self.train, whole=True)
        return policy

    def drop_superseded(self, last: int, best: int, *, ended: bool = False) -> None:
        """Drop the optimizer states that no round goes on from and, unless all are kept, weights of superseded rounds.

        Those of the best round and of the last one stay, and all adapters.
        """
        for number in range(1, last + 1):
            is_kept = self.online.keep == "all" or number in (best, last)
            drop_superseded(self.policy_of(number), weights=not is_kept, optimizer=ended or number != last)

    # --- Phases ------------------------------------------------------------------------------------------------------

    def sample(self, writer: ArtifactWriter) -> None:
        """Have the policy answer the round's speeches."""
        seed = int(writer.spec.settings["seed"])
        speeches = sample_by_hash(self._speeches(writer), self.online.speeches_per_round, "round", seed)
        policy = self._weights(writer, PREVIOUS_POLICY)
        sampled = self._answers(writer, policy, speeches, self.online.candidates_per_speech, seed)
        candidates = [each.candidate for each in sampled]
        write_candidates(writer, candidates)
        quality = measure_text_quality(candidates)
        writer.write_metrics({"speeches": len(speeches), "text_quality": quality})

    def score(self, writer: ArtifactWriter) -> None:
        """Have the reward model score every answer that has a text."""
        candidates = read_candidates(self.store.open(writer.parent("candidates")))
        scores = self._rewards(writer, self._speeches(writer), candidates)
        write_scores(writer, scores)
        writer.write_metrics({"scored": len(scores), "reward": mean_and_spread(scores)})

    def pair(self, writer: ArtifactWriter) -> None:
        """Pair the answers as the selection rule says.

        Raises:
            ConfigError: a veto is on a principle for which the reward model has no head.
            DataQualityError: no speech gives a pair.
        """
        speeches = speeches_by_id(self.store.open(writer.parent("speeches")))
        candidates = read_candidates(self.store.open(writer.parent("candidates")))
        scores = {each.candidate_id: each for each in read_scores(self.store.open(writer.parent("scores")))}
        pairing, left_out = select_pairs(speeches, candidates, scores, self.online)
        if not pairing.pairs:
            raise DataQualityError(
                f"a round ends without a pair: {counted(pairing.dropped)}; left out: {counted(left_out)}",
                where=writer.spec.ref,
                remedy="sample at a higher temperature, or let answers finish with a larger max_new_tokens",
            )
        write_pairs(writer, "train", pairing.pairs, ())
        writer.write_metrics({"pairing": pairing.as_dict(), "left_out": dict(left_out)})

    def compute_reference(self, writer: ArtifactWriter) -> None:
        """Compute what the reference, which is the initial policy, gives to the round's answers."""
        compute_reference(self.config, self.store, writer, self.session.cancel)

    def train(self, writer: ArtifactWriter) -> None:
        """Train on the round's pairs, from the policy of the round before.

        One adapter goes through all rounds: the weights below it are the initial policy's, as the reference's are.
        """
        from psychocounsel.training.trainer import RunPosition  # imports torch

        number: int = writer.spec.settings["round"]
        continues = self.online.optimizer_state == "continue"
        before = self.with_weights(number - 1, with_optimizer=continues).folder if number > 1 else None
        policy = self._weights(writer, INITIAL_POLICY if self.config.optimisation.lora else PREVIOUS_POLICY)
        position = RunPosition(**writer.spec.settings["schedule"], before=before, continues_optimizer=continues)
        source = self.store.open(writer.parent("pairs"))
        pairs = read_pairs(source, "train")
        how_long = {"max_steps": self.online.steps_per_round, "position": position}
        training = train_policy(self.config, self.store, policy, pairs, writer, self.session.cancel, **how_long)
        writer.write_metrics({"training": training, "pairs": len(pairs)})
        write_policy_card(self.config, self.store, writer, source)

    def probe(self, writer: ArtifactWriter) -> None:
        """Measure a policy's new answers to the probe speeches: reward, text quality, drift, verdict of the judge."""
        online, seed = self.online, self.config.seed
        is_initial = all(each.role != "policy" for each in writer.spec.parents)
        speeches = self.probe_speeches(self.store.open(writer.parent("speeches")))
        policy = self._weights(writer, INITIAL_POLICY if is_initial else "policy")
        sampled = self._answers(writer, policy, speeches, online.probe.draws, seed)
        candidates = [each.candidate for each in sampled]
        probe = Probe(speeches, sampled, self._rewards(writer, speeches, candidates))
        write_candidates(writer, candidates)
        write_scores(writer, probe.scores)
        own = self._token_statistics(writer, policy, probe)
        before = own if is_initial else self._token_statistics(writer, self._weights(writer, INITIAL_POLICY), probe)
        verdicts, spend = Verdicts(), dict[str, Any]()
        if online.probe.judge is not None:
            judge = self.open_judge(online.probe.judge)
            initial = [] if is_initial else read_candidates(self.store.open(writer.parent("initial probe")))
            verdicts = probe.judged(judge, initial, online.probe.judge.max_missing_share)
            write_comparisons(writer, verdicts.rows(), (OVERALL, *judge.principles))
            spend = judge_spending(judge)
        writer.write_metrics({**probe.metrics(own, before, verdicts), **spend})

    def finish(self, writer: ArtifactWriter, probes: Sequence[ProbeMetrics], best: int, reason: str) -> None:
        """Link the weights of the round that the run ends with, and gather what every round measured.

        `probes` are that of the initial policy and those after the rounds; `reason` is why a limit ended the run, if
        one did.
        """
        initial, *measured = probes
        policies = [self.policy_of(number) for number in range(1, len(probes))]
        number = int(writer.spec.settings["weights_of_round"])
        source = policies[number - 1]
        for name in source.kept_files:
            if name not in (METRICS, CARD) and not name.startswith((f"{OPTIMIZER}/", f"{ADAPTER}/")):
                link_or_copy(source.file(name), writer.file(name))
        if reason:
            writer.warnings.append(
                f"Online DPO ended after round {len(measured)} of {self.online.rounds}: {reason}. This is the policy "
                f"of round {number}, the best by the {'reward' if self.online.probe.judge is None else 'judge'}."
            )
        writer.notes["best"] = policies[best - 1].as_parent("best")._asdict()
        rounds: list[dict[str, Any]] = []
        for policy, probe in zip(policies, measured, strict=True):
            training, stop = policy.metrics["training"], reason if policy is policies[-1] else ""
            logged = {name: training["history"][-1][name] for name in ("logps_chosen", "logps_rejected")}
            counts = {"pairs": policy.metrics["pairs"], "trained_on": training["lengths"]["kept"]}
            rounds.append({"probe": probe.model_dump(), **counts, **logged, "stop": stop})
        own = {name: source.metrics[name] for name in ("training", "pairs")}
        writer.write_metrics({**own, "rounds": rounds, "initial": initial.model_dump(), "best": best})
        write_policy_card(self.config, self.store, writer, policies[-1])

    # --- What phases have in common ----------------------------------------------------------------------------------

    def _weights(self, writer: ArtifactWriter, role: str) -> Policy:
        """Return the weights of the parent with this role: those of a round, or the initial ones."""
        ids = {each.id for each in writer.spec.parents if each.role == role}
        for number, each in enumerate(self.plan.rounds, start=1):
            if each.policy.id in ids:
                policy = self.with_weights(number)
                self.store.require_intact(policy)
                return Policy(str(policy.folder))
        return model_of(self.store, writer.spec, role, self.config.policy, POLICY_KINDS).policy(self.store)

    def _speeches(self, writer: ArtifactWriter) -> list[Speech]:
        return speeches_in(self.store.open(writer.parent("speeches")), "train")

    def _answers(
        self, writer: ArtifactWriter, policy: Policy, speeches: Sequence[Speech], per_speech: int, seed: int
    ) -> list[SampledAnswer]:
        config, online = self.config, self.online
        responder = ResponderConfig(
            author=AUTHOR, model=config.policy, sampling=online.sampling, sampler=online.sampler, chat=config.chat
        )
        return sample_answers(policy, responder, speeches, per_speech, seed, writer.work, self.session, config.launch)

    def _jobs(self, writer: ArtifactWriter) -> Jobs:
        return Jobs(self.config.launch, writer, self.session.cancel)

    def _token_statistics(self, writer: ArtifactWriter, policy: Policy, probe: Probe) -> "list[TokenStatistics]":
        from psychocounsel.training.drift import token_statistics  # imports torch

        by_id = {each.id: each for each in probe.speeches}
        answers = [(by_id[each.candidate.speech_id], each) for each in probe.sampled]
        shared = {"policy": policy, "chat": self.config.chat, "batch_size": self.online.sampling.batch_size}
        return self._jobs(writer).run("measuring drift", token_statistics, "answers", answers=answers, **shared)

    def _rewards(
        self, writer: ArtifactWriter, speeches: Sequence[Speech], candidates: Sequence[Candidate]
    ) -> list[RewardScore]:
        """Return the reward of every candidate that has a text."""
        from psychocounsel.training.reward import Exchange  # imports torch

        if self.rewards is not None:
            return self.rewards(speeches, candidates)
        answers = [each for each in candidates if each.text]
        if not answers:
            raise DataQualityError(
                "the policy gave only empty answers",
                where=self.config.name,
                remedy="use a model that is tuned to answer in a chat; one that thinks first needs a larger "
                "sampling.max_new_tokens",
            )
        model = model_of(self.store, writer.spec, REWARD_MODEL, self.online.reward_model, ("reward-models",))
        chat = trained_chat(self.store, model)  # its own, whatever the policy's is
        by_id = {speech.id: speech for speech in speeches}
        asked = [by_id[each.speech_id] for each in answers]
        exchanges = [Exchange(one.text, each.text, one.history) for one, each in zip(asked, answers, strict=True)]
        size = self.online.sampling.batch_size
        scored = self._jobs(writer).score("scoring answers", model.policy(self.store), chat, exchanges, size)
        return [
            RewardScore(candidate.id, each.raw, each.reward, tokens, each.principles)
            for candidate, (each, tokens) in zip(answers, scored, strict=True)
        ]
