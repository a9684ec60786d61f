"""The command `voxelwave`: a table of commands, each from the folder of its job.

Nothing heavy is imported before one runs: these modules hold signatures and help alone. Their annotations are no text
(`from __future__ import annotations`), which typer would evaluate at every start, twice.
"""

from __future__ import annotations

import inspect as signatures
import io
import sys
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise

import typer

from voxelwave.engine.signals import Stopped, deaf_at_exit, stopped_by_signals
from voxelwave.errors import DivergedError, InputError
from voxelwave.jobs.compare_logs.command import compare_logs
from voxelwave.jobs.doctor.command import doctor
from voxelwave.jobs.embed.command import embed
from voxelwave.jobs.export.command import export
from voxelwave.jobs.finetune.command import finetune
from voxelwave.jobs.inspect.command import inspect
from voxelwave.jobs.phantom import command as phantom
from voxelwave.jobs.predict.command import predict
from voxelwave.jobs.prepare.command import prepare
from voxelwave.jobs.pretrain.command import pretrain
from voxelwave.jobs.probe.command import probe
from voxelwave.jobs.reconstruct import command as reconstruct
from voxelwave.jobs.subsample import command as subsample
from voxelwave.jobs.synthesize.command import synthesize
from voxelwave.ops.loggers import printable
from voxelwave.ops.threads import set_up_threads

Commands = Mapping[str, Callable[..., None]]
COMMANDS: Commands = {
    "pretrain": pretrain,
    "finetune": finetune,
    "synthesize": synthesize,
    "prepare": prepare,
    "predict": predict,
    "inspect": inspect,
    "export": export,
    "doctor": doctor,
    "probe": probe,
    "embed": embed,
    "compare-logs": compare_logs,
}
PHANTOM: Commands = {
    "train": phantom.train,
    "preview": phantom.preview,
    "evaluate": phantom.evaluate,
    "embed": phantom.embed,
}
RECONSTRUCT: Commands = {
    "synthesize": reconstruct.synthesize,
    "train": reconstruct.train,
    "run": reconstruct.run,
    "evaluate": reconstruct.evaluate,
    "export-results": reconstruct.export_results,
}
SUBSAMPLE: Commands = {"train": subsample.train, "study": subsample.study}
GROUPS = {
    "phantom": (PHANTOM, "Contrastive embeddings of 2D multi-coil MRI phantoms."),
    "reconstruct": (RECONSTRUCT, "Images of undersampled multi-coil k-space."),
    "subsample": (SUBSAMPLE, "Images of some frequencies, whose choice may be learned."),
}


def main(command: Callable[[], None] | None = None) -> None:
    """Run a command; what the user can mend is one line on stderr and exit code 2, without a traceback.

    A signal that asks to stop is one line, too.
    """
    if "--help" not in sys.argv and (limited := set_up_threads()):
        typer.echo(limited, err=True)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a sign that a terminal's encoding lacks is no error
            stream.reconfigure(errors="backslashreplace")
    deaf_at_exit()
    with stopped_by_signals() as stopping:
        try:
            _refuse_empty_paths(sys.argv)
            (command or app)()
        except InputError as error:
            _end(str(error), 2)
        except OSError as error:
            _end(f"{error.filename or 'the system'}: {error.strerror or error}", 2)
        except DivergedError as error:
            _end(str(error), 1)
        except Stopped as stopped:
            _end(f"stopped by {stopped}", stopping.exit_code)


def foqus_train() -> None:
    """`voxelwave phantom train`, but for the run as it was first described."""
    main(commands_of({"foqus-train": phantom.foqus_train}))


def commands_of(table: Commands, text: str = "") -> typer.Typer:
    """Return the commands of a table; one that needs an argument and is given nothing shows its help."""
    commands = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=text)
    for name, command in table.items():
        parameters = signatures.signature(command).parameters.values()
        commands.command(name, no_args_is_help=any(p.default is p.empty for p in parameters))(command)
    return commands


def _refuse_empty_paths(words: Sequence[str]) -> None:
    """Raise InputError for an empty text in place of a path, which would be the working folder."""
    for before, word in pairwise(words):
        if not word and (not before.startswith("-") or before in ("--out", "--out-dir")):
            raise InputError("an argument is empty: is a variable of the shell not set? The working folder is '.'")


def _end(message: str, code: int) -> None:
    print(printable(f"voxelwave: {message}"), file=sys.stderr)  # noqa: T201
    raise SystemExit(code)


app = commands_of(COMMANDS, "Self-supervised 3D pretraining for brain MRI and CT.")
for _name, (_table, _text) in GROUPS.items():
    app.add_typer(commands_of(_table, _text), name=_name)
