"""The command `vaultml-operator`, and `python -m vaultml_operator`."""

from vaultml_common.start import end_on_sigterm


def main() -> None:
    """Run the command."""
    end_on_sigterm()
    from vaultml_operator import cli

    cli.main()


if __name__ == "__main__":
    main()
