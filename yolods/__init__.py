"""yolods: trains YOLOv5 detectors on DeepSpeed and returns an ordinary best.pt.

From Python: `yolods.train(data="demo", epochs=1)` (docs/python.md).
"""

from yolods.api.names import late as __getattr__  # noqa: F401

__version__ = "0.1.0"
