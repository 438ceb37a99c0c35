"""What the operating system does for this process: system calls, forks, privileges."""
