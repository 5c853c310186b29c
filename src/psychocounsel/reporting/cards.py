"""Cards: the README.md of models and of preference datasets. The Hub reads the YAML at the top; warnings come next."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean, pstdev
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined

from psychocounsel.evaluation.text_quality import word_count
from psychocounsel.reporting.artifact_tables import most_first, probe_tables, tables
from psychocounsel.reporting.licences import OTHER, combine, conditions_of, strictest_first
from psychocounsel.reporting.tables import Table, as_markdown, escaped
from psychocounsel.store.artifacts import ROUND, Artifact, ArtifactWriter
from psychocounsel.store.metrics import (
    JudgementMetrics,
    PolicyMetrics,
    ProbeMetrics,
    RewardModelMetrics,
    SpeechMetrics,
    metrics_of,
)
from psychocounsel.store.references import ancestors, settings_of
from psychocounsel.store.schemas import read_candidates, read_judgements
from psychocounsel.store.store import Store, flatten
from psychocounsel.types import SPLITS, Judgement, PreferencePair, ReplyStatus

if TYPE_CHECKING:
    from psychocounsel.judging.rubric import Rubric

_OWN_NAME = "terms-of-the-sources"
"""The Hub requires a name with `license: other`; the terms themselves stand in the card."""
REWARD_MODEL = "reward model"
_WEIGHTS = "weights with SHA-256"
_BASE_ROLES = ("base model", "initial policy")
_BEHIND_A_MODEL = ("base-models", "policies", "reward-models", "preferences", "judgements", "candidates", "speeches")
_HUB_DATA = re.compile(r"\b(path|source)(\.\d+)?\.hub$")
"""Where settings name a source of rows on the Hub, and not a model."""
PEOPLE = "people"
"""Stands for every author who is a person, known by a web address or a number: a card ranks no person."""
_PERSON = re.compile(r"person-[0-9a-f]{8}|.*://.*")


def draft(writer: ArtifactWriter) -> Artifact:
    """Return what is written so far as an artifact, so that its card can show its tables."""
    spec = writer.spec
    manifest = {name: getattr(spec, name) for name in ("id", "kind", "name", "stage", "version", "settings")}
    manifest |= {"parents": [parent._asdict() for parent in spec.parents], "files": {}}
    return Artifact(writer.folder, {**manifest, "rows": writer.rows, "warnings": [*spec.warnings, *writer.warnings]})


def model_card(store: Store, writer: ArtifactWriter, what: str, warnings: Iterable[str]) -> str:
    """Return the README.md of a model whose metrics are written.

    `what` is `reward model`, or how a policy was aligned; `warnings` are those of the data that it was trained on.
    Raises StoreError if an ancestor is missing or damaged.
    """
    own = draft(writer)
    lineage = [each for each in _lineage(store, writer) if each.kind in _BEHIND_A_MODEL and not ROUND.search(each.name)]
    base, base_on_hub = _base_model(store, own)
    licences = _licences_of(lineage)
    licence, reason = combine(licences)
    if base_on_hub is not None or base.startswith(_WEIGHTS):
        licence = OTHER
        reason = (
            f"The licence of {base} applies to these weights, and so may those of the data that they were trained on."
        )
    speeches = next((each.manifest["settings"] for each in lineage if each.kind == "speeches"), {})
    front = {
        "library_name": "transformers",
        "pipeline_tag": "text-classification" if what == REWARD_MODEL else "text-generation",
        **_terms(licence, speeches),
        **({"base_model": base_on_hub.partition("@")[0]} if base_on_hub else {}),
        **({"datasets": found} if (found := _datasets([own, *lineage])) else {}),
        "tags": ["counselling", "psychocounsel", "reward-model" if what == REWARD_MODEL else "dpo"],
        **_model_index(own, lineage),
    }
    return render_card(
        "model_card.md.j2",
        front,
        is_reward=what == REWARD_MODEL,
        has_heads=own.manifest["settings"].get("heads") == "principles",
        name=own.name,
        ref=own.ref,
        what=what,
        warnings=dict.fromkeys([*warnings, *writer.warnings]),
        base=base,
        made_from=_lineage_table(lineage),
        settings=Table(
            "settings",
            "",
            ("setting", "value"),
            "ll",
            tuple(
                (key, str(value)) for key, value in settings_of(store, own).items() if value not in (None, {}, [], "")
            ),
        ),
        tables=[*tables(own), *(probe_tables(probe) if (probe := _final_probe(own)) else [])],
        licence=licence,
        licence_reason=reason,
        licences=_licence_table(licences),
    )


def _base_model(store: Store, model: Artifact) -> tuple[str, str | None]:
    """Return words for the weights with which training began, and their name on the Hub, None if they have none."""
    while (parent := next((each for each in model.parents if each.role in _BASE_ROLES), None)) is not None:
        model = store.open(parent)
    settings = model.manifest["settings"]
    outside: Mapping[str, Any] = settings.get("initial_policy") or settings.get("base_model") or {}
    if "hub" in outside:
        name = "@".join(filter(None, (outside["hub"], outside["revision"])))
        return name, name
    digest = outside.get("weights")
    return f"{_WEIGHTS} {digest}" if digest else f"{model.ref}, a tiny Llama 3 trained from nothing", None


def _datasets(artifacts: Iterable[Artifact]) -> list[str]:
    """Return the names on the Hub of the data behind a model."""
    settings = [setting for each in artifacts for setting in flatten(each.manifest["settings"]).items()]
    return list(dict.fromkeys(str(value).partition("@")[0] for key, value in settings if _HUB_DATA.search(key)))


def _final_probe(policy: Artifact) -> ProbeMetrics | None:
    """Return the probe of the round whose weights the result of an online run has; None for any other model."""
    metrics = metrics_of(policy)
    if not isinstance(metrics, PolicyMetrics) or not metrics.rounds:
        return None
    return metrics.rounds[policy.manifest["settings"]["weights_of_round"] - 1].probe


def _model_index(own: Artifact, lineage: Iterable[Artifact]) -> dict[str, Any]:
    """Return what was measured on a model as the Hub reads it; nothing where only its training was."""
    metrics, probe = metrics_of(own), _final_probe(own)
    if isinstance(metrics, RewardModelMetrics):
        kind, task, metric, rate = "preferences", "text-classification", "accuracy", metrics.test.accuracy
        name = "accuracy on the test pairs"
    elif probe is not None and probe.win_rate is not None:
        kind, task, metric, rate = "speeches", "text-generation", "win rate", probe.win_rate
        name = "win rate over the initial policy on held-out speeches, by a judge"
    else:
        return {}
    data = next(each for each in lineage if each.kind == kind)
    result = {
        "task": {"type": task},
        "dataset": {"type": data.name, "name": f"{kind} {data.ref}"},
        "metrics": [
            {
                "type": metric,
                "name": f"{name}, 95 % interval {rate.low:.3f} to {rate.high:.3f}",
                "value": round(rate.estimate, 4),
            }
        ],
    }
    return {"model-index": [{"name": own.name, "results": [result]}]}


def _lineage(store: Store, writer: ArtifactWriter) -> list[Artifact]:
    """Return the ancestors of what is written, nearest first."""
    walks = [each for parent in writer.spec.parents for each in ancestors(store, store.open(parent))]
    nearest: dict[str, Artifact] = {}
    for each in sorted(walks, key=lambda each: each.depth):
        nearest.setdefault(each.artifact.id, each.artifact)
    return list(nearest.values())


def _licences_of(artifacts: Iterable[Artifact], *more: Mapping[str, Any]) -> list[str]:
    settings = flatten([*more, *(each.manifest["settings"] for each in artifacts)])
    return sorted({str(each) for key, each in settings.items() if key.endswith(".licence") and each is not None})


def _terms(licence: str, corpus_settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return licence and languages as the Hub reads them; the languages are those that the cleaning let pass."""
    languages = list(corpus_settings.get("cleaning", {}).get("languages", ["en"]))
    return {
        "license": licence,
        **({"license_name": _OWN_NAME} if licence == OTHER else {}),
        **({"language": languages} if languages else {}),
    }


def _origin(artifacts: Iterable[Artifact]) -> str:
    return ", ".join(f"{each.kind} `{each.ref}`" for each in artifacts)


def render_card(template: str, front: Mapping[str, Any], **values: Any) -> str:
    """Return a card: `front` becomes the YAML that the Hub reads, `values` are what the template shows."""
    environment = Environment(  # noqa: S701 - Markdown, not HTML
        loader=PackageLoader("psychocounsel.reporting"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    filters = cast(dict[str, Any], environment.filters)
    filters.update(cell=escaped, markdown=as_markdown, origin=_origin)
    head = yaml.safe_dump(dict(front), sort_keys=False, allow_unicode=True)
    return re.sub(r"\n{3,}", "\n\n", environment.get_template(template).render(front_matter=head, **values))


class AuthorScores(NamedTuple):
    """One author's `rated` responses: mean and standard deviation of their mean ratings over the principles."""

    author: str
    rated: int
    mean: float
    deviation: float


@dataclass(frozen=True)
class DatasetFacts:
    """What the card of a preference dataset says; what is not known is left out.

    `rows` are pairs by split, and `with_history` of them have earlier turns. `artifacts` are the dataset itself, then
    what it came from, nearest first. `judges` has the number of judgements by the name in the replies; `lengths` how
    many responses have so many words, by split and side (`chosen`, `rejected`).
    """

    name: str
    licences: Sequence[str]
    rows: Mapping[str, int]
    principles: tuple[str, ...]
    warnings: tuple[str, ...]
    rubric: "Rubric | None" = None
    artifacts: tuple[Artifact, ...] = ()
    judges: Mapping[str, int] = field(default_factory=dict[str, int])
    scores_by_author: tuple[AuthorScores, ...] = ()
    lengths: Mapping[str, Mapping[str, Counter[int]]] = field(default_factory=dict[str, Mapping[str, Counter[int]]])
    with_history: int = 0

    def first(self, kind: str) -> Artifact | None:
        """Return the nearest artifact of a kind."""
        return next((each for each in self.artifacts if each.kind == kind), None)

    @property
    def speech_metrics(self) -> SpeechMetrics | None:
        """The numbers of the corpus of client speeches."""
        metrics = (speeches := self.first("speeches")) and metrics_of(speeches)
        return metrics if isinstance(metrics, SpeechMetrics) else None

    @property
    def judgement_metrics(self) -> JudgementMetrics | None:
        """The numbers of the ratings behind the pairs."""
        metrics = (judgements := self.first("judgements")) and metrics_of(judgements)
        return metrics if isinstance(metrics, JudgementMetrics) else None


def write_dataset_card(
    store: Store,
    writer: ArtifactWriter,
    pairs: Mapping[str, Sequence[PreferencePair]],
    rubric: "Rubric | None" = None,
    principles: Sequence[str] = (),
) -> None:
    """Write the card of a preference dataset, whose tables and metrics are written.

    `principles` are the ids of the rated principles where there is no rubric. Raises StoreError if an ancestor is
    missing or damaged.
    """
    writer.write_card(dataset_card(gather_dataset_facts(store, writer, pairs, rubric, principles)))


def gather_dataset_facts(
    store: Store,
    writer: ArtifactWriter,
    pairs: Mapping[str, Sequence[PreferencePair]],
    rubric: "Rubric | None",
    principles: Sequence[str],
) -> DatasetFacts:
    """Return what the card says; see `write_dataset_card`."""
    lineage = _lineage(store, writer)
    judgements = next((each for each in lineage if each.kind == "judgements"), None)
    rated = [] if judgements is None else read_judgements(judgements)
    authors = {
        candidate.id: PEOPLE if _PERSON.fullmatch(candidate.author) else candidate.author
        for parent in (judgements.parents if judgements and rubric else ())
        if parent.kind == "candidates"
        for candidate in read_candidates(store.open(parent))
    }
    return DatasetFacts(
        name=writer.spec.name,
        licences=_licences_of(lineage, writer.spec.settings),
        rows={split: len(each) for split, each in pairs.items() if each},
        principles=tuple(principles) if rubric is None else rubric.principle_ids,
        warnings=tuple(dict.fromkeys(warning for each in lineage for warning in each.warnings)),
        rubric=rubric,
        artifacts=(draft(writer), *lineage),
        judges=Counter(each.judge for each in rated),
        scores_by_author=() if rubric is None else _scores_by_author(authors, rated),
        lengths={
            split: {
                side: Counter(word_count(getattr(pair, side).candidate.text) for pair in each)
                for side in ("chosen", "rejected")
            }
            for split, each in pairs.items()
            if each
        },
        with_history=sum(bool(pair.speech.history) for each in pairs.values() for pair in each),
    )


def _scores_by_author(authors: Mapping[str, str], rated: Sequence[Judgement]) -> tuple[AuthorScores, ...]:
    """Return how each author's responses were rated, most responses first; failed judgements are left out."""
    means: dict[str, list[float]] = {}
    for each in rated:
        if each.status is ReplyStatus.VALID:
            means.setdefault(authors[each.candidate_id], []).append(float(each.total / len(each.ratings)))
    scores = (AuthorScores(author, len(own), fmean(own), pstdev(own)) for author, own in means.items())
    return tuple(sorted(scores, key=lambda each: (-each.rated, each.author)))


def dataset_card(facts: DatasetFacts) -> str:
    """Return the README.md of a preference dataset."""
    speeches, judged, corpus = facts.speech_metrics, facts.judgement_metrics, facts.first("speeches")
    licences = [*facts.licences, *(each.licence for each in (speeches.sources if speeches else ()))]
    settings: Mapping[str, Any] = corpus.manifest["settings"] if corpus else {}
    topics: Mapping[str, Any] = settings.get("topics") or {}
    dataset = facts.first("preferences")
    own: Mapping[str, Any] = dataset.manifest["settings"] if dataset else {}
    licence, reason = combine(licences)
    principles = tuple((each.id, each.name) for each in facts.rubric.principles) if facts.rubric else ()
    shown = [(artifact.kind, table) for artifact in facts.artifacts for table in tables(artifact)]

    judgements = facts.first("judgements")
    from_judgements = (judgements,) if judgements else ()
    judges = tuple((name, str(count)) for name, count in most_first(facts.judges).items())
    from_responses = tuple(each for each in facts.artifacts if each.kind in ("judgements", "candidates"))
    authors = tuple(
        (each.author, str(each.rated), f"{each.mean:.2f}", f"{each.deviation:.2f}") for each in facts.scores_by_author
    )
    of_author = ("author", "rated responses", "mean rating", "standard deviation")

    def find(kind: str, *keys: str) -> list[Table]:
        return [table for of, table in shown if of == kind and table.key in keys]

    return render_card(
        "dataset_card.md.j2",
        _front_matter(facts, licence, settings),
        facts=facts,
        licence=licence,
        licence_reason=reason,
        find=find,
        speeches=speeches,
        corpus=corpus,
        judgements=judgements,
        rating_type="float64" if judged and judged.samples else "int64",
        licence_table=_licence_table(licences),
        lengths=_length_table(facts),
        rubric=Table("rubric", "", ("column", "principle"), "ll", principles),
        judges=Table("judges", "", ("judge, as its replies named it", "judgements"), "lr", judges, from_judgements),
        judge_settings=_judge_settings(judgements),
        asked=_asked_table(facts.artifacts),
        authors=Table("authors", "", of_author, "lrrr", authors, from_responses),
        lineage=_lineage_table(facts.artifacts),
        cleaning=_words(settings.get("cleaning", {})),
        pairing=_words(own.get("pairing", {})),
        labelled_by=own.get("labelled_by"),
        topics_by_cues=topics.get("backend") == "offline",
        excluded=", ".join(str(each.get("name", each.get("path"))) for each in settings.get("exclude", ())),
        exclude_span_words=settings.get("exclude_span_words"),
    )


def _front_matter(facts: DatasetFacts, licence: str, corpus_settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the Hub reads; splits by pattern, so that other files in the folder do not confuse it."""
    rows = sum(facts.rows.values())
    sizes = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))
    return {
        "pretty_name": facts.name,
        **_terms(licence, corpus_settings),
        **({"annotations_creators": ["machine-generated"]} if facts.judges else {}),
        "task_categories": ["text-generation"],
        "tags": ["counselling", "mental-health", "preference", "rlhf"],
        "size_categories": [next((name for bound, name in sizes if rows < bound), "1M<n<10M")],
        "configs": [
            {
                "config_name": "default",
                "data_files": [{"split": split, "path": f"data/{split}-*.parquet"} for split in facts.rows],
            }
        ],
    }


def _words(settings: Mapping[str, Any], mark: str = "`") -> str:
    """Return the settings in one block that are set, `key: value` one after the other."""

    def plain(value: object) -> str:
        return yaml.safe_dump(value, default_flow_style=True, width=10_000).removesuffix("...\n").strip()

    return ", ".join(
        f"{mark}{name}: {plain(value)}{mark}" for name, value in settings.items() if value not in (None, {}, [])
    )


def _judge_settings(judgements: Artifact | None) -> list[str]:
    """Return what every judging model was asked with, one text for each; none for judges that are no model."""
    judge: Mapping[str, Any] = judgements.manifest["settings"].get("judge", {}) if judgements else {}
    keys = ("model", "hub", "revision", "temperature", "top_p", "max_tokens", "samples")
    members: Sequence[Mapping[str, Any]] = judge.get("panel", (judge,))
    return [_words({key: each.get(key) for key in keys}) for each in members if "temperature" in each]


def _asked_table(artifacts: Sequence[Artifact]) -> Table:
    """Return who was asked for responses: the model behind each author, how it was sampled, and its system prompt."""
    rows: list[tuple[str, ...]] = []
    sources: list[Artifact] = []
    for artifact in artifacts:
        parents = {parent.role: f"{parent.name}@{parent.id[:8]}" for parent in artifact.parents}
        asked = [each for each in artifact.manifest["settings"].get("responders", ()) if not each.get("file")]
        sources += [artifact] * bool(asked)
        for each in asked:
            author, model = each["author"], each["endpoint"] or each["model"]
            weights = "@".join(filter(None, (model.get("hub"), model.get("revision"))))
            name = model.get("model") or weights or parents.get(f"responder {author}", "weights of a folder")
            rows.append((author, name, _words(each["sampling"], mark=""), each["chat"]["system_prompt"]))
    return Table("asked", "", ("author", "model", "sampling", "system prompt"), "llll", tuple(rows), tuple(sources))


def _licence_table(licences: Sequence[str]) -> Table:
    conditions = {licence: conditions_of(licence) for licence in strictest_first(licences)}
    rows = [
        (licence, "its own terms: read them" if required is None else "; ".join(required) or "nothing")
        for licence, required in conditions.items()
    ]
    return Table("licences", "", ("licence", "requires"), "ll", tuple(rows))


def _length_table(facts: DatasetFacts) -> Table:
    def quantile(counts: Counter[int], share: int) -> int:
        """Return the smallest length that `share` percent of the texts do not pass."""
        lengths = sorted(counts.elements())
        return lengths[max(0, -(-share * len(lengths) // 100) - 1)]

    rows = tuple(
        (split, side, f"{sum(counts.elements()) / counts.total():.1f}", *(str(quantile(counts, at)) for at in (50, 95)))
        for split in SPLITS
        for side, counts in facts.lengths.get(split, {}).items()
    )
    header = ("split", "side", "mean words", "median", "95 % have at most")
    return Table("lengths", "Length of the two sides of a pair.", header, "llrrr", rows, facts.artifacts[:1])


def _lineage_table(artifacts: Iterable[Artifact]) -> Table:
    def rows_of(artifact: Artifact) -> str:
        names = {
            name.rpartition("/")[2].partition(".")[0].partition("-")[0]: count
            for name, count in artifact.manifest["rows"].items()
        }
        return ", ".join(f"{count} {name}" for name, count in names.items())

    rows = tuple(
        (each.kind, each.ref, f"{each.manifest['stage']} {each.manifest['version']}", rows_of(each), each.id)
        for each in artifacts
    )
    return Table("lineage", "", ("kind", "artifact", "stage and version", "rows", "id (SHA-256)"), "lllll", rows)
