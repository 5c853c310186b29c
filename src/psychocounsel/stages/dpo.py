"""DPO on a preference dataset, and what a training on pairs needs in an online run too."""

from collections.abc import Sequence
from typing import Any

from psychocounsel.config.schema import AlignConfig
from psychocounsel.llm.cancel import CancelToken
from psychocounsel.reporting.cards import model_card
from psychocounsel.stages.jobs import Jobs
from psychocounsel.stages.preflight import require_disk
from psychocounsel.store.artifacts import Artifact, ArtifactSpec, ArtifactWriter, Parent
from psychocounsel.store.references import POLICY_KINDS, ModelReference, model_of, resolve_model, resolve_parent
from psychocounsel.store.schemas import ReferenceLogprobs, read_pairs, read_records, write_records
from psychocounsel.store.store import Store
from psychocounsel.types import Policy, PreferencePair

VERSION = 5
STAGE = "align"
INITIAL_POLICY = "initial policy"


def dpo_settings(config: AlignConfig, initial_policy: dict[str, Any]) -> dict[str, Any]:
    """Return what affects one DPO training, besides the parents: models and data."""
    without = {"name", "policy", "preferences", "online"}
    own = {key: value for key, value in config.fingerprint().items() if key not in without}
    return {**own, "initial_policy": initial_policy}


def plan_reference(config: AlignConfig, name: str, initial: ModelReference, pairs: Parent) -> ArtifactSpec:
    """Return the spec of what the reference, the initial policy, gives to the answers of pairs."""
    settings = {
        "reference": initial.fingerprint,
        "chat": config.chat.fingerprint(),
        "length": config.length.fingerprint(),
        "weights": config.optimisation.weights,
        "precision": config.optimisation.precision,
    }
    parents = (pairs._replace(role="pairs"), *initial.parents(INITIAL_POLICY))
    return ArtifactSpec("reference-logps", name, STAGE, VERSION, settings, parents)


def plan_dpo(config: AlignConfig, store: Store) -> tuple[ArtifactSpec, ArtifactSpec]:
    """Return the specs of the reference's log-probabilities and of the policy."""
    initial = resolve_model(store, config.policy, POLICY_KINDS)
    preferences = resolve_parent(store, config.preferences or "", "preferences", "preferences")
    reference = plan_reference(config, config.name, initial, preferences)
    settings = dpo_settings(config, initial.fingerprint)
    parents = (preferences, reference.as_parent("reference"), *initial.parents(INITIAL_POLICY))
    return reference, ArtifactSpec("policies", config.name, STAGE, VERSION, settings, parents)


def align_offline(config: AlignConfig, store: Store, cancel: CancelToken) -> Artifact:
    """Train the policy of a config on its preference dataset, or return it if it exists."""
    reference, policy = plan_dpo(config, store)
    store.make(reference, lambda writer: compute_reference(config, store, writer, cancel))

    def build(writer: ArtifactWriter) -> None:
        preferences = store.open(writer.parent("preferences"))
        pairs = read_pairs(preferences, "train")
        initial = model_of(store, policy, INITIAL_POLICY, config.policy, POLICY_KINDS).policy(store)
        training = train_policy(config, store, initial, pairs, writer, cancel, max_steps=config.max_steps)
        writer.write_metrics({"training": training, "pairs": len(pairs)})
        write_policy_card(config, store, writer, preferences)

    return store.make(policy, build)


def compute_reference(config: AlignConfig, store: Store, writer: ArtifactWriter, cancel: CancelToken) -> None:
    """Write what the reference, the initial policy, gives to the answers of the writer's pairs."""
    from psychocounsel.training.reference import reference_logprobs  # imports torch
    from psychocounsel.training.tokenize import load_tokenizer, tokenize_pairs

    reference = model_of(store, writer.spec, INITIAL_POLICY, config.policy, POLICY_KINDS).policy(store)
    pairs = read_pairs(store.open(writer.parent("pairs")), "train")
    rows, lengths = tokenize_pairs(pairs, load_tokenizer(reference), config.length, config.chat)
    plain = {"reference": reference, "rows": rows, "optimisation": config.optimisation, "work": writer.work}
    jobs = Jobs(config.launch, writer, cancel)
    found = jobs.run("log-probabilities of the reference", reference_logprobs, "rows", **plain)
    write_records(writer, ReferenceLogprobs, found)
    chosen, rejected = sum(each.chosen_tokens for each in found), sum(each.rejected_tokens for each in found)
    writer.write_metrics(
        {
            "lengths": lengths._asdict(),
            "tokens": chosen + rejected,
            "chosen_per_token": sum(each.chosen_logps for each in found) / chosen,
            "rejected_per_token": sum(each.rejected_logps for each in found) / rejected,
        }
    )


def train_policy(
    config: AlignConfig,
    store: Store,
    policy: Policy,
    pairs: Sequence[PreferencePair],
    writer: ArtifactWriter,
    cancel: CancelToken,
    **schedule: Any,
) -> dict[str, Any]:
    """Train the writer's policy, from `policy`, and return the metrics of the training.

    `schedule` has the arguments of `train_dpo` that say how long.
    """
    from psychocounsel.training.dpo import train_dpo  # imports torch

    require_disk(config, policy, writer.work)
    seed = int(writer.spec.settings["seed"])
    reference = read_records(store.open(writer.parent("reference")), ReferenceLogprobs)
    plain = {"policy": policy, "reference": reference, "pairs": pairs, "config": config, "seed": seed, **schedule}
    return Jobs(config.launch, writer, cancel).train(f"aligning {writer.spec.name}", train_dpo, **plain).as_dict()


def write_policy_card(config: AlignConfig, store: Store, writer: ArtifactWriter, pairs: Artifact) -> None:
    """Write the card of a policy; the warnings of its `pairs` head it."""
    how = "DPO" if config.mode == "dpo" else "online DPO"
    loss = "" if config.loss == "sigmoid" else f" ({config.loss} loss)"
    writer.write_card(model_card(store, writer, f"policy aligned by {how}{loss}", pairs.warnings))
