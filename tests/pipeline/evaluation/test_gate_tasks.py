"""Tasks of lm-eval with local data, answered by a tiny policy; skipped where that package is not installed."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM

from pipeline.config import SamplingConfig
from pipeline.errors import ConfigError
from pipeline.evaluation.gate_tasks import load_tasks
from pipeline.model.policy import load_tokenizer
from pipeline.sampling import make_sampler
from support.tiny import tiny_llama

CHOICE: dict[str, Any] = {
    "dataset_path": "json", "test_split": "train", "output_type": "multiple_choice", "doc_to_text": "{{question}}",
    "doc_to_choice": "{{choices}}", "doc_to_target": "{{answer}}",
    "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
}  # fmt: skip
SAY: dict[str, Any] = {
    "dataset_path": "json", "test_split": "train", "output_type": "generate_until", "doc_to_text": "{{question}}",
    "doc_to_target": "{{said}}", "generation_kwargs": {"until": [" w20"], "max_gen_toks": 3},
    "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
}  # fmt: skip


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("policy"), scale=0.3)


def written(directory: Path, name: str, task: dict[str, Any], rows: list[dict[str, Any]]) -> str:
    data, file = directory / f"{name}.jsonl", directory / f"{name}.yaml"
    data.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    file.write_text(yaml.safe_dump({"task": name, **task, "dataset_kwargs": {"data_files": str(data)}}))
    return str(file)


def questions(count: int, seed: int = 3) -> list[list[int]]:
    return np.random.default_rng(seed).integers(8, 60, (count, 6)).tolist()


def words(tokens: list[int]) -> str:
    return " ".join(f"w{token - 4}" for token in tokens)  # four special tokens come before them


def logps(model: Any, context: list[int], following: list[int]) -> float:
    with torch.inference_mode():
        said = model(input_ids=torch.tensor([[*context, *following]])).logits[0, len(context) - 1 : -1].log_softmax(-1)
    return float(said[torch.arange(len(following)), torch.tensor(following)].sum())


def test_scores_of_each_example_as_transformers_has_them(policy: Path, tmp_path: Path) -> None:
    """Four tokens, three choices of one or two: the choice of the highest log-probability, in a plain forward pass.

    An answer to the second task is right where it is what transformers says greedily, cut before the mark.
    """
    pytest.importorskip("lm_eval")
    model = AutoModelForCausalLM.from_pretrained(policy, dtype=torch.float32)
    asked, spoken, expected, said = [], [], {}, {}
    for row, drawn in enumerate(questions(12)):
        context, choices = drawn[:4], [[drawn[4]], [drawn[5], drawn[4]], [drawn[5]]]
        likeliest = int(np.argmax([logps(model, context, choice) for choice in choices]))
        asked.append({"question": words(context), "choices": [words(choice) for choice in choices], "answer": row % 3})
        expected[words(context)] = float(likeliest == row % 3)
        greedy = model.generate(torch.tensor([context]), do_sample=False, max_new_tokens=3)[0, 4:].tolist()
        answer = words([token for token in greedy if token > 3]).split(" w20")[0]
        spoken.append({"question": words(context), "said": answer if row % 2 else f"{answer} w1"})
        said[words(context)] = float(row % 2)
    assert set(expected.values()) == {0.0, 1.0}, "a choice that cannot fail would show nothing"
    names = [written(tmp_path, "facts", CHOICE, asked), written(tmp_path, "speech", SAY, spoken)]
    config = SamplingConfig(engine="transformers", context=64).served(temperature=0.0, top_p=1.0)
    sampler = make_sampler(config, policy, device="cpu", threads=1)
    facts, speech = load_tasks(names, 100, 5)
    for task, want in ((facts, expected), (speech, said)):
        judged = task.score(sampler, load_tokenizer(policy), config)
        own = [request.doc["question"] for request in task.task.instances if request.idx == 0]
        assert {question: judgment.score for question, judgment in zip(own, judged, strict=True)} == want
        assert [judgment.prompt_id for judgment in judged] == list(task.ids)
        assert len(set(task.ids)) == 12
        assert {judgment.judge for judgment in judged} == {task.label}


def test_the_choice_of_examples_and_the_version_follow_the_data(tmp_path: Path) -> None:
    """The order of the file does not count, as the smallest hashes are taken; another answer is another version."""
    pytest.importorskip("lm_eval")
    rows = [{"question": words(drawn), "choices": ["w1", "w2"], "answer": 0} for drawn in questions(20)]
    (first,) = load_tasks([written(tmp_path, "facts", CHOICE, rows)], 8, 5)
    (again,) = load_tasks([written(tmp_path, "facts", CHOICE, rows)], 8, 5)
    (turned,) = load_tasks([written(tmp_path, "facts", CHOICE, rows[::-1])], 8, 5)
    (other,) = load_tasks([written(tmp_path, "facts", CHOICE, [{**row, "answer": 1} for row in rows])], 8, 5)

    def chosen(task: Any) -> set[str]:
        return {request.doc["question"] for request in task.task.instances}

    assert len(first.ids) == 8
    assert (again.ids, again.version) == (first.ids, first.version)
    assert chosen(turned) == chosen(first)
    assert other.version != first.version


def test_what_cannot_be_used_is_said(tmp_path: Path) -> None:
    pytest.importorskip("lm_eval")
    rows = [{"question": "w1", "choices": ["w1", "w2"], "answer": 0}] * 3
    few = written(tmp_path, "few", CHOICE, rows)
    with pytest.raises(ConfigError, match="'few' has 3 examples, and the gate takes at least 5"):
        load_tasks([few], 10, 5)
    absent = tmp_path / "absent.yaml"
    task = {"task": "absent", **CHOICE, "dataset_kwargs": {"data_files": str(tmp_path / "none.jsonl")}}
    absent.write_text(yaml.safe_dump(task))
    with pytest.raises(ConfigError, match=r"lm-eval cannot load .*absent\.yaml.* with its data, which have to be on"):
        load_tasks([str(absent)], 10, 2)
    rolling = written(tmp_path, "rolling", {**CHOICE, "output_type": "loglikelihood"}, rows)
    with pytest.raises(ConfigError, match="'rolling' is of lm-eval's type loglikelihood"):
        load_tasks([rolling], 10, 2)
    pairs = {**CHOICE, "metric_list": [{"metric": "f1", "aggregation": "f1", "higher_is_better": True}]}
    with pytest.raises(ConfigError, match="'paired' gives an example no number as its f1"):
        load_tasks([written(tmp_path, "paired", pairs, rows)], 10, 2)


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    with pytest.raises(ConfigError, match=r"lm-eval, which is not installed: install rondo\[lm-eval\]"):
        load_tasks(["anything"], 10, 5)
    assert load_tasks([], 10, 5) == []
