"""Clients on real models and a real HTTP server: two tiny random Llamas in this process, and `chat_server`."""

from __future__ import annotations

import asyncio
import math
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from chat_server import KEY, MODEL, PARTIES, ChatServer
from hypothesis import given, settings
from hypothesis import strategies as st

from celr_ray.core.chat_encoder import ChatEncoder, bound_prompt_tokens, bound_text_tokens
from celr_ray.core.clients import CallFailure, Generation, ModelClient, open_clients
from celr_ray.core.models import Tier, TierLadder
from celr_ray.errors import ConfigError, ModelError
from celr_ray.small_models import fetch_smollm2
from celr_ray.testing import make_tiny_llama

SMALL_CACHE = {"kv_cache_memory_bytes": 64 * 2**20}
WINDOW, MAX_TOKENS = 512, 12


def make_tier(name: str, **fields: Any) -> Tier:
    common = {
        "model": MODEL,
        "input_usd_per_mtok": 1,
        "output_usd_per_mtok": 2,
        "context_window": WINDOW,
        "max_output_tokens": MAX_TOKENS,
    }
    return Tier(**{"name": name, **common, **fields})


def chat(text: str) -> list[dict[str, str]]:
    return [{"role": "system", "content": "Be brief."}, {"role": "user", "content": text}]


def texts(results: Sequence[Generation | CallFailure]) -> list[str]:
    return [result.text if isinstance(result, Generation) else f"!{result.kind}" for result in results]


# Engines in this process


@pytest.fixture(scope="module")
def llamas(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Two models with the same tokenizer and other weights."""
    import torch
    from transformers import AutoModelForCausalLM

    folders = [make_tiny_llama(tmp_path_factory.mktemp("llama") / name) for name in "ab"]
    model = AutoModelForCausalLM.from_pretrained(folders[1])
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(1)
        for weights in model.parameters():
            weights += 0.1 * torch.randn_like(weights)
    model.save_pretrained(folders[1])
    return folders[0], folders[1]


@pytest.fixture(scope="module")
def clients(llamas: tuple[str, str]) -> Iterator[dict[str, ModelClient]]:
    engine: dict[str, Any] = {"engine": "vllm", "engine_kwargs": SMALL_CACHE}
    ladder = TierLadder(
        tiers=(
            make_tier("weak", model=llamas[0], **engine),
            make_tier("sampling", model=llamas[0], temperature=1, context_window=300, **engine),
            make_tier("strong", model=llamas[1], **engine),
        )
    )
    opened = open_clients(ladder)
    yield opened
    for client in opened.values():
        client.close()


def hf_greedy(folder: str, prompt: list[int], n_tokens: int) -> tuple[list[int], float]:
    """Return transformers' greedy continuation and its mean log-probability."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder)
    output = model.generate(torch.tensor([prompt]), max_new_tokens=n_tokens, do_sample=False)[0]
    with torch.no_grad():
        logprobs = torch.log_softmax(model(output[None]).logits[0], dim=-1)
    new = output[len(prompt) :].tolist()
    chosen = [float(logprobs[len(prompt) + i - 1, token]) for i, token in enumerate(new)]
    return new, sum(chosen) / len(chosen)


@pytest.mark.parametrize(("name", "which"), [("weak", 0), ("strong", 1)])
def test_two_engines_in_one_process_say_what_transformers_says(
    clients: dict[str, ModelClient], llamas: tuple[str, str], name: str, which: int
) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(llamas[which])
    chats = [chat(f"task {i} " + "x " * i) for i in range(4)]
    results = clients[name].generate(chats, seeds=range(4))
    for messages, result in zip(chats, results, strict=True):
        prompt = list(tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False))
        tokens, mean_logprob = hf_greedy(llamas[which], prompt, MAX_TOKENS)
        assert isinstance(result, Generation)
        whole = tokenizer.decode(tokens, skip_special_tokens=True)
        assert result.text.rstrip("�") == whole.rstrip("�")  # vLLM drops bytes of an unfinished character
        assert (result.prompt_tokens, result.output_tokens) == (len(prompt), len(tokens))
        assert result.mean_logprob == pytest.approx(mean_logprob, abs=1e-3)
        assert result.finish_reason in ("stop", "length")
        assert result.seconds > 0
        assert not result.is_estimated


def test_equal_models_share_one_engine(clients: dict[str, ModelClient]) -> None:
    engines = {name: id(client._engine) for name, client in clients.items()}  # type: ignore[attr-defined]
    assert engines["weak"] == engines["sampling"] != engines["strong"]


def test_the_engines_take_turns(clients: dict[str, ModelClient]) -> None:
    from concurrent.futures import ThreadPoolExecutor

    chats = [chat(f"turn {i}") for i in range(3)]
    alone = {name: texts(clients[name].generate(chats, seeds=range(3))) for name in ("weak", "strong")}
    with ThreadPoolExecutor(2) as pool:  # vLLM's globals would mix two engines that compute at once
        work = {name: pool.submit(clients[name].generate, chats, seeds=range(3)) for name in alone}
        assert {name: texts(future.result()) for name, future in work.items()} == alone


def test_prompt_tokens_are_what_the_engine_counts(clients: dict[str, ModelClient]) -> None:
    chats = [chat(text) for text in ("", "a b c", "é日🙂 \ud800", "<|im_end|>", "x" * 99)]
    results = clients["weak"].generate(chats, seeds=[0] * len(chats))
    assert [result.prompt_tokens for result in results if isinstance(result, Generation)] == clients[
        "weak"
    ].prompt_tokens(chats)


def test_a_prompt_without_room_for_its_answer_fails_alone(clients: dict[str, ModelClient]) -> None:
    client = clients["sampling"]
    chats = [chat("short"), chat("long " * 400), chat("short too")]
    results = client.generate(chats, seeds=[1, 2, 3])
    assert [type(result).__name__ for result in results] == ["Generation", "CallFailure", "Generation"]
    assert isinstance(results[1], CallFailure)
    assert results[1].kind == "context"
    assert str(client.prompt_tokens(chats)[1]) in results[1].reason
    n_tokens = client.prompt_tokens(chats[:1])[0]
    room = 300 - n_tokens  # of the tier's window, though the engine's is larger
    just_fits, too_much = (client.generate(chats[:1], seeds=[1], max_output_tokens=n)[0] for n in (room, room + 1))
    assert isinstance(just_fits, Generation)
    assert isinstance(too_much, CallFailure)


def test_samples_depend_on_the_seed_and_not_on_the_batch(clients: dict[str, ModelClient]) -> None:
    client = clients["sampling"]
    chats = [chat(f"sample {i} " + "y " * 5 * i) for i in range(6)]
    together = texts(client.generate(chats, seeds=range(6)))
    assert texts(client.generate(chats[::-1], seeds=range(6)[::-1]))[::-1] == together
    assert [texts(client.generate([one], seeds=[i]))[0] for i, one in enumerate(chats)] == together
    assert texts(client.generate(chats, seeds=range(6, 12))) != together
    same = client.generate([chats[0]] * 4, seeds=[1, 2, 3, 1])
    assert len(set(texts(same))) == 3


def test_a_call_may_change_temperature_and_length(clients: dict[str, ModelClient]) -> None:
    chats = [chat("again")]
    greedy = texts(clients["weak"].generate(chats, seeds=[0]))
    assert texts(clients["sampling"].generate(chats, seeds=[5], temperature=0)) == greedy
    short = clients["weak"].generate(chats, seeds=[0], max_output_tokens=3)[0]
    assert isinstance(short, Generation)
    assert (short.output_tokens, short.finish_reason) == (3, "length")
    assert greedy[0].startswith(short.text.rstrip("�"))
    assert clients["weak"].generate([], seeds=[]) == []


def test_a_prompt_that_breaks_the_engine_fails_alone(clients: dict[str, ModelClient]) -> None:
    from vllm import SamplingParams

    engine = clients["strong"]._engine  # type: ignore[attr-defined]
    prompts = [[5, 6], [7], [10**9], [8], [9]]  # no such token: vLLM refuses the whole batch
    outputs = engine.run(prompts, [SamplingParams(max_tokens=2)] * 5)
    assert [isinstance(output, Exception) for output in outputs] == [False, False, True, False, False]
    assert [output.prompt_token_ids for output in outputs[:2]] == prompts[:2]
    assert len(clients["strong"].generate([chat("next")], seeds=[1])) == 1  # nothing is left queued


def test_models_that_cannot_be_loaded_are_model_errors(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    ladder = TierLadder(tiers=(make_tier("a", engine="vllm", model=str(tmp_path)),))
    with pytest.raises(ModelError, match="vLLM cannot load"):
        open_clients(ladder)


def test_engines_that_need_a_gpu_each_are_refused() -> None:
    tiers = tuple(make_tier(name, engine="vllm", model=name, num_gpus=1) for name in "ab")
    with pytest.raises(ConfigError, match=r"1 \+ 1 GPUs.*num_gpus: 0.5"):
        open_clients(TierLadder(tiers=tiers))


_CLOSING = """
import gc, sys, psutil
from celr_ray.core.clients import open_clients
from celr_ray.core.models import load_tiers
from celr_ray.core.vllm_engine import _InProcess
from celr_ray.errors import ModelError

def used(): return psutil.Process().memory_info().rss / 2**20
if __name__ == "__main__":
    ladder = load_tiers(sys.argv[1])
    clients = open_clients(ladder)
    chats, seeds = [[{"role": "user", "content": "hi"}]] * 2, [1, 2]
    first = {name: client.generate(chats, seeds=seeds)[0].text for name, client in clients.items()}
    full = used()
    clients["a"].close()
    clients["a"].close()
    for name in ("a2", "b"):
        assert clients[name].generate(chats, seeds=seeds)[0].text == first[name]
    clients["a2"].close()
    assert clients["b"].generate(chats, seeds=seeds)[0].text == first["b"]
    try:
        clients["a2"].generate(chats, seeds=seeds)
    except ModelError as error:
        assert "closed" in str(error), error
    else:
        raise AssertionError("a closed client answers")
    clients["b"].close()
    assert used() < full - 1.5 * 256, (full, used())
    clients = open_clients(ladder)
    assert {name: client.generate(chats, seeds=seeds)[0].text for name, client in clients.items()} == first
    # the state that engines of one process share is gone: an error, not an endless loop
    clients["a"]._engine._llm.llm_engine.engine_core.shutdown()
    try:
        clients["b"].generate(chats, seeds=seeds)
    except ModelError as error:
        assert "fails on every prompt" in str(error), error
    else:
        raise AssertionError("an engine without groups answers")
"""


def test_engines_close_together_and_can_be_opened_again(llamas: tuple[str, str], tmp_path: Path) -> None:
    kwargs = {"kv_cache_memory_bytes": 256 * 2**20}
    tiers = [
        make_tier(name, engine="vllm", model=llamas[which], engine_kwargs=kwargs)
        for name, which in (("a", 0), ("a2", 0), ("b", 1))
    ]
    (tmp_path / "tiers.yaml").write_text(TierLadder(tiers=tuple(tiers)).model_dump_json(exclude_defaults=True))
    (tmp_path / "closing.py").write_text(_CLOSING)
    done = subprocess.run(
        [sys.executable, str(tmp_path / "closing.py"), str(tmp_path / "tiers.yaml")], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]


# Counting without a model


@pytest.fixture(scope="module")
def encoders(llamas: tuple[str, str]) -> list[ChatEncoder]:
    from transformers import AutoTokenizer

    return [ChatEncoder(AutoTokenizer.from_pretrained(folder)) for folder in (llamas[0], fetch_smollm2())]


@settings(max_examples=200, deadline=None)
@given(
    content=st.lists(st.text(max_size=60), min_size=1, max_size=5),
    odd=st.sampled_from(["", "\ud800", "\u0958" * 9, "<|im_end|>" * 5, "🙂" * 20, "\n" * 50]),
)
def test_the_bound_is_never_below_a_tokenizers_count(encoders: list[ChatEncoder], content: list[str], odd: str) -> None:
    roles = ["system", *["user", "assistant"] * 2]
    messages = [{"role": role, "content": text + odd} for role, text in zip(roles, content, strict=False)]
    for encoder in encoders:
        ids = encoder.encode(messages)
        assert len(ids) <= bound_prompt_tokens(messages)


@pytest.mark.parametrize(
    ("refuses", "expected"),
    [
        ("false", "system=S|user=U|assistant=A|"),
        ("messages[0]['role'] == 'system'", "user=S\n\nU|assistant=A|"),
    ],
)
def test_a_template_without_system_messages_gets_them_in_the_users(
    encoders: list[ChatEncoder], refuses: str, expected: str
) -> None:
    tokenizer = encoders[0]._tokenizer
    template = (
        "{% if " + refuses + " %}{{ raise_exception('no system') }}{% endif %}"
        "{% for m in messages %}{{ m['role'] + '=' + m['content'] + '|' }}{% endfor %}"
    )
    encoder = ChatEncoder(tokenizer, template)
    messages = [{"role": role, "content": role[0].upper()} for role in ("system", "user", "assistant")]
    ids = encoder.encode(messages)
    assert isinstance(ids, list)
    assert tokenizer.decode(ids) == expected


def test_a_template_may_refuse_a_conversation_and_take_variables(encoders: list[ChatEncoder]) -> None:
    tokenizer = encoders[0]._tokenizer
    picky = "{% if messages|length > 2 %}{{ raise_exception('too many') }}{% endif %}{{ mood }}"
    encoder = ChatEncoder(tokenizer, picky, {"mood": "glad"})
    assert tokenizer.decode(encoder.encode(chat("a"))) == "glad"
    assert encoder.encode([*chat("a"), *chat("b")]) == "the chat template refuses the conversation: too many"


# Endpoints


@pytest.fixture(scope="module")
def server() -> Iterator[ChatServer]:
    served = ChatServer()
    yield served
    served.close()


@pytest.fixture
def open_tier(server: ChatServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setenv("CHAT_KEY", KEY)
    opened: list[ModelClient] = []

    def connect(**fields: Any) -> ModelClient:
        settings_ = {"engine": "openai", "base_url": server.url, "api_key_env": "CHAT_KEY", "max_retries": 1, **fields}
        opened.extend(open_clients(TierLadder(tiers=(make_tier("remote", **settings_),))).values())
        return opened[-1]

    yield connect
    for client in opened:
        client.close()


def ask(client: ModelClient, *messages: str, **options: Any) -> list[Generation | CallFailure]:
    return client.generate([chat(text) for text in messages], seeds=range(len(messages)), **options)


def test_replies_come_in_order_with_the_servers_counts(open_tier: Any, server: ChatServer) -> None:
    messages = [f"echo {i}" for i in range(20)]
    results = ask(open_tier(concurrency=3), *messages)
    assert texts(results) == [f"echo: {message}" for message in messages]
    first = results[0]
    assert isinstance(first, Generation)
    assert (first.prompt_tokens, first.output_tokens, first.finish_reason) == (7, 3, "stop")
    assert first.mean_logprob is None
    assert not first.is_estimated
    assert first.seconds > 0


def test_a_request_says_what_the_tier_says(open_tier: Any, server: ChatServer) -> None:
    client = open_tier(temperature=0.5, top_p=0.9, engine_kwargs={"seed": None, "min_p": 0.1})
    ask(client, "echo first")
    ask(client, "echo second \ud800", temperature=0.0, max_output_tokens=5)
    first, second = server.bodies[-2:]
    assert first.pop("messages") == chat("echo first")
    assert first == {"model": MODEL, "temperature": 0.5, "top_p": 0.9, "max_tokens": MAX_TOKENS, "min_p": 0.1}
    assert (second["temperature"], second["max_tokens"]) == (0.0, 5)
    assert second["messages"][-1]["content"] == "echo second ?"
    named = open_tier(engine_kwargs={"max_tokens": None, "max_completion_tokens": MAX_TOKENS})
    ask(named, "echo fourth", max_output_tokens=5)
    assert "max_tokens" not in server.bodies[-1]
    assert server.bodies[-1]["max_completion_tokens"] == 5, "engine_kwargs never raise the limit that was priced"
    ask(open_tier(), "echo", "echo third")
    assert sorted(body["seed"] for body in server.bodies[-2:]) == [0, 1]


@pytest.mark.parametrize(
    ("mode", "kind", "tries", "reason"),
    [
        ("broken", "server", 2, "it broke"),
        ("busy", "server", 2, "slow down"),
        ("slow", "timeout", 2, "no answer within 0.3 s"),
        ("drop", "connection", 2, "no contact"),
        ("cut", "malformed", 1, "unreadable reply"),
        ("html", "malformed", 1, "a proxy speaks"),
        ("empty", "malformed", 1, "unreadable reply"),
        ("text-count", "malformed", 1, "prompt_tokens"),
        ("long", "context", 1, "maximum context length"),
        ("odd", "refused", 1, "what is this"),
        ("moderated", "refused", 1, "flagged"),
    ],
)
def test_a_failed_call_says_why_and_fails_alone(
    open_tier: Any, server: ChatServer, mode: str, kind: str, tries: int, reason: str
) -> None:
    client = open_tier(timeout_s=0.3 if mode == "slow" else 60)
    good, bad, good_too = ask(client, "echo a", f"{mode} alone", "echo b")
    assert texts([good, good_too]) == ["echo: echo a", "echo: echo b"]
    assert isinstance(bad, CallFailure)
    assert bad.kind == kind
    assert reason in bad.reason
    assert server.seen[f"{mode} alone"] == tries


def test_what_passes_is_tried_again(open_tier: Any, server: ChatServer) -> None:
    assert texts(ask(open_tier(), "flaky once")) == ["echo: flaky once"]
    assert server.seen["flaky once"] == 2
    assert texts(ask(open_tier(max_retries=0), "flaky never again")) == ["!server"]
    assert server.seen["flaky never again"] == 1


def test_no_server_at_all_fails_each_call() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    tier = make_tier("gone", engine="openai", base_url=f"http://127.0.0.1:{port}/v1", max_retries=0)
    client = open_clients(TierLadder(tiers=(tier,)))["gone"]
    results = ask(client, "a", "b")
    client.close()
    assert texts(results) == ["!connection", "!connection"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"api_key_env": "WRONG_KEY"}, "the key is wrong: check the variable WRONG_KEY"),
        ({"api_key_env": None}, r"the key is wrong: check the variable \(api_key_env is not set in the tier\)"),
        ({"model": "other"}, "knows no such model or address: check model and base_url"),
    ],
)
def test_what_would_fail_every_call_ends_the_run(
    open_tier: Any, server: ChatServer, monkeypatch: pytest.MonkeyPatch, fields: dict[str, Any], message: str
) -> None:
    monkeypatch.setenv("WRONG_KEY", "bad-secret")
    monkeypatch.setenv("OPENAI_API_KEY", KEY)  # belongs to another server: never sent
    client = open_tier(**fields)
    with pytest.raises(ModelError, match=message) as caught:
        ask(client, "echo a", "echo b")
    assert "remote" in str(caught.value)
    assert "bad-secret" not in str(caught.value)


def test_an_account_without_credit_ends_the_run(open_tier: Any) -> None:
    with pytest.raises(ModelError, match="the account has no credit"):
        ask(open_tier(), "echo a", "quota")


def test_a_missing_key_is_told_before_any_call(open_tier: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_KEY", raising=False)
    with pytest.raises(ModelError, match="environment variable NO_KEY holds no key"):
        open_tier(api_key_env="NO_KEY")


def test_replies_of_other_forms_are_read(open_tier: Any) -> None:
    uncounted, refusal, silent, logprobs = ask(open_tier(), "uncounted", "refusal", "silent", "logprobs")
    assert isinstance(uncounted, Generation)
    assert uncounted.is_estimated
    assert uncounted.prompt_tokens == bound_prompt_tokens(chat("uncounted"))
    assert uncounted.output_tokens == MAX_TOKENS < len("echo: uncounted"), "never above the limit that was priced"
    (roomy,) = ask(open_tier(max_output_tokens=64), "uncounted")
    assert isinstance(roomy, Generation)
    assert roomy.output_tokens == len("echo: uncounted") + 1
    assert texts([refusal, silent]) == ["I will not", ""]
    assert isinstance(silent, Generation)
    assert silent.finish_reason == "length"
    assert isinstance(logprobs, Generation)
    assert logprobs.mean_logprob == pytest.approx(-1.5)


def test_requests_run_side_by_side_up_to_the_limit(open_tier: Any) -> None:
    fresh = ChatServer()
    client = open_tier(concurrency=PARTIES, base_url=fresh.url)
    results = ask(client, *[f"together {i}" for i in range(3 * PARTIES)])
    fresh.close()
    assert all(isinstance(result, Generation) for result in results)
    assert fresh.most_in_flight == PARTIES


def test_a_tokenizer_makes_the_count_exact(open_tier: Any, llamas: tuple[str, str]) -> None:
    exact, bound = open_tier(tokenizer=llamas[0]), open_tier()
    chats = [chat("some words " * 5), chat("long " * 400)]
    assert bound.prompt_tokens(chats) == [bound_prompt_tokens(one) for one in chats]
    counts = exact.prompt_tokens(chats)
    assert all(count < most for count, most in zip(counts, bound.prompt_tokens(chats), strict=True))
    assert texts(exact.generate(chats[1:], seeds=[0])) == ["!context"]
    with pytest.raises(ModelError, match="cannot load the tokenizer '/nowhere'"):
        open_tier(tokenizer="/nowhere")


def test_a_client_works_where_an_event_loop_runs(open_tier: Any) -> None:
    client = open_tier()

    async def call() -> list[str]:
        return texts(ask(client, "echo in a loop"))

    assert asyncio.run(call()) == ["echo: echo in a loop"]


def test_a_closed_client_says_so(open_tier: Any) -> None:
    client = open_tier()
    client.close()
    client.close()
    with pytest.raises(ModelError, match="closed"):
        ask(client, "echo")


def test_a_client_works_in_a_ray_actor(local_ray: Any, server: ChatServer) -> None:
    @local_ray.remote(num_cpus=0, runtime_env={"env_vars": {"CHAT_KEY": KEY}})
    class Worker:
        def __init__(self, tier: Tier) -> None:
            self.client = open_clients(TierLadder(tiers=(tier,)))[tier.name]

        async def work(self, text: str) -> str:  # Ray runs it in an event loop
            result = self.client.generate([[{"role": "user", "content": text}]], seeds=[1])[0]
            return result.text if isinstance(result, Generation) else result.reason

    tier = make_tier("remote", engine="openai", base_url=server.url, api_key_env="CHAT_KEY")
    worker = Worker.remote(tier)
    assert local_ray.get(worker.work.remote("echo from Ray")) == "echo: echo from Ray"
    local_ray.kill(worker)


@given(st.text())
def test_no_text_has_more_tokens_than_its_bound_says(text: str) -> None:
    assert bound_text_tokens(text) >= len(text.encode("utf-8", "replace"))


@pytest.mark.slow
def test_the_client_talks_to_vllms_own_server(llamas: tuple[str, str], tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", llamas[0], "--port", str(port)]
    command += ["--host", "127.0.0.1", "--max-model-len", str(WINDOW), "--served-model-name", MODEL]
    command += ["--dtype", "float32", "--enforce-eager"]
    log = (tmp_path / "server.log").open("wb")
    environment = {**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1"}
    process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)
    try:
        _wait_for_server(f"http://127.0.0.1:{port}/health", process, tmp_path / "server.log")
        remote = make_tier(
            "remote",
            engine="openai",
            base_url=f"http://127.0.0.1:{port}/v1",
            tokenizer=llamas[0],
            engine_kwargs={"logprobs": True},
        )
        client = open_clients(TierLadder(tiers=(remote,)))["remote"]
        chats = [chat(f"task {i}") for i in range(6)]
        results = client.generate(chats, seeds=range(6))
        counts = client.prompt_tokens(chats)
        client.close()
    finally:
        process.terminate()
        process.wait(60)
    for result, count in zip(results, counts, strict=True):
        assert isinstance(result, Generation)
        assert result.prompt_tokens == count
        assert 1 <= result.output_tokens <= MAX_TOKENS
        assert result.mean_logprob is not None
        assert not math.isnan(result.mean_logprob)


def _wait_for_server(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(300):
        assert process.poll() is None, log.read_text()[-3000:]
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except OSError:
            time.sleep(1)
    raise AssertionError(f"the server did not start: {log.read_text()[-3000:]}")
