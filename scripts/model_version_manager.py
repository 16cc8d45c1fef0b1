#!/usr/bin/env python3
"""Save, list, prune and restore model versions: the same as `content-arena versions ...`."""

import sys

from content_arena.cli.main import main

sys.argv[1:1] = ["versions"]
main()
