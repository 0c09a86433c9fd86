"""The implicit reward against log-probabilities of the plain models, one sequence at a time."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from transformers import AutoModelForCausalLM

from pipeline.errors import JudgeError
from pipeline.judges import JudgedCandidate, JudgeItem
from pipeline.judges.implicit import ImplicitConfig, ImplicitJudge
from support.tiny import tiny_llama

PROMPTS = {"p1": [1, 10, 11], "p2": [1, 20]}
ANSWERS = {"p1": [[30, 31, 2], [32, 2], [33, 34, 35, 2]], "p2": [[40, 2], [41, 42, 43]]}


def items() -> list[JudgeItem]:
    return [
        JudgeItem(
            prompt_id=name, prompt_text="", prompt_token_ids=prompt,
            candidates=[
                JudgedCandidate(index=k, text="", finish_reason="stop", token_ids=ids)
                for k, ids in enumerate(ANSWERS[name])
            ],
        )
        for name, prompt in PROMPTS.items()
    ]  # fmt: skip


def plain(directory: Path) -> list[float]:
    """Log-probability of each answer, each by a forward pass of its own."""
    model = AutoModelForCausalLM.from_pretrained(directory).eval()
    found = []
    for name, prompt in PROMPTS.items():
        for answer in ANSWERS[name]:
            ids = torch.tensor([prompt + answer])
            with torch.inference_mode():
                logps = model(input_ids=ids).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
            found.append(float(logps.gather(1, ids[0, len(prompt) :, None]).sum()))
    return found


@pytest.fixture(scope="module")
def policies(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("policies")
    return tiny_llama(root / "a", seed=1, scale=0.3), tiny_llama(root / "b", seed=2, scale=0.3)


def made(**changes: float) -> ImplicitJudge:
    return ImplicitJudge(ImplicitConfig(kind="implicit", beta=0.5, **changes))


def located(path: Path, asked: list[str]) -> Callable[[], Path]:
    def locate() -> Path:
        asked.append(path.name)
        return path

    return locate


def test_it_is_beta_times_the_log_ratio_of_the_tokens_as_sampled(policies: tuple[Path, Path]) -> None:
    first, second = policies
    judge, asked = made(), []
    judge.use(("a", located(first, asked)), ("b", located(second, asked)))
    judgments = judge.judge(items())
    policy, reference = plain(first), plain(second)
    expected = [0.5 * (a - b) for a, b in zip(policy, reference, strict=True)]
    # float32 over up to 4 tokens, packed against plain: 1e-6 a token, and half of it.
    assert [j.score for j in judgments] == pytest.approx(expected, abs=1e-5)
    assert [j.components["policy_logp"] for j in judgments] == pytest.approx(policy, abs=1e-5)
    assert [j.components["reference_logp"] for j in judgments] == pytest.approx(reference, abs=1e-5)
    assert [(j.prompt_id, j.candidate) for j in judgments] == [("p1", 0), ("p1", 1), ("p1", 2), ("p2", 0), ("p2", 1)]
    # The reference's weights are in place now: the next shard begins with them, with the same result to the bit.
    again = judge.judge(items())
    assert [j.score for j in again] == [j.score for j in judgments]
    assert asked == ["a", "b", "a"]


def test_a_penalty_of_length_is_taken_off_for_each_token(policies: tuple[Path, Path]) -> None:
    scores = []
    for judge in (made(), made(length_penalty=0.25)):
        judge.use(("a", lambda: policies[0]), ("b", lambda: policies[1]))
        scores.append([j.score for j in judge.judge(items())])
    lengths = [len(answer) for name in PROMPTS for answer in ANSWERS[name]]
    taken = [plain - penalised for plain, penalised in zip(*scores, strict=True)]
    assert taken == pytest.approx([0.25 * length for length in lengths], abs=1e-12)


def test_a_policy_against_itself_gives_exactly_nothing(policies: tuple[Path, Path]) -> None:
    judge, asked = made(), []
    judge.use(("a", located(policies[0], asked)), ("a", located(policies[0], asked)))
    assert {j.score for j in judge.judge(items())} == {0.0}
    assert asked == ["a"]


def test_its_version_tells_which_policies_judged(policies: tuple[Path, Path]) -> None:
    judge, versions = made(), []
    versions.append(judge.version)
    for pair in (("a", "b"), ("b", "a"), ("a", "b")):
        judge.use((pair[0], lambda: policies[0]), (pair[1], lambda: policies[1]))
        versions.append(judge.version)
    assert len(set(versions)) == 3
    assert versions[1] == versions[3]


def test_what_it_cannot_judge(policies: tuple[Path, Path]) -> None:
    judge = made()
    with pytest.raises(JudgeError, match="before its two policies were named"):
        judge.judge(items())
    judge.use(("a", lambda: policies[0]), ("b", lambda: policies[1]))
    text = JudgeItem(
        prompt_id="p", prompt_text="w1", candidates=[JudgedCandidate(index=0, text="w2", finish_reason="stop")]
    )
    with pytest.raises(JudgeError, match="prompt p comes without token ids"):
        judge.judge([text])


def test_policies_are_named_by_round() -> None:
    judge = ImplicitConfig(kind="implicit")
    assert [judge.rounds(number) for number in (0, 1, 2, 5)] == [(0, 0), (0, 0), (1, 0), (4, 0)]
    assert ImplicitConfig(kind="implicit", policy=3, reference="latest").rounds(9) == (3, 8)
    with pytest.raises(ValidationError, match="are one, and every reward would be 0"):
        ImplicitConfig(kind="implicit", policy="initial", reference=0)
