"""The kernel lab: boots other kernels in virtual machines and runs the live tests on them.

`make vm` is the way in (`__main__`). A machine is a row of kernels.yaml (`rows`); it gets a box
(`boxes`), boots and runs the tests (`machine`) in libvirt (`libvirt`), and what came of it is
counted and shown (`report`). What is left is taken away: by each run its own (`host`), by the last
of several what they shared (`shared`). Only Python's own library and python3-yaml are needed.
"""
