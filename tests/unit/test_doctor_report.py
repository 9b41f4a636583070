"""What `yolods doctor` prints."""

from __future__ import annotations

import pytest

from yolods.doctor.checks import Finding, Plan
from yolods.doctor.report import report_lines, verdict
from yolods.hosts.hostfile import Host
from yolods.hosts.remote import Answer

FAULT, WARNING = Finding("w1", "ssh", True, "is gone"), Finding("", "", False, "is slow")


@pytest.mark.parametrize(
    ("findings", "line"),
    [
        ([], "This run would start."),
        ([WARNING], "This run would start (1 warning)."),
        ([FAULT, FAULT, WARNING], "This run would fail (2 faults, 1 warning)."),
    ],
)
def test_the_last_line_is_the_verdict(findings, line):
    assert verdict(findings) == line


def test_a_host_that_does_not_answer_has_a_row_of_dashes_and_its_fault_a_mark():
    hosts = (Host("w1", 2, (0, 1)),)
    plan = Plan(hosts=hosts, local=False, master_addr="10.0.0.1", master_port=29500)
    lines = report_lines(plan, [Answer(hosts[0], None, "no route")], [FAULT])
    assert lines == [
        "1 host, 2 ranks, meeting at 10.0.0.1, port 29500",
        "",
        "host  ssh",
        "w1    no answer!",
        "",
        "fault: w1: is gone",
        "This run would fail (1 fault).",
    ]
