"""The command that exports: a short function over `headstart.exporting`."""

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter
from cyclopts.types import PositiveInt

from headstart.cli.output import print_json

Flag = Annotated[bool, Parameter(negative="")]
Json = Annotated[bool, Parameter(name="--json", negative="", show_default=False)]


def export(
    model: Path,
    /,
    *,
    to: Literal["onnx", "torch", "module"],
    out: Path,
    task: str | None = None,
    int8: Flag = False,
    learner: Flag = False,
    ways: PositiveInt | None = None,
    shots: PositiveInt | None = None,
    as_json: Json = False,
) -> None:
    """Write what was adapted, or what learns, as files that need no headstart.

    They give the answers of headstart predict: that is tried before anything is written. preparation.json says how raw
    data become what they take, and README.md what they are.

    Args:
        model: A folder that headstart adapt has written; with --learner, a run's folder.
        to: onnx, for onnxruntime in any language (extra export); torch, a program of torch.export; or module, the
            source of a plain PyTorch module and its weights.
        out: The folder to write; new or empty.
        task: Which of the learned tasks, where there are several.
        int8: Of onnx, with 8-bit products: smaller, and less exact.
        learner: Export what learns: from a support set and queries to answers, adaptation inside.
        ways: With --learner, the number of classes. Default: as trained.
        shots: With --learner, the support examples of each class, where their number has to be known. Default: as
            trained.
        as_json: Print the result as JSON.
    """
    from headstart.errors import ConfigError
    from headstart.exporting.export import export
    from headstart.training.files import explained, make_folder, write

    with explained("use", out):
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise ConfigError(f"--out {out} is not empty; choose a new folder")
    files = export(model, to, task=task, int8=int8, learner=learner, ways=ways, shots=shots)
    make_folder(out)
    for name, data in files.items():
        write(out / name, data)
    if as_json:
        print_json({"out": str(out), "files": {name: len(data) for name, data in files.items()}})
    else:
        print(f"exported {', '.join(files)}: {out}")
