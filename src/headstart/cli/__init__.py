"""The command line: short functions over `headstart.training`, each imported when it is called."""

from headstart.cli.app import main as main
