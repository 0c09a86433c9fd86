"""A packed forward pass is the plain one: values and gradients, for every shape of model."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numerics.tiny_models import BUILDERS, build, gradients, plain_logps, token_groups
from transformers import BloomConfig, BloomForCausalLM

from pipeline.errors import DataError, PromptTooLongError, UnsupportedModelError
from pipeline.model.check import check_model
from pipeline.model.logprobs import check_context, pack_sums, sequence_logps
from pipeline.packing.attention import Rows, lay_out, shared_prefix_attention
from pipeline.packing.packing import TokenGroup, pack_groups

# Float32 sums of up to 9 log-probabilities near 5 nats, computed in another order.
CLOSE = {"rtol": 1e-5, "atol": 2e-5}
# Gradients pass through two softmaxes and add up over a whole pack.
CLOSE_GRADIENT = {"rtol": 1e-4, "atol": 1e-4}


def packed_sums(model, groups, budget):
    sums = [None] * len(groups)
    for pack in pack_groups(groups, budget):
        flat = pack_sums(model, pack).split(pack.candidates)
        for index, values in zip(pack.groups, flat, strict=True):
            sums[index] = values
    return torch.cat(sums)


@pytest.mark.parametrize("name", BUILDERS)
def test_packed_equals_plain_in_value_and_gradient(name):
    model, groups = build(name), token_groups(5, candidates=3)
    weights = torch.linspace(-1, 1, 15)  # every candidate pulls differently
    plain = torch.cat([plain_logps(model, group) for group in groups])
    (plain * weights).sum().backward()
    expected = gradients(model)
    packed = packed_sums(model, groups, budget=80)
    (packed * weights).sum().backward()
    torch.testing.assert_close(packed, plain, **CLOSE)
    torch.testing.assert_close(gradients(model), expected, **CLOSE_GRADIENT)


@pytest.mark.parametrize("budget", [30, 40, 64, 10_000])
def test_split_into_packs_does_not_matter(budget):
    model, groups = build(), token_groups(9, candidates=2, seed=3)
    expected = torch.cat([plain_logps(model, group) for group in groups])
    torch.testing.assert_close(packed_sums(model, groups, budget), expected, **CLOSE)


def test_order_of_groups_does_not_matter():
    model, groups = build(), token_groups(7, seed=5)
    forward = sequence_logps(model, groups, 100)
    backward = sequence_logps(model, groups[::-1], 100)
    for one, other in zip(forward, backward[::-1], strict=True):
        assert one == pytest.approx(other, rel=1e-5, abs=2e-5)


def test_candidates_do_not_see_each_other():
    model, (group,) = build(), token_groups(1, candidates=2, seed=7)
    first, second = group.candidate_token_ids
    swapped = TokenGroup("swapped", group.prompt_token_ids, [first, [(token + 1) % 61 for token in second]])
    one, other = sequence_logps(model, [group], 64)[0], sequence_logps(model, [swapped], 64)[0]
    assert one[0] == other[0]  # to the bit: the first candidate computes the same thing
    assert one[1] != other[1]


def test_packs_hold_every_group_once_within_the_budget():
    groups = token_groups(40, candidates=3, seed=11)
    packs = pack_groups(groups, 120)
    assert sorted(index for pack in packs for index in pack.groups) == list(range(40))
    assert all(len(pack.input_ids_T) <= 120 for pack in packs)
    assert sum(len(pack.input_ids_T) for pack in packs) == sum(group.packed_tokens for group in groups)


def test_no_groups_are_no_packs():
    assert pack_groups([], 100) == []


def test_group_beyond_the_budget_names_its_prompt():
    # 3 prompt tokens and 2 candidates of 4, the last token of each left out: 3 + 3 + 3 = 9 positions.
    group = TokenGroup("prompt-x", [1, 2, 3], [[4, 5, 6, 7], [8, 9, 10, 11]])
    assert len(pack_groups([group], 9)) == 1
    with pytest.raises(PromptTooLongError, match=r"prompt-x.* 9 tokens.* 8"):
        pack_groups([group], 8)


def test_sequence_beyond_the_context_names_its_prompt():
    model = build("gpt2")
    check_context(model, [TokenGroup("fits", [1] * 10, [[2] * 54])])
    with pytest.raises(PromptTooLongError, match=r"prompt-z.* 65 tokens.*max_position_embeddings is 64"):
        sequence_logps(model, [TokenGroup("prompt-z", [1] * 10, [[2] * 55])], 1000)


def test_empty_prompt_or_candidate_is_refused():
    with pytest.raises(DataError, match="prompt-e has no tokens"):
        TokenGroup("prompt-e", [], [[1]])
    with pytest.raises(DataError, match="candidate 1 of prompt prompt-e"):
        TokenGroup("prompt-e", [1], [[1], []])
    with pytest.raises(DataError, match="prompt-e has no candidates"):
        TokenGroup("prompt-e", [1], [])


@pytest.mark.parametrize("name", BUILDERS)
def test_supported_models_pass_the_check(name):
    check_model(build(name))


def test_model_whose_attention_cannot_be_replaced_is_refused():
    torch.manual_seed(0)
    config = BloomConfig(vocab_size=61, hidden_size=32, n_layer=1, n_head=4, initializer_range=0.2)
    with pytest.raises(UnsupportedModelError, match="BloomForCausalLM"):
        check_model(BloomForCausalLM(config))


def test_model_that_hides_its_sliding_window_is_refused_beyond_it():
    model = build()
    model.config.sliding_window = 8
    sequence_logps(model, [TokenGroup("fits", [1, 2, 3], [[4] * 6])], 100)
    with pytest.raises(UnsupportedModelError, match=r"sliding window of 8 tokens.* has 9"):
        sequence_logps(model, [TokenGroup("beyond", [1, 2, 3], [[4] * 7])], 100)


@pytest.mark.parametrize("name", BUILDERS)
def test_model_keeps_its_own_attention(name):
    model, groups = build(name), token_groups(2)
    own = model.config._attn_implementation
    sequence_logps(model, groups, 100)
    assert model.config._attn_implementation == own
    with pytest.raises(RuntimeError, match="stop"), shared_prefix_attention(model):
        raise RuntimeError("stop")
    assert model.config._attn_implementation == own


@settings(derandomize=True, deadline=None)
@given(
    shapes=st.lists(st.tuples(st.integers(1, 9), st.lists(st.integers(1, 9), min_size=1, max_size=4)), min_size=1),
    with_last=st.booleans(),
)
def test_columns_of_a_pack_are_what_they_are_defined_as(shapes, with_last):
    """Token by token, in the order of the pack. A part of a pack keeps the last token of each candidate."""
    token = itertools.count(100)
    groups = [
        TokenGroup(f"{row}", list(itertools.islice(token, prompt)), [list(itertools.islice(token, n)) for n in answers])
        for row, (prompt, answers) in enumerate(shapes)
    ]
    (pack,) = pack_groups(groups, 10_000, boundaries=[10_000] if with_last else [])
    inputs, predicted, sequence = [], [], itertools.count()
    for group in (groups[index] for index in pack.groups):
        prompt, begin = group.prompt_token_ids, len(inputs)
        inputs += [(token, place, begin, begin) for place, token in enumerate(prompt)]
        for answer in group.candidate_token_ids:
            first, number = len(inputs), next(sequence)
            before = [first - 1 + place for place in range(len(answer))]
            before[0] = begin + len(prompt) - 1
            predicted += [(source, token, number) for source, token in zip(before, answer, strict=True)]
            kept = answer if with_last else answer[:-1]
            inputs += [(token, len(prompt) + place, first, begin) for place, token in enumerate(kept)]
    found = pack.parts[0].pack if with_last else pack
    columns = (found.input_ids_T, found.position_ids_T, found.segment_T, found.prompt_T)
    assert torch.stack(columns, dim=1).tolist() == [list(row) for row in inputs]
    columns = (found.source_N, found.target_N, found.sequence_N)
    assert torch.stack(columns, dim=1).tolist() == [list(row) for row in predicted]
    assert found.candidates == [len(groups[index].candidate_token_ids) for index in pack.groups]


@settings(derandomize=True, deadline=None)
@given(
    shapes=st.lists(st.tuples(st.integers(1, 40), st.lists(st.integers(0, 20), max_size=3)), min_size=1, max_size=12),
    overhead=st.sampled_from([0, 3, 64]),
)
def test_layout_finds_every_token_and_splits_at_least_cost(shapes, overhead):
    """Prompts with some candidates each. Every token is a query once and is read back, every row has its own keys, and
    no split of the sorted rows of a kind into at most 2 is cheaper.
    """
    rows, tokens = [], 0  # the prompt's first token and those of it that are seen, own first token and count
    for prompt, candidates in shapes:
        first = tokens
        rows.append((first, 0, first, prompt))
        tokens += prompt
        for length in candidates:
            rows.append((first, prompt, tokens, length))
            tokens += length
    layout = lay_out(Rows(*np.array(rows).T), bucket_overhead=overhead)
    assert layout.queries[layout.scatter_T].tolist() == list(range(tokens))
    assert layout.longest == max(before + own for _, before, _, own in rows)
    rows = [row for row in rows if row[3]]
    assert sum(bucket.rows for bucket in layout.buckets) == len(rows)
    keys = layout.keys.split([bucket.rows * bucket.keys for bucket in layout.buckets])
    found = [
        row[:count].tolist()
        for bucket, part in zip(layout.buckets, keys, strict=True)
        for row in part.view(bucket.rows, bucket.keys)
        for count in [len(set(row.tolist()))]
    ]
    expected = [[*range(prompt, prompt + before), *range(own, own + count)] for prompt, before, own, count in rows]
    assert sorted(found) == sorted(expected)
    assert all((bucket.before_S is None) == (bucket.keys == bucket.queries) for bucket in layout.buckets)
    for first in (True, False):
        ordered = sorted((before + own for _, before, _, own in rows if (before == 0) == first), reverse=True)
        buckets = [bucket for bucket in layout.buckets if (bucket.before_S is None) == first]
        cost = sum(bucket.rows * bucket.keys + overhead for bucket in buckets)
        for cut in range(1, len(ordered)):
            assert cost <= cut * ordered[0] + (len(ordered) - cut) * ordered[cut] + 2 * overhead
        assert not ordered or cost <= len(ordered) * ordered[0] + overhead


def test_padded_queries_that_see_nothing_leave_no_trace():
    """Rows of 12 keys with 2 and 9 queries share a bucket; a window of 5 hides all from padding of the first."""
    model = build("gemma2")
    groups = [TokenGroup("long", [3] * 10, [[4, 5, 6]]), TokenGroup("short", [3] * 3, [[4] * 10])]
    (pack,) = pack_groups(groups, 100)
    _, bucket = pack.layout.buckets
    assert (bucket.rows, bucket.queries, bucket.keys) == (2, 9, 12)
    sums = pack_sums(model, pack)
    sums.sum().backward()
    found = gradients(model)
    plain = torch.cat([plain_logps(model, group) for group in (groups[index] for index in pack.groups)])
    torch.testing.assert_close(sums, plain, **CLOSE)
    plain.sum().backward()
    torch.testing.assert_close(found, gradients(model), **CLOSE_GRADIENT)
