import torch

import headstart
from headstart.engine.forms import REMEMBERED, Forms


def maml():
    return headstart.maml(torch.nn.Linear(2, 1), loss="mse", steps=1)


def test_a_learner_of_the_same_functions_is_the_same_form():
    forms, learner = Forms(), maml()
    number = forms.of(learner).number
    assert forms.of(learner._replace(gradient=None, during=lambda done: learner)).number == number
    assert forms.of(learner._replace(steps=learner.steps)).number == number
    assert forms.of(maml()).number != number


def test_numbers_are_compared_and_other_objects_are_not():
    class Unequal:
        def __eq__(self, other):
            raise RuntimeError("these cannot be compared")

    forms, learner = Forms(), maml()
    number = forms.of(learner._replace(penalty=Unequal())).number
    assert forms.of(learner._replace(penalty=Unequal())).number != number
    assert forms.of(learner._replace(penalty=0.1)).number == forms.of(learner._replace(penalty=0.1)).number
    assert forms.of(learner._replace(penalty=1)).number != forms.of(learner._replace(penalty=True)).number


def test_what_comes_once_each_is_not_settled():
    forms, learners = Forms(), [maml() for _ in range(3)]
    assert [forms.of(learner).settled for learner in learners] == [True, False, False]
    assert forms.of(learners[2]).settled
    assert forms.of(maml()).settled  # what came before it came more than once


def test_forms_that_came_long_ago_are_forgotten_and_their_numbers_not_given_again():
    forms, learners = Forms(), [maml() for _ in range(2 * REMEMBERED)]
    numbers = [forms.of(learner).number for learner in learners]
    assert len(forms.known) == REMEMBERED
    assert forms.of(learners[-1]).number == numbers[-1]
    assert forms.of(learners[0]).number not in numbers
