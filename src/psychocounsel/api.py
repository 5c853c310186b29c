"""The pipeline from Python: judge answers, score and sample them, measure win rates, read a store.

Everything is a plain call, also where an event loop runs already, as in a notebook: requests to endpoints then run in a
thread of their own while the call waits. From a coroutine that must not wait, call
`await asyncio.to_thread(judge.rate, speech, response)`. Objects may be shared by threads; calls of one object wait for
each other. Errors are those of `psychocounsel.errors`.

A speech is a text, or a `Speech` where the earlier turns of the session are known, as in the pairs of `load_pairs`.
"""

import os
import signal
import threading
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, TypeVar, cast

from psychocounsel.config.components import ChatFormat, JudgeConfig, SamplingConfig
from psychocounsel.config.loading import config_of, load_config
from psychocounsel.config.recipe import STAGES, StageName, stage_config
from psychocounsel.corpus.crisis import mentions_crisis
from psychocounsel.corpus.preferences import read_outside_pairs
from psychocounsel.errors import ConfigError, InputError, counted, did_you_mean
from psychocounsel.evaluation.length_control import length_controlled_rate
from psychocounsel.evaluation.statistics import clustered_rate
from psychocounsel.evaluation.winrate import (
    POINTS,
    BothOrders,
    Outcome,
    Unanswered,
    length_comparisons,
    win_rates,
)
from psychocounsel.judging.judge import ComparisonTask, compare_in_both_orders
from psychocounsel.judging.judges import judge_status, open_judge
from psychocounsel.llm.cancel import cancelled_by_signals
from psychocounsel.llm.runner import ignore_progress, outside_loop
from psychocounsel.llm.session import Session
from psychocounsel.reporting.tables import with_interval
from psychocounsel.stages import recipe
from psychocounsel.stages.chat import ChatOptions, open_scorer, responder_of
from psychocounsel.stages.respond import Responder, author_seed
from psychocounsel.stages.score import why_not_scored
from psychocounsel.stages.train_reward import pair_source
from psychocounsel.store.artifacts import KINDS, Artifact, Kind
from psychocounsel.store.files import umask
from psychocounsel.store.references import POLICY_KINDS, Ancestor, ancestors, resolve, resolve_model
from psychocounsel.store.schemas import read_pairs
from psychocounsel.store.shapes import LengthControlled, WinRates
from psychocounsel.store.store import Store as ArtifactStore
from psychocounsel.store.store import open_store
from psychocounsel.types import Candidate, Judgement, PreferencePair, Rate, Reward, Speech

if TYPE_CHECKING:
    from psychocounsel.training.reward import RewardScorer
    from psychocounsel.training.samplers import LocalEngine

SCORED_AT_ONCE = 16
_Result = TypeVar("_Result")


class Store:
    """The artifacts in a folder, which need not exist yet.

    `offline` forbids connections beyond this machine; give it before anything reads from the Hub, whose libraries look
    for it once. Without a path it is the folder that commands use: `PSYCHOCOUNSEL_STORE`, or `data`.

    >>> store = Store("data")
    >>> [artifact.ref for artifact in store.list("preferences")]  # doctest: +ELLIPSIS
    ['quickstart@...']
    >>> store.open("preferences/quickstart").metrics["pairing"]["train"]["kept"] > 0
    True
    """

    def __init__(self, path: str | Path | None = None, *, offline: bool = False) -> None:
        self._opened = open_store(Path(path) if path else None, offline)
        self.path = self._opened.root

    @property
    def opened(self) -> ArtifactStore:
        """The store as stages take it."""
        return self._opened

    def open(self, ref: str) -> Artifact:
        """Return the artifact of `name@id8`, `name` (what a run found last), `name@best`, `kind/name`, or a path.

        Raises:
            ConfigError: nothing has this reference, or artifacts of several kinds have.
        """
        return cast("Artifact", resolve(self._opened, ref))  # without pins, never one that is still to come

    def lineage(self, ref: str) -> Sequence[Ancestor]:
        """Return an artifact, then all that it was made from: depth first, each once, with its role."""
        return list(ancestors(self._opened, self.open(ref)))

    def list(self, kind: Kind | None = None) -> Sequence[Artifact]:
        """Return the artifacts, of one kind or of all; of several with one name, the last is what the name means.

        Raises:
            ConfigError: there is no such kind.
        """
        if kind is not None and kind not in KINDS:
            raise ConfigError(f"there is no kind {kind!r}", remedy=did_you_mean(kind, KINDS))
        return self._opened.artifacts(kind)


StoreLike = Store | Path | str
"""A store, or its folder."""


def _store_of(store: StoreLike | None) -> ArtifactStore:
    return (store if isinstance(store, Store) else Store(store)).opened


def run_stage(
    stage: StageName,
    config: Mapping[str, Any] | str | Path,
    changes: Sequence[str] = (),
    *,
    store: StoreLike | None = None,
) -> Artifact:
    """Run a stage as the command of its name does, and return what it made, or what it found up to date.

    `config` is its YAML file as the command takes it (a path, RECIPE or RECIPE/STEP) or the same keys, and `changes`
    are texts as `--set` takes them. Until it is done, new files of the process are readable for this user alone, or as
    `PSYCHOCOUNSEL_UMASK` says.

    Raises:
        ConfigError: there is no such stage, or the config cannot be used; lists every fault.
        PsychoCounselError: what the stage raises.
    """
    if stage not in STAGES:
        raise ConfigError(f"there is no stage {stage!r}", remedy=did_you_mean(stage, STAGES))
    model = STAGES[stage].config
    if isinstance(config, Mapping):
        given, opened = config_of(model, config, changes, f"config of {stage}"), _store_of(store)
    else:
        path = stage_config(stage, str(config))
        given = load_config(model, path, changes)
        opened = open_store(recipe=path.parent) if store is None else _store_of(store)
    before = os.umask(umask())
    try:
        return recipe.run_stage(stage, given, opened)
    finally:
        os.umask(before)


def load_pairs(
    ref: str | Path, split: str = "train", *, config: str | None = None, store: StoreLike | None = None
) -> list[PreferencePair]:
    """Return the pairs of one split of a preference dataset.

    `ref` is an artifact of a store, or a file, a folder or `hub:owner/name@revision` in the layout of trl (`prompt`,
    `chosen`, `rejected`), with `config` the name of a configuration on the Hub.

    >>> pairs = load_pairs("quickstart", "test")
    >>> pairs[0].margin == pairs[0].chosen.score - pairs[0].rejected.score > 0
    True

    Raises:
        ConfigError: nothing has this reference, or an artifact has no such split.
        InputError: it cannot be read, or none of its rows is a pair.
    """
    opened, name = _store_of(store), str(ref)
    parent = pair_source(opened, name, split, config, "preferences").parent
    if parent is not None:
        return read_pairs(opened.open(parent), split)
    pairs, dropped = read_outside_pairs(name, split, config)
    if not pairs:
        remedy = "load what `psychocounsel import-preferences` makes of it, which knows more layouts"
        raise InputError(f"no row is a pair ({counted(dropped)})", where=name, remedy=remedy)
    return pairs


class _Requests:
    """A session that is open as long as its owner lives, and what surrounds each call.

    Without a store, replies are kept in a temporary folder.
    """

    def __init__(self, store: StoreLike | None) -> None:
        resources = ExitStack()
        weakref.finalize(self, resources.close)
        if store is None:
            store = resources.enter_context(TemporaryDirectory(prefix="psychocounsel-"))
        self.session = Session(_store_of(store), is_open=True, _resources=resources)
        self.turn = threading.Lock()

    def ask(self, call: Callable[[], _Result]) -> _Result:
        """Return what `call` returns; Ctrl-C ends it with Preempted once what is in flight is in the journal.

        The next Ctrl-C does not wait; it does not end the process, which is a notebook perhaps. The call after that
        waits for what is in flight, and finds it in the journal.
        """

        def call_in_turn() -> _Result:
            with self.turn:
                self.session.cancel = cancel
                return call()

        with cancelled_by_signals(signal.default_int_handler) as cancel:
            return outside_loop(call_in_turn)


@dataclass(frozen=True)
class ComparedAnswers(BothOrders):
    """Two answers to one speech, compared in both orders: `first` stands first in `forward`, second in `backward`.

    `outcome()` and `outcome(principle)` are those of the first answer; a disagreement of the orders counts as a tie.
    """

    first: Candidate
    second: Candidate


class Judge:
    """Rates answers on the principles of a rubric and compares two of them.

    `rubric` is the name of a bundled one or a YAML file, and `settings` are the other keys of the block `judge` of a
    config: without any it is the offline judge, which counts words. Replies are kept in the journal of the store and
    never paid twice; without a store, as long as the judge lives. A call ends as soon as more than `max_missing_share`
    of its results have failed, if that is set; `max_cost` covers all calls of the judge together.

    >>> judge = Judge("seven-principles")
    >>> speech = "I can't sleep since she left, and I keep thinking that it was all my fault."
    >>> good = "That sounds exhausting. What goes through your mind when you lie awake?"
    >>> judge.rate(speech, good).ratings["empathy"] > judge.rate(speech, "Just get over it.").ratings["empathy"]
    True
    >>> judge.compare(speech, good, "Just get over it.").outcome()
    <Outcome.WIN: 'win'>

    A model behind an endpoint, which is asked with the first rating:

    >>> judge = Judge(backend="endpoint", endpoint={"model": "gpt-4o-2024-08-06", "max_cost": 2.0}, store="data")

    Raises:
        ConfigError: the settings are wrong (lists every fault), or the rubric cannot be read.
    """

    def __init__(self, rubric: str = "seven-principles", *, store: StoreLike | None = None, **settings: Any) -> None:
        self.config = config_of(JudgeConfig, {"rubric": rubric, **settings}, origin="settings of the judge")
        self._requests = _Requests(store)
        share = settings.get("max_missing_share", 1.0)
        self._judge = open_judge(self.config, self._requests.session, "judging", may_wait=True, max_missing_share=share)

    @classmethod
    def from_file(cls, path: str | Path, *, store: StoreLike | None = None) -> "Judge":
        """Return the judge of a YAML file with the keys of the block `judge`; its rubric is looked for beside it."""
        return cls(**load_config(JudgeConfig, Path(path)).given, store=store)

    @property
    def name(self) -> str:
        """The model, the models of a panel, or `offline`."""
        return self._judge.name

    @property
    def principles(self) -> tuple[str, ...]:
        """The ids of the rated principles, in the order of the rubric."""
        return self._judge.principles

    @property
    def status(self) -> str:
        """How many requests failed and what was spent so far, in words; empty without either."""
        return judge_status(self._judge)

    def rate(self, speech: str | Speech, response: str) -> Judgement:
        """Return the judgement of one answer; one that failed has a status, a reason and no ratings.

        Raises:
            InputError: the speech has no text, or the answer is none, as in an empty cell of a data frame.
            EndpointError: the endpoint refuses for a reason that a retry does not mend.
            IncompleteError: it does not answer, or `max_cost` is met.
            DataQualityError: more failed than `max_missing_share`.
            Preempted: Ctrl-C; completed requests are in the journal.
        """
        return self.rate_all([(speech, response)])[0]

    def rate_all(self, items: Iterable[tuple[str | Speech, str]]) -> list[Judgement]:
        """Return the judgement of each (speech, response), in their order and asked at once; errors as for `rate`."""
        asked = [(said := _speech(speech), _answer(said, response)) for speech, response in items]
        return self._requests.ask(lambda: self._judge.rate(asked, ignore_progress))

    def compare(self, speech: str | Speech, first: str, second: str) -> ComparedAnswers:
        """Return the comparison of two answers in both orders; errors as for `rate`."""
        return self.compare_all([(speech, first, second)])[0]

    def compare_all(self, items: Iterable[tuple[str | Speech, str, str]]) -> list[ComparedAnswers]:
        """Return the comparison of each (speech, first, second), in their order; errors as for `rate`."""
        tasks = [
            ComparisonTask(said := _speech(speech), _answer(said, first), _answer(said, second))
            for speech, first, second in items
        ]
        both = self._requests.ask(lambda: compare_in_both_orders(self._judge, tasks, ignore_progress))
        return [
            ComparedAnswers(one, other, task.first, task.second) for task, one, other in zip(tasks, *both, strict=True)
        ]


def _speech(said: str | Speech) -> Speech:
    if isinstance(said, Speech):
        return said
    if not _is_text(said) or not said.strip():
        raise InputError("a speech has no text", remedy="give what the client says")
    return Speech(said, crisis=mentions_crisis(said))


def _answer(speech: Speech, text: str) -> Candidate:
    if not _is_text(text):
        raise InputError(f"an answer is {text!r}, no text", remedy="leave out rows without an answer")
    return Candidate(speech.id, "", text)


def _is_text(value: object) -> bool:
    """Return whether a value is text: an empty cell of a data frame is None or a number."""
    return isinstance(value, str)


class RewardModel:
    """A reward model of a store, a folder or the Hub (`hub:owner/name@revision`); weights load with the first score.

    >>> model = RewardModel("quickstart")
    >>> rewards = model.score("I can't sleep since she left.", ["What keeps you awake?", "Just get over it."])
    >>> [type(each.reward).__name__ for each in rewards]
    ['float', 'float']

    Raises:
        ConfigError: nothing has this reference.
    """

    def __init__(self, ref: str, *, store: StoreLike | None = None) -> None:
        self.ref, self._store = ref, _store_of(store)
        resolve_model(self._store, ref, ("reward-models",))
        self._turn = threading.Lock()

    @cached_property
    def _scorer(self) -> "RewardScorer":
        return open_scorer(self.ref, self._store)

    def score(self, speech: str | Speech, responses: Sequence[str]) -> list[Reward]:
        """Return the reward of each response: `reward` is normalised, `raw` is the model's own scale.

        Raises:
            StoreError: there is no reward model, or its weights were dropped.
            InputError: a text is empty or too long for the model; the message names all such responses.
        """
        from psychocounsel.training.reward import Exchange  # imports torch

        said, texts = _speech(speech), [responses] if isinstance(responses, str) else responses
        exchanges = [Exchange(said.text, text, said.history) for text in texts]
        with self._turn:
            tokenizer, chat = self._scorer.tokenizer, self._scorer.chat
            faults = {at: why_not_scored(tokenizer, chat, each) for at, each in enumerate(exchanges, start=1)}
            if what := "; ".join(f"response {at}: {why}" for at, why in faults.items() if why):
                raise InputError(what, remedy="leave it out, or shorten it")
            return self._scorer.rewards(exchanges, SCORED_AT_ONCE)


class Policy:
    """A model that answers clients: of a store, a folder, the Hub, behind an endpoint, or of a responder's YAML file.

    `ref` is what `psychocounsel chat` takes: an artifact, a folder, `hub:owner/name@revision`, `endpoint:MODEL`,
    `endpoint:MODEL@BASE_URL`, or a YAML file, which has its own sampling. Weights load with the first answer and stay;
    replies of endpoints are kept in the journal of the store. Temperature 0 takes the most likely token.

    >>> policy = Policy("quickstart-online", temperature=0.7, max_new_tokens=24)
    >>> answers = policy.respond("I can't sleep since she left.", n=2)
    >>> [answer.draw for answer in answers]
    [0, 1]

    Raises:
        ConfigError: a setting is wrong, or nothing has this reference.
    """

    def __init__(
        self,
        ref: str,
        *,
        system_prompt: str = "",
        temperature: float = 1.0,
        max_new_tokens: int = 512,
        seed: int = 0,
        store: StoreLike | None = None,
    ) -> None:
        origin = "settings of the policy"
        sampled = {"temperature": float(temperature), "max_new_tokens": max_new_tokens}
        chat = config_of(ChatFormat, {"system_prompt": system_prompt}, origin=origin)
        options = ChatOptions(config_of(SamplingConfig, sampled, origin=origin), chat, seed)
        self.ref, self.config, self.seed = ref, responder_of(ref, "policy", options), seed
        self._requests = _Requests(Store() if store is None else store)
        self._responder = Responder(self.config, self._requests.session, "model")

    def respond(self, speech: str | Speech, n: int = 1) -> list[Candidate]:
        """Return `n` answers; equal seeds sample equal ones, and more answers contain the fewer.

        An answer that reached its token limit is not `finished`. What an endpoint refuses is left out.

        Raises:
            ConfigError: weights cannot be loaded.
            StoreError: the weights were dropped.
            IncompleteError: the endpoint left requests without a reply.
            DataQualityError: more than 5 % of the answers are missing otherwise.
        """
        return self.respond_all([speech], n)[0]

    def respond_all(self, speeches: Sequence[str | Speech], n: int = 1) -> list[list[Candidate]]:
        """Return `n` answers to each speech, asked at once; errors as for `respond`."""
        said = [_speech(each) for each in speeches]
        distinct = list({each.id: each for each in said}.values())
        answers: dict[str, list[Candidate]] = {each.id: [] for each in said}
        for each in self._sample(distinct, n) if self._has_weights else self._ask(distinct, n):
            answers[each.speech_id].append(each)
        return [answers[each.id] for each in said]

    @property
    def _has_weights(self) -> bool:
        return self.config.model is not None and self.config.sampler.backend == "local"

    @cached_property
    def _engine(self) -> "LocalEngine":
        from psychocounsel.training.samplers import LocalEngine  # imports torch

        store = self._requests.session.store
        return LocalEngine(resolve_model(store, self.config.model or "", POLICY_KINDS).policy(store))

    def _sample(self, speeches: Sequence[Speech], n: int) -> list[Candidate]:
        """Return what `sample_answers` does, from weights that stay in memory."""
        from psychocounsel.training.samplers import SamplingTask  # imports torch

        config = self.config
        seed = author_seed(config.author, self.seed)
        task = SamplingTask(tuple(speeches), n, config.sampling, config.chat, seed)
        with self._requests.turn:
            answers = self._engine(task, lambda done, total: None)
        return [
            Candidate(speech.id, config.author, answer.text, answer.finished, draw)
            for speech, of_speech in zip(speeches, answers, strict=True)
            for draw, answer in enumerate(of_speech)
        ]

    def _ask(self, speeches: Sequence[Speech], n: int) -> list[Candidate]:
        def answer() -> list[Candidate]:
            with TemporaryDirectory() as work:
                return self._responder.answer(speeches, self.seed, Path(work), n).candidates

        return self._requests.ask(answer)


@dataclass(frozen=True)
class WinRate:
    """How often the first answers win over the second ones, ties half, with the interval over speeches.

    Attributes:
        rate: the win rate; its `missing` outcomes are in no other number.
        wins, ties, losses, missing: outcomes; ties include comparisons whose two orders disagree.
        length_controlled: the win rate at equal length, or the reason why there is none; None for plain outcomes.
        details: what comparisons tell besides: rates by principle, without ties, and how position decides.
    """

    rate: Rate
    wins: int
    ties: int
    losses: int
    missing: int
    length_controlled: LengthControlled | None = None
    details: WinRates | None = None

    def __str__(self) -> str:
        """Return the rates with their intervals and the counts in one line."""
        counts = f"{self.wins} wins, {self.ties} ties, {self.losses} losses, {self.missing} missing"
        control = self.length_controlled
        if control is None:
            at_equal_length = ""
        else:
            at_equal_length = f"; at equal length {with_interval(control.rate) if control.rate else control.reason}"
        return f"{with_interval(self.rate)}, {counts}{at_equal_length}"


def win_rate(
    outcomes: Sequence[ComparedAnswers | Outcome | str | None],
    *,
    speeches: Sequence[str] | None = None,
    confidence: float = 0.95,
) -> WinRate:
    """Return the win rate of the first answers over the second ones.

    `outcomes` are comparisons of a judge, or `win`, `tie`, `position-inconsistent` and `loss`; `missing` and None stand
    for what could not be compared. Outcomes of one speech resemble each other, so the interval takes speeches for
    independent: for plain outcomes, `speeches` names the speech of each, and without it each has one of its own.

    >>> measured = win_rate(["win", "win", "tie", "loss", "win", None])
    >>> measured.rate.estimate, measured.rate.n, measured.rate.missing
    (0.7, 5, 1)
    >>> print(measured)  # doctest: +ELLIPSIS
    70.0... [32.3 to 91.9...], 3 wins, 1 ties, 1 losses, 1 missing
    >>> judge = Judge("seven-principles")
    >>> said = ["I can't sleep since she left.", "My boss shouts at me all day and I cry in the car."]
    >>> compared = judge.compare_all((each, "That hurts. What is hardest for you?", "Cheer up.") for each in said)
    >>> win_rate(compared).rate.estimate
    1.0

    Raises:
        InputError: an outcome is none of these words, or `speeches` are not as many as the outcomes.
        DataQualityError: every outcome is missing.
    """
    plain = {at: _outcome(each) for at, each in enumerate(outcomes) if not isinstance(each, ComparedAnswers)}
    found = list(plain.values())
    if len(plain) == len(outcomes):
        named = list(map(str, plain)) if speeches is None else speeches
        if len(named) != len(found):
            raise InputError(
                f"{len(named)} speeches for {len(found)} outcomes", remedy="name the speech of each outcome"
            )
        rate = clustered_rate([POINTS[each] for each in found], named, confidence)
        ties = found.count(Outcome.TIE) + found.count(Outcome.POSITION_INCONSISTENT)
        return WinRate(rate, found.count(Outcome.WIN), ties, found.count(Outcome.LOSS), found.count(Outcome.MISSING))
    if found.count(Outcome.MISSING) < len(found):
        raise InputError("comparisons stand beside plain outcomes", remedy="give one kind; None is a missing one")
    compared = [each if isinstance(each, ComparedAnswers) else Unanswered(str(at)) for at, each in enumerate(outcomes)]
    answers = [side for each in compared if isinstance(each, ComparedAnswers) for side in (each.first, each.second)]
    details = win_rates(compared, confidence)
    control = length_controlled_rate(length_comparisons(compared, answers), confidence)
    return WinRate(details.win_rate, details.wins, details.ties, details.losses, details.missing, control, details)


def _outcome(given: str | None) -> Outcome:
    if given is not None and given not in list(Outcome):
        raise InputError(f"{given!r} is no outcome", remedy=did_you_mean(given, map(str, Outcome)))
    return Outcome.MISSING if given is None else Outcome(given)
