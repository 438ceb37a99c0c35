"""Run netbpf as a module: `python3 -m netbpf`."""

from netbpf.cli import main

if __name__ == "__main__":
    main()
