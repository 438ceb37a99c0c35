"""The kernel lab: boots other kernels in virtual machines and runs the live tests on them.

`make vm` starts it (`__main__`). A machine is a row of kernels.yaml (`rows`). It gets a box
(`boxes`), boots in libvirt (`libvirt`) and runs the tests (`machine`); `report` counts and prints
the results. Each run removes its own machines and images (`host`), and the last of several
concurrent runs removes what they share (`shared`). Needs only the standard library and
python3-yaml.
"""
