"""`python -m yolods WORD ...` and `deepspeed --module yolods WORD ...`: what every rank runs."""

import contextlib
import os
import sys


def run() -> None:
    """Run the command line and leave without the interpreter's teardown.

    Threads of gloo and torch that still run then take two seconds to end, and now and then hang or abort the process:
    exit status -6 in place of ours, once in 14 starts of torch 2.13. Everything of ours is closed by then.
    """
    try:
        from yolods.system.streams import open_all

        open_all()
        from yolods.cli import main  # here, where Ctrl-C during the import is answered as well

        code = main()
    except KeyboardInterrupt:
        code = 130
    except SystemExit as leaving:  # argparse, after --help
        code = leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        code = 1
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # a screen that is gone
            stream.flush()
    os._exit(code)


if __name__ == "__main__":
    run()
