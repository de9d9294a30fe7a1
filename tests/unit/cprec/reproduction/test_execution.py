"""Every variant of pre-training is a recipe that workers take."""

import pytest

from cprec.config.recipe import Recipe
from cprec.config.recipe_file import validate_recipe
from cprec.config.sections.pretraining import ScheduleSettings
from cprec.reproduction.execution import schedule_of
from cprec.schedule.wsa import Mode


@pytest.mark.parametrize("mode", Mode)
def test_a_share_of_annealing_is_for_variants_that_anneal(mode: Mode) -> None:
    given = ScheduleSettings(annealing_share=0.2, hold_open=True)
    recipe = Recipe().model_copy(update={"schedule": schedule_of(given, mode)})
    schedule = validate_recipe(recipe.model_dump(mode="json"), "the driver").schedule
    assert (schedule.mode, schedule.hold_open) == (mode, False)
    assert schedule.annealing_share == (0.2 if mode.anneals_on_mixed else None)
