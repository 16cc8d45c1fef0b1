#!/usr/bin/env python3
"""Attack the filter and retrain it, cycle after cycle: the same as `content-arena coevolve ...`."""

import sys

from content_arena.cli.main import main

sys.argv[1:1] = ["coevolve"]
main()
