from __future__ import annotations

import math

import pytest

from consensus_cli.errors import UserError
from consensus_cli.evaluation.robustness.attacks import ATTACKS, Attack, check_attacks


def test_step_is_a_fraction_of_epsilon_unless_given():
    assert Attack("pgd", eps255=8, steps=10).step == pytest.approx(2 / 255)
    assert Attack("pgd", eps255=8, steps=1).step == pytest.approx(8 / 255)
    assert Attack("pgd", eps255=8, step255=0.5).step == pytest.approx(0.5 / 255)


@pytest.mark.parametrize(
    ("settings", "message", "hint"),
    [
        ({"name": "pdg"}, "unknown attack 'pdg'", "did you mean 'pgd'"),
        ({"name": "fgsm", "norm": "L2"}, "'fgsm' has no norm 'L2'", "use norm Linf"),
        ({"name": "pgd", "eps255": -1}, "eps255=-1", "at least 0"),
        ({"name": "pgd", "eps255": math.inf}, "eps255=inf", "finite"),
        ({"name": "pgd", "steps": 0}, "steps=0", "at least 1"),
        ({"name": "pgd", "restarts": 0}, "restarts=0", "at least 1"),
        ({"name": "pgd", "step255": 0}, "step255=0", "above 0"),
        ({"name": "fgsm", "restarts": 2}, "2 restarts change nothing", "use restarts=1"),
    ],
)
def test_impossible_attacks_are_refused(settings, message, hint):
    with pytest.raises(UserError) as caught:
        check_attacks([Attack(**settings)])
    assert message in caught.value.message
    assert hint in caught.value.hint


@pytest.mark.parametrize("name", ATTACKS)
def test_attacks_that_need_more_classes_are_refused_before_anything_runs(name):
    attack = Attack(name, norm=ATTACKS[name].norms[0])
    needed = 4 if name == "autoattack" else 2
    check_attacks([attack], needed)
    for classes in range(1, needed):
        with pytest.raises(
            UserError, match=f"attack '{name}' needs {needed} classes, the network has {classes}"
        ) as caught:
            check_attacks([attack], classes)
        assert ("apgd" in caught.value.hint) == (classes > 1)
        assert ("attacks=none" in caught.value.hint) == (classes == 1)
