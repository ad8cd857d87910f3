"""A command run: its arguments checked, its configuration composed by Hydra, its errors said as one line."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from collections.abc import Callable

import hydra
from omegaconf import DictConfig
from omegaconf.errors import ConfigKeyError, MissingMandatoryValue, OmegaConfBaseException

from vcell.cli.arguments import check_overrides, readable
from vcell.cli.kinds import with_names
from vcell.cli.lookup import look_up
from vcell.config import CONFIG_DIR, with_home, with_trainer
from vcell.errors import NO_ROOM, VcellError
from vcell.process.stopping import tell

DISK_FULL = (*NO_ROOM, errno.EROFS, errno.EIO)
NO_NAME = (errno.ENAMETOOLONG, errno.ENOTDIR, errno.ELOOP)


def launch(verb: str, run: Callable[[DictConfig], None]) -> None:
    """Runs `run` with the configuration of `verb` and the command line's overrides.

    A `VcellError` is printed as one message; the exit code is then 2.
    """
    _speak_plainly()
    arguments = sys.argv[1:]
    try:
        if os.environ.get("NUMBA_DISABLE_JIT", "0") not in ("", "0"):
            raise VcellError("NUMBA_DISABLE_JIT switches off the compiled code that vcell computes with: unset it")
        if {"--help", "-h"} & set(arguments):
            from vcell.cli.usage import usage

            print(usage(verb, arguments))
            return
        arguments = readable(verb, arguments)
        plain = check_overrides(verb, arguments)
        sys.argv[1:] = with_trainer(arguments)
    except VcellError as error:
        fail(error)
    except BrokenPipeError:
        _gone()

    def guarded(config: DictConfig) -> None:
        try:
            config = with_names(verb, with_home(config))
            look_up(verb, config)
            run(config)
            sys.stdout.flush()
        except VcellError as error:
            fail(error)
        except MissingMandatoryValue as error:
            fail(VcellError(f"vcell.{verb} needs {error.full_key}=VALUE. Explained by: python -m vcell.{verb} --help"))
        except KeyboardInterrupt:
            tell(f"interrupted; the same command resumes: python -m vcell.{verb} ...")
            sys.exit(130)
        except BrokenPipeError:
            _gone()
        except (ConfigKeyError, OmegaConfBaseException) as error:
            fail(VcellError(f"the configuration cannot be used: {' '.join(str(error).split())}"))
        except OSError as error:
            if error.errno not in (*DISK_FULL, *NO_NAME, errno.EACCES, errno.EPERM):
                raise
            fail(VcellError(f"{str(error.filename or 'a file')[:100]}: {error.strerror}. {_remedy(error, verb)}"))
        except RuntimeError as error:
            if "can't start new thread" not in str(error):
                raise
            fail(
                VcellError(
                    f"vcell.{verb} could not start a thread: memory or processes are limited here (ulimit -v, ulimit -u). Raise the limit, "
                    "or use fewer threads or workers"
                )
            )
        except MemoryError:
            fail(
                VcellError(
                    f"vcell.{verb} ran out of memory. Use fewer threads or workers, or a machine with more memory"
                )
            )

    if plain is not None:  # composed already: Hydra would do that twice more
        guarded(plain)
    else:
        hydra.main(version_base="1.3", config_path=str(CONFIG_DIR), config_name=verb)(guarded)()


def _remedy(error: OSError, verb: str) -> str:
    if error.errno in DISK_FULL:
        return f"Free some space and run the same command again: python -m vcell.{verb} ..."
    if error.errno in NO_NAME:
        return "This cannot be the name of a file: check it"
    return "Ask for permission, or choose another folder"


def _speak_plainly() -> None:
    """Characters that a console cannot display are replaced instead of causing an error; what is said to a closed stream goes nowhere."""
    # or the next file that is opened would be taken for the stream
    while (number := os.open(os.devnull, os.O_RDWR)) < 3:
        pass
    os.close(number)
    sys.stdout, sys.stderr = sys.stdout or open(os.devnull, "w"), sys.stderr or open(os.devnull, "w")  # noqa: SIM115, PTH123
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, ValueError):
            stream.reconfigure(errors="replace")  # type: ignore[union-attr]


def _gone() -> None:
    """The reader of our output has closed the pipe (``| head``): exit silently."""
    with contextlib.suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(141)


def fail(error: VcellError) -> None:
    tell(f"error: {error}")
    sys.exit(2)
