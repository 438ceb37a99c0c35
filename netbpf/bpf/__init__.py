"""From C text to a program in the kernel, and its data back: compile, load, attach, read."""
