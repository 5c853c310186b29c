"""The Python API: what stages compute, from a script, inside a running event loop, and from threads."""

import asyncio
import doctest
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
from chat_server import ChatServer, Reply, answer_by_schema

import psychocounsel
from miniature import write_rows, write_yaml
from psychocounsel import api
from psychocounsel.errors import ConfigError, DataQualityError, InputError, Preempted
from psychocounsel.store.schemas import read_scores
from psychocounsel.types import ReplyStatus, Turn
from running import ENVIRONMENT, Miniature

PAGE = Path(__file__).parents[1] / "docs" / "python-api.md"
SAID = "I can't sleep since she left, and I keep thinking that it was all my fault."
KIND, CURT = "That sounds exhausting. What goes through your mind when you lie awake?", "Just get over it."


def test_importing_the_package_imports_nothing_else() -> None:
    heavy = "[name for name in ('torch', 'pydantic', 'numpy', 'psychocounsel.api') if name in sys.modules]"
    script = f"import sys, psychocounsel; print(psychocounsel.__version__, {heavy})"
    environment = {**os.environ, **ENVIRONMENT}
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment, check=True)
    assert re.fullmatch(r"\d+\.\d+\.\d+ \[\]\n", ended.stdout)
    assert set(dir(psychocounsel)) >= {"Judge", "win_rate", "__version__"}
    assert all(getattr(psychocounsel, name) for name in psychocounsel.__all__)
    with pytest.raises(AttributeError):
        psychocounsel.judge  # noqa: B018


def test_every_example_runs(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the examples of docstrings and page on the miniature store."""
    store.rename(store.with_name("data"))
    monkeypatch.chdir(store.parent)
    ours = lambda text: text.replace("quickstart", "mini")  # noqa: E731
    parser, runner = doctest.DocTestParser(), doctest.DocTestRunner(verbose=False)
    described = [each for each in vars(api).values() if getattr(each, "__module__", "") == api.__name__]
    for each in described:
        examples = parser.get_doctest(ours(each.__doc__ or ""), dict(vars(api)), each.__name__, api.__file__, None)
        runner.run(examples)
    assert runner.summarize().failed == 0
    assert runner.tries > 15
    page: dict[str, Any] = {}
    blocks = re.findall(r"```python\n(.*?)```", ours(PAGE.read_text(encoding="utf-8")), flags=re.DOTALL)
    assert len(blocks) > 6
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), page)  # noqa: S102


def endpoint_judge(server: ChatServer, store: Path | None = None, **endpoint: Any) -> psychocounsel.Judge:
    served = {"model": "any", "base_url": server.base_url, "response_format": "json_schema", **endpoint}
    return psychocounsel.Judge(backend="endpoint", endpoint=served, store=store)


def in_a_running_loop(call: Callable[[], Any]) -> Any:
    async def main() -> Any:
        return call()

    return asyncio.run(main())


def in_a_thread(call: Callable[[], Any]) -> Any:
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(call).result()


@pytest.mark.parametrize("surrounded", [in_a_running_loop, in_a_thread, lambda call: call()])
def test_an_endpoint_judges_wherever_it_is_called(surrounded: Callable[..., Any], tmp_path: Path) -> None:
    with ChatServer() as server:
        judge = endpoint_judge(server, tmp_path)
        both = surrounded(lambda: judge.rate_all([(SAID, KIND), (SAID, CURT)]))
        compared = surrounded(lambda: judge.compare(SAID, KIND, CURT))
        paid = server.count
        again = surrounded(lambda: endpoint_judge(server, tmp_path).rate(SAID, CURT))
        assert (again, server.count) == (both[1], paid)
    assert judge.name == "any"
    assert [each.ratings.keys() == set(judge.principles) for each in both] == [True, True]
    assert compared.forward.swap().first_id == compared.backward.first_id
    assert (compared.first.text, compared.second.text) == (KIND, CURT)


def test_threads_share_a_judge_and_what_was_paid_counts_once() -> None:
    # A reply costs $0.0011, and the next request at most $0.82.
    priced = {"price": {"prompt": 100.0, "completion": 0.0}, "max_cost": 0.9}
    with ChatServer() as server:
        judge = endpoint_judge(server, **priced)
        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(lambda _: judge.rate(SAID, KIND), range(100)))
        assert server.count == 1
        assert judge.rate(SAID, CURT).status is ReplyStatus.VALID
        assert "spent" in judge.status
    assert all(each == found[0] for each in found)


def test_judges_of_one_store_pay_for_a_question_once(tmp_path: Path) -> None:
    with ChatServer(lambda request, number: replace(answer_by_schema(request, number), delay_seconds=0.5)) as server:
        judges = [endpoint_judge(server, tmp_path) for _ in range(3)]
        with ThreadPoolExecutor(3) as pool:
            found = list(pool.map(lambda judge: judge.rate(SAID, KIND), judges))
        assert server.count == 1
    assert [each.status for each in found] == [ReplyStatus.VALID] * 3


def test_ctrl_c_keeps_what_was_answered(tmp_path: Path) -> None:
    def interrupt(request: Mapping[str, Any], number: int) -> Reply:
        if number == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return answer_by_schema(request, number)

    texts = [(SAID, f"{KIND} ({at})") for at in range(40)]
    with ChatServer(interrupt) as server:
        judge = endpoint_judge(server, tmp_path, concurrency=1)
        with pytest.raises(Preempted):
            in_a_running_loop(lambda: judge.rate_all(texts))
        paid = server.count
        assert 3 <= paid < len(texts)
        assert all(each.status is ReplyStatus.VALID for each in judge.rate_all(texts))
        assert server.count == len(texts)


def test_a_second_ctrl_c_does_not_wait_but_the_next_call_does_and_pays_nothing_again(tmp_path: Path) -> None:
    over, answered = threading.Event(), threading.Event()

    def press(request: Mapping[str, Any], number: int) -> Reply:
        while not over.wait(0.2):
            os.kill(os.getpid(), signal.SIGINT)
        answered.wait()
        return answer_by_schema(request, number)

    before = signal.signal(signal.SIGINT, lambda *_: None)
    try:
        with ChatServer(press) as server:
            judge = endpoint_judge(server, tmp_path)
            with pytest.raises(KeyboardInterrupt):
                in_a_running_loop(lambda: judge.rate(SAID, KIND))
            over.set()
            threading.Timer(0.5, answered.set).start()
            both = in_a_running_loop(lambda: judge.rate_all([(SAID, KIND), (SAID, CURT)]))
            assert server.count == 2
    finally:
        signal.signal(signal.SIGINT, before)
    assert [each.status for each in both] == [ReplyStatus.VALID] * 2


def test_failures_end_a_call_where_a_share_is_set(tmp_path: Path) -> None:
    texts = [(SAID, f"{KIND} ({at})") for at in range(30)]
    with ChatServer(lambda request, number: Reply("no rating")) as server:
        judge = endpoint_judge(server, tmp_path, max_attempts=1)
        assert {each.status for each in judge.rate_all(texts)} == {ReplyStatus.INVALID}
        strict = psychocounsel.Judge(**judge.config.given, max_missing_share=0.05, store=tmp_path / "other")
        before = server.count
        with pytest.raises(DataQualityError):
            strict.rate_all(texts)
        assert server.count - before < len(texts)


def test_a_judge_of_a_file_and_one_with_weights(miniature: Miniature, tmp_path: Path) -> None:
    write_yaml(tmp_path / "judge.yaml", {"backend": "local", "model": "mini-base", "max_tokens": 4})
    judge = psychocounsel.Judge.from_file(tmp_path / "judge.yaml", store=miniature.store)
    unreadable = in_a_running_loop(lambda: judge.rate(SAID, KIND))
    assert unreadable.status is not ReplyStatus.VALID
    assert not unreadable.ratings
    assert unreadable.reason


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: psychocounsel.Judge("no-such-rubric"), "no-such-rubric"),
        (lambda: psychocounsel.Judge(backend="endpiont"), "settings of the judge: backend"),
        (lambda: psychocounsel.Policy("no-such-policy"), "no-such-policy"),
        (lambda: psychocounsel.Policy("x", temperature=-1), "temperature"),
        (lambda: psychocounsel.RewardModel("no-such-model"), "no-such-model"),
        (lambda: psychocounsel.load_pairs("no-such-pairs"), "no-such-pairs"),
        (lambda: psychocounsel.run_stage("align", {"nmae": "x"}), "did you mean 'name'"),
        (lambda: psychocounsel.run_stage("algin", {}), "did you mean 'align'"),
        (lambda: psychocounsel.Store().list("policy"), "did you mean 'policies'"),
        (lambda: psychocounsel.Judge().rate(" ", KIND), "no text"),
        (lambda: psychocounsel.Judge().rate(cast("str", float("nan")), KIND), "a speech has no text"),
        (lambda: psychocounsel.Judge().rate_all([(SAID, cast("str", None))]), "an answer is None, no text"),
        (
            lambda: psychocounsel.Judge(backend="endpoint", store=psychocounsel.Store("x", offline=True)),
            "offline, but the endpoint",
        ),
    ],
)
def test_mistakes_are_named(
    make: Callable[[], Any], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.setenv(name, "1")
    monkeypatch.chdir(tmp_path)
    with pytest.raises((ConfigError, InputError), match=words):
        make()


def test_rewards_are_those_of_training(miniature: Miniature) -> None:
    store = psychocounsel.Store(miniature.store)
    known = {each.candidate_id: each for each in read_scores(store.open("reward-models/mini"))}
    model = psychocounsel.RewardModel("mini", store=store)
    with pytest.raises(ConfigError, match="did you mean 'test'"):
        psychocounsel.load_pairs("mini", "tset", store=store)
    for pair in psychocounsel.load_pairs("mini", "test", store=store)[:3]:
        sides = (pair.chosen.candidate, pair.rejected.candidate)
        rewards = model.score(pair.speech, [each.text for each in sides])
        assert [each.raw for each in rewards] == pytest.approx([known[each.id].raw_reward for each in sides], abs=1e-5)
    (alone,) = model.score(SAID, KIND)
    later = psychocounsel.Speech(SAID, history=(Turn("user", "Hello."), Turn("assistant", "What brings you here?")))
    assert model.score(later, KIND) != [alone]
    with pytest.raises(InputError, match=r"response 2: .*empty"):
        model.score(SAID, [KIND, ""])
    with pytest.raises(InputError, match=r"response 1: has .* tokens"):
        model.score(SAID, [KIND * 500])


def test_a_policy_answers_alike_alone_among_others_and_again(miniature: Miniature) -> None:
    policy = psychocounsel.Policy("mini-online", max_new_tokens=8, store=miniature.store)
    alone = in_a_running_loop(lambda: policy.respond(SAID, n=3))
    texts = [each.text for each in alone]
    assert len(set(texts)) > 1
    other, same, again = policy.respond_all(["My boss shouts at me all day.", SAID, SAID], n=2)
    assert [each.text for each in same] == [each.text for each in again] == texts[:2]
    assert other[0].speech_id != same[0].speech_id
    seeded = psychocounsel.Policy("mini-online", max_new_tokens=8, seed=1, store=miniature.store)
    assert [each.text for each in seeded.respond(SAID, n=3)] != texts
    assert not any(each.finished for each in alone if len(each.text) > 200)


def test_a_policy_behind_an_endpoint_is_paid_once(tmp_path: Path) -> None:
    with ChatServer(lambda request, number: Reply(f"You said {number}.")) as server:
        policy = psychocounsel.Policy(f"endpoint:any@{server.base_url}", store=tmp_path)
        answers = in_a_running_loop(lambda: policy.respond(SAID, n=2))
        assert answers == in_a_thread(lambda: policy.respond(SAID, n=2))
        assert server.count == 2
    assert sorted(each.text for each in answers) == ["You said 0.", "You said 1."]


def test_win_rates_of_comparisons_and_of_words() -> None:
    judge = psychocounsel.Judge()
    items = [(f"{SAID} It has been {at} weeks.", KIND, CURT) for at in range(3)]
    compared = judge.compare_all([*items, (SAID, CURT, KIND), (SAID, KIND, KIND)])
    assert [each.outcome() for each in compared] == ["win", "win", "win", "loss", "tie"]
    measured = psychocounsel.win_rate([*compared, None])
    assert (measured.wins, measured.ties, measured.losses, measured.missing) == (3, 1, 1, 1)
    assert (measured.rate.estimate, measured.rate.n) == (0.7, 5)
    assert measured.length_controlled is not None
    assert "fewer than" in str(measured)
    assert measured.details is not None
    assert set(measured.details.by_criterion) == set(judge.principles)
    words = ["win", "win", "win", "loss", "position-inconsistent", None]
    speeches = [each.speech_id for each in compared] + ["unanswered"]
    assert psychocounsel.win_rate(words, speeches=speeches).rate == measured.rate
    with pytest.raises(InputError, match="did you mean 'win'"):
        psychocounsel.win_rate(["wins"])
    with pytest.raises(InputError, match="2 speeches for 3 outcomes"):
        psychocounsel.win_rate(["win"] * 3, speeches=["a", "b"])
    with pytest.raises(InputError, match="one kind"):
        psychocounsel.win_rate([*compared, "win"])


def test_a_stage_keeps_its_files_from_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PSYCHOCOUNSEL_STORE", str(tmp_path / "store"))
    columns = {"text": "text", "topic": "topic", "crisis": "crisis", "key": "key"}
    source = {"path": "bundled:speeches.jsonl", "columns": columns, "licence": "cc-by-4.0", "data_class": "public"}
    before = os.umask(0o022)
    try:
        config = {"name": "few", "speeches": [source]}
        made = psychocounsel.run_stage("corpus", config, ["cleaning.max_speeches=20"])
        assert os.umask(0o022) == 0o022
    finally:
        os.umask(before)
    assert made.file("speeches.parquet").stat().st_mode & 0o077 == 0
    assert [each.ref for each in psychocounsel.Store().list("speeches")] == [made.ref]


def test_pairs_of_a_file(tmp_path: Path) -> None:
    pairs, others, many = (tmp_path / f"{name}.jsonl" for name in ("pairs", "others", "many"))
    write_rows(pairs, [{"prompt": SAID, "chosen": KIND, "rejected": CURT}])
    (pair,) = psychocounsel.load_pairs(pairs)
    assert (pair.speech.text, pair.chosen.candidate.text, pair.margin) == (SAID, KIND, 1.0)
    write_rows(others, [{"asked": SAID, "chosen": KIND, "rejected": CURT}])
    with pytest.raises(InputError, match="import-preferences"):
        psychocounsel.load_pairs(others)
    write_rows(many, [{"prompt": SAID, "chosen": [KIND], "rejected": [CURT, "No."]}])
    with pytest.raises(InputError, match="best-of-k"):
        psychocounsel.load_pairs(many)


def test_a_project_is_no_file_of_pairs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "mine" / "data" / "preferences" / "mine-01234567"
    folder.mkdir(parents=True)
    write_rows(folder / "train.jsonl", [{"prompt": SAID, "chosen": KIND, "rejected": CURT}])
    (tmp_path / "mine" / "recipe.yaml").write_text("steps: []\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="--store mine/data"):
        psychocounsel.load_pairs("mine")


def test_a_store_lists_opens_and_tells_where_an_artifact_comes_from(miniature: Miniature) -> None:
    store = psychocounsel.Store(miniature.store)
    kinds = [each.kind for each in store.list()]
    assert {"preferences", "reward-models", "policies"} <= set(kinds)
    assert [each.kind for each in store.list("reward-models")] == ["reward-models"]
    steps = store.lineage("reward-models/mini")
    assert steps[0].artifact == store.open("reward-models/mini")
    assert {"preferences", "judgements", "speeches"} <= {each.artifact.kind for each in steps[1:]}
    assert not psychocounsel.Store(miniature.store / "nothing").list()
    assert psychocounsel.Store("").path == psychocounsel.Store().path
