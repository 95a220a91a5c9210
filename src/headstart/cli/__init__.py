"""The command line."""

from headstart.cli.app import main as main
