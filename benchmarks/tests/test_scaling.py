from benchmarks.scaling import TASKS, WORKERS, Costs, Network, fitted, forecast, shown


def test_the_model_is_its_formula():
    costs, network = Costs(fixed=1e-3, task=2e-3, message=1_000_000), Network(hop=1e-5, rate=1e9)
    assert costs.step(1, 16, network) == 1e-3 + 16 * 2e-3
    # seven hops there and seven back, and 7 / 4 of the message through each
    assert abs(costs.step(8, 20, network) - (1e-3 + 3 * 2e-3 + 14e-5 + 1.75e-3)) < 1e-12


def test_costs_are_found_again():
    x = [8.0, 16.0, 32.0, 64.0]
    assert [round(value, 9) for value in fitted(x, [2e-3 + 5e-4 * value for value in x])] == [2e-3, 5e-4]
    # steps that seem to cost less than nothing beside their tasks
    assert fitted([1.0, 2.0], [1.0, 2.5])[0] == 0.0


def test_what_limits_is_told():
    fast, slow = Network(0.0, 1e12), Network(1e-3, 1e6)
    tasks = forecast(Costs(0.0, 1e-3, 4000), fast)
    assert len(tasks) == len(TASKS) * len(WORKERS)
    told = {row[0]: row[-2:] for row in shown(tasks)}
    assert told["16"] == ("from 32 on", "tasks that cannot be divided") and told["4096"] == ("no", "")
    assert {row[-1] for row in shown(forecast(Costs(0.0, 1e-3, 4000), slow))} == {"messages"}
    assert shown(forecast(Costs(1.0, 1e-6, 4000), fast))[0][-1] == "what each does anyway"
