"""The entry point of `groupmix-sam`, outside of the package: importing the package imports torch, which takes seconds.

While `starting` is true the package leaves that out. The command line makes up for it once it knows that a command runs, so
that --help, --version, completion and wrong usage do not wait for torch.
"""

__all__ = ["main", "starting"]

starting = False


def main() -> None:
    """Run the command line."""
    global starting
    starting = True
    try:
        from groupmix_sam import cli
    finally:
        starting = False
    cli.main()
