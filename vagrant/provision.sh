#!/bin/sh
# Makes a machine ready for the live tests; on a box of mkbox.sh there is nothing left to do.
# Runs inside the machine as root, with the project in /project.
set -eu
exec sh "$(dirname "$0")/../scripts/setup.sh" guest
