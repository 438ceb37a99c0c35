#!/bin/sh
# Installs the dependencies of the live tests; a box of mkbox.sh already has them.
# Runs in the machine as root, with the project in /project.
set -eu
exec sh "$(dirname "$0")/../scripts/setup.sh" guest
