"""`python -m yolods WORD ...` and `deepspeed --module yolods WORD ...`."""

from yolods.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
