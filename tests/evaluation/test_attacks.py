from __future__ import annotations

import pytest

from consensus_cli.errors import UserError
from consensus_cli.evaluation.attacks import Attack, check_attacks


def test_step_is_a_fraction_of_epsilon_unless_given():
    assert Attack("pgd", eps255=8, steps=10).step == pytest.approx(2 / 255)
    assert Attack("pgd", eps255=8, steps=1).step == pytest.approx(8 / 255)
    assert Attack("pgd", eps255=8, step255=0.5).step == pytest.approx(0.5 / 255)


@pytest.mark.parametrize(
    ("attack", "message", "hint"),
    [
        (Attack("pdg"), "unknown attack 'pdg'", "did you mean 'pgd'"),
        (Attack("fgsm", "L2"), "'fgsm' has no norm 'L2'", "use norm Linf"),
        (Attack("pgd", eps255=-1), "eps255=-1", "at least 0"),
        (Attack("pgd", steps=0), "steps=0", "at least 1"),
        (Attack("pgd", restarts=0), "restarts=0", "at least 1"),
        (Attack("fgsm", restarts=2), "2 restarts change nothing", "use restarts=1"),
    ],
)
def test_impossible_attacks_are_refused(attack, message, hint):
    with pytest.raises(UserError) as caught:
        check_attacks([attack])
    assert message in caught.value.message
    assert hint in caught.value.hint
