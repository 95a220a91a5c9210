import torch

from headstart.data.curves.plateaus import Partition, plateaus


def points(tasks, split="train", numbers=range(400)):
    """Return x ``(B, n, features)`` and y ``(B, n)`` of support and query together."""
    support, query = tasks.sample(split, numbers)
    return torch.cat((support.x, query.x), 1), torch.cat((support.y, query.y), 1)[..., 0]


def exact(**options):
    return plateaus(**{"noise": 0, "dtype": torch.float64, **options})


def test_cells_are_found_by_walking_the_tree():
    partition = Partition(torch.tensor([[0, 1, 0]]), torch.tensor([[0.0, 0.5, 0.5]], dtype=torch.float64))
    x = torch.tensor([[-1, 0.5], [-1, 0.6], [0.5, 9], [0.6, -9]], dtype=torch.float64)
    assert partition.cells(x)[:, 0].tolist() == [0, 1, 2, 3]


def test_functions_are_constant_on_few_cells_which_tasks_share():
    x, y = points(exact(trees=1, depth=2, relevant=2, features=5, queries=90))
    assert max(len(values.unique()) for values in y) == 4
    # the rows that one task has at one value are at one value in every other task too, wherever the cell is
    relevant = exact(trees=1, depth=2, relevant=2, features=5).details["relevant_features"]
    boxes = []
    for task in range(100):
        for value in y[task].unique():
            rows = x[task, y[task] == value][:, relevant]
            boxes.append((rows.amin(0), rows.amax(0)))
    other, values = x[300][:, relevant], y[300]
    for low, high in boxes:
        held = ((other >= low) & (other <= high)).all(1)
        assert len(values[held].unique()) <= 1


def test_features_that_do_not_count_tell_nothing():
    tasks = exact(offset=0)
    relevant = tasks.details["relevant_features"]
    x, y = points(tasks, numbers=range(2000))
    assert len(relevant) == 3 and tasks.input_shape == (8,)
    for feature in range(8):
        high = x[..., feature] > 0
        gain = ((y * high).sum(1) / high.sum(1) - (y * ~high).sum(1) / (~high).sum(1)).square().mean()
        chance = 4 * y.var() / y.shape[1]
        assert (gain > 1.3 * chance) == (feature in relevant), (feature, gain, chance)


def test_all_tasks_are_one_where_everything_is_common_and_the_mean_is_nothing_where_nothing_is():
    x, y = points(exact(common=1.0, offset=0, trees=1))
    assert len(y.unique()) == 4
    x, y = points(exact(common=0.0, offset=0, trees=1, depth=1), numbers=range(20_000))
    for high in (False, True):
        feature, threshold = _split_of(exact(trees=1, depth=1))
        there = (x[..., feature] > threshold) == high
        means = (y * there).sum(1) / there.sum(1)
        assert abs(means.nanmean()) < 4 * means[means.isfinite()].std() / 20_000**0.5


def _split_of(tasks):
    from headstart.data.curves.plateaus import _partition

    partition, _ = _partition(0, 8, 3, 1, 1)
    return int(partition.feature[0, 0]), float(partition.threshold[0, 0])


def test_offsets_values_and_noise_have_the_variances_that_were_asked_for():
    def variance(**options):
        support, _ = plateaus(**{"shots": 1, "common": 0, "dtype": torch.float64, **options}).sample(
            "test", range(20_000)
        )
        return support.y.var().item()

    for options, expected in (
        ({"offset": 0, "noise": 0}, 1),
        ({"offset": 2, "noise": 0}, 5),
        ({"offset": 0, "noise": 3, "trees": 3}, 10),
    ):
        assert abs(variance(**options) / expected - 1) < 4 * (2 / 20_000) ** 0.5
