"""Settings that users bring from ultralytics and yolov5 and that this trainer does not take, each with the reason.

ultralytics names carry ultralytics' default: who merely repeats it asks for nothing and is let through. So a copy of
its default.yaml, and the args.yaml that it leaves in a run, pass as a hyp file. `ALWAYS` is refused whatever its value,
but for what `NOT_USED` says of a file.
"""

from __future__ import annotations

from typing import Any

ALWAYS = object()
"""Stands where no value of a key can be honoured, ultralytics' default included."""

_SEGMENT = "it belongs to segmentation; this trains detectors"
_CLASSIFY = "it belongs to classification; this trains detectors"
_POSE = "it belongs to pose estimation; this trains detectors"
_OBB = "it belongs to oriented boxes; this trains detectors with upright ones"
_DEPTH = "it belongs to depth estimation; this trains detectors"
_PREDICT = "it belongs to prediction; use YOLO('best.pt').predict(...) on the finished model"
_EXPORT = "it belongs to export; use YOLO('best.pt').export(...) on the finished model"

REFUSED: dict[str, tuple[Any, str]] = {
    "task": ("detect", "only detection is trained here"),
    "mode": ("train", "the subcommand says what to do: yolods train, val, export"),
    "time": (None, "training ends after --epochs or by patience; a limit in hours would end runs on different steps"),
    "save": (True, "best.pt, last.pt and the checkpoints are always written"),
    "verbose": (True, "the screen is kept short and train.log holds everything"),
    "rect": (False, "rectangular training batches differ in shape from rank to rank; evaluation is rectangular anyway"),
    "amp": (ALWAYS, "precision is in the DeepSpeed JSON: bf16, fp16 or torch_autocast (ds_configs/ has each of them)"),
    "profile": (False, "it times ONNX and TensorRT exports; the DeepSpeed JSON has flops_profiler"),
    "compile": (False, "torch.compile together with ZeRO's hooks has not been tried here"),
    "overlap_mask": (True, _SEGMENT),
    "mask_ratio": (4, _SEGMENT),
    "dropout": (0.0, _CLASSIFY),
    "split": ("val", "training evaluates on val; `yolods val` has --split"),
    "save_json": (False, "use YOLO('best.pt').val(save_json=True) on the finished model"),
    "quantize": (None, "precision is in the DeepSpeed JSON; quantisation-aware training is not in this version"),
    "dnn": (False, _PREDICT),
    "nms": (None, _EXPORT),
    "source": (None, _PREDICT),
    "vid_stride": (1, _PREDICT),
    "stream_buffer": (False, _PREDICT),
    "visualize": (False, _PREDICT),
    "augment": (False, "test-time augmentation belongs to prediction; training augments by hsv_h, mosaic and so on"),
    "retina_masks": (False, _SEGMENT),
    "embed": (None, _PREDICT),
    "show": (False, _PREDICT),
    "save_frames": (False, _PREDICT),
    "save_txt": (False, _PREDICT),
    "save_conf": (False, _PREDICT),
    "save_crop": (False, _PREDICT),
    "show_labels": (True, _PREDICT),
    "show_conf": (True, _PREDICT),
    "show_boxes": (True, _PREDICT),
    "line_width": (None, _PREDICT),
    "format": ("torchscript", _EXPORT),
    "optimize": (False, _EXPORT),
    "dynamic": (False, _EXPORT),
    "simplify": (True, _EXPORT),
    "opset": (None, _EXPORT),
    "workspace": (None, _EXPORT),
    "distill_model": (None, "distillation is not in this version"),
    "dis": (6.0, "it weighs distillation, which is not in this version"),
    "pose": (12.0, _POSE),
    "kobj": (1.0, _POSE),
    "rle": (1.0, _POSE),
    "angle": (1.0, _OBB),
    "dlog": (1.0, _DEPTH),
    "dgrad": (0.5, _DEPTH),
    "dlam": (1.0, _DEPTH),
    "auto_augment": ("randaugment", _CLASSIFY),
    "erasing": (0.4, _CLASSIFY),
    "cfg": (None, "give the file by --hyp"),
    "tracker": ("tracktrack.yaml", "it belongs to tracking; use YOLO('best.pt').track(...) on the finished model"),
}
"""ultralytics' remaining settings: name -> its default there, and why it is not taken."""

EARLIER: dict[str, tuple[Any, ...]] = {
    "boxes": (True,),
    "crop_fraction": (1.0,),
    "end2end": (None,),
    "half": (False,),
    "hide_conf": (False,),
    "hide_labels": (False,),
    "int8": (False,),
    "keras": (False,),
    "label_smoothing": (0.0,),
    "line_thickness": (None, 3),
    "nms": (False,),
    "save_hybrid": (False,),
    "simplify": (False,),
    "tracker": ("botsort.yaml",),
    "v5loader": (False,),
    "workspace": (4,),
}
"""Defaults of earlier versions of ultralytics, which their args.yaml repeats; some names it has dropped since."""

NOT_USED = {
    "amp": "precision is in the DeepSpeed JSON",
    "project": "use --project",
    "name": "use --name",
    "exist_ok": "use --exist-ok",
    "save_dir": "use --project and --name",
    "resume": "use --resume",
    "device": "the launcher picks devices: --num_gpus, --include or --hostfile, or CUDA_VISIBLE_DEVICES",
}
"""What a hyp file may hold (an args.yaml does) without its being used, and what to do instead; the run says so."""

_NO_ANCHORS = "YOLOv5 here is YOLOv5u, which has no anchors"
_NO_OBJECTNESS = "YOLOv5 here is YOLOv5u, which has no objectness"

YOLOV5: dict[str, str] = {
    "anchors": _NO_ANCHORS,
    "anchor_t": _NO_ANCHORS,
    "iou_t": _NO_ANCHORS,
    "obj": _NO_OBJECTNESS,
    "obj_pw": _NO_OBJECTNESS,
    "fl_gamma": "YOLOv5u's loss is not focal: it weighs classes by task alignment",
    "label_smoothing": "YOLOv5u's class targets are soft already, from task alignment",
    "image_weights": "samples are a pure function of seed, epoch and index; cls_pw weighs rare classes",
    "evolve": "hyper-parameter search is not in this version",
    "quad": "every batch has the same shape on every rank",
    "noautoanchor": _NO_ANCHORS,
    "adam": "write optimizer=Adam",
    "sync-bn": "write sync_bn",
    "hyp": "give the file by --hyp",
}
"""Names from the original yolov5's train.py and hyp files, and why they are not taken."""

YOLOV5_GAINS = ("box", "cls", "cls_pw")
"""Names that both know with different meanings, so that a yolov5 file must not set them unseen."""

FLAGS = {
    "data": "--data",
    "model": "--model",
    "weights": "--weights",
    "project": "--project",
    "name": "--name",
    "exist_ok": "--exist-ok",
    "resume": "--resume",
    "epochs": "--epochs",
    "imgsz": "--imgsz",
    "batch": "--batch-size",
    "batch_size": "--batch-size",
    "workers": "--workers",
    "deepspeed_config": "--deepspeed_config",
    "device": "the launcher's --num_gpus, --include or --hostfile, or CUDA_VISIBLE_DEVICES",
}
"""Settings that flags have, and the flag."""

FLAGS_IN_FILE = {
    "data": "data",
    "model": "model",
    "epochs": "epochs",
    "imgsz": "imgsz",
    "batch": "batch_size",
    "workers": "workers",
}
"""Those of them that a hyp file may hold too; the flag wins. File's key -> name among the flags."""
