"""What may be published: listed files, intact, made from open sources, without secrets."""

import re
import shutil
from pathlib import Path

import pytest

from psychocounsel.errors import ConfigError, InputError, StoreError
from psychocounsel.store.artifacts import ArtifactSpec, ArtifactWriter
from psychocounsel.store.publish import ALLOWED, home_kinds, is_allowed, key_kinds, kinds_in, prepare_publication
from psychocounsel.store.store import Store
from released_store import MODEL_FILES, make_dataset, make_model, weights

LETTERS = "Ab3" * 12
KEY = f"sk-{LETTERS}"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path)


def card(writer: ArtifactWriter) -> None:
    writer.write_card("---\nlicense: mit\n---\n# small\n")
    writer.file("figures/ratings.png").write_bytes(b"\x89PNG")


def test_the_files_of_a_dataset(store: Store) -> None:
    def with_strays(writer: ArtifactWriter) -> None:
        card(writer)
        writer.file("notes.txt").write_text("writer", encoding="utf-8")
        writer.file("data/deep/er.parquet").write_bytes(b"")
        writer.file("data/raw.csv").write_text("a", encoding="utf-8")

    made = make_dataset(store, with_strays)
    (made.folder / "data/added-later.parquet").write_bytes(b"PAR1")
    planned = prepare_publication(store, f"preferences/{made.ref}")
    tables = ["data/test-00000-of-00001.parquet", "data/train-00000-of-00001.parquet"]
    assert list(planned.files) == ["README.md", *tables, "figures/ratings.png", "manifest.json", "metrics.json"]
    assert planned.left_out == ("data/deep/er.parquet", "data/raw.csv", "notes.txt")
    assert planned.files == {name: made.file(name).stat().st_size for name in planned.files}


@pytest.mark.parametrize("kind", ["policies", "reward-models"])
def test_the_files_of_a_model(store: Store, kind: str) -> None:
    strays = {"training_args.bin": b"token", "scores.parquet": b"", "optimizer.pt": b"", "x.safetensors.old": b""}
    made = make_model(store, kind, **strays)
    planned = prepare_publication(store, made.ref)
    assert set(planned.files) == {*MODEL_FILES, "model.safetensors", "manifest.json", "metrics.json"}
    assert planned.left_out == tuple(sorted(strays))


@pytest.mark.parametrize("kind", ALLOWED)
@pytest.mark.parametrize(
    "name", ["training_args.bin", "work/model.safetensors", "work/README.md", ".env", "data/../x.parquet"]
)
def test_scratch_and_pickles_are_never_allowed(kind: str, name: str) -> None:
    assert not is_allowed(kind, name)


def test_a_name_means_the_artifact_that_can_be_published(store: Store) -> None:
    made = make_dataset(store, card)
    with pytest.raises(ConfigError, match="is one of judgements; name one of preferences, reward-models, policies"):
        prepare_publication(store, "judgements/small")
    assert {each.kind for each in store.artifacts() if each.name == "small"} >= {"judgements", "preferences"}
    assert prepare_publication(store, "small").artifact == made
    store.make(ArtifactSpec("policies", "small", "align", 1, {}), card)
    with pytest.raises(ConfigError, match="write policies/small or preferences/small"):
        prepare_publication(store, "small")


def test_a_damaged_file_is_not_published_nor_a_dataset_without_a_card(store: Store) -> None:
    table = make_dataset(store, card).file("data/train-00000-of-00001.parquet")
    content = bytearray(table.read_bytes())
    content[40] ^= 1
    table.write_bytes(content)
    with pytest.raises(StoreError, match=r"train-00000.* has other bytes .*; move the artifact's folder away"):
        prepare_publication(store, "preferences/small")
    without_card = Store(store.root / "another")
    make_dataset(without_card, lambda _: None)
    with pytest.raises(StoreError, match="has no card"):
        prepare_publication(without_card, "preferences/small")


def test_restricted_text_is_not_published(store: Store) -> None:
    made = make_dataset(store, card, data_class="restricted")
    model = make_model(store, parents=(made.as_parent("preferences"),))
    for ref in (f"preferences/{made.ref}", f"policies/{model.ref}"):
        with pytest.raises(InputError, match=r"restricted text: speeches\.0\.data_class of speeches small@"):
            prepare_publication(store, ref)


def test_a_missing_ancestor_is_not_taken_for_open(store: Store) -> None:
    make_dataset(store, card)
    shutil.rmtree(store.root / "speeches")
    with pytest.raises(StoreError, match=r"speeches small@.* is not in the store"):
        prepare_publication(store, "preferences/small")


def test_secrets_in_a_text_file_are_reported_by_their_lines(store: Store) -> None:
    texts = [KEY, "/home/anna/data", "hf_" + "Ab3" * 12, *[KEY] * 50]
    make_dataset(store, lambda writer: writer.write_card("# small\n\n" + "".join(f"see {text}\n" for text in texts)))
    with pytest.raises(InputError) as caught:
        prepare_publication(store, "preferences/small")
    message = str(caught.value)
    assert all(f"README.md line {line}: a" in message for line in (3, 4, 5))
    assert not [text for text in texts if text in message]
    assert "replaced" in caught.value.remedy
    assert message.count("README.md line") == 20
    assert "and more" in message


def test_keys_in_cells_are_reported_and_home_folders_are_not(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    small, large = ("small-model", f"my key is {KEY}", (1, 2)), ("large-model", "Look into /home/anna/diary", (5, 4))
    monkeypatch.setattr("released_store.ANSWERS", (small, large))
    make_dataset(store, card)
    with pytest.raises(InputError, match=r"train-00000\S* row 2, column rejected: an API key") as caught:
        prepare_publication(store, "preferences/small")
    assert KEY not in str(caught.value)
    assert "/home/anna" not in str(caught.value)
    assert "home folder" not in str(caught.value)


def test_secrets_in_manifest_configs_and_weights_are_found(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COUNSEL_API_KEY", "plain words as a key")

    def build(writer: ArtifactWriter) -> None:
        writer.write_card("these are plain words as a key")
        writer.file("config.json").write_text(f'{{"_name": "{KEY}"}}', encoding="utf-8")
        writer.file("model.safetensors").write_bytes(weights({"trained_in": "/home/anna/runs"}))

    store.make(ArtifactSpec("policies", "tiny", "align", 1, {"policy": "/home/anna/llama"}), build)
    with pytest.raises(InputError) as caught:
        prepare_publication(store, "policies/tiny")
    message = str(caught.value)
    assert "README.md line 1: the value of COUNSEL_API_KEY" in message
    assert "config.json line 1: an API key" in message
    assert "model.safetensors header: a path of a home folder" in message
    assert re.search(r"manifest.json line \d+: a path of a home folder", message)
    assert "plain words" not in message


HOME = "a path of a home folder"


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        (f"key = sk-{LETTERS}", "an API key (sk-)"),
        (f'{{"k": "sk-proj-{LETTERS}"}}', "an API key (sk-)"),
        (f"hf_{LETTERS}", "a Hugging Face token"),
        ("id AKIAABCDEFGHIJKLMNOP.", "an AWS access key"),
        (f"ghp_{LETTERS}", "a GitHub token"),
        (f"github_pat_{LETTERS}", "a GitHub token"),
        (f"AIza{LETTERS[:35]}", "a Google API key"),
        (f"xoxb-{LETTERS}", "a Slack token"),
        ("-----BEGIN RSA PRIVATE KEY-----", "a private key"),
        ("-----BEGIN PRIVATE KEY-----", "a private key"),
        *((path, HOME) for path in ("/home/anna/data", "file:///home/anna/x", '"/Users/anna/c.csv"', "/root/x")),
        ("C:\\\\Users\\\\anna", HOME),
        *(
            (text, "")
            for text in ("a risk-taking-behaviour-that-frightens-me", "hf_hub_download(repo_id)", "ghp_short")
        ),
        *((text, "") for text in ("my PRIVATE KEY to happiness", "sk-short", "BAKIAABCDEFGHIJKLMNOPQ")),
        *((path, "") for path in ("https://x.org/home/page", "data/home/anna", "/srv/data", "at home/work")),
    ],
)
def test_keys_and_home_folders_are_found_by_their_shape(text: str, kind: str) -> None:
    assert list(kinds_in(text, [*key_kinds({}), *home_kinds()])) == ([kind] if kind else [])


def test_values_of_this_machines_keys_are_found() -> None:
    own = {"MY_API_KEY": "correct.horse.battery", "SHORT_TOKEN": "EMPTY", "PATH": "/usr/bin/something"}
    kinds = key_kinds({**own, "hf_token": " padded-value "})
    assert list(kinds_in("x correct.horse.battery y", kinds)) == ["the value of MY_API_KEY"]
    assert list(kinds_in('"padded-value"', kinds)) == ["the value of hf_token"]
    assert not list(kinds_in("EMPTY correctXhorseXbattery /usr/bin/something", kinds))


def test_this_machines_own_home_is_found_anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/srv/people/anna")
    assert list(kinds_in("in /srv/people/anna/data", home_kinds())) == [HOME]
    assert not list(kinds_in("in /srv/people/annabel", home_kinds()))
