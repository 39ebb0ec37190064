"""`python -m bus`: the command line."""

from bus.cli import main

if __name__ == "__main__":
    main()
