"""The door to a network of one's own: ``FILE.py:factory``, where the factory returns a `Trunk`."""

import hashlib
import sys
from contextlib import redirect_stdout
from pathlib import Path
from types import ModuleType

from headstart.errors import ConfigError, FileError
from headstart.models.trunks.trunk import Trunk, changed


def py(where: str, sha256: str | None = None) -> Trunk:
    """Run a Python file of your own, and call a function in it without arguments, which returns the network.

    Args:
        where: ``FILE.py:factory``; the factory returns what `headstart.of_images` or `headstart.of_texts` makes.
        sha256: what the trunk must be; a file of other contents is then not run.

    Raises:
        FileError: no such file, or, where ``sha256`` is given, another one.
        ConfigError: no such function in it, or it fails, or returns something else.
    """
    path, _, name = where.rpartition(":")
    file = Path(path).expanduser()
    try:
        program = file.read_bytes()
    except OSError as error:
        raise FileError(f"cannot read {file}: {error.strerror or error}") from error
    own = hashlib.sha256(program).hexdigest()
    # the first half of a digest is the file's, which can be known before it is run, the second the function's
    if sha256 is not None and sha256[:32] != own[:32]:
        raise changed(where)
    module = ModuleType(f"{file.stem}_{own[:16]}")
    module.__file__ = str(file)
    sys.modules[module.__name__] = module  # where dataclasses look for what their annotations mean
    try:
        # what is run is what was hashed, and what it prints is no answer of ours
        with redirect_stdout(sys.stderr):
            exec(compile(program, str(file), "exec"), vars(module))
            made = getattr(module, name)()
    except (Exception, SystemExit) as error:  # whatever the user's program does
        raise ConfigError(f"{where} fails: {type(error).__name__}: {error}") from error
    if not isinstance(made, Trunk):
        raise ConfigError(
            f"{where} returns a {type(made).__name__}, which does not say what it takes; return"
            " headstart.of_images(module, size=…, mean=…, std=…) or headstart.of_texts(module, tokenize, pad=…)"
        )
    # two functions of one file may give the same weights, and do something else with them
    of_function = hashlib.sha256(f"{name} {made.sha256}".encode()).hexdigest()
    return made._replace(source=where, sha256=own[:32] + of_function[:32])
