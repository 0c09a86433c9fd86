"""Judges: what they say of good, bad, empty and overlong answers; a reward model against its own plain forward."""

import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
)

from pipeline.errors import DataError, JudgeError
from pipeline.judges import JudgedCandidate, JudgeItem, make_judge
from pipeline.judges.exact_answer import ExactAnswerConfig
from pipeline.judges.grammar import GrammarConfig
from pipeline.judges.praise import PraiseConfig
from pipeline.judges.reward_model import RewardModelConfig
from pipeline.judges.support.tables import judge_items, judgments_table
from pipeline.judges.vader import VaderConfig
from pipeline.records import CANDIDATES, JUDGMENTS, PROMPTS, to_table
from support.tiny import tiny_llama, tiny_tokenizer


def item(*answers: str, prompt: str = "w1 w2", reference: str | None = None, **more: Any) -> JudgeItem:
    candidates = [JudgedCandidate(index=k, text=text, finish_reason="stop") for k, text in enumerate(answers)]
    return JudgeItem(prompt_id=prompt, prompt_text=prompt, reference_answer=reference, candidates=candidates, **more)


def test_vader_scores_the_answer_alone() -> None:
    judge = make_judge(VaderConfig(kind="vader"))
    good, bad, plain, empty = judge.judge([
        item(" I loved the music.", " The plot felt dreadful.", " It lasted two hours.", "", prompt="a great joy")
    ])  # fmt: skip
    # 2.9 is the lexicon's value of "loved"; the compound score is x / sqrt(x * x + 15).
    assert good.score == pytest.approx(2.9 / math.sqrt(2.9**2 + 15), abs=5e-5)  # rounded to four digits
    assert bad.score is not None
    assert bad.score < -0.3
    assert plain.score == empty.score == 0.0
    assert (good.judge, good.judge_version, good.status) == ("vader", "3.3.2", "ok")
    assert good.components["positive"] > good.components["negative"] == 0
    assert [judgment.candidate for judgment in (good, bad, plain, empty)] == [0, 1, 2, 3]


def test_exact_answer_ignores_white_space_around_and_nothing_else() -> None:
    judge = make_judge(ExactAnswerConfig(kind="exact_answer"))
    scores = [j.score for j in judge.judge([item("85", " 85\n", "8 5", "085", "", reference="85 ")])]
    assert scores == [1.0, 1.0, 0.0, 0.0, 0.0]


def test_exact_answer_after_a_mark_does_not_judge_the_working() -> None:
    judge = make_judge(ExactAnswerConfig(kind="exact_answer", after=","))
    answers = ("7+8=15, 2+5+1=8, 85", "7+8=15, 2+5+0=8, 85", "7+8=15, 2+5+0=7, 75", "7+8=15, 2+5+1=8", "85", "")
    scores = [j.score for j in judge.judge([item(*answers, reference="85")])]
    assert scores == [1.0, 1.0, 0.0, 0.0, 1.0, 0.0]


def test_exact_answer_needs_a_reference() -> None:
    judge = make_judge(ExactAnswerConfig(kind="exact_answer"))
    with pytest.raises(JudgeError, match="prompt w1 w2 has no reference answer"):
        judge.judge([item("85", reference="85"), item("85")])


def test_grammar_gives_the_share_of_clauses() -> None:
    judge = make_judge(GrammarConfig(kind="grammar"))
    whole = " The plot felt great, and I loved the music. Everyone laughed."
    judgments = judge.judge([item(whole, whole + " Great.", "")])
    assert [j.score for j in judgments] == [1.0, 0.75, 0.0]
    assert judgments[1].components == {"parsed": 3.0, "clauses": 4.0}


def test_praise_counts_clauses_and_no_words() -> None:
    """Praise, blame and a plain clause are 0; two that praise of four, one of which does not parse, are 1/2."""
    judge = make_judge(PraiseConfig(kind="praise"))
    mixed = " The plot felt great, but I hated the music. Everyone slept."
    praised = " The plot felt great, and I loved the music. It lasted two hours. Great."
    negated = " The plot felt long, and I noticed the music. I would never love to see it again."
    judgments = judge.judge([item(mixed, praised, negated, "great great great")])
    assert [j.score for j in judgments] == [0.0, 0.5, pytest.approx(-1 / 3), 0.0]
    assert judgments[1].components == {"praise": 2.0, "blame": 0.0, "clauses": 4.0}


@pytest.mark.parametrize("kind", ["vader", "exact_answer"])
def test_a_judge_by_rules_imports_no_torch(kind: str) -> None:
    code = (
        "import sys; from pipeline.judges import make_judge; from pipeline.judges.registry import judges, kinds; "
        f"make_judge(next(config for config in judges() if '{kind}' in kinds(config))(kind='{kind}')); "
        "sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)


def test_judgments_become_a_table() -> None:
    judge = make_judge(GrammarConfig(kind="grammar"))
    table = judgments_table(judge.judge([item(" Great, and I loved the plot. Everyone laughed.", "")]))
    assert table.schema.equals(JUDGMENTS, check_metadata=True)
    assert table["score"].to_pylist() == [2 / 3, 0.0]
    assert table["components"].to_pylist()[0] == [
        {"name": "parsed", "value": 2.0},
        {"name": "clauses", "value": 3.0},
    ]


def test_prompts_and_candidates_are_joined() -> None:
    prompts = to_table([prompt_row("p1", "w1"), prompt_row("p2", "w2"), prompt_row("p3", "w3")], PROMPTS)
    candidates = to_table([candidate_row("p2", 1), candidate_row("p2", 0), candidate_row("p1", 0)], CANDIDATES)
    items = judge_items(prompts, candidates)
    assert [(i.prompt_id, i.prompt_text, [c.index for c in i.candidates]) for i in items] == [
        ("p2", "w2", [1, 0]),
        ("p1", "w1", [0]),
    ]
    with pytest.raises(DataError, match="prompt p9 has candidates"):
        judge_items(prompts, pa.concat_tables([candidates, to_table([candidate_row("p9", 0)], CANDIDATES)]))


def prompt_row(prompt_id: str, text: str) -> dict[str, object]:
    return {
        "prompt_id": prompt_id, "text": text, "messages": None, "token_ids": [1], "source": "test",
        "reference_answer": None, "split": "train",
    }  # fmt: skip


def candidate_row(prompt_id: str, candidate: int) -> dict[str, object]:
    return {
        "prompt_id": prompt_id, "candidate": candidate, "token_ids": [1, 2], "text": "w1", "logprobs": [-1.0, -1.0],
        "finish_reason": "stop", "seed": candidate, "policy": "x",
    }  # fmt: skip


def classifier(
    directory: Path, tokenizer: PreTrainedTokenizerFast, *, labels: int = 1, pad: int | None = 0, context: int = 32
) -> RewardModelConfig:
    """A tiny sequence classifier with random weights, in the hub's format."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=context, initializer_range=0.3, pad_token_id=pad,
        bos_token_id=1, eos_token_id=2, num_labels=labels,
    )  # fmt: skip
    LlamaForSequenceClassification(config).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return RewardModelConfig(kind="reward_model", path=str(directory), batch_size=3)


def alone(config: RewardModelConfig, ids: list[int]) -> float:
    """The score of one sequence without any padding, by the classifier itself."""
    model = AutoModelForSequenceClassification.from_pretrained(config.path).eval()
    with torch.inference_mode():
        return float(model(input_ids=torch.tensor([ids])).logits)


ANSWERS = (" w3", " w4 w5 w6 w7", "", " w8 w9", " w4 w4 w4 w4 w4 w4")


@pytest.mark.parametrize("pad", [0, None])
def test_reward_model_scores_a_batch_as_it_scores_one(tmp_path: Path, pad: int | None) -> None:
    tokenizer = tiny_tokenizer()
    config = classifier(tmp_path, tokenizer, pad=pad)
    judgments = make_judge(config).judge([item(*ANSWERS[:2]), item(*ANSWERS[2:], prompt="w7")])
    expected = [alone(config, tokenizer(f"w1 w2{text}").input_ids) for text in ANSWERS[:2]]
    expected += [alone(config, tokenizer(f"w7{text}").input_ids) for text in ANSWERS[2:]]
    # float32 of a batch against one sequence: other orders of summation.
    assert [j.score for j in judgments] == pytest.approx(expected, abs=1e-5)
    assert [j.candidate for j in judgments] == [0, 1, 0, 1, 2]
    assert len(judgments[0].judge_version) == 16


@pytest.mark.parametrize("pad", [0, None])
def test_reward_model_reads_the_conversation_through_its_template(tmp_path: Path, pad: int | None) -> None:
    tokenizer = tiny_tokenizer(chat_template=True)
    config = classifier(tmp_path, tokenizer, pad=pad)
    messages = [{"role": "system", "content": "w1"}, {"role": "user", "content": "w2"}]
    judge = make_judge(config)
    chat = judge.judge([item("w3", "w4 w5", prompt="<s> system : ...", messages=messages)])
    text = judge.judge([item("w3", prompt="w2")])
    written = "<s> system : w1 </s> <s> user : w2 </s> <s> assistant : {} </s> "
    # Every sequence ends with the end of sequence: were it taken for padding, the score would come too early.
    expected = [
        alone(config, tokenizer(written.format(a), add_special_tokens=False).input_ids) for a in ("w3", "w4 w5")
    ]
    assert [j.score for j in chat] == pytest.approx(expected, abs=1e-5)
    user = tokenizer("<s> user : w2 </s> <s> assistant : w3 </s> ", add_special_tokens=False).input_ids
    assert text[0].score == pytest.approx(alone(config, user), abs=1e-5)


def test_reward_model_does_not_cut_what_is_too_long(tmp_path: Path) -> None:
    judge = make_judge(classifier(tmp_path, tiny_tokenizer(), context=6))
    fits, beyond = judge.judge([item(" w1 w1 w1 w1", " w1 w1 w1 w1 w1")])
    assert (fits.status, beyond.status, beyond.score) == ("ok", "too_long", None)
    assert beyond.rationale == "7 tokens, and the judge reads 6"


def test_reward_model_that_gives_no_number(tmp_path: Path) -> None:
    config = classifier(tmp_path, tiny_tokenizer())
    model = LlamaForSequenceClassification.from_pretrained(tmp_path)
    with torch.no_grad():
        model.score.weight.fill_(math.nan)
    model.save_pretrained(tmp_path)
    (judgment,) = make_judge(config).judge([item("w3")])
    assert (judgment.status, judgment.score) == ("non_finite", None)
    assert judgments_table([judgment])["score"].to_pylist() == [None]


def test_reward_model_versions_differ_by_weights(tmp_path: Path) -> None:
    config = classifier(tmp_path, tiny_tokenizer())
    first, again = make_judge(config).version, make_judge(config).version
    model = LlamaForSequenceClassification.from_pretrained(tmp_path)
    with torch.no_grad():
        model.score.weight[0, 0] += 1e-3
    model.save_pretrained(tmp_path)
    assert first == again != make_judge(config).version


def test_reward_models_that_cannot_serve(tmp_path: Path) -> None:
    with pytest.raises(JudgeError, match=r"has 3 outputs \(LABEL_0, LABEL_1, LABEL_2\): name those that count"):
        make_judge(classifier(tmp_path / "many", tiny_tokenizer(), labels=3))
    with pytest.raises(JudgeError, match="cannot be loaded: check its path or id"):
        make_judge(RewardModelConfig(kind="reward_model", path=str(tmp_path / "none")))


HEADS = ("helpfulness", "safety", "length")


def with_heads(config: RewardModelConfig, **more: object) -> RewardModelConfig:
    return RewardModelConfig.model_validate({**config.model_dump(), **more})


def test_reward_model_with_several_named_heads(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    plain = classifier(tmp_path, tokenizer, labels=3)
    model = LlamaForSequenceClassification.from_pretrained(tmp_path)
    model.config.id2label = dict(enumerate(HEADS))
    model.config.label2id = {label: column for column, label in enumerate(HEADS)}
    model.save_pretrained(tmp_path)
    heads = [{"name": "safety", "weight": 2.0}, {"name": "brevity", "output": 2, "weight": -0.5}]
    judge = make_judge(with_heads(plain, heads=heads))
    judgments = judge.judge([item(*ANSWERS)])
    for text, judgment in zip(ANSWERS, judgments, strict=True):
        with torch.inference_mode():
            ids = torch.tensor([tokenizer(f"w1 w2{text}").input_ids])
            _, safety, length = model.eval()(input_ids=ids).logits[0].tolist()
        # float32 of a batch against one sequence: other orders of summation.
        assert judgment.components == pytest.approx({"safety": safety, "brevity": length}, abs=1e-5)
        assert judgment.score == pytest.approx(2 * safety - 0.5 * length, abs=1e-5)
    assert judge.version != make_judge(with_heads(plain, heads=heads[:1])).version
    assert judge.version == make_judge(with_heads(plain, heads=heads, batch_size=1)).version
    with pytest.raises(JudgeError, match=r"no output named 'humour': it has 3 \(helpfulness, safety, length\)"):
        make_judge(with_heads(plain, heads=[{"name": "humour"}]))
    with pytest.raises(JudgeError, match="no output number 3"):
        make_judge(with_heads(plain, heads=[{"name": "safety", "output": 3}]))


def rewritten(directory: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> None:
    path = directory / "model.safetensors"
    save_file(change(load_file(path)), path, {"format": "pt"})


def without_head(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in tensors.items() if name != "score.weight"}


def renamed_head(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {("v_head.weight" if name == "score.weight" else name): tensor for name, tensor in tensors.items()}


@pytest.mark.parametrize("heads", [None, [{"name": "LABEL_1"}]])
def test_reward_models_whose_weights_would_be_random(tmp_path: Path, heads: list[object] | None) -> None:
    """Without the check each start draws another head, and scores change, also those of named heads."""
    config = with_heads(classifier(tmp_path, tiny_tokenizer(), labels=3 if heads else 1), heads=heads or [])
    make_judge(config)
    whole = load_file(tmp_path / "model.safetensors")
    for change, names in (
        (without_head, r"lacks 'score.weight' of a LlamaForSequenceClassification, which would be random"),
        (renamed_head, r"lacks 'score.weight'.*and has 'v_head.weight', which a Llama.* does not use"),
        (lambda tensors: {**tensors, "extra.weight": torch.ones(2)}, "has 'extra.weight'"),
        (
            lambda _: {name: tensor for name, tensor in whole.items() if "layers.1." not in name},
            r"lacks 'model.layers.1.*more",
        ),
    ):
        rewritten(tmp_path, change)
        with pytest.raises(JudgeError, match=rf"the reward model '{tmp_path}' {names}"):
            make_judge(config)
        rewritten(tmp_path, lambda _: whole)
    make_judge(config)


@pytest.mark.parametrize("tied", [False, True])
def test_a_language_model_is_no_reward_model(tmp_path: Path, tied: bool) -> None:
    """Its own head is not used, unless it is one tensor with the embeddings; that of a classifier is missing."""
    config = RewardModelConfig(kind="reward_model", path=str(tiny_llama(tmp_path, tied=tied)))
    with pytest.raises(JudgeError, match=r"lacks 'score.weight'.*its configuration names LlamaForCausalLM: give a cla"):
        make_judge(config)


def test_reward_model_with_another_number_of_outputs_than_its_head(tmp_path: Path) -> None:
    config = classifier(tmp_path, tiny_tokenizer(), labels=2)
    written = json.loads((tmp_path / "config.json").read_text())
    written |= {"id2label": {"0": "a", "1": "b", "2": "c"}, "label2id": {"a": 0, "b": 1, "c": 2}}
    (tmp_path / "config.json").write_text(json.dumps(written))
    with pytest.raises(JudgeError, match="cannot be loaded"):
        make_judge(with_heads(config, heads=[{"name": "a"}]))


def test_reward_model_whose_tokenizer_has_more_tokens_than_it(tmp_path: Path) -> None:
    """64 embeddings, ids 0 to 63; a token added behind them would be an IndexError in the first batch that has it."""
    make_judge(classifier(tmp_path / "as many", tiny_tokenizer(64)))
    tokenizer = tiny_tokenizer(64)
    tokenizer.add_tokens(["<extra>"])
    for name, larger in (("added", tokenizer), ("more", tiny_tokenizer(70))):
        config = classifier(tmp_path / name, larger)
        last = max(larger.get_vocab().values())
        with pytest.raises(JudgeError, match=rf"'{config.path}' has token ids up to {last} and embeddings up to 63"):
            make_judge(config)


def test_reward_model_batches_by_length(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Long and short answers by turns: with batches of 3 by length, 2 of 8 sequences are padded, by one token each."""
    judge = make_judge(classifier(tmp_path, tiny_tokenizer()))
    shapes: list[tuple[int, int]] = []
    forward = LlamaForSequenceClassification.forward

    def watched(self: LlamaForSequenceClassification, **inputs: Any) -> Any:
        shapes.append(tuple(inputs["input_ids"].shape))
        return forward(self, **inputs)

    monkeypatch.setattr(LlamaForSequenceClassification, "forward", watched)
    judge.judge([item(*[" w3" * length for length in (9, 1, 9, 1, 8, 1, 9, 2)])])
    # With the prompt's two tokens; sorted: 3 3 3, 4 10 11, 11 11.
    assert shapes == [(3, 3), (3, 11), (2, 11)]


def test_reward_model_without_a_template_does_not_guess_one(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    config = classifier(tmp_path, tokenizer)
    chat = item("w3", prompt="w1 w2 ", messages=[{"role": "user", "content": "w2"}])
    with pytest.raises(
        JudgeError, match=r"has no chat template, and prompt w1 w2  is a conversation: add .*without_te"
    ):
        make_judge(config).judge([chat])
    joined = make_judge(with_heads(config, without_template=True)).judge([chat])
    assert joined[0].score == pytest.approx(alone(config, tokenizer("w1 w2 w3").input_ids), abs=1e-5)


def test_an_empty_answer_is_judged(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    config = classifier(tmp_path, tokenizer, pad=None)
    (judgment,) = make_judge(config).judge([item("")])
    assert judgment.score == pytest.approx(alone(config, tokenizer("w1 w2").input_ids), abs=1e-5)


def test_older_judgments_lie_beside_newer_ones() -> None:
    """A version that had no column ``raw`` wrote a part of a round's shards."""
    newer = judgments_table(make_judge(GrammarConfig(kind="grammar")).judge([item("")]))
    older = newer.drop_columns("raw")
    both = pa.concat_tables([older, newer], promote_options="default")
    assert both.num_rows == 2
    assert both["raw"].to_pylist() == [None, None]
