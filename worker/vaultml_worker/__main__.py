"""The command `vaultml`, and `python -m vaultml_worker`."""

from vaultml_common.start import end_on_sigterm


def main() -> None:
    """Run the command."""
    end_on_sigterm()
    from vaultml_worker import cli

    cli.main()


if __name__ == "__main__":
    main()
