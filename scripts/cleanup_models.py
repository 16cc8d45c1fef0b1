#!/usr/bin/env python3
"""Delete what is obsolete on this machine, or list it: the same as `content-arena cleanup ...`."""

import sys

from content_arena.cli.main import main

sys.argv[1:1] = ["cleanup"]
main()
