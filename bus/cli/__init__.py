"""The command line, `python -m bus`: send, follow, work and look, at home in a pipe.

What looks, sends or takes jobs speaks REST, so it opens no inbox: doing so in the name of a client takes nothing of
what waits for it. `tail` is a client. What a program reads goes to stdout; what a person reads, beside it, to stderr.

Exit codes: 0 done, 1 something was refused or failed, 2 the bus can't be reached or the command is wrong, 3 a request
has no answer yet, 128 + n ended by signal n.
"""

from bus.cli.main import cli, main

__all__ = ["cli", "main"]
