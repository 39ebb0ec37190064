"""`completion`: a `bus` command for the shell, whose verbs and options the Tab key completes.

The scripts ask this program for what fits, in click's own protocol (click.shell_completion).
"""

from __future__ import annotations

import os
import shlex
import sys

import click
from click.shell_completion import get_completion_class

from bus.settings import ROOT

VARIABLE = "_BUS_COMPLETE"
"""Set by the scripts: which shell asks."""

_BASH = """\
bus() { PYTHONPATH=%(root)s %(python)s -m bus "$@"; }

_bus_completion() {
    local line kind value
    COMPREPLY=()
    while IFS= read -r line; do
        IFS=, read -r kind value <<< "$line"
        case $kind in
            dir) compopt -o dirnames ;;
            file) compopt -o default ;;
            plain) COMPREPLY+=("$value") ;;
        esac
    done < <(COMP_WORDS="${COMP_WORDS[*]}" COMP_CWORD=$COMP_CWORD %(variable)s=bash_complete bus)
}

complete -o nosort -F _bus_completion bus
"""

_ZSH = """\
bus() { PYTHONPATH=%(root)s %(python)s -m bus "$@"; }

_bus_completion() {
    local -a found described plain
    local kind key about
    found=("${(@f)$(COMP_WORDS="${words[*]}" COMP_CWORD=$((CURRENT-1)) %(variable)s=zsh_complete bus)}")
    for kind key about in ${found}; do
        case $kind in
            dir) _path_files -/ ;;
            file) _path_files -f ;;
            plain) if [[ $about == _ ]]; then plain+=("$key"); else described+=("$key:$about"); fi ;;
        esac
    done
    (( $#described )) && _describe -V unsorted described -U
    (( $#plain )) && compadd -U -V unsorted -a plain
}

compdef _bus_completion bus
"""

_FISH = """\
function bus
    PYTHONPATH=%(root)s %(python)s -m bus $argv
end

function _bus_completion
    for line in (%(variable)s=fish_complete COMP_WORDS=(commandline -cp) COMP_CWORD=(commandline -t) bus)
        set -l parts (string split -m 1 "," -- $line)
        switch $parts[1]
            case dir
                __fish_complete_directories $parts[2]
            case file
                __fish_complete_path $parts[2]
            case plain
                echo $parts[2]
        end
    end
end

complete --no-files --command bus --arguments "(_bus_completion)"
"""

SCRIPTS = {"bash": _BASH, "zsh": _ZSH, "fish": _FISH}


@click.command()
@click.argument("shell", type=click.Choice(list(SCRIPTS)))
def completion(*, shell: str) -> None:
    """Print what makes `bus` a command of SHELL, with completion of verbs and options by the Tab key.

    Put it where the shell reads it at its start, and open a new shell.
    """
    names = {"python": shlex.quote(sys.executable), "root": shlex.quote(str(ROOT)), "variable": VARIABLE}
    click.echo(SCRIPTS[shell] % names, nl=False)


def answer(cli: click.Command) -> bool:
    """Answer a shell that asks what fits; False when none does."""
    asked = os.environ.get(VARIABLE, "")
    shell = asked.removesuffix("_complete")
    found = get_completion_class(shell) if asked.endswith("_complete") else None
    if found is None:
        return False
    click.echo(found(cli, {}, "bus", VARIABLE).complete())
    return True
