"""`yolods doctor`: what it concludes from reports, one planted fault at a time; what it prints."""

from __future__ import annotations

from dataclasses import replace

import pytest

from yolods.doctor.checks import Finding, Plan, diagnose, interface_to
from yolods.doctor.report import report_lines
from yolods.hosts.hostfile import Host
from yolods.hosts.probe import Count, Gpu, Lock, Report
from yolods.hosts.remote import Answer
from yolods.launch.multi_host import DEFAULT_PORT

PYTHON = "/home/me/yolods/.venv/bin/python"
VERSIONS = {"yolods": "0.1.0", "torch": "2.13.0", "deepspeed": "0.19.8", "ultralytics": "8.4.190"}
GIB = 1 << 30


def report(number: int, **changes: object) -> Report:
    """A healthy host with two GPUs and the address 10.0.0.NUMBER."""
    healthy = Report(
        name=f"w{number}",
        machine=f"boot-{number}",
        directory="/home/me/yolods",
        python="3.11.7",
        executable=PYTHON,
        versions=VERSIONS,
        package="/home/me/yolods/yolods",
        digest="0123456789ab",
        gpus=[Gpu(0, 80000, 81559), Gpu(1, 80000, 81559)],
        gpu_error="",
        cores=16,
        disk={"/home/me/yolods": 500 * GIB, "/home/me/.cache/yolods": 500 * GIB},
        addresses=[
            ("lo", "127.0.0.1/8"),
            ("eth0", f"10.0.0.{number}/24"),
            ("eth0", f"fd00::{number}/64"),
        ],
        routes=[("eth0", "0.0.0.0/0"), ("eth0", "10.0.0.0/24")],
        own_address=f"10.0.0.{number}",
        first_address=f"10.0.0.{number}",
        master_address=None,
        port_error="",
        ninja="/usr/bin/ninja",
        ninja_beside=None,
        compiler="/usr/bin/c++",
        nvcc="/usr/local/cuda/bin/nvcc",
        headers=True,
        locks=[],
        data=[Count("/data/images", True, 100, 5 * GIB)],
        time=0.0,
    )
    return replace(healthy, **changes)


HOSTS = tuple(Host(f"w{number}", 2, (0, 1)) for number in (1, 2, 3))
PLAN = Plan(
    hosts=HOSTS,
    local=False,
    here="boot-1",
    master_port=DEFAULT_PORT,
    builds=True,
    tool="/usr/bin/pdsh",
    script="./launch.sh",
)


def answers(w2: dict[str, object] | None = None, **everywhere: object) -> list[Answer]:
    """Three hosts; `w2` changes the second one's report."""
    return [
        Answer(h, report(n, **everywhere, **(w2 or {} if n == 2 else {})))
        for n, h in enumerate(HOSTS, 1)
    ]


def found(plan: Plan, given: list[Answer]) -> list[str]:
    return [str(finding) for finding in diagnose(plan, given)]


def test_a_healthy_cluster():
    lines = report_lines(PLAN, answers(), diagnose(PLAN, answers()), width=200)
    assert found(PLAN, answers()) == []
    assert lines[0] == "3 hosts, 6 ranks, meeting at 10.0.0.1, port 29500"
    heading = (
        "host ssh python yolods torch deepspeed ultralytics slots GPU free disk free clock "
        "interface port build data"
    )
    row = (
        "w1 0.0 s 3.11.7 0.1.0 2.13.0 0.19.8 8.4.190 2 on 2 GPUs 78.1 GiB 500.0 GiB +0.0 s eth0 "
        "free ninja c++ nvcc"
    )
    assert " ".join(lines[2].split()) == heading
    assert " ".join(lines[3].split()) == f"{row} 100 files, 5.0 GiB"
    assert lines[-1] == "This run would start."


@pytest.mark.parametrize(
    ("planted", "expected"),
    [
        ({"versions": {**VERSIONS, "torch": "2.6.0"}}, "pip install torch==2.13.0"),
        ({"digest": "other"}, "install the same yolods there"),
        ({"python": "3.12.1"}, "create the environment there again with the same Python"),
    ],
)
def test_remedies_need_no_checkout_where_launch_sh_has_started_nothing(planted, expected):
    (line,) = found(replace(PLAN, script=None), answers(planted))
    assert line.endswith(expected) and "launch.sh" not in line


@pytest.mark.parametrize(
    ("planted", "column", "expected"),
    [
        (
            {"versions": {**VERSIONS, "torch": "2.6.0"}},
            "torch",
            "fault: w2: torch 2.6.0, but w1 has 2.13.0; install 2.13.0 there: remove .venv and run "
            "./launch.sh version, or use pip",
        ),
        (
            {"versions": {**VERSIONS, "deepspeed": None}},
            "deepspeed",
            f"fault: w2: {PYTHON} has no deepspeed; install 0.19.8 there: remove .venv and run "
            "./launch.sh version, or use pip",
        ),
        (
            {"digest": "other"},
            "yolods",
            "fault: w2: yolods 0.1.0 (other), but w1 has 0.1.0 (0123456789ab); "
            "check out the same commit in /home/me/yolods there",
        ),
        (
            {"package": "/opt/yolods"},
            "yolods",
            "fault: w2: yolods is in /opt/yolods, but on w1 in /home/me/yolods/yolods; use the "
            "same path on every host",
        ),
        (
            {"python": "3.12.1"},
            "python",
            "fault: w2: python 3.12.1, but w1 has 3.11.7; create .venv there with the same Python: "
            "remove it, and run ./launch.sh version",
        ),
        (
            {"gpus": [Gpu(0, 80000, 81559)]},
            "slots",
            "fault: w2: slots=2, but it has 1 GPUs; write slots=1 in the hostfile",
        ),
        (
            {"gpus": [Gpu(number, 80000, 81559) for number in range(4)]},
            "slots",
            "warning: w2: slots=2, but it has 4 GPUs: the rest are idle; write slots=4 for all",
        ),
        (
            {"gpus": []},
            "slots",
            "fault: w2: no GPU, but w1 has some, and ranks cannot meet across both; repair its "
            "driver, or exclude it: --exclude w2",
        ),
        (
            {"gpus": [Gpu(0, 80000, 81559), Gpu(1, 512, 81559)]},
            "GPU free",
            "fault: w2: GPU 1 has 0.5 of 79.6 GiB free; end what runs there (nvidia-smi lists it), "
            "or exclude the GPU",
        ),
        (
            {"disk": {"/home/me/yolods": 5 * GIB}},
            "disk free",
            "warning: w2: 5.0 GiB free on the disk of /home/me/yolods; make room, or choose "
            "another folder",
        ),
        (
            {"disk": {"/home/me/yolods": GIB // 2}},
            "disk free",
            "fault: w2: 512 MiB free on the disk of /home/me/yolods; make room, or choose another "
            "folder",
        ),
        (
            {"addresses": [("eth1", "192.168.7.2/24")], "routes": []},
            "interface",
            "fault: w2: no route to w1 at 10.0.0.1; give an address that it reaches as "
            "--master_addr",
        ),
        (
            {"addresses": [("docker0", "10.0.0.1/16")]},
            "interface",
            "fault: w2: 10.0.0.1 is this host itself there, not w1; give another --master_addr",
        ),
        (
            {"ninja": None},
            "build",
            "fault: w2: no ninja, but the configuration needs DeepSpeed's CPUAdam compiled; "
            f"{PYTHON} -m pip install ninja",
        ),
        (
            {"compiler": None},
            "build",
            "fault: w2: no C++ compiler, but the configuration needs DeepSpeed's CPUAdam compiled; "
            "apt-get install g++",
        ),
        (
            {"locks": [Lock("/c/cpu_adam/lock", 7200.0, False)]},
            "build",
            "fault: w2: a build that was killed 2 hours ago left /c/cpu_adam/lock, which blocks "
            "every later build without a message; rm /c/cpu_adam/lock",
        ),
        (
            {"locks": [Lock("/c/cpu_adam/lock", 20.0, False)]},
            "build",
            "warning: w2: no process of the hosts holds /c/cpu_adam/lock, created 20 s ago, which "
            "blocks builds without a message; rm /c/cpu_adam/lock",
        ),
        (
            {"data": [Count("/data/images", False)]},
            "data",
            "fault: w2: /data/images is missing or unreadable; copy it: rsync -a w1:/data/images "
            "/data/",
        ),
        (
            {"data": [Count("/data/images", True, 99, 4 * GIB)]},
            "data",
            "fault: w2: /data/images has 99 files, 4.0 GiB, but on w1 100 files, 5.0 GiB; copy it: "
            "rsync -a w1:/data/images /data/",
        ),
        (
            {"data": [Count("/data/images", True, 7, 1, whole=False)]},
            "data",
            "warning: w2: /data/images has more than 7 files, too many to count in time; they were "
            "not compared",
        ),
        (
            {"data": [Count("/data/images", True, 100, 5 * GIB, fault="lacks its 00000.tar")]},
            "data",
            "fault: w2: /data/images lacks its 00000.tar; copy it: rsync -a w1:/data/images /data/",
        ),
        (
            {"machine": "boot-1"},
            "host",
            "fault: w2: the same machine as w1; give it one line in the hostfile with all its "
            "slots",
        ),
    ],
)
def test_a_fault_on_one_host(planted, column, expected):
    findings = diagnose(PLAN, answers(planted))
    assert [str(finding) for finding in findings] == [expected]
    lines = report_lines(PLAN, answers(planted), findings, width=200)
    fatal = expected.startswith("fault")
    assert lines[-1] == (
        "This run would fail (1 fault)." if fatal else "This run would start (1 warning)."
    )
    assert findings[0].column == column
    # The table marks that cell and no other.
    assert (lines[4].count("!"), "!" in lines[3] + lines[5]) == (
        0 if column == "host" else 1,
        False,
    )


def test_a_host_that_is_not_reached():
    given = answers()
    given[1] = Answer(
        HOSTS[1], None, "cannot reach it with ssh: Connection refused; start sshd there"
    )
    findings = diagnose(PLAN, given)
    assert [str(finding) for finding in findings] == [f"fault: w2: {given[1].problem}"]
    assert report_lines(PLAN, given, findings, width=200)[4].split() == [
        "w2",
        "no",
        "answer!",
        *["-"] * 13,
    ]


def test_a_wide_table_goes_on_below():
    lines = report_lines(PLAN, answers(), [])
    heads = [line.split() for line in lines if line.startswith("host")]
    assert len(heads) == 2 and all(len(line) <= 120 for line in lines)
    assert [line.split()[0] for line in lines[2:6] + lines[7:11]] == ["host", "w1", "w2", "w3"] * 2
    assert [name for head in heads for name in head[1:]] == report_lines(
        PLAN, answers(), [], width=200
    )[2].split()[1:]


def test_nobody_is_reached():
    given = [Answer(host, None, "no answer within 12 s") for host in HOSTS]
    lines = report_lines(PLAN, given, diagnose(PLAN, given))
    assert lines[0] == "3 hosts, 6 ranks, meeting at an unknown address, port 29500"
    assert lines[-1] == "This run would fail (3 faults)."


def test_the_first_of_two_that_differ_is_taken_for_right():
    given = answers({"versions": {**VERSIONS, "ultralytics": "8.4.200"}})[:2]
    assert found(replace(PLAN, hosts=HOSTS[:2]), given)[0].startswith(
        "fault: w2: ultralytics 8.4.200, but w1 has"
    )


def test_the_odd_one_out_may_be_the_first():
    given = answers(versions={**VERSIONS, "torch": "2.6.0"})
    given[0] = Answer(HOSTS[0], report(1))
    assert found(PLAN, given)[0].startswith(
        "fault: w1: torch 2.13.0, but w2 has 2.6.0; install 2.6.0 there"
    )


@pytest.mark.parametrize(
    ("skew", "expected"),
    [
        (1.5, []),
        (
            -4.0,
            [
                "warning: w2: its clock is 4.0 s behind that of w1; set it with NTP: timedatectl "
                "set-ntp true"
            ],
        ),
        (
            90.0,
            [
                "fault: w2: its clock is 90.0 s ahead of that of w1; set it with NTP: timedatectl "
                "set-ntp true"
            ],
        ),
    ],
)
def test_clocks_are_compared_with_each_other_and_not_with_ours(skew, expected):
    given = [
        replace(answer, skew=1000.0 + skew * (answer.host == HOSTS[1])) for answer in answers()
    ]
    assert found(PLAN, given) == expected


def test_a_port_that_is_taken():
    given = answers()
    given[0] = Answer(HOSTS[0], report(1, port_error="Address already in use"))
    assert found(PLAN, given) == [
        "fault: w1: port 29500 is not usable: Address already in use; end what listens there, or "
        "use another --master_port"
    ]
    assert " taken!" in report_lines(PLAN, given, diagnose(PLAN, given), width=200)[3]


def test_only_the_first_hosts_port_counts():
    assert found(PLAN, answers({"port_error": "Address already in use"})) == []


@pytest.mark.parametrize(
    ("plan", "first", "expected"),
    [
        (
            {"master_addr": "10.0.0.9"},
            "10.0.0.9",
            "rank 0 runs there, but none of its interfaces has 10.0.0.9",
        ),
        ({"master_addr": "nobody"}, None, "--master_addr nobody is unknown there"),
    ],
)
def test_a_master_address_that_is_not_the_first_hosts(plan, first, expected):
    lines = found(replace(PLAN, **plan), answers(master_address=first))
    assert len(lines) == 1 and lines[0].startswith(f"fault: w1: {expected}")


def test_hostname_may_not_tell_its_address():
    lines = found(PLAN, answers(first_address=None))
    assert lines == [
        "fault: w1: its `hostname -I` prints no address; give the rendezvous with --master_addr "
        "ADDRESS"
    ]


def test_a_loopback_master_is_each_hosts_own():
    lines = found(replace(PLAN, master_addr="127.0.0.1"), answers(master_address="127.0.0.1"))
    assert lines == [
        f"fault: w{number}: 127.0.0.1 is this host itself there, not w1; give another --master_addr"
        for number in (2, 3)
    ]


def test_what_every_rank_sees_to_by_itself_is_no_fault():
    """Where gloo listens (Debian gives a host's own name the address 127.0.1.1), and the tools
    beside its Python."""
    given = {"own_address": "127.0.1.1", "addresses": [("en7", "10.0.0.2/24")], "routes": []}
    assert found(PLAN, answers(given, gpus=[])) == []
    assert found(PLAN, answers({"ninja": None, "ninja_beside": "/env/bin/ninja"})) == []


@pytest.mark.parametrize(
    ("value", "good"),
    [
        ("eth0", True),
        ("eth", True),
        ("=eth", False),
        ("ib", False),
        ("ib,eth", True),
        ("^docker", True),
        ("^eth", False),
    ],
)
def test_interfaces_named_in_nccls_way(value, good):
    lines = found(replace(PLAN, variables={"NCCL_SOCKET_IFNAME": value}), answers())
    assert (lines == []) == good
    assert all(
        f"NCCL_SOCKET_IFNAME={value} does not fit its interfaces (lo, eth0)" in line
        for line in lines
    )


@pytest.mark.parametrize(
    ("value", "good"), [("eth0", True), ("eth", False), ("lo,eth0", True), ("eth0,ib0", False)]
)
def test_interfaces_named_for_gloo(value, good):
    """It takes names as they are, and opens each: another way than NCCL's."""
    lines = found(replace(PLAN, variables={"GLOO_SOCKET_IFNAME": value}), answers())
    assert len(lines) == (0 if good else 3)


def test_the_interface_that_leads_to_an_address():
    two = report(1, routes=[("eth0", "0.0.0.0/0"), ("ib0", "10.1.0.0/16")])
    assert [
        interface_to(two, address)
        for address in ("10.0.0.1", "10.0.0.2", "10.1.2.3", "8.8.8.8", "fd00::7")
    ] == [
        "eth0",
        "eth0",
        "ib0",
        "eth0",
        "eth0",
    ]
    assert interface_to(two, "2001:db8::1") is None


def test_a_lock_that_a_process_of_another_host_holds_is_in_use():
    """The folder may be shared, and only the host that builds sees its builder."""
    given = answers({"locks": [Lock("/nfs/cpu_adam/lock", 7200.0, False)]})
    given[2] = Answer(HOSTS[2], report(3, locks=[Lock("/nfs/cpu_adam/lock", 7200.0, True)]))
    assert found(PLAN, given) == []


@pytest.mark.parametrize(
    ("changes", "lock", "gpus"),
    [
        ({"builds": False}, "/c/cpu_adam/lock", True),
        ({}, "/c/cpu_adam/lock", False),
        ({}, "/c/deepspeed_shm_comm/lock", True),
        ({}, "/c/py311_cu126/fused_adam/lock", True),
    ],
)
def test_a_stale_lock_of_an_operator_that_nothing_builds_keeps_no_run_from_starting(
    changes, lock, gpus
):
    plan = replace(PLAN, **changes)
    given = answers({"locks": [Lock(lock, 7200.0, False)]}, **({} if gpus else {"gpus": []}))
    findings = diagnose(plan, given)
    assert [str(finding) for finding in findings] == [
        f"warning: w2: a build that was killed 2 hours ago left {lock}; this run builds nothing "
        f"there, but a run that does would wait without a message; rm {lock}"
    ]
    assert report_lines(plan, given, findings)[-1] == "This run would start (1 warning)."


def test_no_cuda_compiler_is_missed_where_cpuadam_needs_none():
    assert found(PLAN, answers({"nvcc": None})) == []


@pytest.mark.parametrize("there", [False, True])
def test_images_of_the_test_split_keep_no_training_from_starting(there):
    plan = replace(PLAN, spare=frozenset({"/data/images"}))
    changed = Count("/data/images", True, 99, 4 * GIB) if there else Count("/data/images", False)
    findings = diagnose(plan, answers({"data": [changed]}))
    assert [finding.fatal for finding in findings] == [False]
    assert " (of the test split, which no training reads); copy it: rsync -a w1:" in str(
        findings[0]
    )
    nowhere = diagnose(plan, answers(data=[Count("/data/images", False)]))
    assert [finding.fatal for finding in nowhere] == [False] * 3


def test_tools_matter_only_where_something_is_built():
    assert found(replace(PLAN, builds=False), answers({"ninja": None, "compiler": None})) == []
    on_cpus = found(PLAN, answers({"ninja": None}, gpus=[]))
    assert len(on_cpus) == 1 and on_cpus[0].startswith("warning: w2: no ninja")


def test_data_missing_on_all_hosts_is_the_yamls_fault():
    lines = found(PLAN, answers(data=[Count("/data/images", False)]))
    assert lines[0] == "fault: w1: /data/images is missing or unreadable; correct the data yaml"


def test_a_pack_that_is_complete_on_no_host():
    cut = Count("/data/train.pack", True, 9, GIB, fault="lacks its 00000.tar")
    lines = found(PLAN, answers(data=[cut]))
    assert lines[0] == "fault: w1: /data/train.pack lacks its 00000.tar; pack the data again"


def test_more_ranks_than_cores():
    """On several hosts the hostfile is wrong; on this machine alone somebody tries things out."""
    text = "2 ranks on 1 CPU cores take turns; write slots=1"
    assert found(replace(PLAN, builds=False), answers({"cores": 1}, gpus=[])) == [
        f"fault: w2: {text}"
    ]
    alone = Plan(hosts=HOSTS[:1], local=True)
    assert found(alone, answers(gpus=[], cores=1)[:1]) == [f"warning: w1: {text}"]


def test_a_cpu_build_of_torch_beside_gpus():
    lines = found(PLAN, answers(versions={**VERSIONS, "torch": "2.13.0+cpu"}))
    assert (
        lines[0]
        == "fault: w1: torch 2.13.0+cpu cannot use its GPUs; install a build of torch for them"
    )


@pytest.mark.parametrize(
    ("launcher", "expected"),
    [
        (
            "pdsh",
            "fault: no pdsh here, which starts ranks on the other hosts; apt-get install pdsh",
        ),
        (
            "slurm",
            "fault: no srun here, which starts ranks on the other hosts; start on a node of the "
            "Slurm cluster",
        ),
    ],
)
def test_the_launchers_tool_is_needed_for_several_hosts_only(launcher, expected):
    assert found(replace(PLAN, launcher=launcher, tool=None), answers()) == [expected]
    assert found(Plan(hosts=HOSTS[:1], local=True), answers()[:1]) == []


def test_a_single_host_that_is_another_machine():
    """DeepSpeed (0.19.8) starts the ranks of a hostfile with one host where it is typed, whatever
    its name."""
    plan = replace(PLAN, hosts=HOSTS[:1])
    assert found(plan, answers()[:1]) == []
    lines = found(replace(plan, here="boot-9"), answers()[:1])
    assert lines == [
        "fault: w1: the only host, but not this machine; DeepSpeed would start its ranks here: log "
        "in there and start there"
    ]


def test_faults_stand_before_warnings():
    given = answers({"disk": {"/": 5 * GIB}, "data": [Count("/data/images", False)]})
    assert [finding.fatal for finding in diagnose(PLAN, given)] == [True, False]


def test_a_finding_is_one_line():
    assert str(Finding("", "", True, "x")) == "fault: x"
    assert str(Finding("w", "ssh", False, "x")) == "warning: w: x"
