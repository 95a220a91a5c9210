"""What the tests of many processes run in them: ``python several.py FOLDER`` leaves in FOLDER what became of it.

Everything is imported once, and processes are forked from there.
"""

import json
import os
import signal
import socket
import sys
import time
import warnings
from functools import partial
from pathlib import Path

import matplotlib.figure
import torch
import torch._dynamo  # what an optimiser imports when it is made

import headstart
from headstart import registry
from headstart.algorithms.reptile import reptile
from headstart.cli import app
from headstart.data.curves.sinusoid import sinusoid
from headstart.errors import HeadstartError
from headstart.testing import random_episodes
from headstart.testing.contract import take
from headstart.testing.learners import episodes_of, made
from headstart.training import distributed, loop, run
from headstart.training.calibration import Spread
from headstart.training.distributed import group, processes, share
from headstart.training.evaluate import calibrate, evaluate
from headstart.types import Episodes, Meta
from tests.short import tree

TASKS = 5
#: Smaller than by default.
OPTIONS = {
    "anp": {"hidden": 6, "depth": 2, "heads": 2},
    "baseline_plus_plus": {"fit_steps": 3},
    "cnp": {"hidden": 6, "depth": 2},
    "es_maml": {"samples": 4, "inner_samples": 4},
    "forest": {"trees": 3, "leaves": 4},
    "linear_probe": {"fit_steps": 3},
    "reptile": {"rate": 0.01},
    "search": {"trials": 1},
    "warp_grad": {"warps": torch.nn.Linear},
}
CHOICES = {
    "es_maml by ranks": ("es_maml", {"shaping": "ranks"}),
    "es_maml on one side": ("es_maml", {"antithetic": False}),
    "es_maml, inner": ("es_maml", {"inner": "evolution"}),
    "gaussian_process, predictive": ("gaussian_process", {"likelihood": "predictive"}),
}
FEW = ("maml", "prototypes", "reptile", "meta_sgd", "ridge", "gaussian_process", "es_maml", "es_maml by ranks")
SINE = {
    "tasks": "sinusoid", "hidden": "8", "steps": 9, "threads": 1, "evaluate_tasks": 45, "test_tasks": 30,
    "evaluate_every": 4, "save_every": 4, "tasks_per_step": 5, "hung_after": 60,
}  # fmt: skip


def together(size, work, *given, seconds=400):
    """Do something in so many new processes, and return their exit codes, what they said, and how long it took."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    began, children, said = time.monotonic(), [], Path(sys.argv[1], f"said-{port}")
    for rank in range(size):
        child = os.fork()
        if not child:
            where = {"RANK": rank, "WORLD_SIZE": size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            os.environ.update({name: str(value) for name, value in where.items()})
            out = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(out, 1)
            os.dup2(out, 2)
            code = 70
            try:
                code = work(*given)
            except BaseException:
                import traceback

                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code if isinstance(code, int) else 0)
        children.append(child)
    codes = [None] * size
    while None in codes and time.monotonic() - began < seconds:
        for rank, child in enumerate(children):
            if codes[rank] is None and (found := os.waitpid(child, os.WNOHANG))[0]:
                codes[rank] = os.waitstatus_to_exitcode(found[1])
        time.sleep(0.01)
    for code, child in zip(codes, children):
        if code is None:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
    if os.environ.get("TIMED"):
        print(
            f"{time.monotonic() - began:.1f}",
            os.times().children_user,
            size,
            getattr(work, "__name__", work),
            given[-2:],
            flush=True,
        )
    return {"codes": codes, "said": said.read_text(), "seconds": time.monotonic() - began}


def gap(ours, theirs):
    """Return how far gradients and losses are apart, relative to their lengths."""
    found = []
    for part, other in zip((ours[0], [ours[1].query_loss]), (theirs[0], [theirs[1].query_loss])):
        own, wanted = (
            torch.cat([one.flatten().double() for one in headstart.core.tree.tensors_of(t)]) for t in (part, other)
        )
        found.append(float((own - wanted).norm() / wanted.norm().clamp(min=1e-30)))
    return max(found)


def cases(names, dtype):
    net = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.Tanh(), torch.nn.Linear(5, 3)).to(dtype)
    classes, numbers = (random_episodes((3,), tasks=TASKS, regression=which) for which in (False, True))
    for name in names:
        row, options = CHOICES.get(name, (name, {}))
        for episodes in [*episodes_of(row, classes, numbers)][: 2 if name in FEW else 1]:
            target = "regression" if episodes.query.y.is_floating_point() else "classification"
            seeds = torch.arange(7, 7 + TASKS)
            batches = (
                headstart.core.tree.mapped(lambda leaf: leaf.to(dtype) if leaf.is_floating_point() else leaf, batch)
                for batch in episodes
            )
            episodes = Episodes(*(batch._replace(seed=seeds) for batch in batches))
            yield f"{name}, {target}", made(row, net, episodes, **{**OPTIONS.get(row, {}), **options}), episodes


def gradients(names, dtype, out):
    """Compare the gradient of all processes' tasks with that of one process, with several numbers of tasks."""
    torch.manual_seed(0)
    found = {}
    with processes(hung_after=60):
        for name, learner, episodes in cases(names, dtype):
            if learner.gradient is None:
                continue
            draw = torch.Generator().manual_seed(3)
            start = learner.init(torch.Generator().manual_seed(0))
            meta = Meta(
                *(
                    {k: v + 0.1 * torch.randn(v.shape, generator=draw, dtype=torch.float64).to(v) for k, v in p.items()}
                    for p in start
                )
            )
            if not any(meta):
                continue
            for tasks in (TASKS, 2):
                some = take(episodes, [*range(tasks)])
                own = take(some, [*share(range(tasks))])
                ours = headstart.meta_gradient(headstart.distributed(learner, tasks_per_step=tasks), meta, own)
                if group().first:
                    found[f"{name}, {tasks}"] = gap(ours, headstart.meta_gradient(learner, meta, some))
        if group().first:
            out.write_text(json.dumps(found))


def logged(job, log, strike, at):
    """Return the job whose tasks note which of them are sampled for training; ``strike`` happens in step ``at``."""

    def sample(split, numbers):
        if split == "train" and len(numbers) <= SINE["tasks_per_step"]:
            with log.open("a") as file:
                print(*numbers, file=file)
            if strike is not None and at * SINE["tasks_per_step"] in range(numbers[0] - 4, numbers[-1] + 1):
                strike()
        return job.tasks.sample(split, numbers)

    return job._replace(tasks=job.tasks._replace(sample=sample))


def trained(options, out, at=None, strike=None, rank=None):
    """Train, with something happening to the last process, or to one alone, in a step."""
    last = int(os.environ.get("WORLD_SIZE", 1)) - 1
    mine = int(os.environ.get("RANK", 0)) == (last if rank is None else rank)
    build = run.build
    log = out.with_name(f"{out.name}-{last + 1}.log")
    run.build = lambda config: logged(build(config), log, strike if mine else None, at)
    matplotlib.figure.Figure.savefig = lambda self, file, **_: file.write(b"\x89PNG")
    if not options.get("same_bits"):
        run.report = lambda *_: []  # which takes longest
    try:
        result = run.train(tree(options), out)
    except HeadstartError as error:
        if distributed.first_to_tell(error):
            print("error:", error, file=sys.stderr)
        return error.exit_code
    finally:
        run.build = build
    return 0 if result.stopped is None else 128 + result.stopped


def strike(number):
    os.kill(os.getpid(), number)


def files(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes().hex()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }


def scores(out):
    """Judge in all processes, and keep what comes of it."""
    tasks, found = sinusoid(seed=3), {}
    net = headstart.mlp(1, 1, hidden=(8,))
    for name, learner in (
        ("maml", headstart.maml(net, loss="mse", steps=2, taskmap="vmap")),
        ("gaussian_process", headstart.gaussian_process(inputs=1)),
    ):
        with processes(hung_after=60):
            meta = loop.start(learner, tasks=tasks).meta
            score = evaluate(learner, meta, tasks, episodes=50, batch=20, steps=[0, 3] if learner.steps else None)
            spread = calibrate(learner, meta, tasks, episodes=50, batch=20)
        found[name] = [repr(score), repr(spread), sorted(map(repr, loop.flat(meta).items()))]
        assert isinstance(spread, Spread)
    if int(os.environ["RANK"]) == 0:
        out.write_text(json.dumps(found))


def left_out(out):
    """Train on tasks of which some have a loss, and one a gradient, that is not finite, and leave them out."""
    torch.manual_seed(0)  # from other weights, other tasks diverge
    tasks, learner = sinusoid(shots=4, seed=1), headstart.meta_sgd(headstart.mlp(1, 1, hidden=(8,)), loss="mse")
    whole, odd = learner.gradient, tasks.sample("train", [9]).query.y

    def sample(split, numbers):
        episodes = tasks.sample(split, numbers)
        spoilt = torch.tensor([number in (5, 7, 8) for number in numbers])
        y = torch.where(spoilt[:, None, None], 1e30, episodes.support.y)
        return episodes._replace(support=episodes.support._replace(y=y))

    def gradient(learner, meta, episodes):
        found, info = whole(learner, meta, episodes)
        if bool((episodes.query.y == odd).flatten(1).all(1).any()):
            found = headstart.core.tree.mapped(lambda leaf: leaf / 0, found)
        return found, info

    with processes(hung_after=60) as everyone:
        how = {"steps": 4, "tasks_per_step": 4, "on_nonfinite": "skip"}
        records = [*loop.fit(learner._replace(gradient=gradient), tasks._replace(sample=sample), **how)]
        if everyone.first:
            weights = {name: value.tolist() for name, value in loop.flat(records[-1].state.meta).items()}
            lost = [[(one.task, one.why) for one in record.left_out] for record in records]
            out.write_text(json.dumps({"lost": lost, "weights": weights}))


def waiting():
    """Wait for the first process longer than for one that hangs; then hear of its errors."""
    with processes(hung_after=1) as everyone:
        began = time.monotonic()
        everyone.alone(lambda: time.sleep(2.5))
        assert time.monotonic() - began > 2
        try:
            everyone.alone(lambda: headstart.maml(headstart.mlp(1, 1), loss="mad"))
        except headstart.errors.UnknownNameError as error:
            assert "'mad'" in str(error)
        else:
            return 1
        assert everyone.says(everyone.rank + 5) == 5
        return 0


def differing():
    """Let the last process have other weights."""
    learner, tasks = headstart.maml(headstart.mlp(1, 1, hidden=(4,)), loss="mse", steps=1), sinusoid()
    loop.COMPARED_EVERY = 2
    with processes(hung_after=60) as everyone:
        for record in loop.fit(learner, tasks, steps=9, tasks_per_step=4):
            if record.step == 3 and everyone.rank == everyone.size - 1:
                record.state.meta.params["head.bias"].add_(1e-7)


def apart():
    """Begin a loop of one's own with other weights in each process; return 3 where that is told."""
    with processes(hung_after=60) as everyone:
        torch.manual_seed(everyone.rank)
        learner = headstart.maml(headstart.mlp(1, 1, hidden=(4,)), loss="mse", steps=1)
        shared = headstart.distributed(learner, tasks_per_step=4)
        try:
            headstart.meta_gradient(shared, learner.init(None), sinusoid().sample("train", share(range(4))))
        except headstart.errors.ProcessError as error:
            return 3 * ("the weights of processes 0, 1 differ" in str(error))


def refused():
    """Ask for what several processes cannot do; return 10 and how many refusals there were."""
    count = 0
    with processes(hung_after=60):
        net, tasks = headstart.mlp(1, 1, hidden=(4,)), sinusoid()
        asked = [(reptile(net, loss="mse", serial=0.5), {}), (headstart.es_maml(net, loss="mse"), {"same_bits": True})]
        for learner, how in asked:
            try:
                next(loop.fit(learner, tasks, steps=1, **how))
            except headstart.errors.UsageError as error:
                count += "leave out" in str(error)
        try:
            shared = headstart.distributed(headstart.maml(net, loss="mse"), tasks_per_step=4)
            headstart.meta_gradient(shared, shared.init(None), tasks.sample("train", range(3)))
        except headstart.errors.ShapeError as error:
            count += "its share of 4 is 2" in str(error)
    return 10 + count


def again():
    """Get over an error of the last process, twice, and work on; return how often all heard of the right one."""
    heard = 0
    for text in ("one", "two", ""):
        try:
            with processes(hung_after=60) as everyone:
                if text and everyone.rank == everyone.size - 1:
                    raise headstart.errors.DataError(text)
                everyone.wait()
        except HeadstartError as error:
            heard += str(error).endswith(text)
    return heard


def of_gradients(folder):
    names = [row.name for row in registry.METHODS if row.outer] + list(CHOICES)
    found = {}
    for size, asked, dtype in ((3, names, torch.float64), (2, FEW, torch.float64), (2, FEW, torch.float32)):
        out = folder / "gradients.json"
        told = together(size, gradients, asked, dtype, out)
        assert told["codes"] == [0] * size, told
        found[f"{size} {dtype}"] = json.loads(out.read_text())
    return found


def of_runs(folder):
    found, stop = {}, partial(strike, signal.SIGTERM)
    for name, more in {
        "maml": {},
        "same bits": {"same_bits": True},
        "prior": {"same_bits": True, "method": "gaussian_process", "hidden": None},
    }.items():
        own, place = {**SINE, **more}, folder / name
        parts = [together(2, trained, own, place, 2, stop), together(1, trained, own, place, 5, stop)]
        found[name] = [*parts, together(3, trained, own, place)]
        together(1, trained, own, folder / f"{name} whole")
    return found


def of_strikes(folder):
    found = {}
    for name, number in {"killed": signal.SIGKILL, "hung": signal.SIGSTOP}.items():
        own, place = {**SINE, "hung_after": 60 if name == "killed" else 2}, folder / name
        ended = together(2, trained, own, place, 6, partial(strike, number), seconds=15)
        found[name] = {"ended": ended, "again": together(2, trained, own, place)}
    together(2, trained, SINE, folder / "undisturbed")
    return found


def of_errors(folder):
    def bad():
        raise headstart.errors.DataError("this task is spoilt")

    return {
        "one": together(2, trained, SINE, folder / "error", 3, bad),
        "differing": [together(size, differing) for size in (2, 3)],
        "refused": together(2, refused),
        "apart": together(2, apart),
        "again": together(2, again),
    }


def of_scores(folder):
    found, out = {}, folder / "scores.json"
    for size in (1, 3):
        assert together(size, scores, out)["codes"] == [0] * size
        found[size] = json.loads(out.read_text())
    return found


def of_left_out(folder):
    found, out = {}, folder / "left_out.json"
    for size in (1, 2, 3):
        assert together(size, left_out, out)["codes"] == [0] * size
        found[size] = json.loads(out.read_text())
    return found


def of_commands(folder):
    (folder / "other").mkdir()
    (folder / "other" / "file").touch()
    words = {
        "option": ["train", "sinusoid", "--stpes", "3"],
        "help": ["train", "sinusoid", "--help"],
        "adapt": ["adapt", "here", "there", "--out", "nowhere"],
        "taken": ["train", "sinusoid", "--out", str(folder / "other")],
        "train": ["train", "sinusoid", "--steps", "2", "--test-tasks", "40", "--out", str(folder / "run")],
        "evaluate": ["evaluate", str(folder / "run"), "--episodes", "40", "--json"],
    }
    return {name: together(2, app.run, own) for name, own in words.items()}


def of_waiting(folder):
    return together(2, waiting)


PARTS = {name.removeprefix("of_"): made for name, made in globals().items() if name.startswith("of_")}

if __name__ == "__main__":
    warnings.simplefilter("error")
    torch.set_num_threads(1)
    place = Path(sys.argv[1])
    for name in sys.argv[2:] or PARTS:
        (place / name).mkdir()
        (place / f"{name}.json").write_text(json.dumps(PARTS[name](place / name)))
