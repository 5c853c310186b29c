"""YAML with line numbers, and configs from files and `--set`: every error at once, with file and line."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from psychocounsel.config.components import Settings
from psychocounsel.config.corpus import CorpusConfig, TopicsConfig
from psychocounsel.config.loading import MAX_CONFIG_BYTES, MAX_DEPTH, load_config, read_yaml
from psychocounsel.config.schema import (
    BuildPreferencesConfig,
    CalibrateJudgeConfig,
    EvalCrisisConfig,
    EvalRewardConfig,
    MixedPreferences,
    TrainRewardConfig,
)
from psychocounsel.errors import ConfigError, ExitCode

REWARD = """\
# psychocounsel train-reward reward.yaml
name: small
base_model: tiny
preferences: pairs
optimisation:
  learning_rate: 9e-6
  global_batch_size: 32
"""
CORPUS = """\
name: talk
speeches:
  - path: speeches.csv
    columns: {text: text}
    licence: cc0-1.0
    data_class: public
"""


def write(folder: Path, text: str | bytes, name: str = "reward.yaml") -> Path:
    path = folder / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def load(folder: Path, text: str | bytes, *overrides: str) -> TrainRewardConfig:
    return load_config(TrainRewardConfig, write(folder, text), overrides)


def fault_of(folder: Path, text: str | bytes, *overrides: str) -> str:
    with pytest.raises(ConfigError) as fault:
        load(folder, text, *overrides)
    assert fault.value.exit_code == ExitCode.USER_ERROR
    return str(fault.value)


def test_a_config_is_read(tmp_path: Path) -> None:
    config = load(tmp_path, REWARD)
    assert config.optimisation.learning_rate == 9e-6
    assert (config.name, config.epochs) == ("small", 2)
    assert load(tmp_path, REWARD.replace("\n", "\r\n")) == config
    assert load(tmp_path, b"\xef\xbb\xbf" + REWARD.split("\n", 1)[1].encode()) == config


@pytest.mark.parametrize(
    ("line", "fragment"),
    [
        ("epoch: 3", "line 8: epoch: unknown key; did you mean 'epochs'?"),
        ("zzz: 3", "line 8: zzz: unknown key; known keys: name, seed"),
        ("rank: 3", "line 8: rank: unknown key; did you mean 'optimisation.lora.rank'?"),
        ("epochs: '3'", "line 8: epochs: Input should be a valid integer (got '3'); write it without quotes"),
        ("length: {max_length_tokens: 0,3}", "line 8: length.3: unknown key; a number has a point"),
        ("epochs: 2.5", "line 8: epochs: Input should be a valid integer"),
        ("epochs:", "line 8: epochs: Input should be a valid integer (got None)"),
        ("epochs: 0", "line 8: epochs: Input should be greater than 0"),
        ("seed: -1", "line 8: seed: Input should be greater than or equal to 0"),
        ("length: long", "line 8: length: must be a block of keys (got 'long')"),
        ("mix: pairs.jsonl", "line 8: mix: must be a list, in brackets"),
        ("length: {max_length_tokens: 1e3}", "length.max_length_tokens: Input should be a valid integer"),
        ("centre_rewards_coefficient: .inf", "centre_rewards_coefficient: Input should be a valid number"),
        ("centre_rewards_coefficient: 1e999", "should be a finite number"),
        ("name: Two Words", "line 8: duplicate key 'name'"),
        (
            "  per_device_batch_size: 5",
            "line 5: optimisation: global_batch_size must be a multiple of per_device_batch",
        ),
    ],
)
def test_a_wrong_line_is_reported_with_a_remedy(tmp_path: Path, line: str, fragment: str) -> None:
    assert fragment in fault_of(tmp_path, REWARD + line + "\n")


@pytest.mark.parametrize("word", ["no", "yes", "off", "True", "'false'"])
def test_only_true_and_false_are_booleans(tmp_path: Path, word: str) -> None:
    message = fault_of(tmp_path, REWARD + f"  gradient_checkpointing: {word}\n")
    assert "line 8: optimisation.gradient_checkpointing" in message
    assert "a boolean as true or false" in message


def test_an_unknown_key_of_the_only_source_is_no_missing_source(tmp_path: Path) -> None:
    path = write(tmp_path, CORPUS.replace("path:", "pth: a\n    path:"), "corpus.yaml")
    with pytest.raises(ConfigError) as fault:
        load_config(CorpusConfig, path)
    assert "unknown key" in str(fault.value)
    assert len(str(fault.value).splitlines()) == 1


def test_all_faults_are_reported_together(tmp_path: Path) -> None:
    message = fault_of(tmp_path, "name: UPPER\nbase_model: 3\nepoch: 2\noptimisation: {learning_rate: '1'}\n")
    assert sorted(re.findall(r"reward\.yaml line (\d): ([\w.]+):", message)) == [
        *(("1", "name"), ("1", "preferences"), ("2", "base_model"), ("3", "epoch")),
        *(("4", "optimisation.global_batch_size"), ("4", "optimisation.learning_rate")),
    ]


@pytest.mark.parametrize(
    ("content", "fragment"),
    [
        (b"", "the file has no keys"),
        (b"- a\n- b\n", "the file has no keys"),
        (REWARD.encode("utf-16"), "is not UTF-8 text; save it as UTF-8"),
        (REWARD.encode("utf-16-le"), "not valid YAML"),
        (b"\x89PNG\r\n\x1a\n\x00\x00\x00", "is not UTF-8 text"),
        (b"a: b\x00c\n", "not valid YAML: unacceptable character #x0000"),
        (b"a: " + b"x" * MAX_CONFIG_BYTES, "larger than 1 MB"),
        (b"name: !!python/object/apply:os.system [ls]\n", "is not allowed"),
    ],
)
def test_a_file_that_is_not_a_config(tmp_path: Path, content: bytes, fragment: str) -> None:
    message = fault_of(tmp_path, content)
    assert fragment in message
    assert "reward.yaml" in message


def test_a_path_that_is_no_file(tmp_path: Path) -> None:
    write(tmp_path, REWARD, "train-reward.yaml")
    with pytest.raises(ConfigError, match=r"no such file; did you mean .*train-reward\.yaml\?"):
        load_config(TrainRewardConfig, tmp_path / "train-rewards.yaml")
    with pytest.raises(ConfigError, match="no such file; check the path"):
        load_config(TrainRewardConfig, tmp_path / "nowhere" / "c.yaml")
    with pytest.raises(ConfigError, match="is a folder"):
        load_config(TrainRewardConfig, tmp_path)
    with pytest.raises(ConfigError, match="cannot be read: Not a directory"):
        load_config(TrainRewardConfig, write(tmp_path, REWARD) / "c.yaml")


def test_a_block_may_be_a_file_of_its_own(tmp_path: Path) -> None:
    write(tmp_path, CORPUS, "corpus.yaml")
    path = write(tmp_path, "name: pairs\ncorpus: corpus.yaml\n", "build.yaml")
    assert load_config(BuildPreferencesConfig, path).corpus.speeches[0].path == "speeches.csv"
    for override in ("corpus.speeches.3=x", "corpus.speeches.3.path=x", "corpus.speeches.first.path=x"):
        with pytest.raises(ConfigError, match=f"--set {override.split('=')[0]}: there is no such key"):
            load_config(BuildPreferencesConfig, path, [override])
    changed = load_config(BuildPreferencesConfig, path, ["corpus.cleaning.min_chars=7"])
    assert changed.corpus.cleaning.min_chars == 7


def test_a_fault_in_an_included_file_points_into_it(tmp_path: Path) -> None:
    write(tmp_path, CORPUS + "cleaning:\n  min_char: 3\n", "corpus.yaml")
    path = write(tmp_path, "name: UPPER\ncorpus: corpus.yaml\n", "build.yaml")
    with pytest.raises(ConfigError) as fault:
        load_config(BuildPreferencesConfig, path)
    assert f"{tmp_path}/corpus.yaml line 8: corpus.cleaning.min_char: unknown key" in str(fault.value)
    assert "did you mean 'min_chars'?" in str(fault.value)
    assert f"{tmp_path}/build.yaml line 1: name" in str(fault.value)


def test_an_included_file_that_is_missing_or_empty(tmp_path: Path) -> None:
    path = write(tmp_path, "name: pairs\ncorpus: corpus.yaml\n", "build.yaml")
    with pytest.raises(ConfigError, match=r"corpus\.yaml: no such file"):
        load_config(BuildPreferencesConfig, path)
    write(tmp_path, "", "corpus.yaml")
    with pytest.raises(ConfigError, match=r"build\.yaml line 2: corpus: must be a block of keys"):
        load_config(BuildPreferencesConfig, path)


def test_set_reaches_nested_keys_and_items_of_lists(tmp_path: Path) -> None:
    config = load(tmp_path, REWARD, "optimisation.learning_rate=1e-4", "optimisation.lora.rank=4", "name=other")
    assert config.optimisation.learning_rate == 1e-4
    assert config.optimisation.lora is not None
    assert config.optimisation.lora.rank == 4
    assert config.name == "other"
    path = write(tmp_path, f"name: pairs\ncorpus:\n  {CORPUS.replace(chr(10), chr(10) + '  ').strip()}\n", "b.yaml")
    built = load_config(BuildPreferencesConfig, path, ["corpus.speeches.0.path=other.csv"])
    assert built.corpus.speeches[0].path == "other.csv"


@pytest.mark.parametrize(
    ("override", "fragment"),
    [
        ("epochs", "--set: 'epochs' is not key=value; write --set key.sub=value"),
        ("=3", "--set: '=3' is not key=value"),
        ("epoch=3", "--set epoch: epoch: unknown key; did you mean 'epochs'?"),
        ("optimisation.lr=1", "--set optimisation.lr: optimisation.lr: unknown key"),
        ("learning_rate=1", "learning_rate: unknown key; did you mean 'optimisation.learning_rate'?"),
        ("epochs=two", "--set epochs: epochs: Input should be a valid integer (got 'two')"),
        ("epochs='3'", "write it without quotes"),
        ("optimisation.learning_rate=zero", "(got 'zero'); write a number"),
        ("name=Größe 2", "name: must be of lower-case letters, digits, dots, dashes and underscores (got 'Größe 2')"),
        ("optimisation.learning_rate=0,1", "(got '0,1'); write a number, such as 3 or 0.5"),
        ("optimisation.learning_rate=30%", "(got '30%'); write a number"),
        ("name.first=x", "--set name.first: there is no such key"),
        ("name.0=x", "--set name.0: there is no such key"),
        ("optimisation.0=x", "--set optimisation.0"),
        ("\u00b2=x", "--set \u00b2: \u00b2: unknown key"),
        ("a..b=x", "a: unknown key"),
        ("length=[1", "--set length line 1: not valid YAML"),
        ("length={max_length_tokens: 0}", "--set length: length.max_length_tokens: Input should be greater than 0"),
    ],
)
def test_a_wrong_set_is_reported(tmp_path: Path, override: str, fragment: str) -> None:
    assert fragment in fault_of(tmp_path, REWARD + "length:\n  max_length_tokens: 9\n", override)


def rubric_of(path: Path, *overrides: str) -> str:
    return load_config(BuildPreferencesConfig, path, overrides).judge.rubric


def test_a_rubric_is_first_looked_for_next_to_the_config_or_to_the_judges_own_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, here = tmp_path / "recipe", tmp_path / "here"
    folder.mkdir()
    here.mkdir()
    monkeypatch.chdir(here)
    write(folder, CORPUS, "corpus.yaml")
    path = write(folder, "name: pairs\ncorpus: corpus.yaml\njudge: {rubric: mine.yaml}\n", "build.yaml")
    assert rubric_of(path) == "mine.yaml"
    write(here, "", "mine.yaml")
    assert rubric_of(path) == "mine.yaml"
    write(folder, "", "mine.yaml")
    assert rubric_of(path) == str(folder / "mine.yaml")
    assert rubric_of(path, "judge.rubric=seven-principles") == "seven-principles"
    assert rubric_of(path, f"judge.rubric={here}/mine.yaml") == str(here / "mine.yaml")
    write(folder, "rubric: mine.yaml\n", "judge.yaml")
    path = write(folder, "name: pairs\ncorpus: corpus.yaml\njudge: judge.yaml\n", "build.yaml")
    assert rubric_of(path) == str(folder / "mine.yaml")


class Shelf(Settings):
    height_metres: float


class Bookcase(Settings):
    shelves: dict[str, Shelf]


def test_a_key_of_a_block_in_a_mapping_is_suggested(tmp_path: Path) -> None:
    path = write(tmp_path, "shelves:\n  upper: {height_metres: 2, hight_metres: 1}\n", "bookcase.yaml")
    with pytest.raises(ConfigError, match=r"line 2: .*hight_metres: unknown key; did you mean 'height_metres'\?"):
        load_config(Bookcase, path)


WORDS = ("no", "off", "True", "2024-07-26", "26 Jul 2024", "1_000", "0x10", ".inf", "1:30")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *(("9e-6", 9e-6), ("1E3", 1000.0), (".5", 0.5), ("-3", -3), ("007", 7)),
        *(("true", True), ("false", False), ("null", None), ("~", None), ("", None)),
        *(("'5'", "5"), ('"true"', "true"), *zip(WORDS, WORDS, strict=True)),
    ],
)
def test_scalars(text: str, value: object) -> None:
    read = read_yaml(f"key: {text}", "c.yaml").data["key"]
    assert (read, type(read)) == (value, type(value))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**12), 10**12) | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text("abcxyz", min_size=1), inner, max_size=4),
    max_leaves=12,
)


@given(st.dictionaries(st.text("abcxyz", min_size=1), json_values, max_size=5))
def test_json_is_yaml(data: dict[str, Any]) -> None:
    assert read_yaml(json.dumps(data), "c.yaml").data == data


def test_every_value_knows_its_line_and_an_alias_repeats_a_block() -> None:
    document = read_yaml("a: 1\nblock:\n  inner:\n    - x\n    - y: 2\n", "c.yaml")
    assert document.lines[("a",)] == "c.yaml line 1"
    assert document.lines[("block", "inner")] == "c.yaml line 3"
    assert document.lines[("block", "inner", 1, "y")] == "c.yaml line 5"
    assert read_yaml("a: &a {x: 1}\nb: *a\n", "c.yaml").data == {"a": {"x": 1}, "b": {"x": 1}}


@pytest.mark.parametrize(
    ("text", "fragment"),
    [
        ("a: 1\nb: 2\na: 3\n", "line 3: duplicate key 'a'"),
        ("a:\n  b: 1\n  b: 2\n", "line 3: duplicate key 'b'"),
        ("a: b\n c: d\n", "line 2: not valid YAML"),
        ("a: [1, 2\n", "not valid YAML"),
        ("a: !!python/name:os.system\n", "line 1: the tag 'tag:yaml.org,2002:python/name:os.system'"),
        ("a: !custom x\n", "'!custom' is not allowed"),
        ("? [a, b]\n: 1\n", "line 1: a key is a list or a block"),
        ("a: 1\n---\nb: 2\n", "not valid YAML"),
        ("a: 1\nb: " + "9" * 5000, "line 2: the number is too long"),
        ("a: \x07", "not valid YAML: unacceptable character #x0007"),
        ("a: " + "[" * 5000, "nested too deeply"),
        ("a: " + "[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1), "line 1: nested too deeply"),
        ("a: &again [*again]\n", "line 1: nested too deeply"),
    ],
)
def test_refused_yaml_is_reported_with_its_line(text: str, fragment: str) -> None:
    with pytest.raises(ConfigError) as fault:
        read_yaml(text, "c.yaml")
    assert fragment in str(fault.value)
    assert str(fault.value).startswith("c.yaml")
    assert fault.value.remedy


def test_multiplying_aliases_do_not_fill_the_memory() -> None:
    levels = [f"l{at}: &l{at} [{', '.join([f'*l{at - 1}'] * 9)}]" for at in range(1, 12)]
    with pytest.raises(ConfigError, match="far too many values"):
        read_yaml("\n".join(["l0: &l0 [x, x]", *levels]), "c.yaml")


SIDES = "policy: {author: a, model: m}, base: {author: b, model: n}"


@pytest.mark.parametrize(
    ("model", "config", "key"),
    [
        (EvalRewardConfig, "{name: e, model: m, on: FILE}", "on"),
        (EvalCrisisConfig, f"{{name: e, {SIDES}, suite: FILE}}", "suite"),
        (EvalCrisisConfig, f"{{name: e, {SIDES}, planted: FILE}}", "planted"),
        (CalibrateJudgeConfig, "{name: c, human: FILE, judge: x}", "human"),
        (CalibrateJudgeConfig, "{name: c, human: x, judge: FILE}", "judge"),
        (MixedPreferences, "{preferences: FILE, count: 3}", "preferences"),
        (TopicsConfig, "{taxonomy: FILE}", "taxonomy"),
    ],
)
def test_files_are_first_looked_for_beside_the_config_that_names_them(
    tmp_path: Path, model: type[Settings], config: str, key: str
) -> None:
    folder = tmp_path / "configs"
    (folder / "rows").mkdir(parents=True)
    (folder / "rows" / "a.jsonl").touch()
    for name, found in (("rows/a.jsonl", str(folder / "rows" / "a.jsonl")), ("rows/b.jsonl", "rows/b.jsonl")):
        (folder / "a.yaml").write_text(config.replace("FILE", name), encoding="utf-8")
        assert getattr(load_config(model, folder / "a.yaml"), key) == found


def test_the_name_of_an_artifact_is_no_folder_beside_the_config(tmp_path: Path) -> None:
    (tmp_path / "pairs").mkdir()
    (tmp_path / "a.yaml").write_text("{name: e, model: m, on: pairs}", encoding="utf-8")
    assert load_config(EvalRewardConfig, tmp_path / "a.yaml").on == "pairs"
