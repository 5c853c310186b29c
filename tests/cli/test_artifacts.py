"""`list`, `show`, `verify` and `diff`, and the last line of a stage."""

import hashlib
import json
import os
import pty
import re
import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from miniature import write_yaml
from psychocounsel.reporting.artifact_tables import tables
from psychocounsel.reporting.tables import as_text
from psychocounsel.store.store import Store
from running import ENVIRONMENT, Cli, Miniature, Warm, await_until, drop_override, write_listed


def test_list_has_a_header_and_the_rows_and_key_metric_of_every_artifact(miniature: Miniature, cli: Cli) -> None:
    header, *rows = cli("list", "--store", miniature.store).out.splitlines()
    assert header.split() == ["kind", "artifact", "rows", "size", "key", "metric", "created"]
    found = Store(miniature.store).artifacts()
    assert [row.split()[:2] for row in rows] == [[each.kind, each.ref] for each in found]
    (speeches,) = [row for row in rows if row.startswith("speeches")]
    assert re.search(
        r" 32  \d\S* k?B  32 of 32 rows kept ", speeches
    )  # not 64: the row provenance of a corpus has no speeches of its own
    (compared,) = [row for row in rows if row.startswith("comparisons")]
    rate = next(each for each in found if each.kind == "comparisons").metrics["win_rate"]["estimate"]
    assert f"win rate {100 * rate:.1f}" in compared
    rows = cli("list", "reward-models", "--store", miniature.store).out.splitlines()[1:]
    assert [row.split()[0] for row in rows] == ["reward-models"]


@pytest.mark.parametrize("argv", [["list"], ["compare", "comparisons/mini", "comparisons/other"]])
def test_tables_fit_a_narrow_terminal(cli: Cli, miniature: Miniature, store: Path, argv: list[str]) -> None:
    changes = ("--set", "eval-winrate.name=other", "--set", "eval-winrate.confidence=0.9", "--only", "eval-winrate")
    assert cli("run", miniature.recipe, "--store", store, *changes).code == 0
    terminal, end = pty.openpty()
    command = [sys.executable, "-m", "psychocounsel", *argv, "--store", str(store)]
    shown = b""
    with subprocess.Popen(command, stdout=end, env={**os.environ, **ENVIRONMENT, "COLUMNS": "40"}) as process:
        os.close(end)
        with suppress(OSError):  # how a terminal says that its last writer has gone
            while read := os.read(terminal, 65_536):
                shown += read
    os.close(terminal)
    assert process.returncode == 0
    lines = shown.decode().splitlines()
    assert len(lines) > 30
    assert [line for line in lines if len(line) > 40] == []


@pytest.mark.parametrize(("write", "why"), [(write_listed, "another version"), (Path.write_bytes, "damaged")])
def test_list_survives_metrics_that_cannot_be_read(store: Path, cli: Cli, write: Any, why: str) -> None:
    write(next(store.glob("audits/mini-*/metrics.json")), b"{}")
    ended = cli("list", "--store", store)
    assert ended.code == 0
    assert sum("cannot be read" in row for row in ended.out.splitlines()) == 1
    shown = cli("show", "audits/mini", "--store", store)
    assert (shown.code, why in shown.err, "Traceback" in shown.err) == (2, True, False)


def test_list_of_a_misspelt_kind_and_of_an_empty_store(cli: Cli, tmp_path: Path) -> None:
    misspelt = cli("list", "reward-model", "--store", tmp_path)
    misspelt.says(2, "did you mean 'reward-models'?")
    empty = cli("list", "--store", tmp_path / "none")
    assert empty.code == 0
    assert "no artifacts" in empty.out


def test_show_goes_back_to_the_raw_files(miniature: Miniature, cli: Cli) -> None:
    shown = cli("show", "comparisons/mini", "--store", miniature.store)
    assert shown.code == 0
    lineage = shown.out.partition("\nlineage\n")[2]
    kinds = {"comparisons", "candidates", "policies", "reward-models", "preferences", "scores", "speeches"}
    assert kinds | {"judgements", "base-models"} <= {line.split()[0] for line in lineage.splitlines()}
    for raw in ("speeches.jsonl", "candidates.jsonl"):
        digest = hashlib.sha256((miniature.recipe / raw).read_bytes()).hexdigest()
        assert digest in lineage, raw


def test_open_shows_the_page_of_an_artifact_in_the_browser_and_its_path(
    store: Path, warm: Warm, tmp_path: Path
) -> None:
    launcher, launched = tmp_path / "bin" / "xdg-open", tmp_path / "launched"
    launcher.parent.mkdir()
    launcher.write_text(f'#!/bin/sh\necho "$1" >> {launched}\n', encoding="utf-8")
    launcher.chmod(0o755)
    environment = {"PATH": f"{launcher.parent}:{os.environ['PATH']}", "WAYLAND_DISPLAY": ""}
    opened = warm.run("open", "comparisons/mini", "--store", store, DISPLAY=":9", **environment)
    path = opened.out.strip()
    assert opened.code == 0
    assert "against" in Path(path).read_text(encoding="utf-8")
    await_until(lambda: launched.exists() and bool(launched.read_text(encoding="utf-8")))
    assert launched.read_text(encoding="utf-8").strip() == path
    launched.unlink()
    # The page is an artifact: the same again is the same page, here where there is no display.
    (report,) = [each for each in Store(store).artifacts("reports") if each.folder.resolve() == Path(path).parent]
    again = warm.run("open", f"reports/{report.ref}", "--store", store, DISPLAY="", **environment)
    assert (again.code, again.out.strip(), launched.exists()) == (0, path, False)
    for name in ("reports/mini", "mini"):  # a name that several kinds share means the report of the run, still
        of_run = warm.run("open", name, "--store", store, DISPLAY="", **environment)
        assert (of_run.code, "reports/mini-" in of_run.out) == (0, True)


def test_open_shows_pairs_with_the_audit_of_their_judge(store: Path, warm: Warm) -> None:
    opened = warm.run("open", "preferences/mini", "--store", store, DISPLAY="", WAYLAND_DISPLAY="")
    assert opened.code == 0, opened.err
    assert "canaries: largest rise" in Path(opened.out.strip()).read_text(encoding="utf-8")


def test_open_takes_the_longest_name(miniature: Miniature, store: Path, warm: Warm) -> None:
    name = "m" * 64
    made = warm.run(
        "run", miniature.recipe, "--store", store, "--set", f"eval-winrate.name={name}", "--until", "eval-winrate"
    )
    assert made.code == 0, made.err
    opened = warm.run("open", f"candidates/{name}-policy", "--store", store, DISPLAY="", WAYLAND_DISPLAY="")
    assert opened.code == 0, opened.err
    assert Path(opened.out.strip()).is_file()


@pytest.mark.parametrize("artifact", ["reward-models/mini", "policies/mini-online", "comparisons/mini", "audits/mini"])
def test_show_prints_every_table_of_the_artifact(miniature: Miniature, cli: Cli, artifact: str) -> None:
    found = next(each for each in Store(miniature.store).artifacts() if f"{each.kind}/{each.name}" == artifact)
    shown = cli("show", artifact, "--store", miniature.store).out
    assert len(tables(found)) >= 2
    assert all(as_text(table) in shown for table in tables(found))


def test_show_begins_with_the_warning_and_has_rows_and_digests(miniature: Miniature, cli: Cli) -> None:
    shown = cli("show", "preferences/mini", "--store", miniature.store).out
    assert shown.startswith("! Rated by the offline")
    table = next(miniature.store.glob("preferences/mini-????????/data/train-*.parquet"))
    digest = hashlib.sha256(table.read_bytes()).hexdigest()
    row = next(line for line in shown.splitlines() if digest in line)
    assert "train-00000" in row
    assert f" {pq.read_metadata(table).num_rows} " in row


def test_verify_finds_a_flipped_byte_of_an_ancestor(store: Path, cli: Cli) -> None:
    intact = cli("verify", "reports/mini", "--store", store)
    assert (intact.code, {line.split()[0] for line in intact.out.splitlines()}) == (0, {"intact"})
    weights = next(store.glob("base-models/*/model.safetensors"))
    content = bytearray(weights.read_bytes())
    content[-5] ^= 1
    weights.write_bytes(content)
    ended = cli("verify", "reports/mini", "--store", store)
    assert ended.code == 2
    assert str(weights) in ended.err
    assert "move" in ended.err
    assert sum(line.startswith("damaged") for line in ended.out.splitlines()) == 1


def test_diff_shows_settings_parents_and_metrics(miniature: Miniature, store: Path, cli: Cli) -> None:
    cli("run", miniature.recipe, "--store", store, "--set", "eval-winrate.confidence=0.9")
    old, new = Store(store).artifacts("comparisons")
    shown = cli("diff", f"comparisons/{old.ref}", f"comparisons/{new.ref}", "--store", store).out
    settings, metrics = shown.split("\n\n")
    assert [line.split() for line in settings.splitlines()[2:]] == [["confidence", "0.95", "0.9"]]
    header, *rows = metrics.splitlines()[1:]
    assert header.split() == ["metric", old.ref, new.ref]
    ends = [[f"{100 * each.metrics['win_rate'][end]:.1f}" for end in ("low", "high")] for each in (old, new)]
    (interval,) = [row for row in rows if row.strip().startswith("win rate, raw: interval")]
    assert all(end in interval for pair in ends for end in pair)
    assert not [row for row in rows if "win rate, raw: estimate" in row]  # it is the same
    assert cli("diff", f"comparisons/{old.ref}", old.folder, "--store", store).out == "no difference\n"
    one, other = Store(store).artifacts("reports")
    parents = cli("diff", one.ref, other.ref, "--store", store).out
    assert re.search(rf"parent comparisons mini +'{old.id[:8]}' +'{new.id[:8]}'", parents)
    rounds = [f"candidates/mini-online-round-{number:02}" for number in (1, 2)]
    assert "parent previous policy" in cli("diff", *rounds, "--store", store).out


@pytest.mark.parametrize("command", ["show", "verify"])
@pytest.mark.parametrize(
    ("ref", "hint"),
    [
        ("comparisons/mimi", "did you mean 'mini'?"),
        ("mini", "write "),  # several kinds have it
        ("mini@00000000", "no artifact"),
        ("policies/mini-dpo@best", "names no best"),
    ],
)
def test_references_that_match_nothing(miniature: Miniature, cli: Cli, command: str, ref: str, hint: str) -> None:
    ended = cli(command, ref, "--store", miniature.store)
    ended.says(2, hint)


def test_a_dataset_shows_its_warnings_and_the_whole_funnel(miniature: Miniature, cli: Cli) -> None:
    made = next(each for each in Store(miniature.store).artifacts("preferences") if each.name == "mini")
    lines = cli(
        "build-preferences", miniature.recipe / "build-preferences.yaml", "--store", miniature.store
    ).out.splitlines()
    assert lines[0].startswith("! Rated by the offline judge")
    assert lines[1] == f"up to date: preferences {made.ref}  ({made.folder})"
    steps = ["speeches read", "ready responses", "responses judged", "combinations, train"]
    assert [label for label in (line.strip().split("  ")[0] for line in lines) if label in steps] == steps


def test_stage_ends_with_the_next_command(miniature: Miniature, cli: Cli, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(miniature.recipe, tmp_path / "a recipe"))
    policy = next(each for each in Store(miniature.store).artifacts("policies") if each.name == "mini-dpo")

    def last_line() -> str:
        return cli("align", folder / "align-dpo.yaml", "--store", miniature.store).out.splitlines()[-1]

    def ready(words: str) -> str:
        return f"policies {policy.ref} is ready; next: psychocounsel {words} --store {miniature.store}"

    assert last_line() == ready(f"align '{folder}/align.yaml'")  # the recipe's next step
    (folder / "recipe.yaml").unlink()
    assert last_line() == ready(f"eval-winrate '{folder}/eval-winrate.yaml'")
    write_yaml(folder / "eval-winrate-dpo.yaml", {})
    assert last_line() == ready(f"eval-winrate '{folder}/eval-winrate-dpo.yaml'")
    for path in folder.glob("eval-winrate*.yaml"):
        path.unlink()
    assert last_line() == ready(f"eval-winrate CONFIG --set policy.model={policy.ref}")
    (folder / "recipe.yaml").write_text("steps: no recipe", encoding="utf-8")
    assert last_line() == ready(f"eval-winrate CONFIG --set policy.model={policy.ref}")


@pytest.mark.parametrize(
    ("stage", "kind", "named"),
    [
        ("make-base-model", "base-models", "build-preferences CONFIG"),
        ("build-preferences", "preferences", "train-reward CONFIG --set preferences={ref}"),
        ("train-reward", "reward-models", "align CONFIG --set online.reward_model={ref}"),
        ("eval-winrate", "comparisons", "open comparisons/{ref}"),
    ],
)
def test_a_config_that_lies_alone_has_a_next_command_too(
    miniature: Miniature, cli: Cli, tmp_path: Path, stage: str, kind: str, named: str
) -> None:
    for name in (f"{stage}.yaml", "corpus.yaml"):
        shutil.copy(miniature.recipe / name, tmp_path)
    last = cli(stage, tmp_path / f"{stage}.yaml", "--store", miniature.store).out.splitlines()[-1]
    created = next(each for each in Store(miniature.store).artifacts(kind) if each.name.startswith("mini"))
    words = named.format(ref=created.ref)
    assert last == f"{kind} {created.ref} is ready; next: psychocounsel {words} --store {miniature.store}"


def test_report_alone_ends_with_its_path(miniature: Miniature, cli: Cli) -> None:
    last = cli("report", miniature.recipe / "report.yaml", "--store", miniature.store).out.splitlines()[-1]
    assert last == f"report: {next(miniature.store.glob('reports/*/report.html')).resolve()}"


def test_a_read_only_store_is_run_again_and_reported(miniature: Miniature, store: Path, tmp_path: Path) -> None:
    folders = [store, *(path for path in store.rglob("*") if path.is_dir())]
    before = sorted(store.rglob("*"))
    write_yaml(tmp_path / "report.yaml", {"name": "other", "artifacts": ["comparisons/mini"]})
    report = ["report", str(tmp_path / "report.yaml")]
    page = tmp_path / "page.html"
    for folder in folders:
        folder.chmod(0o500)
    done = [
        subprocess.run(
            [sys.executable, "-m", "psychocounsel", *command, "--store", str(store)],
            **{"capture_output": True, "text": True, "check": False, "preexec_fn": drop_override},
            env={**os.environ, **ENVIRONMENT},
        )
        for command in (
            ["run", str(miniature.recipe)],
            [*report, "--out", str(page)],
            report,
            ["corpus", str(miniature.recipe)],
        )
    ]
    for folder in folders:
        folder.chmod(0o700)
    assert [each.returncode for each in done] == [0, 0, 2, 3], [each.stderr for each in done]
    assert "created:" not in done[0].stdout
    assert "the store cannot be written to" in done[2].stderr
    assert "<title>" in page.read_text(encoding="utf-8")
    assert sorted(store.rglob("*")) == before


def test_power_by_assumption_and_from_a_comparison(miniature: Miniature, cli: Cli) -> None:
    assumed = cli("power", "--target", "0.05").out
    assert re.search(r"^  1 +385 +385 +770$", assumed, re.MULTILINE)  # (1.96 / 0.05)² / 4
    compared = next(each for each in Store(miniature.store).artifacts("comparisons"))
    measured = cli("power", "--from", compared.ref, "--target", "0.5", "--store", miniature.store)
    assert (measured.code, compared.ref in measured.out) == (0, True)
    assert re.search(r"These \d+ speeches need \d+ draw", measured.out)
    assert "! The judge of the labels (offline)" in measured.out
    for origin in ((), ("--from", compared.ref)):  # whose answers vary
        narrow = cli("power", *origin, "--target", "0.2", "--icc", "0.01", "--store", miniature.store)
        assert (narrow.code, "answers vary" in narrow.out) == (0, False)
    cli("power", "--from", "policies/mini-online", "--store", miniature.store).says(2, "comparisons")


def test_json_has_the_same_and_nothing_else_on_stdout(miniature: Miniature, cli: Cli) -> None:
    def read(*argv: str) -> Any:
        ended = cli(*argv, "--json", "--store", miniature.store)
        assert ended.code == 0, ended.err
        return json.loads(ended.out)

    found = Store(miniature.store).artifacts()
    listed = read("list")
    assert [each["id"] for each in listed] == [each.id for each in found]
    keys = {"kind", "name", "ref", "id", "folder", "created_at"}
    assert set(listed[0]) == keys | {"rows", "bytes", "key_metric"}
    (comparison,) = [each for each in found if each.kind == "comparisons"]
    shown = read("show", "comparisons/mini")
    assert shown["metrics"] == comparison.metrics
    assert shown["settings"] == comparison.manifest["settings"]
    assert shown["lineage"][0]["id"] == comparison.id
    assert keys < set(shown)
    checked = read("verify", "comparisons/mini")
    assert {each["id"] for each in checked} == {each["id"] for each in shown["lineage"]}
    assert all(each["damage"] == {} for each in checked)


def test_json_of_a_damaged_artifact_names_the_file(store: Path, cli: Cli) -> None:
    next(store.glob("comparisons/mini-*/metrics.json")).write_text("{}", encoding="utf-8")
    ended = cli("verify", "comparisons/mini", "--json", "--store", store)
    assert ended.code == 2
    first, *others = json.loads(ended.out)
    assert list(first["damage"]) == ["metrics.json"]
    assert not any(each["damage"] for each in others)


def test_an_online_run_is_compared_by_the_settings_of_its_rounds(miniature: Miniature, cli: Cli) -> None:
    ended = cli("diff", "policies/mini-dpo", "policies/mini-online", "--store", miniature.store)
    settings = ended.out.partition("\n\n")[0]
    assert ended.code == 0
    assert "candidates_per_speech" in settings
    assert "beta" not in settings  # the same in both


@pytest.mark.parametrize(
    ("argv", "hint"),
    [
        (["show", "mini"], "preferences/mini or "),  # every kind that it may be
        (["show", "policy/mini-dpo"], "'policies/mini-dpo'"),
        (["show", "policies/mini-dpo@00000000"], "mini-dpo@"),
        (["compare", "mini-dpo", "mini"], "policies"),  # the name is that of another kind
        (["show", "comparisons"], "psychocounsel list comparisons"),
    ],
)
def test_the_hint_of_a_wrong_reference_helps(miniature: Miniature, cli: Cli, argv: list[str], hint: str) -> None:
    cli(*argv, "--store", miniature.store).says(2, hint)


def test_an_id_without_a_name_is_enough_for_a_hint(miniature: Miniature, cli: Cli) -> None:
    (found,) = Store(miniature.store).artifacts("comparisons")
    cli("show", found.id[:8], "--store", miniature.store).says(2, f"comparisons/{found.ref}")
