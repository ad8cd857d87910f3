"""`vcell VERB key=value ...`, and the same as `python -m vcell.VERB`: dispatches to the command before anything heavy is loaded."""

from __future__ import annotations

import ast
import atexit
import gc
import importlib
import os
import sys
from pathlib import Path

from vcell import __version__
from vcell.errors import nearest
from vcell.process.stopping import listen
from vcell.system import cores

# in the order in which they are used
VERBS = (
    "inspect",
    "prepare",
    "train",
    "infer",
    "evaluate",
    "package",
    "crossval",
    "simulate",
    "genes",
    "embed",
    "table",
    "download",
    "runs",
    "config",
    "doctor",
)
MODULES = {"config": "cli.settings"}  # of commands whose name another module has
PACKAGE = Path(__file__).parents[1]
COMPLETION = ("-sc", "--shell-completion")


def main(verb: str) -> None:
    """Runs the command `verb` with the arguments in `sys.argv`."""
    # importing makes a million objects that stay: the collector would look through them a thousand times, a quarter of the start
    gc.set_threshold(50_000, 20, 20)
    # a thread that has computed waits for the interpreter no longer than this, where another draws or loads: five milliseconds are usual
    sys.setswitchinterval(0.0005)
    os.environ["MPLBACKEND"] = "agg"  # pictures go to files: a notebook's way to show them may be missing here
    atexit.register(gc.freeze)  # nor at the end, when all memory goes back at once: half a second
    listen(verb)  # before anything is loaded that takes seconds
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if cores() < available:  # a share of the machine: numerical libraries would start a thread for each of its cores
        os.environ.setdefault("OMP_NUM_THREADS", str(cores()))
    from vcell.cli.launch import launch

    launch(verb, importlib.import_module(f"vcell.{MODULES.get(verb, verb)}").run)


def console() -> None:
    """The console script `vcell`."""
    arguments = sys.argv[1:]
    if not arguments or arguments[0] in ("--help", "-h", "help"):
        print(overview())
    elif arguments[0] in ("--version", "-V"):
        print(f"vcell {__version__}")
    elif arguments[0].split("=")[0] in COMPLETION:
        _complete(arguments)
    elif arguments[0] in VERBS:
        # as if the command's own file had been started: Lightning starts its other processes by this name
        sys.argv = [str(PACKAGE / f"{arguments[0]}.py"), *arguments[1:]]
        main(arguments[0])
    else:
        print(
            f"error: vcell has no command {arguments[0]!r}.{nearest(arguments[0], VERBS)} Commands: {', '.join(VERBS)}",
            file=sys.stderr,
        )
        sys.exit(2)


def overview() -> str:
    """What `vcell --help` prints: a line for each command."""
    lines = [
        "vcell predicts how single cells respond to genetic perturbations.",
        "",
        "  vcell COMMAND key=value ...",
        "",
        "Commands:",
    ]
    lines += [f"  {verb:<10} {_about(verb)}" for verb in VERBS]
    lines += ["", "Settings of a command:  vcell COMMAND --help    (python -m vcell.COMMAND is the same command)"]
    lines += [
        'Completion with Tab:    eval "$(vcell -sc install=bash)"',
        "From Python:            import vcell; help(vcell)",
    ]
    return "\n".join(lines)


def _about(verb: str) -> str:
    """The first line of a command's module, without loading it."""
    text = PACKAGE.joinpath(*MODULES.get(verb, verb).split(".")).with_suffix(".py").read_text(encoding="utf-8")
    return (ast.get_docstring(ast.parse(text)) or "").splitlines()[0].split(": ", 1)[-1]


def _complete(arguments: list[str]) -> None:
    """Answers the shell: names of commands first, then what Hydra knows of the command's settings."""
    line = os.environ.get("COMP_LINE", "")
    typed = line.split()
    verb = typed[1] if len(typed) > 1 and typed[1] in VERBS and (len(typed) > 2 or line.endswith(" ")) else None
    installs = any("install" in a for a in arguments)
    if verb is None and not installs:
        start = typed[1] if len(typed) > 1 else ""
        print("\n".join(name for name in VERBS if name.startswith(start)))
        return
    if verb is not None:
        os.environ["COMP_LINE"] = line.replace(f" {verb}", "", 1)
    sys.argv = [sys.argv[0], *arguments]
    main(verb or "train")
