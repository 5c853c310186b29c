"""What a run leaves behind opens with the usual libraries, keeps its splits apart and says who judged."""

import json
from pathlib import Path

import pytest

from psychocounsel.config.components import ChatFormat
from psychocounsel.judging.offline import WARNING
from psychocounsel.judging.rubric import load_rubric
from psychocounsel.store.artifacts import Artifact
from psychocounsel.store.references import ancestors
from psychocounsel.store.schemas import read_candidates, read_pairs, read_scores, read_speeches
from psychocounsel.store.store import Store
from psychocounsel.types import Policy
from running import Miniature

PRINCIPLES = load_rubric("seven-principles").principle_ids
RELEASED = {
    "ID": "string",
    "prefID": "int64",
    **dict.fromkeys(("question", "chosen", "rejected", "chosen_model", "rejected_model"), "string"),
    **{f"{side}_{each}_rating": "int64" for side in ("chosen", "rejected") for each in PRINCIPLES},
}


@pytest.fixture(scope="module")
def store(miniature: Miniature) -> Store:
    return Store(miniature.store)


def artifact(store: Store, kind: str, name: str) -> Artifact:
    return next(each for each in store.artifacts() if (each.kind, each.name) == (kind, name))


class TestOpens:
    def test_preferences_as_a_data_set(self, store: Store, tmp_path: Path) -> None:
        from datasets import load_dataset

        made = artifact(store, "preferences", "mini")
        opened = load_dataset(str(made.folder), cache_dir=str(tmp_path))
        kept = {split: counts["kept"] for split, counts in made.metrics["pairing"].items()}
        assert {split: len(table) for split, table in opened.items()} == kept
        features = opened["train"].features
        assert {name: features[name].dtype for name in RELEASED} == RELEASED
        assert list(features)[:2] == ["ID", "prefID"]
        row = opened["train"][0]
        pair = read_pairs(made, "train")[0]
        assert (row["question"], row["chosen"]) == (pair.speech.text, pair.chosen.candidate.text)

    def test_policy_as_a_language_model(self, store: Store) -> None:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        for name in ("mini-dpo", "mini-online"):
            folder = artifact(store, "policies", name).folder
            model = AutoModelForCausalLM.from_pretrained(folder)
            tokenizer = AutoTokenizer.from_pretrained(folder)
            ids = tokenizer.apply_chat_template(
                [{"role": "user", "content": "I cannot sleep."}], add_generation_prompt=True, return_tensors="pt"
            )
            answer = model.generate(**ids, max_new_tokens=4, do_sample=False)
            assert answer.shape[-1] > ids["input_ids"].shape[-1]
            assert len(model.generation_config.eos_token_id) == 3
            assert all(torch.isfinite(weight).all() for weight in model.parameters())

    def test_reward_model_gives_the_same_logits(self, store: Store) -> None:
        import torch
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        from psychocounsel.training.reward import Exchange, RewardScorer

        made = artifact(store, "reward-models", "mini")
        pairs = read_pairs(artifact(store, "preferences", "mini"), "test")
        exchanges = [Exchange(pair.speech.text, pair.chosen.candidate.text) for pair in pairs]
        scorer = RewardScorer.load(Policy(str(made.folder)), ChatFormat())
        ours = [each.raw for each in scorer.rewards(exchanges, 3)]
        model = AutoModelForSequenceClassification.from_pretrained(made.folder).eval()
        tokenizer = AutoTokenizer.from_pretrained(made.folder)
        config = json.loads(made.file("config.json").read_text(encoding="utf-8"))
        for (speech, response, _), raw in zip(exchanges, ours, strict=True):
            chat = [{"role": "user", "content": speech}, {"role": "assistant", "content": response}]
            ids = tokenizer.apply_chat_template(chat, date_string=ChatFormat().date_string, return_tensors="pt")
            with torch.no_grad():
                assert model(**ids).logits.item() == pytest.approx(raw, abs=1e-5)
            expected = (raw - config["reward_mean"]) / config["reward_std"]
            assert scorer.meaning.normalisation.apply(raw) == pytest.approx(expected)
        assert len({round(raw, 4) for raw in ours}) > 1

    def test_scores_tell_the_length_of_every_answer(self, store: Store) -> None:
        from psychocounsel.training.tokenize import encode_exchange, load_tokenizer

        made = artifact(store, "reward-models", "mini")
        tokenizer = load_tokenizer(Policy(str(made.folder)))
        pairs = read_pairs(artifact(store, "preferences", "mini"), "test")
        expected: dict[str, int] = {}
        for pair in pairs:
            for answer in (pair.chosen.candidate, pair.rejected.candidate):
                ids = encode_exchange(tokenizer, pair.speech.text, answer.text, ChatFormat()).response_ids
                expected[answer.id] = len(ids)
        assert {each.candidate_id: each.tokens for each in read_scores(made)} == expected


@pytest.fixture(scope="module")
def split_of(store: Store) -> dict[str, str]:
    """The split of each speech, by its id."""
    return {row.speech.id: row.split for row in read_speeches(artifact(store, "speeches", "mini"))}


class TestSplits:
    def test_clusters_and_speeches_lie_in_one_split(self, store: Store) -> None:
        rows = read_speeches(artifact(store, "speeches", "mini"))
        assert {row.split for row in rows} == {"train", "dev", "test"}
        for key in (lambda row: row.cluster, lambda row: row.speech.id):
            assert len({(key(row), row.split) for row in rows}) == len({key(row) for row in rows})

    def test_pairs_stay_in_the_split_of_their_speech(self, store: Store, split_of: dict[str, str]) -> None:
        preferences = artifact(store, "preferences", "mini")
        for split in ("train", "dev", "test"):
            pairs = read_pairs(preferences, split)
            assert {split_of[pair.speech.id] for pair in pairs} == {split}

    def test_rounds_answer_training_speeches_only(self, store: Store, split_of: dict[str, str]) -> None:
        for number in (1, 2):
            candidates = read_candidates(artifact(store, "candidates", f"mini-online-round-{number:02d}"))
            assert {split_of[each.speech_id] for each in candidates} == {"train"}

    def test_win_rate_is_measured_on_test_speeches_only(self, store: Store, split_of: dict[str, str]) -> None:
        held_out = {speech_id for speech_id, split in split_of.items() if split == "test"}
        for side in ("policy", "reference"):
            candidates = read_candidates(artifact(store, "candidates", f"mini-{side}"))
            assert {each.speech_id for each in candidates} == held_out


class TestNotices:
    def test_notice_heads_everything_downstream_and_nothing_else(self, store: Store) -> None:
        judged = artifact(store, "judgements", "mini").id
        for each in store.artifacts():
            came_from = {one.artifact.id for one in ancestors(store, each)}
            expected = (WARNING,) if judged in came_from or each.kind == "comparisons" else ()
            assert each.warnings == expected, each.ref

    def test_notice_stands_in_the_first_lines(self, store: Store) -> None:
        for each in store.artifacts():
            if each.warnings:
                manifest = each.file("manifest.json").read_text(encoding="utf-8").splitlines()
                assert WARNING in "".join(manifest[:4]), each.ref
        cards = [each.file("README.md") for each in store.artifacts() if each.warnings]
        bodies = [path.read_text(encoding="utf-8").split("---\n", 2)[2] for path in cards if path.is_file()]
        assert len(bodies) >= 4  # preferences, the reward model, two policies
        assert all(WARNING in "".join(body.split("\n\n")[:2]) for body in bodies)

    def test_it_comes_before_what_report_and_command_line_show(self, store: Store, miniature: Miniature) -> None:
        page = artifact(store, "reports", "mini").file("report.html").read_text(encoding="utf-8")
        assert page.index(WARNING) < page.index('<p class="lead">')
        out = miniature.ended.out
        assert out.count(f"! {WARNING}\n") == 1
        assert out.index(WARNING) < out.index("mini@")  # the first that it is about; mini-base was rated by nobody


def test_the_card_of_an_online_policy_says_how_its_answers_were_sampled_and_paired(store: Store) -> None:
    card = artifact(store, "policies", "mini-online").file("README.md").read_text(encoding="utf-8")
    settings = card.partition("\n## Settings\n")[2].partition("\n## ")[0]
    for line in ("candidates_per_speech | 3", "sampling.temperature | 1.0", "unfinished | penalise", "beta | 0.1"):
        assert f"| {line} |" in settings
