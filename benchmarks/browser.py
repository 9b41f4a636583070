"""TensorBoard on a folder, and what a browser without a screen sees of it."""

from __future__ import annotations

import resource
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
"""Names of a browser that has `--headless`."""
PAGE_SECONDS = 60
"""Seconds of the page's own clock, which passes faster than a real one where nothing loads."""
ADDRESSES = 64 * 2**30
"""Bytes of virtual memory without which Chromium does not start; it fills little of them."""
LONGEST = 90.0
"""Seconds after which TensorBoard or the browser is given up."""


def find_browser() -> str | None:
    """The path of an installed browser; None if there is none."""
    return next(filter(None, map(shutil.which, BROWSERS)), None)


def why_no_browser() -> str | None:
    """Why no page can be seen here; None if one can."""
    if find_browser() is None:
        return f"no browser is installed: {', '.join(BROWSERS)}"
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit != resource.RLIM_INFINITY and limit < ADDRESSES:
        return f"ulimit -v is {limit >> 30} GiB, but Chromium reserves {ADDRESSES >> 30} GiB"
    return None


@contextmanager
def tensorboard_on(folder: Path, log: Path) -> Iterator[str]:
    """TensorBoard on a folder of runs; yields its address when it answers.

    Args:
        log: file for its output.

    Raises:
        RuntimeError: it ended, or did not answer in time.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    # By its name, because pages show the folder as it was given.
    words = [sys.executable, "-m", "tensorboard.main", "--logdir", folder.name]
    # Its own reader, and not the data server, which is another process. It reads everything before
    # it answers; otherwise a page might show half of a run.
    words += ["--load_fast", "false", "--reload_task", "blocking", "--reload_interval", "0"]
    words += ["--host", "127.0.0.1", "--port", str(port)]
    with open(log, "w", encoding="utf-8") as out:
        process = subprocess.Popen(words, cwd=folder.parent, stdout=out, stderr=subprocess.STDOUT)
    try:
        address = f"http://127.0.0.1:{port}/"
        _wait_for_answer(address, process, log)
        yield address
    finally:
        process.terminate()
        process.wait(LONGEST)


def _wait_for_answer(address: str, process: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + LONGEST
    while time.monotonic() < end and process.poll() is None:
        with suppress(URLError, TimeoutError, ConnectionError), urlopen(address, timeout=5):
            return
        time.sleep(0.2)
    raise RuntimeError(f"TensorBoard does not answer:\n{log.read_text(encoding='utf-8')}")


def page(browser: str, address: str, profile: Path) -> str:
    """The document of a page after its scripts have run, as HTML.

    Args:
        browser: path of the browser.
        profile: folder for what the browser writes.

    Raises:
        RuntimeError: the browser failed.
    """
    return _browse(browser, address, profile, "--dump-dom")


def picture(
    browser: str, address: str, profile: Path, file: Path, size: tuple[int, int] = (1280, 900)
) -> None:
    """Write a page as a PNG of this many pixels; raises as `page` does."""
    width, height = size
    _browse(browser, address, profile, f"--screenshot={file}", f"--window-size={width},{height}")


def _browse(browser: str, address: str, profile: Path, *flags: str) -> str:
    # A root user has no sandbox, and containers have a small /dev/shm.
    words = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
    # Without WebGL, TensorBoard draws its curves within the page's own time.
    words += ["--disable-3d-apis", "--hide-scrollbars", f"--user-data-dir={profile}"]
    words += ["--run-all-compositor-stages-before-draw"]
    words += [f"--virtual-time-budget={1000 * PAGE_SECONDS}", *flags, address]
    done = subprocess.run(words, capture_output=True, text=True, timeout=LONGEST, check=False)
    if done.returncode:
        raise RuntimeError(f"{browser} ended with {done.returncode}:\n{done.stderr[-2000:]}")
    return done.stdout
