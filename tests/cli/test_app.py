"""The command line: exit codes, one clear line an error, and nothing heavy before it is needed."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from headstart.cli.app import COMMANDS, run
from headstart.registry import METHODS, TRUNKS, keras_methods
from headstart.training.config import Outer, Run, flags, normal, schema_of

SMALL = "--hidden 8 --evaluate-tasks 4 --test-tasks 4 --threads 1".split()


def _python(*words: str, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *words], capture_output=True, text=True, timeout=120, **options)  # type: ignore[call-overload]


@pytest.mark.parametrize("words", [["--help"], ["train", "--help"], ["list", "methods"]])
def test_help_does_not_import_torch(words: list[str]) -> None:
    code = (
        "import sys; from headstart.cli.app import run\n"
        f"code = run({words!r})\n"
        "print('heavy:', sorted({'torch', 'numpy', 'matplotlib'} & set(sys.modules)), 'code:', code)"
    )
    assert _python("-c", code).stdout.splitlines()[-1] == "heavy: [] code: 0"


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_every_command_has_help_that_starts_with_its_line(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([command, "--help"]) == 0
    assert str(COMMANDS[command].__doc__).splitlines()[0] in _shown(capsys)


def _shown(capsys: pytest.CaptureFixture[str]) -> str:
    return " ".join(re.sub(r"[│╭╮╰╯─]", " ", capsys.readouterr().out).split())


def test_the_help_of_train_is_what_every_run_has(capsys: pytest.CaptureFixture[str]) -> None:
    run(["train", "--help"])
    shown = _shown(capsys)
    for owner, factory in (("outer", Outer), ("run", Run)):
        for name in factory._fields:
            assert f"{flags(f'{owner}.{name}', [f'{owner}.{name}'])[0]} " in shown, name
    assert "headstart train icons --method svm --help" in shown and "--ways" not in shown


def test_the_help_of_a_run_is_what_it_takes_with_its_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["train", "icons", "--method", "svm"]
    run([*words, "--help"])
    shown = _shown(capsys)
    options = schema_of(normal({"tasks": "icons", "method": "svm"})).options
    for name in options:
        assert f"{flags(name, options)[0]} " in shown, name
    for told in ("Method: svm", "Model: conv4", "One of linear, rbf. Default: linear.", "Default: 32."):
        assert told in shown
    assert "--inner-steps" not in shown and "--frequency" not in shown


def test_options_are_known_by_their_full_names_too(tmp_path: Path) -> None:
    words = "train icons --no-tasks.rotations --tasks.ways=3 --method prototypes --model.filters 4".split()
    small = "--outer.steps 0 --test-tasks 2 --evaluate-tasks 2 --out".split()
    assert run([*words, *small, str(tmp_path / "run")]) == 0
    written = json.loads((tmp_path / "run" / "config.json").read_text())
    assert (written["tasks"]["rotations"], written["tasks"]["ways"], written["model"]["filters"]) == (False, 3, 4)


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (["trian"], 2, 'Did you mean "train"?'),
        (["train", "sinusoid", "--stpes", "3"], 2, "did you mean --steps?"),
        (["train", "sinusoid", "--steps", "many"], 2, "--steps is 'many', but must be a whole number from 0"),
        (["train", "sinusoid", "--inner-rate", "-1"], 2, "--inner-rate is '-1', but must be a number above 0"),
        (["train", "icons", "--norm", "bach"], 2, "--norm is 'bach', but must be one of batch"),
        (["train", "sinusoid", "--norm", "batch"], 2, "it belongs to the model conv4, resnet12"),
        (["train", "sinusiod"], 2, "did you mean 'sinusoid'?"),
        (["train", "sinusoid", "--method", "mamal"], 2, "did you mean 'maml'"),
        (["train", "sinusoid", "--model", "mpl"], 2, "did you mean 'mlp'?"),
        (["train", "sinusoid", "--shots", "1-5"], 2, "--shots is '1-5', but must be a whole number"),
        (["train", "sinusoid", "--model", "conv4"], 2, "conv4 takes images"),
        (["train"], 2, "TASKS is missing"),
        (["train", "--ways", "5"], 2, "unknown option --ways; where it is one of tasks, name the TASKS first"),
        (["train", "icons", "--trees", "5"], 2, "it belongs to the tasks plateaus and the method"),
        (["train", "sinusoid", "--config", "none.yaml"], 1, "no such file"),
        (["evaluate", "nowhere"], 1, "holds no run"),
        (["evaluate", "nowhere", "--episodes", "1"], 2, "--episodes"),
        (["report", "nowhere"], 1, "holds no run"),
        (["adapt", "nowhere", "support"], 2, "--out"),
        (["predict", "nowhere", "a.png"], 1, "holds no adapted model"),
        (
            ["evaluate", "nowhere", "--test-tasks", "5"],
            2,
            "Unknown option: --test-tasks. See headstart evaluate --help",
        ),
        (["train", "icons", "--methd", "svm"], 2, "did you mean --method?"),
        (["train", "sinusoid", "--method", "scratch", "--steps", "5"], 2, "'scratch' takes no outer steps"),
        (["train", "sinusoid", "--no-inner-steps"], 2, "--inner-steps takes a value"),
        (["train", "sinusoid", "--method.name", "fomaml"], 2, "give the name by --method"),
        (["train", "sinusoid", "--method", ""], 2, "the name of method is ''"),
        (["compare", "icons", "--methods", "ridge,svm", "--intercept", "much"], 2, "--intercept is 'much'"),
        (
            ["compare", "sinusoid", "--methods", "maml,reptile", "--trees", "5"],
            2,
            "for the tasks 'sinusoid', the method 'maml', 'reptile'",
        ),
        (
            ["compare", "icons", "--methods", "nearest,svm", "--steps", "1", "--intercep", "x"],
            2,
            "did you mean --intercept?",
        ),
        (["compare", "icons", "--method", "svm"], 2, "did you mean --methods?"),
        (["sweep", "icons", "--methods", "maml", "--set", "inner-rat=1,2"], 2, "did you mean --inner-rate?"),
        (["sweep", "--set", "a=1", "icons"], 2, "TASKS is missing"),
        (["compare", "--methods", "maml"], 2, "TASKS is missing"),
        (["sweep", "icons", "--methods", "maml", "--set", "inner-rate"], 2, "--set takes an option and its values"),
        (["sweep", "icons", "--methods", "maml", "--set", "seed=1,2"], 2, "--seeds"),
        (["sweep", "icons", "--methods", "maml", "--set", "inner-rate=1", "inner-rate=2"], 2, "inner-rate twice"),
        (["sweep", "icons", "--methods", "maml", "--seeds", "0"], 2, "seeds must be at least 1"),
        (["sweep", "icons", "--launcher", "slurm", "--resources", "time"], 2, "--resources is 'time'"),
        (["train", "sinusoid", "--track", "tensorbord"], 2, "--track is 'tensorbord'"),
        (["list", "method"], 2, 'Did you mean "methods"?'),
        (["train", "icons", "sinusoid"], 2, "'icons', which is images, and 'sinusoid', which is curves"),
        (["train", "sinusoid", "curves"], 2, "several of curves cannot be learned together yet"),
        (["train", "icons", "--no-rotations", "omniglot"], 2, "'omniglot' stands behind the options; name all TASKS"),
        (["train", "icons", "omniglot", "--weights", "1,-1"], 2, "--weights is '1,-1'"),
        (["evaluate", "nowhere", "--on", "icons", "--shots", "2"], 1, "holds no run"),
        (["evaluate", "nowhere", "--on", "icons", "--steps", "2"], 2, "--steps"),
        (["matrix", "--train", "icons", "sinusoid", "--methods", "maml"], 2, "a matrix is of one kind of data"),
        (["matrix", "--test", "icons"], 2, "--train"),
        (["matrix", "--train", "icons", "flags", "--methods", "nearest", "--weights", "1,2"], 2, "option --weights"),
        (["matrix", "--train", "icons", "--methods", "nearest", "--pad", "1"], 2, "unknown option --pad"),
    ],
)
def test_mistakes_exit_with_their_code_and_a_line_or_two(
    words: list[str], code: int, told: str, capsys: pytest.CaptureFixture[str], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert run(words) == code
    printed = capsys.readouterr()
    assert told in printed.err and printed.err.startswith("error: ")
    assert len(printed.err.splitlines()) <= 2 and "Traceback" not in printed.err and printed.out == ""
    assert os.listdir(tmp_path) == []


def test_data_errors_exit_3(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "photos" / "cats").mkdir(parents=True)
    assert run(["train", str(tmp_path / "photos"), "--out", str(tmp_path / "run")]) == 3
    assert "photos" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(
    subprocess.run([sys.executable, "-c", "import torch; raise SystemExit(torch.cuda.is_available())"]).returncode != 0,
    reason="there is a GPU here",
)
def test_a_gpu_that_is_not_there_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["train", "sinusoid", "--device", "cuda", "--out", str(tmp_path / "run")]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1 and not (tmp_path / "run").exists()


def test_traceback_is_shown_when_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["evaluate", "nowhere"], show_traceback=True) == 1
    assert "Traceback (most recent call last)" in capsys.readouterr().err


def test_a_fault_of_ours_is_said_to_be_one(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    import headstart.training.run

    def fail(*arguments: object) -> None:
        raise ZeroDivisionError("oh")

    monkeypatch.setattr(headstart.training.run, "open_run", fail)
    assert run(["evaluate", "x"]) == 1
    assert capsys.readouterr().err == (
        "error: ZeroDivisionError: oh\nthis is unexpected; --traceback shows where it comes from\n"
    )


def test_lists_are_one_line_each_or_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["list", "methods"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == [row.name for row in METHODS]
    assert "arXiv:1703.03400" in lines[0]
    assert run(["list", "methods", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert listed[0]["reference"] == METHODS[0].reference
    of_keras = {row["name"] for row in listed if row["keras"]}
    assert of_keras == set(keras_methods()) == {line.split()[0] for line in lines if "; keras" in line}
    assert {"maml", "reptile", "prototypes"} <= of_keras and "svm" not in of_keras
    assert run(["list", "networks"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == [row.usage for row in TRUNKS]


def test_a_run_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "run")
    assert run(["train", "sinusoid", "--steps", "5", *SMALL, "--out", out]) == 0
    printed = capsys.readouterr()
    assert "4 test tasks" in printed.out and f"run: {out}" in printed.out and "device: " in printed.err
    assert run(["train", "sinusoid", "--steps", "5", *SMALL, "--out", out, "--inner-rate", "0.3"]) == 2
    assert "--inner-rate: 0.01 -> 0.3" in capsys.readouterr().err
    assert run(["train", "sinusoid", "--steps", "6", *SMALL, "--out", out, "--json"]) == 0
    trained = json.loads(capsys.readouterr().out)
    assert trained["step"] == 6 and trained["test"]["metric"] == "mse"

    assert run(["evaluate", out, "--episodes", "4", "--json"]) == 0
    judged = json.loads(capsys.readouterr().out)
    assert judged["mean"] == trained["test"]["mean"] and judged["by_inner_step"].keys() >= {"0", "1", "10"}
    assert run(["evaluate", out, "--episodes", "4", "--seed", "1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["mean"] != judged["mean"]
    assert run(["evaluate", out, "--on", "curves", "--episodes", "4", "--json"]) == 0
    elsewhere = json.loads(capsys.readouterr().out)
    assert (elsewhere["trained_on"], elsewhere["on"], elsewhere["episodes"]) == ("sinusoid", "curves", 4)
    assert run(["evaluate", out, "--episodes", "4"]) == 0
    assert "mse" in capsys.readouterr().out

    (tmp_path / "run" / "results.png").unlink()
    assert run(["report", out, "--json"]) == 0
    assert str(tmp_path / "run" / "results.png") in json.loads(capsys.readouterr().out)
    assert (tmp_path / "run" / "results.png").exists()


def test_sources_of_a_matrix_are_made_alike(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = "matrix --train icons flags --methods nearest,frozen --channels 3 --image-size 8 --no-rotations".split()
    assert run([*words, "--test-tasks", "4", "--threads", "1", "--json", "--out", str(tmp_path)]) == 0
    table = json.loads(capsys.readouterr().out)["table"]
    names = [(method, None, on) for method in ("nearest", "frozen") for on in ("icons", "flags")]
    assert [(row["method"], row["trained_on"], row["on"]) for row in table] == names
    assert {row["tasks"] for row in table} == {4} and {row["than_untrained"] for row in table} == {None}


def test_flags_win_over_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "c.yaml").write_text(
        "tasks: sinusoid\nouter: {steps: 3}\nmodel: {hidden: [8]}\nrun: {evaluate_tasks: 4, test_tasks: 4, seed: 5}\n"
    )
    assert run(["train", "--config", str(tmp_path / "c.yaml"), "--seed", "6", "--out", str(tmp_path / "run")]) == 0
    written = json.loads((tmp_path / "run" / "config.json").read_text())
    assert (written["outer"]["steps"], written["run"]["seed"], written["model"]["hidden"]) == (3, 6, [8])
    (tmp_path / "bad.yaml").write_text("tasks: sinusoid\nouter: {steps: -3}\n")
    assert run(["train", "--config", str(tmp_path / "bad.yaml")]) == 2
    assert "bad.yaml" in capsys.readouterr().err


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_the_step_saves_and_exits_with_its_code(number: int, code: int, tmp_path: Path) -> None:
    out = tmp_path / "run"
    words = ["train", "sinusoid", "--steps", "1000000", "--save-every", "1000000", "--no-compile", *SMALL]
    words += ["--out", str(out)]
    process = subprocess.Popen(
        [sys.executable, "-m", "headstart", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        deadline = time.monotonic() + 120
        while not (out / "checkpoints" / "step-000000000.safetensors").exists():
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)
        time.sleep(0.5)
        process.send_signal(number)
        printed, told = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == code, told
    step = int(re.findall(r"stopped by SIG\w+ after step (\d+)", printed)[0])
    assert step > 0 and (out / "checkpoints" / f"step-{step:09d}.safetensors").exists()
    assert "Traceback" not in told and "\x1b" not in told + printed and "\r" not in told + printed
    assert len(told.splitlines()) <= 3


def test_the_module_is_the_command() -> None:
    done = _python("-m", "headstart", "list", "nothing")
    assert done.returncode == 2 and done.stderr.startswith("error: ") and done.stdout == ""
    assert _python("-m", "headstart", "--version").stdout.strip() == "0.1.0"
