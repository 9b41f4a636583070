"""The entry point of `python -m yolods COMMAND ...` and `deepspeed --module yolods COMMAND ...`."""

import contextlib
import os
import sys


def run() -> None:
    """Run the command line, and exit without the interpreter's teardown.

    During the teardown, threads of gloo and torch that still run take two seconds to end, and
    occasionally hang or abort the process: with torch 2.13 the exit status was -6 instead of ours
    in 1 of 14 starts. Everything of ours is closed by then, and the streams are flushed here.
    """
    try:
        from yolods.system.streams import open_all

        # Before the import of `cli`, which may print and opens files.
        open_all()
        # Imported here, so that Ctrl-C during the import also ends in a status and no traceback.
        from yolods.cli import main

        code = main()
    except KeyboardInterrupt:
        code = 130  # 128 + SIGINT, as a shell reports it
    except SystemExit as leaving:  # raised by argparse after --help
        # As in Python: None is success, and anything but a number is a failure.
        code = leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
    except BaseException:
        # `os._exit` below leaves no time for the interpreter to print the traceback itself.
        sys.excepthook(*sys.exc_info())
        code = 1
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # the terminal may be gone
            stream.flush()
    os._exit(code)


if __name__ == "__main__":
    run()
