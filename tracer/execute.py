"""Running somebody's engine and making a trace of what it records through `tensortrace.h`."""

import os
import signal
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from .assemble import Assembled
from .errors import UserError
from .importer import Options, import_dump

VARIABLE = "TENSORTRACE_OUT"
HEADER = "tensortrace.h"


@dataclass(frozen=True)
class Executed:
    """How the program ended (`returncode` is negative where a signal killed it), and the trace of it."""

    program: str
    returncode: int
    trace: Assembled

    @property
    def status(self) -> str:
        """How the program ended, in words."""
        if self.returncode >= 0:
            return f"{self.program} exited with {self.returncode}"
        try:
            name = signal.Signals(-self.returncode).name
        except ValueError:
            name = f"signal {-self.returncode}"
        return f"{self.program} was killed by {name}"

    @property
    def exit_code(self) -> int:
        """The program's, as a shell tells it; 2 where it went through and the trace is not whole."""
        if self.returncode < 0:
            return 128 - self.returncode
        return self.returncode or (2 if self.trace.end else 0)


def header_folder() -> Path:
    """Where `tensortrace.h` lies, for a compiler's -I: in the installed package, or in the source tree."""
    package = Path(__file__).resolve().parents[1]
    places = (package / "include", package / "examples" / "engine")
    return next((place for place in places if (place / HEADER).is_file()), places[0])


def execute(arguments: Sequence[str], output: Path | str, options: Options | None = None) -> Executed:
    """Run a program with recording on and write the trace `output`, also of one that crashes.

    The program has our standard input, output and error, so what it prints comes as it prints it.  UserError
    where it cannot be started or records nothing; a spool that could not be made a trace of stays.
    """
    if not arguments:
        raise UserError("nothing to run: put the program and its arguments behind --")
    output, program = Path(output), Path(arguments[0]).name
    spool = output.with_name(f"{output.name}.ttr").absolute()
    if spool.exists():
        raise UserError(f"{spool} is of an earlier run: `trace import` it or delete it")
    returncode = _run(arguments, spool)
    if not spool.exists():
        how = "" if returncode == 0 else f" (it ended with {returncode})"
        raise UserError(f"{program} recorded nothing{how}: is tensortrace.h in it, and any tt_ call reached?")
    try:
        trace = import_dump(spool, output, replace(options or Options(), format="ttr"))
    except UserError as error:
        raise UserError(f"{error} (what was recorded is in {spool})") from error
    spool.unlink()
    others = [str(path) for path in sorted(spool.parent.glob(f"{spool.name}.*"))]
    if others:
        note = f"other processes of the program recorded, too: {', '.join(others)}"
        trace = replace(trace, notes=(*trace.notes, note))
    return Executed(program, returncode, trace)


def _run(arguments: Sequence[str], spool: Path) -> int:
    try:
        process = subprocess.Popen(arguments, env={**os.environ, VARIABLE: str(spool)})
    except OSError as error:
        raise UserError(f"cannot run {arguments[0]}: {error.strerror}") from error
    while True:
        try:
            return process.wait()
        except KeyboardInterrupt:  # the program got it, too: what it recorded until now is wanted
            continue
