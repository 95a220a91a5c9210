"""Meta-learning as scikit-learn estimators: ``fit`` learns across tasks, ``adapt`` learns a new one from a few rows.

::

    estimator = FewShotRegressor().fit(X, y, groups=subject)    # every subject's rows are a task
    adapted = estimator.adapt(X_few, y_few)                     # a new subject, from a few rows
    adapted.predict(X_rest)
"""

from headstart.integrations.sklearn.estimators import (
    FewShotClassifier as FewShotClassifier,
    FewShotRegressor as FewShotRegressor,
)
