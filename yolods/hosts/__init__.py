"""Hosts: the hostfile, devices, the environment on other hosts, and a probe that describes a
host."""
