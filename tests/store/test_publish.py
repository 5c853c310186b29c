"""What may leave the store: listed files, sound, of open sources, without secrets."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from psychocounsel.errors import ConfigError, InputError, StoreError
from psychocounsel.store.artifacts import ArtifactSpec, ArtifactWriter
from psychocounsel.store.publish import ALLOWED, is_allowed, prepare_publication
from psychocounsel.store.store import Store
from released_store import MODEL_FILES, make_dataset, make_model, weights

KEY = "sk-" + "Ab3" * 12


def card(writer: ArtifactWriter) -> None:
    writer.write_card("---\nlicense: mit\n---\n# small\n")
    writer.file("figures/ratings.png").write_bytes(b"\x89PNG")


def test_of_a_dataset_go_the_card_tables_figures_and_numbers(tmp_path: Path) -> None:
    def with_strays(writer: ArtifactWriter) -> None:
        card(writer)
        writer.file("notes.txt").write_text("writer", encoding="utf-8")
        writer.file("data/deep/er.parquet").write_bytes(b"")
        writer.file("data/raw.csv").write_text("a", encoding="utf-8")

    store = Store(tmp_path)
    made = make_dataset(store, with_strays)
    (made.folder / "data/added-later.parquet").write_bytes(b"PAR1")
    planned = prepare_publication(store, f"preferences/{made.ref}")
    assert [each.name for each in planned.files] == [
        "README.md",
        "data/test-00000-of-00001.parquet",
        "data/train-00000-of-00001.parquet",
        "figures/ratings.png",
        "manifest.json",
        "metrics.json",
    ]
    assert planned.left_out == ("data/deep/er.parquet", "data/raw.csv", "notes.txt")
    assert planned.bytes == sum(made.file(each.name).stat().st_size for each in planned.files)


@pytest.mark.parametrize("kind", ["policies", "reward-models"])
def test_of_a_model_go_weights_configs_and_tokenizer(tmp_path: Path, kind: str) -> None:
    store = Store(tmp_path)
    strays = {"training_args.bin": b"token", "scores.parquet": b"", "optimizer.pt": b"", "x.safetensors.old": b""}
    made = make_model(store, kind, **strays)
    planned = prepare_publication(store, made.ref)
    assert {each.name for each in planned.files} == {
        *MODEL_FILES,
        *("model.safetensors", "manifest.json", "metrics.json"),
    }
    assert planned.left_out == tuple(sorted(strays))


@pytest.mark.parametrize("kind", ALLOWED)
@pytest.mark.parametrize(
    "name", ["training_args.bin", "work/model.safetensors", "work/README.md", ".env", "data/../x.parquet"]
)
def test_scratch_and_pickles_are_never_allowed(kind: str, name: str) -> None:
    assert not is_allowed(kind, name)


def test_other_kinds_are_not_published(tmp_path: Path) -> None:
    store = Store(tmp_path)
    make_dataset(store, card)
    with pytest.raises(ConfigError, match="is one of judgements; name one of preferences, reward-models, policies"):
        prepare_publication(store, "judgements/small")


def test_a_bare_name_means_the_artifact_that_can_be_published(tmp_path: Path) -> None:
    store = Store(tmp_path)
    made = make_dataset(store, card)
    assert {each.kind for each in store.artifacts() if each.name == "small"} >= {"judgements", "preferences"}
    assert prepare_publication(store, "small").artifact == made
    store.make(ArtifactSpec("policies", "small", "align", 1, {}), card)
    with pytest.raises(ConfigError, match="'small' names policies, preferences; write policies/small"):
        prepare_publication(store, "small")


def test_a_dataset_without_a_card_is_not_published(tmp_path: Path) -> None:
    store = Store(tmp_path)
    make_dataset(store, lambda _: None)
    with pytest.raises(StoreError, match="has no card"):
        prepare_publication(store, "preferences/small")


def test_a_damaged_file_is_told_with_its_remedy(tmp_path: Path) -> None:
    store = Store(tmp_path)
    table = make_dataset(store, card).file("data/train-00000-of-00001.parquet")
    content = bytearray(table.read_bytes())
    content[40] ^= 1
    table.write_bytes(content)
    with pytest.raises(StoreError, match=r"train-00000.* has other bytes .*; move the artifact's folder away"):
        prepare_publication(store, "preferences/small")


def test_what_was_made_from_restricted_text_stays_here(tmp_path: Path) -> None:
    store = Store(tmp_path)
    made = make_dataset(store, card, data_class="restricted")
    model = make_model(store, parents=(made.as_parent("preferences"),))
    for ref in (f"preferences/{made.ref}", f"policies/{model.ref}"):
        with pytest.raises(InputError, match=r"restricted text: speeches\.0\.data_class of speeches small@"):
            prepare_publication(store, ref)


def test_what_has_lost_an_ancestor_is_not_taken_for_open(tmp_path: Path) -> None:
    store = Store(tmp_path)
    make_dataset(store, card)
    shutil.rmtree(tmp_path / "speeches")
    with pytest.raises(StoreError, match=r"speeches small@.* is not in the store"):
        prepare_publication(store, "preferences/small")


def in_card(text: str) -> Callable[[ArtifactWriter], None]:
    return lambda writer: writer.write_card(f"# small\n\n{text}\n")


@pytest.mark.parametrize("text", [KEY, "/home/anna/data", "hf_" + "Ab3" * 12])
def test_a_secret_in_a_text_file_is_told_by_its_line_and_not_by_its_words(tmp_path: Path, text: str) -> None:
    store = Store(tmp_path)
    make_dataset(store, in_card(f"see {text}"))
    with pytest.raises(InputError, match=r"README\.md line 3: a") as caught:
        prepare_publication(store, "preferences/small")
    assert text not in str(caught.value)
    assert "replaced" in caught.value.remedy


def test_a_secret_in_a_cell_is_told_by_row_and_column(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rated = (("small-model", f"my key is {KEY}", (1, 2)), ("large-model", "That sounds heavy.", (5, 4)))
    monkeypatch.setattr("released_store.ANSWERS", rated)
    store = Store(tmp_path)
    make_dataset(store, card)
    with pytest.raises(InputError, match=r"train-00000\S* row 2, column rejected: an API key") as caught:
        prepare_publication(store, "preferences/small")
    assert KEY not in str(caught.value)


def test_clients_may_speak_of_their_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rated = (("small-model", "Look into /home/anna/diary", (1, 2)), ("large-model", "That is heavy.", (5, 4)))
    monkeypatch.setattr("released_store.ANSWERS", rated)
    store = Store(tmp_path)
    make_dataset(store, card)
    assert prepare_publication(store, "preferences/small").files


def test_the_value_of_a_key_of_this_machine_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COUNSEL_API_KEY", "plain words as a key")
    store = Store(tmp_path)
    make_dataset(store, in_card("these are plain words as a key"))
    with pytest.raises(InputError, match=r"README\.md line 3: the value of COUNSEL_API_KEY") as caught:
        prepare_publication(store, "preferences/small")
    assert "plain words" not in str(caught.value)


def test_secrets_in_manifest_configs_and_weights_are_found(tmp_path: Path) -> None:
    store = Store(tmp_path)
    header = weights({"trained_in": "/home/anna/runs"})
    make_model(store, **{"config.json": f'{{"_name": "{KEY}"}}'.encode(), "model.safetensors": header})
    with pytest.raises(InputError) as caught:
        prepare_publication(store, "policies/tiny")
    assert "config.json line 1: an API key" in str(caught.value)
    assert "model.safetensors header: a path of a home folder" in str(caught.value)


def test_a_home_folder_in_the_settings_is_found_in_the_manifest(tmp_path: Path) -> None:
    store = Store(tmp_path)
    plan = ArtifactSpec("policies", "tiny", "align", 1, {"policy": "/home/anna/llama"})
    store.make(plan, lambda writer: writer.write_card("# tiny"))
    with pytest.raises(InputError, match=r"manifest.json line \d+: a path of a home folder"):
        prepare_publication(store, "policies/tiny")


def test_of_many_findings_the_first_are_told(tmp_path: Path) -> None:
    store = Store(tmp_path)
    make_dataset(store, in_card("\n".join([KEY] * 50)))
    with pytest.raises(InputError) as caught:
        prepare_publication(store, "preferences/small")
    assert str(caught.value).count("README.md line") == 20
    assert "and more" in str(caught.value)
