"""The client over real sockets: every answer and every fault of a server."""

import asyncio
import socket
import threading
import time
import traceback

import pytest
from chat_server import MODEL, ChatServer, Fault, Reply, error_fault

from fake_model import count_replies
from psychocounsel.config.components import EndpointConfig
from psychocounsel.errors import ConfigError, EndpointError, IncompleteError, Preempted
from psychocounsel.llm.cancel import CancelToken
from psychocounsel.llm.client import OpenAIChatModel
from psychocounsel.llm.journal import Journal
from psychocounsel.llm.rate_limit import RetryPolicy
from psychocounsel.llm.runner import RunPolicy, run_requests
from psychocounsel.llm.types import ChatRequest, Message, RequestContext
from psychocounsel.types import ReplyStatus
from running import await_until

QUICK = RetryPolicy(max_tries=4, first_wait_seconds=0.02, longest_wait_seconds=0.05)
SCHEMA = {
    "type": "object",
    "properties": {"item_id": {"type": "string", "enum": ["x1"]}, "empathy": {"enum": [1, 2, 3, 4, 5]}},
}


def ask_for(text, **more):
    return ChatRequest((Message("system", "Rate."), Message("user", text)), 0.0, 1.0, 20, **more)


def model_at(server, timeout_seconds=5.0, retry=QUICK, **more):
    endpoint = EndpointConfig(model="judge", base_url=server.base_url, timeout_seconds=timeout_seconds, **more)
    return OpenAIChatModel(endpoint, offline=True, retry=retry)


def ask(model, *requests):
    async def together():
        try:
            return await asyncio.gather(*(model.generate(request, RequestContext()) for request in requests))
        finally:
            await model.aclose()

    return asyncio.run(together())


def test_a_request_and_its_reply(server, secret_key):
    (reply,) = ask(model_at(server), ask_for("hello", response_schema=SCHEMA, schema_name="rating"))
    assert reply.status is ReplyStatus.VALID
    assert '"item_id": "x1"' in reply.text
    assert (reply.model, reply.prompt_tokens, reply.completion_tokens) == (MODEL, 11, 7)
    ask(model_at(server), ChatRequest((Message("user", "hello"),), None, None, 20))
    received, bare = server.received
    assert not {"temperature", "top_p"} & set(bare.body)
    assert received.authorization == f"Bearer {secret_key}"
    assert received.body == {
        "model": "judge",
        "messages": [{"role": "system", "content": "Rate."}, {"role": "user", "content": "hello"}],
        "temperature": 0.0,
        "top_p": 1.0,
        "max_tokens": 20,
        "response_format": {"type": "json_schema", "json_schema": {"name": "rating", "strict": True, "schema": SCHEMA}},
    }


STATUSES = (408, 409, 429, 500, 502, 503, 504, 520, 524, 529)
BODIES = (b"<html>proxy</html>", b'{"choices": [{"mess', b'{"error": {"message": "overloaded"}}')
BROKEN = (*(Fault(body=body) for body in BODIES), Fault(cut=True), Fault(reset=True))
PASSING = (*(error_fault(status, "busy") for status in STATUSES), *BROKEN)


@pytest.mark.parametrize("fault", PASSING, ids=lambda f: f"{f.status}-{f.cut}-{f.reset}")
def test_a_fault_is_tried_again_until_it_passes_and_ends_as_an_error_after_bounded_tries(server, fault):
    server.script = lambda body, number: fault if number < 2 else Reply("at last")
    (reply,) = ask(model_at(server), ask_for("hello"))
    assert (reply.status, reply.text, server.count) == (ReplyStatus.VALID, "at last", 3)
    if fault.status != 429:  # being turned away costs no try
        server.script = lambda body, number: fault
        (reply,) = ask(model_at(server), ask_for("hello"))
        assert (reply.status, reply.text, server.count) == (ReplyStatus.ERROR, "", 3 + 4)
        assert reply.reason


LINES = [(fault, 1) for fault in (*BROKEN, Fault(hang=True))]
LINES += [(error_fault(status, "busy"), int(status in (504, 524))) for status in (429, 500, 503, 504, 524)]


@pytest.mark.parametrize(("fault", "broken"), LINES, ids=lambda each: str(each)[:60])
def test_what_may_be_billed_is_on_disk_before_it_is_sent_again(server, tmp_path, fault, broken):
    request = ask_for("hello")
    found = []

    def script(body, number):
        if number == 0:
            return fault
        with Journal(tmp_path / "j.sqlite") as other:
            found.extend(other.lost_responses())
        return Reply("fine")

    server.script = script
    model = model_at(server, timeout_seconds=1.0 if fault.hang else 5.0)
    with Journal(tmp_path / "j.sqlite") as journal:
        (reply,) = run_requests(model, [request], journal, RunPolicy())
        assert (reply.text, server.count) == ("fine", 2)
        assert found == journal.lost_responses()
    assert [line.digest for line in found] == [request.digest(model.fingerprint)] * broken


SILENT = [Fault(hang=True), Fault(drip_seconds=0.1)]


@pytest.mark.parametrize("fault", SILENT, ids=["hang", "drip"])
def test_one_deadline_holds_for_all_tries_together(server, fault):
    server.script = lambda body, number: fault if number else Reply("fine")

    async def one_after_another():
        model = model_at(server, timeout_seconds=0.5)  # enough for the first answer on a machine that is busy
        replies = [await model.generate(ask_for(text), RequestContext()) for text in ("hello", "are you there?")]
        await model.aclose()
        return replies

    first, second = asyncio.run(one_after_another())
    assert (first.status, second.status) == (ReplyStatus.VALID, ReplyStatus.ERROR)
    assert "no answer within" in second.reason
    assert server.count <= 1 + 3


@pytest.mark.parametrize("fault", SILENT, ids=["hang", "drip"])
def test_a_server_that_never_answers_is_named_at_once_and_ends_the_run_at_its_first_request(
    server, tmp_path, caplog, fault
):
    server.script = lambda body, number: fault
    model = model_at(server, timeout_seconds=0.2)
    requests = [ask_for(f"t{n}") for n in range(50)]
    with (
        Journal(tmp_path / "j.sqlite") as journal,
        pytest.raises(IncompleteError, match=r"none within 0\.6 s") as caught,
    ):
        run_requests(model, requests, journal, RunPolicy())
    assert server.count <= 3
    assert caught.value.where == server.base_url
    assert "timeout_seconds" in caught.value.remedy
    assert [server.base_url in each.message for each in caplog.records if each.levelname == "WARNING"] == [True]


def test_an_unreachable_server_ends_the_run_at_its_first_request(tmp_path):
    with socket.socket() as taken, Journal(tmp_path / "j.sqlite") as journal:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/v1"
        with pytest.raises(IncompleteError, match="no server answers: no connection") as caught:
            model = OpenAIChatModel(EndpointConfig(model="judge", base_url=url))
            run_requests(model, [ask_for(f"t{n}") for n in range(50)], journal, RunPolicy())
    assert caught.value.where == url
    assert "start the server" in caught.value.remedy
    assert caught.value.exit_code == 3


def test_a_server_that_goes_away_later_is_tried_as_often_as_any_fault():
    async def before_and_after():
        with ChatServer() as server:
            model = model_at(server)
            first = await model.generate(ask_for("hello"), RequestContext())
        second = await model.generate(ask_for("are you there?"), RequestContext())
        await model.aclose()
        return first, second

    first, second = asyncio.run(before_and_after())
    assert (first.status, second.status) == (ReplyStatus.VALID, ReplyStatus.ERROR)
    assert "connection" in second.reason


BUSY = [
    (0.29, error_fault(429, "slow down", "rate_limit_exceeded", {"Retry-After": "0.3"}), 1),
    *((0.19, error_fault(status, "busy"), 6) for status in (429, 503, 529)),  # at least half of the back-off
]


@pytest.mark.parametrize(("seconds", "fault", "others"), BUSY)
def test_a_refusal_pauses_all_requests_as_long_as_retry_after_or_the_back_off_says(server, seconds, fault, others):
    until = []

    def script(body, number):
        until.append(time.monotonic() + seconds)
        return fault if number == 0 or time.monotonic() < until[0] else Reply("fine")

    server.script = script

    async def one_then_others():
        model = model_at(server, retry=RetryPolicy(max_tries=4, first_wait_seconds=0.4, longest_wait_seconds=0.4))
        tasks = [asyncio.create_task(model.generate(ask_for("first"), RequestContext()))]
        while not server.received or server.received[0].sent_at is None:
            await asyncio.sleep(0.005)
        await asyncio.sleep(0.05)
        tasks += [asyncio.create_task(model.generate(ask_for(f"t{n}"), RequestContext())) for n in range(others)]
        replies = await asyncio.gather(*tasks)
        await model.aclose()
        return replies

    assert {reply.text for reply in asyncio.run(one_then_others())} == {"fine"}
    assert server.count == 2 + others, "none is sent before the pause is over"


def test_a_storm_of_429_ends_with_every_item_answered_and_no_try_spent(server, journal):
    busy = error_fault(429, "slow down", headers={"Retry-After": "0.01"})
    server.script = lambda body, number: busy if number % 3 else Reply("fine")
    once = RetryPolicy(max_tries=1, first_wait_seconds=0.01, longest_wait_seconds=0.02)
    model = model_at(server, retry=once, concurrency=16, timeout_seconds=60.0)
    policy = RunPolicy(concurrency=16, max_attempts=1)
    replies = run_requests(model, [ask_for(f"t{n}") for n in range(30)], journal, policy)
    assert {reply.status for reply in replies} == {ReplyStatus.VALID}
    assert server.count == 30 * 3 - 2, "two of three were refused, and the last was not"


def test_a_wait_beyond_the_deadline_is_not_begun(server):
    server.script = lambda body, number: error_fault(429, "come  tomorrow", headers={"Retry-After": "3600"})
    first, second = ask(model_at(server), ask_for("a")) + ask(model_at(server), ask_for("b"))
    assert {first.status, second.status} == {ReplyStatus.ERROR}
    assert first.reason == "the server answered HTTP 429: come tomorrow"


FINAL = [
    (error_fault(400, "unknown parameter"), "refused", "endpoint.model"),
    (error_fault(401, "no such key"), "key is not accepted", "OPENAI_API_KEY"),
    (error_fault(402, "pay first"), "quota", "credit"),
    (error_fault(403, "not yours"), "may not use the model 'judge'", "OPENAI_API_KEY"),
    (error_fault(404, "no such model"), "no model 'judge'", "base_url"),
    (error_fault(422, "what?"), "refused", "endpoint.model"),
    (error_fault(501, "not here"), "refused", "base_url"),
    (error_fault(429, "you ran out", "insufficient_quota"), "quota", "credit"),
    (Fault(status=307, headers={"Location": "http://example.invalid/"}), "refused", "endpoint.model"),
]


@pytest.mark.parametrize(("fault", "what", "remedy"), FINAL)
def test_a_final_refusal_stops_before_the_second_item(server, journal, fault, what, remedy):
    server.script = lambda body, number: fault
    with pytest.raises(EndpointError, match=what) as caught:
        run_requests(model_at(server), [ask_for(f"t{n}") for n in range(20)], journal, RunPolicy())
    assert count_replies(journal) == 0
    assert server.count == 1
    assert remedy in caught.value.remedy
    assert caught.value.where == server.base_url


TOO_LONG = [
    error_fault(400, "Please shorten it.", "context_length_exceeded"),
    error_fault(400, "This model's maximum context length is 4096 tokens."),
    Fault(status=413, body=b"too large"),
]
REFUSED = [(3, error_fault(400, "I do not take this one")), *((at, fault) for fault in TOO_LONG for at in (0, 3))]


@pytest.mark.parametrize(("at", "fault"), REFUSED)
def test_a_refused_request_or_one_too_long_even_as_the_first_fails_alone_and_is_sent_once(server, journal, at, fault):
    server.script = lambda body, number: fault if f"t{at}" in str(body) else Reply("fine")
    requests = [ask_for(f"t{n}") for n in range(6)]
    replies = run_requests(model_at(server), requests, journal, RunPolicy(max_attempts=3))
    assert [reply.status.value for reply in replies] == ["valid"] * at + ["invalid"] + ["valid"] * (5 - at)
    assert f"HTTP {fault.status}" in replies[at].reason
    assert server.count == 6
    again = run_requests(model_at(server), requests, journal, RunPolicy(max_attempts=3))
    assert again[at].status is ReplyStatus.INVALID  # the journal knows that others are taken
    assert server.count == 7


NAMED = (b'{"error": {"message": "wrong  name"}}', b'{"error": "wrong name"}', b'{"message": "wrong name"}')
NAMED += (b'{"detail": "wrong name"}', b"wrong\nname")
UNNAMED = (b'{"detail": [{"input": "a client\'s words"}]}', b"")


@pytest.mark.parametrize("body", NAMED + UNNAMED)
def test_a_refusal_is_reported_in_the_servers_words_wherever_it_puts_them(server, body):
    server.script = lambda request, number: Fault(status=404, body=body)
    with pytest.raises(EndpointError) as caught:
        ask(model_at(server), ask_for("hello"))
    assert f"(HTTP 404: {'wrong name' if body in NAMED else 'Error code: 404'})" in caught.value.what


FLAGGED = b'{"error": {"code": 403, "message": "flagged", "metadata": {"reasons": ["harm"], "flagged_input": "x"}}}'
FILTERED = [*(error_fault(status, "no", "content_policy_violation") for status in (400, 403)), Fault(403, FLAGGED)]


@pytest.mark.parametrize("fault", FILTERED)
def test_a_filtered_prompt_ends_its_item_and_no_other(server, journal, fault):
    server.script = lambda body, number: fault if number == 0 else Reply("fine")
    replies = run_requests(model_at(server), [ask_for(f"t{n}") for n in range(3)], journal, RunPolicy(max_attempts=1))
    assert [reply.status.value for reply in replies] == ["content_filter", "valid", "valid"]


def test_why_a_reply_cannot_be_read_is_reported_without_the_key(server, secret_key):
    error = b'{"error": {"message": "upstream  of %s failed", "code": 502}}' % secret_key.encode()
    server.script = lambda body, number: Fault(body=error)
    (reply,) = ask(model_at(server), ask_for("hello"))
    assert reply.reason.endswith("the body holds an error: upstream of [key] failed")


def test_a_refusal_wakes_those_who_wait_for_a_retry(server):
    def script(body, number):
        if body["messages"][1]["content"] == "busy":
            return error_fault(500, "busy", headers={"Retry-After": "20"})
        return Fault(status=401, delay_seconds=0.1)

    server.script = script

    async def both():
        model = model_at(server, timeout_seconds=30.0)
        asked = [model.generate(ask_for("busy"), RequestContext()), model.generate(ask_for("other"), RequestContext())]
        outcomes = await asyncio.gather(*asked, return_exceptions=True)
        await model.aclose()
        return outcomes

    assert [type(outcome) for outcome in asyncio.run(both())] == [EndpointError, EndpointError]
    assert server.count == 2


@pytest.mark.parametrize("status", [400, 401, 403, 404, 429])
def test_the_key_is_in_no_message_no_traceback_no_repr_and_no_file(server, tmp_path, secret_key, status):
    parrot = error_fault(status, f"Incorrect API key provided: {secret_key}.", "insufficient_quota")
    server.script = lambda body, number: Reply("ok") if number == 0 else parrot
    model = model_at(server)
    with Journal(tmp_path / "j.sqlite") as journal, pytest.raises(EndpointError) as caught:
        run_requests(model, [ask_for(f"t{n}") for n in range(3)], journal, RunPolicy(concurrency=1))
    assert server.received[0].authorization.endswith(secret_key)
    reported = "".join(traceback.format_exception(caught.value)) + repr(caught.value)
    assert "[key]" in reported
    assert secret_key not in reported + repr(model) + repr(vars(model)) + repr(model.fingerprint)
    files = list(tmp_path.iterdir())
    assert files
    assert not any(secret_key.encode() in file.read_bytes() for file in files)


def test_a_key_with_odd_characters_or_in_place_of_the_variables_name_is_refused_without_showing_it(monkeypatch, server):
    with pytest.raises(ConfigError) as caught:
        model_at(server, api_key_env="sk-secret-123")
    assert "secret" not in str(caught.value)
    for key in ("sk-secret one", "sk-secr\u00e9t", "sk-sec\nret"):
        monkeypatch.setenv("OPENAI_API_KEY", key)
        with pytest.raises(ConfigError, match="characters") as caught:
            model_at(server)
        assert "sk-" not in str(caught.value)


def test_a_missing_key_is_named_for_a_remote_host_and_not_needed_here(monkeypatch, server):
    monkeypatch.delenv("OPENAI_API_KEY")
    for name in ("HTTP_PROXY", "ALL_PROXY"):  # no proxy leads off this machine
        monkeypatch.setenv(name, "http://10.255.255.1:9")
    assert ask(model_at(server), ask_for("hello"))[0].status is ReplyStatus.VALID
    with pytest.raises(ConfigError, match="MY_KEY") as caught:
        OpenAIChatModel(EndpointConfig(model="m", base_url="https://api.example.org/v1", api_key_env="MY_KEY"))
    assert caught.value.remedy


def cancel_once_received(server: ChatServer, count: int) -> CancelToken:
    """Return a token that is set some time after the server has received so many requests."""
    cancel = CancelToken()

    def wait():
        await_until(lambda: server.count >= count)
        time.sleep(0.3)
        cancel.cancel()

    threading.Thread(target=wait, daemon=True).start()
    return cancel


def test_a_limit_per_minute_holds_for_what_is_sent_again_too(server, tmp_path):
    server.script = lambda body, number: error_fault(500, "oh")
    hurried = RetryPolicy(first_wait_seconds=0.001, longest_wait_seconds=0.001)
    model = model_at(server, retry=hurried, requests_per_minute=1)
    with Journal(tmp_path / "j.sqlite") as journal, pytest.raises(Preempted, match="0 of 1"):
        run_requests(model, [ask_for("hello")], journal, RunPolicy(cancel=cancel_once_received(server, 1)))
    assert server.count == 1


WAITS = {
    "for a slot": (1, Reply("fine"), {"requests_per_minute": 1}),
    "for a retry": (2, error_fault(500, "oh", headers={"Retry-After": "50"}), {}),
    "for all requests": (2, error_fault(429, "busy", headers={"Retry-After": "50"}), {}),
}


@pytest.mark.parametrize("wait", WAITS)
def test_cancelling_ends_every_wait_and_nothing_more_is_sent(server, journal, wait):
    received, answer, settings = WAITS[wait]
    server.script = lambda body, number: Reply("fine") if number == 0 else answer
    model = model_at(server, timeout_seconds=60.0, **settings)
    cancel = cancel_once_received(server, received)
    with pytest.raises(Preempted, match="1 of 20"):
        run_requests(model, [ask_for(f"t{n}") for n in range(20)], journal, RunPolicy(cancel=cancel))
    assert count_replies(journal) == 1
    sent = server.count
    time.sleep(0.1)
    assert server.count == sent
