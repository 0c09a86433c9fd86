"""Which judgments of a round count as asked for in it."""

from flows.registry.judge_usage import judge_usage, usage_meta
from pipeline.usage import Usage
from storage.log.manifest import Key
from support.contexts import round_context


def test_what_the_gate_asks_of_the_best_round_counts() -> None:
    """Answers of the best round are judged anew if a fork samples or judges them otherwise."""
    stages = ("judgments", "gate_judgments", "gate_baseline_judgments", "gate_eval_judgments")
    with round_context() as context:
        for stage in stages:
            context.writer.commit(Key(1, stage), [], usage_meta({"llm": Usage(replies=1)}))
        assert judge_usage(context.run, 1)["llm"].replies == len(stages)
