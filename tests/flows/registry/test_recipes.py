"""Recipes: what ships parses, and what is wrong is said in one sentence with the field, the value and the remedy."""

import json
from pathlib import Path

import pytest

from flows.registry.recipes import differences, load_recipe, parse_recipe
from flows.round.provenance import recipe_hash
from pipeline.config import OBJECTIVES, UpdateConfig
from pipeline.errors import ConfigError
from support.recipes import TINY

SHIPPED = sorted((Path(__file__).parents[3] / "deploy" / "recipes").glob("*.yaml"))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_recipes_parse(path: Path) -> None:
    assert load_recipe(path).name == path.stem


@pytest.mark.parametrize("name", ["smollm2-json", "smollm2-instructions"])
def test_a_recipe_for_a_model_that_people_know(name: str) -> None:
    """With the hub's weights, and what its comments promise."""
    recipe = load_recipe(Path(name), ["policy.path=HuggingFaceTB/SmolLM2-135M-Instruct"])
    assert recipe.sampling.prompts_per_round == 8 * recipe.sampling.shard_prompts
    assert recipe.judge.gives_partial_credit
    strict, mentions = recipe.evaluation.judges
    assert strict == recipe.judge.model_copy(update={"partial_credit": 0.0, "name": strict.name})
    assert (mentions.kind, mentions.needs_reference) == ("mentions_reference", True)


def test_a_recipe_is_read_on_a_machine_that_has_not_its_model() -> None:
    """As `rondo up` reads all that ship: what is missing is said when one of them is run."""
    change = ["policy={source: pretrained, path: ./nowhere}"]
    assert load_recipe(Path("sentiment"), change, files=False).policy.source == "pretrained"
    with pytest.raises(ConfigError, match=r"policy.path: './nowhere'"):
        load_recipe(Path("sentiment"), change)


def test_a_file_has_no_revisions(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").touch()
    policy = f"policy={{source: pretrained, path: {tmp_path}"
    assert load_recipe(Path("sentiment"), [f"{policy}}}"]).policy.source == "pretrained"
    sentence = f"policy.revision 'main' is of a model on the hub, and policy.path '{tmp_path}' means the file "
    with pytest.raises(ConfigError) as refused:
        load_recipe(Path("sentiment"), [f"{policy}, revision: main}}"])
    assert str(refused.value) == f"{sentence}{tmp_path / 'model.gguf'}: leave policy.revision out"


def test_a_directory_has_no_revisions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of policy and reward model; as an absolute path, and as one that could be an id on the hub."""
    (tmp_path / "models" / "mine").mkdir(parents=True)
    (tmp_path / "models" / "mine" / "config.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    for path in (f"{tmp_path}/models/mine", "models/mine"):
        for part, change in (
            ("policy", "policy={source: pretrained, path: %s"),
            ("judge", "judge={kind: reward_model, path: %s"),
        ):
            load_recipe(Path("sentiment"), [change % path + "}"])
            with pytest.raises(ConfigError) as refused:
                load_recipe(Path("sentiment"), [change % path + ", revision: main}"])
            assert str(refused.value) == (
                f"{part}.revision 'main' is of a model on the hub, and {part}.path '{path}' means the directory "
                f"{tmp_path}/models/mine: leave {part}.revision out"
            )
    load_recipe(Path("sentiment"), ["policy={source: pretrained, path: owner/name, revision: main}"])


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ("update.bta=1", "update.bta: there is no such field (its value is 1): did you mean 'beta'?"),
        ("sampling.candidates=1", "sampling.candidates: 1 is not allowed: input should be greater than or equal to 2"),
        ("judge.kind=oracle", "judge.kind: 'oracle' does not exist: choose one of 'characters'"),
        ("policy.heads=3", "hidden_size 64 does not split into 3 heads"),
        ("update.beta=-1", "update.beta: -1 is not allowed: input should be greater than 0"),
        ("update.beta=.nan", "update.beta: nan is not allowed: input should be a finite number"),
        ("evaluation.judges=[{kind: vader, weight: 1}]", "evaluation.judges.0.weight: there is no such field"),
        ("prompts={source: jsonl, path: nowhere.jsonl}", "prompts.path: there is no file 'nowhere.jsonl'"),
        ("prompts={source: datasets, name: ./nowhere}", "prompts.name: there is no directory './nowhere'"),
        ("policy={source: pretrained, path: ./nowhere}", "policy.path: './nowhere' is no directory with a config.json"),
        ("judge={}", "judge.kind: this field is missing"),
        ("name=../escape", "name: '../escape' is not allowed"),
        ("sampling.max_tokens=96", "sampling.max_tokens 96 leaves no room for a prompt in policy.context 96"),
        ("update.objective=plackett_luce", "full_ranking and top_m go with plackett_luce and all_pairs"),
        ("update.objective=dpo", "update.objective: there is no objective 'dpo': choose among sigmoid, "),
        ("update.objective={sigmoid: 1, dpo: 1}", "update.objective: there is no objective 'dpo'"),
        (
            "update.objective={sigmoid: -1}",
            "update.objective.sigmoid: -1 is not allowed: input should be greater than 0",
        ),
        ("update.objective={}", "update.objective: {} is not allowed: dictionary should have at least 1 item"),
        (
            "update.objective=3",
            "update.objective: 3 is not allowed: input should be a valid dictionary (loss of a pair",
        ),
        ("update.objective={sigmoid: 1, all_pairs: 1}", "update.objective 'all_pairs': full_ranking and top_m go with"),
        ("update.objective=exo_pair", "update.label_smoothing 0 makes update.objective 'exo_pair' infinite"),
        (
            "update={objective: {ipo: 1, dpop: 1}, divergence: alpha}",
            "'alpha' does not go with update.objective 'dpop'",
        ),
        ("evaluation.judges=[{kind: vader}]", "two judges are named 'vader'"),
        ("judge.kind=exact_answer", "these prompts have none"),
        ("judge.kind=mentions_reference", "compares with reference answers, and these prompts have none"),
        (
            "prompts.corpus=json_objects",
            "prompts.corpus 'json_objects' has conversations, and a warm-started policy has no chat template: choose "
            "one of film_reviews, additions, or a pretrained policy that was tuned for chat",
        ),
        ("policy.corpus=json_objects", "policy.corpus: 'json_objects' is not allowed: input should be 'film_reviews'"),
        (
            "judge={kind: json_schema, definition: {required: [n]}, partial_credit: 0.5}\n"
            "preferences.rule=correct_vs_incorrect",
            "preferences.rule 'correct_vs_incorrect' takes scores of 0 and 1 alone, and the judge 'json_schema' gives",
        ),
        ("judge={kind: json_schema, definition: {}, partial_credit: 1}", "judge.partial_credit: 1 is not allowed"),
        (
            "judge={kind: json_schema, definition: {}, partial_credit: 0.5}",
            "partial_credit 0.5 counts the required keys that fit, and definition names none",
        ),
        ("prompts.train=4", "prompts.train 4 is less than sampling.prompts_per_round 12"),
        ("update.token_budget=40", "does not hold a prompt with 2 answers"),
        ("preferences.soft_labels=true", "python function with gives_std"),
        ("preferences.min_probability=0.6", "need a judge that says how sure it is, and 'vader' does not"),
        ("preferences={rule: top_m, top: 2}", "preferences.rule 'top_m' does not go with update.objective 'sigmoid'"),
        (
            "preferences.replay={share: 0.2, reference: original}\nupdate.reference=initial",
            "preferences.replay.reference 'original' does not go with update.reference 'initial'",
        ),
        ("evaluation.judge_probe=8", "asks judges that may drift again, and no judge of single answers here does"),
        (
            "judge={kind: noisy, judge: {kind: exact_answer}}",
            "the judge exact_answer compares with reference answers, and these prompts have none",
        ),
        ("judge={kind: noisy, judge: {kind: vader}, error_rates: [0.7]}", "judge.error_rates.0"),
        (
            "judge={kind: length, target: 9, name: brevity}\npreferences.soft_labels=true",
            "python function with gives_std",
        ),
        (
            "judge={kind: llm, model: m, base_url: 'http://h/v1', mode: {kind: rubric, score: parsed}}\n"
            "preferences.soft_labels=true",
            "python function with gives_std",
        ),
        ("judge={kind: code}", "runs what a model wrote on this machine, and that is off"),
        ("judge={kind: code, allow_execution: true}", "the judge code compares with reference answers"),
        ("judge={kind: math}", "the judge math compares with reference answers"),
        ("judge={kind: regex, pattern: '('}", "pattern '(' is no regular expression"),
        ("judge={kind: length}", "takes either limit or target"),
        ("judge={kind: llm, model: m, base_url: 'http://h/v1', mode: rubrics}", "judge.mode.kind: 'rubrics' does not"),
        ("judge={kind: llm, model: m, base_url: 'http://h/v1', mode: {kind: rubric, scale: 10}}", "lower it to 9"),
        ("judge={kind: llm, model: m, base_url: 'ftp://h', mode: rubric}", "'ftp://h' is no http address"),
        (
            "judge={kind: llm, model: m, base_url: 'http://h/v1', mode: pairwise}\nevaluation.judges=[]",
            "the judge 'llm' compares the candidates of a prompt, and held-out prompts have one",
        ),
        (
            "evaluation.judges=[{kind: llm, model: m, base_url: 'http://h/v1', mode: listwise}]",
            "evaluation.judges: 'llm' compares the candidates of a prompt",
        ),
        (
            "judge={kind: ensemble, members: [{judge: {kind: vader}, wieght: 2}, {judge: {kind: grammar}}]}",
            "judge.members.0.wieght: there is no such field (its value is 2): did you mean 'weight'?",
        ),
        (
            "judge={kind: ensemble, members: [{judge: {kind: vader}}, {judge: {kind: exact_answer}}]}",
            "the judge exact_answer compares with reference answers",
        ),
        (
            "judge={kind: ensemble, members: [{judge: {kind: vader}}, {judge: {kind: reward_model, path: ./nowhere}}]}",
            "judge.path: './nowhere' is no directory with a config.json",
        ),
        ("sampling.context=4096", "sampling.context 4096 is more than policy.context 96"),
        ("judge={kind: reward_model, path: ./nowhere}", "judge.path: './nowhere' is no directory with a config.json"),
        ("devices.trainer=tpu", "devices.trainer: 'tpu' is not allowed: give it a form such as cpu, cuda, cuda:1"),
        ("update", "--set 'update' has not the form dotted.key=value"),
        ("name.first=a", "'name' is a value and has no fields below it"),
        ("seed=[", "--set 'seed=[': the value is not YAML"),
    ],
)
def test_a_fault_is_one_sentence(change: str, sentence: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_recipe(TINY, change.split("\n"))
    assert sentence in str(caught.value)


@pytest.mark.parametrize("value", ["sk-very-secret", "SECRET=x", "a" * 200])
@pytest.mark.parametrize("field", ["api_key_env", "base_url"])
def test_a_key_in_a_recipe_is_refused_and_not_repeated(field: str, value: str) -> None:
    judge = {"kind": "llm", "model": "m", "base_url": "http://h/v1", "mode": "rubric"}
    judge[field] = f"https://{value}@h/v1" if field == "base_url" else value
    with pytest.raises(ConfigError) as caught:
        parse_recipe(TINY, [f"judge={json.dumps(judge)}"])
    assert value not in str(caught.value)
    assert "api_key_env" in str(caught.value)


@pytest.mark.parametrize(
    "judge",
    [
        "{kind: llm, model: m, base_url: 'http://h/v1', mode: rubric}",
        "{kind: llm, model: m, base_url: 'http://h/v1', mode: {kind: pairwise, opponents: 4}}",
        "{kind: llm, model: m, base_url: 'http://h/v1', mode: listwise}",
        "{kind: python, function: 'a.b:c', gives_std: true}",
        "{kind: ensemble, members: [{judge: {kind: vader}, weight: 2}, {judge: {kind: length, limit: 9}}]}",
    ],
)
def test_judges_that_state_uncertainty_give_soft_labels(judge: str) -> None:
    recipe = parse_recipe(TINY, [f"judge={judge}", "preferences.soft_labels=true"])
    assert parse_recipe(recipe.model_dump(mode="json")) == recipe
    assert recipe.held_out_judges == ([1] if recipe.judge.compares else [0, 1])


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (["update.objective=hinge", "preferences.soft_labels=true"], "do not go with update.objective 'hinge'"),
        (["preferences.rule=full_ranking"], "'full_ranking' does not go with update.objective 'sigmoid'"),
        (
            ["preferences.rule=full_ranking", "update={objective: all_pairs, wpo: true}"],
            "update.wpo weighs pairs, and preferences.rule is 'full_ranking'",
        ),
    ],
)
def test_an_update_that_does_not_take_the_preferences(changes: list[str], sentence: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_recipe(TINY, changes)
    assert sentence in str(caught.value)


def test_heads_that_kill_vllm_are_refused() -> None:
    """64 / 4 = 16, which vLLM's CPU attention does not take."""
    with pytest.raises(ConfigError, match="makes heads 16 wide"):
        parse_recipe(TINY, ["sampling.engine=vllm", "policy.heads=4"])


def test_every_fault_is_named() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_recipe(TINY, ["sampling.candidates=1", "rounds=0"])
    assert "sampling.candidates" in str(caught.value)
    assert "rounds" in str(caught.value)


@pytest.mark.parametrize("text", ["- a\n- b\n", "{", "name: !!python/object/apply:os.getcwd []\n"])
def test_a_file_that_is_no_recipe(tmp_path: Path, text: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"recipe\.yaml"):
        load_recipe(path)


def test_changes_reach_the_tree_and_leave_the_source() -> None:
    recipe = parse_recipe(TINY, ["update.beta=0.25", "sampling.temperature=0.7"])
    assert (recipe.update.beta, recipe.sampling.temperature) == (0.25, 0.7)
    assert "temperature" not in TINY["sampling"]


def test_what_a_recorded_recipe_has_not_can_be_begun_by_one_of_its_fields() -> None:
    recorded = parse_recipe(TINY).model_dump(mode="json")
    assert recorded["update"]["lora"] is None
    changed = parse_recipe(recorded, ["update.lora.rank=4"])
    assert changed.update.lora is not None
    assert changed.update.lora.rank == 4


def test_differences_name_fields_and_values() -> None:
    recipe, other = parse_recipe(TINY), parse_recipe(TINY, ["update.beta=0.25", "rounds=9"])
    assert differences(recipe, other) == ["update.beta: 0.1 -> 0.25"]


def test_an_objective_of_weight_1_is_its_name() -> None:
    named, weighted = parse_recipe(TINY), parse_recipe(TINY, ["update.objective={sigmoid: 1}"])
    assert differences(named, weighted) == []
    assert named.model_dump(mode="json")["update"]["objective"] == "sigmoid"
    mixed = parse_recipe(TINY, ["update.objective={sigmoid: 1, ipo: 0.1}"])
    assert mixed.update.objective == {"sigmoid": 1.0, "ipo": 0.1}
    assert parse_recipe(mixed.model_dump(mode="json")) == mixed


def test_every_objective_of_a_recipe_has_a_formula_and_no_other_has() -> None:
    from pipeline.dpo.loss_table import LOSSES

    assert set(OBJECTIVES) == set(LOSSES)
    constants = {name for objective in OBJECTIVES.values() for name in objective.constants}
    assert constants < set(UpdateConfig.model_fields)


@pytest.mark.parametrize("kind", ["human", "people"])
def test_old_names_are_the_same_recipe(kind: str) -> None:
    """What version 0.1.0 called people and most_set_aside, in recipes, in changes, and in the headers of its runs."""
    judged = {**TINY, "judge": {"kind": "human"}, "evaluation": {"prompts": 8, "judges": [{"kind": "vader"}]}}
    new = parse_recipe(judged, ["sampling.max_skipped_fraction=0.2"])
    old = parse_recipe({**judged, "sampling": {**TINY["sampling"], "most_set_aside": 0.2}}, [f"judge.kind={kind}"])
    assert differences(new, old) == []
    assert recipe_hash(new) == recipe_hash(old)
    assert old.judge.label == kind  # the name in the tables of a run stays the one that it began with
    assert old.sampling.max_skipped_fraction == 0.2
    assert parse_recipe(old.model_dump(mode="json")) == old
    for name in ("most_set_aside", "max_skipped_fraction"):
        changed = parse_recipe(old.model_dump(mode="json"), [f"sampling.{name}=0.3"])
        assert differences(old, changed) == ["sampling.max_skipped_fraction: 0.2 -> 0.3"]
    both = {**TINY["sampling"], "most_set_aside": 0.2, "max_skipped_fraction": 0.2}
    with pytest.raises(ConfigError, match=r"sampling\.most_set_aside is the old name of .*: give one of them"):
        parse_recipe({**TINY, "sampling": both})


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (["update.target_margin=1.0"], "update.target_margin is 1.0 and no part of update.objective has it"),
        (["update.label_smoothing=0.1", "update.objective=hinge"], "it goes with sigmoid, sigmoid_norm, robust"),
        (["update.divergence_alpha=0.2"], "it goes with alpha; leave it out"),
        (["update.importance_bound=3"], "update.importance 'none': it goes with clipped; leave it out"),
        (["update.reference=ema", "update.lora.rank=4"], "'ema' averages whole weights and update.lora trains"),
        (["update.reference=initial", "update.reference_logprobs=sampler"], "leave the former at auto"),
        (
            ["update.importance=clipped", "update.reference=ema"],
            "and update.reference is 'ema': set the former to none",
        ),
        (["update.importance=clipped", "sampling.top_p=0.9"], "and sampling.top_p is 0.9: set the former to none"),
        (["update.importance=clipped", "preferences.replay.share=0.2"], "or the latter to original"),
    ],
)
def test_settings_that_would_have_no_effect_or_contradict_each_other(changes: list[str], sentence: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_recipe(TINY, changes)
    assert sentence in str(caught.value)
