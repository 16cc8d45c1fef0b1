"""`python -m content_arena`: the same as the command `content-arena`."""

from content_arena.cli.main import main

if __name__ == "__main__":
    main()
