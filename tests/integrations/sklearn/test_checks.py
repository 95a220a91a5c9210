"""scikit-learn's own checks of estimators, none of them excused."""

import pytest

pytest.importorskip("sklearn")

from sklearn.utils.estimator_checks import parametrize_with_checks

from headstart.integrations.sklearn import FewShotClassifier, FewShotRegressor


@parametrize_with_checks([FewShotClassifier(), FewShotRegressor()])
def test_scikit_learns_checks(estimator, check):
    check(estimator)
