"""`psychocounsel gc`: it frees what it says, and what stays verifies; and the umask of what is written."""

import subprocess
import sys
from pathlib import Path

import pytest

from psychocounsel.errors import StoreError
from psychocounsel.llm.journal import Journal
from psychocounsel.store.artifacts import MANIFEST, Artifact, ArtifactSpec, ArtifactWriter, Kind, Parent
from psychocounsel.store.files import UMASK_VARIABLE, human_bytes
from psychocounsel.store.gc import Kept, find_garbage
from psychocounsel.store.references import ancestors
from psychocounsel.store.store import Store, damaged_files, note_failed, retry_spec
from running import Cli

RUNS = 5
ROUNDS = 4
BEST = 2


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def make(store: Store, kind: Kind, name: str, seed: int, *parents: Artifact | Parent, size: int = 5_000) -> Artifact:
    def build(writer: ArtifactWriter) -> None:
        writer.file("model.safetensors").write_bytes(bytes([seed]) * size)

    named = (each if isinstance(each, Parent) else each.as_parent(each.kind) for each in parents)
    return store.make(ArtifactSpec(kind, name, "test", 1, {"seed": seed}, tuple(named)), build)


def run(store: Store, seed: int) -> Artifact:
    """Make what a small recipe would; the speeches are the same in every run."""
    speeches = make(store, "speeches", "talk", 0)
    answers = make(store, "candidates", "talk", seed, speeches)
    policy = make(store, "policies", "talk", seed, answers, size=1_000_000)
    make(store, "scores", "talk", seed, answers)
    return make(store, "reports", "talk", seed, policy)


def bytes_on_disk(store: Store) -> int:
    files = [path.stat() for path in store.root.rglob("*") if path.is_file()]
    return sum({state.st_ino: state.st_size for state in files}.values())


def frees_what_it_says(cli: Cli, store: Store, *flags: str) -> set[str]:
    """Remove garbage; return what stays, by `kind/name@id8`, all of it with intact ancestors."""
    promised = cli("gc", "--store", store.root, *flags)
    before = bytes_on_disk(store)
    done = cli("gc", "--yes", "--store", store.root, *flags)
    freed = human_bytes(before - bytes_on_disk(store))
    assert (promised.code, done.code) == (0, 0), promised.err + done.err
    assert f"would free {freed}\n" in promised.out
    assert f"freed {freed}\n" in done.out
    assert "would free 0 B\n" in cli("gc", "--store", store.root, *flags).out
    kept = store.artifacts()
    for artifact in kept:
        assert not [each for each in ancestors(store, artifact) if damaged_files(each.artifact)]
    return {f"{each.kind}/{each.ref}" for each in kept}


def test_a_named_result_goes_when_it_is_dropped_and_nothing_was_made_from_it(cli: Cli, store: Store) -> None:
    first, last = run(store, 1), run(store, 2)
    policies = {each.ref for each in store.artifacts("policies")}
    policy = next(iter(last.parents)).ref
    cli("gc", "--store", store.root, "--drop", policy).says(2, f"--drop reports/{last.ref}")
    both = ("--drop", policy, "--drop", f"reports/{last.ref}")
    for more, left in ((("--dry-run",), policies), (("--yes",), policies - {policy})):
        assert cli("gc", "--store", store.root, *both, *more).code == 0
        assert {each.ref for each in store.artifacts("policies")} == left
    assert [each.ref for each in store.artifacts("reports")] == [first.ref], "the name means the one before again"
    cli("gc", "--store", store.root, "--drop", "talk").says(2, "talk")  # of several kinds


def test_a_dropped_result_stays_under_its_other_name(cli: Cli, store: Store) -> None:
    trial, final = (make(store, "policies", name, 1) for name in ("trial", "final"))
    assert trial.id == final.id
    assert cli("gc", "--store", store.root, "--yes", "--drop", trial.folder).code == 0
    assert [each.ref for each in store.artifacts()] == [final.ref]
    assert not damaged_files(final)


def test_what_a_retry_or_keep_needs_is_not_dropped(cli: Cli, store: Store) -> None:
    spec = ArtifactSpec("judgements", "talk", "test", 1, {})
    store.make(spec, lambda writer: note_failed(writer, 1))
    again = store.make(retry_spec(spec, store, again=True), lambda writer: note_failed(writer, 0))
    cli("gc", "--store", store.root, "--drop", spec.ref).says(2, f"--drop judgements/{again.ref}")
    cli("gc", "--store", store.root, "--drop", again.ref, "--keep", again.ref).says(2, "--keep")
    assert cli("gc", "--store", store.root, "--yes", "--drop", again.ref, "--drop", spec.ref).code == 0
    assert store.artifacts() == []


def test_the_raw_texts_of_a_corpus_go_with_it(cli: Cli, store: Store, tmp_path: Path) -> None:
    talk = "I have lain awake since the winter, and every {} in the yard reminds me of what I said to my sister.\n"
    said = "".join(talk.format(word) for word in ("harbour", "lantern", "orchard", "pebble", "quarry", "ribbon"))
    (tmp_path / "said.csv").write_text("text\n" + said.replace(", ", " "), encoding="utf-8")
    (tmp_path / "corpus.yaml").write_text(
        "{name: talk, speeches: [{path: said.csv, columns: {text: text}, licence: mit, data_class: restricted}],"
        " split: {test_share: 1, dev_share: 0}}",
        encoding="utf-8",
    )
    for least in (50, 60):
        made = cli("corpus", tmp_path / "corpus.yaml", "--store", store.root, "--set", f"cleaning.min_chars={least}")
        assert made.code == 0, made.err
    assert len(list(store.root.glob("private/*"))) == 2
    (newest,) = frees_what_it_says(cli, store)
    assert [page.stem for page in store.root.glob("private/*")] == [f"corpus-talk-{newest.partition('@')[2]}"]


def test_five_runs_keep_what_names_reports_and_children_need(cli: Cli, store: Store) -> None:
    reports = [run(store, seed) for seed in range(1, RUNS + 1)]
    lone = make(store, "policies", "talk", 0, make(store, "speeches", "other", 0))
    newest = run(store, RUNS + 1)
    half = store.root / "policies" / "talk-abcdefgh" / "work" / "checkpoint"
    half.parent.mkdir(parents=True)
    half.write_bytes(b"half")
    (store.root / "policies" / ".damaged-talk").mkdir()
    everything = {f"{each.kind}/{each.ref}" for each in store.artifacts()}
    assert cli("gc", "--store", store.root).code == 0
    assert half.exists(), "without --yes nothing is removed"
    superseded = {f"scores/{each.ref}" for each in store.artifacts("scores")[:-1]} | {f"policies/{lone.ref}"}
    assert frees_what_it_says(cli, store) == everything - superseded
    assert half.exists(), "the same command would resume"
    frees_what_it_says(cli, store, "--unfinished")
    assert not half.exists()
    assert sorted(each.name for each in (store.root / "policies").glob(".*")) == []
    kept = frees_what_it_says(cli, store, "--old-reports", "--keep", f"reports/{reports[1].ref}")
    lines = {each.artifact.id for report in (reports[1], newest) for each in ancestors(store, report)}
    assert {each.id for each in store.artifacts() if each.kind != "scores"} - lines == {
        each.id for each in store.artifacts("speeches")
    } - lines
    assert len(kept) == len(lines) + 2


@pytest.mark.parametrize("ahead", ["speeches", "candidates"])
def test_children_go_before_their_parents_whatever_clocks_said_and_their_names_meant_last(
    store: Store, ahead: str
) -> None:
    for seed in (1, 2):
        made = {"speeches": make(store, "speeches", "talk", seed)}
        made["candidates"] = make(store, "candidates", "talk", seed, made["speeches"])
        manifest = made[ahead].file(MANIFEST)
        manifest.write_text(
            manifest.read_text().replace(made[ahead].manifest["created_at"], f"2999-01-0{seed}T00:00:00")
        )
    older, newer = (ArtifactSpec("speeches", "talk", "test", 1, {"seed": seed}) for seed in (1, 2))
    store.name_again([older])
    store.name_again([newer])
    assert [each.what.partition(" ")[0] for each in find_garbage(store, Kept())] == ["candidates", "speeches"]


def test_a_retry_keeps_what_it_retried_by_which_later_runs_find_it(store: Store) -> None:
    spec = ArtifactSpec("judgements", "talk", "test", 1, {})
    store.make(spec, lambda writer: note_failed(writer, 1))
    retry = store.make(retry_spec(spec, store, again=True), lambda writer: note_failed(writer, 0))
    assert find_garbage(store, Kept()) == []
    assert retry_spec(spec, store, again=False).id == retry.id


def test_people_keep_their_labels_and_the_keys_to_what_they_still_read(cli: Cli, store: Store) -> None:
    compared = make(store, "comparisons", "talk", 1)
    for seed in (1, 2):
        tasks = make(store, "annotation-tasks", "talk", seed, compared)
        make(store, "annotations", "talk", seed, tasks)
    make(store, "comparisons", "talk", 2)
    everything = {f"{each.kind}/{each.ref}" for each in store.artifacts()}
    assert frees_what_it_says(cli, store, "--old-reports", "--unfinished") == everything


def test_a_file_with_two_names_counts_when_the_last_goes(cli: Cli, store: Store) -> None:
    for seed, name in ((1, "talk"), (1, "alias"), (2, "talk")):
        make(store, "policies", name, seed, size=1_000_000)
    assert len(frees_what_it_says(cli, store)) == 3, "the alias is the newest of its name"
    make(store, "policies", "alias", 3)
    assert "would free 1 MB\n" in cli("gc", "--store", store.root).out
    assert len(frees_what_it_says(cli, store)) == 2


def online_run(store: Store) -> list[Artifact]:
    """Make an online run of rounds that all have their weights and optimizer state; return their policies."""
    policies: list[Artifact] = []
    first = make(store, "policies", "base", 0)
    for number in range(1, ROUNDS + 1):
        previous = (policies[-1] if policies else first).as_parent("previous policy")

        def build(writer: ArtifactWriter, number: int = number) -> None:
            writer.file("model.safetensors").write_bytes(bytes([number]) * 1_000_000)
            writer.file("optimizer/optimizer.pt").write_bytes(bytes([number]) * 2_000_000)

        spec = ArtifactSpec("policies", f"talk-round-{number:02d}", "align", 1, {"round": number}, (previous,))
        policies.append(store.make(spec, build))

    def finish(writer: ArtifactWriter) -> None:
        (writer.folder / "model.safetensors").hardlink_to(policies[-1].file("model.safetensors"))
        writer.notes["best"] = policies[BEST - 1].as_parent("best")._asdict()

    last = policies[-1].as_parent("last round")
    store.make(ArtifactSpec("policies", "talk", "align", 1, {"weights_of_round": ROUNDS}, (last,)), finish)
    return policies


def test_of_online_runs_the_best_and_the_last_round_stay(cli: Cli, store: Store) -> None:
    online_run(store)
    before = len(store.artifacts())
    assert "--keep-best would free" in cli("gc", "--store", store.root).out
    frees_what_it_says(cli, store, "--keep-best", "--keep", "talk-round-01")
    assert len(store.artifacts()) == before, "only files of rounds go"
    weights = {path.parent.name.rpartition("-")[0] for path in store.root.rglob("*.safetensors")}
    assert weights == {"base", "talk", "talk-round-01", "talk-round-02", "talk-round-04"}
    assert [path.parts[-3].rpartition("-")[0] for path in store.root.rglob("*.pt")] == ["talk-round-01"]


BUILD = """
import sys, time
from pathlib import Path
from psychocounsel.store.artifacts import ArtifactSpec
from psychocounsel.store.store import Store

def build(writer):
    writer.file("half").write_text("half")
    print("building", flush=True)
    sys.stdin.read()

Store(Path(sys.argv[1])).make(ArtifactSpec("policies", "busy", "test", 1, {}), build)
"""


def test_nothing_is_removed_while_another_process_builds(cli: Cli, store: Store) -> None:
    make(store, "scores", "old", 1)
    make(store, "scores", "old", 2)
    command = [sys.executable, "-c", BUILD, str(store.root)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == b"building\n"
        shown = cli("gc", "--store", store.root)
        assert "scores old" in shown.out
        assert "busy" not in shown.out
        cli("gc", "--yes", "--store", store.root).says(2, "another process creates artifacts")
        other.communicate()
    assert {each.name for each in store.artifacts()} == {"old", "busy"}
    with store.in_use(alone=True), pytest.raises(StoreError, match="another process removes"):
        make(store, "scores", "old", 3)


def test_an_unknown_name_to_keep_is_an_error(cli: Cli, store: Store) -> None:
    make(store, "scores", "old", 1)
    cli("gc", "--yes", "--keep", "odl", "--store", store.root).says(2, "did you mean 'old'")


@pytest.mark.parametrize(("mask", "mode"), [(None, 0o600), ("027", 0o640), ("007", 0o660)])
def test_the_group_may_read_what_the_umask_lets_it(
    mask: str | None, mode: int, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if mask is not None:
        monkeypatch.setenv(UMASK_VARIABLE, mask)
    assert cli("list", "--store", tmp_path).code == 0
    made = make(Store(tmp_path), "scores", "old", 1)
    with Journal(tmp_path / "journal" / "replies.sqlite") as journal:
        files = [journal.path, made.folder / "manifest.json", made.file("model.safetensors")]
        files += (tmp_path / ".locks").iterdir()
        assert {path.stat().st_mode & 0o777 for path in files} == {mode}


@pytest.mark.parametrize("mask", ["0777", "u=rwx", "8"])
def test_a_umask_that_takes_rights_from_the_user_is_refused(
    mask: str, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(UMASK_VARIABLE, mask)
    cli("list", "--store", tmp_path).says(2, UMASK_VARIABLE)
