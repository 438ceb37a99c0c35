"""Run netbpf: the command `netbpf`, and `python3 -m netbpf`."""

import sys

from netbpf.run.ready import remove_stale_file


def main() -> None:
    """Run the command line of this process."""
    remove_stale_file(sys.argv[1:])
    from netbpf.cli import main as run

    run()


if __name__ == "__main__":
    main()
