from __future__ import annotations

import math

import pytest
import torch
from helpers.evaluation_networks import Fixed, small_conv_net
from torch import nn

from consensus_cli.evaluation.accuracy import (
    Predictions,
    accuracy_columns,
    accuracy_pct,
    agreement_columns,
    calibration_error_pct,
    nll_nats,
    per_class_accuracy_pct,
    predict,
    top_k_accuracy_pct,
)


def predicted(classes: list[int], labels: list[int], count: int) -> Predictions:
    return Predictions(nn.functional.one_hot(torch.tensor(classes), count).float(), torch.tensor(labels))


def test_constant_network_scores_the_share_of_its_class(noise_split):
    split = noise_split(30, 3)
    predictions = predict(Fixed(torch.tensor([0.0, 1.0, 0.5])), split, "cpu", batch_size=7)
    assert accuracy_pct(predictions) == pytest.approx(100 / 3)
    assert predictions.logits.shape == (30, 3)
    assert predictions.logits.dtype == torch.float32
    assert per_class_accuracy_pct(predictions).tolist() == [0, 100, 0]
    assert top_k_accuracy_pct(predictions, 2) == pytest.approx(200 / 3)


def test_prediction_does_not_depend_on_the_batch_size_and_reports_progress(noise_split):
    split, model, seen = noise_split(10, 2), small_conv_net(), []
    whole = predict(model, split, "cpu", batch_size=10)
    parts = predict(model, split, "cpu", batch_size=4, progress=lambda *step: seen.append(step))
    torch.testing.assert_close(whole.logits, parts.logits)
    assert seen == [("predicting", 4, 10), ("predicting", 8, 10), ("predicting", 10, 10)]


def test_modes_are_restored_module_by_module(noise_split):
    model = small_conv_net()
    model.train()
    model[1].eval()  # frozen batch norm
    before = [module.training for module in model.modules()]
    predict(model, noise_split(4, 2), "cpu")
    assert [module.training for module in model.modules()] == before


def test_empty_split_is_refused(noise_split):
    with pytest.raises(ValueError, match="no images"):
        predict(small_conv_net(), noise_split(4, 2).subset(torch.tensor([], dtype=torch.int64)), "cpu")


def test_top_k_needs_k_classes():
    with pytest.raises(ValueError, match="top-5 of 3 classes"):
        top_k_accuracy_pct(predicted([0], [0], 3), 5)


def test_nll_of_guessing_is_log_k_and_of_certainty_is_zero():
    labels = torch.tensor([0, 1, 2, 3])
    assert nll_nats(Predictions(torch.zeros(4, 4), labels)) == pytest.approx(math.log(4))
    assert nll_nats(Predictions(100 * torch.eye(4), labels)) == pytest.approx(0, abs=1e-12)


def test_calibration_error_by_hand():
    # Four images at 80 % confidence, two of them right: |0.5 − 0.8| = 30 %. Four at 99.99 %, all right: ~0.
    sure = torch.tensor([math.log(0.8), math.log(0.2)])
    certain = torch.tensor([math.log(0.9999), math.log(0.0001)])
    logits = torch.stack([sure] * 4 + [certain] * 4)
    predictions = Predictions(logits, torch.tensor([0, 0, 1, 1, 0, 0, 0, 0]))
    assert calibration_error_pct(predictions) == pytest.approx((30 * 4 + 0.01 * 4) / 8, abs=1e-4)


def test_calibration_bins_include_full_confidence():
    predictions = Predictions(torch.tensor([[1000.0, 0.0]] * 4), torch.tensor([0, 0, 0, 1]))
    assert calibration_error_pct(predictions) == pytest.approx(25)


def test_agreement_by_hand():
    labels = [0, 0, 0, 1, 1, 1]
    base = predicted([0, 0, 0, 1, 1, 0], labels, 3)
    pruned = predicted([0, 1, 2, 1, 0, 1], labels, 3)
    # Three images are right in the original only, one in the pruned network only. Exact McNemar: two-sided binomial of
    # 1 of 4 → 2 · (1 + 4) / 16. The third class has no images, so that it cannot be the worst.
    assert agreement_columns(base, pruned) == {
        "disagreement_pct": pytest.approx(100 * 4 / 6),
        "mcnemar_p": pytest.approx(10 / 16),
        "worst_class": 0,
        "worst_class_delta_pp": pytest.approx(-200 / 3),
    }
    assert math.isnan(per_class_accuracy_pct(base)[2])


def test_a_network_agrees_with_itself():
    predictions = predicted([0, 1, 1], [0, 1, 0], 2)
    agreement = agreement_columns(predictions, predictions)
    assert (agreement["disagreement_pct"], agreement["mcnemar_p"], agreement["worst_class_delta_pp"]) == (0, 1, 0)


def test_top_5_has_columns_where_there_are_more_than_10_classes():
    few, many = (predicted([0, 3], [0, 1], count) for count in (10, 11))
    assert "top5_base_pct" not in accuracy_columns(few, few, 0)
    assert accuracy_columns(many, many, 0)["top5_pruned_pct"] == top_k_accuracy_pct(many, 5)


def test_a_change_in_accuracy_has_an_interval_over_the_images():
    labels = [0] * 400
    original = predicted([0] * 300 + [1] * 100, labels, 2)
    # 40 images lost, 20 won: 5 pp less, with a standard error of √(60/400 − 0.05²)/√400 = 1.9 pp.
    pruned = predicted([1] * 40 + [0] * 280 + [1] * 80, labels, 2)
    columns = accuracy_columns(original, pruned, 0)
    assert columns["accuracy_delta_pp"] == -5
    assert columns["accuracy_ci95_low"] == pytest.approx(-5 - 1.96 * 1.92, abs=0.5)
    assert columns["accuracy_ci95_high"] == pytest.approx(-5 + 1.96 * 1.92, abs=0.5)
    same = accuracy_columns(original, original, 0)
    assert (same["accuracy_ci95_low"], same["accuracy_ci95_high"]) == (0, 0)


def test_different_images_cannot_be_compared():
    with pytest.raises(ValueError, match="different images"):
        agreement_columns(predicted([0], [0], 2), predicted([0], [1], 2))
