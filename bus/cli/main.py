"""The commands, and the process that runs one: refusals, signals and closed pipes become exit codes."""

from __future__ import annotations

import os
import signal
import sys

import click

from bus import __version__
from bus.cli.archive import archive
from bus.cli.audit import audit
from bus.cli.backup import backup, restore_
from bus.cli.claim import claim
from bus.cli.completion import answer, completion
from bus.cli.database import copy, migrate, new_epoch
from bus.cli.dead_letters import dead_letters
from bus.cli.demo import demo
from bus.cli.doctor import doctor
from bus.cli.examples import EXAMPLES
from bus.cli.health import health
from bus.cli.integrations import integrations
from bus.cli.keys import auth, keys
from bus.cli.look import clients, log, queues, status, thread
from bus.cli.process import Ended
from bus.cli.profile import profile
from bus.cli.replay import replay, replays
from bus.cli.rotate_key import rotate_key
from bus.cli.search import search
from bus.cli.sections import EXIT_CODES, Sections, teach
from bus.cli.send import request, send
from bus.cli.tail import tail
from bus.cli.webhooks import webhooks
from bus.client import Offline
from bus.errors import BusError, StartRefused
from bus.storage.sqlite_backup import NoCopy


@click.group(
    cls=Sections, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120}, epilog=EXIT_CODES
)
@click.version_option(__version__, prog_name="multi-agent-bridge")
@click.pass_context
def cli(context: click.Context) -> None:
    """Talk to a message bus from the shell. Each verb's --help has examples.

    \b
    python -m bus send --to browser "hello"             one message
    python -m bus tail --client browser                 follow what comes for a client
    python -m bus claim builds --exec ./build.sh        work on the jobs of a queue
    python -m bus request --to reviewer "is it good?"   ask, and wait for the answer

    MESSAGE_BUS_URL and MESSAGE_BUS_API_KEY say where the bus is and who asks. What a program reads goes to stdout, in a pipe
    or with --json as JSON, one object a line; the rest goes to stderr. NO_COLOR=1 leaves colours out.
    """
    if os.environ.get("NO_COLOR"):
        context.color = False


cli.add_section("Messages", [send, request, tail, claim])
cli.add_section("Look", [status, health, log, search, thread, clients, queues])
cli.add_section("Mend", [dead_letters, replay, replays, archive])
cli.add_section("Webhooks", [webhooks, integrations])
cli.add_section("Keys and audit", [keys, auth, audit])
cli.add_section("On the bus's machine", [doctor, backup, restore_, migrate, copy, new_epoch, rotate_key])
cli.add_section("Learn", [demo, profile, completion])
teach(cli, EXAMPLES)


def main() -> None:
    """Run the command line, and exit."""
    if answer(cli):
        return
    try:
        with cli.make_context("python -m bus", sys.argv[1:]) as context:
            cli.invoke(context)
        code = 0
    except click.exceptions.Exit as end:
        code = end.exit_code
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except (click.Abort, KeyboardInterrupt):
        code = 128 + signal.SIGINT
    except Ended as end:
        code = end.exit_code
    except BusError as error:
        click.echo(error.sentence, err=True)
        code = 2 if isinstance(error, Offline) or error.field == "url" else 1
    except (StartRefused, NoCopy) as error:
        click.echo(str(error), err=True)
        code = 1
    except BrokenPipeError:
        # Nobody reads any more. What is left in the buffer must not fail again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 128 + signal.SIGPIPE
    sys.exit(code)
