"""After the last step no more preferences are measured again than a share needs."""

import pytest
from numerics.tiny_models import build, token_groups, with_reference

from pipeline.config import UpdateConfig
from pipeline.dpo import measured_sample, update
from pipeline.dpo.measured_sample import displacement_sample
from pipeline.model.logprobs import sequence_logps


@pytest.mark.parametrize(
    ("preferences", "epochs", "counted"),
    [(16, 1, 8), (100, 1, 9), (100, 3, 27), (1000, 1, 90), (10_000, 1, 128), (2, 1, 8)],
)
def test_the_sample_takes_three_hundredths_of_the_steps_time(preferences: int, epochs: int, counted: int) -> None:
    """A pass takes a third of a step's time: n of N preferences in each epoch take n / (3 N epochs) of it."""
    assert displacement_sample(preferences, epochs) == counted


@pytest.mark.parametrize(("most", "expected"), [(3, [0, 2, 4]), (7, range(7)), (100, range(7))])
def test_the_sample_is_spread_evenly(most, expected, monkeypatch):
    monkeypatch.setattr(measured_sample, "DISPLACEMENT_SAMPLE", most)
    model = build()
    plain = token_groups(7, seed=3)
    groups = with_reference(plain, sequence_logps(model, plain, 1000))
    result = update.run_update(model, groups, UpdateConfig(learning_rate=1e-2), seed=1)
    kept = [groups[index] for index in expected]
    assert result.final_logps == sequence_logps(model, kept, UpdateConfig().token_budget)
    changes = [logps[0] - group.reference_logps[0] for logps, group in zip(result.final_logps, kept, strict=True)]
    assert result.chosen_fell_share == sum(change < 0 for change in changes) / len(kept)
    assert result.chosen_change == pytest.approx(sum(changes) / len(kept))
