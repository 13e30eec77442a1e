from __future__ import annotations

import pytest

from pipeline.config import params
from pipeline.training.optimization import epoch_count
from tests.conftest import ROOT


def test_fewer_pictures_get_more_epochs_within_bounds() -> None:
    auto = params.load(ROOT / "params.yaml").finetune
    assert auto.epochs == "auto"
    pictures = [1, 40, 100, 300, 750, 1_000, 10_000, 1_000_000]
    assert [epoch_count(auto, count) for count in pictures] == [80, 80, 55, 32, 20, 17, 5, 4]


@pytest.mark.parametrize("pictures", [1, 10**6])
def test_a_number_of_epochs_is_taken_as_it_is(pictures: int) -> None:
    seven = params.load(ROOT / "params.yaml").finetune.model_copy(update={"epochs": 7})
    assert epoch_count(seven, pictures) == 7
