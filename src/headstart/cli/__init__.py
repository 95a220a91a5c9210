"""The command line: short functions over `headstart.train`, each imported when it is called."""

from headstart.cli.app import main as main
