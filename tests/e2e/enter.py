# SPDX-License-Identifier: Apache-2.0
"""`enter.py CGROUP COMMAND...`: runs the command in that control group."""
import os
import sys

import cgroups

cgroups.enter(sys.argv[1])
os.execvp(sys.argv[2], sys.argv[2:])
