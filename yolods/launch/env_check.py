"""Checks of variables that DeepSpeed and torch parse, where a bad value would be a traceback."""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import dataclass

from yolods.errors import Faults, OwnError


@dataclass(frozen=True)
class _Rule:
    permitted: str
    """Completes the sentence "it must be ..."."""
    fits: Callable[[str], bool]


def _is_whole(value: str) -> bool:
    return value.strip().removeprefix("-").isascii() and value.strip().removeprefix("-").isdigit()


_WHOLE = _Rule("a whole number", _is_whole)
_MINUTES = _Rule(
    "a number of minutes from 1 to 1000000",
    lambda value: _is_whole(value) and 0 < int(value) <= 1_000_000,
)
_DEBUG = _Rule("OFF, INFO or DETAIL", lambda value: value.upper() in ("OFF", "INFO", "DETAIL"))
_TRANSPORT = _Rule(
    "TCP, TCP_TLS, UV or IBVERBS",
    lambda value: value.upper() in ("TCP", "TCP_TLS", "UV", "IBVERBS"),
)

VARIABLE_RULES: Mapping[str, _Rule] = {
    "DEEPSPEED_TIMEOUT": _MINUTES,  # deepspeed 0.19.8 constants.py:19
    "TORCH_DISTRIBUTED_DEBUG": _DEBUG,  # torch 2.13 set_debug_level_from_env
    "TORCH_DIST_INIT_BARRIER": _WHOLE,  # torch 2.13 distributed/distributed_c10d.py:1417
    "GLOO_DEVICE_TRANSPORT": _TRANSPORT,  # torch 2.13 ProcessGroupGloo::createDefaultDevice
    # torch 2.13 _dynamo/config.py and _inductor/config.py, which DeepSpeed's engine imports
    **dict.fromkeys(
        (
            *("TORCHDYNAMO_REPRO_LEVEL", "AOTINDUCTOR_REPRO_LEVEL", "TORCHINDUCTOR_MIN_NUM_SPLIT"),
            *(
                "TORCHINDUCTOR_COMPILE_THREADS",
                "TORCHINDUCTOR_FILE_LOCK_TIMEOUT",
                "TORCHINDUCTOR_CPP_MIN_CHUNK_SIZE",
            ),
            *("TORCHINDUCTOR_CPP_GEMM_MAX_K_SLICES", "TORCHINDUCTOR_ORIGAMI_TOPK"),
        ),
        _WHOLE,
    ),
}


def check_variables(environ: MutableMapping[str, str]) -> None:
    """Check each variable against the values that its reader accepts; remove empty ones.

    An empty value expresses no choice, but its reader would try to parse it.

    Raises:
        OwnError: one line per bad value.
    """
    faults = Faults()
    for name, rule in VARIABLE_RULES.items():
        value = environ.get(name)
        if value == "":
            del environ[name]
        elif value is not None and not rule.fits(value):
            faults.add(f"{name}={value}: it must be {rule.permitted}; correct it, or unset it")
    if faults:
        raise OwnError("\n".join(faults))
