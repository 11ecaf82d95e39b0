from __future__ import annotations

import pytest

from consensus_cli.errors import UserError
from consensus_cli.evaluation.attacks import ATTACKS, SUITES, Attack, check_attacks, column_names, suite


def test_every_attack_is_in_a_suite():
    assert {attack.name for attack in suite("full", 8, 10, 0)} == set(ATTACKS)


@pytest.mark.parametrize("name", SUITES)
def test_suites_take_epsilon_steps_and_seed(name):
    for attack in suite(name, 2, 7, 3):
        assert attack.seed == 3
        assert attack.eps255 == (16 if attack.norm == "L2" else 2)
        assert attack.steps in (7, 50, 100, 1000)
    assert len(set(column_names(suite(name, 2, 7, 3)))) == len(suite(name, 2, 7, 3))


def test_quick_is_fgsm_and_pgd():
    assert suite("quick", 8, 20, 0) == (Attack("fgsm", steps=20), Attack("pgd", steps=20))


def test_step_is_a_fraction_of_epsilon_unless_given():
    assert Attack("pgd", eps255=8, steps=10).step == pytest.approx(2 / 255)
    assert Attack("pgd", eps255=8, steps=1).step == pytest.approx(8 / 255)
    assert Attack("pgd", eps255=8, step255=0.5).step == pytest.approx(0.5 / 255)


def test_columns_say_only_what_tells_attacks_apart():
    assert column_names([Attack("fgsm"), Attack("pgd")]) == ["fgsm", "pgd"]
    assert column_names([Attack("pgd"), Attack("pgd", "L2"), Attack("cw", "L2")]) == ["pgd", "pgd_l2", "cw"]
    assert column_names([Attack("pgd", eps255=2), Attack("pgd", eps255=0.5)]) == ["pgd_eps2", "pgd_eps0.5"]


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


def test_unknown_suite_is_refused():
    with pytest.raises(UserError, match="unknown attack suite 'fast'"):
        suite("fast", 8, 10, 0)


def test_twins_are_refused():
    with pytest.raises(UserError, match="alike"):
        column_names([Attack("pgd"), Attack("pgd")])
