"""quiet: stdout carries results alone."""

import os
import subprocess
import sys

import pytest

from flowplat.quiet import quiet

SAYS = """
import os, subprocess, sys
from flowplat.quiet import quiet

print("before")
with quiet():
    print("printed")
    os.write(1, b"written\\n")
    subprocess.run(["echo", "called"], check=True)
    try:
        with quiet():
            os.write(1, b"within\\n")
            raise ValueError
    except ValueError:
        os.write(1, b"without\\n")
print("after")
os.write(1, b"the end\\n")
"""


def test_all_that_is_said_while_it_lasts_goes_to_stderr() -> None:
    done = subprocess.run([sys.executable, "-u", "-c", SAYS], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["before", "after", "the end"]
    assert done.stderr.splitlines() == ["printed", "written", "called", "within", "without"]


def test_what_was_said_before_is_not_carried_along() -> None:
    done = subprocess.run([sys.executable, "-c", SAYS], capture_output=True, text=True, check=True)  # with a buffer
    assert done.stdout.split("\n")[:1] == ["before"]
    assert "before" not in done.stderr


def test_no_descriptor_is_left_open(capfd: pytest.CaptureFixture[str]) -> None:
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    for _ in range(5):
        with quiet():
            os.write(1, b".")
    assert capfd.readouterr().err == "....."
    assert len(os.listdir("/proc/self/fd") if before else []) == before


def test_a_process_without_stdout_is_none_the_worse() -> None:
    code = "from flowplat.quiet import quiet\nwith quiet():\n    print('said')"
    command = f'exec {sys.executable} -c "{code}" >&-'
    done = subprocess.run(["sh", "-c", command], stderr=subprocess.PIPE, text=True, check=True)
    assert done.stderr == "said\n"
