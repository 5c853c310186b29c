"""Responders: endpoints, models on this machine and files that answer client speeches."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from psychocounsel.config.components import (
    EndpointConfig,
    PoolConfig,
    ResponderConfig,
)
from psychocounsel.config.schema import LaunchConfig
from psychocounsel.corpus.formats import SourceRow
from psychocounsel.corpus.sources import (
    cell,
    history_cell,
    label_cell,
    read_rows,
    source_fingerprint,
)
from psychocounsel.corpus.text import clean_text
from psychocounsel.errors import ConfigError, DataQualityError, IncompleteError, InputError, counted
from psychocounsel.llm.endpoints import log_spending
from psychocounsel.llm.runner import RunPolicy, pending_indices
from psychocounsel.llm.serving import HOST, free_port, serving
from psychocounsel.llm.session import NUMBERS, PLACEHOLDER, ModelClient, Session
from psychocounsel.llm.types import ChatReply, ChatRequest, Message, spoken, without_thoughts
from psychocounsel.reporting.console import progress, step_progress
from psychocounsel.store.artifacts import Artifact, ArtifactSpec, ArtifactWriter, Parent
from psychocounsel.store.references import POLICY_KINDS, digest_of_weights, resolve_model
from psychocounsel.store.schemas import ROWS_FILE, read_row_provenance, write_candidates
from psychocounsel.store.store import note_failed
from psychocounsel.types import Candidate, Policy, ReplyStatus, SampledAnswer, Speech, Turn, content_id

NOT_IN_FILE = "not_in_file"
SERVER_TIMEOUT_SECONDS = 600.0
"""Of one answer: the requests to a server of our own wait for each other."""
_OF_POLICY = (ReplyStatus.VALID, ReplyStatus.CUT, ReplyStatus.EMPTY)


SpeechIds: TypeAlias = Mapping[str, set[str]]
"""The ids of speeches by the keys that their source gives them; a key may stand for several."""
_READER = 2
"""Raised by hand whenever a file of answers may be read differently than before."""
_NAMING_A_SPEECH = (
    "each with its speech as cleaning and de-identification left it (in speeches.parquet), or with a column key in "
    "place of speech, where the corpus names a column with keys"
)


class Answers(NamedTuple):
    """Candidates in the order of the speeches, failures by status, `spend` for `metrics.json`, and warnings."""

    candidates: list[Candidate]
    failed: dict[str, int]
    spend: dict[str, Any]
    warnings: tuple[str, ...] = ()


class Responder:
    """One author of answers; it connects, or loads its weights, with the first speech.

    `role` is the one in which its artifact, if it is one, is a parent of the answers.

    Raises:
        ConfigError: offline, and its endpoint is not on this machine; or its reference matches nothing.
    """

    def __init__(self, config: ResponderConfig, session: Session, role: str) -> None:
        self.config, self._session = config, session
        self.parents: tuple[Parent, ...] = ()
        self._client: ModelClient | None = None
        settings = config.fingerprint()
        if config.endpoint is not None:
            self._client = session.client(config.endpoint, f"answers of {config.author}")
            self.fingerprint: dict[str, Any] = {**settings, "endpoint": dict(self._client.fingerprint)}
        elif config.file is not None:
            # Neither sampling nor a chat format changes what is in a file.
            terms = {"licence": config.licence, "data_class": config.data_class}
            file = {**source_fingerprint(config.file, "train"), "reader": _READER}
            self.fingerprint = {"author": config.author, "file": file, **terms}
        else:
            self._model = resolve_model(session.store, config.model or "", POLICY_KINDS)
            self.parents = self._model.parents(role)
            self.fingerprint = {**settings, "model": self._model.fingerprint}

    def distinct_draws(self, wanted: int) -> int:
        """Return how many answers per speech to draw: one of an author whose answers do not vary."""
        return wanted if self.config.varies else 1

    def answer(
        self, speeches: Sequence[Speech], seed: int, work: Path, draws: int = 1, ids: Callable[[], SpeechIds] = dict
    ) -> Answers:
        """Return the answers to each speech: `draws`, or one of a file without several. More draws contain the fewer.

        What a model on this machine has answered so far is kept in `work`. `ids` are called for a file.

        Raises:
            IncompleteError: the endpoint left requests without a reply.
            DataQualityError: more answers than `max_missing_share` are missing otherwise.
            Preempted: the run was cancelled.
        """
        author = self.config.author
        if self._client is not None:
            answers = self._ask(self._client, speeches, seed, draws)
        elif self.config.file is not None:
            answers = ready_responses(
                read_rows(self.config.file), author, speeches, ids(), draws if self.config.several_answers else None
            )
        elif self._session.is_dry_run:
            answers = Answers([self._placeholder(each, draw) for each in speeches for draw in range(draws)], {}, {})
        else:
            answers = self._sample(speeches, seed, work, draws)
        commonest = max(answers.failed, key=answers.failed.__getitem__, default="")
        if self.config.file:
            again = f"add them to the file, {_NAMING_A_SPEECH}"
        elif commonest == ReplyStatus.CUT.value:
            again = "raise its sampling.max_new_tokens, which thoughts used up before an answer began"
        else:
            again = "run the same command to send those requests again"
        remedy = f"{again}, or raise its max_missing_share ({self.config.max_missing_share:g})"
        _require_answers(self.config, answers.failed, len(answers.candidates), remedy)
        return answers

    def _ask(self, client: ModelClient, speeches: Sequence[Speech], seed: int, draws: int) -> Answers:
        """Send one request for each draw.

        A reply that its token limit cut is kept as an unfinished candidate. Refused, filtered and empty replies are
        counted and give no candidate.
        """
        failed: Counter[str] = Counter()
        candidates: list[Candidate] = []
        for speech, draw, reply in _replies(client, self.config, speeches, seed, draws, _is_answer):
            if reply is PLACEHOLDER:
                candidates.append(self._placeholder(speech, draw))
            elif _is_answer(0, reply):
                candidates.append(_candidate(self.config.author, speech, draw, reply))
            else:
                failed[reply.status.value] += 1
        return Answers(candidates, dict(sorted(failed.items())), log_spending(client.spending, self.config.author))

    def _sample(self, speeches: Sequence[Speech], seed: int, work: Path, draws: int) -> Answers:
        policy, seed = self._model.policy(self._session.store), author_seed(self.config.author, seed)
        if self.config.sampler.backend == "endpoint":
            served = _answers_of_server(policy, self.config, speeches, draws, seed, work, self._session)
            return Answers([each for each, status in served if status in _OF_POLICY], _missing(served), {})
        sampled = sample_answers(policy, self.config, speeches, draws, seed, work, self._session, LaunchConfig())
        return Answers([each.candidate for each in sampled], {}, {})

    def _placeholder(self, speech: Speech, draw: int) -> Candidate:
        return placeholder(self._session, speech, self.config.author, draw, self.config.sampling.max_new_tokens)


def placeholder(session: Session, speech: Speech, author: str, draw: int, tokens: int) -> Candidate:
    """Return what stands for an answer in a dry run: a text of its own, of so many tokens."""
    session.has_placeholders = True
    return Candidate(speech.id, author, f"({next(NUMBERS):08}){' yes' * tokens}", draw=draw)


def write_answers(
    writer: ArtifactWriter, responder: Responder, speeches: Sequence[Speech], ids: Callable[[], SpeechIds]
) -> None:
    """Write a responder's answers to some speeches, with the seed and the number of draws that its settings name.

    Errors are those of `Responder.answer`.
    """
    seed, draws = int(writer.spec.settings["seed"]), int(writer.spec.settings["draws"])
    answers = responder.answer(speeches, seed, writer.work, draws, ids)
    write_candidates(writer, answers.candidates)
    writer.warnings.extend(answers.warnings)
    writer.write_metrics({"speeches": len(speeches), "draws": draws, "failed": answers.failed, **answers.spend})
    note_failed(writer, sum(count for why, count in answers.failed.items() if why != NOT_IN_FILE))


def sample_answers(
    policy: Policy,
    responder: ResponderConfig,
    speeches: Sequence[Speech],
    draws: int,
    seed: int,
    work: Path,
    session: Session,
    launch: LaunchConfig,
) -> list[SampledAnswer]:
    """Return `draws` answers of a policy's weights to each speech, those of one speech next to each other.

    A text may be empty, and an answer that reached its token limit is marked as unfinished; the caller decides what to
    do with them. Finished shards are kept in `work`, which belongs to one artifact and so to one policy: an
    interrupted run continues there, and with a server in the journal.

    Raises:
        ConfigError: tokenizer or weights cannot be loaded, the sampler is not installed, or the command of a server
            does not take the revision of the weights.
        IncompleteError: the sampler failed, or left requests without a reply.
        DataQualityError: a server refused or filtered more answers than `max_missing_share`.
        Preempted: the run was cancelled.
    """
    if responder.sampler.backend == "endpoint":
        served = _answers_of_server(policy, responder, speeches, draws, seed, work, session)
        return [SampledAnswer(each, None) for each, _ in served]
    from psychocounsel.training.launch import launch_of, one_per_device  # imports torch
    from psychocounsel.training.samplers import SamplingTask, sample, shard_size

    is_vllm = responder.sampler.backend == "vllm"
    processes, log = (one_per_device(launch), work / "vllm.log") if is_vllm else (launch_of(launch), None)
    shared = {"policy": policy, "sampler": responder.sampler, "work": work}
    shards = [
        {**shared, "task": SamplingTask(tuple(part), draws, responder.sampling, responder.chat, seed)}
        for part in processes.split(speeches, shard_size(draws))
    ]
    with step_progress(f"answers of {responder.author}") as report:
        answers = processes.run_shards(sample, shards, work=work, cancel=session.cancel, progress=report, log=log)
    return [
        SampledAnswer(Candidate(speech.id, responder.author, answer.text, answer.finished, draw), answer.token_ids)
        for speech, of_speech in zip(speeches, answers, strict=True)
        for draw, answer in enumerate(of_speech)
    ]


def _answers_of_server(
    policy: Policy,
    responder: ResponderConfig,
    speeches: Sequence[Speech],
    draws: int,
    seed: int,
    work: Path,
    session: Session,
) -> list[tuple[Candidate, ReplyStatus]]:
    """Return the answers of a server that is started for them; one that it refuses or filters has no text."""
    author, sampling, sampler, chat = responder.author, responder.sampling, responder.sampler, responder.chat
    if policy.revision and not any("{revision}" in word for word in sampler.serve):
        raise ConfigError(
            f"serve does not say where {{revision}} stands in the command, and would serve another one of "
            f"{policy.location} than {policy.revision}",
            where="sampler.serve",
            remedy="add it, for vLLM as --revision, '{revision}'",
        )
    folder = Path(policy.location)
    weights = digest_of_weights(folder) if folder.is_dir() else f"{policy.location}@{policy.revision}"
    # The journal tells weights, and what else of a server shapes its answers, apart by the name of the model.
    name, port = f"policy-{content_id('served', weights, chat.date_string, *sampler.serve)}", free_port()
    placeholders = {
        **{"model": policy.location, "revision": policy.revision or "main", "name": name},
        **{"port": str(port), "date": chat.date_string},
    }
    command = [_filled(word, placeholders) for word in sampler.serve]
    endpoint = EndpointConfig(
        model=name,
        base_url=f"http://{HOST}:{port}/v1",
        identity="sampler.serve",  # another port at the next start
        api_key_env="PSYCHOCOUNSEL_SERVER_KEY",
        concurrency=sampling.batch_size,
        timeout_seconds=SERVER_TIMEOUT_SECONDS,
    )
    client = session.client(endpoint, f"answers of {author}")
    requests = [chat_request(speech, responder, seed, draw) for speech in speeches for draw in range(draws)]
    # A server loads for minutes, which a resumed run does without where the journal has every answer.
    is_needed = bool(pending_indices(requests, client.fingerprint, session.journal, _is_answered))
    log_file = work / "server.log"
    server = (
        serving(command, name, port, log_file, session.cancel, sampler.start_seconds) if is_needed else nullcontext()
    )
    with server:
        # Nothing is sampled again for its content, which would change the distribution.
        replies = _replies(client, responder, speeches, seed, draws, _is_answered)
        log_spending(client.spending, author)
    served = [
        (
            _candidate(author, speech, draw, reply if reply.status in _OF_POLICY else replace(reply, text="")),
            reply.status,
        )
        for speech, draw, reply in replies
    ]
    missing = _missing(served)
    remedy = f"see {log_file}: a prompt may be longer than the server takes; correct sampler.serve"
    _require_answers(responder, missing, len(served) - sum(missing.values()), remedy)
    return served


def _missing(served: Sequence[tuple[Candidate, ReplyStatus]]) -> dict[str, int]:
    """Count what a server refused or filtered; an empty answer is one of the policy's."""
    return dict(sorted(Counter(status.value for _, status in served if status not in _OF_POLICY).items()))


def _require_answers(responder: ResponderConfig, missing: Mapping[str, int], answered: int, remedy: str) -> None:
    """Refuse answers of which more are missing than may be."""
    failed = sum(missing.values())
    if failed > responder.max_missing_share * (failed + answered):
        raise DataQualityError(
            f"{failed} of {failed + answered} answers are missing ({counted(missing)})",
            where=f"responder {responder.author}",
            remedy=remedy,
        )


def _replies(
    client: ModelClient,
    responder: ResponderConfig,
    speeches: Sequence[Speech],
    seed: int,
    draws: int,
    accept: Callable[[int, ChatReply], bool],
) -> list[tuple[Speech, int, ChatReply]]:
    """Return the reply to each draw of each speech, without thoughts; IncompleteError if a request got none."""
    author = responder.author
    asked = [(speech, draw) for speech in speeches for draw in range(draws)]
    requests = [chat_request(speech, responder, seed, draw) for speech, draw in asked]
    status = lambda: client.spending.standing if client.spending else ""  # noqa: E731
    with progress(f"asking {author}", len(asked), status) as advance:
        replies = client.run(requests, RunPolicy(accept=accept, progress=advance))
    if lost := [reply for reply in replies if reply.status is ReplyStatus.ERROR]:
        raise IncompleteError(
            f"{len(lost)} of {len(replies)} requests to {author} got no reply: {lost[0].reason}",
            where=client.fingerprint["base_url"],
            remedy="check the endpoint, then run the same command again; completed requests are not sent again",
        )
    return [(speech, draw, spoken(reply)) for (speech, draw), reply in zip(asked, replies, strict=True)]


def _candidate(author: str, speech: Speech, draw: int, reply: ChatReply) -> Candidate:
    return Candidate(speech.id, author, reply.text.strip(), reply.status is not ReplyStatus.CUT, draw)


def _is_answered(index: int, reply: ChatReply) -> bool:
    """Return whether a reply is one of the policy's, whatever is in it."""
    del index
    return reply.answered


def _filled(word: str, placeholders: Mapping[str, str]) -> str:
    for name, value in placeholders.items():
        word = word.replace(f"{{{name}}}", value)
    return word


def file_classes(responders: Iterable[ResponderConfig]) -> dict[str, str]:
    """Return the data class of every file among the responders, by its path."""
    return {each.file: each.data_class for each in responders if each.file is not None and each.data_class is not None}


def data_classes(speeches: Artifact | ArtifactSpec) -> dict[str, str]:
    """Return the data class of every source of some speeches, by its name in messages."""
    settings = speeches.manifest["settings"] if isinstance(speeches, Artifact) else speeches.settings
    sources = enumerate(settings["speeches"], start=1)
    return {f"speeches {speeches.ref} source {at}": each["data_class"] for at, each in sources}


def _is_answer(index: int, reply: ChatReply) -> bool:
    """Return whether a reply makes a candidate; a reply that was cut does, for a retry would be cut as well."""
    del index
    return reply.status in (ReplyStatus.VALID, ReplyStatus.CUT) and bool(spoken(reply).text.strip())


def author_seed(author: str, seed: int) -> int:
    """Return the seed of an author's samples (63 bits): two authors with one model must not give the same answers."""
    return int(content_id("responder", author, str(seed)), 16) >> 1


def chat_request(speech: Speech, responder: ResponderConfig, seed: int, draw: int = 0) -> ChatRequest:
    """Return the request for an answer to a client; each draw is a sample of its own."""
    sampling, prompt = responder.sampling, responder.chat.system_prompt
    system = (Message("system", prompt),) if prompt else ()
    return ChatRequest(
        messages=(*system, *(Message(turn.role, turn.content) for turn in speech.turns)),
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        max_tokens=sampling.max_new_tokens,
        sample_index=author_seed(responder.author, seed) + draw,
    )


def ids_by_key(speeches: Artifact) -> SpeechIds:
    """Return the ids of a corpus by key; none of placeholders."""
    rows = read_row_provenance(speeches) if ROWS_FILE in speeches.manifest["files"] else ()
    ids: dict[str, set[str]] = {}
    for row in rows:
        if row.key and row.text_id:
            ids.setdefault(row.key, set()).add(row.text_id)
    return ids


def ready_responses(
    rows: Iterable[SourceRow],
    author: str,
    speeches: Sequence[Speech],
    ids: SpeechIds | None = None,
    draws: int | None = None,
) -> Answers:
    """Return the response to each speech from rows with the columns `speech` or else `key`, and `response`.

    The first `draws` responses to a speech count. Without `draws` only the first does, and a warning says how many
    speeches have others besides. A speech without one has no candidate. Rows that repeat speeches with earlier turns
    have these in a column `history`.

    Raises:
        InputError: a column is missing, a cell holds what no table can, or the key of a speech stands for others, too.
        DataQualityError: no row answers one of the speeches.
    """
    texts: dict[tuple[Turn, ...], list[str]] = {}
    turns_of, ids = {each.id: each.turns for each in speeches}, ids or {}
    remedy = "name two columns speech (or key) and response; it has"
    for row in rows:
        if "key" in row.values and "speech" not in row.values:
            key = label_cell(row, "key")
            meant = ids.get(key, ())
            turns = next((turns_of[each] for each in meant if each in turns_of), ())
            if turns and len(meant) > 1:
                remedy = "name the speech itself, in a column speech"
                raise InputError(f"the key {key!r} stands for several speeches", where=row.where, remedy=remedy)
        else:
            history = history_cell(row, "history") if "history" in row.values else ()
            turns = (*history, Turn("user", clean_text(cell(row, "speech", remedy), "speech", row.where)))
        if answer := without_thoughts(clean_text(cell(row, "response", remedy), "response", row.where)):
            texts.setdefault(turns, []).append(answer)
    answered = [
        Candidate(each.id, author, text, draw=draw)
        for each in speeches
        for draw, text in enumerate(texts.get(each.turns, ())[: draws or 1])
    ]
    if not answered:
        raise DataQualityError(
            "no row of the file answers any of the speeches",
            where=author,
            remedy=f"add answers, {_NAMING_A_SPEECH}",
        )
    several = 0 if draws else sum(len(set(texts.get(each.turns, ()))) > 1 for each in speeches)
    warning = f"the file of {author} has several answers to {several} of {len(speeches)} speeches; the first counts"
    missing = len(speeches) * (draws or 1) - len(answered)
    return Answers(answered, {NOT_IN_FILE: missing} if missing else {}, {}, (warning,) if several else ())


def choose_responders(speech: Speech, pool: PoolConfig) -> tuple[ResponderConfig, ...]:
    """Return `per_speech` different responders; the same speech, pool and seed give the same choice."""
    ranked = sorted(pool.responders, key=lambda each: content_id("draw", str(pool.seed), speech.id, each.author))
    return tuple(ranked[: pool.per_speech])
