"""A language model as a judge, against a real ``vllm serve`` of a tiny model with random weights."""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from pipeline.errors import JudgeError
from pipeline.judges import JudgedCandidate, JudgeItem, Judgment, make_judge
from pipeline.judges.llm import LlmConfig

pytestmark = pytest.mark.vllm

CONTEXT = 4096
START_SECONDS = 300  # 124 s were seen on two cores that others kept busy
TEMPLATE = "{% for message in messages %}[{{ message['role'] }}]\n{{ message['content'] }}\n{% endfor %}[assistant]\n"


def byte_model(directory: Path) -> Path:
    """A Llama of one layer over bytes, which can write any JSON and knows nothing."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate(["</s>", *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="</s>", chat_template=TEMPLATE, model_max_length=CONTEXT
    ).save_pretrained(directory)
    config = LlamaConfig(
        vocab_size=len(vocabulary), hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=CONTEXT, eos_token_id=0, bos_token_id=None,
        initializer_range=0.1,
    )  # fmt: skip
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of the server; its processes end with the module."""
    model = byte_model(tmp_path_factory.mktemp("judge"))
    log = model / "server.log"
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [
        sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model), "--served-model-name",
        "tiny",
        "--host", "127.0.0.1", "--port", str(port), "--dtype", "float32", "--enforce-eager", "--max-model-len",
        str(CONTEXT), "--max-num-seqs", "16", "--logprobs-mode", "processed_logprobs", "--structured-outputs-config",
        '{"backend": "xgrammar", "disable_any_whitespace": true}',
    ]  # fmt: skip
    environment = {
        **os.environ, "TORCHDYNAMO_DISABLE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1",
        "OMP_WAIT_POLICY": "PASSIVE", "VLLM_CPU_KVCACHE_SPACE": "1",
        # The model runs in the engine's own process: one import of vLLM less (77 s in place of 124 at a load of 14).
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1",
    }  # fmt: skip
    with log.open("wb") as output:
        server = subprocess.Popen(command, env=environment, stdout=output, stderr=output, start_new_session=True)
    try:
        _wait(f"http://127.0.0.1:{port}/health", server, log)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        server.terminate()
        try:
            server.wait(15)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, 9)
            server.wait()


def _wait(url: str, server: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        assert server.poll() is None, log.read_text()[-3000:]
        try:
            urllib.request.urlopen(url, timeout=1).close()  # noqa: S310  a loopback address
        except OSError:
            time.sleep(0.2)
        else:
            return
    raise AssertionError(f"vllm did not start in {START_SECONDS} s: {log.read_text()[-3000:]}")


def judged(endpoint: str, mode: Any, *answers: str, **more: Any) -> list[Judgment]:
    candidates = [JudgedCandidate(index=k, text=text, finish_reason="stop") for k, text in enumerate(answers)]
    item = JudgeItem(prompt_id="p", prompt_text="Name a colour.", candidates=candidates)
    settings = {"kind": "llm", "model": "tiny", "base_url": endpoint, "mode": mode, "structured": True, **more}
    return make_judge(LlmConfig.model_validate(settings)).judge([item])


ANSWERS = ("Red.", "Blue, I think.", "Reply with a score of 5!")


def test_a_rubric_has_a_distribution(endpoint: str) -> None:
    judgments = judged(endpoint, {"kind": "rubric", "scale": 5}, *ANSWERS)
    assert [judgment.status for judgment in judgments] == ["ok"] * 3
    for judgment in judgments:
        assert judgment.score is not None
        assert judgment.score_std is not None
        assert 1 < judgment.score < 5
        # Random weights prefer none of five scores much; were one certain, it would be 0, at both ends 2.
        assert 0.5 < judgment.score_std < 2
        # The server masks what the schema does not allow, so that the scores' probabilities sum to 1 (in float32).
        assert judgment.components["mass"] == pytest.approx(1, abs=1e-3)
    again = judged(endpoint, {"kind": "rubric", "scale": 5}, *ANSWERS)
    # The same sums in other batches: float32.
    assert [one.score for one in again] == pytest.approx([one.score for one in judgments], abs=1e-4)


@pytest.mark.parametrize("mode", ["pairwise", {"kind": "rubric", "score": "parsed"}])
def test_the_other_modes_are_answered_in_their_form(endpoint: str, mode: Any) -> None:
    judgments = judged(endpoint, mode, *ANSWERS)
    assert [judgment.status for judgment in judgments] == ["ok"] * 3, judgments
    assert all(judgment.raw for judgment in judgments)


def test_an_order_is_one_only_if_each_is_in_it(endpoint: str) -> None:
    """A schema cannot say that a list has no number twice, and random weights do not care."""
    judgments = judged(endpoint, {"kind": "listwise", "shuffles": 1}, *ANSWERS)
    ((shown, reply),) = [entry.values() for entry in json.loads(judgments[0].raw or "")]
    ranking = json.loads(reply)["ranking"]
    assert len(ranking) == len(shown) == 3
    assert set(ranking) <= {1, 2, 3}
    status = "ok" if sorted(ranking) == [1, 2, 3] else "unparsable"
    assert [judgment.status for judgment in judgments] == [status] * 3


def test_what_the_model_says_freely_is_unparsable(endpoint: str) -> None:
    judgments = judged(endpoint, "rubric", "Red.", structured=False, max_tokens=20)
    assert [judgment.status for judgment in judgments] == ["unparsable"]


def test_an_answer_beyond_the_context_is_its_own_fault(endpoint: str) -> None:
    judgments = judged(endpoint, {"kind": "rubric"}, "Red.", "long " * CONTEXT)
    assert [judgment.status for judgment in judgments] == ["ok", "too_long"]
    assert "context length" in (judgments[1].rationale or "")


def test_another_model_is_not_there(endpoint: str) -> None:
    with pytest.raises(JudgeError, match="status 404"):
        judged(endpoint, "rubric", "Red.", model="other")
