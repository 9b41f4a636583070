"""Hosts, ranks and the launcher; knows nothing of YOLO. `ranks` needs torch and is imported by its own name."""

from yolods.cluster.flags import LaunchFlags, split_words
from yolods.cluster.hosts import Host, parse_hostfile, select
from yolods.cluster.launch import free_port, hosts_of, launcher_command, ranks_of

__all__ = [
    "Host",
    "LaunchFlags",
    "free_port",
    "hosts_of",
    "launcher_command",
    "parse_hostfile",
    "ranks_of",
    "select",
    "split_words",
]
