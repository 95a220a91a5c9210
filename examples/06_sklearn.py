"""Few-shot regression as a scikit-learn estimator.

Each of twenty machines has a level and a drift of its own. The estimator is fitted on all of them, learns a new
machine from its first four readings, and predicts the later ones; a search over groups of machines then says how well
that works. Prints R² on the new machines and the score of the search. Needs headstart[sklearn].
Expected: pooled below 0.5, adapted above 0.7, search above 0.6.
"""

import numpy as np
import sklearn
from sklearn.metrics import r2_score
from sklearn.model_selection import GridSearchCV, GroupKFold

from headstart.integrations.sklearn import FewShotRegressor


def readings(machines: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return hours (n, 1), readings and the machine's number, 12 rows a machine in the order of time."""
    random = np.random.default_rng(seed)
    hours = np.tile(np.arange(12.0), (machines, 1))
    level, drift = random.normal(20, 5, (machines, 1)), random.normal(1, 1, (machines, 1))
    noise = random.normal(0, 0.5, hours.shape)
    values = level + drift * hours + 3 * np.sin(hours / 2) + noise
    return hours.reshape(-1, 1), values.ravel(), np.repeat(np.arange(machines), 12)


X, y, machine = readings(20, seed=0)
regressor = FewShotRegressor(support=4, order="first", steps=60, random_state=0).fit(X, y, groups=machine)

X_new, y_new, new = readings(10, seed=1)
adapted, truth = [], []
for number in range(10):
    few, rest = np.split(np.flatnonzero(new == number), [4])
    adapted.append(regressor.adapt(X_new[few], y_new[few]).predict(X_new[rest]))
    truth.append(y_new[rest])
print(f"pooled:  {regressor.score(X_new, y_new):.2f}")
print(f"adapted: {r2_score(np.concatenate(truth), np.concatenate(adapted)):.2f}")

# with routing on, the groups reach the splitter, fit and score, which then adapts to each held-out machine
with sklearn.config_context(enable_metadata_routing=True):
    routed = FewShotRegressor(support=4, order="first", steps=60, random_state=0)
    routed.set_fit_request(groups=True).set_score_request(groups=True)
    search = GridSearchCV(routed, {"method": ["gaussian_process", "ridge"]}, cv=GroupKFold(3))
    search.fit(X, y, groups=machine)
print(f"search:  {search.best_score_:.2f} by {search.best_params_['method']}")
