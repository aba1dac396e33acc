"""The command `vaultml-operator`."""

import argparse
from importlib.metadata import version


def main() -> None:
    """Print the version; the operator's commands arrive with the operator."""
    parser = argparse.ArgumentParser(prog="vaultml-operator", description=__doc__)
    parser.add_argument("--version", action="version", version=f"vaultml-operator {version('vaultml')}")
    parser.parse_args()
    parser.print_help()
